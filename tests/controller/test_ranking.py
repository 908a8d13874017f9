"""How far shared weights rank as stand-alone training does: tau, its interval, and what may be said of them."""

from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap, kendalltau

from child.nasbench201 import NASBench201Space
from child.space import Genotype
from controller import ranking
from controller.ranking import FEWEST, Agreement, agreement, choose_to_rank


def lines_of(shared: list[float], alone: list[float], macs: list[int] | None = None) -> list[dict[str, Any]]:
    sizes = macs or list(range(len(shared)))
    return [
        {"shared": s, "standalone": a, "macs": m, "failure": None} for s, a, m in zip(shared, alone, sizes, strict=True)
    ]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=8))
def test_tau_is_that_of_scipy(points: list[tuple[int, int]]) -> None:
    """On few values, so that ties are common."""
    found = agreement(lines_of([x / 4 for x, _ in points], [y / 4 for _, y in points]), seed=0)
    assert found.num == len(points)
    assert found.num_ties == sum(a[1] == b[1] for a, b in combinations(points, 2))
    if len({x for x, _ in points}) > 1 and len({y for _, y in points}) > 1:
        assert found.tau == pytest.approx(kendalltau(*zip(*points, strict=True))[0])
    else:
        assert found.tau is found.low is found.high is None


def test_the_interval_is_that_of_all_resamples() -> None:
    shared, alone = [0.1, 0.2, 0.3, 0.4, 0.5], [0.2, 0.1, 0.4, 0.3, 0.5]
    found = agreement(lines_of(shared, alone), seed=0)
    draws = np.array([draw for draw in product(range(5), repeat=5) if len(set(draw)) > 1])
    taus = [kendalltau(np.array(shared)[draw], np.array(alone)[draw])[0] for draw in draws]  # 3,120 of them
    assert found.tau == pytest.approx(0.6)
    assert [found.low, found.high] == pytest.approx(np.quantile(taus, [0.025, 0.975]).tolist(), abs=0.07)


