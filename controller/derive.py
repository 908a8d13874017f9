"""From everything a search has seen to the few architectures worth training, the candidates."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from child.space import Evaluation, Evaluator, Genotype, SearchSpace
from controller.search import play
from controller.strategy import RandomSearch, WholeStrategy
from logbook.analysis import front_of
from logbook.record import paid


@dataclass(frozen=True)
class Candidate:
    """An architecture scored again on all validation data."""

    strategy: str
    evaluation: Evaluation
    reward: float

    @property
    def genotype(self) -> Genotype:
        return self.evaluation.genotype

    def to_json(self, space: SearchSpace, front: Sequence["Candidate"]) -> dict[str, Any]:
        """One entry of `candidates.json`."""
        return {
            "strategy": self.strategy,
            "genotype": self.genotype.to_json(),
            "text": space.text(self.genotype),
            "quality": self.evaluation.quality,
            "cost": self.evaluation.cost,
            "reward": self.reward,
            "on_front": self in front,
        }


def shortlist(history: Iterable[dict[str, Any]], strategy: str, num: int, drifts: bool) -> list[Genotype]:
    """The most promising architectures of a strategy's history, without repetition.

    Half by reward (of an architecture seen more than once, the mean); the rest from the front of quality and cost,
    peeled layer by layer, so that cheap ones are looked at again too. Where an environment tells no cost it counts as
    without bound.

    Shared weights get better all the time, which would favor what was seen late. Where results drift so, what random
    search, whose proposals do not change, got in the same round is taken off first: the rising curve nearest to its
    means, which scatter; where it no longer played, what it got last. What was told from the account of a budget, for
    nothing, is of an earlier round and does not count again.
    """
    lines = [line for line in paid(history) if line["failure"] is None and line["quality"] is not None]
    drift = {key: _random_by_round(lines, key) if drifts else {} for key in ("reward", "quality")}
    seen: dict[Genotype, list[dict[str, Any]]] = {}
    for line in lines:
        if line["strategy"] == strategy:
            fair = {key: line[key] - drift[key].get(line["round"], 0.0) for key in drift}
            cost = math.inf if line["cost"] is None else line["cost"]
            seen.setdefault(Genotype.from_json(line["genotype"]), []).append({**fair, "cost": cost})
    means = {
        genotype: tuple(sum(line[key] for line in lines) / len(lines) for key in ("reward", "quality", "cost"))
        for genotype, lines in seen.items()
    }
    chosen = sorted(means, key=lambda genotype: (-means[genotype][0], genotype.tokens))[: (num + 1) // 2]
    rest = {genotype: (means[genotype][1], means[genotype][2]) for genotype in means if genotype not in chosen}
    while rest and len(chosen) < num:
        layer = front_of(rest, key=lambda genotype: rest[genotype])
        chosen += layer[: num - len(chosen)]
        rest = {genotype: pair for genotype, pair in rest.items() if genotype not in layer}
    return chosen


def _random_by_round(lines: Iterable[dict[str, Any]], key: str) -> dict[int, float]:
    """What random search gets in each round, as it rises: its means, by isotonic regression, or the last one before.

    Nothing where it never played.
    """
    found: dict[int, list[float]] = {}
    for line in lines:
        if line["strategy"] == RandomSearch.name:
            found.setdefault(line["round"], []).append(line[key])
    if not found:
        return {}
    rounds = sorted(found)
    means, counts = zip(*((np.mean(found[number]), len(found[number])) for number in rounds), strict=True)
    rising = dict(zip(rounds, isotonic_regression(means, weights=counts).x.tolist(), strict=True))
    last = rising[rounds[0]]
    return {number: (last := rising.get(number, last)) for number in range(1 + max(line["round"] for line in lines))}


class Replay(WholeStrategy):
    """Plays the architectures it is given."""

    name = "replay"

    def __init__(self, space: SearchSpace, genotypes: list[Genotype]):
        super().__init__(space, 0)
        self.genotypes = genotypes

    def propose(self, num: int, round_number: int) -> list[Genotype]:
        return self.genotypes


def replay(
    space: SearchSpace,
    genotypes: list[Genotype],
    environments: Callable[[int], VectorEnv[Any, Any, Any]],
    evaluator: Evaluator,
    seed: int,
) -> list[tuple[Evaluation, float]]:
    """Evaluation and reward of each architecture, which the environment is made to play.

    Args:
        space: What they are of.
        genotypes: Those to play.
        environments: So many episodes side by side.
        evaluator: Tells quality and cost where the environment only speaks in rewards.
        seed: Of the evaluations.
    """
    rollout = play(environments(len(genotypes)), Replay(space, genotypes), 0, seed)
    evaluations = rollout.evaluations
    if any(math.isnan(each.cost) and not each.failure for each in evaluations):
        evaluations = evaluator.evaluate(genotypes, 1.0, seed)
    return list(zip(evaluations, rollout.rewards.tolist(), strict=True))


def derive(
    space: SearchSpace,
    history: Sequence[dict[str, Any]],
    strategy: str,
    environments: Callable[[int], VectorEnv[Any, Any, Any]],
    evaluator: Evaluator,
    num: int,
    seed: int,
    drifts: bool,
    choice: Genotype | None = None,
) -> list[Candidate]:
    """Play the shortlist of a strategy again with full evaluations, best reward first.

    The reward is the environment's own, a user's included.

    Args:
        space: What was searched.
        history: The lines of `history.jsonl`.
        strategy: Whose shortlist.
        environments: So many episodes side by side, each evaluated in full.
        evaluator: Tells quality and cost where the environment only speaks in rewards.
        num: Candidates.
        seed: Of the evaluations.
        drifts: Whether results get better as the search goes on, whatever is proposed.
        choice: What the strategy stands for, which is a candidate whatever its score.
    """
    genotypes = [space.check(genotype) for genotype in shortlist(history, strategy, num, drifts)]
    if choice is not None and choice not in genotypes:
        genotypes = [choice, *genotypes[: num - 1]]
    if not genotypes:
        return []
    played = replay(space, genotypes, environments, evaluator, seed)
    return best_first(
        Candidate(strategy, evaluation, reward)
        for evaluation, reward in played
        if evaluation.failure is None and math.isfinite(reward)
    )


def best_first(candidates: Iterable[Candidate]) -> list[Candidate]:
    """By their rewards; equal ones in the order of their tokens."""
    return sorted(candidates, key=lambda c: (-c.reward, c.genotype.tokens))


def choose(
    space: SearchSpace,
    history: Sequence[dict[str, Any]],
    strategy: str,
    cost: Callable[[Genotype], float],
    estimate: Callable[[list[Genotype]], NDArray[np.float64] | None] | None = None,
) -> list[Candidate]:
    """What a strategy evaluated, each architecture once, in the order in which it should be chosen.

    For evaluations that cannot be made again, as those of a table. Of an architecture that was drawn more than once,
    from a noisy one without a budget, the mean counts; what a budget's account told again for nothing is no draw.

    Args:
        space: What was searched.
        history: The lines of `history.jsonl`.
        strategy: Whose.
        cost: Of an architecture, where the environment told none.
        estimate: The strategy's own, where rewards are noisy: it is trusted more than they are, if it has one.
    """
    drawn: dict[Genotype, list[dict[str, Any]]] = {}
    for line in history:
        if line["strategy"] == strategy and line["failure"] is None and line["reward"] is not None:
            lines = drawn.setdefault(space.check(Genotype.from_json(line["genotype"])), [])
            if not lines or line["charge"] != 0:
                lines.append(line)
    if not drawn:
        raise ValueError(f"{strategy} could evaluate no architecture; see 'failure' in history.jsonl, or search.budget")
    candidates = []
    for genotype, lines in drawn.items():
        first, quality = lines[0], fmean(line["quality"] for line in lines)
        its = cost(genotype) if first["cost"] is None else first["cost"]
        evaluation = Evaluation(genotype, quality, its, first["fidelity"], first["seed"])
        candidates.append(Candidate(strategy, evaluation, fmean(line["reward"] for line in lines)))
    told = estimate(list(drawn)) if estimate else None
    if told is None:
        told = [candidate.reward for candidate in candidates]
    try:
        worth = np.asarray(told, np.float64)
    except (TypeError, ValueError):
        worth = np.array(math.nan)
    if worth.shape != (len(candidates),) or not np.isfinite(worth).all():
        raise ValueError(
            f"controller: estimate of {strategy} gave {told!r:.100}; expected a finite number for each of "
            f"{len(candidates)} architectures, or None"
        )
    return [candidate for _, candidate in sorted(zip(-worth, candidates, strict=True), key=lambda pair: pair[0])]


def within_target(candidates: Sequence[Candidate], target: float) -> list[Candidate]:
    """Those that cost no more than the target, in their order; where there are none the cheapest alone."""
    within = [candidate for candidate in candidates if candidate.evaluation.cost <= target]
    return within or sorted(candidates, key=lambda candidate: candidate.evaluation.cost)[:1]


def equal_to_best(candidates: Sequence[Candidate], tolerance: float) -> Sequence[Candidate]:
    """Of candidates, best reward first, those whose reward is no more than `tolerance` below the best."""
    return [candidate for candidate in candidates if candidate.reward >= candidates[0].reward - tolerance]


def by_promise(
    candidates: Sequence[Candidate], macs: Callable[[Genotype], int], budget: float, tolerance: float
) -> list[Candidate]:
    """Candidates in the order in which they should be teachers.

    Rewards that are no more than `tolerance` below the best are equal as far as the validation data can tell. Among
    those the architecture comes first that leaves the best student; then come the others by reward.

    Args:
        candidates: Of one strategy, best reward first.
        macs: Multiply-accumulates of an architecture.
        budget: A student's largest share of its teacher's.
        tolerance: What chance explains: what the standard error of a quality makes of a reward.
    """
    qualities = {candidate.genotype: candidate.evaluation.quality for candidate in candidates}
    sizes = {genotype: macs(genotype) for genotype in qualities}

    def quality_of_student(teacher: Candidate) -> float:
        budgeted = budget * sizes[teacher.genotype]
        student, within = choose_student(list(qualities.items()), sizes.__getitem__, budgeted)
        return qualities[student] if within else -math.inf

    equal = equal_to_best(candidates, tolerance)
    return [*sorted(equal, key=lambda c: (-quality_of_student(c), -c.reward)), *candidates[len(equal) :]]


def choose_student(
    candidates: Sequence[tuple[Genotype, float]], macs: Callable[[Genotype], int], budget: float
) -> tuple[Genotype, bool]:
    """The architecture of best quality within a budget of multiply-accumulates, and whether there is one.

    Where nothing is within the budget it is the cheapest.
    """
    within = [(genotype, quality) for genotype, quality in candidates if macs(genotype) <= budget]
    if within:
        return max(within, key=lambda pair: (pair[1], -macs(pair[0])))[0], True
    return min(candidates, key=lambda pair: macs(pair[0]))[0], False
