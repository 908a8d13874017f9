"""Why this one: what every single change of the chosen architecture would give, judged as the search judges."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from child.space import Evaluation, Evaluator, Genotype, SearchSpace
from controller.derive import replay

AT_ONCE = 64
"""Architectures that are evaluated together: enough to share beginnings, and far from filling the memory."""


@dataclass(frozen=True)
class Change:
    """A neighbor of an architecture: the one decision that was made otherwise, and what came of it.

    Args:
        step: Which decision; later ones may have been repaired to fit it.
        genotype: The neighbor.
    """

    step: int
    genotype: Genotype


def changes(space: SearchSpace, center: Genotype) -> list[Change]:
    """All neighbors, in the order of the decisions."""
    found = []
    for neighbor in space.neighbors(center):
        pairs = zip(center.tokens, neighbor.tokens, strict=True)
        # A repair never touches what stands before the change.
        found.append(Change(next(step for step, (was, now) in enumerate(pairs) if was != now), neighbor))
    return found


def weigh_changes(
    space: SearchSpace,
    center: Genotype,
    num: int | None,
    environments: Callable[[int], VectorEnv[Any, Any, Any]],
    evaluator: Evaluator,
    seed: int,
) -> dict[str, Any]:
    """The content of `neighbors.json`: the architecture and its neighbors, all evaluated on the same data.

    Args:
        space: What was searched.
        center: The architecture.
        num: The most neighbors that are looked at, of more a sample is drawn; None for all.
        environments: So many episodes side by side, each evaluated in full.
        evaluator: Tells quality and cost where the environment only speaks in rewards.
        seed: Of the sample and of the evaluations.
    """
    everything = changes(space, center)
    kept: Sequence[Change] = everything
    if num is not None and num < len(everything):
        drawn = np.random.default_rng(seed).choice(len(everything), num, replace=False)
        kept = [everything[place] for place in sorted(drawn.tolist())]
    genotypes = [center, *(change.genotype for change in kept)]
    judged: list[tuple[Evaluation, float]] = []
    for first in range(0, len(genotypes), AT_ONCE):
        judged += replay(space, genotypes[first : first + AT_ONCE], environments, evaluator, seed)
    lines = [_line(space, *each) for each in judged]
    for change, line in zip(kept, lines[1:], strict=True):
        decision = space.decisions[change.step]
        tokens = center.tokens[change.step], change.genotype.tokens[change.step]
        line["decision"], (line["from"], line["to"]) = decision.name, (decision.labels[token] for token in tokens)
    return {"center": lines[0], "num_all": len(everything), "neighbors": lines[1:], "missing": None}


def _line(space: SearchSpace, evaluation: Evaluation, reward: float) -> dict[str, Any]:
    failed = evaluation.failure is not None or not math.isfinite(reward)
    return {
        "text": space.text(evaluation.genotype),
        "genotype": evaluation.genotype.to_json(),
        "quality": None if failed else evaluation.quality,
        "cost": evaluation.cost if math.isfinite(evaluation.cost) else None,
        "reward": None if failed else reward,
        "failure": evaluation.failure or (f"reward {reward} is not finite" if failed else None),
    }
