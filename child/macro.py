"""The ENAS macro space for images and sequences (Pham et al. 2018, section 2.3): a chain with free skip connections.

Every layer applies one of six operations to the layer before it, adds the outputs of the earlier layers it is
connected to, and normalizes the sum. Differences from the public code: a skip may come from the directly preceding
layer too (a residual); sizes are halved by a dense 2x2 convolution of stride 2 instead of two sliced 1x1
convolutions; an output is reduced only where something later uses it; the depth may be a decision; a sequence, such
as the spectrum of a sound over time, runs as an image of height 1 with kernels, pools and reductions along it alone.

Letters: B samples, C channels, H height, W width (or length of a sequence), L layers, K outputs.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from child.chain import ChainSpace, brackets, run_together
from child.norm import BatchNorm2d
from child.operations import MACRO_OPERATIONS, conv, parameter_free, prepare, sides
from child.space import Decision, Genotype, Graph, check_counts, nearest, plan

Layer = tuple[str, tuple[int, ...]]
"""One layer of an architecture: the operation, and the earlier layers whose outputs are added (from 0)."""


class MacroSpace(ChainSpace):
    """ENAS macro: per layer one of six operations and a binary skip token for every earlier layer.

    Args:
        input_shape: (channels, height, width) of an image, or (channels, length) of a sequence.
        num_outputs: Outputs of the fully connected classifier.
        channels: Channels of every layer; multiples of 16 are fastest.
        num_layers: Layers, the most of them where `min_layers` is smaller.
        min_layers: The fewest layers; where smaller than `num_layers` the depth is the first decision.
        num_reductions: How often height and width (or the length) are halved, evenly spaced over the layers.
        dropout: Share of features dropped before the classifier in training.

    Raises:
        ValueError: A size is out of range.
    """

    name = "macro"
    operations = tuple(MACRO_OPERATIONS)
    parameter_free = parameter_free(MACRO_OPERATIONS)  # none: a pool has a 1x1 convolution before it

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        channels: int = 32,
        num_layers: int = 12,
        min_layers: int | None = None,
        num_reductions: int = 2,
        dropout: float = 0.1,
    ):
        fewest = num_layers if min_layers is None else min_layers
        if channels < 1 or num_outputs < 1:
            raise ValueError(f"space macro needs channels >= 1 and num_outputs >= 1, got {channels} and {num_outputs}")
        check_counts("space macro", num_layers=num_layers)
        if not 1 <= fewest <= num_layers:
            raise ValueError(f"space macro needs 1 <= min_layers <= num_layers, got {fewest} and {num_layers}")
        if not 0 <= num_reductions < num_layers:
            raise ValueError(f"space macro needs 0 <= num_reductions < num_layers, got {num_reductions}")
        if len(input_shape) not in (2, 3):
            raise ValueError(f"space macro needs input_shape (C, H, W) or (C, L), got {tuple(input_shape)}")
        if min(input_shape[1:]) < 2**num_reductions:
            size = "x".join(map(str, input_shape[1:]))
            raise ValueError(f"inputs of {size} cannot be halved {num_reductions} times; lower num_reductions")
        if not 0 <= dropout < 1:
            raise ValueError(f"space macro needs 0 <= dropout < 1, got {dropout}")
        self.arguments = {
            "input_shape": list(input_shape),
            "num_outputs": num_outputs,
            "channels": channels,
            "num_layers": num_layers,
            "min_layers": min_layers,
            "num_reductions": num_reductions,
            "dropout": dropout,
        }
        self.dims = len(input_shape) - 1
        self.input_channels, (self.height, self.width) = input_shape[0], (1, *input_shape[1:])[-2:]
        self.num_outputs = num_outputs
        self.channels = channels
        self.dropout = dropout
        reduce_before = [num_layers * (i + 1) // (num_reductions + 1) for i in range(num_reductions)]
        self.levels = tuple(sum(layer >= first for first in reduce_before) for layer in range(num_layers))
        self.chain(
            num_layers,
            fewest,
            lambda layer: [Decision(f"layer{layer + 1}.operation", "operation", self.operations, layer)],
        )

    def layers(self, genotype: Genotype) -> tuple[Layer, ...]:
        """The active layers, each with its operation and the earlier layers it adds."""
        return tuple((self.operations[operation], skips) for (operation,), skips in self.active(genotype))

    def text(self, genotype: Genotype) -> str:
        """Such as `1:conv3 2:sepconv5(1) 3:avgpool3(1,2)`: layer 3 pools, and adds layers 1 and 2."""
        layers = enumerate(self.layers(genotype), 1)
        return " ".join(f"{number}:{operation}{brackets(skips)}" for number, (operation, skips) in layers)

    def read_word(self, layer: int, word: str) -> tuple[Sequence[int], str | None]:
        """Such as `3:avgpool3(1,2)`."""
        match = re.fullmatch(r"(\d+):(\w+)(?:\((\d+(?:,\d+)*)\))?", word, re.ASCII)
        if match is None or match[1] != str(layer + 1):
            raise ValueError(f"expected '{layer + 1}:operation' or '{layer + 1}:operation(1,2)', got {word!r:.200}")
        if match[2] not in self.operations:
            raise ValueError(f"unknown operation in {word!r:.200}; {nearest(match[2], self.operations)}")
        return [self.operations.index(match[2])], match[3]

    def graph(self, genotype: Genotype) -> Graph:
        """Input, layers and output; the chain and the skips as edges."""
        return self.drawing(self.layers(genotype))

    def network(self, genotype: Genotype | None = None) -> "MacroNetwork":
        """The fixed network of a genotype, or the supernet of all."""
        return MacroNetwork(self, genotype)

    def macs(self, genotype: Genotype) -> int:
        """Of the convolutions and the classifier, which is all that multiplies and accumulates."""
        layers = self.layers(genotype)
        macs = 3**self.dims * self.input_channels * self.channels * self.height * self.width
        for layer, (operation, _) in enumerate(layers):
            macs += MACRO_OPERATIONS[operation].macs(self.channels, *self._size(self.levels[layer]), self.dims)
        for _, level in self._reductions(layers):
            height, width = self._size(level)
            macs += 2**self.dims * self.channels**2 * height * width
        return macs + self.channels * self.num_outputs

    def parameters(self, genotype: Genotype) -> int:
        """Of convolutions, normalizations and classifier."""
        layers = self.layers(genotype)
        norm = 2 * self.channels
        count = 3**self.dims * self.input_channels * self.channels + norm
        count += sum(MACRO_OPERATIONS[operation].parameters(self.channels, self.dims) + norm for operation, _ in layers)
        count += len(self._reductions(layers)) * (2**self.dims * self.channels**2 + norm)
        return count + (self.channels + 1) * self.num_outputs

    def _size(self, level: int) -> tuple[int, int]:
        return self.height >> level if self.dims == 2 else 1, self.width >> level

    def _reductions(self, layers: Sequence[Layer]) -> set[tuple[int, int]]:
        """Which outputs are reduced to which level: (layer, level); -1 is the stem."""
        return {
            (source, level)
            for layer, (_, skips) in enumerate(layers)
            for source in (layer - 1, *skips)
            for level in range(self.level_of(source) + 1, self.levels[layer] + 1)
        }

    def level_of(self, layer: int) -> int:
        """How often the size has been halved at this layer's output; -1 is the stem."""
        return 0 if layer < 0 else self.levels[layer]


