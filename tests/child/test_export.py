"""What is exported answers as the network does, for any number of samples, and says what it is."""

import json
import re
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from child import export as export_script
from child.export import FILES, FORMATS, check, export, export_saved, main, sample_inputs
from child.network import Blueprint, TrainedNetwork, load_network, save_network
from child.onnx_module import OnnxModule, load_onnx
from child.recurrent import RecurrentSpace
from child.space import NetworkSpace
from child.task import Classification, Language, Regression
from child.transforms import Normalize, Tokens


@pytest.fixture
def trained(unsettle: Callable[[nn.Module], None]) -> Callable[..., TrainedNetwork]:
    """A network as after training, of an architecture of a space."""

    def make(space: NetworkSpace, number: int = 0) -> TrainedNetwork:
        torch.manual_seed(number)
        genotype = space.sample(np.random.default_rng(number), 1)[0]
        module = space.network(genotype)
        unsettle(module)
        shape, num_outputs = space.arguments["input_shape"], space.arguments["num_outputs"]
        names = tuple(f"class {place}" for place in range(num_outputs))
        if isinstance(space, RecurrentSpace):
            return TrainedNetwork(module, Blueprint.of(space, genotype), shape, Language(names, "characters"), Tokens())
        objective = Classification(names) if num_outputs > 1 else Regression("age", 40.0, 10.0)
        preprocessing = Normalize(16.0, (0.4,) * shape[0], (0.3,) * shape[0])
        return TrainedNetwork(module, Blueprint.of(space, genotype), shape, objective, preprocessing)

    return make


def stored(network: TrainedNetwork, num: int) -> np.ndarray:
    """Samples as a task stores them."""
    rng = np.random.default_rng(num)
    if isinstance(network.preprocessing, Tokens):
        return rng.integers(0, network.objective.num_outputs, (num, *network.input_shape))
    return rng.integers(0, 17, (num, *network.input_shape)).astype(np.uint8)


