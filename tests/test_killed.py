"""Real runs that are killed, stopped and resumed on the command line, and end as if nothing had happened."""

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[1]

TINY = [
    "threads=1", "name=run", "search.rounds=4", "search.episodes=4", "search.warmup_batches=12",
    "search.batches_per_round=3", "search.fidelity=0.3", "derive.candidates=3", "ranking.random=2",
    "space.channels=8", "space.num_layers=3", "space.min_layers=2", "retrain.training.epochs=3",
    "distill.training.epochs=3", "baseline.learning_rates=[0.05]", "checkpoint_every_s=0.0",
    "export.formats=[]",
]  # fmt: skip

# Where to kill: in a write of this kind of file, at its n-th time; every stage and the inside of a save occur.
SLAYER = """
import os, signal, sys
moment, counts = {moment!r}, [0]
import logbook.checkpoint as checkpoint
kind, number = moment
real_replace, real_fsync = os.replace, os.fsync
def strike(*args):
    counts[0] += 1
    if counts[0] == number:
        os.kill(os.getpid(), signal.SIGKILL)
def replace(*args):
    if kind == "before rename":
        strike()
    real_replace(*args)
    if kind == "after rename":
        strike()
def fsync(*args):
    if kind == "before sync":
        strike()
    real_fsync(*args)
os.replace, os.fsync = replace, fsync
sys.argv = ["main.py", *{arguments!r}]
sys.path.insert(0, {root!r})
import runpy
runpy.run_path({root!r} + "/main.py", run_name="__main__")
"""


def start(arguments: list[str], moment: tuple[str, int] | None = None) -> subprocess.CompletedProcess[str]:
    if moment is None:
        command = [sys.executable, "main.py", *arguments]
    else:
        command = [sys.executable, "-c", SLAYER.format(moment=moment, arguments=arguments, root=str(ROOT))]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)


def fingerprint(folder: Path) -> dict[str, str]:
    """Hashes of what must not differ: journals, candidates, all weights, and results without clock values."""
    paths = [folder / "history.jsonl", folder / "updates.jsonl", folder / "candidates.json", folder / "space.json"]
    paths += [folder / "ranking.json"]
    paths += sorted(folder.glob("networks/*/*"))
    found = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    results = json.loads((folder / "results.json").read_text())
    kept = [{key: row[key] for key in row if not key.startswith("latency")} for row in results["rows"]]
    return {**found, "rows": json.dumps(kept)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    done = start([*TINY, f"output={output}"])
    assert done.returncode == 0, done.stderr
    return output / "run"


def moments(num: int) -> list[tuple[str, int]]:
    """Seeded moments from the first checkpoint of the search to the last of the final networks."""
    rng = random.Random(0)
    kinds = ["before sync", "before rename", "after rename"]
    return [(kinds[i % 3], rng.randrange(2 + 12 * i, 2 + 12 * (i + 1))) for i in range(num)]


def check_killed(moment: tuple[str, int], whole: Path, tmp_path: Path) -> None:
    killed = start([*TINY, f"output={tmp_path}"], moment)
    assert killed.returncode == -signal.SIGKILL, killed.stdout[-500:] + killed.stderr[-500:]
    resumed = start([f"resume={tmp_path / 'run'}"])
    assert resumed.returncode == 0, resumed.stderr
    assert fingerprint(tmp_path / "run") == fingerprint(whole)


@pytest.mark.parametrize("moment", [("before rename", 31)], ids=str)
def test_a_run_that_was_killed_ends_as_if_nothing_had_happened(
    moment: tuple[str, int], whole: Path, tmp_path: Path
) -> None:
    check_killed(moment, whole, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("moment", moments(10), ids=str)
def test_killed_at_ten_moments(moment: tuple[str, int], whole: Path, tmp_path: Path) -> None:
    check_killed(moment, whole, tmp_path)


@pytest.mark.slow
def test_five_crashes_leave_one_tensorboard_run_with_increasing_steps(whole: Path, tmp_path: Path) -> None:
    arguments = [*TINY, f"output={tmp_path}"]
    for _ in range(5):
        assert start(arguments, ("after rename", 17)).returncode == -signal.SIGKILL
        arguments = [f"resume={tmp_path / 'run'}"]
    assert start(arguments).returncode == 0
    assert fingerprint(tmp_path / "run") == fingerprint(whole)
    board, expected = (EventAccumulator(str(each / "tensorboard")) for each in (tmp_path / "run", whole))
    board.Reload()
    expected.Reload()
    tags = board.Tags()["scalars"]
    assert tags and tags == expected.Tags()["scalars"]
    for tag in tags:
        steps = [event.step for event in board.Scalars(tag)]
        assert steps == sorted(set(steps)) == [event.step for event in expected.Scalars(tag)]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint_and_says_how_to_go_on(number: int, status: int, tmp_path: Path) -> None:
    long = [*TINY, f"output={tmp_path}", "search.rounds=100000", "checkpoint_every_s=1000"]
    process = subprocess.Popen(
        [sys.executable, "main.py", *long], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    history = tmp_path / "run" / "tensorboard"
    wait_for(lambda: history.exists(), process)
    process.send_signal(number)
    started = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - started < 10
    assert process.returncode == status
    assert f"python main.py resume={tmp_path / 'run'}" in out
    assert len(err.splitlines()) == 1 and "Traceback" not in err
    assert len(list((tmp_path / "run" / "checkpoints").glob("*.ckpt"))) >= 1


def test_resuming_with_another_config_is_refused(whole: Path) -> None:
    done = start([f"resume={whole}", "controller.learning_rate=0.5"])
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "controller.learning_rate was" in done.stderr and "0.5" in done.stderr


def wait_for(condition: Any, process: "subprocess.Popen[str]") -> None:
    for _ in range(1200):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("the run did not begin")
