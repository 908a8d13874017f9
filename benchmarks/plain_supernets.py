"""Every space's supernet as the public code of its paper is written, to time ours beside.

Contiguous layout, one architecture at a time, no work shared between architectures. What is the same operation in both
comes from `child/`; what is here is what differs. Weights have our names where they have our shapes.

Letters: B samples, C channels, H height, W width (or length of a sequence, or width of a state), K outputs, F features.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from child import mlp, recurrent
from child.elastic import ElasticLinear
from child.language import LanguageModel
from child.macro import MacroSpace
from child.micro import MicroSpace, Place, branch_name, loose_ends
from child.mobile import InvertedResidual, MobileSpace
from child.nasbench201 import EDGES, REDUCTIONS, NASBench201Space
from child.operations import MACRO_OPERATIONS, MICRO_OPERATIONS, NASBENCH201_OPERATIONS, conv, sides
from child.space import Genotype


class FactorizedReduction(nn.Module):
    """ENAS's halving: two 1x1 convolutions of stride 2, the second of them of the input shifted by a pixel."""

    def __init__(self, inputs: int, outputs: int, dims: int = 2):
        super().__init__()
        stride = sides(2, dims)
        self.even = nn.Conv2d(inputs, outputs // 2, 1, stride, bias=False)
        self.odd = nn.Conv2d(inputs, outputs - outputs // 2, 1, stride, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        x = x[..., : x.shape[-1] // 2 * 2]  # the last of an odd length belongs to no pair
        if self.dims == 2:
            shifted = functional.pad(x, [0, 1, 0, 1])[:, :, 1:, 1:]
        else:
            shifted = functional.pad(x, [0, 1])[:, :, :, 1:]
        return self.norm(torch.cat([self.even(x), self.odd(shifted)], dim=1))


class PlainMacro(nn.Module):
    """ENAS's macro supernet (Pham et al. 2018): where sizes halve, every earlier output is reduced, needed or not."""

    def __init__(self, space: MacroSpace):
        super().__init__()
        self.space, channels, dims = space, space.channels, space.dims
        self.stem = nn.Sequential(conv(space.input_channels, channels, 3, dims=dims), nn.BatchNorm2d(channels))
        self.operations = nn.ModuleList(
            nn.ModuleDict({name: MACRO_OPERATIONS[name].build(channels, dims) for name in space.operations})
            for _ in range(space.num_layers)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(space.num_layers))
        self.reductions = nn.ModuleDict({
            str(layer): nn.ModuleList(FactorizedReduction(channels, channels, dims) for _ in range(layer + 1))
            for layer in range(1, space.num_layers) if space.levels[layer] > space.levels[layer - 1]
        })  # fmt: skip
        self.dropout = nn.Dropout(space.dropout)
        self.classifier = nn.Linear(channels, space.num_outputs)

    def forward(self, x: Tensor, genotype: Genotype) -> Tensor:
        outputs = [self.stem(x if self.space.dims == 2 else x.unsqueeze(2))]
        for layer, (operation, skips) in enumerate(self.space.layers(genotype)):
            if str(layer) in self.reductions:
                reductions: Iterable[nn.Module] = self.reductions[str(layer)]  # type: ignore[assignment]
                outputs = [reduce(output) for reduce, output in zip(reductions, outputs, strict=True)]
            total = self.operations[layer][operation](outputs[-1])  # type: ignore[index]
            for source in skips:
                total = total + outputs[source + 1]
            outputs.append(self.norms[layer](total))
        return self.classifier(self.dropout(outputs[-1].mean(dim=(2, 3))))


class PlainMicroCell(nn.Module):
    """ENAS's micro cell: inputs of another size are calibrated, loose ends put end to end for one 1x1 convolution."""

    def __init__(self, space: MicroSpace, place: Place):
        super().__init__()
        channels, _, _ = space.stage_size(place.stage)
        self.calibrations = nn.ModuleList(
            nn.Sequential(nn.ReLU(), FactorizedReduction(channels // 2, channels)) if halved else nn.Identity()
            for halved in place.halved
        )
        self.branches = nn.ModuleDict({
            branch_name(node, side, source, name): MICRO_OPERATIONS[name].build(channels)
            for node in range(space.num_nodes) for side in (0, 1) for source in range(node + 2)
            for name in space.operations
        })  # fmt: skip
        self.projection = nn.Parameter(torch.empty(space.num_nodes + 2, channels, channels))  # (source, out, in)
        nn.init.kaiming_uniform_(self.projection)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, older: Tensor, newer: Tensor, nodes: tuple) -> Tensor:
        states = [calibrate(x) for calibrate, x in zip(self.calibrations, (older, newer), strict=True)]
        for node, branches in enumerate(nodes):
            first, second = (
                self.branches[branch_name(node, side, source, name)](states[source])
                for side, (source, name) in enumerate(branches)
            )
            states.append(first + second)
        ends = loose_ends(nodes)
        together = torch.cat([states[end] for end in ends], dim=1)
        weight = torch.cat([self.projection[end] for end in ends], dim=1)[:, :, None, None]
        return self.norm(functional.conv2d(torch.relu(together), weight))


class PlainMicro(nn.Module):
    """ENAS's micro supernet (Pham et al. 2018)."""

    def __init__(self, space: MicroSpace):
        super().__init__()
        self.space = space
        self.stem = nn.Sequential(conv(space.input_channels, space.channels, 3), nn.BatchNorm2d(space.channels))
        self.cells = nn.ModuleList(PlainMicroCell(space, place) for place in space.places)
        self.dropout = nn.Dropout(space.dropout)
        self.classifier = nn.Linear(space.stage_size(space.places[-1].stage)[0], space.num_outputs)

    def forward(self, x: Tensor, genotype: Genotype) -> Tensor:
        cells = self.space.cells(genotype)
        older = newer = self.stem(x)
        for place, cell in zip(self.space.places, self.cells, strict=True):
            older, newer = newer, cell(older, newer, cells[place.cell])
        return self.classifier(self.dropout(torch.relu(newer).mean(dim=(2, 3))))


class PlainCell201(nn.Module):
    """The cell of NAS-Bench-201: every edge is run, and `none` gives zeros, as in the public code."""

    def __init__(self, channels: int):
        super().__init__()
        self.operations = nn.ModuleDict({
            f"edge{source}{node}_{name}": operation.build(channels)
            for source, node in EDGES for name, operation in NASBENCH201_OPERATIONS.items()
        })  # fmt: skip

    def forward(self, x: Tensor, names: list[str]) -> Tensor:
        nodes = [x]
        for node in (1, 2, 3):
            brought = [
                nodes[source] * 0 if name == "none" else self.operations[f"edge{source}{node}_{name}"](nodes[source])
                for (source, target), name in zip(EDGES, names, strict=True) if target == node
            ]  # fmt: skip
            nodes.append(sum(brought[1:], brought[0]))
        return nodes[-1]


class PlainNASBench201(nn.Module):
    """The supernet of NAS-Bench-201's cell (Dong and Yang 2020)."""

    def __init__(self, space: NASBench201Space):
        super().__init__()
        inputs, _, _, outputs = space.sizes()
        self.space = space
        widths = [space.stage_size(stage)[0] for stage in range(space.num_stages)]
        self.stem = nn.Sequential(conv(inputs, widths[0], 3), nn.BatchNorm2d(widths[0]))
        self.reductions = nn.ModuleList(REDUCTIONS[space.reduction](width) for width in widths[:-1])
        self.stages = nn.ModuleList(
            nn.ModuleList(PlainCell201(width) for _ in range(space.cells_per_stage)) for width in widths
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.classifier = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor, genotype: Genotype) -> Tensor:
        names = [decision.labels[token] for decision, token in zip(self.space.decisions, genotype.tokens, strict=True)]
        x = self.stem(x)
        for stage, cells in enumerate(self.stages):
            if stage > 0:
                x = self.reductions[stage - 1](x)
            for cell in cells:  # type: ignore[attr-defined]
                x = cell(x, names)
        return self.classifier(torch.relu(self.norm(x)).mean(dim=(2, 3)))


class PlainMobile(nn.Module):
    """Elastic blocks as in Once-for-all (Cai et al. 2020), which slices the largest weights just as ours does."""

    def __init__(self, space: MobileSpace):
        super().__init__()
        self.space = space
        largest = space.blocks(space.largest)
        self.stem = nn.Sequential(
            conv(space.input_channels, space.channels, 3), nn.BatchNorm2d(space.channels), nn.ReLU6()
        )
        self.blocks = nn.ModuleDict({block.name: InvertedResidual(block, space.stride(block)) for block in largest})
        self.dropout = nn.Dropout(space.dropout)
        self.classifier = ElasticLinear(largest[-1].outputs, space.num_outputs)

    def forward(self, x: Tensor, genotype: Genotype) -> Tensor:
        x = self.stem(x)
        for block in self.space.blocks(genotype):
            x = self.blocks[block.name](x, block)
        return self.classifier(self.dropout(x.mean(dim=(2, 3))))


class PlainMLP(nn.Module):
    """Every layer at the largest width, and a mask over the features that an architecture does not have."""

    def __init__(self, space: mlp.MLPSpace):
        super().__init__()
        self.space, widest = space, space.widths[-1]
        sizes = [space.num_features] + [widest] * (space.num_layers - 1)
        self.hidden = nn.ModuleList(nn.Linear(size, widest) for size in sizes)
        depths = range(space.min_layers, space.num_layers + 1)
        self.dropout = nn.Dropout(space.dropout)
        self.outputs = nn.ModuleDict({str(depth): nn.Linear(widest, space.num_outputs) for depth in depths})

    def forward(self, x: Tensor, genotype: Genotype) -> Tensor:
        layers, outputs = self.space.layers(genotype), []
        for linear, layer in zip(self.hidden, layers, strict=False):
            x = mlp.ACTIVATIONS[layer.activation](linear(x))
            for source in layer.skips:
                x = x + outputs[source]
            x = x * (torch.arange(x.shape[1]) < layer.width)
            outputs.append(x)
        return self.outputs[str(len(layers))](self.dropout(x))


class PlainRecurrent(LanguageModel):
    """ENAS's recurrent cell step by step, with a linear map for each gate and each value of each pair of nodes."""

    def __init__(self, space: recurrent.RecurrentSpace):
        super().__init__(*space.model_arguments)
        self.space, width = space, space.width
        pairs = [f"{source + 1}to{node + 1}" for node in range(space.num_nodes) for source in range(node)]
        names = ["input", "state", *pairs]
        self.gates = nn.ModuleDict({name: nn.Linear(width, width, bias=False) for name in names})
        self.values = nn.ModuleDict({name: nn.Linear(width, width, bias=False) for name in names})

    def forward(self, x: Tensor, genotype: Genotype) -> Tensor:
        nodes = self.space.nodes(genotype)
        features = self.embed(x)
        mask = self.mask(features[0], self.space.dropout_state)
        state, outputs = torch.zeros_like(mask), []
        with torch.no_grad():
            for step in features[: self.context]:
                state = self.cell(step, state, mask, nodes)
        for step in features[self.context :]:
            state = self.cell(step, state, mask, nodes)
            outputs.append(state)
        return self.decode(torch.stack(outputs))

    def cell(self, x: Tensor, state: Tensor, mask: Tensor, nodes: tuple[recurrent.Node, ...]) -> Tensor:
        """The next state (B, W) from the token's features (B, W) and the state before."""
        kept, values = state * mask, []
        for node, (activation, source) in enumerate(nodes):
            if node == 0:
                before = state
                gate = self.gates["input"](x) + self.gates["state"](kept)
                value = self.values["input"](x) + self.values["state"](kept)
            else:
                before, name = values[source], f"{source + 1}to{node + 1}"
                gate, value = self.gates[name](before), self.values[name](before)
            gate = torch.sigmoid(gate)
            values.append(gate * recurrent.ACTIVATIONS[activation](value) + (1 - gate) * before)
        return torch.stack([values[end] for end in recurrent.loose_ends(nodes)]).mean(dim=0)


PLAIN: dict[type, type[nn.Module]] = {
    MacroSpace: PlainMacro,
    MicroSpace: PlainMicro,
    NASBench201Space: PlainNASBench201,
    MobileSpace: PlainMobile,
    mlp.MLPSpace: PlainMLP,
    recurrent.RecurrentSpace: PlainRecurrent,
}
