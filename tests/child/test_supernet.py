"""Shared weights: a path is the fixed network, beginnings are shared, and scoring leaves no trace."""

import io
import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from child.cost import CostModel
from child.expressivity import expressivity
from child.macro import MacroSpace
from child.nasbench201 import NASBench201Space
from child.recurrent import RecurrentSpace
from child.space import Genotype, NetworkSpace, derive_seed
from child.supernet import Score, Statistics, SupernetEvaluator, batch_statistics
from child.task import Task
from child.training import TrainingError, TrainingSettings

every_statistics = pytest.mark.parametrize("statistics", get_args(Statistics))


# The network.


def fixed_from(space: NetworkSpace, supernet: nn.Module, genotype: Genotype) -> nn.Module:
    fixed = space.network(genotype)
    fixed.load_state_dict(space.weights(genotype, supernet.state_dict()))
    return fixed


@pytest.mark.parametrize("mode", ["train", "eval", "batch statistics"])
def test_a_path_equals_the_fixed_network_with_copied_weights(
    network_space: NetworkSpace,
    inputs_of: Callable[..., Tensor],
    unsettle: Callable[[nn.Module], None],
    mode: str,
) -> None:
    torch.manual_seed(0)
    supernet = network_space.network()
    unsettle(supernet)
    inputs = inputs_of(network_space)
    outputs = []
    for genotype in network_space.sample(np.random.default_rng(2), 8):
        fixed = fixed_from(network_space, supernet, genotype)
        found = []
        for network, arguments in ((supernet, (inputs, genotype)), (fixed, (inputs,))):
            network.train(mode == "train")
            torch.manual_seed(4)  # the same dropout
            with batch_statistics(network) if mode == "batch statistics" else nullcontext():
                found.append(network(*arguments))
        torch.testing.assert_close(found[0], found[1])
        outputs.append(found[0])
        if mode != "train":
            continue
        # Both learn alike, what is not in the fixed network does not learn, and both gather the same statistics.
        shared, alone = (
            dict(zip(network.parameters(), torch.autograd.grad(
                logits.square().sum(), list(network.parameters()), allow_unused=True, materialize_grads=True
            ), strict=True))
            for logits, network in zip(found, (supernet, fixed), strict=True)
        )  # fmt: skip
        named = {name: shared[weight] for name, weight in supernet.named_parameters(remove_duplicate=False)}
        taken = network_space.weights(genotype, supernet.state_dict() | named)
        sums: dict[int, list[Tensor]] = {}  # what several places share learns from all of them
        for name, weight in fixed.named_parameters():
            sums.setdefault(taken[name].data_ptr(), [taken[name]]).append(alone[weight])
        for gradient, *parts in sums.values():
            torch.testing.assert_close(gradient, torch.stack(parts).sum(dim=0), atol=1e-4, rtol=1e-4)
            gradient.zero_()  # of the supernet's own, of which it is a view
        assert not any(gradient.any() for gradient in shared.values())
        taken = network_space.weights(genotype, supernet.state_dict())
        for name, value in fixed.state_dict().items():
            torch.testing.assert_close(taken[name], value)
    assert all(not torch.allclose(outputs[0], other) for other in outputs[1:])


@pytest.mark.parametrize("mode", ["eval", "batch statistics"])
def test_many_together_equal_one_by_one(
    network_space: NetworkSpace,
    inputs_of: Callable[..., Tensor],
    unsettle: Callable[[nn.Module], None],
    mode: str,
) -> None:
    supernet: Any = network_space.network().eval()
    unsettle(supernet)
    inputs = inputs_of(network_space)
    some = network_space.sample(np.random.default_rng(0), 6)
    genotypes = [*some, some[0], *network_space.neighbors(some[1]), some[2]]
    with torch.no_grad(), batch_statistics(supernet) if mode == "batch statistics" else nullcontext():
        together = supernet.forward_many(inputs, genotypes)
        assert len(together) == len(genotypes)
        for genotype, logits in zip(genotypes, together, strict=True):
            torch.testing.assert_close(logits, supernet(inputs, genotype))


def count_calls(network: nn.Module, names: Sequence[str], run: Callable[[], object]) -> dict[str, int]:
    """How often the modules of these names are called."""
    calls: Counter[str] = Counter()
    handles = [
        module.register_forward_hook(lambda _module, _inputs, _outputs, key=name: calls.update([key]))
        for name, module in network.named_modules()
        if name in names
    ]
    run()
    for handle in handles:
        handle.remove()
    return dict(calls)


