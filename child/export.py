"""A trained network in formats that others read: ONNX, and an archive of torch.export; each with a model card.

python -m child.export outputs/<run>                     # the run's student
python -m child.export outputs/<run>/networks/teacher    # or any network of it

networks/student/model.onnx    any number of samples, `input` to `output`; opset 18, which onnxruntime reads since 1.14
networks/student/model.pt2     the same for torch.export.load, without the network's class
networks/student/MODEL.md      the model card

Both take preprocessed inputs: float32, or int64 for tokens. How to preprocess is in the metadata and in the card. It is
not a part of the graph, so that one graph answers for every kind of task, and so that `measure`, the calibration of
int8 and a stopwatch give it what they give the network. Both are proved equal to the network when they are written.
"""

import argparse
import copy
import io
import json
import logging
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from child.card import read_record, write_card
from child.cost import measure_latency
from child.network import TrainedNetwork, add_file, describe, find_network, load_network, read_checked
from child.onnx_module import QUANTIZED, OnnxModule, require
from child.transforms import Tokens

VERSION = "0.1.0"  # of Luban, as in pyproject.toml
OPSET = 18  # the newest that torch's exporter writes without a conversion

Format = Literal["onnx", "torch"]
FORMATS: tuple[Format, ...] = ("onnx", "torch")
FILES: dict[Format, str] = {"onnx": "model.onnx", "torch": "model.pt2"}
COLORS = re.compile(r"\x1b\[[0-9;]*m")  # of a terminal, in what the exporter says

# What PyTorch 2.13 says of itself on every export, and what no user can do anything about.
NOISE = (
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
    "No complete tensor found in the group",  # weights are channels last; they come back as they were
    "The tensor attributes .*_flat_weights",  # of an LSTM; it is a copy that is traced
)


def export(
    network: TrainedNetwork,
    folder: Path,
    formats: Sequence[Format] = FORMATS,
    task: str | None = None,
    plugins: Sequence[str] = (),
) -> dict[str, int]:
    """Write a network's exported models beside its saved files, each once it answers as the network does.

    Args:
        network: On the processor.
        folder: Where `save_network` wrote it.
        formats: Which to write.
        task: Name of the task it was trained on, for the metadata.
        plugins: Modules outside `child/` that the network's class or space is from.

    Returns:
        Bytes of each file.

    Raises:
        ValueError: A package is missing, the network cannot be traced, or an exported model answers otherwise.
    """
    if "onnx" in formats:
        require("onnx", "onnxscript", "onnxruntime")
    written, refused = write_each(network, folder, formats, task, plugins)
    if refused:
        raise ValueError("; ".join(refused.values()))
    return written


def write_each(
    network: TrainedNetwork, folder: Path, formats: Sequence[Format], task: str | None, plugins: Sequence[str]
) -> tuple[dict[str, int], dict[str, str]]:
    """As `export`, but of what cannot be written there is the reason, and the rest is written.

    Returns:
        Bytes of each file that was written, and why each other was not.
    """
    metadata = {
        "luban": VERSION,
        "task": task or "",
        "architecture": network.blueprint.text(plugins),
        **{key: json.dumps(value) for key, value in describe(network).items()},
    }
    written: dict[str, int] = {}
    refused: dict[str, str] = {}
    with one_line(network), _quiet():
        program = _trace(network)
    for kind in formats:
        try:
            with one_line(network), _quiet():
                if kind == "onnx":
                    data = _to_onnx(program, metadata)
                    answer = OnnxModule(data)
                else:
                    data = _to_archive(program, metadata)
                    answer = torch.export.load(io.BytesIO(data)).module()
                check(answer, network, FILES[kind])
            add_file(folder, FILES[kind], data)
            written[FILES[kind]] = len(data)
        except ValueError as error:
            refused[FILES[kind]] = str(error)
    return written, refused


