"""A trained network answers for files: images of any size, gray or color, and sounds."""

import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.io import wavfile
from torch import Tensor, nn

from child.export import export
from child.network import Blueprint, TrainedNetwork, save_network
from child.plain_mlp import PlainMLP
from child.predict import main
from child.recurrent import RecurrentSpace
from child.task import Classification, Language, Objective, Preprocessing, Regression
from child.training import measure
from child.transforms import LogMel, Normalize
from envs.text import text

CLASSES = Classification(("dark", "light"))
BLUEPRINT = Blueprint("child.resnet.ResNet", {"input_shape": [1, 4, 6], "num_outputs": 2, "width": 1})


class Brightness(nn.Module):
    """Two logits (B, 2), for dark and for light, from the mean of all inputs."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(dim=1)
        return torch.stack([-mean, mean], dim=1)


@pytest.fixture
def stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is loaded answers by brightness, whatever its weights are."""
    monkeypatch.setattr(Blueprint, "build", lambda self, plugins=(): Brightness())


def write(folder: Path, shape: tuple[int, ...], preprocessing: Preprocessing, objective: Objective = CLASSES) -> Path:
    save_network(TrainedNetwork(Brightness(), BLUEPRINT, shape, objective, preprocessing), folder)
    return folder


def write_image(path: Path, pixels: NDArray[np.uint8]) -> str:
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.mark.usefixtures("stands")
@pytest.mark.parametrize("scale", [255.0, 16.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_classified(tmp_path: Path, capsys: pytest.CaptureFixture[str], channels: int, scale: float) -> None:
    network = write(
        tmp_path / "run" / "networks" / "student",
        (channels, 4, 6),
        Normalize(scale, (0.5,) * channels, (0.25,) * channels),
    )
    gray = write_image(tmp_path / "gray.png", np.full((30, 40), 255, np.uint8))
    color = write_image(tmp_path / "color.bmp", np.zeros((9, 8, 3), np.uint8))
    main([str(tmp_path / "run"), gray, color])  # of a run, the student
    first, second = capsys.readouterr().out.splitlines()
    # White is (1 - 0.5) / 0.25 = 2, and so the logits are -2 and 2; black is the other way round.
    assert first == f"{gray}: light 98.2%, dark 1.8%" and second == f"{color}: dark 98.2%, light 1.8%"
    main([str(network), gray, "--top", "1"])
    assert capsys.readouterr().out == f"{gray}: light 98.2%\n"


@pytest.mark.usefixtures("stands")
def test_an_image_keeps_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(Brightness, "forward", lambda self, x: seen.append(x) or torch.zeros(1, 2))
    network = write(tmp_path / "network", (3, 4, 6), Normalize(255.0, (0.0,) * 3, (1.0,) * 3))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    main([str(network), write_image(tmp_path / "a.png", pixels)])
    expected = torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()) / 255
    torch.testing.assert_close(seen[0].contiguous(), expected)


@pytest.mark.usefixtures("stands")
def test_sounds_are_classified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = write(tmp_path / "network", (5, 11), LogMel(8000, 1000, 200, 100, 5, (-8.0,) * 5, (4.0,) * 5))
    time = np.arange(4000) / 16000
    for name, values in (("loud", 0.9 * np.random.default_rng(0).standard_normal(4000)), ("silent", 0 * time)):
        wavfile.write(tmp_path / f"{name}.wav", 16000, values.clip(-1, 1).astype(np.float32))
    main([str(network), str(tmp_path / "loud.wav"), str(tmp_path / "silent.wav")])
    loud, silent = capsys.readouterr().out.splitlines()
    assert loud.startswith(f"{tmp_path / 'loud.wav'}: light ") and ": dark " in silent


def test_a_number_is_told_in_its_own_unit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Blueprint, "build", lambda self, plugins=(): Brightness())
    network = write(tmp_path / "network", (1, 4, 6), Normalize(255.0, (0.0,), (1.0,)), Regression("age", 40.0, 10.0))
    main([str(network), write_image(tmp_path / "white.png", np.full((4, 6), 255, np.uint8))])
    assert capsys.readouterr().out == f"{tmp_path / 'white.png'}: 30\n"  # the first output is -1


