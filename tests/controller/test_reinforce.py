"""The learner, on problems whose answer is known."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from child.space import Evaluation, Genotype, SearchSpace
from controller.policy import Distribution, PolicySettings
from controller.reinforce import MAX_SKIPPED, ControllerError, Reinforce, advantages
from controller.search import play
from controller.strategy import RandomSearch, Rollout, Strategy, Update
from envs.reward import Linear

ROOT = Path(__file__).resolve().parents[2]
CONTROLLERS = sorted(path.stem for path in (ROOT / "conf" / "controller").glob("*.yaml"))
SPREAD = PolicySettings(hidden=8, temperature=1.0, tanh_constant=2.0, init=0.8)


def reinforce(space: SearchSpace, seed: int = 0, **settings: Any) -> Reinforce:
    given = {"num_updates": 10, "policy": SPREAD, "entropy_weight": 0.0, "final_entropy_weight": 0.0, **settings}
    return Reinforce(space, seed, **given)


def rollout_of(space: SearchSpace, genotypes: list[Genotype], rewards: list[float]) -> Rollout:
    tokens = np.array([genotype.tokens for genotype in genotypes])
    evaluations = [Evaluation(g, r, 1.0, 1.0, 0) for g, r in zip(genotypes, rewards, strict=True)]
    return Rollout(tokens, np.array(space.masks(tokens)), np.array(rewards), evaluations)


def gradient_of(loss: Tensor, strategy: Reinforce) -> Tensor:
    parameters = list(strategy.policy.parameters())
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, grads, strict=True)]
    )


class Enumerated:
    """A space whose architectures are all written down, a reward for each, and a learner in double precision."""

    def __init__(self, space: SearchSpace, known: Any, **settings: Any):
        self.space, self.strategy, self.through = space, reinforce(space, **settings), known.through
        self.strategy.policy.double()
        tokens = np.array([genotype.tokens for genotype in known.every_genotype(space)])
        self.tokens, self.masks = tokens, np.array(space.masks(tokens))
        self.rewards = torch.from_numpy(np.random.default_rng(1).random(len(tokens)))

    def rows(self, rows: list[int]) -> Distribution:
        return self.through(self.strategy.policy, self.tokens[rows], self.masks[rows])

    def all(self) -> Distribution:
        return self.rows(list(range(len(self.tokens))))

    def expected(self, size: int) -> Tensor:
        """The mean gradient over every batch of this size that can be drawn, each by its probability."""
        probability = self.all().log_probability.exp().detach()
        total = torch.zeros(sum(p.numel() for p in self.strategy.policy.parameters())).double()
        for rows in np.ndindex(*[len(self.tokens)] * size):
            chosen = self.rows(list(rows))
            advantage = advantages(self.rewards[list(rows)], self.strategy.baseline, self.strategy.mean_reward or 0.0)
            loss = self.strategy.loss(chosen, advantage)
            total += probability[list(rows)].prod() * gradient_of(loss, self.strategy)
        return total


@pytest.mark.parametrize(
    ("baseline", "size", "num_layers"), [("none", 1, 3), ("ema", 1, 3), ("none", 2, 2), ("leave_one_out", 2, 2)]
)
def test_the_gradient_is_that_of_the_expected_reward(baseline: Any, size: int, num_layers: int, known: Any) -> None:
    space = known.two_operations(num_layers)
    exact = Enumerated(space, known, baseline=baseline)
    exact.strategy.mean_reward = 0.3
    assert len(exact.tokens) == {2: 10, 3: 74}[num_layers]
    wanted = gradient_of(-(exact.all().log_probability.exp() * exact.rewards).sum(), exact.strategy)
    assert float(wanted.norm()) > 0.01
    torch.testing.assert_close(exact.expected(size), wanted, rtol=1e-9, atol=1e-12)


def test_three_with_leave_one_out_are_unbiased_too(known: Any) -> None:
    space = known.FlatSpace(2, 2)
    exact = Enumerated(space, known)
    wanted = gradient_of(-(exact.all().log_probability.exp() * exact.rewards).sum(), exact.strategy)
    torch.testing.assert_close(exact.expected(3), wanted, rtol=1e-9, atol=1e-12)


def test_a_baseline_of_the_batch_mean_would_be_biased(known: Any) -> None:
    """The check above can tell: the plain mean shrinks the gradient by (B - 1) / B."""
    space = known.FlatSpace(2, 2)
    exact = Enumerated(space, known, baseline="none")
    wanted = gradient_of(-(exact.all().log_probability.exp() * exact.rewards).sum(), exact.strategy)
    exact.strategy.loss = lambda chosen, rewards: (  # type: ignore[method-assign]
        -((rewards - rewards.mean()) * chosen.log_probability).mean()
    )
    torch.testing.assert_close(exact.expected(2), wanted / 2, rtol=1e-9, atol=1e-12)


def test_the_entropy_term_is_the_sum_of_exact_conditional_entropies(known: Any) -> None:
    space = known.two_operations(2)
    exact = Enumerated(space, known, entropy_weight=0.25, final_entropy_weight=0.25)
    strategy, rows = exact.strategy, [0, 3, 9]
    chosen = exact.rows(rows)
    everything = torch.from_numpy(exact.tokens)
    by_hand = torch.zeros(()).double()
    for row in rows:
        # Every conditional distribution from the probabilities of all ways to go on from the prefix.
        tokens = torch.from_numpy(exact.tokens[row])
        log_probability = exact.all().log_probability
        for step in range(everything.shape[1]):
            same = (everything[:, :step] == tokens[:step]).all(dim=1)
            choices = everything[same, step]
            mass = torch.stack([log_probability[same][choices == c].exp().sum() for c in choices.unique()])
            conditional = mass / mass.sum()
            by_hand = by_hand - (conditional * conditional.log()).sum()
    equal = advantages(torch.full((3,), 0.5).double(), "leave_one_out", 0.0)  # which leaves the entropy term alone
    loss = strategy.loss(chosen, equal)
    torch.testing.assert_close(loss, -0.25 * by_hand / 3)
    torch.testing.assert_close(gradient_of(loss, strategy), gradient_of(-0.25 * by_hand / 3, strategy))


def test_the_entropy_weight_falls_linearly(known: Any) -> None:
    strategy = reinforce(known.FlatSpace(2, 2), num_updates=5, entropy_weight=0.8, final_entropy_weight=0.4)
    chosen = strategy.policy.evaluate(np.zeros((2, 2), np.int64), np.ones((2, 2, 2), np.int8), 0.4)
    chosen = replace(chosen, entropy=torch.ones(2))
    weights = []
    for strategy.num_learned in range(7):
        weights.append(-strategy.loss(chosen, torch.zeros(2)).item())
    assert weights == pytest.approx([0.8, 0.7, 0.6, 0.5, 0.4, 0.4, 0.4])


def test_the_skip_weight_pulls_to_the_prior(known: Any) -> None:
    strategy = reinforce(known.tiny_macro(4, 2), skip_weight=1.0, skip_prior=0.2, learning_rate=0.05)
    space = strategy.space
    for number in range(80):
        genotypes = strategy.sample(8, number)
        strategy.learn(rollout_of(space, genotypes, [0.5] * 8))
    tokens = np.array([g.tokens for g in strategy.sample(2000, 999)])
    masks = space.masks(tokens)
    skips = np.array([d.kind == "skip" for d in space.decisions])
    opened = (masks.sum(axis=2) == 2) & skips
    assert tokens[opened].mean() == pytest.approx(0.2, abs=0.03)


def test_baselines_by_hand() -> None:
    rewards = torch.tensor([1.0, 2.0, 6.0])
    assert advantages(rewards, "leave_one_out", 9.0).tolist() == [1 - 4, 2 - 3.5, 6 - 1.5]
    assert advantages(rewards, "ema", 2.0).tolist() == [-1, 0, 4]
    assert advantages(rewards, "none", 2.0).tolist() == [1, 2, 6]
    assert advantages(torch.tensor([3.0]), "leave_one_out", 1.0).tolist() == [2]  # of a single one the moving average


def test_the_moving_average_by_hand(known: Any) -> None:
    space = known.FlatSpace(2, 2)
    strategy = reinforce(space, baseline="ema", baseline_decay=0.75)
    genotypes = space.sample(np.random.default_rng(0), 2)
    baselines = [strategy.learn(rollout_of(space, genotypes, rewards)).baseline for rewards in
                 ([0.4, 0.8], [1.0, 1.0], [0.0, 0.0])]  # fmt: skip
    assert baselines == pytest.approx([0.6, 0.6, 0.6 + 0.25 * 0.4])  # the first mean stands in for earlier rewards
    assert strategy.mean_reward == pytest.approx(0.75 * 0.7)
    assert reinforce(space, baseline="none").learn(rollout_of(space, genotypes, [1.0, 3.0])).baseline == 0
    shown = reinforce(space, baseline="leave_one_out").learn(rollout_of(space, genotypes, [1.0, 3.0])).baseline
    assert shown == 2
    alone = reinforce(space, baseline="leave_one_out", baseline_decay=0.75)
    baselines = [alone.learn(rollout_of(space, genotypes, [reward, np.nan])).baseline for reward in (0.4, 0.8, 0.0)]
    assert baselines == pytest.approx([0.4, 0.4, 0.5])  # of a single one the moving average


def test_the_gradient_is_clipped(known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    space = known.FlatSpace(3, 3)
    strategy = reinforce(space, clip=0.01)
    norms = []

    def step(*_: Any) -> None:
        grads = [p.grad.flatten() for p in strategy.policy.parameters() if p.grad is not None]
        norms.append(float(torch.cat(grads).norm()))

    monkeypatch.setattr(strategy.optimizer, "step", step)
    update = strategy.learn(rollout_of(space, space.sample(np.random.default_rng(0), 8), [5.0, *[0.0] * 7]))
    assert update.gradient_norm is not None and update.gradient_norm > 0.1
    assert norms == [pytest.approx(0.01, rel=1e-3)]


def weights_of(strategy: Reinforce) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in strategy.policy.parameters()])


def test_rewards_that_are_not_finite_are_left_out(known: Any) -> None:
    space = known.tiny_macro()
    genotypes = space.sample(np.random.default_rng(0), 5)
    rewards = [0.1, np.nan, 0.9, np.inf, 0.3]
    with_gaps, without = reinforce(space), reinforce(space)
    update = with_gaps.learn(rollout_of(space, genotypes, rewards))
    finite = [0, 2, 4]
    other = without.learn(rollout_of(space, [genotypes[i] for i in finite], [rewards[i] for i in finite]))
    assert (update.num_skipped, other.num_skipped) == (2, 0)
    assert update.loss == other.loss
    assert torch.equal(weights_of(with_gaps), weights_of(without))


def test_five_hopeless_updates_in_a_row_stop_the_search(known: Any) -> None:
    space = known.FlatSpace(2, 2)
    strategy = reinforce(space)
    genotypes = space.sample(np.random.default_rng(0), 4)
    hopeless, fine = rollout_of(space, genotypes, [np.nan] * 4), rollout_of(space, genotypes, [0.1, 0.2, 0.3, 0.4])
    before = weights_of(strategy)
    for _ in range(MAX_SKIPPED - 1):
        assert strategy.learn(hopeless).num_skipped == 4
    assert torch.equal(weights_of(strategy), before)
    strategy.learn(fine)  # in a row means in a row
    assert not torch.equal(weights_of(strategy), before)
    for _ in range(MAX_SKIPPED - 1):
        strategy.learn(hopeless)
    resumed = reinforce(space)
    resumed.load_state_dict(strategy.state_dict())
    for each in (strategy, resumed):
        with pytest.raises(ControllerError, match=r"not finite in 5 updates in a row; lower controller\.learning_rate"):
            each.learn(hopeless)


def test_rounds_of_ppo_that_break_off_stop_the_search(known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first epoch is well each time, and the second not."""
    strategy, calls = known.build_controller("ppo", known.FlatSpace(3, 3), 10), []
    improve = Reinforce._improve

    def second_breaks(self: Reinforce, *arguments: Any) -> Update | None:
        calls.append(1)
        return None if len(calls) % 2 == 0 else improve(self, *arguments)

    monkeypatch.setattr(Reinforce, "_improve", second_breaks)
    with pytest.raises(ControllerError, match="5"):
        for seed in range(9):
            tokens = np.array([g.tokens for g in strategy.space.sample(np.random.default_rng(seed), 4)])
            evaluations = [Evaluation(Genotype("flat", tuple(row)), 0.5, 1.0, 1.0, 0) for row in tokens.tolist()]
            strategy.learn(Rollout(tokens, np.array(strategy.space.masks(tokens)), np.arange(4.0), evaluations))
    assert len(calls) == 10


