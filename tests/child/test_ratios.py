"""The search of pruning ratios: a space without networks of its own, and an evaluator that trains nothing."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from child.cost import count_macs
from child.prune import (
    Group,
    PruneSettings,
    find_groups,
    gather_statistics,
    keep_shares,
    remove_units,
    score_units,
)
from child.ratios import PruningEvaluator, RatioSpace
from child.resnet import ResNet
from child.space import NetworkSpace, derive_seed
from child.task import Task
from child.training import FineTuning, grade

GROUPS = [Group("stem", 8, 1), Group("body.0", 12, 2)]


@pytest.fixture
def space() -> RatioSpace:
    return RatioSpace(GROUPS, (0.0, 0.25, 0.5))


def test_a_decision_for_every_group(space: RatioSpace) -> None:
    assert not isinstance(space, NetworkSpace)
    genotype = space.genotype((0, 2))
    assert space.text(genotype) == "stem=0 body.0=0.5" and space.parse(space.text(genotype)) == genotype
    assert space.shares(genotype) == {"stem": 1.0, "body.0": 0.5}
    assert space.shares(space.genotype((1, 2)), 2.0) == {"stem": 0.75**2, "body.0": 0.25}
    assert space.shares(space.genotype((1, 2)), 0.0) == {"stem": 1.0, "body.0": 1.0}


@pytest.mark.parametrize("ratios", [(0.5,), (0.5, 0.25), (0.0, 1.0), (-0.1, 0.5), (0.1, 0.1)])
def test_ratios_that_are_none_are_refused(ratios: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"prune.choices are two or more ascending shares in \[0, 1\), got"):
        PruneSettings(FineTuning(1, 0.1), choices=ratios)


def test_an_evaluation_is_that_of_what_is_left(
    task: Task, device: torch.device, fingerprint: Callable[[nn.Module], str]
) -> None:
    torch.manual_seed(0)
    module = ResNet((3, 8, 8), 3, 8)
    groups = find_groups(module, (3, 8, 8))
    scores = score_units(module, (3, 8, 8), groups, "magnitude")
    space = RatioSpace(groups, (0.0, 0.5))
    cost = partial(count_macs, input_shape=(3, 8, 8))
    evaluator = PruningEvaluator(module, space, scores, task, cost, 0.0, 1, 16, 2, seed=5, device=device)
    before = fingerprint(module)
    chosen = [space.genotype([place % 2 for place in range(6)]), space.genotype([1] * 6), space.genotype([0] * 6)]
    found = evaluator.evaluate(chosen, 1.0, seed=3)
    assert fingerprint(module) == before
    again = evaluator.evaluate(chosen, 1.0, seed=4)  # of all of the data the seed draws nothing
    assert [(e.quality, e.cost) for e in found] == [(e.quality, e.cost) for e in again]
    assert evaluator.evaluate(chosen[:1], 0.5, 3)[0] == evaluator.evaluate(chosen, 0.5, 3)[0]
    halves = [evaluator.evaluate(chosen[2:], 0.5, seed)[0].quality for seed in range(8)]
    drawn = [task.validation.draw(12, derive_seed(seed, "validation")) for seed in range(8)]
    whole = evaluator.left(chosen[2])
    gather_statistics(whole, task, 2, 16, 5)
    assert halves == [task.quality(grade(whole, task, split, 16, device), split.targets) for split in drawn]
    assert len(set(halves)) > 1
    for genotype, evaluation in zip(chosen, found, strict=True):
        kept = keep_shares(groups, {g.name: 1 - 0.5 * t for g, t in zip(groups, genotype.tokens, strict=True)})
        left = remove_units(module, (3, 8, 8), groups, scores, kept)
        gather_statistics(left, task, 2, 16, 5)
        graded = grade(left, task, task.validation, 16, device)
        assert evaluation.quality == task.quality(graded, task.validation.targets)
        assert evaluation.cost == count_macs(left, (3, 8, 8)) and evaluation.failure is None
    assert found[2].cost == count_macs(module, (3, 8, 8)) > found[0].cost > found[1].cost
    assert evaluator.improve(lambda num, step: [], 3) is None and evaluator.state_dict() == {}
