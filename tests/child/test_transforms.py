"""Waves to bands over time, against formulas computed another way, and what augments them."""

import cmath
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from child.network import part_from_json, part_to_json
from child.transforms import (
    PREPROCESSINGS,
    LogMel,
    WaveAugmentation,
    centered,
    mel_filters,
)

RATE = 8000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain(length: int = 2000, window: int = 256, hop: int = 128, bands: int = 20) -> LogMel:
    return LogMel(RATE, length, window, hop, bands, (0.0,) * bands, (1.0,) * bands)


def tone(frequency: float, length: int = 2000, amplitude: float = 0.5) -> Tensor:
    return (amplitude * 32768 * torch.sin(2 * torch.pi * frequency * torch.arange(length) / RATE)).to(torch.int16)


def mel(frequency: float) -> float:
    return 2595 * math.log10(1 + frequency / 700)


def middles(bands: int) -> list[float]:
    """Of the bands, in Hz."""
    step = mel(RATE / 2) / (bands + 1)
    return [700 * (10 ** (step * (band + 1) / 2595) - 1) for band in range(bands)]


# The mel filters.


@pytest.mark.parametrize(("window", "bands"), [(256, 20), (400, 40), (255, 12)])
def test_filters_equal_their_formula(window: int, bands: int) -> None:
    corners = [0.0, *middles(bands), RATE / 2]
    expected = [
        [float(np.interp(bin * RATE / window, corners[band : band + 3], [0, 1, 0])) for bin in range(window // 2 + 1)]
        for band in range(bands)
    ]
    torch.testing.assert_close(mel_filters(RATE, window, bands), torch.tensor(expected), atol=1e-6, rtol=0)


def test_filters_share_every_frequency_between_two_bands() -> None:
    filters = mel_filters(RATE, 1024, 20)
    frequencies = torch.arange(513) * RATE / 1024
    inner = (frequencies >= middles(20)[0]) & (frequencies <= middles(20)[-1])
    torch.testing.assert_close(filters.sum(dim=0)[inner], torch.ones(int(inner.sum())), atol=1e-5, rtol=0)


# LogMel.


@pytest.mark.parametrize("frequency", [250.0, 440.0, 1000.0, 2500.0, 3700.0])
def test_a_pure_tone_is_loudest_in_its_band(frequency: float) -> None:
    bands = plain()(tone(frequency)[None])[0].mean(dim=1)
    nearest = min(range(20), key=lambda band: abs(mel(frequency) - mel(middles(20)[band])))
    assert int(bands.argmax()) == nearest


def test_values_equal_a_fourier_transform_by_hand() -> None:
    window, hop, bands, length = 16, 5, 3, 43
    wave = np.random.default_rng(0).integers(-20000, 20000, length)
    features = LogMel(RATE, length, window, hop, bands, (1.0, -2.0, 0.5), (2.0, 3.0, 0.5))
    found = features(torch.from_numpy(wave.astype(np.int16))[None])
    assert found.shape == (1, bands, 1 + length // hop)
    padded = [0.0] * (window // 2) + [value / 32768 for value in wave.tolist()] + [0.0] * window
    hann = [0.5 - 0.5 * math.cos(2 * math.pi * n / window) for n in range(window)]
    filters = mel_filters(RATE, window, bands).tolist()
    for frame in range(found.shape[2]):
        piece = [weight * padded[frame * hop + n] for n, weight in enumerate(hann)]
        power = [
            abs(sum(value * cmath.exp(-2j * math.pi * k * n / window) for n, value in enumerate(piece))) ** 2
            for k in range(window // 2 + 1)
        ]
        for band in range(bands):
            value = math.log(1e-6 + sum(f * p for f, p in zip(filters[band], power, strict=True)))
            expected = (value - features.mean[band]) / features.std[band]
            assert found[0, band, frame].item() == pytest.approx(expected, abs=1e-4)


def test_ten_times_the_amplitude_is_twenty_decibels() -> None:
    loud, soft = (plain()(tone(1000.0, amplitude=a)[None])[0].max().item() for a in (0.5, 0.05))
    assert loud - soft == pytest.approx(math.log(100), abs=0.01)


def test_silence_is_finite() -> None:
    torch.testing.assert_close(
        plain()(torch.zeros(1, 2000, dtype=torch.int16)), torch.full((1, 20, 16), math.log(1e-6))
    )


@pytest.mark.parametrize("length", [1, 500, 1999, 2000, 2001, 5000])
def test_any_length_is_cut_or_filled_evenly(length: int) -> None:
    wave = torch.randint(-9000, 9000, (2, length), generator=generator(), dtype=torch.int16)
    before = max(0, (2000 - length) // 2)
    start = -((2000 - length) // 2) if length > 2000 else 0
    expected = torch.zeros(2, 2000, dtype=torch.int16)
    piece = wave[:, start : start + 2000]
    expected[:, before : before + piece.shape[1]] = piece
    assert centered(wave, 2000).equal(expected)
    features = plain()
    assert features(wave).shape == (2, 20, 16)
    assert features(wave).equal(features(expected))


def test_fitted_bands_have_mean_0_and_deviation_1() -> None:
    waves = torch.randint(-9000, 9000, (300, 600), generator=generator())  # more than one piece
    waves = (waves * torch.linspace(0.01, 1, 300)[:, None]).to(torch.int16)
    fitted = LogMel.fit(waves, RATE, 128, 64, 10)
    values = fitted(waves).double()
    torch.testing.assert_close(values.mean(dim=(0, 2)), torch.zeros(10).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(values.std(dim=(0, 2)), torch.ones(10).double(), atol=1e-3, rtol=0)
    assert LogMel.fit(torch.zeros(3, 600, dtype=torch.int16), RATE, 128, 64, 10).std == (1.0,) * 10


def test_more_frames_than_bands_are_counted_as_frames() -> None:
    waves = torch.randint(-9000, 9000, (40, 1200), generator=generator(), dtype=torch.int16)
    values = LogMel.fit(waves, RATE, 128, 64, 10)(waves).double()
    assert values.shape == (40, 10, 19)
    torch.testing.assert_close(values.mean(dim=(0, 2)), torch.zeros(10).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(values.std(dim=(0, 2)), torch.ones(10).double(), atol=1e-2, rtol=0)


def test_the_json_form_gives_the_same_values() -> None:
    waves = torch.randint(-9000, 9000, (4, 600), generator=generator(), dtype=torch.int16)
    fitted = LogMel.fit(waves, RATE, 128, 64, 10)
    again = part_from_json(part_to_json(fitted), PREPROCESSINGS)
    assert again == fitted
    assert again(waves).equal(fitted(waves))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((RATE, 700, 64, 10), "expected hop <= window <= 600 samples of a wave, got 64 and 700"),
        ((RATE, 64, 128, 10), "expected hop <= window <= 600 samples of a wave, got 128 and 64"),
        ((RATE, 64, 0, 10), "got 0 and 64"),
        ((RATE, 64, 32, 40), "a window of 64 samples has too few frequencies for bands=40; take fewer"),
        ((RATE, 64, 32, 0), "too few frequencies for bands=0"),
    ],
)
def test_sizes_that_do_not_fit_are_named(arguments: tuple[int, int, int, int], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        LogMel.fit(torch.zeros(3, 600, dtype=torch.int16), *arguments)


# WaveAugmentation.


def numbered(size: int, length: int) -> Tensor:
    """Each value tells its place, from 1, so that 0 is what was filled in."""
    return torch.arange(1, length + 1, dtype=torch.int16).repeat(size, 1)


def test_every_move_occurs_and_nothing_else() -> None:
    waves = numbered(400, 20)
    moved = WaveAugmentation(shift=0.15).crop(waves, generator())
    expected = {
        move: [float(place + move) if 1 <= place + move <= 20 else 0.0 for place in range(1, 21)]
        for move in range(-3, 4)
    }
    found = [[move for move, values in expected.items() if values == row] for row in moved.tolist()]
    assert all(len(each) == 1 for each in found)
    assert {each[0] for each in found} == set(range(-3, 4))
    assert waves.equal(numbered(400, 20))


def test_gain_is_in_decibels() -> None:
    waves = torch.full((500, 3), 1000, dtype=torch.int16)
    amplified = WaveAugmentation(gain=6.0).crop(waves, generator())
    assert amplified[:, 0].equal(amplified[:, 2])
    decibels = 20 * (amplified[:, 0] / 1000).log10()
    assert -6.001 < decibels.min() < -5.5 and 5.5 < decibels.max() < 6.001
    assert abs(decibels.mean().item()) < 0.5


def test_noise_has_a_deviation_drawn_for_each_wave() -> None:
    noisy = WaveAugmentation(noise=0.01).crop(torch.zeros(200, 1000, dtype=torch.int16), generator())
    deviations = noisy.std(dim=1) / 32768
    assert deviations.max() < 0.011 and deviations.max() > 0.009 and deviations.min() < 0.001
    assert deviations.mean().item() == pytest.approx(0.005, abs=0.0005)
    assert abs(noisy.mean().item()) < 5


@pytest.mark.parametrize(("bands", "frames"), [(3, 0), (0, 4), (3, 4), (99, 0)])
def test_masks_are_single_stretches(bands: int, frames: int) -> None:
    inputs = torch.ones(300, 8, 11)
    masked = WaveAugmentation(band_mask=bands, time_mask=frames).warp(inputs, generator())
    blank = masked == 0
    assert (blank | (masked == 1)).all()
    whole_bands, whole_frames = blank.all(dim=2), blank.all(dim=1)
    if bands < 8:  # else everything may be blank
        assert blank.equal(whole_bands[:, :, None] | whole_frames[:, None, :])
        assert whole_frames.sum(dim=1).unique().tolist() == list(range(frames + 1))
    assert whole_bands.sum(dim=1).unique().tolist() == list(range(min(bands, 8) + 1))
    for lines in (whole_bands, whole_frames):
        changes = lines.long().diff(dim=1, prepend=torch.zeros(300, 1), append=torch.zeros(300, 1))
        assert (changes > 0).sum(dim=1).max() <= 1  # one beginning at most
    if bands:
        assert whole_bands.any(dim=0).all()  # every band is blanked in some
    if frames:
        assert whole_frames.any(dim=0).all()
    assert inputs.equal(torch.ones(300, 8, 11))


def test_no_augmentation_changes_nothing() -> None:
    waves, bands = numbered(4, 20), torch.rand(4, 8, 11, generator=generator())
    same = WaveAugmentation()
    assert same.crop(waves, generator()).equal(waves.float())
    assert same.warp(bands, generator()) is bands


@pytest.mark.parametrize(
    "change",
    [
        lambda g: WaveAugmentation(shift=0.3, gain=6.0, noise=0.01).crop(numbered(16, 100), g),
        lambda g: WaveAugmentation(band_mask=3, time_mask=4).warp(torch.ones(16, 8, 11), g),
    ],
)
def test_the_same_generator_gives_the_same_waves(change: Callable[[torch.Generator], Tensor]) -> None:
    assert change(generator(1)).equal(change(generator(1)))
    assert not change(generator(1)).equal(change(generator(2)))


@pytest.mark.parametrize("wrong", [{"shift": 1.5}, {"shift": -0.1}, {"gain": -1.0}, {"time_mask": -1}])
def test_mistakes_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(
        ValueError, match=r"shift is a share of the length|gain, noise, time_mask and band_mask must be at least 0"
    ):
        WaveAugmentation(**wrong)  # pyright: ignore[reportArgumentType]
