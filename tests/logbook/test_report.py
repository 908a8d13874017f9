"""The report is read by people who decide on it: its numbers, its sentences and its gaps have to be right."""

import io
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.path import Path as MplPath
from matplotlib.text import Text
from rich.console import Console
from scipy import stats
from torch import nn

import report as report_script
from child.cost import cost_by_layer
from child.onnx_module import QUANTIZED
from logbook import compare, plots, report
from logbook.analysis import Confusion
from logbook.compare import comparison_tables, read_parts, side_by_side, write_comparison
from logbook.numbers import results_table
from logbook.optimization import steps_table
from logbook.record import read_run
from logbook.report import usage_example, verdict, write_report
from logbook.sections.answers import draw_classes, draw_confusions
from logbook.sections.comparison import curves_section
from logbook.sections.decisions import decisions_section
from logbook.sections.networks import OUTSIDE, layers_section
from logbook.significance import estimate

OPERATIONS = ["conv3", "sepconv3", "conv5", "sepconv5", "avgpool3", "maxpool3"]
ROUNDS, BATCH = 20, 8


def write_run(folder: Path, num_layers: int = 6, seed: int = 0, learned: float = 0.990, **config: Any) -> Path:
    """A plausible finished run: the searching strategy drifts to sepconv3, random search does not."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    settings = {"seed": seed, "env": {"id": "luban/Digits-v0"}, "space": {"num_layers": num_layers}, **config}
    (folder / "config.yaml").write_text(json.dumps(settings))
    decisions = []
    for layer in range(1, num_layers + 1):
        decisions.append({"name": f"layer{layer}.operation", "kind": "operation", "labels": OPERATIONS})
        for source in range(1, layer):
            decisions.append({"name": f"layer{layer}.skip{source}", "kind": "skip", "labels": ["no", "yes"]})
    write(folder / "space.json", {"name": "macro", "decisions": decisions})

    history, updates = [], []
    for number in range(ROUNDS):
        pull = number / ROUNDS
        shares = [
            np.array([1, 1 + 12 * pull**2, 1, 1 + 3 * pull, 1, 1]) if d["kind"] == "operation" else np.array([6, 4])
            for d in decisions
        ]
        shares = [share / share.sum() for share in shares]
        for strategy in ("reinforce", "random"):
            learns = strategy == "reinforce"
            for place in range(BATCH):
                tokens = [
                    int(rng.choice(len(d["labels"]), p=share if learns else None))
                    for d, share in zip(decisions, shares, strict=True)
                ]
                quality = 0.55 + 0.4 * (1 - np.exp(-number / 6)) + rng.normal(0, 0.02) + 0.03 * pull * learns
                cost = int(rng.uniform(2e5, 3e6) * (1 - 0.5 * pull * learns))
                history.append(evaluation(strategy, number, number * BATCH + place + 1, tokens, quality, cost))
        updates.append(
            {
                "round": number,
                "strategy": "reinforce",
                "reward_mean": 0.8,
                "reward_best": 0.9,
                "random_reward_mean": 0.7,
                "entropy": 12 * (1 - 0.6 * pull),
                "loss": 0.1,
                "gradient_norm": 1.0,
                "supernet_loss": 2.2 * float(np.exp(-number / 8)),
                "probabilities": [share.tolist() for share in shares],
            }
        )
    write_lines(folder / "history.jsonl", history)
    write_lines(folder / "updates.jsonl", updates)

    candidates = []
    for strategy in ("reinforce", "random"):
        for number, cost in enumerate((3e5, 5e5, 8e5, 1.2e6, 1.1e6, 2e6)):
            quality = 0.93 + 0.05 * (1 - np.exp(-number / 2)) + 0.005 * (strategy == "reinforce")
            line = evaluation(strategy, 0, 1, [0] * len(decisions), quality - 0.02 * (number == 4), int(cost))
            candidates.append({**line, "on_front": number != 4})
    write(
        folder / "candidates.json",
        {
            "cost_unit": "macs",
            "reward_formula": "0.9 * quality + 0.1 * 1 / (1 + cost / 800000)",
            "candidates": candidates,
            "hypervolume": {"reinforce": 0.9312, "random": 0.9201},
            "hypervolume_reference": "quality 0, cost 3.2e6",
        },
    )
    rows = [
        row("teacher", "Teacher (best found)", learned, 1_234_567, graph(rng, num_layers)),
        row("student", "Student (distilled)", learned - 0.002, 333_000, graph(rng, max(2, num_layers // 2))),
        row("student_alone", "Student without a teacher", learned - 0.006, 333_000, None),
        row("random_best", "Best of random search", 0.989, 1_500_000, graph(rng, num_layers)),
        row("hand_designed", "Hand-designed", 0.985, 2_100_000, graph(rng, num_layers)),
    ]
    results = {
        "task": "digits",
        "metric": "accuracy",
        "seed": seed,
        "rows": rows,
        "seconds": {"search": 61.2, "retrain": 140.0, "distill": 35.5, "export": 2.0},
        "num_evaluations": len(history),
        "notes": ["The student keeps 27% of the teacher's MACs and is 0.2 points below it."],
    }
    write(folder / "results.json", results)
    network = {
        "build": {"target": "child.macro.MacroSpace"},
        "input_shape": [1, 8, 8],
        "objective": {"kind": "Classification"},
        "preprocessing": {"kind": "Normalize"},
    }
    for each in rows:
        write(folder / each["folder"] / "network.json", network)
    return folder


def evaluation(strategy: str, number: int, step: int, tokens: list[int], quality: float, cost: int) -> dict[str, Any]:
    return {
        "strategy": strategy,
        "round": number,
        "step": step,
        "genotype": {"space": "macro", "tokens": tokens},
        "text": "1:conv3 2:sepconv5(1) 3:maxpool3(1,2)",
        "quality": float(quality),
        "cost": cost,
        "reward": float(0.9 * quality + 0.1 / (1 + cost / 8e5)),
        "fidelity": 0.5,
        "seed": 123,
        "failure": None,
    }


def graph(rng: np.random.Generator, num_layers: int) -> dict[str, Any]:
    layers = [f"layer{number}" for number in range(1, num_layers + 1)]
    names = ["input", *layers, "output"]
    nodes = [["input", "input", "input"], *([n, str(rng.choice(OPERATIONS)), "operation"] for n in layers)]
    edges = [[a, b] for a, b in pairwise(names)]
    edges += [[layers[j], layers[i]] for i in range(num_layers) for j in range(i - 1) if rng.random() < 0.4]
    return {"nodes": [*nodes, ["output", "output", "output"]], "edges": edges}


def row(name: str, title: str, test: float, macs: int, drawing: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "name": name,
        "title": title,
        "text": "1:conv3 2:sepconv5(1) 3:maxpool3(1,2) 4:sepconv3(2)",
        "graph": drawing,
        "validation": [test + 0.001, test + 0.003, test + 0.002],
        "quality": [test + 0.001, test + 0.003, test + 0.002],
        "test": [test - 0.001, test, test + 0.001],
        "macs": macs,
        "parameters": macs // 40,
        "latency_ms": 1.2,
        "latency_spread_ms": 0.1,
        "folder": f"networks/{name}",
        "note": "same network as the student" if name == "student_alone" else None,
    }


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report; the tests that share it change nothing."""
    folder = write_run(tmp_path_factory.mktemp("outputs") / "finished")
    write_report(folder)
    return folder


