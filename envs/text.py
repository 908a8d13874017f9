"""A task from text: the next character or word is to be predicted at every position.

The text is cut into windows. A sample is a window of `context + length` symbols, with the `length` that follow upon
each symbol after the context as its targets. Windows overlap in their context alone, so that every symbol of a text
is predicted exactly once, but for those of the first context, the one after it, and the fewer than `length` left over
at the end.
The context of a window may reach back into the text before it, of the same split.

Letters: N windows, L symbols of a window.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from child.files import UNKNOWN, read_symbols, windows
from child.task import Language, SealedSplit, Task, Unit
from child.transforms import Tokens


def text(
    path: str,
    seed: int,
    unit: Unit = "characters",
    context: int = 32,
    length: int = 64,
    max_symbols: int | None = None,
    validation_path: str | None = None,
    test_path: str | None = None,
    test_share: float = 0.05,
    validation_share: float = 0.05,
    hint: str | None = None,
) -> Task:
    """Read a text in UTF-8, or several: training, validation and test, in this order.

    Words are what stands between white space, and every line ends with a symbol of its own, `<eos>` (as in the
    published figures for WikiText-2). The vocabulary is that of the training text, the most frequent first. What it
    lacks is `<unk>`; where no other symbol of the training text is, those that occur in it only once are as well, so
    that the network has seen some.

    Args:
        path: The whole text, or the training text where the other two are given; may be compressed (`.xz`).
        seed: The run's seed; nothing is drawn here.
        unit: `characters` or `words`.
        context: Symbols at the beginning of a window that nothing is predicted from.
        length: Predictions of each window.
        max_symbols: Of the vocabulary, `<unk>` included; null for all.
        validation_path: Validation text.
        test_path: Test text.
        test_share: Share at the end of the text that is the test set, where none is given.
        validation_share: Share before that for validation, where none is given.
        hint: What to do where a file is missing.

    Raises:
        ValueError: A file cannot be read, or is too short for one window.
    """
    if context < 0 or length < 1:
        raise ValueError(f"text needs context >= 0 and length >= 1, got {context} and {length}")
    if max_symbols is not None and max_symbols < 2:
        raise ValueError(f"text needs max_symbols >= 2, got {max_symbols}")
    train = read_symbols(Path(path), unit, hint)
    parts = {"training": train, "validation": train[:0], "test": train[:0]}
    shares = {"test": (test_path, test_share), "validation": (validation_path, validation_share)}
    total = len(train)
    for name, (given, share) in shares.items():  # from the end
        if given is not None:
            parts[name] = read_symbols(Path(given), unit, hint)
            continue
        if not 0 < share < 1:
            raise ValueError(f"{path}: {name}_share must be between 0 and 1, got {share}")
        cut = len(parts["training"]) - round(share * total)
        parts["training"], parts[name] = parts["training"][: max(cut, 0)], parts["training"][max(cut, 0) :]
    for name, symbols in parts.items():
        if len(symbols) <= context + length:
            raise ValueError(
                f"{path}: a window needs {context + length + 1} {unit}, and the {name} text has {len(symbols)}; "
                f"give more text, or shorten length or context"
            )
    vocabulary = vocabulary_of(parts["training"], parts.values(), max_symbols)
    if len(vocabulary) < 2:
        raise ValueError(f"{path}: there is nothing to predict, for all {unit} are {vocabulary[0]!r}")
    numbers = {symbol: number for number, symbol in enumerate(vocabulary)}
    unknown = numbers.get(UNKNOWN, -1)  # where it is no symbol, nothing is unknown
    splits = {
        name: windows(np.array([numbers.get(symbol, unknown) for symbol in symbols]), context, length)
        for name, symbols in parts.items()
    }
    return Task(
        Path(path).name.partition(".")[0],
        Language(tuple(vocabulary), unit),
        splits["training"], splits["validation"], SealedSplit(splits["test"]), Tokens(),
    )  # fmt: skip


def vocabulary_of(train: Sequence[str], parts: Iterable[Sequence[str]], max_symbols: int | None) -> list[str]:
    """The symbols, the most frequent of the training text first, with `<unk>` where one of the parts needs it."""
    counts = Counter(train)
    ranked = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))
    lacking = UNKNOWN not in counts and any(symbol not in counts for part in parts for symbol in part)
    if max_symbols is not None and len(ranked) + lacking > max_symbols:
        return [*[symbol for symbol in ranked if symbol != UNKNOWN][: max_symbols - 1], UNKNOWN]
    if lacking:
        return [*(symbol for symbol in ranked if counts[symbol] > 1), UNKNOWN]
    return ranked
