"""The ENAS micro space for images (Pham et al. 2018, section 2.4): a normal and a reduction cell, stacked.

A cell has two inputs, the outputs of the two cells before it, and nodes that each add two branches: an operation on one
of the inputs or earlier nodes. What nothing in the cell reads, inputs included, is projected to its output. Cells
stand in three stages, with a reduction cell before the second and the third that halves the size and doubles the
channels. Differences from the public code: the stem is as wide as the cells of the first stage, not three times; an
input of another size is calibrated by one dense 2x2 convolution of stride 2, both inputs of a reduction cell alike, so
that every operation keeps the size (as there in the search, not in the final network); the projection of each loose
end is a convolution of its own, and the sum of them is the projection of all end to end.

Letters: B samples, C channels, H height, W width, K outputs.
"""

import operator
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from child.norm import BatchNorm2d
from child.operations import MICRO_OPERATIONS, DropPath, parameter_free, prepare, relu_conv_norm
from child.space import CostUnit, Decision, Genotype, Graph, RelaxedSpace, check_counts, nearest, plan
from child.task import WithAuxiliary

CELLS = ("normal", "reduction")
NUM_STAGES = 3

Branch = tuple[int, str]
"""What is read (0 the older input, 1 the newer, then the nodes) and the operation on it."""
Nodes = tuple[tuple[Branch, Branch], ...]
"""A cell: the two branches of each node."""


@dataclass(frozen=True)
class Blend:
    """What a cell runs, with the weights of a relaxation; None stands for 1.

    Args:
        nodes: Of each node its branches: (side, what is read, operation), and the weight.
        ends: The inputs and nodes that make the output, and their weights.
    """

    nodes: tuple[tuple[tuple[tuple[int, int, str], Tensor | None], ...], ...]
    ends: tuple[tuple[int, Tensor | None], ...]

    @classmethod
    def of(cls, nodes: Nodes) -> "Blend":
        """An architecture's cell."""
        return cls(
            tuple(tuple(((side, *branch), None) for side, branch in enumerate(branches)) for branches in nodes),
            tuple((end, None) for end in loose_ends(nodes)),
        )


@dataclass(frozen=True)
class Place:
    """Where a cell stands: 0 for a normal and 1 for a reduction cell, its stage, and which inputs it must halve."""

    cell: int
    stage: int
    halved: tuple[bool, bool]


def loose_ends(nodes: Nodes) -> tuple[int, ...]:
    """The inputs and nodes of a cell that no branch reads; the last node is always among them."""
    read = {source for branches in nodes for source, _ in branches}
    return tuple(place for place in range(len(nodes) + 2) if place not in read)


