"""Channels removed: what is left is what it claims to be, of every space and of a module of a user's."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from child.cost import count_macs, count_parameters
from child.lstm import LSTMLanguageModel
from child.mobile import MobileSpace
from child.network import Blueprint, TrainedNetwork, load_network, resize, save_network
from child.prune import (
    Group,
    across,
    find_groups,
    fit,
    gather_statistics,
    keep_shares,
    remove_units,
    score_units,
    trace,
    uniform,
)
from child.recurrent import RecurrentSpace
from child.resnet import ResNet
from child.space import NetworkSpace
from child.task import Classification, Regression, SealedSplit, Split, Task, WithAuxiliary
from child.transforms import Normalize

SHAPE = (3, 8, 8)


class Mixed(nn.Module):
    """Residuals, a concatenation, depthwise and grouped convolutions, and a linear map of flattened features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.side = nn.Conv2d(8, 4, 1)
        self.mix = nn.Conv2d(16, 6, 1)
        self.hidden = nn.Linear(6 * 16, 10)
        self.last = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.depthwise(torch.relu(self.body(x)))
        x = torch.cat([self.grouped(x), self.side(x)], dim=1)
        x = nn.functional.max_pool2d(self.mix(torch.relu(x)), 2)
        return self.last(torch.relu(self.hidden(x.flatten(1))))


class Fixed(nn.Module):
    """Which relies on numbers of channels that are written down, but for its first layer.

    Of a concatenation the parts of a grouped convolution cannot be made smaller alike by one of its sources alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(8, 4, 1)
        self.grouped = nn.Conv2d(10, 6, 1, groups=2)
        self.last = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        y = self.grouped(torch.cat([self.second(x), self.third(x)], dim=1))
        return self.last(y.mean(dim=(2, 3)).view(-1, 2, 3).sum(dim=1))


class Row(nn.Module):
    """Pixels in a row, read by a layer that keeps the size it was built with."""

    def __init__(self, reader: nn.Module) -> None:
        super().__init__()
        self.embed, self.reader = nn.Conv2d(3, 16, 1), reader
        self.hidden, self.last = nn.Linear(16, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = self.reader(x, x, x)[0] if isinstance(self.reader, nn.MultiheadAttention) else self.reader(x)
        x = x[0] if isinstance(self.reader, nn.LSTM) else x
        return self.last(torch.relu(self.hidden(x.mean(dim=1))))


class Between(nn.Module):
    """Something between two convolutions, of 16 channels or as many as it gives."""

    def __init__(self, body: Callable[[Tensor], Tensor], norm: nn.Module | None = None, given: int = 16) -> None:
        super().__init__()
        self.stem, self.norm, self.body = nn.Conv2d(3, 16, 3), norm or nn.Identity(), body
        self.head, self.last = nn.Conv2d(given, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(torch.relu(self.norm(self.stem(x))))
        return self.last(torch.relu(self.head(x)).mean(dim=(2, 3)))


class Fused(nn.Module):
    """Attention of two heads over pixels, by one linear map for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.project(x.flatten(2).transpose(1, 2))
        query, key, value = (each.unflatten(-1, (2, -1)).transpose(1, 2) for each in maps)
        y = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return x + self.out(y).transpose(1, 2).unflatten(2, x.shape[2:])

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv(x).chunk(3, dim=-1)


