"""Tasks from arrays in memory or in an `.npz` file: images, sequences or vectors, with a class or a number each."""

import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from lzma import LZMAError
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import GroupShuffleSplit, train_test_split
from torch import Tensor

from child.space import derive_seed, nearest
from child.task import Augments, Classification, Preprocessing, Regression, SealedSplit, Split, Task
from child.transforms import Augmentation, Normalize

Answers = Sequence[Any] | NDArray[Any]
"""What is to be learned of each sample: a class (numbers or texts), or a number where all are floating-point."""

BLUR = 0.01
"""How far rounding may move a value of a feature, in its standard deviations; a hundredth is less than most noise."""


def array_task(
    name: str,
    x: NDArray[Any],
    y: Answers,
    seed: int,
    test_share: float = 0.25,
    validation_share: float = 0.25,
    augmentation: Augmentation | None = None,
    scale: float | None = None,
    validation: tuple[NDArray[Any], Answers] | None = None,
    test: tuple[NDArray[Any], Answers] | None = None,
) -> Task:
    """A task of samples given as arrays.

    Args:
        name: Of the task.
        x: Images, uint8 (N, H, W) or (N, H, W, C); sequences, floats (N, L, C); or vectors, floats (N, F).
        y: The class of each, or a float each to be predicted.
        seed: The run's seed.
        test_share: Share of all samples that is the test set; not used where `test` is given.
        validation_share: Share of the rest that is the validation set; not used where `validation` is given.
        augmentation: Of images, for training; none by default.
        scale: The stored value that means 1; by default 255 for images and 1 for all else.
        validation: Samples and answers of an independent validation set.
        test: Samples and answers of a given test set.

    Raises:
        ValueError: Shapes, types or shares do not fit, a value is missing, a set has no samples, 32-bit floats would
            blur a feature, or there are fewer than two classes.
    """
    x = np.asarray(x)
    stored = store(name, x)
    images = stored.ndim == 4
    if not images:
        for place in range(x.shape[-1]):
            check_digits(f"{name}: feature {place}", x[..., place])
    if augmentation is not None and not images:
        raise ValueError(f"{name}: augmentation is for images (uint8), got {x.dtype} {x.shape}")
    return make_task(
        name, stored, y, seed, test_share, validation_share,
        fit=partial(Normalize.fit, scale=scale or (255.0 if images else 1.0)),
        augmentation=(augmentation or Augmentation()) if images else None,
        validation=validation and (store(f"{name} validation set", validation[0]), validation[1]),
        test=test and (store(f"{name} test set", test[0]), test[1]),
    )  # fmt: skip


def store(name: str, x: NDArray[Any]) -> Tensor:
    """Samples as they are kept: uint8 (N, C, H, W) in channels-last order, float32 (N, C, L) or float32 (N, F)."""
    x = np.asarray(x)
    if x.dtype == np.uint8 and x.ndim == 4 and x.shape[1] in (1, 3, 4) and x.shape[3] > 4:
        raise ValueError(
            f"{name}: expected images of shape (N, H, W) or (N, H, W, C), and {x.shape} looks like (N, C, H, W); give "
            "x.transpose(0, 2, 3, 1)"
        )
    if x.dtype == np.uint8 and x.ndim in (3, 4):
        return torch.from_numpy(np.ascontiguousarray(x if x.ndim == 4 else x[..., None])).permute(0, 3, 1, 2)
    if x.dtype.kind != "f" or x.ndim not in (2, 3):
        raise ValueError(
            f"{name}: expected images as uint8 of shape (N, H, W) or (N, H, W, C), sequences as floats (N, L, C) or "
            f"vectors as floats (N, F), got {x.dtype} {x.shape}"
        )
    with np.errstate(over="ignore"):  # what is too large for 32 bits becomes infinite
        floats = np.ascontiguousarray(x, np.float32)
    wrong = np.flatnonzero(~np.isfinite(floats).all(axis=tuple(range(1, x.ndim))))
    if len(wrong):
        raise ValueError(f"{name}: sample {wrong[0]} has a value that is missing or not finite as a 32-bit float")
    stored = torch.from_numpy(floats)
    return stored if x.ndim == 2 else stored.transpose(1, 2).contiguous()


