"""From the command line to a run: every config composes, and every mistake is one line."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from child.cost import CostModel
from child.macro import MacroSpace
from child.space import NetworkSpace
from child.task import Task
from conf.launch import FREE_ON_RESUME, compose, launch, one_line, override, under_way
from conf.schema import ConfigError, OptimizeConfig, RunConfig
from controller.strategy import Strategy
from main import build_parts

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    (path.parent.name, path.stem)
    for path in (ROOT / "conf").glob("*/*.yaml")
    if not path.stem.startswith("_")
    and path.parent.name != "optimize"  # whose files stand side by side, in optimize.yaml
)
GROUPS = sorted({group for group, _ in FILES})


def message(*overrides: str, kind: type[RunConfig] = RunConfig, name: str = "config") -> str:
    """The line that a user gets to read for these overrides."""
    with pytest.raises(Exception) as caught:
        compose(*overrides, kind=kind, name=name)
    line = one_line(caught.value)
    assert line and "\n" not in line and "Traceback" not in line
    return line


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Something for `env.path`, wherever a config asks for data of the user's."""
    path = tmp_path_factory.mktemp("data") / "mine.npz"
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez(path, x=images, y=np.arange(60) % 3)
    return str(path)


def test_there_are_configs() -> None:
    assert {"env", "space", "controller", "evaluator", "reward", "retrain", "distill"} <= set(GROUPS)


@pytest.mark.parametrize(("group", "name"), FILES, ids=["/".join(file) for file in FILES])
def test_every_config_composes(group: str, name: str, data: str) -> None:
    override = f"{group}={name}"
    target = ["env.task.target=y"] if name == "table" and group == "env" else []
    config = compose(override, f"++env.path={data}", *target)
    assert isinstance(config, RunConfig)
    # And says something: it is not the composition of another name with a typing error in it.
    with pytest.raises(Exception, match=f"{name}x"):
        compose(f"{override}x")


@pytest.mark.parametrize("name", [name for group, name in FILES if group == "env"])
def test_every_task_composes_for_a_model_made_smaller(name: str, data: str) -> None:
    target = ["env.task.target=y"] if name == "table" else []
    given = ["model.path=somewhere", f"env={name}", f"++env.path={data}", *target]
    smaller, searched = compose(*given, kind=OptimizeConfig, name="optimize"), compose(*given[1:])
    assert smaller.env == searched.env and smaller.retrain == searched.retrain
    assert smaller.distill.training == searched.distill.training


@pytest.mark.parametrize("name", [name for group, name in FILES if group == "controller"])
def test_every_controller_builds(name: str, known: Any) -> None:
    assert isinstance(known.build_controller(name, known.FlatSpace(2, 2), num_updates=1), Strategy)


@pytest.mark.parametrize("name", [name for group, name in FILES if group == "reward"])
@pytest.mark.parametrize("unit", ["macs", "parameters", "latency_ms"])
def test_every_reward_builds(name: str, unit: str) -> None:
    reward = compose(f"reward={name}", "reward.target=7", f"reward.unit={unit}").reward.build(())
    assert (reward.target, reward.unit) == (7.0, unit)
    assert unit in reward.formula() or name == "quality"  # which no cost enters


@pytest.mark.parametrize("space_name", [n for g, n in FILES if g == "space" and n != "flat"])
@pytest.mark.parametrize("evaluator_name", [n for g, n in FILES if g == "evaluator" and n != "table"])
def test_every_space_and_evaluator_build(space_name: str, evaluator_name: str, small_task: Task) -> None:
    config = compose(f"space={space_name}", f"evaluator={evaluator_name}")
    input_shape = {"mlp": (7,), "recurrent": (64,)}.get(space_name, small_task.input_shape)
    space = config.space.build((), input_shape=input_shape, num_outputs=3)
    assert isinstance(space, NetworkSpace)
    device = torch.device("cpu")
    cost = CostModel(space, "macs", input_shape, device)
    given = {"task": small_task, "cost": cost, "seed": 0, "device": device, "num_steps": 1}
    assert config.evaluator.build((), space=space, **given).state_dict()


@pytest.mark.parametrize("name", ["arrays", "digits"])
def test_tasks_build(name: str, data: str) -> None:
    config = compose(f"env={name}", *([f"env.path={data}"] if name == "arrays" else []))
    assert config.env.task is not None
    task = config.env.task.build((), seed=0)
    assert isinstance(task, Task) and task.input_shape == (1, 8, 8)


