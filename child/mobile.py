"""Inverted residual blocks with searched depth, width, kernel, expansion and squeeze-and-excitation, for images.

A block widens its input by a 1x1 convolution, filters it depthwise, may reweigh the channels by their means, and
narrows again (MobileNetV2, Sandler et al. 2018; squeeze-and-excitation as in MobileNetV3, Howard et al. 2019). A stage
is a chain of blocks of one width; depth and width are chosen per stage, the rest per block (ProxylessNAS, Cai et al.
2019; Once-for-all, Cai et al. 2020). The supernet is the network of the largest architecture, of whose weights every
smaller one takes its part (`child/elastic.py`). Differences from Once-for-all: a smaller kernel is the plain center
of the largest; there is no wide 1x1 convolution before the classifier; the first block widens its input as all do.

Letters: B samples, C channels, H height, W width, K outputs.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from child.chain import run_together
from child.elastic import ElasticBatchNorm2d, ElasticConv2d, ElasticLinear, ElasticSpace
from child.norm import BatchNorm2d
from child.operations import prepare
from child.space import Decision, Genotype, Graph, Mask, Tokens, check_counts, plan

REDUCTION = 4  # of the channels in squeeze-and-excitation (Howard et al. 2019, section 5.3)


class Block(NamedTuple):
    """One block of an architecture, with the channels that come in, inside, and go out."""

    stage: int
    number: int
    inputs: int
    hidden: int
    outputs: int
    kernel: int
    squeeze: bool

    @property
    def name(self) -> str:
        return f"stage{self.stage + 1}_block{self.number + 1}"


def squeezed(channels: int) -> int:
    """Channels within squeeze-and-excitation of so many."""
    return max(1, channels // REDUCTION)


class MobileSpace(ElasticSpace):
    """Stages of inverted residual blocks.

    Args:
        input_shape: (channels, height, width) of an image.
        num_outputs: Outputs of the fully connected last layer.
        channels: Of the stem and, times `widths`, of the first stage; every later stage has twice those before.
        num_stages: Chains of blocks.
        max_depth: The most blocks of a stage; the fewest is 1.
        num_reductions: How many stages, counted from the last, halve height and width in their first block. Blocks at
            full size are dear on a processor: with 2 instead of 3, a training step at 28x28 took 2.7 times as long.
        widths: Multiples of a stage's channels, ascending.
        kernels: Sides of the depthwise kernels, odd, at least 3 and ascending.
        expansions: How many times more channels a block has inside than come in, ascending.
        dropout: Share of features dropped before the last layer in training.

    Raises:
        ValueError: A size is out of range.
    """

    name = "mobile"

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        channels: int = 16,
        num_stages: int = 3,
        max_depth: int = 3,
        num_reductions: int = 3,
        widths: Sequence[float] = (1.0, 1.5, 2.0),
        kernels: Sequence[int] = (3, 5, 7),
        expansions: Sequence[int] = (2, 4, 6),
        dropout: float = 0.1,
    ):
        if len(input_shape) != 3:
            raise ValueError(f"space mobile needs input_shape (C, H, W), got {tuple(input_shape)}")
        if channels < 1 or num_outputs < 1:
            raise ValueError(f"space mobile needs channels >= 1 and num_outputs >= 1, got {channels} and {num_outputs}")
        check_counts("space mobile", num_stages=num_stages, max_depth=max_depth)
        if not 0 <= num_reductions <= num_stages:
            raise ValueError(f"space mobile needs 0 <= num_reductions <= num_stages, got {num_reductions}")
        if min(input_shape[1:]) < 2**num_reductions:
            size = f"{input_shape[1]}x{input_shape[2]}"
            raise ValueError(f"inputs of {size} cannot be halved {num_reductions} times; lower num_reductions")
        for name, values in {"widths": widths, "kernels": kernels, "expansions": expansions}.items():
            if not values or not all(low < high for low, high in pairwise([0, *values])):
                raise ValueError(f"space mobile needs {name} above 0 and ascending, got {list(values)}")
        if any(kernel % 2 == 0 or kernel < 3 for kernel in kernels):
            raise ValueError(f"space mobile needs odd kernels of at least 3, got {list(kernels)}")
        if not 0 <= dropout < 1:
            raise ValueError(f"space mobile needs 0 <= dropout < 1, got {dropout}")
        self.widths = [[round(channels * 2**stage * width) for width in widths] for stage in range(num_stages)]
        if not all(low < high for low, high in pairwise([0, *self.widths[0]])):
            raise ValueError(f"channels times widths must be different numbers of channels, got {self.widths[0]}")
        self.arguments = {
            "input_shape": list(input_shape),
            "num_outputs": num_outputs,
            "channels": channels,
            "num_stages": num_stages,
            "max_depth": max_depth,
            "num_reductions": num_reductions,
            "widths": list(widths),
            "kernels": list(kernels),
            "expansions": list(expansions),
            "dropout": dropout,
        }
        self.input_channels, self.height, self.width = input_shape
        self.num_outputs, self.channels, self.dropout = num_outputs, channels, dropout
        self.num_stages, self.max_depth, self.num_reductions = num_stages, max_depth, num_reductions
        self.kernels, self.expansions = tuple(kernels), tuple(expansions)
        self.masks_depend_on_prefix = max_depth > 1

        def labels(values: Sequence[int]) -> tuple[str, ...]:
            return tuple(map(str, values))

        decisions = []
        for stage in range(num_stages):
            name = f"stage{stage + 1}"
            decisions.append(Decision(f"{name}.depth", "depth", labels(range(1, max_depth + 1))))
            decisions.append(Decision(f"{name}.width", "width", labels(self.widths[stage])))
            for number in range(max_depth):
                block, node = f"{name}.block{number + 1}", stage * max_depth + number
                decisions.append(Decision(f"{block}.kernel", "kernel", labels(kernels), node))
                decisions.append(Decision(f"{block}.expansion", "expansion", labels(expansions), node))
                decisions.append(Decision(f"{block}.squeeze", "squeeze", ("no", "yes"), node))
        self.decisions = tuple(decisions)
        self.largest = Genotype(self.name, tuple(decision.num_choices - 1 for decision in decisions))

    def mask(self, prefixes: Tokens) -> Mask:
        """Everything is legal in an active block; beyond the depth of its stage only the first choice."""
        masks = super().mask(prefixes)
        place = prefixes.shape[1] % (2 + 3 * self.max_depth)  # within the stage
        number = (place - 2) // 3
        if number > 0:
            masks = masks.copy()
            masks[prefixes[:, prefixes.shape[1] - place] < number, 1:] = 0
        return masks

    def blocks(self, genotype: Genotype) -> tuple[Block, ...]:
        """The active blocks, from the first to the last."""
        found, inputs = [], self.channels
        for stage in range(self.num_stages):
            depth, width, *rest = genotype.tokens[stage * (2 + 3 * self.max_depth) :]
            for number in range(depth + 1):
                kernel, expansion, squeeze = rest[3 * number : 3 * number + 3]
                hidden, outputs = inputs * self.expansions[expansion], self.widths[stage][width]
                found.append(Block(stage, number, inputs, hidden, outputs, self.kernels[kernel], squeeze == 1))
                inputs = outputs
        return tuple(found)

    def stride(self, block: Block) -> int:
        """2 where the block halves height and width (rounding up)."""
        return 2 if block.number == 0 and block.stage >= self.num_stages - self.num_reductions else 1

    def text(self, genotype: Genotype) -> str:
        """Such as `24:k5e4s,k3e2 48:k7e6`: two blocks of 24 channels, then one of 48.

        The first block has a kernel of 5, expands by 4 and has squeeze-and-excitation.
        """
        words: dict[int, str] = {}
        for block in self.blocks(genotype):
            start = words[block.stage] + "," if block.number else f"{block.outputs}:"
            expansion = block.hidden // block.inputs
            words[block.stage] = f"{start}k{block.kernel}e{expansion}{'s' if block.squeeze else ''}"
        return " ".join(words.values())

    def parse(self, text: str) -> Genotype:
        """Read what `text` wrote (else ValueError, naming the word)."""
        words = text.split()
        if len(words) != self.num_stages:
            raise ValueError(f"expected {self.num_stages} stages, got {len(words)} in {text!r:.200}")
        tokens = []
        for stage, word in enumerate(words):
            width, colon, rest = word.partition(":")
            blocks = rest.split(",")
            matches = [re.fullmatch(r"k(\d+)e(\d+)(s?)", block, re.ASCII) for block in blocks]
            if not colon or not all(matches):
                raise ValueError(f"expected a stage such as '24:k5e4s,k3e2', got {word!r:.200}")
            if len(blocks) > self.max_depth:
                raise ValueError(f"a stage has 1 to {self.max_depth} blocks, got {len(blocks)} in {word!r:.200}")
            tokens += [len(blocks) - 1, self._place("width", width, self.widths[stage], word)]
            for match in filter(None, matches):
                tokens.append(self._place("kernel", match[1], self.kernels, word))
                tokens.append(self._place("expansion", match[2], self.expansions, word))
                tokens.append(int(match[3] == "s"))
            tokens += [0] * 3 * (self.max_depth - len(blocks))
        return self.genotype(tokens)

    def _place(self, kind: str, given: str, allowed: Sequence[int], word: str) -> int:
        labels = [str(value) for value in allowed]
        if given not in labels:
            raise ValueError(f"unknown {kind} {given!r:.20} in {word!r:.200}; allowed: {', '.join(labels)}")
        return labels.index(given)

    def graph(self, genotype: Genotype) -> Graph:
        """Input, stem, blocks and output in a row."""
        nodes = [("input", "input", "input"), ("stem", f"conv3 {self.channels}", "operation")]
        for block in self.blocks(genotype):
            squeeze = " squeeze" if block.squeeze else ""
            halved = " /2" if self.stride(block) == 2 else ""
            label = f"k{block.kernel} {block.inputs}-{block.hidden}-{block.outputs}{squeeze}{halved}"
            nodes.append((block.name, label, "block"))
        nodes.append(("output", "output", "output"))
        return Graph(tuple(nodes), tuple((a[0], b[0]) for a, b in pairwise(nodes)))

    def network(self, genotype: Genotype | None = None) -> "MobileNetwork":
        """The fixed network of a genotype, or the supernet of all."""
        return MobileNetwork(self, genotype)

    def macs(self, genotype: Genotype) -> int:
        """Of the convolutions, squeeze-and-excitation and the last layer."""
        height, width = self.height, self.width
        macs, outputs = 9 * self.input_channels * self.channels * height * width, self.channels
        for block in self.blocks(genotype):
            macs += block.inputs * block.hidden * height * width
            stride = self.stride(block)
            height, width = -(-height // stride), -(-width // stride)
            macs += (block.kernel**2 + block.outputs) * block.hidden * height * width
            macs += 2 * block.hidden * squeezed(block.hidden) if block.squeeze else 0
            outputs = block.outputs
        return macs + outputs * self.num_outputs

    def parameters(self, genotype: Genotype) -> int:
        """Of convolutions, normalizations, squeeze-and-excitation and the last layer."""
        count, outputs = 9 * self.input_channels * self.channels + 2 * self.channels, self.channels
        for block in self.blocks(genotype):
            count += (block.inputs + block.kernel**2 + block.outputs) * block.hidden
            count += 2 * (2 * block.hidden + block.outputs)
            if block.squeeze:
                count += 2 * block.hidden * squeezed(block.hidden) + block.hidden + squeezed(block.hidden)
            outputs = block.outputs
        return count + (outputs + 1) * self.num_outputs


class SqueezeExcitation(nn.Module):
    """Every channel times a factor in [0, 1] that follows from the means of all (Hu et al. 2018), hard as in V3."""

    def __init__(self, channels: int):
        super().__init__()
        self.reduce = ElasticLinear(channels, squeezed(channels))
        self.expand = ElasticLinear(squeezed(channels), channels)

    def forward(self, x: Tensor, elastic: bool = False) -> Tensor:
        """(B, C, H, W) to the same; elastic as that of a smaller block, which fewer channels come from."""
        channels = x.shape[1]
        between, outputs = (squeezed(channels), channels) if elastic else (None, None)
        means = functional.relu(self.reduce(x.mean(dim=(2, 3)), between))
        return x * functional.hardsigmoid(self.expand(means, outputs))[:, :, None, None]


class InvertedResidual(nn.Module):
    """A block of this size, which can run as any smaller one."""

    def __init__(self, block: Block, stride: int):
        super().__init__()
        self.block = block
        self.expand = ElasticConv2d(block.inputs, block.hidden, 1)
        self.expand_norm = ElasticBatchNorm2d(block.hidden)
        self.depthwise = ElasticConv2d(block.hidden, block.hidden, block.kernel, stride, groups=block.hidden)
        self.depthwise_norm = ElasticBatchNorm2d(block.hidden)
        self.squeeze = SqueezeExcitation(block.hidden) if block.squeeze else None
        self.project = ElasticConv2d(block.hidden, block.outputs, 1)
        self.project_norm = ElasticBatchNorm2d(block.outputs)

    def forward(self, x: Tensor, block: Block | None = None) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W), halved at stride 2; with `block` as that smaller one."""
        hidden, outputs, kernel = (block.hidden, block.outputs, block.kernel) if block else (None, None, None)
        y = functional.relu6(self.expand_norm(self.expand(x, hidden)), inplace=True)
        y = functional.relu6(self.depthwise_norm(self.depthwise(y, kernel=kernel)), inplace=True)
        if self.squeeze is not None and (block is None or block.squeeze):
            y = self.squeeze(y, elastic=block is not None)
        y = self.project_norm(self.project(y, outputs))
        # By the block, not by what comes: a pruned network must not add where the whole one did not.
        block = block or self.block
        return x + y if block.inputs == block.outputs and x.shape[2:] == y.shape[2:] else y


