"""Blends of all architectures: they run the modules of the paths, cost what is drawn in the mean, and are learned."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from child.cost import CostModel
from child.micro import MicroSpace
from child.nasbench201 import EDGES, OPERATIONS, Cell, NASBench201Space
from child.space import Decision, Genotype, RelaxedSpace
from child.supernet import SupernetEvaluator, SupernetRelaxation, batch_statistics
from child.task import Regression, SealedSplit, Split, Task
from child.training import TrainingSettings


def one_hot(space: RelaxedSpace, genotype: Genotype) -> Tensor:
    choices = torch.zeros(space.full_masks.shape)
    choices[range(len(genotype.tokens)), list(genotype.tokens)] = 1
    return choices


def drawn(space: RelaxedSpace, seed: int = 0) -> Tensor:
    """Choice weights that are all different."""
    logits = torch.randn(space.full_masks.shape, generator=torch.Generator().manual_seed(seed))
    return logits.masked_fill(torch.from_numpy(space.full_masks) == 0, -torch.inf).softmax(dim=1)


# The network.


@pytest.mark.parametrize("mode", ["train", "eval", "batch statistics"])
@pytest.mark.parametrize("straight_through", [False, True])
def test_one_hot_choices_are_the_path(
    relaxed_space: RelaxedSpace,
    inputs_of: Callable[..., Tensor],
    unsettle: Callable[[nn.Module], None],
    mode: str,
    straight_through: bool,
) -> None:
    torch.manual_seed(0)
    supernet = relaxed_space.network()
    unsettle(supernet)
    inputs, before = inputs_of(relaxed_space), copy.deepcopy(supernet.state_dict())
    for genotype in relaxed_space.sample(np.random.default_rng(2), 8):
        choices = one_hot(relaxed_space, genotype)
        if straight_through:
            soft = drawn(relaxed_space).requires_grad_()
            choices = choices + (soft - soft.detach())
        found = []
        for path in (genotype, choices):
            supernet.load_state_dict(before)
            supernet.train(mode == "train")
            torch.manual_seed(4)  # the same dropout
            if mode == "batch statistics":
                with batch_statistics(supernet):
                    outputs = supernet(inputs, path)
            else:
                outputs = supernet(inputs, path)
            found.append((outputs, copy.deepcopy(supernet.state_dict())))
        assert torch.equal(found[0][0], found[1][0])
        for name, value in found[0][1].items():  # what is not on the path gathers no statistics either
            assert torch.equal(value, found[1][1][name])


def test_a_hard_sample_runs_its_path_alone_and_its_weights_have_a_gradient(
    relaxed_space: RelaxedSpace, inputs_of: Callable[..., Tensor]
) -> None:
    supernet, inputs = relaxed_space.network().train(), inputs_of(relaxed_space)
    calls: list[str] = []
    for name, module in supernet.named_modules():
        if name:
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    for genotype in relaxed_space.sample(np.random.default_rng(3), 5):
        choices = one_hot(relaxed_space, genotype).requires_grad_()
        ran = []
        for path in (genotype, choices):
            calls.clear()
            outputs = supernet(inputs, path)
            ran.append(sorted(calls))
        assert ran[0] == ran[1]
        (gradient,) = torch.autograd.grad(outputs.square().sum(), [choices], materialize_grads=True, allow_unused=True)
        if isinstance(relaxed_space, NASBench201Space):  # those that lie on no way to the output have none
            edges = relaxed_space.edges(genotype)
            steps = [EDGES.index((source, node)) for source, node, _ in edges]
        else:
            steps = list(range(len(genotype.tokens)))
        assert all(gradient[step, genotype.tokens[step]] != 0 for step in steps)


def test_every_choice_has_a_gradient(relaxed_space: RelaxedSpace, inputs_of: Callable[..., Tensor]) -> None:
    choices = drawn(relaxed_space).requires_grad_()
    outputs = relaxed_space.network().train()(inputs_of(relaxed_space), choices)
    (gradient,) = torch.autograd.grad(outputs.square().sum(), [choices])
    brings = relaxed_space.full_masks.copy()
    if isinstance(relaxed_space, NASBench201Space):
        brings[:, OPERATIONS.index("none")] = 0  # nothing, whatever its weight
    assert np.array_equal(gradient.numpy() != 0, brings == 1)


def test_the_blend_of_a_cell_of_nasbench201_by_hand() -> None:
    space = NASBench201Space((3, 8, 8), 3, channels=4, cells_per_stage=1)
    network: Any = space.network().eval()
    cell, choices, x = network.stages[0][0], drawn(space), torch.randn(2, 4, 8, 8)
    assert isinstance(cell, Cell)
    nodes = {0: x}
    for node in (1, 2, 3):
        nodes[node] = torch.zeros_like(x)
        for source in range(node):
            row = choices[EDGES.index((source, node))]
            for weight, name in zip(row[1:], OPERATIONS[1:], strict=True):
                nodes[node] = nodes[node] + weight * cell.operations[f"edge{source}{node}_{name}"](nodes[source])
    torch.testing.assert_close(cell(x, space.blend(choices)), nodes[3])


def test_the_blend_of_a_micro_cell_by_hand() -> None:
    space = MicroSpace((3, 8, 8), 3, channels=4, num_nodes=2, num_cells=1)
    network, choices = space.network().eval(), drawn(space)
    x, y = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    cell: Any = network.cells[0]
    states = [x, y]
    for node in (0, 1):
        total = torch.zeros_like(x)
        for side, (source, name) in itertools.product((0, 1), itertools.product(range(node + 2), space.operations)):
            read, run = choices[4 * node + side, source], choices[4 * node + 2 + side, space.operations.index(name)]
            total = total + read * run * cell.branches[f"{node + 2}{'ab'[side]}_{source}_{name}"](states[source])
        states.append(total)
    # Inputs may be read by four branches, the first node by the two of the second, the second by none.
    unread = [(1 - choices[[0, 1, 4, 5], end]).prod() for end in (0, 1)]
    unread += [(1 - choices[[4, 5], 2]).prod(), torch.tensor(1.0)]
    ends = [weight * cell.projections[str(end)](states[end].relu()) for end, weight in enumerate(unread)]
    torch.testing.assert_close(cell(x, y, space.blends(choices)[0]), cell.norm(sum(ends)))


# The cost.


@pytest.mark.parametrize("unit", ["macs", "parameters"])
def test_the_expected_cost_of_one_architecture_is_its_cost(relaxed_space: RelaxedSpace, unit: Any) -> None:
    for genotype in relaxed_space.sample(np.random.default_rng(1), 30):
        found = relaxed_space.expected_cost(one_hot(relaxed_space, genotype), unit)
        assert found.item() == getattr(relaxed_space, unit)(genotype)


@pytest.mark.parametrize("unit", ["macs", "parameters"])
def test_the_expected_cost_is_the_mean_over_all_that_may_be_drawn(relaxed_space: RelaxedSpace, unit: Any) -> None:
    rng = np.random.default_rng(5)
    for seed in range(2):
        choices = drawn(relaxed_space, seed).double()
        # Few enough to be listed: two or three choices of some decisions, one of all others.
        wide = set(rng.permutation(len(choices))[:5].tolist())
        for step, decision in enumerate(relaxed_space.decisions):
            closed = rng.permutation(decision.num_choices)[(3 if step in wide else 1) :]
            choices[step, closed.tolist()] = 0
        choices /= choices.sum(dim=1, keepdim=True)
        mean, total = 0.0, 0.0
        for tokens in itertools.product(*(np.flatnonzero(row).tolist() for row in choices.numpy())):
            chance = float(choices[range(len(tokens)), list(tokens)].prod())
            mean += chance * getattr(relaxed_space, unit)(relaxed_space.genotype(tokens))
            total += chance
        assert total == pytest.approx(1)
        assert relaxed_space.expected_cost(choices, unit).item() == pytest.approx(mean, rel=1e-9)


def test_skips_are_counted_in_the_normal_cell() -> None:
    cell = NASBench201Space()
    text = "|skip_connect~0|+|none~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|avg_pool_3x3~2|"
    assert cell.num_skips(cell.parse(text)) == 3
    micro = MicroSpace((3, 8, 8), 3, num_nodes=1)
    both = "normal 1:identity(older)+sepconv3(newer) reduction 1:identity(older)+identity(newer)"
    assert micro.num_skips(micro.parse(both)) == 1


# Learning.


SETTINGS = TrainingSettings(batch_size=16, learning_rate=0.05, momentum=0.9, weight_decay=0.01, clip=0.5,
                            label_smoothing=0.1)  # fmt: skip


def evaluator_of(space: Any, task: Task, settings: TrainingSettings = SETTINGS, unit: Any = "macs") -> Any:
    cpu = torch.device("cpu")
    cost = CostModel(space, unit, task.input_shape, cpu)
    return SupernetEvaluator(space, task, cost, settings, 60, "batch", 2, 0, cpu)


def task_loss_alone(task_loss: Tensor, cost: Tensor) -> Tensor:
    return task_loss


@pytest.fixture(params=["nasbench201", "nasbench201, shared edges", "micro"])
def evaluator(request: pytest.FixtureRequest, task: Task) -> Any:
    if request.param == "micro":
        return evaluator_of(MicroSpace((3, 8, 8), 3, channels=2, num_nodes=1, num_cells=1), task)
    shared = request.param != "nasbench201"
    return evaluator_of(NASBench201Space((3, 8, 8), 3, channels=4, cells_per_stage=1, share_edges=shared), task)


def test_the_loss_is_that_of_validation_batches(evaluator: Any, task: Task) -> None:
    relaxation, choices = evaluator.relaxation(task_loss_alone), drawn(evaluator.space)
    seen: list[tuple[float, ...]] = []
    for step in (4, 5, 4):  # the 24 samples are one batch of 16 an epoch
        found = relaxation.loss(choices, step)
        inputs, targets = relaxation._batch(step)
        assert len(targets) == 16
        with batch_statistics(evaluator.network):
            torch.testing.assert_close(found, task.loss(evaluator.network(inputs, choices), targets))
        seen += map(tuple, inputs.flatten(1).tolist())
    samples = set(map(tuple, task.preprocessing(task.validation.inputs).flatten(1).tolist()))
    assert set(seen) <= samples and len(set(seen[:16])) == 16
    assert set(seen[:16]) != set(seen[16:32]) and seen[:16] == seen[32:]


def test_the_trade_off_is_made_of_both(evaluator: Any) -> None:
    choices, space = drawn(evaluator.space), evaluator.space
    plain = evaluator.relaxation(task_loss_alone).loss(choices, 0)
    both = evaluator.relaxation(lambda task_loss, cost: 2 * task_loss + cost / 1000).loss(choices, 0)
    torch.testing.assert_close(both, 2 * plain + space.expected_cost(choices, "macs") / 1000, check_dtype=False)
    genotype = space.sample(np.random.default_rng(0), 1)[0]
    assert evaluator.relaxation(task_loss_alone).num_skips(genotype) == space.num_skips(genotype)


@pytest.mark.parametrize("unrolled", [False, True])
def test_a_loss_leaves_no_trace(evaluator: Any, unrolled: bool, fingerprint: Callable[[nn.Module], str]) -> None:
    twin = evaluator_of(evaluator.space, evaluator.task)
    choices = drawn(evaluator.space).requires_grad_()
    for one in (evaluator, twin):
        one.improve(lambda num, step: [choices.detach()] * num, 2)
    before = fingerprint(evaluator.network)
    loss = evaluator.relaxation(task_loss_alone).loss(choices, 2, unrolled)
    torch.autograd.grad(loss, [choices])
    assert fingerprint(evaluator.network) == before and evaluator.network.training
    assert all(norm.training for norm in evaluator.network.modules() if isinstance(norm, nn.BatchNorm2d))
    found = [one.improve(lambda num, step: [choices.detach()] * num, 2) for one in (evaluator, twin)]
    assert found[0] == found[1] and fingerprint(evaluator.network) == fingerprint(twin.network)


def test_a_loss_for_which_memory_does_not_last_leaves_no_trace_either(
    evaluator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    relaxation = evaluator.relaxation(task_loss_alone)
    evaluator.network.train()

    def fails(*given: Any) -> Tensor:
        raise MemoryError

    monkeypatch.setattr(relaxation, "_task_loss", fails)
    with pytest.raises(MemoryError):
        relaxation.loss(drawn(evaluator.space), 0)
    assert all(module.training for module in evaluator.network.modules())


def test_shared_weights_learn_under_blends_as_on_paths(evaluator: Any) -> None:
    choices, steps = drawn(evaluator.space), []

    def sampler(num: int, step: int) -> Any:
        for number in range(step, step + num):
            steps.append((number, evaluator.training.step_number))  # asked for when it is the turn of the batch
            yield choices

    first = evaluator.improve(sampler, 3)
    evaluator.improve(sampler, 25)
    assert evaluator.improve(sampler, 5).loss < first.loss - 0.2
    assert steps == [(number, number) for number in range(33)]


def test_the_unrolled_gradient_is_that_of_a_real_step(evaluator: Any, task: Task) -> None:
    """By central differences, in double precision, of a step that PyTorch's own optimizer takes."""
    space, relaxation = evaluator.space, evaluator.relaxation(task_loss_alone)
    evaluator.improve(lambda num, step: [drawn(space)] * num, 3)
    network = evaluator.network.double()
    training = evaluator.training
    inputs, targets = training.batch()
    training.batch = lambda: (inputs.double(), targets)
    asked, answers = relaxation._batch(3)
    relaxation._batch = lambda step: (asked.double(), answers)

    def stepped(choices: Tensor) -> float:
        after = copy.deepcopy(network)
        rate, decay = training.learning_rate(), SETTINGS.weight_decay
        optimizer = torch.optim.SGD(after.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=decay)
        optimizer.load_state_dict(optimizer.state_dict() | {"state": training.optimizer.state_dict()["state"]})
        with batch_statistics(after):
            task.loss(after(inputs.double(), choices), targets, SETTINGS.label_smoothing).backward()
            norm = nn.utils.clip_grad_norm_(after.parameters(), SETTINGS.clip)
            assert norm > SETTINGS.clip  # so that clipping matters
            for parameter in after.parameters():  # decayed too where nothing else moves it
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            optimizer.step()
            return task.loss(after(asked.double(), choices), answers).item()

    choices = drawn(space).double().requires_grad_()
    loss = relaxation.loss(choices, 3, unrolled=True)
    assert loss.item() == pytest.approx(stepped(choices.detach()), rel=1e-9)
    (gradient,) = torch.autograd.grad(loss, [choices])
    (plain,) = torch.autograd.grad(relaxation.loss(choices, 3), [choices])
    assert (gradient - plain).norm() > 0.01 * plain.norm()  # the second order matters
    rng = np.random.default_rng(0)
    for _ in range(3):
        direction = torch.from_numpy(rng.normal(size=choices.shape)) * torch.from_numpy(space.full_masks)
        # So little that no unit is rectified on one side alone, where the step would jump.
        ahead, back = (stepped(choices.detach() + sign * 1e-7 * direction) for sign in (1, -1))
        assert (gradient * direction).sum().item() == pytest.approx((ahead - back) / 2e-7, rel=1e-3)


