"""The training of a final network: that it learns as one that learns, and that what is told is of its end."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from child.retrain import retrain
from child.task import Split, Task
from child.training import TrainingSettings
from logbook.console import Console
from logbook.run import Run


class Recalling(nn.Linear):
    """Remembers of every step whether it was in training mode."""

    def __init__(self) -> None:
        super().__init__(3 * 8 * 8, 3)
        self.steps: list[bool] = []

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.steps.append(self.training)
        return super().forward(input.flatten(1))


@pytest.mark.parametrize(("epochs", "measured"), [(3, [1, 2, 3]), (25, [*range(2, 25, 2), 25])])
def test_a_network_learns_between_measurements_and_the_last_of_them_is_told(
    epochs: int,
    measured: list[int],
    make_task: Callable[..., Task],
    device: torch.device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[int] = []

    def measure(network: Recalling, task: Task, split: Split, batch_size: int, device: torch.device) -> float:
        network.eval()
        found.append(len(network.steps))
        return float(found[-1])

    monkeypatch.setattr("child.retrain.measure", measure)
    task, run = make_task(num_train=6), Run.create(tmp_path, "run", "", 30.0)
    settings = TrainingSettings(epochs=epochs, batch_size=6)  # a step each
    network, metric = retrain(Recalling, task, settings, 0, "final", device, run, Console())
    run.close()
    assert isinstance(network, Recalling) and network.steps == [True] * epochs
    assert found == measured and metric == epochs
