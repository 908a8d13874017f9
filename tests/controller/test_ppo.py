"""The clipped objective, whose values and gradients follow from a ratio by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from controller.policy import PolicySettings
from controller.ppo import PPO

ADVANTAGE = torch.tensor([1.0, 1.0, -1.0, -1.0])


def ppo(known: Any, num_updates: int = 5) -> PPO:
    return PPO(known.FlatSpace(2, 2), 0, num_updates, PolicySettings(hidden=8), epochs=4, clip_ratio=0.2)


def test_no_more_is_gained_beyond_the_clip_but_all_is_lost(known: Any) -> None:
    strategy = ppo(known)
    strategy._drawn_at = torch.zeros(4)
    chosen: Any = SimpleNamespace(log_probability=torch.tensor([1.5, 0.5, 1.5, 0.5]).log())
    assert strategy.gain(chosen, ADVANTAGE).item() == pytest.approx((1.2 + 0.5 - 1.5 - 0.8) / 4)


def test_the_first_step_follows_the_gradient_of_reinforce(known: Any) -> None:
    log_probability = torch.tensor([-1.0, -2.0, -3.0, -4.0], requires_grad=True)
    chosen: Any = SimpleNamespace(log_probability=log_probability)
    (gradient,) = torch.autograd.grad(ppo(known).gain(chosen, ADVANTAGE), log_probability)
    torch.testing.assert_close(gradient, ADVANTAGE / 4)


def test_the_schedule_of_the_entropy_counts_every_epoch(known: Any) -> None:
    assert ppo(known, num_updates=5).num_updates == 5 * 4
