"""The reward model, and the policy that learns in it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import PairwiseKernel, WhiteKernel

from child.nasbench201 import NASBench201Space
from child.space import Evaluation, Genotype, SearchSpace, derive_seed
from controller.evolution import LocalSearch
from controller.model_based import ModelBased
from controller.policy import PolicySettings
from controller.ranks import normal_scores
from controller.reinforce import ControllerError
from controller.reward_model import RewardModel, SteadyModel, expected_improvement
from controller.small_budget import SmallBudgetReinforce
from controller.strategy import Rollout, Strategy, Update

POLICY = PolicySettings(hidden=16, temperature=1.0, tanh_constant=None, own_heads=True)


def test_normal_scores_by_hand() -> None:
    scores = normal_scores(np.array([10.0, -3.0, 0.5, 0.5]))
    quantile = {0.125: -1.1503, 0.5: 0.0, 0.875: 1.1503}
    assert scores == pytest.approx([quantile[0.875], quantile[0.125], quantile[0.5], quantile[0.5]], abs=1e-4)


def test_expected_improvement_is_an_expectation() -> None:
    mean, deviation, best = np.array([0.2, -1.0, 0.5]), np.array([0.7, 0.3, 1e-3]), 0.4
    draws = np.random.default_rng(0).standard_normal((400_000, 1)) * deviation + mean
    expected = np.maximum(draws - best, 0).mean(axis=0)
    np.testing.assert_allclose(expected_improvement(mean, deviation, best), expected, atol=2e-3)


def test_predictions_are_those_of_a_gaussian_process(known: Any) -> None:
    """scikit-learn's, with the same kernel on the same vectors."""
    space = known.CellSpace()
    rng = np.random.default_rng(0)
    seen, asked = space.sample(rng, 30), np.array([g.tokens for g in space.sample(rng, 20)])
    rewards = rng.normal(size=30)
    model = RewardModel(space, steps=3)
    model.fit(seen, rewards)

    def vectors(tokens: np.ndarray) -> np.ndarray:
        """One after the other, with how often each choice is made, by hand."""
        with torch.no_grad():
            each = model._vectors(torch.from_numpy(tokens + model.first)).numpy()
        kinds = [(decision.kind, decision.num_choices) for decision in space.decisions]
        places = sorted({(*kind, choice) for kind in kinds for choice in range(kind[1])})
        counts = np.zeros((len(tokens), len(places)))
        for row, architecture in enumerate(tokens):
            for kind, choice in zip(kinds, architecture, strict=True):
                counts[row, places.index((*kind, choice))] += 1
        return np.concatenate([each, math.sqrt(1.8 / len(kinds)) * counts], axis=1)

    def likeness(x: np.ndarray, y: np.ndarray, gamma: float) -> float:
        del gamma  # of kernels with one
        squares, (own,) = (x - y) ** 2, model.seen.shape[1:]
        return 0.7 * math.exp(-0.5 * squares[:own].sum()) + 0.3 * math.exp(-0.5 * squares[own:].sum())

    noise = float(model.log_noise.detach().exp()) + 1e-6
    judge = GaussianProcessRegressor(PairwiseKernel(metric=likeness) + WhiteKernel(noise, "fixed"), optimizer=None)  # pyright: ignore[reportArgumentType] (as its documentation allows)
    judge.fit(vectors(np.array([g.tokens for g in seen])), normal_scores(rewards))
    expected_mean, deviation = judge.predict(vectors(asked), return_std=True)
    mean, spread = model.predict(asked)
    np.testing.assert_allclose(mean, expected_mean, atol=1e-8)
    np.testing.assert_allclose(spread**2, np.asarray(deviation) ** 2 - noise, atol=1e-8)


