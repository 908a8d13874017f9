"""Rungs of fidelity: a cheap score of many, a short training of the best of them, a longer one of the best of those.

Successive halving (Jamieson and Talwalkar 2016) without waiting for a rung to be full (Li et al. 2020): what is
evaluated goes on at once if it is among the best of those that reached its rung lately. Every result is told on the
scale of the cheap score, to which those of the rungs are translated by what both had in common so far, so that whoever
learns from the evaluations, a reward model above all, learns from all rungs at once. What was told early and what is
told late compare, but for how far cheap scores have moved in between, which the common ones follow late.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from child.space import Evaluation, Evaluator, Genotype, Improvement, Sampler
from child.standalone import StandaloneEvaluator, StandaloneScore

RECENT = 64
"""Results that a new one is compared with, since shared weights, and so their scores, change as a search goes on."""

EDGE = 1e-3
"""How close to 0 and 1 qualities are told apart."""


@dataclass(frozen=True)
class RungsSettings:
    """Which share of the architectures is trained on its own, and for how long.

    Args:
        fidelities: Of each rung above the cheap score, its share of a whole training's epochs, rising; empty for none.
        keep: The best share of a rung that goes on to the next.
        budget: Multiply-accumulates that all these trainings of a strategy may take; None for no limit.
        score: What the result of such a training is taken from, `metric` or `loss`; see `StandaloneEvaluator`.
        max_seconds: Give an architecture up that takes longer to train; None for never.
        space: Arguments of the space in which these networks differ from those of the search, such as more cells: what
            a shallow network cannot show, such as the worth of a residual, shows early in the training of a deep one.
    """

    fidelities: tuple[float, ...] = ()
    keep: float = 0.25
    budget: float | None = None
    score: StandaloneScore = "loss"
    max_seconds: float | None = None
    space: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in pairwise((0.0, *self.fidelities)))
        if not rising or (self.fidelities and self.fidelities[-1] > 1):
            raise ValueError(f"rungs.fidelities must rise within (0, 1], got {list(self.fidelities)}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"rungs.keep is a share in (0, 1], got {self.keep}")
        if self.budget is not None and not self.budget > 0:
            raise ValueError(f"rungs.budget must be above 0 or null, got {self.budget}")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"rungs.max_seconds must be above 0 or null, got {self.max_seconds}")


class Rungs:
    """A cheap evaluator, and above it stand-alone trainings of rising length, for each strategy a climb of its own.

    Were the best of all to go on together, a strategy whose architectures score better would be given nearly all of the
    trainings, and what it finds would depend on who plays beside it. What two of them want is trained once all the
    same, and charged to both.

    Args:
        cheap: Scores every architecture, from shared weights say.
        alone: Trains architectures on their own.
        settings: Which, and for how long.
    """

    def __init__(self, cheap: Evaluator, alone: StandaloneEvaluator, settings: RungsSettings):
        self.cheap, self.alone, self.settings = cheap, alone, settings
        self.climbs: dict[str, Climb] = {}

    def of(self, strategy: str) -> "Climb":
        """What evaluates the architectures of a strategy."""
        if strategy not in self.climbs:
            self.climbs[strategy] = Climb(self)
        return self.climbs[strategy]

    def improve(self, sampler: Sampler, num_batches: int) -> Improvement | None:
        """Train what the cheap scores come from."""
        return self.cheap.improve(sampler, num_batches)

    def sentence(self) -> str:
        """How many architectures each strategy had trained, for how long, and how many of these trainings failed."""

        def told(climb: "Climb", rung: int, fidelity: float) -> str:
            failed = sum(self.alone.has_failed(genotype, fidelity) for genotype in climb.paid[rung])
            how_long = f"{len(climb.paid[rung])} for {round(self.alone.epochs(fidelity), 2):g}"
            return f"{how_long} ({failed} failed)" if failed else how_long

        said = [
            f"{strategy} " + " and ".join(told(climb, *rung) for rung in enumerate(self.settings.fidelities, 1))
            for strategy, climb in self.climbs.items()
        ]
        return f"Architectures trained on the rungs, and for how many epochs: {', '.join(said)}."

    def state_dict(self) -> dict[str, Any]:
        """Both evaluators, and every climb."""
        return {
            "cheap": self.cheap.state_dict(),
            "alone": self.alone.state_dict(),
            "climbs": {strategy: climb.state_dict() for strategy, climb in self.climbs.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state_dict` gave."""
        self.cheap.load_state_dict(state["cheap"])
        self.alone.load_state_dict(state["alone"])
        for strategy, climb in state["climbs"].items():
            self.of(strategy).load_state_dict(climb)


