"""Nonsense on the command line: whatever is given, a run starts or one line says what is wrong."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra._internal.hydra import Hydra
from hydra.types import RunMode
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from conf.launch import launch
from conf.schema import RunConfig
from main import build_parts

CONF = Path(__file__).resolve().parents[2] / "conf"
NAMES = sorted({path.stem for path in CONF.glob("*/*.yaml")})
GROUPS = sorted({path.parent.name for path in CONF.glob("*/*.yaml")})


def keys_of(node: Any, prefix: str = "") -> list[str]:
    """Every key of a config, groups of keys included."""
    found = []
    for name, value in node.items() if isinstance(node, Mapping) else ():
        found += [prefix + name, *keys_of(value, f"{prefix}{name}.")]
    return found


@pytest.fixture(scope="session")
def keys(compose_text: Any) -> list[str]:
    plain = OmegaConf.to_container(OmegaConf.create(compose_text()[1]))
    return keys_of(plain)


def mistyped(word: str, place: int, kind: int) -> str:
    """A word with one letter lost, doubled, swapped with its neighbor or replaced."""
    place %= len(word)
    letter = word[place]
    changed = ["", letter * 2, word[(place + 1) % len(word)] + letter, "x"][kind % 4]
    return word[:place] + changed + word[place + 1 :]


numbers = st.one_of(
    st.integers(-5, 40), st.sampled_from([10**15, -(10**15), 2**31, 1e308, 1e-320]), st.floats(-10, 10),
    st.sampled_from([float("inf"), float("-inf"), float("nan"), 0, -0.0]),
).map(str)  # fmt: skip
words = st.sampled_from([
    *NAMES, "null", "true", "False", "''", "[]", "[1,2]", "[a, null]", "{a: 1}", "{}", "${seed}", "${no.such.key}",
    "${oc.env:NO_SUCH_VARIABLE}", "???", "/no/such/file", "os.system", "controller.reinforce.Reinforce", "cuda:7",
])  # fmt: skip
values = st.one_of(
    numbers, words, st.builds(mistyped, st.sampled_from(NAMES), st.integers(0, 20), st.integers(0, 3)),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12),
    st.text("[]{}()=,:;$'\"\\ ~+-@#%&*!?<>|/.a1", max_size=8),
)  # fmt: skip
places = st.tuples(st.integers(0, 10**6), st.integers(0, 20), st.integers(0, 3), st.integers(0, 9))
marks = st.sampled_from([""] * 8 + ["+", "++", "~"])


def override_of(keys: list[str], place: tuple[int, int, int, int], mark: str, value: str) -> str:
    """An override of a real key, or of one with a typing error in it."""
    key = (keys + GROUPS * 3)[place[0] % (len(keys) + 3 * len(GROUPS))]
    if place[3] < 2:
        key = mistyped(key, place[1], place[2])
    return f"{mark}{key}" if mark == "~" and place[3] % 2 else f"{mark}{key}={value}"


def check(override: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Start a run with an override, up to where it would write its folder."""
    monkeypatch.setattr(sys, "argv", ["main.py", override])
    started: list[RunConfig] = []

    def start(config: RunConfig, text: str) -> None:
        build_parts(config)
        started.append(config)

    status: Any = 0
    try:
        launch(start)
    except SystemExit as end:
        status = end.code
    printed = capsys.readouterr()
    assert printed.out == ""
    if started:
        assert status == 0 and printed.err == ""
        return
    assert status in (1, 2)
    (line,) = printed.err.splitlines()
    assert line.startswith("luban: ") and len(line) > 20
    key = override.lstrip("+~").partition("=")[0]
    assert any(part in line for part in (key, key.rpartition(".")[2], key.partition(".")[0], "override")), line


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    # Hydra composes everything a first time only to see whether this is a multirun.
    monkeypatch.setattr(Hydra, "get_mode", lambda *given, **named: RunMode.RUN)


def answered(first_seed: int, parts: int) -> Any:
    """The test that whatever is given is answered: in parts of a hundred overrides each, from seeds of their own."""

    def test(part: int, keys: list[str], monkeypatch: Any, capsys: Any) -> None:
        @seed(first_seed + part)
        @settings(max_examples=100, derandomize=False)
        @given(place=places, mark=marks, value=values)
        def start(place: tuple[int, int, int, int], mark: str, value: str) -> None:
            check(override_of(keys, place, mark, value), monkeypatch, capsys)

        start()

    return pytest.mark.parametrize("part", range(parts))(test)


def test_no_plugins_at_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    check("~plugins", monkeypatch, capsys)


test_five_hundred_overrides = answered(0, 5)
test_two_thousand_other_overrides = pytest.mark.slow(answered(5, 20))