class Separate(Fused):
    """The same by three linear maps."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.qkv = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.query(x), self.key(x), self.qkv(x)


class NonLocal(nn.Module):
    """Every pixel sees all (Wang et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.theta, self.phi, self.g, self.out = (nn.Conv2d(*sizes, 1) for sizes in ((16, 8),) * 3 + ((8, 16),))

    def forward(self, x: Tensor) -> Tensor:
        theta, phi, g = (layer(x).flatten(2) for layer in (self.theta, self.phi, self.g))
        y = g @ (theta.transpose(1, 2) @ phi).softmax(dim=-1).transpose(1, 2)
        return x + self.out(y.unflatten(2, x.shape[2:]))


class Gated(nn.Module):
    """One half of a layer opens the other."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(16, 32, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.wide(x).chunk(2, dim=1)
        return x + self.narrow(first * nn.functional.gelu(second))


class Ghost(nn.Module):
    """Half of the channels are made from the other half (Han et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.primary, self.cheap = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.primary(x))
        return torch.cat([x, self.cheap(x)], dim=1)


class ChannelsLast(nn.Module):
    """A layer normalization and a small perceptron of each pixel, scaled (Liu et al. 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.wide, self.narrow = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.gamma = nn.Parameter(torch.full((16,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(nn.functional.gelu(self.wide(self.norm(x.permute(0, 2, 3, 1)))))
        return x + (self.gamma * y).permute(0, 3, 1, 2)


class Beside(nn.Module):
    """A concatenation with half of it made anew, normalized as a whole."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.side, self.norm = nn.Conv2d(16, 8, 1), norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.cat([x, self.side(x)], dim=1))


class Solid(nn.Module):
    """Convolutions of three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(1, 8, 3), nn.Conv3d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x[:, None]))).mean(dim=2)


class Twins(nn.Module):
    """Two layers of the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class Helped(nn.Module):
    """With an auxiliary head in training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.last, self.auxiliary = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor | WithAuxiliary:
        x = torch.relu(self.first(x))
        y = self.last(torch.relu(self.second(x)).mean(dim=(2, 3)))
        return WithAuxiliary(y, self.auxiliary(x.mean(dim=(2, 3))), 0.4) if self.training else y


class BothWays(nn.Module):
    """Rows of an image, read both ways by a recurrent layer."""

    def __init__(self, kind: Callable[..., nn.RNNBase]) -> None:
        super().__init__()
        self.first = kind(8, 8, 2, batch_first=True, bidirectional=True)
        self.second, self.last = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(self.first(x[:, 0])[0].mean(dim=1))))


class Symbols(nn.Module):
    """Reads symbols, of which the first is nothing, and reverses features."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 8, padding_idx=0)
        self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(self.embedding(x.long()))).flip(-1)
        return self.last(torch.relu(self.second(x)))


def pruned(module: nn.Module, shape: tuple[int, ...], share: float = 0.5) -> nn.Module:
    groups = find_groups(module, shape)
    scores = score_units(module, shape, groups, "magnitude")
    return remove_units(module, shape, groups, scores, keep_shares(groups, uniform(groups, scores, share)))


def rebuilt(module: nn.Module, weights: Mapping[str, Tensor]) -> Any:
    """A network as it is built, resized to what is left of its weights."""
    module = copy.deepcopy(module).eval()
    resize(module, weights)
    module.load_state_dict(weights)
    return module


