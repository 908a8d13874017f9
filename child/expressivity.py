"""How well an untrained network tells images apart, which shared weights do not know (naswot, Mellor et al. 2021)."""

from typing import Any

import torch
from torch import Tensor, nn

NOTHING = -1e9
"""Of a network in which two images are the same, or which has no rectified units."""


@torch.no_grad()
def expressivity(network: nn.Module, images: Tensor) -> float:
    """Log-determinant of how many rectified units two images have in the same state, summed over layers.

    The more patterns of active units tell the images apart, the larger; NOTHING where some are not told apart at all.
    The network stays in training mode, for its normalizations are to use the statistics of these images.
    """
    kernel = torch.zeros(len(images), len(images), dtype=torch.float64, device=images.device)

    def count(_module: nn.Module, _inputs: Any, outputs: Tensor) -> None:
        active = (outputs.flatten(1) > 0).double()
        kernel.add_(active @ active.T + (1 - active) @ (1 - active).T)

    hooks = [part.register_forward_hook(count) for part in network.modules() if isinstance(part, nn.ReLU)]
    try:
        network.train()(images)
    finally:
        for hook in hooks:
            hook.remove()
    # Where two images are told apart by nothing the kernel is singular, but for what rounding makes of its zeros.
    levels = torch.linalg.eigvalsh(kernel)
    if levels[0] <= len(images) * torch.finfo(kernel.dtype).eps * levels[-1]:
        return NOTHING
    return float(torch.linalg.slogdet(kernel).logabsdet)
