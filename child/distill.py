"""Knowledge distillation: a student learns from a teacher's softened outputs (Hinton, Vinyals and Dean 2015)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from child.task import Task, WithAuxiliary
from child.training import LossOf


@dataclass(frozen=True)
class SoftTargets:
    """How a student listens to its teacher.

    Args:
        temperature: Both networks' logits are divided by it before the softmax.
        weight: Share of the teacher's term in the loss; the rest is the task's own loss.
    """

    temperature: float = 4.0
    weight: float = 0.7

    def __post_init__(self) -> None:
        if not self.temperature > 0 or not 0 <= self.weight <= 1:
            raise ValueError(
                f"distillation needs temperature > 0 and weight in [0, 1], got {self.temperature} and {self.weight}"
            )

    def loss(self, student: nn.Module, teacher: nn.Module, task: Task, label_smoothing: float = 0.0) -> LossOf:
        """(1 - w) * task loss + w * T^2 * KL(teacher || student), both softened by T.

        The factor T^2 keeps the gradient of the soft term at the size it has without softening (section 2 of the
        paper). The teacher sees the same augmented batch.
        """
        teacher.eval()

        def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
            with torch.no_grad():
                wanted = functional.log_softmax(teacher(inputs).float() / self.temperature, dim=1)
            outputs = student(inputs)
            logits = outputs.outputs if isinstance(outputs, WithAuxiliary) else outputs
            given = functional.log_softmax(logits.float() / self.temperature, dim=1)
            soft = functional.kl_div(given, wanted, reduction="batchmean", log_target=True) * self.temperature**2
            return (1 - self.weight) * task.loss(outputs, targets, label_smoothing) + self.weight * soft

        return loss_of
