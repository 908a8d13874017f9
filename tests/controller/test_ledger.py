"""Budgets: what is charged, what is free, and what is not made any more."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from child.space import OVER_BUDGET, Evaluation, Genotype, SearchSpace
from controller.ledger import Ledger
from controller.search import MAX_IDLE, Player
from controller.strategy import Rollout, Strategy, Update, WholeStrategy
from envs.reward import Linear

CONTROLLERS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "controller").glob("*.yaml"))


class Counting:
    """Another value at every evaluation, so that a repeat cannot pass for the stored value by chance."""

    def __init__(self) -> None:
        self.made: list[Genotype] = []

    def evaluate(self, genotypes: Sequence[Genotype], fidelity: float, seed: int) -> list[Evaluation]:
        found = []
        for genotype in genotypes:
            self.made.append(genotype)
            found.append(Evaluation(genotype, len(self.made) / 1000, 1.0, fidelity, seed))
        return found


def flat(*tokens: int) -> Genotype:
    return Genotype("flat", tokens)


def test_by_hand() -> None:
    evaluator: Any = Counting()
    ledger = Ledger(evaluator, 5.0, price=lambda genotype: 1.0 + genotype.tokens[0])
    first = ledger.evaluate([flat(0), flat(1), flat(0)], 1.0, 7)
    assert [e.charge for e in first] == [1.0, 2.0, 0.0] and ledger.spent == 3.0
    assert [e.quality for e in first] == [0.001, 0.002, 0.001]
    again = ledger.evaluate([flat(1)], 1.0, 8)[0]
    assert (again.quality, again.charge, again.seed) == (0.002, 0.0, 7)  # the stored one
    assert not ledger.closed
    # The third costs 3 and does not fit; afterwards nothing new is made, though it would fit.
    refused = ledger.evaluate([flat(2), flat(0, 1), flat(0)], 1.0, 9)
    assert [e.failure for e in refused] == [OVER_BUDGET, OVER_BUDGET, None]
    assert ledger.closed and ledger.spent == 3.0 and evaluator.made == [flat(0), flat(1)]


def test_the_budget_may_be_met_exactly() -> None:
    evaluator: Any = Counting()
    ledger = Ledger(evaluator, 2.0)
    assert [e.failure for e in ledger.evaluate([flat(0), flat(1), flat(2)], 1.0, 0)] == [None, None, OVER_BUDGET]
    ledger = Ledger(evaluator, 0.3, lambda genotype: 0.1)  # whose sums are rounded
    found = ledger.evaluate([flat(0), flat(1), flat(2), flat(0, 1)], 1.0, 0)
    assert [e.failure for e in found] == [None, None, None, OVER_BUDGET]


def test_equal_keys_are_one() -> None:
    evaluator: Any = Counting()
    ledger = Ledger(evaluator, 9.0, key=lambda genotype: sum(genotype.tokens))
    found = ledger.evaluate([flat(1, 2), flat(2, 1), flat(3, 0), flat(0, 0)], 1.0, 0)
    assert [e.genotype for e in found] == [flat(1, 2), flat(2, 1), flat(3, 0), flat(0, 0)]
    assert [e.quality for e in found] == [0.001, 0.001, 0.001, 0.002] and ledger.spent == 2.0


def test_the_account_is_restored() -> None:
    first: Any = Counting()
    ledger = Ledger(first, 2.0)
    ledger.evaluate([flat(0), flat(1), flat(2)], 1.0, 3)
    second: Any = Counting()
    restored = Ledger(second, 2.0)
    restored.load_state_dict(ledger.state_dict())
    assert restored.closed and restored.spent == 2.0 and restored.known == ledger.known
    assert restored.evaluate([flat(1)], 1.0, 4) == ledger.evaluate([flat(1)], 1.0, 4)
    assert not second.made


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan])
def test_a_budget_is_above_0(wrong: float) -> None:
    evaluator: Any = Counting()
    with pytest.raises(ValueError, match=r"search\.budget must be above 0"):
        Ledger(evaluator, wrong)


def player_of(strategy: Strategy, budget: float, num: int) -> Player:
    evaluator: Any = Counting()
    ledger = Ledger(evaluator, budget)
    envs = gymnasium.make_vec(
        "luban/Architecture-v0", num, vectorization_mode="vector_entry_point",
        space=strategy.space, evaluator=ledger, reward=Linear(target=1.0),
    )  # fmt: skip
    return Player(strategy, envs, ledger)


@pytest.mark.parametrize("controller", CONTROLLERS)
@pytest.mark.parametrize("num", [1, 3])
def test_every_strategy_pays_alike(controller: str, num: int, known: Any) -> None:
    """As many different architectures as the budget allows, and not one more, whatever the strategy."""
    space: SearchSpace = known.FlatSpace(4, 4)
    strategy = known.build_controller(controller, space, num_updates=50)
    player, seen, round_number = player_of(strategy, 25.0, num), [], 0
    while not player.finished:
        rollout, _ = player.play(round_number, 0)
        assert all(evaluation.failure is None for evaluation in rollout.evaluations)
        seen += [evaluation.genotype for evaluation in rollout.evaluations]
        round_number += 1
    assert player.ledger is not None
    assert player.ledger.spent == len(player.ledger.known) == len(set(seen)) <= 25
    if player.idle < MAX_IDLE:
        assert len(set(seen)) == 25


def test_a_strategy_that_has_settled_ends(known: Any) -> None:
    class Stubborn(WholeStrategy):
        name = "stubborn"

        def propose(self, num: int, round_number: int) -> list[Genotype]:
            return [flat(0, 0)] * num

        def learn(self, rollout: Rollout) -> Update:
            assert np.isfinite(rollout.rewards).all() and len(rollout.rewards) == 2
            return Update()

    def begin() -> Player:
        return player_of(Stubborn(known.FlatSpace(2, 2), 0), 9.0, 2)

    player, rounds = begin(), 0
    while not player.finished:
        if rounds == MAX_IDLE // 2:  # a run that was stopped goes on counting
            state, player = player.state_dict(), begin()
            player.load_state_dict(state)
        player.play(rounds, 0)
        rounds += 1
    assert rounds == MAX_IDLE + 1
