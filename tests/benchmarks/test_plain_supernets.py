"""The plain supernets that ours are timed beside: with the same weights they give the same outputs, for like work."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.plain_supernets import PLAIN, FactorizedReduction
from child.macro import MacroSpace
from child.micro import MicroSpace
from child.mlp import MLPSpace
from child.mobile import MobileSpace
from child.nasbench201 import NASBench201Space
from child.recurrent import RecurrentSpace
from child.space import NetworkSpace
from child.supernet import batch_statistics

SPACES: dict[str, Callable[[], NetworkSpace]] = {
    "macro": lambda: MacroSpace((3, 16, 8), 3, channels=6, num_layers=6),
    "macro of one size": lambda: MacroSpace((3, 8, 8), 3, channels=6, num_layers=3, num_reductions=0),
    "macro of a sequence": lambda: MacroSpace((5, 23), 4, channels=8, num_layers=4, min_layers=3, num_reductions=3),
    "micro": lambda: MicroSpace((3, 16, 8), 3, channels=4, num_nodes=2, num_cells=1),
    "nasbench201": lambda: NASBench201Space((3, 8, 8), 3, channels=4, cells_per_stage=2),
    "nasbench201, thin": lambda: NASBench201Space((3, 9, 8), 3, channels=4, cells_per_stage=1, reduction="thin"),
    "mobile": lambda: MobileSpace((3, 16, 16), 3, channels=4, max_depth=2),
    "mlp": lambda: MLPSpace((7,), 3, num_layers=3, widths=(4, 6, 8)),
    "recurrent": lambda: RecurrentSpace((9,), 7, num_nodes=5, width=8, context=3),
}


@pytest.mark.parametrize("make", SPACES.values(), ids=list(SPACES))
def test_equal_weights_give_equal_outputs(make: Callable[[], NetworkSpace]) -> None:
    torch.manual_seed(0)
    space = make()
    ours, plain = build(space)
    inputs = draw_inputs(space)
    genotypes = space.sample(np.random.default_rng(0), 6)
    with batch_statistics(ours), batch_statistics(plain), torch.no_grad():
        for genotype in genotypes:
            torch.testing.assert_close(plain(inputs, genotype), ours(inputs, genotype), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["macro of one size", "mobile", "recurrent", "nasbench201"])
def test_plain_does_the_work_that_the_space_counts(name: str) -> None:
    space = SPACES[name]()
    _, plain = build(space)
    if name == "nasbench201":  # there edges that lead nowhere are run, but not counted here
        genotypes = [
            space.parse("|nor_conv_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|none~0|nor_conv_1x1~1|skip_connect~2|")
        ]
    else:
        genotypes = space.sample(np.random.default_rng(1), 3)
    for genotype in genotypes:
        assert macs(plain, draw_inputs(space), genotype) == space.macs(genotype)


def test_masked_layers_work_at_full_width() -> None:
    space = MLPSpace((7,), 3, num_layers=3, widths=(4, 6, 8))
    _, plain = build(space)
    widest = space.parse("8relu 8relu 8relu")
    assert macs(plain, draw_inputs(space), space.parse("4relu 6tanh 4silu(1)")) == space.macs(widest)


def test_factorized_reductions_take_a_quarter_of_the_work_of_dense_ones() -> None:
    space = MicroSpace((3, 16, 8), 3, channels=4, num_nodes=2, num_cells=1)
    _, plain = build(space)
    (genotype,) = space.sample(np.random.default_rng(1), 1)
    saved = 0
    for place in space.places:
        channels, height, width = space.stage_size(place.stage)
        saved += sum(place.halved) * 3 * channels * (channels // 2) * height * width
    assert macs(plain, draw_inputs(space), genotype) == space.macs(genotype) - saved


def build(space: NetworkSpace) -> tuple[Any, Any]:
    """Our supernet and the plain one, with the plain one's weights in both."""
    networks = space.network(), PLAIN[type(space)](space)
    copy_weights(space, *networks)
    return networks


def copy_weights(space: Any, ours: Any, plain: Any) -> None:
    state = ours.state_dict()
    for name, value in plain.state_dict().items():
        if name in state:
            state[name].copy_(value)
    if isinstance(space, MacroSpace):
        for layer, reductions in plain.reductions.items():
            for source, reduction in enumerate(reductions):
                name = f"{source}at{space.levels[int(layer)]}"
                if name in ours.reductions:  # no layer can add the stem
                    copy_reduction(reduction, *ours.reductions[name])
    elif isinstance(space, MicroSpace):
        for cell, there in zip(ours.cells, plain.cells, strict=True):
            for end, projection in cell.projections.items():
                projection.weight.data.copy_(there.projection[int(end)][:, :, None, None])
            for calibration, reduction in zip(cell.calibrations, there.calibrations, strict=True):
                if not isinstance(reduction, nn.Identity):
                    copy_reduction(reduction[1], *calibration[1:])
    elif isinstance(space, RecurrentSpace):
        for name, weight in ours.weights.items():
            weight.data.copy_(torch.cat([plain.gates[name].weight.t(), plain.values[name].weight.t()], dim=1))


def copy_reduction(reduction: FactorizedReduction, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Two shifted 1x1 convolutions as one of 2x2, of which only two corners are not zero."""
    half = len(reduction.even.weight)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[:half, :, 0, 0] = reduction.even.weight[:, :, 0, 0]
        conv.weight[half:, :, -1, -1] = reduction.odd.weight[:, :, 0, 0]
    norm.load_state_dict(reduction.norm.state_dict())


def draw_inputs(space: NetworkSpace) -> Tensor:
    shape = (4, *space.arguments["input_shape"])
    return torch.randint(space.num_outputs, shape) if isinstance(space, RecurrentSpace) else torch.randn(shape)


def macs(network: nn.Module, inputs: Tensor, genotype: Any) -> float:
    """Multiply-accumulates of a sample."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(inputs, genotype)
    return counter.get_total_flops() / 2 / len(inputs)
