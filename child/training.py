"""The one training loop: shared weights, stand-alone candidates, teachers and students all learn through it."""

import copy
import ctypes
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from child.norm import batch_norms
from child.operations import DropPath
from child.space import derive_seed, is_out_of_memory
from child.task import Split, Task, WithAuxiliary

MAX_SKIPPED = 5

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h

Forward = Callable[[Tensor], Tensor]
LossOf = Callable[[Tensor, Tensor], Tensor]
"""Inputs and targets of a batch to a scalar loss."""


class TrainingError(RuntimeError):
    """Training cannot go on, or led to outputs that are not finite."""


@dataclass(frozen=True)
class TrainingSettings:
    """SGD with Nesterov momentum and a cosine schedule, ENAS's and DARTS's recipe.

    Args:
        epochs: Passes over the training data; shared weights are trained in batches instead and ignore it.
        batch_size: Samples per step.
        learning_rate: At the start of the cosine.
        final_learning_rate: At its end.
        restart_every: Steps after which the cosine starts again (Loshchilov and Hutter 2017); None for never.
        momentum: Nesterov momentum.
        weight_decay: L2 penalty.
        clip: Largest norm of the whole gradient.
        label_smoothing: Share of the target spread over all classes.
    """

    epochs: int = 50
    batch_size: int = 128
    learning_rate: float = 0.05
    final_learning_rate: float = 0.0005
    restart_every: int | None = None
    momentum: float = 0.9
    weight_decay: float = 2.5e-4
    clip: float = 5.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"training.{name} must be above 0, got {getattr(self, name)}")
        if self.restart_every is not None and self.restart_every < 1:
            raise ValueError(f"training.restart_every must be at least 1 step, got {self.restart_every}")
        for name, limit in (
            ("final_learning_rate", math.inf),
            ("momentum", 1.0),
            ("weight_decay", math.inf),
            ("label_smoothing", 1.0),
        ):
            if not 0 <= getattr(self, name) < limit:
                raise ValueError(f"training.{name} must be in [0, {limit}), got {getattr(self, name)}")

    @property
    def final_batch(self) -> int:
        """Samples per batch of the final measurements, where nothing is learned."""
        return 4 * self.batch_size

    def batch_of(self, num_samples: int) -> int:
        """Samples per step of a training on so many: no more than there are."""
        return min(self.batch_size, num_samples)

    def num_steps(self, num_samples: int, share: float = 1.0) -> int:
        """Steps of a training on so many samples, or of a share of it, at least one.

        Whole batches only: a small last one would upset batch normalization.
        """
        return max(1, round(share * self.epochs * (num_samples // self.batch_of(num_samples))))


@dataclass(frozen=True)
class FineTuning:
    """How a network is trained after a change to it; all else is as in the task's own training (`retrain.training`).

    Args:
        epochs: Passes over the training data; 0 for none.
        rate: The share of the task's learning rate that it begins with.
    """

    epochs: int
    rate: float

    def __post_init__(self) -> None:
        if self.epochs < 0 or not self.rate > 0:
            raise ValueError(f"fine-tuning needs epochs >= 0 and rate > 0, got {self.epochs} and {self.rate}")


def prepare_process() -> None:
    """What every run asks of the process it has to itself.

    NumPy's matrices here are small: products of them gain nothing from several threads, whose waiting for one another
    makes two runs side by side take twice as long.
    """
    threadpool_limits(1, user_api="blas")
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Ask the allocator to keep what tensors free for the tensors to come, where it is glibc's.

    By default every tensor above 128 KiB to 32 MiB is a mapping of its own, whose pages the system must clear again and
    again: a quarter of a small network's forward pass, and more than half of the time to augment a batch.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another system or another allocator
        return
    mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
    mallopt(_M_TRIM_THRESHOLD, 512 << 20)


def choose_device(wanted: str) -> torch.device:
    """The device that the config names; with `auto` the first CUDA device where there is one."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda was asked for, but PyTorch sees no CUDA device; allowed here: auto, cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def check_fit(key: str, build: Callable[[], nn.Module], task: Task, learns: bool = True) -> None:
    """Prove on two samples that a network reads what the task gives, and gives what is compared with the answers.

    Args:
        key: Of the config, for messages.
        build: Makes the network.
        task: Whose samples they are.
        learns: Whether this network is trained too, and not only asked.
    """
    two = task.train.take(range(min(2, len(task.train))))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            network, inputs = build().eval(), task.preprocessing(two.inputs)
            outputs = network(inputs)
            if not isinstance(outputs, Tensor):
                raise TypeError(f"it gives a {type(outputs).__name__}, and one tensor is needed")
            scores = task.objective.scores(outputs, two.targets)
            if outputs.shape[-1] != task.num_outputs:
                raise ValueError(f"it gives {outputs.shape[-1]} outputs, and {task.num_outputs} are needed")
            if scores.shape != two.targets.shape[:1]:
                raise ValueError(f"it gives outputs of shape {tuple(outputs.shape)}, which are not one for each sample")
            if not inputs.is_floating_point():
                _check_symbols(network, inputs)
            if learns and next(network.parameters(), None) is None:
                raise ValueError("it has no parameters, and so nothing to learn")
            if learns and len(two.targets) > 1:  # batch normalization learns nothing from a single one
                given = copy.deepcopy(network).train()(inputs)
                if not isinstance(given, Tensor | WithAuxiliary):
                    raise TypeError(f"while it learns it gives a {type(given).__name__}, and one tensor is needed")
                task.loss(given, two.targets)
        except Exception as error:  # it may be a user's class, and there is no list of what that may raise
            if is_out_of_memory(error):
                raise
            given = f"inputs {task.input_shape}, targets {tuple(two.targets.shape[1:]) or 'of one value'}"
            why = str(error) if isinstance(error, RuntimeError | ValueError | TypeError) else repr(error)
            if "view size is not compatible" in why and two.inputs.ndim == 4:
                why = "x.view(...) needs another order in memory than images have here, channels last; use x.flatten(1)"
            raise ValueError(f"{key}: does not fit the task {task.name} ({given}): {why}") from None


def _check_symbols(network: nn.Module, inputs: Tensor) -> None:
    try:
        network(inputs.float())
    except (RuntimeError, TypeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            "symbols come as floats too, where costs are counted: let its forward begin with x = x.long() "
            f"({str(error).splitlines()[0]})"
        ) from None


class Training:
    """A network learning a task, step by step.

    Order, augmentation and dropout of every step are drawn from (seed, stage, step), so that a training that was
    stopped goes on exactly from its `state_dict`.

    Args:
        network: Learns in place; must be on `device` already.
        task: Its training split must be on `device` already.
        settings: Optimizer and schedule.
        num_steps: Length of the whole training; None for the settings' epochs.
        seed: The run's seed.
        stage: A name for this training, unique in the run.
        device: Where to compute; with CUDA in mixed precision.
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        settings: TrainingSettings,
        num_steps: int | None,
        seed: int,
        stage: str,
        device: torch.device,
    ):
        self.network, self.task, self.settings = network, task, settings
        self.seed, self.stage, self.device = seed, stage, device
        self.batch_size = settings.batch_of(len(task.train))
        self.steps_per_epoch = len(task.train) // self.batch_size
        self.num_steps = settings.num_steps(len(task.train)) if num_steps is None else num_steps
        self.step_number = 0
        self.num_skipped_in_a_row = 0
        self.optimizer = torch.optim.SGD(
            network.parameters(),
            settings.learning_rate,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
            weight_decay=settings.weight_decay,
        )
        # torch.manual_seed would walk through every kind of device, at 0.4 ms a step. A network may draw on the
        # processor wherever it computes.
        self._seed_draws: list[Callable[[int], object]] = [torch.default_generator.manual_seed]
        if device.type == "cuda":
            self._seed_draws.append(torch.cuda.manual_seed)
        self._order: tuple[int, Tensor] | None = None
        self._drop_paths = [module for module in network.modules() if isinstance(module, DropPath)]

    @property
    def finished(self) -> bool:
        """Whether the last step has been taken."""
        return self.step_number >= self.num_steps

    def learning_rate(self) -> float:
        """Of the coming step."""
        period = self.settings.restart_every or max(self.num_steps, 1)
        position = (self.step_number % period) / period
        low, high = self.settings.final_learning_rate, self.settings.learning_rate
        return low + (high - low) * (1 + math.cos(math.pi * position)) / 2

    def step(self, loss_of: LossOf | None = None) -> float | None:
        """One batch: forward, backward, clip, update.

        Args:
            loss_of: The loss of a batch; by default the task's loss of the network's outputs.

        Returns:
            The loss; None where loss or gradient was not finite, and so nothing was updated.

        Raises:
            TrainingError: That happened five times in a row.
        """
        inputs, targets = self.batch()
        draws = derive_seed(self.seed, self.stage, "dropout", self.step_number)
        for seed_draws in self._seed_draws:
            seed_draws(draws)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        for drop_path in self._drop_paths:
            drop_path.progress = self.step_number / self.num_steps
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, enabled=self.device.type == "cuda", dtype=torch.bfloat16):
            if loss_of is None:
                loss = self.task.loss(self.network(inputs), targets, self.settings.label_smoothing)
            else:
                loss = loss_of(inputs, targets)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        if not torch.isfinite(norm) or not torch.isfinite(loss):
            self._heal_statistics()
            self.skip("loss or gradient was not finite", f"learning rate ({self.settings.learning_rate:g})")
            return None
        self.step_number += 1
        self.num_skipped_in_a_row = 0
        self.optimizer.step()
        return loss.item()

    def skip(self, why: str, lower: str) -> None:
        """Leave a step out.

        Args:
            why: What went wrong.
            lower: What to make smaller against it.

        Raises:
            TrainingError: It is the fifth in a row.
        """
        self.step_number += 1
        self.num_skipped_in_a_row += 1
        if self.num_skipped_in_a_row >= MAX_SKIPPED:
            raise TrainingError(
                f"training of {self.stage} stopped at step {self.step_number}: {why} {MAX_SKIPPED} times in a row; "
                f"lower its {lower}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer and position."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step_number": self.step_number,
            "num_skipped_in_a_row": self.num_skipped_in_a_row,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state_dict` gave."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step_number = state["step_number"]
        self.num_skipped_in_a_row = state["num_skipped_in_a_row"]

    def _heal_statistics(self) -> None:
        """Begin running statistics again that took in values that are not finite, for they would never lose them."""
        for norm in batch_norms(self.network):
            statistics = (norm.running_mean, norm.running_var)
            if not all(values is None or bool(values.isfinite().all()) for values in statistics):
                norm.reset_running_stats()

    def batch(self) -> tuple[Tensor, Tensor]:
        """Augmented inputs and targets of the coming step."""
        epoch, position = divmod(self.step_number, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            shuffle = torch.Generator().manual_seed(derive_seed(self.seed, self.stage, "order", epoch))
            self._order = epoch, torch.randperm(len(self.task.train), generator=shuffle)
        indices = self._order[1][position * self.batch_size : (position + 1) * self.batch_size]
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.stage, "augment", self.step_number))
        return self.task.training_batch(indices, generator)


def predict(forward: Forward, task: Task, split: Split, batch_size: int, device: torch.device) -> Tensor:
    """Outputs (N, ...) of a split without augmentation, in float32 on the processor."""
    with _evaluating(device):
        return torch.cat([forward(inputs).float().cpu() for inputs, _ in _batches(task, split, batch_size, device)])


def judge(
    forward: Callable[[Tensor], Sequence[Tensor]], task: Task, split: Split, batch_size: int, device: torch.device
) -> list[Tensor]:
    """The scores (N) of a split's samples, for each of the outputs that `forward` gives for the same inputs.

    All scores of an output are NaN in a batch where it is not finite. Outputs are not kept: those of a text would not
    fit into memory.
    """
    batches = []
    with _evaluating(device):
        for inputs, targets in _batches(task, split, batch_size, device):
            found = [outputs.float() for outputs in forward(inputs)]
            scores = [task.objective.scores(outputs, targets) for outputs in found]
            nothing = torch.full((len(targets),), math.nan, dtype=torch.float64)
            batches.append([
                each.cpu() if bool(outputs.isfinite().all()) else nothing
                for outputs, each in zip(found, scores, strict=True)
            ])  # fmt: skip
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


def grade(network: nn.Module, task: Task, split: Split, batch_size: int, device: torch.device) -> Tensor:
    """The scores (N) of a split's samples from a fixed network."""
    network.eval()
    return judge(lambda inputs: [network(inputs)], task, split, batch_size, device)[0]


def quality_or_failure(task: Task, scores: Tensor, split: Split) -> float | str:
    """The quality from all scores (N) of a split, or why there is none."""
    return task.quality(scores, split.targets.cpu()) if bool(scores.isfinite().all()) else "outputs not finite"


def measure(network: nn.Module, task: Task, split: Split, batch_size: int, device: torch.device) -> float:
    """The task's metric of a fixed network on a split."""
    return task.objective.metric(grade(network, task, split, batch_size, device), split.targets.cpu())


@contextmanager
def _evaluating(device: torch.device) -> Iterator[None]:
    """Without gradients; with CUDA in mixed precision."""
    with torch.no_grad(), torch.autocast(device.type, enabled=device.type == "cuda", dtype=torch.bfloat16):
        yield


def _batches(task: Task, split: Split, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Prepared inputs and targets of a split, in even pieces: one sample left over would have no batch statistics."""
    pieces = max(1, math.ceil(len(split) / batch_size))
    parts = zip(split.inputs.tensor_split(pieces), split.targets.tensor_split(pieces), strict=True)
    for inputs, targets in parts:
        yield task.preprocessing(inputs.to(device)), targets.to(device)
