"""A task from a folder of images: one subfolder per class, any format that Pillow reads, any sizes, gray or color."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from child.files import read_image
from child.task import Task
from child.transforms import Augmentation
from envs.arrays import array_task
from envs.folders import Files, read_folder

VERSION = 2  # of how images are decoded; another number leaves what is cached behind


def images(
    path: str,
    seed: int,
    size: int = 32,
    test_share: float = 0.25,
    validation_share: float = 0.25,
    augmentation: Augmentation | None = None,
) -> Task:
    """Read `path/<class>/*`, or `path/train/<class>/*` with `validation` and `test` folders beside it where given.

    Every image is turned upright by its EXIF tag, put on white where it is transparent, scaled so that its shorter
    side is `size` pixels, and cropped to the middle square. All are kept gray where all are gray, else all are RGB.
    Files and folders whose names begin with a dot are left out.

    Args:
        path: The folder.
        seed: The run's seed; draws what is held out.
        size: Height and width that the network sees, in pixels.
        test_share: Share held out as the test set, where there is no `test` folder.
        validation_share: Share of the rest held out for validation, where there is no `validation` folder.
        augmentation: For training; none by default.

    Raises:
        ValueError: The folder is missing or empty, its parts have other names, or an image cannot be read; the
            message names it.
    """
    found = read_parts(path, size)
    pixels, labels = found.pop("train")
    return array_task(
        Path(path).resolve().name, pixels, labels, seed, test_share, validation_share, augmentation, 255.0,
        validation=found.get("validation"), test=found.get("test"),
    )  # fmt: skip


def read_parts(path: str, size: int) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.str_]]]:
    """Images (N, size, size) or (N, size, size, 3) and their classes, for `train` and each other part there is.

    Raises:
        ValueError: As for `images`.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")

    def decode(files: Files) -> dict[str, NDArray[Any]]:
        read = {part: [read_image(file, size, size) for file in group] for part, group in files.items()}
        color = any(image.ndim == 3 for group in read.values() for image in group)
        return {part: np.stack([_in_color(i) if color else i for i in group]) for part, group in read.items()}

    return read_folder(path, Image.registered_extensions(), "image", decode, "images", size, PIL.__version__, VERSION)


def _in_color(image: NDArray[Any]) -> NDArray[Any]:
    return image if image.ndim == 3 else image[:, :, None].repeat(3, axis=2)
