"""Search by gradients, on problems whose answer is known."""

import copy
import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from child.space import Genotype, SearchSpace, derive_seed
from controller.gradient import DARTS, GDAS, GradientStrategy
from controller.reinforce import MAX_SKIPPED, ControllerError
from controller.strategy import Rollout

KINDS: list[type[GradientStrategy]] = [DARTS, GDAS]
TARGET = Genotype("flat", (2, 0, 1))

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@pytest.fixture
def space(known: Any) -> SearchSpace:
    return known.FlatSpace(3, 3)


def rollout() -> Rollout:
    """What was played, which teaches these strategies nothing."""
    return Rollout(np.zeros((1, 3), np.int64), np.ones((1, 3, 3), np.int8), np.array([0.5]), [])


def begun(strategy: GradientStrategy) -> Any:
    """The same, after its warm-up."""
    strategy.learn(rollout())
    return strategy


@every_kind
def test_it_finds_the_hidden_best(kind: type[GradientStrategy], known: Any) -> None:
    for seed in range(3):
        space = known.FlatSpace(6, 5)
        target = space.sample(np.random.default_rng(100 + seed), 1)[0]
        strategy = begun(kind(space, seed, 20, known.TargetRelaxation(target), learning_rate=0.1))
        assert strategy.derived() != target
        for round_number in range(20):
            assert len(list(strategy.alternate(10, 10 * round_number))) == 10
            strategy.learn(rollout())
        assert strategy.derived() == target
        right = [genotype == target for genotype in strategy.sample(100, 0)]
        assert np.mean(right) > 0.5  # of a uniform draw one in 15,625 is


@every_kind
def test_architectures_learn_by_the_published_adam(
    kind: type[GradientStrategy], space: SearchSpace, known: Any
) -> None:
    strategy = begun(kind(space, 0, 4, known.TargetRelaxation(TARGET), learning_rate=0.1, weight_decay=0.5))
    ours = [strategy.logits.detach().clone().requires_grad_()]
    adam = torch.optim.Adam(ours, 0.1, (0.5, 0.999), weight_decay=0.5)
    for step in range(3):
        strategy._improve(step)
        assert strategy.logits.grad is not None
        ours[0].grad = strategy.logits.grad.clone()
        adam.step()
        torch.testing.assert_close(strategy.logits, ours[0])


@pytest.mark.parametrize("order", [1, 2])
def test_darts_follows_the_gradient_of_the_blend(order: Literal[1, 2], space: SearchSpace, known: Any) -> None:
    relaxation = known.TargetRelaxation(TARGET)
    strategy = begun(DARTS(space, 0, 4, relaxation, order, learning_rate=0.1, weight_decay=0.0))
    chances = strategy.probabilities().detach()
    before = strategy.logits.detach().clone()
    (path,) = strategy.alternate(1, 17)
    assert relaxation.calls == [(17, order == 2)]
    # Of 1 - mean of the target's probabilities: -p_target (1{target} - p) / T.
    of_target = chances.gather(1, relaxation.target[:, None])
    wanted = -of_target * (torch.eye(3)[relaxation.target] - chances) / 3
    torch.testing.assert_close(strategy.logits.grad, wanted)
    torch.testing.assert_close(
        strategy.logits.detach(), before - 0.1 * wanted.sign(), atol=1e-5, rtol=0
    )  # Adam's first
    torch.testing.assert_close(path, strategy.probabilities().detach())  # training comes after the step


def test_gdas_samples_hard_and_follows_the_soft_gradient(space: SearchSpace, known: Any) -> None:
    strategy = begun(GDAS(space, 0, 11, known.TargetRelaxation(TARGET), learning_rate=0.1))
    assert strategy.temperature() == pytest.approx(10 - 0.99)
    counts, weights = torch.zeros(3, 3), torch.rand(3, 3)
    with torch.no_grad():
        strategy.logits.copy_(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))
    for step in range(1500):
        hard = strategy.relaxed(step)
        assert set(hard.unique().tolist()) == {0.0, 1.0} and hard.sum(dim=1).tolist() == [1.0] * 3
        counts += hard.detach()
        if step < 3:
            (found,) = torch.autograd.grad((weights * hard).sum(), [strategy.logits])
            # By hand, of the softmax at the temperature: J^T w = p * (w - <p, w>) / temperature.
            rng = np.random.default_rng(derive_seed(0, "gdas", "noise", step))
            noisy = strategy.logits.detach().log_softmax(1) + torch.from_numpy(rng.gumbel(size=(3, 3))).float()
            soft = (noisy / strategy.temperature()).softmax(1)
            wanted = soft * (weights - (soft * weights).sum(1, keepdim=True)) / strategy.temperature()
            torch.testing.assert_close(
                found, wanted - strategy.logits.detach().softmax(1) * wanted.sum(1, keepdim=True)
            )
    torch.testing.assert_close(counts / 1500, strategy.probabilities().detach(), atol=0.05, rtol=0)


