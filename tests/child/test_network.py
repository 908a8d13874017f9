"""A network on disk: it comes back the same, or not at all; and nothing in the files is executed."""

import dataclasses
import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from child.cost import count_macs
from child.macro import MacroSpace
from child.network import (
    Blueprint,
    TrainedNetwork,
    add_file,
    check_rebuilt,
    check_storable,
    find_network,
    load_network,
    save_network,
)
from child.resnet import ResNet
from child.space import NetworkSpace
from child.task import Classification, Language, Task
from child.transforms import Normalize, Tokens

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def images() -> np.ndarray:
    """Eight images as a task stores them."""
    return np.random.default_rng(0).integers(0, 256, (8, 3, 8, 8), np.uint8)


COLORS = Classification(("red", "green", "blue"))


@pytest.fixture
def trained(macro: MacroSpace, unsettle: Callable[[nn.Module], None]) -> TrainedNetwork:
    """A network as after training."""
    torch.manual_seed(0)
    genotype = macro.sample(np.random.default_rng(1), 1)[0]
    module = macro.network(genotype)
    unsettle(module)
    preprocessing = Normalize(255.0, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    return TrainedNetwork(module, Blueprint.of(macro, genotype), (3, 8, 8), COLORS, preprocessing)


@pytest.fixture
def folder(trained: TrainedNetwork, tmp_path: Path) -> Path:
    """Where it is saved."""
    save_network(trained, tmp_path / "networks" / "teacher")
    return tmp_path / "networks" / "teacher"


def replace(folder: Path, name: str, data: bytes) -> None:
    """Put another file in place with a checksum that fits, as someone with bad intentions would."""
    (folder / name).write_bytes(data)
    names = ("network.json", "weights.safetensors")
    sums = "".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    (folder / "SHA256SUMS").write_text(sums)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    description = json.loads((folder / "network.json").read_text())
    change(description)
    replace(folder, "network.json", json.dumps(description).encode())


def test_a_run_folder_stands_for_the_student_that_was_chosen(tmp_path: Path) -> None:
    (tmp_path / "networks" / "student").mkdir(parents=True)
    assert find_network(tmp_path) == tmp_path / "networks" / "student"
    assert find_network(tmp_path / "networks" / "student") == tmp_path / "networks" / "student"
    rows = [{"name": "teacher", "folder": "networks/teacher"}, {"name": "student", "folder": "networks/student-seed2"}]
    (tmp_path / "results.json").write_text(json.dumps({"rows": rows}))
    assert find_network(tmp_path) == tmp_path / "networks" / "student-seed2"
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results\.json is not what a run writes"):
        find_network(tmp_path)


# There and back.


def test_a_run_without_a_student_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(ValueError, match=r"has no student yet; finish the run with resume="):
        find_network(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({"rows": [{"name": "teacher", "folder": None}]}))
    with pytest.raises(ValueError, match=r"is finished, and has no network: it trained none"):
        find_network(tmp_path)


def test_what_no_file_could_hold_is_told(task: Task) -> None:
    class Mine(Normalize):
        pass

    blueprint = Blueprint("mine.Net", {"width": 8})
    check_storable(blueprint, task)
    with pytest.raises(ValueError, match=r"has a Mine, which no network on disk could be stored with; allowed: Normal"):
        check_storable(blueprint, dataclasses.replace(task, preprocessing=Mine(1.0, (0.0,), (1.0,))))
    with pytest.raises(ValueError, match=r"with what mine\.Net has: .*int64 is not JSON serializable; .*'width': "):
        check_storable(Blueprint("mine.Net", {"width": np.int64(8)}), task)
    single: Any = np.float32(1)
    with pytest.raises(ValueError, match=rf"with what {task.name} has: .*float32 is not JSON .*'scale': "):
        check_storable(blueprint, dataclasses.replace(task, preprocessing=Normalize(single, (0.0,), (1.0,))))


def test_a_space_that_its_arguments_do_not_build_again_is_told(macro: MacroSpace) -> None:
    drawn = macro.sample(np.random.default_rng(0), 1)[0]
    check_rebuilt(macro, drawn, ())
    kept = macro.arguments
    for arguments, told in (
        (
            {**kept, "channels": 2 * kept["channels"]},
            r"space: the arguments that child\.macro\.MacroSpace keeps build an",
        ),
        ({**kept, "num_layers": 2, "min_layers": 1}, r"cannot build 'child\.macro\.MacroSpace' .* tokens, got"),
        ({**kept, "width": 8}, r"cannot build 'child\.macro\.MacroSpace' .* unexpected keyword argument 'width'"),
    ):
        macro.arguments = arguments
        with pytest.raises(ValueError, match=told):
            check_rebuilt(macro, drawn, ())


def test_it_comes_back_the_same(trained: TrainedNetwork, folder: Path, images: np.ndarray) -> None:
    loaded = load_network(folder)
    assert loaded.predict(images).equal(trained.predict(images))
    assert loaded.objective == trained.objective == COLORS
    assert loaded.input_shape == trained.input_shape
    assert loaded.preprocessing == trained.preprocessing
    assert loaded.blueprint == trained.blueprint
    assert not any(part.training for part in loaded.module.modules())
    before, after = trained.module.state_dict(), loaded.module.state_dict()
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)
    assert {path.name for path in folder.iterdir()} == {"network.json", "weights.safetensors", "SHA256SUMS"}


