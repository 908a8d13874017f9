"""Intervals and tests are those of the textbooks."""

import pytest
from scipy import stats

from logbook.significance import difference, estimate, holm

FIRST, SECOND = [0.981, 0.984, 0.990], [0.980, 0.981, 0.985]


def test_a_mean_has_students_interval() -> None:
    found = estimate(FIRST)
    low, high = stats.t.interval(0.95, 2, loc=found.mean, scale=stats.sem(FIRST))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert estimate([0.5]).low is None and estimate([0.5, 0.5]).p is None


def test_equal_seeds_are_paired_and_others_are_not() -> None:
    paired = difference(dict(enumerate(FIRST)), dict(enumerate(SECOND)))
    assert paired.paired and paired.p == pytest.approx(stats.ttest_rel(FIRST, SECOND)[1])
    welch = difference(dict(enumerate(FIRST)), dict(enumerate(SECOND, start=1)))  # two of three in common
    expected = stats.ttest_ind(FIRST, SECOND, equal_var=False)
    assert not welch.paired and welch.p == pytest.approx(expected[1])
    assert (welch.low, welch.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_several_tests_are_corrected() -> None:
    # Holm: 3 * 0.01, then 2 * 0.03, and never below the one before; what was not tested counts for nothing.
    assert holm([0.04, None, 0.01, 0.03]) == pytest.approx([0.06, None, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_groups_of_unlike_sizes_are_paired_by_the_seeds_of_the_smaller() -> None:
    found = difference({0: 0.9, 1: 0.8, 2: 0.7}, {0: 0.85, 1: 0.77})
    assert found.paired and found.num == 2 and found.mean == pytest.approx(0.04)
