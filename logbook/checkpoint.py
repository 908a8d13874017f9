"""A checkpoint on disk: plain data and tensors in one file, proven whole by a SHA-256, without any pickle.

First line: a magic word and the SHA-256 of the rest. The rest is a safetensors file with every tensor of the state; its
metadata holds the state itself as JSON, in which tensors stand by name and dictionaries that have other keys than texts
as lists of pairs.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

MAGIC = b"luban checkpoint 2"


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a state of nested dictionaries, lists, numbers (NumPy's too), texts and tensors; whole, or not at all."""
    tensors: dict[str, Tensor] = {}
    plain = json.dumps(_encode(state, tensors))
    payload = save(tensors, metadata={"state": plain})
    write_atomically(path, _header(payload) + b"\n" + payload)


def check_state(state: Any, whose: str) -> None:
    """Prove that a checkpoint can hold a state as it is now, before much is computed that could not be kept.

    Raises:
        ValueError: It cannot; the message begins with `whose`.
    """
    try:
        _encode(state, {})
    except ValueError as error:
        raise ValueError(f"{whose}: {error}") from None


def plain_number(value: Any) -> Any:
    """For JSON: a number of NumPy's or PyTorch's, such as an evaluator of the user's own may give, as Python's.

    Raises:
        TypeError: It is no number.
    """
    if isinstance(value, np.generic | Tensor):
        return value.item()
    raise TypeError(f"JSON holds plain data, not {type(value).__name__}")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint file.

    Raises:
        ValueError: The file is missing, damaged, or no checkpoint.
    """
    try:
        header, _, payload = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    if header != _header(payload):
        raise ValueError(f"{path} is damaged: its content does not match its SHA-256")
    try:
        length = int.from_bytes(payload[:8], "little")
        plain = json.loads(json.loads(payload[8 : 8 + length])["__metadata__"]["state"])
        return _decode(plain, load(payload))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a checkpoint: {error!r}") from None


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside, sync, rename: after a crash or on a full disk the file is whole, old or new.

    Raises:
        OSError: It could not be written; what stood there before still does.
    """
    beside = path.with_name(path.name + ".part")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {error.strerror or error}; what stood there before is untouched") from None
    folder = os.open(path.parent, os.O_RDONLY)  # so that the new name survives a power cut too
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _header(payload: bytes) -> bytes:
    return MAGIC + b" " + hashlib.sha256(payload).hexdigest().encode()


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    match value:
        case Tensor():
            name = f"{len(tensors)}"
            # A copy of its own for each: safetensors refuses tensors that share memory.
            tensors[name] = value.detach().cpu().clone().contiguous()
            # The order in memory is part of the state: an update rounds by it, and a resumed run must round alike.
            channels_last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
            return {"tensor": name, "channels_last": channels_last}
        case dict() if all(isinstance(key, str) for key in value):
            return {"dict": {key: _encode(each, tensors) for key, each in value.items()}}
        case dict():
            return {"pairs": [[_encode(key, tensors), _encode(each, tensors)] for key, each in value.items()]}
        case tuple():
            return {"tuple": [_encode(each, tensors) for each in value]}
        case list():
            return [_encode(each, tensors) for each in value]
        case np.generic():  # as it is, so that a resumed run computes in the same precision
            return {"numpy": value.dtype.str, "value": value.item()}
        case None | bool() | int() | float() | str():
            return value
    raise ValueError(
        f"a checkpoint holds plain data and tensors, not {type(value).__name__} ({value!r:.60}); an array goes in as "
        "torch.from_numpy, a set as a sorted list, and what follows from the config stays out"
    )


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    match value:
        case {"tensor": name, "channels_last": channels_last}:
            return tensors[name].contiguous(memory_format=torch.channels_last) if channels_last else tensors[name]
        case {"numpy": dtype, "value": number}:
            return np.dtype(dtype).type(number)
        case {"dict": mapping}:
            return {key: _decode(each, tensors) for key, each in mapping.items()}
        case {"pairs": pairs}:
            return {_decode(key, tensors): _decode(each, tensors) for key, each in pairs}
        case {"tuple": items}:
            return tuple(_decode(each, tensors) for each in items)
        case list():
            return [_decode(each, tensors) for each in value]
    return value
