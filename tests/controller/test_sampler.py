"""What the shared weights are trained on."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from child.mlp import MLPSpace
from child.mobile import MobileSpace
from child.recurrent import RecurrentSpace
from child.space import Genotype, NetworkSpace, SearchSpace
from controller.sampler import TrainingSampler, fair_group
from controller.strategy import RandomSearch, Rollout, Strategy, Update


class Stubborn(Strategy):
    """Proposes one architecture only, so that its share can be counted."""

    name = "stubborn"

    def __init__(self, space: SearchSpace, favourite: Genotype):
        super().__init__(space, 0)
        self.favourite = favourite

    def begin(self, num: int, round_number: int) -> None:
        raise AssertionError("training shared weights plays no episode")

    def act(self, observation: Any) -> Any:
        raise AssertionError

    def learn(self, rollout: Rollout) -> Update:
        raise AssertionError

    def sample(self, num: int, step: int) -> list[Genotype]:
        return [self.favourite] * num


def sized() -> MobileSpace:
    return MobileSpace((3, 8, 8), 3, channels=4, num_stages=2, max_depth=2, num_reductions=2, widths=(1, 2))


def test_a_fair_group_trains_every_choice_equally_often(known: Any) -> None:
    space = known.FlatSpace(7, 4)
    for seed in range(20):
        group = fair_group(space, np.random.default_rng(seed))
        assert len(group) == 4
        for column in np.array([genotype.tokens for genotype in group]).T:
            assert sorted(column.tolist()) == [0, 1, 2, 3]


def test_a_fair_group_is_legal_and_covers_narrow_decisions(known: Any) -> None:
    space = known.tiny_macro(4, 2)
    for seed in range(20):
        group = fair_group(space, np.random.default_rng(seed))
        assert len(group) == 6
        assert [space.check(genotype) for genotype in group] == group
        tokens = np.array([genotype.tokens for genotype in group])
        assert sorted(tokens[:, 1].tolist()) == [0, 1, 2, 3, 4, 5]  # operations of the first layer
        assert sorted(tokens[:, 3].tolist()) == [0, 0, 0, 1, 1, 1]  # a connection that is always open


def test_fair_draws_train_the_last_layers_about_as_often_as_the_first(known: Any) -> None:
    space = known.tiny_macro(4, 2)  # 2, 3 or 4 layers
    drawn = TrainingSampler("fair", RandomSearch(space, 0), seed=5)(1800, 0)
    depths = np.bincount([len(space.layers(genotype)) for genotype in drawn])
    np.testing.assert_allclose(depths[2:] / 1800, [1 / 18, 1 / 18, 16 / 18], atol=0.02)
    for group in range(0, 1800, 6):
        assert sum(len(space.layers(genotype)) == 4 for genotype in drawn[group : group + 6]) >= 5


def test_fair_draws_are_fair_in_the_long_run(known: Any) -> None:
    space = known.FlatSpace(3, 4)
    drawn = TrainingSampler("fair", RandomSearch(space, 0), seed=5)(400, 0)
    for column in np.array([genotype.tokens for genotype in drawn]).T:
        assert np.bincount(column).tolist() == [100] * 4
    assert len(set(drawn)) > 40  # the permutations differ from group to group


def test_narrow_decisions_favor_no_choice() -> None:
    space = RecurrentSpace((8,), 5, num_nodes=4, width=4, context=2)  # inputs of 2 and 3 beside activations of 4
    drawn = np.array([g.tokens for g in TrainingSampler("fair", RandomSearch(space, 0), seed=5)(3200, 0)])
    for decision, column in zip(space.decisions, drawn.T, strict=True):
        np.testing.assert_allclose(np.bincount(column) / 3200, 1 / decision.num_choices, atol=0.02)


def test_uniform_draws_are_uniform(known: Any) -> None:
    space = known.FlatSpace(3, 4)
    drawn = TrainingSampler("uniform", RandomSearch(space, 0), seed=5)(4000, 0)
    for column in np.array([genotype.tokens for genotype in drawn]).T:
        np.testing.assert_allclose(np.bincount(column) / 4000, 0.25, atol=0.03)


@pytest.mark.parametrize("base", ["uniform", "fair", "sandwich"])
@pytest.mark.parametrize("parts", [(5, 5), (1, 9), (7, 2, 1), (3, 3, 4), (1,) * 10])
def test_chunks_do_not_matter(known: Any, base: Any, parts: tuple[int, ...]) -> None:
    space = sized() if base == "sandwich" else known.CellSpace()
    sampler = TrainingSampler(base, RandomSearch(space, 0), seed=1)
    for start in (0, 4):
        whole, pieces, step = sampler(10, start), [], start
        for part in parts:
            pieces += sampler(part, step)
            step += part
        assert pieces == whole


@pytest.mark.parametrize("base", ["uniform", "fair"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_policy_has_its_share(known: Any, base: Any, share: float) -> None:
    space = known.FlatSpace(8, 5)
    favourite = Genotype("flat", (4, 3, 2, 1, 0, 1, 2, 3))
    sampler = TrainingSampler(base, Stubborn(space, favourite), seed=0)
    sampler.policy_share = share
    drawn = [genotype for step in range(0, 2000, 10) for genotype in sampler(10, step)]
    assert len(drawn) == 2000
    found = sum(genotype == favourite for genotype in drawn) / 2000
    assert found == pytest.approx(share, abs=0 if share in (0, 1) else 0.04)


def test_without_a_policy_the_base_draws_all(known: Any) -> None:
    space = known.FlatSpace(8, 5)
    sampler = TrainingSampler("fair", RandomSearch(space, 0), seed=0)
    alone = sampler(40, 3)
    sampler.policy_share = 1.0
    assert sampler(40, 3) == alone


def test_draws_follow_from_the_seed(known: Any) -> None:
    space = known.FlatSpace(8, 5)
    for base in ("uniform", "fair"):
        first, again, other = (TrainingSampler(base, RandomSearch(space, 0), seed)(20, 3) for seed in (1, 1, 2))
        assert first == again != other


def largest_of(space: NetworkSpace, drawn: list[Genotype]) -> list[Genotype]:
    """Of every four that belong together."""
    return [max(drawn[start : start + 4], key=space.macs) for start in range(0, len(drawn), 4)]


def test_a_sandwich_has_both_ends_and_two_between() -> None:
    space = sized()
    drawn = TrainingSampler("sandwich", RandomSearch(space, 0), seed=3)(8, 0)
    costs = [space.macs(genotype) for genotype in drawn]
    some = [space.macs(genotype) for genotype in space.sample(np.random.default_rng(0), 300)]
    for start in (0, 4):
        assert {max(*costs, *some), min(*costs, *some)} < set(costs[start : start + 4])
    assert len(set(drawn)) == 6  # the ends are the same each time, what lies between is not
    assert drawn == [TrainingSampler("sandwich", RandomSearch(space, 0), seed=3)(1, step)[0] for step in range(8)]


def test_copies_that_learn_in_turn_each_have_their_sandwich() -> None:
    space = sized()
    drawn = TrainingSampler("sandwich", RandomSearch(space, 0), seed=3)(4000, 0)
    (largest, num), (smallest, fewer) = Counter(drawn).most_common(2)
    assert min(num, fewer) >= 1000
    for place in range(4):
        counts = Counter(drawn[place::4])
        assert counts[largest] == pytest.approx(250, abs=50) and counts[smallest] == pytest.approx(250, abs=50)


def test_a_sandwich_draws_what_has_no_size(known: Any) -> None:
    space = MLPSpace((7,), 3, num_layers=3, min_layers=3, widths=(4, 6, 8))
    drawn = TrainingSampler("sandwich", RandomSearch(space, 0), seed=3)(400, 0)
    largest = largest_of(space, drawn)
    for genotype in largest:
        assert [d.labels[t] for d, t in zip(space.decisions, genotype.tokens, strict=True) if d.kind == "width"] == [
            "8"
        ] * 3
    activations = {genotype.tokens[space.decisions.index(next(d for d in space.decisions if d.kind == "operation"))]
                   for genotype in largest}  # fmt: skip
    assert len(activations) == len(space.activations)
    deeper = MLPSpace((7,), 3, num_layers=3, min_layers=1, widths=(4, 6, 8))  # whose last layer is seldom there
    largest = largest_of(deeper, TrainingSampler("sandwich", RandomSearch(deeper, 0), seed=3)(2000, 0))
    place = max(place for place, d in enumerate(deeper.decisions) if d.kind == "operation")
    counts = np.bincount([genotype.tokens[place] for genotype in largest], minlength=len(deeper.activations))
    np.testing.assert_allclose(counts / 500, 1 / len(deeper.activations), atol=0.08)
    with pytest.raises(
        ValueError, match=r"search.sampler=sandwich is for spaces with sizes, such as mobile, and 'flat'"
    ):
        TrainingSampler("sandwich", RandomSearch(known.FlatSpace(3, 4), 0), seed=3)
