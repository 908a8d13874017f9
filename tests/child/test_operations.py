"""Every operation of the table: it keeps the shape, and its costs are exact."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from child.operations import (
    MACRO_OPERATIONS,
    MICRO_OPERATIONS,
    NASBENCH201_OPERATIONS,
    DropPath,
    Operation,
    PointwiseConv2d,
    average_pool,
    conv,
    max_pool,
    relu_conv_norm,
)

TABLES = {"macro": MACRO_OPERATIONS, "micro": MICRO_OPERATIONS, "nasbench201": NASBENCH201_OPERATIONS}
NAMED = {f"{table} {name}": operation for table, rows in TABLES.items() for name, operation in rows.items()}

DIRECTED = [(name, row, dims) for name, row in NAMED.items() for dims in ((1, 2) if "macro" in name else (2,))]

every_operation = pytest.mark.parametrize(("name", "operation"), NAMED.items(), ids=list(NAMED))


in_every_direction = pytest.mark.parametrize(("name", "operation", "dims"), DIRECTED)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_a_pointwise_convolution_is_pytorchs(memory_format: torch.memory_format) -> None:
    module = conv(5, 7, 1)
    assert isinstance(module, PointwiseConv2d)
    inputs = torch.randn(3, 5, 4, 6).to(memory_format=memory_format).requires_grad_()
    outputs, expected = module(inputs), functional.conv2d(inputs, module.weight)
    torch.testing.assert_close(outputs, expected)
    assert outputs.is_contiguous(memory_format=memory_format)
    for mine, other in zip(
        *(torch.autograd.grad(each.square().sum(), (inputs, module.weight)) for each in (outputs, expected)),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)
    assert torch.equal(module.eval()(inputs), expected)


@in_every_direction
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (8, 8)])
@pytest.mark.parametrize("channels", [1, 6])
def test_it_keeps_the_shape_and_its_costs_are_exact(
    name: str, operation: Operation, size: tuple[int, int], dims: int, channels: int
) -> None:
    module = operation.build(channels, dims)
    assert sum(parameter.numel() for parameter in module.parameters()) == operation.parameters(channels, dims)
    assert sum(isinstance(part, nn.BatchNorm2d) for part in module.modules()) == operation.num_norms
    with FlopCounterMode(display=False) as counter:
        outputs = module.eval()(torch.randn(2, channels, *size))
    assert outputs.shape == (2, channels, *size)
    assert counter.get_total_flops() == 2 * 2 * operation.macs(channels, *size, dims)  # 2 per MAC, 2 samples


@every_operation
def test_every_weight_learns(name: str, operation: Operation) -> None:
    torch.manual_seed(0)
    module = operation.build(4)
    images = torch.randn(8, 4, 6, 6, requires_grad=True)
    (module(images) ** 2).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


@in_every_direction
def test_it_sees_as_far_as_its_name_says(name: str, operation: Operation, dims: int) -> None:
    torch.manual_seed(0)
    module = operation.build(4, dims).eval()
    image = torch.rand(1, 4, 11, 11, requires_grad=True)
    module(image)[0, :, 5, 5].sum().backward()
    assert image.grad is not None
    reached = image.grad.abs().sum(dim=(0, 1)).nonzero()
    kernel = int(name[-1]) if name[-1].isdigit() else 1
    reach = (kernel // 2) * (2 if name.startswith("micro sepconv") else 1)  # which are applied twice
    if "maxpool" in name:  # the gradient goes to the largest alone
        assert ((reached - 5).abs() <= reach).all()
    else:
        down = reach if dims == 2 else 0
        assert (reached.min(dim=0).values.tolist(), reached.max(dim=0).values.tolist()) == (
            [5 - down, 5 - reach],
            [5 + down, 5 + reach],
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


def test_a_stride_halves_inside_cells_too() -> None:
    assert relu_conv_norm(3, 5, 2, 2)(torch.zeros(2, 3, 8, 7)).shape == (2, 5, 4, 3)
    assert relu_conv_norm(3, 5, 3, 2)(torch.zeros(2, 3, 8, 7)).shape == (2, 5, 4, 4)


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop_path, ones = DropPath(0.4), torch.ones(4000, 2, 3, 3)
    assert drop_path(ones) is ones  # nothing at the start of a training
    drop_path.progress = 0.5
    found = drop_path(ones)
    assert (found == found[:, :1, :1, :1]).all()
    values, counts = found[:, 0, 0, 0].unique(return_counts=True)
    assert values.tolist() == pytest.approx([0.0, 1 / 0.8])
    assert abs(int(counts[0]) - 800) < 4 * (4000 * 0.2 * 0.8) ** 0.5
    assert drop_path.eval()(ones) is ones
