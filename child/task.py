"""What a child is trained on: data splits in memory, and an objective with its loss, metric and quality.

Letters: N samples, B samples of a batch, C channels, H height, W width, K outputs, T positions of a text.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

Unit = Literal["characters", "words"]


class WithAuxiliary(NamedTuple):
    """What a network with an auxiliary head gives in training: its outputs, the head's, and its weight in the loss."""

    outputs: Tensor
    auxiliary: Tensor
    weight: float


@dataclass(frozen=True)
class Split:
    """Samples held in memory.

    Args:
        inputs: As stored; (N, ...). Images are uint8 (N, C, H, W), fastest with channels last.
        targets: int64 (N) for classes, float32 (N) for values, int64 (N, T) for text.
        groups: Samples of one group (a speaker, a patient) are never on both sides of a split; int64 (N), or None.
    """

    inputs: Tensor
    targets: Tensor
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: Tensor | Sequence[int]) -> "Split":
        """The samples at these places."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)  # on the processor, where groups stay
        groups = None if self.groups is None else self.groups[chosen]
        where = chosen.to(self.inputs.device)
        return Split(_gather(self.inputs, where), self.targets[where], groups)

    def draw(self, count: int, seed: int) -> "Split":
        """So many samples drawn by the seed, in no order: batches of one class would have statistics of their own."""
        return self.take(torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count])

    def join(self, other: "Split") -> "Split":
        """Both, end to end."""
        groups = None
        if self.groups is not None and other.groups is not None:
            groups = torch.cat([self.groups, other.groups])
        return Split(torch.cat([self.inputs, other.inputs]), torch.cat([self.targets, other.targets]), groups)

    def to(self, device: torch.device) -> "Split":
        """The same on another device."""
        return Split(self.inputs.to(device), self.targets.to(device), self.groups)


class SealedSplit:
    """The test set: closed until every choice is written down, then read once by each network.

    So a search cannot lean on test data by mistake: reading it early, or twice for one network, is an error.
    """

    def __init__(self, split: Split):
        self._split = split
        self._open = False
        self._readers: set[str] = set()

    def __len__(self) -> int:
        return len(self._split)

    def unseal(self) -> None:
        """Allow reading; called once, when no choice is left to be made."""
        self._open = True

    def read(self, network: str) -> Split:
        """The test samples, for this network's one measurement.

        Raises:
            PermissionError: The set is still sealed, or this network has read it before.
        """
        if not self._open:
            raise PermissionError(f"the test set is sealed until every choice is made; {network!r} must wait")
        if network in self._readers:
            raise PermissionError(f"{network!r} has already been measured on the test set; once is all it gets")
        self._readers.add(network)
        return self._split


class Objective(Protocol):
    """What is to be learned: how outputs are compared with targets. Plain data that goes into `network.json`."""

    higher_is_better: bool

    @property
    def metric_name(self) -> str: ...

    @property
    def num_outputs(self) -> int:
        """Outputs K that a network needs."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The mean loss of a batch, a scalar."""
        ...

    def imitation(self, outputs: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        """The mean loss of a student's outputs against its teacher's, a scalar."""
        ...

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What each sample adds to the metric, float64 (B)."""
        ...

    def metric(self, scores: Tensor, targets: Tensor) -> float:
        """The metric of all samples from their scores (N)."""
        ...

    def quality(self, metric: float) -> float:
        """The reward's P_data: bounded in [0, 1], higher is better."""
        ...

    def standard_error(self, quality: float, targets: Tensor) -> float:
        """Of a quality measured on so many samples."""
        ...

    def by_loss(self) -> "Objective":
        """The same, but for a quality that follows from the mean loss alone, and so is finer than a count."""
        ...


@dataclass(frozen=True)
class Classification:
    """One class of several; the metric is accuracy, which is the quality too.

    Args:
        classes: Their names, in the order of the outputs.
    """

    classes: tuple[str, ...]

    higher_is_better = True

    @property
    def metric_name(self) -> str:
        return "accuracy"

    @property
    def num_outputs(self) -> int:
        return len(self.classes)

    def loss(self, outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy of logits (B, K)."""
        return functional.cross_entropy(outputs, targets, label_smoothing=label_smoothing)

    def imitation(self, outputs: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        """T^2 KL(teacher || student), both softened by T (Hinton, Vinyals and Dean 2015, section 2)."""
        return _soft_divergence(outputs, wanted, temperature)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1 where the largest logit is the target's, else 0."""
        return (outputs.argmax(dim=1) == targets).double()

    def metric(self, scores: Tensor, targets: Tensor) -> float:
        """Accuracy, in [0, 1]."""
        return scores.mean().item()

    def quality(self, metric: float) -> float:
        """Accuracy as it is."""
        return metric

    def standard_error(self, quality: float, targets: Tensor) -> float:
        """Of a share of right answers; where all or none are right, as if one more were not: no set is that sure."""
        least = 1 / (len(targets) + 2)
        share = min(max(quality, least), 1 - least)
        return math.sqrt(share * (1 - share) / len(targets))

    def by_loss(self) -> "Objective":
        """By cross-entropy."""
        return CrossEntropy(self.classes)


class CrossEntropy(Classification):
    """One class of several, judged by the probability of the right one: the metric is the mean loss in nats."""

    higher_is_better = False

    @property
    def metric_name(self) -> str:
        return "loss"

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood of each sample, nats."""
        return functional.cross_entropy(outputs, targets, reduction="none").double()

    def metric(self, scores: Tensor, targets: Tensor) -> float:
        """Nats per sample."""
        return scores.mean().item()

    def quality(self, metric: float) -> float:
        """As for a text."""
        return _quality_of_nats(metric, len(self.classes))

    def standard_error(self, quality: float, targets: Tensor) -> float:
        """As for a text.

        That holds of shared weights. What is trained on its own to the end is wrong about few samples and by far: there
        losses were seen to spread 3 to 6 times as much as their mean, and the error is as much larger than told.
        """
        return _error_of_nats(quality, targets)


@dataclass(frozen=True)
class Regression:
    """One number; the metric is R squared, the share of the variance explained.

    Targets are stored standardized, and outputs are in that scale.

    Args:
        name: Of the number.
        mean: Of the training targets.
        std: Of the training targets.
    """

    name: str
    mean: float
    std: float

    higher_is_better = True

    @property
    def metric_name(self) -> str:
        return "R squared"

    @property
    def num_outputs(self) -> int:
        return 1

    def loss(self, outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Mean squared error of outputs (B, 1); labels cannot be smoothed here."""
        return functional.mse_loss(outputs[:, 0], targets)

    def imitation(self, outputs: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        """Mean squared distance to the teacher; a value has no temperature."""
        return functional.mse_loss(outputs, wanted)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Squared errors."""
        return (outputs[:, 0].double() - targets.double()) ** 2

    def metric(self, scores: Tensor, targets: Tensor) -> float:
        """1 - squared errors / squared distances from the mean of these targets; below 0 where worse than that mean."""
        spread = ((targets.double() - targets.double().mean()) ** 2).sum().clamp(min=1e-12)
        return (1 - scores.sum() / spread).item()

    def quality(self, metric: float) -> float:
        """1 / (1 + unexplained share): 1 for a perfect answer, 1/2 for the mean, above 0 for anything finite."""
        return 1 / (2 - metric)

    def standard_error(self, quality: float, targets: Tensor) -> float:
        """Taking the errors as normal, so that a squared error deviates by sqrt(2) of its mean."""
        return quality * (1 - quality) * math.sqrt(2 / len(targets))

    def by_loss(self) -> "Objective":
        """This is by the loss already."""
        return self


@dataclass(frozen=True)
class Language:
    """The next symbol of a text at each position.

    Args:
        symbols: Their names, in the order of the outputs.
        unit: `characters`, whose metric is bits per character, or `words`, whose metric is perplexity.
    """

    symbols: tuple[str, ...]
    unit: Unit

    higher_is_better = False

    @property
    def metric_name(self) -> str:
        return "bits per character" if self.unit == "characters" else "perplexity"

    @property
    def num_outputs(self) -> int:
        return len(self.symbols)

    def loss(self, outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy, nats per symbol, of logits (B, T, K)."""
        return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), label_smoothing=label_smoothing)

    def imitation(self, outputs: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        """As for classes, at each position."""
        return _soft_divergence(outputs.flatten(0, 1), wanted.flatten(0, 1), temperature)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean negative log-likelihood of each window, nats per symbol."""
        losses = functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
        return losses.double().view(targets.shape).mean(dim=1)

    def metric(self, scores: Tensor, targets: Tensor) -> float:
        """Bits per character, or perplexity."""
        nats = scores.mean().item()
        if self.unit == "characters":
            return nats / math.log(2)
        return math.exp(min(nats, 700.0))  # beyond, a float overflows

    def quality(self, metric: float) -> float:
        """1 / (1 + nats per symbol / nats of a uniform guess): 1 for a perfect answer, 1/2 for the guess."""
        nats = metric * math.log(2) if self.unit == "characters" else math.log(metric)
        return _quality_of_nats(nats, len(self.symbols))

    def standard_error(self, quality: float, targets: Tensor) -> float:
        """Taking a symbol's loss as spread about as much as its mean (as exponential)."""
        return _error_of_nats(quality, targets)

    def by_loss(self) -> "Objective":
        """This is by the loss already."""
        return self


def _quality_of_nats(nats: float, num_choices: int) -> float:
    return 1 / (1 + nats / math.log(num_choices))


def _error_of_nats(quality: float, targets: Tensor) -> float:
    return quality * (1 - quality) / math.sqrt(targets.numel())


OBJECTIVES = {kind.__name__: kind for kind in (Classification, Regression, Language)}


class Preprocessing(Protocol):
    """From stored values to what a network sees; plain data of `child/transforms.py`."""

    def __call__(self, inputs: Tensor) -> Tensor: ...


class Augments(Protocol):
    """Changes training samples, drawn anew for every batch: before preprocessing, and after."""

    def crop(self, stored: Tensor, generator: torch.Generator) -> Tensor: ...

    def warp(self, inputs: Tensor, generator: torch.Generator) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Task:
    """Data, how they are preprocessed and augmented, and what is to be learned from them.

    Shared and final weights learn from `train`; every choice is made on `validation`; `test` is sealed.
    """

    name: str
    objective: Objective
    train: Split
    validation: Split
    test: SealedSplit
    preprocessing: Preprocessing
    augmentation: Augments | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one sample as a network sees it: (C, H, W) of an image."""
        return tuple(self.preprocessing(self.train.inputs[:1]).shape[1:])

    @property
    def num_outputs(self) -> int:
        return self.objective.num_outputs

    @property
    def metric_name(self) -> str:
        return self.objective.metric_name

    def about(self) -> dict[str, Any]:
        """Its name, its metric, and which way that is better, as runs write them down."""
        better = self.objective.higher_is_better
        return {"task": self.name, "metric": self.metric_name, "higher_is_better": better}

    def mark(self) -> str:
        """A digest that tells other data from these: all answers, and every so many training samples as stored.

        The sealed test set stays unread; it counts by its length.
        """
        sizes = [len(self.train), len(self.validation), len(self.test), self.num_outputs]
        digest = hashlib.sha256(repr(sizes).encode())
        some = self.train.inputs[:: max(1, len(self.train) // 1000)]
        for values in (some, self.train.targets, self.validation.targets):
            digest.update(values.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def with_splits(self, train: Split, validation: Split) -> "Task":
        """The same task with other training and validation data (a fold, or validation joined to training)."""
        return replace(self, train=train, validation=validation)

    def by_loss(self) -> "Task":
        """The same task, whose quality follows from the mean loss alone."""
        return replace(self, objective=self.objective.by_loss())

    def to(self, device: torch.device) -> "Task":
        """The same task with training and validation data on a device; the sealed test set stays where it is."""
        return replace(self, train=self.train.to(device), validation=self.validation.to(device))

    def training_batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augmented inputs and targets of these training samples."""
        where = indices.to(self.train.inputs.device)
        stored, targets = _gather(self.train.inputs, where), self.train.targets[where]
        if self.augmentation is None:
            return self.preprocessing(stored), targets
        cropped = self.augmentation.crop(stored, generator)
        return self.augmentation.warp(self.preprocessing(cropped), generator), targets

    def loss(self, outputs: Tensor | WithAuxiliary, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The objective's mean loss, with that of an auxiliary head where the network has one."""
        if isinstance(outputs, WithAuxiliary):
            main, auxiliary, weight = outputs
            extra = self.objective.loss(auxiliary, targets, label_smoothing)
            return self.objective.loss(main, targets, label_smoothing) + weight * extra
        return self.objective.loss(outputs, targets, label_smoothing)

    def quality(self, scores: Tensor, targets: Tensor) -> float:
        """The reward's P_data, in [0, 1], from the scores of all samples."""
        return self.objective.quality(self.objective.metric(scores, targets))

    def standard_error(self, quality: float) -> float:
        """Of a quality measured on all validation data."""
        return self.objective.standard_error(quality, self.validation.targets)


def check_task(made: Any) -> Task:
    """Prove that a task, which may be of the user's own making, can be learned and judged by.

    The sealed test set stays unread; that it has samples is all that is asked.

    Raises:
        ValueError: It is no task, or a set is empty, has other samples than training, a value that is not finite,
            answers that the objective does not know, or but one where numbers are to be predicted.
    """
    if not isinstance(made, Task) or not isinstance(made.test, SealedSplit):
        got = f"one whose test is a {type(made.test).__name__}" if isinstance(made, Task) else type(made).__name__
        raise ValueError(
            f"env.task: expected a Task with a SealedSplit as its test, such as envs.arrays.array_task makes, got {got}"
        )
    least = 1 + isinstance(made.objective, Regression)
    if len(made.test) < least:
        needed = "; R squared needs two" if least == 2 else ""
        raise ValueError(f"env.task: the test set of {made.name} has {len(made.test) or 'no'} samples{needed}")
    shape, axes = made.train.inputs.shape[1:], 1 + isinstance(made.objective, Language)
    for name, split in (("training", made.train), ("validation", made.validation)):
        inputs, targets, where = split.inputs, split.targets, f"env.task: the {name} set of {made.name}"
        if not len(inputs) == len(targets) > 0:
            raise ValueError(f"{where} has {len(inputs)} samples and {len(targets)} answers; expected one for each")
        if inputs.shape[1:] != shape:
            raise ValueError(f"{where} has samples of shape {tuple(inputs.shape[1:])}, that of training {tuple(shape)}")
        if not all(bool(values.isfinite().all()) for values in (inputs, targets) if values.is_floating_point()):
            raise ValueError(f"{where} has a value that is missing or not finite")
        if targets.ndim != axes:
            raise ValueError(f"{where} has answers of shape {tuple(targets.shape)}; expected {axes} dimensions")
        if isinstance(made.objective, Regression):
            if not (targets != targets[0]).any():
                raise ValueError(f"{where} has no two different answers, which R squared needs; give it more samples")
            continue
        if targets.dtype != torch.int64 or targets.min() < 0 or targets.max() >= made.num_outputs:
            raise ValueError(
                f"{where} has answers from {targets.min()} to {targets.max()} ({targets.dtype}); expected int64 from 0 "
                f"to {made.num_outputs - 1}"
            )
    return made


def _soft_divergence(outputs: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """T^2 KL(wanted || outputs) of logits (B, K): T^2 keeps the gradient at the size it has without softening."""
    given = functional.log_softmax(outputs / temperature, dim=1)
    target = functional.log_softmax(wanted / temperature, dim=1)
    return functional.kl_div(given, target, reduction="batchmean", log_target=True) * temperature**2


def _gather(stored: Tensor, indices: Tensor) -> Tensor:
    """These of (N, ...); of images, channels last, whole ones in one piece, which `stored[indices]` does not do."""
    if stored.ndim != 4:
        return stored.index_select(0, indices)
    return stored.permute(0, 2, 3, 1).index_select(0, indices).permute(0, 3, 1, 2)
