"""Whole runs, tiny ones: what a user finds in the folder at the end, and that no choice leans on test data."""

import hashlib
import importlib
import inspect
import json
import lzma
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main as main_script
from child.cost import CostModel, count_macs, measure_latency
from child.distill import SoftTargets
from child.nasbench201 import NASBench201Space
from child.network import load_network
from child.retrain import retrain
from child.rungs import Rungs
from child.space import Evaluation, Genotype, NetworkSpace, RelaxedSpace, derive_seed
from child.standalone import StandaloneEvaluator
from child.supernet import SupernetEvaluator, SupernetRelaxation
from child.task import Language, SealedSplit, Task
from child.training import TrainingError, measure
from conf.schema import ConfigError, Part, RunConfig
from controller.derive import derive
from controller.gradient import DARTS
from controller.ranking import agreement
from envs.cifar10 import CLASSES as CIFAR10_CLASSES
from envs.digits import digits
from logbook.analysis import front_of, hypervolume
from logbook.report import usage_example, write_report
from logbook.run import Run
from main import build_parts, export_student, main

Compose = Callable[..., tuple[RunConfig, str]]
ROOT = Path(__file__).resolve().parents[1]
STAGES = ["teacher", "student", "student_alone", "random_best", "hand_designed"]


@pytest.fixture(scope="session")
def run_main(known: Any, compose_text: Compose) -> Callable[..., Path]:
    """Run main with the tiny settings and these overrides, and give the run folder."""

    def run(output: Path, *overrides: str, name: str = "run") -> Path:
        main(*compose_text(*known.TINY, f"output={output}", f"name={name}", *overrides))
        return output / name

    return run


@pytest.fixture(scope="module")
def reads() -> list[tuple[str, bool]]:
    """Every reading of a test set in the finished run: by which network, and whether choices.json was there."""
    return []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, run_main: Any, reads: list[tuple[str, bool]]) -> Path:
    output = tmp_path_factory.mktemp("outputs")
    read, unseal = SealedSplit.read, SealedSplit.unseal

    def watched(self: SealedSplit, network: str) -> Any:
        reads.append((network, (output / "run" / "choices.json").is_file()))
        return read(self, network)

    def opening(self: SealedSplit) -> None:
        reads.append(("unseal", (output / "run" / "choices.json").is_file()))
        unseal(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SealedSplit, "read", watched)
        patch.setattr(SealedSplit, "unseal", opening)
        return run_main(output)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the drawings, which take half of a tiny run's time; other tests look at them."""
    monkeypatch.setattr(main_script, "write_report", lambda folder: folder)


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_file_is_there(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "config.yaml", "history.jsonl", "updates.jsonl", "space.json", "candidates.json", "ranking.json",
        "choices.json", "results.json", "report.html", "plots", "networks", "checkpoints", "tensorboard",
        "task.json", "neighbors.json", "layers.json", "answers.npz",
    }  # fmt: skip
    assert [path.name for path in finished.parent.iterdir()] == ["run"]
    assert sorted(path.name for path in (finished / "networks").iterdir()) == sorted(STAGES)
    for stage in STAGES:
        folder = finished / "networks" / stage
        assert {p.name for p in folder.iterdir()} == {"network.json", "weights.safetensors", "SHA256SUMS"}
        for line in (folder / "SHA256SUMS").read_text().splitlines():
            digest, name = line.split("  ")
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert not list(finished.rglob("*.part"))
    plots = {path.suffix for path in (finished / "plots").iterdir()}
    assert plots == {".png", ".svg"}


