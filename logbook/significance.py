"""What several runs say together: means with intervals, and whether two groups differ by more than their noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev, variance

from scipy.special import stdtr, stdtrit

ALPHA = 0.05
"""A difference that chance would make so large less often than this is beyond noise."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval (Student 1908); no interval from a single value, or from values without spread.

    Args:
        mean: Of all values.
        num: How many.
        low: The lower end.
        high: The upper end.
        p: How often a true mean of 0 would give one as far from it; None where there is no interval.
        paired: Of a difference, whether it was taken seed by seed.
    """

    mean: float
    num: int
    low: float | None = None
    high: float | None = None
    p: float | None = None
    paired: bool = False


def estimate(values: Sequence[float], paired: bool = False) -> Estimate:
    """The mean of independent values, one per run."""
    if len(values) < 2:
        return Estimate(fmean(values), len(values), paired=paired)
    return _judged(fmean(values), len(values), stdev(values) / sqrt(len(values)), len(values) - 1, paired)


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate:
    """The mean of the first group minus that of the second, given by seed.

    Paired by seed where every seed of the smaller group, of two at least, is in the other too: runs of one seed share
    their data splits, which cancel out. Else Welch's.
    """
    common = [seed for seed in first if seed in second]
    if len(common) == min(len(first), len(second)) >= 2:
        return estimate([first[seed] - second[seed] for seed in common], paired=True)
    return welch(list(first.values()), list(second.values()))


def welch(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """The mean of independent values minus that of others (Welch 1947); no two spreads are taken as equal."""
    mean, num = fmean(first) - fmean(second), min(len(first), len(second))
    if num < 2:
        return Estimate(mean, num)
    parts = [variance(group) / len(group) for group in (first, second)]
    if not sum(parts) > 0:
        return Estimate(mean, num)
    freedom = sum(parts) ** 2 / sum(p * p / (len(g) - 1) for p, g in zip(parts, (first, second), strict=True))
    return _judged(mean, num, sqrt(sum(parts)), freedom, paired=False)


def _judged(mean: float, num: int, error: float, freedom: float, paired: bool) -> Estimate:
    if error <= 1e-12 * max(1.0, abs(mean)):  # what is left of equal values is rounding
        return Estimate(mean, num, paired=paired)
    half = float(stdtrit(freedom, 0.975)) * error
    return Estimate(mean, num, mean - half, mean + half, float(2 * stdtr(freedom, -abs(mean) / error)), paired)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """The p-values made honest for being several (Holm 1979); those that are None count for nothing."""
    known = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    found: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        found[place] = largest
    return found
