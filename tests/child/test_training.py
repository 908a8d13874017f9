"""The training loop: schedule, clipping, what is skipped, and going on exactly where it stopped."""

import dataclasses
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from child.macro import MacroNetwork, MacroSpace
from child.operations import DropPath
from child.task import Language, Regression, SealedSplit, Split, Task, WithAuxiliary
from child.training import Training, TrainingError, TrainingSettings, check_fit, measure, predict
from child.transforms import Augmentation, Normalize, Tokens


@pytest.fixture
def linear() -> nn.Module:
    """The smallest network that can learn the task."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))


def train(network: nn.Module, task: Task, num_steps: int | None = None, seed: int = 0, **settings: Any) -> Training:
    chosen = TrainingSettings(**{"epochs": 2, "batch_size": 16, "learning_rate": 0.1, **settings})
    return Training(network, task, chosen, num_steps, seed, "test", torch.device("cpu"))


def weights(network: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten() for value in network.parameters()])


# Settings.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "training.epochs must be above 0, got 0"),
        ({"batch_size": -4}, "training.batch_size must be above 0, got -4"),
        ({"learning_rate": 0.0}, "training.learning_rate must be above 0, got 0.0"),
        ({"learning_rate": math.nan}, "training.learning_rate must be above 0, got nan"),
        ({"clip": 0}, "training.clip must be above 0, got 0"),
        ({"restart_every": 0}, "training.restart_every must be at least 1 step, got 0"),
        ({"momentum": 1.0}, r"training.momentum must be in \[0, 1.0\), got 1.0"),
        ({"momentum": -0.1}, r"training.momentum must be in \[0, 1.0\), got -0.1"),
        ({"label_smoothing": 1.0}, r"training.label_smoothing must be in \[0, 1.0\), got 1.0"),
        ({"weight_decay": -1e-4}, r"training.weight_decay must be in \[0, inf\), got -0.0001"),
        ({"final_learning_rate": -0.1}, r"training.final_learning_rate must be in \[0, inf\), got -0.1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**settings)


# Steps.


def test_two_steps_by_hand() -> None:
    """Weight w, answer 0 to input 1: the loss is w^2, and Nesterov's momentum and the decay of weights move it."""
    split = Split(torch.ones(4, 1), torch.zeros(4))
    task = Task("t", Regression("y", 0.0, 1.0), split, split, SealedSplit(split), lambda inputs: inputs)
    network = nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
    settings = TrainingSettings(
        batch_size=4, learning_rate=0.1, final_learning_rate=0.1, momentum=0.9, weight_decay=0.5, clip=1e9
    )
    training = Training(network, task, settings, 2, 0, "test", torch.device("cpu"))
    w, buffer = 1.0, 0.0
    for _ in range(2):
        training.step()
        gradient = 2 * w + 0.5 * w
        buffer = 0.9 * buffer + gradient
        w -= 0.1 * (gradient + 0.9 * buffer)
        assert network.weight.item() == pytest.approx(w)


# What a network must give.


class Twofold(nn.Sequential):
    """Gives two answers while it learns, as `kind` holds them."""

    kind: Any = staticmethod(lambda main, other: (main, other))

    def forward(self, input: Tensor) -> Any:
        outputs = super().forward(input)
        return self.kind(outputs, outputs) if self.training else outputs


def test_what_is_proven_of_a_network_leaves_it_as_it_was(task: Task) -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    check_fit("model", lambda: network, task)
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())


def test_two_answers_while_it_learns_are_refused_but_for_an_auxiliary_head(task: Task) -> None:
    network = Twofold(nn.Flatten(), nn.Linear(192, 3))
    with pytest.raises(ValueError, match=r"^model: does not fit .* while it learns it gives a tuple, and one"):
        check_fit("model", lambda: network, task)
    network.kind = lambda main, other: WithAuxiliary(main, other, 0.4)
    check_fit("model", lambda: network, task)


