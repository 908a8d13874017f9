"""A task from a table in a CSV file: one column is to be predicted from the others.

Letters: N rows, F features.
"""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from child.space import nearest
from child.task import Task
from child.transforms import BLANK, Normalize
from envs.arrays import check_digits, make_task, store

MISSING = ("", "?", "na", "n/a", "#n/a", "nan", "null")
"""How spreadsheets, UCI's files, R and pandas write that there is no value, in small letters."""

MAX_LEVELS = 50
"""Different texts of a column that are still one-hot encoded; more are names or numbers of rows rather than kinds."""

MAX_CLASSES = 20
"""Different whole numbers that are still taken for classes."""

MANY_NUMBERS = 13
"""From so many different numbers on, a column of which most cells are numbers is one of numbers, and the rest mistakes.

Fewer may be names of kinds, such as 2, 3, 4, 5more (doors of cars), 1 to 10, J, Q, K (cards), or 1 to 12, other.
"""

MARKED = re.compile(r"[-+]?\d+(,\d{3})*([.,]\d+)?\s?%?")
"""A number that may have a decimal comma, marks between thousands or a percent sign: 0,5 or 1,234 or 5%."""

LARGEST = float(np.finfo(np.float32).max)
"""The largest number that a network can be given: 3.4e38."""


@dataclass(frozen=True)
class Table:
    """The cells of a CSV file as text without spaces around it, and the line that each row ends at."""

    path: str
    columns: dict[str, list[str]]
    lines: list[int]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.columns)

    def column(self, name: str) -> list[str]:
        """The cells of a column (else ValueError)."""
        if name not in self.columns:
            raise ValueError(f"{self.path} has no column {name!r}; {nearest(name, self.columns)}")
        return self.columns[name]

    def check_complete(self, target: str, features: Sequence[str], ignored: Sequence[str]) -> None:
        """Prove that every cell has a value.

        Raises:
            ValueError: There is none; the message names the first line and all columns of which one lacks a value.
        """
        lacking: dict[str, tuple[int, str]] = {}
        for name in (target, *features):
            for cell, line in zip(self.column(name), self.lines, strict=True):
                if cell.lower() in MISSING:
                    lacking.setdefault(name, (line, cell))
        if not lacking:
            return
        name, (line, cell) = next(iter(lacking.items()))
        others = [each for each in lacking if each not in (name, target)]
        more = f" (nor has one each of {', '.join(map(repr, others))})" if others else ""
        advice = "fill in what is missing, or remove its lines"
        if set(lacking) - {target}:
            leave = ",".join([*ignored, *(each for each in lacking if each != target)])
            advice = f"{advice}, or leave columns but the target out with env.task.ignore=[{leave}]"
        raise ValueError(f"{self.path}, line {line}: column {name!r} has no value ({cell!r}){more}; {advice}")

    def numbers(self, name: str, otherwise: str = "") -> NDArray[np.float64]:
        """The numbers of a column (else ValueError, naming the line and what to do otherwise)."""
        found = []
        for cell, line in zip(self.column(name), self.lines, strict=True):
            number = _number(cell)
            if number is None:
                raise ValueError(
                    f"{self.path}, line {line}: column {name!r} holds numbers, got {cell!r}; correct it (finite, with "
                    f"a decimal point and no other marks, such as 1234.5) or remove the line{otherwise}"
                )
            found.append(number)
        return np.array(found)

    def numbers_if_meant(self, name: str, otherwise: str) -> NDArray[np.float64] | None:
        """The numbers of a column that holds them alone, or None.

        Raises:
            ValueError: It was meant to, since all its cells, or most and `MANY_NUMBERS` different ones, are numbers in
                some way of writing; the message names the first that is not written plainly, and what to do otherwise.
        """
        cells = self.column(name)
        meant = [cell for cell in cells if _meant_as_number(cell)]
        if len(meant) < len(cells) and (2 * len(meant) <= len(cells) or len(set(meant)) < MANY_NUMBERS):
            return None
        return self.numbers(name, otherwise)


