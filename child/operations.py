"""The operations that search nets and final nets share: one plain table from name to builder, with exact costs.

Every operation maps (B, C, H, W) to the same shape. Convolutions carry no bias, because batch normalization follows.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


def conv_norm_relu(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution that keeps the size (at stride 1), batch normalization, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def relu_conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """ReLU, convolution that keeps the size (at stride 1), batch normalization: the order inside cells."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(outputs))


def convolution(channels: int, kernel: int) -> nn.Module:
    """ENAS's convolution branch: 1x1, then kernel x kernel, each normalized and rectified."""
    return nn.Sequential(conv_norm_relu(channels, channels, 1), conv_norm_relu(channels, channels, kernel))


def separable(channels: int, kernel: int) -> nn.Module:
    """ENAS's separable branch: 1x1, then depthwise kernel x kernel and pointwise."""
    depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
    return nn.Sequential(
        conv_norm_relu(channels, channels, 1), nn.Sequential(depthwise, *conv_norm_relu(channels, channels, 1))
    )


def average_pool(channels: int) -> nn.Module:
    """1x1 convolution, then the 3x3 mean without the padding's zeros."""
    return nn.Sequential(conv_norm_relu(channels, channels, 1), nn.AvgPool2d(3, 1, 1, count_include_pad=False))


def max_pool(channels: int) -> nn.Module:
    """1x1 convolution, then the 3x3 maximum."""
    return nn.Sequential(conv_norm_relu(channels, channels, 1), nn.MaxPool2d(3, 1, 1))


@dataclass(frozen=True)
class Operation:
    """How to build an operation, and its weights.

    `weights(channels)` counts the convolution weights, each used once per output pixel: multiply-accumulates are
    `weights(channels) * height * width`. `num_norms` counts its batch normalizations (two parameters per channel).
    """

    build: Callable[[int], nn.Module]
    weights: Callable[[int], int]
    num_norms: int

    def macs(self, channels: int, height: int, width: int) -> int:
        return self.weights(channels) * height * width

    def parameters(self, channels: int) -> int:
        return self.weights(channels) + 2 * channels * self.num_norms


# ENAS macro space (Pham et al. 2018, section 2.3), in the paper's order.
MACRO_OPERATIONS: dict[str, Operation] = {
    "conv3": Operation(lambda c: convolution(c, 3), lambda c: c * c + 9 * c * c, 2),
    "sepconv3": Operation(lambda c: separable(c, 3), lambda c: c * c + 9 * c + c * c, 2),
    "conv5": Operation(lambda c: convolution(c, 5), lambda c: c * c + 25 * c * c, 2),
    "sepconv5": Operation(lambda c: separable(c, 5), lambda c: c * c + 25 * c + c * c, 2),
    "avgpool3": Operation(average_pool, lambda c: c * c, 1),
    "maxpool3": Operation(max_pool, lambda c: c * c, 1),
}

# NAS-Bench-201 (Dong and Yang 2020, section 2.1), in the benchmark's order, after `none`.
NASBENCH201_OPERATIONS: dict[str, Operation] = {
    "skip_connect": Operation(lambda c: nn.Identity(), lambda c: 0, 0),
    "nor_conv_1x1": Operation(lambda c: relu_conv_norm(c, c, 1), lambda c: c * c, 1),
    "nor_conv_3x3": Operation(lambda c: relu_conv_norm(c, c, 3), lambda c: 9 * c * c, 1),
    "avg_pool_3x3": Operation(lambda c: nn.AvgPool2d(3, 1, 1, count_include_pad=False), lambda c: 0, 0),
}