@pytest.mark.parametrize(("spoil", "told"), [
    (lambda outputs: outputs[:-1], "forward_many gives 7 outputs for 8 architectures"),
    (lambda outputs: [outputs[0]] * len(outputs), "it gives the same for 8 different architectures"),
    (lambda outputs: [each[:, :-1] for each in outputs], "it gives 2 outputs, and 3 are needed"),
    (lambda outputs: [outputs[0][:, :-1], *outputs[1:]], "stack expects each tensor to be equal size"),
    (lambda outputs: None, "NoneType"),
])  # fmt: skip
def test_a_supernet_that_does_not_answer_for_several_is_named_before_it_is_trained(
    spoil: Any, told: str, make_evaluator: Callable[..., SupernetEvaluator], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = make_evaluator()
    evaluator.check_supernet()
    network = type(evaluator.network)
    many = network.forward_many
    monkeypatch.setattr(network, "forward_many", lambda self, x, genotypes: spoil(many(self, x, genotypes)))
    with pytest.raises(ValueError, match=f"^the supernet of macro: does not fit the task .*{told}"):
        evaluator.check_supernet()


def test_equal_architectures_are_run_once(network_space: NetworkSpace, inputs_of: Callable[..., Tensor]) -> None:
    supernet: Any = network_space.network().eval()
    inputs = inputs_of(network_space)
    genotype = network_space.sample(np.random.default_rng(0), 1)[0]
    with FlopCounterMode(display=False) as alone:
        supernet(inputs, genotype)
    with FlopCounterMode(display=False) as together:
        supernet.forward_many(inputs, [genotype] * 5)
    assert together.get_total_flops() == alone.get_total_flops() > 0


def test_architectures_that_begin_alike_share_the_beginning(
    macro: MacroSpace, inputs_of: Callable[..., Tensor]
) -> None:
    supernet: Any = macro.network().eval()
    genotypes = [
        macro.parse(text)
        for text in (
            "1:conv3 2:conv5 3:conv3",
            "1:conv3 2:conv5 3:conv3(1)",
            "1:conv3 2:maxpool3 3:conv3",
            "1:conv5 2:conv5 3:conv3",
        )
    ]
    names = ("stem", "operations.0.conv3", "operations.0.conv5", "operations.1.conv5", "operations.1.maxpool3",
             "operations.2.conv3", "norms.1")  # fmt: skip
    calls = count_calls(supernet, names, lambda: supernet.forward_many(inputs_of(macro), genotypes))
    # Layer 2 differs three times, counting what stands before it; layer 3 four times.
    assert list(map(calls.get, names)) == [1, 1, 1, 2, 1, 4, 3]


def test_a_shallow_architecture_shares_with_a_deeper_one(inputs_of: Callable[..., Tensor]) -> None:
    space = MacroSpace((3, 8, 8), 3, channels=8, num_layers=3, min_layers=1, num_reductions=0)
    supernet: Any = space.network().eval()
    genotypes = [space.parse(text) for text in ("1:conv3", "1:conv3 2:conv3", "1:conv3 2:conv3 3:conv3")]
    names = ("operations.0.conv3", "operations.1.conv3", "operations.2.conv3", "classifier")
    calls = count_calls(supernet, names, lambda: supernet.forward_many(inputs_of(space), genotypes))
    assert list(map(calls.get, names)) == [1, 1, 1, 3]


def test_batch_statistics_normalize_by_the_batch_and_leave_no_trace(fingerprint: Callable[[nn.Module], str]) -> None:
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.5))
    before = fingerprint(network)
    images = torch.randn(16, 2, 4, 4) * 3 + 5
    with batch_statistics(network):
        outputs = network(images)
    torch.testing.assert_close(outputs.mean(dim=(0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.std(dim=(0, 2, 3), correction=0), torch.ones(2), atol=1e-4, rtol=0)
    assert fingerprint(network) == before
    network.train()(images)
    assert fingerprint(network) != before  # training gathers them again


# The evaluator.


@pytest.fixture
def make_evaluator(macro: MacroSpace, task: Task, device: torch.device) -> Callable[..., SupernetEvaluator]:
    """Builds evaluators of the small task."""

    def make(
        statistics: Statistics = "batch", seed: int = 0, task: Task = task, num_steps: int = 60,
        score: Score = "metric", recalibration_batches: int = 2, **kept: int,
    ) -> SupernetEvaluator:  # fmt: skip
        cost = CostModel(macro, "macs", task.input_shape, device)
        settings = TrainingSettings(batch_size=16, learning_rate=0.05)
        return SupernetEvaluator(
            macro, task, cost, settings, num_steps, statistics, recalibration_batches, seed, device, score, **kept
        )

    return make


@pytest.fixture
def sampler(macro: MacroSpace) -> Callable[[int, int], list[Genotype]]:
    """Uniform, keyed by the step."""
    return lambda num, step: [macro.sample(np.random.default_rng(step + i), 1)[0] for i in range(num)]


Sample = Callable[[int, int], list[Genotype]]


def snapshot(evaluator: SupernetEvaluator) -> bytes:
    file = io.BytesIO()
    torch.save(evaluator.training.state_dict(), file)
    return file.getvalue()


@every_statistics
@pytest.mark.parametrize("fidelity", [0.5, 1.0])
def test_scores_are_a_function_of_weights_genotype_and_seed(
    make_evaluator: Callable[..., SupernetEvaluator], sampler: Sample, statistics: Statistics, fidelity: float
) -> None:
    evaluator = make_evaluator(statistics)
    evaluator.improve(sampler, 3)
    genotypes = sampler(5, 100)
    found = evaluator.evaluate(genotypes, fidelity, 7)
    torch.manual_seed(99)
    assert evaluator.evaluate(genotypes, fidelity, 7) == found
    assert evaluator.evaluate(genotypes[::-1], fidelity, 7) == found[::-1]
    assert [evaluator.evaluate([genotype], fidelity, 7)[0] for genotype in genotypes] == found
    assert [evaluation.genotype for evaluation in found] == genotypes
    assert {(evaluation.fidelity, evaluation.seed, evaluation.failure) for evaluation in found} == {(fidelity, 7, None)}
    assert [evaluation.cost for evaluation in found] == [evaluator.space.macs(genotype) for genotype in genotypes]


@every_statistics
def test_scoring_leaves_no_trace(
    make_evaluator: Callable[..., SupernetEvaluator],
    sampler: Sample,
    statistics: Statistics,
    fingerprint: Callable[[nn.Module], str],
) -> None:
    evaluator, twin = make_evaluator(statistics), make_evaluator(statistics)
    for one in (evaluator, twin):
        one.improve(sampler, 3)
    before, saved = fingerprint(evaluator.network), snapshot(evaluator)
    evaluator.evaluate(sampler(4, 50), 0.5, 1)
    assert fingerprint(evaluator.network) == before
    assert snapshot(evaluator) == saved
    norms = [part for part in evaluator.network.modules() if isinstance(part, nn.BatchNorm2d)]
    assert {(norm.momentum, norm.track_running_stats) for norm in norms} == {(0.1, True)}
    # And so training goes on as if nothing had been scored.
    assert evaluator.improve(sampler, 3) == twin.improve(sampler, 3)
    assert fingerprint(evaluator.network) == fingerprint(twin.network)


def test_a_failed_recalibration_leaves_no_trace(
    make_evaluator: Callable[..., SupernetEvaluator], sampler: Sample, fingerprint: Callable[[nn.Module], str]
) -> None:
    evaluator = make_evaluator("recalibrated")
    evaluator.improve(sampler, 3)
    before = fingerprint(evaluator.network)

    def forget(_module: nn.Module, _inputs: object) -> None:
        raise torch.OutOfMemoryError("injected")

    handle = evaluator.network.classifier.register_forward_pre_hook(forget)
    assert [evaluation.failure for evaluation in evaluator.evaluate(sampler(2, 0), 1.0, 0)] == ["out of memory"] * 2
    handle.remove()
    assert fingerprint(evaluator.network) == before
    norms = [part for part in evaluator.network.modules() if isinstance(part, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.1}


def test_recalibration_gathers_statistics_from_training_batches(
    make_evaluator: Callable[..., SupernetEvaluator], macro: MacroSpace, task: Task
) -> None:
    evaluator = make_evaluator("recalibrated", score="loss")
    genotype = macro.sample(np.random.default_rng(0), 1)[0]
    fixed = fixed_from(macro, evaluator.network, genotype)
    for norm in (part for part in fixed.modules() if isinstance(part, nn.BatchNorm2d)):
        norm.momentum = None
    fixed.train()
    for dropout in (part for part in fixed.modules() if isinstance(part, nn.Dropout)):
        dropout.eval()
    with torch.no_grad():
        drawn = task.train.draw(32, derive_seed(evaluator.seed, "recalibration")).inputs
        assert not torch.equal(drawn, task.train.inputs[:32])  # which may all be of one class
        for start in (0, 16):  # two batches of 16
            fixed(task.preprocessing(drawn[start : start + 16]))
        expected = fixed.eval()(task.preprocessing(task.validation.inputs))
    scores = evaluator._scores([genotype], task.validation)[0]
    assert isinstance(scores, Tensor)
    wanted = functional.cross_entropy(expected, task.validation.targets, reduction="none").double()
    torch.testing.assert_close(scores, wanted, atol=1e-4, rtol=1e-4)


@every_statistics
def test_quality_is_the_metric_on_validation_data(
    make_evaluator: Callable[..., SupernetEvaluator], task: Task, sampler: Sample, statistics: Statistics
) -> None:
    validation = task.validation.take([0, 1, 3, 6, 9, 12, 15, 18])  # seven of class 0, one of class 1
    evaluator = make_evaluator(statistics, task=task.with_splits(task.train, validation))
    for favorite, share in ((0, 7 / 8), (1, 1 / 8), (2, 0.0)):
        with torch.no_grad():
            evaluator.network.classifier.weight.zero_()
            evaluator.network.classifier.bias.zero_()
            evaluator.network.classifier.bias[favorite] = 1
        assert [evaluation.quality for evaluation in evaluator.evaluate(sampler(2, 0), 1.0, 0)] == [share] * 2


@every_statistics
def test_a_quality_by_loss_tells_apart_what_answers_equally_many_right(
    make_evaluator: Callable[..., SupernetEvaluator], task: Task, sampler: Sample, statistics: Statistics
) -> None:
    validation = task.validation.take([0, 1, 3, 6, 9, 12, 15, 18])  # seven of class 0, one of class 1
    evaluator = make_evaluator(statistics, task=task.with_splits(task.train, validation), score="loss")
    for sure in (0.0, 1.0, 2.0):
        with torch.no_grad():
            evaluator.network.classifier.weight.zero_()
            evaluator.network.classifier.bias.zero_()
            evaluator.network.classifier.bias[0] = sure
        nats = math.log(math.exp(sure) + 2) - sure * 7 / 8
        quality = 1 / (1 + nats / math.log(3))
        found = evaluator.evaluate(sampler(2, 0), 1.0, 0)
        assert [evaluation.quality for evaluation in found] == pytest.approx([quality] * 2, rel=1e-6)
        assert evaluator.standard_error(quality) == pytest.approx(quality * (1 - quality) / math.sqrt(8))


def test_fidelity_takes_its_share_of_the_validation_data(
    make_evaluator: Callable[..., SupernetEvaluator], task: Task, sampler: Sample
) -> None:
    evaluator = make_evaluator()
    seen: list[Tensor] = []
    evaluator.network.stem.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].clone()))

    def samples(fidelity: float, seed: int) -> list[tuple[float, ...]]:
        seen.clear()
        evaluator.evaluate(sampler(3, 0), fidelity, seed)
        return [tuple(row) for row in torch.cat(seen).flatten(1).tolist()]

    everything = {tuple(row) for row in task.preprocessing(task.validation.inputs).flatten(1).tolist()}
    assert len(everything) == 24
    assert set(samples(1.0, 0)) == everything
    # Data often lie sorted by class, and batches of one class have statistics of their own.
    assert samples(1.0, 0) != [tuple(row) for row in task.preprocessing(task.validation.inputs).flatten(1).tolist()]
    for fidelity, num in ((0.5, 12), (0.25, 6), (0.1, 2), (0.001, 2)):
        drawn = samples(fidelity, 0)
        assert len(drawn) == len(set(drawn)) == num
        assert set(drawn) <= everything
        assert drawn == samples(fidelity, 0)
    assert set(samples(0.5, 0)) != set(samples(0.5, 1))


