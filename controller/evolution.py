"""Strategies that vary what they have seen: local search, a genetic algorithm, regularized evolution.

All of them take a reward that is not finite for the worst there is. Every draw follows from (seed, round), so that
what they have seen is all their state.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from child.space import Genotype, SearchSpace, derive_seed
from controller.strategy import Rollout, Update, WholeStrategy

Scored = tuple[Genotype, float]


def scored(rollout: Rollout) -> list[Scored]:
    """The architectures of a rollout with their rewards, those that are not finite as -inf."""
    rewards = np.where(np.isfinite(rollout.rewards), rollout.rewards, -np.inf)
    return list(zip([e.genotype for e in rollout.evaluations], rewards.tolist(), strict=True))


def tournament(population: Sequence[Scored], size: int, rng: np.random.Generator) -> Genotype:
    """The best of `size` members drawn without replacement (of all, where there are fewer)."""
    drawn = rng.choice(len(population), min(size, len(population)), replace=False)
    return population[max(drawn.tolist(), key=lambda i: (population[i][1], -i))][0]


class _Varying(WholeStrategy):
    """A strategy whose state is a list of scored architectures, and a stream of draws keyed by the round."""

    def __init__(self, space: SearchSpace, seed: int):
        super().__init__(space, seed)
        self.population: list[Scored] = []

    def _rng(self, round_number: int) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.seed, self.name, "propose", round_number))

    def state_dict(self) -> dict[str, Any]:
        return {"population": [(genotype.tokens, reward) for genotype, reward in self.population]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.population = [(Genotype(self.space.name, tuple(tokens)), each) for tokens, each in state["population"]]


class RegularizedEvolution(_Varying):
    """Aging evolution (Real et al. 2019, algorithm 1): mutate the best of a sample, let the oldest die.

    Theirs draws the sample with replacement.

    Of more architectures in a round than there are members, all live until the next, so that each is in a tournament.

    Args:
        space: What is searched.
        seed: The run's seed.
        population: Members.
        sample: Members of a tournament.
    """

    name = "regularized_evolution"

    def __init__(self, space: SearchSpace, seed: int, population: int = 10, sample: int = 3):
        super().__init__(space, seed)
        if population < 1 or sample < 1:
            raise ValueError(f"population and sample must be at least 1, got {population} and {sample}")
        self.size, self.sample_size = population, sample

    def propose(self, num: int, round_number: int) -> list[Genotype]:
        rng = self._rng(round_number)
        if not self.population:
            return self.space.sample(rng, num)
        num_random = min(num, max(0, self.size - len(self.population)))
        found = self.space.sample(rng, num_random)
        for _ in range(num - num_random):
            found.append(self.space.mutate(tournament(self.population, self.sample_size, rng), rng))
        return found

    def learn(self, rollout: Rollout) -> Update:
        new = scored(rollout)
        self.population = (self.population + new)[-max(self.size, len(new)) :]
        return Update()


class Genetic(_Varying):
    """A genetic algorithm: parents by tournament, a child by crossover and mutation, the best survive.

    Args:
        space: What is searched.
        seed: The run's seed.
        population: Members that survive a round.
        tournament: Members from which each parent is the best.
        crossover: Chance that a child has two parents; otherwise it starts as a copy of one.
        mutation: Chance of each further mutation of a child, after none.
    """

    name = "genetic"

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        population: int = 20,
        tournament: int = 5,
        crossover: float = 0.5,
        mutation: float = 0.7,
    ):
        super().__init__(space, seed)
        if population < 2 or tournament < 1 or not 0 <= crossover <= 1 or not 0 <= mutation < 1:
            raise ValueError(
                f"genetic needs population >= 2, tournament >= 1, crossover in [0, 1] and mutation in [0, 1), got "
                f"{population}, {tournament}, {crossover} and {mutation}"
            )
        self.size, self.tournament_size = population, tournament
        self.crossover, self.mutation = crossover, mutation

    def propose(self, num: int, round_number: int) -> list[Genotype]:
        rng = self._rng(round_number)
        # A space may have fewer architectures than the population has places; by then most of them were drawn.
        growing = len(self.population) < self.size and round_number * num < 10 * self.size
        if growing or not self.population:
            return self.space.sample(rng, num)
        return [self._child(rng) for _ in range(num)]

    def _child(self, rng: np.random.Generator) -> Genotype:
        child = tournament(self.population, self.tournament_size, rng)
        if rng.random() < self.crossover:
            child = self.space.cross_over(child, tournament(self.population, self.tournament_size, rng), rng)
        while rng.random() < self.mutation:
            child = self.space.mutate(child, rng)
        return child

    def learn(self, rollout: Rollout) -> Update:
        """Keep the best; an architecture is a member once."""
        members = dict(reversed([*self.population, *scored(rollout)]))  # of one scored twice, the first score stays
        self.population = sorted(members.items(), key=lambda pair: (-pair[1], pair[0].tokens))[: self.size]
        return Update()


class LocalSearch(_Varying):
    """Greedy local search (White et al. 2021): go to the first better neighbor; start again where all were tried.

    Neighbors differ in one decision and are tried in an order drawn for each place. `population` holds the place where
    it stands, alone.
    """

    name = "local_search"

    def __init__(self, space: SearchSpace, seed: int):
        super().__init__(space, seed)
        self.seen: set[Genotype] = set()

    def propose(self, num: int, round_number: int) -> list[Genotype]:
        rng = self._rng(round_number)
        untried: list[Genotype] = []
        if self.population:
            neighbors = self.space.neighbors(self.population[0][0])
            untried = [each for each in neighbors if each not in self.seen]
            untried = [untried[i] for i in rng.permutation(len(untried))[:num]]
        if not untried:
            self.population = []  # a summit: start again
        return untried + self.space.sample(rng, num - len(untried))

    def learn(self, rollout: Rollout) -> Update:
        self.seen.update(evaluation.genotype for evaluation in rollout.evaluations)
        for genotype, reward in scored(rollout):
            if not self.population or reward > self.population[0][1]:
                self.population = [(genotype, reward)]
        return Update()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seen": sorted(genotype.tokens for genotype in self.seen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.seen = {Genotype(self.space.name, tuple(tokens)) for tokens in state["seen"]}
