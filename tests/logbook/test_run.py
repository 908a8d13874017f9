"""A run folder remembers everything once, and nothing twice."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from logbook.run import KEPT, Run, read_checkpoint, write_atomically


def create(tmp_path: Path, name: str = "run") -> Run:
    return Run.create(tmp_path, name, "seed: 0\n", 0.0)


def numbers(run: Run) -> list[int]:
    return [int(path.stem) for path in sorted((run.folder / "checkpoints").iterdir())]


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


def test_a_number_that_json_lacks_is_refused(tmp_path: Path) -> None:
    run = create(tmp_path)
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError):
            run.append("history", {"reward": number})
        with pytest.raises(ValueError):
            run.write("results.json", {"reward": number})
    assert run.read("history") == [] and not (run.folder / "results.json").exists()
    run.close()


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
    path = run.folder / "checkpoints" / "000001.pt"
    content = bytearray(path.read_bytes())
    if damage == "a flipped bit":
        content[-200] ^= 1
    changed = {"cut short": content[:-1], "empty": b"", "not ours": b"PK something"}.get(damage, content)
    path.write_bytes(bytes(changed))
    with pytest.raises(ValueError, match=r"000001\.pt is damaged: its content does not match its SHA-256"):
        Run.resume(run.folder, 0.0)


def test_what_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it is not a run folder"):
        Run.resume(tmp_path, 0.0)
    run = create(tmp_path)
    with pytest.raises(ValueError, match="it has no checkpoint yet"):
        Run.resume(run.folder, 0.0)


def test_no_code_is_run_by_a_checkpoint(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.save({"path": Path("x")})  # needs more than plain data and tensors
    run.close()
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        read_checkpoint(run.folder / "checkpoints" / "000001.pt")


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


def test_a_checkpoint_is_due_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("logbook.run.time.monotonic", lambda: clock[0])
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


def test_writing_is_json_that_others_read(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.write("space.json", {"name": "macro", "decisions": []})
    assert json.loads((run.folder / "space.json").read_text()) == {"name": "macro", "decisions": []}
    run.close()