def check_digits(what: str, values: NDArray[Any], otherwise: str = "") -> None:
    """Refuse a feature that differs in digits which 32-bit floats do not keep, such as seconds since 1970 of one hour.

    Args:
        what: For the message.
        values: Of the feature.
        otherwise: What else may be done.

    Raises:
        ValueError: A value would move by more than `BLUR` standard deviations.
    """
    if values.dtype.itemsize <= 4 or not values.size:
        return
    moved, std = np.abs(values - values.astype(np.float32)).max(), values.std()
    # A feature that never changes may still deviate in the last digits of 64 bits.
    if std > 4 * np.finfo(np.float64).eps * np.abs(values).max() and moved > BLUR * std:
        raise ValueError(
            f"{what} has values around {values.mean():g} with a standard deviation of {std:g}, whose digits 32-bit "
            f"floats do not keep; subtract its mean and divide by its deviation first{otherwise}"
        )


def make_task(
    name: str,
    stored: Tensor,
    y: Answers,
    seed: int,
    test_share: float,
    validation_share: float,
    fit: Callable[[Tensor], Preprocessing],
    augmentation: Augments | None = None,
    validation: tuple[Tensor, Answers] | None = None,
    test: tuple[Tensor, Answers] | None = None,
    groups: Answers | None = None,
    answer: str = "y",
) -> Task:
    """A task of samples as they are stored (N, ...).

    The test set is held out first, then validation from what is left, drawn by the seed alone: spread evenly over the
    classes, or, where `groups` are given (a speaker, a patient), whole groups. A given set has no groups.

    Args:
        name: Of the task.
        stored: The samples.
        y: Their answers.
        seed: The run's seed.
        test_share: Share of the samples, or groups, that is the test set, where none is given.
        validation_share: Share of the rest that is the validation set, where none is given.
        fit: Makes the preprocessing from the training samples.
        augmentation: For training.
        validation: Samples and answers of an independent validation set.
        test: Samples and answers of a given test set.
        groups: Of each sample.
        answer: The name of a number that is predicted.

    Raises:
        ValueError: Answers or shares do not fit, a set has no samples, or there are fewer than two classes.
    """
    y = _answers(name, stored, y)
    classes = None if y.dtype.kind == "f" else np.unique(y)
    if classes is not None and len(classes) < 2:
        raise ValueError(f"{name}: classification needs at least 2 classes, got {len(classes)}")
    train = _split(name, stored, y, classes)
    if groups is not None:
        train = replace(train, groups=torch.from_numpy(np.unique(np.asarray(groups), return_inverse=True)[1]))
    if test is None:
        draw = derive_seed(seed, "test split")
        train, held_out = _hold_out(name, train, classes, test_share, "test_share", draw)
    else:
        held_out = _split(f"{name} test set", *test, classes)
    if validation is None:
        draw = derive_seed(seed, "validation split")
        train, chosen = _hold_out(name, train, classes, validation_share, "validation_share", draw)
    else:
        chosen = _split(f"{name} validation set", *validation, classes)
    for other in (chosen, held_out):
        if other.inputs.shape[1:] != train.inputs.shape[1:]:
            raise ValueError(
                f"{name}: all splits need samples of one shape, got {tuple(train.inputs.shape[1:])} for training and "
                f"{tuple(other.inputs.shape[1:])}"
            )
    if classes is None:
        mean, std = train.targets.mean().item(), train.targets.std().item()
        if not std > 0:
            raise ValueError(
                f"{name}: every training sample has the same {answer}, {mean:g}; there is nothing to learn"
            )
        objective = Regression(answer, mean, std)
        train, chosen, held_out = (
            replace(split, targets=((split.targets - mean) / std).float()) for split in (train, chosen, held_out)
        )
    else:
        objective = Classification(tuple(str(label) for label in classes))
    return Task(name, objective, train, chosen, SealedSplit(held_out), fit(train.inputs), augmentation)


def stratified(name: str, y: Answers, num: int | None, seed: int) -> NDArray[np.int64]:
    """The places, in order, of so many samples, spread evenly over the classes and drawn by the seed; None for all.

    Raises:
        ValueError: There are not as many samples, or not one for each class.
    """
    everything = np.arange(len(y))
    if num is None or num == len(y):
        return everything
    draw = derive_seed(seed, "subset") % 2**32
    try:
        chosen, _ = train_test_split(everything, train_size=num, stratify=y, random_state=draw)
    except ValueError as error:
        raise ValueError(f"{name}: cannot draw num_train={num} of {len(y)} samples: {error}") from None
    return np.sort(chosen)