def test_one_sample_left_over_does_not_upset_batch_statistics(task: Task, device: torch.device) -> None:
    # The last layers see one pixel: a batch of one sample has no statistics, and torch refuses it.
    space = MacroSpace((3, 8, 8), 3, channels=8, num_layers=4, num_reductions=3)
    task = replace(task, validation=task.validation.take(range(17)))
    settings = TrainingSettings(batch_size=16)
    cost = CostModel(space, "macs", task.input_shape, device)
    evaluator = SupernetEvaluator(space, task, cost, settings, 10, "batch", 2, 0, device)
    (evaluation,) = evaluator.evaluate(space.sample(np.random.default_rng(0), 1), 1.0, 0)
    assert evaluation.failure is None


@every_statistics
def test_shared_weights_learn(
    make_evaluator: Callable[..., SupernetEvaluator], sampler: Sample, statistics: Statistics
) -> None:
    evaluator = make_evaluator(statistics)
    genotypes = sampler(8, 500)
    before = np.mean([evaluation.quality for evaluation in evaluator.evaluate(genotypes, 1.0, 0)])
    losses = [evaluator.improve(sampler, 10).loss for _ in range(6)]
    after = np.mean([evaluation.quality for evaluation in evaluator.evaluate(genotypes, 1.0, 0)])
    assert losses[-1] < 0.6 * losses[0]
    assert after > max(before, 0.8)  # a guess is right once in three


