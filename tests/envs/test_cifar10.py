"""CIFAR-10 is the same in every form that it comes in, and no file that is read can run code."""

import io
import os
import pickle
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from child.task import Classification, Split
from envs import cifar10 as module
from envs.cifar10 import CLASSES, cifar10

DATA = Path(os.environ.get("LUBAN_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
BATCHES = {**{f"data_batch_{k}": range(20 * (k - 1), 20 * k) for k in range(1, 6)}, "test_batch": range(100, 120)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUBAN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    """100 training and 20 test images (120, 32, 32, 3); image k is of class k modulo 10."""
    return np.random.default_rng(0).integers(0, 256, (120, 32, 32, 3), np.uint8)


def rows(pixels: NDArray[np.uint8], places: range) -> NDArray[np.uint8]:
    return pixels[places.start : places.stop].transpose(0, 3, 1, 2).reshape(len(places), 3072)


def write_pickles(folder: Path, pixels: NDArray[np.uint8]) -> None:
    """As the official ones: dictionaries with keys of bytes, in protocol 2."""
    for name, places in BATCHES.items():
        batch = {
            b"batch_label": name.encode(),
            b"labels": [k % 10 for k in places],
            b"data": rows(pixels, places),
            b"filenames": [f"{k}.png".encode() for k in places],
        }
        (folder / name).write_bytes(of_python_2(batch))


def of_python_2(value: Any) -> bytes:
    """A pickle in protocol 2 as Python 2 and NumPy 1 wrote it: bytes as strings, arrays through numpy.core."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: Any) -> bytes:
    match value:
        case dict():
            items = b"".join(_opcodes(k) + _opcodes(v) for k, v in value.items())
            content = b"}(" + items + b"u"
        case list():
            content = b"](" + b"".join(map(_opcodes, value)) + b"e"
        case bool():
            content = b"\x88" if value else b"\x89"
        case int():
            content = b"J" + value.to_bytes(4, "little", signed=True)
        case bytes():
            content = b"T" + len(value).to_bytes(4, "little") + value
        case np.ndarray():
            shape = _opcodes(value.shape[0]) + _opcodes(value.shape[1]) + b"\x86"
            kind = b"cnumpy\ndtype\n(" + _opcodes(b"u1") + b"K\x00K\x01tR"
            kind += b"(K\x03" + _opcodes(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
            content = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + _opcodes(b"b") + b"tR"
            content += b"(K\x01" + shape + kind + b"\x89" + _opcodes(value.tobytes()) + b"tb"
        case _:
            raise AssertionError(type(value))
    return content


def test_the_pickles_of_these_tests_are_ordinary_ones(pixels: NDArray[np.uint8]) -> None:
    batch = {b"data": rows(pixels, range(20)), b"labels": list(range(10)), b"batch_label": b"one"}
    found = pickle.loads(of_python_2(batch), encoding="bytes")
    assert list(found) == list(batch) and found[b"labels"] == batch[b"labels"] and found[b"batch_label"] == b"one"
    np.testing.assert_array_equal(found[b"data"], batch[b"data"])


def write_binary(folder: Path, pixels: NDArray[np.uint8]) -> None:
    for name, places in BATCHES.items():
        labels = np.array([k % 10 for k in places], np.uint8)
        (folder / f"{name}.bin").write_bytes(np.column_stack([labels, rows(pixels, places)]).tobytes())


def write_images(folder: Path, pixels: NDArray[np.uint8], ending: str = "png") -> None:
    for number, image in enumerate(pixels):
        part = folder / ("train" if number < 100 else "test") / CLASSES[number % 10]
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(part / f"{number:03d}.{ending}")


def write_tar(folder: Path, pixels: NDArray[np.uint8], ending: str = "png") -> Path:
    write_images(folder / "loose", pixels, ending)
    with tarfile.open(folder / "cifar.tar.xz", "w:xz") as archive:
        for name in sorted(str(file.relative_to(folder / "loose")) for file in (folder / "loose").rglob("*.*"))[::-1]:
            archive.add(folder / "loose" / name, name)
    return folder / "cifar.tar.xz"


def contents(split: Split) -> list[tuple[int, bytes]]:
    return sorted((int(k), image.numpy().tobytes()) for image, k in zip(split.inputs, split.targets, strict=True))


@pytest.mark.parametrize("form", ["pickles", "binary", "images", "archive", "pickles inside", "binary inside"])
def test_every_form_gives_the_same_images(tmp_path: Path, pixels: NDArray[np.uint8], form: str) -> None:
    folder = path = tmp_path / "data"
    inside = {"pickles inside": "cifar-10-batches-py", "binary inside": "cifar-10-batches-bin"}.get(form, ".")
    (folder / inside).mkdir(parents=True)
    match form.split()[0]:
        case "pickles":
            write_pickles(folder / inside, pixels)
        case "binary":
            write_binary(folder / inside, pixels)
        case "images":
            write_images(folder, pixels)
        case "archive":
            path = write_tar(folder, pixels)
    task = cifar10(str(path), seed=0)
    assert task.name == "cifar10" and task.objective == Classification(CLASSES) and task.input_shape == (3, 32, 32)
    assert (len(task.train), len(task.validation), len(task.test)) == (90, 10, 20)
    assert np.bincount(task.validation.targets.numpy()).tolist() == [1] * 10
    task.test.unseal()
    for part, places in ((task.train.join(task.validation), range(100)), (task.test.read("all"), range(100, 120))):
        expected = sorted((k % 10, pixels[k].transpose(2, 0, 1).tobytes()) for k in places)
        assert contents(part) == expected


def test_smaller_images_are_means_of_squares(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    write_binary(tmp_path, pixels)
    task = cifar10(str(tmp_path), seed=0, size=8)
    assert task.input_shape == (3, 8, 8)
    task.test.unseal()
    expected = sorted(
        (k % 10, np.rint([[pixels[k][i : i + 4, j : j + 4].mean(axis=(0, 1)) for j in range(0, 32, 4)]
                          for i in range(0, 32, 4)]).astype(np.uint8).transpose(2, 0, 1).tobytes())
        for k in range(100, 120)
    )  # fmt: skip
    assert contents(task.test.read("all")) == expected
    with pytest.raises(ValueError, match="size must be a divisor of 32, got 12"):
        cifar10(str(tmp_path), seed=0, size=12)


def test_a_subset_of_the_training_images(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    write_binary(tmp_path, pixels)
    task = cifar10(str(tmp_path), seed=0, num_train=50, validation_share=0.2)
    assert (len(task.train), len(task.validation), len(task.test)) == (40, 10, 20)
    assert np.bincount(task.train.targets.numpy()).tolist() == [4] * 10


@pytest.mark.parametrize("archive", [False, True])
def test_lossy_images_are_called_so(tmp_path: Path, pixels: NDArray[np.uint8], archive: bool) -> None:
    write_images(tmp_path, pixels, "jpg")
    path = write_tar(tmp_path, pixels, "jpg") if archive else tmp_path
    if archive:
        subprocess.run(["rm", "-r", tmp_path / "loose"], check=True)
    assert cifar10(str(path), seed=0).name == "cifar10 (JPEG)"


def test_the_archive_is_decoded_once(
    tmp_path: Path, pixels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tar(tmp_path, pixels, "jpg")
    before = set(tmp_path.rglob("*"))
    first = cifar10(str(path), seed=0)
    new = {file for file in set(tmp_path.rglob("*")) - before if file.is_file()}
    assert [file.parent.name for file in new] == ["cache"]  # nothing else was written to disk
    monkeypatch.setattr(module, "_decode", None)
    again = cifar10(str(path), seed=0)
    assert again.name == first.name == "cifar10 (JPEG)"
    assert again.train.inputs.equal(first.train.inputs) and again.train.targets.equal(first.train.targets)


class Harmful:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


class Evaluates(Harmful):
    def __reduce__(self) -> Any:
        return eval, (f"open({str(self.mark)!r}, 'w')",)


@pytest.mark.parametrize("harm", [Harmful, Evaluates])
@pytest.mark.parametrize("place", ["whole", "data", "labels"])
def test_a_pickle_runs_no_code(tmp_path: Path, pixels: NDArray[np.uint8], harm: type[Harmful], place: str) -> None:
    write_pickles(tmp_path, pixels)
    mark = tmp_path / "harmed"
    bad = harm(mark)
    batch: Any = {b"data": rows(pixels, range(20)), b"labels": [0] * 20, place.encode(): bad}
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps(bad if place == "whole" else batch, 2))
    with pytest.raises(ValueError, match=r"cannot read .*data_batch_3 as a batch of CIFAR-10: refused to load"):
        cifar10(str(tmp_path), seed=0)
    assert not mark.exists()
    pickle.loads(pickle.dumps(bad))
    assert mark.exists()  # the ordinary way it would have run


@pytest.mark.parametrize(
    "spoil",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: b"",
        lambda whole: b"no pickle",
        lambda whole: of_python_2({b"labels": [1]}),
        lambda whole: of_python_2({b"data": b"text", b"labels": [1]}),
        lambda whole: of_python_2({b"data": np.zeros((2, 5), np.uint8), b"labels": [1, 2]}),
        lambda whole: of_python_2({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}),
        lambda whole: of_python_2({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 10]}),
    ],
)
def test_damaged_pickles_are_named(tmp_path: Path, pixels: NDArray[np.uint8], spoil: Callable[[bytes], bytes]) -> None:
    write_pickles(tmp_path, pixels)
    path = tmp_path / "data_batch_2"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match="data_batch_2") as caught:
        cifar10(str(tmp_path), seed=0)
    assert "\n" not in str(caught.value)


def cut_archive(folder: Path) -> None:
    content = (folder / "cifar.tar.xz").read_bytes()
    (folder / "cifar.tar.xz").write_bytes(content[: len(content) // 2])


def no_archive(folder: Path) -> None:
    (folder / "cifar.tar.xz").write_bytes(b"no archive")


def other_archive(folder: Path) -> None:
    with tarfile.open(folder / "cifar.tar.xz", "w:xz") as archive:
        archive.add(__file__, "train/cat/1.py")


def in_archive(name: str, content: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        with tarfile.open(folder / "cifar.tar.xz", "w:xz") as archive:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

    return spoil


def png(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (cut_archive, "cannot read .*cifar.tar.xz"),
        (no_archive, "cannot read .*cifar.tar.xz"),
        (other_archive, "cifar.tar.xz has no images train/<class>"),
        (in_archive("train/cat/1.jpg", b"no image"), "cannot read the image .*cifar.tar.xz: train/cat/1.jpg"),
        (in_archive("train/cat/1.png", png(32, 31)), "cifar.tar.xz: train/cat/1.png: expected 32x32 pixels, got 31x32"),
        (in_archive("train/cow/1.png", png(32, 32)), "cifar.tar.xz: train/cow/1.png: 'cow' is no class of CIFAR-10"),
    ],
)
def test_damaged_archives_are_named(
    tmp_path: Path, pixels: NDArray[np.uint8], spoil: Callable[[Path], None], expected: str
) -> None:
    path = write_tar(tmp_path, pixels)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=expected) as caught:
        cifar10(str(path), seed=0)
    assert "\n" not in str(caught.value) and "BytesIO" not in str(caught.value)


def test_damaged_binaries_and_missing_files_are_named(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    write_binary(tmp_path, pixels)
    path = tmp_path / "data_batch_4.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"data_batch_4[.]bin is damaged: 61459 bytes are not whole records of 3073"):
        cifar10(str(tmp_path), seed=0)
    path.write_bytes(b"\x0a" + whole[1:])
    with pytest.raises(ValueError, match=r"data_batch_4[.]bin is damaged: expected a label from 0 to 9"):
        cifar10(str(tmp_path), seed=0)
    path.unlink()
    with pytest.raises(ValueError, match=r"cannot read .*data_batch_4[.]bin: No such file"):
        cifar10(str(tmp_path), seed=0)
    for nowhere in (tmp_path / "none", tmp_path / "cache"):
        with pytest.raises(ValueError, match=r"there is no CIFAR-10 at .*; set env.path to cifar10_jpeg.tar.xz"):
            cifar10(str(nowhere), seed=0)


def test_other_classes_are_not_cifar10(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    write_images(tmp_path / "data", pixels)
    (tmp_path / "data" / "train" / "cat").rename(tmp_path / "data" / "train" / "car")
    with pytest.raises(ValueError, match="is a class that training lacks"):
        cifar10(str(tmp_path / "data"), seed=0)
    (tmp_path / "data" / "test" / "cat").rename(tmp_path / "data" / "test" / "car")
    with pytest.raises(ValueError, match="data is not CIFAR-10: expected train and test, each with airplane"):
        cifar10(str(tmp_path / "data"), seed=0)


@pytest.mark.data
@pytest.mark.slow
def test_the_real_archive() -> None:
    if not (DATA / "cifar10_jpeg.tar.xz").is_file():
        pytest.skip(f"there is no cifar10_jpeg.tar.xz in {DATA}; LUBAN_DATA may name another folder")
    task = cifar10(str(DATA / "cifar10_jpeg.tar.xz"), seed=0)
    assert task.name == "cifar10 (JPEG)" and task.input_shape == (3, 32, 32)
    assert (len(task.train), len(task.validation), len(task.test)) == (45000, 5000, 10000)
    assert np.bincount(task.train.targets.numpy()).tolist() == [4500] * 10
    # The means that the original is widely normalized with; JPEG keeps them.
    together = task.train.join(task.validation).inputs.double().mean(dim=(0, 2, 3)) / 255
    assert together.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-3)
