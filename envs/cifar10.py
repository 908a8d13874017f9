"""CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 color images of 32x32 in 10 classes, in any form that it comes in."""

import io
import lzma
import pickle
import re
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from child.task import Task
from child.transforms import Augmentation
from envs.arrays import array_task, stratified
from envs.cache import cached, content_key
from envs.images import read_parts

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
PIXELS = 3 * 32 * 32
VERSION = 1  # of how the archive is decoded; another number leaves what is cached behind

Part = tuple[NDArray[np.uint8], NDArray[Any]]
"""Images (N, 32, 32, 3) and their labels."""


def cifar10(
    path: str,
    seed: int,
    num_train: int | None = None,
    validation_share: float = 0.1,
    augmentation: Augmentation | None = None,
    size: int = 32,
) -> Task:
    """The official test images, and the 50,000 others divided into training and validation, evenly over the classes.

    Args:
        path: The folder of the official Python or binary batches, or the one that holds it; a folder of images
            `train/<class>/*` and `test/<class>/*`; or a tar archive of such a folder. JPEG loses detail, and so the
            task is then called `cifar10 (JPEG)`.
        seed: The run's seed; draws what is held out.
        num_train: Use only so many of the training images, validation included; None for all.
        validation_share: Share of those held out for validation; by default 5,000 as in ENAS (Pham et al. 2018).
        augmentation: For training; none by default.
        size: Height and width, a divisor of 32: smaller images are means of squares of pixels.

    Raises:
        ValueError: `size` does not divide 32, there is nothing of that kind, or a file is damaged, which is named.
    """
    if size < 1 or 32 % size:
        raise ValueError(f"size must be a divisor of 32, got {size}")
    root, lossy = Path(path), False
    if root.is_file():
        train, test, lossy = _read_tar(root)
    elif batches := _find(root, "cifar-10-batches-py", TRAIN[0]):
        train, test = _stack([_read_pickle(batches / name) for name in TRAIN]), _read_pickle(batches / "test_batch")
    elif batches := _find(root, "cifar-10-batches-bin", f"{TRAIN[0]}.bin"):
        train = _stack([_read_binary(batches / f"{name}.bin") for name in TRAIN])
        test = _read_binary(batches / "test_batch.bin")
    elif (root / "train").is_dir() and (root / "test").is_dir():
        parts = read_parts(path, 32)
        if set(parts) != {"train", "test"} or tuple(np.unique(parts["train"][1])) != CLASSES:
            raise ValueError(f"{path} is not CIFAR-10: expected train and test, each with {', '.join(CLASSES)}")
        train, test = parts["train"], parts["test"]
        lossy = any(file.suffix.lower() in (".jpg", ".jpeg") for file in root.glob("train/*/*"))
    else:
        raise ValueError(
            f"there is no CIFAR-10 at {path}; set env.path to cifar10_jpeg.tar.xz (or LUBAN_DATA to its folder), to "
            f"the folder cifar-10-batches-py or cifar-10-batches-bin, or to one with train/<class> and test/<class>"
        )
    name = "cifar10 (JPEG)" if lossy else "cifar10"
    chosen = stratified(name, train[1], num_train, seed)
    return array_task(
        name, shrink(train[0][chosen], size), train[1][chosen], seed, validation_share=validation_share,
        augmentation=augmentation, test=(shrink(test[0], size), test[1]),
    )  # fmt: skip


