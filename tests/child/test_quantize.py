"""A network in 8-bit integers answers nearly as before, in less than a third of the bytes."""

import math
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from child.export import export
from child.network import Blueprint, TrainedNetwork, read_checked, save_network
from child.onnx_module import QUANTIZED, OnnxModule, load_onnx
from child.quantize import quantize, read_in_loops
from child.recurrent import RecurrentSpace
from child.task import Language, Task
from child.training import Training, TrainingSettings, measure
from child.transforms import Tokens
from envs.digits import digits

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def task() -> Task:
    return digits(seed=0)


@pytest.fixture(scope="module")
def folder(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small residual network after four epochs of the digits, exported and quantized."""
    torch.manual_seed(0)
    arguments = {"input_shape": list(task.input_shape), "num_outputs": 10, "width": 16}
    blueprint = Blueprint("child.resnet.ResNet", arguments)
    training = Training(blueprint.build(), task, TrainingSettings(epochs=4, batch_size=64), None, 0, "digits", CPU)
    while not training.finished:
        training.network.train()
        training.step()
    network = TrainedNetwork(training.network, blueprint, task.input_shape, task.objective, task.preprocessing)
    folder = tmp_path_factory.mktemp("digits")
    save_network(network, folder)
    export(network, folder, ["onnx"], task.name)
    quantize(folder, task.preprocessing(task.train.inputs[:256]))
    return folder


def test_it_answers_nearly_as_before(folder: Path, task: Task) -> None:
    before, after = (OnnxModule(read_checked(folder / name)) for name in ("model.onnx", QUANTIZED))
    good, better = (measure(module, task, task.validation, 64, CPU) for module in (after, before))
    assert better > 0.9 and good >= better - 0.01
    inputs = task.preprocessing(task.validation.inputs)
    apart = (after(inputs) - before(inputs)).abs().mean() / before(inputs).std()
    assert 0 < apart < 0.1


def test_it_is_much_smaller_and_really_of_integers(folder: Path) -> None:
    assert (folder / QUANTIZED).stat().st_size < (folder / "model.onnx").stat().st_size / 3
    model = onnx.load(folder / QUANTIZED)
    weights = [value for value in model.graph.initializer if len(value.dims) == 4]
    assert len(weights) == 9 and all(value.data_type == onnx.TensorProto.INT8 for value in weights)
    # 7 bits, and of a scale for each output channel: in each the largest weight is the largest that fits.
    for value in weights:
        largest = np.abs(onnx.numpy_helper.to_array(value).astype(int)).reshape(value.dims[0], -1).max(axis=1)
        assert (largest == 64).mean() > 0.5 and largest.max() <= 64


ATTENTION = """
import torch
from torch import nn


class Causal(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.keys, self.values, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 10)
        self.register_buffer("mask", torch.full((8, 8), mask).triu(1))

    def forward(self, x):
        rows = x.squeeze(1)
        scores = self.keys(rows) @ rows.transpose(1, 2) + self.mask
        return self.last((scores.softmax(dim=2) @ self.values(rows)).mean(dim=1))
"""


@pytest.mark.parametrize("mask", [-math.inf, -1e9])
def test_masks_are_not_rounded_away(mask: float, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row of the images attends to itself and those above."""
    (tmp_path / "attention.py").write_text(ATTENTION)
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    blueprint, plugins = Blueprint("attention.Causal", {"mask": mask}), ["attention"]
    network = TrainedNetwork(blueprint.build(plugins), blueprint, task.input_shape, task.objective, task.preprocessing)
    save_network(network, tmp_path / "network")
    export(network, tmp_path / "network", ["onnx"], plugins=plugins)
    inputs = task.preprocessing(task.train.inputs[:256])
    after = OnnxModule(read_checked(quantize(tmp_path / "network", inputs)))
    with torch.no_grad():
        wanted = network.module(inputs)
    assert (after(inputs) - wanted).abs().mean() < 0.1 * wanted.std()
    monkeypatch.delitem(sys.modules, "attention")


def test_it_says_what_it_is_and_is_covered(folder: Path, task: Task) -> None:
    before, after = (OnnxModule(read_checked(folder / name)) for name in ("model.onnx", QUANTIZED))
    assert after.metadata == before.metadata
    samples = task.validation.inputs[:5].numpy()
    np.testing.assert_allclose(
        load_onnx(folder / QUANTIZED).predict(samples), load_onnx(folder / "model.onnx").predict(samples), atol=0.1
    )


def test_mistakes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected samples of the training data to calibrate on, got none"):
        quantize(folder, torch.zeros(0, 1, 8, 8))
    with pytest.raises(ValueError, match=r"cannot read .*SHA256SUMS"):
        quantize(tmp_path, torch.zeros(4, 1, 8, 8))


def test_weights_that_a_loop_reads_stay_as_they_are(tmp_path: Path) -> None:
    names = tuple("abcdefghij")
    space = RecurrentSpace((8,), len(names), num_nodes=3, width=8, context=0)
    blueprint = Blueprint.of(space, space.sample(np.random.default_rng(0), 1)[0])
    network = TrainedNetwork(blueprint.build(), blueprint, (8,), Language(names, "characters"), Tokens())
    save_network(network, tmp_path)
    export(network, tmp_path, ["onnx"])
    model = onnx.load(quantize(tmp_path, torch.randint(len(names), (2, 8))))
    left = {each.name for each in model.graph.initializer if len(each.dims) > 1 and each.data_type == 1}
    assert left == read_in_loops(network.module) and "weights.state" in left
    assert read_in_loops(nn.Sequential(nn.GRU(3, 4), nn.Linear(4, 4))) == {
        "0.weight_ih_l0", "0.weight_hh_l0", "0.bias_ih_l0", "0.bias_hh_l0"
    }  # fmt: skip
