"""The operations that search nets and final nets share: one plain table from name to builder, with exact costs.

Every operation maps (B, C, H, W) to the same shape. Convolutions carry no bias, because batch normalization follows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


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


def separable_twice(channels: int, kernel: int) -> nn.Module:
    """The separable convolution of cells: ReLU, depthwise, pointwise and normalization, all of it twice."""
    layers: list[nn.Module] = []
    for _ in range(2):
        depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
        pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        layers += [nn.ReLU(), depthwise, pointwise, nn.BatchNorm2d(channels)]
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

# ENAS micro space (Pham et al. 2018, section 2.4), in the order of the public code.
MICRO_OPERATIONS: dict[str, Operation] = {
    "sepconv3": Operation(lambda c: separable_twice(c, 3), lambda c: 2 * (9 * c + c * c), 2),
    "sepconv5": Operation(lambda c: separable_twice(c, 5), lambda c: 2 * (25 * c + c * c), 2),
    "avgpool3": Operation(lambda c: nn.AvgPool2d(3, 1, 1, count_include_pad=False), lambda c: 0, 0),
    "maxpool3": Operation(lambda c: nn.MaxPool2d(3, 1, 1), lambda c: 0, 0),
    "identity": Operation(lambda c: nn.Identity(), lambda c: 0, 0),
}

# NAS-Bench-201 (Dong and Yang 2020, section 2.1), in the benchmark's order, after `none`.
NASBENCH201_OPERATIONS: dict[str, Operation] = {
    "skip_connect": Operation(lambda c: nn.Identity(), lambda c: 0, 0),
    "nor_conv_1x1": Operation(lambda c: relu_conv_norm(c, c, 1), lambda c: c * c, 1),
    "nor_conv_3x3": Operation(lambda c: relu_conv_norm(c, c, 3), lambda c: 9 * c * c, 1),
    "avg_pool_3x3": Operation(lambda c: nn.AvgPool2d(3, 1, 1, count_include_pad=False), lambda c: 0, 0),
}
