"""The evaluator with shared weights: one supernet scores every architecture of a space (Pham et al. 2018)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from child.cost import CostModel, is_out_of_memory
from child.space import Evaluation, Genotype, Improvement, NetworkSpace, Relaxation, RelaxedSpace, Sampler, derive_seed
from child.task import Split, Task
from child.training import Training, TrainingSettings, judge

Statistics = Literal["batch", "recalibrated"]
Score = Literal["metric", "loss"]

TradeOff = Callable[[Tensor, Tensor], Tensor]
"""The loss of an architecture from its task loss and its cost; a reward's `loss`."""


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Normalize with the statistics of the batch at hand and leave the running ones untouched; no dropout."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    network.eval()
    for norm in norms:
        norm.train()
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


class SupernetEvaluator:
    """Quality from shared weights, on validation data.

    Args:
        space: Builds the supernet, which must offer `forward(x, genotype)` and `forward_many(x, genotypes)`.
        task: Shared weights learn from its training split; qualities come from its validation split.
        cost: The cost of a genotype.
        settings: How the shared weights are trained.
        num_steps: Training steps of the whole search, for the schedule.
        statistics: Batch normalization while scoring: `batch`, the statistics of the validation batch; or
            `recalibrated`, running statistics gathered anew for each architecture from training batches.
        recalibration_batches: How many of them.
        seed: The run's seed.
        device: Where to compute.
        score: What the quality is taken from: `metric`, the task's own; or `loss`, which tells apart what answers
            equally many right.
    """

    def __init__(
        self,
        space: NetworkSpace,
        task: Task,
        cost: CostModel,
        settings: TrainingSettings,
        num_steps: int,
        statistics: Statistics,
        recalibration_batches: int,
        seed: int,
        device: torch.device,
        score: Score = "metric",
    ):
        self.space, self.task, self.cost, self.settings = space, task.to(device), cost, settings
        self.judged = self.task if score == "metric" else replace(self.task, objective=task.objective.by_loss())
        self.statistics, self.recalibration_batches, self.device = statistics, recalibration_batches, device
        self.seed = seed
        torch.manual_seed(derive_seed(seed, "supernet", "weights"))
        self.network: Any = space.network().to(device)
        self.training = Training(self.network, self.task, settings, num_steps, seed, "supernet", device)

    def improve(self, sampler: Sampler, num_batches: int) -> Improvement:
        """Train what comes from the sampler, a new path or blend for each batch."""
        self.network.train()
        losses, smoothing = [], self.settings.label_smoothing
        for path in sampler(num_batches, self.training.step_number):
            try:
                losses.append(
                    self.training.step(lambda x, y, path=path: self.task.loss(self.network(x, path), y, smoothing))
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                losses.append(None)
                self.training.skip("memory ran out", f"batch size ({self.training.batch_size})")
        finite = [loss for loss in losses if loss is not None]
        mean = sum(finite) / len(finite) if finite else float("nan")
        return Improvement(mean, len(losses) - len(finite))

    def evaluate(self, genotypes: Sequence[Genotype], fidelity: float, seed: int) -> list[Evaluation]:
        """Score architectures on the same share `fidelity` of the validation data, drawn by `seed`."""
        split = self.task.validation
        draw = derive_seed(seed if fidelity < 1 else self.seed, "validation")
        split = split.draw(max(1, round(fidelity * len(split))), draw)
        unique = list(dict.fromkeys(genotypes))
        targets = split.targets.cpu()
        found = {}
        for genotype, scores in zip(unique, self._scores(unique, split), strict=True):
            if isinstance(scores, str):
                quality, failure = 0.0, scores
            elif not bool(scores.isfinite().all()):
                quality, failure = 0.0, "outputs not finite"
            else:
                quality, failure = self.judged.quality(scores, targets), None
            found[genotype] = Evaluation(genotype, quality, self.cost(genotype), fidelity, seed, failure)
        return [found[genotype] for genotype in genotypes]

    def standard_error(self, quality: float) -> float:
        """Of a quality on all validation data."""
        return self.judged.standard_error(quality)

    def relaxation(self, trade_off: TradeOff) -> Relaxation | None:
        """What gradient search learns from; None where the supernet runs no blends, or the cost has no gradient."""
        if not isinstance(self.space, RelaxedSpace) or self.cost.unit == "latency_ms":
            return None
        return SupernetRelaxation(self, self.space, trade_off)

    def state_dict(self) -> dict[str, Any]:
        """Shared weights, their optimizer, and the costs measured."""
        return {"training": self.training.state_dict(), "cost": self.cost.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state_dict` gave."""
        self.training.load_state_dict(state["training"])
        self.cost.load_state_dict(state["cost"])

    def _scores(self, genotypes: Sequence[Genotype], split: Split) -> list[Tensor | str]:
        """The scores (N) of each architecture, or why there are none."""
        try:
            return list(self._judge(genotypes, split))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(genotypes) == 1:
                return ["out of memory"]
            return [self._scores([genotype], split)[0] for genotype in genotypes]

    def _judge(self, genotypes: Sequence[Genotype], split: Split) -> list[Tensor]:
        """All architectures walk through the data together, so that shared beginnings are computed once."""
        batch_size = self.settings.batch_size
        if self.statistics == "recalibrated":
            return [self._recalibrated(genotype, split) for genotype in genotypes]
        with batch_statistics(self.network):
            return judge(lambda x: self.network.forward_many(x, genotypes), self.judged, split, batch_size, self.device)

    def _recalibrated(self, genotype: Genotype, split: Split) -> Tensor:
        norms = [module for module in self.network.modules() if isinstance(module, nn.BatchNorm2d)]
        before = [({name: value.clone() for name, value in norm.named_buffers()}, norm.momentum) for norm in norms]
        count = min(len(self.task.train), self.recalibration_batches * self.settings.batch_size)
        train = self.task.train.draw(count, derive_seed(self.seed, "recalibration"))
        batch_size = self.settings.batch_size
        self.network.eval()
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a cumulative mean
                norm.train()
            judge(lambda x: [self.network(x, genotype)], self.task, train, batch_size, self.device)
            self.network.eval()
            return judge(lambda x: [self.network(x, genotype)], self.judged, split, batch_size, self.device)[0]
        finally:
            for norm, (buffers, momentum) in zip(norms, before, strict=True):
                norm.momentum = momentum
                for name, value in buffers.items():
                    norm.get_buffer(name).copy_(value)


class SupernetRelaxation:
    """The loss of blends of all architectures on validation data, to be differentiated by their choice weights.

    Batches are normalized by their own statistics and nothing is dropped, as where architectures are scored.

    Args:
        evaluator: Its shared weights; what it trains in between changes them here too.
        space: Its space.
        trade_off: What is made of a task loss and an expected cost.
    """

    def __init__(self, evaluator: SupernetEvaluator, space: RelaxedSpace, trade_off: TradeOff):
        self.evaluator, self.space, self.trade_off = evaluator, space, trade_off
        self.batch_size = evaluator.settings.batch_of(len(evaluator.task.validation))
        self.steps_per_epoch = len(evaluator.task.validation) // self.batch_size

    def loss(self, choices: Tensor, step: int, unrolled: bool = False) -> Tensor:
        """The trade-off of a validation batch's task loss and the expected cost, under choice weights (T, C)."""
        network, where = self.evaluator.network, self.evaluator.device
        weights, was_training = dict(network.named_parameters()), network.training
        choices = choices.to(where)
        with (
            batch_statistics(network),
            torch.autocast(where.type, enabled=where.type == "cuda", dtype=torch.bfloat16),
        ):
            if unrolled:
                weights = self._after_a_step(weights, choices)
            task_loss = self._task_loss(weights, choices, *self._batch(step))
        network.train(was_training)
        return self.trade_off(task_loss, self.space.expected_cost(choices, self.evaluator.cost.unit))

    def num_skips(self, genotype: Genotype) -> int:
        """As of the space."""
        return self.space.num_skips(genotype)

    def _task_loss(
        self, weights: Mapping[str, Tensor], choices: Tensor, inputs: Tensor, targets: Tensor, smoothing: float = 0.0
    ) -> Tensor:
        outputs = functional_call(self.evaluator.network, dict(weights), (inputs, choices))
        return self.evaluator.task.loss(outputs, targets, smoothing)

    def _after_a_step(self, weights: Mapping[str, Tensor], choices: Tensor) -> dict[str, Tensor]:
        """The shared weights after the coming training step, as functions of the choices (Liu et al. 2019, eq. 6).

        It is the step of the trainer, weight decay, clipping and smoothed labels included, without the momentum (which
        the public code adds: it moves the point, not how the point depends on the choices). Where the paper takes
        finite differences of its gradient, here it is differentiated itself.
        """
        training, settings = self.evaluator.training, self.evaluator.settings
        loss = self._task_loss(weights, choices, *training.batch(), settings.label_smoothing)
        found = torch.autograd.grad(
            loss, list(weights.values()), create_graph=True, allow_unused=True, materialize_grads=True
        )
        norm = torch.stack([gradient.square().sum() for gradient in found]).sum().sqrt()
        scale = (settings.clip / (norm + 1e-6)).clamp(max=1)  # as clip_grad_norm_ has it
        rate, decay = training.learning_rate(), settings.weight_decay
        return {
            name: weight - rate * (scale * gradient + decay * weight)
            for (name, weight), gradient in zip(weights.items(), found, strict=True)
        }

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Validation samples, as prepared for scoring; every epoch goes through them in an order of its own."""
        task, training = self.evaluator.task, self.evaluator.training
        epoch, position = divmod(step, self.steps_per_epoch)
        shuffle = torch.Generator().manual_seed(derive_seed(training.seed, "relaxation", "order", epoch))
        order = torch.randperm(len(task.validation), generator=shuffle)
        batch = task.validation.take(order[position * self.batch_size : (position + 1) * self.batch_size])
        return task.preprocessing(batch.inputs), batch.targets
