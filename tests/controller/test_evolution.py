"""Local search, the genetic algorithm and regularized evolution, each against what its definition says."""

from typing import Any

import numpy as np
import pytest

from child.space import Evaluation, Genotype, derive_seed
from controller.evolution import Genetic, LocalSearch, RegularizedEvolution, tournament
from controller.strategy import Rollout, WholeStrategy


def flat(*tokens: int) -> Genotype:
    return Genotype("flat", tokens)


def tell(strategy: WholeStrategy, genotypes: list[Genotype], rewards: list[float]) -> None:
    tokens = np.array([genotype.tokens for genotype in genotypes])
    evaluations = [Evaluation(g, 0.5, 1.0, 1.0, 0) for g in genotypes]
    strategy.learn(Rollout(tokens, np.array(strategy.space.masks(tokens)), np.array(rewards), evaluations))


def distance(first: Genotype, second: Genotype) -> int:
    return sum(a != b for a, b in zip(first.tokens, second.tokens, strict=True))


def test_a_tournament_of_all_is_won_by_the_best() -> None:
    population = [(flat(i), float(reward)) for i, reward in enumerate([3, 9, 1, 7])]
    rng = np.random.default_rng(0)
    assert {tournament(population, 4, rng) for _ in range(20)} == {flat(1)}
    assert {tournament(population, 9, rng) for _ in range(5)} == {flat(1)}
    wins = [tournament(population, 2, rng) for _ in range(3000)]
    # Of the six pairs the best wins three, the second two, the third one, the last none.
    shares = [wins.count(flat(i)) / 3000 for i in range(4)]
    assert shares == pytest.approx([1 / 6, 3 / 6, 0, 2 / 6], abs=0.03)


def test_evolution_mutates_the_best_and_forgets_the_oldest(known: Any) -> None:
    strategy = RegularizedEvolution(known.FlatSpace(4, 3), 0, population=3, sample=3)
    assert len(strategy.propose(5, 0)) == 5
    old, best, other = flat(0, 0, 0, 0), flat(1, 1, 1, 1), flat(2, 2, 2, 2)
    tell(strategy, [old, best, other], [0.1, 0.9, 0.2])
    assert all(distance(child, best) == 1 for child in strategy.propose(20, 1))
    tell(strategy, [flat(0, 1, 2, 0)], [0.3])
    assert [genotype for genotype, _ in strategy.population] == [best, other, flat(0, 1, 2, 0)]
    tell(strategy, [flat(0, 1, 2, 1)], [float("nan")])
    assert best not in dict(strategy.population)  # it died of age, though none was better
    assert all(distance(child, flat(0, 1, 2, 0)) == 1 for child in strategy.propose(20, 2))


def test_evolution_lets_nobody_die_unseen(known: Any) -> None:
    """Rounds of more than there are members: the first is random, and the best of each has children."""
    space = known.FlatSpace(4, 3)
    strategy = RegularizedEvolution(space, 0, population=3, sample=8)
    first = strategy.propose(8, 0)
    assert first == space.sample(np.random.default_rng(derive_seed(0, strategy.name, "propose", 0)), 8)
    tell(strategy, first, [0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    assert all(distance(child, first[0]) == 1 for child in strategy.propose(20, 1))
    tell(strategy, [flat(0, 1, 2, 0)], [0.3])
    assert len(strategy.population) == 3


def test_genetic_children_come_from_the_best(known: Any) -> None:
    space = known.FlatSpace(6, 3)
    parents = [flat(*[0] * 6), flat(*[1] * 6)]
    crossing = Genetic(space, 0, population=2, tournament=1, crossover=1.0, mutation=0.0)
    tell(crossing, [*parents, flat(*[2] * 6)], [0.9, 0.8, 0.1])  # the third does not survive
    children = crossing.propose(200, 1)
    assert all(set(child.tokens) <= {0, 1} for child in children)
    assert len(set(children)) > 20
    copying = Genetic(space, 0, population=2, tournament=2, crossover=0.0, mutation=0.0)
    tell(copying, parents, [0.9, 0.8])
    assert set(copying.propose(20, 1)) == {parents[0]}
    tell(copying, [parents[1]], [0.99])  # a member once, with its first score
    assert copying.population == [(parents[0], 0.9), (parents[1], 0.8)]


def test_a_population_larger_than_the_space_does_not_stay_random(known: Any) -> None:
    space = known.FlatSpace(2, 3)
    strategy = Genetic(space, 0, population=20, tournament=9, crossover=0.0, mutation=0.0)
    for round_number in range(25):
        proposed = strategy.propose(8, round_number)
        assert proposed == space.sample(strategy._rng(round_number), 8)
        tell(strategy, proposed, [sum(each.tokens) / 4 for each in proposed])
    assert len(strategy.population) == 9
    assert len(set(strategy.propose(200, 25))) < 9  # copies of winners, hardly ever of the worst


def test_local_search_climbs_to_a_summit_and_starts_again(known: Any) -> None:
    space = known.FlatSpace(3, 3)
    strategy = LocalSearch(space, 0)
    tell(strategy, [flat(0, 0, 0)], [0.5])
    tried = []
    for round_number in range(6):  # none of the six neighbors is better
        (proposed,) = strategy.propose(1, round_number)
        assert distance(proposed, flat(0, 0, 0)) == 1
        tried.append(proposed)
        tell(strategy, [proposed], [0.1])
    assert set(tried) == set(space.neighbors(flat(0, 0, 0)))
    (start,) = strategy.propose(1, 6)
    tell(strategy, [start], [0.2])  # worse than the first summit, but where the search now stands
    assert strategy.population == [(start, 0.2)]
    (step,) = strategy.propose(1, 7)
    assert distance(step, start) == 1
    tell(strategy, [step], [0.3])
    assert strategy.population == [(step, 0.3)]


@pytest.mark.parametrize("make", [LocalSearch, Genetic, RegularizedEvolution])
def test_they_solve_what_local_steps_can_solve(make: Any, known: Any) -> None:
    """Reward: how many decisions are right. Found within 600 of 4,096 architectures, in every one of five seeds."""
    space = known.FlatSpace(6, 4)
    for seed in range(5):
        target = space.sample(np.random.default_rng(seed), 1)[0]
        strategy, best = make(space, seed), 0
        for round_number in range(600):
            proposed = strategy.propose(1, round_number)
            rewards = [6.0 - distance(genotype, target) for genotype in proposed]
            best = max(best, *rewards)
            tell(strategy, proposed, rewards)
        assert best == 6
