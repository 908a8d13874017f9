"""From a history to the few architectures worth training."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest

import envs  # noqa: F401 (registers the environments)
from child.space import Evaluation, Genotype, SearchSpace
from controller.derive import (
    Candidate,
    by_promise,
    choose,
    choose_student,
    derive,
    shortlist,
    within_target,
)


def line(token: int, reward: float, quality: float, cost: float | None, **other: Any) -> dict[str, Any]:
    genotype = {"space": "flat", "tokens": [token]}
    return {
        "strategy": "mine", "genotype": genotype, "reward": reward, "quality": quality, "cost": cost, "failure": None,
        "round": token,
    } | other  # fmt: skip


def tokens_of(genotypes: list[Genotype]) -> list[int]:
    return [genotype.tokens[0] for genotype in genotypes]


def test_the_shortlist_is_half_by_reward_and_half_by_front() -> None:
    history = [
        line(0, 0.9, 0.9, 9.0),
        line(1, 0.8, 0.8, 8.0),
        line(2, 0.7, 0.7, 7.0),  # not among the best two by reward, but on the front of the rest
        line(3, 0.1, 0.3, 1.0),  # cheap: on the front too
        line(4, 0.6, 0.2, 8.5),  # dominated
        line(5, 0.99, 0.1, 99.0, failure="out of memory"),
        line(6, 0.99, 0.99, 1.0, strategy="random"),
    ]
    assert tokens_of(shortlist(history, "mine", 4, drifts=True)) == [0, 1, 3, 2]
    assert tokens_of(shortlist(history, "mine", 1, drifts=True)) == [0]
    assert tokens_of(shortlist(history, "mine", 99, drifts=True)) == [0, 1, 2, 4, 3]  # all, once each; three by reward
    assert shortlist(history, "nobody", 5, drifts=True) == []


def test_one_lucky_evaluation_does_not_count_more_than_the_mean() -> None:
    history = [line(0, 1.0, 1.0, 1.0), line(1, 0.7, 0.7, 1.0), line(0, 0.2, 0.2, 1.0)]
    assert tokens_of(shortlist(history, "mine", 1, drifts=True)) == [1]


def test_an_environment_that_tells_no_cost_has_a_shortlist_too() -> None:
    history = [line(0, 0.2, 0.2, None), line(1, 0.7, 0.7, None), line(2, 0.5, 0.5, None)]
    assert tokens_of(shortlist(history, "mine", 2, drifts=True)) == [1, 2]


def test_what_was_seen_early_is_compared_fairly() -> None:
    """Shared weights gain 0.4 between the rounds, which random search shows; the early architecture is the better."""
    history = [
        line(0, 0.55, 0.55, 5.0, round=0),
        line(1, 0.90, 0.90, 5.0, round=1),
        line(2, 0.50, 0.50, 5.0, round=0, strategy="random"),
        line(3, 0.90, 0.90, 5.0, round=1, strategy="random"),
    ]
    assert tokens_of(shortlist(history, "mine", 1, drifts=True)) == [0]
    assert tokens_of(shortlist(history[:2], "mine", 1, drifts=True)) == [1]  # no drift is known


def test_where_nothing_drifts_the_luck_of_random_search_in_a_round_does_not_count() -> None:
    shared = []
    for seed in range(20):
        qualities, luck = np.random.default_rng(seed).uniform(size=(2, 160)).tolist()
        history = [line(token, quality, quality, 5.0, round=token // 8) for token, quality in enumerate(qualities)]
        history += [
            line(token, each, each, 5.0, round=token // 8, strategy="random") for token, each in enumerate(luck)
        ]
        best = np.argsort(qualities)[-8:].tolist()
        shared.append(len(set(best) & set(tokens_of(shortlist(history, "mine", 16, drifts=True))[:8])))
    assert np.mean(shared) > 6  # of 8; with what random search got in each round taken off as it is, they are 3.7


def test_drift_is_taken_off_the_quality_too() -> None:
    """The second place is for the front, where the early one is the better for its time."""
    history = [
        line(9, 0.99, 0.99, 9.0, round=1),
        line(0, 0.10, 0.55, 5.0, round=0),
        line(1, 0.10, 0.90, 5.0, round=1),
        line(2, 0.50, 0.50, 5.0, round=0, strategy="random"),
        line(3, 0.50, 0.90, 5.0, round=1, strategy="random"),
    ]
    assert tokens_of(shortlist(history, "mine", 2, drifts=True)) == [9, 0]


def test_without_shared_weights_the_best_that_was_seen_is_a_candidate() -> None:
    """Random search is lucky in the very round in which the best was seen, which is no drift."""
    history = [line(0, 0.6, 0.6, 5.0, round=0), line(1, 0.9, 0.9, 5.0, round=1)]
    history += [line(2, luck, luck, 5.0, round=number, strategy="random") for number, luck in ((0, 0.1), (1, 0.8))]
    assert tokens_of(shortlist(history, "mine", 1, drifts=True)) == [0]
    assert tokens_of(shortlist(history, "mine", 1, drifts=False)) == [1]


def test_what_a_budget_tells_again_does_not_count() -> None:
    """The policy's favorite is told from the account in every later round, while random search has spent its budget."""
    history = [
        line(0, 0.55, 0.55, 5.0, round=0),
        line(2, 0.50, 0.50, 5.0, round=0, strategy="random"),
        line(3, 0.90, 0.90, 5.0, round=1, strategy="random"),
        line(0, 0.55, 0.55, 5.0, round=1, charge=0.0),
        line(1, 0.91, 0.91, 5.0, round=2),  # 0.01 better than random search at the end of its budget
    ]
    assert tokens_of(shortlist(history, "mine", 1, drifts=True)) == [0]
    assert tokens_of(shortlist([*history, line(4, 0.99, 0.99, 5.0, round=3)], "mine", 1, drifts=True)) == [4]


