"""What is decoded is decoded once: kept whole or not at all, and only for the bytes it came from."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from envs import cache
from envs.cache import cached, content_key

MADE = {"x": np.arange(12, dtype=np.int16).reshape(3, 4), "names": np.array(["ant", "bee"])}


class Maker:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, NDArray[Any]]:
        self.calls += 1
        return MADE


@pytest.fixture
def make() -> Maker:
    return Maker()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUBAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def same(found: dict[str, NDArray[Any]]) -> bool:
    return list(found) == list(MADE) and all(
        (found[name] == MADE[name]).all() and found[name].dtype == MADE[name].dtype for name in MADE
    )


def test_made_once_for_each_key(make: Maker, folder: Path) -> None:
    assert all(same(cached("mine", "a" * 64, make)) for _ in range(3))
    assert make.calls == 1
    cached("mine", "b" * 64, make)
    cached("other", "a" * 64, make)
    assert make.calls == 3
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        f"{name}-{key * 32}.npz" for name, key in (("mine", "a"), ("mine", "b"), ("other", "a"))
    )


def test_the_file_is_an_ordinary_archive(make: Maker, folder: Path) -> None:
    cached("mine", "a" * 64, make)
    with np.load(next(folder.iterdir())) as archive:
        assert same(dict(archive))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content[:200] + bytes([content[200] ^ 1]) + content[201:],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: content + b"x",
    ],
)
def test_a_damaged_file_is_made_again(make: Maker, folder: Path, damage: Callable[[bytes], bytes]) -> None:
    cached("mine", "a" * 64, make)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert same(cached("mine", "a" * 64, make)) and make.calls == 2
    assert same(cached("mine", "a" * 64, make)) and make.calls == 2  # mended
    assert [each.name for each in folder.iterdir()] == [file.name]


def test_a_folder_that_cannot_be_written_to_is_no_error(
    make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LUBAN_CACHE", str(tmp_path / "file" / "cache"))
    assert same(cached("mine", "a" * 64, make)) and same(cached("mine", "a" * 64, make))
    assert make.calls == 2
    assert capfd.readouterr() == ("", "")


def test_nothing_is_left_of_a_write_that_failed(make: Maker, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert same(cached("mine", "a" * 64, make))
    assert list(folder.iterdir()) == []


def test_where_the_cache_is(make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LUBAN_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    cached("mine", "a" * 64, make)
    monkeypatch.delenv("XDG_CACHE_HOME")
    cached("mine", "a" * 64, make)
    assert make.calls == 2
    for parent in (tmp_path / "xdg", tmp_path / "home" / ".cache"):
        assert [file.name for file in (parent / "luban").iterdir()] == [f"mine-{'a' * 32}.npz"]


def test_the_key_follows_from_names_bytes_and_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_CHUNK", 3)  # several pieces
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"first file")
    two.write_bytes(b"second")
    first = content_key({"a": one, "b": two}, 32, "1.0")
    (tmp_path / "elsewhere").write_bytes(b"first file")
    assert content_key({"a": tmp_path / "elsewhere", "b": two}, 32, "1.0") == first
    others = [
        content_key({"b": one, "a": two}, 32, "1.0"),
        content_key({"a": one, "c": two}, 32, "1.0"),
        content_key({"a": one}, 32, "1.0"),
        content_key({"a": one, "b": two}, 64, "1.0"),
        content_key({"a": one, "b": two}, "32", "1.0"),
    ]
    two.write_bytes(b"Second")
    others.append(content_key({"a": one, "b": two}, 32, "1.0"))
    assert len({first, *others}) == 7
    with pytest.raises(ValueError, match=r"cannot read .*none: No such file"):
        content_key({"a": tmp_path / "none"})
