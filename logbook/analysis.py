"""What can be computed from what a run wrote down: decisions that mattered, preferences, confusions, fronts.

Letters: N evaluations or samples, K choices of a decision, R columns of rounds, W resamples.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

Array = NDArray[np.float64]
Lines = Sequence[Mapping[str, Any]]
Decisions = Sequence[Mapping[str, Any]]
Item = TypeVar("Item")

RESAMPLES = 400
"""Each end of an interval then rests on ten of them, which moves it by about a tenth of its width."""

TELLABLE = 0.25
"""Evaluations are too few where a decision without any influence would often show more than this share."""


@dataclass(frozen=True)
class Effect:
    """How much of the variance of the reward one decision explains on its own.

    Args:
        place: Of the decision among those of the space.
        share: An estimate without bias, so that it may fall below 0 where there is little to find.
        low: The lower end of its 95% interval.
        high: The upper end.
        chance: A decision without influence shows more than this in 5% of cases.
        num: Evaluations, of architectures that have the decision.
    """

    place: int
    share: float
    low: float
    high: float
    chance: float
    num: int

    @property
    def tellable(self) -> bool:
        """Whether there are evaluations enough to say anything."""
        return self.chance <= TELLABLE


def effects(decisions: Decisions, lines: Lines, by_round: bool, seed: int = 0) -> list[Effect]:
    """The share of the reward's variance that each decision explains on its own, its main effect.

    Epsilon squared of a one-way analysis of variance (Kelley 1935), which is adjusted R squared: the correlation ratio
    of Pearson, freed from what K groups explain by chance. It is the least biased of the usual ones (Okada 2013).
    Intervals are the 2.5% and 97.5% quantiles of the Poisson bootstrap over evaluations, moved by its bias. With 5
    decisions of 4 choices and true shares of 0.4, 0.2, 0.05, 0 and 0, they held the truth in 92% to 96% of 300 draws of
    60 or 300 evaluations where it was at least 0.2, and in more where it was less.

    Where decisions were drawn independently, as by random search, shares of different decisions add up to at most 1;
    what is missing is their interplay and noise. Drawn by a policy, decisions go together, and one may get the credit
    of another.

    Args:
        decisions: Those of `space.json`.
        lines: Of `history.jsonl`, with `open`, the places of the decisions that could be made, where not all could.
        by_round: Take what is common to a round off first: shared weights learn, and every round has its own data.
        seed: Of the resamples.
    """
    kept = [line for line in lines if line["reward"] is not None]
    if not kept:
        return []
    tokens = np.array([line["genotype"]["tokens"] for line in kept], np.int64)
    rewards = np.array([line["reward"] for line in kept], np.float64)
    is_open = np.ones(tokens.shape, bool)
    for row, line in enumerate(kept):
        if "open" in line:
            is_open[row] = np.isin(np.arange(len(decisions)), line["open"])
    _, rounds = np.unique([line["round"] if by_round else 0 for line in kept], return_inverse=True)
    weights = np.random.default_rng(seed).poisson(1.0, (RESAMPLES, len(kept))).astype(np.float64)
    found = []
    for place in range(len(decisions)):
        mine = is_open[:, place]
        effect = _effect(place, tokens[mine, place], rewards[mine], rounds[mine], weights[:, mine])
        if effect is not None:
            found.append(effect)
    return found


def _effect(
    place: int, tokens: NDArray[np.int64], rewards: Array, rounds: NDArray[np.int64], weights: Array
) -> Effect | None:
    """Of one decision; None where all made the same choice, or no two evaluations can be compared."""
    levels = np.unique(tokens)
    between = len(levels) - 1
    total = len(tokens) - len(np.unique(rounds))
    within = total - between
    if between < 1 or within < 1:
        return None
    columns = np.column_stack([*(tokens == level for level in levels[1:]), rewards]).astype(np.float64)  # (N, K)
    columns = _centered(columns, rounds)
    if np.ptp(columns[:, -1]) < 1e-12:  # all rewards are equal
        return None
    products = (columns[:, :, None] * columns[:, None, :]).reshape(len(columns), -1)  # (N, K K)
    size = columns.shape[1]
    share = _epsilon_squared(products.sum(axis=0).reshape(1, size, size), total, between)[0]
    drawn = np.maximum(weights.sum(axis=1), 1.0)
    means = weights @ columns / drawn[:, None]
    moments = (weights @ products).reshape(-1, size, size) - drawn[:, None, None] * means[:, :, None] * means[:, None]
    resampled = _epsilon_squared(moments, total, between)
    low, high = np.quantile(resampled, (0.025, 0.975)) - (resampled.mean() - share)
    chance = 1 - (1 - betaincinv(between / 2, within / 2, 0.95)) * total / within
    return Effect(place, float(share), float(low), float(high), float(chance), len(tokens))


def _centered(columns: Array, groups: NDArray[np.int64]) -> Array:
    """Columns (N, K) without the mean of each group."""
    sums = np.zeros((groups.max() + 1, columns.shape[1]))
    np.add.at(sums, groups, columns)
    counts = np.maximum(np.bincount(groups, minlength=len(sums)), 1)
    return columns - (sums / counts[:, None])[groups]


def _epsilon_squared(moments: Array, total: int, between: int) -> Array:
    """From products (W, K, K) of centered columns, the last of which is the reward."""
    groups, both, spread = moments[:, :-1, :-1], moments[:, :-1, -1], moments[:, -1, -1]
    explained = np.einsum("wi,wij,wj->w", both, np.linalg.pinv(groups, hermitian=True), both)
    unexplained = 1 - explained / np.maximum(spread, 1e-300)
    return 1 - unexplained * total / (total - between)


@dataclass(frozen=True)
class Preferences:
    """What a strategy preferred, over the rounds.

    Args:
        starts: The first round of each column, (R).
        shares: Of each decision the share of each choice, (R, K); NaN where the decision was not there.
        are_probabilities: The controller's own; else how often each choice was made.
    """

    starts: list[int]
    shares: list[Array]
    are_probabilities: bool

    def settled(self, place: int) -> tuple[int, float, int]:
        """A decision's favorite in the end, its share, and the round since which it has been the favorite."""
        shares = self.shares[place]
        known = np.flatnonzero(~np.isnan(shares[:, 0]))
        favorites = shares[known].argmax(axis=1)
        changed = np.flatnonzero(favorites != favorites[-1])
        first = known[0 if len(changed) == 0 else changed[-1] + 1]
        return int(favorites[-1]), float(shares[known[-1], favorites[-1]]), self.starts[first]


