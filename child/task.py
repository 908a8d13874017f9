"""What a child is trained on: data splits in memory, preprocessing, augmentation, loss and metric.

Letters: N samples, B samples of a batch, C channels, H height, W width, K classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class WithAuxiliary(NamedTuple):
    """What a network with an auxiliary head gives in training: its outputs, the head's, and its weight in the loss."""

    outputs: Tensor
    auxiliary: Tensor
    weight: float


@dataclass(frozen=True)
class Split:
    """Samples held in memory: `inputs` uint8 (N, C, H, W), fastest with channels last, and `targets` int64 (N)."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: Tensor | Sequence[int]) -> "Split":
        """The samples at these places."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return Split(_gather(self.inputs, chosen), self.targets[chosen])

    def join(self, other: "Split") -> "Split":
        """Both, end to end."""
        return Split(torch.cat([self.inputs, other.inputs]), torch.cat([self.targets, other.targets]))

    def to(self, device: torch.device) -> "Split":
        """The same on another device."""
        return Split(self.inputs.to(device), self.targets.to(device))


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


@dataclass(frozen=True)
class Preprocessing:
    """From stored values to what a network sees: (x / scale - mean) / std per channel. Goes into `network.json`."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, inputs: Tensor) -> Tensor:
        """Normalize (B, C, H, W) to float, channels last."""
        factor = torch.tensor([1 / (self.scale * std) for std in self.std], device=inputs.device)
        offset = torch.tensor([m / s for m, s in zip(self.mean, self.std, strict=True)], device=inputs.device)
        rows = _rows(inputs)  # constants as long as a row, since runs of only C values are slow to broadcast
        floats = rows.to(torch.float32, copy=True)
        floats.mul_(factor.repeat(inputs.shape[3])).sub_(offset.repeat(inputs.shape[3]))
        return _images(floats, inputs.shape[1])

    @classmethod
    def fit(cls, inputs: Tensor, scale: float) -> "Preprocessing":
        """Mean and deviation per channel of training inputs (N, C, H, W)."""
        values = inputs.double() / scale
        std = values.std(dim=(0, 2, 3)).clamp(min=1e-3)
        return cls(scale, tuple(values.mean(dim=(0, 2, 3)).tolist()), tuple(std.tolist()))


@dataclass(frozen=True)
class Augmentation:
    """Changes of a whole batch of images as tensor operations, drawn anew for every image.

    Args:
        shift: Random crop: move by up to so many pixels each way, filled with zeros.
        flip: Mirror left and right with probability one half.
        rotate: Turn by up to so many degrees each way (bilinear, the border repeated).
        zoom: Scale by a factor within 1 - zoom and 1 + zoom, in the same resampling as `rotate`.
        cutout: Side of a square blanked with the mean, in pixels (DeVries and Taylor 2017); 0 for none.
    """

    shift: int = 0
    flip: bool = False
    rotate: float = 0.0
    zoom: float = 0.0
    cutout: int = 0

    def crop(self, stored: Tensor, generator: torch.Generator) -> Tensor:
        """Shift and mirror stored values (B, C, H, W) of any type: one gather."""
        if not self.shift and not self.flip:
            return stored
        size, channels, height, width = stored.shape
        moves = torch.randint(2 * self.shift + 1, (2, size, 1), generator=generator)
        mirrored = torch.rand(size, 1, generator=generator) < (0.5 if self.flip else 0.0)
        rows = torch.arange(height) + moves[0]  # (B, H), into the padded image
        columns = torch.arange(width).expand(size, width)
        columns = torch.where(mirrored, columns.flip(1), columns) + moves[1]  # (B, W)
        padded = functional.pad(stored.permute(0, 2, 3, 1), [0, 0] + [self.shift] * 4)  # (B, H', W', C)
        first = torch.arange(size)[:, None, None] * (padded.shape[1] * padded.shape[2])
        places = first + rows[:, :, None] * padded.shape[2] + columns[:, None, :]  # (B, H, W), of whole pixels
        pixels = padded.reshape(-1, channels).index_select(0, places.flatten().to(stored.device))
        return pixels.view(size, height, width, channels).permute(0, 3, 1, 2)

    def warp(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Rotate, zoom and cut out of preprocessed values (B, C, H, W)."""
        size, _, height, width = inputs.shape
        device = inputs.device
        if self.rotate or self.zoom:
            draws = torch.rand(2, size, generator=generator) * 2 - 1
            angle, factor = draws[0] * self.rotate * torch.pi / 180, 1 + draws[1] * self.zoom
            cos, sin, zero = angle.cos() * factor, angle.sin() * factor, torch.zeros(size)
            # The grid runs from -1 to 1 along both sides; a turn keeps distances in pixels.
            aspect = height / width
            matrix = torch.stack([cos, -sin * aspect, zero, sin / aspect, cos, zero], 1).view(size, 2, 3).to(device)
            grid = functional.affine_grid(matrix, list(inputs.shape), align_corners=False)
            inputs = functional.grid_sample(inputs, grid, padding_mode="border", align_corners=False)
        if self.cutout:
            center = torch.rand(2, size, 1, generator=generator)
            rows = torch.arange(height) - (center[0] * height).floor() + self.cutout // 2  # (B, H), into the square
            columns = torch.arange(width) - (center[1] * width).floor() + self.cutout // 2  # (B, W)
            rows, columns = ((place >= 0) & (place < self.cutout) for place in (rows, columns))
            blank = rows.float()[:, :, None] * columns.float().repeat_interleave(inputs.shape[1], dim=1)[:, None, :]
            inputs = _images(_rows(inputs) * (1 - blank).to(device), inputs.shape[1])
        return inputs.contiguous(memory_format=torch.channels_last)


