"""The operations that search nets and final nets share: one plain table from name to builder, with exact costs.

Every operation maps (B, C, H, W) to the same shape. Convolutions carry no bias, because batch normalization follows.
With `dims` 1 a sequence (B, C, L) runs as an image of height 1, (B, C, 1, L): so it stays as fast as images are with
channels last, and a kernel of k covers 1 x k.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from child.norm import BatchNorm2d


def sides(size: int, dims: int, height: int = 1) -> tuple[int, int]:
    """A kernel or stride of this size: in both directions of an image, or along a sequence alone."""
    return (size if dims == 2 else height, size)


class PointwiseConv2d(nn.Conv2d):
    """1x1 convolution without bias, equal up to rounding.

    While it learns on the processor it runs as a product of matrices: PyTorch's convolution pads channels to multiples
    of 16 there, and with 36 of them takes a quarter longer.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 1, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        learns = self.training and torch.is_grad_enabled() and input.device.type == "cpu"
        if not learns or not input.is_contiguous(memory_format=torch.channels_last):
            return super().forward(input)
        return functional.linear(input.permute(0, 2, 3, 1), self.weight[:, :, 0, 0]).permute(0, 3, 1, 2)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, dims: int = 2) -> nn.Conv2d:
    """Convolution without bias that keeps the size (at stride 1)."""
    if kernel == stride == groups == 1:
        return PointwiseConv2d(inputs, outputs)
    padding = sides(kernel // 2, dims, 0)
    return nn.Conv2d(inputs, outputs, sides(kernel, dims), sides(stride, dims), padding, groups=groups, bias=False)


def prepare(network: nn.Module) -> None:
    """Draw the weights of all convolutions (He et al. 2015, for ReLU), and lay the network out channels last."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def conv_norm_relu(inputs: int, outputs: int, kernel: int, stride: int = 1, dims: int = 2) -> nn.Sequential:
    """Convolution that keeps the size (at stride 1), batch normalization, ReLU in place of its own input."""
    return nn.Sequential(conv(inputs, outputs, kernel, stride, dims=dims), BatchNorm2d(outputs), nn.ReLU(inplace=True))


def relu_conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """ReLU, convolution that keeps the size (at stride 1), batch normalization: the order inside cells."""
    convolve = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=False)
    return nn.Sequential(nn.ReLU(), convolve, BatchNorm2d(outputs))


def convolution(channels: int, kernel: int, dims: int = 2) -> nn.Module:
    """ENAS's convolution branch: 1x1, then kernel x kernel, each normalized and rectified."""
    return nn.Sequential(conv_norm_relu(channels, channels, 1), conv_norm_relu(channels, channels, kernel, dims=dims))


def separable(channels: int, kernel: int, dims: int = 2) -> nn.Module:
    """ENAS's separable branch: 1x1, then depthwise kernel x kernel and pointwise."""
    depthwise = conv(channels, channels, kernel, groups=channels, dims=dims)
    return nn.Sequential(
        conv_norm_relu(channels, channels, 1), nn.Sequential(depthwise, *conv_norm_relu(channels, channels, 1))
    )


def average_pool(channels: int, dims: int = 2) -> nn.Module:
    """1x1 convolution, then the 3x3 mean without the padding's zeros."""
    pool = nn.AvgPool2d(sides(3, dims), 1, sides(1, dims, 0), count_include_pad=False)
    return nn.Sequential(conv_norm_relu(channels, channels, 1), pool)


def max_pool(channels: int, dims: int = 2) -> nn.Module:
    """1x1 convolution, then the 3x3 maximum."""
    pool = nn.MaxPool2d(sides(3, dims), 1, sides(1, dims, 0))
    return nn.Sequential(conv_norm_relu(channels, channels, 1), pool)


def separable_twice(channels: int, kernel: int) -> nn.Module:
    """The separable convolution of cells: ReLU, depthwise, pointwise and normalization, all of it twice."""
    layers: list[nn.Module] = []
    for fresh in (False, True):  # what a normalization gave is nobody else's
        depthwise = conv(channels, channels, kernel, groups=channels)
        layers += [nn.ReLU(inplace=fresh), depthwise, conv(channels, channels, 1), BatchNorm2d(channels)]
    return nn.Sequential(*layers)


class DropPath(nn.Module):
    """Drops a branch from some samples of a batch in training, and scales it up in the others (Larsson et al. 2017).

    The probability grows with `progress`, the share of the training that is done, as in DARTS; `Training` sets it.

    Args:
        probability: Of the last step.
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability
        self.progress = 0.0

    def forward(self, x: Tensor) -> Tensor:
        keep = 1 - self.probability * self.progress
        if not self.training or keep == 1:
            return x
        return x * (torch.rand(len(x), 1, 1, 1, device=x.device) < keep).to(x.dtype).div_(keep)


@dataclass(frozen=True)
class Operation:
    """How to build an operation, and its weights.

    `build(channels, dims)` builds it. `weights(channels, dims)` counts the convolution weights, each used once per
    output pixel: multiply-accumulates are that times height times width. `num_norms` counts its batch normalizations
    (two parameters per channel).
    """

    build: Callable[..., nn.Module]
    weights: Callable[[int, int], int]
    num_norms: int

    def macs(self, channels: int, height: int, width: int, dims: int = 2) -> int:
        return self.weights(channels, dims) * height * width

    def parameters(self, channels: int, dims: int = 2) -> int:
        return self.weights(channels, dims) + 2 * channels * self.num_norms


def parameter_free(operations: Mapping[str, Operation]) -> frozenset[str]:
    """The names of those that have no parameters."""
    return frozenset(name for name, operation in operations.items() if operation.parameters(1) == 0)


# ENAS macro space (Pham et al. 2018, section 2.3), in the paper's order.
MACRO_OPERATIONS: dict[str, Operation] = {
    "conv3": Operation(lambda c, d=2: convolution(c, 3, d), lambda c, d: c * c + 3**d * c * c, 2),
    "sepconv3": Operation(lambda c, d=2: separable(c, 3, d), lambda c, d: c * c + 3**d * c + c * c, 2),
    "conv5": Operation(lambda c, d=2: convolution(c, 5, d), lambda c, d: c * c + 5**d * c * c, 2),
    "sepconv5": Operation(lambda c, d=2: separable(c, 5, d), lambda c, d: c * c + 5**d * c + c * c, 2),
    "avgpool3": Operation(average_pool, lambda c, d: c * c, 1),
    "maxpool3": Operation(max_pool, lambda c, d: c * c, 1),
}

# ENAS micro space (Pham et al. 2018, section 2.4), in the order of the public code.
MICRO_OPERATIONS: dict[str, Operation] = {
    "sepconv3": Operation(lambda c, d=2: separable_twice(c, 3), lambda c, d: 2 * (9 * c + c * c), 2),
    "sepconv5": Operation(lambda c, d=2: separable_twice(c, 5), lambda c, d: 2 * (25 * c + c * c), 2),
    "avgpool3": Operation(lambda c, d=2: nn.AvgPool2d(3, 1, 1, count_include_pad=False), lambda c, d: 0, 0),
    "maxpool3": Operation(lambda c, d=2: nn.MaxPool2d(3, 1, 1), lambda c, d: 0, 0),
    "identity": Operation(lambda c, d=2: nn.Identity(), lambda c, d: 0, 0),
}

# NAS-Bench-201 (Dong and Yang 2020, section 2.1), in the benchmark's order, after `none`.
NASBENCH201_OPERATIONS: dict[str, Operation] = {
    "skip_connect": Operation(lambda c, d=2: nn.Identity(), lambda c, d: 0, 0),
    "nor_conv_1x1": Operation(lambda c, d=2: relu_conv_norm(c, c, 1), lambda c, d: c * c, 1),
    "nor_conv_3x3": Operation(lambda c, d=2: relu_conv_norm(c, c, 3), lambda c, d: 9 * c * c, 1),
    "avg_pool_3x3": Operation(lambda c, d=2: nn.AvgPool2d(3, 1, 1, count_include_pad=False), lambda c, d: 0, 0),
}