def preferences(decisions: Decisions, history: Lines, updates: Lines, columns: int = 40) -> Preferences | None:
    """From the controller's probabilities where it tells them, else from how often each choice was made.

    Args:
        decisions: Those of `space.json`.
        history: The evaluations of one strategy.
        updates: Its updates.
        columns: At most so many; more rounds share one.
    """
    told = [update for update in updates if update.get("probabilities")]
    lines = told or history
    if not lines:
        return None
    rounds = sorted({line["round"] for line in lines})
    groups = [group.tolist() for group in np.array_split(np.array(rounds), min(columns, len(rounds)))]
    column = {number: place for place, group in enumerate(groups) for number in group}
    totals = [np.zeros((len(groups), len(decision["labels"]))) for decision in decisions]
    for line in lines:
        row = column[line["round"]]
        if told:
            for total, shares in zip(totals, line["probabilities"], strict=True):
                if None not in shares:  # else the decision was not open
                    total[row] += shares[: total.shape[1]]
        else:
            for place in line.get("open", range(len(decisions))):
                totals[place][row, line["genotype"]["tokens"][place]] += 1
    with np.errstate(invalid="ignore"):
        shares = [total / total.sum(axis=1, keepdims=True) for total in totals]
    return Preferences([group[0] for group in groups], shares, bool(told))


@dataclass(frozen=True)
class Confusion:
    """Samples of one class that a network took for another.

    Args:
        right: Their class.
        given: The class they were taken for.
        places: Which samples, in their order.
        share: How much of the class they are.
    """

    right: int
    given: int
    places: list[int]
    share: float


def worst_confusions(right: NDArray[Any], given: NDArray[Any], pairs: int = 6, samples: int = 6) -> list[Confusion]:
    """The most frequent confusions, the larger share of its class first among equals.

    Args:
        right: The class of each sample, (N).
        given: The class it was taken for, (N).
        pairs: At most so many confusions.
        samples: At most so many samples of each; the first of them.
    """
    found: dict[tuple[int, int], list[int]] = {}
    for place in np.flatnonzero(right != given).tolist():
        found.setdefault((int(right[place]), int(given[place])), []).append(place)
    sizes = {pair: len(places) for pair, places in found.items()}
    shares = {pair: size / int((right == pair[0]).sum()) for pair, size in sizes.items()}
    worst = sorted(found, key=lambda pair: (-sizes[pair], -shares[pair], pair))[:pairs]
    return [Confusion(*pair, found[pair][:samples], shares[pair]) for pair in worst]


def accuracy_by_class(right: NDArray[Any], given: NDArray[Any], num_classes: int) -> list[tuple[int, int]]:
    """Right answers and samples of each class."""
    return [
        (int((given[right == number] == number).sum()), int((right == number).sum())) for number in range(num_classes)
    ]


def front_of(items: Iterable[Item], key: Callable[[Item], tuple[float, float]]) -> list[Item]:
    """The Pareto front, cheapest first: no other item has at least the quality at no more cost.

    Args:
        items: Anything; of items that are equal in both, the first stays.
        key: (quality, cost) of an item.
    """
    front: list[Item] = []
    best = -math.inf
    for item in sorted(items, key=lambda item: (key(item)[1], -key(item)[0])):
        if key(item)[0] > best:
            front.append(item)
            best = key(item)[0]
    return front


def hypervolume(points: Iterable[tuple[float, float]], worst_cost: float) -> float:
    """The share of the box [0, 1] x [0, worst_cost] that (quality, cost) points dominate: 1 is perfect and free."""
    area, reached = 0.0, 0.0
    for quality, cost in front_of([p for p in points if p[1] <= worst_cost], key=lambda point: point):
        area += (quality - reached) * (worst_cost - cost)
        reached = quality
    return area / worst_cost if worst_cost > 0 else 0.0