def test_the_interval_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=30)
    alone = shared + rng.normal(size=30)
    found = agreement(lines_of(shared.tolist(), alone.tolist()), seed=0)
    drawn = bootstrap(
        (shared, alone), lambda x, y: kendalltau(x, y)[0], n_resamples=2000, paired=True, vectorized=False,
        confidence_level=0.95, method="percentile", rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert [found.low, found.high] == pytest.approx(list(drawn), abs=0.015)


def test_the_same_seed_gives_the_same_interval() -> None:
    rng = np.random.default_rng(0)
    lines = lines_of(rng.random(8).tolist(), rng.random(8).tolist())
    assert agreement(lines, seed=1) == agreement(lines, seed=1) != agreement(lines, seed=2)


def test_many_are_resampled_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    lines = lines_of(rng.random(12).tolist(), rng.random(12).tolist())
    at_once, shapes = agreement(lines, seed=1), []
    monkeypatch.setattr(ranking, "AT_ONCE", 1000)
    tau = ranking.kendall_tau
    monkeypatch.setattr(ranking, "kendall_tau", lambda x, y: shapes.append(x.shape) or tau(x, y))
    assert agreement(lines, seed=1) == at_once
    assert sum(shape[0] for shape in shapes if len(shape) > 1) == 1000 and max(map(np.prod, shapes)) == 7 * 12


def test_size_is_a_predictor_of_its_own() -> None:
    alone = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    found = agreement(lines_of([0.3, 0.1, 0.2, 0.6, 0.4, 0.5], alone, [10, 20, 30, 40, 50, 60]), seed=0)
    assert found.tau_macs == 1.0 and found.tau is not None and found.tau < 1
    assert "Size alone orders these no worse" in found.sentence(10, "metric")
    reverse = agreement(lines_of(alone, alone, [6, 5, 4, 3, 2, 1]), seed=0)
    assert reverse.tau_macs == -1.0 and "Size alone" not in reverse.sentence(10, "metric")


def test_what_failed_is_left_out() -> None:
    lines = lines_of([0.1, 0.2, 0.3, 0.4, 0.5], [0.1, 0.2, 0.3, 0.4, 0.5])
    without = agreement(lines, seed=0)
    failed = {"shared": 0.9, "standalone": None, "macs": 5, "failure": "training was not finite"}
    found = agreement([failed, *lines, {**failed, "shared": None}], seed=0)
    assert (found.num, found.num_failed, found.taus) == (5, 2, without.taus)
    assert "2 more failed and are left out" in found.sentence(10, "metric")


def test_it_says_what_was_compared() -> None:
    found = agreement(lines_of([0.1, 0.2, 0.3, 0.4, 0.5], [0.1, 0.2, 0.3, 0.4, 0.5]), seed=0)
    assert "5 architectures trained on their own for 1 epoch is 1.00" in found.sentence(1, "metric")
    assert "5 architectures trained on their own for 2.5 epochs and judged by their loss is" in found.sentence(
        2.5, "loss"
    )


def judged(tau: float | None, low: float | None = None, high: float | None = None, num: int = 8) -> str:
    return Agreement(num, tau, low, high, None, 0, 0).sentence(10, "metric")


@pytest.mark.parametrize(
    ("sentence", "expected", "never"),
    [
        (judged(0.5, 0.1, 0.8), "puts the better first in about 75% of cases (55% to 90%)", "no agreement"),
        (judged(0.5, -0.1, 0.8), "cannot be told from no agreement", "better than chance"),
        (judged(0.5, 0.0, 0.8), "cannot be told from no agreement", "better than chance"),
        (judged(-0.6, -0.9, -0.2), "rank worse than chance: do not choose by them", "better"),
        (judged(1.0, 1.0, 1.0), "are ordered alike; how much weaker the relation may truly be", "better than chance"),
        (judged(-1.0, -1.0, -1.0), "are ordered the other way round", "better than chance"),
        (judged(0.9, num=4), "too few for an interval: nothing can be concluded", "better than chance"),
        (judged(None), "all of them, or all of their scores, are equal", "tau"),
        (judged(None, num=1), "too few", "tau"),
        (judged(None, num=0), "is not known from 0 architectures", "tau"),
    ],
    ids=lambda text: text[-40:],
)
def test_it_says_no_more_than_can_be_concluded(sentence: str, expected: str, never: str) -> None:
    assert expected in sentence and never not in sentence


def test_ties_are_told() -> None:
    found = agreement(lines_of([0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.5, 0.5, 0.6, 0.6]), seed=0)
    assert found.num_ties == 4 and "4 of 10 pairs tie and say nothing" in found.sentence(10, "metric")


def test_fewer_than_can_be_told_from_chance_have_no_interval() -> None:
    for num in range(2, FEWEST + 1):
        order = [number / 10 for number in range(num)]
        found = agreement(lines_of(order, order), seed=0)
        assert found.tau == 1.0 and (found.low is None) == (num < FEWEST)


def test_finalists_come_first_and_nothing_comes_twice(known: Any) -> None:
    space = known.tiny_macro()
    finalists = space.sample(np.random.default_rng(0), 9)
    chosen = choose_to_rank(space, [*finalists[:1] * 3, *finalists], 4, 5, seed=1)
    different = list(dict.fromkeys(finalists))
    assert list(chosen)[:4] == different[:4]
    assert list(chosen.values()) == ["finalist"] * 4 + ["random"] * 5
    assert chosen == choose_to_rank(space, finalists, 4, 5, seed=1)
    assert list(chosen) != list(choose_to_rank(space, finalists, 4, 5, seed=2))


def test_cells_that_are_one_network_are_ranked_once() -> None:
    """Both are one convolution, before or after the node that passes it on."""
    left, right = Genotype("nasbench201", (1, 3, 0, 0, 0, 1)), Genotype("nasbench201", (3, 0, 1, 0, 0, 1))
    space = NASBench201Space()
    assert list(choose_to_rank(space, [left, right], 2, 0, seed=0)) == [left]


def test_a_small_space_has_no_more_to_rank(known: Any) -> None:
    space = known.FlatSpace(1, 3)
    everything = known.every_genotype(space)
    chosen = choose_to_rank(space, everything[:1], 4, 4, seed=0)
    assert set(chosen) == set(everything) and list(chosen.values()) == ["finalist", "random", "random"]
    assert choose_to_rank(space, everything, 0, 0, seed=0) == {}
