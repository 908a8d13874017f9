"""Folders of images: the classes are their subfolders, and every image is decoded once."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from child.files import read_image
from child.task import Classification
from envs import images as module
from envs.images import images


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight images of each of two classes; the gray level tells class and number."""
    monkeypatch.setenv("LUBAN_CACHE", str(tmp_path / "cache"))
    for place, name in enumerate(("cat", "dog")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(8):
            pixels = np.full((10, 12), 100 * place + number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{number}.png")
    return tmp_path / "pets"


def test_the_second_time_nothing_is_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    monkeypatch.setattr(module, "read_image", lambda file, *size: decoded.append(file) or read_image(file, *size))
    first = images(str(folder), seed=1, size=8)
    assert len(decoded) == 16
    again = images(str(folder), seed=1, size=8)
    assert len(decoded) == 16
    assert again.train.inputs.equal(first.train.inputs) and again.train.targets.equal(first.train.targets)
    images(str(folder), seed=1, size=4)
    assert len(decoded) == 32
    Image.fromarray(np.full((10, 12), 9, np.uint8)).save(folder / "cat" / "8.png")
    images(str(folder), seed=1, size=8)
    assert len(decoded) == 32 + 17


def test_pictures_keep_their_classes(folder: Path) -> None:
    task = images(str(folder), seed=0, size=8)
    assert task.name == "pets" and task.objective == Classification(("cat", "dog")) and task.input_shape == (1, 8, 8)
    task.test.unseal()
    levels = []
    for part in (task.train, task.validation, task.test.read("all")):
        assert (part.inputs[:, 0, 0, 0] >= 100).long().equal(part.targets)
        levels += part.inputs[:, 0, 0, 0].tolist()
    assert sorted(levels) == [*range(8), *range(100, 108)]


def test_parts_that_are_given(folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    folder.rename(whole / "train")
    (whole / "test" / "dog").mkdir(parents=True)
    Image.fromarray(np.full((8, 8, 3), 77, np.uint8)).save(whole / "test" / "dog" / "1.png")
    task = images(str(whole), seed=0, size=8)
    assert task.input_shape == (3, 8, 8)  # one in color makes all so
    task.test.unseal()
    part = task.test.read("all")
    assert part.targets.tolist() == [1] and part.inputs.unique().tolist() == [77]


def test_a_class_may_be_called_train(folder: Path) -> None:
    (folder / "cat").rename(folder / "train")
    assert images(str(folder), seed=0, size=8).objective == Classification(("dog", "train"))


def test_hidden_folders_are_left_out(folder: Path) -> None:
    (folder / "cat" / ".ipynb_checkpoints" / "deep").mkdir(parents=True)
    for place in (".ipynb_checkpoints", ".ipynb_checkpoints/deep", "."):
        Image.fromarray(np.full((10, 12), 9, np.uint8)).save(folder / "cat" / place / ".9.png")
    for place in (".ipynb_checkpoints", ".ipynb_checkpoints/deep"):
        Image.fromarray(np.full((10, 12), 9, np.uint8)).save(folder / "cat" / place / "9-checkpoint.png")
    pixels, _ = module.read_parts(str(folder), 8)["train"]
    assert len(pixels) == 16 and 9 not in pixels


def test_links_are_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for number in range(4):
        (folder / "cat" / f"{number}.png").rename(tmp_path / "elsewhere" / f"{number}.png")
    (folder / "cat" / "older").symlink_to(tmp_path / "elsewhere")
    (folder / "dog").rename(tmp_path / "dog")
    (folder / "dog").symlink_to(tmp_path / "dog")
    pixels, _ = module.read_parts(str(folder), 8)["train"]
    assert sorted(pixels[:, 0, 0].tolist()) == [*range(8), *range(100, 108)]


@pytest.mark.parametrize(
    "parts", [("Test", "Train"), ("Testing", "Training"), ("test_set", "training_set"), ("test", "validation")]
)
def test_parts_of_other_names_are_no_classes(folder: Path, parts: tuple[str, str]) -> None:
    for part in parts:
        (folder / part).mkdir()
    (folder / "cat").rename(folder / parts[1] / "cat")
    (folder / "dog").rename(folder / parts[1] / "dog")
    (folder / parts[0] / "cat").mkdir()
    (folder / parts[1] / "cat" / "0.png").rename(folder / parts[0] / "cat" / "0.png")
    expected = f"{parts[0]} and {parts[1]} in .*pets look like parts .*; call them train, validation and test, with a"
    with pytest.raises(ValueError, match=expected) as caught:
        images(str(folder), seed=0)
    assert "\n" not in str(caught.value)
    shutil.rmtree(folder / parts[0] / "cat")  # pictures to be classified, say
    (folder / parts[1] / "cat" / "1.png").rename(folder / parts[0] / "1.png")
    with pytest.raises(ValueError, match=expected):
        images(str(folder), seed=0)


@pytest.mark.parametrize("names", [("trains", "trams"), ("valley", "test rig")])
def test_classes_may_hold_folders_of_the_same_names(folder: Path, names: tuple[str, str]) -> None:
    for old, new in zip(("cat", "dog"), names, strict=True):
        (folder / old).rename(folder / new)
        (folder / new).rename(folder / "moved")
        (folder / new / "night").mkdir(parents=True)
        (folder / "moved").rename(folder / new / "day")
        (folder / new / "day" / "0.png").rename(folder / new / "night" / "0.png")
    assert images(str(folder), seed=0, size=8).objective == Classification(tuple(sorted(names)))


def other_parts(folder: Path) -> None:
    for part in ("train", "val"):
        (folder / part).mkdir()
    (folder / "cat").rename(folder / "train" / "cat")
    (folder / "dog").rename(folder / "val" / "dog")


def thirty_two_bits(folder: Path) -> None:
    Image.fromarray(np.random.default_rng(0).random((10, 12), np.float32)).save(folder / "dog" / "3.tiff")


def broken(folder: Path) -> None:
    (folder / "dog" / "3.png").write_bytes((folder / "dog" / "3.png").read_bytes()[:50])


def empty_class(folder: Path) -> None:
    (folder / "emu").mkdir()


def one_class(folder: Path) -> None:
    (folder / "dog").rename(folder.parent / "dog")


def unknown_class(folder: Path) -> None:
    for part in ("train", "test"):
        (folder / part).mkdir()
    (folder / "cat").rename(folder / "train" / "cat")
    (folder / "dog").rename(folder / "test" / "dogs")


def parts_in_classes(folder: Path) -> None:
    for name in ("cat", "dog"):
        for part, number in (("train", 0), ("test", 1)):
            (folder / name / part).mkdir()
            (folder / name / f"{number}.png").rename(folder / name / part / f"{number}.png")


def other_kind(folder: Path) -> None:
    (folder / "cat" / "inner").mkdir()
    for number in range(2):
        (folder / "cat" / "inner" / f"{number}.HEIC").touch()


def stray(folder: Path) -> None:
    (folder / "9.JPG").touch()
    (folder / "notes.txt").touch()
    (folder / ".9.png").touch()


def crossed(folder: Path) -> None:
    (folder / "cat" / "also").symlink_to(folder / "dog")
    (folder / "dog" / "also").symlink_to(folder / "cat")


def drawing(folder: Path) -> None:
    (folder / "logo.svg").touch()


def circle(folder: Path) -> None:
    (folder / "cat" / "all").symlink_to(folder)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (stray, r"pets/9\.JPG lies beside the folders, .*; put each image into .*, or take it away \(.* are 1\)"),
        (circle, r"all/cat is a link to .*pets/cat, whose files are there already; take it away"),
        (crossed, r"cat/also is a link to .*pets/dog, whose|dog is a link to|also/also is a link"),
        (drawing, r"pets/logo\.svg is of a kind that is not read, .*; convert it, or take it away"),
        (parts_in_classes, r"test and train in .*cat look like parts .*; put .*, as in pets/train/cat"),
        (other_kind, r"inner/0\.HEIC is of a kind that is not read, .* \(of such there are 2 in .*cat\)"),
        (broken, r"cannot read the image .*dog.3\.png"),
        (empty_class, r"emu holds no image; every subfolder is a class"),
        (one_class, "pets: classification needs at least 2 classes, got 1"),
        (unknown_class, "dogs is a class that training lacks"),
        (other_parts, r"val stands beside train; allowed: train, validation, test.* rename it, or move it elsewhere"),
        (thirty_two_bits, r"cannot read the image .*3\.tiff: its pixels have 32 bits; save it with 8 or 16"),
    ],
)
def test_mistakes_are_named(folder: Path, spoil: Any, expected: str) -> None:
    spoil(folder)
    with pytest.raises(ValueError, match=expected) as caught:
        images(str(folder), seed=0)
    assert "\n" not in str(caught.value)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none is not a folder"):
        images(str(tmp_path / "none"), seed=0)
    with pytest.raises(ValueError, match="has no subfolders; expected one per class, each with its images"):
        images(str(tmp_path), seed=0)