def test_outputs_that_are_not_one_for_each_sample_are_refused(task: Task) -> None:
    numbers = Regression("brightness", 0.0, 1.0)
    splits = [Split(split.inputs, split.targets.double()) for split in (task.train, task.validation)]
    task = dataclasses.replace(task.with_splits(*splits), objective=numbers)
    check_fit("model", lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 1)), task)
    with pytest.raises(ValueError, match=r"outputs of shape \(2, 1, 1\), which are not one for each sample$"):
        check_fit("model", lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 1), nn.Unflatten(1, (1, 1))), task)


def test_symbols_may_come_as_floats() -> None:
    windows = torch.arange(12).view(2, 6) % 3
    split = Split(windows, windows)
    task = Task("text", Language(("a", "b", "c"), "characters"), split, split, SealedSplit(split), Tokens())

    class Model(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input.long())

    layers = nn.Embedding(3, 4), nn.Linear(4, 3)
    check_fit("model", lambda: Model(*layers), task)
    with pytest.raises(ValueError, match=r"symbols come as floats too, .* begin with x = x\.long\(\)"):
        check_fit("model", lambda: nn.Sequential(*layers), task)


# Schedule.


def rates(training: Training) -> list[float]:
    found = []
    while not training.finished:
        found.append(training.learning_rate())
        training.step()
        assert training.optimizer.param_groups[0]["lr"] == found[-1]
    return found


def test_the_learning_rate_follows_a_cosine(linear: nn.Module, task: Task) -> None:
    found = rates(train(linear, task, num_steps=4, learning_rate=0.1, final_learning_rate=0.02))
    high = 0.06 + 0.04 * math.cos(math.pi / 4)
    assert found == pytest.approx([0.1, high, 0.06, 0.12 - high])


def test_the_cosine_starts_again(linear: nn.Module, task: Task) -> None:
    found = rates(train(linear, task, num_steps=7, learning_rate=0.1, final_learning_rate=0.0, restart_every=3))
    cycle = [0.1, 0.075, 0.025]  # cos of 0, 60 and 120 degrees
    assert found == pytest.approx([*cycle, *cycle, 0.1])


def test_drop_path_learns_how_far_the_training_is(task: Task) -> None:
    drop_path, seen = DropPath(0.5), []
    drop_path.register_forward_pre_hook(lambda module, _inputs: seen.append(module.progress))
    network = nn.Sequential(nn.Sequential(drop_path, nn.Flatten()), nn.Linear(192, 3))
    training = train(network, task, num_steps=4)
    while not training.finished:
        training.step()
    assert seen == [0.0, 0.25, 0.5, 0.75]


# One step.


def test_one_step_is_plain_gradient_descent(linear: nn.Module, task: Task) -> None:
    training = train(linear, task, momentum=0.0, weight_decay=0.0, clip=1e9)
    before = weights(linear)
    seen: list[tuple[Tensor, Tensor]] = []

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        seen.append((inputs, targets))
        return task.loss(linear(inputs), targets)

    loss = training.step(loss_of)
    (inputs, targets) = seen[0]
    torch.manual_seed(0)
    twin = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    expected = nn.functional.cross_entropy(twin(inputs), targets)
    expected.backward()
    gradient = torch.cat([value.grad.flatten() for value in twin.parameters() if value.grad is not None])
    torch.testing.assert_close(weights(linear), before - 0.1 * gradient)
    assert loss == pytest.approx(expected.item())
    assert training.step_number == 1