def test_a_broken_gradient_changes_nothing(known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    space = known.FlatSpace(2, 2)
    strategy = reinforce(space)
    monkeypatch.setattr(strategy, "loss", lambda chosen, rewards: chosen.log_probability.sum() * torch.nan)
    before = weights_of(strategy)
    update = strategy.learn(rollout_of(space, space.sample(np.random.default_rng(0), 3), [1.0, 2.0, 3.0]))
    assert update.num_skipped == 3 and update.loss is None
    assert torch.equal(weights_of(strategy), before)


@pytest.mark.parametrize("baseline", ["leave_one_out", "ema"])
def test_the_state_goes_on_bit_by_bit(known: Any, baseline: Any, tmp_path: Path) -> None:
    space = known.tiny_macro()

    def go_on(strategy: Reinforce, rounds: range) -> list[Any]:
        seen = []
        for number in rounds:
            genotypes = strategy.sample(4, number)
            rewards = [sum(genotype.tokens) / 10 for genotype in genotypes]
            update = strategy.learn(rollout_of(space, genotypes, rewards))
            seen.append((genotypes, repr(update)))  # as text, for NaN, of what was not open, does not equal itself
        return seen

    settings = {"baseline": baseline, "entropy_weight": 0.1, "final_entropy_weight": 0.01}
    whole = reinforce(space, **settings)
    first, second = go_on(whole, range(4)), go_on(whole, range(4, 9))
    stopped, fresh = reinforce(space, **settings), reinforce(space, seed=0, **settings)
    assert go_on(stopped, range(4)) == first
    torch.save(stopped.state_dict(), tmp_path / "state.pt")
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert go_on(fresh, range(4, 9)) == second
    assert torch.equal(weights_of(fresh), weights_of(whole))


@pytest.mark.parametrize(
    "wrong",
    [{"learning_rate": 0.0}, {"clip": 0.0}, {"skip_prior": 0.0}, {"skip_prior": 1.0}, {"baseline_decay": 1.0}],
)
def test_settings_are_checked(known: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"the controller needs .*{next(iter(wrong))}"):
        reinforce(known.FlatSpace(2, 2), **wrong)


# Learning

UPDATES, EPISODES = 50, 32


def best_quality(strategy: Strategy, evaluator: Any, updates: int) -> tuple[float, float]:
    """The best quality seen, and the mean of the last tenth, through the real environment."""
    vector = gymnasium.make_vec(
        "luban/Architecture-v0", EPISODES, vectorization_mode="vector_entry_point",
        space=strategy.space, evaluator=evaluator, reward=Linear(target=1.0, alpha=1.0, beta=0.0),
    )  # fmt: skip
    qualities = []
    for number in range(updates):
        rollout = play(vector, strategy, number, seed=number)
        strategy.learn(rollout)
        qualities.append([evaluation.quality for evaluation in rollout.evaluations])
    return float(np.max(qualities)), float(np.mean(qualities[-max(1, updates // 10) :]))


def spaces(known: Any) -> Iterator[SearchSpace]:
    yield known.FlatSpace(6, 5)  # the size of NAS-Bench-201: 15,625 architectures
    yield known.tiny_macro(4, 3)  # 2 depths, operations of 6, connections


@pytest.mark.parametrize("which", [0, 1], ids=["flat", "macro"])
def test_it_finds_the_hidden_best_and_random_search_does_not(known: Any, which: int) -> None:
    found, beside = [], []
    for seed in range(10):
        space = list(spaces(known))[which]
        target = space.sample(np.random.default_rng(100 + seed), 1)[0]
        settings = PolicySettings(hidden=16, temperature=1.0, tanh_constant=2.5)
        strategy = Reinforce(
            space, seed, UPDATES, settings, learning_rate=0.03, entropy_weight=0.05, final_entropy_weight=0.001
        )
        found.append(best_quality(strategy, known.TargetEvaluator(target, space), UPDATES))
        beside.append(best_quality(RandomSearch(space, seed), known.TargetEvaluator(target, space), UPDATES))
    assert [best for best, _ in found] == [1.0] * 10
    assert np.mean([best for best, _ in beside]) < 0.99
    assert np.mean([late for _, late in found]) > np.mean([late for _, late in beside]) + 0.3


@pytest.mark.parametrize("name", CONTROLLERS)
@pytest.mark.parametrize("maker", ["flat", "cell", "macro"])
def test_every_configured_controller_plays_and_learns(known: Any, name: str, maker: str) -> None:
    space = {"flat": lambda: known.FlatSpace(4, 3), "cell": known.CellSpace, "macro": known.tiny_macro}[maker]()
    strategy: Strategy = known.build_controller(name, space, num_updates=3)
    assert isinstance(strategy, Strategy) and strategy.name
    evaluator = known.TargetEvaluator(space.sample(np.random.default_rng(0), 1)[0])
    vector = gymnasium.make_vec(
        "luban/Architecture-v0", 4, vectorization_mode="vector_entry_point",
        space=space, evaluator=evaluator, reward=Linear(target=1.0),
    )  # fmt: skip
    states, rollout = [], play(vector, strategy, 0, seed=0)
    for number in range(3):
        rollout = play(vector, strategy, number, seed=0)
        for row in rollout.tokens.tolist():
            space.genotype(row)
        again = play(vector, strategy, number, seed=0)
        np.testing.assert_array_equal(rollout.tokens, again.tokens)  # every draw follows from seed and round
        strategy.learn(rollout)
        states.append(copy.deepcopy(strategy.state_dict()))
    for genotype in strategy.sample(6, 0) or []:
        space.check(genotype)
    assert strategy.sample(6, 1) == strategy.sample(6, 1)
    twin: Strategy = known.build_controller(name, space, num_updates=3)
    twin.load_state_dict(states[1])
    twin.learn(rollout)
    np.testing.assert_array_equal(play(vector, twin, 7, seed=0).tokens, play(vector, strategy, 7, seed=0).tokens)
