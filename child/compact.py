"""How weights lie on disk: each tensor in the smallest of a few exact forms, in one safetensors file.

dense      as it is
codebook   few different values: the table of them, and for each weight its place in the table, packed to bits
           (Han et al. 2016, "Deep Compression", section 3)
sparse     many zeros: a bit per weight that says where the others are, and these, dense or by a codebook
equal      a tensor that equals one that came before: its name alone
same       a tensor that is one that came before, since several modules have it: its name alone

Nothing is rounded, so that what is read is bit for bit what was written: to be small is up to the weights. Pruning
connections makes zeros, sharing weights makes few values, and tying layers makes one tensor of several.
The metadata of the file says how each packed tensor is to be read; a file without any is a plain safetensors file.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

MOST_VALUES = 256
"""Of a codebook: with more, a place takes more than a byte and the table counts."""
ENTRY = 100
"""Bytes that a tensor's name, type, shape and offsets take in the head of a file, about."""


def pack(state: Mapping[str, Tensor]) -> bytes:
    """The file of a state."""
    tensors: dict[str, Tensor] = {}
    packed: dict[str, dict[str, Any]] = {}
    seen: dict[tuple[Any, ...], str] = {}
    places: dict[tuple[Any, ...], str] = {}
    for name, value in state.items():
        place = (value.device, value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)
        if value.numel() and place in places:  # one tensor that several modules have
            packed[name] = {"same": places[place]}
            continue
        places[place] = name
        value = value.detach().cpu().contiguous()
        # Vectors are left out, and what is all one value: they are small as they are.
        if value.dtype == torch.float32 and value.ndim > 1 and len(value.unique()) > 1:
            key = (tuple(value.shape), value.numpy().tobytes())
            if key in seen:
                packed[name] = {"equal": seen[key]}
                continue
            seen[key] = name
        parts = _smallest(value) if value.dtype == torch.float32 else {}
        if parts:
            tensors |= {f"{name}:{part}": torch.from_numpy(array) for part, array in parts.items()}
            packed[name] = {"shape": list(value.shape)}
        else:
            tensors[name] = value.clone()  # a view would have its memory in common with others
    return save(tensors, {"packed": json.dumps(packed)} if packed else None)


def unpack(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state in a file, and which of its tensors are one with another; those that only equal it are not.

    Raises:
        SafetensorError: It is no such file.
        ValueError: What it says of its packed tensors does not fit them.
    """
    stored = load(data)
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    packed = json.loads(metadata.get("packed", "{}"))
    names = {name.rpartition(":")[0] for name in stored if name.rpartition(":")[0] in packed}
    state = {name: value for name, value in stored.items() if name.rpartition(":")[0] not in names}
    same, equal = {}, {}
    try:
        for name, how in packed.items():
            if "same" in how:
                same[name] = how["same"]
            elif "equal" in how:
                equal[name] = how["equal"]
            else:
                codes, mask = (stored.get(f"{name}:{part}") for part in ("codes", "mask"))
                state[name] = _restore(tuple(how["shape"]), stored[f"{name}:values"], codes, mask)
        state |= {name: state[other].clone() for name, other in equal.items()}
        state |= {name: state[other] for name, other in same.items()}
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
        raise ValueError(f"its packed weights cannot be read: {error!r}") from None
    return state, same


def _smallest(value: Tensor) -> dict[str, NDArray[Any]]:
    """The parts of the smallest form of a float32 tensor; nothing where that is dense."""
    bits = value.numpy().reshape(-1).view(np.int32)  # so that -0 and NaN come back too
    mask = bits != 0
    forms: list[dict[str, NDArray[Any]]] = []
    for chosen, front in ((bits, {}), (bits[mask], {"mask": np.packbits(mask)})):
        if front:
            forms.append({**front, "values": chosen.view(np.float32)})
        table, codes = np.unique(chosen, return_inverse=True)
        if 0 < len(table) <= MOST_VALUES:
            forms.append({**front, "values": table.view(np.float32), "codes": _to_bits(codes, _width(len(table)))})
    best = min(forms, key=_size, default={})
    return best if best and _size(best) < bits.nbytes + ENTRY else {}


def _size(parts: Mapping[str, NDArray[Any]]) -> int:
    return sum(array.nbytes + ENTRY for array in parts.values())


def _restore(shape: tuple[int, ...], values: Tensor, codes: Tensor | None, mask: Tensor | None) -> Tensor:
    num = math.prod(shape)
    inside = None if mask is None else _bits(mask.numpy(), num).astype(bool)
    found = values.numpy()
    if codes is not None:
        width, wanted = _width(len(found)), num if inside is None else int(inside.sum())
        rows = _bits(codes.numpy(), wanted * width).reshape(wanted, width)
        found = found[np.packbits(np.pad(rows, ((0, 0), (8 - width, 0))), axis=1)[:, 0]]
    if inside is not None:
        dense = np.zeros(num, np.float32)
        dense[inside] = found
        found = dense
    return torch.from_numpy(found.copy()).view(shape)


def _width(num_values: int) -> int:
    """Bits of a place in a table."""
    return max(1, math.ceil(math.log2(num_values)))


def _to_bits(codes: NDArray[Any], width: int) -> NDArray[np.uint8]:
    return np.packbits(np.unpackbits(codes.astype(np.uint8)[:, None], axis=1)[:, 8 - width :])


def _bits(packed: NDArray[np.uint8], num: int) -> NDArray[np.uint8]:
    if len(packed) != -(-num // 8):
        raise ValueError(f"{num} bits do not take {len(packed)} bytes")
    return np.unpackbits(packed, count=num)