def _gather(images: Tensor, indices: Tensor) -> Tensor:
    """These of (N, C, H, W), channels last: whole images copied in one piece, which `images[indices]` does not do."""
    return images.permute(0, 2, 3, 1).index_select(0, indices).permute(0, 3, 1, 2)


def _rows(images: Tensor) -> Tensor:
    """(B, C, H, W) seen as (B, H, W * C): the order in memory of channels last."""
    return images.permute(0, 2, 3, 1).flatten(2)


def _images(rows: Tensor, channels: int) -> Tensor:
    """(B, H, W * C) seen as (B, C, H, W)."""
    return rows.unflatten(2, (-1, channels)).permute(0, 3, 1, 2)


@dataclass(frozen=True, eq=False)
class Task:
    """Classification of images: its data, how they are preprocessed and augmented, its loss and its metric.

    Shared and final weights learn from `train`; every choice is made on `validation`; `test` is sealed.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: SealedSplit
    preprocessing: Preprocessing
    augmentation: Augmentation

    metric_name = "accuracy"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.train.inputs.shape[1:]
        return int(channels), int(height), int(width)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def with_splits(self, train: Split, validation: Split) -> "Task":
        """The same task with other training and validation data (a fold, or validation joined to training)."""
        return replace(self, train=train, validation=validation)

    def to(self, device: torch.device) -> "Task":
        """The same task with training and validation data on a device; the sealed test set stays where it is."""
        return replace(self, train=self.train.to(device), validation=self.validation.to(device))

    def training_batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augmented inputs (B, C, H, W) and targets (B) of these training samples."""
        where = indices.to(self.train.inputs.device)
        cropped = self.augmentation.crop(_gather(self.train.inputs, where), generator)
        return self.augmentation.warp(self.preprocessing(cropped), generator), self.train.targets[where]

    def loss(self, outputs: Tensor | WithAuxiliary, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy of logits (B, K), and that of an auxiliary head by its weight."""
        if isinstance(outputs, WithAuxiliary):
            auxiliary = self.loss(outputs.auxiliary, targets, label_smoothing)
            return self.loss(outputs.outputs, targets, label_smoothing) + outputs.weight * auxiliary
        return functional.cross_entropy(outputs, targets, label_smoothing=label_smoothing)

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Accuracy, in [0, 1], of logits (N, K)."""
        return (outputs.argmax(dim=1) == targets).double().mean().item()

    def standard_error(self, quality: float) -> float:
        """Of a quality measured on all validation data: that of a share of right answers."""
        return math.sqrt(max(0.0, quality * (1 - quality)) / len(self.validation))

    def quality(self, metric: float) -> float:
        """The reward's P_data: bounded in [0, 1], higher is better. Accuracy as it is."""
        return metric