def tabular(
    path: str,
    target: str,
    seed: int,
    kind: Literal["classification", "regression"] | None = None,
    ignore: Sequence[str] = (),
    test_path: str | None = None,
    test_share: float = 0.25,
    validation_share: float = 0.25,
) -> Task:
    """Read a CSV file (or `.csv.gz`) with a header, separated by commas, semicolons or tabs.

    Columns of numbers come first, standardized by training data. Columns of text are one-hot encoded, such as
    `color=blue` and `color=red`; a text that training data lack is all zeros. Where `kind` is null, a target of numbers
    is a regression if one of them is not whole or more than 20 are different, but none has a leading zero, as names
    have (01), and all else is a classification; the task's name says which. Some of a column's kinds or classes may be
    numbers; but where most cells are numbers, 13 or more of them different, all must be.

    Args:
        path: The file.
        target: The column to be predicted.
        seed: The run's seed; draws what is held out.
        kind: What the target is.
        ignore: Columns to leave out.
        test_path: A test set in a file of its own, with the same columns in any order.
        test_share: Share of the rows held out as the test set, where no file is given.
        validation_share: Share of the rest held out for validation.

    Raises:
        ValueError: A file or cell cannot be used; the message names the line and the column.
    """
    table = read_table(path)
    for name in ignore:
        if name not in table.names:
            raise ValueError(f"ignore: {path} has no column {name!r}; {nearest(name, table.names)}")
    wanted = table.column(target)
    features = [name for name in table.names if name != target and name not in ignore]
    if target in ignore or not features:
        raise ValueError(f"{path}: predicting {target!r} needs it and another column, and ignore={list(ignore)}")
    table.check_complete(target, features, ignore)
    values = {_whole(cell) for cell in wanted}
    coded = any(re.fullmatch(r"[-+]?0\d+", cell) for cell in wanted)
    if kind is None:
        numbers = table.numbers_if_meant(target, "; if these are classes, set env.task.kind=classification")
        many = (None in values or len(values) > MAX_CLASSES) and not coded
        kind = "regression" if numbers is not None and many else "classification"
    whole = all(_fits(value) for value in values) and not coded
    advice = "; if these are names of kinds, put a letter before each, or leave them out with env.task.ignore=[{}]"
    numeric = []
    for name in features:
        numbers = table.numbers_if_meant(name, advice.format(name))
        if numbers is not None:
            check_digits(f"{path}: column {name!r}", numbers, f", or leave it out with env.task.ignore=[{name}]")
            numeric.append(name)
    levels = {name: _levels(table, name) for name in features if name not in numeric}
    names = (*numeric, *(f"{name}={level}" for name, known in levels.items() for level in known))

    def samples(table: Table) -> tuple[Tensor, NDArray[Any]]:
        columns = [table.numbers(name)[:, None] for name in numeric]
        columns += [np.array(table.column(name))[:, None] == np.array(known) for name, known in levels.items()]
        stored = store(table.path, np.concatenate(columns, axis=1).astype(np.float32))
        if kind == "regression":
            return stored, table.numbers(target)
        if not whole:
            return stored, np.array(table.column(target))
        cells = table.column(target)
        classes = [_whole(cell) for cell in cells]  # as integers, 10 comes after 9
        for value, cell, line in zip(classes, cells, table.lines, strict=True):
            if not _fits(value):
                raise ValueError(
                    f"{table.path}, line {line}: classes are whole numbers of 64 bits in {path}, got {cell!r}"
                )
        return stored, np.array(classes, np.int64)

    def fit(inputs: Tensor) -> Normalize:
        """Numbers are standardized; the one-hot columns stay, but for those of texts that training data lack."""
        standard = Normalize.fit(inputs, 1.0)
        unknown = (inputs[:, len(numeric) :] == 0).all(dim=0).tolist()
        mean = standard.mean[: len(numeric)] + (0.0,) * len(unknown)
        std = standard.std[: len(numeric)] + tuple(BLANK if each else 1.0 for each in unknown)
        return Normalize(1.0, mean, std, names)

    test = None
    if test_path is not None:
        given = read_table(test_path)
        given.check_complete(target, features, ignore)
        test = samples(given)
    return make_task(
        f"{Path(path).name.partition('.')[0]} ({kind} of {target})", *samples(table), seed, test_share,
        validation_share, fit, test=test, answer=target,
    )  # fmt: skip


def read_table(path: str) -> Table:
    """Read a CSV file with a header; empty lines are left out (else ValueError, naming the line)."""
    try:
        data = Path(path).read_bytes()
        text = (gzip.decompress(data) if path.endswith(".gz") else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read {path}: expected a CSV file ({error})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read {path}: expected text in UTF-8 ({error})") from None
    # The one of these that the header has most of outside quoted cells, which may hold line ends, too; Python's own
    # guess goes by the cells, and is often wrong.
    header = re.sub(r'(?<![^,;\t\r\n])"[^"]*(?:""[^"]*)*"', "", text).lstrip("\r\n").partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, lines = [], []
    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: this is not CSV ({error})") from None
    if len(rows) < 2:
        raise ValueError(f"{path} needs a header and rows below it, got {len(rows)} lines")
    names = tuple(name.strip() for name in rows[0])
    for place, name in enumerate(names):
        if not name:
            raise ValueError(f"{path}: column {place + 1} has no name; name it, or remove it (an index, say)")
        if name in names[:place]:
            raise ValueError(f"{path}: two columns are named {name!r}; rename one")
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(names):
            raise ValueError(f"{path}, line {line}: expected {len(names)} cells as in the header, got {len(row)}")
    columns = {name: [row[place].strip() for row in rows[1:]] for place, name in enumerate(names)}
    return Table(path, columns, lines[1:])


def _float(cell: str) -> float | None:
    """What Python reads as a float, infinity included, or None; 1_000 is no way to write a number outside of it."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def _number(cell: str) -> float | None:
    """The number that a cell holds, or None."""
    value = _float(cell)
    return value if value is not None and abs(value) <= LARGEST else None


def _meant_as_number(cell: str) -> bool:
    """Whether a cell is a number, or would be one if written plainly, or is infinite or too large for one."""
    return MARKED.fullmatch(cell) is not None or _float(cell) is not None


def _whole(cell: str) -> int | None:
    """The whole number that a cell holds, or None."""
    value = _number(cell)
    if value is None or not value.is_integer():
        return None
    try:
        return int(cell)  # all digits, of which a float has 16
    except ValueError:
        return int(value)  # such as 3.0 or 1e3


def _fits(value: int | None) -> bool:
    """Whether this is a whole number, and one of 64 bits."""
    return value is not None and -(2**63) <= value < 2**63


def _levels(table: Table, name: str) -> list[str]:
    """The different texts of a column."""
    cells = table.column(name)
    found = sorted(set(cells))
    if len(found) > MAX_LEVELS:
        place = next(place for place, cell in enumerate(cells) if _number(cell) is None)
        raise ValueError(
            f"{table.path}: column {name!r} is text (such as {cells[place]!r} in line {table.lines[place]}) of "
            f"{len(found)} different kinds, and at most {MAX_LEVELS} are one-hot encoded; make them fewer, or numbers, "
            f"or leave the column out with env.task.ignore=[{name}]"
        )
    return found
