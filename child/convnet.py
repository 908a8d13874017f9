"""The hand-designed opponent for sequences: a small one-dimensional residual network of any width.

Letters: B samples, C channels, L length, K outputs.
"""

import torch
from torch import Tensor

from child.resnet import ResNet


class ConvNet1d(ResNet):
    """The residual network for images, with kernels along one direction: channels double as the length is halved.

    Sequences run as images of height 1, which are fast with channels last. Arguments as those of `ResNet`, of which
    `input_shape` is (C, L).
    """

    dims = 1
    takes = "sequences, input_shape (C, L)"

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (B, K) of sequences (B, C, L)."""
        return super().forward(x.unsqueeze(2).contiguous(memory_format=torch.channels_last))  # (B, C, 1, L)
