"""Decoded data are kept on disk, so that pictures, sounds and archives are decoded once.

~/.cache/luban/<name>-<key>.npz   arrays, uncompressed, with their SHA-256 behind them

`LUBAN_CACHE` names another folder, `XDG_CACHE_HOME` its parent. Any file in it may be deleted at any time.
"""

import hashlib
import io
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

_CHUNK = 1 << 20  # bytes of a file read at a time


def content_key(files: Mapping[str, Path], *shaping: Any) -> str:
    """A SHA-256 of the names and bytes of all source files, and of all else that shapes the result.

    Args:
        files: A name to each file; the same names and bytes give the same key wherever the files lie.
        shaping: Arguments, and a version number of the code that decodes.

    Raises:
        ValueError: A file cannot be read.
    """
    digest = hashlib.sha256(repr(shaping).encode())
    for name, path in files.items():
        try:
            with path.open("rb") as file:
                inner = hashlib.sha256()
                while chunk := file.read(_CHUNK):
                    inner.update(chunk)
        except OSError as error:
            raise ValueError(f"cannot read {path}: {error.strerror}") from None
        digest.update(repr((name, inner.hexdigest())).encode())
    return digest.hexdigest()


def cached(name: str, key: str, make: Callable[[], Arrays]) -> Arrays:
    """The arrays that `make` gives: read from the cache, or made and kept there.

    A damaged file is made again. A folder that cannot be written to is no error: nothing is kept then.

    Args:
        name: For the person who looks into the folder.
        key: From `content_key`.
        make: Decodes the sources; its arrays hold numbers or texts, no objects.
    """
    parent = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = Path(os.environ.get("LUBAN_CACHE") or f"{parent}/luban", f"{name}-{key[:32]}.npz")
    found = _read(path)
    if found is None:
        found = make()
        with suppress(OSError):
            _write(path, found)
    return found


def _read(path: Path) -> Arrays | None:
    """The arrays in a file; None where there is none, or not what was written."""
    try:
        content = memoryview(path.read_bytes())
        data, digest = content[:-32], content[-32:]
        if hashlib.sha256(data).digest() != digest:
            return None
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _write(path: Path, arrays: Arrays) -> None:
    """All or nothing, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(buffer.getbuffer())
            file.write(hashlib.sha256(buffer.getbuffer()).digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