@pytest.mark.parametrize(("factor", "clipped"), [(1e6, True), (1e-3, False)])
def test_clipping_bounds_the_applied_gradient(linear: nn.Module, task: Task, factor: float, clipped: bool) -> None:
    clip, rate = 0.5, 0.1
    training = train(linear, task, momentum=0.0, weight_decay=0.0, clip=clip, learning_rate=rate)
    direction = torch.randn(192 * 3 + 3, generator=torch.Generator().manual_seed(1))
    before = weights(linear)
    training.step(lambda _inputs, _targets: factor * torch.cat([p.flatten() for p in linear.parameters()]) @ direction)
    applied = (before - weights(linear)).double() / rate
    gradient = factor * direction.double()
    expected = gradient * clip / gradient.norm() if clipped else gradient
    assert (gradient.norm() > clip) == clipped
    torch.testing.assert_close(applied, expected, atol=2e-6, rtol=1e-3)


def test_every_step_draws_its_own_dropout_whatever_else_was_drawn(task: Task) -> None:
    def draw() -> list[Tensor]:
        network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 3)).train()
        training = train(network, task)
        masks: list[Tensor] = []
        for _ in range(3):
            torch.rand(5)
            training.step(lambda x, _y: masks.append(network[1](torch.ones_like(x))) or network(x).sum())
        return masks

    first, second = draw(), draw()
    assert all(one.equal(other) for one, other in zip(first, second, strict=True))
    assert not first[0].equal(first[1])
    assert not first[1].equal(first[2])


def test_label_smoothing_reaches_the_loss(linear: nn.Module, task: Task) -> None:
    plain = train(linear, task).step()
    torch.manual_seed(0)
    smooth = train(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), task, label_smoothing=0.5).step()
    assert plain != smooth


@pytest.mark.parametrize("how", ["loss is nan", "loss is inf", "gradient alone"])
def test_what_is_not_finite_is_skipped(
    linear: nn.Module, task: Task, how: str, fingerprint: Callable[[nn.Module], str]
) -> None:
    training = train(linear, task, num_steps=10)
    training.step()
    before = fingerprint(linear)
    momentum = [training.optimizer.state[value]["momentum_buffer"].clone() for value in linear.parameters()]

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        if how == "gradient alone":
            return (linear[1].weight * 0).abs().sqrt().sum()  # type: ignore[index, operator]
        return task.loss(linear(inputs), targets) * (math.nan if how == "loss is nan" else math.inf)

    if how == "gradient alone":
        assert math.isfinite(loss_of(torch.empty(0), torch.empty(0)).item())
    assert training.step(loss_of) is None
    assert fingerprint(linear) == before
    for value, buffer in zip(linear.parameters(), momentum, strict=True):
        assert training.optimizer.state[value]["momentum_buffer"].equal(buffer)
    assert training.step_number == 2
    assert training.step() is not None
    assert fingerprint(linear) != before


def test_statistics_that_took_in_what_is_not_finite_begin_again(task: Task) -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 3))
    norm = network[0]
    assert isinstance(norm, nn.BatchNorm2d)
    training = train(network, task, num_steps=10)
    training.step()
    gathered = norm.running_mean.clone() if norm.running_mean is not None else None
    assert gathered is not None and gathered.abs().sum() > 0
    assert training.step(lambda inputs, targets: network(inputs).sum() * math.nan) is None
    assert norm.running_mean is not None and norm.running_var is not None
    assert gathered.sign().equal(norm.running_mean.sign())  # they took in a batch that was finite, and stay
    assert training.step(lambda inputs, targets: network(inputs * math.inf).sum()) is None
    assert norm.running_mean.equal(torch.zeros(3)) and norm.running_var.equal(torch.ones(3))
    training.step()
    assert measure(network.eval(), task, task.validation, 16, torch.device("cpu")) >= 0
    assert bool(norm.running_mean.isfinite().all())


def test_five_in_a_row_are_too_many(linear: nn.Module, task: Task) -> None:
    training = train(linear, task, num_steps=30, learning_rate=0.1)

    def broken(inputs: Tensor, targets: Tensor) -> Tensor:
        return linear(inputs).sum() * math.nan

    for _ in range(2):  # a finite step in between starts the count again
        for _ in range(4):
            assert training.step(broken) is None
        assert training.step() is not None
    for _ in range(4):
        training.step(broken)
    with pytest.raises(TrainingError, match=r"training of test stopped at step 15: .* 5 times in a row; lower .*0\.1"):
        training.step(broken)