def test_every_space_is_built_again_from_its_blueprint(
    network_space: NetworkSpace, inputs_of: Callable[..., torch.Tensor], unsettle: Callable[[nn.Module], None]
) -> None:
    inputs = inputs_of(network_space)
    for genotype in network_space.sample(np.random.default_rng(0), 3):
        module = network_space.network(genotype).eval()
        unsettle(module)
        described = json.loads(json.dumps(asdict(Blueprint.of(network_space, genotype))))
        again = Blueprint(described["target"], described["arguments"], tuple(described["tokens"])).build().eval()
        again.load_state_dict(module.state_dict())
        assert again(inputs).equal(module(inputs))


def test_every_space_of_images_comes_back(
    image_space: NetworkSpace, tmp_path: Path, unsettle: Callable[[nn.Module], None]
) -> None:
    shape = image_space.arguments["input_shape"]
    images = np.random.default_rng(0).integers(0, 17, (4, *shape), np.uint8)
    preprocessing = Normalize(16.0, (0.5,) * shape[0], (0.5,) * shape[0])
    for number, genotype in enumerate(image_space.sample(np.random.default_rng(0), 3)):
        module = image_space.network(genotype)
        unsettle(module)
        classes = Classification(tuple(str(place) for place in range(image_space.arguments["num_outputs"])))
        network = TrainedNetwork(module, Blueprint.of(image_space, genotype), shape, classes, preprocessing)
        save_network(network, tmp_path / str(number))
        loaded = load_network(tmp_path / str(number))
        assert loaded.predict(images).equal(network.predict(images))
        assert loaded.blueprint.tokens == genotype.tokens


def test_a_network_without_a_space_comes_back(tmp_path: Path, images: np.ndarray) -> None:
    arguments = {"input_shape": [3, 8, 8], "num_outputs": 3, "width": 4}
    blueprint = Blueprint("child.resnet.ResNet", arguments)
    module = blueprint.build()
    assert isinstance(module, ResNet)
    network = TrainedNetwork(
        module, blueprint, (3, 8, 8), Classification(("a", "b", "c")), Normalize(1.0, (0.0,) * 3, (1.0,) * 3)
    )
    save_network(network, tmp_path)
    assert load_network(tmp_path).predict(images).equal(network.predict(images))