def page(folder: Path) -> str:
    return (folder / "report.html").read_text()


def test_the_page_shows_what_the_files_hold(finished: Path) -> None:
    text = page(finished)
    for expected in (
        "Teacher (best found)",
        "99.00% ± 0.10",
        "1.23 M",
        "333 k",
        "1.20 ± 0.10",
        "same network as the student",
        "0.9 * quality + 0.1 * 1 / (1 + cost / 800000)",
        "reinforce 0.9312, random 0.9201",
        "1:conv3 2:sepconv5(1) 3:maxpool3(1,2) 4:sepconv3(2)",
        "2 min 20 s",
        "luban/Digits-v0",
        "160 reinforce, 160 random",
        "networks/student",
    ):
        assert expected in text, expected
    assert 'class="missing"' in text  # the one network without a graph is named
    assert "Student without a teacher is not drawn" in text
    # What whole runs alone write down is named too.
    assert all(f"({name} is missing" in text for name in ("neighbors.json", "layers.json", "answers.npz"))


def test_the_page_needs_nothing_from_elsewhere(finished: Path) -> None:
    text = page(finished)
    links = re.findall(r'(?:src|href)="([^"#][^"]*)"', text)
    assert all(link.startswith("data:") for link in links)
    assert "<script" not in text and "@import" not in text
    # The names of XML namespaces look like addresses, but nobody asks them for anything.
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert not re.findall(r"url\((?!#)", without_namespaces)


def test_ids_are_unique_and_every_reference_is_met(finished: Path) -> None:
    text = page(finished)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', text)) <= set(ids)


def test_inline_plots_take_the_ink_of_the_page(finished: Path) -> None:
    assert "currentColor" in page(finished)
    assert plots.INK.lower() not in page(finished).lower()
    assert plots.INK.lower() in (finished / "plots" / "reward.svg").read_text().lower()