def test_values_reach_their_place() -> None:
    config = compose("seed=7", "search.rounds=3", "space.num_layers=5", "retrain.training.epochs=2", "threads=2")
    assert (config.seed, config.search.rounds, config.retrain.training.epochs, config.threads) == (7, 3, 2, 2)
    assert config.space.arguments["num_layers"] == 5
    space = config.space.build((), input_shape=(1, 8, 8), num_outputs=3)
    assert isinstance(space, MacroSpace) and space.num_layers == 5


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("search.round=3", ["search.round: unknown key", "did you mean 'rounds'"]),
        ("sed=3", ["sed: unknown key", "did you mean 'seed'"]),
        ("search.rounds=many", ["search.rounds: expected an integer, got 'many'"]),
        ("search.rounds=2.5", ["search.rounds: expected an integer, got 2.5"]),
        ("search.rounds=0", ["search.rounds must be at least 1, got 0"]),
        ("search.rounds=null", ["search.rounds: expected an integer, got None"]),
        ("search.sampler=fare", ["search.sampler: got 'fare'", "did you mean 'fair'"]),
        ("search.compare_random=1", ["search.compare_random: expected true or false, got 1"]),
        ("+search.extra=1", ["search.extra: unknown key"]),
        ("+extra=1", ["extra: unknown key"]),
        ("device=gpu", ["device: got 'gpu'", "allowed: auto, cpu, cuda"]),
        ("seed=-1", ["seed must be at least 0, got -1"]),
        ("name=a/b", ["name is that of a folder in output, got 'a/b'", "set output"]),
        ("threads=0", ["threads must be from 1 to 1024 or null, got 0"]),
        ("threads=1000000000000000", ["threads must be from 1 to 1024 or null, got 1000000000000000"]),
        ("threads=many", ["threads: expected an integer, got 'many' (or null)"]),
        ("retrain.top=0", ["retrain.top", "at least 1", "got 0"]),
        ("retrain={top: 2, join_validation: true}", ["retrain.join_validation leaves no data", "retrain.top=2"]),
        ("retrain.training.epochs=0", ["retrain.training", "epochs must be above 0, got 0"]),
        ("distill.training.epochs=0", ["distill.training", "epochs must be above 0, got 0"]),
        ("distill.budget=0", ["distill.budget is a share of the teacher's MACs in (0, 1], got 0.0"]),
        ("derive.candidates=0", ["derive.candidates must be at least 1, got 0"]),
        ("ranking.random=-1", ["ranking.random from 0 to 1000", "got 4, -1 and 0.1"]),
        ("ranking.random=1000000", ["ranking.random from 0 to 1000", "got 4, 1000000 and 0.1"]),
        ("ranking.fidelity=0", ["ranking.fidelity in (0, 1]", "and 0.0"]),
        ("baseline.learning_rates=0.1", ["baseline.learning_rates: expected a list such as [1,2], got 0.1"]),
        ("rungs.fidelities=[0.5,0.2]", ["rungs.fidelities must rise within (0, 1], got [0.5, 0.2]"]),
        ("baseline.random=-1", ["baseline.random must be from 0 to 1000, got -1"]),
        ("baseline.learning_rates=[0]", ["baseline.learning_rates needs rates above 0, got [0.0]"]),
        ("env=digitz", ["env: there is no config 'digitz'", "digits", "did you mean 'digits'"]),
        ("controller=reinforced", ["controller: there is no config 'reinforced'", "did you mean 'reinforce'"]),
        ("env=arrays", ["env.path", "set env.path=..."]),
        ("plugins=[no_such_module]", ["plugins: cannot import 'no_such_module'", "PYTHONPATH"]),
        ("resume=no/such/folder", ["resume: no/such/folder is not a run folder"]),
        ("reward={a: 1}", ["reward"]),
    ],
)
def test_mistakes_are_one_line(override: str, expected: list[str]) -> None:
    line = message(override)
    for words in expected:
        assert words in line


def test_an_argument_of_ones_own_class_is_told_how_to_be_set() -> None:
    line = message("controller._target_=mine.Annealing", "controller.heat=3")
    assert "controller.heat: unknown key" in line and "+controller.heat=... sets it" in line
    assert "+controller.heat" not in message("controller.heat=3")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("derive.candidates=5", "derive.candidates"),
        ("space=micro", "space"),
        ("space.num_layers=3", "space.num_layers"),
        ("+ranking.extra=1", "ranking.extra"),
        ("~baseline.network", "baseline.network"),
        ("retrain.top=2", "retrain.top"),
        ("retrain={top: 2}", "retrain.top"),
        ("distill.budget=0.5", "distill.budget"),
        ("reward.target=1e6", "reward.target"),
    ],
)
def test_what_only_a_search_reads_is_not_set_in_vain(override: str, key: str) -> None:
    line = message("model.path=x", override, kind=OptimizeConfig, name="optimize")
    assert line == f"{key}: nothing here reads it; it is of a search by main.py, so leave it out"


