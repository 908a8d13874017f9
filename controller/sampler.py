"""Which architectures the shared weights are trained on: drawn in one of three ways, then increasingly the policy's."""

from typing import Literal

import numpy as np

from child.space import Genotype, SearchSpace, derive_seed
from controller.strategy import Strategy

Base = Literal["uniform", "fair", "sandwich"]

CHOSEN = ("operation", "input", "skip")
"""Kinds of decisions whose choices have no size; those of all others go from the smallest to the largest."""


def uniform_group(space: SearchSpace, rng: np.random.Generator) -> list[Genotype]:
    """One random architecture."""
    return space.sample(rng, 1)


def fair_group(space: SearchSpace, rng: np.random.Generator) -> list[Genotype]:
    """As many architectures as the widest decision has choices, in which every choice of a decision occurs.

    FairNAS (Chu et al. 2021): each decision walks through a permutation of its choices, so that after every group all
    choices have been trained almost equally often (equally, where the decisions are equally wide). Where a narrower
    decision walks through a part of its choices once more, the part is drawn anew, so that none is favored for good.

    Not so a depth: what lies beyond it is not trained, and equal depths would train the last layers a few times where
    the first are trained always. It is the largest in all of a group but one.
    """
    columns = []
    for decision in space.decisions:
        order = rng.permutation(decision.num_choices)
        column = rng.permutation(order[np.arange(space.max_choices) % decision.num_choices])
        if decision.kind == "depth":
            others = np.arange(len(column)) != rng.integers(len(column))
            column[others] = decision.num_choices - 1
        columns.append(column)
    return [space.canonical(row) for row in np.stack(columns, axis=1)]


def sandwich_group(space: SearchSpace, rng: np.random.Generator) -> list[Genotype]:
    """The largest sizes, the smallest, and two random architectures (Yu and Huang 2019, the sandwich rule), shuffled.

    What lies between is bounded by the two ends, so that these are trained most. Here each is a batch of its own, where
    the paper adds the gradients of all four; and choices that have no size are drawn at random. In a fixed order each
    of several supernets that learn in turn would be shown but one or two of the four for ever.
    """
    ends = [
        space.canonical([
            int(rng.integers(decision.num_choices)) if decision.kind in CHOSEN else end % decision.num_choices
            for decision in space.decisions
        ])
        for end in (-1, 0)
    ]  # fmt: skip
    group = [*ends, *space.sample(rng, 2)]
    return [group[place] for place in rng.permutation(len(group))]


GROUPS = {"uniform": ("sampler", uniform_group), "fair": ("fair", fair_group), "sandwich": ("sandwich", sandwich_group)}
"""How each base draws as many architectures as belong together, and what its draws are keyed by."""


class TrainingSampler:
    """Draws an architecture per training batch, each following from (seed, number of the batch).

    What a strategy would mix in that has learned nothing to draw from stays as the base draws it.

    Args:
        base: `uniform` over legal choices, `fair`, or `sandwich` for spaces of sizes.
        strategy: Whose own proposals are mixed in.
        seed: The run's seed.

    Raises:
        ValueError: `sandwich` in a space without sizes.
    """

    def __init__(self, base: Base, strategy: Strategy, seed: int):
        space = strategy.space
        if base == "sandwich" and all(decision.kind in CHOSEN for decision in space.decisions):
            raise ValueError(
                f"search.sampler=sandwich is for spaces with sizes, such as mobile, and {space.name!r} has none; use "
                "fair or uniform"
            )
        self.key, self.group = GROUPS[base]
        self.size = len(self.group(space, np.random.default_rng(0)))
        self.strategy, self.seed = strategy, seed
        self.policy_share = 0.0

    def __call__(self, num: int, step: int) -> list[Genotype]:
        """Architectures for the batches `step` to `step + num`, a share `policy_share` of them the strategy's."""
        space = self.strategy.space
        rng = np.random.default_rng(derive_seed(self.seed, "sampler", "mix", step))
        from_policy = rng.random(num) < self.policy_share
        proposed = iter((self.strategy.sample(int(from_policy.sum()), step) if from_policy.any() else None) or ())
        first, last = step // self.size, (step + num - 1) // self.size
        start = step - first * self.size
        drawn = [
            genotype
            for number in range(first, last + 1)
            for genotype in self.group(space, np.random.default_rng(derive_seed(self.seed, self.key, number)))
        ][start : start + num]
        return [next(proposed, base) if policy else base for policy, base in zip(from_policy, drawn, strict=True)]