# Batches.


def numbered(num: int) -> Split:
    """Samples that carry their place as their value."""
    inputs = torch.arange(num, dtype=torch.uint8).view(num, 1, 1, 1).expand(num, 3, 8, 8)
    return Split(inputs, torch.zeros(num, dtype=torch.int64))


def orders(task: Task, num_steps: int, **settings: Any) -> list[list[int]]:
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    training = train(network, task, num_steps, **settings)
    found: list[list[int]] = []
    assert isinstance(task.preprocessing, Normalize)
    scale, mean, std = task.preprocessing.scale, task.preprocessing.mean[0], task.preprocessing.std[0]

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        found.append([round(value) for value in ((inputs[:, 0, 0, 0] * std + mean) * scale).tolist()])
        return task.loss(network(inputs), targets)

    for _ in range(num_steps):
        training.step(loss_of)
    return found


def test_batches_are_whole_and_an_epoch_repeats_nothing(task: Task) -> None:
    task = task.with_splits(numbered(20), task.validation)
    found = orders(task, 6, batch_size=8)
    assert {len(batch) for batch in found} == {8}
    epochs = [found[0] + found[1], found[2] + found[3], found[4] + found[5]]
    assert all(len(set(epoch)) == 16 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert set().union(*epochs) == set(range(20))  # what one epoch leaves out, another has
    assert found == orders(task, 6, batch_size=8)
    assert found != orders(task, 6, batch_size=8, seed=1)


def test_a_batch_is_no_larger_than_the_data(task: Task) -> None:
    task = task.with_splits(numbered(10), task.validation)
    training = train(nn.Linear(1, 1), task, epochs=3, batch_size=64)
    assert (training.batch_size, training.steps_per_epoch, training.num_steps) == (10, 1, 3)
    assert [sorted(batch) for batch in orders(task, 2, batch_size=64)] == [list(range(10))] * 2


def test_epochs_are_counted_in_whole_batches(linear: nn.Module, task: Task) -> None:
    training = train(linear, task, epochs=3, batch_size=20)  # 48 samples
    num = 0
    while not training.finished:
        training.step()
        num += 1
    assert num == 6


def test_augmentation_is_drawn_anew_at_every_step(linear: nn.Module, make_task: Callable[..., Task]) -> None:
    seeds: list[int] = []

    class Watched(Augmentation):
        def crop(self, stored: Tensor, generator: torch.Generator) -> Tensor:
            seeds.append(generator.initial_seed())
            return stored

    training = train(linear, make_task(augmentation=Watched()))
    while not training.finished:
        training.step()
    assert len(set(seeds)) == len(seeds) == 6  # two epochs of three steps


# Going on.


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_stopped_training_goes_on_bit_for_bit(
    macro: MacroSpace, make_task: Callable[..., Task], stop: int, fingerprint: Callable[[nn.Module], str]
) -> None:
    task = make_task(augmentation=Augmentation(shift=2, flip=True, rotate=10.0, cutout=2))
    genotype = macro.sample(np.random.default_rng(0), 1)[0]

    def begin(weights_seed: int) -> Training:
        torch.manual_seed(weights_seed)
        network = macro.network(genotype).train()
        assert any(isinstance(part, nn.Dropout) and part.p > 0 for part in network.modules())
        return train(network, task, epochs=2, restart_every=4)

    whole = begin(0)
    losses = [whole.step() for _ in range(6)]
    assert whole.finished

    first = begin(0)
    assert [first.step() for _ in range(stop)] == losses[:stop]
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    first.step()  # what comes after the checkpoint is lost
    file.seek(0)

    second = begin(1)
    torch.rand(100)  # whatever else was drawn does not matter
    second.load_state_dict(torch.load(file, weights_only=True))
    assert [second.step() for _ in range(6 - stop)] == losses[stop:]
    assert second.finished
    assert fingerprint(second.network) == fingerprint(whole.network)


def test_the_count_of_skipped_steps_survives(linear: nn.Module, task: Task) -> None:
    def broken(inputs: Tensor, targets: Tensor) -> Tensor:
        return linear(inputs).sum() * math.nan

    first = train(linear, task, num_steps=30)
    for _ in range(3):
        first.step(broken)
    second = train(linear, task, num_steps=30)
    second.load_state_dict(first.state_dict())
    second.step(broken)
    with pytest.raises(TrainingError):
        second.step(broken)


# Shared weights.


def test_weights_off_the_path_stay_exactly_as_they_are(macro: MacroSpace, task: Task) -> None:
    network = macro.network().train()
    assert isinstance(network, MacroNetwork)
    training = train(network, task, num_steps=50, momentum=0.9, weight_decay=0.1)

    def follow(text: str, num_steps: int) -> None:
        path = macro.parse(text)
        for _ in range(num_steps):
            training.step(lambda x, y: task.loss(network(x, path), y))

    def state() -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in network.named_parameters()}

    follow("1:conv3 2:conv3 3:conv3(1)", 4)  # so that momentum has something to move
    before = state()
    follow("1:conv5 2:conv5 3:conv5", 4)
    after = state()
    on_path = {
        name
        for name in before
        if ".conv5." in name or name.startswith(("stem.", "norms.", "classifier.", "reductions.1at1."))
    }
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved == on_path
    assert any(".conv3." in name for name in before.keys() - on_path)


