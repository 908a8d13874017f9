"""Costs are exact, and a latency is measured once."""

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from child import cost as module
from child.cost import (
    CostModel,
    Latency,
    count_macs,
    count_parameters,
    measure_latency,
    random_of_like_macs,
    width_of_like_cost,
)
from child.macro import MacroSpace
from child.recurrent import RecurrentSpace
from child.resnet import ResNet
from child.space import NetworkSpace


def test_costs_of_40_architectures_are_exact(network_space: NetworkSpace) -> None:
    input_shape = network_space.arguments["input_shape"]
    genotypes = set(network_space.sample(np.random.default_rng(11), 40))
    assert len(genotypes) > 20
    inputs = torch.zeros(1, *input_shape)
    seen = set()
    for number, genotype in enumerate(genotypes):
        network = network_space.network(genotype).eval()
        # Small images are counted on the processor four times as fast as on the meta device, with the same result.
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(inputs)
        macs, parameters = network_space.macs(genotype), network_space.parameters(genotype)
        assert macs == counter.get_total_flops() // 2, network_space.text(genotype)
        if number % 20 == 0:
            assert macs == count_macs(network, input_shape)
        assert parameters == sum(value.numel() for value in network.parameters()), network_space.text(genotype)
        seen.add((macs, parameters))
    assert len(seen) == 1 if isinstance(network_space, RecurrentSpace) else len(seen) > 5


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (15, 9), (31, 6)])
@pytest.mark.parametrize("num_reductions", [0, 1, 2])
def test_odd_sizes_are_counted_as_they_are_halved(size: tuple[int, int], num_reductions: int) -> None:
    space = MacroSpace((3, *size), 3, channels=4, num_layers=4, num_reductions=num_reductions)
    for genotype in space.sample(np.random.default_rng(0), 5):
        assert space.macs(genotype) == count_macs(space.network(genotype), (3, *size))


def test_count_macs_of_known_layers_leaves_the_network_as_it_was(fingerprint: Callable[[nn.Module], str]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5 * 4 * 6, 7))
    network.train()
    before = fingerprint(network)
    assert count_macs(network, (3, 4, 6)) == 3 * 5 * 9 * 24 + 5 * 24 * 7
    assert fingerprint(network) == before
    assert all(part.training for part in network.modules())
    assert {value.device.type for value in network.parameters()} == {"cpu"}


class Watching(nn.Module):
    """Notes how it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[tuple[int, ...], int, bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((tuple(x.shape), torch.get_num_threads(), self.training, torch.is_grad_enabled()))
        return x


@pytest.fixture
def two_threads() -> object:
    """More threads than a measurement uses."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_latency_is_measured_with_pinned_threads_that_come_back(device: torch.device) -> None:
    network = Watching().train()
    latency = measure_latency(network, (3, 4, 4), device, batch_size=2, num_warmup=3, num_repeats=5)
    assert latency.median_ms > 0
    assert latency.spread_ms >= 0
    assert network.calls == [((2, 3, 4, 4), 1, False, False)] * 8
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("input_shape", [(5,), (3, 5), (3, 4, 5)])
def test_latency_of_inputs_of_any_shape(device: torch.device, input_shape: tuple[int, ...]) -> None:
    network = Watching()
    measure_latency(network, input_shape, device, num_warmup=0, num_repeats=2)
    assert [shape for shape, *_ in network.calls] == [(1, *input_shape)] * 2


@pytest.mark.usefixtures("two_threads")
def test_threads_come_back_after_a_failure(device: torch.device) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        measure_latency(Broken(), (3, 4, 4), device)
    assert torch.get_num_threads() == 2


