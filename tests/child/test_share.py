"""Shared values, cut connections and tied layers, and that training keeps what a network was given."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from child.cost import count_parameters
from child.network import Blueprint, TrainedNetwork, load_network, save_network
from child.resnet import ResNet
from child.share import ShareSettings, hold, release, share_values, tie_alike, to_nearest, weights_of
from child.space import NetworkSpace
from child.sparsify import SparsifySettings, cut_connections
from child.task import Classification, Task
from child.training import FineTuning, Training, TrainingSettings
from child.transforms import Normalize

SHAPE = (3, 8, 8)


def network() -> nn.Module:
    torch.manual_seed(0)
    return ResNet(SHAPE, 3, 8)


def learn(module: nn.Module, task: Task, device: torch.device) -> None:
    training = Training(module.train(), task, TrainingSettings(epochs=2, batch_size=16), None, 0, "test", device)
    while not training.finished:
        training.step()


def test_two_clusters_by_hand() -> None:
    values = np.array([0.0, 0.1, 0.2, 5.0, 5.2], np.float32)
    np.testing.assert_allclose(to_nearest(values, 2), [0.1, 0.1, 0.1, 5.1, 5.1], rtol=1e-6)


def test_no_value_could_go_to_a_nearer_center_and_no_center_is_off_its_mean() -> None:
    values = np.random.default_rng(0).normal(size=2000).astype(np.float32)
    rounded = to_nearest(values, 16)
    centers = np.unique(rounded)
    assert len(centers) <= 16
    nearest = centers[np.abs(values[:, None] - centers).argmin(axis=1)]
    np.testing.assert_array_equal(rounded, nearest)
    for center in centers:
        assert values[rounded == center].mean() == pytest.approx(center, abs=1e-5)
    even = np.linspace(values.min(), values.max(), 16)
    without = even[np.abs(values[:, None] - even).argmin(axis=1)]
    assert ((values - rounded) ** 2).mean() < 0.8 * ((values - without) ** 2).mean()


@pytest.mark.parametrize("num", [2, 16, 200])
def test_every_weight_takes_few_values_and_zeros_stay(num: int) -> None:
    module = network()
    cut_connections(module, 0.3, "layer")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    share_values(module, num)
    for name, value in module.state_dict().items():
        if value.ndim > 1 and value.numel() >= 8 * num:
            assert len(value.unique()) <= num
            assert bool((value == 0).eq(before[name] == 0).all())
        else:
            assert value.equal(before[name])


@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_gradients_are_summed_over_each_value(rate: float) -> None:
    """By enumeration: what the table learns is the sum of what its weights would learn, or a share of that."""
    module = network()
    cut_connections(module, 0.2, "layer")
    share_values(module, 4)
    plain = {name: parameter for name, parameter in module.named_parameters() if parameter.ndim > 1}
    inputs, targets = torch.randn(5, *SHAPE), torch.tensor([0, 1, 2, 0, 1])
    nn.functional.cross_entropy(module(inputs), targets).backward()
    gradients = {name: (value.detach().clone(), value.grad.clone()) for name, value in plain.items()}  # type: ignore
    module.zero_grad()
    hold(module, rate)
    nn.functional.cross_entropy(module(inputs), targets).backward()
    checked = 0
    for name, (value, gradient) in gradients.items():
        layer = module.get_submodule(name.rpartition(".")[0])
        table = layer.parametrizations["weight"].original  # type: ignore[index]
        if table.ndim > 1:  # too few weights for a codebook
            continue
        checked += 1
        for place, each in enumerate(table.tolist()):
            wanted = rate * gradient[value == each].sum() if each != 0 else torch.tensor(0.0)
            torch.testing.assert_close(table.grad[place], wanted, rtol=1e-3, atol=1e-5)
    assert checked >= 8


def test_training_keeps_values_zeros_and_ties(task: Task, device: torch.device) -> None:
    module = network()
    tie_alike(module)
    cut_connections(module, 0.4, "global")
    share_values(module, 8)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    num = count_parameters(module)
    learn(hold(module), task, device)
    release(module)
    assert count_parameters(module) == num
    changed = 0
    for name, value in module.state_dict().items():
        if value.ndim > 1:
            old = before[name]
            assert bool((value == 0).eq(old == 0).all())
            if value.numel() >= 64:
                pairs = torch.stack([old.flatten(), value.flatten()], 1).unique(dim=0)
                assert len(pairs) <= len(old.unique())  # equal weights stayed equal
            changed += not value.equal(old)
    assert changed > 8
    first, second = module.stages[0].body[0], module.stages[0].body[3]  # type: ignore[index]
    assert first.weight is second.weight


class Quiet(nn.Module):
    """A layer that does not tell its sizes."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))


def test_layers_are_tied_that_are_known_to_be_alike() -> None:
    module = nn.Sequential(
        nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4, bias=False), Quiet(4, 5), Quiet(4, 5), Quiet(5, 4)
    )
    tie_alike(module)
    first, second, third, *quiet = module
    assert first.weight is second.weight and first.weight is not third.weight
    assert len({id(layer.weight) for layer in quiet}) == 3


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_what_is_no_connection_is_left_alone() -> None:
    module = nn.Sequential(
        nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
    )  # fmt: skip
    module.register_parameter("scale", nn.Parameter(torch.ones(4, 1, 1)))
    module.register_parameter("table", nn.Parameter(torch.arange(12).view(3, 4), requires_grad=False))
    module.register_parameter("waves", nn.Parameter(torch.ones(3, 4, dtype=torch.complex64)))
    assert [(layer, name) for layer, name in weights_of(module)] == [(module[3], "weight")]