def test_the_temperature_of_gdas_falls_linearly(space: SearchSpace, known: Any) -> None:
    strategy = GDAS(space, 0, 5, known.TargetRelaxation(TARGET), temperature=4.0, final_temperature=1.0)
    found = []
    for _ in range(7):
        found.append(strategy.temperature())
        strategy.learn(rollout())
    assert found == pytest.approx([4, 3.25, 2.5, 1.75, 1, 1, 1])


@every_kind
def test_the_architecture_rests_while_weights_are_warmed_up(
    kind: type[GradientStrategy], space: SearchSpace, known: Any
) -> None:
    relaxation = known.TargetRelaxation(TARGET)
    strategy = kind(space, 0, 4, relaxation)
    before = strategy.logits.detach().clone()
    paths = list(strategy.alternate(3, 0))
    assert relaxation.calls == [] and torch.equal(strategy.logits, before)
    for path in paths:
        if isinstance(path, Tensor):
            assert path.shape == (3, 3) and path.sum(dim=1).tolist() == pytest.approx([1] * 3)
        else:
            space.check(path)
    begun(strategy)
    list(strategy.alternate(3, 3))
    assert [step for step, _ in relaxation.calls] == [3, 4, 5] and not torch.equal(strategy.logits, before)


@every_kind
def test_it_plays_what_it_derives_and_samples_beside(
    kind: type[GradientStrategy], space: SearchSpace, known: Any
) -> None:
    strategy = kind(space, 0, 4, known.TargetRelaxation(TARGET))
    with torch.no_grad():
        strategy.logits.copy_(torch.tensor([[0.0, 1, 2], [2, 1, 0], [0, 2, 1]]))
    first, *others = strategy.propose(4001, 0)
    assert first == strategy.derived() == TARGET
    tokens = np.array([genotype.tokens for genotype in others])
    chances = np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum()
    for step, order in enumerate(([0, 1, 2], [2, 1, 0], [0, 2, 1])):
        np.testing.assert_allclose(np.bincount(tokens[:, step]) / 4000, chances[order], atol=0.03)
    assert strategy.propose(1, 0) == [TARGET] and strategy.choice() == TARGET


@every_kind
def test_updates_tell_what_was_learned(kind: type[GradientStrategy], space: SearchSpace, known: Any) -> None:
    strategy = kind(space, 0, 4, known.TargetRelaxation(TARGET))
    update = strategy.learn(rollout())
    assert (update.loss, update.gradient_norm, update.note) == (None, None, None)
    assert update.entropy == pytest.approx(3 * math.log(3), abs=1e-4)
    list(strategy.alternate(5, 0))
    update = strategy.learn(rollout())
    assert update.loss is not None and 0 <= update.loss <= 1 and update.gradient_norm is not None
    assert update.probabilities is not None
    torch.testing.assert_close(torch.tensor(update.probabilities), strategy.probabilities().detach())
    assert strategy.learn(rollout()).loss is None


@every_kind
def test_choices_that_do_not_exist_have_no_probability(kind: type[GradientStrategy], known: Any) -> None:
    space = known.CellSpace()
    strategy = begun(kind(space, 0, 4, known.TargetRelaxation(space.sample(np.random.default_rng(0), 1)[0])))
    list(strategy.alternate(20, 0))
    assert not strategy.probabilities()[~torch.from_numpy(space.full_masks).bool()].any()
    for path in [*strategy.sample(50, 0), strategy.derived()]:
        space.check(path)


