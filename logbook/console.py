"""What a person watching a run sees: live progress bars on a terminal, plain lines everywhere else."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from time import monotonic
from typing import TextIO

import rich.console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column, Table
from rich.text import Text

from logbook.numbers import duration

PLAIN_WIDTH = 120  # columns; a log file or a pipe has no width of its own
PLAIN_INTERVAL = 5.0  # seconds between progress lines, so that a log stays short enough to read


class Stage:
    """The progress of one stage; `Console.stage` makes it."""

    def __init__(self, name: str, total: int, initial: int) -> None:
        self.name, self.total, self.initial = name, total, initial
        self.done, self.status = initial, ""
        self.started = self.advanced = monotonic()

    def advance(self, done: int, status: str | None = None) -> None:
        """Report that `done` units are done in all, those before a resume included; `status` stays until replaced."""
        self.done = done
        self.status = self.status if status is None else status
        self.advanced = monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of this session."""
        return monotonic() - self.started

    @property
    def left(self) -> float | None:
        """Seconds left at the pace of this session alone, or None before there is a pace."""
        if self.done <= self.initial:
            return None
        pace = (self.advanced - self.started) / (self.done - self.initial)
        return max(0.0, (self.total - self.done) * pace - (monotonic() - self.advanced))


class _PlainStage(Stage):
    """A stage that writes lines: the first, the last, and one every few seconds between."""

    def __init__(self, out: rich.console.Console, name: str, total: int, initial: int) -> None:
        super().__init__(name, total, initial)
        self.out = out
        self.written: tuple[float, int] | None = None  # when, and what was done then

    def advance(self, done: int, status: str | None = None) -> None:
        super().advance(done, status)
        if self.written is None or done >= self.total or monotonic() - self.written[0] >= PLAIN_INTERVAL:
            self.write()

    def write(self) -> None:
        if self.done >= self.total or self.left is None:
            time = f"{duration(self.elapsed)} taken"
        else:
            time = f"{duration(self.left)} left"
        _line(self.out, f"[{self.name}] {self.done}/{self.total}  {time}  {self.status}".rstrip())
        self.written = monotonic(), self.done

    def close(self) -> None:
        if self.written is not None and self.written[1] != self.done:
            self.write()


class _LiveStage(Stage):
    """A stage that rich draws; the bar is all that has to be told."""

    def __init__(self, bar: Progress, name: str, total: int, initial: int) -> None:
        super().__init__(name, total, initial)
        self.bar = bar
        self.task = bar.add_task("", total=total, completed=initial, stage=self)

    def advance(self, done: int, status: str | None = None) -> None:
        super().advance(done, status)
        self.bar.update(self.task, completed=done)


class _Times(ProgressColumn):
    """Elapsed and left, redrawn as the clock goes on between advances.

    Rich's own estimate looks at the last 30 seconds alone, and one round of a search may take longer than that.
    """

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        stage: Stage = task.fields["stage"]
        if stage.done >= stage.total:
            # Not the clock of now: the finished bar is drawn once more when the stage closes.
            return Text(f"{duration(stage.advanced - stage.started)} taken")
        left = "" if stage.left is None else f", {duration(stage.left)} left"
        return Text(f"{duration(stage.elapsed)}{left}")


class Console:
    """Prints lines, tables and the progress of stages.

    Args:
        file: Where to print; the standard output unless given.
        terminal: Whether that is a terminal; detected unless given.
    """

    def __init__(self, file: TextIO | None = None, terminal: bool | None = None) -> None:
        if file is None and isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a long run must not end over a ± that a log cannot encode
        self._rich = rich.console.Console(file=file, force_terminal=terminal, highlight=False)
        self.live = self._rich.is_terminal and not self._rich.is_dumb_terminal
        if not self.live:
            self._rich = rich.console.Console(
                file=file, force_terminal=False, width=PLAIN_WIDTH, color_system=None, highlight=False
            )

    def say(self, line: str) -> None:
        """Print one line, as it is, above a progress bar if there is one."""
        _line(self._rich, line)

    def table(self, table: Table) -> None:
        """Print a rich table."""
        self._rich.print(table)

    @contextmanager
    def stage(self, name: str, total: int, initial: int = 0) -> Iterator[Stage]:
        """Show the progress of a stage of `total` units, `initial` of which an earlier session has done."""
        if not self.live:
            plain = _PlainStage(self._rich, name, total, initial)
            try:
                yield plain
            finally:
                plain.close()
            return
        columns = [
            TextColumn("[bold]{task.fields[stage].name}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=16),
            TextColumn("{task.completed:.0f}/{task.total:.0f}", table_column=Column(no_wrap=True)),
            _Times(table_column=Column(no_wrap=True, style="dim")),
            TextColumn(
                "{task.fields[stage].status}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
            ),
        ]
        with Progress(*columns, console=self._rich, expand=True) as bar:
            yield _LiveStage(bar, name, total, initial)


def _line(out: rich.console.Console, line: str) -> None:
    # Soft wrap leaves a long path in one piece, so that it can be copied.
    out.print(line, markup=False, soft_wrap=True)
