"""An exported network in 8-bit integers: a quarter of the bytes, and on processors with such instructions faster.

Static quantization by onnxruntime (after Jacob et al. 2018): weights become int8, symmetric, with a scale for each
output channel; activations become uint8 with a scale and a zero for each tensor, from the smallest and largest values
that they take on samples of the training data. Weights get 7 of the 8 bits, since products of 8 and 8 bits overflow the
16-bit sums of processors without VNNI instructions. The graph says where it rounds (QuantizeLinear and
DequantizeLinear), so any runtime can read it. Layers inside a loop, those of a recurrent cell, stay as they are, and so
does what 8 bits cannot hold beside ordinary values: a mask of infinities or huge numbers, as before a softmax.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime import quantization
from torch import Tensor, nn

from child.export import export, one_line
from child.network import TrainedNetwork, add_file, read_checked, save_network
from child.onnx_module import QUANTIZED, OnnxModule
from child.recurrent import RecurrentNetwork

BATCH = 64  # samples that are calibrated on at once: all values of the network are held for so many


class _Batches(quantization.CalibrationDataReader):
    """Hands the calibration its inputs."""

    def __init__(self, inputs: Tensor, kind: OnnxModule):
        self.batches = iter(inputs.to("cpu", kind.dtype).contiguous().split(BATCH))

    def get_next(self) -> dict[str, NDArray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        batch = next(self.batches, None)
        return None if batch is None else {"input": batch.numpy()}


def quantize(folder: Path, inputs: Tensor) -> Path:
    """Write `model.int8.onnx` beside the `model.onnx` of a network's folder, with the same metadata.

    `OnnxModule(read_checked(path))` stands for it wherever a network is measured.

    Args:
        folder: A network's, after `child.export.export`.
        inputs: Preprocessed samples of the training data (N, ...); some hundreds tell the range of every value.

    Raises:
        ValueError: There is no exported model, it is damaged, or there are no inputs.
    """
    if not len(inputs):
        raise ValueError("expected samples of the training data to calibrate on, got none")
    data = read_checked(folder / "model.onnx")
    with tempfile.TemporaryDirectory() as scratch, _quiet(), np.errstate(invalid="ignore"):
        prepared, written = Path(scratch) / "prepared.onnx", Path(scratch) / QUANTIZED
        # Folds normalizations into the convolutions before them, and names the shape of every value.
        quantization.quant_pre_process(onnx.load_from_string(data), prepared)
        quantization.quantize_static(
            prepared, written, _Batches(inputs, OnnxModule(data)), per_channel=True, reduce_range=True,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=_masked(onnx.load(prepared).graph),
        )  # fmt: skip
        model = onnx.load(written)
    del model.metadata_props[:]
    model.metadata_props.extend(onnx.load_from_string(data).metadata_props)
    add_file(folder, QUANTIZED, model.SerializeToString(deterministic=True))
    return folder / QUANTIZED


def _masked(graph: onnx.GraphProto) -> list[str]:
    """The nodes that may handle masks: softmaxes, what their inputs come from, and readers of infinite constants."""
    makers = {output: node.name for node in graph.node for output in node.output}
    values = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
    infinite = {name for name, value in values.items() if value.dtype.kind == "f" and not np.isfinite(value).all()}
    found = []
    for node in graph.node:
        if node.op_type == "Softmax":
            found += [node.name, *(makers[name] for name in node.input if name in makers)]
        elif infinite.intersection(node.input):
            found.append(node.name)
    return found


def read_in_loops(module: nn.Module) -> set[str]:
    """Names of the weights that stay as they are, since a loop reads them: those of recurrent layers and cells."""
    found = set()
    for path, layer in module.named_modules():
        if isinstance(layer, nn.RNNBase):
            found |= {f"{path}.{name}".lstrip(".") for name, _ in layer.named_parameters()}
        elif isinstance(layer, RecurrentNetwork):  # which multiplies its inputs before the loop
            found |= {f"{path}.weights.{name}".lstrip(".") for name in layer.weights if name != "input"}
    return found


def check_quantizable(network: TrainedNetwork, inputs: Tensor, plugins: Sequence[str] = ()) -> None:
    """Prove that a network, trained or not, can be exported and quantized, by doing it.

    Args:
        network: On the processor.
        inputs: Two preprocessed samples (2, ...).
        plugins: Modules outside `child/` that the network's class or space is from.

    Raises:
        ValueError: It cannot.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_network(network, folder)
        export(network, folder, ("onnx",), plugins=plugins)
        with one_line(network, "quantized"):
            quantize(folder, inputs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without advice on how to use the library, which it gives to the root logger."""
    before = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(before)
