"""Train a final network from scratch, with checkpoints on the way."""

from collections.abc import Callable

import torch
from torch import nn

from child.space import derive_seed
from child.task import Task
from child.training import LossOf, Training, TrainingSettings, measure
from logbook.console import Console
from logbook.run import Run

MEASUREMENTS = 10


def retrain(
    build: Callable[[], nn.Module],
    task: Task,
    settings: TrainingSettings,
    seed: int,
    stage: str,
    device: torch.device,
    run: Run,
    console: Console,
    loss_of: Callable[[nn.Module], LossOf] | None = None,
) -> tuple[nn.Module, float]:
    """Train one network, or go on where the run's last checkpoint stands.

    Args:
        build: Makes the network.
        task: What it learns; its validation split is measured a few times on the way, for the eye alone.
        settings: How it learns.
        seed: Of weights, order and augmentation.
        stage: A name for this training, unique in the run, such as `teacher`.
        device: Where to compute.
        run: For checkpoints and TensorBoard.
        console: For the person watching.
        loss_of: Given the network, its loss of a batch; the task's own by default.

    Returns:
        The network as it is after the last step, and its validation metric.
    """
    torch.manual_seed(derive_seed(seed, stage, "weights"))
    network = build().to(device)
    training = Training(network, task, settings, None, seed, stage, device)
    run.take_up(training.load_state_dict)
    loss = None if loss_of is None else loss_of(network)
    every = max(1, settings.epochs // MEASUREMENTS)
    metric = None
    with console.stage(stage, total=settings.epochs, initial=training.step_number // training.steps_per_epoch) as bar:
        while not training.finished:
            network.train()
            rate = training.learning_rate()
            value = training.step(loss)
            epoch, position = divmod(training.step_number, training.steps_per_epoch)
            if position == 0:
                scalars = {} if value is None else {f"{stage}/loss": value}
                if epoch % every == 0 or training.finished:
                    metric = measure(network, task, task.validation, settings.batch_size, device)
                    scalars[f"{stage}/validation_{task.metric_name}"] = metric
                run.log({**scalars, f"{stage}/learning_rate": rate})
                bar.advance(done=epoch, status="" if metric is None else f"validation {task.metric_name} {metric:.4f}")
            run.save_if_due(training.state_dict)
    if metric is None:  # it was stopped after its last step
        metric = measure(network, task, task.validation, settings.batch_size, device)
    return network, metric