def check_exported(network: TrainedNetwork, folder: Path) -> None:
    """Both files, read back from disk, against the network, on other inputs than those of the check in the code."""
    save_network(network, folder)
    export(network, folder)
    from_onnx = load_onnx(folder / "model.onnx")
    archive = torch.export.load(folder / "model.pt2").module()
    for num in (1, 7, 3):
        samples = stored(network, num)
        torch.testing.assert_close(from_onnx.predict(samples), network.predict(samples), rtol=1e-4, atol=1e-5)
        inputs = sample_inputs(network, num, seed=10 + num)
        with torch.no_grad():
            wanted = network.module(inputs)
            torch.testing.assert_close(archive(inputs), wanted, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(from_onnx.module(inputs), wanted, rtol=1e-4, atol=1e-5)
    graph = onnx.load(folder / "model.onnx").graph
    (given,), (answer,) = graph.input, graph.output
    assert (given.name, answer.name) == ("input", "output")
    assert [axis.dim_param for axis in given.type.tensor_type.shape.dim] == ["batch"] + [""] * len(network.input_shape)
    assert answer.type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_every_space_is_exported(network_space: NetworkSpace, number: int, trained: Any, tmp_path: Path) -> None:
    check_exported(trained(network_space, number), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("blueprint", [
    Blueprint("child.resnet.ResNet", {"input_shape": [3, 8, 8], "num_outputs": 3, "width": 4}),
    Blueprint("child.convnet.ConvNet1d", {"input_shape": [3, 8], "num_outputs": 3, "width": 4}),
    Blueprint("child.plain_mlp.PlainMLP", {"input_shape": [3], "num_outputs": 3, "width": 4}),
    Blueprint("child.lstm.LSTMLanguageModel", {"input_shape": [9], "num_outputs": 3, "width": 4, "context": 4}),
], ids=lambda blueprint: blueprint.target)  # fmt: skip
def test_every_hand_designed_network_is_exported(blueprint: Blueprint, tmp_path: Path) -> None:
    names = ("a", "b", "c")
    if "lstm" in blueprint.target:
        objective, preparation = Language(names, "words"), Tokens()
    else:
        objective, preparation = Classification(names), Normalize(16.0, (0.4,) * 3, (0.3,) * 3)
    shape = blueprint.arguments["input_shape"]
    check_exported(TrainedNetwork(blueprint.build(), blueprint, shape, objective, preparation), tmp_path)


class Mixed(nn.Module):
    """What users write: residuals, concatenation, depthwise and grouped convolutions, a branch on what is constant."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.grouped = nn.Conv2d(width, width, 1, groups=2)
        self.head = nn.Linear(2 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = torch.relu(self.depthwise(x) + x)
        x = torch.cat([self.grouped(y), x], dim=1)
        if x.shape[2] > 4:
            x = nn.functional.avg_pool2d(x, 2)
        return self.head(x.mean(dim=(2, 3)))


class Fickle(nn.Module):
    """Which way it takes depends on the data: no graph has that."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] * (2 if bool(x.sum() > 0) else 3)


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x + 1


class Fixed(nn.Module):
    """Reads batches of two alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).reshape(2, -1)[:, :3]


class Rough(nn.Module):
    """Is a third, but for what is lost in 32 bits: up to 0.004."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1)[:, :3] * 3e4 + 1 / 3) - x.flatten(1)[:, :3] * 3e4


def of_users(module: nn.Module) -> TrainedNetwork:
    blueprint = Blueprint(f"mine.{type(module).__name__}", {})
    return TrainedNetwork(
        module, blueprint, (3, 8, 8), Classification(("a", "b", "c")), Normalize(255.0, (0.5,) * 3, (0.25,) * 3)
    )


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's module, exported, without a word."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("mixed")
    network = of_users(Mixed())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_exported(network, folder)
    return folder


def test_a_module_of_the_users_is_exported(mixed: Path) -> None:
    assert sorted(path.name for path in mixed.iterdir()) == [
        "SHA256SUMS", "model.onnx", "model.pt2", "network.json", "weights.safetensors"
    ]  # fmt: skip
    listed = {line.partition("  ")[2] for line in (mixed / "SHA256SUMS").read_text().splitlines()}
    assert listed == {path.name for path in mixed.iterdir()} - {"SHA256SUMS"}


def test_the_metadata_say_what_it_is(mixed: Path) -> None:
    described = OnnxModule((mixed / "model.onnx").read_bytes()).metadata
    with zipfile.ZipFile(mixed / "model.pt2") as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("metadata.json")]
        assert json.loads(archive.read(name)) == described
    assert described["luban"] == export_script.VERSION and described["architecture"] == "Mixed()"
    saved = json.loads((mixed / "network.json").read_text())
    assert {key: json.loads(described[key]) for key in saved} == saved
    # Nothing tells of the machine it was made on.
    for file in FILES.values():
        assert str(Path(__file__).parents[2]).encode() not in (mixed / file).read_bytes()


def test_a_damaged_file_is_told(mixed: Path, tmp_path: Path) -> None:
    data = bytearray((mixed / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "SHA256SUMS").write_text((mixed / "SHA256SUMS").read_text())
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.onnx is damaged: its SHA-256 is not the one"):
        load_onnx(tmp_path / "model.onnx")
    (tmp_path / "mine.onnx").write_bytes((mixed / "model.onnx").read_bytes())  # beside the sums of others
    assert load_onnx(tmp_path / "mine.onnx").objective == load_onnx(mixed / "model.onnx").objective
    (tmp_path / "SHA256SUMS").unlink()
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"cannot use .*model\.onnx: this is not an ONNX model"):
        load_onnx(tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"cannot read .*absent\.onnx: .*; expected an exported model"):
        load_onnx(tmp_path / "absent.onnx")


@pytest.mark.parametrize(("module", "reason"), [
    (Fickle(), "data-dependent"), (Two(), "it gives 2 outputs, not one"), (Fixed(), "batch"),
], ids=["by the data", "two outputs", "one batch size"])  # fmt: skip
def test_what_cannot_be_traced_is_one_line(module: nn.Module, reason: str, tmp_path: Path) -> None:
    save_network(of_users(module), tmp_path)
    with pytest.raises(ValueError, match=f"mine.{type(module).__name__} cannot be exported: .*{reason}") as caught:
        export(of_users(module), tmp_path, ["torch"])
    assert "\n" not in str(caught.value) and not (tmp_path / "model.pt2").exists()


class Foreign(nn.Module):
    """ONNX has no Bessel functions."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x.flatten(1)[:, :3])


def test_what_one_format_cannot_hold_another_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("child.export.load_network", lambda folder, plugins: of_users(Foreign()))
    save_network(of_users(Foreign()), tmp_path)
    done = export_saved(tmp_path)
    assert list(done["files"]) == ["model.pt2"] and (tmp_path / "MODEL.md").is_file()
    (note,) = done["notes"]
    assert note.startswith("No model.onnx: ") and "bessel_j0" in note and "\x1b" not in note


def test_what_rounding_explains_is_no_difference() -> None:
    """No model can be nearer to a network than the network is to itself with more bits."""
    network = of_users(Rough())
    deviation = check(lambda x: torch.full((len(x), 3), 1 / 3), network, "model.onnx")
    assert 2e-4 < deviation < 0.01
    with pytest.raises(ValueError, match=r"model\.onnx differs from the network by up to 0\.0[45]"):
        check(lambda x: torch.full((len(x), 3), 1 / 3 + 0.05), network, "model.onnx")


def test_a_model_that_answers_otherwise_is_refused() -> None:
    network = of_users(Mixed())
    assert check(network.module, network, "model.onnx") == 0
    with torch.no_grad(), pytest.raises(ValueError, match=r"model\.onnx differs from the network by up to .* for 1"):
        check(lambda x: network.module(x) + 1e-3, network, "model.onnx")
    with pytest.raises(ValueError, match="in shape for 7"):
        check(lambda x: network.module(x[:1]), network, "model.onnx")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a small perceptron as student, exported by the command."""
    run = tmp_path_factory.mktemp("outputs") / "run"
    torch.manual_seed(0)
    arguments = {"input_shape": [6], "num_outputs": 2, "width": 3}
    blueprint = Blueprint("child.plain_mlp.PlainMLP", arguments)
    network = TrainedNetwork(blueprint.build(), blueprint, (6,), Classification(("no", "yes")),
                             Normalize(2.0, (0.5,) * 6, (0.25,) * 6))  # fmt: skip
    save_network(network, run / "networks" / "student")
    (run / "config.yaml").write_text("seed: 3\n")
    (run / "results.json").write_text(json.dumps({
        "task": "flowers", "metric": "accuracy", "seed": 3, "samples": {"training": 80, "test": 20},
        "rows": [{"name": "student", "folder": "networks/student", "title": "Student (distilled)",
                  "validation": [0.9, 0.8], "test": [0.75, 0.85]}],
    }))  # fmt: skip
    main([str(run)])
    return run / "networks" / "student"


def test_the_card_tells_all(small: Path) -> None:
    card = (small / "MODEL.md").read_text()
    assert card.startswith("# Student (distilled): flowers\n")
    for fact in (
        "| validation accuracy | 0.85 ± 0.07071 (standard deviation of 2 seeds) |", "| test accuracy | 0.8 ±",
        "one of 2 classes (no, yes)", "| parameters | 41 |", "| multiply-accumulates | 33 a sample |",
        "| data | 80 samples for training, 20 samples for test |", "latency, torch", "latency, onnxruntime",
        "(x / 2 - mean) / std", "A run with seed 3", "seed: 3", "PlainMLP(", "not calibrated",
    ):  # fmt: skip
        assert fact in card
    for file in ("model.onnx", "model.pt2", "network.json", "weights.safetensors"):
        assert f"| {file} | {(small / file).stat().st_size:,} |" in card
    listed = {line.partition("  ")[2] for line in (small / "SHA256SUMS").read_text().splitlines()}
    assert listed == {path.name for path in small.iterdir()} - {"SHA256SUMS"}
    assert OnnxModule((small / "model.onnx").read_bytes()).metadata["task"] == "flowers"


def test_the_code_in_the_card_runs_as_it_is_written(small: Path, root: Path) -> None:
    luban, alone, archive = re.findall(r"```python\n(.*?)```", (small / "MODEL.md").read_text(), re.DOTALL)
    wanted = load_network(small).predict(np.zeros((1, 6), np.float32))
    label = ("no", "yes")[int(wanted.argmax())]

    def run(code: str, **variables: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=small, env={"PATH": "", **variables}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run(alone) == f"['{label}']\n"
    assert "'yes'" in run(archive) or '"yes"' in run(archive)
    assert run(luban, PYTHONPATH=str(root)) == f"{wanted}\n"


def test_the_same_network_gives_the_same_bytes(small: Path, tmp_path: Path) -> None:
    network = load_network(small)
    save_network(network, tmp_path)
    export(network, tmp_path, FORMATS, "flowers")
    for name in FILES.values():
        assert (tmp_path / name).read_bytes() == (small / name).read_bytes()


def test_without_the_extra_the_archive_is_written_alone(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_network(load_network(small), tmp_path)
    monkeypatch.setattr("child.onnx_module.importlib.util.find_spec", lambda name: None)
    done = export_saved(tmp_path)
    assert list(done["files"]) == ["model.pt2"] and list(done["latency_ms"]) == ["torch"]
    (note,) = done["notes"]
    assert note == (
        "No model.onnx: onnx and onnxscript and onnxruntime not installed; get the extra with: pip install '.[onnx]'."
    )
    assert "onnxruntime alone" not in (tmp_path / "MODEL.md").read_text()
    with pytest.raises(ValueError, match="onnxruntime not installed; get the extra with: pip install"):
        OnnxModule(b"")


def test_the_command_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"Error: cannot read .*; expected a folder that a run wrote"):
        main([str(tmp_path / "absent")])
