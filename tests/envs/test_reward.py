"""Rewards by hand."""

import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from child.space import Evaluation, Genotype
from envs.reward import Absolute, Hard, Linear, Soft

KINDS = {"linear": Linear, "soft": Soft, "hard": Hard, "absolute": Absolute}


def evaluation(quality: float, cost: float, failure: str | None = None) -> Evaluation:
    return Evaluation(Genotype("any", (0,)), quality, cost, 1.0, 0, failure)


@pytest.mark.parametrize(
    ("reward", "quality", "cost", "expected"),
    [
        (Linear(target=100, alpha=0.9, beta=0.2), 0.5, 100, 0.45 + 0.1),  # at the target P_comp is 1/2
        (Linear(target=100, alpha=1, beta=0.34), 0.5, 200, 0.5 + 0.02),
        (Linear(target=100, alpha=1, beta=0.3, sharpness=1), 0.5, 200, 0.5 + 0.1),
        (Linear(target=100, alpha=1, beta=0.3), 0.5, 0, 0.8),  # free: P_comp is 1
        (Linear(target=100, alpha=1, beta=0), 0.5, 1e9, 0.5),
        (Linear(target=1e-300, alpha=1, beta=1, sharpness=100), 0.5, 1e300, 0.5),
        (Soft(target=100, weight=-0.5), 0.8, 100, 0.8),
        (Soft(target=100, weight=-0.5), 0.8, 400, 0.4),
        (Soft(target=100, weight=-0.5), 0.8, 25, 1.6),  # cheaper than the target pays
        (Hard(target=100, weight=-1), 0.8, 200, 0.4),
        (Hard(target=100, weight=-1), 0.8, 25, 0.8),  # cheaper than the target pays nothing
        (Absolute(target=100, weight=-0.1), 0.8, 100, 0.8),
        (Absolute(target=100, weight=-0.1), 0.8, 250, 0.65),
        (Absolute(target=100, weight=-0.1), 0.8, 50, 0.75),  # cheaper than the target costs too
    ],
)
def test_formulas_by_hand(reward: Any, quality: float, cost: float, expected: float) -> None:
    assert reward(evaluation(quality, cost)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_a_failure_of_unknown_cost_earns_no_more_than_the_worst_success(kind: Any) -> None:
    """Absolute goes below zero without end, so that a zero would be worth striving for."""
    earned = kind(target=100.0)(evaluation(0.0, math.nan)._replace(failure="out of memory"))
    assert math.isnan(earned) if kind is Absolute else earned == 0.0
    assert kind(target=100.0)(evaluation(0.01, 1e5)) >= (-math.inf if math.isnan(earned) else earned)


@pytest.mark.parametrize(
    ("reward", "text"),
    [
        (Linear(target=32976, beta=0.05), "quality + 0.05 / (1 + (macs / 32976)^4)"),
        (Soft(target=2.5, unit="latency_ms"), "quality * (latency_ms / 2.5)^-0.07"),
        (Hard(target=1000, unit="parameters"), "quality * min((parameters / 1000)^-1, 1)"),
        (Absolute(target=100, weight=-0.1), "quality - 0.1 * |macs / 100 - 1|"),
    ],
)
def test_the_formula_is_told(reward: Any, text: str) -> None:
    assert reward.formula() == text


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("target", [0.0, -1.0, math.inf, math.nan])
def test_a_target_is_a_cost_above_zero(kind: Any, target: float) -> None:
    with pytest.raises(ValueError, match=r"reward\.target must be a cost above 0 in macs, got"):
        kind(target=target)


@pytest.mark.parametrize("weights", [{"alpha": -1.0}, {"beta": -0.1}, {"beta": math.nan}])
def test_a_linear_reward_that_pays_for_cost_is_refused(weights: Any) -> None:
    with pytest.raises(ValueError, match=r"reward\.alpha and reward\.beta must be at least 0 .*, got "):
        Linear(target=1.0, **weights)


@pytest.mark.parametrize("kind", [Soft, Hard, Absolute])
@pytest.mark.parametrize("weight", [0.0, 0.07, math.nan])
def test_a_weight_that_pays_for_cost_is_refused(kind: Any, weight: float) -> None:
    with pytest.raises(ValueError, match=r"reward\.weight must be below 0"):
        kind(target=1.0, weight=weight)


def test_a_weight_that_would_overflow_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reward\.weight must be below 0 .* and at least -50, got -60"):
        Hard(target=1.0, weight=-60.0)
    assert Hard(target=1.0, weight=-50.0)(Evaluation(Genotype("flat", (0,)), 0.9, 0.0, 1.0, 0)) == 0.9


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("cost", [0.0, 1e-3, 1.0, 10.0, 1e6])
def test_a_failure_never_earns(kind: Any, cost: float) -> None:
    assert kind(target=10.0)(evaluation(0.0, cost, "training was not finite")) <= 0


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@given(quality=st.floats(0.01, 1), low=st.floats(1, 1e6), factor=st.floats(1.01, 100))
def test_more_cost_above_the_target_and_less_quality_never_pay(
    kind: Any, quality: float, low: float, factor: float
) -> None:
    reward = kind(target=1.0)
    assert reward(evaluation(quality, low * factor)) <= reward(evaluation(quality, low))
    assert reward(evaluation(quality / 2, low)) < reward(evaluation(quality, low))


@given(quality=st.floats(0, 1), low=st.floats(1e-3, 10), factor=st.floats(1.01, 100))
def test_linear_feels_the_cost_everywhere(quality: float, low: float, factor: float) -> None:
    reward = Linear(target=1.0, beta=1.0)
    assert reward(evaluation(quality, low * factor)) < reward(evaluation(quality, low))


def test_rewards_say_what_they_need() -> None:
    for kind in KINDS.values():
        assert {"target", "unit"} <= {field.name for field in fields(kind)}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@given(loss=st.floats(0, 5), first=st.floats(0, 4), second=st.floats(0, 4))
def test_the_loss_falls_with_the_cost_as_the_reward_rises(kind: Any, loss: float, first: float, second: float) -> None:
    """By as much as the reward itself, or its logarithm where it is a product."""
    reward = kind(target=1000.0)
    cheap, dear = 1000 * first, 1000 * second
    task_loss = torch.tensor(loss, dtype=torch.float64)
    losses = [reward.loss(task_loss, torch.tensor(cost, dtype=torch.float64)).item() for cost in (cheap, dear)]
    quality = math.exp(-loss)
    rewards = [reward(evaluation(quality, cost)) for cost in (cheap, dear)]
    if kind in (Soft, Hard):
        assert losses == pytest.approx([-math.log(each) for each in rewards], abs=1e-6)
    else:
        assert losses[0] - losses[1] == pytest.approx(rewards[1] - rewards[0], abs=1e-9)
        assert reward.loss(task_loss + 1, torch.tensor(cheap)).item() == pytest.approx(losses[0] + 1)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_the_loss_has_gradients_of_both(kind: Any) -> None:
    reward = kind(target=1000.0)
    task_loss, cost = (torch.tensor(value, requires_grad=True) for value in (0.5, 2000.0))
    by_loss, by_cost = torch.autograd.grad(reward.loss(task_loss, cost), [task_loss, cost])
    assert by_loss == 1 and by_cost > 0
    nothing = torch.tensor(0.0, requires_grad=True)  # an architecture that passes its input on
    (gradient,) = torch.autograd.grad(reward.loss(task_loss, nothing), [nothing], allow_unused=True)
    assert gradient is None or gradient.isfinite()


def test_without_a_cost_term_the_loss_is_that_of_the_task() -> None:
    loss = Linear(target=1.0, alpha=2.0, beta=0.0).loss(torch.tensor(0.7), torch.tensor(5.0))
    assert loss.item() == pytest.approx(1.4)