def test_smoothed_labels_are_learned(make_evaluator: Callable[..., SupernetEvaluator], sampler: Sample) -> None:
    """The target's share is taken away at once: the first loss, before anything was learned, is another."""
    losses = []
    for smoothing in (0.0, 0.5):
        evaluator = make_evaluator("batch")
        evaluator.settings = replace(evaluator.settings, label_smoothing=smoothing)
        losses.append(evaluator.improve(sampler, 1).loss)
    assert abs(losses[0] - losses[1]) > 1e-3


def test_improve_asks_the_sampler_for_the_steps_to_come_and_trains_those_paths(
    make_evaluator: Callable[..., SupernetEvaluator], sampler: Sample
) -> None:
    evaluator = make_evaluator()
    asked, trained = [], []

    def asking(num: int, step: int) -> list[Genotype]:
        asked.append((num, step))
        return sampler(num, step)

    evaluator.network.register_forward_pre_hook(lambda _module, inputs: trained.append(inputs[1]))
    evaluator.improve(asking, 3)
    evaluator.improve(asking, 2)
    assert asked == [(3, 0), (2, 3)]
    assert trained == [*sampler(3, 0), *sampler(2, 3)]


def test_batches_that_were_skipped_are_counted_and_not_averaged(
    make_evaluator: Callable[..., SupernetEvaluator], sampler: Sample, macro: MacroSpace
) -> None:
    evaluator = make_evaluator()
    with torch.no_grad():
        evaluator.network.operations[0]["conv5"][0][0].weight.fill_(torch.nan)
    bad = macro.parse("1:conv5 2:conv3 3:conv3")
    good = macro.parse("1:conv3 2:conv3 3:conv3")
    improvement = evaluator.improve(lambda _num, _step: [good, bad, good, bad], 4)
    assert improvement.num_skipped == 2
    assert np.isfinite(improvement.loss)
    improvement = evaluator.improve(lambda _num, _step: [bad], 1)
    assert improvement.num_skipped == 1
    assert np.isnan(improvement.loss)


