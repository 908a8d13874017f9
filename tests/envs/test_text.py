"""Texts: windows that predict every symbol once, vocabularies counted by hand, and mistakes that are named."""

import lzma
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from child.files import windows
from child.standalone import folds_of
from child.task import Language, Split, Task
from child.transforms import Tokens
from conf.launch import compose
from envs.text import text, vocabulary_of

DATA = Path(os.environ.get("LUBAN_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
SENTENCES = "the cat sat on the mat\nthe dog sat too\n"


def write(folder: Path, content: str, name: str = "novel.txt") -> str:
    (folder / name).write_text(content, encoding="utf-8", newline="")
    return str(folder / name)


def letters(num: int) -> str:
    return "".join("abcdefgh"[(number * number) % 8] for number in range(num))


def opened(task: Task) -> list[Split]:
    task.test.unseal()
    return [task.train, task.validation, task.test.read("all")]


def read_back(task: Task, split: Split, context: int) -> str:
    """The text of a split from its first context and its targets."""
    assert isinstance(task.objective, Language)
    numbers = [*split.inputs[0, : context + 1].tolist(), *split.targets.flatten().tolist()]
    return "".join(task.objective.symbols[number] for number in numbers)


@given(st.integers(0, 6), st.integers(1, 7), st.integers(0, 60), st.sampled_from([3, 300, 40000]))
def test_every_symbol_after_the_first_context_is_predicted_once(
    context: int, length: int, more: int, largest: int
) -> None:
    num = context + length + 1 + more
    numbers = np.random.default_rng(0).integers(0, largest, num)
    numbers[-1] = largest - 1
    split = windows(numbers, context, length)
    assert split.inputs.shape == (len(split), context + length) and split.targets.shape == (len(split), length)
    assert split.targets.dtype == torch.int64 and split.inputs.dtype == {
        3: torch.uint8, 300: torch.int16, 40000: torch.int32
    }[largest]  # fmt: skip
    predicted = split.targets.flatten().tolist()
    assert predicted == numbers[context + 1 : context + 1 + len(predicted)].tolist()
    assert num - context - 1 - len(predicted) < length
    for window in range(len(split)):
        # What follows upon each symbol after the context.
        assert split.inputs[window, context + 1 :].equal(split.targets[window, :-1].to(split.inputs.dtype))
        start = window * length
        assert split.inputs[window].tolist() == numbers[start : start + context + length].tolist()


def test_windows_are_views_that_can_be_drawn_from(tmp_path: Path) -> None:
    task = text(write(tmp_path, letters(2000)), 0, context=8, length=4)
    inputs = task.train.inputs
    assert inputs.untyped_storage().nbytes() == 1800 - 1 and inputs.numel() > 2 * 1800  # the last is only a target
    places = torch.tensor([5, 0, 17])
    drawn, targets = task.training_batch(places, torch.Generator())
    assert drawn.equal(torch.stack([inputs[place] for place in places]))
    assert targets.equal(torch.stack([task.train.targets[place] for place in places]))
    taken = task.train.take(places)
    assert taken.inputs.equal(drawn) and taken.targets.equal(targets)
    together = task.train.join(task.validation)
    assert together.inputs[len(inputs) :].equal(task.validation.inputs)
    assert task.input_shape == (12,) and task.preprocessing == Tokens()


def test_a_text_is_divided_in_order(tmp_path: Path) -> None:
    content = letters(1000)
    task = text(write(tmp_path, content), 0, context=2, length=1, test_share=0.1, validation_share=0.2)
    assert task.name == "novel" and task.metric_name == "bits per character"
    train, validation, test = (read_back(task, split, 2) for split in opened(task))
    assert (train, validation, test) == (content[:700], content[700:900], content[900:])


def test_given_parts_are_taken_as_given(tmp_path: Path) -> None:
    one, two = letters(60), letters(33)[::-1]
    path, given = write(tmp_path, one), write(tmp_path, two, "valid.txt")
    task = text(path, 0, context=2, length=1, validation_path=given, test_share=0.5)
    train, validation, test = (read_back(task, split, 2) for split in opened(task))
    assert (train, validation, test) == (one[:30], two, one[30:])


def test_words_and_the_ends_of_lines(tmp_path: Path) -> None:
    content = SENTENCES * 3
    paths: Any = {"validation_path": write(tmp_path, content, "v"), "test_path": write(tmp_path, content, "t")}
    task = text(write(tmp_path, content), 0, "words", context=1, length=1, **paths)
    assert task.objective == Language(("the", "<eos>", "sat", "cat", "dog", "mat", "on", "too"), "words")
    assert task.metric_name == "perplexity"
    assert isinstance(task.objective, Language)
    first = [task.objective.symbols[number] for number in task.train.targets.flatten()[:11].tolist()]
    assert first == ["sat", "on", "the", "mat", "<eos>", "the", "dog", "sat", "too", "<eos>", "the"]


@pytest.mark.parametrize(
    ("train", "other", "max_symbols", "expected"),
    [
        ("aaabbc", "ab", None, "a b c"),
        ("aaabbc", "ax", None, "a b <unk>"),  # c, which occurs once, shows what an unknown symbol is like
        ("aaabbcc", "ax", None, "a b c <unk>"),
        ("aaabbc", "ab", 3, "a b c"),
        ("aaabbc", "ab", 2, "a <unk>"),
        ("aaabbc", "ax", 3, "a b <unk>"),
    ],
)
def test_vocabularies_by_hand(train: str, other: str, max_symbols: int | None, expected: str) -> None:
    assert vocabulary_of(list(train), [list(train), list(other)], max_symbols) == expected.split()


def test_a_text_with_an_unknown_symbol_of_its_own_gets_no_second_one() -> None:
    words = ["<unk>", "<unk>", "<unk>", "a", "a", "b"]
    assert vocabulary_of(words, [words, ["x"]], None) == ["<unk>", "a", "b"]
    assert vocabulary_of(words, [words, ["x"]], 2) == ["a", "<unk>"]


def test_what_is_unknown_is_predicted_as_such(tmp_path: Path) -> None:
    paths: Any = {"validation_path": write(tmp_path, "abxyab", "v"), "test_path": write(tmp_path, "ababab", "t")}
    task = text(write(tmp_path, "abababzab"), 0, context=0, length=1, **paths)
    assert task.objective == Language(("a", "b", "<unk>"), "characters")
    assert task.validation.targets.flatten().tolist() == [1, 2, 2, 0, 1]
    assert Counter(task.train.targets.flatten().tolist())[2] == 1


@pytest.mark.parametrize("num_folds", [2, 3, 5])
def test_folds_share_no_target(tmp_path: Path, num_folds: int) -> None:
    """A text of numbers that all differ says which of its places a window predicts."""
    numbers = np.arange(400)
    train, validation = windows(numbers[:300], 5, 7), windows(numbers[300:], 5, 7)
    task = text(write(tmp_path, letters(400)), 0, context=5, length=7, test_share=0.1, validation_share=0.1)
    folds = folds_of(task.with_splits(train, validation), num_folds, seed=0)
    expected = sorted([*train.targets.flatten().tolist(), *validation.targets.flatten().tolist()])
    held_out = []
    for fold in folds:
        seen, kept = (set(split.targets.flatten().tolist()) for split in (fold.train, fold.validation))
        assert not seen & kept
        assert sorted(seen | kept) == expected
        starts = fold.validation.targets[:, 0].tolist()
        assert starts == sorted(starts)
        held_out += sorted(kept)
    assert held_out == expected  # stretches, one after another


def test_a_compressed_text(tmp_path: Path) -> None:
    (tmp_path / "novel.xz").write_bytes(lzma.compress(letters(400).encode()))
    found = text(str(tmp_path / "novel.xz"), 0, context=3, length=2)
    expected = text(write(tmp_path, letters(400)), 0, context=3, length=2)
    assert found.name == "novel" and found.train.inputs.equal(expected.train.inputs)


@pytest.mark.parametrize("unit", ["characters", "words"])
def test_windows_line_ends_are_no_symbols_of_their_own(tmp_path: Path, unit: Any) -> None:
    unix, windows = (
        text(write(tmp_path, (SENTENCES * 30).replace("\n", end), f"{len(end)}.txt"), 0, unit, context=3, length=2)
        for end in ("\n", "\r\n")
    )
    assert unix.objective == windows.objective and unix.train.inputs.equal(windows.train.inputs)


@pytest.mark.parametrize(
    ("content", "arguments", "expected"),
    [
        (letters(100), {"context": 10, "length": 10}, "a window needs 21 characters, and the validation text has 5"),
        ("", {}, "a window needs 97 characters, and the .* text has 0; give more text, or shorten length or context"),
        ("a" * 999, {"context": 1, "length": 1}, "there is nothing to predict, for all characters are 'a'"),
        (letters(99), {"length": 0}, "text needs context >= 0 and length >= 1, got 32 and 0"),
        (letters(99), {"context": -1}, "text needs context >= 0 and length >= 1, got -1 and 64"),
        (letters(99), {"max_symbols": 1}, "text needs max_symbols >= 2, got 1"),
        (letters(99), {"test_share": 1.0}, "test_share must be between 0 and 1, got 1.0"),
        (letters(99), {"validation_share": 0.0}, "validation_share must be between 0 and 1, got 0.0"),
        (letters(99), {"test_share": 0.6, "validation_share": 0.6}, "a window needs 97 characters"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, content: str, arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        text(write(tmp_path, content), 0, **arguments)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"cannot read .*missing\.txt \(No such file or directory\); get it from there"
    ):
        text(str(tmp_path / "missing.txt"), 0, hint="get it from there")
    (tmp_path / "latin.txt").write_bytes("größe".encode("latin-1"))
    (tmp_path / "plain.xz").write_bytes(b"no archive")
    (tmp_path / "cut.xz").write_bytes(lzma.compress(b"x" * 999)[:40])
    for name in ("latin.txt", "plain.xz", "cut.xz"):
        with pytest.raises(ValueError, match=rf"cannot read .*{name}: expected text in UTF-8, or that in \.xz"):
            text(str(tmp_path / name), 0)


# The configs, on the published texts.


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "first", "num_symbols", "sizes"),
    [
        ("tiny_shakespeare", "tinyshakespeare.txt", 65, (1_003_854, 55_770, 55_770)),
        ("wikitext2", "wiki.train.tokens.xz", 33_278, (2_088_628, 217_646, 245_569)),
    ],
)
def test_the_published_texts(
    monkeypatch: pytest.MonkeyPatch, name: str, first: str, num_symbols: int, sizes: tuple[int, ...]
) -> None:
    if not (DATA / first).is_file():
        pytest.skip(f"there is no {first} in {DATA}; LUBAN_DATA may name another folder")
    monkeypatch.setenv("LUBAN_DATA", str(DATA))
    config = compose(f"env={name}")
    assert config.env.task is not None
    task = config.env.task.build((), seed=0)
    assert task.num_outputs == num_symbols
    for split, size in zip(opened(task), sizes, strict=True):
        assert len(split) == (size - 32 - 1) // 64
        assert int(split.targets.max()) < num_symbols


@pytest.mark.parametrize("name", ["tiny_shakespeare", "wikitext2"])
def test_a_text_that_is_not_there_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setenv("LUBAN_DATA", str(tmp_path))
    task = compose(f"env={name}").env.task
    assert task is not None
    advice = rf"curl -o {tmp_path}/tiny.*\.txt https://\S+$" if name == "tiny_shakespeare" else r"LUBAN_DATA, .*\.xz$"
    with pytest.raises(ValueError, match=rf"env\.task: cannot read {tmp_path}/.* \(No such file .*\); .*{advice}"):
        task.build((), seed=0)


def test_the_context_of_task_space_and_opponent_is_one_key() -> None:
    config = compose("env=tiny_shakespeare", "env.task.context=7")
    assert config.env.task is not None
    assert config.baseline.network is not None
    for part in (config.env.task, config.space, config.baseline.network):
        assert part.arguments["context"] == 7
