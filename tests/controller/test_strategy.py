"""Strategies that think in whole architectures replay them token by token."""

import math
from typing import Any

import numpy as np
import pytest

from child.space import Genotype, SearchSpace
from controller.strategy import RandomSearch, Rollout, Update, WholeStrategy, check_strategy, check_update


def test_whole_architectures_are_replayed(known: Any) -> None:
    space = known.CellSpace()
    wanted = space.sample(np.random.default_rng(3), 4)

    class Replay(WholeStrategy):
        name = "replay"

        def propose(self, num: int, round_number: int) -> list[Genotype]:
            return wanted[:num]

        def learn(self, rollout: Rollout) -> Update:
            return Update()

    strategy = Replay(space, 0)
    strategy.begin(4, 0)
    played = [strategy.act({"step": np.full(4, step)}) for step in range(len(space.decisions))]
    assert np.stack(played, axis=1).tolist() == [list(genotype.tokens) for genotype in wanted]


def test_random_search_is_uniform_over_legal_choices(known: Any) -> None:
    space: SearchSpace = known.CellSpace()
    tokens = np.array([g.tokens for g in RandomSearch(space, 0).propose(6000, 0)])
    masks = space.masks(tokens)
    for step in range(len(space.decisions)):
        opened = masks[:, step].sum(axis=1) > 1
        counts = np.bincount(tokens[opened, step], minlength=space.decisions[step].num_choices)
        np.testing.assert_allclose(counts / opened.sum(), 1 / len(counts), atol=0.04)


def test_draws_follow_from_seed_and_round(known: Any) -> None:
    space = known.FlatSpace(6, 5)
    first = RandomSearch(space, 1)
    assert first.propose(8, 2) == RandomSearch(space, 1).propose(8, 2)
    assert first.propose(8, 2) != first.propose(8, 3)
    assert first.propose(8, 2) != RandomSearch(space, 2).propose(8, 2)


def test_random_search_keeps_nothing(known: Any) -> None:
    strategy = RandomSearch(known.FlatSpace(2, 2), 0)
    assert strategy.state_dict() == {}
    with pytest.raises(AssertionError, match="random keeps no state"):
        strategy.load_state_dict({"something": 1})


def test_a_strategy_of_ones_own_has_a_name_of_its_own(known: Any) -> None:
    space = known.FlatSpace(2, 2)
    random = RandomSearch(space, 0)
    assert check_strategy(random) is random

    class Mine(WholeStrategy):
        def propose(self, num: int, round_number: int) -> list[Genotype]:
            return self.space.sample(np.random.default_rng(round_number), num)

    with pytest.raises(ValueError, match="controller: Mine has no name"):
        check_strategy(Mine(space, 0))
    Mine.name = "random"
    with pytest.raises(ValueError, match="Mine is called 'random', as the search that plays beside it"):
        check_strategy(Mine(space, 0))
    Mine.name = "mine"
    assert isinstance(check_strategy(Mine(space, 0)), Mine)
    with pytest.raises(ValueError, match=r"expected a Strategy of controller\.strategy, got a dict"):
        check_strategy({})

    class Forgetful(Mine):
        def __init__(self, space: SearchSpace, seed: int):
            self.temperature = 1.0

    with pytest.raises(ValueError, match=r"Forgetful has no space; call super\(\).__init__\(space, seed\)"):
        check_strategy(Forgetful(space, 0))

    class Keeps(Mine):
        def state_dict(self) -> dict[str, Any]:
            return {"best": 1}

    with pytest.raises(ValueError, match="Keeps has a state_dict, but no load_state_dict"):
        check_strategy(Keeps(space, 0))


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        (None, "gave None; an Update is needed"),
        (Update(probabilities=[[0.5, 0.5]]), "told probabilities .*; expected a list for each of 2 decisions"),
        (Update(probabilities=[[0.5, 0.5], [1.0]]), "told probabilities"),
        (Update(probabilities=np.full((2, 2), 0.5)), "told probabilities"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_what_learning_tells_is_looked_at(known: Any, told: Any, wrong: str) -> None:
    random = RandomSearch(known.FlatSpace(2, 2), 0)
    check_update(Update(probabilities=[[0.5, 0.5], [math.nan, math.nan]]), random)
    with pytest.raises(ValueError, match=f"controller: learn of RandomSearch {wrong}"):
        check_update(told, random)


@pytest.mark.parametrize(
    ("proposed", "told"),
    [
        ([], "gave 0 of 2 architectures"),
        ([Genotype("flat", (0, 1))] * 3, "gave 3 of 2 architectures"),
        ([Genotype("flat", (0, 1)), (0, 1)], r"gave \(0, 1\); expected a Genotype of space flat with 2 tokens"),
        ([Genotype("flat", (0, 1, 0))] * 2, r"gave Genotype\(.*; expected a Genotype of space flat"),
        ([Genotype("other", (0, 1))] * 2, r"gave Genotype\(.*other.*; expected a Genotype of space flat"),
        (
            [Genotype("flat", tuple(np.array([0, 0.7]).tolist()))] * 2,
            r"gave tokens such as \[0\.0, 0\.7\]; expected whole",
        ),
        (None, "gave None and not 2 of 2 architectures"),
    ],
)
def test_what_is_no_architecture_is_not_played(known: Any, proposed: list[Any], told: str) -> None:
    class Careless(WholeStrategy):
        name = "careless"

        def propose(self, num: int, round_number: int) -> list[Genotype]:
            return proposed

    with pytest.raises(ValueError, match=f"controller: propose of Careless {told}"):
        Careless(known.FlatSpace(2, 2), 0).begin(2, 0)