@every_statistics
def test_outputs_that_are_not_finite_are_a_failure(
    make_evaluator: Callable[..., SupernetEvaluator], macro: MacroSpace, statistics: Statistics
) -> None:
    evaluator = make_evaluator(statistics)
    with torch.no_grad():
        evaluator.network.operations[2]["conv5"][0][0].weight.fill_(torch.nan)
    bad, good = macro.parse("1:conv3 2:conv3 3:conv5"), macro.parse("1:conv3 2:conv3 3:conv3")
    found = evaluator.evaluate([bad, good, bad], 1.0, 0)
    assert [evaluation.failure for evaluation in found] == ["outputs not finite", None, "outputs not finite"]
    assert [evaluation.quality for evaluation in found[::2]] == [0.0, 0.0]
    assert found[0].cost == macro.macs(bad)
    assert found[1] == make_evaluator(statistics).evaluate([good], 1.0, 0)[0]


def no_memory(*given: Any) -> Any:
    """The error that PyTorch raises on the processor."""
    raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


def test_a_path_that_does_not_fit_is_left_out_of_the_training(
    make_evaluator: Callable[..., SupernetEvaluator], sampler: Sample
) -> None:
    evaluator = make_evaluator()
    drawn = sampler(6, 0)
    forward = evaluator.network.forward
    evaluator.network.forward = lambda x, path: no_memory() if path == drawn[2] else forward(x, path)
    improvement = evaluator.improve(lambda num, step: drawn, 6)
    assert improvement.num_skipped == 1 and np.isfinite(improvement.loss)
    assert evaluator.training.step_number == 6 and evaluator.training.num_skipped_in_a_row == 0
    evaluator.network.forward = no_memory
    with pytest.raises(TrainingError, match=r"memory ran out 5 times in a row; lower its batch size \(16\)"):
        evaluator.improve(sampler, 6)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, no_memory])
