"""Spoken words: the Free Spoken Digit Dataset, divided by speaker, and folders of WAV files.

Sounds are kept as 16-bit waves of one length; a network sees the logarithms of their mel bands over time.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy
import torch
from numpy.typing import NDArray

from child.files import read_wave
from child.space import derive_seed, nearest
from child.task import Task
from child.transforms import LogMel, WaveAugmentation, centered
from envs.arrays import make_task, read_archive
from envs.folders import Files, read_folder

NEEDED = ("audio", "length", "digit", "speaker", "speakers", "index")
RATE = 8000  # of the Free Spoken Digit Dataset, samples per second
PUBLISHED_TEST = range(5)  # `index` of the recordings that its authors test on
VERSION = 2  # of how files are read; another number leaves what is cached behind


def spoken_digits(
    path: str,
    seed: int,
    split: Literal["speaker", "published"] = "speaker",
    test_speaker: str | None = None,
    validation_share: float = 0.2,
    seconds: float = 1.0,
    bands: int = 40,
    window: float = 0.032,
    hop: float = 0.016,
    augmentation: WaveAugmentation | None = None,
) -> Task:
    """3,000 recordings of ten digits by six speakers (Jackson et al., Free Spoken Digit Dataset), 8 kHz.

    Args:
        path: The `.npz` file with all recordings end to end in `audio`, and of each its `length` (samples), `digit`,
            `speaker` (a place in `speakers`) and `index` (0 to 49, for each digit of each speaker).
        seed: The run's seed; draws who is held out.
        split: `speaker`: one speaker is the test set, and others, whole, the validation set, so that networks are
            judged by voices that they have not heard. `published`: the recordings of index 0 to 4 are the test set,
            and validation is drawn from the others evenly over the digits.
        test_speaker: Whose recordings are the test set; None for one drawn by the seed.
        validation_share: Share of the other speakers, or recordings, held out for validation.
        seconds: What a network hears; longer recordings are cut and shorter ones filled evenly on both sides.
        bands: Mel bands.
        window: Of one frame, in seconds.
        hop: From frame to frame, in seconds.
        augmentation: For training; none by default.

    Raises:
        ValueError: The file is missing or damaged, or there is no such speaker.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"there is no {path}; set env.path, or LUBAN_DATA to its folder. It holds the recordings of "
            "github.com/Jakobovski/free-spoken-digit-dataset as arrays, as envs.speech.spoken_digits describes them; "
            "folders of WAV files by class are read with env=speech"
        )
    found = read_archive(path, NEEDED)
    length, digit, speaker, index = (found[name].astype(np.int64) for name in ("length", "digit", "speaker", "index"))
    names = [str(name) for name in found["speakers"]]
    fits = found["audio"].dtype == np.int16 and found["audio"].ndim == 1 and len(length) > 0
    fits = fits and len(length) == len(digit) == len(speaker) == len(index)
    if not fits or length.min() < 1 or length.sum() != len(found["audio"]) or not 0 <= speaker.max() < len(names):
        raise ValueError(
            f"{path} is damaged: expected int16 audio that is the recordings of the given lengths, end to end"
        )
    recordings = np.split(found["audio"], np.cumsum(length)[:-1])
    waves = stack(recordings, _samples("seconds", seconds, RATE))

    groups = None
    if split == "published":
        if test_speaker is not None:
            raise ValueError(f"test_speaker is for split=speaker, got {test_speaker!r} with split=published")
        held_out = np.isin(index, PUBLISHED_TEST)
    else:
        if test_speaker is None:
            rng = np.random.default_rng(derive_seed(seed, "test speaker"))
            test_speaker = names[rng.integers(len(names))]
        if test_speaker not in names:
            raise ValueError(f"there is no speaker {test_speaker!r} in {path}; {nearest(test_speaker, names)}")
        held_out = speaker == names.index(test_speaker)
        groups = speaker[~held_out]
    if held_out.all() or not held_out.any():
        raise ValueError(f"{path}: nothing is left for training or for testing with split={split}")
    return make_task(
        "spoken_digits", torch.from_numpy(waves[~held_out]), digit[~held_out], seed, 0.0, validation_share,
        fit=_features(RATE, window, hop, bands), augmentation=augmentation or WaveAugmentation(),
        test=(torch.from_numpy(waves[held_out]), digit[held_out]), groups=groups,
    )  # fmt: skip


def speech(
    path: str,
    seed: int,
    seconds: float = 1.0,
    rate: int = 16000,
    test_share: float = 0.25,
    validation_share: float = 0.25,
    bands: int = 40,
    window: float = 0.032,
    hop: float = 0.016,
    augmentation: WaveAugmentation | None = None,
) -> Task:
    """Read `path/<class>/*.wav`, or `path/train/<class>/*.wav` with `validation` and `test` folders beside it.

    Files hold PCM of 8 to 32 bits or floats, and are mixed down to one channel. Files and folders whose names begin
    with a dot are left out.

    Args:
        path: The folder.
        seed: The run's seed; draws what is held out, evenly over the classes.
        seconds: What a network hears; longer files are cut and shorter ones filled evenly on both sides.
        rate: Samples per second; files of another rate are resampled.
        test_share: Share held out as the test set, where there is no `test` folder.
        validation_share: Share of the rest held out for validation, where there is no `validation` folder.
        bands: Mel bands.
        window: Of one frame, in seconds.
        hop: From frame to frame, in seconds.
        augmentation: For training; none by default.

    Raises:
        ValueError: The folder is missing or empty, its parts have other names, or a file cannot be read; the message
            names it.
    """
    length = _samples("seconds", seconds, _at_least_one("rate", rate))

    def decode(files: Files) -> dict[str, NDArray[Any]]:
        return {part: stack([read_wave(file, rate) for file in group], length) for part, group in files.items()}

    read = read_folder(path, (".wav",), ".wav file", decode, "speech", rate, length, scipy.__version__, VERSION)
    found = {part: (torch.from_numpy(waves), labels) for part, (waves, labels) in read.items()}
    stored, labels = found.pop("train")
    return make_task(
        Path(path).resolve().name, stored, labels, seed, test_share, validation_share,
        fit=_features(rate, window, hop, bands), augmentation=augmentation or WaveAugmentation(),
        validation=found.get("validation"), test=found.get("test"),
    )  # fmt: skip


def stack(recordings: list[NDArray[np.int16]], length: int) -> NDArray[np.int16]:
    """Waves of one length, (N, length), from recordings of any; `LogMel` brings others to it in the same way."""
    return np.stack([centered(torch.from_numpy(each), length).numpy() for each in recordings])


def _features(rate: int, window: float, hop: float, bands: int) -> Any:
    """Fits the bands to training waves."""
    sizes = {"window": _samples("window", window, rate), "hop": _samples("hop", hop, rate)}
    return partial(LogMel.fit, rate=rate, bands=bands, **sizes)


def _samples(name: str, seconds: float, rate: int) -> int:
    if not math.isfinite(seconds) or round(seconds * rate) < 1:
        raise ValueError(f"{name} must be at least one sample ({1 / rate:g} s), got {seconds}")
    return round(seconds * rate)


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value
