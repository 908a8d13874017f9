"""A run's folder: its config, journals, TensorBoard events and checkpoints, and how to go on from them.

One checkpoint file per moment holds all state: the results of finished stages, the state of the current one, and how
far the journals had been written, so that going on truncates them to that moment. Its first line carries a SHA-256 of
the rest; it is written beside its place, synced, and renamed, so that it is there whole or not at all.
"""

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.utils.tensorboard.writer import SummaryWriter

KEPT = 3
MAGIC = "luban checkpoint 1"


class Run:
    """One run. Make it with `create` or `resume`.

    Attributes:
        folder: Where everything goes.
        finished: The result of every finished stage, plain data.
        stage_state: The state of the current stage, empty at its beginning.
    """

    def __init__(self, folder: Path, checkpoint_every_s: float):
        self.folder, self.checkpoint_every_s = folder, checkpoint_every_s
        self.finished: dict[str, Any] = {}
        self.stage_state: dict[str, Any] = {}
        self._number = 0
        self._tick = 0
        self._journals: dict[str, BinaryIO] = {}
        self._last_save = time.monotonic()
        self._writer: SummaryWriter | None = None

    @classmethod
    def create(cls, root: Path, name: str, config: str, checkpoint_every_s: float) -> "Run":
        """A new folder `root/name` (with the time in front where `name` is empty) that holds the resolved config."""
        root.mkdir(parents=True, exist_ok=True)
        wanted = name or datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        for attempt in range(1, 10_000):
            folder = root / (wanted if attempt == 1 else f"{wanted}-{attempt}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            (folder / "config.yaml").write_text(config)
            return cls(folder, checkpoint_every_s)
        raise ValueError(f"cannot find a free name for a run folder like {root / wanted}")

    @classmethod
    def resume(cls, folder: Path, checkpoint_every_s: float) -> "Run":
        """Go on from the newest checkpoint of a folder.

        Raises:
            ValueError: There is no run, or no checkpoint that can be read.
        """
        if not (folder / "config.yaml").is_file():
            raise ValueError(f"cannot resume {folder}: it is not a run folder (no config.yaml)")
        run = cls(folder, checkpoint_every_s)
        files = sorted((folder / "checkpoints").glob("*.pt"))
        if not files:
            raise ValueError(f"cannot resume {folder}: it has no checkpoint yet; start the run anew")
        run._restore(files[-1])
        return run

    def once(self, stage: str, compute: Callable[[], Any]) -> Any:
        """The result of a stage: computed now, or taken from the run where it was finished before."""
        if stage not in self.finished:
            self.finished[stage] = compute()
            self.save({})
        return self.finished[stage]

    def append(self, journal: str, record: Mapping[str, Any]) -> None:
        """One line of JSON at the end of `<journal>.jsonl`."""
        if journal not in self._journals:
            self._journals[journal] = (self.folder / f"{journal}.jsonl").open("ab")
        self._journals[journal].write(json.dumps(record, allow_nan=False).encode() + b"\n")

    def read(self, journal: str) -> list[dict[str, Any]]:
        """All lines of a journal."""
        if journal in self._journals:
            self._journals[journal].flush()
        path = self.folder / f"{journal}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def write(self, name: str, data: Any) -> None:
        """A JSON file in the run folder, there whole or not at all."""
        write_atomically(self.folder / name, json.dumps(data, indent=1, allow_nan=False).encode() + b"\n")

    @property
    def board(self) -> SummaryWriter:
        """The run's one TensorBoard writer."""
        if self._writer is None:
            # Steps that the checkpoint does not know are shown no more.
            self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self._tick + 1)
        return self._writer

    def log(self, scalars: Mapping[str, float]) -> None:
        """Scalars for TensorBoard, at the next step; one counter serves all tags, so that a resume can purge."""
        board = self.board  # made before the step goes on, for it purges from the coming step
        self._tick += 1
        for tag, value in scalars.items():
            board.add_scalar(tag, value, self._tick)

    def save_if_due(self, state: Callable[[], dict[str, Any]]) -> None:
        """A checkpoint, where the last is longer ago than the interval."""
        if time.monotonic() - self._last_save >= self.checkpoint_every_s:
            self.save(state())

    def save(self, stage_state: dict[str, Any]) -> None:
        """A checkpoint of everything."""
        self.stage_state = stage_state
        offsets = {}
        for name, file in self._journals.items():
            file.flush()
            os.fsync(file.fileno())
            offsets[name] = file.tell()
        if self._writer is not None:
            self._writer.flush()
        state = {"finished": self.finished, "stage_state": stage_state, "offsets": offsets, "tick": self._tick}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        payload = buffer.getvalue()
        header = f"{MAGIC} {hashlib.sha256(payload).hexdigest()}\n".encode()
        self._number += 1
        folder = self.folder / "checkpoints"
        folder.mkdir(exist_ok=True)
        write_atomically(folder / f"{self._number:06d}.pt", header + payload)
        for old in sorted(folder.glob("*.pt"))[:-KEPT]:
            old.unlink()
        self._last_save = time.monotonic()

    def close(self) -> None:
        """Flush and close every file."""
        for file in self._journals.values():
            file.close()
        self._journals.clear()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _restore(self, path: Path) -> None:
        state = read_checkpoint(path)
        self._number = int(path.stem)
        self.finished, self.stage_state, self._tick = state["finished"], state["stage_state"], state["tick"]
        for file in self.folder.glob("*.jsonl"):
            with file.open("r+b") as journal:
                journal.truncate(state["offsets"].get(file.stem, 0))
        for name in state["offsets"]:
            self._journals[name] = (self.folder / f"{name}.jsonl").open("ab")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint file.

    Raises:
        ValueError: It is damaged, or no checkpoint.
    """
    header, _, payload = path.read_bytes().partition(b"\n")
    if header.decode(errors="replace") != f"{MAGIC} {hashlib.sha256(payload).hexdigest()}":
        raise ValueError(f"{path} is damaged: its content does not match its SHA-256")
    return torch.load(io.BytesIO(payload), weights_only=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside, sync, rename: after a crash the file is whole, old or new."""
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