def test_without_enough_memory_they_are_scored_one_by_one(
    make_evaluator: Callable[..., SupernetEvaluator],
    sampler: Sample,
    monkeypatch: pytest.MonkeyPatch,
    error: Callable[[str], Exception],
    fingerprint: Callable[[nn.Module], str],
) -> None:
    evaluator = make_evaluator()
    genotypes = sampler(4, 0)
    assert len(set(genotypes)) == 4
    expected = evaluator.evaluate(genotypes, 1.0, 0)
    before = fingerprint(evaluator.network)
    original, sizes = evaluator.network.forward_many, []

    def hungry(x: Tensor, asked: Sequence[Genotype]) -> list[Tensor]:
        sizes.append(len(asked))
        if len(asked) > 1 or asked[0] == genotypes[2]:
            raise error("injected")  # or raises by itself
        return original(x, asked)

    monkeypatch.setattr(evaluator.network, "forward_many", hungry)
    found = evaluator.evaluate(genotypes, 1.0, 0)
    assert [evaluation.failure for evaluation in found] == [None, None, "out of memory", None]
    assert (found[2].quality, found[2].cost) == (0.0, expected[2].cost)
    assert [found[place] for place in (0, 1, 3)] == [expected[place] for place in (0, 1, 3)]
    assert max(sizes) == 4
    assert fingerprint(evaluator.network) == before
    norms = [part for part in evaluator.network.modules() if isinstance(part, nn.BatchNorm2d)]
    assert all(norm.track_running_stats for norm in norms)


@every_statistics
@pytest.mark.parametrize("score", ["metric", "loss"])
def test_copies_and_moments_each_score_a_part_of_the_samples(
    make_evaluator: Callable[..., SupernetEvaluator], sampler: Sample, statistics: Statistics, score: Score
) -> None:
    kept = make_evaluator(statistics, score=score, num_steps=24, copies=2, snapshots=3, snapshot_every=2)
    kept.improve(sampler, 9)
    kept.improve(sampler, 7)  # 8 steps each: moments after 4, 6 and 8
    genotypes, split = sampler(3, 300), kept.task.validation
    order = split.draw(len(split), derive_seed(kept.seed, "validation"))
    parts = [order.take(part) for part in torch.arange(len(split)).tensor_split(6)]
    found: list[list[Tensor]] = []
    for number, part in enumerate(parts):
        copy, moment = divmod(number, 3)
        lone = make_evaluator(statistics, score=score, num_steps=24, copies=2)
        lone.improve(sampler, 2 * (4 + 2 * moment))
        only = lone.copies[copy].network
        found.append(lone._judge(only, genotypes, part))
    scores = [torch.cat(each) for each in zip(*found, strict=True)]
    expected = [kept.judged.quality(each, order.targets) for each in scores]
    assert [each.quality for each in kept.evaluate(genotypes, 1.0, 0)] == expected
    assert len(set(expected)) > 1


