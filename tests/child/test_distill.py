"""Distillation, against formulas worked out by hand."""

import copy
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from child.distill import Ensemble, FeatureTransfer, Pupil, SoftTargets, attention
from child.language import LanguageModel
from child.lstm import LSTMLanguageModel
from child.recurrent import RecurrentSpace
from child.share import hold
from child.sparsify import cut_connections
from child.task import Task


class Says(nn.Module):
    """Gives the logits that it holds, whatever it sees."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.heard: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.heard.append(x)
        return self.logits.clone()


GIVEN = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
WANTED = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 4.0]])
TARGETS = torch.tensor([0, 1])
IMAGES = torch.zeros(2, 3, 8, 8)


def soft_by_hand(temperature: float) -> float:
    total = 0.0
    for given, wanted in zip(GIVEN.tolist(), WANTED.tolist(), strict=True):
        exp_given = [math.exp(value / temperature) for value in given]
        exp_wanted = [math.exp(value / temperature) for value in wanted]
        for a, b in zip(exp_given, exp_wanted, strict=True):
            p, q = b / sum(exp_wanted), a / sum(exp_given)
            total += p * math.log(p / q)
    return temperature**2 * total / len(GIVEN)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_at_weight_0_it_is_the_loss_of_the_task(task: Task, smoothing: float) -> None:
    loss = SoftTargets(3.0, 0.0).loss(Says(GIVEN), Says(WANTED), task, smoothing)(IMAGES, TARGETS)
    torch.testing.assert_close(loss, task.loss(GIVEN, TARGETS, smoothing))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_at_weight_1_it_is_the_divergence_from_the_teacher(task: Task, temperature: float) -> None:
    loss = SoftTargets(temperature, 1.0).loss(Says(GIVEN), Says(WANTED), task)(IMAGES, TARGETS)
    assert loss.item() == pytest.approx(soft_by_hand(temperature), rel=1e-5)


def test_in_between_the_two_are_blended(task: Task) -> None:
    loss = SoftTargets(2.0, 0.3).loss(Says(GIVEN), Says(WANTED), task)(IMAGES, TARGETS)
    expected = 0.7 * task.loss(GIVEN, TARGETS).item() + 0.3 * soft_by_hand(2.0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_the_gradient_is_the_known_one_and_the_teacher_gets_none(task: Task, weight: float) -> None:
    temperature = 4.0
    student, teacher = Says(GIVEN.clone()), Says(WANTED.clone())
    SoftTargets(temperature, weight).loss(student, teacher, task)(IMAGES, TARGETS).backward()
    hard = (GIVEN.softmax(1) - functional.one_hot(TARGETS, 3)) / 2
    # Equation 2 of the paper, times T^2: T (q - p), averaged over two samples.
    soft = temperature * ((GIVEN / temperature).softmax(1) - (WANTED / temperature).softmax(1)) / 2
    torch.testing.assert_close(student.logits.grad, (1 - weight) * hard + weight * soft)
    assert teacher.logits.grad is None


def test_a_teacher_that_agrees_costs_nothing(task: Task) -> None:
    loss = SoftTargets(2.0, 1.0).loss(Says(GIVEN), Says(GIVEN + 7), task)(IMAGES, TARGETS)
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_the_teacher_stays_in_evaluation_mode(task: Task, fingerprint: Callable[[nn.Module], str]) -> None:
    teacher = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.Flatten(), nn.Linear(192, 3)).train()
    student = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).train()
    before = fingerprint(teacher)
    loss_of = SoftTargets().loss(student, teacher, task)
    for _ in range(3):
        loss_of(torch.randn(2, 3, 8, 8), TARGETS).backward()
    assert not any(part.training for part in teacher.modules())
    assert fingerprint(teacher) == before
    assert all(value.grad is None for value in teacher.parameters())
    assert student.training
    assert all(value.grad is not None for value in student.parameters())


def test_both_see_the_same_images(task: Task) -> None:
    student, teacher = Says(GIVEN), Says(WANTED)
    images = torch.randn(2, 3, 8, 8)
    SoftTargets().loss(student, teacher, task)(images, TARGETS)
    assert [id(heard) for heard in student.heard + teacher.heard] == [id(images)] * 2


@pytest.mark.parametrize(("temperature", "weight"), [(0.0, 0.5), (-1.0, 0.5), (1.0, -0.1), (1.0, 1.1), (math.nan, 0.5)])
def test_settings_out_of_range_are_refused(temperature: float, weight: float) -> None:
    with pytest.raises(ValueError, match=f"weight in \\[0, 1\\], got {temperature} and {weight}"):
        SoftTargets(temperature, weight)


# From inside the teacher.


class Features(nn.Module):
    """Two layers whose outputs are easy to compute by hand."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(3, channels, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.relu(self.first(x)).mean(dim=(2, 3)))

    def seen(self, x: Tensor) -> Tensor:
        """What comes after the rectifier, which works in place of the layer's own output."""
        return torch.relu(functional.conv2d(x, self.first.weight))


