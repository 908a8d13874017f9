"""Tasks from arrays in memory or in an `.npz` file: images with one class each."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from child.space import derive_seed
from child.task import Augmentation, Preprocessing, SealedSplit, Split, Task


def image_task(
    name: str,
    images: NDArray[Any],
    labels: Sequence[Any] | NDArray[Any],
    seed: int,
    test_share: float = 0.25,
    validation_share: float = 0.25,
    augmentation: Augmentation | None = None,
    scale: float = 255.0,
    validation: tuple[NDArray[Any], Any] | None = None,
    test: tuple[NDArray[Any], Any] | None = None,
) -> Task:
    """A task of images given as arrays.

    The test set is held out first, then validation from what is left, both stratified and drawn by the seed alone.

    Args:
        name: Of the task.
        images: uint8, (N, H, W) or (N, H, W, C).
        labels: The class of each, numbers or texts.
        seed: The run's seed.
        test_share: Share of all samples that is the test set; not used where `test` is given.
        validation_share: Share of the rest that is the validation set; not used where `validation` is given.
        augmentation: For training; none by default.
        scale: The stored value that means 1.
        validation: Images and labels of an independent validation set.
        test: Images and labels of a given test set.

    Raises:
        ValueError: Shapes, types or shares do not fit, or there are fewer than two classes.
    """
    classes = np.unique(np.asarray(labels))
    if len(classes) < 2:
        raise ValueError(f"{name}: classification needs at least 2 classes, got {len(classes)}")
    train = _split(name, images, labels, classes)
    if test is None:
        train, held_out = _hold_out(name, train, test_share, "test_share", derive_seed(seed, "test split"))
    else:
        held_out = _split(f"{name} test set", *test, classes)
    if validation is None:
        draw = derive_seed(seed, "validation split")
        train, chosen = _hold_out(name, train, validation_share, "validation_share", draw)
    else:
        chosen = _split(f"{name} validation set", *validation, classes)
    for other in (chosen, held_out):
        if other.inputs.shape[1:] != train.inputs.shape[1:]:
            raise ValueError(
                f"{name}: all splits need images of one shape, got {tuple(train.inputs.shape[1:])} for training and "
                f"{tuple(other.inputs.shape[1:])}"
            )
    return Task(
        name=name,
        classes=tuple(str(label) for label in classes),
        train=train,
        validation=chosen,
        test=SealedSplit(held_out),
        preprocessing=Preprocessing.fit(train.inputs, scale),
        augmentation=augmentation or Augmentation(),
    )


def arrays(
    path: str,
    seed: int,
    test_share: float = 0.25,
    validation_share: float = 0.25,
    augmentation: Augmentation | None = None,
) -> Task:
    """A task from an `.npz` file with `x` (uint8 images, (N, H, W) or (N, H, W, C)) and `y` (N labels).

    `x_validation`, `y_validation` and `x_test`, `y_test`, where present, are taken as given; else they are held out.

    Raises:
        ValueError: The file cannot be read or lacks an array.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {key: archive[key] for key in archive.files}
    # A bare .npy is an array without `with`; a file that was cut short is a bad archive or a bad stream in one.
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"cannot read {path}: expected an .npz file with arrays x and y ({error})") from None
    for key in ("x", "y"):
        if key not in found:
            raise ValueError(f"{path} has no array {key!r}; it holds {', '.join(sorted(found)) or 'nothing'}")
    given: dict[str, Any] = {}
    for part in ("validation", "test"):
        if f"x_{part}" in found:
            if f"y_{part}" not in found:
                raise ValueError(f"{path} has x_{part} but no y_{part}")
            given[part] = (found[f"x_{part}"], found[f"y_{part}"])
    return image_task(
        Path(path).stem, found["x"], found["y"], seed, test_share, validation_share, augmentation, **given
    )


def _split(name: str, images: NDArray[Any], labels: Any, classes: NDArray[Any]) -> Split:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ValueError(
            f"{name}: expected images as uint8 of shape (N, H, W) or (N, H, W, C), got {images.dtype} {images.shape}"
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{name}: expected one label for each of {len(images)} images, got shape {labels.shape}")
    unknown = np.setdiff1d(labels, classes)
    if len(unknown):
        raise ValueError(f"{name}: class {unknown[0]!r} does not occur in the training data")
    stored = torch.from_numpy(np.ascontiguousarray(images if images.ndim == 4 else images[..., None]))
    targets = np.searchsorted(classes, labels)
    return Split(stored.permute(0, 3, 1, 2), torch.from_numpy(targets.astype(np.int64)))


def _hold_out(name: str, split: Split, share: float, key: str, seed: int) -> tuple[Split, Split]:
    if not 0 < share < 1:
        raise ValueError(f"{name}: {key} must be between 0 and 1, got {share}")
    targets = split.targets.numpy()
    try:
        rest, held_out = train_test_split(
            np.arange(len(split)), test_size=share, stratify=targets, random_state=seed % 2**32
        )
    except ValueError as error:
        raise ValueError(f"{name}: cannot hold out {key}={share} of {len(split)} samples by class: {error}") from None
    return split.take(torch.from_numpy(np.sort(rest))), split.take(torch.from_numpy(np.sort(held_out)))