class _Outputs:
    """The outputs of the layers so far, each reduced to a smaller size when first asked for."""

    def __init__(self, network: "MacroNetwork", depth: int, found: dict[tuple[int, int], Tensor]):
        self.network = network
        self.depth = depth  # layers so far
        self.found = found  # (layer, level) to (B, C, H / 2^level, W / 2^level)

    def at(self, layer: int, level: int) -> Tensor:
        if (layer, level) not in self.found:
            self.found[layer, level] = self.network.reductions[f"{layer + 1}at{level}"](self.at(layer, level - 1))
        return self.found[layer, level]


class MacroNetwork(nn.Module):
    """Both the supernet (no genotype: every operation of every layer) and the fixed network (only what it uses)."""

    def __init__(self, space: MacroSpace, genotype: Genotype | None = None):
        super().__init__()
        self.space = space
        self.fixed = None if genotype is None else space.layers(space.check(genotype))
        channels, dims = space.channels, space.dims
        every = tuple((name, ()) for name in space.operations)
        chosen = [every] * space.num_layers if self.fixed is None else [(layer,) for layer in self.fixed]
        self.stem = nn.Sequential(conv(space.input_channels, channels, 3, dims=dims), BatchNorm2d(channels))
        self.operations = nn.ModuleList(
            nn.ModuleDict({name: MACRO_OPERATIONS[name].build(channels, dims) for name, _ in options})
            for options in chosen
        )
        self.norms = nn.ModuleList(BatchNorm2d(channels) for _ in chosen)
        everything = tuple((space.operations[0], tuple(range(layer))) for layer in range(space.num_layers))
        reductions = space._reductions(everything if self.fixed is None else self.fixed)
        self.reductions = nn.ModuleDict(
            {
                f"{layer + 1}at{level}": nn.Sequential(
                    nn.Conv2d(channels, channels, sides(2, dims), sides(2, dims), bias=False), BatchNorm2d(channels)
                )
                for layer, level in sorted(reductions)
            }
        )
        self.dropout = nn.Dropout(space.dropout)
        self.classifier = nn.Linear(channels, space.num_outputs)
        prepare(self)

    def forward(self, x: Tensor, genotype: Genotype | None = None) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) or sequences (B, C, L)."""
        outputs = self._begin(x)
        for choice in plan(self.fixed, self.space.layers, genotype):
            outputs = self._run(outputs, choice)
        return self._classify(outputs)

    def forward_many(self, x: Tensor, genotypes: Sequence[Genotype]) -> list[Tensor]:
        """Logits of each architecture on the same images; architectures that begin alike share that work."""
        plans = [plan(self.fixed, self.space.layers, genotype) for genotype in genotypes]
        return run_together(self._begin(x), plans, self._run, self._classify)

    def _begin(self, x: Tensor) -> _Outputs:
        if self.space.dims == 1:
            x = x.unsqueeze(2).contiguous(memory_format=torch.channels_last)  # (B, C, 1, L)
        return _Outputs(self, 0, {(-1, 0): self.stem(x)})

    def _run(self, outputs: _Outputs, choice: Layer) -> _Outputs:
        layer, (operation, skips) = outputs.depth, choice
        level = self.space.levels[layer]
        grown = _Outputs(self, layer + 1, dict(outputs.found))
        total = self.operations[layer][operation](grown.at(layer - 1, level))  # type: ignore[index]
        for number, source in enumerate(skips):
            added = grown.at(source, level)
            # The gradient needs what the operation gave; a sum is needed by nothing, and so grows in place.
            total = total + added if number == 0 else total.add_(added)
        grown.found[layer, level] = self.norms[layer](total)
        return grown

    def _classify(self, outputs: _Outputs) -> Tensor:
        last = outputs.depth - 1
        return self.classifier(self.dropout(outputs.at(last, self.space.level_of(last)).mean(dim=(2, 3))))
