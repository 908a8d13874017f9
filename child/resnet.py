"""The hand-designed opponent for images: a small residual network (He et al. 2016, CIFAR design) of any width."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from child.norm import BatchNorm2d
from child.operations import conv, conv_norm_relu, prepare
from child.space import check_counts


class ResidualBlock(nn.Module):
    """Two convolutions of 3 and a shortcut, which is a 1x1 convolution where the shape changes.

    Of one dimension it takes images of height 1.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dims: int = 2):
        super().__init__()
        self.body = nn.Sequential(
            *conv_norm_relu(inputs, outputs, 3, stride, dims=dims),
            conv(outputs, outputs, 3, dims=dims),
            BatchNorm2d(outputs),
        )
        self.stride = stride
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1), BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        # Sliced, not strided: the backward pass of a strided 1x1 convolution over 2 to 6 channels in channels-last
        # order corrupts the heap on the processor (PyTorch 2.13 with oneDNN).
        return torch.relu(self.body(x) + self.shortcut(x[:, :, :: self.stride, :: self.stride]))


class ResNet(nn.Module):
    """A stem and three stages of residual blocks, channels doubling as height and width are halved.

    Args:
        input_shape: (C, H, W).
        num_outputs: Outputs.
        width: Channels of the first stage.
        blocks: Blocks per stage: 1 gives ResNet-8, 3 ResNet-20.

    Raises:
        ValueError: The inputs have another number of dimensions.
    """

    dims = 2
    takes = "images, input_shape (C, H, W)"

    def __init__(self, input_shape: Sequence[int], num_outputs: int, width: int, blocks: int = 1):
        super().__init__()
        check_counts("a residual network", blocks=blocks)
        if len(input_shape) != 1 + self.dims:
            raise ValueError(f"{type(self).__name__} takes {self.takes}, got {tuple(input_shape)}")
        self.stem = conv_norm_relu(input_shape[0], width, 3, dims=self.dims)
        stages, channels = [], width
        for stage in range(3):
            for block in range(blocks):
                outputs = width * 2**stage
                stages.append(ResidualBlock(channels, outputs, 2 if stage > 0 and block == 0 else 1, self.dims))
                channels = outputs
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, num_outputs)
        prepare(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W)."""
        return self.classifier(self.stages(self.stem(x)).mean(dim=(2, 3)))
