"""Proximal policy optimization (Schulman et al. 2017) of the LSTM policy, without a critic."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from child.space import SearchSpace
from controller.policy import Distribution, PolicySettings
from controller.reinforce import Baseline, Reinforce
from controller.strategy import Update
from controller.walk import Walk


class PPO(Reinforce):
    """Several steps on the same episodes, held near the policy that drew them by the clipped ratio.

    A finished architecture has one reward and no discounting, so the baseline of REINFORCE stands in for the critic,
    and the ratio is that of whole architectures.

    Args:
        space: What is searched.
        seed: The run's seed.
        num_updates: How many rounds are to come, for the entropy's schedule.
        policy: Size and squashing of the policy.
        epochs: Steps on the episodes of a round.
        clip_ratio: How far from 1 the ratio of new to old probability still counts.
        learning_rate, baseline, baseline_decay, entropy_weight, final_entropy_weight, skip_prior, skip_weight, clip:
            As for `Reinforce`.
    """

    name = "ppo"

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        num_updates: int,
        policy: PolicySettings,
        epochs: int = 4,
        clip_ratio: float = 0.2,
        learning_rate: float = 3.5e-3,
        baseline: Baseline = "leave_one_out",
        baseline_decay: float = 0.99,
        entropy_weight: float = 1e-3,
        final_entropy_weight: float = 1e-4,
        skip_prior: float = 0.4,
        skip_weight: float = 0.0,
        clip: float = 5.0,
    ):
        super().__init__(
            space, seed, num_updates * epochs, policy, learning_rate, baseline, baseline_decay, entropy_weight,
            final_entropy_weight, skip_prior, skip_weight, clip,
        )  # fmt: skip
        if epochs < 1 or not clip_ratio > 0:
            raise ValueError(f"PPO needs epochs >= 1 and clip_ratio > 0, got {epochs} and {clip_ratio}")
        self.epochs, self.clip_ratio = epochs, clip_ratio
        self._drawn_at: Tensor | None = None  # log-probabilities under the policy that drew the episodes

    def _improve(
        self, tokens: NDArray[np.int64], masks: NDArray[np.int8], advantage: Tensor, walk: Walk | None = None
    ) -> Update | None:
        self._drawn_at = None
        return self._improve_repeatedly(self.epochs, tokens, masks, advantage, walk)

    def gain(self, chosen: Distribution, advantage: Tensor) -> Tensor:
        """mean(min(ratio * advantage, clipped ratio * advantage))."""
        if self._drawn_at is None:
            self._drawn_at = chosen.log_probability.detach()
        ratio = (chosen.log_probability - self._drawn_at).exp()
        clipped = ratio.clamp(1 - self.clip_ratio, 1 + self.clip_ratio)
        return torch.minimum(ratio * advantage, clipped * advantage).mean()