@pytest.mark.parametrize("unit", ["characters", "words"])
def test_a_text_is_judged_as_its_task_does_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], unit: Literal["characters", "words"]
) -> None:
    rng = np.random.default_rng(0)
    words = [("the", "cat", "sat", "on", "a", "mat")[number] for number in rng.integers(0, 6, 900)]
    lines = [" ".join(words[place : place + 5]) for place in range(0, 900, 5)]
    (tmp_path / "novel.txt").write_text("\n".join(lines) + "\n", newline="\r\n")
    task = text(str(tmp_path / "novel.txt"), 0, unit, context=3, length=6, test_path=str(tmp_path / "novel.txt"))
    assert isinstance(task.objective, Language)
    space = RecurrentSpace((9,), task.num_outputs, num_nodes=2, width=8, context=3)
    torch.manual_seed(0)
    blueprint = Blueprint.of(space, space.sample(rng, 1)[0])
    network = TrainedNetwork(blueprint.build(), blueprint, (9,), task.objective, task.preprocessing)
    save_network(network, tmp_path / "network")
    main([str(tmp_path / "network"), str(tmp_path / "novel.txt"), "--top", "2"])
    task.test.unseal()
    test = task.test.read("all")
    wanted = measure(network.module, task, test, 64, torch.device("cpu"))
    said = capsys.readouterr().out
    assert f"txt: {wanted:.4g} {task.metric_name} over {test.targets.numel():,}; next: '" in said
    assert said.count("%") == 2

    (tmp_path / "short.txt").write_text("the cat\n")
    (tmp_path / "strange.txt").write_text("the cat sat on a zebra\n" * 3)
    with pytest.raises(SystemExit):
        main([str(tmp_path / "network"), str(tmp_path / "short.txt"), str(tmp_path / "strange.txt")])
    short, strange = capsys.readouterr().err.splitlines()
    assert f"short.txt: the network reads 9 {unit} at once, got " in short
    assert f"strange.txt: the network does not know {'z' if unit == 'characters' else 'zebra'!r}" in strange


@pytest.mark.usefixtures("stands")
def test_mistakes_are_one_line_and_the_other_files_are_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = write(tmp_path / "network", (1, 4, 6), Normalize(255.0, (0.5,), (0.25,)))
    good = write_image(tmp_path / "good.png", np.full((4, 6), 255, np.uint8))
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(SystemExit) as caught:
        main([str(network), str(tmp_path / "broken.png"), str(tmp_path / "absent.png"), good])
    assert caught.value.code == 1
    said = capsys.readouterr()
    assert said.out == f"{good}: light 98.2%, dark 1.8%\n"
    broken, absent = said.err.splitlines()
    assert broken.startswith(f"Error: cannot read the image {tmp_path / 'broken.png'}: ")
    assert absent.startswith(f"Error: cannot read the image {tmp_path / 'absent.png'}: ")
    with pytest.raises(SystemExit, match=r"Error: cannot read .*absent.*; expected a folder that a run wrote"):
        main([str(tmp_path / "absent"), good])
    vectors = write(tmp_path / "vectors", (7,), Normalize(1.0, (0.5,) * 7, (0.25,) * 7))
    with pytest.raises(SystemExit, match="neither images, sounds nor text; ask it in Python"):
        main([str(vectors), good])
    five = write(tmp_path / "five", (5, 4, 6), Normalize(1.0, (0.5,) * 5, (0.25,) * 5))
    with pytest.raises(SystemExit, match="takes images of 5 channels, which no image file has"):
        main([str(five), good])


def test_an_exported_model_answers_alone_as_its_folder_does(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a process that sees no other folder of ours, and no other file of the network."""
    torch.manual_seed(0)
    arguments = {"input_shape": [1, 4, 6], "num_outputs": 2, "width": 1}
    blueprint = Blueprint("child.resnet.ResNet", arguments)
    network = TrainedNetwork(blueprint.build(), blueprint, (1, 4, 6), CLASSES, Normalize(16.0, (0.5,), (0.25,)))
    save_network(network, tmp_path / "network")
    export(network, tmp_path / "network", ["onnx"])
    image = write_image(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (9, 8)).astype(np.uint8))
    main([str(tmp_path / "network"), image])
    wanted = capsys.readouterr().out
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "child").symlink_to(root / "child")
    (tmp_path / "alone" / "model.onnx").write_bytes((tmp_path / "network" / "model.onnx").read_bytes())
    command = [sys.executable, "-m", "child.predict", "model.onnx", image]
    done = subprocess.run(command, cwd=tmp_path / "alone", capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (wanted, "") and "light" in wanted


def test_it_runs_with_nothing_but_child(tmp_path: Path, root: Path) -> None:
    """In a process that sees no other folder of ours."""
    torch.manual_seed(0)
    arguments = {"input_shape": [6], "num_outputs": 2, "width": 3}
    network = TrainedNetwork(PlainMLP(**arguments), Blueprint("child.plain_mlp.PlainMLP", arguments), (6,), CLASSES,
                             Normalize(1.0, (0.5,) * 6, (0.25,) * 6))  # fmt: skip
    save_network(network, tmp_path / "network")
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "child").symlink_to(root / "child")
    command = [sys.executable, "-m", "child.predict", str(tmp_path / "network"), "a.png"]
    done = subprocess.run(command, cwd=tmp_path / "alone", capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "neither images, sounds nor text" in done.stderr
    ask = "import sys, child.predict; print([name for name in sys.modules if 'train' in name and name[:5] == 'child'])"
    done = subprocess.run(
        [sys.executable, "-c", ask], cwd=tmp_path / "alone", capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
