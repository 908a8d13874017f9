"""The search space of NAS-Bench-201 (Dong and Yang 2020): a cell of four nodes, one of five operations on each edge.

Every node is the sum of what its edges bring. The network is a stem, stages of equal cells with channels doubling as
height and width are halved between them, and a classifier. Differences from the public code: an edge that carries
nothing but zeros, or whose result never reaches the cell's output, is neither built nor run nor counted. (There a
convolution of zeros still gives the bias of its normalization, and dead edges are among the published costs.)

Letters: B samples, C channels, H height, W width, K outputs.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from math import prod
from operator import getitem
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from child.norm import BatchNorm2d
from child.operations import NASBENCH201_OPERATIONS, parameter_free, prepare, relu_conv_norm
from child.space import CostUnit, Decision, Genotype, Graph, RelaxedSpace, check_counts, nearest, plan

OPERATIONS = ("none", *NASBENCH201_OPERATIONS)
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
PATHS = ((3,), (0, 4), (1, 5), (0, 2, 5))
"""The edges of each way from a cell's input to its output, by their places in `EDGES`."""
WORDS = [[f"{operation}~{source}" for operation in OPERATIONS] for source, _ in EDGES]

Reduction = Literal["residual", "thin"]
Edge = tuple[int, int, str]
Edges = tuple[Edge, ...]
"""The edges of a cell that matter: from which node, to which, and the operation. A blend has several on an edge."""


def live(present: Iterable[Edge]) -> Edges:
    """Those of the edges that bring something from the cell's input to its output, in the order given."""
    edges = tuple(present)
    filled, needed = {0}, {3}
    for source, node, _ in sorted(edges):
        filled |= {node} if source in filled else set()
    for source, node, _ in sorted(edges, reverse=True):
        needed |= {source} if node in needed else set()
    return tuple(edge for edge in edges if edge[0] in filled and edge[1] in needed)


