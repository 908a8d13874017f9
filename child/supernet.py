"""The evaluator with shared weights: one supernet scores every architecture of a space (Pham et al. 2018)."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import ndtr, ndtri
from torch import Tensor, nn
from torch.func import functional_call

from child.cost import CostModel
from child.expressivity import expressivity
from child.norm import batch_norms, statistics_anew
from child.space import (
    Evaluation,
    Genotype,
    Improvement,
    NetworkSpace,
    Relaxation,
    RelaxedSpace,
    Sampler,
    derive_seed,
    is_out_of_memory,
)
from child.task import Split, Task
from child.training import Training, TrainingSettings, check_fit, judge, quality_or_failure

Statistics = Literal["batch", "recalibrated"]
Score = Literal["metric", "loss", "combined"]
REFERENCES = 64
"""Random architectures that a combined score is measured against."""
SCALE_STEPS = 50
"""Training steps of shared weights after which these are scored again; after every round of a search it would take a
quarter of its time."""
IMAGES = 64
"""Samples that an untrained network is to tell apart, as many as published."""
Weights = dict[str, Tensor]

TradeOff = Callable[[Tensor, Tensor], Tensor]
"""The loss of an architecture from its task loss and its cost; a reward's `loss`."""


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Normalize with the statistics of the batch at hand and leave the running ones untouched; no dropout."""
    norms = batch_norms(network)
    network.eval()
    for norm in norms:
        norm.train()
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


@contextmanager
def with_weights(network: nn.Module, weights: Weights | None) -> Iterator[None]:
    """The network with weights that it had before; None for those it has."""
    if weights is None:
        yield
        return
    now = {name: parameter.data for name, parameter in network.named_parameters()}
    try:
        for name, parameter in network.named_parameters():
            parameter.data = weights[name]
        yield
    finally:
        for name, parameter in network.named_parameters():
            parameter.data = now[name]


@dataclass(frozen=True)
class Scale:
    """Standard scores by median and quartiles, which a few that say nothing do not upset; within four."""

    middle: float
    width: float

    @staticmethod
    def by(values: Sequence[float]) -> "Scale":
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        return Scale(float(middle), max(float(high - low) / 1.349, 1e-9))  # as wide as a normal distribution's

    def of(self, value: float) -> float:
        return min(4.0, max(-4.0, (value - self.middle) / self.width))


@dataclass
class Copy:
    """A supernet, its training, and its weights at moments before, oldest first."""

    network: Any
    training: Training
    past: deque[Weights]


class _Several(nn.Module):
    """A supernet that runs several architectures at once, as every scoring does; its outputs are the last one's."""

    def __init__(self, network: Any, genotypes: Sequence[Genotype]):
        super().__init__()
        self.network: Any = network
        self.genotypes = genotypes

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (B, K) for (B, ...)."""
        outputs = self.network.forward_many(x, self.genotypes)
        if len(outputs) != len(self.genotypes):
            raise ValueError(f"forward_many gives {len(outputs)} outputs for {len(self.genotypes)} architectures")
        together = torch.stack(list(outputs))
        if len(together) > 1 and bool((together == together[0]).all()):
            raise ValueError(
                f"it gives the same for {len(together)} different architectures; each must run the choices that it "
                "makes"
            )
        return together[-1]


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
        score: What the quality is taken from: `metric`, the task's own; `loss`, which tells apart what answers equally
            many right; or `combined`, the loss and how well the architecture's own untrained network tells samples
            apart (see `child.expressivity`), each by how far it lies from the median of random architectures. The
            quality is then 1/2 for the median of random architectures and rises with the share of them that are
            worse, but slower. For spaces whose operations have a module of ReLUs: macro, micro, nasbench201.
        copies: Supernets, trained in turn on a batch each; every one gets its share of the steps.
        snapshots: From how many moments of its training the weights of each score, the present one included.
        snapshot_every: Training steps of one from one of these moments to the next.

    What single weights say of an architecture depends much on what they were trained on last. Several copies or moments
    each score a part of the validation samples of their own, so that their mean costs no more than the score of one,
    but for what each is recalibrated with (snapshot ensembles, Huang et al. 2017, without the restarts).

    Raises:
        ValueError: One of these three or `recalibration_batches` is below 1, there are too few steps for so many
            snapshots or too few samples for so many copies, or the score is combined and the networks have no ReLU.
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
        score: Score = "loss",
        copies: int = 1,
        snapshots: int = 1,
        snapshot_every: int = 500,
    ):
        if min(copies, snapshots, snapshot_every, recalibration_batches) < 1:
            raise ValueError(
                "shared weights need copies, snapshots, snapshot_every and recalibration_batches of at least 1, got "
                f"{copies}, {snapshots}, {snapshot_every} and {recalibration_batches}"
            )
        if copies > 1 and 2 * copies > len(task.validation):
            raise ValueError(
                f"each copy scores at least two of the {len(task.validation)} validation samples, got {copies} copies"
            )
        num_each = math.ceil(num_steps / copies)
        if snapshots > 1 and (snapshots - 1) * snapshot_every >= num_each:
            raise ValueError(
                f"{snapshots} snapshots that lie snapshot_every={snapshot_every} steps apart need more than the "
                f"{num_each} training steps that shared weights get; set evaluator.snapshot_every lower"
            )
        self.space, self.task, self.cost, self.settings = space, task.to(device), cost, settings
        self.judged = self.task if score == "metric" else self.task.by_loss()
        self.statistics, self.recalibration_batches, self.device = statistics, recalibration_batches, device
        self.seed, self.score = seed, score
        self.snapshot_every = snapshot_every
        self._expressivity: dict[Genotype, float] = {}
        self._loss_scales: dict[float, tuple[int, Scale]] = {}  # by the fidelity: after how many steps, and the scale
        rng = np.random.default_rng(derive_seed(seed, "references"))
        self.references = space.sample(rng, REFERENCES) if score == "combined" else []
        if score == "combined" and not any(
            isinstance(part, nn.ReLU) for drawn in self.references[:8] for part in space.network(drawn).modules()
        ):
            raise ValueError(
                f"a combined score counts rectified units, and networks of space {space.name!r} have none; set "
                "evaluator.score=loss"
            )
        self.copies = [self._copy(number, num_each, deque(maxlen=snapshots - 1)) for number in range(copies)]

    def _copy(self, number: int, num_steps: int, past: deque[Weights]) -> Copy:
        key = [str(number)] if number else []
        torch.manual_seed(derive_seed(self.seed, "supernet", "weights", *key))
        network = self.space.network().to(self.device)
        stage = " ".join(["supernet", *key])
        return Copy(
            network, Training(network, self.task, self.settings, num_steps, self.seed, stage, self.device), past
        )

    def check_supernet(self) -> None:
        """Prove that it answers for several architectures at once, and not for all the same, before it is trained.

        It is asked with weights somewhat off its own, some of which may begin at zero and so tell nothing apart.

        Raises:
            ValueError: It does not.
        """
        drawn = list(dict.fromkeys(self.space.sample(np.random.default_rng(0), 8)))
        generator = torch.Generator().manual_seed(0)
        weights = {
            name: weight.detach() + 0.1 * torch.randn(weight.shape, generator=generator).to(weight)
            for name, weight in self.network.named_parameters()
        }
        with with_weights(self.network, weights):
            check_fit(
                f"the supernet of {self.space.name}", lambda: _Several(self.network, drawn), self.task, learns=False
            )

    @property
    def network(self) -> Any:
        """The first supernet, or the only one."""
        return self.copies[0].network

    @property
    def training(self) -> Training:
        """Its training."""
        return self.copies[0].training

    def improve(self, sampler: Sampler, num_batches: int) -> Improvement:
        """Train what comes from the sampler, a new path or blend for each batch."""
        for copy in self.copies:
            copy.network.train()
        losses, smoothing = [], self.settings.label_smoothing
        done = sum(copy.training.step_number for copy in self.copies)
        for number, path in enumerate(sampler(num_batches, done), done):
            copy = self.copies[number % len(self.copies)]
            network, training = copy.network, copy.training
            if copy.past.maxlen and training.step_number > 0 and training.step_number % self.snapshot_every == 0:
                copy.past.append({name: weight.detach().clone() for name, weight in network.named_parameters()})
            try:
                losses.append(
                    training.step(lambda x, y, net=network, path=path: self.task.loss(net(x, path), y, smoothing))
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                losses.append(None)
                training.skip("memory ran out", f"batch size ({training.batch_size})")
        finite = [loss for loss in losses if loss is not None]
        mean = sum(finite) / len(finite) if finite else float("nan")
        return Improvement(mean, len(losses) - len(finite))

    def evaluate(self, genotypes: Sequence[Genotype], fidelity: float, seed: int) -> list[Evaluation]:
        """Score architectures on the same share `fidelity` of the validation data, drawn by `seed`."""
        unique = list(dict.fromkeys(genotypes))
        found = {}
        for genotype, quality in zip(unique, self._qualities(unique, fidelity, seed), strict=True):
            failure = quality if isinstance(quality, str) else None
            quality = 0.0 if isinstance(quality, str) else quality
            if failure is None and self.score == "combined":
                quality = float(ndtr(self._standard(genotype, quality, fidelity)))
            found[genotype] = Evaluation(genotype, quality, self.cost(genotype), fidelity, seed, failure)
        return [found[genotype] for genotype in genotypes]

    def _qualities(self, genotypes: Sequence[Genotype], fidelity: float, seed: int) -> list[float | str]:
        """What shared weights alone say of each architecture, or why they say nothing."""
        split = self.task.validation
        draw = derive_seed(seed if fidelity < 1 else self.seed, "validation")
        split = split.draw(min(len(split), max(2, round(fidelity * len(split)))), draw)
        return [
            scores if isinstance(scores, str) else quality_or_failure(self.judged, scores, split)
            for scores in self._scores(genotypes, split)
        ]

    def _standard(self, genotype: Genotype, quality: float, fidelity: float) -> float:
        """The mean of the standard scores of the loss, as a quality, and of the expressivity, among the references."""
        return (self._loss_scale(fidelity).of(quality) + self._expressivity_scale.of(self._tells_apart(genotype))) / 2

    def _loss_scale(self, fidelity: float) -> Scale:
        """That of the references' losses, measured again as the shared weights learn."""
        now = sum(copy.training.step_number for copy in self.copies)
        measured = self._loss_scales.get(fidelity)
        if measured is None or now - measured[0] >= SCALE_STEPS:
            qualities = self._qualities(self.references, fidelity, derive_seed(self.seed, "references"))
            known = [quality for quality in qualities if not isinstance(quality, str)]
            measured = self._loss_scales[fidelity] = now, Scale.by(known or [0.0])
        return measured[1]

    @cached_property
    def _expressivity_scale(self) -> Scale:
        return Scale.by([self._tells_apart(genotype) for genotype in self.references])

    @cached_property
    def _samples(self) -> Tensor:
        """What untrained networks are to tell apart: no two alike, which none could."""
        drawn = self.task.train.draw(4 * IMAGES, derive_seed(self.seed, "expressivity")).inputs
        first = np.sort(np.unique(drawn.flatten(1).cpu().numpy(), axis=0, return_index=True)[1])
        return self.task.preprocessing(drawn[first[:IMAGES].tolist()])

    def _tells_apart(self, genotype: Genotype) -> float:
        if genotype not in self._expressivity:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(self.seed, "expressivity", "weights"))
                network = self.space.network(genotype).to(self.device)
                self._expressivity[genotype] = expressivity(network, self._samples)
        return self._expressivity[genotype]

    def num_samples_per_score(self) -> int:
        """How many samples an architecture's score on all validation data runs through."""
        validation = self.task.validation
        recalibrated = self.statistics == "recalibrated"
        again = len(self._moments(validation)) * self._num_recalibration if recalibrated else 0
        return len(validation) + again

    def standard_error(self, quality: float) -> float:
        """Of a quality on all validation data."""
        if self.score != "combined":
            return self.judged.standard_error(quality)
        # Through both scales: what half of a standard score of the loss is worth where this quality stands.
        scale, place = self._loss_scale(1.0), ndtri(min(max(quality, 1e-6), 1 - 1e-6))
        half = self.judged.standard_error(scale.middle) / scale.width / 2
        return float(ndtr(place + half) - ndtr(place - half)) / 2

    def relaxation(self, trade_off: TradeOff) -> Relaxation | None:
        """What gradient search learns from.

        None where the supernet runs no blends, where there are several, or where the cost has no gradient.
        """
        if len(self.copies) > 1 or not isinstance(self.space, RelaxedSpace) or self.cost.unit == "latency_ms":
            return None
        return SupernetRelaxation(self, self.space, trade_off)

    def state_dict(self) -> dict[str, Any]:
        """Shared weights, now and before, their optimizer, and the costs and scales measured."""
        copies = [{"training": copy.training.state_dict(), "past": list(copy.past)} for copy in self.copies]
        scales = [[fidelity, step, *astuple(scale)] for fidelity, (step, scale) in self._loss_scales.items()]
        return {"copies": copies, "cost": self.cost.state_dict(), "scales": scales}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state_dict` gave."""
        for copy, saved in zip(self.copies, state["copies"], strict=True):
            copy.training.load_state_dict(saved["training"])
            copy.past.clear()
            copy.past.extend(
                {name: each.to(self.device) for name, each in weights.items()} for weights in saved["past"]
            )
        self.cost.load_state_dict(state["cost"])
        self._loss_scales = {fidelity: (step, Scale(*scale)) for fidelity, step, *scale in state["scales"]}

    def _scores(self, genotypes: Sequence[Genotype], split: Split) -> list[Tensor | str]:
        """The scores (N) of each architecture, or why there are none."""
        moments = self._moments(split)
        places = torch.arange(len(split)).tensor_split(len(moments))
        parts = [split] if len(moments) == 1 else map(split.take, places)
        try:
            judged = []
            for (network, weights), part in zip(moments, parts, strict=True):
                with with_weights(network, weights):
                    judged.append(self._judge(network, genotypes, part))
            return [torch.cat(scores) for scores in zip(*judged, strict=True)]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(genotypes) == 1:
                return ["out of memory"]
            return [self._scores([genotype], split)[0] for genotype in genotypes]

    def _moments(self, split: Split) -> list[tuple[Any, Weights | None]]:
        """The networks that share a split, with their weights of a moment before, or None for those of now."""
        moments = [(copy.network, weights) for copy in self.copies for weights in (*copy.past, None)]
        return moments[-max(1, len(split) // 2) :]  # two samples for each at least: one alone has no statistics

    @property
    def _num_recalibration(self) -> int:
        """How many training samples statistics are gathered from."""
        return min(len(self.task.train), self.recalibration_batches * self.settings.batch_size)

    def _judge(self, network: Any, genotypes: Sequence[Genotype], split: Split) -> list[Tensor]:
        """All architectures walk through the data together, so that shared beginnings are computed once."""
        batch_size = self.settings.batch_size
        if self.statistics == "recalibrated":
            return [self._recalibrated(network, genotype, split) for genotype in genotypes]
        with batch_statistics(network):
            return judge(lambda x: network.forward_many(x, genotypes), self.judged, split, batch_size, self.device)

    def _recalibrated(self, network: Any, genotype: Genotype, split: Split) -> Tensor:
        norms, batch_size = batch_norms(network), self.settings.batch_size
        before = [{name: value.clone() for name, value in norm.named_buffers()} for norm in norms]
        train = self.task.train.draw(self._num_recalibration, derive_seed(self.seed, "recalibration"))
        try:
            with statistics_anew(network):
                judge(lambda x: [network(x, genotype)], self.task, train, batch_size, self.device)
            return judge(lambda x: [network(x, genotype)], self.judged, split, batch_size, self.device)[0]
        finally:
            for norm, buffers in zip(norms, before, strict=True):
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
        try:
            with (
                batch_statistics(network),
                torch.autocast(where.type, enabled=where.type == "cuda", dtype=torch.bfloat16),
            ):
                if unrolled:
                    weights = self._after_a_step(weights, choices)
                task_loss = self._task_loss(weights, choices, *self._batch(step))
        finally:  # also where memory runs out, after which the search goes on
            network.train(was_training)
        return self.trade_off(task_loss, self.space.expected_cost(choices, self.evaluator.cost.unit))

    def num_skips(self, genotype: Genotype) -> int:
        """As of the space."""
        return self.space.num_skips(genotype)

    def _task_loss(
        self, weights: Mapping[str, Tensor], choices: Tensor, inputs: Tensor, targets: Tensor, smoothing: float = 0.0
    ) -> Tensor:
        # Edges that share a convolution share the module, which is exchanged once and so given back as it was.
        outputs = functional_call(self.evaluator.network, dict(weights), (inputs, choices), tie_weights=False)
        return self.evaluator.task.loss(outputs, targets, smoothing)

    def _after_a_step(self, weights: Mapping[str, Tensor], choices: Tensor) -> dict[str, Tensor]:
        """The shared weights after the coming training step, as functions of the choices (Liu et al. 2019, eq. 6).

        It is the step of the trainer, weight decay, clipping, Nesterov's momentum and smoothed labels included, but
        without its dropout. Where the paper takes finite differences of its gradient, here it is differentiated itself.
        """
        training, settings = self.evaluator.training, self.evaluator.settings
        loss = self._task_loss(weights, choices, *training.batch(), settings.label_smoothing)
        found = torch.autograd.grad(
            loss, list(weights.values()), create_graph=True, allow_unused=True, materialize_grads=True
        )
        norm = torch.stack([gradient.square().sum() for gradient in found]).sum().sqrt()
        scale = (settings.clip / (norm + 1e-6)).clamp(max=1)  # as clip_grad_norm_ has it
        rate, decay, momentum = training.learning_rate(), settings.weight_decay, settings.momentum
        after = {}
        for (name, weight), gradient in zip(weights.items(), found, strict=True):
            step = (1 + momentum) * (scale * gradient + decay * weight)
            buffer = training.optimizer.state.get(weight, {}).get("momentum_buffer")  # none before the first step
            after[name] = weight - rate * (step if buffer is None else step + momentum**2 * buffer)
        return after

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Validation samples, as prepared for scoring; every epoch goes through them in an order of its own."""
        task, training = self.evaluator.task, self.evaluator.training
        epoch, position = divmod(step, self.steps_per_epoch)
        shuffle = torch.Generator().manual_seed(derive_seed(training.seed, "relaxation", "order", epoch))
        order = torch.randperm(len(task.validation), generator=shuffle)
        batch = task.validation.take(order[position * self.batch_size : (position + 1) * self.batch_size])
        return task.preprocessing(batch.inputs), batch.targets
