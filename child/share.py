"""Weight sharing: the weights of a layer take a few values from a codebook (Han et al. 2016, "Deep Compression").

What a network was given it keeps: `hold` looks at every weight, and where it has few values trains the codebook in
place of the weights, where it has zeros leaves these at zero. So every later training of whatever kind, a student's
included, goes on with the same codes and the same zeros, and `child/compact.py` finds them when it writes the file.
A value's gradient is the sum over all its weights: at the rate that suits plain weights codebooks would be ruined.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from child.compact import MOST_VALUES
from child.training import FineTuning

NORM_HOOKS = (WeightNorm, SpectralNorm)
"""Which compute a weight anew before every pass, as parametrizations have done since."""

WEIGHTS_PER_VALUE = 8
"""A weight of fewer is left as it is: with the table, 4 bits a weight would no longer be 4 times smaller than 32."""


@dataclass(frozen=True)
class ShareSettings:
    """How weights are shared.

    Args:
        training: Of the codebooks.
        values: Of each layer's codebook; 16 take 4 bits a weight.
        tie: Layers that are alike in everything get one weight, that of the first, before their values are counted.
    """

    training: FineTuning
    values: int = 16
    tie: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.values <= MOST_VALUES:
            raise ValueError(f"share.values must be from 2 to {MOST_VALUES}, got {self.values}")


def share_values(module: nn.Module, num_values: int) -> None:
    """Round every weight of two or more dimensions to the nearest of so many values, found by k-means, in place.

    Zero is one of them where there are zeros, so that what was pruned stays pruned.
    """
    with torch.no_grad():
        for layer, name in weights_of(module):
            weight = getattr(layer, name)
            # What has few values already, as a weight that another layer has too, would only lose some of them.
            if weight.numel() < WEIGHTS_PER_VALUE * num_values or len(weight.unique()) <= num_values:
                continue
            values = weight.detach().cpu().contiguous().numpy().reshape(-1)
            live = values != 0
            shared = values.copy()
            shared[live] = to_nearest(values[live], num_values - int(not live.all()))
            weight.copy_(torch.from_numpy(shared).view(weight.shape))


def to_nearest(values: NDArray[np.float32], num: int) -> NDArray[np.float32]:
    """Each value rounded to its center in a k-means clustering of all (Lloyd's algorithm on the line).

    Centers begin evenly between the least and the largest, which keeps large weights apart (Han et al. 2016, 3.2).
    """
    ordered = np.sort(values).astype(np.float64)
    if not len(ordered):
        return values
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centers = np.linspace(ordered[0], ordered[-1], num)
    for _ in range(300):
        ends = np.searchsorted(ordered, (centers[1:] + centers[:-1]) / 2)
        edges = np.concatenate([[0], ends, [len(ordered)]])
        counts = np.diff(edges)
        means = np.diff(sums[edges]) / np.maximum(counts, 1)
        moved = np.where(counts > 0, means, centers)
        if np.array_equal(moved, centers):
            break
        centers = np.sort(moved)
    places = np.searchsorted((centers[1:] + centers[:-1]) / 2, values)
    return centers.astype(np.float32)[places]


def tie_alike(module: nn.Module) -> None:
    """Let layers that are alike, by kind, sizes and all settings, have one weight: that of the first.

    A layer that does not tell its settings, in an `extra_repr` of its kind, keeps its own.
    """
    first: dict[tuple[type[nn.Module], str], nn.Parameter] = {}
    for layer in module.modules():
        weight = layer._parameters.get("weight")
        if weight is not None and weight.ndim > 1 and type(layer).extra_repr is not nn.Module.extra_repr:
            layer._parameters["weight"] = first.setdefault((type(layer), repr(layer)), weight)


class Codebook(nn.Module):
    """A weight as places in a table: what is trained is the table, whose gradient sums over all places of a value.

    Args:
        weight: Has few values.
        rate: The share of that gradient that the table learns from.
    """

    codes: Tensor
    live: Tensor

    def __init__(self, weight: Tensor, rate: float):
        super().__init__()
        self.rate = rate
        table, codes = weight.unique(return_inverse=True)
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("live", (table != 0).to(weight.dtype), persistent=False)

    def forward(self, table: Tensor) -> Tensor:
        values = table * self.live
        if values.requires_grad:
            values.register_hook(lambda gradient: self.rate * gradient)
        return values.index_select(0, self.codes.flatten()).view(self.codes.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.unique()


class Mask(nn.Module):
    """A weight whose zeros stay zero."""

    dead: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        self.register_buffer("dead", weight == 0, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return weight.masked_fill(self.dead, 0.0)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


def hold(module: nn.Module, rate: float = 1.0) -> nn.Module:
    """Make a network keep its shared values and its zeros in training; the same network.

    Args:
        module: Is changed in place.
        rate: At which codebooks learn, as a share of the rate of all else.
    """
    held: dict[int, nn.Parameter] = {}
    with torch.no_grad():
        found = [(layer, name, getattr(layer, name)) for layer, name in weights_of(module)]
        for layer, name, weight in found:
            num_values = len(weight.unique())
            if 2 <= num_values <= MOST_VALUES and weight.numel() >= WEIGHTS_PER_VALUE * num_values:
                how: nn.Module = Codebook(weight, rate)
            elif bool((weight == 0).any()):
                how = Mask(weight)
            else:
                continue
            # A new one, for its place in memory is used again.
            layer._parameters[name] = nn.Parameter(weight.clone(), requires_grad=weight.requires_grad)
            parametrize.register_parametrization(layer, name, how)
            made: Any = layer.parametrizations[name]  # type: ignore[index]
            made.original = held.setdefault(id(weight), made.original)  # layers that were tied stay tied
    return module


def release(module: nn.Module) -> nn.Module:
    """Plain weights again in place of what `hold` made, with the values that they have; the same network."""
    tied: dict[int, Any] = {}
    parametrized = [layer for layer in module.modules() if parametrize.is_parametrized(layer)]
    every = [(layer, name, made) for layer in parametrized for name, made in _parametrizations(layer)]
    found = [(*each, each[2].original) for each in every if isinstance(each[2][0], Codebook | Mask)]
    for layer, name, made, original in found:
        # A new one, for its place in memory is used again.
        made.original = nn.Parameter(original.detach().clone(), requires_grad=original.requires_grad)
        parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
        layer._parameters[name] = tied.setdefault(id(original), layer._parameters[name])
    return module


def _parametrizations(layer: Any) -> list[tuple[str, Any]]:
    return list(layer.parametrizations.items())


def weights_of(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Every weight that connects, of two or more dimensions: the layer that has it, and its name there.

    None of a layer that has another parametrization, such as a weight norm, since what it computes is not held there;
    and none that is a vector with further dimensions of size 1, such as a scale of channels, or of other than real
    numbers.
    """
    for layer in module.modules():
        hooks = layer._forward_pre_hooks.values()
        if isinstance(layer, parametrize.ParametrizationList) or any(isinstance(h, NORM_HOOKS) for h in hooks):
            continue
        for name, parameter in layer._parameters.items():
            if parameter is None or not parameter.is_floating_point():
                continue
            if sum(size > 1 for size in parameter.shape) > 1:
                yield layer, name
