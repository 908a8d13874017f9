"""Ask a trained network about files, with neither training code nor data.

python -m child.predict outputs/<run> photo.png other.jpg     # the run's student
python -m child.predict outputs/<run>/networks/teacher a.wav  # or any network of it
python -m child.predict model.onnx photo.png                  # or an exported one, with no other file
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from child.files import read_image, read_wave
from child.network import TrainedNetwork, find_network, load_network
from child.onnx_module import QUANTIZED, load_onnx
from child.task import Classification, Regression
from child.transforms import LogMel, Normalize


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line per file: the likeliest classes with their probabilities, or the number."""
    parser = argparse.ArgumentParser(prog="python -m child.predict", description="Ask a trained network about files.")
    parser.add_argument(
        "network", type=Path, help="a run folder, whose student answers, a network's own folder, or an ONNX file"
    )
    parser.add_argument("files", type=Path, nargs="+", help="images, or WAV files")
    parser.add_argument("--top", type=int, default=3, help="classes that are named (3)")
    parser.add_argument("--plugins", action="append", default=[], metavar="MODULE",
                        help="a module of your own that the network is built from; may be given again")  # fmt: skip
    given = parser.parse_args(arguments)
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
    image = isinstance(network.preprocessing, Normalize) and len(network.input_shape) == 3
    if not image and not isinstance(network.preprocessing, LogMel):
        raise ValueError(
            f"this network takes inputs of shape {network.input_shape} ({type(network.preprocessing).__name__}), which "
            "are neither images nor sounds; ask it in Python: child.network.load_network(...).predict(samples)"
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
    """The likeliest classes of a file with their probabilities, or the number that a regression gives."""
    given = network.predict(read_sample(network, file)[None])[0]
    if isinstance(network.objective, Regression):
        return f"{given.item():.6g}"
    assert isinstance(network.objective, Classification)
    best = given.argsort(descending=True)[: max(1, top)].tolist()
    return ", ".join(f"{network.objective.classes[place]} {given[place]:.1%}" for place in best)


if __name__ == "__main__":
    main()