def macs_by_layer(module: nn.Module, inputs: Tensor) -> int:
    """Counted from what every layer gives: an output takes a multiplication by each of its weights."""
    found = []

    def count(layer: nn.Module, given: object, outputs: Tensor) -> None:
        found.append(outputs[0].numel() * layer.weight[0].numel())  # type: ignore[index, operator]

    handles = [
        layer.register_forward_hook(count) for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    module(inputs)
    for handle in handles:
        handle.remove()
    return sum(found)


def sizes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def test_half_of_a_plain_network_by_hand() -> None:
    """Two convolutions and a linear map: which channels stay, and what is left of every weight, is worked out."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.Flatten(), nn.Linear(6 * 36, 3))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    smaller = pruned(net, SHAPE)
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())  # a copy was pruned

    def best(first: Tensor, second: Tensor) -> list[int]:
        """Of out-channels: the half with the largest sum of squares, coming and going."""
        size = first.pow(2).flatten(1).sum(1) + second.pow(2).sum(1)
        return size.argsort()[len(size) // 2 :].sort().values.tolist()

    w0, w2, w4 = before["0.weight"], before["2.weight"], before["4.weight"]
    ours = best(w0, w2.transpose(0, 1).flatten(1))
    flat = w4.view(3, 6, 36)
    # The importance of a flattened channel is that of all its positions.
    theirs = best(w2, flat.permute(1, 0, 2).flatten(1))
    after = smaller.state_dict()
    assert after["0.weight"].equal(w0[ours]) and after["0.bias"].equal(before["0.bias"][ours])
    assert after["2.weight"].equal(w2[theirs][:, ours])
    assert after["4.weight"].equal(flat[:, theirs].flatten(1)) and after["4.bias"].equal(before["4.bias"])
    assert count_macs(smaller, SHAPE) == 27 * 2 * 36 + 2 * 3 * 36 + 3 * 36 * 3


def test_every_space_stays_a_network(
    network_space: NetworkSpace, inputs_of: Callable[..., Tensor], unsettle: Callable[[nn.Module], None]
) -> None:
    """Of any batch size, by the weights that are left alone, and with its costs as counted layer by layer."""
    if isinstance(network_space, RecurrentSpace):
        with pytest.raises(ValueError, match="RecurrentNetwork has no channels that can be pruned"):
            find_groups(network_space.network(network_space.sample(np.random.default_rng(0), 1)[0]), (9,))
        return
    shape = tuple(network_space.arguments["input_shape"])
    for genotype in network_space.sample(np.random.default_rng(4), 1):
        module = network_space.network(genotype)
        unsettle(module)
        smaller = pruned(module, shape, 0.6).eval()
        assert count_parameters(smaller) < count_parameters(module)
        assert count_macs(smaller, shape) < count_macs(module, shape)
        inputs = inputs_of(network_space, 7)
        outputs = smaller(inputs)
        assert outputs.shape == module.eval()(inputs).shape and bool(outputs.isfinite().all())
        torch.testing.assert_close(torch.cat([smaller(x[None]) for x in inputs]), outputs, rtol=1e-3, atol=1e-4)
        assert rebuilt(network_space.network(genotype), smaller.state_dict())(inputs).equal(outputs)
        assert count_macs(smaller, shape) == macs_by_layer(smaller, inputs[:1])


@pytest.mark.parametrize("make", [Mixed, lambda: ResNet(SHAPE, 3, 8)], ids=["mixed", "resnet"])
def test_channels_that_nothing_reads_can_go(make: Callable[[], nn.Module], unsettle: Callable[..., None]) -> None:
    """A network with weights of zero where removed channels are read answers as what is left of it."""
    torch.manual_seed(0)
    module = make().eval()
    unsettle(module)
    groups = find_groups(module, SHAPE)
    inputs = torch.rand(5, *SHAPE)
    for group in groups:
        dead, (graph, _) = copy.deepcopy(module), trace(module, SHAPE)
        scores = score_units(module, SHAPE, groups, "magnitude")
        order = scores[group.name].argsort(stable=True).tolist()
        kept = {each.name: each.num_units for each in groups} | {group.name: group.num_units - 1}
        gone = group.channels(order[:1])
        layers, own = dict(dead.named_modules()), {layer: name for name, layer in module.named_modules()}
        layer = dict(module.named_modules())[group.name]
        prune_out = graph.get_pruner_of_module(layer).prune_out_channels
        for dep, idxs in graph.get_pruning_group(layer, prune_out, gone):
            reader = layers.get(own.get(dep.target.module, "-"))
            if dep.handler.__name__ == "prune_in_channels" and isinstance(reader, nn.Linear | nn.Conv2d):
                weight, num_parts = reader.weight.data, getattr(reader, "groups", 1)
                inputs_of_part, outputs_of_part = weight.shape[1], weight.shape[0] // num_parts
                for idx in idxs:
                    part, place = divmod(idx, inputs_of_part)
                    weight[part * outputs_of_part : (part + 1) * outputs_of_part, place] = 0
        torch.testing.assert_close(remove_units(module, SHAPE, groups, scores, kept)(inputs), dead(inputs))


def test_what_the_user_froze_stays_frozen_in_a_smaller_network() -> None:
    module: Any = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
    module[2].requires_grad_(False)
    smaller: Any = pruned(module, (3, 8, 8))
    for each in (smaller, rebuilt(module, smaller.state_dict())):
        assert len(each[2].weight) == 4
        assert [layer.weight.requires_grad for layer in each if hasattr(layer, "weight")] == [True, False, True]


def test_groups_go_through_residuals_concatenation_and_grouped_convolutions() -> None:
    groups = {group.name: group for group in find_groups(Mixed(), SHAPE)}
    # The first sum: stem, norm and depthwise convolution with its input; every part of `grouped` has 4 of its 8.
    (stream,) = [name for name in groups if name in ("stem", "depthwise")]
    units = {name: (group.num_units, group.num_parts) for name, group in groups.items()}
    assert units == {stream: (4, 2), "grouped": (6, 2), "side": (4, 1), "mix": (6, 1), "hidden": (10, 1)}
    smaller = pruned(Mixed(), SHAPE)
    layers: dict[str, Any] = dict(smaller.named_modules())
    assert layers["depthwise"].groups == layers["depthwise"].in_channels == layers["body"].out_channels
    assert layers["grouped"].groups == 2 and layers["grouped"].in_channels == layers["stem"].out_channels == 4
    assert layers["grouped"].out_channels == 6 and layers["last"].out_features == 3


def test_what_relies_on_fixed_numbers_is_left_alone() -> None:
    assert [group.name for group in find_groups(Fixed(), SHAPE)] == ["first"]
    smaller: Any = pruned(Fixed(), SHAPE)
    assert smaller.first.out_channels == 4 and smaller.second.out_channels == 6
    assert smaller(torch.rand(3, *SHAPE)).shape == (3, 3)


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (lambda: nn.MultiheadAttention(16, 2, batch_first=True), ["hidden"]),
        (lambda: nn.TransformerEncoderLayer(16, 2, 16, batch_first=True), ["reader.linear1", "hidden"]),
        (lambda: nn.LSTM(16, 16, batch_first=True), ["hidden"]),
    ],
    ids=["attention", "transformer", "lstm"],
)
def test_what_could_not_be_built_again_is_left_alone(make: Callable[[], nn.Module], left: list[str]) -> None:
    torch.manual_seed(0)
    module = Row(make())
    assert [group.name for group in find_groups(module, SHAPE)] == left
    smaller, inputs = pruned(module, SHAPE).eval(), torch.rand(2, *SHAPE)
    assert rebuilt(module, smaller.state_dict())(inputs).equal(smaller(inputs))


@pytest.mark.parametrize("norm", [lambda: None, lambda: nn.BatchNorm2d(16), lambda: nn.GroupNorm(1, 16)],
                         ids=["plain", "batch", "group"])  # fmt: skip
@pytest.mark.parametrize(
    ("body", "given"),
    [
        (lambda x: x.flip(1), 16),
        (lambda x: x.roll(1, 1), 16),
        (nn.ChannelShuffle(4), 16),
        (nn.Sequential(nn.ChannelShuffle(2), nn.ConvTranspose2d(16, 16, 2)), 16),
        (lambda x: torch.cat(x.chunk(2, dim=1)[::-1], dim=1), 16),
        (lambda x: x.sort(1).values, 16),
        (lambda x: x.softmax(1), 16),
        (lambda x: nn.functional.normalize(x, dim=1), 16),
        (lambda x: nn.functional.glu(x, dim=1), 8),
        (lambda x: x[:, ::2], 8),
    ],
    ids=["flip", "roll", "shuffle", "shuffle, transposed", "swap", "sort", "softmax", "l2", "glu", "slice"],
)
def test_channels_whose_place_or_company_matters_are_left_alone(
    norm: Callable[[], nn.Module | None], body: Any, given: int
) -> None:
    torch.manual_seed(0)
    assert "stem" not in [group.name for group in find_groups(Between(body, norm(), given), SHAPE)]


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: Between(Fused()), ["body.out", "head"]),
        (lambda: Between(Separate()), ["body.out", "head"]),
        (lambda: Between(NonLocal()), ["body.out", "head"]),
        (lambda: Between(Gated()), ["body.narrow", "head"]),
        (lambda: Between(Ghost()), ["stem", "body.cheap", "head"]),
        (lambda: Between(ChannelsLast()), ["body.wide", "body.narrow", "head"]),
        (lambda: Between(lambda x: torch.cat([x, -x], dim=1), nn.GroupNorm(4, 16), 32), ["stem", "head"]),
        (lambda: Between(Beside(nn.BatchNorm2d(24)), given=24), ["stem", "body.side", "head"]),
        (lambda: Between(Beside(nn.GroupNorm(1, 24)), given=24), ["stem", "body.side", "head"]),
        (lambda: Between(Beside(nn.GroupNorm(4, 24)), given=24), ["head"]),
        (lambda: Between(nn.Sequential(nn.ConvTranspose2d(16, 16, 2, 2), nn.PReLU(16))), ["stem", "body.0", "head"]),
        (lambda: Between(Twins()), ["head"]),
        (lambda: Between(nn.utils.spectral_norm(nn.Conv2d(16, 16, 1))), ["head"]),
        (lambda: Between(Solid(), given=8), ["body.first", "body.second", "head"]),
        (Helped, ["second"]),
        (lambda: BothWays(nn.LSTM), ["second"]),
        (lambda: BothWays(nn.GRU), ["second"]),
    ],
    ids=["attention", "attention by three", "non-local", "gated", "ghost", "channels last", "negatives", "concatenated",
         "concatenated, one group", "concatenated, groups", "transposed", "twins", "spectral", "solid", "auxiliary",
         "lstm", "gru"],
)  # fmt: skip
def test_blocks_lose_what_can_be_told_apart(make: Callable[[], nn.Module], found: list[str]) -> None:
    """Exactly so many channels as they should, and they answer and learn as the network that is built again."""
    torch.manual_seed(0)
    module = make()
    groups = find_groups(module, SHAPE)
    assert [group.name for group in groups] == found
    scores = score_units(module, SHAPE, groups, "magnitude")
    for share in (0.8, 0.4):
        kept = keep_shares(groups, uniform(groups, scores, share))
        smaller, inputs = remove_units(module, SHAPE, groups, scores, kept).eval(), torch.rand(2, *SHAPE)
        for group in groups:
            layer: Any = smaller.get_submodule(group.name)
            left = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            assert left == kept[group.name] * group.num_parts < group.num_channels
        again = rebuilt(module, smaller.state_dict())
        torch.testing.assert_close(again(inputs), smaller(inputs))
        assert again.train()(inputs) is not None


def test_symbols_are_tried_with_more_than_the_first() -> None:
    torch.manual_seed(0)
    assert [group.name for group in find_groups(Symbols(), (6,))] == ["second"]


def test_a_trial_leaves_the_network_and_the_random_numbers_as_they_were() -> None:
    torch.manual_seed(0)
    module = Between(nn.Sequential(nn.Dropout(0.5), nn.utils.spectral_norm(nn.Conv2d(16, 16, 1))), nn.BatchNorm2d(16))
    before, state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    find_groups(module, SHAPE)
    assert all(value.equal(before[name]) for name, value in copy.deepcopy(module).state_dict().items())
    assert torch.get_rng_state().equal(state)


def test_grouped_convolutions_are_pruned_on_when_each_group_has_one_channel() -> None:
    """First of what goes out, then of what comes in, then of the groups, which are depthwise by now."""
    torch.manual_seed(0)
    whole: Any = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=4), nn.ReLU(), nn.Conv2d(16, 3, 6), nn.Flatten()
    )
    module: Any = whole
    inputs, found = torch.rand(2, *SHAPE), []
    for shares in ({"0": 1.0, "2": 0.25}, {"0": 0.25}, {"0": 0.5, "2": 0.5}):
        groups = find_groups(module, SHAPE)
        kept = keep_shares(groups, shares)
        smaller = remove_units(module, SHAPE, groups, score_units(module, SHAPE, groups, "magnitude"), kept)
        module = rebuilt(whole, smaller.state_dict())
        assert module(inputs).equal(smaller(inputs)) and repr(module) == repr(smaller)
        found.append((module[2].in_channels, module[2].out_channels, module[2].groups))
    assert found == [(16, 4, 4), (4, 4, 4), (2, 2, 2)]


def test_blocks_keep_their_shortcuts_and_squeeze_all_that_is_left() -> None:
    """A pruned block of the mobile space adds its input exactly if the whole one did."""
    space = MobileSpace(SHAPE, 3, channels=8, num_stages=2, max_depth=1, num_reductions=0, widths=(1, 1.5))
    genotype = space.parse("12:k3e2s 24:k3e2s")  # no block of it has a shortcut
    module = space.network(genotype).eval()
    groups = find_groups(module, SHAPE)
    scores = score_units(module, SHAPE, groups, "magnitude")
    kept = {group.name: min(group.num_units, 6) for group in groups}  # so that inputs and outputs are equally many
    smaller: Any = remove_units(module, SHAPE, groups, scores, kept)
    block = smaller.blocks["stage1_block1"]
    squeeze, x = block.squeeze, torch.rand(2, 6, 8, 8)
    y = nn.functional.relu6(block.expand_norm(block.expand(x)))
    y = block.squeeze(nn.functional.relu6(block.depthwise_norm(block.depthwise(y))))
    torch.testing.assert_close(block(x), block.project_norm(block.project(y)))
    means = torch.relu(nn.functional.linear(y.mean(dim=(2, 3)), squeeze.reduce.weight, squeeze.reduce.bias))
    assert means.shape[1] == squeeze.reduce.out_features == squeeze.expand.in_features


def test_a_resized_network_comes_back(tmp_path: Path, unsettle: Callable[[nn.Module], None]) -> None:
    blueprint = Blueprint("child.resnet.ResNet", {"input_shape": [3, 8, 8], "num_outputs": 3, "width": 8})
    module = pruned(blueprint.build(), SHAPE)
    unsettle(module)
    resized = Blueprint(blueprint.target, blueprint.arguments, None, resized=True)
    network = TrainedNetwork(
        module, resized, SHAPE, Classification(("a", "b", "c")), Normalize(1.0, (0.0,) * 3, (1.0,) * 3)
    )
    save_network(network, tmp_path)
    loaded = load_network(tmp_path)
    images = np.random.default_rng(0).integers(0, 9, (4, *SHAPE), np.uint8)
    assert loaded.predict(images).equal(network.predict(images))
    assert loaded.blueprint == resized and sizes(loaded.module) == sizes(module)
    assert count_macs(loaded.module, SHAPE) == count_macs(module, SHAPE)
    assert repr(loaded.module) == repr(module)  # every layer says of itself what it is
    assert sizes(pruned(loaded.module, SHAPE)) != sizes(module)  # and can be pruned again


@pytest.mark.parametrize("importance", ["magnitude", "bn_scale", "taylor"])
def test_importance_finds_the_channel_that_does_nothing(importance: Any, task: Task) -> None:
    torch.manual_seed(0)
    module: Any = ResNet(SHAPE, 3, 8).eval()
    block = module.stages[0].body
    with torch.no_grad():
        for weights in (block[0].weight, block[1].weight, block[1].bias):
            weights[5] = 0
        block[3].weight[:, 5] = 0
    groups = find_groups(module, SHAPE)
    scores = score_units(module, SHAPE, groups, importance, task, num_batches=2)
    assert int(scores["stages.0.body.0"].argmin()) == 5
    assert all(score.mean().item() == pytest.approx(1, abs=1e-3) for score in scores.values())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_magnitude_is_of_all_weights_that_go_with_a_unit(unsettle: Callable[..., None]) -> None:
    """Depthwise, grouped and transposed convolutions and the scales of normalizations included."""
    torch.manual_seed(0)
    mixed, turned = Mixed(), nn.Sequential(
        nn.ConvTranspose2d(3, 8, 3), nn.GroupNorm(1, 8), nn.ConvTranspose2d(8, 12, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(12 * 144, 5), nn.LayerNorm(5), nn.Linear(5, 3),
    )  # fmt: skip

    def weights(module: nn.Module) -> float:
        named = module.named_parameters()
        return sum(weight.square().sum().item() for name, weight in named if not name.endswith("bias"))

    for module in (mixed.eval(), turned.eval()):
        unsettle(module)
        with torch.no_grad():  # of a unit both coming and going, which is counted twice
            mixed.body.weight[range(8), range(8)] = mixed.body.weight[range(8), [4, 5, 6, 7, 0, 1, 2, 3]] = 0
        groups = find_groups(module, SHAPE)
        assert len(groups) == (5 if module is mixed else 3)
        found = score_units(module, SHAPE, groups, "magnitude")
        for group in groups:
            gone = []
            for unit in range(group.num_units):
                first = {group.name: -torch.eye(group.num_units)[unit]}  # the least important
                left = remove_units(module, SHAPE, [group], first, {group.name: group.num_units - 1})
                gone.append(weights(module) - weights(left))
            wanted = torch.tensor(gone)
            torch.testing.assert_close(found[group.name], wanted / wanted.mean(), rtol=1e-3, atol=1e-3)


def test_taylor_is_gradient_times_weight(task: Task) -> None:
    torch.manual_seed(0)
    module: Any = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, 3))
    (group,) = find_groups(module, SHAPE)
    scores = score_units(module, SHAPE, [group], "taylor", task, num_batches=1, batch_size=48)
    inputs, targets = task.preprocessing(task.train.inputs), task.train.targets  # all of them, in another order
    task.loss(module(inputs), targets).backward()
    first, second = module[1].weight, module[3].weight
    assert first.grad is not None and second.grad is not None
    bias = module[1].bias
    wanted = ((first * first.grad).sum(1) + bias * bias.grad + (second * second.grad).sum(0)).abs()
    torch.testing.assert_close(scores[group.name], wanted / wanted.mean(), rtol=1e-3, atol=1e-5)
    batches = [score_units(module, SHAPE, [group], "taylor", task, num, 16)[group.name] for num in (1, 4)]
    assert not batches[0].allclose(batches[1], rtol=0.01)  # it is the mean over batches


def test_what_stays_by_shares() -> None:
    groups = [Group("a", 10, 1), Group("b", 12, 2), Group("c", 3, 1)]
    assert keep_shares(groups, {"a": 0.5, "b": 0.5, "c": 0.0}) == {"a": 5, "b": 3, "c": 1}
    assert keep_shares(groups, dict.fromkeys("abc", 0.0), least=0.3) == {"a": 3, "b": 2, "c": 1}
    assert keep_shares(groups, dict.fromkeys("abc", 0.6), multiple=4) == {"a": 8, "b": 4, "c": 3}
    assert keep_shares(groups, dict.fromkeys("abc", 1.0), multiple=4) == {"a": 10, "b": 6, "c": 3}
    assert groups[1].channels([0, 4]) == [0, 4, 6, 10]
    scores = {"a": torch.arange(10.0), "b": torch.full((6,), 20.0), "c": torch.tensor([0.5, 30.0, 40.0])}
    shares = across(groups, scores, 8 / 19)
    assert shares == {"a": 0.0, "b": pytest.approx(1), "c": pytest.approx(2 / 3)}


@pytest.mark.parametrize("family", [uniform, across])
def test_the_largest_that_costs_no_more(family: Callable) -> None:
    torch.manual_seed(0)
    module = Mixed()
    groups = find_groups(module, SHAPE)
    scores = score_units(module, SHAPE, groups, "magnitude")
    cost = partial(count_macs, input_shape=SHAPE)
    wanted = 0.4 * cost(module)
    smaller = fit(
        module, SHAPE, groups, scores, lambda at: keep_shares(groups, family(groups, scores, at)), cost, wanted
    )
    assert 0.3 * cost(module) < cost(smaller) <= wanted
    assert cost(fit(module, SHAPE, groups, scores, lambda at: keep_shares(groups, family(groups, scores, at)), cost,
                    cost(module))) == cost(module)  # fmt: skip
    with pytest.raises(ValueError, match=r"pruning cannot go below \d+, and 10 is wanted"):
        fit(module, SHAPE, groups, scores, lambda at: keep_shares(groups, family(groups, scores, at)), cost, 10)


def test_statistics_are_those_of_the_training_batches(task: Task) -> None:
    torch.manual_seed(0)
    module: Any = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 3))
    norm = module[0]
    gather_statistics(module, task, num_batches=1, batch_size=48, seed=0)
    inputs = task.preprocessing(task.train.inputs)
    torch.testing.assert_close(norm.running_mean, inputs.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, inputs.var(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert norm.momentum == 0.1 and not norm.training


def test_a_module_that_cannot_be_traced_is_named_in_one_line() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no\nway")

    with pytest.raises(ValueError, match="Detached cannot be traced for pruning: no way"):
        find_groups(Detached(), (4,))
    with pytest.raises(ValueError, match="LSTMLanguageModel has no channels that can be pruned"):
        find_groups(LSTMLanguageModel((8,), 5, 6, context=2), (8,))


def test_statistics_are_those_of_what_is_left() -> None:
    split = Split(torch.tensor([[1.0], [3.0], [5.0], [7.0]]), torch.zeros(4))
    task = Task("t", Regression("y", 0.0, 1.0), split, split, SealedSplit(split), lambda inputs: inputs)
    network = nn.Sequential(nn.BatchNorm1d(1))
    gather_statistics(network, task, 1, 4, 0)
    assert network[0].running_mean.item() == pytest.approx(4.0)  # type: ignore[operator, union-attr]
