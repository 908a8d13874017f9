"""From stored values to what a network sees, and changes of training samples drawn anew for every batch.

All are tensor operations on whole batches. What prepares a sample for a network (`Normalize`, `LogMel`, `Tokens`) is
plain data and goes into `network.json`; what augments it is needed in training alone.

Letters: B samples of a batch, C channels, H height, W width, L samples of a wave, F frequencies, M bands, T frames.
"""

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

BLANK = 1e30
"""A deviation so large that a channel divided by it is 0, whatever it holds: nothing was learned of it."""


@dataclass(frozen=True)
class Normalize:
    """(x / scale - mean) / std for each channel of (B, C, H, W), (B, C, L) or (B, C).

    Args:
        scale: What stored values are divided by.
        mean: Of each channel then.
        std: Of each channel then.
        names: What the channels are called, where they have names: the columns of a table, in the order that is stored.
    """

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    names: tuple[str, ...] = field(default=(), compare=False)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Normalize to float; images come out channels last."""
        factor = torch.tensor([1 / (self.scale * std) for std in self.std], device=inputs.device)
        if inputs.ndim != 4:
            # Subtracted first: where the mean is many deviations from 0, a product would have lost their digits.
            center = torch.tensor([mean * self.scale for mean in self.mean], device=inputs.device)
            shape = [len(self.mean)] + [1] * (inputs.ndim - 2)
            return inputs.to(torch.float32, copy=True).sub_(center.view(shape)).mul_(factor.view(shape))
        offset = torch.tensor([m / s for m, s in zip(self.mean, self.std, strict=True)], device=inputs.device)
        rows = _rows(inputs)  # constants as long as a row, since runs of only C values are slow to broadcast
        floats = rows.to(torch.float32, copy=True)
        floats.mul_(factor.repeat(inputs.shape[3])).sub_(offset.repeat(inputs.shape[3]))
        return _images(floats, inputs.shape[1])

    @classmethod
    def fit(cls, inputs: Tensor, scale: float, names: tuple[str, ...] = ()) -> "Normalize":
        """Mean and deviation per channel of training inputs; one that never changes there is made 0 for good."""
        if inputs.dtype == torch.uint8:  # counted, since as floats many images would not fit into memory
            found = [_mean_and_std(channel) for channel in inputs.unbind(1)]
            mean, std = (torch.tensor(each, dtype=torch.float64) / scale for each in zip(*found, strict=True))
        else:
            values = inputs.double() / scale
            others = tuple(dim for dim in range(inputs.ndim) if dim != 1)
            mean, std = values.mean(dim=others), values.std(dim=others)
        # Rounding alone makes less than that of a channel that never changes; and 1 / std must be a 32-bit float.
        changes = std > (1e-12 * mean.abs()).clamp(min=1e-35)
        return cls(scale, tuple(mean.tolist()), tuple(torch.where(changes, std, BLANK).tolist()), names)


@dataclass(frozen=True)
class Tokens:
    """Text as it is stored: the numbers of its symbols."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """The same (B, L)."""
        return inputs


@dataclass(frozen=True)
class LogMel:
    """The logarithm of a wave's power in bands of the mel scale, over time: (B, L) of 16-bit values to (B, M, T).

    Frames are `hop` samples apart, T = 1 + (length - window % 2) // hop, the first around the wave's first sample; each
    is weighted with a Hann window. A wave of another length is cut, or filled with silence, evenly on both sides.

    Args:
        rate: Samples per second.
        length: Samples that are looked at.
        window: Samples of one frame.
        hop: Samples from frame to frame.
        bands: Bands M from 0 to half the rate.
        mean: What is subtracted from each band.
        std: And what the difference is divided by.
    """

    rate: int
    length: int
    window: int
    hop: int
    bands: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, inputs: Tensor) -> Tensor:
        """Bands over time (B, M, T) of waves (B, any L) whose full scale is 32768."""
        device = inputs.device
        waves = centered(inputs, self.length).float() / 32768
        hann = torch.hann_window(self.window, device=device)
        # In mixed precision the sum over frequencies would keep three digits alone.
        with torch.autocast(device.type, enabled=False):
            spectrum = torch.stft(
                waves, self.window, self.hop, window=hann, center=True, pad_mode="constant", return_complex=True
            )  # (B, F, T)
            power = spectrum.real.square() + spectrum.imag.square()
            mel = mel_filters(self.rate, self.window, self.bands).to(device) @ power  # (B, M, T)
            # 1e-6 is below the noise of a recording; without it, silence would be minus infinity.
            return ((1e-6 + mel).log() - self._column(self.mean, device)) / self._column(self.std, device)

    @classmethod
    def fit(cls, inputs: Tensor, rate: int, window: int, hop: int, bands: int) -> "LogMel":
        """Mean and deviation per band of training waves (N, L); a band that never changes is only centered.

        Raises:
            ValueError: The window is longer than the waves, or too short to tell so many bands apart.
        """
        if not 1 <= hop <= window <= inputs.shape[1]:
            raise ValueError(f"expected hop <= window <= {inputs.shape[1]} samples of a wave, got {hop} and {window}")
        if bands < 1 or bool((mel_filters(rate, window, bands).sum(dim=1) == 0).any()):
            raise ValueError(
                f"a window of {window} samples has too few frequencies for bands={bands}; take fewer bands or a longer "
                f"window"
            )
        plain = cls(rate, inputs.shape[1], window, hop, bands, (0.0,) * bands, (1.0,) * bands)
        count, total, squares = 0, torch.zeros(bands, dtype=torch.float64), torch.zeros(bands, dtype=torch.float64)
        for waves in inputs.split(256):  # the spectra of all would not fit into memory
            values = plain(waves).double()
            count += values.shape[0] * values.shape[2]
            total += values.sum(dim=(0, 2))
            squares += values.square().sum(dim=(0, 2))
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        std = torch.where(std < 1e-3, 1.0, std)
        return replace(plain, mean=tuple(mean.tolist()), std=tuple(std.tolist()))

    @staticmethod
    def _column(values: tuple[float, ...], device: torch.device) -> Tensor:
        return torch.tensor(values, device=device)[:, None]


@lru_cache(maxsize=8)
def mel_filters(rate: int, window: int, bands: int) -> Tensor:
    """Triangles (M, F) over frequencies, each from the middle of the band below to that of the band above.

    Middles lie evenly on the mel scale of HTK, 2595 log10(1 + f / 700) (Young et al., The HTK Book, section 5.4).
    """
    frequencies = torch.arange(window // 2 + 1, dtype=torch.float64) * rate / window
    highest = 2595 * math.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (torch.linspace(0, highest, bands + 2, dtype=torch.float64) / 2595) - 1)
    low, middle, high = (corners[start : start + bands, None] for start in range(3))
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    return torch.minimum(rising, falling).clamp(min=0).float()


def centered(waves: Tensor, length: int) -> Tensor:
    """Waves (..., L) brought to a length, cut or filled with zeros evenly on both sides."""
    missing = length - waves.shape[-1]
    return functional.pad(waves, [missing // 2, missing - missing // 2])


@dataclass(frozen=True)
class WaveAugmentation:
    """Changes of a whole batch of waves and of their bands over time, drawn anew for every wave.

    Args:
        shift: Move in time by up to this share of the length each way, filled with silence.
        gain: Make louder or softer by up to so many decibels.
        noise: Add white noise of up to this deviation, as a share of full scale.
        time_mask: Blank up to so many frames in a row with the mean (SpecAugment, Park et al. 2019); 0 for none.
        band_mask: Blank up to so many bands in a row likewise.
    """

    shift: float = 0.0
    gain: float = 0.0
    noise: float = 0.0
    time_mask: int = 0
    band_mask: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.shift <= 1:
            raise ValueError(f"shift is a share of the length in [0, 1], got {self.shift}")
        if min(self.gain, self.noise, self.time_mask, self.band_mask) < 0:
            raise ValueError("gain, noise, time_mask and band_mask must be at least 0")

    def crop(self, stored: Tensor, generator: torch.Generator) -> Tensor:
        """Shift, amplify and add noise to waves (B, L), as floats whose full scale is that of what is stored."""
        size, length = stored.shape
        waves, reach = stored.float(), int(self.shift * length)
        if reach:
            moves = torch.randint(2 * reach + 1, (size, 1), generator=generator)
            places = (torch.arange(length) + moves).to(stored.device)  # into the padded wave
            waves = functional.pad(waves, [reach, reach]).gather(1, places)
        if self.gain:
            decibels = (torch.rand(size, 1, generator=generator) * 2 - 1) * self.gain
            waves = waves * (10 ** (decibels / 20)).to(stored.device)
        if self.noise:
            deviation = torch.rand(size, 1, generator=generator) * self.noise * 32768
            waves = waves + (deviation * torch.randn(size, length, generator=generator)).to(stored.device)
        return waves

    def warp(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Blank a stretch of time and a group of bands of (B, M, T)."""
        for dim, widest in ((1, self.band_mask), (2, self.time_mask)):
            if not widest:
                continue
            size = inputs.shape[dim]
            width = torch.randint(min(widest, size) + 1, (len(inputs), 1), generator=generator)
            first = (torch.rand(len(inputs), 1, generator=generator) * (size - width + 1)).long()
            places = torch.arange(size)
            blank = ((places >= first) & (places < first + width)).to(inputs.device)  # (B, M) or (B, T)
            inputs = inputs.masked_fill(blank.unsqueeze(3 - dim), 0.0)
        return inputs


