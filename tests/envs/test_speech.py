"""Sounds are read as they are, divided by whole speakers, and mistakes are named."""

import math
import os
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.io import wavfile

from child.convnet import ConvNet1d
from child.files import read_wave
from child.network import Blueprint, TrainedNetwork, load_network, save_network
from child.standalone import folds_of
from child.task import Classification, Split, Task
from child.transforms import LogMel, centered
from envs import speech as module
from envs.speech import speech, spoken_digits

DATA = Path(os.environ.get("LUBAN_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
SPEAKERS = ["ann", "bob", "cid", "dee", "eve", "fay"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUBAN_CACHE", str(tmp_path / "cache"))


def recordings() -> dict[str, Any]:
    """Six speakers say three digits ten times; every value tells 100 * speaker + 10 * digit + index / 2."""
    rows = [(speaker, digit, index) for speaker in range(6) for digit in range(3) for index in range(0, 20, 2)]
    speaker, digit, index = np.array(rows, np.uint8).T
    length = 3000 + 500 * np.arange(len(rows)) // len(rows)
    values = 100 * speaker.astype(np.int16) + 10 * digit + index // 2 + 1
    return {
        "audio": np.repeat(values, length).astype(np.int16),
        "length": length.astype(np.int32),
        "digit": digit,
        "speaker": speaker,
        "speakers": np.array(SPEAKERS),
        "index": index,
    }


@pytest.fixture
def digits(tmp_path: Path) -> str:
    np.savez(tmp_path / "digits.npz", **recordings())
    return str(tmp_path / "digits.npz")


def told(split: Split) -> set[int]:
    """What the middle of each wave tells."""
    return {value - 1 for value in split.inputs[:, split.inputs.shape[1] // 2].tolist()}


def speakers(split: Split) -> set[str]:
    return {SPEAKERS[value // 100] for value in told(split)}


def opened(task: Task) -> Split:
    task.test.unseal()
    return task.test.read("test")


@pytest.mark.parametrize("seed", range(6))
def test_no_speaker_is_on_two_sides(digits: str, seed: int) -> None:
    task = spoken_digits(digits, seed, seconds=0.5)
    assert task.name == "spoken_digits" and task.objective == Classification(("0", "1", "2"))
    parts = [task.train, task.validation, opened(task)]
    assert [len(speakers(part)) for part in parts] == [4, 1, 1]
    assert set.union(*map(speakers, parts)) == set(SPEAKERS)
    assert [len(told(part)) for part in parts] == [len(part) for part in parts] == [120, 30, 30]
    for part in parts:
        middle = part.inputs[:, part.inputs.shape[1] // 2].long() - 1
        assert (middle // 10 % 10).equal(part.targets)


def test_who_is_held_out_follows_from_the_seed_or_the_config(digits: str) -> None:
    def held_out(seed: int, **arguments: Any) -> tuple[set[str], set[str]]:
        task = spoken_digits(digits, seed, seconds=0.5, **arguments)
        return speakers(opened(task)), speakers(task.validation)

    assert held_out(3) == held_out(3)
    assert len({str(held_out(seed)) for seed in range(8)}) > 3
    assert held_out(0, test_speaker="dee")[0] == held_out(1, test_speaker="dee")[0] == {"dee"}
    assert len(held_out(0, test_speaker="dee", validation_share=0.4)[1]) == 2


def test_folds_keep_speakers_together(digits: str) -> None:
    task = spoken_digits(digits, 0, seconds=0.5, test_speaker="eve")
    folds = folds_of(task, 5, 0)
    assert {str(speakers(fold.validation)) for fold in folds} == {str({name}) for name in SPEAKERS if name != "eve"}
    assert all(not speakers(fold.train) & speakers(fold.validation) for fold in folds)


def test_the_published_split_is_by_recording(digits: str) -> None:
    task = spoken_digits(digits, 0, "published", seconds=0.5, validation_share=0.25)
    test = opened(task)
    assert {2 * (value % 10) for value in told(test)} == {0, 2, 4}
    assert speakers(test) == set(SPEAKERS)
    assert not told(task.train) & told(test) and not told(task.train) & told(task.validation)
    assert (len(task.train), len(task.validation), len(test)) == (94, 32, 54)
    assert sorted(np.bincount(task.validation.targets.numpy()).tolist()) == [10, 11, 11]
    assert len(speakers(task.validation)) > 1


def test_recordings_are_cut_and_filled_in_the_middle(digits: str) -> None:
    task = spoken_digits(digits, 0, seconds=0.4)  # 3200 samples, some recordings are 3000
    found = {row[1600]: row for row in task.train.inputs.tolist()}
    content = recordings()
    starts = np.cumsum(content["length"]) - content["length"]
    for start, length in zip(starts.tolist(), content["length"].tolist(), strict=True):
        recording = torch.from_numpy(content["audio"][start : start + length])
        if (value := int(recording[0])) in found:
            assert centered(recording, 3200).tolist() == found.pop(value)
    assert not found


def test_a_network_hears_bands_over_time(digits: str) -> None:
    task = spoken_digits(digits, 0, seconds=0.5, bands=12, window=0.016, hop=0.008)
    assert task.input_shape == (12, 1 + 4000 // 64)
    assert isinstance(task.preprocessing, LogMel)
    assert task.preprocessing == LogMel.fit(task.train.inputs, 8000, 128, 64, 12)
    inputs, _ = task.training_batch(torch.arange(4), torch.Generator())
    torch.testing.assert_close(inputs, task.preprocessing(task.train.inputs[:4]))  # no augmentation asked for


def test_a_network_on_disk_takes_recordings_of_any_length(digits: str, tmp_path: Path) -> None:
    task = spoken_digits(digits, 0, seconds=0.5)
    arguments = {"input_shape": list(task.input_shape), "num_outputs": 3, "width": 4}
    module = ConvNet1d(**arguments)
    blueprint = Blueprint("child.convnet.ConvNet1d", arguments)
    save_network(
        TrainedNetwork(module, blueprint, task.input_shape, task.objective, task.preprocessing), tmp_path / "network"
    )
    network = load_network(tmp_path / "network")
    recording = np.random.default_rng(0).integers(-9000, 9000, 2500).astype(np.int16)
    whole = centered(torch.from_numpy(recording), 4000).numpy()
    assert network.classify(recording) == network.classify(whole)
    assert network.predict(np.stack([recording] * 2)).shape == (2, 3)


def damaged(**changes: Callable[[NDArray[Any]], NDArray[Any]]) -> dict[str, NDArray[Any]]:
    content = recordings()
    return {**content, **{name: change(content[name]) for name, change in changes.items()}}


@pytest.mark.parametrize(
    ("content", "arguments", "expected"),
    [
        (damaged(audio=lambda a: a[:-1]), {}, "digits.npz is damaged: expected int16 audio"),
        (damaged(audio=lambda a: a.astype(np.float32)), {}, "digits.npz is damaged: expected int16 audio"),
        (damaged(speaker=lambda s: s + 1), {}, "digits.npz is damaged"),
        (damaged(digit=lambda d: d[1:]), {}, "digits.npz is damaged"),
        (damaged(index=lambda i: i + 5), {"split": "published"}, "nothing is left for training or for testing"),
        (damaged(digit=lambda d: 0 * d), {}, "classification needs at least 2 classes, got 1"),
        ({"audio": np.zeros(3, np.int16)}, {}, "digits.npz has no array 'length'; it holds audio"),
        (recordings(), {"test_speaker": "evi"}, "there is no speaker 'evi' in .*digits.npz; allowed: .*mean 'eve'"),
        (recordings(), {"split": "published", "test_speaker": "eve"}, "test_speaker is for split=speaker, got 'eve'"),
        (recordings(), {"seconds": 0.0}, "seconds must be at least one sample"),
        (recordings(), {"hop": -1.0}, "hop must be at least one sample"),
        (recordings(), {"bands": 200}, "too few frequencies for bands=200"),
        (recordings(), {"validation_share": 1.0}, "validation_share must be between 0 and 1"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, content: dict[str, Any], arguments: dict[str, Any], expected: str) -> None:
    np.savez(tmp_path / "digits.npz", **content)
    with pytest.raises(ValueError, match=expected) as caught:
        spoken_digits(str(tmp_path / "digits.npz"), 0, **arguments)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_archive_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*none.npz; set env.path, or LUBAN_DATA to its folder"):
        spoken_digits(str(tmp_path / "none.npz"), 0)
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"cannot read .*text.npz: expected an .npz file with arrays audio, length"):
        spoken_digits(str(tmp_path / "text.npz"), 0)


# WAV files.


def write_wave(path: Path, values: NDArray[np.float64], rate: int = 8000, width: int = 2) -> Path:
    """Values (L) or (L, channels) in [-1, 1) as PCM of so many bytes, by Python's own writer."""
    integers = np.round(values * 2 ** (8 * width - 1)).astype(np.int64)
    if width == 1:
        integers += 128
    content = b"".join(int(each).to_bytes(width, "little", signed=width > 1) for each in integers.flatten())
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if values.ndim == 1 else values.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(content)
    return path


WAVE = np.sin(np.arange(400) / 7) * np.linspace(0, 0.9, 400)


@pytest.mark.parametrize(("width", "error"), [(1, 129), (2, 1), (3, 1), (4, 1)])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_width_gives_the_same_wave(tmp_path: Path, width: int, error: int, channels: int) -> None:
    values = WAVE if channels == 1 else np.stack([1.1 * WAVE, 0.9 * WAVE], axis=1)
    found = read_wave(write_wave(tmp_path / "a.wav", values, width=width), 8000)
    assert found.dtype == np.int16 and found.shape == (400,)
    assert np.abs(found.astype(int) - 32768 * WAVE).max() <= error


def test_floats_are_read_and_clipped(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "a.wav", 8000, np.array([0.0, 0.5, -1.0, 1.5, -2.0], np.float32))
    assert read_wave(tmp_path / "a.wav", 8000).tolist() == [0, 16384, -32768, 32767, -32768]


@pytest.mark.parametrize("rate", [4000, 16000, 11025])
def test_another_rate_is_resampled(tmp_path: Path, rate: int) -> None:
    def tone(rate: int) -> NDArray[np.float64]:
        return 0.5 * np.sin(2 * np.pi * 300 * np.arange(rate) / rate)  # a second

    found = read_wave(write_wave(tmp_path / "a.wav", tone(rate), rate), 8000)
    assert len(found) == 8000
    inner = slice(200, -200)  # the filter rings at the ends
    assert np.abs(found[inner] / 32768 - tone(8000)[inner]).max() < 0.01


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight tones of each of two classes, of several lengths and rates."""
    for place, name in enumerate(("high", "low")):
        for number in range(8):
            rate = (8000, 16000)[number % 2]
            time = np.arange(int(rate * (0.2 + 0.05 * number))) / rate
            values = 0.5 * np.sin(2 * np.pi * (1500, 300)[place] * time)
            write_wave(tmp_path / "sounds" / name / f"{number}.wav", values, rate)
    return tmp_path / "sounds"


def test_windows_are_as_long_at_every_rate(folder: Path) -> None:
    preparation = speech(str(folder), seed=0, seconds=0.3, rate=16000, bands=20).preprocessing
    assert isinstance(preparation, LogMel) and (preparation.window, preparation.hop) == (512, 256)  # 32 and 16 ms


def test_a_folder_of_sounds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = speech(str(folder), seed=0, seconds=0.3, rate=8000, bands=20)
    assert task.name == "sounds" and task.objective == Classification(("high", "low"))
    assert task.input_shape == (20, 1 + 2400 // 128)
    test = opened(task)
    assert [len(part) for part in (task.train, task.validation, test)] == [9, 3, 4]
    for part in (task.train, task.validation, test):
        loudest = task.preprocessing(part.inputs)  # relative to the mean of each band, high bands are louder in high
        high = loudest[:, 10:].mean(dim=(1, 2)) > loudest[:, :10].mean(dim=(1, 2))
        assert high.equal(part.targets == 0)
    monkeypatch.setattr(module, "read_wave", None)  # the second time nothing is decoded
    assert speech(str(folder), seed=0, seconds=0.3, rate=8000, bands=20).train.inputs.equal(task.train.inputs)


def test_parts_of_sounds_that_are_given(folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    folder.rename(whole / "train")
    for name, frequency in (("high", 1500), ("low", 300)):
        write_wave(whole / "test" / name / "1.wav", 0.5 * np.sin(2 * np.pi * frequency * np.arange(4000) / 8000), 8000)
    task = speech(str(whole), seed=0, seconds=0.3, rate=8000, bands=20)
    assert task.objective == Classification(("high", "low"))
    assert [len(part) for part in (task.train, task.validation, task.test)] == [12, 4, 2]
    assert opened(task).targets.tolist() == [0, 1]


def test_parts_of_other_names_and_hidden_copies(folder: Path, tmp_path: Path) -> None:
    (folder / "high" / ".copies").mkdir()
    (folder / "high" / ".copies" / "0-copy.wav").write_bytes((folder / "high" / "0.wav").read_bytes())
    task = speech(str(folder), seed=0, seconds=0.3, rate=8000, bands=20)
    assert len(task.train) + len(task.validation) + len(task.test) == 16
    (tmp_path / "whole").mkdir()
    folder.rename(tmp_path / "whole" / "Train")
    (tmp_path / "whole" / "Test" / "low").mkdir(parents=True)
    (tmp_path / "whole" / "Train" / "low" / "0.wav").rename(tmp_path / "whole" / "Test" / "low" / "0.wav")
    with pytest.raises(ValueError, match=r"^Test and Train in .* call them train, validation and"):
        speech(str(tmp_path / "whole"), seed=0)


def unfinished(path: Path) -> None:
    """As a recorder leaves it that was interrupted: the sizes would have been written last."""
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(4) + content[8:])


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def no_samples(path: Path) -> None:
    write_wave(path, np.zeros(0))


def not_finite(path: Path) -> None:
    wavfile.write(path, 8000, np.array([0.0, math.nan], np.float32))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (cut_short, r"cannot read .*low.3\.wav as a WAV file"),
        (lambda path: path.write_bytes(b"no sound"), r"cannot read .*low.3\.wav as a WAV file"),
        (lambda path: path.write_bytes(b""), r"cannot read .*low.3\.wav as a WAV file"),
        (lambda path: path.write_bytes(path.read_bytes()[:30]), r"cannot read .*low.3\.wav as a WAV file"),
        (unfinished, r"cannot read .*low.3\.wav as a WAV file: its header is broken"),
        (no_samples, r"cannot read .*low.3\.wav as a WAV file"),
        (not_finite, r"low.3\.wav as a WAV file: it has a value that is not finite"),
        (lambda path: (path.parent.parent / "none").mkdir(), "none holds no .wav file; every subfolder is a class"),
        (lambda path: path.parent.rename(path.parent.parent.parent / "low"), "classification needs at least 2 classes"),
    ],
)
def test_broken_files_are_named(folder: Path, spoil: Callable[[Path], Any], expected: str) -> None:
    spoil(folder / "low" / "3.wav")
    with pytest.raises(ValueError, match=expected) as caught:
        speech(str(folder), seed=0, rate=8000)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"none is not a folder; expected one with a subfolder of [.]wav files per class"
    ):
        speech(str(tmp_path / "none"), seed=0)
    with pytest.raises(ValueError, match="rate must be at least 1, got 0"):
        speech(str(tmp_path), seed=0, rate=0)


@pytest.mark.data
def test_the_real_recordings() -> None:
    if not (DATA / "fsdd_int16.npz").is_file():
        pytest.skip(f"there is no fsdd_int16.npz in {DATA}; LUBAN_DATA may name another folder")
    task = spoken_digits(str(DATA / "fsdd_int16.npz"), seed=0, test_speaker="theo")
    assert task.input_shape == (40, 63)
    assert (len(task.train), len(task.validation), len(task.test)) == (2000, 500, 500)
    published = spoken_digits(str(DATA / "fsdd_int16.npz"), seed=0, split="published")
    assert len(published.test) == 300
