"""Unstructured pruning: connections of small weight are cut, so that the file becomes smaller; the layers stay.

What is cut is zero from then on (`child/share.py` holds it there), and lies on disk as one bit (`child/compact.py`).
Multiply-accumulates stay what they are: a processor multiplies by zero as fast as by anything else.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from child.share import weights_of
from child.training import FineTuning


@dataclass(frozen=True)
class SparsifySettings:
    """How connections are cut.

    Args:
        training: After every round.
        sparsity: The share of the weights that is zero in the end.
        scope: Whether weights are compared across all layers (`global`), or each layer loses the same share (`layer`).
        rounds: The sparsity grows by s (1 - (1 - k / rounds)^3) in round k (Zhu and Gupta 2017, eq. 1).
    """

    training: FineTuning
    sparsity: float = 0.8
    scope: Literal["global", "layer"] = "global"
    rounds: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise ValueError(f"sparsify.sparsity is a share of the weights in (0, 1), got {self.sparsity}")
        if self.rounds < 1:
            raise ValueError(f"sparsify.rounds must be at least 1, got {self.rounds}")

    def after(self, number: int) -> float:
        """The sparsity after so many rounds."""
        return self.sparsity * (1 - (1 - number / self.rounds) ** 3)


def cut_connections(module: nn.Module, sparsity: float, scope: Literal["global", "layer"]) -> None:
    """Set that share of the weights of two or more dimensions to zero, the smallest first, in place."""
    with torch.no_grad():
        # A weight that several layers share is one.
        weights = list({id(getattr(layer, name)): getattr(layer, name) for layer, name in weights_of(module)}.values())
        for together in [weights] if scope == "global" else [[weight] for weight in weights]:
            sizes = torch.cat([weight.abs().flatten() for weight in together])
            cut = torch.zeros_like(sizes, dtype=torch.bool)
            cut[sizes.argsort(stable=True)[: round(sparsity * len(sizes))]] = True
            for weight, part in zip(together, cut.split([weight.numel() for weight in together]), strict=True):
                weight.masked_fill_(part.view(weight.shape), 0.0)