@dataclass(frozen=True)
class Augmentation:
    """Changes of a whole batch of images as tensor operations, drawn anew for every image.

    Args:
        shift: Random crop: move by up to so many pixels each way, filled with zeros.
        flip: Mirror left and right with probability one half.
        rotate: Turn by up to so many degrees each way (bilinear, the border repeated).
        zoom: Scale by a factor within 1 / (1 + zoom) and 1 / (1 - zoom), in the same resampling as `rotate`.
        cutout: Side of a square blanked with the mean, in pixels (DeVries and Taylor 2017); 0 for none.
    """

    shift: int = 0
    flip: bool = False
    rotate: float = 0.0
    zoom: float = 0.0
    cutout: int = 0

    def __post_init__(self) -> None:
        if min(self.shift, self.rotate, self.cutout) < 0 or not 0 <= self.zoom < 1:
            raise ValueError(
                "augmentation needs shift, rotate and cutout >= 0 and zoom in [0, 1), got "
                f"{self.shift}, {self.rotate:g}, {self.cutout} and {self.zoom:g}"
            )

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


def _mean_and_std(values: Tensor) -> tuple[float, float]:
    """Of whole numbers from 0 to 255, exactly."""
    counts, levels = torch.bincount(values.flatten(), minlength=256).double(), torch.arange(256.0, dtype=torch.float64)
    num = counts.sum()
    mean = (counts * levels).sum() / num
    return mean.item(), ((counts * (levels - mean) ** 2).sum() / (num - 1).clamp(min=1)).sqrt().item()


def _rows(images: Tensor) -> Tensor:
    """(B, C, H, W) seen as (B, H, W * C): the order in memory of channels last."""
    return images.permute(0, 2, 3, 1).flatten(2)


def _images(rows: Tensor, channels: int) -> Tensor:
    """(B, H, W * C) seen as (B, C, H, W)."""
    return rows.unflatten(2, (-1, channels)).permute(0, 3, 1, 2)


PREPROCESSINGS = {kind.__name__: kind for kind in (Normalize, LogMel, Tokens)}
