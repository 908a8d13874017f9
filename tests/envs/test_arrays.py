"""Tasks from arrays: fair splits that follow from the seed, and mistakes that are named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from child.task import Classification, Split, Task
from child.transforms import Normalize
from envs.arrays import array_task, arrays, stratified

NUM = 200
LABELS = np.arange(NUM) % 4  # 50 of each
VECTORS = np.random.default_rng(0).normal(size=(NUM, 3))


def images(num: int = NUM, *shape: int) -> NDArray[np.uint8]:
    """Images that tell their number."""
    numbers = np.arange(num, dtype=np.uint8)
    return np.broadcast_to(numbers.reshape(-1, *[1] * len(shape or (4, 4))), (num, *(shape or (4, 4)))).copy()


def numbers(split: Split) -> list[int]:
    return split.inputs[:, 0, 0, 0].tolist()


def opened(task: Task) -> Split:
    task.test.unseal()
    return task.test.read("test")


def test_splits_are_stratified_disjoint_and_complete() -> None:
    task = array_task("t", images(), LABELS, seed=0, test_share=0.2, validation_share=0.25)
    parts = [task.train, task.validation, opened(task)]
    assert [len(part) for part in parts] == [120, 40, 40]
    for part in parts:
        assert np.bincount(part.targets.numpy()).tolist() == [len(part) // 4] * 4
        assert part.targets.tolist() == [number % 4 for number in numbers(part)]
    assert sorted(number for part in parts for number in numbers(part)) == list(range(NUM))


def test_the_split_follows_from_the_seed() -> None:
    first, again, other = (array_task("t", images(), LABELS, seed) for seed in (1, 1, 2))
    assert numbers(first.train) == numbers(again.train)
    assert numbers(first.validation) == numbers(again.validation)
    assert numbers(first.validation) != numbers(other.validation)
    tests = [numbers(opened(task)) for task in (first, again, other)]
    assert tests[0] == tests[1] != tests[2]
    given = images(8), LABELS[:8]  # nothing is drawn but validation
    of_seed = [numbers(array_task("t", images(), LABELS, seed, test=given).validation) for seed in (1, 1, 2)]
    assert of_seed[0] == of_seed[1] != of_seed[2]


def test_a_subset_follows_from_the_seed_and_has_its_part_of_every_class() -> None:
    first, again, other = (stratified("t", LABELS, 40, seed).tolist() for seed in (1, 1, 2))
    assert first == again == sorted(set(first)) != other
    assert np.bincount(LABELS[first]).tolist() == np.bincount(LABELS[other]).tolist() == [10] * 4


def test_the_test_set_is_sealed() -> None:
    with pytest.raises(PermissionError, match="sealed"):
        array_task("t", images(), LABELS, seed=0).test.read("early")


def test_channels_come_first_and_classes_by_name() -> None:
    labels = np.array(["cat", "ant", "bee", "dog"])[LABELS]
    pictures = np.random.default_rng(0).integers(0, 256, (NUM, 5, 6, 3), dtype=np.uint8)
    pictures[:, 0, 0, 0] = np.arange(NUM)
    task = array_task("t", pictures, labels, seed=0)
    assert task.input_shape == (3, 5, 6)
    classes = ("ant", "bee", "cat", "dog")
    assert task.objective == Classification(classes)
    number = numbers(task.train)[7]
    np.testing.assert_array_equal(task.train.inputs[7].numpy(), pictures[number].transpose(2, 0, 1))
    assert classes[int(task.train.targets[7])] == labels[number]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (np.array([b"caf\xc3\xa9", b"bar"]), ("bar", "café")),
        (np.array([b"bar", b"pub"], object), ("bar", "pub")),
        (np.array(["bar", np.str_("pub")], object), ("bar", "pub")),
        (np.array([10, np.int64(9)], object), ("9", "10")),
    ],
)
def test_classes_are_named_whatever_their_type(labels: NDArray[Any], classes: tuple[str, ...]) -> None:
    given = images(8), labels[LABELS[:8] % 2]
    task = array_task("t", images(), labels[LABELS % 2], seed=0, test=given)
    assert task.objective == Classification(classes)


@pytest.mark.parametrize(
    ("labels", "wrong"),
    [
        (["cat", "dog", None], "2 has None"),
        (["cat", 1], "1 has 1"),
        (["cat", float("nan")], "1 has nan"),
        ([1, 2, "cat"], "2 has 'cat'"),
        (["cat", b"cat"], "1 has b'cat'"),
        ([None, None], "0 has None"),
    ],
)
def test_answers_of_two_kinds_are_refused(labels: list[Any], wrong: str) -> None:
    mixed = np.array(labels, object)[np.arange(NUM) % len(labels)]
    with pytest.raises(ValueError, match=f"^t: expected all texts or all numbers as answers, but sample {wrong}$"):
        array_task("t", images(), mixed, seed=0)


def test_what_32_bits_keep_is_taken() -> None:
    """A feature that never changes, one that does so only in the last digits of 64 bits, and one with large numbers."""
    x = VECTORS + 0
    x[:, 0], x[:, 1] = 1234567.9, np.where(LABELS, 0.3, 0.1 + 0.2)
    x[:, 2] = 1.7e9 + 86400 * np.arange(NUM)  # days
    few = x[:2], LABELS[:2]  # alone, these would differ too little
    task = array_task("t", x, LABELS, 0, test=few)
    assert len(task.train.inputs[:, 2].unique()) == len(task.train)
    x[:, 1] = 1.7e18 + 5e3 * np.arange(NUM)  # nanoseconds, of which none would be left
    with pytest.raises(ValueError, match="feature 1 has values around"):
        array_task("t", x, LABELS, 0)
    with pytest.raises(ValueError, match="feature 0 has values around"):
        array_task("t", 1.7e9 + VECTORS[:, None, :], LABELS, 0)  # sequences


def save(path: Path, **content: Any) -> str:
    np.savez(path, **content)
    return str(path)


def test_independent_sets_are_taken_as_given(tmp_path: Path) -> None:
    path = save(
        tmp_path / "mine.npz",
        x=images(), y=LABELS,
        x_validation=images(8) + 100, y_validation=LABELS[:8],
        x_test=images(12) + 50, y_test=LABELS[:12],
    )  # fmt: skip
    task = arrays(path, seed=0)
    assert task.name == "mine"
    assert numbers(task.train) == list(range(NUM))
    assert numbers(task.validation) == list(range(100, 108))
    assert numbers(opened(task)) == list(range(50, 62))


def test_only_what_is_missing_is_held_out(tmp_path: Path) -> None:
    path = save(tmp_path / "mine.npz", x=images(), y=LABELS, x_test=images(12), y_test=LABELS[:12])
    task = arrays(path, seed=0, validation_share=0.25)
    assert (len(task.train), len(task.validation), len(task.test)) == (150, 50, 12)


def test_preprocessing_is_fitted_to_training_data_alone() -> None:
    bright = np.full((8, 4, 4), 255, np.uint8)
    task = array_task("t", images(), LABELS, 0, validation=(bright, LABELS[:8]), test=(bright, LABELS[:8]))
    seen = task.preprocessing(task.train.inputs)
    assert abs(float(seen.mean())) < 1e-4
    assert isinstance(task.preprocessing, Normalize)
    torch.testing.assert_close(task.preprocessing.mean[0], float(images().mean()) / 255, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"x": images().astype(np.int32), "y": LABELS}, "mine: expected images as uint8 of shape .* got int32"),
        ({"x": images()[0], "y": LABELS[:4]}, r"expected images as uint8 .* got uint8 \(4, 4\)"),
        ({"x": images(), "y": np.zeros(NUM, int)}, "mine: classification needs at least 2 classes, got 1"),
        ({"x": images(), "y": LABELS[:-1]}, r"expected one answer for each of 200 samples, got shape \(199,\)"),
        ({"x": images()}, "has no array 'y'; it holds x"),
        ({"images": images(), "y": LABELS}, "has no array 'x'; it holds images, y"),
        ({"x": images(), "y": LABELS, "test_x": images(8)}, "has an array 'test_x' that would not be used; allowed: x"),
        (
            {"x": np.zeros((NUM, 3, 8, 8), np.uint8), "y": LABELS},
            r"\(200, 3, 8, 8\) looks like \(N, C, H, W\); give x\.transpose\(0, 2, 3, 1\)",
        ),
        ({"x": images(), "y": LABELS, "x_test": images(8)}, "has x_test but no y_test"),
        ({"x": images(), "y": LABELS, "y_test": LABELS[:8]}, "has y_test but no x_test"),
        (
            {"x": images(), "y": LABELS, "x_val": images(8), "y_val": LABELS[:8]},
            "has an array 'x_val' that would not be used; .* did you mean 'x_validation'",
        ),
        (
            {"x": images(), "y": LABELS, "x_test": images(8), "y_test": np.full(8, 7)},
            "mine test set: class .*7.* does not occur in the training data",
        ),
        (
            {"x": images(), "y": LABELS, "x_test": images(8), "y_test": LABELS[:8].astype(str)},
            "mine test set: the answers of the training data are numbers, these are texts",
        ),
        (
            {"x": images(), "y": LABELS.astype(str), "x_validation": images(8), "y_validation": LABELS[:8]},
            "mine validation set: the answers of the training data are texts, these are numbers",
        ),
        (
            {"x": images(), "y": LABELS, "x_validation": images(8, 5, 5), "y_validation": LABELS[:8]},
            r"all splits need samples of one shape, got \(1, 4, 4\) for training and \(1, 5, 5\)",
        ),
        (
            {"x": images(5), "y": np.array(["cat", "cat", "dog", "dog", "owl"])},
            "cannot hold out test_share=0.25 of 5 samples: The least .*'owl'",
        ),
        (
            {"x": images(), "y": LABELS, "x_test": images()[:0], "y_test": LABELS[:0]},
            r"^mine test set: expected samples, got none in shape \(0, 1, 4, 4\); give some, or leave",
        ),
        (
            {"x": images(), "y": LABELS, "x_validation": images()[:0], "y_validation": LABELS[:0]},
            "^mine validation set: expected samples, got none",
        ),
        ({"x": images()[:0], "y": LABELS[:0]}, "^mine: expected samples, got none"),
        ({"x": VECTORS * 1e300, "y": LABELS}, "^mine: sample 0 has a value that is missing or not finite as a 32-bit"),
        (
            {"x": VECTORS + np.array([0, 0, 1e9]), "y": LABELS},
            r"^mine: feature 2 has values around 1e\+09 .* subtract its mean",
        ),
        ({"x": images(), "y": np.array([b"a", b"\xff"])[LABELS % 2]}, "^mine: expected answers as text in UTF-8"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, content: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        arrays(save(tmp_path / "mine.npz", **content), seed=0)


@pytest.mark.parametrize("key", ["test_share", "validation_share"])
@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_shares_are_shares(key: str, share: float) -> None:
    with pytest.raises(ValueError, match=f"{key} must be between 0 and 1, got {share}"):
        array_task("t", images(), LABELS, 0, **{key: share})  # pyright: ignore[reportArgumentType]


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "mine.npz"
    text.write_text("no archive")
    single = tmp_path / "one.npy"
    np.save(single, images())
    objects = tmp_path / "objects.npz"
    np.savez(objects, x=np.array([{"a": 1}, None], dtype=object), y=np.array([0, 1]))
    whole = Path(save(tmp_path / "whole.npz", x=images(), y=LABELS)).read_bytes()
    cut, empty = tmp_path / "cut.npz", tmp_path / "empty.npz"
    cut.write_bytes(whole[: len(whole) // 2])
    empty.write_bytes(b"")
    entry = whole.index(b"PK\x01\x02")  # of the first array in the list of contents; its flags and method follow
    encrypted, compressed = tmp_path / "encrypted.npz", tmp_path / "compressed.npz"
    encrypted.write_bytes(whole[: entry + 8] + b"\x01" + whole[entry + 9 :])
    compressed.write_bytes(whole[: entry + 10] + b"\x63" + whole[entry + 11 :])
    for path in (text, single, objects, cut, empty, encrypted, compressed, tmp_path / "missing.npz"):
        with pytest.raises(ValueError, match=rf"cannot read .*{path.name}: expected an \.npz file with arrays x and y"):
            arrays(str(path), seed=0)