@every_kind
def test_learning_stops_before_too_many_skips(kind: type[GradientStrategy], known: Any) -> None:
    space = known.FlatSpace(6, 4)
    target = space.sample(np.random.default_rng(3), 1)[0]

    def learned(max_skips: int | None) -> tuple[Any, list[str | None], list[Tensor]]:
        strategy = begun(kind(space, 0, 30, known.TargetRelaxation(target), learning_rate=0.05, max_skips=max_skips))
        with torch.no_grad():  # spread, so that right choices are found one after the other
            strategy.logits.copy_(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
        notes, logits = [], []
        for number in range(30):
            list(strategy.alternate(5, 5 * number))
            notes.append(strategy.learn(rollout()).note)
            logits.append(strategy.logits.detach().clone())
        return strategy, notes, logits

    free, notes, _ = learned(None)
    assert free.derived() == target and notes == [None] * 30
    stopped, notes, logits = learned(3)
    assert stopped.relaxation.num_skips(stopped.derived()) <= 3
    assert stopped.stopped_in is not None
    (told,) = [number for number, note in enumerate(notes, 1) if note]  # once, in the round that begun() left at 1
    assert told == stopped.stopped_in
    assert notes[told - 1] == (
        f"{kind.name} stopped learning in round {told}: the next step would derive more than 3 skip-connections"
    )
    assert all(torch.equal(later, logits[told - 1]) for later in logits[told:])
    again = kind(space, 0, 30, known.TargetRelaxation(target), learning_rate=0.05, max_skips=3)
    again.load_state_dict(copy.deepcopy(stopped.state_dict()))
    list(again.alternate(5, 150))
    assert torch.equal(again.logits, stopped.logits) and again.learn(rollout()).note is None


@every_kind
def test_many_skips_from_the_start_do_not_stop_it(kind: type[GradientStrategy], space: SearchSpace, known: Any) -> None:
    strategy = kind(space, 0, 4, known.TargetRelaxation(TARGET), max_skips=0)
    with torch.no_grad():
        strategy.logits.copy_(torch.eye(3)[torch.tensor(TARGET.tokens)])
    list(begun(strategy).alternate(3, 0))
    assert strategy.stopped_in is None and len(strategy.steps) == 3


@every_kind
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_steps_that_are_not_finite_are_left_out(
    kind: type[GradientStrategy], where: str, space: SearchSpace, known: Any
) -> None:
    class Breaks(known.TargetRelaxation):
        broken: tuple[int, ...] = (1, 3)

        def loss(self, choices: Tensor, step: int, unrolled: bool = False) -> Tensor:
            value = super().loss(choices, step)
            if step not in self.broken:
                return value
            return value * math.nan if where == "loss" else value + (value - value.detach()).sqrt()

    relaxation = Breaks(TARGET)
    strategy = begun(kind(space, 0, 4, relaxation))
    list(strategy.alternate(1, 0))
    before = strategy.logits.detach().clone()
    list(strategy.alternate(1, 1))
    assert torch.equal(strategy.logits, before)
    list(strategy.alternate(3, 2))
    update = strategy.learn(rollout())
    assert update.num_skipped == 2 and update.loss is not None and math.isfinite(update.loss)
    relaxation.broken = tuple(range(5, 99))
    with pytest.raises(ControllerError, match=f"not finite in {MAX_SKIPPED} steps in a row"):
        list(strategy.alternate(MAX_SKIPPED, 5))


@every_kind
def test_a_step_for_which_memory_does_not_last_is_skipped(
    kind: type[GradientStrategy], space: SearchSpace, known: Any
) -> None:
    class TooLarge(known.TargetRelaxation):
        def loss(self, choices: Tensor, step: int, unrolled: bool = False) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    strategy = begun(kind(space, 0, 4, TooLarge(TARGET)))
    before = strategy.logits.detach().clone()
    list(strategy.alternate(MAX_SKIPPED - 1, 0))
    assert torch.equal(strategy.logits, before) and strategy.num_skipped == MAX_SKIPPED - 1
    with pytest.raises(ControllerError, match=r"memory ran out .* in a row; lower evaluator\.settings\.batch_size"):
        list(strategy.alternate(1, MAX_SKIPPED - 1))


@every_kind
def test_it_goes_on_from_within_a_round(kind: type[GradientStrategy], space: SearchSpace, known: Any) -> None:
    def make() -> Any:
        return kind(space, 0, 4, known.TargetRelaxation(TARGET), learning_rate=0.05)

    strategy = begun(make())
    list(strategy.alternate(4, 0))
    twin = make()
    twin.load_state_dict(copy.deepcopy(strategy.state_dict()))
    for one in (strategy, twin):
        list(one.alternate(4, 4))
    assert strategy.learn(rollout()) == twin.learn(rollout())
    assert torch.equal(strategy.logits, twin.logits) and strategy.propose(5, 1) == twin.propose(5, 1)


@every_kind
def test_what_is_missing_is_told(kind: type[GradientStrategy], space: SearchSpace) -> None:
    with pytest.raises(
        ValueError,
        match=f"{kind.name} learns by gradients, which takes evaluator=supernet with evaluator.copies=1, a space .*",
    ):
        kind(space, 0, 4, None)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (DARTS, {"learning_rate": 0.0}), (DARTS, {"weight_decay": -1.0}), (GDAS, {"max_skips": -1}),
        (GDAS, {"temperature": 0.0}), (GDAS, {"final_temperature": 0.0}),
    ],
)  # fmt: skip
def test_settings_are_checked(kind: type[GradientStrategy], wrong: Any, space: SearchSpace, known: Any) -> None:
    with pytest.raises(ValueError, match=rf"{kind.name} needs .*"):
        kind(space, 0, 4, known.TargetRelaxation(TARGET), **wrong)
