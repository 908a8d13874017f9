"""Whole runs on a table of known trainings, as main.py does them."""

import csv
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conf.schema import ConfigError, RunConfig
from controller.search import Player
from main import build_reward, main

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {path.stem: path.read_text() for path in sorted((ROOT / "conf" / "controller").glob("*.yaml"))}
GRADIENT = [name for name, text in CONFIGS.items() if "controller.gradient" in text]
CONTROLLERS = [name for name in CONFIGS if name not in GRADIENT]
DATA = Path(os.environ.get("LUBAN_DATA", ROOT.parent / "shared" / "data"))

Compose = Callable[..., tuple[RunConfig, str]]


class StoppedError(Exception):
    """Stands for a power cut."""


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A table of one's own, named by config alone: 64 architectures, the best of them (2, 1, 3)."""
    path, rng = tmp_path_factory.mktemp("tables") / "mine.csv", np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "c", "valid", "test", "macs", "seconds"])
        for tokens in itertools.product(range(4), repeat=3):
            right = sum(token == best for token, best in zip(tokens, (2, 1, 3), strict=True))
            writer.writerow([*tokens, 60 + 10 * right + rng.random(), 61 + 10 * right, 1 + tokens[0], 10])
    return [
        "env=nasbench201", f"env.path={path}", "space=flat", "space.names=[a,b,c]", "space.labels=[w,x,y,z]",
        "evaluator.tokens=[a,b,c]", "evaluator.signal=valid", "evaluator.report=test", "evaluator.cost=macs",
        "evaluator.cost_scale=1", "evaluator.charge=seconds", "search.budget=255", "name=run", "threads=1",
    ]  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_a_run_on_a_table(controller: str, overrides: list[str], compose_text: Compose, tmp_path: Path) -> None:
    main(*compose_text(*overrides, f"controller={controller}", f"output={tmp_path}"))
    run = tmp_path / "run"
    history, results = lines(run / "history.jsonl"), json.loads((run / "results.json").read_text())
    names = list(dict.fromkeys(line["strategy"] for line in history))
    assert len(names) == (1 if controller == "random" else 2)
    for row, name in zip(results["rows"], names, strict=True):
        own = [line for line in history if line["strategy"] == name]
        assert sum(line["charge"] for line in own) <= 250  # 25 of 10 each; the 26th does not fit
        best = max(own, key=lambda line: line["reward"])
        assert row["validation"] == [best["quality"]]
        right = sum(t == b for t, b in zip(best["genotype"]["tokens"], (2, 1, 3), strict=True))
        assert row["test"] == pytest.approx([(61 + 10 * right) / 100])
    charges = sum(line["charge"] for line in history if line["strategy"] == names[0])
    assert results["num_evaluations"] == charges / 10  # repeats are free
    page = (run / "report.html").read_text()
    assert f"{results['rows'][0]['test'][0]:.2%}" in page and "Best of" in page
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert {"search/reward_mean", "search/spent", "final/teacher_test"} <= set(events.Tags()["scalars"])


