"""A log has to be short and plain, a terminal live, and the time left true."""

import io

import pytest
from rich.table import Table

from logbook import console as module
from logbook.console import Console
from logbook.numbers import duration, human


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that the console looks at."""
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


def test_plain_lines_are_the_first_the_last_and_one_every_five_seconds(clock: Clock) -> None:
    out = io.StringIO()
    with Console(out, terminal=False).stage("search", total=40) as progress:
        for done in range(1, 41):
            clock.now += 1
            progress.advance(done, status=f"best: reward {done}")
    lines = out.getvalue().splitlines()
    assert lines[0] == "[search] 1/40  39 s left  best: reward 1"
    assert lines[1] == "[search] 6/40  34 s left  best: reward 6"
    assert lines[-1] == "[search] 40/40  40 s taken  best: reward 40"
    assert len(lines) == 9
    assert "\x1b" not in out.getvalue()


def test_the_time_left_after_a_resume_counts_this_session_alone(clock: Clock) -> None:
    out = io.StringIO()
    with Console(out, terminal=False).stage("search", total=40, initial=30) as progress:
        assert progress.left is None
        clock.now += 10
        progress.advance(32)
        assert progress.left == 40
        clock.now += 4
        assert progress.left == 36
    assert out.getvalue().startswith("[search] 32/40  40 s left")


def test_where_a_stage_broke_off_is_written(clock: Clock) -> None:
    out = io.StringIO()
    with (
        pytest.raises(RuntimeError, match="broken"),
        Console(out, terminal=False).stage("retrain", total=9) as progress,
    ):
        progress.advance(1)
        progress.advance(2)
        raise RuntimeError("broken")
    assert [line.split("  ")[0] for line in out.getvalue().splitlines()] == ["[retrain] 1/9", "[retrain] 2/9"]


def test_a_terminal_gets_a_bar_that_is_closed_even_on_an_error() -> None:
    out = io.StringIO()
    console = Console(out, terminal=True)
    console.live = True  # whatever TERM the tests run under
    with pytest.raises(RuntimeError, match="broken"), console.stage("search", total=4, initial=1) as progress:
        progress.advance(2, status="reward 0.9 [at] 0.8 M MACs")
        console.say("a line above the bar")
        raise RuntimeError("broken")
    text = out.getvalue()
    assert "a line above the bar" in text and "2/4" in text and "search" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is shown again
    with console.stage("next", total=1) as progress:  # a display left open would refuse a second one
        progress.advance(1)
    assert "next" in out.getvalue()


def test_said_lines_stay_whole_and_are_no_markup() -> None:
    out = io.StringIO()
    path = "outputs/" + "very-long-" * 20 + "[bold]/report.html"
    Console(out, terminal=False).say(path)
    assert out.getvalue() == path + "\n"


def test_a_table_in_a_log_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = Table("network", "validation", "test", "n", "MACs", "parameters", "latency ms")
    table.add_row("Student without a teacher", "99.20% ± 0.10", "99.00% ± 0.10", "3", "1.23 M", "30.9 k", "1.20 ± 0.10")
    out = io.StringIO()
    Console(out, terminal=False).table(table)
    assert any("Student without a teacher" in line and "1.20 ± 0.10" in line for line in out.getvalue().splitlines())


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (812, "812"),
        (999.6, "1.00 k"),
        (812_000, "812 k"),
        (999_999, "1.00 M"),
        (3.2e9, "3.20 G"),
    ],
)
def test_counts_for_people(number: float, text: str) -> None:
    assert human(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(8.4, "8 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