class ScaleSpace(RelaxedSpace):
    """One decision, whether to run or not, and one shared weight: the answer is weight * choice * input."""

    name = "scale"
    decisions = (Decision("run", "operation", ("yes", "no")),)

    def __init__(self) -> None:
        self.arguments = {}

    def network(self, genotype: Genotype | None = None) -> nn.Module:
        class Scale(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.tensor(0.5))

            def forward(self, x: Tensor, choices: Tensor) -> Tensor:
                return self.weight * choices[0, 0] * x.flatten(1)

        return Scale()

    def macs(self, genotype: Genotype) -> int:
        return 1 - genotype.tokens[0]

    def parameters(self, genotype: Genotype) -> int:
        return 1

    def expected_cost(self, choices: Tensor, unit: Any) -> Tensor:
        return choices[0, 0]

    def num_skips(self, genotype: Genotype) -> int:
        return 0


def test_both_orders_by_hand() -> None:
    """Training wants the answer 2, validation 1, both of the input 1: all that follows can be written down."""

    def split(target: float) -> Split:
        return Split(torch.ones(4, 1, 1, 1), torch.full((4,), target))

    task = Task(
        "scale", Regression("y", 0.0, 1.0), split(2.0), split(1.0), SealedSplit(split(0.0)), lambda inputs: inputs
    )
    settings = TrainingSettings(batch_size=4, learning_rate=0.1, weight_decay=0.0, clip=100.0)
    relaxation = evaluator_of(ScaleSpace(), task, settings).relaxation(task_loss_alone)
    assert isinstance(relaxation, SupernetRelaxation)
    choices = torch.tensor([[0.6, 0.4]], requires_grad=True)
    w, a, rate = 0.5, 0.6, 0.1
    first = relaxation.loss(choices, 0)
    assert first.item() == pytest.approx((w * a - 1) ** 2)
    assert torch.autograd.grad(first, [choices])[0].tolist()[0] == pytest.approx([2 * (w * a - 1) * w, 0])
    second = relaxation.loss(choices, 0, unrolled=True)
    after = w - 1.9 * rate * 2 * (w * a - 2) * a  # the training loss is (w a - 2)^2, Nesterov's momentum 0.9
    moves = -1.9 * rate * 2 * (2 * w * a - 2)  # of `after` by a
    assert second.item() == pytest.approx((after * a - 1) ** 2)
    wanted = 2 * (after * a - 1) * (after + a * moves)
    assert torch.autograd.grad(second, [choices])[0].tolist()[0] == pytest.approx([wanted, 0])


def test_there_is_no_relaxation_without_a_gradient(task: Task, macro: Any) -> None:
    assert evaluator_of(macro, task).relaxation(task_loss_alone) is None
    cell = NASBench201Space((3, 8, 8), 3, channels=4, cells_per_stage=1)
    assert evaluator_of(cell, task, unit="latency_ms").relaxation(task_loss_alone) is None
    assert evaluator_of(cell, task, unit="parameters").relaxation(task_loss_alone) is not None
