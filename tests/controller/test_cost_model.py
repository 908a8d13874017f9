"""What architectures would cost and how good they must then be; and the search that goes by it."""

import math
from typing import Any

import numpy as np
import pytest

from child.space import Evaluation, Genotype, SearchSpace
from controller.cost_model import RIDGE, CostRegression, Demand
from controller.model_based import ModelBased
from controller.policy import PolicySettings
from controller.ranks import normal_scores
from controller.strategy import Rollout
from envs.reward import Absolute, Hard, Linear, Soft

POLICY = PolicySettings(hidden=16, temperature=1.0, tanh_constant=None, own_heads=True)
REWARDS = [Linear(9.0), Linear(9.0, alpha=0.7, beta=0.3), Soft(9.0), Hard(9.0), Absolute(9.0)]


def drawn(space: SearchSpace, num: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.array([genotype.tokens for genotype in dict.fromkeys(space.sample(rng, 2 * num))])[:num]


@pytest.mark.parametrize("is_log", [False, True])
def test_costs_that_add_up_or_multiply_are_learned(known: Any, is_log: bool) -> None:
    space = known.FlatSpace(6, 4)
    shares = np.random.default_rng(1).uniform(0.0, 1.0, (6, 4))

    def cost(tokens: np.ndarray) -> np.ndarray:
        total = shares[np.arange(6), tokens].sum(axis=1)
        return np.exp(2 * total) if is_log else 1 + 20 * total

    regression = CostRegression(space)
    seen, asked = drawn(space, 40, 2), drawn(space, 200, 3)
    regression.fit(seen, cost(seen))
    assert regression.is_log is is_log
    np.testing.assert_allclose(regression.predict(asked), np.log(cost(asked)), atol=0.01)


def test_sum_or_product_is_told_by_leaving_each_out_once(known: Any) -> None:
    space = known.FlatSpace(6, 4)
    for seed in range(20):
        tokens, shares = drawn(space, 12, seed), np.random.default_rng(seed).uniform(0.0, 1.0, (6, 4))
        costs = np.exp(2 * shares[np.arange(6), tokens].sum(axis=1))
        regression = CostRegression(space)
        regression.fit(tokens, costs)
        features, errors = regression._features(tokens), []
        for targets, scale in ((costs, costs), (np.log(costs), 1.0)):
            missed = []
            for left_out in range(12):
                others, wanted = np.delete(features, left_out, axis=0), np.delete(targets, left_out)
                weights = np.linalg.solve(others.T @ others + RIDGE * np.eye(features.shape[1]), others.T @ wanted)
                missed.append(abs(targets[left_out] - features[left_out] @ weights))
            errors.append(np.median(np.array(missed) / scale))
        assert regression.is_log == (errors[1] < errors[0])


@pytest.mark.parametrize("reward", REWARDS, ids=lambda reward: reward.formula())
def test_the_demand_is_what_would_earn_the_best_reward(known: Any, reward: Any) -> None:
    """Put into the reward itself, of which the demand knows nothing."""
    space = known.FlatSpace(4, 5)
    tokens = drawn(space, 150, 0)
    costs = 1.0 + tokens.sum(axis=1)
    qualities = np.random.default_rng(1).uniform(0.4, 0.9, len(tokens))
    rewards = np.array([reward.blend(*pair) for pair in zip(qualities, costs / reward.target, strict=True)])
    demand = Demand(space)
    demand.fit(tokens, qualities, costs, rewards, normal_scores(qualities))
    assert demand.matters
    for cost in range(5, 14):  # each of which was seen several times
        (needed,) = demand._needed(np.log([float(cost)]))
        assert reward.blend(needed, cost / reward.target) == pytest.approx(rewards.max(), abs=1e-3)
    near_and_far = np.log([9.0, 90.0])  # each goes by the costs near it, whatever else is asked about
    alone = [demand._needed(near_and_far[[place]])[0] for place in (0, 1)]
    np.testing.assert_allclose(demand._needed(near_and_far), alone)


def test_scores_go_with_the_qualities_and_on_beyond_them(known: Any) -> None:
    space = known.FlatSpace(3, 3)
    tokens, qualities = drawn(space, 5, 0), np.array([0.5, 0.1, 0.4, 0.2, 0.3])
    scores, demand = normal_scores(qualities), Demand(space)
    demand.fit(tokens, qualities, np.arange(1.0, 6.0), -qualities, scores)
    np.testing.assert_allclose(demand._score(qualities), scores)
    steps = np.diff(demand._score(np.array([0.5, 0.6, 0.7])))
    np.testing.assert_allclose(steps, (scores[0] - scores[4]) / 2)  # 0.3 to 0.5 are the upper half
    assert demand._score(np.array([0.0]))[0] < scores.min()


@pytest.mark.parametrize("costs", [0.0, math.nan, None])
def test_where_cost_does_not_count_it_plays_no_part(known: Any, costs: float | None) -> None:
    """No cost, none that is told, or any under a reward of quality alone: the same search."""
    space = known.FlatSpace(5, 3)
    proposed = []
    for given in (1.0, costs):
        strategy, rng = ModelBased(space, 0, POLICY, num_random=4, updates=1), np.random.default_rng(0)
        for round_number in range(12):
            (genotype,) = strategy.propose(1, round_number)
            cost = float(rng.uniform(1, 9)) if given is None else given
            tell(strategy, genotype, 0.1 * sum(genotype.tokens), cost, 2.0 * sum(genotype.tokens))
        assert not strategy.demand.matters
        proposed.append(list(strategy.seen))
    assert proposed[0] == proposed[1]


def test_an_unknown_cost_leaves_the_others_known(known: Any) -> None:
    space, qualities = known.FlatSpace(5, 3), np.array([0.0, 0.5, 0.1, 0.4, 0.2])
    tokens, costs, rewards = drawn(space, 5, 0), np.array([math.nan, 1.0, 2.0, 3.0, 4.0]), -qualities
    scores, whole, without = normal_scores(qualities), Demand(space), Demand(space)
    whole.fit(tokens, qualities, costs, rewards, scores)
    without.fit(tokens[1:], qualities[1:], costs[1:], rewards[1:], scores[1:])
    assert whole.matters
    np.testing.assert_array_equal(whole(tokens), without(tokens))


@pytest.mark.parametrize("qualities", [[0.5] * 6, [0.1, 0.2, 0.9, 0.9, 0.9, 0.9]])
def test_where_the_better_half_are_equally_good_the_reward_itself_is_learned(
    known: Any, qualities: list[float]
) -> None:
    space, costs = known.FlatSpace(5, 3), np.arange(1.0, 7.0)
    found, demand = np.array(qualities), Demand(space)
    demand.fit(drawn(space, 6, 0), found, costs, found - 0.01 * costs, normal_scores(found))
    assert not demand.matters and not demand(drawn(space, 6, 0)).any()


def test_one_cost_for_all_tells_nothing(known: Any) -> None:
    """Even where rewards rank otherwise than qualities, as a reward of a user's own may."""
    space, qualities = known.FlatSpace(3, 3), np.array([0.1, 0.2, 0.3])
    demand = Demand(space)
    demand.fit(drawn(space, 3, 0), qualities, np.full(3, 7.0), -qualities, normal_scores(qualities))
    assert not demand.matters and not demand(drawn(space, 3, 1)).any()


def tell(strategy: ModelBased, genotype: Genotype, quality: float, cost: float, reward: float) -> None:
    tokens = np.array([genotype.tokens])
    evaluations = [Evaluation(genotype, quality, cost, 1.0, 0)]
    strategy.learn(Rollout(tokens, np.array(strategy.space.masks(tokens)), np.array([reward]), evaluations))


def play(strategy: ModelBased, rounds: range, reward: Hard) -> None:
    """Quality and cost both rise with the tokens, but not alike: what is best lies at the target."""
    for round_number in rounds:
        (genotype,) = strategy.propose(1, round_number)
        quality, cost = worth(genotype)
        tell(strategy, genotype, quality, cost, reward(Evaluation(genotype, quality, cost, 1.0, 0)))


def worth(genotype: Genotype) -> tuple[float, float]:
    a, b, c, d, e = genotype.tokens
    quality = 0.3 + 0.04 * (a + b + c) + 0.02 * (d + e) + 0.05 * (a == 3 and b == 0) + 0.03 * (c == d)
    return quality, 10.0 + 9 * a + 7 * b + 8 * c + 5 * d + 3 * e


def test_the_best_within_a_target_is_found(known: Any) -> None:
    space: SearchSpace = known.FlatSpace(5, 4)
    reward = Hard(55.0)
    every = [Genotype(space.name, tokens) for tokens in np.ndindex(*[4] * 5)]
    within = sorted((worth(genotype)[0] for genotype in every if worth(genotype)[1] <= 55), reverse=True)
    ranks = []
    for seed in range(3):
        strategy = ModelBased(space, seed, POLICY, updates=2)
        play(strategy, range(60), reward)
        found = max(quality for _, quality, cost in strategy.seen.values() if cost <= 55)
        ranks.append(sum(quality > found + 1e-12 for quality in within))
    # Of hundreds; 7 is the fourth best quality. Another machine's rounding makes another search: this holds for all of
    # sixteen seeds, while after 40 rounds two of them were still there.
    assert sorted(ranks)[1] <= 1 and max(ranks) <= 7, ranks


def test_it_goes_on_where_it_stopped(known: Any) -> None:
    space, reward = known.FlatSpace(5, 4), Hard(45.0)
    whole, first, second = (ModelBased(space, 0, POLICY, num_random=4, updates=1) for _ in range(3))
    play(whole, range(14), reward)
    play(first, range(9), reward)
    second.load_state_dict(first.state_dict())
    play(second, range(9, 14), reward)
    assert second.seen == whole.seen and second.demand.matters
