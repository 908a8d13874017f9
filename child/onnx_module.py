"""A network in an ONNX file that stands where one of PyTorch would: in `measure`, in `child.predict`, on a stopwatch.

Needs onnxruntime, and neither the network's class nor its weights in any other file.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from child.network import TrainedNetwork, read_checked, read_sums, restore

INSTALL = "pip install '.[onnx]'"
QUANTIZED = "model.int8.onnx"
"""The file that `child/quantize.py` writes."""
TYPES = {"tensor(float)": torch.float32, "tensor(int64)": torch.int64}


class OnnxModule(nn.Module):
    """Runs an ONNX model on the processor; it has no parameters, and nothing in it can be trained.

    Args:
        model: The content of the file; it has one input and one output. It runs on one thread.

    Raises:
        ValueError: onnxruntime is not installed, or cannot read this.
    """

    def __init__(self, model: bytes):
        super().__init__()
        require("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3  # errors: it warns of every initializer that folding left without a reader
        try:
            self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            (given,), (_,) = self.session.get_inputs(), self.session.get_outputs()
            self.name, self.dtype = given.name, TYPES[given.type]
        except Exception as error:  # its errors have no class in common
            raise ValueError(f"this is not an ONNX model of Luban's: {str(error).splitlines()[0]}") from None

    @property
    def metadata(self) -> dict[str, str]:
        """What `child/export.py` wrote into the model."""
        return dict(self.session.get_modelmeta().custom_metadata_map)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs of preprocessed inputs."""
        inputs = x.detach().to("cpu", self.dtype).contiguous().numpy()
        (outputs,) = self.session.run(None, {self.name: inputs})
        return torch.from_numpy(outputs).to(x.device)


def load_onnx(path: str | Path) -> TrainedNetwork:
    """A network from its ONNX file alone: classes, preprocessing and input shape are in the file's metadata.

    Raises:
        ValueError: The file is missing, damaged or not one of Luban's; the message names it.
    """
    path = Path(path)
    try:
        # A file may stand alone, or beside the sums of others.
        listed = path.with_name("SHA256SUMS").is_file() and path.name in read_sums(path.parent)
        data = read_checked(path) if listed else path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; expected an exported model") from None
    try:
        module = OnnxModule(data)
        described = module.metadata
        description: dict[str, Any] = {
            key: json.loads(described[key]) for key in ("format", "build", "input_shape", "objective", "preprocessing")
        }
    except KeyError as error:
        raise ValueError(f"{path} does not say what it answers: its metadata lack {error}") from None
    except ValueError as error:
        raise ValueError(f"cannot use {path}: {error}") from None
    return restore(description, lambda blueprint: module, path)


def require(*packages: str) -> None:
    """Raise ValueError, with how to get them, where one of these packages is not installed."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if absent:
        raise ValueError(f"{' and '.join(absent)} not installed; get the extra with: {INSTALL}")
