"""A task from a folder of images: one subfolder per class, any format that Pillow reads, any sizes, gray or color."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from child.space import nearest
from child.task import Task
from child.transforms import Augmentation
from envs.arrays import array_task

PARTS = ("train", "validation", "test")


def images(
    path: str,
    seed: int,
    size: int = 32,
    test_share: float = 0.25,
    validation_share: float = 0.25,
    augmentation: Augmentation | None = None,
) -> Task:
    """Read `path/<class>/*`, or `path/train/<class>/*` with `validation` and `test` folders beside it where given.

    Every image is turned upright by its EXIF tag, scaled so that its shorter side is `size` pixels, and cropped to
    the middle square. All are kept gray where all are gray, else all are RGB.

    Args:
        path: The folder.
        seed: The run's seed; draws what is held out.
        size: Height and width that the network sees, in pixels.
        test_share: Share held out as the test set, where there is no `test` folder.
        validation_share: Share of the rest held out for validation, where there is no `validation` folder.
        augmentation: For training; none by default.

    Raises:
        ValueError: The folder is missing or empty, or an image cannot be read; the message names it.
    """
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"{path} is not a folder; expected one with a subfolder of images per class")
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    # A folder whose only subfolders are these holds parts; else they are classes like any other.
    names = {entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    split = "train" in names and names <= set(PARTS)
    folders = {part: root / part for part in PARTS if part in names} if split else {"train": root}
    read = {part: _read_folder(folder, size) for part, folder in folders.items()}
    color = any(image.ndim == 3 for found, _ in read.values() for image in found)
    parts = {part: (np.stack([_in_color(i) if color else i for i in x]), y) for part, (x, y) in read.items()}
    classes = sorted(set(parts["train"][1]))
    for part, (_, labels) in parts.items():
        for unknown in sorted(set(labels) - set(classes)):
            raise ValueError(f"{folders[part] / unknown} is a class that training lacks; {nearest(unknown, classes)}")
    pixels, labels = parts.pop("train")
    return array_task(
        root.resolve().name, pixels, labels, seed, test_share, validation_share, augmentation, 255.0,
        validation=parts.get("validation"), test=parts.get("test"),
    )  # fmt: skip


def _read_folder(folder: Path, size: int) -> tuple[list[NDArray[Any]], list[str]]:
    """All images of the class folders in here, in the order of their names, and their classes."""
    readable = Image.registered_extensions()
    pixels, labels = [], []
    for class_folder in sorted(entry for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."):
        files = sorted(
            file for file in class_folder.rglob("*") if file.suffix.lower() in readable and file.name[0] != "."
        )
        if not files:
            raise ValueError(f"{class_folder} holds no image; every subfolder is a class and needs some")
        for file in files:
            pixels.append(_read_image(file, size))
            labels.append(class_folder.name)
    if not labels:
        raise ValueError(f"{folder} has no subfolders; expected one per class, each with its images")
    return pixels, labels


def _read_image(file: Path, size: int) -> NDArray[Any]:
    """(size, size) where the file is gray, else (size, size, 3), uint8."""
    try:
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image)
            sixteen_bits = upright.mode.startswith("I")
            if sixteen_bits:  # Pillow's own conversion clips instead of scaling
                upright = Image.fromarray((np.asarray(upright, np.int64) >> 8).clip(0, 255).astype(np.uint8))
            gray = upright.mode in ("1", "L", "LA")
            square = ImageOps.fit(upright.convert("L" if gray else "RGB"), (size, size), Image.Resampling.BILINEAR)
            return np.asarray(square, np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the image {file}: {error}") from None


def _in_color(image: NDArray[Any]) -> NDArray[Any]:
    return image if image.ndim == 3 else image[:, :, None].repeat(3, axis=2)
