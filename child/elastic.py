"""Layers whose largest weights hold every smaller size: an elastic network shares weights between sizes by slicing.

A smaller number of channels is the first channels, a smaller kernel is the center of the largest (Cai et al. 2020,
"Once-for-all", which also learns a small linear map from kernel to kernel; here the center is taken as it is).
A layer that is asked for no size has its own, so that a fixed network is built from the same classes and nothing is
sliced in it. Weights outside a slice have a gradient of zero, not None: momentum and weight decay go on there.

Letters: B samples, C channels, H height, W width, I inputs, O outputs, k kernel.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from child.norm import BatchNorm2d
from child.space import Genotype, NetworkSpace


def crop(weight: Tensor, shape: Sequence[int]) -> Tensor:
    """The part of a weight (O, I, k, k) or any shorter shape that a smaller size uses, as a view."""
    for dim, size in enumerate(shape):
        excess = weight.shape[dim] - size
        if excess > 0:
            weight = weight.narrow(dim, excess // 2 if dim >= 2 else 0, size)
    return weight


class ElasticSpace(NetworkSpace):
    """A space whose supernet has the largest sizes alone, of whose weights every architecture takes its part."""

    def weights(self, genotype: Genotype, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state of the fixed network out of a supernet's state, as views of it: by name, and cropped."""
        with torch.device("meta"):  # its names and shapes are all that is asked for
            own = self.network(genotype).state_dict()
        return {name: crop(shared[name], value.shape) for name, value in own.items()}


class ElasticConv2d(nn.Conv2d):
    """Convolution without bias that takes as many channels as come; depthwise where it has groups."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)

    def forward(self, input: Tensor, outputs: int | None = None, kernel: int | None = None) -> Tensor:
        """(B, I, H, W) to (B, O, H, W), halved at stride 2."""
        inputs = input.shape[1]
        if self.groups > 1:
            groups, shape = inputs, (inputs, 1)
        else:
            groups, shape = 1, (outputs or self.out_channels, inputs)
        size = kernel or self.kernel_size[0]
        weight = crop(self.weight, (*shape, size, size))
        return functional.conv2d(input, weight, None, self.stride, size // 2, 1, groups)


class ElasticLinear(nn.Linear):
    """Linear map that takes as many inputs as come."""

    def forward(self, input: Tensor, outputs: int | None = None) -> Tensor:
        """(B, I) to (B, O)."""
        outputs = outputs or self.out_features
        bias = None if self.bias is None else crop(self.bias, (outputs,))
        return functional.linear(input, crop(self.weight, (outputs, input.shape[1])), bias)


class ElasticBatchNorm2d(BatchNorm2d):
    """Batch normalization of as many channels as come.

    Running statistics of the shared channels mix all sizes, and so are of use in a fixed network alone: shared weights
    are scored with those of the batch, or with statistics gathered anew.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        return self.normalize(input, input.shape[1])