def test_the_student_is_exported_once(
    finished: Path, tmp_path: Path, compose_text: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    config, results = compose_text()[0], load(finished / "results.json")
    run = Run.resume(tmp_path / "run", 30.0)
    done = export_student(config, run, results)
    run.close()
    assert done == load(tmp_path / "run" / "results.json")
    exported = {row["name"]: row["exported"] for row in done["rows"] if "exported" in row}
    assert list(exported) == ["student"] and exported["student"]["latency_ms"].keys() == {"torch", "onnxruntime"}
    folder = tmp_path / "run" / "networks" / "student"
    for name, size in exported["student"]["files"].items():
        assert (folder / name).stat().st_size == size
    card = (folder / "MODEL.md").read_text()
    test = next(row["test"][0] for row in results["rows"] if row["name"] == "student")
    assert card.startswith("# Student (distilled): digits") and f"| test accuracy | {test:.5g} (one seed) |" in card
    assert "num_layers: 3" in card and "1,010 samples for training" in card
    monkeypatch.setattr("main.export_or_tell", lambda *_: pytest.fail("exported twice"))
    assert export_student(config, Run.resume(tmp_path / "run", 30.0), results) == done


def test_a_student_that_cannot_be_exported_does_not_stop_the_run(
    finished: Path, tmp_path: Path, compose_text: Compose
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "networks" / "student" / "weights.safetensors").write_bytes(b"")
    run = Run.resume(tmp_path / "run", 30.0)
    done = export_student(compose_text()[0], run, load(finished / "results.json"))
    run.close()
    assert done["notes"][-1].startswith("Not exported: ") and "weights.safetensors is damaged" in done["notes"][-1]


def test_the_search_is_written_down(finished: Path, known: Any) -> None:
    history, updates = lines(finished / "history.jsonl"), lines(finished / "updates.jsonl")
    assert len(history) == 2 * 2 * 3 and len(updates) == 2
    decisions = load(finished / "space.json")["decisions"]
    for line in history:
        tokens = line["genotype"]["tokens"]
        assert len(tokens) == len(decisions)
        assert all(0 <= t < len(d["labels"]) for t, d in zip(tokens, decisions, strict=True))
        assert line["failure"] is None and 0 <= line["quality"] <= 1


def test_the_candidates_are_consistent(finished: Path) -> None:
    found, history = load(finished / "candidates.json"), lines(finished / "history.jsonl")
    seen = {(line["strategy"], tuple(line["genotype"]["tokens"])) for line in history}
    worst = max(line["cost"] for line in history)
    for strategy in ("reinforce", "random"):
        own = [c for c in found["candidates"] if c["strategy"] == strategy]
        assert 1 <= len(own) <= 3
        assert {(strategy, tuple(c["genotype"]["tokens"])) for c in own} <= seen
        pairs = [(c["quality"], c["cost"]) for c in own]
        assert [p for p, c in zip(pairs, own, strict=True) if c["on_front"]] != []
        front = front_of(pairs, key=lambda pair: pair)
        assert sorted(p for p, c in zip(pairs, own, strict=True) if c["on_front"]) == sorted(front)
        assert found["hypervolume"][strategy] == pytest.approx(hypervolume(pairs, worst))
    rewards = [c["reward"] for c in found["candidates"]]
    assert rewards == sorted(rewards, reverse=True)
    own = [c for c in found["candidates"] if c["strategy"] == "reinforce"]
    teacher = next(c for c in own if c["text"] == load(finished / "results.json")["rows"][0]["text"])
    error = (own[0]["quality"] * (1 - own[0]["quality"]) / 337) ** 0.5  # of 337 validation images
    assert teacher["reward"] >= own[0]["reward"] - error


def test_the_ranking_is_checked_against_training_alone(finished: Path, known: Any, compose_text: Compose) -> None:
    found, candidates = load(finished / "ranking.json"), load(finished / "candidates.json")["candidates"]
    ranked = found["architectures"]
    assert [line["kind"] for line in ranked] == ["finalist"] * 2 + ["random"] * 3
    assert ranked[0]["text"] == load(finished / "results.json")["rows"][0]["text"]
    shared = {line["text"]: line["quality"] for line in candidates if line["strategy"] == "reinforce"}
    assert [line["shared"] for line in ranked[:2]] == pytest.approx([shared[line["text"]] for line in ranked[:2]])
    config, _ = compose_text(*known.TINY)
    parts, seed = build_parts(config), derive_seed(0, "ranking")
    assert parts.task is not None and found["epochs"] == 0.1  # of one
    cost = CostModel(parts.final_space, "macs", parts.task.input_shape, parts.device)  # type: ignore[arg-type]
    settings = config.retrain.training
    alone = StandaloneEvaluator(parts.final_space, parts.task, cost, settings, 1, seed, parts.device, "loss")  # type: ignore[arg-type]
    again = alone.evaluate([Genotype.from_json(line["genotype"]) for line in ranked], 0.1, 0)
    assert [line["standalone"] for line in ranked] == [evaluation.quality for evaluation in again]
    assert [line["macs"] for line in ranked] == [evaluation.cost for evaluation in again]
    result = agreement(ranked, seed)
    assert {key: found[key] for key in result.taus} == result.taus and found["score"] == "loss"
    assert found["sentence"] == result.sentence(0.1, "loss")
    assert load(finished / "results.json")["seconds"]["ranking"] > 0
    assert found["sentence"].replace("'", "&#39;") in (finished / "report.html").read_text()


def test_saved_networks_are_as_good_as_claimed(finished: Path) -> None:
    results = load(finished / "results.json")
    assert [row["name"] for row in results["rows"]] == [
        "teacher", "student", "student_alone", "random_best", "hand_designed"
    ]  # fmt: skip
    task = digits(seed=0)
    task.test.unseal()
    test = task.test.read("again")
    for row in results["rows"]:
        network = load_network(finished / row["folder"])
        for split, claimed in ((test, row["test"]), (task.validation, row["validation"])):
            right = network.predict(split.inputs.numpy()).argmax(dim=1) == split.targets
            assert [float(right.double().mean())] == pytest.approx(claimed, abs=1e-9)
        assert row["macs"] == count_macs(network.module, network.input_shape)
        assert row["parameters"] == sum(p.numel() for p in network.module.parameters())
        assert row["latency_ms"] > 0
        image = test.inputs[0, 0].numpy()
        label, share = network.classify(image)
        assert label in "0123456789" and 0.1 <= share <= 1
    macs = {row["name"]: row["macs"] for row in results["rows"]}
    assert macs["student"] == macs["student_alone"]


def test_images_that_are_neither_gray_nor_in_color_are_not_drawn(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("networks", "checkpoints"))
    drawn = "worst confusions of the teacher, with examples"
    assert drawn in (tmp_path / "run" / "report.html").read_text()
    with np.load(finished / "answers.npz", allow_pickle=False) as answers:
        two = answers["images teacher"].repeat(2, axis=1)
        np.savez(tmp_path / "run" / "answers.npz", **{**answers, "images teacher": two})
    page = write_report(tmp_path / "run").read_text()
    assert drawn not in page and "Confusions in numbers" in page


def test_answers_and_layers_add_up_to_the_results(finished: Path) -> None:
    rows = {row["name"]: row for row in load(finished / "results.json")["rows"]}
    with np.load(finished / "answers.npz", allow_pickle=False) as answers:
        for name, row in rows.items():
            assert [float((answers[f"test {name}"] == answers["test"]).mean())] == pytest.approx(row["test"])
        wrong = np.flatnonzero(answers["validation teacher"] != answers["validation"])
        assert set(answers["places teacher"].tolist()) <= set(wrong.tolist())
        assert np.array_equal(
            answers["images teacher"], digits(seed=0).validation.inputs[answers["places teacher"]].numpy()
        )
    for name, layers in load(finished / "layers.json").items():
        for key in ("macs", "parameters"):
            assert sum(layer[key] for layer in layers) == rows[name][key]


def test_the_test_set_waits_for_every_choice(finished: Path, reads: list[tuple[str, bool]]) -> None:
    assert all(written for _, written in reads)
    names = [name for name, _ in reads]
    assert names[0] == "unseal" and names.count("unseal") == 1
    assert sorted(names[1:]) == sorted(f"networks/{stage}" for stage in STAGES)  # once for each network


def test_final_networks_may_be_larger_than_those_of_the_search(
    tmp_path: Path, run_main: Any, compose_text: Compose, no_report: None
) -> None:
    run = run_main(tmp_path, "retrain.space={channels: 12}", "search.compare_random=false")
    rows = {row["name"]: row for row in load(run / "results.json")["rows"]}
    network = load(run / rows["teacher"]["folder"] / "network.json")
    assert network["build"]["arguments"]["channels"] == 12
    found = {line["text"]: line["cost"] for line in lines(run / "history.jsonl")}
    assert rows["teacher"]["macs"] > 1.4 * found[rows["teacher"]["text"]]  # nearly (12 / 8)^2


@pytest.mark.parametrize("key", ["retrain.space", "rungs.space"])
def test_networks_of_another_size_have_the_same_decisions(key: str, compose_text: Compose) -> None:
    config, _ = compose_text(f"{key}={{num_layers: 9}}")
    with pytest.raises(ConfigError, match=rf"{key}: .* changes which decisions there are"):
        build_parts(config)


def test_networks_of_the_rungs_may_be_larger_than_those_of_the_search(known: Any, compose_text: Compose) -> None:
    config, _ = compose_text(*known.TINY, "rungs.fidelities=[0.1]", "rungs.keep=1.0", "rungs.space={channels: 12}")
    parts = build_parts(config)
    rungs, space = parts.evaluator, parts.space
    assert isinstance(rungs, Rungs) and isinstance(space, NetworkSpace)
    assert rungs.alone.score == "loss"
    drawn = space.sample(np.random.default_rng(0), 1)
    climb = rungs.of("random")
    (told,) = climb.evaluate(drawn, 1.0, 0)
    (trained,) = rungs.alone.evaluate(drawn, 0.1, 0)
    assert trained.cost > 1.4 * told.cost and climb.spent % trained.cost == 0
    (scored,) = rungs.cheap.evaluate(drawn, 1.0, 0)
    assert told.quality == pytest.approx(scored.quality)  # the only one that was trained is as good as it was scored


def test_a_space_that_does_not_fit_the_task_is_named(tmp_path: Path, compose_text: Compose) -> None:
    (tmp_path / "novel.txt").write_text("to be or not to be " * 200)
    config, _ = compose_text("env=text", f"env.path={tmp_path / 'novel.txt'}", "space.context=5", "space.width=8")
    with pytest.raises(ValueError, match=r"space: does not fit the task .* \(inputs \(96,\), targets \(64,\)\)"):
        build_parts(config)


def test_what_does_not_fit_the_space_or_the_evaluator_is_named(compose_text: Compose) -> None:
    config, _ = compose_text("search.sampler=sandwich", "space.min_layers=null")
    with pytest.raises(ValueError, match=r"search.sampler=sandwich is for spaces with sizes.* 'macro' has none"):
        build_parts(config)
    config, _ = compose_text("search.sampler=sandwich")  # its depth is a size
    build_parts(config)


def test_what_could_only_go_wrong_at_the_end_is_told_at_the_beginning(compose_text: Compose) -> None:
    with pytest.raises(ConfigError, match=r"baseline.network: at width 16 it costs ([\d,]+), no more than the \1 at"):
        build_parts(compose_text("+baseline.network.width=8")[0])
    with pytest.raises(ConfigError, match=r"derive.within_target: this reward has no target .*; set reward.target"):
        build_parts(compose_text("reward=quality", "derive.within_target=true")[0])
    build_parts(compose_text("reward=quality", "reward.target=1e6", "derive.within_target=true")[0])


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Write a module of one's own, by its name, where it can be imported."""

    def write(name: str, lines: str) -> None:
        (tmp_path / f"{name}.py").write_text(lines)
        monkeypatch.syspath_prepend(tmp_path)

    return write


def test_what_a_reward_of_ones_own_lacks_is_told(
    compose_text: Compose, write_module: Callable[[str, str], None]
) -> None:
    lines = "class Plain:\n    def __call__(self, evaluation):\n        return evaluation.quality\n"
    write_module("plain_reward", lines)
    config = compose_text("plugins=[plain_reward]")[0]
    with pytest.raises(ConfigError, match=r"^reward: plain_reward.Plain lacks unit and formula; see Reward in"):
        build_parts(replace(config, reward=Part("reward", "plain_reward.Plain", {})))


def test_what_a_reward_of_ones_own_says_of_itself_counts(
    compose_text: Compose, write_module: Callable[[str, str], None]
) -> None:
    """Its unit is that of the costs, and no target is none to stay within."""
    write_module(
        "small_reward",
        "class Small:\n    unit = 'parameters'\n\n    def __call__(self, evaluation):\n"
        "        return evaluation.quality - evaluation.cost\n\n    def formula(self):\n        return 'small'\n",
    )
    given = compose_text("plugins=[small_reward]", "search.compare_random=false")[0]
    config = replace(given, reward=Part("reward", "small_reward.Small", {}))
    evaluator = build_parts(config).evaluator
    assert isinstance(evaluator, SupernetEvaluator) and evaluator.cost.unit == "parameters"
    config = replace(config, derive=replace(config.derive, within_target=True))
    with pytest.raises(ConfigError, match=r"derive.within_target: this reward has no target to stay within"):
        build_parts(config)


def test_a_hand_designed_network_of_ones_own_is_built_as_it_was_checked(
    compose_text: Compose, write_module: Callable[[str, str], None]
) -> None:
    """It need not take all that it could be given."""
    write_module(
        "small_net",
        "from torch import nn\n\n\nclass Small(nn.Sequential):\n    def __init__(self, num_outputs, width):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, num_outputs))\n\n\n"
        "def make(num_outputs, width):\n    return Small(num_outputs, width)\n",
    )
    config = compose_text("plugins=[small_net]", "baseline.network._target_=small_net.Small")[0]
    task = build_parts(config).task
    assert task is not None
    assert config.baseline.network is not None
    blueprint = config.baseline.network.blueprint(config.plugins, task, width=8)
    assert blueprint.arguments == {"num_outputs": 10, "width": 8}
    assert blueprint.build(["small_net"])(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(ValueError, match=r"baseline.network: .* it is neither a network nor a search space"):
        build_parts(compose_text("plugins=[small_net]", "baseline.network._target_=small_net.make")[0])


@pytest.mark.parametrize(
    ("shape", "needed"),
    [
        ((40, 24, 3), ["baseline.network._target_=child.convnet.ConvNet1d"]),
        ((40, 7), ["space=mlp", "baseline.network._target_=child.plain_mlp.PlainMLP"]),
    ],
)
def test_arrays_need_what_their_config_says(
    shape: tuple[int, ...], needed: list[str], tmp_path: Path, compose_text: Compose
) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "mine.npz", x=rng.random(shape), y=rng.random(40))
    given = ["env=arrays", f"env.path={tmp_path / 'mine.npz'}", "env.task.augmentation=null", *needed]
    task = build_parts(compose_text(*given)[0]).task
    assert task is not None and task.metric_name == "R squared"
    without, _ = compose_text(*given[:-1])
    with pytest.raises(ValueError, match=r"baseline.network: does not fit the task mine"):
        build_parts(without)


def example(run: Path) -> str:
    folder = run / "networks" / "student"
    return usage_example(folder.as_posix(), "digits", load(folder / "network.json"))


def test_the_report_tells_the_result(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    for row in load(finished / "results.json")["rows"]:
        assert row["title"] in page and f"{row['test'][0]:.2%}" in page
    assert example(finished).splitlines()[-1] in page.replace("&#34;", '"')


def test_tensorboard_shows_one_run(finished: Path) -> None:
    folder = finished / "tensorboard"
    assert [path.is_file() for path in folder.iterdir()] == [True]
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    expected = {
        "search/reward_mean", "search/reward_best", "search/random_reward_mean", "search/entropy", "search/loss",
        "search/gradient_norm", "search/baseline", "search/quality_mean", "supernet/loss", "cost/mean",
        "perf/architectures_per_s",
        "pareto/hypervolume_reinforce", "pareto/hypervolume_random", "final/teacher_test", "operations/conv3",
        "ranking/tau", "ranking/tau_low", "ranking/tau_high", "ranking/tau_macs",
    }  # fmt: skip
    expected |= {f"{stage}/loss" for stage in STAGES} | {f"{stage}/validation_accuracy" for stage in STAGES}
    assert expected <= set(tags["scalars"])
    assert "custom_scalars__config__" in tags["tensors"]
    assert "architecture/1/text_summary" in tags["tensors"] and tags["images"] == ["architecture/1"]
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(events.summary_metadata)
    updates = lines(finished / "updates.jsonl")
    means = [event.value for event in events.Scalars("search/reward_mean")]
    assert means == pytest.approx([line["reward_mean"] for line in updates])
    shares = [events.Scalars(tag)[0].value for tag in tags["scalars"] if tag.startswith("operations/")]
    assert sum(shares) == pytest.approx(1)


def test_the_usage_example_runs(finished: Path, root: Path) -> None:
    code = example(finished)
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    label, share = done.stdout.strip().split(": ")
    assert label in "0123456789" and share.endswith("%")


def same_results(first: Path, second: Path) -> None:
    """Everything but clock values and places."""
    for name in ("history.jsonl", "updates.jsonl", "candidates.json", "ranking.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    rows, others = (load(folder / "results.json")["rows"] for folder in (first, second))
    keys = ("name", "text", "folder", "validation", "test", "parameters", "macs")
    assert [{key: row[key] for key in keys} for row in rows] == [{key: row[key] for key in keys} for row in others]
    for stage in STAGES:
        weights = Path("networks") / stage / "weights.safetensors"
        assert (first / weights).read_bytes() == (second / weights).read_bytes()


@pytest.mark.usefixtures("no_report")
def test_the_same_seed_gives_the_same_run_and_another_does_not(finished: Path, run_main: Any, tmp_path: Path) -> None:
    same_results(finished, run_main(tmp_path))
    other = run_main(tmp_path, "seed=1", name="other")
    assert lines(other / "history.jsonl")[0]["genotype"] != lines(finished / "history.jsonl")[0]["genotype"]


class StoppedError(Exception):
    """Stands for a power cut."""


@pytest.mark.parametrize(
    "stop_at",
    [
        "search",
        pytest.param("teacher", marks=pytest.mark.slow),
        "student",
        pytest.param("hand_designed", marks=pytest.mark.slow),
        pytest.param("test", marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("no_report")
def test_a_copy_goes_on_without_doing_anything_twice(
    stop_at: str, finished: Path, run_main: Any, compose_text: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    stop = [True]

    def train(*given: Any, **named: Any) -> Any:
        done.append(given[4])
        if stop[0] and given[4] == stop_at:
            given[6].save_if_due(dict)  # nothing of this stage is known yet
            raise StoppedError
        return retrain(*given, **named)

    once = Run.once

    def stage(self: Run, name: str, compute: Any) -> Any:
        if name in ("search", "test") and name not in self.finished:
            done.append(name)
            if stop[0] and name == "test" == stop_at:
                raise StoppedError
        return once(self, name, compute)

    learn = main_script.derive

    def derived(*given: Any) -> Any:
        if stop[0] and stop_at == "search":
            raise StoppedError
        return learn(*given)

    monkeypatch.setattr(main_script, "retrain", train)
    monkeypatch.setattr(main_script, "derive", derived)
    monkeypatch.setattr(Run, "once", stage)
    with pytest.raises(StoppedError):
        run_main(tmp_path, "checkpoint_every_s=0")
    everything = ["search", *STAGES, "test"]
    assert done == everything[: everything.index(stop_at) + 1]
    copy = tmp_path / "elsewhere"
    shutil.move(tmp_path / "run", copy)

    done.clear()
    stop[0] = False
    main(*compose_text(f"resume={copy}"))
    assert done == everything[everything.index(stop_at) :]
    same_results(finished, copy)
    done.clear()
    before = (copy / "results.json").read_bytes()
    main(*compose_text(f"resume={copy}"))  # and a run that is finished is only reported again
    assert done == [] and (copy / "results.json").read_bytes() == before


@pytest.mark.usefixtures("no_report")
def test_a_retraining_that_stopped_midway_goes_on(
    finished: Path, run_main: Any, compose_text: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from child.training import Training

    step = Training.step

    def stops(self: Training, *given: Any) -> Any:
        if self.stage == "student" and self.step_number == 7:
            raise StoppedError
        return step(self, *given)

    monkeypatch.setattr(Training, "step", stops)
    with pytest.raises(StoppedError):
        run_main(tmp_path, "checkpoint_every_s=0")
    monkeypatch.undo()
    first_steps = []

    def watched(self: Training, *given: Any) -> Any:
        if not first_steps:
            first_steps.append((self.stage, self.step_number))
        return step(self, *given)

    monkeypatch.setattr(Training, "step", watched)
    main(*compose_text(f"resume={tmp_path / 'run'}"))
    assert first_steps == [("student", 7)]
    same_results(finished, tmp_path / "run")


@pytest.mark.usefixtures("no_report")
def test_a_check_of_the_ranking_that_stopped_midway_goes_on(
    finished: Path, run_main: Any, compose_text: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, calls = StandaloneEvaluator.evaluate, [0]

    def stops(self: StandaloneEvaluator, *given: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise StoppedError
        return evaluate(self, *given)

    monkeypatch.setattr(StandaloneEvaluator, "evaluate", stops)
    with pytest.raises(StoppedError):
        run_main(tmp_path)
    assert not (tmp_path / "run" / "ranking.json").exists()
    main(*compose_text(f"resume={tmp_path / 'run'}"))
    assert calls[0] == 3 + 3  # of five, the two that were done are not trained again
    same_results(finished, tmp_path / "run")


def test_what_failed_and_what_collapsed_is_told(
    run_main: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judge_alone, judge_shared = StandaloneEvaluator.evaluate, SupernetEvaluator.evaluate
    calls = [0]

    def alone(self: StandaloneEvaluator, *given: Any) -> list[Evaluation]:
        calls[0] += 1
        found = judge_alone(self, *given)
        return [found[0]._replace(quality=0.0, failure="training was not finite")] if calls[0] == 2 else found

    def shared(self: SupernetEvaluator, genotypes: Any, fidelity: float, seed: int) -> list[Evaluation]:
        found = judge_shared(self, genotypes, fidelity, seed)
        if seed == derive_seed(0, "ranking"):
            found[-1] = found[-1]._replace(quality=0.0, failure="outputs not finite")
        return found

    monkeypatch.setattr(StandaloneEvaluator, "evaluate", alone)
    monkeypatch.setattr(SupernetEvaluator, "evaluate", shared)
    monkeypatch.setattr(main_script, "name_collapse", lambda *given: ["Collapse to pools."])
    folder = run_main(tmp_path, "search.rounds=1")
    found = load(folder / "ranking.json")
    failures = ["training was not finite", "with shared weights: outputs not finite"]
    assert [line["failure"] for line in found["architectures"]] == [None, failures[0], None, None, failures[1]]
    assert calls[0] == 4 and found["tau_low"] is None and "and 3 architectures" in found["sentence"]
    page, said = (folder / "report.html").read_text(), capsys.readouterr().out
    for line, failure in ((found["architectures"][1], failures[0]), (found["architectures"][4], failures[1])):
        assert f"Left out: {line['text']} ({failure})" in page
    assert load(folder / "results.json")["notes"][0] == "Collapse to pools."
    assert "<li>Collapse to pools.</li>" in page and "Collapse to pools." in said and found["sentence"] in said


@pytest.mark.usefixtures("no_report")
def test_a_ranking_of_regressors(tmp_path: Path, compose_text: Compose) -> None:
    few = ["search.rounds=1", "search.episodes=2", "search.warmup_batches=2", "derive.candidates=2"]
    few += ["retrain.training.epochs=1", "distill.training.epochs=1", "baseline.learning_rates=[0.01]"]
    main(*compose_text("env=diabetes", "device=cpu", "threads=1", *few, f"output={tmp_path}", "name=run"))
    ranked = load(tmp_path / "run" / "ranking.json")["architectures"]
    assert [line["kind"] for line in ranked] == ["finalist"] * 2 + ["random"] * 4
    assert all(0 < line[quality] < 1 for line in ranked for quality in ("shared", "standalone"))


@pytest.mark.parametrize("controller", ["reinforce", "darts"])
def test_a_test_set_that_must_not_be_touched(
    controller: str, known: Any, compose_text: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Search, retraining and distillation run to their end on a task whose test data explode."""

    class Mined(SealedSplit):
        def __init__(self, split: Any):
            self.size = len(split)

        def __len__(self) -> int:
            return self.size

        def unseal(self) -> None:
            raise StoppedError

        def read(self, network: str) -> Any:
            raise AssertionError(f"{network} read the test set")

        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name} of the test set was touched")

    monkeypatch.setattr("envs.arrays.SealedSplit", Mined)
    given = known.TINY if controller == "reinforce" else tiny_cells(known, controller)
    with pytest.raises(StoppedError):
        main(*compose_text(*given, f"output={tmp_path}", "name=run"))
    assert (tmp_path / "run" / "choices.json").is_file()
    assert not (tmp_path / "run" / "results.json").exists()


def tiny_cells(known: Any, controller: str) -> list[str]:
    """The tiny settings, but of a space whose supernet runs blends."""
    small = [override for override in known.TINY if "layers" not in override]
    return [*small, "space=nasbench201", f"controller={controller}", "search.rounds=3", "search.batches_per_round=2"]


@pytest.mark.parametrize("controller", ["darts", pytest.param("gdas", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("no_report")
def test_a_search_by_gradients_stops_and_goes_on(
    controller: str, known: Any, compose_text: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*tiny_cells(known, controller), f"output={tmp_path}", "checkpoint_every_s=0"]
    given += ["controller.order=2"] if controller == "darts" else []
    main(*compose_text(*given, "name=whole"))
    loss, calls = SupernetRelaxation.loss, [0]

    def stops(self: SupernetRelaxation, *arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:  # between two training batches of the last round
            raise StoppedError
        return loss(self, *arguments, **named)

    monkeypatch.setattr(SupernetRelaxation, "loss", stops)
    with pytest.raises(StoppedError):
        main(*compose_text(*given, "name=stopped"))
    monkeypatch.undo()
    monkeypatch.setattr(main_script, "write_report", lambda folder: folder)
    main(*compose_text(f"resume={tmp_path / 'stopped'}"))
    whole = tmp_path / "whole"
    same_results(whole, tmp_path / "stopped")
    history, updates = lines(whole / "history.jsonl"), lines(whole / "updates.jsonl")
    assert {line["strategy"] for line in history} == {controller, "random"}
    assert [line["loss"] is None for line in updates] == [True, False, False]  # it rests in the warm-up
    # The last that it derived is the teacher, whatever it scored.
    derived = next(line["text"] for line in history if line["round"] == 2 and line["strategy"] == controller)
    results = load(whole / "results.json")
    assert results["rows"][0]["text"] == derived
    first = next(note for note in results["notes"] if not note.startswith("Collapse to "))
    assert first == f"First of the teachers is what {controller} derived, whatever it scores."
    assert derived in [c["text"] for c in load(whole / "candidates.json")["candidates"]]


@pytest.mark.parametrize("controller", ["darts", "gdas"])
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["space=macro"], "controller: {} learns by gradients, which takes evaluator=supernet with evaluator.copies=1"),
        (["space=micro", "evaluator=standalone"], "controller: {} learns by gradients, which takes evaluator=supernet"),
        (["space=nasbench201", "reward.unit=latency_ms"], "controller: {} learns by gradients"),
        (
            ["space=nasbench201", "evaluator.copies=2"],
            "controller: {} learns by gradients, which takes evaluator=super",
        ),
        (["space=nasbench201", "search.batches_per_round=0"], "search.batches_per_round: {} learns before every"),
        (["space=nasbench201", "search.rounds=1"], "search.rounds: {} learns before every"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_search_by_gradients_takes_is_told(
    controller: str, overrides: list[str], expected: str, compose_text: Compose
) -> None:
    config, _ = compose_text(f"controller={controller}", "reward.target=1000", *overrides)
    with pytest.raises(ConfigError, match=expected.format(controller)):
        build_parts(config)


def test_the_message_names_every_space_that_search_by_gradients_takes() -> None:
    for path in (ROOT / "child").glob("*.py"):
        importlib.import_module(f"child.{path.stem}")
    names = sorted(space.name for space in RelaxedSpace.__subclasses__() if space.__module__.startswith("child."))
    with pytest.raises(ValueError, match=rf"\({', '.join(names)}\)"):
        DARTS(NASBench201Space(), 0, 1, None)


@pytest.mark.usefixtures("no_report")
def test_several_seeds_and_several_candidates(run_main: Any, tmp_path: Path) -> None:
    folder = run_main(tmp_path, "retrain.seeds=2", "retrain.top=2", "search.rounds=1")
    results, task = load(folder / "results.json"), digits(seed=0)
    task.test.unseal()
    split = task.test.read("again")
    names = [row["name"] for row in results["rows"]]
    assert names == ["teacher", "teacher2", "student", "student_alone", "random_best", "hand_designed"]
    assert results["rows"][0]["text"] != results["rows"][1]["text"]
    choices = {row["name"]: row for row in load(folder / "choices.json")["finals"]}
    for row in results["rows"]:
        assert len(row["test"]) == len(row["validation"]) == 2
        chosen = choices[row["name"]]
        best = int(np.argmax(chosen["validation"]))
        assert row["folder"] == chosen["folders"][best]
        networks = [load_network(folder / each) for each in chosen["folders"]]
        assert row["test"] == [measure(each.module, task, split, 256, torch.device("cpu")) for each in networks]
    means = [np.mean(choices[name]["validation"]) for name in ("teacher", "teacher2")]
    assert results["teacher"] == ("teacher", "teacher2")[int(np.argmax(means))]
    weights = [(folder / "networks" / name / "weights.safetensors").read_bytes() for name in
               ("teacher", "teacher-seed1")]  # fmt: skip
    assert weights[0] != weights[1]


def test_the_student_alone_listens_to_the_better_teacher(
    known: Any, compose_text: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the cheaper of two here, and the student's budget is a share of its cost."""
    config, text = compose_text(
        *known.TINY, "retrain.training.epochs=4", "distill.training.epochs=7", "distill.training.label_smoothing=0.2",
        "distill.budget=0.5", "baseline.learning_rates=[0.05,0.1]",
    )  # fmt: skip
    parts = build_parts(config)
    assert parts.task is not None and isinstance(parts.final_space, NetworkSpace)
    space, shape = parts.final_space, parts.task.input_shape
    drawn = sorted(space.sample(np.random.default_rng(0), 12), key=space.macs)
    smallest, small, middle, better, costly = (drawn[place] for place in (0, 2, 4, 7, -1))
    assert space.macs(small) < 0.5 * space.macs(better) < space.macs(middle) < 0.5 * space.macs(costly)
    epochs, heard = {}, []

    def learn(build: Any, task: Task, settings: Any, seed: int, stage: str, *rest: Any) -> Any:
        network, loss_of = build(), rest[-1]
        epochs[stage] = settings.epochs
        if loss_of is not None:
            heard.append(stage)
            loss_of(network)
        return network, 0.9 if stage == "teacher2" else 0.5

    def loss(self: SoftTargets, student: Any, teacher: Any, task: Task, label_smoothing: float = 0.0) -> None:
        heard.extend([count_macs(student, shape), count_macs(teacher, shape), label_smoothing])

    monkeypatch.setattr(main_script, "retrain", learn)
    monkeypatch.setattr(SoftTargets, "loss", loss)
    run = Run.create(tmp_path, "run", text, 30.0)
    at = main_script.Setting(config, parts.device, parts.task, space, run, main_script.Console())
    qualities = ((smallest, 0.6), (small, 0.7), (middle, 0.8), (better, 0.9), (costly, 0.9))
    main_script.train_finals(at, {
        "teachers": [costly.tokens, better.tokens], "random_best": costly.tokens, "derived_by": None, "num_equal": 1,
        "cheaper": [(genotype.tokens, quality) for genotype, quality in qualities],
    })  # fmt: skip
    assert heard == ["student", space.macs(small), space.macs(better), 0.2]
    assert epochs == {
        "teacher": 4, "teacher2": 4, "student": 7, "student_alone": 7, "random_best": 4,
        "hand_designed_0.05": 2, "hand_designed_0.1": 2, "hand_designed": 4,
    }  # fmt: skip


def test_a_target_is_the_upper_quartile_of_costs_or_the_one_that_the_run_had(compose_text: Compose, known: Any) -> None:
    config, costs = compose_text("reward=hard")[0], iter(range(101))
    reward = main_script.build_reward(config, known.FlatSpace(3, 3), lambda genotype: float(next(costs)), None)
    assert reward.target == 75
    assert main_script.build_reward(config, known.FlatSpace(3, 3), lambda genotype: 1.0, 40.0).target == 40


@pytest.mark.parametrize(("cost", "told"), [(2.0, False), (2.1, True)])
def test_a_choice_that_costs_the_target_is_within_it(cost: float, told: bool, compose_text: Compose) -> None:
    config = compose_text("derive.within_target=true", "reward.target=2")[0]
    assert bool(main_script.above_target(config, config.reward.build(()), cost)) == told


def test_an_architecture_that_is_met_again_is_not_counted_again(
    run_main: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(at: Any, parts: Any, found: dict[str, Any]) -> None:
        assert found["num_evaluations"] == len(distinct()) < 10
        raise StoppedError

    def distinct() -> set[tuple[int, ...]]:
        history = lines(tmp_path / "run" / "history.jsonl")
        return {tuple(line["genotype"]["tokens"]) for line in history if line["strategy"] == "reinforce"}

    monkeypatch.setattr(main_script, "check_ranking", stop)
    few = ["space.num_layers=1", "space.min_layers=null", "space.num_reductions=0"]  # six operations, and nothing else
    with pytest.raises(StoppedError):
        run_main(tmp_path, *few, "search.budget=100", "search.episodes=5", "search.compare_random=false")


def test_a_recalibration_counts_in_what_a_brief_analysis_can_afford(
    known: Any, compose_text: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its training samples are looked at too, beside 337 of the validation data."""
    monkeypatch.setattr(main_script, "BRIEF_MACS", 10**8)
    afforded = []
    for statistics in ("batch", "recalibrated"):
        own = ("evaluator.recalibration_batches=5", "evaluator.settings.batch_size=100")
        parts = build_parts(compose_text(*known.TINY, *own, f"evaluator.statistics={statistics}")[0])
        assert isinstance(parts.space, NetworkSpace)
        center = parts.space.sample(np.random.default_rng(0), 1)[0]
        afforded.append(main_script.num_affordable(parts, parts.cheap, center))
    macs = parts.space.macs(center)
    assert afforded == [10**8 // (337 * macs), 10**8 // (837 * macs)]


@pytest.mark.parametrize(("joined", "apart", "num"), [(True, False, 1347), (True, True, 1010), (False, False, 1010)])
def test_what_is_joined_is_trained_on(joined: bool, apart: bool, num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def learn(build: Any, task: Task, *rest: Any) -> Any:
        seen.append(len(task.train))
        raise TrainingError("enough")

    monkeypatch.setattr(main_script, "retrain", learn)
    settings = SimpleNamespace(join_validation=joined, seeds=1)
    at: Any = SimpleNamespace(
        config=SimpleNamespace(retrain=settings, seed=0, plugins=()), task=digits(seed=0), device=torch.device("cpu"),
        run=SimpleNamespace(once=lambda stage, compute: compute()), console=None,
    )  # fmt: skip
    final: Any = SimpleNamespace(name="teacher", training=None, loss_of=None)
    with pytest.raises(TrainingError, match="enough"):
        main_script.train_final(at, final, apart)
    assert seen == [num]


def test_the_best_of_several_has_the_lowest_perplexity() -> None:
    task: Any = SimpleNamespace(objective=Language(tuple("abcd"), "words"))
    assert main_script.best_of(task, [[3.0], [2.0, 2.2], [4.0]]) == 1


@pytest.mark.usefixtures("no_report")
def test_the_rate_of_the_hand_designed_network_is_chosen_on_validation_data(run_main: Any, tmp_path: Path) -> None:
    """One at which training breaks down is none; and what is joined for the final training is kept apart before."""
    rates = [1e-7, 0.1, 1e30]
    settings = [f"baseline.learning_rates={rates}".replace(" ", ""), "retrain.training.epochs=6"]
    folder = run_main(tmp_path, *settings, "retrain.join_validation=true")
    tried = [f"hand_designed_{rate:g}" for rate in rates[:2]]
    assert {path.name for path in (folder / "networks").iterdir()} == {*STAGES, *tried}
    rows = load(folder / "results.json")["rows"]
    assert [row["name"] for row in rows][-1] == "hand_designed" and "learning rate 0.1" in rows[-1]["text"]


@pytest.mark.usefixtures("no_report")
def test_random_architectures_may_stand_beside_the_teacher_instead_of_a_hand_designed_network(
    run_main: Any, tmp_path: Path
) -> None:
    folder = run_main(tmp_path, "baseline.random=3", "baseline.network=null", "search.rounds=1")
    results = load(folder / "results.json")
    rows = {row["name"]: row for row in results["rows"]}
    assert list(rows) == [*STAGES[:-1], "random1", "random2", "random3"]
    others = [rows[f"random{number}"] for number in (1, 2, 3)]
    assert len({row["text"] for row in (rows["teacher"], *others)}) == 4
    tests = [row["test"][0] for row in others]
    assert (
        f"3 random architectures of like MACs, trained in the same way: median accuracy {100 * np.median(tests):.2f}%, "
        in (results["notes"][-1])
    )
    assert results["notes"][-1].endswith(f"teacher: {100 * rows['teacher']['test'][0]:.2f}%.")


@pytest.mark.usefixtures("no_report")
def test_joined_validation_data_are_no_longer_evidence(run_main: Any, tmp_path: Path) -> None:
    short = ("search.rounds=1", "search.episodes=2")
    folder = run_main(tmp_path, "retrain.join_validation=true", "baseline.learning_rates=[1e30]", *short)
    results = load(folder / "results.json")
    assert [row["name"] for row in results["rows"]] == STAGES[:-1]
    assert [row["validation"] for row in results["rows"]] == [[]] * 4
    with np.load(folder / "answers.npz", allow_pickle=False) as answers:
        assert {name.partition(" ")[0] for name in answers} == {"test"}
    assert re.match(r"Left out: training of hand_designed stopped at step \d: loss or gradient", results["notes"][0])
    apart = load(run_main(tmp_path, *short, name="apart") / "results.json")["samples"]
    assert results["samples"] == {**apart, "training": apart["training"] + apart["validation"], "validation": 0}


@pytest.mark.parametrize(
    "overrides",
    [
        ("evaluator=standalone", "evaluator.folds=2", "evaluator.settings.epochs=1"),
        ("controller=random",),
        ("evaluator.statistics=recalibrated", "evaluator.recalibration_batches=1"),
        ("reward=linear", "reward.unit=parameters"),
        ("reward=soft",),
        ("reward=hard", "reward.target=1", "derive.within_target=true"),
        ("reward=absolute", "reward.target=30000"),
        ("ranking.finalists=0", "ranking.random=0"),
        ("space.min_layers=null",),
        ("evaluator.score=metric",),
        ("evaluator.score=combined", "evaluator.copies=2", "evaluator.snapshots=2", "evaluator.snapshot_every=1"),
        ("rungs.fidelities=[0.5,1.0]", "rungs.keep=0.5", "retrain.training.epochs=2"),
        ("search.compare_random=false", "search.sampler=uniform"),
    ],
    ids=lambda overrides: overrides[0],
)
def test_parts_can_be_swapped(
    overrides: tuple[str, ...], run_main: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if overrides[0] not in ("controller=random", "space.min_layers=null"):  # those whose report looks different
        monkeypatch.setattr(main_script, "write_report", lambda folder: folder)
    folder = run_main(tmp_path, "search.rounds=1", "search.episodes=2", "derive.candidates=2", *overrides)
    results = load(folder / "results.json")
    strategies = {line["strategy"] for line in lines(folder / "history.jsonl")}
    alone = {"controller=random": {"random"}, "search.compare_random=false": {"reinforce"}}.get(overrides[0])
    assert strategies == (alone or {"reinforce", "random"})
    assert ("random_best" in [row["name"] for row in results["rows"]]) == (alone is None)
    assert all(0 <= row["test"][0] <= 1 for row in results["rows"])
    assert results["num_evaluations"] == 2
    unchecked = overrides[0] in ("evaluator=standalone", "ranking.finalists=0")
    assert (folder / "ranking.json").exists() != unchecked and ("ranking" in results["seconds"]) != unchecked
    found = load(folder / "candidates.json")
    remembered = {path.stem for path in (folder / "checkpoints").glob("*.jsonl")}
    assert remembered == {"evaluator=standalone": {"trainings"}, "rungs.fidelities=[0.5,1.0]": {"rungs"}}.get(
        overrides[0], set()
    )
    if "reward.unit=parameters" in overrides:
        assert found["cost_unit"] == "parameters" and "parameters / " in found["reward_formula"]
    if "reward.target=1" in overrides:
        assert results["notes"][0].startswith("Nothing that the search kept is within the target of 1; the choice, ")


def test_what_counts_as_equal_does_not_depend_on_the_scale_of_the_reward(run_main: Any, tmp_path: Path) -> None:
    chosen = []
    for name, scale in (("small", 0.01), ("usual", 1.0), ("large", 100.0)):
        rewards = f"reward.alpha={scale}", f"reward.beta={0.05 * scale}"
        (tmp_path / name).mkdir()
        found = load(run_main(tmp_path / name, "controller=random", *rewards) / "results.json")
        equal = [
            note.partition(" candidates are as good")[0] for note in found["notes"] if "as good as the best" in note
        ]
        chosen.append((found["rows"][0]["text"], equal))
    assert chosen[0] == chosen[1] == chosen[2]
    assert chosen[0][1]  # several were equal


@pytest.mark.parametrize("controller", ["reinforce", "darts"])
def test_a_budget_for_no_evaluation_is_told(controller: str, known: Any, compose_text: Compose, tmp_path: Path) -> None:
    given = known.TINY if controller == "reinforce" else tiny_cells(known, controller)
    with pytest.raises(ValueError, match=rf"^{controller} could evaluate no architecture; .*, or search\.budget$"):
        main(*compose_text(*given, "search.budget=0.5", f"output={tmp_path}", "name=run"))


@pytest.mark.parametrize(("batches", "drifts"), [(0, False), (2, True)])
def test_results_drift_where_shared_weights_learn_after_the_first(
    batches: int, drifts: bool, run_main: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    def listen(*given: Any) -> None:
        told.append(dict(zip(inspect.signature(derive).parameters, given, strict=True))["drifts"])
        raise StoppedError

    monkeypatch.setattr(main_script, "derive", listen)
    with pytest.raises(StoppedError):
        run_main(tmp_path, "search.rounds=2", f"search.batches_per_round={batches}")
    assert told == [drifts]


@pytest.mark.usefixtures("no_report")
def test_where_what_gradients_derived_is_not_taken_it_is_told(
    known: Any, compose_text: Compose, tmp_path: Path
) -> None:
    given = [*tiny_cells(known, "darts"), "reward.target=1", "derive.within_target=true"]
    main(*compose_text(*given, f"output={tmp_path}", "name=run"))
    history, results = lines(tmp_path / "run" / "history.jsonl"), load(tmp_path / "run" / "results.json")
    derived = next(line["text"] for line in history if line["round"] == 2 and line["strategy"] == "darts")
    assert results["rows"][0]["text"] != derived
    assert (
        "What darts derived has failed or is above the target; the best of the others by score is chosen."
        in results["notes"]
    )


@pytest.mark.parametrize("analysis", ["brief", "full"])
def test_a_full_analysis_looks_at_what_takes_training(
    analysis: str, run_main: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every neighbor of the choice must be trained on its own, a brief one says so."""
    monkeypatch.setattr(main_script, "MOST_NEIGHBORS", 1)  # of a brief one
    alone = ("evaluator=standalone", "evaluator.settings.epochs=1", "search.rounds=1", "derive.candidates=2")
    folder = run_main(tmp_path, *alone, f"analysis={analysis}")
    found, page = load(folder / "neighbors.json"), (folder / "report.html").read_text()
    if analysis == "brief":
        assert not found["neighbors"] and found["missing"].endswith("analysis=full does it.")
        assert found["missing"] in page
        return
    assert len(found["neighbors"]) == found["num_all"] >= 8
    assert all(0 <= each["quality"] <= 1 for each in (found["center"], *found["neighbors"]))


def test_an_environment_of_another_kind_is_told(compose_text: Compose) -> None:
    config, _ = compose_text("env.id=CartPole-v1")
    with pytest.raises(ValueError, match=r"^env\.id: CartPole-v1 cannot be made with space, evaluator, reward and fid"):
        build_parts(config)


def test_a_users_environment_makes_a_whole_run(run_main: Any, tmp_path: Path) -> None:
    """Single, with a reward of its own, and silent about evaluations and costs."""

    class Mine(gymnasium.Env[Any, Any]):
        def __init__(self, **given: Any):
            self.inner: Any = gymnasium.make("luban/Architecture-v0", **given).unwrapped
            self.observation_space, self.action_space = self.inner.observation_space, self.inner.action_space

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            return self.inner.reset(seed=seed)

        def step(self, action: Any) -> Any:
            observation, _, over, _, _ = self.inner.step(action)
            return observation, float(observation["tokens"].mean()) if over else 0.0, over, False, {}

    gymnasium.register("mine/Search-v0", entry_point=Mine)
    try:
        folder = run_main(tmp_path, "env.id=mine/Search-v0", "search.rounds=1")
        with pytest.raises(ValueError, match=r"search\.budget: this environment tells rewards but no evaluations"):
            run_main(tmp_path / "budget", "env.id=mine/Search-v0", "search.rounds=1", "search.budget=4")
    finally:
        del gymnasium.registry["mine/Search-v0"]
    for line in lines(folder / "history.jsonl"):
        assert line["reward"] == pytest.approx(np.mean(line["genotype"]["tokens"])) and line["cost"] is None
    candidates = load(folder / "candidates.json")["candidates"]
    assert all(c["cost"] > 0 for c in candidates)
    # The environment's own reward decides, not the config's.
    assert [c["reward"] for c in candidates] == pytest.approx([np.mean(c["genotype"]["tokens"]) for c in candidates])
    assert "Best of random search" in (folder / "report.html").read_text()


def test_a_device_that_is_not_there_is_told(run_main: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device: cuda was asked for, but PyTorch sees no CUDA device; allowed"):
        run_main(tmp_path, "device=cuda")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_on_cuda_stops_and_goes_on(
    run_main: Any, compose_text: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Search steps, evaluation, a resume within the search, retraining and distillation."""
    evaluate, calls, devices = SupernetEvaluator.evaluate, [0], set()

    def stops(self: SupernetEvaluator, *given: Any) -> Any:
        calls[0] += 1
        devices.add(next(self.network.parameters()).device.type)
        if calls[0] == 3:  # the second round
            raise StoppedError
        return evaluate(self, *given)

    monkeypatch.setattr(SupernetEvaluator, "evaluate", stops)
    with pytest.raises(StoppedError):
        run_main(tmp_path, "device=cuda", "checkpoint_every_s=0")
    main(*compose_text(f"resume={tmp_path / 'run'}", "device=cuda"))
    assert devices == {"cuda"}
    history = lines(tmp_path / "run" / "history.jsonl")
    assert [line["round"] for line in history] == [0] * 6 + [1] * 6
    for row in load(tmp_path / "run" / "results.json")["rows"]:
        assert 0 <= row["test"][0] <= 1
        load_network(tmp_path / "run" / row["folder"])  # and what was trained there is read here


def write_small_data(folder: Path) -> dict[str, Path]:
    """What the experiments read, in small: images in the form of each data set, and text."""
    rng = np.random.default_rng(0)
    for part, num in (("train", 12), ("test", 2)):
        for name in CIFAR10_CLASSES:
            place = folder / "cifar10" / part / name
            place.mkdir(parents=True)
            for number, image in enumerate(rng.integers(0, 256, (num, 32, 32, 3), dtype=np.uint8)):
                Image.fromarray(image).save(place / f"{number}.png")
    fashion = folder / "fashion"
    fashion.mkdir()
    for part, num in (("train", 60), ("t10k", 20)):
        labels = np.arange(num, dtype=np.uint8) % 10
        images = rng.integers(0, 256, (num, 28, 28), dtype=np.uint8)
        (fashion / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, num, 28, 28) + images.tobytes())
        (fashion / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, num) + labels.tobytes())
    text = " ".join(rng.choice(["to", "be", "or", "not"], 700).tolist())
    (folder / "shakespeare.txt").write_text(text)
    (folder / "wikitext").mkdir()
    for part in ("train", "valid", "test"):
        with lzma.open(folder / "wikitext" / f"wiki.{part}.tokens.xz", "wt") as file:
            file.write("".join(f" {line} \n" for line in text.split("not")))
    return {
        "cifar10": folder / "cifar10",
        "fashion_mnist": fashion,
        "tiny_shakespeare": folder / "shakespeare.txt",
        "wikitext2": folder / "wikitext",
    }


EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))


@pytest.mark.parametrize(
    "experiment",
    [pytest.param(name, marks=[] if name.endswith("_small") else pytest.mark.slow) for name in EXPERIMENTS],
)
def test_every_experiment_takes_its_first_steps(
    experiment: str, tmp_path: Path, compose_text: Compose, no_report: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its own size, on a few samples: two rounds of the search, and an epoch of every final network."""
    text = (ROOT / "conf" / "experiment" / f"{experiment}.yaml").read_text()
    (env,) = re.findall(r"override /env: (\w+)", text)
    few = ["search.rounds=2", "search.episodes=2", "search.warmup_batches=2", "search.batches_per_round=1"]
    few += ["search.fidelity=1", "derive.candidates=2", "retrain.training.epochs=1", "distill.training.epochs=1"]
    few += [
        "ranking.finalists=1",
        "ranking.random=1",
        "baseline.learning_rates=[0.05]",
        "threads=1",
        "device=cpu",
        f"output={tmp_path}",
        "name=run",
    ]
    few += ["env.task.num_train=60"] if env == "fashion_mnist" else []
    monkeypatch.setattr(main_script, "measure_latency", partial(measure_latency, num_warmup=0, num_repeats=2))
    main(*compose_text(f"experiment={experiment}", f"env.path={write_small_data(tmp_path)[env]}", *few))
    ranked = load(tmp_path / "run" / "ranking.json")["architectures"]
    # Of twelve validation images none may be right; where training failed, that is said.
    assert [line["failure"] for line in ranked] == [None, None]
    assert all(0 <= line[quality] < 1 for line in ranked for quality in ("shared", "standalone"))
    rows = load(tmp_path / "run" / "results.json")["rows"]
    assert {"teacher", "student", "hand_designed"} <= {row["name"] for row in rows}
    assert all(np.isfinite(row["test"]).all() for row in rows)
    losses = [line["supernet_loss"] for line in lines(tmp_path / "run" / "updates.jsonl")]
    assert len(losses) == 2 and np.isfinite(losses).all()
