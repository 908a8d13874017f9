"""Multilayer perceptrons for vectors, with searched depth, widths, activations and skip connections.

Every layer is a linear map and an activation, to which the outputs of the earlier layers it is connected to are added:
their first features, or all of them and zeros, where widths differ (He et al. 2016, section 3.3, option A). Narrow
layers share the weights of the widest (`child/elastic.py`), so that the supernet is a network of the widest layers
that runs as any other; but every depth has a last linear map of its own, since layers would compete for one (on
Friedman's regression the loss of the shared weights ended at 0.36 instead of 0.57). There is no normalization: on it
the shared weights end better without (R^2 0.82 to 0.77 with batch normalization), and a score depends on its own
sample alone, so that scoring needs no statistics.

Letters: B samples, F features of the input, K outputs.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from child.chain import ChainSpace, brackets, run_together
from child.elastic import ElasticLinear, ElasticSpace
from child.space import Decision, Genotype, Graph, check_counts, nearest, plan

ACTIVATIONS = {"relu": functional.relu, "tanh": torch.tanh, "silu": functional.silu, "identity": lambda x: x}


class Layer(NamedTuple):
    """One hidden layer of an architecture: its width, activation, and the earlier layers that are added (from 0)."""

    width: int
    activation: str
    skips: tuple[int, ...]


class MLPSpace(ChainSpace, ElasticSpace):
    """Hidden layers of chosen width and activation, and a binary skip token for every earlier layer.

    Args:
        input_shape: (features,) of a vector.
        num_outputs: Outputs of the last linear map; 1 for regression.
        num_layers: The most hidden layers.
        min_layers: The fewest; where smaller than `num_layers` the depth is the first decision.
        widths: Features of a hidden layer, ascending.
        dropout: Share of the last features dropped in training.

    Raises:
        ValueError: A size is out of range.
    """

    name = "mlp"
    activations = tuple(ACTIVATIONS)

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        num_layers: int = 4,
        min_layers: int = 1,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        dropout: float = 0.1,
    ):
        if len(input_shape) != 1:
            raise ValueError(f"space mlp needs input_shape (features,), got {tuple(input_shape)}")
        if input_shape[0] < 1 or num_outputs < 1:
            raise ValueError(f"space mlp needs inputs and outputs, got {input_shape[0]} and {num_outputs}")
        check_counts("space mlp", num_layers=num_layers)
        if not 1 <= min_layers <= num_layers:
            raise ValueError(f"space mlp needs 1 <= min_layers <= num_layers, got {min_layers} and {num_layers}")
        if not widths or not all(low < high for low, high in pairwise([0, *widths])):
            raise ValueError(f"space mlp needs widths above 0 and ascending, got {list(widths)}")
        if not 0 <= dropout < 1:
            raise ValueError(f"space mlp needs 0 <= dropout < 1, got {dropout}")
        self.arguments = {
            "input_shape": list(input_shape),
            "num_outputs": num_outputs,
            "num_layers": num_layers,
            "min_layers": min_layers,
            "widths": list(widths),
            "dropout": dropout,
        }
        (self.num_features,) = input_shape
        self.num_outputs, self.dropout = num_outputs, dropout
        self.widths = tuple(widths)
        self.chain(num_layers, min_layers, lambda layer: [
            Decision(f"layer{layer + 1}.width", "width", tuple(map(str, widths)), layer),
            Decision(f"layer{layer + 1}.activation", "operation", self.activations, layer),
        ])  # fmt: skip

    def layers(self, genotype: Genotype) -> tuple[Layer, ...]:
        """The active hidden layers."""
        return tuple(
            Layer(self.widths[width], self.activations[activation], skips)
            for (width, activation), skips in self.active(genotype)
        )

    def text(self, genotype: Genotype) -> str:
        """Such as `64relu 128tanh 64relu(1,2)`: layer 3 adds layers 1 and 2."""
        return " ".join(f"{width}{name}{brackets(skips)}" for width, name, skips in self.layers(genotype))

    def read_word(self, layer: int, word: str) -> tuple[Sequence[int], str | None]:
        """Such as `64relu(1,2)`."""
        widths = [str(width) for width in self.widths]
        match = re.fullmatch(r"(\d+)([a-z]+)(?:\((\d+(?:,\d+)*)\))?", word, re.ASCII)
        if match is None:
            raise ValueError(f"expected a layer such as '64relu' or '64relu(1,2)', got {word!r:.200}")
        if match[1] not in widths:
            raise ValueError(f"unknown width in {word!r:.200}; allowed: {', '.join(widths)}")
        if match[2] not in self.activations:
            raise ValueError(f"unknown activation in {word!r:.200}; {nearest(match[2], self.activations)}")
        return [widths.index(match[1]), self.activations.index(match[2])], match[3]

    def graph(self, genotype: Genotype) -> Graph:
        """Input, layers and output; the chain and the skips as edges."""
        return self.drawing([(f"{width} {name}", skips) for width, name, skips in self.layers(genotype)])

    def network(self, genotype: Genotype | None = None) -> "MLP":
        """The fixed network of a genotype, or the supernet of all."""
        return MLP(self, genotype)

    def macs(self, genotype: Genotype) -> int:
        """Of the linear maps."""
        sizes = [self.num_features, *(layer.width for layer in self.layers(genotype)), self.num_outputs]
        return sum(inputs * outputs for inputs, outputs in pairwise(sizes))

    def parameters(self, genotype: Genotype) -> int:
        """Of the linear maps, with their biases."""
        hidden = sum(layer.width for layer in self.layers(genotype))
        return self.macs(genotype) + hidden + self.num_outputs


class MLP(nn.Module):
    """Both the supernet (no genotype: the widest layers, run as any architecture) and the fixed network."""

    def __init__(self, space: MLPSpace, genotype: Genotype | None = None):
        super().__init__()
        self.space = space
        self.fixed = None if genotype is None else space.layers(space.check(genotype))
        widest = space.widths[-1]
        widths = [widest] * space.num_layers if self.fixed is None else [layer.width for layer in self.fixed]
        self.hidden = nn.ModuleList(ElasticLinear(i, o) for i, o in pairwise([space.num_features, *widths]))
        self.dropout = nn.Dropout(space.dropout)
        depths = range(space.min_layers, space.num_layers + 1) if self.fixed is None else [len(widths)]
        self.outputs = nn.ModuleDict({str(depth): ElasticLinear(widths[-1], space.num_outputs) for depth in depths})

    def forward(self, x: Tensor, genotype: Genotype | None = None) -> Tensor:
        """Outputs (B, K) of vectors (B, F)."""
        outputs = (x,)
        for layer in plan(self.fixed, self.space.layers, genotype):
            outputs = self._run(outputs, layer)
        return self._finish(outputs)

    def forward_many(self, x: Tensor, genotypes: Sequence[Genotype]) -> list[Tensor]:
        """Outputs of each architecture on the same vectors; architectures that begin alike share that work."""
        return run_together(
            (x,), [plan(self.fixed, self.space.layers, genotype) for genotype in genotypes], self._run, self._finish
        )

    def _run(self, outputs: tuple[Tensor, ...], layer: Layer) -> tuple[Tensor, ...]:
        """The input and the outputs of the layers so far, and that of this layer too."""
        number = len(outputs) - 1
        y = ACTIVATIONS[layer.activation](self.hidden[number](outputs[-1], layer.width))
        for source in layer.skips:
            y = y + first(outputs[source + 1], y.shape[1])
        return (*outputs, y)

    def _finish(self, outputs: tuple[Tensor, ...]) -> Tensor:
        return self.outputs[str(len(outputs) - 1)](self.dropout(outputs[-1]))


def first(x: Tensor, width: int) -> Tensor:
    """The first features of (B, F), as many as asked for; zeros where there are none."""
    return x[:, :width] if x.shape[1] >= width else functional.pad(x, (0, width - x.shape[1]))