def sample_inputs(network: TrainedNetwork, num: int, seed: int = 0) -> Tensor:
    """Random inputs of the kind that a network takes: tokens of its vocabulary, or values as normalization gives."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num, *network.input_shape)
    if isinstance(network.preprocessing, Tokens):
        return torch.randint(network.objective.num_outputs, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def check(answer: Callable[[Tensor], Tensor], network: TrainedNetwork, name: str) -> float:
    """Compare a model with the network it was made from, for one sample and for seven.

    Returns:
        The largest deviation from the network's outputs y.

    Raises:
        ValueError: It is above 1e-5 + 1e-4 |y| somewhere, and more than rounding: the network in 64 bits is more than
            twice as far from the model's outputs as from its own in 32 bits.
    """
    largest = 0.0
    for num in (1, 7):
        inputs = sample_inputs(network, num, seed=num)
        with torch.no_grad():
            wanted, given = network.module(inputs), answer(inputs)
        if given.shape != wanted.shape or not (
            torch.allclose(given, wanted, rtol=1e-4, atol=1e-5) or _is_rounding(network.module, inputs, given, wanted)
        ):
            apart = f"by up to {(given - wanted).abs().max():.3g}" if given.shape == wanted.shape else "in shape"
            raise ValueError(f"{name} differs from the network {apart} for {num} sample(s); it was not written")
        largest = max(largest, (given - wanted).abs().max().item())
    return largest


def _is_rounding(module: nn.Module, inputs: Tensor, given: Tensor, wanted: Tensor) -> bool:
    """Whether a model is about as near to a network in 64 bits as the network in 32 bits itself."""
    precise = copy.deepcopy(module).double()
    with torch.no_grad():
        exact = precise(inputs.double() if inputs.is_floating_point() else inputs)
    return bool((given - exact).abs().max() <= 2 * (wanted - exact).abs().max())


def _trace(network: TrainedNetwork) -> ExportedProgram:
    """The network as a graph that takes any number of samples, without this machine's paths in it."""
    module = copy.deepcopy(network.module).requires_grad_(False)  # a loop with gradients cannot be written
    # Two, since a batch of one would be taken for a constant.
    inputs = sample_inputs(network, 2)
    with torch.no_grad():
        program = torch.export.export(module, (inputs,), dynamic_shapes=({0: Dim("batch")},))
    if len(program.graph_signature.user_outputs) != 1:
        raise TypeError(f"it gives {len(program.graph_signature.user_outputs)} outputs, not one")
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def _to_archive(program: ExportedProgram, metadata: dict[str, str]) -> bytes:
    """A torch.export archive, with the metadata in its extra file `metadata.json`."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(metadata)})
    return buffer.getvalue()


def _to_onnx(program: ExportedProgram, metadata: dict[str, str]) -> bytes:
    """An ONNX model, with the metadata in its properties and without the exporter's notes on every node."""
    import onnx_ir

    made = torch.onnx.export(
        program, dynamo=True, opset_version=OPSET, input_names=["input"], output_names=["output"],
        dynamic_shapes=({0: "batch"},), verbose=False,
    )  # fmt: skip
    assert made is not None
    model = made.model
    model.graph.metadata_props.clear()
    for part in (*model.graph.all_nodes(), *model.graph.initializers.values()):
        part.metadata_props.clear()
    model.metadata_props.update(metadata)
    return onnx_ir.to_proto(model).SerializeToString(deterministic=True)