def environments(space: SearchSpace, evaluator: Any, reward: Callable[[Evaluation], float]) -> Callable[[int], Any]:
    def make(num: int) -> Any:
        return gymnasium.make_vec(
            "luban/Architecture-v0", num_envs=num, vectorization_mode="vector_entry_point",
            space=space, evaluator=evaluator, reward=reward,
        )  # fmt: skip

    return make


def test_derive_scores_again_on_everything(known: Any) -> None:
    space = known.FlatSpace(3, 3)
    genotypes = space.sample(np.random.default_rng(0), 12)
    history = [
        {
            "strategy": ("mine", "random")[number % 2], "genotype": genotype.to_json(), "failure": None,
            "reward": float(number), "quality": number / 12, "cost": 1.0 + number, "round": number // 2,
        } for number, genotype in enumerate(genotypes)
    ]  # fmt: skip
    evaluator = known.TargetEvaluator(genotypes[0])
    play = environments(space, evaluator, lambda e: e.quality - e.cost / 100)
    candidates = derive(space, history, "mine", play, evaluator, 3, seed=8, drifts=False)
    assert [(len(asked), fidelity, seed) for asked, fidelity, seed in evaluator.calls] == [(3, 1.0, 8)]
    assert {c.genotype for c in candidates} <= set(genotypes[::2]) and {c.strategy for c in candidates} == {"mine"}
    assert len(candidates) == 3 and derive(space, history, "nobody", play, evaluator, 3, seed=8, drifts=False) == []
    assert [c.reward for c in candidates] == sorted((c.reward for c in candidates), reverse=True)
    for candidate in candidates:
        agree = np.mean(np.array(candidate.genotype.tokens) == genotypes[0].tokens)
        assert candidate.evaluation.quality == agree  # not what the history said
        assert candidate.reward == agree - candidate.evaluation.cost / 100


def test_what_a_strategy_stands_for_is_a_candidate_whatever_its_score(known: Any) -> None:
    space = known.FlatSpace(1, 4)
    history = [line(number, 1.0 - number / 10, 0.5, 1.0) for number in range(4)]
    play = environments(space, known.TargetEvaluator(Genotype("flat", (0,))), lambda e: e.quality)
    for token, wanted in ((3, [0, 3]), (0, [0, 1])):  # the worst, and one that is on the list anyway
        choice = Genotype("flat", (token,))
        candidates = derive(space, history, "mine", play, None, 2, 0, False, choice)  # type: ignore[arg-type]
        assert sorted(tokens_of([c.genotype for c in candidates])) == wanted


