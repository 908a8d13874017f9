"""Every operation of the table: it keeps the shape, and its costs are exact."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from child.operations import MACRO_OPERATIONS, average_pool, conv, max_pool

every_operation = pytest.mark.parametrize("name", MACRO_OPERATIONS)


@every_operation
@pytest.mark.parametrize(("size", "dims"), [((1, 1), 2), ((2, 5), 2), ((8, 8), 2), ((1, 1), 1), ((1, 7), 1)])
@pytest.mark.parametrize("channels", [1, 6])
def test_it_keeps_the_shape_and_its_costs_are_exact(name: str, size: tuple[int, int], dims: int, channels: int) -> None:
    operation = MACRO_OPERATIONS[name]
    module = operation.build(channels, dims)
    assert sum(parameter.numel() for parameter in module.parameters()) == operation.parameters(channels, dims)
    assert sum(isinstance(part, nn.BatchNorm2d) for part in module.modules()) == operation.num_norms
    with FlopCounterMode(display=False) as counter:
        outputs = module.eval()(torch.randn(2, channels, *size))
    assert outputs.shape == (2, channels, *size)
    assert counter.get_total_flops() == 2 * 2 * operation.macs(channels, *size, dims)  # 2 per MAC, 2 samples


@every_operation
def test_every_weight_learns(name: str) -> None:
    torch.manual_seed(0)
    module = MACRO_OPERATIONS[name].build(4)
    (module(torch.randn(8, 4, 6, 6)) ** 2).sum().backward()
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


@every_operation
@pytest.mark.parametrize("dims", [1, 2])
def test_it_sees_as_far_as_its_name_says(name: str, dims: int) -> None:
    torch.manual_seed(0)
    module = MACRO_OPERATIONS[name].build(4, dims).eval()
    image = torch.rand(1, 4, 9, 9, requires_grad=True)
    module(image)[0, :, 4, 4].sum().backward()
    assert image.grad is not None
    reached = image.grad.abs().sum(dim=(0, 1)).nonzero()
    if name == "maxpool3":  # the gradient goes to the largest alone
        assert ((reached - 4).abs() <= 1).all()
    else:
        reach = int(name[-1]) // 2
        down = reach if dims == 2 else 0
        assert (reached.min(dim=0).values.tolist(), reached.max(dim=0).values.tolist()) == (
            [4 - down, 4 - reach],
            [4 + down, 4 + reach],
        )


def test_known_counts() -> None:
    # 1x1 and 3x3 convolutions of 8 channels, each with a normalization.
    assert MACRO_OPERATIONS["conv3"].parameters(8) == 64 + 16 + 9 * 64 + 16
    # 1x1, depthwise 5x5, pointwise; two normalizations.
    assert MACRO_OPERATIONS["sepconv5"].parameters(8) == 64 + 16 + 25 * 8 + 64 + 16
    assert MACRO_OPERATIONS["maxpool3"].macs(8, 4, 3) == 64 * 12


def test_pools_have_known_answers() -> None:
    image = torch.arange(9.0).view(1, 1, 3, 3)
    average = list(average_pool(1).children())[-1](image)
    assert average[0, 0].tolist() == [[2.0, 2.5, 3.0], [3.5, 4.0, 4.5], [5.0, 5.5, 6.0]]  # padding does not count
    largest = list(max_pool(1).children())[-1](image)
    assert largest[0, 0].tolist() == [[4.0, 5.0, 5.0], [7.0, 8.0, 8.0], [7.0, 8.0, 8.0]]


def test_a_stride_halves() -> None:
    assert conv(3, 5, 3, stride=2)(torch.zeros(2, 3, 8, 6)).shape == (2, 5, 4, 3)
    assert conv(3, 5, 3, stride=2, dims=1)(torch.zeros(2, 3, 1, 6)).shape == (2, 5, 1, 3)