@pytest.fixture
def pair() -> tuple[Features, Features]:
    torch.manual_seed(0)
    return Features(4), Features(6)


def test_a_hint_is_the_distance_after_a_learned_map(pair: tuple[Features, Features], task: Task) -> None:
    student, teacher = pair
    images = torch.randn(2, 3, 8, 8)
    pupil = Pupil(student, teacher, FeatureTransfer("hint", 0.5), images)
    assert pupil.pairs == [("first", "first")]  # the last layer's features are the outputs
    loss = SoftTargets(2.0, 0.3).loss(pupil, teacher, task)(images, TARGETS)
    alone = SoftTargets(2.0, 0.3).loss(student, teacher, task)(images, TARGETS)
    change = pupil.maps[0]
    assert isinstance(change, nn.Conv2d)
    hint = (functional.conv2d(student.seen(images), change.weight, change.bias) - teacher.seen(images)).pow(2).mean()
    torch.testing.assert_close(loss, alone + 0.5 * hint)
    loss.backward()
    assert all(parameter.grad is not None for parameter in pupil.parameters())  # the map learns too
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert pupil(images).equal(student(images))


def test_attention_is_where_features_are_large(pair: tuple[Features, Features], task: Task) -> None:
    student, teacher = pair
    images = torch.randn(2, 3, 8, 8)
    pupil = Pupil(student, teacher, FeatureTransfer("attention", 3.0), images)
    loss = SoftTargets(2.0, 0.3).loss(pupil, teacher, task)(images, TARGETS)
    alone = SoftTargets(2.0, 0.3).loss(student, teacher, task)(images, TARGETS)
    maps = []
    for network in (student, teacher):
        energy = network.seen(images).pow(2).sum(dim=1).flatten(1)
        maps.append(energy / energy.norm(dim=1, keepdim=True))
    torch.testing.assert_close(loss, alone + 3 * (maps[0] - maps[1]).pow(2).mean())
    assert [name for name, _ in pupil.named_parameters()] == [f"student.{n}" for n, _ in student.named_parameters()]


def test_features_of_another_size_are_pooled(pair: tuple[Features, Features], task: Task) -> None:
    student, teacher = pair
    teacher.first.stride = (2, 2)
    images = torch.randn(2, 3, 8, 8)
    pupil = Pupil(student, teacher, FeatureTransfer("attention"), images)
    teacher(images)
    pupil(images)
    pooled = functional.avg_pool2d(student.seen(images), 2)
    wanted = attention(pooled) - attention(teacher.seen(images[:, :, ::2, ::2]))
    torch.testing.assert_close(pupil.distance(), wanted.pow(2).mean())