class Climb:
    """The evaluator of one strategy, which sends the best of its architectures up the rungs.

    Where it is asked again for an architecture that it has trained, the training is not repeated, and its result
    stands whatever the cheap score is by then, unless there is none. What fails in training makes room for the next.

    Args:
        rungs: What scores and trains for all strategies, and how.
    """

    def __init__(self, rungs: Rungs):
        self.cheap, self.alone, self.settings = rungs.cheap, rungs.alone, rungs.settings
        self.spent = 0.0
        self.reached: list[dict[Genotype, float]] = [{} for _ in range(1 + len(self.settings.fidelities))]
        self.paid: list[dict[Genotype, None]] = [{} for _ in self.reached]  # also for what then failed

    def evaluate(self, genotypes: Sequence[Genotype], fidelity: float, seed: int) -> list[Evaluation]:
        """Score all, train the best, and tell each result on the scale of the cheap score.

        The value follows from everything evaluated before as well, all of which is in `state_dict`.
        """
        found = {each.genotype: each for each in self.cheap.evaluate(list(dict.fromkeys(genotypes)), fidelity, seed)}
        results = [{genotype: each.quality for genotype, each in found.items() if each.failure is None}]
        self._remember(0, results[0])
        for rung, share in enumerate(self.settings.fidelities, 1):
            results.append({})
            paid = [genotype for genotype in results[-2] if genotype in self.paid[rung]]
            for genotype in dict.fromkeys([*self._best(rung - 1, results[-2]), *paid]):
                if self._afford(genotype, rung):
                    (evaluation,) = self.alone.evaluate([genotype], share, seed)
                    if evaluation.failure is not None:
                        found[genotype] = found[genotype]._replace(quality=0.0, failure=evaluation.failure)
                        del self.reached[rung - 1][genotype]  # it holds no place among the best any more
                        continue
                    results[-1][genotype] = evaluation.quality
            self._remember(rung, results[-1])
        pairs = self._pairs()
        for rung, result in enumerate(results[1:], 1):  # a cheap score is told as it is
            for genotype, quality in result.items():
                if found[genotype].failure is None:
                    found[genotype] = found[genotype]._replace(quality=translate(quality, pairs[:rung]))
        return [found[genotype] for genotype in genotypes]

    def improve(self, sampler: Sampler, num_batches: int) -> Improvement | None:
        """Train what the cheap scores come from."""
        return self.cheap.improve(sampler, num_batches)

    def state_dict(self) -> dict[str, Any]:
        """What reached which rung, and was paid for; the evaluators keep their own state."""
        return {
            "spent": self.spent,
            "reached": [[[list(g.tokens), quality] for g, quality in rung.items()] for rung in self.reached],
            "paid": [[list(genotype.tokens) for genotype in rung] for rung in self.paid],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state_dict` gave."""
        self.spent = state["spent"]
        name = self.alone.space.name
        self.reached = [{Genotype(name, tuple(tokens)): q for tokens, q in rung} for rung in state["reached"]]
        self.paid = [{Genotype(name, tuple(tokens)): None for tokens in rung} for rung in state["paid"]]

    def _remember(self, rung: int, results: Mapping[Genotype, float]) -> None:
        """The last quality of each architecture, the one that was last asked for at the end.

        A policy that has settled asks for the same again and again, which is no further evidence.
        """
        for genotype, quality in results.items():
            self.reached[rung].pop(genotype, None)
            self.reached[rung][genotype] = quality

    def _best(self, rung: int, new: Mapping[Genotype, float]) -> list[Genotype]:
        """Those of the new results that are among the best share of the rung's recent ones, best first.

        Of equals those that were there before, so that a cheap score which tells none apart sends no more on.
        """
        recent = list(self.reached[rung].items())[-max(RECENT, len(new)) :]
        ranked = sorted(recent, key=lambda result: -result[1])
        return [genotype for genotype, _ in ranked[: int(self.settings.keep * len(recent))] if genotype in new]

    def _afford(self, genotype: Genotype, rung: int) -> bool:
        """Pay for a training, if it was not paid before and the budget allows it."""
        if genotype in self.paid[rung]:
            return True
        samples = sum(len(fold.train) for fold in self.alone.folds)
        epochs = self.alone.epochs(self.settings.fidelities[rung - 1])
        price = 3.0 * self.alone.space.macs(genotype) * samples * epochs  # a backward pass costs two forward ones
        if self.settings.budget is not None and self.spent + price > self.settings.budget:
            return False
        self.spent += price
        self.paid[rung][genotype] = None
        return True

    def _pairs(self) -> list[NDArray[np.float64]]:
        """For each rung but the last, what architectures got there that reached the next, and what they got there."""
        found = []
        for lower, upper in pairwise(self.reached):
            both = [(quality, upper[genotype]) for genotype, quality in lower.items() if genotype in upper]
            found.append(np.array(both[-RECENT:]))
        return found


def translate(quality: float, pairs: Sequence[NDArray[np.float64]]) -> float:
    """What the cheap score would say to a quality of a rung, by the pairs of each rung up to it and the one below."""
    for each in reversed(pairs):
        quality = on_lower_scale(each, quality)
    return quality


def on_lower_scale(pairs: NDArray[np.float64], x: float) -> float:
    """A quality of a rung on the scale of the one below, by (lower, upper) pairs of what reached both.

    By the line between their log-odds, in which no quality leaves [0, 1], that gives the upper ones the mean and the
    spread of the lower ones. A regression would not do: the less a cheap score knows, the closer together it would draw
    what training tells apart. The slope is drawn towards 1 as by two further pairs of the usual spread, so that few
    pairs shift alone.
    """
    if len(pairs) == 0:
        return x
    pairs, x = logit(np.clip(pairs, EDGE, 1 - EDGE)), float(logit(np.clip(x, EDGE, 1 - EDGE)))
    (lower, upper), apart = pairs.mean(axis=0), pairs - pairs.mean(axis=0)
    prior = 2 * max(apart[:, 1].var(), 1e-4)
    below, above = (apart**2).sum(axis=0) + prior
    return float(expit(lower + np.sqrt(below / above) * (x - upper)))