def test_failed_candidates_are_left_out(known: Any) -> None:
    space = known.FlatSpace(1, 3)

    class Fails(known.TargetEvaluator):
        def evaluate(self, genotypes: Any, fidelity: float, seed: int) -> list[Evaluation]:
            found = super().evaluate(genotypes, fidelity, seed)
            failed = Evaluation(found[0].genotype, 0.0, 1.0, 1.0, seed, "out of memory")
            return [failed, *found[1:]]

    history = [line(token, 0.5 - token / 10, 0.5, 1.0 + token) for token in range(3)]
    evaluator = Fails(Genotype("flat", (0,)))
    play = environments(space, evaluator, lambda e: e.quality)
    candidates = derive(space, history, "mine", play, evaluator, 3, 0, drifts=False)
    assert sorted(tokens_of([c.genotype for c in candidates])) == [1, 2]


def test_a_reward_that_is_not_finite_is_left_out(known: Any) -> None:
    space, evaluator = known.FlatSpace(1, 3), known.TargetEvaluator(Genotype("flat", (0,)))
    history = [line(token, 0.5, 0.5, 1.0 + token) for token in range(3)]
    play = environments(space, evaluator, lambda e: e.quality if e.genotype.tokens[0] else np.nan)
    candidates = derive(space, history, "mine", play, evaluator, 3, 0, drifts=False)
    assert sorted(tokens_of([c.genotype for c in candidates])) == [1, 2]


def test_a_foreign_genotype_in_the_history_is_refused(known: Any) -> None:
    evaluator = known.TargetEvaluator(Genotype("flat", (0,)))
    with pytest.raises(ValueError, match="illegal action 7"):
        space = known.FlatSpace(1, 3)
        play = environments(space, evaluator, lambda e: 0.0)
        derive(space, [line(7, 1.0, 1.0, 1.0)], "mine", play, evaluator, 3, 0, drifts=False)


def test_a_candidate_in_json(known: Any) -> None:
    space = known.FlatSpace(2, 2)
    genotype = Genotype("flat", (0, 1))
    candidate = Candidate("mine", Evaluation(genotype, 0.5, 3.0, 1.0, 0), 0.4)
    assert candidate.to_json(space, [candidate]) == {
        "strategy": "mine", "genotype": {"space": "flat", "tokens": [0, 1]}, "text": "edge0=op0 edge1=op1",
        "quality": 0.5, "cost": 3.0, "reward": 0.4, "on_front": True,
    }  # fmt: skip
    assert not candidate.to_json(space, [])["on_front"]


def test_of_equally_good_teachers_the_one_with_the_best_student_comes_first() -> None:
    table = {30: (0.90, 0.90), 60: (0.89, 0.89), 90: (0.88, 0.88), 99: (0.70, 0.70), 18: (0.60, 0.60), 9: (0.50, 0.50)}
    candidates = [
        Candidate("mine", Evaluation(Genotype("flat", (macs,)), quality, float(macs), 1.0, 0), reward)
        for macs, (reward, quality) in table.items()
    ]

    def order(tolerance: float) -> list[int]:
        return tokens_of([c.genotype for c in by_promise(candidates, lambda g: g.tokens[0], 0.3, tolerance)])

    assert order(0.0) == [30, 60, 90, 99, 18, 9]  # the best reward, though its student has 9 of 30
    assert order(0.011) == [60, 30, 90, 99, 18, 9]  # the student of 60 has 18 and is better
    assert order(0.021) == [60, 90, 30, 99, 18, 9]  # that of 90 is no better, and 60 has the better reward
    assert by_promise([], lambda g: 0, 0.3, 0.1) == []


def test_a_teacher_without_a_student_comes_after_its_equals() -> None:
    candidates = [
        Candidate("mine", Evaluation(Genotype("flat", (macs,)), 0.9, float(macs), 1.0, 0), 0.9 - macs / 1e4)
        for macs in (10, 20, 40)
    ]
    ordered = by_promise(candidates, lambda g: g.tokens[0], 0.3, 0.1)
    assert tokens_of([c.genotype for c in ordered]) == [40, 10, 20]