def shrink(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Images (N, 32, 32, 3) at (N, size, size, 3): the rounded mean of each square of pixels."""
    side = 32 // size
    squares = images.reshape(len(images), size, side, size, side, 3)
    return np.rint(squares.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)


def _find(root: Path, name: str, first: str) -> Path | None:
    """The folder, itself or inside `root`, that holds this file."""
    return next((folder for folder in (root, root / name) if (folder / first).is_file()), None)


def _stack(parts: list[Part]) -> Part:
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def _images(path: Path, rows: NDArray[np.uint8], numbers: NDArray[Any]) -> Part:
    """Rows of all red, all green, all blue values, and the numbers of the classes."""
    if numbers.shape != (len(rows),) or not len(rows) or numbers.min() < 0 or numbers.max() >= len(CLASSES):
        raise ValueError(f"{path} is damaged: expected a label from 0 to 9 for each of {len(rows)} images")
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(CLASSES)[numbers]


def _read_binary(path: Path) -> Part:
    """Records of one label byte and 3072 pixel bytes."""
    try:
        content = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    if not len(content) or len(content) % (1 + PIXELS):
        raise ValueError(f"{path} is damaged: {len(content)} bytes are not whole records of {1 + PIXELS}")
    records = content.reshape(-1, 1 + PIXELS)
    return _images(path, records[:, 1:], records[:, 0])


class _PickledArray:
    """Takes in what a pickled array is made of, and does nothing with it."""

    def __init__(self, *_: Any):
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _BatchUnpickler(pickle.Unpickler):
    """Reads the official batches without running anything: each name that they call becomes a stand-in of ours."""

    def find_class(self, module: str, name: str) -> Any:
        known = {"_reconstruct": ("numpy.core.multiarray", "numpy._core.multiarray"), "ndarray": ("numpy",)}
        if module in {**known, "dtype": ("numpy",)}.get(name, ()):
            return _PickledArray
        raise pickle.UnpicklingError(f"refused to load {module}.{name}")


def _read_pickle(path: Path) -> Part:
    """A pickled dictionary of Python 2: `data`, a uint8 array (N, 3072), and `labels`, a list."""
    try:
        batch = _BatchUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        _, shape, _, fortran, data = batch[b"data"].state  # version, shape, type, order, bytes
        rows = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")
        if rows.ndim != 2 or rows.shape[1] != PIXELS:
            raise ValueError(f"expected (N, {PIXELS}) bytes, got {rows.shape}")
        return _images(path, np.ascontiguousarray(rows), np.array(batch[b"labels"], np.int64))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    # A pickle that is damaged can fail in any of these ways.
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, AttributeError, IndexError,
            OverflowError, MemoryError) as error:  # fmt: skip
        raise ValueError(f"cannot read {path} as a batch of CIFAR-10: {error}") from None


def _read_tar(path: Path) -> tuple[Part, Part, bool]:
    """Training and test images of an archive, sorted by name, and whether any is JPEG; nothing is unpacked to disk."""

    def decode() -> dict[str, NDArray[Any]]:
        found = []
        try:
            with tarfile.open(path, "r|*") as archive:  # in one pass, since a compressed file cannot be sought in
                for member in archive:
                    match = re.search(
                        r"(?:^|/)(train|test)/([^/]+)/([^/]+\.(?:jpe?g|png))$", member.name, re.IGNORECASE
                    )
                    if match and member.isfile() and (file := archive.extractfile(member)) is not None:
                        found.append((*match.groups(), _decode(f"{path}: {member.name}", match[2], file.read())))
        except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
            raise ValueError(f"cannot read {path}: {error}") from None
        found.sort(key=lambda each: each[:3])
        arrays: dict[str, NDArray[Any]] = {}
        for part in ("train", "test"):
            mine = [each for each in found if each[0] == part]
            if not mine:
                raise ValueError(f"{path} has no images {part}/<class>/*.jpg")
            arrays[part] = np.stack([pixels for *_, pixels in mine])
            arrays[f"{part}_labels"] = np.array([label for _, label, *_ in mine])
        arrays["lossy"] = np.array(any(not name.lower().endswith("png") for _, _, name, _ in found))
        return arrays

    read = cached("cifar10", content_key({path.name: path}, PIL.__version__, VERSION), decode)
    train, test = ((read[part], read[f"{part}_labels"]) for part in ("train", "test"))
    return train, test, bool(read["lossy"])


def _decode(name: str, label: str, content: bytes) -> NDArray[np.uint8]:
    if label not in CLASSES:
        raise ValueError(f"{name}: {label!r} is no class of CIFAR-10")
    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.asarray(image.convert("RGB"), np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow would name an object in memory.
        raise ValueError(f"cannot read the image {name} ({type(error).__name__})") from None
    if pixels.shape != (32, 32, 3):
        raise ValueError(f"{name}: expected 32x32 pixels, got {pixels.shape[1]}x{pixels.shape[0]}")
    return pixels
