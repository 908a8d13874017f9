"""A run folder remembers everything once, and nothing twice."""

import errno
import hashlib
import io
import json
import math
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from logbook.checkpoint import MAGIC, read_checkpoint, write_atomically, write_checkpoint
from logbook.interrupt import Interrupted, Interruption
from logbook.run import KEPT, Run

ROOT = Path(__file__).parents[2]


def create(tmp_path: Path, name: str = "run") -> Run:
    return Run.create(tmp_path, name, "seed: 0\n", 0.0)


def numbers(run: Run) -> list[int]:
    return [int(path.stem) for path in sorted((run.folder / "checkpoints").glob("*.ckpt"))]


def test_a_run_goes_on_with_its_own_data_alone(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "run", "seed: 0\n", 30.0)
    run.write_task({"task": "pets", "data": "abc"})
    run.write_task({"task": "pets", "data": "abc"})
    with pytest.raises(ValueError, match=r"the data of pets are not those that .*run began with"):
        run.write_task({"task": "pets", "data": "abd"})
    assert json.loads((run.folder / "task.json").read_text())["data"] == "abc"
    run.write("task.json", {"task": "pets", "data": None})  # as long as tables had no mark
    run.write_task({"task": "pets", "data": "abd"})


def test_two_processes_are_not_at_one_run(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.save({"step": 1})
    script = (
        "import sys; from pathlib import Path; from logbook.run import Run\n"
        "try: Run.resume(Path(sys.argv[1]), 0.0)\n"
        "except ValueError as error: sys.exit(str(error))"
    )
    command = [sys.executable, "-c", script, str(run.folder)]
    refused = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert refused.returncode == 1
    assert refused.stderr == f"cannot resume {run.folder}: another process is at this run; wait or stop it\n"
    run.close()
    assert subprocess.run(command, cwd=ROOT).returncode == 0


def test_names_do_not_collide(tmp_path: Path) -> None:
    folders = [create(tmp_path / "outputs").folder.name for _ in range(3)]
    assert folders == ["run", "run-2", "run-3"]
    assert (tmp_path / "outputs" / "run" / "config.yaml").read_text() == "seed: 0\n"
    nameless = {create(tmp_path / "outputs", "").folder for _ in range(3)}
    assert len(nameless) == 3


def test_once_is_once_even_after_a_resume(tmp_path: Path) -> None:
    run, calls = create(tmp_path), []

    def compute() -> dict[str, Any]:
        calls.append(1)
        return {"tokens": [1, 2], "share": 0.5, "none": None}

    first = run.once("stage", compute)
    assert run.once("stage", compute) == first
    run.close()
    resumed = Run.resume(run.folder, 0.0)
    assert resumed.once("stage", compute) == first
    assert calls == [1]
    assert resumed.stage_state == {}
    resumed.close()


def test_a_stage_that_failed_is_not_finished(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.save({"round": 3})

    def fail() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        run.once("stage", fail)
    run.close()
    resumed = Run.resume(run.folder, 0.0)
    assert resumed.finished == {} and resumed.stage_state == {"round": 3}
    resumed.close()


def test_the_next_stage_begins_afresh(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.save({"round": 3})
    run.once("stage", lambda: 1)
    assert run.stage_state == {}
    run.close()


def test_the_time_of_a_stage_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def take(run: Run, seconds: float) -> float:
        now[0] += seconds
        run.save({"some": "state"})
        return run.seconds

    run = create(tmp_path)
    now[0] += 5  # between stages
    assert run.once("first", lambda: take(run, 30)) == 30
    with pytest.raises(ZeroDivisionError):
        run.once("second", lambda: take(run, 20) / 0)
    run.close()
    now[0] = 7.0  # another process has another clock
    again = Run.resume(run.folder, 0.0)
    assert again.once("second", lambda: take(again, 3)) == 23
    assert again.once("third", lambda: take(again, 1)) == 1
    again.close()


def test_journals_go_back_to_the_checkpoint(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.append("history", {"round": 1})
    run.save({"round": 1})
    run.append("history", {"round": 2})
    run.append("later", {"round": 2})
    assert [line["round"] for line in run.read("history")] == [1, 2]  # what was written can be read
    run.close()
    with (run.folder / "history.jsonl").open("a") as file:
        file.write('{"cut in ha')
    resumed = Run.resume(run.folder, 0.0)
    assert resumed.read("history") == [{"round": 1}]
    assert resumed.read("later") == []
    resumed.append("history", {"round": 2})
    resumed.save({"round": 2})
    resumed.append("history", {"round": 3})
    resumed.close()
    again = Run.resume(run.folder, 0.0)
    assert again.read("history") == [{"round": 1}, {"round": 2}]
    assert again.read("nothing") == []
    again.close()


def test_a_number_that_json_lacks_is_null_in_a_journal_and_refused_elsewhere(tmp_path: Path) -> None:
    run = create(tmp_path)
    for number in (float("nan"), float("inf")):
        run.append("history", {"reward": number})
        with pytest.raises(ValueError):
            run.write("results.json", {"reward": number})
    assert run.read("history") == [{"reward": None}] * 2 and not (run.folder / "results.json").exists()
    run.close()


NUMPY = {"quality": np.float32(1 / 3), "cost": np.int64(2**40), "reward": np.float64(0.1), "known": np.bool_(True)}
"""What an evaluator of the user's own may give."""


def test_numbers_of_numpy_and_pytorch_are_written_as_any_other(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.append("history", {**NUMPY, "loss": torch.tensor(0.5), "failed": np.float32("nan")})
    run.write("results.json", {**NUMPY, "loss": torch.tensor(0.5)})
    plain = {name: value.item() for name, value in NUMPY.items()} | {"loss": 0.5}
    assert run.read("history") == [{**plain, "failed": None}]
    assert json.loads((run.folder / "results.json").read_text()) == plain
    for write in (run.append, run.write):
        with pytest.raises(TypeError):
            write("other.json", {"what": object()})
    run.close()


def test_numbers_of_numpy_come_back_in_their_precision(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "state.ckpt", {"finished": {"row": NUMPY}})
    read = read_checkpoint(tmp_path / "state.ckpt")["finished"]["row"]
    assert read == NUMPY and [type(each) for each in read.values()] == [type(each) for each in NUMPY.values()]


def test_the_last_three_checkpoints_stay(tmp_path: Path) -> None:
    run = create(tmp_path)
    for number in range(1, 6):
        run.save({"round": number, "weights": torch.full((3,), float(number))})
        assert numbers(run) == list(range(max(1, number - KEPT + 1), number + 1))
    run.close()
    resumed = Run.resume(run.folder, 0.0)
    assert resumed.stage_state["round"] == 5
    assert torch.equal(resumed.stage_state["weights"], torch.full((3,), 5.0))
    resumed.save({"round": 6})
    assert numbers(resumed) == [4, 5, 6]
    resumed.close()


@pytest.mark.parametrize("damage", ["a flipped bit", "cut short", "empty", "not ours"])
def test_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    run = create(tmp_path)
    run.save({"weights": torch.ones(100)})
    run.close()
    path = run.folder / "checkpoints" / "000001.ckpt"
    content = bytearray(path.read_bytes())
    if damage == "a flipped bit":
        content[-200] ^= 1
    changed = {"cut short": content[:-1], "empty": b"", "not ours": b"PK something"}.get(damage, content)
    path.write_bytes(bytes(changed))
    with pytest.raises(
        ValueError, match=r"no checkpoint is whole.*000001\.ckpt is damaged: its content does not match its SHA-256"
    ):
        Run.resume(run.folder, 0.0)


def test_what_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it is not a run folder"):
        Run.resume(tmp_path, 0.0)
    run = create(tmp_path)
    run.append("history", {"round": 1})
    run.close()
    again = Run.resume(run.folder, 0.0)  # stopped before its first checkpoint: it begins anew
    assert again.remarks == ["No checkpoint had been made yet: starting from the beginning."]
    assert again.finished == {} and again.read("history") == []


def test_no_code_is_run_by_a_checkpoint(tmp_path: Path) -> None:
    run = create(tmp_path)
    with pytest.raises(ValueError, match="plain data and tensors, not PosixPath"):
        run.save({"path": Path("x")})
    run.close()

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'exploded'}",)

    buffer = io.BytesIO()
    torch.save({"finished": Bomb()}, buffer)
    for payload in (pickle.dumps(Bomb()), buffer.getvalue()):
        path = tmp_path / "bomb.ckpt"  # whole by its own account, with a pickle where tensors should be
        path.write_bytes(MAGIC + b" " + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
        with pytest.raises(ValueError, match="is not a checkpoint"):
            read_checkpoint(path)
    assert not (tmp_path / "exploded").exists()


@pytest.fixture(scope="module")
def two_saves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = create(tmp_path_factory.mktemp("saves"))
    for number in (1, 2):
        run.append("history", {"round": number})
        run.save({"round": number, "weights": torch.randn(50, generator=torch.Generator().manual_seed(number))})
    run.close()
    return run.folder


def damaged(content: bytes, kind: str, number: int) -> bytes | None:
    rng = random.Random(number)
    if kind == "flip":
        place = rng.randrange(len(content))
        return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
    return content[: rng.randrange(len(content))] if kind == "cut" else None


@pytest.mark.parametrize(("kind", "times"), [("flip", 200), ("cut", 60), ("deletion", 20)])
def test_any_damage_to_the_newest_checkpoint_falls_back_and_says_so(
    kind: str, times: int, two_saves: Path, tmp_path: Path
) -> None:
    for number in range(times):
        folder = shutil.copytree(two_saves, tmp_path / f"{number}")
        path = folder / "checkpoints" / "000002.ckpt"
        content = damaged(path.read_bytes(), kind, number)
        path.unlink() if content is None else path.write_bytes(content)
        resumed = Run.resume(folder, 0.0)
        assert resumed.stage_state["round"] == 1 and resumed.read("history") == [{"round": 1}]
        assert "000002.ckpt" in resumed.remarks[0] and "000001.ckpt" in resumed.remarks[-1]
        resumed.close()
        shutil.rmtree(folder)


def test_where_no_checkpoint_is_whole_nothing_is_overwritten(two_saves: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(two_saves, tmp_path / "run")
    for path in (folder / "checkpoints").glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="no checkpoint is whole"):
        Run.resume(folder, 0.0)
    assert len((folder / "history.jsonl").read_text().splitlines()) == 2


def test_a_journal_that_lost_lines_is_noticed(two_saves: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(two_saves, tmp_path / "run")
    (folder / "history.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"history\.jsonl has 0 bytes, but its checkpoint knew"):
        Run.resume(folder, 0.0)


def test_state_comes_back_as_it_was(tmp_path: Path) -> None:
    last = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    state = {"t": torch.randn(3, 4).t(), "n": {0: {"x": [1, 2.5, None, True, "é"]}}, "c": (1, math.inf), "last": last}
    write_checkpoint(tmp_path / "state.ckpt", state)
    read = read_checkpoint(tmp_path / "state.ckpt")
    assert read["n"] == state["n"] and read["c"] == state["c"] and torch.equal(read["t"], state["t"])
    assert torch.equal(read["last"], last) and read["last"].is_contiguous(memory_format=torch.channels_last)


def test_memory_that_runs_out_is_not_blamed_on_the_checkpoint(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.save({"round": 1})

    def load(state: dict[str, Any]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        run.take_up(load)
    run.close()


def test_a_full_disk_leaves_the_checkpoint_before_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create(tmp_path)
    run.save({"round": 1})

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as raised:
        run.save({"round": 2})
    assert "\n" not in str(raised.value) and "No space left on device" in str(raised.value)
    assert "000002.ckpt" in str(raised.value)
    monkeypatch.undo()
    run.close()
    assert not list(run.folder.glob("**/*.part"))
    assert Run.resume(run.folder, 0.0).stage_state == {"round": 1}


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_for_a_checkpoint_and_a_second_stops_at_once(tmp_path: Path, signal_number: int) -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as interruption:
        run = Run.create(tmp_path, "run", "a: 1\n", math.inf, interruption)
        run.save_if_due(lambda: {"round": 1})
        assert not numbers(run)
        os.kill(os.getpid(), signal_number)
        with pytest.raises(Interrupted, match=signal.Signals(signal_number).name):
            run.save_if_due(lambda: {"round": 2})
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal_number)
    run.close()
    assert Run.resume(run.folder, 0.0).stage_state == {"round": 2}
    assert signal.getsignal(signal.SIGINT) is before


def test_a_stage_without_checkpoints_is_kept_before_the_stop(tmp_path: Path) -> None:
    interruption = Interruption()
    run = Run.create(tmp_path, "run", "a: 1\n", math.inf, interruption)
    interruption.requested = signal.SIGTERM
    with pytest.raises(Interrupted, match="SIGTERM"):
        run.once("stage", lambda: 5)
    run.close()
    resumed = Run.resume(run.folder, 0.0)
    assert resumed.finished == {"stage": 5}
    resumed.close()


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    write_atomically(path, b"old")

    def crash(*_: Any) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="power cut"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    monkeypatch.undo()
    write_atomically(path, b"newer")
    assert path.read_bytes() == b"newer"
    assert [each.name for each in tmp_path.iterdir()] == ["results.json"]


def test_a_crash_while_saving_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create(tmp_path)
    run.append("history", {"round": 1})
    run.save({"round": 1})

    def crash(*_: Any) -> None:
        raise OSError("power cut")

    run.append("history", {"round": 2})
    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="power cut"):
        run.save({"round": 2})
    run.close()
    monkeypatch.undo()
    resumed = Run.resume(run.folder, 0.0)
    assert resumed.stage_state == {"round": 1} and resumed.read("history") == [{"round": 1}]
    resumed.save({"round": 2})
    assert numbers(resumed)[-1] == 2
    resumed.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the time is for a run; to be set."""
    now = [100.0]
    monkeypatch.setattr("logbook.run.time.monotonic", lambda: now[0])
    monkeypatch.setattr("logbook.run.time.time", lambda: 900.0 + now[0])
    return now


def test_a_checkpoint_is_due_by_the_clock(tmp_path: Path, clock: list[float]) -> None:
    run = Run.create(tmp_path, "run", "", 30.0)
    saved: list[float] = []

    def state() -> dict[str, Any]:
        saved.append(clock[0])
        return {}

    for clock[0] in (110.0, 129.0, 131.0, 150.0, 162.0):
        run.save_if_due(state)
    assert saved == [131.0, 162.0]
    run.close()


def scalars(run: Run) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run.folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_steps_increase_and_a_resume_purges(tmp_path: Path) -> None:
    run = create(tmp_path)
    for value in (1.0, 2.0, 3.0):
        run.log({"a": value, "b": -value})
        if value == 2.0:
            run.save({"done": 2})
    run.log({"b": 99.0, "c": 99.0})  # steps 3 and 4 are not in the checkpoint
    run.close()
    assert scalars(run)["b"] == [(1, -1), (2, -2), (3, -3), (4, 99)]

    resumed = Run.resume(run.folder, 0.0)
    for value in (3.0, 4.0, 5.0):
        resumed.log({"a": value, "b": -value})
    resumed.close()
    found = scalars(resumed)
    assert found["a"] == [(step, float(step)) for step in range(1, 6)]
    assert found["b"] == [(step, -float(step)) for step in range(1, 6)]
    assert found.get("c", []) == []
    assert [path.is_file() for path in (run.folder / "tensorboard").iterdir()] == [True, True]


def test_tensorboard_has_scalars_after_a_second_and_all_before_anything_else(
    tmp_path: Path, clock: list[float]
) -> None:
    run = create(tmp_path)
    for clock[0] in (100.0, 100.4, 100.8):
        run.log({"a": clock[0]})
    assert scalars(run)["a"] == [(1, 100.0)]  # told at once; what follows within a second is told together
    clock[0] = 101.1
    run.log({"a": 101.0})
    assert [step for step, _ in scalars(run)["a"]] == [1, 2, 3, 4]
    run.log({"a": 0.0})
    run.board.add_text("note", "said after it", run.next_step())
    run.save({})
    (file,) = (run.folder / "tensorboard").iterdir()
    events = [event for event in EventFileLoader(str(file)).Load() if event.summary.value]
    assert [event.step for event in events] == [1, 2, 3, 4, 5, 6]  # in this order
    assert [round(event.wall_time, 1) for event in events[:5]] == [1000.0, 1000.4, 1000.8, 1001.1, 1001.1]  # when told
    run.close()


def test_a_full_disk_at_the_end_does_not_hide_how_the_run_ended(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create(tmp_path)
    for _ in range(2):
        run.log({"a": 1.0})

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run.board._get_file_writer(), "add_summary", full)
    run.log({"a": 2.0})
    run.close()
    Run.resume(run.folder, 0.0).close()  # nothing is held any more


def test_writing_is_json_that_others_read(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.write("space.json", {"name": "macro", "decisions": []})
    assert json.loads((run.folder / "space.json").read_text()) == {"name": "macro", "decisions": []}
    run.close()