@contextmanager
def one_line(network: TrainedNetwork, what: str = "exported") -> Iterator[None]:
    """Turn whatever goes wrong into a ValueError that names the network, `what` it cannot be, and why, in a line."""
    try:
        yield
    except Exception as error:  # there is no list of what somebody's Python, or onnxruntime, may raise
        while error.__cause__ is not None and isinstance(error, torch.onnx.OnnxExporterError):
            error = error.__cause__  # it tells its steps and its advice first
        lines = COLORS.sub("", str(error)).splitlines()
        reason = next((line.strip() for line in lines if line.strip()), type(error).__name__)
        raise ValueError(f"{network.blueprint.target} cannot be {what}: {reason:.300}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on itself; other warnings come through."""

    def is_news(record: logging.LogRecord) -> bool:
        return "torchvision is not installed" not in record.getMessage()

    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    logger.addFilter(is_news)
    try:
        with warnings.catch_warnings():
            for message in NOISE:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        logger.removeFilter(is_news)


def export_saved(folder: Path, formats: Sequence[Format] = FORMATS, plugins: Sequence[str] = ()) -> dict[str, Any]:
    """Export a saved network, time it, and write its model card, with what its run knows of it.

    Returns:
        `files`, the bytes of each; `latency_ms`, one sample's on one thread, of `torch` and `onnxruntime`; and `notes`.

    Raises:
        ValueError: The folder holds no network, or it cannot be exported.
    """
    network, record = load_network(folder, plugins), read_record(folder)
    notes = []
    if "onnx" in formats:
        try:
            require("onnx", "onnxscript", "onnxruntime")
        except ValueError as error:
            notes.append(f"No {FILES['onnx']}: {error}.")
            formats = [kind for kind in formats if kind != "onnx"]
    files, refused = write_each(network, folder, formats, record.task, plugins)
    if refused and not files:
        raise ValueError("; ".join(refused.values()))
    notes += [f"No {name}: {reason}." for name, reason in refused.items()]
    modules = {"torch": network.module}
    if FILES["onnx"] in files:
        modules["onnxruntime"] = OnnxModule(read_checked(folder / FILES["onnx"]))
    if "onnx" in formats and (folder / QUANTIZED).is_file():
        modules["onnxruntime with 8-bit integers"] = OnnxModule(read_checked(folder / QUANTIZED))
    here = torch.device("cpu")
    latency = {name: measure_latency(module, network.input_shape, here) for name, module in modules.items()}
    write_card(network, folder, record, network.blueprint.text(plugins), latency)
    return {"files": files, "latency_ms": {name: each.median_ms for name, each in latency.items()}, "notes": notes}


def export_or_tell(folder: Path, formats: Sequence[Format], plugins: Sequence[str]) -> dict[str, Any]:
    """Export a saved network as a stage of a run, which goes on without where it cannot be done.

    Returns:
        `exported`, what `export_saved` gave or None; `notes`, for the user; `seconds`.
    """
    started = time.monotonic()
    try:
        exported = export_saved(folder, formats, plugins)
        notes = [summary(folder, exported)]
    except ValueError as error:
        exported, notes = None, [f"Not exported: {error}"]
    return {"exported": exported, "notes": notes, "seconds": time.monotonic() - started}


def main(arguments: Sequence[str] | None = None) -> None:
    """Export one network, and say what was written."""
    parser = argparse.ArgumentParser(prog="python -m child.export", description="Export a trained network.")
    parser.add_argument("network", type=Path, help="a run folder, whose student is exported, or a network's own folder")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS, help="which to write (both)")
    parser.add_argument("--plugins", action="append", default=[], metavar="MODULE",
                        help="a module of your own that the network is built from; may be given again")  # fmt: skip
    given = parser.parse_args(arguments)
    try:
        folder = find_network(given.network)
        done = export_saved(folder, given.formats, given.plugins)
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")
    print(summary(folder, done))


def summary(folder: Path, done: dict[str, Any]) -> str:
    """What `export_saved` did, in a line."""
    sizes = ", ".join(f"{name} ({size:,} bytes)" for name, size in done["files"].items()) or "no model"
    times = ", ".join(f"{milliseconds:.2f} ms in {name}" for name, milliseconds in done["latency_ms"].items())
    return " ".join([f"Exported to {folder}: {sizes}. One sample takes {times}, on one thread.", *done["notes"]])


if __name__ == "__main__":
    main()
