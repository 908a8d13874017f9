"""Models made smaller, tiny ones: what the folder holds at the end, what is refused, that a stop changes nothing."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import optimize as script
from child.cost import Latency, count_macs, count_parameters
from child.distill import SoftTargets
from child.network import Blueprint, TrainedNetwork, load_network
from child.norm import batch_norms
from child.onnx_module import OnnxModule, load_onnx
from child.predict import read_network
from child.prune import find_groups, keep_shares, remove_units, score_units, uniform
from child.resnet import ResNet
from child.share import Codebook, share_values
from child.task import Language, SealedSplit
from child.training import TrainingError, measure
from conf.launch import one_line
from conf.schema import ConfigError, OptimizeConfig
from envs.digits import digits
from logbook.interrupt import Interrupted, Interruption
from logbook.run import Run
from optimize import FINALISTS, find_teachers, main, notes_on, with_weights
from report import main as report

ROOT = Path(__file__).resolve().parents[1]
NET = ("model._target_=child.resnet.ResNet", "+model.width=8")

# Beside the network that the README has.
OTHERS = """
import torch
from net import Net
from torch import nn


class Untraceable(Net):
    def forward(self, x):
        return super().forward(x).detach()


class Reading(Net):
    def forward(self, x):
        return super().forward(x) * float(x.sum().item() > -1e9)


class Unregistered(Net):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.scale = torch.ones(1)

    def forward(self, x):
        return super().forward(x) * self.scale


class Unexportable(Net):
    def forward(self, x):
        return super().forward(x) * (2 if len(x) > 2 else 1)


class Double(Net):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.double()

    def forward(self, x):
        return super().forward(x.double())


class Viewing(Net):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.stem, self.classifier = nn.Conv2d(1, 4, 3), nn.Linear(144, num_outputs)

    def forward(self, x):
        x = self.stem(x)
        return self.classifier(x.view(len(x), 144))


class Pair(Net):
    def forward(self, x):
        return super().forward(x), x


class Brittle(Net):
    def __init__(self, width=3):
        assert width % 2 == 0, "the width must be even"


class Needy(Net):
    def forward(self, x):
        return super().forward({"image": x}["picture"])


class Attending(Net):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.gain = nn.Parameter(torch.full((8,), 0.5))

    def forward(self, x):
        rows = x.mean(dim=1) * self.gain
        return super().forward(x + self.attention(rows, rows, rows)[0].unsqueeze(1))


class Recurring(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.layers, self.last = nn.GRU(8, width, batch_first=True), nn.Linear(width, 10)

    def forward(self, x):
        return self.last(self.layers(x[:, 0])[0][:, -1])


class Lazy(Net):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.classifier = nn.LazyLinear(10)


class Counting(Net):
    def get_extra_state(self):
        return {"count": 1}

    def set_extra_state(self, state):
        pass


class Pooling(Net):
    def forward(self, x):
        return super().forward(nn.functional.adaptive_max_pool2d(x, 3))


class Deep(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.first, self.last = nn.Linear(64, width), nn.Linear(width, 10)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(8)])

    def forward(self, x):
        x = self.first(x.flatten(1))
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        return self.last(x)


class Two(nn.Linear):
    def __init__(self):
        super().__init__(64, 2)

    def forward(self, x):
        return super().forward(x.flatten(1))
"""


@pytest.fixture
def modules(known: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with modules of the user's, which can be imported."""
    (tmp_path / "net.py").write_text(known.readme_files()["mine/net.py"])
    (tmp_path / "strange.py").write_text(OTHERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def run_optimize(known: Any, compose_text: Any) -> Callable[..., Path]:
    """Run optimize.py with the tiny settings and these overrides, and give the run folder."""

    def run(output: Path, *overrides: str, name: str = "run") -> Path:
        given = (*known.TINY_STEPS, f"output={output}", f"name={name}", *overrides)
        main(*compose_text(*given, kind=OptimizeConfig, name="optimize"))
        return output / name

    return run


def load(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def reads() -> list[tuple[str, bool]]:
    return []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, run_optimize: Any, reads: list[tuple[str, bool]]) -> Path:
    output, read = tmp_path_factory.mktemp("outputs"), SealedSplit.read

    def watched(self: SealedSplit, network: str) -> Any:
        reads.append((network, (output / "run" / "choices.json").is_file()))
        return read(self, network)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SealedSplit, "read", watched)
        steps = "steps=[prune,distill,sparsify,prune,share]"
        return run_optimize(output, *NET, steps, "goal.macs=0.4", "prune.rounds=2", "distill.features={kind: hint}")


def test_every_file_is_there(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "config.yaml", "choices.json", "results.json", "steps.json", "task.json", "report.html", "plots", "networks",
        "checkpoints", "tensorboard", "layers.json",
    }  # fmt: skip
    assert sorted(path.name for path in (finished / "networks").iterdir()) == [
        "1-prune", "1-prune-round1", "2-distill", "3-sparsify", "3-sparsify-round1", "4-prune", "4-prune-round1",
        "5-share", "original", "student",
    ]  # fmt: skip
    page = (finished / "report.html").read_text()
    assert "Use the network" in page and "networks/student" in page
    assert "5. share" in page and "<svg" in page and load(finished / "results.json")["verdict"] in page


def test_every_row_is_what_its_network_is(finished: Path) -> None:
    results, task = load(finished / "results.json"), digits(seed=0)
    task.test.unseal()
    test = task.test.read("again")
    assert [row["name"] for row in results["rows"]] == [
        "original", "1-prune", "2-distill", "3-sparsify", "4-prune", "5-share"
    ]  # fmt: skip
    for row in results["rows"]:
        network = load_network(finished / row["folder"])
        for split, claimed in ((task.validation, row["validation"]), (test, row["test"])):
            right = network.predict(split.inputs.numpy()).argmax(dim=1) == split.targets
            assert not claimed or [float(right.double().mean())] == pytest.approx(claimed, abs=1e-9)
        share = row["validation"][0]
        assert row["standard_error"] == pytest.approx((share * (1 - share) / len(task.validation)) ** 0.5, rel=0.2)
        assert row["macs"] == count_macs(network.module, network.input_shape)
        assert row["parameters"] == count_parameters(network.module)
        assert row["bytes"] == sum(file.stat().st_size for file in (finished / row["folder"]).iterdir())
        assert row["latency_ms"] > 0


