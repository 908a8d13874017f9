"""How much to prune where, as a search: a decision for every group of channels, judged without any training.

A space of ratios builds no networks of its own: its architectures are what is left of one network. So the controller,
the search loop and the environment search it as any other space.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from child.prune import Group, gather_statistics, keep_shares, remove_units
from child.space import Decision, Evaluation, Genotype, Improvement, Sampler, SearchSpace, derive_seed
from child.task import Task
from child.training import grade, quality_or_failure


class RatioSpace(SearchSpace):
    """For each group of channels the share of it that is removed.

    Args:
        groups: Of the network.
        ratios: The shares to choose from, ascending.
    """

    name = "ratios"

    def __init__(self, groups: Sequence[Group], ratios: Sequence[float]):
        self.groups, self.ratios = tuple(groups), tuple(ratios)
        labels = tuple(f"{ratio:.3g}" for ratio in ratios)
        self.decisions = tuple(
            Decision(group.name or f"group{number}", "ratio", labels, number) for number, group in enumerate(groups)
        )

    def shares(self, genotype: Genotype, power: float = 1.0) -> dict[str, float]:
        """The share of each group that stays, to a power: below 1 all stay larger, above 1 all become smaller."""
        pairs = zip(self.groups, genotype.tokens, strict=True)
        return {group.name: (1 - self.ratios[token]) ** power for group, token in pairs}


class PruningEvaluator:
    """Quality of what is left of a network, on validation data, after its normalizations have seen training batches.

    Nothing is trained, so a quality is that of before fine-tuning, as in AMC (He et al. 2018, section 3.4).

    Args:
        module: The network.
        space: Of its groups.
        scores: The importance of their units.
        task: Statistics come from its training split, qualities from its validation split.
        cost: Of a network.
        least: The share that stays in any case, of each group or of all.
        multiple: Of how many channels the rest should be.
        batch_size: Samples per batch.
        num_batches: Training batches for the statistics.
        seed: Draws them.
        device: Where to compute.
    """

    def __init__(
        self,
        module: nn.Module,
        space: RatioSpace,
        scores: Mapping[str, Tensor],
        task: Task,
        cost: Callable[[nn.Module], float],
        least: Mapping[str, float] | float,
        multiple: int,
        batch_size: int,
        num_batches: int,
        seed: int,
        device: torch.device,
    ):
        self.module, self.space, self.scores, self.task, self.cost = module, space, scores, task, cost
        self.least, self.multiple = least, multiple
        self.batch_size, self.num_batches, self.seed, self.device = batch_size, num_batches, seed, device

    def left(self, genotype: Genotype) -> nn.Module:
        """What is left of the network."""
        kept = keep_shares(self.space.groups, self.space.shares(genotype), self.least, self.multiple)
        return remove_units(self.module, self.task.input_shape, self.space.groups, self.scores, kept)

    def evaluate(self, genotypes: Sequence[Genotype], fidelity: float, seed: int) -> list[Evaluation]:
        """Score each on the same share `fidelity` of the validation data, drawn by `seed`."""
        split = self.task.validation
        if fidelity < 1:
            split = split.draw(max(1, round(fidelity * len(split))), derive_seed(seed, "validation"))
        found: dict[Genotype, Evaluation] = {}
        for genotype in dict.fromkeys(genotypes):
            smaller = self.left(genotype)
            gather_statistics(smaller, self.task, self.num_batches, self.batch_size, self.seed)
            scores = grade(smaller, self.task, split, self.batch_size, self.device)
            outcome = quality_or_failure(self.task, scores, split)
            quality, failure = (0.0, outcome) if isinstance(outcome, str) else (outcome, None)
            found[genotype] = Evaluation(genotype, quality, float(self.cost(smaller)), fidelity, seed, failure)
        return [found[genotype] for genotype in genotypes]

    def improve(self, sampler: Sampler, num_batches: int) -> Improvement | None:
        """Nothing is shared, so there is nothing to train."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Nothing changes as it works."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert not state