def test_layers_are_named_as_they_are_or_in_pairs(pair: tuple[Features, Features]) -> None:
    images = torch.randn(2, 3, 8, 8)
    assert Pupil(*pair, FeatureTransfer("hint", layers=("relu", "first:relu")), images).pairs == [
        ("relu", "relu"), ("first", "relu"),
    ]  # fmt: skip
    for layers, told in (
        (("frist",), "Features has no layer 'frist'"),
        (
            ("last:first",),
            r"'last' gives \(2, 3\) and the teacher's 'first' \(2, 6, 8, 8\), which do not belong together",
        ),
        (("first:relu:last",), "expected student.layer:teacher.layer, got first:relu:last"),
    ):
        with pytest.raises(ValueError, match=told):
            Pupil(*pair, FeatureTransfer("hint", layers=layers), images)
    with pytest.raises(ValueError, match=r"the positions of each sample, and 'last' gives \(2, 3\); use hint"):
        Pupil(*pair, FeatureTransfer("attention", layers=("last",)), images)
    with pytest.raises(ValueError, match="student and teacher have no layers of the same name"):
        Pupil(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), pair[1], FeatureTransfer("hint"), images)
    with pytest.raises(ValueError, match=r"distill.features needs weight > 0 and at least one layer, got 0"):
        FeatureTransfer("hint", weight=0.0)


def test_layers_that_give_no_tensor_are_named() -> None:
    tokens = torch.zeros(2, 5, dtype=torch.long)

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.lstm = nn.Embedding(4, 6), nn.LSTM(6, 6)
            self.never = nn.ModuleList([nn.Linear(6, 6)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lstm(self.embedding(x).transpose(0, 1))[0]

    for layer in ("lstm", "never"):
        with pytest.raises(ValueError, match=f"'{layer}' gives no tensor that could be learned from"):
            Pupil(Reads(), Reads(), FeatureTransfer("hint", layers=(layer,)), tokens)


@pytest.mark.parametrize("num", [1, 2, 3])
def test_layers_are_spread_evenly(num: int) -> None:
    torch.manual_seed(0)
    student, teacher = (nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(7)), nn.Flatten()) for _ in range(2))
    pupil = Pupil(student, teacher, FeatureTransfer("hint", num_layers=num), torch.randn(2, 3, 8, 8))
    assert [int(name) for name, _ in pupil.pairs] == {1: [5], 2: [2, 5], 3: [1, 3, 5]}[num]


def test_the_last_layer_is_left_out_where_others_have_no_match_either() -> None:
    torch.manual_seed(0)
    student, teacher = (
        nn.Sequential(OrderedDict((name, nn.Conv2d(3, 3, 1)) for name in ("stem", own, "last")))
        for own in ("mine", "its")
    )
    pupil = Pupil(student, teacher, FeatureTransfer("hint"), torch.randn(2, 3, 8, 8))
    assert pupil.pairs == [("stem", "stem")]


def test_layers_whose_values_are_held_are_layers_still() -> None:
    torch.manual_seed(0)
    student, teacher = (nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)) for _ in range(2))
    cut_connections(student, 0.5, "layer")
    pupil = Pupil(hold(student), teacher, FeatureTransfer("hint"), torch.randn(3, 5))
    assert pupil.pairs == [("0", "0")]


def test_vectors_are_hints_by_linear_maps_and_have_no_attention() -> None:
    torch.manual_seed(0)
    student, teacher = (nn.Sequential(nn.Linear(5, size), nn.Tanh(), nn.Linear(size, 1)) for size in (4, 6))
    pupil = Pupil(student, teacher, FeatureTransfer("hint"), torch.randn(3, 5))
    (change,) = pupil.maps
    assert isinstance(change, nn.Linear) and change.weight.shape == (6, 4)
    with pytest.raises(
        ValueError, match=r"over the positions of each sample, and '0' gives \(3, 4\); use hint$"
    ) as told:
        Pupil(student, teacher, FeatureTransfer("attention"), torch.randn(3, 5))
    assert "\n" not in str(told.value)


def test_attention_has_as_many_positions_in_both() -> None:
    class Reads(nn.Module):
        def __init__(self, length: int):
            super().__init__()
            self.length, self.mix, self.last = length, nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.mix(x[:, : self.length]).mean(dim=1))

    sequences = torch.randn(2, 7, 4)
    told = r"'mix' gives \(2, 7, 4\) and the teacher's 'mix' \(2, 5, 4\), which do not belong together"
    with pytest.raises(ValueError, match=told):
        Pupil(Reads(7), Reads(5), FeatureTransfer("attention"), sequences)
    with pytest.raises(ValueError, match=r"over the positions of each sample, and 'last' gives \(2, 3\); use hint"):
        Pupil(Reads(7), Reads(7), FeatureTransfer("attention", layers=("mix:last",)), sequences)