@pytest.mark.parametrize("controller", ["model_based", "reinforce", "genetic"])
def test_decisions_may_have_choices_of_their_own(controller: str, compose_text: Compose, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    rows = [f"{a},{b},{60 + 3 * a + b},{70 + 3 * a + b}" for a, b in itertools.product(range(2), range(4))]
    path.write_text("\n".join(["size,shape,valid,test", *rows]) + "\n")
    main(*compose_text(
        "env=nasbench201", f"env.path={path}", "space=flat", "space.names=[size,shape]",
        "space.labels=[[3,5],[i,o,s,z]]", "evaluator.tokens=[size,shape]", "evaluator.signal=valid",
        "evaluator.report=test", "evaluator.cost=null", "evaluator.charge=null", "search.budget=8", "search.rounds=200",
        f"controller={controller}", f"output={tmp_path}", "name=run", "threads=1",
    ))  # fmt: skip
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["rows"][0]["test"] == [pytest.approx(0.76)] and "5" in results["rows"][0]["text"]


@pytest.mark.parametrize("noise", [0, 3])
def test_what_is_said_of_a_table_is_what_it_has(
    noise: int, overrides: list[str], compose_text: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["search.budget=640", f"evaluator.noise={noise}", "evaluator.cost=null", f"output={tmp_path}"]
    main(*compose_text(*overrides, *given))
    assert capsys.readouterr().out.startswith("Luban: mine, space flat")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "- parameters" not in page and "- MACs" not in page  # of which the table says nothing
    assert ("their interplay and the noise of the evaluations" in page) == bool(noise)
    assert "what is left is their interplay" in page


@pytest.mark.parametrize("controller", GRADIENT)
def test_a_table_has_no_gradient(controller: str, overrides: list[str], compose_text: Compose, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"controller: {controller} learns by gradients, which takes evaluator=super"):
        main(*compose_text(*overrides, f"controller={controller}", f"output={tmp_path}"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("controller", ["model_based", "reinforce_small_budget", "local_search"])
def test_it_goes_on_where_it_stopped(
    controller: str, overrides: list[str], compose_text: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*overrides, f"controller={controller}", "evaluator.noise=3", "checkpoint_every_s=0"]
    main(*compose_text(*given, f"output={tmp_path / 'whole'}"))
    play, rounds = Player.play, iter(range(99))

    def stops(self: Player, *arguments: Any) -> Any:
        if next(rounds) == 31:
            raise StoppedError
        return play(self, *arguments)

    monkeypatch.setattr(Player, "play", stops)
    with pytest.raises(StoppedError):
        main(*compose_text(*given, f"output={tmp_path / 'stopped'}"))
    monkeypatch.undo()
    main(*compose_text(f"resume={tmp_path / 'stopped' / 'run'}"))
    whole, resumed = tmp_path / "whole" / "run", tmp_path / "stopped" / "run"
    for name in ("history.jsonl", "updates.jsonl", "candidates.json"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes()


def test_equal_functions_are_paid_once(overrides: list[str], compose_text: Compose, tmp_path: Path) -> None:
    """Of the cells of NAS-Bench-201 that are nothing but zero, say, one evaluation serves all."""
    path = tmp_path / "cells.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["e01", "e02", "e12", "e03", "e13", "e23", "valid_acc_12ep", "test_acc_200ep", "macs_m"])
        for number, tokens in enumerate(itertools.product(range(5), repeat=6)):
            writer.writerow([*tokens, number / 200, number / 200, 1])
    given = ["env=nasbench201", f"env.path={path}", "evaluator.charge=null", "search.budget=300", "threads=1"]
    given += ["controller=random", "name=run", "search.episodes=50"]
    qualities = {}
    for isomorphic in (False, True):
        output = tmp_path / str(isomorphic)
        main(*compose_text(*given, f"env.isomorphic={str(isomorphic).lower()}", f"output={output}"))
        history = lines(output / "run" / "history.jsonl")
        assert sum(line["charge"] for line in history) == 300
        qualities[isomorphic] = len(history)
    assert qualities[True] > qualities[False] + 100  # more cells for the same budget


@pytest.mark.parametrize(("target", "costs"), [(2, {1, 2}), (0.5, {1})])  # a = 2, the best, costs 3
def test_a_constraint_is_honored_or_a_note_is_left(
    target: float, costs: set[int], overrides: list[str], compose_text: Compose, tmp_path: Path
) -> None:
    given = [
        *overrides,
        "controller=model_based",
        "reward=hard",
        f"reward.target={target}",
        "derive.within_target=true",
        f"output={tmp_path}",
    ]
    main(*compose_text(*given))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {row["macs"] for row in results["rows"]} <= costs
    told = "Nothing that the search kept is within the target of 0.5; the choice, the cheapest of it, costs 1."
    notes = [note for note in results["notes"] if note.startswith("Nothing that the search kept")]
    assert notes == ([told] if target == 0.5 else [])


@pytest.mark.parametrize(
    ("given", "unit"),
    [("evaluator.cost=null", None), ("reward.unit=macs", "macs"), ("reward.unit=parameters", "parameters")],
)
def test_costs_stand_under_their_unit_if_there_are_any(
    given: str, unit: str | None, overrides: list[str], compose_text: Compose, tmp_path: Path
) -> None:
    main(*compose_text(*overrides, "controller=random", given, f"output={tmp_path}"))
    (row,) = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert [key for key in ("macs", "parameters", "latency_ms") if row[key] is not None] == ([unit] if unit else [])
    volumes = json.loads((tmp_path / "run" / "candidates.json").read_text())["hypervolume"]
    assert list(volumes) == (["random"] if unit else [])


def test_a_reward_that_costs_count_in_needs_some(overrides: list[str], compose_text: Compose, tmp_path: Path) -> None:
    given = ["evaluator.cost=null", "reward=hard", f"output={tmp_path}"]
    for target in ("5", "null"):
        with pytest.raises(ConfigError, match=r"reward: cost counts in it, .*; set evaluator\.cost"):
            main(*compose_text(*overrides, *given, f"reward.target={target}"))
    assert list(tmp_path.iterdir()) == []


def test_a_front_has_no_size_where_all_cost_the_same(
    overrides: list[str], compose_text: Compose, tmp_path: Path
) -> None:
    path = tmp_path / "alike.csv"
    table = Path(overrides[1].removeprefix("env.path=")).read_text()
    path.write_text(re.sub(r"\d+,10$", "7,10", table, flags=re.MULTILINE))
    main(*compose_text(*overrides, f"env.path={path}", "controller=random", f"output={tmp_path}"))
    assert json.loads((tmp_path / "run" / "candidates.json").read_text())["hypervolume"] == {}


def test_a_run_goes_on_with_its_own_table_and_target_alone(
    overrides: list[str], compose_text: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, resume, targets = tmp_path / "mine.csv", f"resume={tmp_path / 'run'}", []

    def build(config: RunConfig, space: Any, cost: Any, known_target: float | None, has_costs: bool) -> Any:
        targets.append(known_target)
        return build_reward(config, space, cost, known_target, has_costs)

    monkeypatch.setattr("main.build_reward", build)
    path.write_text(Path(overrides[1].removeprefix("env.path=")).read_text())
    main(*compose_text(*overrides, f"env.path={path}", "controller=random", "reward=hard", f"output={tmp_path}"))
    main(*compose_text(resume))
    assert targets == [None, 4.0]  # what it goes on with was measured once
    path.write_text(path.read_text().replace(",10\n", ",11\n"))
    with pytest.raises(ValueError, match=r"^resume: the data of mine are not those that .* began with, .*$"):
        main(*compose_text(resume))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            ["env=digits", "space=flat", "space.names=[a,b]", "space.labels=[x,y]"],
            "has no networks that could be trained on digits",
        ),
        (["env=nasbench201", "env.path=nowhere.csv"], "there is no table nowhere.csv; set env.path, or LUBAN_DATA"),
        (["evaluator.signal=vald"], "did you mean 'valid'"),
        (["search.budget=5"], "could evaluate no architecture"),
        (["env.isomorphic=true", "search.budget=null"], "env.isomorphic: .*; set search.budget"),
        (
            ["space.labels=[[w,x],[y,z]]"],
            r"labels must be a list for all of \['a', 'b', 'c'\], or a list for each, got ",
        ),
        (
            ["space.labels=[[w,x],[y,z],v]"],
            r"labels must be a list for all of \['a', 'b', 'c'\], or a list for each, got ",
        ),
        (["space.labels=[w,w,x]"], r"labels must be different and at least two, got \['w', 'w', 'x'\]"),
    ],
)
def test_mistakes_are_told(
    wrong: list[str], message: str, overrides: list[str], compose_text: Compose, tmp_path: Path
) -> None:
    base = [] if wrong[0].startswith("env=") else overrides
    with pytest.raises((ConfigError, ValueError), match=message):
        main(*compose_text(*base, *wrong, f"output={tmp_path}"))


@pytest.mark.data
def test_the_command_line_on_the_real_table(tmp_path: Path) -> None:
    if not (DATA / "nasbench201_cifar10.csv.gz").is_file():
        pytest.skip(f"there is no nasbench201_cifar10.csv.gz in {DATA}; LUBAN_DATA may name another folder")
    command = [
        sys.executable,
        "main.py",
        "env=nasbench201",
        "controller=local_search",
        f"output={tmp_path}",
        "name=run",
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=250, env={**os.environ, "LUBAN_DATA": str(DATA)}
    )
    assert done.returncode == 0, done.stderr
    assert "of 15625 by test_acc_200ep" in done.stdout and "Best of local search" in done.stdout
