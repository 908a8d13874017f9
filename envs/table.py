"""Architectures whose training is already known: an evaluator that looks them up in a CSV file."""

import csv
import gzip
import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from child.space import Evaluation, Genotype, Improvement, Sampler, SearchSpace, derive_seed, nearest


class TableEvaluator:
    """Gives every architecture the quality and cost of its row.

    Args:
        space: What the rows are architectures of; of every architecture there must be one.
        path: A CSV file with a header, also compressed (`.gz`).
        tokens: The columns of the decisions, in their order; the cells are the numbers of the choices.
        signal: The column that a search sees; of several, each evaluation draws one.
        scale: What the signal is divided by to become a quality in [0, 1], and the report likewise.
        report: The column that tells how good an architecture truly is; it is read after the search alone.
        cost: The column of the cost, or None where there is none (the cost is then 0).
        cost_scale: What the cost is multiplied with, to make MACs of a column in millions, say.
        charge: The column of what an evaluation is charged, or None for 1 each.
        noise: Standard deviation of normal noise on the signal, in its unit; each evaluation draws one value, which is
            cut off where a quality ends.
        hint: What to tell someone who lacks the file.

    Raises:
        ValueError: The file lacks a column or an architecture, or a row is wrong; the message names the row.
    """

    def __init__(
        self,
        space: SearchSpace,
        path: str,
        tokens: Sequence[str],
        signal: str | Sequence[str],
        report: str,
        cost: str | None = None,
        cost_scale: float = 1.0,
        charge: str | None = None,
        scale: float = 100.0,
        noise: float = 0.0,
        hint: str | None = None,
    ):
        if not scale > 0 or not noise >= 0:
            raise ValueError(f"a table needs scale > 0 and noise >= 0, got {scale} and {noise}")
        if len(tokens) != len(space.decisions):
            raise ValueError(f"tokens: space {space.name!r} has {len(space.decisions)} decisions, got {list(tokens)}")
        if not Path(path).is_file():
            raise ValueError(f"there is no table {path}; {hint or 'set env.path to where it is'}")
        self.space, self.path, self.scale, self.noise = space, path, scale, noise
        self.report_column = report
        signals = [signal] if isinstance(signal, str) else list(signal)
        if not signals:
            raise ValueError("signal: name the column that the search sees, or several, got none")
        columns = _read_columns(path, tokens, [*signals, *(c for c in (report, cost, charge) if c is not None)])
        codes = np.stack([columns[name] for name in tokens], axis=1)
        self.rows = _index(path, codes, space)
        self.signals = np.stack([columns[name] for name in signals], axis=1) / scale
        outside = np.argwhere((self.signals < 0) | (self.signals > 1))
        if len(outside):
            row, column = outside[0]
            raise ValueError(
                f"{path}, line {row + 2}: column {signals[column]!r} over a scale of {scale:g} is "
                f"{self.signals[row, column]:g}, and a quality lies in [0, 1]; set evaluator.scale"
            )
        self.truth = columns[report] / scale
        self.has_costs = cost is not None
        self.costs = np.zeros(len(codes)) if cost is None else columns[cost] * cost_scale
        self.charges = np.ones(len(codes)) if charge is None else columns[charge]
        if (self.costs < 0).any() or (self.charges <= 0).any():  # a charge of 0 is that of what is known already
            raise ValueError(f"{path}: costs must not be negative, and charges must be above 0")

    def evaluate(self, genotypes: Sequence[Genotype], fidelity: float, seed: int) -> list[Evaluation]:
        """Look each up; a noisy signal is drawn from the seed and the architecture."""
        rows = [self._row(genotype) for genotype in genotypes]
        if self.is_noisy:
            qualities = [self._draw(genotype, row, seed) for genotype, row in zip(genotypes, rows, strict=True)]
        else:
            qualities = self.signals[rows, 0].tolist()
        found = zip(genotypes, qualities, self.costs[rows].tolist(), strict=True)
        return [Evaluation(genotype, quality, cost, fidelity, seed) for genotype, quality, cost in found]

    def _row(self, genotype: Genotype) -> int:
        try:
            return self.rows[genotype.tokens]
        except KeyError:  # where which choices are legal depends on those before, nobody has counted them
            raise ValueError(f"{self.path} has no row of the architecture {self.space.text(genotype)}") from None

    def _draw(self, genotype: Genotype, row: int, seed: int) -> float:
        rng = np.random.default_rng(derive_seed(seed, "table", *genotype.tokens))
        return float(min(1.0, max(0.0, rng.choice(self.signals[row]) + rng.normal(0, self.noise) / self.scale)))

    def cost(self, genotype: Genotype) -> float:
        """The cost of an architecture."""
        return float(self.costs[self._row(genotype)])

    def mark(self) -> str:
        """A digest that tells another table from this one."""
        digest = hashlib.sha256(repr(list(self.rows)).encode())
        for values in (self.signals, self.truth, self.costs, self.charges):
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    @property
    def is_noisy(self) -> bool:
        """Whether evaluating an architecture again could give another quality."""
        return self.noise > 0 or self.signals.shape[1] > 1

    def price(self, genotype: Genotype) -> float:
        """What evaluating an architecture is charged."""
        return float(self.charges[self._row(genotype)])

    def true_quality(self, genotype: Genotype) -> float:
        """The figure that is reported of an architecture, scaled as its signal."""
        return float(self.truth[self._row(genotype)])

    def rank(self, genotype: Genotype) -> int:
        """Its place among all architectures by that figure, from 1."""
        return 1 + int((self.truth > self.true_quality(genotype)).sum())

    def improve(self, sampler: Sampler, num_batches: int) -> Improvement | None:
        """Nothing: a table has no weights."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to do."""