def test_fitting_follows_the_marginal_likelihood(known: Any) -> None:
    """The gradient is that of the likelihood as autograd finds it, and steps along it raise the likelihood."""
    space = known.FlatSpace(4, 3)
    rng = np.random.default_rng(1)
    seen = space.sample(rng, 25)
    rewards = np.array([float(g.tokens[0] == 1) + 0.1 * rng.normal() for g in seen])  # one decision matters
    model = RewardModel(space, steps=1, pull=0.0)

    def loss() -> torch.Tensor:
        model._take_in(seen, rewards)
        kernel = model._kernel(torch.from_numpy(np.array([g.tokens for g in seen]) + model.first))
        normal = torch.distributions.MultivariateNormal(torch.zeros(25).double(), kernel)
        return -normal.log_prob(torch.from_numpy(normal_scores(rewards)))

    expected = torch.autograd.grad(loss(), list(model.parameters()))
    before = float(loss().detach())
    model.fit(seen, rewards)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient)
    for _ in range(60):
        model.fit(seen, rewards)
    assert float(loss().detach()) < before - 1
    weights = model.log_weights.detach()
    assert int(weights.argmax()) == 0 and float(weights[0] - weights[1:].max()) > 0.3


def test_what_a_space_knows_takes_the_place_of_the_choices() -> None:
    """By hand; two random cells are as far apart as by their choices."""
    space = NASBench201Space()
    rng = np.random.default_rng(0)
    seen, asked = space.sample(rng, 30), np.array([g.tokens for g in space.sample(rng, 2000)])
    rewards = rng.normal(size=30)
    model = SteadyModel(space)
    model.fit(seen, rewards)
    features = model.scale * space.features(asked)
    apart = ((features[:1000] - features[1000:]) ** 2).sum(axis=1).mean()
    assert apart == pytest.approx(6 * 2 * 0.8 / 1.8**2, rel=0.1)  # six choices of five, one-hot, weighing 1 / 1.8 each

    def likeness(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        by_features, by_counts = model.scale * space.features(x)[:, None] - model.scale * space.features(y), []
        for tokens in (x, y):
            by_counts.append(np.stack([(tokens == choice).sum(axis=1) for choice in range(5)], axis=1))
        counted = by_counts[0][:, None] - by_counts[1]
        near_features, near_counts = (
            np.exp(-0.5 * (each**2).sum(axis=2)) for each in (by_features, counted * 0.3**0.5)
        )
        return 0.7 * near_features + 0.3 * near_counts

    known, few = np.array([g.tokens for g in seen]), asked[:20]
    inverse = np.linalg.inv(likeness(known, known) + (0.1 + 1e-6) * np.eye(30))
    mean, deviation = model.predict(few)
    cross = likeness(few, known)
    np.testing.assert_allclose(mean, cross @ inverse @ normal_scores(rewards), atol=1e-8)
    np.testing.assert_allclose(deviation**2, 1 - np.einsum("mi,ij,mj->m", cross, inverse, cross), atol=1e-8)


def test_what_a_space_knows_finds_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the reward is one of paths, with weights that nobody told."""
    space = NASBench201Space()
    needed = dict.fromkeys(("features", "decisions"), 0)
    everything = np.array(list(np.ndindex(*[5] * 6)))
    features = space.features(everything)
    for seed in range(2):
        values = np.minimum(features, 1) @ np.random.default_rng(seed).normal(size=features.shape[1])
        good = np.sort(values)[-10]  # all of the best ten will do
        for side in needed:
            with monkeypatch.context() as without:
                if side == "decisions":
                    without.setattr(NASBench201Space, "features", lambda *_: None)
                strategy = ModelBased(space, seed, POLICY)
                best, num = -np.inf, 0
                while best < good:
                    strategy.begin(1, num)
                    tokens = np.array([strategy.act({"step": np.full(1, step)}) for step in range(6)]).T
                    reward = float(values[np.ravel_multi_index(tokens[0], [5] * 6)])
                    tell(strategy, tokens, [reward])
                    best, num = max(best, reward), num + 1
                needed[side] += num
    assert needed["features"] < 0.8 * needed["decisions"]


def tell(strategy: Strategy, tokens: np.ndarray, rewards: list[float]) -> Update:
    evaluations = [Evaluation(Genotype(strategy.space.name, tuple(row)), 0.5, 1.0, 1.0, 0) for row in tokens.tolist()]
    return strategy.learn(Rollout(tokens, np.array(strategy.space.masks(tokens)), np.array(rewards), evaluations))


def hunt(strategy: Strategy, target: Genotype, num: int) -> int:
    """Evaluations until the target is found, for a reward with a trap: each decision right counts, the pair more."""
    for round_number in range(num):
        strategy.begin(1, round_number)
        steps = len(strategy.space.decisions)
        tokens = np.array([strategy.act({"step": np.full(1, step)}) for step in range(steps)]).T
        if tuple(tokens[0].tolist()) == target.tokens:
            return round_number + 1
        right = np.array(target.tokens) == tokens[0]
        tell(strategy, tokens, [right.sum() + 2.0 * (right[0] and right[1])])
    return num + 1


def test_it_finds_with_few_evaluations_what_chance_would_not(known: Any) -> None:
    space: SearchSpace = known.FlatSpace(6, 4)
    needed = []
    for seed in range(4):
        target = space.sample(np.random.default_rng(seed + 50), 1)[0]
        needed.append(hunt(ModelBased(space, seed, POLICY), target, 90))
    assert np.median(needed) <= 60 and max(needed) <= 90  # of 4,096


def test_small_budget_reinforce_learns(known: Any) -> None:
    space: SearchSpace = known.FlatSpace(6, 4)
    needed = []
    for seed in range(4):
        target = space.sample(np.random.default_rng(seed + 50), 1)[0]
        strategy = SmallBudgetReinforce(space, seed, POLICY, learning_rate=0.02, entropy_weight=0.3)
        needed.append(hunt(strategy, target, 300))
    assert np.median(needed) <= 250  # of 4,096: chance finds one in 14 with 300


def test_what_was_lost_is_counted_and_steps_that_break_off_count_as_skipped(
    known: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    space: SearchSpace = known.FlatSpace(3, 3)
    strategy = SmallBudgetReinforce(space, 0, POLICY)
    tokens = np.array([genotype.tokens for genotype in space.sample(np.random.default_rng(0), 3)])
    assert tell(strategy, tokens, [0.1, np.nan, 0.3]).num_skipped == 1
    steps = iter([1.0, None] * 9)  # the first step of a round is taken, the second is not finite
    monkeypatch.setattr("controller.reinforce.descend", lambda *_: next(steps))
    with pytest.raises(ControllerError, match="not finite in 5 updates in a row"):
        for _ in range(5):
            tell(strategy, tokens, [0.1, 0.2, 0.3])


def test_imagined_rewards_that_are_not_finite_end_the_search(known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    space: SearchSpace = known.FlatSpace(3, 3)
    strategy = ModelBased(space, 0, POLICY, num_random=2)
    monkeypatch.setattr("controller.model_based.descend", lambda *_: None)
    with pytest.raises(ControllerError, match="loss or gradient of imagined rewards was not finite"):
        tell(strategy, np.array([[0, 1, 2], [1, 1, 0], [2, 0, 0]]), [0.1, 0.2, 0.3])


def test_of_a_few_new_samples_the_likeliest_is_evaluated(known: Any) -> None:
    """Followed by hand: of the first three of the draws that are new, the largest product of probabilities."""
    space: SearchSpace = known.FlatSpace(3, 3)
    strategy = SmallBudgetReinforce(space, 0, POLICY, candidates=3, learning_rate=0.05)
    differed = 0
    for round_number in range(12):
        draws = strategy.policy.draw(32, derive_seed(0, "policy", "act", round_number))
        new = [
            row for row in dict.fromkeys(map(tuple, draws.tolist())) if Genotype(space.name, row) not in strategy.seen
        ]
        tokens = np.array(new[:3])
        with torch.no_grad():
            likelihoods = strategy.policy.evaluate(tokens, np.ones((len(tokens), 3, 3), np.int8), 0.5).log_probability
        expected = new[int(likelihoods.argmax())]
        (proposed,) = strategy.propose(1, round_number)
        assert proposed.tokens == expected
        differed += expected != new[0]
        tell(strategy, np.array([expected]), [float(sum(expected))])
    assert differed  # the first would not have done


def test_half_of_the_candidates_are_uniform(known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that draws one architecture alone does not keep the model from seeing others."""
    space: SearchSpace = known.FlatSpace(4, 4)
    strategy = ModelBased(space, 0, POLICY)
    monkeypatch.setattr(strategy.policy, "draw", lambda num, seed: np.zeros((num, 4), np.int64))
    found = strategy._candidates(201, np.random.default_rng(0))
    assert found.shape == (201, 4) and not found[:101].any()
    assert len(np.unique(found[101:], axis=0)) > 60  # 83 of 256 are expected


def test_imagined_rewards_are_hopeful_and_lower_for_what_is_known(known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = ModelBased(known.FlatSpace(2, 3), 0, POLICY, num_random=2, imagined=64, optimism=2.0, known_penalty=5.0)
    tell(strategy, np.array([[0, 1], [2, 2], [1, 0]]), [0.1, 0.2, 0.3])
    asked: list[np.ndarray[Any, Any]] = []
    told: list[np.ndarray[Any, Any]] = []

    def predict(tokens: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        asked.append(tokens)
        return tokens[:, 0] * 1.0, tokens[:, 1] * 0.5

    monkeypatch.setattr(strategy.model, "predict", predict)
    monkeypatch.setattr("controller.model_based.normal_scores", lambda x: told.append(x) or normal_scores(x))
    strategy._imagine()
    (tokens,), (rewards,) = asked, told
    seen = [row in ([0, 1], [2, 2], [1, 0]) for row in tokens.tolist()]
    assert rewards.tolist() == (tokens[:, 0] + 2.0 * 0.5 * tokens[:, 1] - 5.0 * np.array(seen)).tolist()
    assert 0 < sum(seen) < 64


def test_where_the_space_knows_more_the_policy_learns_from_both_models(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = ModelBased(NASBench201Space(), 0, POLICY, num_random=2, known_penalty=0.0)
    tell(strategy, np.array([[0, 1, 2, 3, 4, 0], [2, 2, 0, 0, 1, 1]]), [0.1, 0.2])
    told: list[np.ndarray[Any, Any]] = []
    asked: list[np.ndarray[Any, Any]] = []
    for model, place in ((strategy.model, 0), (strategy.steady, 1)):
        monkeypatch.setattr(
            model, "predict", lambda x, place=place: asked.append(x) or (x[:, place] * 1.0, x[:, 5 - place] * 0.5)
        )
    monkeypatch.setattr("controller.model_based.normal_scores", lambda x: told.append(x) or normal_scores(x))
    strategy._imagine()
    (first, second), (rewards,) = asked, told
    assert (first == second).all()
    assert rewards == pytest.approx((first[:, [0, 1]] + 0.5 * first[:, [5, 4]]).mean(axis=1))


def test_what_a_space_of_many_kinds_knows_is_of_its_tokens(known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    space: SearchSpace = known.CellSpace()
    tokens = np.array([genotype.tokens for genotype in space.sample(np.random.default_rng(0), 9)])
    assert not SteadyModel(space).knows_more
    monkeypatch.setattr(space, "features", lambda tokens: 1e-7 * tokens.astype(np.float32))
    model = SteadyModel(space)
    vectors = model._vectors(torch.from_numpy(tokens + model.first)).numpy()
    np.testing.assert_allclose(vectors, model.scale * 1e-7 * tokens, rtol=1e-6)
    assert np.abs(vectors).max() > 0.1  # small units are scaled as any
    monkeypatch.setattr(space, "features", lambda tokens: np.ones((len(tokens), 2)))
    model = SteadyModel(space)  # nothing tells apart what its choices' counts do not
    model.fit([Genotype("cell", tuple(row)) for row in tokens.tolist()], np.arange(9.0))
    assert np.isfinite(model.predict(tokens)).all()


def test_a_search_goes_on_with_what_its_space_knows() -> None:
    space = NASBench201Space()
    tokens = np.array([genotype.tokens for genotype in space.sample(np.random.default_rng(0), 12)])
    one = ModelBased(space, 0, POLICY)
    tell(one, tokens, list(np.linspace(0, 1, 12)))
    other = ModelBased(space, 0, POLICY)
    other.load_state_dict(one.state_dict())
    for round_number in (12, 13):
        assert one.propose(3, round_number) == other.propose(3, round_number)
    assert one._imagine() == other._imagine()


def test_two_models_choose_in_turn(known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = ModelBased(known.FlatSpace(3, 3), 0, POLICY, num_random=2)
    tell(strategy, np.array([[0, 1, 2], [2, 2, 0], [1, 0, 0]]), [0.1, 0.2, 0.3])
    asked: list[str] = []
    for name in ("model", "steady"):
        model = getattr(strategy, name)
        predict = model.predict
        monkeypatch.setattr(
            model, "predict", lambda tokens, name=name, predict=predict: asked.append(name) or predict(tokens)
        )
    for round_number, name in ((7, "model"), (8, "steady")):
        asked.clear()
        strategy.propose(1, round_number)
        assert set(asked) == {name}
    assert not np.array_equal(strategy.model.log_weights.detach(), strategy.steady.log_weights.detach())


def test_shared_weights_are_trained_on_what_the_policy_draws(known: Any) -> None:
    strategy = known.build_controller("model_based", known.FlatSpace(3, 4), 10)
    assert strategy.sample(20, 3) is None  # nothing is learned yet
    strategy.num_learned = 1
    drawn = strategy.policy.draw(20, derive_seed(strategy.seed, "policy", "sample", 3))
    assert [list(genotype.tokens) for genotype in strategy.sample(20, 3)] == drawn.tolist()


def test_nothing_known_is_proposed_again(known: Any) -> None:
    space: SearchSpace = known.FlatSpace(3, 3)
    strategy = ModelBased(space, 0, POLICY, num_random=4)
    seen: set[tuple[int, ...]] = set()
    for round_number in range(20):
        strategy.begin(1, round_number)
        tokens = strategy._tokens
        if round_number >= 4:
            assert tuple(tokens[0].tolist()) not in seen
        seen.add(tuple(tokens[0].tolist()))
        tell(strategy, tokens, [float(tokens.sum())])


def test_the_estimate_takes_noise_off(known: Any) -> None:
    """Much noise on what one decision decides: in the mean of four seeds the estimate is nearer to the truth."""
    space: SearchSpace = known.FlatSpace(4, 4)
    gains = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        genotypes = list(dict.fromkeys(space.sample(rng, 120)))
        tokens = np.array([genotype.tokens for genotype in genotypes])
        truth = tokens[:, 0] * 0.5
        rewards = truth + rng.normal(0, 0.8, len(genotypes))
        strategy = ModelBased(space, 0, POLICY, updates=0)
        assert strategy.estimate(genotypes) is None  # it knows nothing yet
        for row in range(len(genotypes)):
            tell(strategy, tokens[row : row + 1], [rewards[row]])
        worth = strategy.estimate(genotypes)
        assert worth is not None
        gains.append(np.corrcoef(worth, truth)[0, 1] - np.corrcoef(rewards, truth)[0, 1])
    assert np.mean(gains) > 0.05 and min(gains) > 0


def test_a_reward_that_is_not_finite_is_left_out(known: Any) -> None:
    strategy = ModelBased(known.FlatSpace(3, 3), 0, POLICY, num_random=2)
    update = tell(strategy, np.array([[0, 0, 0], [1, 1, 1], [2, 2, 2]]), [math.nan, 1.0, 2.0])
    assert update.num_skipped == 1 and update.loss is not None
    assert {reward for reward, _, _ in strategy.seen.values()} == {1.0, 2.0}
    assert all(torch.isfinite(parameter).all() for parameter in strategy.policy.parameters())


@pytest.mark.parametrize("make", [ModelBased, SmallBudgetReinforce, LocalSearch])
def test_what_gave_no_finite_reward_is_not_asked_for_again_and_again(known: Any, make: Any) -> None:
    """The best of all breaks down, and the search goes on beside it, also when it is taken up again."""
    space = known.FlatSpace(3, 3)
    given = () if make is LocalSearch else (POLICY,)
    strategy, asked = make(space, 0, *given), []
    for round_number in range(24):
        (genotype,) = strategy.propose(1, round_number)
        quality = float(np.mean(genotype.tokens)) / 2
        asked.append(genotype)
        tell(strategy, np.array([genotype.tokens]), [quality if quality < 1 else math.nan])
        if round_number % 8 == 7:
            state, strategy = strategy.state_dict(), make(space, 0, *given)
            strategy.load_state_dict(state)
    assert 1 <= asked.count(Genotype("flat", (2, 2, 2))) <= 2  # uniform draws may repeat it


@pytest.mark.parametrize("wrong", [{"learning_rate": 0.0}, {"clip": -1.0}], ids=str)
def test_settings_with_which_it_could_not_learn_are_refused(known: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the controller needs learning_rate > 0 and clip > 0"):
        ModelBased(known.FlatSpace(3, 3), 0, POLICY, **wrong)
