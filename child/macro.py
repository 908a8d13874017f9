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
from itertools import pairwise

import torch
from torch import Tensor, nn

from child.operations import MACRO_OPERATIONS, conv, prepare, sides
from child.space import Decision, Genotype, Graph, Mask, NetworkSpace, Tokens, nearest

Layer = tuple[str, tuple[int, ...]]
"""One layer of an architecture: the operation, and the earlier layers whose outputs are added (from 0)."""


class MacroSpace(NetworkSpace):
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
        self.num_layers = num_layers
        self.min_layers = fewest
        self.dropout = dropout
        reduce_before = [num_layers * (i + 1) // (num_reductions + 1) for i in range(num_reductions)]
        self.levels = tuple(sum(layer >= first for first in reduce_before) for layer in range(num_layers))
        self.masks_depend_on_prefix = fewest < num_layers

        depths = tuple(str(depth) for depth in range(fewest, num_layers + 1))
        decisions = [Decision("layers", "depth", depths)] if fewest < num_layers else []
        self._layer_start = []
        for layer in range(num_layers):
            self._layer_start.append(len(decisions))
            decisions.append(Decision(f"layer{layer + 1}.operation", "operation", self.operations, layer))
            decisions += [
                Decision(f"layer{layer + 1}.skip{source + 1}", "skip", ("no", "yes"), layer, (source,))
                for source in range(layer)
            ]
        self.decisions = tuple(decisions)

    def mask(self, prefixes: Tokens) -> Mask:
        """Everything is legal in an active layer; beyond the chosen depth only the first choice."""
        masks = super().mask(prefixes)
        decision = self.decisions[prefixes.shape[1]]
        if self.masks_depend_on_prefix and decision.node >= self.min_layers:
            masks = masks.copy()
            masks[prefixes[:, 0] + self.min_layers <= decision.node, 1:] = 0
        return masks

    def layers(self, genotype: Genotype) -> tuple[Layer, ...]:
        """The active layers, each with its operation and the earlier layers it adds."""
        tokens = genotype.tokens
        depth = self.min_layers + (tokens[0] if self.masks_depend_on_prefix else 0)
        return tuple(
            (self.operations[tokens[start]], tuple(source for source in range(layer) if tokens[start + 1 + source]))
            for layer, start in enumerate(self._layer_start[:depth])
        )

    def text(self, genotype: Genotype) -> str:
        """Such as `1:conv3 2:sepconv5(1) 3:avgpool3(1,2)`: layer 3 pools, and adds layers 1 and 2."""
        words = []
        for number, (operation, skips) in enumerate(self.layers(genotype), 1):
            added = f"({','.join(str(source + 1) for source in skips)})" if skips else ""
            words.append(f"{number}:{operation}{added}")
        return " ".join(words)

    def parse(self, text: str) -> Genotype:
        """Read what `text` wrote (else ValueError, naming the word)."""
        words = text.split()
        if not self.min_layers <= len(words) <= self.num_layers:
            expected = f"{self.min_layers} to {self.num_layers}" if self.masks_depend_on_prefix else self.num_layers
            raise ValueError(f"expected {expected} layers, got {len(words)} in {text!r:.200}")
        tokens = [0] * len(self.decisions)
        if self.masks_depend_on_prefix:
            tokens[0] = len(words) - self.min_layers
        for layer, word in enumerate(words):
            match = re.fullmatch(r"(\d+):(\w+)(?:\((\d+(?:,\d+)*)\))?", word, re.ASCII)
            if match is None or match[1] != str(layer + 1):
                raise ValueError(f"expected '{layer + 1}:operation' or '{layer + 1}:operation(1,2)', got {word!r:.200}")
            if match[2] not in self.operations:
                raise ValueError(f"unknown operation in {word!r:.200}; {nearest(match[2], self.operations)}")
            start = self._layer_start[layer]
            tokens[start] = self.operations.index(match[2])
            sources = match[3].split(",") if match[3] else []
            for source in sources:
                if not 1 <= int(source) <= layer or str(int(source)) != source or sources.count(source) > 1:
                    raise ValueError(f"layer {layer + 1} can add layers 1 to {layer}, each once, got {word!r:.200}")
                tokens[start + int(source)] = 1
        return self.genotype(tokens)

    def graph(self, genotype: Genotype) -> Graph:
        """Input, layers and output; the chain and the skips as edges."""
        layers = self.layers(genotype)
        names = ["input", *(f"layer{layer + 1}" for layer in range(len(layers))), "output"]
        labels = ["input", *(operation for operation, _ in layers), "output"]
        kinds = ["input", *("operation" for _ in layers), "output"]
        edges = list(pairwise(names))
        edges += [(names[s + 1], names[layer + 1]) for layer, (_, skips) in enumerate(layers) for s in skips]
        return Graph(tuple(zip(names, labels, kinds, strict=True)), tuple(edges))

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

    def __init__(self, network: "MacroNetwork", found: dict[tuple[int, int], Tensor]):
        self.network = network
        self.found = found  # (layer, level) to (B, C, H / 2^level, W / 2^level)

    def at(self, layer: int, level: int) -> Tensor:
        if (layer, level) not in self.found:
            self.found[layer, level] = self.network.reductions[f"{layer + 1}at{level}"](self.at(layer, level - 1))
        return self.found[layer, level]

    def fork(self) -> "_Outputs":
        return _Outputs(self.network, dict(self.found))


class MacroNetwork(nn.Module):
    """Both the supernet (no genotype: every operation of every layer) and the fixed network (only what it uses)."""

    def __init__(self, space: MacroSpace, genotype: Genotype | None = None):
        super().__init__()
        self.space = space
        self.fixed = None if genotype is None else space.layers(space.check(genotype))
        channels, dims = space.channels, space.dims
        every = tuple((name, ()) for name in space.operations)
        chosen = [every] * space.num_layers if self.fixed is None else [(layer,) for layer in self.fixed]
        self.stem = nn.Sequential(conv(space.input_channels, channels, 3, dims=dims), nn.BatchNorm2d(channels))
        self.operations = nn.ModuleList(
            nn.ModuleDict({name: MACRO_OPERATIONS[name].build(channels, dims) for name, _ in options})
            for options in chosen
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in chosen)
        everything = tuple((space.operations[0], tuple(range(layer))) for layer in range(space.num_layers))
        reductions = space._reductions(everything if self.fixed is None else self.fixed)
        self.reductions = nn.ModuleDict(
            {
                f"{layer + 1}at{level}": nn.Sequential(
                    nn.Conv2d(channels, channels, sides(2, dims), sides(2, dims), bias=False), nn.BatchNorm2d(channels)
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
        layers = self._layers(genotype)
        for layer in range(len(layers)):
            self._run(layer, layers[layer], outputs)
        return self._classify(outputs, len(layers))

    def forward_many(self, x: Tensor, genotypes: Sequence[Genotype]) -> list[Tensor]:
        """Logits of each architecture on the same images; architectures that begin alike share that work."""
        plans = [self._layers(genotype) for genotype in genotypes]
        results: list[Tensor | None] = [None] * len(plans)

        def visit(members: list[int], layer: int, outputs: _Outputs) -> None:
            finished = [member for member in members if len(plans[member]) == layer]
            if finished:
                logits = self._classify(outputs, layer)
                for member in finished:
                    results[member] = logits
            branches: dict[Layer, list[int]] = {}
            for member in members:
                if len(plans[member]) > layer:
                    branches.setdefault(plans[member][layer], []).append(member)
            for number, (choice, branch) in enumerate(branches.items(), 1):
                grown = outputs if number == len(branches) else outputs.fork()
                self._run(layer, choice, grown)
                visit(branch, layer + 1, grown)

        visit(list(range(len(plans))), 0, self._begin(x))
        return [logits for logits in results if logits is not None]

    def _begin(self, x: Tensor) -> _Outputs:
        if self.space.dims == 1:
            x = x.unsqueeze(2).contiguous(memory_format=torch.channels_last)  # (B, C, 1, L)
        return _Outputs(self, {(-1, 0): self.stem(x)})

    def _layers(self, genotype: Genotype | None) -> tuple[Layer, ...]:
        if self.fixed is not None:
            return self.fixed
        if genotype is None:
            raise ValueError("a supernet needs a genotype to run: forward(x, genotype)")
        return self.space.layers(genotype)

    def _run(self, layer: int, choice: Layer, outputs: _Outputs) -> None:
        operation, skips = choice
        level = self.space.levels[layer]
        total = self.operations[layer][operation](outputs.at(layer - 1, level))  # type: ignore[index]
        for source in skips:
            total = total + outputs.at(source, level)
        outputs.found[layer, level] = self.norms[layer](total)

    def _classify(self, outputs: _Outputs, depth: int) -> Tensor:
        features = outputs.at(depth - 1, self.space.level_of(depth - 1)).mean(dim=(2, 3))
        return self.classifier(self.dropout(features))
