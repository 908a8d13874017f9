"""REINFORCE (Williams 1992) for the LSTM policy, as in ENAS (Pham et al. 2018, section 2.2), in batches of episodes."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from child.space import Genotype, SearchSpace, derive_seed
from controller.policy import Distribution, Episodes, LSTMPolicy, PolicySettings
from controller.strategy import Rollout, Strategy, Update
from controller.walk import Walk, check_connections

MAX_SKIPPED = 5

Baseline = Literal["leave_one_out", "ema", "none"]


class ControllerError(RuntimeError):
    """The controller cannot go on: updates were not finite, or memory ran out."""


def advantages(rewards: Tensor, baseline: Baseline, mean: float) -> Tensor:
    """Rewards (B) less a baseline that does not depend on the episode itself, so that the gradient stays unbiased.

    `leave_one_out` subtracts from each reward the mean of the other B - 1 (Kool et al. 2019), and from a single one
    the moving average; `ema` the moving average `mean` of earlier rewards (ENAS); `none` nothing.
    """
    if baseline == "leave_one_out" and len(rewards) > 1:
        return rewards - (rewards.sum() - rewards) / (len(rewards) - 1)
    return rewards if baseline == "none" else rewards - mean


def learning_policy(
    space: SearchSpace, seed: int, settings: PolicySettings, learning_rate: float, clip: float
) -> tuple[LSTMPolicy, torch.optim.Optimizer]:
    """A policy with fresh weights, and Adam for them.

    Raises:
        ValueError: Steps down its gradient would go nowhere, or the space has connections that it cannot follow.
    """
    if not learning_rate > 0 or not clip > 0:
        raise ValueError(f"the controller needs learning_rate > 0 and clip > 0, got {learning_rate} and {clip}")
    check_connections(space)
    torch.manual_seed(derive_seed(seed, "policy", "weights"))
    policy = LSTMPolicy(space, settings)
    return policy, torch.optim.Adam(policy.parameters(), lr=learning_rate, fused=True)


def descend(
    policy: LSTMPolicy, chosen: Distribution, loss: Tensor, optimizer: torch.optim.Optimizer, clip: float
) -> float | None:
    """A step down the gradient, clipped to a norm of `clip`, and its norm before; None, and no step, if not finite."""
    gradient = chosen.gradient(loss)
    norm = float(gradient.norm())
    if not math.isfinite(loss.item()) or not math.isfinite(norm):
        return None
    policy.weights.grad = gradient.mul_(min(1.0, clip / (norm + 1e-6)))  # as PyTorch clips
    optimizer.step()
    return norm


class Reinforce(Strategy):
    """An LSTM policy improved by the policy gradient of the mean reward.

    Args:
        space: What is searched.
        seed: The run's seed.
        num_updates: How many updates are to come, for the entropy's schedule.
        policy: Size and squashing of the policy.
        learning_rate: Adam's.
        baseline: `leave_one_out`, `ema` or `none`; see `advantages`.
        baseline_decay: Of the moving average.
        entropy_weight: Weight of the policy's entropy (nats per architecture) in the loss, at the first update.
        final_entropy_weight: At the last; linear in between.
        skip_prior: The density of skip connections that the policy is pulled to.
        skip_weight: Weight of the mean divergence from it (ENAS: 0.8 beside rewards in [0, 1], but of the sum over a
            layer's connections, averaged over layers: with L layers that is 0.4 L here; and of sigmoid(score), where
            connections are drawn by sigmoid(2 score), so that theirs pulls less).
        clip: Largest norm of the whole gradient.
    """

    name = "reinforce"
    remedies = (
        "a higher weight of its entropy (controller.entropy_weight, final_entropy_weight)",
        "a smaller search.policy_share",
    )

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        num_updates: int,
        policy: PolicySettings,
        learning_rate: float = 3.5e-3,
        baseline: Baseline = "leave_one_out",
        baseline_decay: float = 0.99,
        entropy_weight: float = 1e-3,
        final_entropy_weight: float = 1e-4,
        skip_prior: float = 0.4,
        skip_weight: float = 0.0,
        clip: float = 5.0,
    ):
        super().__init__(space, seed)
        self.policy, self.optimizer = learning_policy(space, seed, policy, learning_rate, clip)
        if not 0 < skip_prior < 1 or not 0 <= baseline_decay < 1:
            raise ValueError(
                f"the controller needs skip_prior in (0, 1) and baseline_decay in [0, 1), got {skip_prior} and "
                f"{baseline_decay}"
            )
        self.num_updates, self.baseline_decay = num_updates, baseline_decay
        self.baseline: Baseline = baseline
        self.entropy_weight, self.final_entropy_weight = entropy_weight, final_entropy_weight
        self.skip_prior, self.skip_weight, self.clip = skip_prior, skip_weight, clip
        self._episodes: Episodes | None = None  # drawn by the policy as it is, and not yet learned from
        self.num_learned = 0
        self.num_skipped_in_a_row = 0
        self.mean_reward: float | None = None

    def begin(self, num: int, round_number: int) -> None:
        self._episodes = Episodes(self.policy, num, derive_seed(self.seed, "policy", "act", round_number))

    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        assert self._episodes is not None, "begin() comes before act()"
        return self._episodes.next(int(observation["step"][0]), observation["action_mask"])

    def learn(self, rollout: Rollout) -> Update:
        """One gradient step on the finite rewards.

        Raises:
            ControllerError: Loss, gradient or every reward was not finite five times in a row.
        """
        finite = np.isfinite(rollout.rewards)
        num_lost = int((~finite).sum())
        rewards = torch.from_numpy(rollout.rewards[finite]).float()
        if len(rewards) == 0:
            return self._skip(num_lost)
        mean = float(rewards.mean())
        if self.mean_reward is None:
            self.mean_reward = mean
        advantage = advantages(rewards, self.baseline, self.mean_reward)
        others = self.baseline == "leave_one_out" and len(rewards) > 1
        subtracted = mean if others else self.mean_reward  # of what the others have, the mean is the mean of all
        tokens, masks = rollout.tokens[finite], rollout.masks[finite]
        walk, self._episodes = self._episodes and self._episodes.walk_of(tokens), None
        update = self._improve(tokens, masks, advantage, walk)
        if update is None:
            return self._skip(len(rollout.rewards))
        self.mean_reward += (1 - self.baseline_decay) * (mean - self.mean_reward)
        return replace(update, baseline=0.0 if self.baseline == "none" else subtracted, num_skipped=num_lost)

    def _improve(
        self, tokens: NDArray[np.int64], masks: NDArray[np.int8], advantage: Tensor, walk: Walk | None = None
    ) -> Update | None:
        """One gradient step on architectures (B, T) with their advantages (B); None where it is not finite.

        `walk` is the way in which the policy, as it is now, has drawn them.
        """
        chosen = self.policy.evaluate(tokens, masks, self.skip_prior, walk)
        loss = self.loss(chosen, advantage)
        norm = descend(self.policy, chosen, loss, self.optimizer, self.clip)
        if norm is None:
            return None
        self.num_skipped_in_a_row = 0
        self.num_learned += 1
        return Update(
            loss=loss.item(),
            entropy=chosen.entropy.mean().item(),
            gradient_norm=norm,
            probabilities=[
                row[: decision.num_choices]
                for row, decision in zip(chosen.probabilities.tolist(), self.space.decisions, strict=True)
            ],
        )

    def _improve_repeatedly(
        self, num: int, tokens: NDArray[np.int64], masks: NDArray[np.int8], advantage: Tensor, walk: Walk | None = None
    ) -> Update | None:
        """Several gradient steps on the same; broken off, it counts as skipped, whatever its first steps were."""
        update, skipped = None, self.num_skipped_in_a_row
        for number in range(num):
            update = Reinforce._improve(self, tokens, masks, advantage, walk if number == 0 else None)
            if update is None:
                self.num_skipped_in_a_row = skipped
                return None
        return update

    def loss(self, chosen: Distribution, advantage: Tensor) -> Tensor:
        """-gain - w * mean(entropy) + skip_weight * mean(divergence from the skip prior)."""
        regular = self.skip_weight * chosen.skip_divergence.mean() - self._entropy_weight() * chosen.entropy.mean()
        return regular - self.gain(chosen, advantage)

    def gain(self, chosen: Distribution, advantage: Tensor) -> Tensor:
        """mean(advantage * log p)."""
        return (advantage * chosen.log_probability).mean()

    def _entropy_weight(self) -> float:
        progress = min(1.0, self.num_learned / max(1, self.num_updates - 1))
        return self.entropy_weight + progress * (self.final_entropy_weight - self.entropy_weight)

    def sample(self, num: int, step: int) -> list[Genotype]:
        return self.policy.sample(num, self.seed, step)

    def state_dict(self) -> dict[str, Any]:
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "num_learned": self.num_learned,
            "num_skipped_in_a_row": self.num_skipped_in_a_row,
            "mean_reward": self.mean_reward,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self._episodes = None
        self.optimizer.load_state_dict(state["optimizer"])
        self.num_learned = state["num_learned"]
        self.num_skipped_in_a_row = state["num_skipped_in_a_row"]
        self.mean_reward = state["mean_reward"]

    def _skip(self, num_lost: int) -> Update:
        self.num_skipped_in_a_row += 1
        if self.num_skipped_in_a_row >= MAX_SKIPPED:
            raise ControllerError(
                f"the search stopped: reward, loss or gradient was not finite in {MAX_SKIPPED} updates in a row; "
                "lower controller.learning_rate, or look at 'failure' in history.jsonl"
            )
        return Update(num_skipped=num_lost)