# Measuring.


def test_predict_gives_every_sample_in_order_without_augmentation(
    make_task: Callable[..., Task], device: torch.device
) -> None:
    task = make_task(num_validation=23, augmentation=Augmentation(shift=3, flip=True, rotate=30.0, cutout=4))
    outputs = predict(lambda x: x.flatten(1), task, task.validation, 10, device)
    torch.testing.assert_close(outputs, task.preprocessing(task.validation.inputs).flatten(1))
    assert not outputs.requires_grad


def test_predict_leaves_no_sample_alone(task: Task, device: torch.device) -> None:
    sizes: list[int] = []

    def forward(inputs: Tensor) -> Tensor:
        sizes.append(len(inputs))
        return inputs.flatten(1)

    for num, batch_size in ((17, 8), (16, 8), (5, 8), (9, 4)):
        sizes.clear()
        predict(forward, task, task.train.take(range(num)), batch_size, device)
        assert sum(sizes) == num
        assert len(sizes) == -(-num // batch_size)
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= batch_size


def test_measure_is_the_metric_in_evaluation_mode(
    task: Task, device: torch.device, fingerprint: Callable[[nn.Module], str]
) -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.9), nn.Flatten(), nn.Linear(192, 3)).train()
    linear = network[3]
    with torch.no_grad():
        linear.weight.zero_()  # type: ignore[union-attr, operator]
        for channel in range(3):
            linear.weight[channel, 64 * channel : 64 * (channel + 1)] = 1  # type: ignore[index, operator]
    before = fingerprint(network)
    assert measure(network, task, task.validation, 7, device) == 1.0
    assert fingerprint(network) == before
    with torch.no_grad():
        linear.weight.zero_()  # type: ignore[union-attr, operator]
        linear.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))  # type: ignore[union-attr, operator]
    assert measure(network, task, task.validation, 7, device) == pytest.approx(1 / 3)


def test_training_solves_the_task(linear: nn.Module, task: Task, device: torch.device) -> None:
    training = train(linear, task, epochs=10, learning_rate=0.02)
    while not training.finished:
        training.step()
    assert measure(linear, task, task.validation, 16, device) == 1.0