def test_the_steps_do_what_they_say(finished: Path) -> None:
    rows = {row["name"]: row for row in load(finished / "results.json")["rows"]}
    macs = {name: row["macs"] / rows["original"]["macs"] for name, row in rows.items()}
    # Two steps of two rounds, each taking the same share: the goal is reached by the last.
    assert 0.4**0.5 * 0.7 < macs["1-prune"] <= 0.4**0.5 == pytest.approx(0.632, abs=1e-3)
    assert 0.28 < macs["4-prune"] <= 0.4
    assert macs["2-distill"] == macs["3-sparsify"] == macs["1-prune"] and macs["5-share"] == macs["4-prune"]

    def weights(name: str) -> list[torch.Tensor]:
        module = load_network(finished / rows[name]["folder"]).module
        return [parameter.detach() for parameter in module.parameters() if parameter.ndim > 1]

    zeros = sum(int((weight == 0).sum()) for weight in weights("3-sparsify"))
    assert zeros == round(0.8 * sum(weight.numel() for weight in weights("3-sparsify")))
    assert all(len(weight.unique()) <= 16 for weight in weights("5-share") if weight.numel() >= 128)
    assert sum(int((weight == 0).sum()) for weight in weights("5-share")) > 0  # what was cut stays cut
    assert rows["5-share"]["bytes"] < rows["4-prune"]["bytes"] < rows["1-prune"]["bytes"] < rows["original"]["bytes"]


def test_connections_cut_in_two_steps_are_as_many_as_in_one(run_optimize: Any, tmp_path: Path) -> None:
    """Four rounds then, two in each step: after k of them 0.8 (1 - (1 - k / 4)^3) of the weights are zero."""
    run = run_optimize(tmp_path, *NET, "steps=[sparsify,sparsify]")
    for number, sparsity in (("1", 0.7), ("2", 0.8)):
        module = load_network(run / "networks" / f"{number}-sparsify").module
        weights = torch.cat([parameter.flatten() for parameter in module.parameters() if parameter.ndim > 1])
        assert int((weights == 0).sum()) == round(sparsity * len(weights))


def test_the_choice_is_made_before_the_test_is_opened_for_two_networks(
    finished: Path, reads: list[tuple[str, bool]]
) -> None:
    results, choice = load(finished / "results.json"), load(finished / "choices.json")
    assert reads == [("original", True), (choice["chosen"], True)]
    rows = {row["name"]: row for row in results["rows"]}
    honoring = [name for name, row in rows.items() if row["macs"] <= 0.4 * rows["original"]["macs"]]
    assert honoring == ["4-prune", "5-share"] and choice["honored"]
    best = max(honoring, key=lambda name: rows[name]["validation"][0])
    assert choice["chosen"] == best and [name for name, row in rows.items() if row["test"]] == ["original", best]
    for name in ("network.json", "weights.safetensors", "SHA256SUMS"):
        student, chosen = (finished / "networks" / folder / name for folder in ("student", choice["chosen"]))
        assert student.read_bytes() == chosen.read_bytes()
    left = rows["1-prune"]["macs"] / rows["original"]["macs"]
    assert rows["1-prune"]["note"] == f"{left:.1%} of the multiply-accumulates where 40.0% are wanted"


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    finished: Path, tmp_path: Path, run_optimize: Any, monkeypatch: pytest.MonkeyPatch, compose_text: Any
) -> None:
    """It is stopped again and again, in the middle of trainings too."""
    first = load(finished / "results.json")
    overrides = (*NET, "steps=[prune,distill,sparsify,prune,share]", "goal.macs=0.4", "prune.rounds=2",
                 "distill.features={kind: hint}", "checkpoint_every_s=0")  # fmt: skip
    stops = {"count": 0}
    save = Run.save

    def stop(self: Run, state: dict[str, Any]) -> None:
        save(self, state)
        stops["count"] += 1
        if stops["count"] % 23 == 0:
            raise Interrupted(2)

    monkeypatch.setattr(Run, "save", stop)
    try:
        run_optimize(tmp_path, *overrides)
        raise AssertionError("it was not stopped")
    except Interrupted:
        assert not (tmp_path / "run" / "results.json").exists()
    for _ in range(30):
        try:
            main(*compose_text(f"resume={tmp_path / 'run'}", kind=OptimizeConfig, name="optimize"))
            break
        except Interrupted:
            continue
    again = load(tmp_path / "run" / "results.json")
    timed = ("latency_ms", "latency_spread_ms", "seconds")
    assert stops["count"] > 100  # and so four times at least
    for old, new in zip(first["rows"], again["rows"], strict=True):
        assert {k: v for k, v in old.items() if k not in timed} == {k: v for k, v in new.items() if k not in timed}
        for name in ("network.json", "weights.safetensors"):
            files = [folder / new["folder"] / name for folder in (finished, tmp_path / "run")]
            assert files[0].read_bytes() == files[1].read_bytes()
    assert again["chosen"] == first["chosen"]


@pytest.mark.slow
def test_a_run_is_gone_on_with_and_asked_about_files(finished: Path, run_optimize: Any, tmp_path: Path) -> None:
    """What came out is a run's student like any other: it can be made smaller again."""
    run = run_optimize(tmp_path, f"model.path={finished}", "steps=[share]", "share.values=4", "goal.max_loss=100")
    rows = load(run / "results.json")["rows"]
    assert rows[0]["macs"] == load(finished / "results.json")["rows"][-1]["macs"]
    assert rows[1]["bytes"] < rows[0]["bytes"] and load(run / "results.json")["chosen"] == "1-share"


@pytest.mark.slow
def test_ratios_are_searched_by_the_controller(run_optimize: Any, tmp_path: Path) -> None:
    run = run_optimize(
        tmp_path, *NET, "steps=[prune]", "prune.ratios=search", "goal.macs=0.5", "search.episodes=2",
        "search.compare_random=true", "prune.importance=taylor",
    )  # fmt: skip
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert len(history) == 2 * 3 * 2 and {line["strategy"] for line in history} == {"reinforce_small_budget", "random"}
    rows, wanted = load(run / "results.json")["rows"], 0.5
    assert 0.3 < rows[1]["macs"] / rows[0]["macs"] <= wanted
    for line in history:  # the reward is the existing one, at the wanted cost
        ratio = line["cost"] / (wanted * rows[0]["macs"])
        assert line["reward"] == pytest.approx(line["quality"] * min(1 / ratio, 1))
    # The best, and even ratios beside them, were tuned a little before one was taken.
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tried = [tag for tag in events.Tags()["scalars"] if re.fullmatch(r"1-prune-trial\d+/loss", tag)]
    assert 2 <= len(tried) <= FINALISTS + 1
    (finalists,) = load(run / "ratios.json").values()
    qualities = [each["quality"] for each in finalists]
    assert len(finalists) == len(tried) and sum(each["even"] for each in finalists) == 1
    (even,) = [each["quality"] for each in finalists if each["even"]]
    tolerance = digits(seed=0).standard_error(max(qualities))
    assert qualities[0] >= max(qualities) - tolerance and finalists[0]["even"] == (even >= max(qualities) - tolerance)
    page = (run / "report.html").read_text()
    assert "ratios that the search ended with" in page and "Which decisions mattered" in page
    for layer, share in finalists[0]["removed"].items():
        assert f'<tr><td>{layer}</td><td class="number">{share:.1%}</td>' in page