def test_a_combined_score_is_the_mean_of_two_standard_scores(
    make_evaluator: Callable[..., SupernetEvaluator], sampler: Sample, macro: MacroSpace
) -> None:
    combined, by_loss = make_evaluator(score="combined"), make_evaluator(score="loss")
    for evaluator in (combined, by_loss):
        evaluator.improve(sampler, 8)
    genotypes, task = sampler(4, 50), combined.task
    images = task.preprocessing(task.train.draw(64, derive_seed(0, "expressivity")).inputs)

    def apart(genotype: Genotype) -> float:
        torch.manual_seed(derive_seed(0, "expressivity", "weights"))
        return expressivity(macro.network(genotype), images)

    known = macro.sample(np.random.default_rng(derive_seed(0, "references")), 64)
    losses = [each.quality for each in by_loss.evaluate(known, 1.0, 0)]
    columns = [(losses, [each.quality for each in by_loss.evaluate(genotypes, 1.0, 0)]),
               ([apart(each) for each in known], [apart(each) for each in genotypes])]  # fmt: skip
    standard = []
    for reference, values in columns:
        low, middle, high = np.quantile(reference, [0.25, 0.5, 0.75])
        standard.append(np.clip((np.array(values) - middle) / ((high - low) / 1.349), -4, 4))
    found = combined.evaluate(genotypes, 1.0, 0)
    assert [each.quality for each in found] == pytest.approx(ndtr(np.mean(standard, axis=0)))
    assert combined.evaluate(genotypes[::-1], 1.0, 5) == [each._replace(seed=5) for each in found[::-1]]
    # Its standard error is that of the loss, through the slope of the quality.
    step = by_loss.standard_error(float(np.median(losses)))
    slope = ndtr(np.mean([standard[0] + step / combined._loss_scale(1.0).width, standard[1]], axis=0))
    assert combined.standard_error(found[0].quality) == pytest.approx(slope[0] - found[0].quality, rel=0.2)


def test_a_combined_score_follows_the_shared_weights(
    make_evaluator: Callable[..., SupernetEvaluator], sampler: Sample
) -> None:
    evaluator, fresh = make_evaluator(score="combined"), make_evaluator(score="combined")
    genotypes = sampler(3, 50)
    before = evaluator.evaluate(genotypes, 0.5, 0)
    evaluator.improve(sampler, 5)
    after = evaluator.evaluate(genotypes, 0.5, 0)
    assert after != before
    fresh.load_state_dict(evaluator.state_dict())
    assert fresh.evaluate(genotypes, 0.5, 0) == after


