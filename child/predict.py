"""Ask a trained network about files, with neither training code nor data.

python -m child.predict outputs/<run> photo.png other.jpg     # the run's student
python -m child.predict outputs/<run>/networks/teacher a.wav  # or any network of it
python -m child.predict outputs/<run> novel.txt               # how well a text is foreseen, and what comes next
python -m child.predict model.onnx photo.png                  # or an exported one, with no other file
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from child.files import UNKNOWN, read_image, read_symbols, read_wave, windows
from child.network import TrainedNetwork, find_network, load_network
from child.onnx_module import QUANTIZED, load_onnx
from child.task import Classification, Language, Regression
from child.transforms import LogMel, Normalize

WINDOWS = 64
"""Of a text, at once."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line per file: the likeliest classes (or next symbols) with their probabilities, or the number."""
    parser = argparse.ArgumentParser(prog="python -m child.predict", description="Ask a trained network about files.")
    parser.add_argument(
        "network", type=Path, help="a run folder, whose student answers, a network's own folder, or an ONNX file"
    )
    parser.add_argument("files", type=Path, nargs="+", help="images, WAV files, or texts")
    parser.add_argument("--top", type=int, default=3, help="classes, or next symbols, that are named (3)")
    parser.add_argument("--plugins", action="append", default=[], metavar="MODULE",
                        help="a module of your own that the network is built from; may be given again")  # fmt: skip
    given = parser.parse_args(arguments)
    if given.top < 1:
        parser.error(f"--top: expected at least 1, got {given.top}")
    failed = False
    try:
        network = read_network(given.network, given.plugins)
        check_readable(network)
    except ValueError as error:
        sys.exit(f"Error: {error}")
    for file in given.files:
        try:
            print(f"{file}: {answer(network, file, given.top)}")
        except ValueError as error:
            print(f"Error: {error}", file=sys.stderr)
            failed = True
    if failed:
        sys.exit(1)


def read_network(path: Path, plugins: Sequence[str] = ()) -> TrainedNetwork:
    """What answers of a run or a folder: its network, or where that was quantized the model in 8-bit integers.

    Raises:
        ValueError: There is none, or it cannot be read; the message names it.
    """
    if path.suffix == ".onnx":
        return load_onnx(path)
    folder = find_network(path)
    return load_onnx(folder / QUANTIZED) if (folder / QUANTIZED).is_file() else load_network(folder, plugins)


def check_readable(network: TrainedNetwork) -> None:
    """Raise ValueError where what a network answers to is not a file of its own."""
    if isinstance(network.objective, Language):
        return
    image = isinstance(network.preprocessing, Normalize) and len(network.input_shape) == 3
    if not image and not isinstance(network.preprocessing, LogMel):
        raise ValueError(
            f"this network takes inputs of shape {network.input_shape} ({type(network.preprocessing).__name__}), which "
            "are neither images, sounds nor text; ask it in Python: child.network.load_network(...).predict(samples)"
        )
    if image and network.input_shape[0] not in (1, 3):
        raise ValueError(f"this network takes images of {network.input_shape[0]} channels, which no image file has")


def read_sample(network: TrainedNetwork, file: Path) -> NDArray[Any]:
    """A file as the values that the network's task stores.

    Raises:
        ValueError: It cannot be read; the message names it.
    """
    if isinstance(network.preprocessing, LogMel):
        return read_wave(file, network.preprocessing.rate)
    assert isinstance(network.preprocessing, Normalize)
    channels, height, width = network.input_shape
    pixels = read_image(file, height, width, "L" if channels == 1 else "RGB")
    # White is 255 in a file; where the task counts to another number, as the digits do to 16, it is that.
    values = pixels * np.float32(network.preprocessing.scale / 255)
    return values.reshape(height, width, channels).transpose(2, 0, 1)


def answer(network: TrainedNetwork, file: Path, top: int = 3) -> str:
    """The likeliest classes of a file with their probabilities, or the number that a regression gives.

    Of a text how well it is foreseen, where it is longer than a window, and the likeliest symbols that come next.

    Raises:
        ValueError: The file cannot be read, or the network cannot answer to it; the message names it.
    """
    if isinstance(network.objective, Language):
        numbers = read_numbers(network, network.objective, file)
        shown = [repr(symbol) for symbol in network.objective.symbols]
        following = network.predict(numbers[None, -network.input_shape[0] :])[0, -1]
        return f"{foreseen(network, network.objective, numbers)}next: {likeliest(shown, following, top)}"
    given = network.predict(read_sample(network, file)[None])[0]
    if isinstance(network.objective, Regression):
        return f"{given.item():.6g}"
    assert isinstance(network.objective, Classification)
    return likeliest(network.objective.classes, given, top)


def likeliest(names: Sequence[str], probabilities: Tensor, top: int) -> str:
    """The names of the largest probabilities, with them."""
    best = probabilities.argsort(descending=True)[:top].tolist()
    return ", ".join(f"{names[place]} {probabilities[place]:.1%}" for place in best)


def read_numbers(network: TrainedNetwork, objective: Language, file: Path) -> NDArray[np.int64]:
    """The symbols of a text by their numbers, at least a window of them.

    Raises:
        ValueError: It cannot be read, is too short, or has a symbol that the network does not know.
    """
    known = {symbol: number for number, symbol in enumerate(objective.symbols)}
    symbols, least = read_symbols(file, objective.unit), network.input_shape[0]
    strange = next((symbol for symbol in symbols if symbol not in known), None)
    if strange is not None and UNKNOWN not in known:
        raise ValueError(f"{file}: the network does not know {strange!r}, which its training text had not")
    if len(symbols) < least:
        raise ValueError(f"{file}: the network reads {least} {objective.unit} at once, got {len(symbols)}; give more")
    return np.array([known.get(symbol, known.get(UNKNOWN, -1)) for symbol in symbols], np.int64)


def foreseen(network: TrainedNetwork, objective: Language, numbers: NDArray[np.int64]) -> str:
    """The metric of a text, cut into windows as a task's is; nothing where it is no longer than one."""
    size, length = network.input_shape[0], network.count_positions()
    if len(numbers) <= size:
        return ""
    text = windows(numbers, size - length, length)
    pieces = zip(text.inputs.split(WINDOWS), text.targets.split(WINDOWS), strict=True)
    scores = [objective.scores(network.outputs(inputs.numpy()), targets) for inputs, targets in pieces]
    metric = objective.metric(torch.cat(scores), text.targets)
    return f"{metric:.4g} {objective.metric_name} over {text.targets.numel():,}; "


if __name__ == "__main__":
    main()