def begun(compose_text: Any, folder: Path, *overrides: str) -> tuple[script.Setting, script.Step]:
    """Where a step begins: with an original of fresh weights."""
    config, text = compose_text(*NET, "device=cpu", *overrides, kind=OptimizeConfig, name="optimize")
    run = Run.create(folder, "run", text, 30.0, Interruption())
    blueprint = Blueprint("child.resnet.ResNet", {"input_shape": [1, 8, 8], "num_outputs": 10, "width": 8})
    at = script.Setting(config, torch.device("cpu"), digits(seed=0), run, script.Console())
    for stage in ("original", "0-share"):
        at.save(stage, blueprint.build(()), blueprint)
    original = {"macs": count_macs(at.load("original").module, (1, 8, 8))}
    return at, script.Step("1-step", "0-share", 1, 1, original)


def test_ratios_of_a_search_are_tried_before_one_is_taken(
    compose_text: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a tenth of the epochs, in each round those of its own search; even ones win where they are about as good."""
    at, step = begun(
        compose_text, tmp_path, "prune.ratios=search", "prune.rounds=2", "prune.training.epochs=20",
        "search.rounds=1", "search.episodes=2",
    )  # fmt: skip
    epochs, num_right = {}, iter([300, 299, 300, 200])

    def searched(join: Any, strategy: Any, evaluator: Any, *rest: Any) -> None:
        ahead = not at.run.read("history")
        tokens = [2 if ahead else 4] * len(evaluator.space.groups)
        line = {"strategy": strategy.name, "failure": None, "genotype": {"tokens": tokens}}
        at.run.append("history", *[{**line, "reward": 0.9 if ahead else 0.1}] * 2)

    def learn(build: Any, task: Any, settings: Any, seed: int, stage: str, *rest: Any) -> Any:
        module = build()
        # Their statistics are no longer those of fresh weights.
        assert all(norm.running_mean is not None and norm.running_mean.any() for norm in batch_norms(module))
        epochs[stage] = settings.epochs
        return module, 0.0

    def right(*given: Any) -> torch.Tensor:
        num = next(num_right)
        return (torch.arange(337) < num).double()

    for name, fake in (("search", searched), ("retrain", learn), ("grade", right)):
        monkeypatch.setattr(script, name, fake)
    script.prune(at, step)
    assert epochs == {
        "1-step-round1-trial1": 2, "1-step-round1-trial2": 2, "1-step-round1": 20,
        "1-step-trial1": 2, "1-step-trial2": 2, "1-step": 20,
    }  # fmt: skip
    tried = load(at.run.folder / "ratios.json")
    assert [each["even"] for each in tried["1-step-round1"]] == [True, False]
    assert [each["even"] for each in tried["1-step"]] == [False, True]
    assert set(tried["1-step"][0]["removed"].values()) == {0.5}


def test_a_student_listens_to_all_its_teachers(
    compose_text: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To their mean; its own kind before this step is one of them."""
    images, heard = torch.rand(3, 1, 8, 8), []

    def learn(build: Any, task: Any, settings: Any, seed: int, stage: str, *rest: Any) -> Any:
        module, loss_of = build(), rest[-1]
        loss_of(module)
        return module, 0.0

    def loss(self: SoftTargets, student: Any, teacher: Any, task: Any, label_smoothing: float = 0.0) -> None:
        heard.append((teacher.eval()(images), label_smoothing))

    monkeypatch.setattr(script, "retrain", learn)
    monkeypatch.setattr(SoftTargets, "loss", loss)
    for teachers in (["original", "self"], ["self"]):
        given = f"distill.teachers=[{','.join(teachers)}]", "distill.training.label_smoothing=0.2"
        at, step = begun(compose_text, tmp_path, *given)
        script.distill(at, step)
        said = [at.load({"self": "0-share"}.get(name, name)).module(images) for name in teachers]
        torch.testing.assert_close(heard.pop(), (torch.stack(said).mean(dim=0), 0.2))


@pytest.mark.slow
def test_distilled_from_fresh_weights_by_several_teachers(finished: Path, run_optimize: Any, tmp_path: Path) -> None:
    """Teachers are the original, a network and the two of a run; the student is born again."""
    run = tmp_path / "front" / "networks"
    for name in ("teacher", "teacher2", "teacher-seed1"):
        shutil.copytree(finished / "networks" / "original", run / name)
    teachers = f"distill.teachers=[original,self,{finished / 'networks' / '1-prune'},{tmp_path / 'front'}]"
    out = run_optimize(
        tmp_path, *NET, "steps=[distill]", teachers, "distill.fresh=true", "retrain.training.epochs=1",
        "distill.features={kind: attention, num_layers: 2}",
    )  # fmt: skip
    results = load(out / "results.json")
    assert results["chosen"] == "1-distill" and results["verdict"].startswith("There was no goal")
    before, after = (load_network(out / row["folder"]).module.state_dict() for row in results["rows"])
    assert not any(before[name].equal(value) for name, value in after.items() if value.ndim > 1)


def test_what_was_pruned_is_born_again_in_all_its_parts(modules: Path) -> None:
    """As it is built where a layer does not draw its own weights, and in the sizes that it has now."""
    task = digits(seed=0)
    blueprint = Blueprint("strange.Attending", {"input_shape": [1, 8, 8], "num_outputs": 10}, resized=True)
    module = blueprint.build(["strange"])
    groups = find_groups(module, (1, 8, 8))
    scores = score_units(module, (1, 8, 8), groups, "magnitude")
    pruned = remove_units(module, (1, 8, 8), groups, scores, keep_shares(groups, uniform(groups, scores, 0.5)))
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.add_(1.0)
    network = TrainedNetwork(pruned, blueprint, task.input_shape, task.objective, task.preprocessing)
    at: Any = SimpleNamespace(config=SimpleNamespace(plugins=["strange"]))
    before = {name: value.clone() for name, value in pruned.named_parameters()}
    again = script.fresh(at, network)
    after, whole = dict(again.named_parameters()), blueprint.build(["strange"]).state_dict()
    assert groups and {name: value.shape for name, value in after.items()} == {n: v.shape for n, v in before.items()}
    assert not any(after[name].equal(value) for name, value in before.items())
    # Drawn anew for their fewer inputs, for 1 / sqrt(inputs) is the most that a weight begins with.
    narrower = [name for name, value in after.items() if value.ndim > 1 and value[0].numel() < whole[name][0].numel()]
    assert "classifier.weight" in narrower
    assert all(after[name].abs().max() > whole[name][0].numel() ** -0.5 for name in narrower)
    assert after["gain"].eq(0.5).all() and again.eval()(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.slow
@pytest.mark.parametrize("env", ["diabetes", "breast_cancer"])
def test_models_of_tables_are_made_smaller(env: str, run_optimize: Any, tmp_path: Path) -> None:
    run = run_optimize(
        tmp_path, f"env={env}", "model._target_=child.plain_mlp.PlainMLP", "+model.width=16",
        "steps=[prune,distill,share]", "goal.parameters=0.6", "share.values=8",
    )  # fmt: skip
    results = load(run / "results.json")
    assert results["rows"][1]["parameters"] <= 0.6 * results["rows"][0]["parameters"]
    assert results["honored"]


@pytest.mark.slow
def test_a_language_model_is_made_smaller(run_optimize: Any, tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_text("It was the best of times , it was the worst of times .\n" * 100)
    run = run_optimize(
        tmp_path, "env=text", f"env.path={tmp_path / 'novel.txt'}", "model._target_=child.lstm.LSTMLanguageModel",
        "+model.width=8", "steps=[sparsify,distill,share]", "goal.bytes=0.7", "retrain.training.epochs=1",
    )  # fmt: skip
    results = load(run / "results.json")
    assert results["honored"] and not results["higher_is_better"]


def test_what_was_shared_learns_on_from_a_teacher(run_optimize: Any, tmp_path: Path) -> None:
    """At the rate of plain weights the codebooks ruin it: a value's gradient is the sum over all its weights."""
    run = run_optimize(
        tmp_path, *NET, "steps=[share,distill]", "retrain.training.epochs=6", "share.training.epochs=2",
        "distill.training.epochs=6",
    )  # fmt: skip
    _, shared, distilled = (row["validation"][0] for row in load(run / "results.json")["rows"])
    assert shared > 0.85 and distilled > shared - 0.03


def test_codebooks_learn_no_faster_than_they_are_tuned(compose_text: Any, tmp_path: Path) -> None:
    given = ("model.path=x", "retrain.training.final_learning_rate=0.05")
    config, text = compose_text(*given, kind=OptimizeConfig, name="optimize")
    run = Run.create(tmp_path, "run", text, 30.0, Interruption())
    at = script.Setting(config, torch.device("cpu"), digits(seed=0), run, script.Console())
    own = at.tuning(config.share.training)
    assert (own.learning_rate, own.final_learning_rate) == pytest.approx((0.002, 0.001))
    for settings, wanted in (
        (at.tuning(config.prune.training), 0.04),
        (at.tuning(config.sparsify.training), 0.04),
        (config.distill.training, 0.02),
        (own, 1.0),
        (replace(own, learning_rate=own.learning_rate / 2), 1.0),
    ):
        module = ResNet((1, 8, 8), 10, 8)
        share_values(module, 4)
        (rate,) = {part.rate for part in script.held(at, module, settings).modules() if isinstance(part, Codebook)}
        assert rate == pytest.approx(wanted)


def test_a_module_of_the_users(run_optimize: Any, modules: Path) -> None:
    """Pruned, shared, chosen and asked again."""
    run = run_optimize(modules, "model._target_=net.Net", "plugins=[net]", "goal.macs=0.5", "steps=[prune,share]")
    results = load(run / "results.json")
    assert 0.3 < results["rows"][1]["macs"] / results["rows"][0]["macs"] <= 0.5 and results["honored"]
    with pytest.raises(ValueError, match=r"refused to build 'net\.Net'"):
        load_network(run / "networks" / "student")
    network = load_network(run / "networks" / "student", ["net"])
    images = np.zeros((5, 1, 8, 8), np.uint8)
    torch.testing.assert_close(network.predict(images)[:1], network.predict(images[:1]))
    grouped: Any = network.module.get_submodule("grouped")
    assert grouped.groups == 2 and grouped.in_channels < 16


@pytest.mark.slow
def test_by_the_command_line(known: Any, tmp_path: Path) -> None:
    own = [*NET, "goal.macs=0.5", "steps=[prune]", *known.TINY_STEPS, f"output={tmp_path}", "name=run"]

    def type_in(*overrides: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "optimize.py"), *own, *overrides]
        return subprocess.run(command, cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True)

    done = type_in()
    assert done.returncode == 0 and done.stderr == "", done.stderr[-2000:]
    assert re.search(r"1\. prune .*│", done.stdout) and "Report: " in done.stdout
    wrong = type_in("goal.macs=1.5")
    assert wrong.returncode == 2
    assert wrong.stderr == "luban: goal.macs is a share of the original's, and 1.5 is more than it has\n"


def test_a_run_of_the_other_script_is_named(finished: Path, compose_text: Any) -> None:
    with pytest.raises(ConfigError, match=r"is a run of optimize\.py; go on with: python optimize\.py resume="):
        compose_text(f"resume={finished}")
    begun = finished.parent / "search"
    begun.mkdir()
    (begun / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(ConfigError, match=r"is a run of main\.py; go on with: python main\.py resume="):
        compose_text(f"resume={begun}", kind=OptimizeConfig, name="optimize")


def test_a_run_that_is_still_going_is_reported(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    going = tmp_path / "going"
    going.mkdir()
    for name in ("config.yaml", "task.json", "steps.json"):
        shutil.copy(finished / name, going)
    rows = load(going / "steps.json")["rows"]
    assert [row["name"] for row in rows] == [row["name"] for row in load(finished / "results.json")["rows"]]
    (going / "steps.json").write_text(json.dumps({"rows": rows[:2]}))
    assert report([str(going)]) == 0
    page, told = (going / "report.html").read_text(), capsys.readouterr().out
    assert "This run is not finished: 2 of 6 networks measured, none tested." in page and "1. prune" in page
    assert "The test set was opened" not in page and re.search(r"1\. prune .*│ +-", told)
    assert report([f"runs=[{finished},{going}]", "--output", str(tmp_path / "both.html")]) == 0
    assert "2 of 6 networks measured" in (tmp_path / "both.html").read_text()
    assert "digits: accuracy" in capsys.readouterr().out
    other = tmp_path / "other"  # whose choice is of another step
    shutil.copytree(finished, other, ignore=shutil.ignore_patterns("networks", "checkpoints", "tensorboard"))
    results = load(finished / "results.json")
    chosen = next(row for row in results["rows"] if row["name"] == results["chosen"])
    rows = [row for row in results["rows"] if row is not chosen] + [{**chosen, "name": "9-share"}]
    (other / "results.json").write_text(json.dumps({**results, "rows": rows, "chosen": "9-share"}))
    (other / "config.yaml").write_text((finished / "config.yaml").read_text().replace("seed: 0", "seed: 1"))
    assert report([f"runs=[{finished},{other}]", "--output", str(tmp_path / "both.html")]) == 0
    page = (tmp_path / "both.html").read_text()
    assert re.search(r"<th scope=\"row\">Result</th>\n(<td.*</td>){2}<td class=\"number\">2</td>", page)
    assert "has evaluated an architecture" not in page
    (going / "steps.json").unlink()  # the original is being trained
    assert report([str(going)]) == 0 and "0 of 6 networks measured" in (going / "report.html").read_text()


def test_all_goals_that_count_are_pruned_for(run_optimize: Any, tmp_path: Path) -> None:
    run = run_optimize(tmp_path, *NET, "steps=[prune]", "goal.macs=0.9", "goal.parameters=0.4")
    first, second = load(run / "results.json")["rows"]
    assert second["macs"] <= 0.9 * first["macs"] and 0.3 * first["parameters"] < second["parameters"]
    assert second["parameters"] <= 0.4 * first["parameters"] and load(run / "choices.json")["honored"]


@pytest.mark.parametrize(("steps", "limit"), [("prune", 0.5), ("prune,share", 0.2), ("prune,sparsify", 0.2)])
def test_channels_are_pruned_until_the_bytes_are_as_few_as_wanted(
    run_optimize: Any, tmp_path: Path, steps: str, limit: float
) -> None:
    """The steps that are still to come counted in, in one round and in several."""
    own = ("model._target_=child.resnet.ResNet", "+model.width=16")
    for rounds in (1, 2):
        run = run_optimize(
            tmp_path, *own, f"steps=[{steps}]", f"goal.bytes={limit}", f"prune.rounds={rounds}", name=f"run{rounds}"
        )
        first, *_, last = load(run / "results.json")["rows"]
        assert 0.8 * limit < last["bytes"] / first["bytes"] <= limit and load(run / "choices.json")["honored"]


@pytest.mark.parametrize(("limit", "least"), [(0.5, 0.9), (0.25, 0.1)])
def test_what_will_be_tied_is_counted_once(run_optimize: Any, modules: Path, limit: float, least: float) -> None:
    """Tying leaves 0.35 of the parameters: nothing is pruned where that is enough, else as much as is lacking."""
    run = run_optimize(
        modules, "model._target_=strange.Deep", "plugins=[strange]", "steps=[prune,share]", "share.tie=true",
        f"goal.parameters={limit}", f"prune.least={least}", "retrain.training.epochs=1", "prune.rounds=2",
    )  # fmt: skip
    first, pruned, tied = (row["parameters"] for row in load(run / "results.json")["rows"])
    assert tied <= limit * first and load(run / "choices.json")["honored"]
    assert pruned == first if limit == 0.5 else 0.8 * limit * first < tied < pruned < first


@pytest.mark.parametrize(("overrides", "targets"), [
    ([], {"macs": 0.5}),
    (["goal.parameters=0.3"], {"parameters": 0.3}),
    (["goal.parameters=0.3", "goal.macs=0.9"], {"macs": 0.9, "parameters": 0.3}),
    (["prune.unit=parameters"], {"parameters": 0.5}),
    (["goal.macs=0.4", "prune.unit=parameters"], {"parameters": 0.5, "macs": 0.4}),
    (["goal.macs=0.4", "prune.share=0.2"], {"macs": 0.2}),
    (["goal.bytes=0.3"], {"bytes": 0.3}),
    (["goal.bytes=0.3", "goal.macs=0.4"], {"macs": 0.4, "bytes": 0.3}),
    (["goal.bytes=0.3", "prune.share=0.2"], {"macs": 0.2, "bytes": 0.3}),
])  # fmt: skip
def test_what_pruning_aims_at(overrides: list[str], targets: dict[str, float], compose_text: Any) -> None:
    config, _ = compose_text("model.path=x", *overrides, kind=OptimizeConfig, name="optimize")
    assert list(script.prune_targets(config).items()) == list(targets.items())


def test_the_least_share_is_one_of_the_originals_channels(run_optimize: Any, tmp_path: Path) -> None:
    run = run_optimize(
        tmp_path, "model._target_=child.resnet.ResNet", "+model.width=16", "steps=[prune]", "goal.macs=0.3",
        "prune.rounds=3", "prune.least=0.5",
    )  # fmt: skip
    sizes = []
    for name in ("original", "1-prune"):
        module = load_network(run / "networks" / name).module
        sizes.append({group.name: group.num_units for group in find_groups(module, (1, 8, 8))})
    assert sizes[1].keys() == sizes[0].keys()
    kept = [sizes[1][name] / num for name, num in sizes[0].items()]
    assert min(kept) == 0.5 < max(kept)


def line(compose_text: Any, output: Path, *overrides: str) -> str:
    """What a user gets to read; no folder is left behind."""
    with pytest.raises(Exception) as caught:
        main(*compose_text(f"output={output / 'out'}", *overrides, kind=OptimizeConfig, name="optimize"))
    told = one_line(caught.value)
    assert told and "\n" not in told and not isinstance(caught.value, AssertionError)
    assert not (output / "out").exists()
    return told


@pytest.mark.parametrize(("overrides", "told"), [
    (["goal.macs=1.2"], "goal.macs is a share of the original's, and 1.2 is more than it has"),
    (["goal.bytes=0"], r"goal.bytes is a share of the original's in \(0, 1\], got 0"),
    (["goal.latency_ms=-1"], "goal.latency_ms is a time above 0, got -1"),
    (["goal.max_loss=-1"], "goal.max_loss is a number of points of at least 0, got -1"),
    (["goal.speed=2"], "goal.speed: unknown key"),
    (["goal.macs=0.001"], r"goal.macs: 0.001 of the macs cannot be reached, since pruning leaves 0\.\d+ of them"),
    (["prune.unit=parameters", "prune.share=0.01", "prune.least=0.5"], "prune.share: 0.01 of the parameters cannot be"),
    (["goal.macs=0.4", "steps=[share]"], r"goal.macs: none of steps=\['share'\] lowers it; add one of prune"),
    (["goal.bytes=0.1", "steps=[share]"], "goal.bytes: 0.1 of the bytes cannot be reached by these steps"),
    (["goal.macs=0.4", "prune.share=0.8"], "prune.share: 0.8 of the macs contradicts goal.macs=0.4; leave it out"),
    (["steps=[]"], "steps: expected a list of one or more of prune, sparsify, share, distill"),
    (["retrain.join_validation=true"], "retrain.join_validation: steps are chosen by validation data, which must stay"),
    (["steps=[quantize,prune]"], "steps: what is quantized can no longer be trained, so quantize comes last"),
    (["steps=[prune,shar]"], r"steps\[1\]: there is no step 'shar'; .*did you mean 'share'\?"),
    (["+model.depth=3"], "model.depth: child.resnet.ResNet takes no such argument; allowed: width, blocks"),
    (["model.weights=none.safetensors"], "model.weights: cannot read none.safetensors: No such file"),
    (["env=nasbench201", "++env.path=x"], "env: luban/Architecture-v0 has no task that a model could be measured on"),
    (["env=diabetes"], r"cannot build .*: ResNet takes images, input_shape \(C, H, W\), got \(10,\)"),
    (["model.path=x"], "model: give model.path=outputs/<run> or model._target_=mymodule.Net, got both"),
    (["model._target_=null"], "model: give model.path=outputs/<run> or model._target_=mymodule.Net, got neither"),
    (["model._target_=os.system"], r"refused to call 'os.system'"),
    (["distill.teachers=[nowhere]", "steps=[distill]"], r"cannot read nowhere/SHA256SUMS"),
    (["goal.parameters=0.5", "steps=[share]"],
     r"goal.parameters: none of steps=\['share'\] lowers it; add one of prune, share with share.tie=true"),
    (["steps=[share,prune]", "share.tie=true"], "steps: pruning would part the layers that share.tie=true has tied"),
    (["prune.ratios=search", "prune.choices=[0.5]"], r"prune.choices are two or more ascending shares in \[0, 1\)"),
    (["prune.ratios=search", "controller=darts"], "prune.ratios=search: controller: darts learns by gradients, which"),
    (["steps=[share,distill]", "distill.fresh=true"], "steps: distill.fresh=true begins with fresh weights, which"),
    (["prune.ratios=search", "search.budget=30"], "search.budget: a search for ratios is as long as search.rounds"),
    (["steps=[distill]", "distill.features={kind: hint, layers: [nosuch]}"], "ResNet has no layer 'nosuch'"),
    (["++model.width=-4"], "cannot build 'child.resnet.ResNet' with .*negative dimension"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")  # fmt: skip
def test_what_cannot_be_is_told_in_one_line(overrides: list[str], told: str, compose_text: Any, tmp_path: Path) -> None:
    found = line(compose_text, tmp_path, *NET, *overrides)
    assert re.search(told, found), found


def test_models_that_do_not_fit_are_told_in_one_line(
    compose_text: Any, finished: Path, tmp_path: Path, modules: Path
) -> None:
    own = ("plugins=[strange]",)
    told = line(compose_text, tmp_path, "model._target_=strange.Untraceable", *own)
    assert told.startswith("Untraceable has no channels that can be pruned")
    told = line(compose_text, tmp_path, "model._target_=strange.Two", *own, "steps=[share]")
    assert told.startswith("model: does not fit the task digits")
    told = line(compose_text, tmp_path, "model._target_=strange.Pair", *own)
    assert told.endswith("it gives a tuple, and one tensor is needed")
    told = line(compose_text, tmp_path, "model._target_=strange.Brittle", *own)
    assert told.endswith("cannot build 'strange.Brittle' with {}: the width must be even")
    assert "KeyError('picture')" in line(compose_text, tmp_path, "model._target_=strange.Needy", *own)
    for kind in ("Reading", "Unregistered"):
        told = line(compose_text, tmp_path, f"model._target_=strange.{kind}", *own, "steps=[share]")
        assert told.startswith(f"model: the multiply-accumulates of {kind} cannot be counted: its forward reads values")
    told = line(compose_text, tmp_path, "model._target_=strange.Unexportable", *own, "steps=[quantize]")
    assert told.startswith("strange.Unexportable cannot be exported: ")
    told = line(compose_text, tmp_path, "model._target_=strange.Lazy", *own, "steps=[share]")
    assert told.startswith("strange.Lazy does not know the size of classifier.weight before it is used")
    told = line(compose_text, tmp_path, "model._target_=strange.Counting", *own, "steps=[share]")
    assert told.startswith("strange.Counting keeps _extra_state, which is no tensor")
    told = line(compose_text, tmp_path, "model._target_=strange.Recurring", *own, "steps=[quantize]", "goal.bytes=0.4")
    assert told.startswith("goal.bytes: 0.4 of the bytes cannot be reached by these steps")
    told = line(compose_text, tmp_path, "model._target_=strange.Pooling", *own, "steps=[share,quantize]")
    assert re.match("strange.Pooling cannot be exported: No ONNX function found for .*adaptive_max_pool2d", told)
    told = line(compose_text, tmp_path, f"model.path={finished}", "env=breast_cancer")
    assert re.search(r"model.path: .* was trained for inputs of shape \(1, 8, 8\), not \(30,\) as in the task", told)
    aside = shutil.copytree(finished / "networks", tmp_path / "again" / "networks").parent
    about = load(finished / "task.json")
    (aside / "task.json").write_text(json.dumps({**about, "data": "0" * 64}))  # equal in all else, as texts can be
    told = line(compose_text, tmp_path, f"model.path={aside}")
    assert "was trained for other data, or another split of them" in told
    told = line(compose_text, tmp_path, *NET, "steps=[distill]", f"distill.teachers=[{aside}]")
    assert told.startswith("distill.teachers: ") and "other data, or another split" in told
    told = line(compose_text, tmp_path, f"model.path={finished}", "seed=1")
    assert "was trained for data prepared otherwise than in the task digits" in told
    assert f"it was trained with: seed=0, and what else of env stands in {finished}/config.yaml" in told
    other = ResNet((1, 8, 8), 10, 4).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    told = line(compose_text, tmp_path, *NET, f"model.weights={tmp_path / 'other.safetensors'}")
    assert re.match(r"model.weights: .* does not fit ResNet: stem.0.weight is of shape .* where .* is needed, .*", told)
    assert re.search(r", and so on: \d+ in all$", told)
    right = ResNet((1, 8, 8), 10, 8).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    state = right.state_dict()
    save_file({f"module.{name}": value for name, value in state.items()}, tmp_path / "prefixed.safetensors")
    told = line(compose_text, tmp_path, *NET, f"model.weights={tmp_path / 'prefixed.safetensors'}")
    assert told.endswith("; all its names begin with module., so take that off") and len(told) < 400
    torch.save(state, tmp_path / "own.pt")
    told = line(compose_text, tmp_path, *NET, f"model.weights={tmp_path / 'own.pt'}")
    assert re.search(
        r"own.pt is not a whole safetensors file \(.*\); of a state dict safetensors.torch.save_file", told
    )
    state["stem.0.weight"][0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    told = line(compose_text, tmp_path, *NET, f"model.weights={tmp_path / 'nan.safetensors'}")
    assert re.match(r"model.weights: stem.0.weight of .* has values that are not finite", told)
    told = line(compose_text, tmp_path, "model._target_=strange.Double", *own, "steps=[share]")
    assert told == (
        "model: stem.0.weight is of float64, and samples and what is stored are of float32; let its __init__ end "
        "with self.float()"
    )
    told = line(compose_text, tmp_path, "model._target_=strange.Viewing", *own, "steps=[share]")
    assert told.endswith(": x.view(...) needs another order in memory than images have here, channels last; use "
                         "x.flatten(1)")  # fmt: skip
    assert re.match(r"cannot read .*SHA256SUMS", line(compose_text, tmp_path, f"model.path={tmp_path}"))


def test_who_has_learned_the_validation_data_is_told_of(tmp_path: Path, compose_text: Any) -> None:
    """The run of the original or of a teacher, or one before it."""
    run, network = tmp_path / "run", tmp_path / "run" / "networks" / "student"
    network.mkdir(parents=True)

    def notes(*overrides: str) -> list[str]:
        return notes_on(compose_text(*overrides, kind=OptimizeConfig, name="optimize")[0])

    for config, about, joined in (
        ("true", {}, True),
        ("false", {"joined_validation": True}, True),
        ("false", {}, False),
    ):
        (run / "config.yaml").write_text(f"retrain: {{join_validation: {config}}}")
        (run / "task.json").write_text(json.dumps(about))
        for path in (run, network):
            told = notes(f"model.path={path}", "steps=[share]")
            assert [note.startswith("The original was trained on the validation") for note in told] == [True] * joined
            teachers = f"distill.teachers=[self,{path}]"
            told = notes(*NET, "steps=[distill]", teachers)
            assert [note.startswith("A teacher was trained on the validation") for note in told] == [True] * joined
            assert notes(*NET, "steps=[share]", teachers) == []
    assert notes(f"model.path={tmp_path / 'elsewhere'}") == []


def test_that_a_run_began_from_validation_data_goes_with_it(finished: Path, run_optimize: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(finished / "networks", source / "networks")
    shutil.copy(finished / "task.json", source)
    (source / "config.yaml").write_text("retrain: {join_validation: true}")
    for name in ("first", "second"):
        source = run_optimize(tmp_path, f"model.path={source}", "steps=[share]", "share.training.epochs=0", name=name)
        assert load(source / "results.json")["notes"][0].startswith("The original was trained on the validation data")


def test_weights_of_ones_own_are_not_trained_again(run_optimize: Any, tmp_path: Path) -> None:
    torch.manual_seed(3)
    module = ResNet((1, 8, 8), 10, 8).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    save_file(module.state_dict(), tmp_path / "own.safetensors")
    run = run_optimize(
        tmp_path, *NET, f"model.weights={tmp_path / 'own.safetensors'}", "steps=[share]", "share.training.epochs=0"
    )
    original = load_network(run / "networks" / "original").module.state_dict()
    assert all(value.equal(original[name]) for name, value in module.state_dict().items())


def test_weights_that_a_file_keeps_under_one_of_their_names_are_read(tmp_path: Path) -> None:
    def tied() -> Any:
        module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        module[1].weight = module[0].weight
        return module

    saved, read = tied(), tied()
    save_model(saved, str(tmp_path / "own.safetensors"))
    with_weights(read, tmp_path / "own.safetensors")
    assert read[1].weight is read[0].weight
    assert all(value.equal(saved.state_dict()[name]) for name, value in read.state_dict().items())
    with pytest.raises(ConfigError, match=r"own\.safetensors does not fit Sequential: it lacks 1\.weight$"):
        with_weights(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), tmp_path / "own.safetensors")


def test_weights_are_read_as_pytorch_reads_them(tmp_path: Path) -> None:
    """Those of old versions too, and buffers of any values."""

    def network() -> Any:
        module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        module.register_buffer("mask", torch.full((4, 4), -torch.inf))
        return module

    saved, file = network(), tmp_path / "own.safetensors"
    state = {name: value for name, value in saved.state_dict().items() if "num_batches" not in name}
    save_file(state, file)
    assert all(
        value.equal(state[name]) for name, value in with_weights(network(), file).state_dict().items() if name in state
    )
    save_file({}, file)
    with pytest.raises(ConfigError, match=r"does not fit Sequential: it lacks mask, .*, and so on: 8 in all$"):
        with_weights(network(), file)


def test_weights_that_answer_nothing_are_told_of(run_optimize: Any, tmp_path: Path) -> None:
    module = ResNet((1, 8, 8), 10, 8).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    [*module.parameters()][-2].data.fill_(3e38)
    save_file(module.state_dict(), tmp_path / "own.safetensors")
    with pytest.raises(TrainingError, match="Original: its outputs on validation data are not finite"):
        run_optimize(tmp_path, *NET, f"model.weights={tmp_path / 'own.safetensors'}", "steps=[share]")


def test_the_teachers_of_a_run_are_those_that_were_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimize.network_for", lambda key, folder, *rest: SimpleNamespace(module=folder.name))
    config: Any = SimpleNamespace(distill=SimpleNamespace(teachers=[str(tmp_path)]), plugins=[])
    for name in ("teacher2", "teacher", "teacher-seed1", "student"):
        (tmp_path / "networks" / name).mkdir(parents=True)
    assert find_teachers(config, None, None) == ["teacher", "teacher2"]  # type: ignore[arg-type] (a run under way)
    folders = {"teacher": "teacher-seed1", "teacher2": "teacher2", "student": "student"}
    rows = [{"name": name, "folder": f"networks/{folder}"} for name, folder in folders.items()]
    (tmp_path / "results.json").write_text(json.dumps({"rows": rows}))
    assert find_teachers(config, None, None) == ["teacher-seed1", "teacher2"]  # type: ignore[arg-type]


def row(macs: int, loss: float, latency: float = 1.0) -> dict[str, Any]:
    return {"macs": macs, "parameters": macs, "bytes": macs, "latency_ms": latency, "validation": [0.9 - loss / 100],
            "quality": [0.9 - loss / 100], "name": f"{macs}", "title": f"T{macs}", "standard_error": 0.001,
            "folder": f"networks/{macs}"}  # fmt: skip


@pytest.mark.parametrize(("goal", "chosen", "told"), [
    ({"macs": 0.5}, "50", "T50 is the best network that honors the goal."),
    ({"macs": 0.5, "max_loss": 0.5}, "50", "No network honors the goal. T50 comes nearest: 1 points lost"),
    ({"macs": 0.1}, "20", "T20 comes nearest: 20.0% of the multiply-accumulates where 10.0% are wanted."),
    ({"max_loss": 1.0}, "50", "T50 is the smallest network that honors the goal."),
    ({"max_loss": 3.0}, "20", "T20 is the smallest network that honors the goal."),
    ({"latency_ms": 0.5}, "50", "comes nearest: 1 ms for 64 samples where 0.5 are wanted"),
    ({}, "20", "There was no goal; the result is that of the last step, T20."),
])  # fmt: skip
def test_the_best_that_honors_the_goal_or_the_nearest(
    goal: dict[str, float], chosen: str, told: str, tmp_path: Path, compose_text: Any
) -> None:
    rows = [row(100, 0.0), row(50, 1.0), row(20, 2.0)]
    overrides = [f"goal.{name}={limit}" for name, limit in goal.items()]
    config, text = compose_text("model.path=x", *overrides, kind=OptimizeConfig, name="optimize")
    run = Run.create(tmp_path, "run", text, 30.0, Interruption())
    at = script.Setting(config, torch.device("cpu"), digits(seed=0), run, script.Console())
    for each in rows:
        (tmp_path / "run" / "networks" / each["name"]).mkdir(parents=True)
    choice = script.choose(at, rows)
    assert choice["chosen"] == chosen and told in choice["verdict"]


def test_what_the_table_does_not_say_by_itself(tmp_path: Path, compose_text: Any) -> None:
    task = digits(seed=0)

    def named(name: str, accuracy: float, size: int, macs: int = 50) -> dict[str, Any]:
        return {**row(macs, 0.0), "name": name, "title": name, "folder": f"networks/{name}", "validation": [accuracy],
                "quality": [accuracy], "standard_error": 0.01, "bytes": size}  # fmt: skip

    original, pruned = named("original", 0.9, 100, macs=100), named("1-prune", 0.89, 50)
    equal, worse = named("2-share", 0.885, 10), named("3-quantize", 0.87, 30)
    rows = [original, pruned, equal, worse]
    assert script.remarks_on(rows, pruned, rows[1:], task) == [
        "3-quantize takes more bytes than 2-share, which keeps what share and sparsify pack.",
        "2-share honors the goal too, has 20% of the bytes of 1-prune, and is within a standard error of it on "
        "validation data: networks/2-share.",
    ]
    assert script.remarks_on(rows[:3], equal, rows[1:3], task) == []
    idle = {**named("1-prune", 0.9, 100), "macs": 100, "parameters": original["parameters"]}
    assert script.remarks_on([original, idle], idle, (), task) == [
        "1-prune removed nothing, for the goal is reached without."
    ]
    poor = named("original", 0.1, 100)
    assert script.remarks_on([poor], poor, (), task)[0].startswith(
        "The original answers no better than by the commonest"
    )
    level = {**equal, "validation": pruned["validation"], "quality": pruned["quality"]}
    config, text = compose_text("model.path=x", "goal.macs=0.5", kind=OptimizeConfig, name="optimize")
    run = Run.create(tmp_path, "run", text, 30.0, Interruption())
    for each in (original, pruned, level):
        (tmp_path / "run" / each["folder"]).mkdir(parents=True)
    at = script.Setting(config, torch.device("cpu"), task, run, script.Console())
    assert script.choose(at, [original, pruned, level])["chosen"] == "2-share"  # of equals the smaller


@pytest.mark.parametrize(
    ("goal", "chosen"), [("goal.macs=0.5", "50"), ("goal.max_loss=0.5", "50"), ("goal.max_loss=2", "40")]
)
def test_where_lower_is_better_the_lowest_is_the_best(
    goal: str, chosen: str, tmp_path: Path, compose_text: Any
) -> None:
    text = Language(tuple("abcd"), "words")
    rows = [
        {**row(macs, 0.0), "name": str(macs), "validation": [perplexity], "quality": [text.quality(perplexity)]}
        for macs, perplexity in ((100, 2.0), (50, 2.2), (40, 3.0))
    ]
    config, written = compose_text("model.path=x", goal, kind=OptimizeConfig, name="optimize")
    run = Run.create(tmp_path, "run", written, 30.0, Interruption())
    task = replace(digits(seed=0), objective=text)
    at = script.Setting(config, torch.device("cpu"), task, run, script.Console())
    for each in rows:
        (tmp_path / "run" / "networks" / each["name"]).mkdir(parents=True)
    assert script.choose(at, rows)["chosen"] == chosen
    assert script.points(2.0 - 2.5, task) == 0.5


def test_latencies_are_the_least_disturbed_of_rounds_in_turns(
    tmp_path: Path, compose_text: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, text = compose_text("model.path=x", kind=OptimizeConfig, name="optimize")
    run = Run.create(tmp_path, "run", text, 30.0, Interruption())
    at = script.Setting(config, torch.device("cpu"), digits(seed=0), run, script.Console())
    found = {"100": [3.0, 1.0, 2.0], "50": [0.5, 0.7, 0.6]}
    turns: list[str] = []

    def measured(network: str, *given: Any, **named: Any) -> Latency:
        turns.append(network)
        return Latency(found[network][turns.count(network) - 1], 0.1 * turns.count(network))

    monkeypatch.setattr(script.Setting, "answering", lambda self, stage: stage)
    monkeypatch.setattr(script, "measure_latency", measured)
    first, second = script.time_networks(at, [row(100, 0.0), row(50, 1.0)])
    assert turns == ["100", "50"] * 3
    assert (first["latency_ms"], first["latency_spread_ms"]) == (1.0, 0.2)
    assert (second["latency_ms"], second["latency_spread_ms"]) == (0.5, 0.1)


def test_the_error_of_an_accuracy_is_that_of_a_share() -> None:
    task = digits(seed=0)
    right = torch.ones(len(task.validation.targets))
    right[: len(right) // 5] = 0.0
    share = right.mean().item()
    error = (share * (1 - share) / len(right)) ** 0.5
    assert script.bootstrap_error(task, right) == pytest.approx(error, rel=0.1)


def test_eight_bits_answer_in_the_place_of_the_network(
    tmp_path: Path, run_optimize: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from child.quantize import quantize  # needs an extra

    ranges: list[torch.Tensor] = []

    def watched(folder: Path, inputs: torch.Tensor) -> Path:
        ranges.append(inputs)
        return quantize(folder, inputs)

    monkeypatch.setattr("child.quantize.quantize", watched)
    folder = run_optimize(tmp_path, *NET, "steps=[prune,quantize]", "export.formats=[onnx]")
    results = load(folder / "results.json")
    pruned, quantized = results["rows"][1:]
    file = folder / "networks" / "2-quantize" / "model.int8.onnx"
    assert quantized["bytes"] == file.stat().st_size and quantized["macs"] == pruned["macs"]
    module = OnnxModule(file.read_bytes())
    task = digits(seed=0)
    learned = {sample.numpy().tobytes() for sample in task.preprocessing(task.train.inputs)}
    assert len(ranges[-1]) == 512 and {sample.numpy().tobytes() for sample in ranges[-1]} <= learned
    expected = measure(module, task, task.validation, 512, torch.device("cpu"))
    assert quantized["validation"] == [expected]
    student = folder / "networks" / "student"  # exported too, with a card of the smaller file as well
    assert (student / file.name).read_bytes() == file.read_bytes()
    card = (student / "MODEL.md").read_text()
    assert card.startswith("# A smaller model (2. quantize)")
    assert f"| model.int8.onnx | {file.stat().st_size:,} |" in card
    assert set(results["exported"]["latency_ms"]) == {"torch", "onnxruntime", "onnxruntime with 8-bit integers"}
    # Whoever asks the run, or does what the card says, asks what the figures are of.
    assert "| validation accuracy of `model.int8.onnx` | " in card and 'load_onnx("model.int8.onnx")' in card
    answers, samples = read_network(folder), task.validation.inputs[:5].numpy()
    torch.testing.assert_close(answers.predict(samples), load_onnx(file).predict(samples))
    assert not answers.predict(samples).equal(load_network(student).predict(samples))
    (note,) = results["notes"]
    assert note.startswith("Exported to ") and note in (folder / "report.html").read_text()