def test_the_student_is_the_best_within_the_budget() -> None:
    candidates = [(Genotype("flat", (macs,)), quality) for macs, quality in ((9, 0.9), (5, 0.8), (3, 0.8), (1, 0.2))]

    def chosen(budget: float) -> tuple[int, bool]:
        genotype, within = choose_student(candidates, lambda g: g.tokens[0], budget)
        return genotype.tokens[0], within

    assert chosen(9) == (9, True)
    assert chosen(8.9) == (3, True)  # of equals the cheaper
    assert chosen(2) == (1, True)
    assert chosen(0.5) == (1, False)  # nothing is within: the cheapest


def line_of(
    tokens: tuple[int, ...], reward: float | None, strategy: str = "mine", charge: float = 1.0
) -> dict[str, Any]:
    return {
        "strategy": strategy, "genotype": {"space": "flat", "tokens": list(tokens)}, "quality": reward, "cost": 1.0,
        "reward": reward, "fidelity": 1.0, "seed": 0, "failure": None if reward is not None else "broken",
        "charge": charge,
    }  # fmt: skip


def test_what_cannot_be_evaluated_again_is_chosen_by_reward_or_estimate(known: Any) -> None:
    space = known.FlatSpace(1, 4)
    history = [line_of((0,), 0.3), line_of((1,), 0.9), line_of((2,), None), line_of((3,), 0.5)]
    history += [line_of((2,), 0.99, "another")]
    cost: dict[tuple[int, ...], float] = {(0,): 5.0, (1,): 6.0, (3,): 7.0}
    choose_mine: Any = partial(choose, space, history, "mine", lambda genotype: cost[genotype.tokens])
    assert [c.genotype.tokens for c in choose_mine()] == [(1,), (3,), (0,)]
    worth: dict[tuple[int, ...], float] = {(0,): 2.0, (1,): 0.0, (3,): 1.0}
    by_estimate = choose_mine(lambda given: np.array([worth[g.tokens] for g in given]))
    assert [c.genotype.tokens for c in by_estimate] == [(0,), (3,), (1,)]
    assert choose_mine(lambda given: [worth[g.tokens] for g in given]) == by_estimate  # a list will do
    assert choose_mine(lambda given: None) == choose_mine()
    assert {c.evaluation.cost for c in choose_mine()} == {1.0}
    for line in history:
        line["cost"] = None  # of an environment that speaks in rewards alone
    assert [c.evaluation.cost for c in choose_mine()] == [6.0, 7.0, 5.0]
    with pytest.raises(ValueError, match="nobody could evaluate no architecture"):
        choose(space, history, "nobody", lambda genotype: 1.0)
    for given in ([0.1, math.nan, 0.2], [0.1, 0.2], 0.5, ["a", "b", "c"]):
        with pytest.raises(ValueError, match=r"estimate of mine gave .*; expected a finite number for each of 3"):
            choose_mine(lambda _, given=given: np.array(given))


def test_of_several_noisy_draws_the_mean_is_chosen_by(known: Any) -> None:
    """The first, or the best, would be the luckiest."""
    lucky, good, shared = (0,), (1,), (2,)
    history = [line_of(lucky, 1.0), line_of(good, 0.75), line_of(lucky, 0.25), line_of(good, 0.5)]
    history += [line_of(good, 0.75, charge=0.0)]  # told again from the account of a budget: no draw
    history += [line_of(shared, 0.25, charge=0.0)]  # told as that of another that computes the same
    found = choose(known.FlatSpace(1, 3), history, "mine", lambda genotype: 1.0)
    assert [(c.genotype.tokens, c.reward, c.evaluation.quality) for c in found] == [
        (lucky, 0.625, 0.625), (good, 0.625, 0.625), (shared, 0.25, 0.25),
    ]  # fmt: skip
    history += [line_of(lucky, 0.25)]
    assert choose(known.FlatSpace(1, 3), history, "mine", lambda genotype: 1.0)[0].genotype.tokens == good


def test_a_target_is_honored_where_it_can_be() -> None:
    costs = [5.0, 2.0, 3.0, 1.0]
    genotypes = [Genotype("flat", (number,)) for number in range(4)]
    given = [
        Candidate("mine", Evaluation(genotype, 0.5, cost, 1.0, 0), 1.0 - 0.1 * number)
        for number, (genotype, cost) in enumerate(zip(genotypes, costs, strict=True))
    ]
    assert [c.evaluation.cost for c in within_target(given, 3.0)] == [2.0, 3.0, 1.0]
    assert [c.evaluation.cost for c in within_target(given, 0.5)] == [1.0]
