"""What is computed from a run's files has answers known from how the files were made."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logbook.analysis import accuracy_by_class, effects, front_of, hypervolume, preferences, worst_confusions
from logbook.sections.answers import wilson

Pair = tuple[float, float]

# Few values, so that ties are common.
points = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)).map(lambda p: (p[0] / 6, float(p[1]))), max_size=12)

SHARES = np.array([0.4, 0.2, 0.05, 0.0])
DECISIONS = [{"name": f"d{number}", "labels": list("abcd")} for number in range(4)]


def draw(num: int, drift: float = 0.0) -> list[dict]:
    """Evaluations whose reward is a sum of main effects of these shares, noise, and what rounds have in common."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4, (num, 4))
    levels = np.array([-1.5, -0.5, 0.5, 1.5]) / np.sqrt(1.25)  # of variance 1
    rewards = levels[tokens] @ np.sqrt(SHARES) + rng.normal(0, np.sqrt(1 - SHARES.sum()), num)
    rounds = np.arange(num) // 16
    rewards = rewards + drift * rounds
    return [
        {"reward": reward, "round": number, "genotype": {"tokens": row}}
        for reward, number, row in zip(rewards.tolist(), rounds.tolist(), tokens.tolist(), strict=True)
    ]


@pytest.mark.parametrize(("drift", "by_round"), [(0.0, False), (5.0, True)])
def test_known_shares_of_the_variance_are_found(drift: float, by_round: bool) -> None:
    found = effects(DECISIONS, draw(4000, drift), by_round)
    assert [effect.share for effect in found] == pytest.approx(SHARES, abs=0.025)
    assert all(effect.low <= share <= effect.high for effect, share in zip(found, SHARES, strict=True))
    assert [effect.share > effect.chance for effect in found[:3]] == [True] * 3
    assert all(effect.tellable for effect in found)


def test_too_few_evaluations_are_called_that() -> None:
    assert not any(effect.tellable for effect in effects(DECISIONS, draw(12), False))
    assert effects(DECISIONS, [], False) == []


def test_decisions_that_were_closed_do_not_count() -> None:
    lines = draw(400)
    for line in lines[:200]:
        line["open"] = [0]
        line["genotype"]["tokens"][1:] = [0, 0, 0]
    found = {effect.place: effect for effect in effects(DECISIONS, lines, False)}
    assert found[0].num == 400 and found[1].num == 200
    assert found[1].share == pytest.approx(effects(DECISIONS, lines[200:], False)[1].share)


def test_preferences_follow_the_probabilities_and_tell_since_when() -> None:
    decisions = [{"name": "op", "labels": ["x", "y"]}]
    updates = [{"round": number, "probabilities": [[1 - share, share]]} for number, share in enumerate((0.4, 0.6, 0.9))]
    found = preferences(decisions, [], updates)
    assert found is not None and found.are_probabilities
    assert found.settled(0) == (1, 0.9, 1)
    updates[2]["probabilities"] = [[None, None]]  # it was open in no architecture of the last round
    found = preferences(decisions, [], updates)
    assert found is not None and found.settled(0) == (1, 0.6, 1)
    np.testing.assert_allclose(found.shares[0], [[0.6, 0.4], [0.4, 0.6], [math.nan, math.nan]])
    together = preferences(decisions, [], updates, columns=1)
    assert together is not None and together.shares[0].tolist() == [[0.5, 0.5]]
    history = [{"round": n, "genotype": {"tokens": [t]}} for n, t in ((0, 0), (0, 1), (1, 1))]
    counted = preferences(decisions, history, [])
    assert counted is not None and counted.shares[0].tolist() == [[0.5, 0.5], [0.0, 1.0]]


def test_confusions_are_those_of_the_predictions() -> None:
    right = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    given = np.array([0, 1, 1, 2, 1, 0, 2, 2])
    found = worst_confusions(right, given, samples=1)
    assert [(each.right, each.given, each.places, each.share) for each in found] == [
        (0, 1, [1], 0.5), (1, 0, [5], 0.5), (0, 2, [3], 0.25)
    ]  # fmt: skip
    assert accuracy_by_class(right, given, 4) == [(1, 4), (1, 2), (2, 2), (0, 0)]
    assert worst_confusions(right, right) == []


def test_a_share_has_wilsons_interval() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-3)
    assert wilson(0, 5)[0] == 0 and wilson(5, 5)[1] == 1


def itself(pair: Pair) -> Pair:
    return pair


def dominates(a: Pair, b: Pair) -> bool:
    return a[0] >= b[0] and a[1] <= b[1] and a != b


def test_front_by_hand() -> None:
    pairs = [(0.9, 10.0), (0.5, 2.0), (0.8, 10.0), (0.5, 3.0), (0.7, 5.0), (0.6, 6.0), (0.9, 10.0)]
    assert front_of(pairs, key=itself) == [(0.5, 2.0), (0.7, 5.0), (0.9, 10.0)]
    assert front_of([], key=itself) == []


def test_of_equals_the_first_stays() -> None:
    items = [("second best", 0.5, 4.0), ("first", 0.9, 5.0), ("its double", 0.9, 5.0)]
    assert [name for name, *_ in front_of(items, key=lambda item: (item[1], item[2]))] == ["second best", "first"]


@given(points)
def test_a_front_is_what_nothing_dominates(pairs: list[Pair]) -> None:
    front = front_of(pairs, key=itself)
    assert len(set(front)) == len(front)
    assert [cost for _, cost in front] == sorted(cost for _, cost in front)
    for member in front:
        assert not any(dominates(other, member) for other in pairs)
    for pair in pairs:
        assert pair in front or any(dominates(member, pair) for member in front)


def test_hypervolume_by_hand() -> None:
    assert hypervolume([(1.0, 0.0)], 10.0) == 1  # perfect and free
    assert hypervolume([(0.5, 2.0), (0.8, 6.0)], 10.0) == pytest.approx((0.5 * 8 + 0.3 * 4) / 10)
    assert hypervolume([(0.5, 2.0), (0.4, 3.0)], 10.0) == pytest.approx(0.4)  # the dominated one adds nothing
    assert hypervolume([(0.9, 11.0)], 10.0) == 0  # beyond the box
    assert hypervolume([], 10.0) == hypervolume([(0.9, 0.0)], 0.0) == 0


@given(points, st.tuples(st.floats(0, 1), st.floats(0.5, 8)))
def test_hypervolume_counts_the_dominated_area(pairs: list[Pair], extra: Pair) -> None:
    volume = hypervolume(pairs, 6.0)
    # On a grid of unit costs and sixths of quality the dominated cells can be counted.
    cells = sum(
        any(quality >= (row + 1) / 6 - 1e-9 and cost <= column for quality, cost in pairs)
        for row in range(6) for column in range(6)
    )  # fmt: skip
    assert volume == pytest.approx(cells / 36)
    assert hypervolume([*pairs, extra], 6.0) >= volume - 1e-12