class MicroSpace(RelaxedSpace):
    """ENAS micro: for each node of the normal and the reduction cell, two things to read and two operations.

    Relaxed, a branch is the sum over all that it may read and all operations on it, weighted by the products of the
    two decisions' weights; an input or node makes up the output by the probability that nothing reads it. DARTS (Liu
    et al. 2019) has one mixed operation for every edge into a node, keeps the strongest two edges of a node only in
    the end, and takes every node to the output: there is no weight for what is read. Here each of the two branches
    has its own, which are the decisions of the space; pooling is followed by no normalization, as in ENAS; and
    normalizations keep their own scale and shift, since the modules are those of the paths.

    Args:
        input_shape: (channels, height, width) of an image.
        num_outputs: Outputs of the fully connected classifier.
        channels: Channels of the first stage; each of the two reductions doubles them.
        num_nodes: Nodes of a cell, 5 in the paper.
        num_cells: Normal cells of each of the three stages.
        dropout: Share of features dropped before the classifier in training.
        drop_path: The probability, at the end of a fixed network's training, that a branch is dropped.
        auxiliary: Weight in the loss of a second classifier after the second reduction, 0.4 in the public code; 0 for
            none. A fixed network has it, and counts it among its parameters, until training is over (`finish`). It
            never runs in evaluation mode, and so is not part of the multiply-accumulates. The supernet has none.

    Raises:
        ValueError: A size is out of range.
    """

    name = "micro"
    operations = tuple(MICRO_OPERATIONS)
    parameter_free = parameter_free(MICRO_OPERATIONS)

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        channels: int = 16,
        num_nodes: int = 5,
        num_cells: int = 2,
        dropout: float = 0.1,
        drop_path: float = 0.0,
        auxiliary: float = 0.0,
    ):
        if channels < 1 or num_outputs < 1:
            raise ValueError(f"space micro needs channels >= 1 and num_outputs >= 1, got {channels} and {num_outputs}")
        check_counts("space micro", num_nodes=num_nodes, num_cells=num_cells)
        if len(input_shape) != 3:
            raise ValueError(f"space micro needs input_shape (C, H, W), got {tuple(input_shape)}")
        if min(input_shape[1:]) < 2 ** (NUM_STAGES - 1):
            raise ValueError(f"images of {input_shape[1]}x{input_shape[2]} cannot be halved {NUM_STAGES - 1} times")
        if not (0 <= dropout < 1 and 0 <= drop_path < 1):
            raise ValueError(f"space micro needs 0 <= dropout, drop_path < 1, got {dropout} and {drop_path}")
        if not auxiliary >= 0:
            raise ValueError(f"space micro needs auxiliary >= 0, got {auxiliary}")
        self.arguments = {
            "input_shape": list(input_shape),
            "num_outputs": num_outputs,
            "channels": channels,
            "num_nodes": num_nodes,
            "num_cells": num_cells,
            "dropout": dropout,
            "drop_path": drop_path,
            "auxiliary": auxiliary,
        }
        self.input_channels, self.height, self.width = input_shape
        self.num_outputs = num_outputs
        self.channels = channels
        self.num_nodes = num_nodes
        self.num_cells = num_cells
        self.dropout = dropout
        self.drop_path = drop_path
        self.auxiliary = auxiliary

        self.labels = ("older", "newer", *(str(node + 1) for node in range(num_nodes)))
        decisions = []
        for number, cell in enumerate(CELLS):
            first = number * (num_nodes + 2)  # of the cell's inputs and nodes among those of both
            for node in range(num_nodes):
                name, readable = f"{cell}.node{node + 1}", range(first, first + node + 2)
                decisions += [
                    Decision(f"{name}.input{side}", "input", self.labels[: node + 2], first + node + 2, tuple(readable))
                    for side in (1, 2)
                ]
                decisions += [
                    Decision(f"{name}.operation{side}", "operation", self.operations, first + node + 2)
                    for side in (1, 2)
                ]
        self.decisions = tuple(decisions)

        stages = [0, 0]  # of the two outputs so far
        places = []
        for stage in range(NUM_STAGES):
            for cell in [1] * (stage > 0) + [0] * num_cells:
                places.append(Place(cell, stage, (stages[-2] < stage, stages[-1] < stage)))
                stages.append(stage)
        self.places = tuple(places)

    def cells(self, genotype: Genotype) -> tuple[Nodes, Nodes]:
        """The normal and the reduction cell."""
        rows = [genotype.tokens[start : start + 4] for start in range(0, len(genotype.tokens), 4)]
        nodes = tuple(((row[0], self.operations[row[2]]), (row[1], self.operations[row[3]])) for row in rows)
        return nodes[: self.num_nodes], nodes[self.num_nodes :]

    def text(self, genotype: Genotype) -> str:
        """Such as `normal 1:sepconv3(older)+identity(newer) 2:maxpool3(1)+... reduction 1:...`."""
        words = []
        for cell, nodes in zip(CELLS, self.cells(genotype), strict=True):
            words.append(cell)
            for number, branches in enumerate(nodes, 1):
                words.append(f"{number}:{'+'.join(f'{name}({self.labels[source]})' for source, name in branches)}")
        return " ".join(words)

    def parse(self, text: str) -> Genotype:
        """Read what `text` wrote (else ValueError, naming the word)."""
        words = text.split()
        per_cell = self.num_nodes + 1
        if len(words) != len(CELLS) * per_cell or (words[0], words[per_cell]) != CELLS:
            raise ValueError(
                f"expected 'normal' and {self.num_nodes} nodes, 'reduction' and {self.num_nodes} nodes, "
                f"got {text!r:.200}"
            )
        tokens = []
        for place, word in enumerate(words):
            node = place % per_cell
            if node == 0:
                continue
            match = re.fullmatch(r"(\d+):(\w+)\((\w+)\)\+(\w+)\((\w+)\)", word, re.ASCII)
            if match is None or match[1] != str(node):
                raise ValueError(f"expected '{node}:operation(input)+operation(input)', got {word!r:.200}")
            for allowed, given in ((self.labels[: node + 1], (3, 5)), (self.operations, (2, 4))):
                for name in map(match.__getitem__, given):
                    if name not in allowed:
                        raise ValueError(f"unknown {name!r} in {word!r:.200}; {nearest(name, allowed)}")
                    tokens.append(allowed.index(name))
        return self.genotype(tokens)

    def blends(self, choices: Tensor) -> tuple[Blend, Blend]:
        """The normal and the reduction cell under choice weights (T, C), without what has weight 0."""
        normal, reduction = (self._blend(part) for part in choices.chunk(2))
        return normal, reduction

    def _blend(self, choices: Tensor) -> Blend:
        nodes = []
        for node, rows in enumerate(choices.split(4)):
            branches = []
            for side in (0, 1):
                read, run = rows[side, : node + 2], rows[2 + side, : len(self.operations)]
                weights = torch.outer(read, run).flatten()
                names = [(side, source, name) for source in range(node + 2) for name in self.operations]
                branches += [
                    (name, weight)
                    for name, weight, value in zip(names, weights.unbind(), weights.tolist(), strict=True)
                    if value != 0
                ]
            nodes.append(tuple(branches))
        ends = tuple((end, weight) for end, weight in enumerate(self._looseness(choices)) if weight.item() != 0)
        return Blend(tuple(nodes), ends)

    def _looseness(self, choices: Tensor) -> list[Tensor]:
        """The probability that nothing reads an input or node, for each of one cell's under its choice weights."""
        one = torch.ones((), dtype=choices.dtype, device=choices.device)
        return [
            prod((1 - choices[4 * node + side, end] for node in range(max(0, end - 1), self.num_nodes)
                  for side in (0, 1)), start=one)
            for end in range(self.num_nodes + 2)
        ]  # fmt: skip

    def num_skips(self, genotype: Genotype) -> int:
        """Identities of the normal cell."""
        normal, _ = self.cells(genotype)
        return sum(name == "identity" for branches in normal for _, name in branches)

    def key(self, genotype: Genotype) -> Hashable:
        """The branches of a node have no order."""
        return tuple(tuple(tuple(sorted(branches)) for branches in nodes) for nodes in self.cells(genotype))

    def graph(self, genotype: Genotype) -> Graph:
        """Both cells: inputs, the branches of each node, and the loose ends that make the output."""
        drawn: list[tuple[str, str, str]] = []
        edges: list[tuple[str, str]] = []
        for cell, nodes in zip(CELLS, self.cells(genotype), strict=True):
            names = [f"{cell}.{label}" for label in self.labels]
            drawn += [(name, f"{cell}: {label}", "input") for name, label in zip(names[:2], self.labels, strict=False)]
            for node, branches in enumerate(nodes, 2):
                for side, (source, operation) in enumerate(branches, 1):
                    branch = f"{names[node]}.operation{side}"
                    drawn.append((branch, operation, "operation"))
                    edges += [(names[source], branch), (branch, names[node])]
                drawn.append((names[node], self.labels[node], "sum"))
            drawn.append((f"{cell}.output", f"{cell}: output", "output"))
            edges += [(names[place], f"{cell}.output") for place in loose_ends(nodes)]
        return Graph(tuple(drawn), tuple(edges))

    def weights(self, genotype: Genotype, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As in every space; the supernet has none for an auxiliary head, which is of the final training alone."""
        if self.auxiliary:
            return MicroSpace(**{**self.arguments, "auxiliary": 0.0}).weights(genotype, shared)
        return super().weights(genotype, shared)

    def network(self, genotype: Genotype | None = None) -> "MicroNetwork":
        """The fixed network of a genotype, or the supernet of all."""
        return MicroNetwork(self, genotype)

    def macs(self, genotype: Genotype) -> int:
        """Of the convolutions and the classifier, which is all that multiplies and accumulates."""
        cells = self.cells(genotype)
        total = 9 * self.input_channels * self.channels * self.height * self.width
        for place in self.places:
            channels, height, width = self.stage_size(place.stage)
            nodes = cells[place.cell]
            weights = 2 * channels**2 * sum(place.halved) + channels**2 * len(loose_ends(nodes))
            weights += sum(MICRO_OPERATIONS[name].weights(channels, 2) for node in nodes for _, name in node)
            total += weights * height * width
        return total + self.stage_size(NUM_STAGES - 1)[0] * self.num_outputs

    def parameters(self, genotype: Genotype) -> int:
        """Of convolutions, normalizations and classifier, and of the auxiliary head where there is one."""
        cells = self.cells(genotype)
        last = self.stage_size(NUM_STAGES - 1)[0]
        total = 9 * self.input_channels * self.channels + 2 * self.channels + (last + 1) * self.num_outputs
        for place in self.places:
            channels, _, _ = self.stage_size(place.stage)
            nodes = cells[place.cell]
            total += (2 * channels**2 + 2 * channels) * sum(place.halved)
            total += channels**2 * len(loose_ends(nodes)) + 2 * channels
            total += sum(MICRO_OPERATIONS[name].parameters(channels) for node in nodes for _, name in node)
        if self.auxiliary:
            total += AuxiliaryHead.parameters_of(last, self.num_outputs)
        return total

    def expected_cost(self, choices: Tensor, unit: CostUnit) -> Tensor:
        """Exact: an operation costs the same whatever it reads, and so does a loose end of either cell.

        Both costs are told by architectures that differ in nothing else.
        """
        length = len(self.decisions)

        def cost(step: int, token: int) -> int:
            genotype = Genotype(self.name, tuple(token if place == step else 0 for place in range(length)))
            return self.macs(genotype) if unit == "macs" else self.parameters(genotype)

        plain = cost(0, 0)  # every branch reads the older input, so that all else is a loose end
        total = torch.tensor(plain, dtype=torch.float64, device=choices.device)
        for start, rows in zip((0, length // 2), choices.double().chunk(2), strict=True):
            more = [cost(start + 2, token) - plain for token in range(len(self.operations))]
            of_operation = torch.tensor(more, dtype=torch.float64, device=choices.device)
            of_end = plain - cost(start, 1)  # with the newer input read too
            runs = rows.view(-1, 2, 2, rows.shape[1])[:, 1, :, : len(more)]  # (node, side, operation)
            total = total + (runs @ of_operation).sum()
            total = total + of_end * (sum(self._looseness(rows)) - (self.num_nodes + 1))
        return total

    def stage_size(self, stage: int) -> tuple[int, int, int]:
        """Channels, height and width of the cells of a stage."""
        return self.channels << stage, self.height >> stage, self.width >> stage


class Cell(nn.Module):
    """The operations of a cell's nodes, or all there can be; `forward` runs those of an architecture."""

    def __init__(self, space: MicroSpace, place: Place, nodes: Nodes | None):
        super().__init__()
        channels, _, _ = space.stage_size(place.stage)
        self.calibrations = nn.ModuleList(
            relu_conv_norm(channels // 2, channels, 2, 2) if halved else nn.Identity() for halved in place.halved
        )
        if nodes is None:
            branches = {
                (node, side, source, operation)
                for node in range(space.num_nodes)
                for side in (0, 1)
                for source in range(node + 2)
                for operation in space.operations
            }
            ends = tuple(range(space.num_nodes + 2))
        else:
            branches = {(node, side, *nodes[node][side]) for node in range(space.num_nodes) for side in (0, 1)}
            ends = loose_ends(nodes)
        self.branches = nn.ModuleDict(
            {branch_name(*branch): MICRO_OPERATIONS[branch[3]].build(channels) for branch in sorted(branches)}
        )
        self.projections = nn.ModuleDict({str(end): nn.Conv2d(channels, channels, 1, bias=False) for end in ends})
        self.norm = BatchNorm2d(channels)
        self.drop_path = DropPath(0.0 if nodes is None else space.drop_path)

    def forward(self, older: Tensor, newer: Tensor, nodes: Nodes | Blend) -> Tensor:
        """The output (B, C, H, W) from those of the two cells before."""
        blend = nodes if isinstance(nodes, Blend) else Blend.of(nodes)
        states = [calibrate(x) for calibrate, x in zip(self.calibrations, (older, newer), strict=True)]
        for node, branches in enumerate(blend.nodes):
            outputs = ((self._run(node, *branch, states[branch[1]]), weight) for branch, weight in branches)
            states.append(weighted_sum(outputs))
        ends = ((self.projections[str(end)](torch.relu(states[end])), weight) for end, weight in blend.ends)
        return self.norm(weighted_sum(ends))

    def _run(self, node: int, side: int, source: int, operation: str, x: Tensor) -> Tensor:
        outputs = self.branches[branch_name(node, side, source, operation)](x)
        return outputs if operation == "identity" else self.drop_path(outputs)


def weighted_sum(terms: Iterable[tuple[Tensor, Tensor | None]]) -> Tensor:
    """Of tensors with their weights, where None stands for 1."""
    return reduce(operator.add, (x if weight is None else weight * x for x, weight in terms))


def branch_name(node: int, side: int, source: int, operation: str) -> str:
    """The name of a branch's weights: each node, side, source and operation has its own, as in the public code."""
    return f"{node + 2}{'ab'[side]}_{source}_{operation}"


class AuxiliaryHead(nn.Module):
    """A second classifier for training (Szegedy et al. 2015), of the widths of the public code.

    It pools adaptively to 2x2, which is what the 5x5 mean of stride 3 leaves of 8x8, so that images of any size do.
    """

    widths = (128, 768)

    def __init__(self, channels: int, num_outputs: int):
        super().__init__()
        narrow, wide = self.widths
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Conv2d(channels, narrow, 1, bias=False),
            BatchNorm2d(narrow),
            nn.ReLU(),
            nn.Conv2d(narrow, wide, 2, bias=False),
            BatchNorm2d(wide),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(wide, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (B, K) of a cell's output (B, C, H, W)."""
        return self.classifier(self.features(x).flatten(1))

    @classmethod
    def parameters_of(cls, channels: int, num_outputs: int) -> int:
        """How many parameters it has."""
        narrow, wide = cls.widths
        return channels * narrow + 2 * narrow + 4 * narrow * wide + 2 * wide + (wide + 1) * num_outputs


class MicroNetwork(nn.Module):
    """Both the supernet (no genotype: every branch of every node) and the fixed network (only what it uses)."""

    def __init__(self, space: MicroSpace, genotype: Genotype | None = None):
        super().__init__()
        self.space = space
        self.fixed = None if genotype is None else space.cells(space.check(genotype))
        channels, last = space.channels, space.stage_size(NUM_STAGES - 1)[0]
        self.stem = nn.Sequential(
            nn.Conv2d(space.input_channels, channels, 3, padding=1, bias=False), BatchNorm2d(channels)
        )
        self.cells = nn.ModuleList(
            Cell(space, place, None if self.fixed is None else self.fixed[place.cell]) for place in space.places
        )
        self.auxiliary = None
        if self.fixed is not None and space.auxiliary:
            self.auxiliary = AuxiliaryHead(last, space.num_outputs)
        self.dropout = nn.Dropout(space.dropout)
        self.classifier = nn.Linear(last, space.num_outputs)
        prepare(self)

    def forward(self, x: Tensor, path: Genotype | Tensor | None = None) -> Tensor | WithAuxiliary:
        """Outputs (B, K) of images (B, C, H, W); in training with those of the auxiliary head, where there is one.

        A supernet runs the path of a genotype, or a blend (T, C) of all.
        """
        cells = self.space.blends(path) if isinstance(path, Tensor) else plan(self.fixed, self.space.cells, path)
        x = self.stem(x)
        older, newer = self._walk(0, self._last_reduction, x, x, cells)
        older, newer = self._walk(self._last_reduction, self._last_reduction + 1, older, newer, cells)
        auxiliary = self.auxiliary(newer) if self.auxiliary is not None and self.training else None
        _, newer = self._walk(self._last_reduction + 1, len(self.cells), older, newer, cells)
        outputs = self._classify(newer)
        return outputs if auxiliary is None else WithAuxiliary(outputs, auxiliary, self.space.auxiliary)

    def forward_many(self, x: Tensor, genotypes: Sequence[Genotype]) -> list[Tensor]:
        """Outputs of each architecture on the same images; equal normal cells share all before the first reduction."""
        plans = [plan(self.fixed, self.space.cells, genotype) for genotype in genotypes]
        reductions_of: dict[Nodes, dict[Nodes, None]] = {}
        for normal, reduction in plans:
            reductions_of.setdefault(normal, {})[reduction] = None
        x = self.stem(x)
        results = {}
        for normal, reductions in reductions_of.items():
            begun = self._walk(0, self.space.num_cells, x, x, (normal, normal))
            for reduction in reductions:
                _, newer = self._walk(self.space.num_cells, len(self.cells), *begun, (normal, reduction))
                results[normal, reduction] = self._classify(newer)
        return [results[plan] for plan in plans]

    def finish(self) -> dict[str, Any]:
        """Leave behind what only training needs; gives the arguments of the space whose network this now is."""
        self.auxiliary = None
        return {**self.space.arguments, "drop_path": 0.0, "auxiliary": 0.0}

    @property
    def _last_reduction(self) -> int:
        return 2 * self.space.num_cells + 1

    def _walk(
        self, start: int, stop: int, older: Tensor, newer: Tensor, cells: tuple[Nodes | Blend, Nodes | Blend]
    ) -> tuple[Tensor, Tensor]:
        """The last two outputs after the cells from number `start` until before `stop`."""
        for number in range(start, stop):
            older, newer = newer, self.cells[number](older, newer, cells[self.space.places[number].cell])
        return older, newer

    def _classify(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(torch.relu(x).mean(dim=(2, 3))))
