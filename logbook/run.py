"""A run's folder: its config, journals, TensorBoard events and checkpoints, and how to go on from them.

One checkpoint file per moment holds all state: the results of finished stages, the state of the current one, and how
far the journals had been written, so that going on truncates them to that moment. The last three are kept, and
`checkpoints/newest` names the last, so that one that has gone missing is noticed.
"""

import contextlib
import fcntl
import io
import json
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue] (generated)
from torch.utils.tensorboard.writer import SummaryWriter

from child.space import is_out_of_memory
from logbook.checkpoint import plain_number, read_checkpoint, write_atomically, write_checkpoint
from logbook.interrupt import Interruption
from logbook.record import read_object

KEPT = 3

BOARD_EVERY_S = 1.0
"""Scalars are told together, at most once in this time and at every checkpoint: TensorBoard's thread, woken for every
round of a fast search, would halt it each time."""

MOST_EVENTS = 1000
"""How many may wait for that thread."""


class Run:
    """One run. Make it with `create` or `resume`.

    Attributes:
        folder: Where everything goes.
        finished: The result of every finished stage, plain data.
        stage_state: The state of the current stage, empty at its beginning.
        interruption: Whether the run was asked to stop; it stops at its next checkpoint, which is then made at once.
        remarks: What going on had to say, such as checkpoints that were passed over.
    """

    def __init__(self, folder: Path, checkpoint_every_s: float, interruption: Interruption | None = None):
        self.folder, self.checkpoint_every_s = folder, checkpoint_every_s
        self.interruption = interruption or Interruption()
        self.remarks: list[str] = []
        self.finished: dict[str, Any] = {}
        self.stage_state: dict[str, Any] = {}
        self._stage_began = time.monotonic()
        self._number = 0
        self._tick = 0
        self._purge_step = 1  # TensorBoard shows no step from here on that was written before
        self._journals: dict[str, BinaryIO] = {}
        self._last_save = time.monotonic()
        self._writer: SummaryWriter | None = None
        self._scalars: deque[tuple[Summary, int, float]] = deque()  # what the writer has not been given yet
        self._last_given = -BOARD_EVERY_S
        self._claim = self._claimed()

    @classmethod
    def create(
        cls,
        root: Path,
        name: str,
        config: str,
        checkpoint_every_s: float,
        interruption: Interruption | None = None,
    ) -> "Run":
        """A new folder `root/name` (with the time in front where `name` is empty) that holds the resolved config."""
        root.mkdir(parents=True, exist_ok=True)
        wanted = name or datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        for attempt in range(1, 10_000):
            folder = root / (wanted if attempt == 1 else f"{wanted}-{attempt}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            write_atomically(folder / "config.yaml", config.encode())
            return cls(folder, checkpoint_every_s, interruption)
        raise ValueError(f"cannot find a free name for a run folder like {root / wanted}")

    @classmethod
    def resume(cls, folder: Path, checkpoint_every_s: float, interruption: Interruption | None = None) -> "Run":
        """Go on from the newest checkpoint of a folder that is whole; from the beginning where none was made yet.

        Raises:
            ValueError: There is no run, another process is at it, or there are checkpoints but none is whole.
        """
        if not (folder / "config.yaml").is_file():
            raise ValueError(f"cannot resume {folder}: it is not a run folder (no config.yaml)")
        run = cls(folder, checkpoint_every_s, interruption)
        files = sorted((folder / "checkpoints").glob("*.ckpt"), reverse=True)
        newest = folder / "checkpoints" / "newest"
        named = newest.read_text(errors="replace").strip() if newest.is_file() else ""
        if named and named not in [file.name for file in files]:
            run.remarks.append(f"The newest checkpoint, {newest.with_name(named)}, is missing.")
        for file in files:
            try:
                state = read_checkpoint(file)
            except ValueError as error:
                run.remarks.append(f"Passed over a checkpoint: {error}.")
                continue
            run._restore(state, int(file.stem))
            run.remarks.append(f"Going on from {file}.")
            return run
        if files or named:
            raise ValueError(f"cannot resume {folder}: no checkpoint is whole; start the run anew. {run.remarks[-1]}")
        run._truncate({})
        run.remarks.append("No checkpoint had been made yet: starting from the beginning.")
        return run

    def once(self, stage: str, compute: Callable[[], Any]) -> Any:
        """The result of a stage: computed now, or taken from the run where it was finished before."""
        if stage not in self.finished:
            if not self.stage_state:  # else it goes on
                self._stage_began = time.monotonic()
            self.finished[stage] = compute()
            self.save({})
            self.interruption.check()
        return self.finished[stage]

    def take_up(self, load: Callable[[dict[str, Any]], None]) -> None:
        """Load the state of the current stage, where it was stopped.

        Raises:
            ValueError: The state is not what is loaded here.
        """
        if self.stage_state:
            try:
                load(self.stage_state)
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                if is_out_of_memory(error):  # which is no fault of the checkpoint
                    raise
                raise ValueError(
                    f"cannot resume {self.folder}: its checkpoint is of another version of Luban, or a part of your "
                    f"own does not load what its state_dict gave ({error!r}); go on with what began the run, or begin "
                    "a new run"
                ) from None

    @property
    def seconds(self) -> float:
        """What the current stage has taken so far, before a stop too; within a stage within a stage, the inner one."""
        return time.monotonic() - self._stage_began

    def append(self, journal: str, *records: Mapping[str, Any]) -> None:
        """A line of JSON for each record at the end of `<journal>.jsonl`; a number that is not finite becomes null."""
        if journal not in self._journals:
            self._journals[journal] = (self.folder / f"{journal}.jsonl").open("ab")
        lines = [orjson.dumps(record, plain_number, orjson.OPT_APPEND_NEWLINE) for record in records]
        self._journals[journal].write(b"".join(lines))

    def read(self, journal: str) -> list[dict[str, Any]]:
        """All lines of a journal."""
        if journal in self._journals:
            self._journals[journal].flush()
        path = self.folder / f"{journal}.jsonl"
        return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []

    def write(self, name: str, data: Any) -> None:
        """A JSON file in the run folder, there whole or not at all."""
        text = json.dumps(data, indent=1, allow_nan=False, default=plain_number)
        write_atomically(self.folder / name, text.encode() + b"\n")

    def write_task(self, about: Mapping[str, Any]) -> None:
        """`task.json`; of a run that goes on, first proved to be about the same data.

        Raises:
            ValueError: They are others than those that the run began with.
        """
        before = read_object(self.folder / "task.json", ()) or {}
        if before.get("data") not in (None, about.get("data")):
            raise ValueError(
                f"resume: the data of {about['task']} are not those that {self.folder} began with, so that what it "
                "has learned from those would be judged by these; put the data back, or begin a new run"
            )
        self.write("task.json", about)

    def write_arrays(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """A compressed NumPy file in the run folder, there whole or not at all; equal arrays give equal bytes."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        write_atomically(self.folder / name, buffer.getvalue())

    @property
    def board(self) -> SummaryWriter:
        """The run's one TensorBoard writer, to which all scalars so far have been given."""
        if self._writer is None:
            folder = str(self.folder / "tensorboard")
            self._writer = SummaryWriter(folder, purge_step=self._purge_step, max_queue=MOST_EVENTS)
        while self._scalars:
            self._writer._get_file_writer().add_summary(*self._scalars.popleft())
        self._last_given = time.monotonic()
        return self._writer

    def log(self, scalars: Mapping[str, float]) -> None:
        """Scalars for TensorBoard, at the next step; one counter serves all tags, so that a resume can purge."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._scalars.append((Summary(value=values), self.next_step(), time.time()))  # one event for all
        if time.monotonic() - self._last_given >= BOARD_EVERY_S:
            self.board.flush()

    def next_step(self) -> int:
        """The next step of TensorBoard, for what is not a scalar."""
        self._tick += 1
        return self._tick

    def save_if_due(self, state: Callable[[], dict[str, Any]]) -> None:
        """A checkpoint, where the last is longer ago than the interval; or at once, and a stop, where one is asked for.

        Raises:
            Interrupted: The run was asked to stop; its checkpoint is written.
        """
        if self.interruption.requested or time.monotonic() - self._last_save >= self.checkpoint_every_s:
            self.save(state())
            self.interruption.check()

    def save(self, stage_state: dict[str, Any]) -> None:
        """A checkpoint of everything.

        Raises:
            OSError: It could not be written, as on a full disk; the checkpoint before is untouched.
        """
        self.stage_state = stage_state
        offsets = {}
        for name, file in self._journals.items():
            try:
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                path = self.folder / f"{name}.jsonl"
                raise OSError(f"cannot write {path}: {error.strerror or error}") from None
            offsets[name] = file.tell()
        if self._writer is not None:
            self.board.flush()
        state = {
            "finished": self.finished,
            "stage_state": stage_state,
            "seconds": self.seconds,
            "offsets": offsets,
            "tick": self._tick,
        }
        self._number += 1
        folder = self.folder / "checkpoints"
        path = folder / f"{self._number:06d}.ckpt"
        write_checkpoint(path, state)
        write_atomically(folder / "newest", path.name.encode())
        for old in sorted(folder.glob("*.ckpt"))[:-KEPT]:
            old.unlink()
        self._last_save = time.monotonic()

    def close(self) -> None:
        """Close every file; what no checkpoint knows may be lost, and would be truncated anyway."""
        self._claim.close()
        for file in self._journals.values():
            with contextlib.suppress(OSError):
                file.close()
        self._journals.clear()
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self.board.close()
            self._writer = None

    def _claimed(self) -> BinaryIO:
        """A file that is locked as long as this process is at the run: two would write over each other."""
        file = self.folder / "checkpoints" / "lock"
        file.parent.mkdir(exist_ok=True)
        claim = file.open("ab")
        try:
            fcntl.lockf(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            claim.close()
            raise ValueError(f"cannot resume {self.folder}: another process is at this run; wait or stop it") from None
        except OSError:  # a file system without locks
            pass
        return claim

    def _restore(self, state: dict[str, Any], number: int) -> None:
        self._number = number
        self.finished, self.stage_state, self._tick = state["finished"], state["stage_state"], state["tick"]
        self._stage_began = time.monotonic() - state.get("seconds", 0.0)
        self._purge_step = self._tick + 1
        self._truncate(state["offsets"])

    def _truncate(self, offsets: Mapping[str, int]) -> None:
        """Take the journals back to where a checkpoint knew them."""
        for name, offset in offsets.items():
            path = self.folder / f"{name}.jsonl"
            length = path.stat().st_size if path.exists() else 0
            if length < offset:
                raise ValueError(f"cannot resume: {path} has {length} bytes, but its checkpoint knew {offset} of them")
        for path in self.folder.glob("*.jsonl"):
            with path.open("r+b") as journal:
                journal.truncate(offsets.get(path.stem, 0))
        for name in offsets:
            self._journals[name] = (self.folder / f"{name}.jsonl").open("ab")
