"""How well untrained networks tell samples apart: counted by hand."""

import math

import pytest
import torch
from torch import nn

from child.expressivity import NOTHING, expressivity


def counted(weights: list[float], samples: list[list[float]]) -> float:
    linear = nn.Linear(1, len(weights), bias=False)
    linear.weight.data = torch.tensor(weights)[:, None]
    return expressivity(nn.Sequential(linear, nn.ReLU()), torch.tensor(samples))


def test_units_in_the_same_state_are_counted() -> None:
    # States of three units: (1, 0, 0) and (0, 1, 0), alike in one; each sample is like itself in all three.
    assert counted([1.0, -1.0, 0.0], [[1.0], [-1.0]]) == pytest.approx(math.log(3 * 3 - 1 * 1))


def test_layers_add_up_and_no_hook_stays() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU())
    samples = torch.randn(4, 2)
    first = network[:2](samples) > 0
    second = network(samples) > 0
    states = torch.cat([first, second], dim=1).double()
    kernel = states @ states.T + (1 - states) @ (1 - states).T
    assert expressivity(network, samples) == pytest.approx(float(torch.logdet(kernel))) and NOTHING < 0 < kernel.det()
    assert not any(part._forward_hooks for part in network.modules())


def test_what_tells_nothing_apart_says_nothing() -> None:
    assert counted([1.0, 2.0], [[1.0], [3.0]]) == NOTHING
    assert expressivity(nn.Linear(1, 2), torch.randn(3, 1)) == NOTHING


def test_rounding_tells_nothing_apart() -> None:
    """Of many samples two are the same: the kernel is singular, and yet its determinant comes out finite."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 500), nn.ReLU())
    samples = torch.randn(64, 8)
    assert expressivity(network, samples) > 0
    samples[40] = samples[3]
    assert expressivity(network, samples) == NOTHING