def test_what_has_few_values_already_keeps_them() -> None:
    """Sharing once more would begin again from even centers, and merge some; a tied weight is one of several layers."""
    module = network()
    tie_alike(module)
    weights = [getattr(layer, name) for layer, name in weights_of(module)]
    alone = {id(w): to_nearest(w.detach().numpy().reshape(-1), 16) for w in weights if w.numel() >= 128}
    share_values(module, 16)
    assert len(alone) < sum(w.numel() >= 128 for w in weights)  # some are tied
    for weight in weights:
        if id(weight) in alone:
            assert np.array_equal(weight.detach().numpy().reshape(-1), alone[id(weight)])
    shared = [weight.clone() for weight in weights]
    share_values(module, 16)
    assert all(weight.equal(before) for weight, before in zip(weights, shared, strict=True))


def test_every_space_answers_alike_while_it_is_held(
    network_space: NetworkSpace, inputs_of: Callable[..., Tensor]
) -> None:
    module = network_space.network(network_space.sample(np.random.default_rng(0), 1)[0]).eval()
    cut_connections(module, 0.2, "layer")
    share_values(module, 3)
    inputs = inputs_of(network_space)
    names, plain = list(module.state_dict()), module(inputs)
    torch.testing.assert_close(hold(module)(inputs), plain)
    torch.testing.assert_close(release(module)(inputs), plain)
    assert sorted(module.state_dict()) == sorted(names)


def test_what_the_user_parametrized_stays_as_it_is() -> None:
    torch.manual_seed(0)
    module: Any = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 64)), nn.Linear(64, 16))
    names, inputs = list(module.state_dict()), torch.randn(3, 8)
    share_values(module, 4)
    wanted = module(inputs)
    assert len(module[1].weight.unique()) == 4
    torch.testing.assert_close(release(hold(module))(inputs), wanted)
    assert sorted(module.state_dict()) == sorted(names)


def test_what_the_user_froze_stays_frozen() -> None:
    module = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 16))
    module[0].requires_grad_(False)
    share_values(module, 4)
    for _ in range(2):
        held = {name for name, each in hold(module).named_parameters() if not each.requires_grad}
        assert held == {"0.bias", "0.parametrizations.weight.original"}
        assert [each.requires_grad for each in release(module).parameters()] == [False, False, True, True]


def test_a_network_without_structure_is_not_touched() -> None:
    module = network()
    names = list(module.state_dict())
    assert list(hold(module).state_dict()) == names


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_exactly_so_many_connections_are_cut_the_smallest(scope) -> None:
    module = network()
    before = {id(layer): getattr(layer, name).detach().clone() for layer, name in weights_of(module)}
    cut_connections(module, 0.7, scope)
    after = {id(layer): getattr(layer, name).detach() for layer, name in weights_of(module)}
    sets = [list(before)] if scope == "global" else [[key] for key in before]
    for keys in sets:
        old, new = (torch.cat([table[key].flatten() for key in keys]) for table in (before, after))
        assert int((new == 0).sum()) == round(0.7 * len(new))
        assert old[new == 0].abs().max() <= old[new != 0].abs().min()
        assert new[new != 0].equal(old[new != 0])


def test_the_sparsity_grows_by_the_published_schedule() -> None:
    settings = SparsifySettings(FineTuning(1, 0.1), sparsity=0.8, rounds=4)
    assert [settings.after(k) for k in range(5)] == pytest.approx(
        [0.8 + (0 - 0.8) * (1 - k / 4) ** 3 for k in range(5)]  # Zhu and Gupta 2017, eq. 1
    )


def test_a_small_network_is_small_on_disk_and_comes_back(tmp_path: Path) -> None:
    blueprint = Blueprint("child.resnet.ResNet", {"input_shape": [3, 8, 8], "num_outputs": 3, "width": 32})

    def save(module: nn.Module, name: str) -> int:
        preparation = Normalize(1.0, (0.0,) * 3, (1.0,) * 3)
        trained = TrainedNetwork(module, blueprint, SHAPE, Classification(("a", "b", "c")), preparation)
        save_network(trained, tmp_path / name)
        return sum(file.stat().st_size for file in (tmp_path / name).iterdir())

    torch.manual_seed(0)
    module = blueprint.build().eval()
    whole = save(module, "whole")
    tie_alike(module)
    share_values(module, 16)
    shared = save(module, "shared")
    assert shared < whole / 6
    loaded = load_network(tmp_path / "shared").module
    inputs = torch.rand(3, *SHAPE)
    assert loaded(inputs).equal(module(inputs))
    assert count_parameters(loaded) == count_parameters(module) < count_parameters(blueprint.build())


@pytest.mark.parametrize("values", [1, 257])
def test_settings_out_of_range_are_refused(values: int) -> None:
    with pytest.raises(ValueError, match=f"share.values must be from 2 to 256, got {values}"):
        ShareSettings(FineTuning(1, 0.1), values)
    with pytest.raises(ValueError, match="fine-tuning needs epochs >= 0 and rate > 0"):
        FineTuning(-1, 0.1)
    with pytest.raises(ValueError, match=r"sparsify.sparsity is a share of the weights in \(0, 1\), got 1"):
        SparsifySettings(FineTuning(1, 0.1), sparsity=1.0)
