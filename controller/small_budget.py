"""REINFORCE for budgets of about a hundred evaluations, without a model."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from child.space import Genotype, SearchSpace, derive_seed
from controller.policy import PolicySettings
from controller.ranks import normal_scores
from controller.reinforce import Reinforce
from controller.strategy import Rollout, Update, WholeStrategy

NUM_DRAWN = 32
"""Samples of the policy for every architecture evaluated, to find new ones among."""


class SmallBudgetReinforce(WholeStrategy, Reinforce):
    """REINFORCE on ranks, which imitates the best that it has seen.

    The advantage of an architecture is the normal score of its reward's rank among all that was seen, which neither
    the scale nor the outliers of the reward disturb; the best few join every update, as in self-imitation learning
    (Oh et al. 2018). What was seen is never forgotten, so every evaluation goes on teaching. Of a few new samples of
    the policy the one that it finds likeliest is evaluated: what is known already would teach nothing, and a policy
    that is kept broad, lest it settle too early, can so be followed closely all the same.

    Args:
        space: What is searched.
        seed: The run's seed.
        policy: Size and squashing of the policy.
        candidates: New samples, 32 at most, of which the likeliest is taken, for every architecture evaluated.
        imitated: How many of the best join every update.
        updates: Gradient steps after every round.
        learning_rate: Adam's.
        entropy_weight: Of the policy's entropy (nats per architecture) in the loss.
        skip_prior: The density of skip connections that the policy is pulled to.
        skip_weight: Weight of the divergence from it.
        clip: Largest norm of the whole gradient.
    """

    name = "reinforce_small_budget"
    remedies = ("a higher controller.entropy_weight", "a smaller search.policy_share")

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        policy: PolicySettings,
        candidates: int = 4,
        imitated: int = 2,
        updates: int = 3,
        learning_rate: float = 0.01,
        entropy_weight: float = 1.0,
        skip_prior: float = 0.4,
        skip_weight: float = 0.0,
        clip: float = 5.0,
    ):
        super().__init__(
            space, seed, 1, policy, learning_rate, entropy_weight=entropy_weight, final_entropy_weight=entropy_weight,
            skip_prior=skip_prior, skip_weight=skip_weight, clip=clip,
        )  # fmt: skip
        if not 1 <= candidates <= NUM_DRAWN or imitated < 0 or updates < 1:
            raise ValueError(
                f"the controller needs candidates from 1 to {NUM_DRAWN}, imitated >= 0 and updates >= 1, "
                f"got {candidates}, {imitated} and {updates}"
            )
        self.candidates, self.imitated, self.updates = candidates, imitated, updates
        self.seen: dict[Genotype, float] = {}
        self.lost: set[Genotype] = set()  # which gave no finite reward; once is enough

    def propose(self, num: int, round_number: int) -> list[Genotype]:
        seed = derive_seed(self.seed, "policy", "act", round_number)
        genotypes = [Genotype(self.space.name, tuple(row)) for row in self.policy.draw(NUM_DRAWN * num, seed).tolist()]
        genotypes += self.space.sample(np.random.default_rng(seed), num)  # where the policy knows nothing new
        new = [each for each in dict.fromkeys(genotypes) if each not in self.seen and each not in self.lost]
        return (self._likeliest_first(new[: self.candidates * num]) + genotypes)[:num]

    def _likeliest_first(self, genotypes: list[Genotype]) -> list[Genotype]:
        if not genotypes:
            return []
        tokens = np.array([genotype.tokens for genotype in genotypes])
        chosen = self.policy.evaluate(tokens, self.space.masks(tokens), 0.5)
        return [genotypes[i] for i in chosen.log_probability.argsort(descending=True, stable=True).tolist()]

    def learn(self, rollout: Rollout) -> Update:
        new = []
        for evaluation, reward in zip(rollout.evaluations, rollout.rewards.tolist(), strict=True):
            if np.isfinite(reward):
                new.append(evaluation.genotype)
                self.seen.setdefault(evaluation.genotype, reward)
            else:
                self.lost.add(evaluation.genotype)
        num_lost = len(rollout.rewards) - len(new)
        if not new:
            return self._skip(num_lost)
        scores = dict(zip(self.seen, normal_scores(np.array(list(self.seen.values()))).tolist(), strict=True))
        batch = new + sorted(self.seen, key=lambda genotype: -self.seen[genotype])[: self.imitated]
        tokens = np.array([genotype.tokens for genotype in batch])
        masks = self.space.masks(tokens)
        advantage = torch.tensor([scores[genotype] for genotype in batch])
        update = self._improve_repeatedly(self.updates, tokens, masks, advantage)
        return self._skip(len(rollout.rewards)) if update is None else replace(update, num_skipped=num_lost)

    def state_dict(self) -> dict[str, Any]:
        seen = [(genotype.tokens, reward) for genotype, reward in self.seen.items()]
        return {**super().state_dict(), "seen": seen, "lost": sorted(genotype.tokens for genotype in self.lost)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.seen = {Genotype(self.space.name, tuple(tokens)): reward for tokens, reward in state["seen"]}
        self.lost = {Genotype(self.space.name, tuple(tokens)) for tokens in state["lost"]}
