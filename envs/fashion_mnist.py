"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): 60,000 + 10,000 gray images of clothes, 28x28, in IDX files."""

import gzip
import math
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from child.task import Classification, Task
from child.transforms import Augmentation
from envs.arrays import array_task, stratified

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def fashion_mnist(
    path: str,
    seed: int,
    num_train: int | None = None,
    validation_share: float = 0.2,
    augmentation: Augmentation | None = None,
) -> Task:
    """The official test images, and the 60,000 others divided into training and validation, evenly over the classes.

    Args:
        path: Folder of the four IDX files, each plain or gzipped (`.gz`).
        seed: The run's seed; draws what is held out.
        num_train: Use only so many of the 60,000, validation included; None for all.
        validation_share: Share of those held out for validation.
        augmentation: For training; none by default.

    Raises:
        ValueError: A file is missing or damaged; the message names it.
    """
    folder = Path(path)
    read = []
    for name in FILES:
        found = [file for file in (folder / name, folder / f"{name}.gz") if file.is_file()]
        if not found:
            raise ValueError(
                f"there is no {folder / name} (or {name}.gz); `sudo apt-get install dataset-fashion-mnist` puts it "
                f"under /usr/share/datasets/fashion-mnist, or set env.path to a folder with {', '.join(FILES)}"
            )
        read.append(read_idx(found[0], 3 if "images" in name else 1))
    images, labels, test_images, test_labels = read
    for name, x, y in (("train", images, labels), ("t10k", test_images, test_labels)):
        if len(x) != len(y):
            raise ValueError(
                f"{folder}: {name} has {len(x)} images but {len(y)} labels; the files do not belong together"
            )
        if len(y) and y.max() >= len(CLASSES):
            raise ValueError(f"{folder}: {name} has the label {y.max()}; expected 0 to {len(CLASSES) - 1}")
    chosen = stratified("fashion_mnist", labels, num_train, seed)
    task = array_task(
        "fashion_mnist", images[chosen], labels[chosen], seed, validation_share=validation_share,
        augmentation=augmentation, test=(test_images, test_labels),
    )  # fmt: skip
    present = np.unique(labels[chosen])  # in the order of the labels, not of the names
    return replace(task, objective=Classification(tuple(CLASSES[label] for label in present)))


def read_idx(path: Path, num_dims: int) -> NDArray[np.uint8]:
    """Read an IDX file of bytes (LeCun, Cortes and Burges 1998), plain or gzipped.

    The format: two zero bytes, the type (8 for bytes), the number of dimensions, each dimension as a big-endian
    32-bit number, then the values, the last dimension running fastest.

    Raises:
        ValueError: It cannot be read, is of another kind, or is not as long as it says; the message names it.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    wanted = bytes([0, 0, 8, num_dims])
    if content[:4] != wanted:
        raise ValueError(
            f"{path} is no IDX file of bytes in {num_dims} dimensions: it begins with "
            f"{content[:4].hex(' ') or 'nothing'}, expected {wanted.hex(' ')}"
        )
    start = 4 + 4 * num_dims
    sizes = [int.from_bytes(content[place : place + 4], "big") for place in range(4, min(start, len(content)), 4)]
    expected = start + math.prod(sizes)
    if len(content) != expected or len(sizes) != num_dims:
        raise ValueError(f"{path} is damaged: it has {len(content)} bytes, and its header asks for {expected}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes).copy()