def test_every_plot_is_a_png_and_an_svg(finished: Path) -> None:
    names = {path.stem for path in (finished / "plots").iterdir()}
    assert names == {
        "reward",
        "quality-cost",
        "operations",
        "controller",
        "operation-probabilities",
        "skip-probabilities",
        "decision-effects",
        "preferences",
        *(f"network-{name}" for name in ("teacher", "student", "random_best", "hand_designed")),
    }
    for name in names:
        assert (finished / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (finished / "plots" / f"{name}.svg").read_text()


def test_equal_data_give_equal_files(finished: Path) -> None:
    before = {path: path.read_bytes() for path in [finished / "report.html", *(finished / "plots").iterdir()]}
    write_report(finished)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_text_from_files_is_escaped_and_is_no_formula(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    results = json.loads((folder / "results.json").read_text())
    evil = "<script>alert(1)</script> $x_{"
    results["task"] = results["notes"][0] = results["rows"][0]["title"] = results["rows"][0]["text"] = evil
    results["rows"][0]["graph"]["nodes"][1][1] = evil
    write(folder / "results.json", results)
    (folder / "config.yaml").write_text(f"seed: 0\nname: '{evil}'\n")
    write_report(folder)
    assert "<script" not in page(folder)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; $x_{" in page(folder)


@pytest.mark.parametrize(
    ("absent", "sentence"),
    [
        ("space.json", "space.json is missing"),
        ("history.jsonl", "history.jsonl is missing or empty"),
        ("updates.jsonl", "updates.jsonl is missing or empty"),
        ("candidates.json", "candidates.json is missing"),
        ("results.json", "results.json is missing"),
    ],
)
def test_a_missing_part_is_left_out_and_named(tmp_path: Path, absent: str, sentence: str) -> None:
    folder = write_run(tmp_path / "run", num_layers=2)
    (folder / absent).unlink()
    write_report(folder)
    assert sentence in page(folder)


def test_the_ranking_is_told_where_it_was_checked(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_report(folder)
    assert "How far to trust" not in page(folder)
    lines = [
        {
            "kind": kind,
            "text": f"1:conv{number}",
            "macs": 1000 * number,
            "shared": 0.9,
            "standalone": 0.8,
            "failure": None,
        }
        for number, kind in enumerate(["finalist", "random", "random"], 1)
    ]
    lines[2] |= {"standalone": None, "failure": "out of memory"}
    ranking = {"sentence": "It cannot be told.", "tau": None, "epochs": 10, "architectures": lines}
    write(folder / "ranking.json", ranking)
    write_report(folder)
    for expected in (
        "How far to trust this ranking",
        "It cannot be told.",
        "Left out: 1:conv3 (out of memory)",
    ):
        assert expected in page(folder)
    for score, words in ((None, "by its metric"), ("metric", "by its metric"), ("loss", "by its loss")):
        write(folder / "ranking.json", ranking if score is None else {**ranking, "score": score})
        write_report(folder)
        for name in ("ranking", "ranking-macs"):
            drawing = (folder / "plots" / f"{name}.svg").read_text()
            assert "finalists" in drawing and "random" in drawing and f"quality when trained alone, {words}" in drawing
    write(folder / "ranking.json", {**ranking, "architectures": lines[2:]})  # nothing is left to draw
    write_report(folder)
    assert "Left out: 1:conv3" in page(folder) and "Size against training alone" not in page(folder)
    write(folder / "ranking.json", {"sentence": "It cannot be told."})
    with pytest.raises(ValueError, match=r"ranking\.json: 'epochs' is missing"):
        read_run(folder)


def test_a_run_that_has_just_begun_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert "tested no network yet" in verdict(read_run(tmp_path))
    write_report(tmp_path)
    assert "No architecture has been evaluated yet" in page(tmp_path)


def test_a_run_that_trains_its_networks_is_not_said_to_have_none(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", num_layers=2)
    (folder / "results.json").unlink()
    told = verdict(read_run(folder))
    assert told.startswith("This run has tested no network yet;") and "search done, 5 networks trained" in told
    write_report(folder)
    assert "no final network" not in page(folder) and "No network has been tested yet" in page(folder)


@pytest.mark.parametrize(("without", "told", "not_told"), [
    ("supernet_loss", ["The controller over the rounds", "Entropy says"], ["The lower the loss"]),
    ("entropy", ["The shared weights over the rounds", "The lower the loss"], ["Entropy says", "The controller over"]),
])  # fmt: skip
def test_what_a_strategy_does_not_tell_is_not_explained(
    without: str, told: list[str], not_told: list[str], tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "run", num_layers=2)
    lines = [json.loads(line) for line in (folder / "updates.jsonl").read_text().splitlines()]
    write_lines(folder / "updates.jsonl", [{**line, without: None} for line in lines])
    text = write_report(folder).read_text()
    assert all(words in text for words in told) and not any(words in text for words in not_told)


def test_evaluations_that_failed_are_counted_and_not_drawn(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    for line in lines[:16]:
        line.update(quality=None, reward=None, failure="loss is not finite")
    write_lines(folder / "history.jsonl", lines)
    write_report(folder)
    assert "16 evaluations failed; the first: loss is not finite" in page(folder)


def test_the_unfinished_last_line_of_a_running_search_is_ignored(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    whole = (folder / "history.jsonl").read_bytes()
    (folder / "history.jsonl").write_bytes(whole[:-40])
    assert len(read_run(folder).history) == 2 * ROUNDS * BATCH - 1
    (folder / "history.jsonl").write_bytes(whole[:-40] + b"\n")
    with pytest.raises(ValueError, match=r"history\.jsonl, line 320 is not valid JSON"):
        read_run(folder)


def test_broken_files_are_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"is no run folder: it has no config\.yaml"):
        write_report(tmp_path)
    folder = write_run(tmp_path / "run")
    for name, content, message in (
        ("config.yaml", "a: [", r"config\.yaml is not valid YAML"),
        ("results.json", "{", r"results\.json is not valid JSON"),
        ("results.json", '{"task": "digits", "metric": "accuracy"}', r"results\.json: 'rows' is missing"),
        ("history.jsonl", "[]\n", r"history\.jsonl, line 1: expected an object"),
        ("updates.jsonl", '{"round": 1, "strategy": "x", "probabilities": [[1]]}\n', "expected probabilities of 21"),
    ):
        before = (folder / name).read_text()
        (folder / name).write_text(content)
        with pytest.raises(ValueError, match=message) as caught:
            read_run(folder)
        assert "\n" not in str(caught.value)
        (folder / name).write_text(before)


def change_results(folder: Path, **tests: list[float]) -> None:
    results = json.loads((folder / "results.json").read_text())
    for line in results["rows"]:
        line["test"] = tests.get(line["name"], line["test"])
    write(folder / "results.json", results)


def test_the_verdict_claims_no_more_than_its_numbers(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    change_results(folder, teacher=[0.990, 0.992], random_best=[0.989, 0.991], student=[0.985, 0.985])
    text = verdict(read_run(folder))
    assert text.startswith("On digits the best network found reaches 99.1% test accuracy;")
    assert "its student is 0.6 points below it at 27% of its MACs" in text
    assert "after 160 evaluations each, what reinforce found is 0.1 points above what random search found" in text
    assert "within the noise of training" in text and text.endswith("one search each: other seeds may say otherwise.")
    change_results(folder, teacher=[0.990, 0.991], random_best=[0.950, 0.951])
    assert "4.0 points above what random search found, which is beyond the noise of training" in verdict(
        read_run(folder)
    )
    change_results(folder, teacher=[0.95], random_best=[0.99])
    assert "4.0 points below" in verdict(read_run(folder))
    assert "too few to tell" in verdict(read_run(folder))
    change_results(folder, teacher=[0.95], random_best=[0.95])
    assert "what reinforce found is level with what random search found" in verdict(read_run(folder))
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    paid = [{**line, "charge": float(line["strategy"] == "random" or line["round"] < 5)} for line in history]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in paid))
    num = sum(line["strategy"] == "reinforce" and line["charge"] > 0 for line in paid)
    assert 0 < num < 160 and f"after {num} evaluations (random search: 160)," in verdict(read_run(folder))


@pytest.mark.parametrize(("target", "told", "not_told"), [
    ("child.supernet.SupernetEvaluator", ["random search with the same shared weights", "scored with the same shared",
     "rings the candidates scored again on all validation data", "12 candidates, scored again on all validation data<"],
     ["looked up"]),
    ("child.standalone.StandaloneEvaluator", ["which trains its architectures in the same way", "each trained on its",
     "rings the candidates trained for their full time", "12 candidates, trained for their full time<"],
     ["shared weights:", "looked up", "on all validation data"]),
    ("mine.Evaluator", ["random search with the same evaluator", "judged by the same evaluator",
     "rings the candidates evaluated in full", "12 candidates, evaluated in full<"],
     ["with the same shared weights", "looked up", "on all validation data"]),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_how_architectures_were_judged_is_told(
    target: str, told: list[str], not_told: list[str], tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "run", evaluator={"_target_": target})
    changes = [{"decision": "layer1.operation", "from": "a", "to": "b", "text": "b", "quality": 0.9, "cost": 1.0,
                "reward": 0.9, "failure": None}]  # fmt: skip
    center = {"text": "a", "quality": 0.9, "cost": 1.0, "reward": 0.9, "failure": None}
    write(folder / "neighbors.json", {"center": center, "num_all": 1, "neighbors": changes, "missing": None})
    text = write_report(folder).read_text()
    assert all(words in text for words in told), told
    assert not any(words in text for words in [*not_told, "rungs"]), not_told
    config = json.loads((folder / "config.yaml").read_text())
    write(folder / "config.yaml", {**config, "rungs": {"fidelities": [0.5]}})
    text = write_report(folder).read_text()
    assert all(words in text for words in ("and rungs of its own", "Trainings on the rungs, which the first choice"))


@pytest.mark.parametrize(("score", "told"), [("metric", False), ("loss", True), ("combined", True)])
def test_qualities_of_two_scales_in_one_picture_are_told_of(score: str, told: bool, tmp_path: Path) -> None:
    evaluator = {"_target_": "child.supernet.SupernetEvaluator", "score": score}
    text = write_report(write_run(tmp_path / "run", evaluator=evaluator)).read_text()
    assert ("judged by their accuracy, not by their loss as the others are" in text) == told


def test_a_metric_that_follows_from_the_loss_is_no_other_scale(tmp_path: Path) -> None:
    evaluator = {"_target_": "child.supernet.SupernetEvaluator", "score": "loss"}
    folder = write_run(tmp_path / "run", evaluator=evaluator)
    results = json.loads((folder / "results.json").read_text())
    write(folder / "results.json", {**results, "metric": "perplexity", "higher_is_better": False})
    assert "not by their loss as the others are" not in write_report(folder).read_text()


def test_of_several_teachers_the_chosen_one_is_told_of(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    results = json.loads((folder / "results.json").read_text())
    second = {**results["rows"][0], "name": "teacher2", "title": "Teacher 2", "macs": 999_000}
    write(folder / "results.json", {**results, "teacher": "teacher2", "rows": [results["rows"][0], second,
                                                                               *results["rows"][1:]]})  # fmt: skip
    change_results(folder, teacher=[0.980], teacher2=[0.990], student=[0.985], random_best=[0.975])
    text = verdict(read_run(folder))
    assert text.startswith("On digits the best network found reaches 99.0% test accuracy; its student is 0.5 points")
    assert "at 33% of its MACs" in text
    # Random search had one training, and so has what it is compared with.
    assert "the first choice of reinforce is 0.5 points above what random search found" in text
    assert "99.0%" in write_report(folder).read_text().partition("teacher, test accuracy")[2][:200]


def test_the_table_for_the_console(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    results["rows"][1] |= {"test": [0.98], "validation": [], "latency_ms": None, "title": "[bold]Student"}
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(results_table(results))
    lines = console.export_text().splitlines()
    teacher = next(line for line in lines if "Teacher" in line)
    assert all(cell in teacher for cell in ("99.20% ± 0.10", "99.00% ± 0.10", " 3 ", "1.23 M", "30.9 k", "1.20 ± 0.10"))
    student = next(line for line in lines if "[bold]Student" in line)
    assert "98.00%" in student and "±" not in student and " 1 " in student


def test_brackets_in_a_tasks_name_are_no_markup(tmp_path: Path) -> None:
    folder, task = write_run(tmp_path / "run", num_layers=2), "homes (regression of rate [/min])"
    results = {**json.loads((folder / "results.json").read_text()), "task": task, "higher_is_better": True}
    write(folder / "results.json", results)
    steps = steps_table({**results, "rows": [], "chosen": None})
    for table in (results_table(results), *comparison_tables(read_parts([folder])), steps):
        console = Console(width=120, record=True, file=io.StringIO())
        console.print(table)
        assert console.export_text().startswith(f"{task}: accuracy")


@pytest.mark.parametrize(("metric", "higher_is_better", "told"), [
    ("accuracy", True, ["digits: accuracy ", "+0.00", "+0.43"]),
    ("R squared", True, ["digits: R squared ", "+0 ", "+0.0043 "]),
    ("bits per character", False, ["bits per character (lower is better)", "+0 ", "-0.0043 "]),
])  # fmt: skip
def test_what_a_smaller_model_loses_is_told_in_digits_that_tell(
    metric: str, higher_is_better: bool, told: list[str]
) -> None:
    line = {"validation": [0.9], "standard_error": 0.01, "test": [], "macs": 9, "parameters": 9, "bytes": 9}
    rows = [{**line, "name": "original", "title": "Original", "note": None},
            {**line, "name": "1-prune", "title": "1. prune", "note": None, "validation": [0.8957]}]  # fmt: skip
    results = {"task": "digits", "metric": metric, "higher_is_better": higher_is_better, "rows": rows, "chosen": None}
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(steps_table(results))
    text = console.export_text()
    assert all(words in text for words in told), text


def test_other_metrics_are_not_given_in_percent(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    results = json.loads((folder / "results.json").read_text())
    write(folder / "results.json", {**results, "metric": "perplexity", "higher_is_better": False})
    change_results(folder, teacher=[61.234], random_best=[61.234])
    assert "61.23 test perplexity (lower is better)" in verdict(read_run(folder))
    assert "what reinforce found is level with what random search found" in verdict(read_run(folder))


@pytest.mark.parametrize(
    ("task", "shape", "kind", "preparation", "line"),
    [
        ("digits", [1, 8, 8], "Classification", {"kind": "Normalize"}, "network.classify(image)"),
        ("photos", [3, 32, 24], "Classification", {"kind": "Normalize"}, 'numpy.zeros((32, 24, 3), "uint8")'),
        ("ages", [3, 32, 24], "Regression", {"kind": "Normalize"}, 'numpy.zeros((1, 3, 32, 24), "uint8")'),
        (
            "prices",
            [2],
            "Regression",
            {"kind": "Normalize", "names": ["x", "y"]},
            "# x, y\nsamples = numpy.zeros((1, 2)",
        ),
        ("kinds", [7], "Classification", {"kind": "Normalize"}, 'sample = numpy.zeros((7,), "float32")  # yours'),
        ("plays", [96], "Language", {"kind": "Tokens"}, 'Path("text.txt")  # yours\nprint(answer(network, file))'),
        ("words", [40, 63], "Classification", {"kind": "LogMel"}, 'Path("sound.wav")  # yours\nprint(answer(network, '),
    ],
)
def test_the_usage_example_is_python_that_names_the_network(
    task: str, shape: list[int], kind: str, preparation: dict[str, Any], line: str
) -> None:
    network = {"input_shape": shape, "objective": {"kind": kind}, "preprocessing": preparation}
    for target, call in (
        ("child.mlp.MLPSpace", 'load_network("outputs/run/networks/student")'),
        ("stack.StackSpace", 'load_network("outputs/run/networks/student", ["stack"])'),
    ):
        code = usage_example("outputs/run/networks/student", task, {**network, "build": {"target": target}})
        compile(code, "example", "exec")
        assert call in code and line in code
    assert report.QUANTIZED == QUANTIZED  # which may not be imported there
    code = usage_example("a/student", task, {**network, "build": {"target": "child.mlp.MLPSpace"}}, is_quantized=True)
    assert 'load_onnx("a/student/model.int8.onnx")' in code and "load_network" not in code


def test_layers_are_drawn_in_order_and_arcs_pass_beside_them() -> None:
    nodes = [["output", "output", "output"], ["a", "conv3", "operation"], ["b", "conv5", "operation"]]
    nodes = [["input", "input", "input"], *nodes]
    # The last one repeats a link of the chain, and is an arc beside it.
    edges = [["b", "output"], ["input", "a"], ["a", "b"], ["input", "b"], ["a", "output"], ["a", "b"]]
    axes = plots.network_drawing(nodes, edges).axes[0]
    heights = {text.get_text(): text.get_position()[1] for text in axes.texts if text.get_text()}
    assert sorted(heights, key=lambda label: heights[label]) == ["input", "conv3", "conv5", "output"]
    boxes = [patch for patch in axes.patches if type(patch).__name__ == "FancyBboxPatch"]
    half_width = max(float(np.ptp(np.asarray(box.get_path().vertices)[:, 0])) for box in boxes) / 2
    paths = [patch.get_path() for patch in axes.patches if patch not in boxes]
    codes, points = [np.asarray(path.codes) for path in paths], [np.asarray(path.vertices) for path in paths]
    arcs = [p[:4, 0] for p, c in zip(points, codes, strict=True) if c[1] == MplPath.CURVE4]
    # A curve stays within the hull of its four points: all of them beside the boxes, none of it over one.
    assert len(arcs) == 3
    assert all((arc >= half_width - 1e-6).all() or (arc <= -half_width + 1e-6).all() for arc in arcs)


def test_a_single_evaluation_is_drawn_before_there_are_candidates() -> None:
    axes = plots.quality_against_cost([evaluation("random", 0, 1, [0], 0.9, 1)], [], [], "MACs").axes[0]
    assert axes.get_ylim() == pytest.approx((0.9, 0.9), abs=1e-3)


def test_costs_of_less_than_one_have_no_prefix() -> None:
    networks = [("small", 0.5, 0.9), ("large", 2.0, 0.95)]
    figure = plots.quality_against_cost([], [], networks, "latency in milliseconds")
    figure.draw_without_rendering()
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert [float(label) for label in labels] == pytest.approx(figure.axes[0].get_xticks())  # 0.5, and not 500 m
    assert plots.cost_tick(1_500_000, 0) == "1.5 M"


@pytest.mark.parametrize(("name", "labels"), [
    ("edge01", ["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"]),
    ("reduction.node4.operation2", ["sepconv3", "sepconv5", "avgpool3", "maxpool3", "identity"]),
    ("layer1.operation", OPERATIONS),
], ids=["nasbench201", "micro", "macro"])  # fmt: skip
def test_the_names_of_operations_do_not_run_into_each_other(name: str, labels: list[str]) -> None:
    decision = {"name": name, "kind": "operation", "labels": labels}
    figure = plots.operation_probabilities([decision], [[1 / len(labels)] * len(labels)])
    figure.draw_without_rendering()
    names = figure.axes[0].get_xticklabels()
    if names[0].get_rotation() == 0:  # else they stand side by side on a slant
        boxes = [label.get_window_extent() for label in names]
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_long_and_foreign_names_of_classes_stay_within_their_pictures(recwarn: pytest.WarningsRecorder) -> None:
    classes = ["a class whose name is a sentence, and told apart by its end", "猫" * 12, "no_spaces_" * 7]
    images = [np.zeros((3, 8, 8), np.uint8)] * 5
    for figure in (
        draw_classes({"teacher": [(1, 2), (2, 3), (3, 4)]}, classes),
        draw_confusions([(Confusion(0, 2, [1], 0.5), images), (Confusion(2, 1, [1], 0.25), images)], classes),
    ):
        plots.svg(figure)
        assert not recwarn.list
        with plots.styled():
            assert min(text.get_window_extent().xmin for text in figure.findobj(Text)) >= 0
    assert plots.shorten("0123456789", 10) == "0123456789"
    assert [plots.shorten("0123456789", most) for most in (9, 8)] == ["0123…6789", "0123…789"]


def test_layers_beyond_the_chosen_depth_have_no_share() -> None:
    decisions = [
        {"name": "layers", "kind": "depth", "labels": ["1", "2"]},
        {"name": "layer1.operation", "kind": "operation", "labels": ["conv3", "conv5"]},
        {"name": "layer2.operation", "kind": "operation", "labels": ["conv3", "conv5"]},
    ]
    shallow = {**evaluation("reinforce", 0, 1, [0, 1, 0], 0.9, 1), "open": [0, 1]}
    deep = {**evaluation("reinforce", 1, 2, [1, 1, 0], 0.9, 1), "open": [0, 1, 2]}
    areas = plots.operation_shares([shallow, deep], decisions).axes[0].collections
    conv3 = np.asarray(areas[0].get_paths()[0].vertices)
    assert {float(height) for x, height in conv3 if x == 1} == {0.0}
    assert {float(height) for x, height in conv3 if x == 2} == {0.0, 0.5}


def test_the_best_so_far_of_a_run_that_ended_early_stands(tmp_path: Path) -> None:
    long, short = (write_run(tmp_path / name) for name in ("long", "short"))
    history = [json.loads(line) for line in (long / "history.jsonl").read_text().splitlines()]
    all_poor = [{**line, "reward": 0.1} for line in history]
    few_good = [{**line, "reward": 0.9} for line in history if line["round"] < 3]
    for folder, kept in ((long, all_poor), (short, few_good)):
        (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    section = curves_section("The searches", "part1", {"A": [read_run(long), read_run(short)]})
    line = section.pictures[1].figure.axes[0].lines[0]
    assert section.pictures[1].title == "Best reward so far"
    assert np.asarray(line.get_ydata()).tolist() == pytest.approx([0.5] * ROUNDS)


def test_a_group_has_one_color_in_curves_and_fronts(tmp_path: Path) -> None:
    groups = {letter: [read_run(write_run(tmp_path / letter))] for letter in "AB"}
    curves, _, fronts = (picture.figure.axes[0] for picture in curves_section("", "part1", groups).pictures)
    by_name = {line.get_label(): line.get_color() for line in curves.lines}
    assert list(by_name) == ["A: reinforce", "A: random", "B: reinforce", "B: random"]
    assert [line.get_color() for line in fronts.lines] == [by_name["A: reinforce"], by_name["B: reinforce"]]


def test_a_search_of_one_round_is_seen_beside_others() -> None:
    lines = plots.reward_curves({"A": [{0: 0.5}], "B": [{0: 0.5, 1: 0.6}]}).axes[0].lines
    assert [line.get_marker() for line in lines] == ["o", "None"]


def test_rounds_count_from_one_in_every_picture(finished: Path) -> None:
    run = read_run(finished)
    assert run.decisions is not None
    curves = plots.reward_curves({"A": [dict.fromkeys(range(ROUNDS), 0.5)]}).axes[0].lines
    lines = [*(axes.lines[0] for axes in plots.controller_over_rounds(run.updates).axes), *curves]
    assert [np.asarray(line.get_xdata()).tolist() for line in lines] == [list(range(1, ROUNDS + 1))] * 3
    assert plots.operation_shares(run.history, run.decisions).axes[0].get_xlim() == (1, ROUNDS)


def test_decisions_of_other_kinds_have_a_picture(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    decisions = [{"name": "depth", "kind": "depth", "labels": ["2", "4"]}]
    write(folder / "space.json", {"name": "other", "decisions": decisions})
    for name in ("history.jsonl", "updates.jsonl"):
        lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for line in lines:
            line |= {"genotype": {"space": "other", "tokens": [1]}, "probabilities": [[0.25, 0.75]]}
        write_lines(folder / name, lines)
    write_report(folder)
    assert "4: 75%" in page(folder)
    assert not (folder / "plots" / "operations.svg").exists()


def test_a_network_that_computes_in_its_own_code_is_not_searched_for_long_bars(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    readings = []
    for macs in (90, 9):
        layers = [{"name": "decoder", "macs": 10, "parameters": 5}, {"name": OUTSIDE, "macs": macs, "parameters": 5}]
        write(folder / "layers.json", {"teacher": layers})
        readings.append(layers_section(read_run(folder)).pictures[0].reading)
    network = nn.Sequential(nn.Linear(2, 2))
    network.register_parameter("own", nn.Parameter(torch.zeros(3)))
    (*_, last) = cost_by_layer(network, (2,))
    assert last["name"] == OUTSIDE  # which may not be imported there
    assert "whose parts are not told apart" in readings[0] and "not told apart" not in readings[1]


def test_what_no_architecture_of_a_round_had_is_not_drawn_as_settled(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    run = read_run(folder)
    assert run.decisions is not None
    names = [decision["name"].partition(".")[0] for decision in run.decisions]
    for number, update in enumerate(run.updates, 1):
        gone = {"layer6"} if number < ROUNDS else {"layer5", "layer6"}  # the one always, the other in the end
        rows = zip(names, update["probabilities"], strict=True)
        update["probabilities"] = [[None] * len(row) if name in gone else row for name, row in rows]
    write_lines(folder / "updates.jsonl", run.updates)
    write_report(folder)
    for name in ("operation-probabilities", "skip-probabilities", "preferences"):
        picture = (folder / "plots" / f"{name}.svg").read_text()
        assert "layer5" in picture and "layer6" not in picture
    assert "not there" in (folder / "plots" / "preferences.svg").read_text()
    for update in run.updates:  # as a strategy of one's own may tell
        update["probabilities"] = [[None] * len(row) for row in update["probabilities"]]
    write_lines(folder / "updates.jsonl", run.updates)
    write_report(folder)
    assert "came to prefer" not in page(folder)


def test_decisions_that_do_nothing_explain_nothing(tmp_path: Path) -> None:
    folder, rng = write_run(tmp_path / "run"), np.random.default_rng(0)
    decisions = [{"name": f"d{place}", "kind": "operation", "labels": list("abcde")} for place in range(30)]
    write(folder / "space.json", {"name": "other", "decisions": decisions})
    write_lines(folder / "updates.jsonl", [])
    shares = []
    for _ in range(5):
        drawn = [evaluation("random", 0, 1, rng.integers(0, 5, 30).tolist(), rng.random(), 1) for _ in range(200)]
        write_lines(folder / "history.jsonl", drawn)
        (said,) = re.findall(r"one by one explain (\d+)%", decisions_section(read_run(folder)).intro)
        shares.append(int(said))
    assert np.median(shares) <= 3  # by chance one may be larger


# Comparisons claim no more than their runs can show, whatever state the runs are in.

FIRST, SECOND = [0.981, 0.984, 0.990], [0.978, 0.980, 0.985]  # differ beyond noise if it were the only test


@pytest.fixture(scope="module")
def repetitions(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two experiments of three seeds that differ in one key, with known test results of the teacher."""
    outputs, folders = tmp_path_factory.mktemp("outputs"), []
    for name, tested, config in (("a", FIRST, {}), ("b", SECOND, {"lr": 0.1})):
        for seed, value in enumerate(tested):
            folders.append(write_run(outputs / f"{name}{seed}", num_layers=2, seed=seed, **config))
            change_results(folders[-1], teacher=[value], random_best=[0.979])
    return folders


def cells(text: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    return [[re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]


def test_the_page_groups_runs_and_judges_differences(repetitions: list[Path], tmp_path: Path) -> None:
    rows = cells(write_comparison(read_parts(repetitions), tmp_path / "new" / "comparison.html").read_text())
    assert [row[:4] for row in rows if row[0] in ("A", "B") and row[1] == "3" and row[2] == "digits"] == [
        ["A", "3", "digits", "no lr"],
        ["B", "3", "digits", "lr=0.1"],
    ]
    teacher = next(row for row in rows if row[0] == "A" and row[1].startswith("Teacher"))
    found = estimate(FIRST)
    assert found.low is not None and found.high is not None
    assert teacher[3:5] == [f"98.50% [{100 * found.low:.2f}%, {100 * found.high:.2f}%]", "3"]
    judged = next(row for row in rows if row[:2] == ["A against B", "teacher"])
    assert judged[2] == "+0.4 points" and judged[4:6] == ["3", "paired"] and judged[-1] == "within noise"
    p = stats.ttest_rel(FIRST, SECOND).pvalue
    assert judged[6:8] == [f"{p:.3g}", f"{3 * p:.3g}"] and p < 0.05 < 3 * p


def test_an_interval_of_accuracies_stays_within_what_there_is() -> None:
    assert compare.with_interval([0.5, 0.9], "accuracy") == "70.00% [0.00%, 100.00%]"
    assert compare.with_interval([0.5, 0.9], "R squared") == "0.7 [-1.841, 3.241]"


def test_a_difference_far_beyond_its_spread_is_called_one(repetitions: list[Path], tmp_path: Path) -> None:
    for seed in range(3):
        worse = write_run(tmp_path / f"c{seed}", num_layers=2, seed=seed, lr=9)
        change_results(worse, **{n: [FIRST[seed] - 0.3 - 0.001 * seed] for n in ("teacher", "student", "random_best")})
    folders = [*repetitions[:3], *(tmp_path / f"c{seed}" for seed in range(3))]
    (part,) = read_parts(folders)
    row = next(row for row in compare.tests(part) if row["pair"] == "A against B" and row["network"] == "teacher")
    assert row["difference"] == "+30.1 points" and row["judged"] == "beyond noise"


def test_a_seed_that_ran_twice_counts_once(repetitions: list[Path], tmp_path: Path) -> None:
    again = [write_run(tmp_path / f"again{seed}", num_layers=2, seed=seed) for seed in range(3)]
    for folder, value in zip(again, FIRST, strict=True):
        change_results(folder, teacher=[value], random_best=[0.979])
    (once,), (twice,) = (read_parts(folders) for folders in (repetitions[:3], [*repetitions[:3], *again]))
    assert twice.groups[0].values("teacher") == once.groups[0].values("teacher")
    assert compare.tests(twice) == compare.tests(once)
    change_results(again[0], teacher=[0.5, 0.5])  # two trainings weigh no more than the one of the other run
    (uneven,) = read_parts([repetitions[0], again[0]])
    assert uneven.groups[0].values("teacher") == [pytest.approx((FIRST[0] + 0.5) / 2)]


def test_the_best_of_several_teachers_is_one_network_in_every_run(tmp_path: Path) -> None:
    folders = []
    for seed, best in enumerate(("teacher2", "teacher", "teacher2")):
        folder = write_run(tmp_path / f"top{seed}", num_layers=2, seed=seed)
        results = json.loads((folder / "results.json").read_text())
        first, *others = results["rows"]
        rows = [first, {**first, "name": "teacher2"}, *others]
        for row in rows[:2]:
            row["title"] = "Teacher (best found)" if row["name"] == best else "Teacher"
        write(folder / "results.json", {**results, "teacher": best, "rows": rows})
        change_results(folder, **{name: [0.99 if name == best else 0.9] for name in ("teacher", "teacher2")})
        folders.append(folder)
    (part,) = read_parts(folders)
    (group,) = part.groups
    assert group.values("best_teacher") == [0.99] * 3 and group.values("teacher") == [0.9, 0.99, 0.9]
    titles = {name: group.cells(name, "accuracy")["title"] for name in group.names()[:3]}
    assert titles == {"best_teacher": "Teacher (best found)", "teacher": "Teacher 1", "teacher2": "Teacher 2"}


def test_single_runs_and_equal_differences_are_not_judged(repetitions: list[Path]) -> None:
    (part,) = read_parts([repetitions[0], repetitions[3]])
    row = next(row for row in compare.tests(part) if row["network"] == "teacher")
    assert row["judged"] == "too few runs to tell" and row["p"] == row["how"] == "-"
    told = compare.verdict([part], [compare.tests(part)])
    assert told == "No difference between these 2 groups can be tested (too few runs, or no spread)."
    (part,) = read_parts(repetitions)
    alike = next(row for row in compare.tests(part) if row["network"] == "student")  # the same in every run
    assert alike["judged"] == "no spread to judge by" and alike["how"] == "-"
    told = compare.verdict([part], [compare.tests(part)])
    assert re.match("Of 1 differences? between these 2 groups that can be tested, 0 lies? beyond noise;", told)


@pytest.mark.parametrize(("higher_is_better", "told"), [(False, "beats"), (True, "does not beat")])
def test_where_lower_is_better_less_beats_random_search(higher_is_better: bool, told: str) -> None:
    part = compare.Part("plays", "a metric", higher_is_better, [])
    row = {"pair": "A", "difference": "-0.3", "corrected": "0.01", "judged": "beyond noise"}
    assert f"; the search {told} random search beyond noise." in compare.verdict([part], [[row]])


def test_the_page_tells_how_many_tests_there_were(repetitions: list[Path], tmp_path: Path) -> None:
    """Differences without spread, or of single runs, have no p-value that a correction could count."""
    (part,) = read_parts(repetitions)
    tested = [row for row in compare.tests(part) if row["p"] != "-"]
    assert 1 < len(tested) < len(compare.tests(part))
    text = write_comparison(read_parts(repetitions), tmp_path / "six.html").read_text()
    assert f"p is corrected for the {len(tested)} tests that could be made (Holm)" in text
    text = write_comparison(read_parts([repetitions[0], repetitions[3]]), tmp_path / "two.html").read_text()
    assert "None of these can be tested" in text and "Holm" not in text


def test_other_tasks_stand_in_columns_of_their_own(repetitions: list[Path], tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", num_layers=2)
    results = {**json.loads((other / "results.json").read_text()), "task": "plays", "metric": "perplexity"}
    write(other / "results.json", {**results, "higher_is_better": False})
    parts = read_parts([*repetitions[:2], other])
    assert [part.title for part in parts] == ["digits: accuracy", "plays: perplexity (lower is better)"]
    teacher = next(row for row in side_by_side(parts) if row[1] == "teacher")
    assert len(teacher) == 4 and teacher[2].startswith("98.25% [") and teacher[3] == "0.99"
    text = write_comparison(read_parts([*repetitions[:2], other]), tmp_path / "comparison.html").read_text()
    assert "Tasks side by side" in text and "A against C" not in text and "A against B" not in text


def test_a_run_that_was_killed_is_compared_as_far_as_it_came(repetitions: list[Path], tmp_path: Path) -> None:
    killed = write_run(tmp_path / "killed", num_layers=2, seed=7, search={"rounds": 60})
    for name in ("results.json", "candidates.json"):
        (killed / name).unlink()
    write(killed / "task.json", {"task": "digits", "metric": "accuracy", "higher_is_better": True})
    whole = (killed / "history.jsonl").read_bytes()
    (killed / "history.jsonl").write_bytes(whole[:-40])  # in the middle of a line
    text = write_comparison(read_parts([*repetitions[:2], killed]), tmp_path / "comparison.html").read_text()
    assert "in the search, round 20 of 60, 319 evaluations" in text
    (killed / "history.jsonl").unlink()
    assert "no architecture evaluated yet" in write_comparison(read_parts([killed]), tmp_path / "one.html").read_text()


def test_searches_beside_smaller_models_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    smaller = {"prune": {"rounds": 1, "least": 0.1}, "search": {"rounds": 100}}
    configs = [
        {"search": {"rounds": 60}, "lr": 0.1}, {"search": {"rounds": 60}, "lr": 0.2},
        {"steps": ["prune"], **smaller}, {"steps": ["prune", "share"], **smaller},
    ]  # fmt: skip
    folders = [write_run(tmp_path / f"{number}", num_layers=2, **config) for number, config in enumerate(configs)]
    for folder in folders:
        (folder / "results.json").unlink()
        write(folder / "task.json", {"task": "digits", "metric": "accuracy", "higher_is_better": True})
    (part,) = read_parts(folders)
    assert [group.description for group in part.groups] == [
        "lr=0.1, no steps", "lr=0.2, no steps", "no lr, steps=['prune']", "no lr, steps=['prune', 'share']",
    ]  # fmt: skip


@pytest.mark.parametrize(("changed", "alike"), [
    ({"controller": {"_target_": "controller.ppo.PPO"}}, True),
    ({"reward": {"_target_": "envs.reward.Soft"}}, False),
    ({"evaluator": {"_target_": "child.supernet.SupernetEvaluator", "score": "metric"}}, False),
], ids=["controller", "reward", "score"])  # fmt: skip
def test_rewards_of_different_kinds_are_not_compared_without_a_word(
    changed: dict[str, Any], alike: bool, tmp_path: Path
) -> None:
    runs = [write_run(tmp_path / str(n), num_layers=2, **config) for n, config in enumerate(({}, changed))]
    page = write_comparison(read_parts(runs), tmp_path / "comparison.html").read_text()
    assert ("heights compare within a group alone" not in page) == alike


def test_one_run_twice_is_no_repetition(repetitions: list[Path]) -> None:
    with pytest.raises(ValueError, match="given twice"):
        read_parts([repetitions[0], repetitions[0]])


def test_the_script_takes_a_list_of_runs(repetitions: list[Path], tmp_path: Path, capsys: Any) -> None:
    output = ["--output", str(tmp_path / "both.html")]
    assert report_script.main([f"runs=[{repetitions[0]},{repetitions[3]}]", *output]) == 0
    printed = capsys.readouterr().out
    assert str(tmp_path / "both.html") in printed and "98.10%" in printed and "97.80%" in printed


@pytest.mark.parametrize("words", [["runs=outputs/a"], ["runs=[]"], ["runs=[a,"], ["runs=[a,,b]"], ["runs=[a", "b]"]])
def test_a_list_that_is_none_is_told_in_one_line(words: list[str], capsys: Any) -> None:
    assert report_script.main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "runs=[outputs/A,outputs/B]" in error


def test_the_script(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_script.main([str(finished)]) == 0
    printed = capsys.readouterr().out
    assert str(finished / "report.html") in printed and "Teacher (best found)" in printed
    other = write_run(tmp_path / "other", seed=1)
    assert report_script.main([str(finished), str(other), "--output", str(tmp_path / "both.html")]) == 0
    assert str(tmp_path / "both.html") in capsys.readouterr().out
    assert report_script.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "is no run folder" in error