def test_latency_is_the_median_in_milliseconds(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    # The clock is read once in the warm-up, then before and after every pass, which take 1 to 5 seconds.
    readings = iter([0.0, *itertools.chain.from_iterable((0.0, seconds) for seconds in (1.0, 5.0, 3.0, 2.0, 4.0))])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(readings))
    latency = measure_latency(nn.Identity(), (1, 2, 2), device, num_warmup=1, num_repeats=5)
    assert latency == Latency(3000.0, 3000.0)  # quartiles 1.5, 3 and 4.5 seconds


def test_a_cost_model_gives_the_unit_asked_for(network_space: NetworkSpace, device: torch.device) -> None:
    genotype = network_space.sample(np.random.default_rng(0), 1)[0]
    shape = network_space.arguments["input_shape"]
    macs = CostModel(network_space, "macs", shape, device)(genotype)
    parameters = CostModel(network_space, "parameters", shape, device)(genotype)
    assert (macs, parameters) == (network_space.macs(genotype), network_space.parameters(genotype))
    assert macs != parameters
    assert isinstance(macs, float)


def test_a_latency_is_measured_once_per_genotype(
    macro: MacroSpace, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def measure(network: nn.Module, input_shape: tuple[int, ...], device: torch.device) -> Latency:
        measured.append((network, input_shape))
        return Latency(float(len(measured)), 0.5)

    monkeypatch.setattr(module, "measure_latency", measure)
    model = CostModel(macro, "latency_ms", (3, 8, 8), device)
    first, second = macro.sample(np.random.default_rng(0), 2)
    assert [model(first), model(second), model(first), model(second)] == [1.0, 2.0, 1.0, 2.0]
    assert [shape for _, shape in measured] == [(3, 8, 8)] * 2
    assert sum(p.numel() for p in measured[1][0].parameters()) == macro.parameters(second)

    again = CostModel(macro, "latency_ms", (3, 8, 8), device)
    again.load_state_dict(model.state_dict())
    assert [again(second), again(first)] == [2.0, 1.0]
    assert len(measured) == 2


@pytest.mark.parametrize("macs", [1, 3_000, 20_000, 61_234, 150_000])
def test_the_width_is_really_the_nearest(macs: int) -> None:
    shape = (3, 8, 8)
    gaps = {width: abs(count_macs(ResNet(shape, 5, width), shape) - macs) for width in range(1, 13)}
    width = width_of_like_cost(lambda width: ResNet(shape, 5, width), partial(count_macs, input_shape=shape), macs)
    assert gaps[width] == min(gaps.values())
    assert width < 12  # else the list above is too short to tell


def test_a_network_of_some_width_is_found_by_its_own_size() -> None:
    wanted = count_parameters(nn.Linear(6, 7))
    assert wanted == 49
    assert width_of_like_cost(lambda width: nn.Linear(6, width), count_parameters, wanted) == 7


def test_random_architectures_of_like_macs(network_space: NetworkSpace) -> None:
    space = network_space
    like = space.sample(np.random.default_rng(0), 2_000)[0]  # the first that is drawn, and so would be the first taken
    others = random_of_like_macs(space, like, 5, seed=0)
    assert len({like, *others}) == 6 and others == random_of_like_macs(space, like, 5, seed=0)
    wanted = space.macs(like)
    apart = [max(0.1, abs(space.macs(other) / wanted - 1)) for other in others]
    drawn = {other for other in space.sample(np.random.default_rng(0), 2_000) if other != like}
    assert apart == sorted(apart) == sorted(max(0.1, abs(space.macs(other) / wanted - 1)) for other in drawn)[:5]


class Vectors(nn.Module):
    """Products with vectors, and of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(5))
        self.both = nn.Bilinear(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores = x @ self.query
        other = torch.addmv(self.bias, x[0], self.query) + torch.dot(self.query, self.query)
        return self.both(x[:, 0], x[:, 1]) + scores.sum() + other.sum()


def test_products_with_vectors_are_counted() -> None:
    assert count_macs(Vectors(), (5, 8)) == 5 * 8 + 5 * 8 + 8 + 3 * 8 * 8