class NASBench201Space(RelaxedSpace):
    """Six decisions, one for each edge from an earlier node to a later one.

    Without `input_shape` it is the space of the benchmark's table, and builds no networks.

    Args:
        input_shape: (channels, height, width) of an image.
        num_outputs: Outputs of the fully connected classifier.
        channels: Channels of the first stage; every further stage doubles them.
        cells_per_stage: Cells of a stage, 5 in the benchmark.
        num_stages: Stages, 3 in the benchmark.
        reduction: What halves the size between stages: `residual`, the benchmark's block of two 3x3 convolutions and
            a shortcut; or `thin`, a ReLU, a 2x2 mean and a 1x1 convolution, which leave the work to the cells.
        share_edges: In a supernet, all edges of a cell have the same convolutions, with normalizations of their own.

    Raises:
        ValueError: A size is out of range, or only one of `input_shape` and `num_outputs` is given.
    """

    name = "nasbench201"
    decisions = tuple(Decision(f"edge{i}{j}", "operation", OPERATIONS, j, (i,)) for i, j in EDGES)
    parameter_free = parameter_free(NASBENCH201_OPERATIONS) | {"none"}

    def __init__(
        self,
        input_shape: Sequence[int] | None = None,
        num_outputs: int | None = None,
        channels: int = 16,
        cells_per_stage: int = 5,
        num_stages: int = 3,
        reduction: Reduction = "residual",
        share_edges: bool = False,
    ):
        if (input_shape is None) != (num_outputs is None):
            raise ValueError(
                f"space nasbench201 needs input_shape and num_outputs, or neither, got {input_shape} and {num_outputs}"
            )
        if input_shape is not None and len(input_shape) != 3:
            raise ValueError(f"space nasbench201 needs input_shape (C, H, W), got {tuple(input_shape)}")
        if min(channels, 1 if num_outputs is None else num_outputs) < 1:
            raise ValueError(
                f"space nasbench201 needs channels >= 1 and num_outputs >= 1, got {channels} and {num_outputs}"
            )
        check_counts("space nasbench201", cells_per_stage=cells_per_stage, num_stages=num_stages)
        if reduction not in REDUCTIONS:
            raise ValueError(f"unknown reduction {reduction!r}; {nearest(reduction, REDUCTIONS)}")
        self.arguments = {
            "input_shape": None if input_shape is None else list(input_shape),
            "num_outputs": num_outputs,
            "channels": channels,
            "cells_per_stage": cells_per_stage,
            "num_stages": num_stages,
            "reduction": reduction,
            "share_edges": share_edges,
        }
        self.shape = None if input_shape is None or num_outputs is None else (*input_shape, num_outputs)
        self.channels = channels
        self.cells_per_stage = cells_per_stage
        self.num_stages = num_stages
        self.reduction: Reduction = reduction
        self.share_edges = share_edges

    def text(self, genotype: Genotype) -> str:
        """The form that the benchmark's own tools use: `|nor_conv_3x3~0|+|none~0|skip_connect~1|+|...|`."""
        return "|{}|+|{}|{}|+|{}|{}|{}|".format(*map(getitem, WORDS, genotype.tokens))

    def parse(self, text: str) -> Genotype:
        """Read what `text` wrote.

        Raises:
            ValueError: An edge or operation is unknown, missing or repeated.
        """
        chosen: dict[tuple[int, int], int] = {}
        for node, part in enumerate(text.strip().split("+"), 1):
            for edge in part.strip().strip("|").split("|"):
                operation, _, source = edge.strip().partition("~")
                if operation not in OPERATIONS:
                    raise ValueError(f"unknown operation {operation!r} in {text!r}; {nearest(operation, OPERATIONS)}")
                place = (int(source) if source.isdecimal() else -1, node)
                if place not in EDGES or place in chosen:
                    wrong = "is given twice" if place in chosen else "does not exist"
                    raise ValueError(f"the edge from {source!r} to node {node} {wrong} in {text!r}")
                chosen[place] = OPERATIONS.index(operation)
        missing = [edge for edge in EDGES if edge not in chosen]
        if missing:
            raise ValueError(f"the edge from {missing[0][0]} to node {missing[0][1]} is missing in {text!r}")
        return Genotype(self.name, tuple(chosen[edge] for edge in EDGES))

    def key(self, genotype: Genotype) -> Hashable:
        """The last node as a sum of terms, written out to the input: equal for cells that compute the same function.

        A skip-connection hands its node's terms on, an operation on nothing is nothing, and sums have no order. (The
        benchmark's `to_unique_str` keeps sums of sums apart, and so tells a few more cells apart.)
        """
        nodes: list[tuple[Hashable, ...]] = [("input",)]
        for node in (1, 2, 3):
            terms: list[Hashable] = []
            for (source, target), token in zip(EDGES, genotype.tokens, strict=True):
                if target != node or OPERATIONS[token] == "none" or not nodes[source]:
                    continue
                terms += nodes[source] if OPERATIONS[token] == "skip_connect" else [(token, nodes[source])]
            nodes.append(tuple(sorted(terms, key=repr)))
        return nodes[-1]

    def features(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """How many paths from the cell's input to its output do each sequence of operations, (M, 40) for tokens (M, 6).

        The path encoding of White et al. (2021, BANANAS), which says only whether there is one, and takes a
        skip-connection for an operation. Here it is none, so that cells of one function have the same features. The
        forty are the sequences of none to three operations of three kinds.
        """
        none, skip = OPERATIONS.index("none"), OPERATIONS.index("skip_connect")
        found = np.zeros((len(tokens), 40))
        for path in PATHS:
            sequence = np.zeros(len(tokens), np.int64)  # its digits are the operations, from 1 to 3
            for edge in path:
                operation = tokens[:, edge]
                sequence = np.where(operation == skip, sequence, 3 * sequence + operation - skip)
            leads = (tokens[:, path] != none).all(axis=1)
            found[leads, sequence[leads]] += 1
        return found

    def graph(self, genotype: Genotype) -> Graph:
        """The cell: its nodes, and an operation on every edge that is there."""
        nodes, edges = [("node0", "input", "input")], []
        for node, label, kind in ((1, "1", "sum"), (2, "2", "sum"), (3, "output", "output")):
            for (source, target), token in zip(EDGES, genotype.tokens, strict=True):
                if target == node and OPERATIONS[token] != "none":
                    name = f"edge{source}{node}"
                    nodes.append((name, OPERATIONS[token], "operation"))
                    edges += [(f"node{source}", name), (name, f"node{node}")]
            nodes.append((f"node{node}", label, kind))
        return Graph(tuple(nodes), tuple(edges))

    def edges(self, genotype: Genotype) -> Edges:
        """The edges that bring something from the cell's input to its output, in the order of the decisions."""
        return live(
            (source, node, OPERATIONS[token])
            for (source, node), token in zip(EDGES, genotype.tokens, strict=True)
            if OPERATIONS[token] != "none"
        )

    def blend(self, choices: Tensor) -> dict[Edge, Tensor]:
        """The weights of the operations that a blend runs, in the order of the decisions; `none` brings nothing."""
        names = [(*edge, name) for edge in EDGES for name in OPERATIONS]
        flat = choices.flatten()
        weights = {
            edge: weight
            for edge, weight, value in zip(names, flat.unbind(), flat.tolist(), strict=True)
            if edge[2] != "none" and value != 0
        }
        return {edge: weights[edge] for edge in live(weights)}

    def num_skips(self, genotype: Genotype) -> int:
        """Edges that are a skip-connection."""
        return sum(OPERATIONS[token] == "skip_connect" for token in genotype.tokens)

    def network(self, genotype: Genotype | None = None) -> "NASBench201Network":
        """The fixed network of a genotype, or the supernet of all."""
        return NASBench201Network(self, genotype)

    def macs(self, genotype: Genotype) -> int:
        """Of the convolutions and the classifier, which is all that multiplies and accumulates.

        For the benchmark's own network and a cell without dead edges its published count less 10, since that counts
        the biases of the classifier as well.
        """
        inputs, _, _, outputs = self.sizes()
        operations = [NASBENCH201_OPERATIONS[operation] for _, _, operation in self.edges(genotype)]
        total = outputs * self.channels * 2 ** (self.num_stages - 1)
        for stage in range(self.num_stages):
            channels, height, width = self.stage_size(stage)
            if stage == 0:
                total += 9 * inputs * channels * height * width
            else:
                total += self._reduction_weights(channels) * height * width
            total += self.cells_per_stage * sum(each.macs(channels, height, width) for each in operations)
        return total

    def parameters(self, genotype: Genotype) -> int:
        """Of convolutions, normalizations and classifier."""
        inputs, _, _, outputs = self.sizes()
        operations = [NASBENCH201_OPERATIONS[operation] for _, _, operation in self.edges(genotype)]
        last = self.channels * 2 ** (self.num_stages - 1)
        total = 9 * inputs * self.channels + 2 * self.channels + 2 * last + (last + 1) * outputs
        for stage in range(self.num_stages):
            channels, _, _ = self.stage_size(stage)
            if stage > 0:
                total += self._reduction_weights(channels)
                total += 2 * channels * (2 if self.reduction == "residual" else 1)  # of its normalizations
            total += self.cells_per_stage * sum(each.parameters(channels) for each in operations)
        return total

    def expected_cost(self, choices: Tensor, unit: CostUnit) -> Tensor:
        """Exact, dead edges included.

        An edge costs where its source is filled and its end is needed. The first follows from edges before it alone,
        the second from edges behind it, so that all three are independent and their probabilities multiply.
        """
        cost = self.macs if unit == "macs" else self.parameters
        alone = [cost(Genotype(self.name, (0, 0, 0, token, 0, 0))) for token in range(len(OPERATIONS))]
        of_operation = torch.tensor(alone, dtype=torch.float64, device=choices.device) - alone[0]
        expected = dict(zip(EDGES, choices.double() @ of_operation, strict=True))
        missing = dict(zip(EDGES, choices.double()[:, OPERATIONS.index("none")], strict=True))
        one = torch.ones((), dtype=torch.float64, device=choices.device)
        filled, needed = {0: one}, {3: one}
        for node in (1, 2):
            filled[node] = 1 - prod((1 - filled[i] * (1 - missing[i, node]) for i in range(node)), start=one)
        for node in (2, 1):
            needed[node] = 1 - prod((1 - needed[j] * (1 - missing[node, j]) for j in range(node + 1, 4)), start=one)
        return sum((filled[i] * expected[i, j] * needed[j] for i, j in EDGES), start=alone[0] * one)

    def sizes(self) -> tuple[int, int, int, int]:
        """Channels, height and width of the images, and the number of outputs.

        Raises:
            ValueError: They were not given.
        """
        if self.shape is None:
            raise ValueError(
                "this space nasbench201 is that of the table and has no networks; give input_shape and num_outputs"
            )
        channels, height, width, outputs = self.shape
        return channels, height, width, outputs

    def stage_size(self, stage: int) -> tuple[int, int, int]:
        """Channels, height and width within a stage; odd sizes are rounded up when halved."""
        _, height, width, _ = self.sizes()
        return self.channels << stage, -(-height >> stage), -(-width >> stage)

    def _reduction_weights(self, channels: int) -> int:
        """Convolution weights of a reduction to so many channels, each used once per pixel of its output."""
        shortcut = channels // 2 * channels
        return shortcut if self.reduction == "thin" else 9 * shortcut + 9 * channels**2 + shortcut


class ResidualReduction(nn.Module):
    """Half the size and twice the channels: two 3x3 convolutions, and a shortcut by the 2x2 mean and a convolution."""

    def __init__(self, inputs: int):
        super().__init__()
        self.body = nn.Sequential(relu_conv_norm(inputs, 2 * inputs, 3, 2), relu_conv_norm(2 * inputs, 2 * inputs, 3))
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(inputs, 2 * inputs, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


def thin_reduction(inputs: int) -> nn.Module:
    """Half the size and twice the channels: ReLU, the 2x2 mean, a 1x1 convolution and its normalization.

    Without the ReLU a convolution at the end of a cell and this one would be a single linear function, so that the
    cell's would be worth no more than a skip-connection.
    """
    convolve = nn.Conv2d(inputs, 2 * inputs, 1, bias=False)
    return nn.Sequential(nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True), convolve, BatchNorm2d(2 * inputs))


REDUCTIONS = {"residual": ResidualReduction, "thin": thin_reduction}


class Cell(nn.Module):
    """The operations of given edges, or of all; `forward` runs those of an architecture."""

    def __init__(self, channels: int, edges: Edges | None, share_edges: bool = False):
        super().__init__()
        every = tuple((source, node, name) for source, node in EDGES for name in NASBENCH201_OPERATIONS)
        self.operations = nn.ModuleDict(
            {
                f"edge{source}{node}_{name}": NASBENCH201_OPERATIONS[name].build(channels)
                for source, node, name in (every if edges is None else edges)
            }
        )
        if share_edges:
            for kernel in ("nor_conv_1x1", "nor_conv_3x3"):
                _, shared, _ = self.operations[f"edge01_{kernel}"]  # type: ignore[misc]
                for source, node in EDGES:
                    self.operations[f"edge{source}{node}_{kernel}"][1] = shared  # type: ignore[index]

    def forward(self, x: Tensor, edges: Edges | Mapping[Edge, Tensor]) -> Tensor:
        """The last node (B, C, H, W), which is zero where nothing reaches it; of a blend with the edges' weights."""
        nodes = {0: x}
        for edge in edges:
            source, node, name = edge
            brought = self.operations[f"edge{source}{node}_{name}"](nodes[source])
            if isinstance(edges, Mapping):
                brought = edges[edge] * brought
            nodes[node] = nodes[node] + brought if node in nodes else brought
        return nodes[3] if edges else torch.zeros_like(x)


class NASBench201Network(nn.Module):
    """Both the supernet (no genotype: every operation of every edge) and the fixed network (only what it uses)."""

    def __init__(self, space: NASBench201Space, genotype: Genotype | None = None):
        super().__init__()
        inputs, _, _, outputs = space.sizes()
        self.space = space
        self.fixed = None if genotype is None else space.edges(space.check(genotype))
        share = space.share_edges and self.fixed is None
        widths = [space.stage_size(stage)[0] for stage in range(space.num_stages)]
        self.stem = nn.Sequential(nn.Conv2d(inputs, widths[0], 3, padding=1, bias=False), BatchNorm2d(widths[0]))
        self.reductions = nn.ModuleList(REDUCTIONS[space.reduction](width) for width in widths[:-1])
        self.stages = nn.ModuleList(
            nn.ModuleList(Cell(width, self.fixed, share) for _ in range(space.cells_per_stage)) for width in widths
        )
        self.norm = BatchNorm2d(widths[-1])
        self.classifier = nn.Linear(widths[-1], outputs)
        prepare(self)

    def forward(self, x: Tensor, path: Genotype | Tensor | None = None) -> Tensor:
        """Outputs (B, K) of images (B, C, H, W); of a supernet on the path of a genotype, or a blend (T, C) of all."""
        edges = self.space.blend(path) if isinstance(path, Tensor) else plan(self.fixed, self.space.edges, path)
        return self._run(self.stem(x), edges)

    def forward_many(self, x: Tensor, genotypes: Sequence[Genotype]) -> list[Tensor]:
        """Outputs of each architecture on the same images; they share the stem, and equal cells all of it."""
        plans = [plan(self.fixed, self.space.edges, genotype) for genotype in genotypes]
        x = self.stem(x)
        results = {edges: self._run(x, edges) for edges in dict.fromkeys(plans)}
        return [results[edges] for edges in plans]

    def _run(self, x: Tensor, edges: Edges | Mapping[Edge, Tensor]) -> Tensor:
        for stage, cells in enumerate(self.stages):
            if stage > 0:
                x = self.reductions[stage - 1](x)
            for cell in cells:  # type: ignore[attr-defined]
                x = cell(x, edges)
        return self.classifier(torch.relu(self.norm(x)).mean(dim=(2, 3)))
