"""Training every architecture on its own: the folds, the store of what was found, and failures."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from child import standalone as module
from child.cost import CostModel
from child.macro import MacroSpace
from child.space import Genotype
from child.standalone import StandaloneEvaluator, StandaloneScore, folds_of
from child.task import Classification, Objective, Regression, Split, Task
from child.training import Training, TrainingSettings


def numbered(start: int, counts: tuple[int, ...]) -> Split:
    """Samples that carry their number as their value, so many of each class."""
    targets = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    values = torch.arange(start, start + len(targets), dtype=torch.uint8)
    return Split(values.view(-1, 1, 1, 1).expand(-1, 3, 8, 8), targets)


def numbers(split: Split) -> set[int]:
    found = split.inputs[:, 0, 0, 0].tolist()
    assert len(set(found)) == len(found)
    return set(found)


# Folds.


def test_one_fold_is_the_task_itself(task: Task) -> None:
    assert folds_of(task, 1, 0) == [task]


@pytest.mark.parametrize("num_folds", [2, 3, 5])
def test_folds_are_stratified_disjoint_and_cover_all(task: Task, num_folds: int) -> None:
    task = task.with_splits(numbered(0, (40, 20, 30)), numbered(90, (20, 10, 0)))
    folds = folds_of(task, num_folds, seed=3)
    assert len(folds) == num_folds
    held_out = [numbers(fold.validation) for fold in folds]
    assert sum(len(part) for part in held_out) == 120
    assert set().union(*held_out) == set(range(120))
    target_of = dict(zip(range(90), task.train.targets.tolist(), strict=True))
    target_of |= dict(zip(range(90, 120), task.validation.targets.tolist(), strict=True))
    for fold, part in zip(folds, held_out, strict=True):
        assert numbers(fold.train) == set(range(120)) - part
        counts = np.bincount(fold.validation.targets.numpy(), minlength=3)
        assert np.abs(counts - np.array([60, 30, 30]) / num_folds).max() < 1
        for split in (fold.train, fold.validation):  # samples keep their targets
            for value, target in zip(split.inputs[:, 0, 0, 0].tolist(), split.targets.tolist(), strict=True):
                assert target_of[value] == target
        assert fold.test is task.test


@pytest.mark.parametrize("objective", [Classification(("a", "b", "c")), Regression("y", 0.0, 1.0)])
def test_folds_are_drawn_by_the_seed_alone(objective: Objective, task: Task) -> None:
    def deal(seed: int) -> list[set[int]]:
        np.random.seed(1)
        torch.manual_seed(2)
        together = task.with_splits(numbered(0, (20, 20, 20)), numbered(60, (6, 6, 6)))
        together = replace(together, objective=objective)
        return [numbers(fold.validation) for fold in folds_of(together, 3, seed)]

    assert deal(0) == deal(0)
    assert deal(0) != deal(1)


# The evaluator.


@pytest.fixture
def make_evaluator(macro: MacroSpace, task: Task, device: torch.device) -> Callable[..., StandaloneEvaluator]:
    """Builds evaluators of the small task."""

    def make(
        folds: int = 1, seed: int = 0, task: Task = task, score: StandaloneScore = "metric", **settings: Any
    ) -> StandaloneEvaluator:
        cost = CostModel(macro, "macs", task.input_shape, device)
        chosen = TrainingSettings(**{"epochs": 2, "batch_size": 16, **settings})
        return StandaloneEvaluator(macro, task, cost, chosen, folds, seed, device, score)

    return make


@pytest.fixture
def genotypes(macro: MacroSpace) -> list[Genotype]:
    """Three architectures."""
    return macro.sample(np.random.default_rng(0), 3)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[Training]:
    """Every training that is begun."""
    begun: list[Training] = []

    class Noted(Training):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            begun.append(self)

    monkeypatch.setattr(module, "Training", Noted)
    return begun


Make = Callable[..., StandaloneEvaluator]


def test_it_measures_on_the_independent_validation_set(
    make_evaluator: Make, task: Task, genotypes: list[Genotype], trainings: list[Training]
) -> None:
    # Validation images are those of training with their targets turned round: who learns well is never right there.
    turned = Split(task.train.inputs, (task.train.targets + 1) % 3)
    honest = make_evaluator(task=task.with_splits(task.train, task.train), epochs=12)
    fooled = make_evaluator(task=task.with_splits(task.train, turned), epochs=12)
    assert honest.evaluate(genotypes[:1], 1.0, 0)[0].quality > 0.9
    assert fooled.evaluate(genotypes[:1], 1.0, 0)[0].quality < 0.1
    assert trainings[0].task.train.inputs.equal(task.train.inputs)


def test_quality_is_the_mean_over_the_folds(
    make_evaluator: Make, genotypes: list[Genotype], trainings: list[Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = make_evaluator(folds=3)
    measured: list[tuple[nn.Module, Split]] = []
    accuracies = iter([0.2, 0.6, 0.7])

    def grade(network: nn.Module, task: Task, split: Split, batch_size: int, device: torch.device) -> Tensor:
        measured.append((network, split))
        return torch.tensor(next(accuracies)).double().repeat(len(split))

    monkeypatch.setattr(module, "grade", grade)
    (evaluation,) = evaluator.evaluate(genotypes[:1], 1.0, 0)
    assert evaluation.quality == pytest.approx(0.5)
    num = sum(len(split) for _, split in measured)  # every sample was judged once
    assert evaluator.standard_error(0.5) == pytest.approx(0.5 / math.sqrt(num))
    assert len(trainings) == 3
    for training, (network, split), fold in zip(trainings, measured, evaluator.folds, strict=True):
        assert training.finished
        assert training.network is network
        assert training.task.train.inputs is fold.train.inputs
        assert split.inputs is fold.validation.inputs


def test_a_quality_by_loss_is_of_the_same_training(
    make_evaluator: Make, task: Task, genotypes: list[Genotype], trainings: list[Training]
) -> None:
    (by_metric,) = make_evaluator().evaluate(genotypes[:1], 1.0, 0)
    evaluator = make_evaluator(score="loss")
    (by_loss,) = evaluator.evaluate(genotypes[:1], 1.0, 0)
    networks = [training.network.eval() for training in trainings]
    for mine, theirs in zip(*(network.state_dict().values() for network in networks), strict=True):
        assert mine.equal(theirs)
    outputs = networks[1](task.preprocessing(task.validation.inputs))
    nats = nn.functional.cross_entropy(outputs, task.validation.targets).item()
    right = (outputs.argmax(dim=1) == task.validation.targets).double().mean().item()
    assert by_metric.quality == pytest.approx(right)
    for mine, theirs in zip(make_evaluator(folds=3, score="loss").folds, make_evaluator(folds=3).folds, strict=True):
        assert mine.validation.inputs.equal(theirs.validation.inputs)
    assert by_loss.quality == pytest.approx(1 / (1 + nats / math.log(3)), rel=1e-5)
    assert evaluator.standard_error(0.5) == pytest.approx(0.25 / math.sqrt(len(task.validation)))


def test_a_repeat_is_not_trained_again(
    make_evaluator: Make, genotypes: list[Genotype], trainings: list[Training], macro: MacroSpace
) -> None:
    evaluator = make_evaluator(epochs=4)
    first, second, _ = genotypes
    found = evaluator.evaluate([first, second, first], 1.0, 0)
    assert len(trainings) == 2
    assert found[0] == found[2]
    assert [evaluation.genotype for evaluation in found] == [first, second, first]
    assert [evaluation.cost for evaluation in found[:2]] == [macro.macs(first), macro.macs(second)]
    assert evaluator.evaluate([second, first], 1.0, 5) == [found[1], found[0]]
    assert len(trainings) == 2
    (half,) = evaluator.evaluate([first], 0.5, 0)  # another fidelity is another evaluation
    assert half.fidelity == 0.5
    assert [training.num_steps for training in trainings] == [4 * 3, 4 * 3, 2 * 3]


def test_a_fidelity_may_be_a_part_of_an_epoch(
    make_evaluator: Make, genotypes: list[Genotype], trainings: list[Training]
) -> None:
    evaluator = make_evaluator(epochs=4)
    for fidelity in (0.4, 0.01):  # of 12 steps, of which there is always one
        evaluator.evaluate(genotypes[:1], fidelity, 0)
    assert [training.num_steps for training in trainings] == [5, 1]
    assert evaluator.epochs(0.4) == pytest.approx(1.6)


def test_a_value_depends_on_the_seed_and_the_genotype_alone(
    make_evaluator: Make, genotypes: list[Genotype], trainings: list[Training]
) -> None:
    found = make_evaluator().evaluate(genotypes, 1.0, 0)
    torch.rand(7)
    assert make_evaluator().evaluate(genotypes[::-1], 1.0, 9) == found[::-1]
    make_evaluator(seed=1).evaluate(genotypes[:1], 1.0, 0)
    weights, again, other = (trainings[place].network.get_parameter("classifier.weight") for place in (0, 5, 6))
    assert weights.equal(again)
    assert not weights.equal(other)


def test_the_state_goes_round(make_evaluator: Make, genotypes: list[Genotype], trainings: list[Training]) -> None:
    first = make_evaluator()
    found = [*first.evaluate(genotypes[:2], 1.0, 0), *first.evaluate(genotypes[:1], 0.5, 0)]
    state = json.loads(json.dumps(first.state_dict()))  # plain data
    second = make_evaluator()
    second.load_state_dict(state)
    num = len(trainings)
    assert [*second.evaluate(genotypes[:2], 1.0, 0), *second.evaluate(genotypes[:1], 0.5, 0)] == found
    assert len(trainings) == num
    second.evaluate(genotypes[2:], 1.0, 0)
    assert len(trainings) == num + 1
    with pytest.raises(ValueError, match="it has qualities by metric, and they are to be by loss"):
        make_evaluator(score="loss").load_state_dict(state)


def test_what_was_trained_since_the_last_checkpoint_is_not_trained_again(
    make_evaluator: Make, genotypes: list[Genotype], trainings: list[Training], tmp_path: Path
) -> None:
    file = tmp_path / "checkpoints" / "trainings.jsonl"

    def evaluator() -> StandaloneEvaluator:
        found = make_evaluator()
        found.remember(file)
        return found

    first = evaluator().evaluate(genotypes, 1.0, 0)
    assert len(trainings) == 3
    again = evaluator()
    assert again.evaluate(genotypes, 1.0, 0) == first and len(trainings) == 3
    assert again.outcomes.keys() == {(genotype, 1.0) for genotype in genotypes}
    file.write_text(file.read_text()[:-3])  # killed while it wrote the last
    assert evaluator().evaluate(genotypes, 1.0, 0) == first and len(trainings) == 4
    assert evaluator().evaluate(genotypes, 1.0, 0) == first and len(trainings) == 4
    evaluator().evaluate(genotypes[:1], 0.5, 0)  # another length is another training
    assert len(trainings) == 5


def test_a_failing_candidate_does_not_stop_the_others(
    make_evaluator: Make, macro: MacroSpace, genotypes: list[Genotype], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = make_evaluator()
    original = macro.network

    def network(genotype: Genotype) -> nn.Module:
        if genotype == genotypes[0]:
            built = original(genotype)
            with torch.no_grad():
                next(built.parameters()).fill_(torch.nan)
            return built
        if genotype == genotypes[1]:
            raise torch.OutOfMemoryError("injected")
        return original(genotype)

    monkeypatch.setattr(macro, "network", network)
    # Five skipped steps in a row are needed before training gives up; two epochs have six steps.
    found = evaluator.evaluate(genotypes, 1.0, 0)
    assert [evaluation.failure for evaluation in found] == ["training was not finite", "out of memory", None]
    assert [evaluation.quality for evaluation in found[:2]] == [0.0, 0.0]
    assert [evaluation.cost for evaluation in found] == [macro.macs(genotype) for genotype in genotypes]
    monkeypatch.undo()
    again = make_evaluator()
    again.load_state_dict(evaluator.state_dict())
    assert again.evaluate(genotypes, 1.0, 0) == found  # a failure is remembered


def test_outputs_that_are_not_finite_are_a_failure_however_short_the_training(
    make_evaluator: Make, macro: MacroSpace, genotypes: list[Genotype], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = macro.network

    def network(genotype: Genotype) -> nn.Module:
        built = original(genotype)
        with torch.no_grad():
            next(built.parameters()).fill_(torch.nan)
        return built

    monkeypatch.setattr(macro, "network", network)
    (evaluation,) = make_evaluator(epochs=1).evaluate(genotypes[:1], 1.0, 0)  # three steps
    assert (evaluation.quality, evaluation.failure) == (0.0, "outputs not finite")


@pytest.mark.parametrize("folds", [1, 2])
def test_a_candidate_that_takes_too_long_is_given_up(
    make_evaluator: Make, genotypes: list[Genotype], monkeypatch: pytest.MonkeyPatch, folds: int
) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    evaluator = make_evaluator(folds=folds)
    evaluator.max_seconds = 25.0
    (evaluation,) = evaluator.evaluate(genotypes[:1], 1.0, 0)
    assert (evaluation.quality, evaluation.failure) == (0.0, "out of time: more than 25 s")
    assert next(clock) == 40  # three steps were looked at
    evaluator.max_seconds = 1e6
    assert evaluator.evaluate(genotypes[1:2], 1.0, 0)[0].failure is None  # and the search goes on


def test_a_plain_error_for_want_of_memory_is_a_failure_and_another_is_not(
    make_evaluator: Make, macro: MacroSpace, genotypes: list[Genotype], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = ["DefaultCPUAllocator: can't allocate memory"]

    def network(genotype: Genotype) -> nn.Module:
        raise RuntimeError(message[0])

    monkeypatch.setattr(macro, "network", network)
    assert make_evaluator().evaluate(genotypes[:1], 1.0, 0)[0].failure == "out of memory"
    message[0] = "shapes do not fit"
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        make_evaluator().evaluate(genotypes[:1], 1.0, 0)


def test_nothing_is_shared_and_so_nothing_improves(make_evaluator: Make) -> None:
    def sampler(num: int, step: int) -> list[Genotype]:
        raise AssertionError("nothing is to be drawn")

    assert make_evaluator().improve(sampler, 10) is None
