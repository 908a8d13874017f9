"""What the README tells a user to write and to type, done exactly so, in small."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile

from child.network import load_network, read_checked
from child.onnx_module import OnnxModule
from child.predict import main as predict
from conf.launch import compose

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def files(known: Any, tmp_path: Path) -> dict[str, str]:
    """The files of the user's own folder, written down as the README has them."""
    texts = known.readme_files()
    for path, text in texts.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return texts


@pytest.fixture
def type_in(known: Any, tmp_path: Path) -> Callable[..., Path]:
    """Run a command line of the README in the test's folder, in small, and give the run's folder.

    Overrides of the small settings that do not concern the command's own space are left out by their start.
    """
    scripts = {"main.py": known.TINY, "optimize.py": known.TINY_STEPS}

    def run(line: str, *more: str, without: str = " ") -> Path:
        words = shlex.split(line)
        variables = dict(word.split("=", 1) for word in words[: words.index("python")])
        script, *arguments = words[words.index("python") + 1 :]
        small = [override for override in scripts[script] if not override.startswith(without)]
        command = [
            sys.executable,
            str(ROOT / script),
            *arguments,
            *small,
            f"output={tmp_path / 'outputs'}",
            "name=run",
            *more,
        ]
        done = subprocess.run(command, cwd=tmp_path, env={"PATH": "", **variables}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stderr == ""
        return tmp_path / "outputs" / "run"

    return run


def commands(start: str) -> list[str]:
    """Lines of their own, and cells of tables."""
    alone = [line.strip() for line in README.splitlines() if line.startswith(f"    {start}")]
    return alone + re.findall(rf"\| `({re.escape(start)}[^`]*)` \|", README)


def history(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def test_a_task_of_the_users(type_in: Any, files: dict[str, str]) -> None:
    (command,) = [line for line in commands("PYTHONPATH=mine python main.py") if line.endswith("env=stripes")]
    assert sum(files[path].count("\n") for path in files if "stripes" in path) < 40
    run = type_in(command)
    results = json.loads((run / "results.json").read_text())
    assert results["task"] == "stripes" and results["rows"][0]["test"]
    blueprint = json.loads((run / "networks" / "student" / "network.json").read_text())
    assert blueprint["objective"]["classes"] == ["across", "diagonal", "down"]


def test_an_environment_of_the_users(type_in: Any, files: dict[str, str]) -> None:
    (command,) = [line for line in commands("PYTHONPATH=mine python main.py") if "env=thrifty" in line]
    own = ("thrifty", "untrained")
    assert sum(text.count("\n") for path, text in files.items() if any(name in path for name in own)) < 60
    run = type_in(command)
    for line in history(run):  # its own reward of its own evaluator's quality
        assert line["reward"] == pytest.approx(line["quality"] - 0.1 * np.log10(line["cost"]))
        assert 0.05 < line["quality"] < 1
    candidates = json.loads((run / "candidates.json").read_text())
    assert candidates["reward_formula"] == "that of mine/Thrifty-v0"
    for candidate in candidates["candidates"]:
        assert candidate["reward"] == pytest.approx(candidate["quality"] - 0.1 * np.log10(candidate["cost"]))


def test_a_space_of_the_users(type_in: Any, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = [line for line in commands("PYTHONPATH=mine python main.py") if "space=stack" in line]
    assert sum(files[path].count("\n") for path in files if "stack" in path) < 80
    run = type_in(command, "space.channels=4", "space.num_blocks=2", without="space.")
    rows = {row["name"]: row for row in json.loads((run / "results.json").read_text())["rows"]}
    assert "block1.kernel=" in rows["teacher"]["text"] and rows["teacher"]["macs"] > 0
    with pytest.raises(ValueError, match=r"refused to build 'stack\.StackSpace'"):
        load_network(run / "networks" / "student")
    monkeypatch.syspath_prepend(str(run.parents[1] / "mine"))
    assert load_network(run / "networks" / "student", ["stack"]).input_shape == (1, 8, 8)


def test_a_strategy_of_the_users(known: Any, type_in: Any, files: dict[str, str]) -> None:
    (command,) = [line for line in commands("PYTHONPATH=mine python main.py") if "controller=hill" in line]
    run = type_in(command, "search.rounds=6", without="search.rounds")
    mine = [line for line in history(run) if line["strategy"] == "hill_climbing"]
    best = max((line for line in mine if line["round"] < 5), key=lambda line: line["reward"])["genotype"]["tokens"]
    config = compose(*[override for override in known.TINY if override.startswith("space.")])
    space = config.space.build((), input_shape=(1, 8, 8), num_outputs=10)
    near = space.neighbors(space.genotype(best))
    last = [space.genotype(line["genotype"]["tokens"]) for line in mine if line["round"] == 5]
    assert last and all(each in near for each in last)


def test_a_network_of_the_users(
    type_in: Any, files: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pruned, distilled and exported."""
    (command,) = [line for line in commands("PYTHONPATH=mine python optimize.py") if "net.Net" in line]
    run = type_in(command, "export.formats=[onnx,torch]", without="export.")
    results = json.loads((run / "results.json").read_text())
    assert results["honored"] and results["rows"][2]["macs"] <= 0.5 * results["rows"][0]["macs"]
    student = run / "networks" / "student"
    assert set(results["exported"]["files"]) == {"model.onnx", "model.pt2"}
    card = (student / "MODEL.md").read_text()
    titles = {row["name"]: row["title"] for row in results["rows"]}
    assert card.startswith(f"# A smaller model ({titles[results['chosen']]}): digits") and "test accuracy" in card
    assert 'network = load_network(".", ["net"])' in card and "then channels removed`" in card
    monkeypatch.syspath_prepend(str(run.parents[1] / "mine"))
    image = run.parent / "black.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(image)
    predict(["--plugins", "net", str(run), str(image)])
    assert capsys.readouterr().out.startswith(f"{image}: ")
    with pytest.raises(SystemExit, match=r"refused to build 'net\.Net': .*--plugins net for child\.predict"):
        predict([str(run), str(image)])
    network = load_network(student, ["net"])
    images = np.random.default_rng(0).integers(0, 17, (3, 1, 8, 8)).astype(np.uint8)
    inputs = network.preprocessing(torch.from_numpy(images))
    answered = OnnxModule(read_checked(student / "model.onnx"))(inputs)
    torch.testing.assert_close(answered, network.module(inputs), rtol=1e-4, atol=1e-5)


def test_a_folder_of_photos(type_in: Any, tmp_path: Path) -> None:
    """Any size, gray or in color, in several formats."""
    rng = np.random.default_rng(0)
    for number in range(36):
        name = ("cats", "dogs", "owls")[number % 3]
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True, exist_ok=True)
        shape = (20 + number, 40, 3) if number % 2 else (31, 17 + number)
        pixels = rng.integers(60 * (number % 3), 60 * (number % 3) + 80, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}{('.png', '.jpg', '.bmp', '.webp')[number % 4]}")
    (command,) = [line for line in commands("python main.py") if "env=images" in line]
    run = type_in(command, "env.task.size=16")
    blueprint = json.loads((run / "networks" / "student" / "network.json").read_text())
    assert blueprint["objective"]["classes"] == ["cats", "dogs", "owls"]


def test_arrays_in_a_file(type_in: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "mine.npz", x=rng.integers(0, 256, (40, 9, 9, 3), dtype=np.uint8), y=np.arange(40) % 2)
    (command,) = [line for line in commands("python main.py") if "env=arrays" in line]
    assert type_in(command).is_dir()


def test_a_folder_of_sounds(type_in: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(24):
        pitch = (200, 900)[number % 2] * rng.uniform(0.9, 1.1)
        wave = 8000 * np.sin(2 * np.pi * pitch * np.arange(4000) / 8000) + rng.normal(0, 500, 4000)
        place = tmp_path / "sounds" / ("low", "high")[number % 2] / f"{number}.wav"
        place.parent.mkdir(parents=True, exist_ok=True)
        wavfile.write(place, 8000, wave.astype(np.int16))
    (command,) = [line for line in commands("python main.py") if "env=speech" in line]
    run = type_in(command)
    network = load_network(run / "networks" / "student")
    assert network.classify(np.zeros(8000, np.int16))[0] in ("low", "high")


def test_a_table(type_in: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [(rng.uniform(30, 200), rng.choice(["city", "village"]), int(rng.integers(1, 6))) for _ in range(80)]
    lines = [f"{a:.1f},{b},{c},{3000 * a * (2 if b == 'city' else 1) + 0.5:.2f}" for a, b, c in rows]
    (tmp_path / "homes.csv").write_text("\n".join(["area,place,rooms,price", *lines]) + "\n")
    (command,) = [line for line in commands("python main.py") if "env=table" in line]
    run = type_in(command, without="space.")
    results = json.loads((run / "results.json").read_text())
    assert results["metric"] == "R squared" and "regression of price" in results["task"]
    answers = load_network(run / "networks" / "student").predict(np.zeros((2, 4), np.float32))
    assert answers.shape == (2,) and bool(answers.isfinite().all())


def test_a_text(type_in: Any, tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_text("It was the best of times , it was the worst of times .\n" * 300)
    (command,) = [line for line in commands("python main.py") if "env=text" in line]
    run = type_in(command, "space.width=8", "space.num_nodes=3", without="space.")
    results = json.loads((run / "results.json").read_text())
    assert results["metric"] == "perplexity" and not results["higher_is_better"]
    rows = {row["name"]: row for row in results["rows"]}
    assert rows["hand_designed"]["title"] == "Hand-designed (LSTMLanguageModel)"
    assert all(0.3 < quality < 1 for row in rows.values() for quality in row["quality"])
    assert "(lower is better)" in (run / "report.html").read_text()


def test_several_runs_at_once(known: Any, tmp_path: Path) -> None:
    """Seeds, strategies and environments in one multirun, whose failing jobs stop nobody and are told at the end."""
    (command,) = re.findall(r"`python (main\.py -m seed=0,1,2 controller=reinforce,random)`", README)
    swept = [word.replace("0,1,2", "0,1") for word in shlex.split(command)[1:]]
    data = ["env=digits,arrays", f"++env.path={tmp_path / 'none.npz'}", f"output={tmp_path / 'outputs'}"]
    done = subprocess.run(
        [sys.executable, "main.py", *swept, *known.TINY, *data], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 2
    told = done.stderr.splitlines()
    assert len(told) == 4 and all(line.startswith("luban: ") and "none.npz" in line for line in told)
    for seed in (0, 1):
        for controller in ("reinforce", "random"):
            job = {f"seed={seed}", f"controller={controller}", "env=arrays"}
            assert sum(job <= set(line.replace(":", "").split()) for line in told) == 1
    runs = sorted(path for path in (tmp_path / "outputs").iterdir() if path.is_dir())
    assert len(runs) == 4 and all((run / "report.html").is_file() for run in runs)
    assert {(json.loads((run / "results.json").read_text())["seed"], history(run)[0]["strategy"]) for run in runs} == {
        (seed, controller) for seed in (0, 1) for controller in ("reinforce", "random")
    }
    compared = subprocess.run(
        [sys.executable, "report.py", f"runs=[{','.join(map(str, runs))}]",
         "--output", str(tmp_path / "comparison.html")],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Teacher (best found)" in compared.stdout
    assert compared.stdout.split()[-1] == str(tmp_path / "comparison.html")
