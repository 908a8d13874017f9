"""IDX files are read strictly, and Fashion-MNIST is divided fairly."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from child.task import Classification
from envs.fashion_mnist import CLASSES, FILES, fashion_mnist, read_idx

NUM_TRAIN, NUM_TEST = 200, 30


def idx(values: NDArray[np.uint8]) -> bytes:
    """As the format is described: zero, zero, 8, dimensions, sizes, values."""
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return header + values.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Small files; the first pixel of every image is its number, plus 100 in the test set, the second its label."""
    for part, num, first in (("train", NUM_TRAIN, 0), ("t10k", NUM_TEST, 100)):
        labels = (np.arange(num) % 10).astype(np.uint8)
        images = np.zeros((num, 6, 5), np.uint8)
        images[:, 0, 0], images[:, 0, 1] = first + np.arange(num), labels
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def test_values_lie_in_their_places(tmp_path: Path) -> None:
    # Written out by hand, so that the reader and the helper above cannot share a mistake.
    content = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 10, 11, 12, 20, 21, 22])
    for name, data in (("plain", content), ("packed.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(data)
        assert read_idx(tmp_path / name, 3).tolist() == [[[10, 11, 12]], [[20, 21, 22]]]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda content: content[:-1], "is damaged: it has 21 bytes, and its header asks for 22"),
        (lambda content: content + b"x", "is damaged: it has 23 bytes, and its header asks for 22"),
        (lambda content: content[:10], "is damaged: it has 10 bytes"),
        (lambda content: b"\0\0\x0d\3" + content[4:], "it begins with 00 00 0d 03, expected 00 00 08 03"),
        (lambda content: b"\0\0\x08\1" + content[4:], "it begins with 00 00 08 01, expected 00 00 08 03"),
        (lambda content: b"", "it begins with nothing"),
        (lambda content: b"<html>no such page", "it begins with 3c 68 74 6d"),
        (lambda content: content[:4] + b"\xff" * 12 + content[16:], "is damaged: it has 22 bytes, and its header"),
    ],
)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_damaged_files_are_named(tmp_path: Path, ending: str, spoil: Callable[[bytes], bytes], expected: str) -> None:
    content = spoil(idx(np.arange(6, dtype=np.uint8).reshape(1, 2, 3)))
    path = tmp_path / f"images{ending}"
    path.write_bytes(gzip.compress(content) if ending else content)
    with pytest.raises(ValueError, match=expected) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", [4, 15, -3])
def test_a_gzip_file_that_was_cut_short(tmp_path: Path, cut: int) -> None:
    whole = gzip.compress(idx(np.random.default_rng(0).integers(0, 256, (5, 9, 9), np.uint8)))
    (tmp_path / "images.gz").write_bytes(whole[:cut])
    (tmp_path / "flipped.gz").write_bytes(whole[:60] + bytes([whole[60] ^ 8]) + whole[61:])
    for name in ("images.gz", "flipped.gz"):
        with pytest.raises(ValueError, match=f"cannot read .*{name}"):
            read_idx(tmp_path / name, 3)


def test_the_official_test_set_and_an_even_validation_set(folder: Path) -> None:
    task = fashion_mnist(str(folder), seed=0)
    assert task.name == "fashion_mnist" and task.input_shape == (1, 6, 5)
    assert task.objective == Classification(CLASSES)
    task.test.unseal()
    parts = {"train": task.train, "validation": task.validation, "test": task.test.read("all")}
    assert {name: len(part) for name, part in parts.items()} == {"train": 160, "validation": 40, "test": NUM_TEST}
    for part in parts.values():
        assert part.inputs[:, 0, 0, 1].tolist() == part.targets.tolist()
        assert np.bincount(part.targets.numpy()).tolist() == [len(part) // 10] * 10
    numbers = {name: part.inputs[:, 0, 0, 0].tolist() for name, part in parts.items()}
    assert sorted(numbers["train"] + numbers["validation"]) == list(range(NUM_TRAIN))
    assert numbers["test"] == list(range(100, 100 + NUM_TEST))


def test_a_subset_is_even_and_follows_from_the_seed(folder: Path) -> None:
    def numbers(seed: int) -> list[int]:
        task = fashion_mnist(str(folder), seed, num_train=50)
        assert (len(task.train), len(task.validation), len(task.test)) == (40, 10, NUM_TEST)
        assert np.bincount(task.train.targets.numpy()).tolist() == [4] * 10
        return task.train.inputs[:, 0, 0, 0].tolist()

    assert numbers(1) == numbers(1) != numbers(2)
    assert len(fashion_mnist(str(folder), 0, num_train=NUM_TRAIN).train) == 160
    for num in (0, 5, NUM_TRAIN + 1):
        with pytest.raises(ValueError, match=f"fashion_mnist: cannot draw num_train={num} of 200 samples"):
            fashion_mnist(str(folder), 0, num_train=num)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_tells_what_to_do(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / f"{name}.gz").unlink(missing_ok=True)
    with pytest.raises(
        ValueError, match=rf"there is no .*{name}.*`sudo apt-get install dataset-fashion-mnist`"
    ) as caught:
        fashion_mnist(str(folder), seed=0)
    assert all(each in str(caught.value) for each in FILES) and "\n" not in str(caught.value)


def test_files_that_do_not_belong_together(folder: Path) -> None:
    labels = folder / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros(7, np.uint8)))
    with pytest.raises(ValueError, match="train has 200 images but 7 labels"):
        fashion_mnist(str(folder), seed=0)
    labels.write_bytes(idx(np.full(NUM_TRAIN, 10, np.uint8)))
    with pytest.raises(ValueError, match="train has the label 10; expected 0 to 9"):
        fashion_mnist(str(folder), seed=0)
    labels.write_bytes(idx(np.full(NUM_TRAIN, 3, np.uint8)))
    with pytest.raises(ValueError, match="fashion_mnist: classification needs at least 2 classes, got 1"):
        fashion_mnist(str(folder), seed=0)


@pytest.mark.data
def test_the_real_files() -> None:
    installed = Path("/usr/share/datasets/fashion-mnist")
    if not installed.is_dir():
        pytest.skip(f"there is no {installed}; sudo apt-get install dataset-fashion-mnist")
    task = fashion_mnist(str(installed), seed=0)
    assert task.input_shape == (1, 28, 28)
    assert (len(task.train), len(task.validation), len(task.test)) == (48000, 12000, 10000)
    # The figures that it is widely normalized with.
    together = task.train.join(task.validation).inputs.double() / 255
    assert together.mean().item() == pytest.approx(0.2860, abs=1e-4)
    assert together.std().item() == pytest.approx(0.3530, abs=1e-4)
