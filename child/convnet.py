"""The hand-designed opponent for sequences: a small one-dimensional residual network of any width.

Letters: B samples, C channels, L length, K outputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from child.operations import conv, conv_norm_relu


class ResidualBlock1d(nn.Module):
    """Two convolutions of 3 along a sequence and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            *conv_norm_relu(inputs, outputs, 3, stride, dims=1),
            conv(outputs, outputs, 3, dims=1),
            nn.BatchNorm2d(outputs),
        )
        self.stride = stride
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        # Sliced, not strided, for the reason that child/resnet.py gives.
        return torch.relu(self.body(x) + self.shortcut(x[:, :, :, :: self.stride]))


class ConvNet1d(nn.Module):
    """A stem and three stages of residual blocks, channels doubling as the length is halved.

    The residual network for images (He et al. 2016, CIFAR design) with kernels along one direction. Sequences run as
    images of height 1, which are fast with channels last.

    Args:
        input_shape: (C, L).
        num_outputs: Outputs.
        width: Channels of the first stage.
        blocks: Blocks per stage.

    Raises:
        ValueError: The inputs are not sequences.
    """

    def __init__(self, input_shape: Sequence[int], num_outputs: int, width: int, blocks: int = 1):
        super().__init__()
        if len(input_shape) != 2:
            raise ValueError(f"ConvNet1d takes sequences, input_shape (C, L), got {tuple(input_shape)}")
        self.stem = conv_norm_relu(input_shape[0], width, 3, dims=1)
        stages, channels = [], width
        for stage in range(3):
            for block in range(blocks):
                outputs = width * 2**stage
                stages.append(ResidualBlock1d(channels, outputs, 2 if stage > 0 and block == 0 else 1))
                channels = outputs
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, num_outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (B, K) of sequences (B, C, L)."""
        image = x.unsqueeze(2).contiguous(memory_format=torch.channels_last)  # (B, C, 1, L)
        return self.classifier(self.stages(self.stem(image)).mean(dim=(2, 3)))