def recurrent(width: int) -> LanguageModel:
    space = RecurrentSpace((9,), 7, num_nodes=3, width=width, context=2)
    return space.network(space.genotype((0, 1, 0, 2)))


def lstm(width: int) -> LanguageModel:
    return LSTMLanguageModel((9,), 7, width, context=2)


@pytest.fixture(params=[recurrent, lstm])
def language(request: pytest.FixtureRequest) -> Callable[[int], LanguageModel]:
    torch.manual_seed(0)
    return request.param


TOKENS = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 2], [6, 4, 2, 0, 5, 3, 1, 6, 6], [1, 1, 2, 2, 3, 3, 4, 4, 5]])


@pytest.mark.parametrize(("kind", "layers"), [("hint", ["embedding", "recurrence"]), ("attention", ["recurrence"])])
def test_language_models_learn_from_what_a_recurrence_gives(
    kind: Any, layers: list[str], language: Callable[[int], LanguageModel]
) -> None:
    student, teacher = language(8), language(12)
    assert Pupil(student, teacher, FeatureTransfer(kind), TOKENS).pairs == [(layer, layer) for layer in layers]
    pupil = Pupil(student, teacher, FeatureTransfer(kind, layers=("recurrence",)), TOKENS)
    given: list[Tensor] = []

    def hear(module: nn.Module, inputs: object, outputs: Tensor) -> None:
        given.append(outputs)

    for network in (student, teacher):
        network.recurrence.register_forward_hook(hear)
        logits = network(TOKENS)
        torch.testing.assert_close(logits, functional.linear(given[-1], network.embedding.weight, network.bias))
    own, wanted = given
    assert own.shape == (3, 7, 8) and wanted.shape == (3, 7, 12)  # (B, L - context, W)
    (change,) = pupil.maps
    if kind == "hint":
        expected = (change(own) - wanted).pow(2).mean()
    else:
        maps = [functional.normalize(each.pow(2).mean(dim=2), dim=1) for each in given]
        expected = (maps[0] - maps[1]).pow(2).mean()
    distance = pupil.distance()
    torch.testing.assert_close(distance, expected)
    distance.backward()
    untouched = [name for name, value in student.named_parameters() if value.grad is None]
    assert untouched == ["bias"]  # which is added after it
    assert all(value.grad is None for value in teacher.parameters())


@pytest.mark.parametrize("kind", ["hint", "attention"])
def test_a_language_model_that_is_its_teacher_is_at_no_distance(
    kind: Any, language: Callable[[int], LanguageModel]
) -> None:
    teacher = language(8)
    pupil = Pupil(copy.deepcopy(teacher), teacher, FeatureTransfer(kind), TOKENS)
    for change in pupil.maps:
        if isinstance(change, nn.Linear):
            nn.init.eye_(change.weight)
            nn.init.zeros_(change.bias)
    pupil(TOKENS)
    teacher(TOKENS)
    assert pupil.distance().item() == 0


@pytest.mark.parametrize("kind", ["hint", "attention"])
def test_a_language_model_comes_nearer_to_its_teacher(kind: Any, language: Callable[[int], LanguageModel]) -> None:
    student, teacher = language(8), language(12)
    pupil = Pupil(student, teacher, FeatureTransfer(kind), TOKENS)
    optimizer = torch.optim.Adam(pupil.parameters(), 0.02)
    distances = []
    for _ in range(60):
        pupil(TOKENS)
        teacher(TOKENS)
        distance = pupil.distance()
        distances.append(distance.item())
        optimizer.zero_grad()
        distance.backward()
        optimizer.step()
    assert distances[-1] < 0.1 * distances[0]


