"""Batch normalization that is as fast for every number of channels as for multiples of 16.

PyTorch's kernel for channels last works on 16 channels at a time and crawls through what is left over: on two cores
36 channels take more than three times as long as 32. Nothing depends on where a pixel stands, so that neighboring
pixels can be read as one with several times the channels, whose statistics are put together afterwards.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDE = 16
"""The channels that PyTorch's kernel works on at once."""

SMALL = 2**17
"""Below so many values the small steps that this takes beside the large ones cost more than they save."""


def batch_norms(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """All batch normalizations of a network, of any number of dimensions."""
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@contextmanager
def statistics_anew(network: nn.Module) -> Iterator[None]:
    """Running statistics become the plain mean over the batches that the network sees within; nothing else trains."""
    norms = batch_norms(network)
    momenta = [norm.momentum for norm in norms]
    network.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative mean
            norm.train()
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.eval()


class BatchNorm2d(nn.BatchNorm2d):
    """As PyTorch's, equal up to rounding."""

    def forward(self, input: Tensor) -> Tensor:
        return self.normalize(input, self.num_features)

    def normalize(self, x: Tensor, channels: int) -> Tensor:
        """Normalize x (B, channels, H, W) with the first so many of all weights and statistics."""
        mean, var, count = (self.get_buffer(name) for name in ("running_mean", "running_var", "num_batches_tracked"))
        mean, var, weight, bias = (each[:channels] for each in (mean, var, self.weight, self.bias))
        if not self.training:
            return functional.batch_norm(x, mean, var, weight, bias, False, 0.0, self.eps)
        if not self.track_running_stats:
            return batch_norm(x, None, None, weight, bias, 0.0, self.eps)
        count.add_(1)
        momentum = 1 / float(count) if self.momentum is None else self.momentum  # None: a cumulative mean
        return batch_norm(x, mean, var, weight, bias, momentum, self.eps)


def batch_norm(
    x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor, bias: Tensor, momentum: float, eps: float
) -> Tensor:
    """As `torch.nn.functional.batch_norm` in training, of (B, C, H, W); the running statistics may be None."""
    pixels = WIDE // math.gcd(x.shape[1], WIDE)
    folds = (
        pixels > 1 and x.device.type == "cpu" and x.numel() >= SMALL and x.numel() % (pixels * x.shape[1]) == 0
        and x.is_contiguous(memory_format=torch.channels_last)
    )  # fmt: skip
    if not folds:
        return functional.batch_norm(x, mean, var, weight, bias, True, momentum, eps)
    y, found_mean, found_var = _Folded.apply(x, weight, bias, eps, pixels)  # type: ignore[misc]
    if mean is not None and var is not None:
        num = x.numel() // x.shape[1]
        mean.lerp_(found_mean, momentum)
        var.lerp_(found_var * (num / (num - 1)), momentum)
    return y


def _folded(x: Tensor, pixels: int) -> Tensor:
    """(B, C, H, W), channels last, as (B * H * W / pixels, pixels * C, 1, 1): the same memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, pixels * x.shape[1], 1, 1)


class _Folded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, pixels: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        folded = _folded(x, pixels)
        means, variances = (
            each.view(pixels, -1) for each in torch.ops.aten.batch_norm_update_stats(folded, None, None, 0.0)
        )
        mean = means.mean(dim=0)
        var = variances.mean(dim=0) + (means - mean).square().mean(dim=0)
        rest = (var + eps).rsqrt()
        scale = rest * weight
        scales, shifts = (each.repeat(pixels)[:, None, None] for each in (scale, bias - mean * scale))
        y = torch.empty_like(x)  # not a view, so that what comes next may work in place
        torch.addcmul(shifts, folded, scales, out=_folded(y, pixels))
        ctx.save_for_backward(x, weight, bias, mean, rest)
        ctx.eps, ctx.pixels = eps, pixels
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, scale = ctx.saved_tensors
        pixels, num = ctx.pixels, x.numel() // len(weight)
        by_y = gradients[0].contiguous(memory_format=torch.channels_last)
        if torch.is_grad_enabled():  # a gradient of the gradient is wanted
            y = functional.batch_norm(x, None, None, weight, bias, True, 0.0, ctx.eps)
            return *torch.autograd.grad(y, (x, weight, bias), by_y, create_graph=True), None, None
        folded, by_folded = _folded(x, pixels), _folded(by_y, pixels)
        means, scales, weights = (each.repeat(pixels) for each in (mean, scale, weight))
        _, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            by_folded, folded, weights, None, None, means, scales, True, ctx.eps, [False, True, True]
        )
        by_weight, by_bias = by_weight.view(pixels, -1).sum(dim=0), by_bias.view(pixels, -1).sum(dim=0)
        # scale * weight * (by_y - by_bias / num - (x - mean) * scale * by_weight / num), as a * by_y + b * x + c
        a = scale * weight
        b = -a * scale * by_weight / num
        c = -a * by_bias / num - b * mean
        a, b, c = (each.repeat(pixels)[:, None, None] for each in (a, b, c))
        by_x = torch.empty_like(x)
        torch.addcmul(c, by_folded, a, out=_folded(by_x, pixels)).addcmul_(folded, b)
        return by_x, by_weight, by_bias, None, None
