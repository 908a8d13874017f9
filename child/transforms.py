"""From stored values to what a network sees, and changes of training samples drawn anew for every batch.

All are tensor operations on whole batches. What prepares a sample for a network (`Normalize`, `LogMel`, `Tokens`) is
plain data and goes into `network.json`; what augments it is needed in training alone.

Letters: B samples of a batch, C channels, H height, W width, L samples of a wave, M bands, T frames.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Normalize:
    """(x / scale - mean) / std for each channel of (B, C, H, W), (B, C, L) or (B, C)."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, inputs: Tensor) -> Tensor:
        """Normalize to float; images come out channels last."""
        factor = torch.tensor([1 / (self.scale * std) for std in self.std], device=inputs.device)
        offset = torch.tensor([m / s for m, s in zip(self.mean, self.std, strict=True)], device=inputs.device)
        if inputs.ndim != 4:
            shape = [len(self.mean)] + [1] * (inputs.ndim - 2)
            return inputs.to(torch.float32, copy=True).mul_(factor.view(shape)).sub_(offset.view(shape))
        rows = _rows(inputs)  # constants as long as a row, since runs of only C values are slow to broadcast
        floats = rows.to(torch.float32, copy=True)
        floats.mul_(factor.repeat(inputs.shape[3])).sub_(offset.repeat(inputs.shape[3]))
        return _images(floats, inputs.shape[1])

    @classmethod
    def fit(cls, inputs: Tensor, scale: float) -> "Normalize":
        """Mean and deviation per channel of training inputs; a channel that never changes is only centered."""
        values = inputs.double() / scale
        others = tuple(dim for dim in range(inputs.ndim) if dim != 1)
        std = values.std(dim=others)
        std = torch.where(std < 1e-12, 1.0, std) if inputs.ndim == 2 else std.clamp(min=1e-3)
        return cls(scale, tuple(values.mean(dim=others).tolist()), tuple(std.tolist()))


@dataclass(frozen=True)
class Tokens:
    """Text as it is stored: the numbers of its symbols."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """The same (B, L)."""
        return inputs


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


def _rows(images: Tensor) -> Tensor:
    """(B, C, H, W) seen as (B, H, W * C): the order in memory of channels last."""
    return images.permute(0, 2, 3, 1).flatten(2)


def _images(rows: Tensor, channels: int) -> Tensor:
    """(B, H, W * C) seen as (B, C, H, W)."""
    return rows.unflatten(2, (-1, channels)).permute(0, 3, 1, 2)


PREPROCESSINGS = {kind.__name__: kind for kind in (Normalize, Tokens)}


def preprocessing_to_json(preprocessing: Any) -> dict[str, Any]:
    """As plain data, for `network.json`."""
    return {"kind": type(preprocessing).__name__, **asdict(preprocessing)}


def preprocessing_from_json(data: dict[str, Any]) -> Any:
    """Read what `preprocessing_to_json` gave (else KeyError or TypeError)."""
    arguments: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}
    return PREPROCESSINGS[arguments.pop("kind")](**arguments)