@pytest.mark.parametrize("kind", ["hint", "attention"])
def test_channels_of_sequences_come_before_their_positions(kind: Any) -> None:
    torch.manual_seed(0)
    student, teacher = (
        nn.Sequential(nn.Conv1d(3, width, 3), nn.BatchNorm1d(width), nn.Conv1d(width, 2, 3)) for width in (4, 6)
    )
    sequences = torch.randn(2, 3, 9)
    pupil = Pupil(student, teacher, FeatureTransfer(kind), sequences)
    assert [name for name, _ in pupil.pairs] == ["0", "1"]
    pupil(sequences)
    teacher(sequences)
    expected = 0.0
    for number, change in enumerate(pupil.maps, 1):
        own, wanted = (network[:number](sequences) for network in (student, teacher))  # (B, C, T)
        if kind == "hint":
            expected += (change(own.unsqueeze(2)).squeeze(2) - wanted).pow(2).mean() / 2
        else:
            maps = [nn.functional.normalize(each.pow(2).mean(dim=1), dim=1) for each in (own, wanted)]
            expected += (maps[0] - maps[1]).pow(2).mean() / 2
    torch.testing.assert_close(pupil.distance(), expected)


def test_a_block_of_a_sequence_is_heard_as_its_last_layer_is() -> None:
    torch.manual_seed(0)
    student, teacher = (
        nn.Sequential(nn.Sequential(nn.Conv1d(3, width, 3), nn.BatchNorm1d(width), nn.ReLU()), nn.Flatten())
        for width in (4, 6)
    )
    cut_connections(student, 0.5, "layer")
    pupil = Pupil(hold(student), teacher, FeatureTransfer("hint", layers=("0",)), torch.randn(2, 3, 9))
    (change,) = pupil.maps
    assert isinstance(change, nn.Conv2d) and change.weight.shape == (6, 4, 1, 1)


class Last(nn.Module):
    """Channels come last, as in ConvNeXt and Swin."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.mix, self.head = nn.LayerNorm(3), nn.Linear(3, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.norm(x.permute(0, 2, 3, 1))).mean(dim=(1, 2)))


@pytest.mark.parametrize("kind", ["hint", "attention"])
def test_channels_that_come_last_in_an_image_are_channels(kind: Any) -> None:
    torch.manual_seed(0)
    student, teacher = Last(4), Last(6)
    images = torch.randn(2, 3, 8, 5)
    pupil = Pupil(student, teacher, FeatureTransfer(kind), images)
    assert [name for name, _ in pupil.pairs] == ["norm", "mix"]
    pupil(images)
    teacher(images)
    own, wanted = (each.mix(each.norm(images.permute(0, 2, 3, 1))) for each in (student, teacher))  # (B, H, W, C)
    same = student.norm(images.permute(0, 2, 3, 1))
    if kind == "hint":
        expected = 0.0
        for change, mine, its in zip(pupil.maps, (same, own), (same, wanted), strict=True):
            expected += (change(mine.permute(0, 3, 1, 2)) - its.permute(0, 3, 1, 2)).pow(2).mean()
    else:
        maps = [nn.functional.normalize(each.pow(2).mean(dim=3).flatten(1), dim=1) for each in (own, wanted)]
        expected = (maps[0] - maps[1]).pow(2).mean()
    torch.testing.assert_close(pupil.distance(), expected / 2)


def test_several_teachers_speak_as_one(task: Task) -> None:
    """The mean of logits: the geometric mean of what they predict."""
    teacher = Ensemble([Says(GIVEN), Says(WANTED)])
    images = torch.zeros(2, 3, 8, 8)
    said = teacher(images).softmax(dim=1)
    product = (GIVEN.softmax(1) * WANTED.softmax(1)).sqrt()
    torch.testing.assert_close(said, product / product.sum(dim=1, keepdim=True))
    student = Says((GIVEN + WANTED) / 2)
    assert SoftTargets(3.0, 1.0).loss(student, teacher, task)(images, TARGETS).item() == pytest.approx(0, abs=1e-6)
