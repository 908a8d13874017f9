"""From an evaluation to a number: how quality and cost are blended.

Every reward has a target cost in its unit; r = cost / target is the cost ratio. P_data is the task's quality in [0, 1].
A failed evaluation has quality 0 and never earns more than 0; where its cost is not known either it earns 0, which is
the least that a reward gives, or if there is no least nothing at all (NaN, which every strategy leaves out).

Search by gradients cannot differentiate a quality such as accuracy. It minimizes the reward's `loss` instead, in which
the task's loss L takes the place of a falling quality, and the cost term stays what it is.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from child.space import CostUnit, Evaluation

LEAST_RATIO = 1e-6

STEEPEST = -50
"""A steeper power of the least ratio would overflow."""


class Reward(Protocol):
    """What an environment needs of a reward."""

    target: float
    unit: CostUnit

    def __call__(self, evaluation: Evaluation) -> float:
        """The reward of one evaluation."""
        ...

    def formula(self) -> str:
        """One line for a person."""
        ...

    def loss(self, task_loss: Tensor, cost: Tensor) -> Tensor:
        """What search by gradients minimizes, a scalar, for a task loss and an expected cost in `unit`."""
        ...


@dataclass(frozen=True)
class _TargetedReward:
    """A reward around a target.

    Args:
        target: The cost wanted, above 0, in `unit`.
        unit: `macs` (multiply-accumulates), `parameters` or `latency_ms` (milliseconds).
    """

    target: float
    unit: CostUnit = "macs"

    least: ClassVar[float] = 0.0
    """That an evaluation can earn."""

    def __post_init__(self) -> None:
        if not (self.target > 0 and math.isfinite(self.target)):
            raise ValueError(f"reward.target must be a cost above 0 in {self.unit}, got {self.target}")

    def __call__(self, evaluation: Evaluation) -> float:
        # A cost of 0 (an architecture that passes its input on) must not make a negative power infinite.
        value = self.blend(evaluation.quality, max(evaluation.cost / self.target, LEAST_RATIO))
        if evaluation.failure:
            return min(value, 0.0) if math.isfinite(value) else self.least  # its cost may not be known
        return value

    def blend(self, quality: float, ratio: float) -> float:
        """The reward of a quality at a cost ratio."""
        raise NotImplementedError

    def _ratio(self, cost: Tensor) -> Tensor:
        return (cost / self.target).clamp(min=LEAST_RATIO)


@dataclass(frozen=True)
class Linear(_TargetedReward):
    """alpha * P_data + beta * P_comp, with P_comp = 1 / (1 + (cost / target)^sharpness).

    P_comp is in (0, 1]: near 1 well below the target, 1/2 at it, near 0 well above. It is decreasing everywhere, so
    that the policy feels the cost; but the sharper it is, the less being far below the target pays, so that a network
    is not starved for it. (It is the logistic function of -sharpness * log(cost / target).)
    """

    alpha: float = 1.0
    beta: float = 0.05
    sharpness: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sharpness > 0:
            raise ValueError(f"reward.sharpness must be above 0, got {self.sharpness}")
        if not (self.alpha >= 0 and self.beta >= 0):
            raise ValueError(
                f"reward.alpha and reward.beta must be at least 0 (a higher cost must not pay), got {self.alpha} and "
                f"{self.beta}"
            )

    def blend(self, quality: float, ratio: float) -> float:
        if ratio <= 1:
            score = 1 / (1 + ratio**self.sharpness)
        else:  # the same, without a power that overflows
            score = ratio**-self.sharpness / (1 + ratio**-self.sharpness)
        return self.alpha * quality + self.beta * score

    def loss(self, task_loss: Tensor, cost: Tensor) -> Tensor:
        """Alpha * L - beta * P_comp."""
        score = torch.sigmoid(-self.sharpness * self._ratio(cost).log())
        return self.alpha * task_loss - self.beta * score

    def formula(self) -> str:
        quality = "quality" if self.alpha == 1 else f"{self.alpha:g} * quality"
        if not self.beta:
            return quality
        return f"{quality} + {self.beta:g} / (1 + ({self.unit} / {self.target:g})^{self.sharpness:g})"


@dataclass(frozen=True)
class _Exponential(_TargetedReward):
    """With an exponent or weight w < 0 on the cost ratio."""

    weight: float = -0.07

    def __post_init__(self) -> None:
        super().__post_init__()
        if not STEEPEST <= self.weight < 0:
            raise ValueError(
                f"reward.weight must be below 0 (a higher cost must not pay) and at least {STEEPEST}, got {self.weight}"
            )


@dataclass(frozen=True)
class Soft(_Exponential):
    """MnasNet's soft constraint (Tan et al. 2019, eq. 2 with alpha = beta = w): quality * r^w."""

    def blend(self, quality: float, ratio: float) -> float:
        return quality * ratio**self.weight

    def loss(self, task_loss: Tensor, cost: Tensor) -> Tensor:
        """L - w * log r: -log of the reward with exp(-L), the likelihood of the right answer, for the quality."""
        return task_loss - self.weight * self._ratio(cost).log()

    def formula(self) -> str:
        return f"quality * ({self.unit} / {self.target:g})^{self.weight:g}"


@dataclass(frozen=True)
class Hard(_Exponential):
    """MnasNet's hard constraint (Tan et al. 2019, eq. 2 with alpha = 0, beta = w): quality * min(r^w, 1)."""

    weight: float = -1.0

    def blend(self, quality: float, ratio: float) -> float:
        return quality * min(ratio**self.weight, 1.0)

    def loss(self, task_loss: Tensor, cost: Tensor) -> Tensor:
        """L - w * max(log r, 0), as for the soft constraint."""
        return task_loss - self.weight * self._ratio(cost).log().clamp(min=0)

    def formula(self) -> str:
        return f"quality * min(({self.unit} / {self.target:g})^{self.weight:g}, 1)"


@dataclass(frozen=True)
class Absolute(_Exponential):
    """TuNAS's absolute reward (Bender et al. 2020, eq. 3): quality + w * |r - 1|; below the target costs too."""

    least: ClassVar[float] = math.nan

    def blend(self, quality: float, ratio: float) -> float:
        return quality + self.weight * abs(ratio - 1)

    def loss(self, task_loss: Tensor, cost: Tensor) -> Tensor:
        """L - w * |r - 1|."""
        return task_loss - self.weight * (self._ratio(cost) - 1).abs()

    def formula(self) -> str:
        return f"quality - {-self.weight:g} * |{self.unit} / {self.target:g} - 1|"