def test_what_a_combined_score_is_measured_against_is_scored_again_now_and_then(
    make_evaluator: Callable[..., SupernetEvaluator], sampler: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("child.supernet.SCALE_STEPS", 4)
    evaluator, resumed = make_evaluator(score="combined"), make_evaluator(score="combined")
    scales = []
    for num_steps in (0, 3, 1):
        evaluator.improve(sampler, num_steps)
        resumed.load_state_dict(evaluator.state_dict())
        evaluator.evaluate(sampler(1, 50), 0.5, 0)
        scales.append(evaluator._loss_scale(0.5))
        assert resumed._loss_scale(0.5) == scales[-1]
    assert scales[0] == scales[1] != scales[2]
    assert evaluator._loss_scale(1.0) not in scales  # of other samples


def test_a_combined_score_needs_rectified_units(task: Task, device: torch.device) -> None:
    space = RecurrentSpace((9,), 7, num_nodes=3, width=8, context=3)
    cost = CostModel(space, "macs", (9,), device)
    with pytest.raises(ValueError, match=r"networks of space 'recurrent' have none; set evaluator\.score=loss"):
        SupernetEvaluator(space, task, cost, TrainingSettings(), 1, "batch", 2, 0, device, "combined")


def test_copies_are_trained_in_turn(make_evaluator: Callable[..., SupernetEvaluator], sampler: Sample) -> None:
    evaluator = make_evaluator(num_steps=7, copies=3)
    trained: list[tuple[int, Genotype]] = []
    for number, copy in enumerate(evaluator.copies):
        copy.network.register_forward_pre_hook(
            lambda _module, inputs, number=number: trained.append((number, inputs[1]))
        )
    evaluator.improve(sampler, 2)
    evaluator.improve(sampler, 5)
    assert trained == [(step % 3, path) for step, path in enumerate([*sampler(2, 0), *sampler(5, 2)])]
    assert {copy.training.num_steps for copy in evaluator.copies} == {3}


@pytest.mark.parametrize(
    "wrong", [{"copies": 0}, {"snapshots": 0}, {"snapshot_every": 0}, {"recalibration_batches": 0}]
)
def test_fewer_than_one_of_anything_is_refused(
    make_evaluator: Callable[..., SupernetEvaluator], wrong: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match="snapshot_every and recalibration_batches of at least 1, got"):
        make_evaluator(**wrong)


def test_moments_that_would_not_come_are_refused(make_evaluator: Callable[..., SupernetEvaluator]) -> None:
    make_evaluator(num_steps=14, copies=2, snapshots=3, snapshot_every=3)
    make_evaluator(num_steps=0)  # one snapshot is the weights as they are
    with pytest.raises(ValueError, match="3 snapshots that lie snapshot_every=3 steps apart need more than the 6"):
        make_evaluator(num_steps=12, copies=2, snapshots=3, snapshot_every=3)


def test_what_untrained_networks_are_to_tell_apart_is_different(
    make_evaluator: Callable[..., SupernetEvaluator],
) -> None:
    evaluator = make_evaluator(score="combined")
    drawn = evaluator._samples.clone()
    train = evaluator.task.train.inputs
    train[: len(train) // 2] = train[0]
    again = make_evaluator(score="combined")._samples
    assert len(again.flatten(1).unique(dim=0)) == len(again) >= min(len(drawn), len(train) // 2)


def test_more_copies_than_validation_samples_are_refused(make_evaluator: Callable[..., SupernetEvaluator]) -> None:
    with pytest.raises(ValueError, match="validation samples, got 1000000000000000 copies"):
        make_evaluator(copies=10**15)


@pytest.mark.parametrize(
    "kept",
    [{"copies": 3}, {"copies": 2, "snapshots": 3, "snapshot_every": 1}, {"snapshots": 9, "snapshot_every": 1}],
    ids=str,
)
def test_every_part_has_two_samples(
    make_evaluator: Callable[..., SupernetEvaluator], sampler: Sample, kept: Any
) -> None:
    """One alone has no statistics where an image ends as a single position, and poor ones elsewhere."""
    evaluator, parts = make_evaluator(**kept), []
    evaluator.improve(sampler, 12)
    judge = evaluator._judge
    evaluator._judge = lambda network, genotypes, part: parts.append(len(part)) or judge(network, genotypes, part)  # type: ignore[method-assign]
    for num in (1, 2, 3, 5, 8):
        parts.clear()
        evaluator.evaluate(sampler(1, 0), num / len(evaluator.task.validation), 0)
        assert min(parts) >= 2 and sum(parts) == max(2, num)


def test_where_samples_are_few_the_newest_moment_scores(
    make_evaluator: Callable[..., SupernetEvaluator], sampler: Sample
) -> None:
    kept, without = make_evaluator(score="loss", snapshots=3, snapshot_every=1), make_evaluator(score="loss")
    for evaluator in (kept, without):
        evaluator.improve(sampler, 4)
    few = 2 / len(kept.task.validation)
    assert kept.evaluate(sampler(2, 0), few, 0) == without.evaluate(sampler(2, 0), few, 0)


def test_several_copies_have_no_relaxation(make_evaluator: Callable[..., SupernetEvaluator]) -> None:
    evaluator = make_evaluator(copies=2)
    evaluator.space = NASBench201Space(evaluator.task.input_shape, evaluator.task.num_outputs)
    assert evaluator.relaxation(lambda loss, cost: loss) is None
    evaluator.copies = evaluator.copies[:1]
    assert evaluator.relaxation(lambda loss, cost: loss) is not None


@pytest.mark.parametrize("kept", [{}, {"copies": 3}, {"copies": 2, "snapshots": 2, "snapshot_every": 1}], ids=str)
def test_the_state_goes_round(
    make_evaluator: Callable[..., SupernetEvaluator],
    sampler: Sample,
    fingerprint: Callable[[nn.Module], str],
    kept: dict[str, int],
) -> None:
    first = make_evaluator(seed=0, **kept)
    first.cost.unit = "latency_ms"
    first.improve(sampler, 4)
    genotypes = sampler(3, 200)
    scored = first.evaluate(genotypes, 0.5, 0)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)

    second = make_evaluator(seed=0, **kept)
    assert fingerprint(second.network) != fingerprint(first.network)
    second.cost.unit = "latency_ms"
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.evaluate(genotypes, 0.5, 0) == scored  # the latencies too
    assert second.improve(sampler, 4) == first.improve(sampler, 4)
    assert second.evaluate(genotypes, 1.0, 1) == first.evaluate(genotypes, 1.0, 1)
    for one, other in zip(second.copies, first.copies, strict=True):
        assert fingerprint(one.network) == fingerprint(other.network)


def test_the_seed_decides_the_first_weights(
    make_evaluator: Callable[..., SupernetEvaluator], fingerprint: Callable[[nn.Module], str]
) -> None:
    prints = [fingerprint(make_evaluator(seed=seed).network) for seed in (0, 1, 0)]
    assert prints[0] == prints[2] != prints[1]
    copies = [fingerprint(copy.network) for copy in make_evaluator(seed=0, copies=3).copies]
    assert copies[0] == prints[0] and len(set(copies)) == 3
