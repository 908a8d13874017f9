"""Distillation, against formulas worked out by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from child.distill import SoftTargets
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