def arrays(
    path: str,
    seed: int,
    test_share: float = 0.25,
    validation_share: float = 0.25,
    augmentation: Augmentation | None = None,
) -> Task:
    """A task from an `.npz` file with `x` and `y`, as `array_task` takes them.

    `x_validation`, `y_validation` and `x_test`, `y_test`, where present, are taken as given; else they are held out.

    Raises:
        ValueError: The file cannot be read or lacks an array.
    """
    found = read_archive(path, ("x", "y"))
    given: dict[str, Any] = {}
    known = ["x", "y", *(f"{axis}_{part}" for part in ("validation", "test") for axis in "xy")]
    for name in found:
        if name not in known:
            raise ValueError(f"{path} has an array {name!r} that would not be used; {nearest(name, known)}")
    for part in ("validation", "test"):
        pair = [name for name in (f"x_{part}", f"y_{part}") if name in found]
        if len(pair) == 1:
            raise ValueError(f"{path} has {pair[0]} but no {'y' if pair[0][0] == 'x' else 'x'}_{part}")
        if pair:
            given[part] = (found[f"x_{part}"], found[f"y_{part}"])
    return array_task(
        Path(path).stem, found["x"], found["y"], seed, test_share, validation_share, augmentation, **given
    )


def read_archive(path: str, needed: Sequence[str]) -> dict[str, NDArray[Any]]:
    """All arrays of an `.npz` file.

    Raises:
        ValueError: The file cannot be read or lacks an array that is needed.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {key: archive[key] for key in archive.files}
    # A bare .npy is an array without `with`; a file that was cut short is a bad archive or a bad stream in one; what
    # is encrypted is a RuntimeError, and what is compressed in an unknown way a NotImplementedError, which is one too.
    except (OSError, ValueError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, LZMAError) as error:
        names = f"{', '.join(needed[:-1])} and {needed[-1]}"
        raise ValueError(f"cannot read {path}: expected an .npz file with arrays {names} ({error})") from None
    for key in needed:
        if key not in found:
            raise ValueError(f"{path} has no array {key!r}; it holds {', '.join(sorted(found)) or 'nothing'}")
    return found


def _answers(name: str, stored: Tensor, y: Answers) -> NDArray[Any]:
    """The answers of these samples as an array of numbers or texts."""
    y = np.asarray(y)
    if not stored.numel():
        raise ValueError(
            f"{name}: expected samples, got none in shape {tuple(stored.shape)}; give some, or leave a test or "
            f"validation set out to have it held out"
        )
    if y.shape != (len(stored),):
        raise ValueError(f"{name}: expected one answer for each of {len(stored)} samples, got shape {y.shape}")
    if y.dtype.kind == "O":
        labels = y.tolist()
        kind = next((kind for kind in (str, bytes, (Number, np.bool_)) if isinstance(labels[0], kind)), ())
        for place, label in enumerate(labels):
            if not isinstance(label, kind):
                raise ValueError(
                    f"{name}: expected all texts or all numbers as answers, but sample {place} has {label!r}"
                )
        y = np.array(labels)
    if y.dtype.kind != "S":
        return y
    try:
        return np.char.decode(y, "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: expected answers as text in UTF-8 ({error})") from None


def _split(name: str, stored: Tensor, y: Answers, classes: NDArray[Any] | None) -> Split:
    y = _answers(name, stored, y)
    texts = y.dtype.kind in "UO"
    if texts != (classes is not None and classes.dtype.kind in "UO"):
        words = ("numbers", "texts") if texts else ("texts", "numbers")
        raise ValueError(f"{name}: the answers of the training data are {words[0]}, these are {words[1]}")
    if classes is None:
        wrong = np.flatnonzero(~np.isfinite(y.astype(np.float64)))
        if len(wrong):
            raise ValueError(f"{name}: the answer of sample {wrong[0]} is missing or not finite")
        return Split(stored, torch.from_numpy(y.astype(np.float64)))
    unknown = np.setdiff1d(y, classes)
    if len(unknown):
        raise ValueError(f"{name}: class {unknown[0].item()!r} does not occur in the training data")
    return Split(stored, torch.from_numpy(np.searchsorted(classes, y).astype(np.int64)))


def _hold_out(
    name: str, split: Split, classes: NDArray[Any] | None, share: float, key: str, seed: int
) -> tuple[Split, Split]:
    if not 0 < share < 1:
        raise ValueError(f"{name}: {key} must be between 0 and 1, got {share}")
    everything, draw = np.arange(len(split)), seed % 2**32
    try:
        if split.groups is not None:
            dealer = GroupShuffleSplit(1, test_size=share, random_state=draw)
            rest, held_out = next(dealer.split(everything, groups=split.groups.numpy()))
        else:
            # By name, which is what the error tells.
            strata = None if classes is None else classes[split.targets.numpy()]
            rest, held_out = train_test_split(everything, test_size=share, stratify=strata, random_state=draw)
    except ValueError as error:
        raise ValueError(f"{name}: cannot hold out {key}={share} of {len(split)} samples: {error}") from None
    return split.take(torch.from_numpy(np.sort(rest))), split.take(torch.from_numpy(np.sort(held_out)))
