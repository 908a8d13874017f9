"""Which architectures the shared weights are trained on: uniform or fair at first, then increasingly the policy's."""

from typing import Literal

import numpy as np

from child.space import Genotype, SearchSpace, derive_seed
from controller.strategy import Strategy

Base = Literal["uniform", "fair"]


def fair_group(space: SearchSpace, rng: np.random.Generator) -> list[Genotype]:
    """As many architectures as the widest decision has choices, in which every choice of a decision occurs.

    FairNAS (Chu et al. 2021): each decision walks through a permutation of its choices, so that after every group all
    choices have been trained almost equally often (equally, where the decisions are equally wide).
    """
    columns = []
    for decision in space.decisions:
        choices = np.arange(space.max_choices) % decision.num_choices
        columns.append(rng.permutation(choices))
    return [space.canonical(row) for row in np.stack(columns, axis=1)]


class TrainingSampler:
    """Draws an architecture per training batch, each following from (seed, number of the batch).

    Args:
        base: `uniform` over legal choices, or `fair`.
        strategy: Whose own proposals are mixed in.
        seed: The run's seed.
    """

    def __init__(self, base: Base, strategy: Strategy, seed: int):
        self.base, self.strategy, self.seed = base, strategy, seed
        self.policy_share = 0.0

    def __call__(self, num: int, step: int) -> list[Genotype]:
        """Architectures for the batches `step` to `step + num`, a share `policy_share` of them the strategy's."""
        space = self.strategy.space
        rng = np.random.default_rng(derive_seed(self.seed, "sampler", "mix", step))
        from_policy = rng.random(num) < self.policy_share
        proposed = iter(self.strategy.sample(int(from_policy.sum()), step)) if from_policy.any() else iter(())
        if self.base == "uniform":
            keys = (derive_seed(self.seed, "sampler", batch) for batch in range(step, step + num))
            drawn = [space.sample(np.random.default_rng(key), 1)[0] for key in keys]
        else:
            size = space.max_choices
            first, last = step // size, (step + num - 1) // size
            groups = range(first, last + 1)
            fair = [
                genotype
                for group in groups
                for genotype in fair_group(space, np.random.default_rng(derive_seed(self.seed, "fair", group)))
            ]
            drawn = fair[step - first * size :][:num]
        return [next(proposed) if policy else base for policy, base in zip(from_policy, drawn, strict=True)]