def test_it_is_a_safe_format_that_sha256sum_reads(folder: Path) -> None:
    assert json.loads((folder / "network.json").read_text())["format"] == 2
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_loading_needs_child_alone(folder: Path, trained: TrainedNetwork, images: np.ndarray) -> None:
    script = """
import sys
import numpy as np
from child.network import load_network
images = np.random.default_rng(0).integers(0, 256, (8, 3, 8, 8), np.uint8)
print(load_network(sys.argv[1]).predict(images).argmax(dim=1).tolist())
floors = {"controller", "envs", "logbook", "conf", "hydra", "omegaconf", "gymnasium", "main"}
assert not floors & {name.partition(".")[0] for name in sys.modules}
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == trained.predict(images).argmax(dim=1).tolist()


# Classifying.


def test_probabilities_are_the_softmax_of_the_preprocessed_images(trained: TrainedNetwork, images: np.ndarray) -> None:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    with torch.no_grad():
        logits = trained.module((torch.from_numpy(images) / 255.0 - mean) / std)
    torch.testing.assert_close(trained.predict(images), logits.softmax(dim=1), atol=1e-4, rtol=1e-4)


def test_one_image_is_classified_with_its_channels_last(trained: TrainedNetwork, images: np.ndarray) -> None:
    for image, row in zip(images, trained.predict(images), strict=True):
        name, probability = trained.classify(image.transpose(1, 2, 0))
        assert name == COLORS.classes[int(row.argmax())]
        assert probability == pytest.approx(float(row.max()), rel=1e-4)


def test_a_gray_image_needs_no_channel() -> None:
    blueprint = Blueprint("child.resnet.ResNet", {"input_shape": [1, 8, 6], "num_outputs": 2, "width": 2})
    network = TrainedNetwork(
        blueprint.build(), blueprint, (1, 8, 6), Classification(("a", "b")), Normalize(1.0, (0.0,), (1.0,))
    )
    image = np.random.default_rng(0).integers(0, 9, (8, 6), np.uint8)
    assert network.classify(image) == network.classify(image[:, :, None])


@pytest.mark.parametrize("shape", [(8, 8, 3), (2, 1, 8, 8), (2, 3, 8, 9), (2, 8, 8, 3)])
def test_images_of_another_shape_are_refused(trained: TrainedNetwork, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected samples of shape \(N, 3, 8, 8\), got"):
        trained.predict(np.zeros(shape, np.uint8))


def test_values_that_were_never_learned_from_are_refused(trained: TrainedNetwork) -> None:
    image = np.random.default_rng(0).random((8, 8, 3), np.float32)
    with pytest.raises(ValueError, match=r"expected an image of values from 0 to 255, got none above 0\.9"):
        trained.classify(image)
    dark = (image > 0.5).astype(np.uint8)  # as it is stored
    for given in (255 * image, np.zeros_like(image), dark, dark.astype(np.float32)):
        assert trained.classify(given)[0] in COLORS.classes
    image[1, 2, 0] = np.nan
    with pytest.raises(ValueError, match="expected numbers that are finite"):
        trained.classify(255 * image)


def test_symbols_beyond_the_vocabulary_are_refused() -> None:
    blueprint = Blueprint("torch.nn.Identity", {})
    network = TrainedNetwork(nn.Embedding(3, 3), blueprint, (2,), Language(("a", "b", "c"), "characters"), Tokens())
    assert network.predict(np.array([[0, 2]])).shape == (1, 2, 3)
    for given in ([[0, 3]], [[-1, 0]]):
        with pytest.raises(ValueError, match="expected symbols by their numbers, 0 to 2, got"):
            network.predict(np.array(given))


# Damage.


@pytest.mark.parametrize("name", ["network.json", "weights.safetensors"])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.99])
def test_a_flipped_bit_is_noticed(folder: Path, name: str, place: float) -> None:
    data = bytearray((folder / name).read_bytes())
    data[int(place * len(data))] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        load_network(folder)


def test_a_damaged_checksum_is_noticed(folder: Path) -> None:
    data = bytearray((folder / "SHA256SUMS").read_bytes())
    data[3] ^= 1
    (folder / "SHA256SUMS").write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"network\.json is damaged"):
        load_network(folder)


@pytest.mark.parametrize("name", ["network.json", "weights.safetensors", "SHA256SUMS"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"cannot read .*{name}: No such file"):
        load_network(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*nowhere"):
        load_network(tmp_path / "nowhere")


def test_another_format_is_refused(folder: Path) -> None:
    rewrite(folder, lambda description: description.update(format=3))
    with pytest.raises(ValueError, match=r"network\.json has format 3, expected 2"):
        load_network(folder)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"format": 2}',
        b"\xff\xfe{}",
        b"{'format': 2}",
        b'{"format": 2, "build": {"target": 3, "arguments": {}, "tokens": null}, "objective": '
        b'{"kind": "Classification", "classes": ["a", "b"]}, '
        b'"preprocessing": {"kind": "Normalize", "scale": 1, "mean": [], "std": []}}',
    ],
)
def test_a_file_that_describes_no_network_is_named(folder: Path, data: bytes) -> None:
    replace(folder, "network.json", data)
    with pytest.raises(ValueError, match=r"network\.json is not a network description"):
        load_network(folder)


def test_weights_that_do_not_fit_are_named(folder: Path) -> None:
    replace(folder, "weights.safetensors", save({"other": torch.zeros(3)}))
    with pytest.raises(ValueError, match=r"weights\.safetensors does not fit the network"):
        load_network(folder)


def test_tokens_that_are_illegal_are_named(folder: Path) -> None:
    rewrite(folder, lambda description: description["build"]["tokens"].__setitem__(0, 9))
    with pytest.raises(ValueError, match=r"illegal action 9 for decision 0 \(layer1\.operation\)"):
        load_network(folder)


# Bad intentions.


class Malicious:
    """Makes a file as soon as it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_in_place_of_the_weights_is_not_executed(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    pickled = pickle.dumps(Malicious(trace))
    pickle.loads(pickled)
    assert trace.exists()  # it would work
    trace.unlink()
    replace(folder, "weights.safetensors", pickled)
    with pytest.raises(ValueError, match=r"weights\.safetensors does not fit"):
        load_network(folder)
    torch.save({"stem.0.weight": Malicious(trace)}, folder / "weights.safetensors")
    replace(folder, "weights.safetensors", (folder / "weights.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"weights\.safetensors does not fit"):
        load_network(folder)
    assert not trace.exists()


@pytest.mark.parametrize("tokens", [None, [0]])
@pytest.mark.parametrize(
    "target", ["os.system", "subprocess.run", "childish.space.Evil", ".child.macro.MacroSpace", "child", "system", ""]
)
def test_what_is_not_ours_is_refused_before_it_is_imported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, target: str, tokens: list[int] | None
) -> None:
    def refuse(name: str) -> object:
        raise AssertionError(f"{name} was imported")

    rewrite(folder, lambda description: description["build"].update(target=target, arguments={}, tokens=tokens))
    monkeypatch.setattr("child.network.importlib.import_module", refuse)
    with pytest.raises(ValueError, match=r"refused to build '.*': only child\.\* and plugins"):
        load_network(folder)


@pytest.mark.parametrize(
    "target",
    [
        "child.nowhere.Space",
        "child.macro.MacroSpaceship",
        "child.macro.torch",
        "child.macro.nearest",
        "child.network.importlib.import_module",
        "child.task.Split",
        "child.space.NetworkSpace",
    ],
)
def test_what_is_ours_but_no_network_is_refused(folder: Path, target: str) -> None:
    rewrite(folder, lambda description: description["build"].update(target=target))
    with pytest.raises(ValueError, match=f"cannot build '{target}'"):
        load_network(folder)


def test_arguments_that_do_not_fit_are_named(folder: Path) -> None:
    rewrite(folder, lambda description: description["build"]["arguments"].update(chanels=3))
    with pytest.raises(ValueError, match=r"cannot build 'child\.macro\.MacroSpace'.*argument 'chanels'"):
        load_network(folder)


def test_a_space_needs_tokens_to_be_a_network(macro: MacroSpace) -> None:
    with pytest.raises(ValueError, match="neither a network nor a search space with tokens"):
        Blueprint("child.macro.MacroSpace", macro.arguments).build()


PLUGIN = """
from torch import nn

class Plain(nn.Sequential):
    def __init__(self, width):
        super().__init__(nn.Flatten(), nn.Linear(192, width), nn.ReLU(), nn.Linear(width, 3))
"""


def test_a_network_of_a_plugin_is_built_where_the_plugin_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: np.ndarray
) -> None:
    (tmp_path / "luban_test_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    blueprint = Blueprint("luban_test_plugin.Plain", {"width": 5})
    with pytest.raises(ValueError, match=r"refused to build 'luban_test_plugin.Plain'.*\['other'\]"):
        blueprint.build(["other"])
    assert "luban_test_plugin" not in sys.modules
    module = blueprint.build(["luban_test_plugin"])
    preprocessing = Normalize(255.0, (0.0,) * 3, (1.0,) * 3)
    network = TrainedNetwork(module, blueprint, (3, 8, 8), Classification(("a", "b", "c")), preprocessing)
    save_network(network, tmp_path / "plain")
    with pytest.raises(ValueError, match="refused to build"):
        load_network(tmp_path / "plain")
    loaded = load_network(tmp_path / "plain", ["luban_test_plugin"])
    assert loaded.predict(images).equal(network.predict(images))
    monkeypatch.delitem(sys.modules, "luban_test_plugin")


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_what_was_read_can_be_copied_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight norm by hooks computes the weight from two parameters, at first where the network is built."""
    layer = "nn.Linear(192, width)"
    (tmp_path / "normed.py").write_text(PLUGIN.replace(layer, f"nn.utils.weight_norm({layer})"))
    monkeypatch.syspath_prepend(tmp_path)
    blueprint = Blueprint("normed.Plain", {"width": 5})
    preprocessing = Normalize(255.0, (0.0,) * 3, (1.0,) * 3)
    module = blueprint.build(["normed"])
    save_network(
        TrainedNetwork(module, blueprint, (3, 8, 8), Classification(("a", "b", "c")), preprocessing), tmp_path / "plain"
    )
    loaded = load_network(tmp_path / "plain", ["normed"]).module
    assert count_macs(loaded, (3, 8, 8)) == 192 * 5 + 5 * 3
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    monkeypatch.delitem(sys.modules, "normed")


def test_a_file_that_could_not_be_added_leaves_the_network_whole(
    folder: Path, trained: TrainedNetwork, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced = os.replace

    def full(source: str, target: Path) -> None:
        if Path(target).name == "SHA256SUMS":
            raise OSError(28, "No space left on device")
        replaced(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        add_file(folder, "model.onnx", b"large")
    assert load_network(folder).predict(images).equal(trained.predict(images))
