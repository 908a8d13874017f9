"""The profile of a run times functions by their names; a name that is gone would end it."""

import re
from pathlib import Path

import main

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "run_profile.py"


def test_every_function_that_is_timed_is_there() -> None:
    timed = re.findall(r'clock\(luban, "(\w+)"', SCRIPT.read_text())
    assert len(timed) > 5 and all(callable(getattr(main, name, None)) for name in timed), timed