def test_a_target_of_someone_elses_is_refused() -> None:
    config = compose("controller._target_=os.system", "~controller.policy")
    with pytest.raises(ConfigError, match=r"controller\._target_: refused to call 'os\.system'"):
        config.controller.build(config.plugins, space=None, seed=0, num_updates=1)


def test_a_users_own_part_joins_by_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: Any) -> None:
    (tmp_path / "my_search.py").write_text(
        "from controller.strategy import RandomSearch\n\nclass Mine(RandomSearch):\n    name = 'mine'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config = compose("controller=random", "controller._target_=my_search.Mine", "plugins=[my_search]")
    built = config.controller.build(config.plugins, space=known.FlatSpace(2, 2), seed=0, num_updates=1)
    assert built.name == "mine"
    with pytest.raises(ConfigError, match="refused to call"):
        compose("controller=random", "controller._target_=my_search.Mine").controller.build((), space=None, seed=0)


# Resuming


@pytest.fixture
def stopped(tmp_path: Path, compose_text: Any) -> Path:
    _, text = compose_text("search.rounds=5", "seed=3", "checkpoint_every_s=7", "device=cpu", "threads=1", "name=x")
    (tmp_path / "config.yaml").write_text(text)
    return tmp_path


def test_a_run_goes_on_with_its_own_config(stopped: Path) -> None:
    config = compose(f"resume={stopped}")
    assert (config.search.rounds, config.seed, config.name) == (5, 3, "x")
    assert config.resume == str(stopped)


def test_what_nobody_changed_stays_as_it_was(stopped: Path) -> None:
    config = compose(f"resume={stopped}")
    assert (config.device, config.threads, config.checkpoint_every_s) == ("cpu", 1, 7.0)


def test_only_where_and_how_to_watch_may_change(stopped: Path) -> None:
    config = compose(f"resume={stopped}", "device=auto", "threads=2", "checkpoint_every_s=1", "output=elsewhere")
    assert (config.device, config.threads, config.checkpoint_every_s, config.output) == ("auto", 2, 1.0, "elsewhere")
    assert compose(f"resume={stopped}", "seed=3", "search.rounds=5").seed == 3  # the same again is no change
    assert set(FREE_ON_RESUME) == {"device", "threads", "checkpoint_every_s", "resume", "output", "analysis"}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=4", "seed was 3 and is now 4"),
        ("search.rounds=6", "search.rounds was 5 and is now 6"),
        ("reward=soft", "reward was .*Linear.* and is now .*Soft.*"),
        ("plugins=[json]", r"plugins was \[\] and is now \['json'\]"),
        ("name=y", "name was x and is now y"),
        ("experiment=enas_micro_small", ".*"),
    ],
)
def test_other_changes_are_refused(stopped: Path, override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"resume: a run goes on with its own config, but {expected}; only device, "):
        compose(f"resume={stopped}", override)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_a_shell_and_hydra_read_an_override_as_it_was(value: str) -> None:
    (word,) = shlex.split(override("key", value))
    assert OverridesParser.create().parse_override(word).value() == value