def _read_columns(path: str, tokens: Sequence[str], numbers: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
    """The columns of a CSV file as numbers, every cell checked."""
    wanted = dict.fromkeys([*tokens, *numbers])
    found: dict[str, list[float]] = {name: [] for name in wanted}
    opener = gzip.open if path.endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            for name in wanted:
                if name not in header:
                    raise ValueError(f"{path} has no column {name!r}; {nearest(name, header)}")
                if header.count(name) > 1:
                    raise ValueError(f"{path} has {header.count(name)} columns {name!r}; rename all but one")
            places = [(name, header.index(name), name in tokens) for name in wanted]
            blank = None
            for line, row in enumerate(rows, 2):
                if not row:  # at the end it does no harm
                    blank = blank or line
                    continue
                if blank:
                    raise ValueError(f"{path}, line {blank} is blank, and other rows follow")
                for name, place, is_token in places:
                    found[name].append(_number(path, line, name, row[place] if place < len(row) else "", is_token))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    return {name: np.array(values, np.int64 if name in tokens else np.float64) for name, values in found.items()}


def _number(path: str, line: int, name: str, cell: str, is_token: bool) -> float:
    try:
        value = int(cell) if is_token else float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (is_token and abs(value) >= 2**31):
        expected = "the number of a choice" if is_token else "a number"
        raise ValueError(f"{path}, line {line}: column {name!r} needs {expected}, got {cell!r}")
    return value


def _index(path: str, codes: np.ndarray[Any, Any], space: SearchSpace) -> dict[tuple[int, ...], int]:
    """Architecture to row, each legal, none twice, none missing."""
    rows: dict[tuple[int, ...], int] = {}
    for row, tokens in enumerate(map(tuple, codes.tolist())):
        if tokens in rows:
            raise ValueError(f"{path}, line {row + 2}: the same architecture stands in line {rows[tokens] + 2}")
        rows[tokens] = row
    # All at once, and in words only where something is wrong.
    within = np.clip(codes, 0, space.max_choices - 1)
    legal = np.take_along_axis(space.masks(within), within[:, :, None], axis=2)[:, :, 0] == 1
    wrong = np.flatnonzero(~(legal & (codes == within)).all(axis=1))
    if len(wrong):
        try:
            space.genotype(codes[wrong[0]])
        except ValueError as error:
            raise ValueError(f"{path}, line {wrong[0] + 2}: {error}") from None
    num_all = math.prod(decision.num_choices for decision in space.decisions)
    if not space.masks_depend_on_prefix and len(rows) < num_all:
        raise ValueError(f"{path} holds {len(rows)} of the {num_all} architectures of space {space.name!r}")
    return rows