class MobileNetwork(nn.Module):
    """Both the supernet (no genotype: the largest architecture, run as any other) and the fixed network."""

    def __init__(self, space: MobileSpace, genotype: Genotype | None = None):
        super().__init__()
        self.space = space
        self.fixed = None if genotype is None else space.blocks(space.check(genotype))
        blocks = space.blocks(space.largest) if self.fixed is None else self.fixed
        self.stem = nn.Sequential(
            nn.Conv2d(space.input_channels, space.channels, 3, padding=1, bias=False),
            BatchNorm2d(space.channels),
            nn.ReLU6(),
        )
        self.blocks = nn.ModuleDict({block.name: InvertedResidual(block, space.stride(block)) for block in blocks})
        self.dropout = nn.Dropout(space.dropout)
        self.classifier = ElasticLinear(blocks[-1].outputs, space.num_outputs)
        prepare(self)

    def forward(self, x: Tensor, genotype: Genotype | None = None) -> Tensor:
        """Outputs (B, K) of images (B, C, H, W)."""
        x = self.stem(x)
        for block in plan(self.fixed, self.space.blocks, genotype):
            x = self._run(x, block)
        return self._classify(x)

    def forward_many(self, x: Tensor, genotypes: Sequence[Genotype]) -> list[Tensor]:
        """Outputs of each architecture on the same images; architectures that begin alike share that work."""
        return run_together(
            self.stem(x),
            [plan(self.fixed, self.space.blocks, genotype) for genotype in genotypes],
            self._run,
            self._classify,
        )

    def _run(self, x: Tensor, block: Block) -> Tensor:
        return self.blocks[block.name](x, None if self.fixed is not None else block)

    def _classify(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(x.mean(dim=(2, 3))))
