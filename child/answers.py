"""What a trained network answers to each sample of a split, beside its metric: for a look at its mistakes.

Letters: N samples.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from child.task import Classification, Objective, Regression, Split, Task
from child.training import judge


@dataclass(frozen=True)
class Answers:
    """The metric of a network on a split, and its answer to each sample.

    Args:
        metric: The task's.
        given: Classes as numbers, or values in their own unit, (N); None of a task with no one answer to a sample.
    """

    metric: float
    given: NDArray[Any] | None


def ask(network: nn.Module, task: Task, split: Split, batch_size: int, device: torch.device) -> Answers:
    """Read a split once, for both."""
    network.eval()
    given: list[Tensor] = []

    def forward(inputs: Tensor) -> list[Tensor]:
        outputs = network(inputs)
        answer = _answers(task.objective, outputs)
        if answer is not None:
            given.append(answer.cpu())
        return [outputs]

    scores = judge(forward, task, split, batch_size, device)[0]
    metric = task.objective.metric(scores, split.targets.cpu())
    return Answers(metric, torch.cat(given).numpy() if given else None)


def truth(objective: Objective, targets: Tensor) -> NDArray[Any] | None:
    """The right answers, in the same terms."""
    if isinstance(objective, Classification):
        return targets.cpu().numpy().astype(np.int32)
    if isinstance(objective, Regression):
        return (targets.cpu().float() * objective.std + objective.mean).numpy()
    return None


def _answers(objective: Objective, outputs: Tensor) -> Tensor | None:
    if isinstance(objective, Classification):
        return outputs.argmax(dim=1).int()
    if isinstance(objective, Regression):
        return outputs[:, 0].float() * objective.std + objective.mean
    return None