@pytest.mark.parametrize("value", ["true", "1e3", "1_000", "[a,b]", "2024"])
def test_what_hydra_took_for_something_else_is_told_as_the_text_it_was(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", f"name={value}"])
    with pytest.raises(SystemExit) as ended:
        launch(lambda config, text: None)
    assert ended.value.code == 2
    assert capsys.readouterr().err.rstrip().endswith(f"; as text: 'name=\"{value}\"'")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["+space.nosuch=1"], "space.nosuch: child.macro.MacroSpace takes no such argument; allowed: channels, "),
        (["rungs.space={cels: 3}", "rungs.fidelities=[0.1]"], "rungs.space.cels: child.macro.MacroSpace takes no such"),
        (["env=spoken_digits", "space=micro"],
         "; it comes with a config that was chosen, and '~space.min_layers' leaves it out"),
        (["experiment=enas_macro", "controller=random"], "no such argument; it takes none; it comes with a config"),
        (["evaluator=table"], "evaluator.path: Interpolation key 'env.path' not found; set evaluator.path=..."),
        (["env=nasbench201", "evaluator=supernet"], "env.task: child.supernet.SupernetEvaluator is for networks that "),
        (["env=nasbench201", "space=macro"], "env.task: child.macro.MacroSpace is for networks that learn a task"),
        (["evaluator=standalone", "evaluator.folds=0"], "evaluator: folds must be from 1 to the number of samples, "),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_told_with_the_way_out(
    overrides: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(config: RunConfig, text: str) -> None:
        if config.env.task is not None and config.env.task.target != "envs.digits.digits":  # whose data are not here
            space = config.space.build((), input_shape=(1, 8, 8), num_outputs=10)
            config.controller.build((), space=space, seed=0, num_updates=1, relaxation=None)
        build_parts(config)

    monkeypatch.setattr(sys, "argv", ["main.py", *overrides])
    with pytest.raises(SystemExit) as ended:
        launch(start)
    found = capsys.readouterr().err
    assert ended.value.code == 2 and told in found, found
    assert ("it comes with" in found) == ("it comes with" in told)


def test_an_override_has_no_more_quotes_than_it_needs() -> None:
    assert override("resume", Path("outputs/digits-1")) == "resume=outputs/digits-1"
    assert override("resume", "my runs/1") == "'resume=my runs/1'"
    assert override("name", "2024") == "'name=\"2024\"'"


def test_a_run_whose_data_are_gone_says_where_it_looks_for_them(compose_text: Any, data: str, tmp_path: Path) -> None:
    def lost(_: Any) -> Any:
        raise ValueError("env.task: cannot read it")

    moved = tmp_path / "moved.npz"
    moved.write_bytes(Path(data).read_bytes())
    config, text = compose_text("env=arrays", f"env.path={moved}", f"output={tmp_path}")
    with under_way(config, text, "main.py", lambda _: None) as (run, *_):
        pass
    again, _ = compose_text(override("resume", run.folder))
    for is_gone in (False, True):
        where = rf"; where {moved} has moved to, write into {run.folder}/config.yaml" if is_gone else ""
        with pytest.raises(ValueError, match=rf"^env.task: cannot read it{where}$"), \
             under_way(again, text, "main.py", lost):  # fmt: skip
            pass
        moved.unlink(missing_ok=True)


def test_a_config_runs_no_code(tmp_path: Path) -> None:
    """In the folder of a run that is to go on, or in one of the user's."""
    trace = tmp_path / "trace"
    attack = f"seed: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{trace}]]\n"
    (tmp_path / "config.yaml").write_text(attack)
    assert "could not determine a constructor" in message(f"resume={tmp_path}")
    (tmp_path / "conf" / "space").mkdir(parents=True)
    (tmp_path / "conf" / "space" / "evil.yaml").write_text(attack)
    done = start("--config-dir", str(tmp_path / "conf"), "space=evil", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("luban: ") and "could not determine a constructor" in line and "evil.yaml" in line
    assert not trace.exists()


def test_the_text_gives_the_same_config_again(compose_text: Any) -> None:
    config, text = compose_text("reward=hard", "search.rounds=9", "space.min_layers=null")
    assert OmegaConf.create(text) == OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(text)))
    assert "hydra" not in text and "rounds: 9" in text
    assert config.space.arguments["min_layers"] is None


# The real command line, a few times, as every start costs seconds.


def start(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "main.py"), *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["search.round=3"], "luban: search.round: unknown key; "),
        (["space.num_layers=0"], "luban: space: space macro needs num_layers from 1 to 1000, got 0"),
        (["controller=radom"], "luban: controller: there is no config 'radom'; "),
        (["search.rounds"], "luban: "),
        (
            ["env=arrays", "env.path=/mär chen"],
            "luban: cannot read env.path=/mär chen as Hydra's key=value; if its "
            "value is a text, quote it: 'env.path=\"/mär chen\"'",
        ),
        (["name=2024"], "luban: name: expected text, got 2024; as text: 'name=\"2024\"'"),
        (["reward.unit=watts"], "luban: reward.unit: got 'watts'; allowed: macs, parameters, latency_ms"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_command_line_is_one_line(arguments: list[str], expected: str, tmp_path: Path) -> None:
    done = start(*arguments, f"output={tmp_path / 'outputs'}", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(expected)
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []  # no folder of ours or of Hydra's


def test_the_script_starts_from_anywhere(tmp_path: Path) -> None:
    """A short look at the whole config, composed from another folder."""
    done = start("--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert OmegaConf.create(done.stdout).seed == 0
    assert list(tmp_path.iterdir()) == []


def test_composing_leaves_nothing_behind() -> None:
    compose("seed=1")
    assert not GlobalHydra.instance().is_initialized()
