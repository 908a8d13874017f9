"""Plain data become typed settings, or a line that says what is wrong."""

import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pytest

from child.training import TrainingSettings
from conf.schema import ConfigError, Part, read

if TYPE_CHECKING:
    from decimal import Decimal


@dataclass(frozen=True)
class Inner:
    rate: float
    size: int = 3


@dataclass(frozen=True)
class Defaults:
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low must be at most high, got {self.low} and {self.high}")


@dataclass(frozen=True)
class Outer:
    inner: Inner
    defaults: Defaults
    kind: Literal["left", "right"] = "left"
    steps: int | None = None
    rates: tuple[float, ...] = ()
    names: Sequence[str] = ()
    sizes: list[int] | None = None
    on: bool = False
    either: int | str = 0
    text: str = ""


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (int, 3, 3),
        (float, 3, 3.0),
        (float, 0.5, 0.5),
        (bool, True, True),
        (str, "3", "3"),
        (int | None, None, None),
        (int | None, 4, 4),
        (int | str, "a", "a"),
        (int | str, 4, 4),
        (Literal["a", "b"], "b", "b"),
        (Literal[1, 2], 2, 2),
        (tuple[float, ...], [1, 2.5], (1.0, 2.5)),
        (list[int], [1, 2], [1, 2]),
        (Sequence[str], ["a"], ("a",)),
        (list[int] | None, None, None),
        (Any, {"x": [1]}, {"x": [1]}),
        (Inner, {"rate": 1}, Inner(1.0)),
    ],
)
def test_values_of_the_right_type(kind: Any, value: Any, expected: Any) -> None:
    found = read(kind, value, "key")
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (int, 3.0, "key: expected an integer, got 3.0"),
        (int, True, "key: expected an integer, got True"),
        (int, "3", "key: expected an integer, got '3'"),
        (float, "3", "key: expected a number, got '3'"),
        (float, True, "key: expected a number, got True"),
        (float, float("nan"), "key: expected a number, got nan"),
        (float, None, "key: expected a number, got None"),
        (bool, 1, "key: expected true or false, got 1"),
        (str, 3, "key: expected text, got 3"),
        (int | None, "x", r"key: expected an integer, got 'x' \(or null\)"),
        (Literal["uniform", "fair"], "fare", "key: got 'fare'; allowed: uniform, fair; did you mean 'fair'"),
        (Literal[1, 2], True, "key: got True; allowed: 1, 2"),
        (tuple[float, ...], 0.1, r"key: expected a list such as \[1,2\], got 0.1"),
        (tuple[float, ...], [0.1, "x"], r"key\[1\]: expected a number, got 'x'"),
        (list[int], "12", "key: expected a list"),
        (Inner, 3, "key: expected a group of keys, got 3"),
        (Inner, {"rate": 1, "sise": 2}, "key.sise: unknown key; allowed: rate, size; did you mean 'size'"),
        (Inner, {}, "key.rate: this key is missing"),
        (Part, {"x": 1}, "key: expected a config with _target_"),
        (Part, "macro", "key: expected a config with _target_, .* got 'macro'"),
    ],
)
def test_values_of_the_wrong_type(kind: Any, value: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"^{expected}"):
        read(kind, value, "key")


def test_groups_within_groups() -> None:
    data = {"inner": {"rate": 2}, "kind": "right", "rates": [1, 2], "names": ["a"], "sizes": [1], "either": "x"}
    assert read(Outer, data, "") == Outer(
        Inner(2.0), Defaults(), "right", None, (1.0, 2.0), ("a",), [1], False, "x", ""
    )
    with pytest.raises(ConfigError, match=r"^inner\.size: expected an integer, got 1\.5$"):
        read(Outer, {"inner": {"rate": 2, "size": 1.5}}, "")
    with pytest.raises(ConfigError, match=r"^inner\.rate: this key is missing$"):
        read(Outer, {}, "")


def test_what_a_group_refuses_names_the_group() -> None:
    with pytest.raises(ConfigError, match=r"^defaults: low must be at most high, got 2\.0 and 1\.0$"):
        read(Outer, {"inner": {"rate": 1}, "defaults": {"low": 2}}, "")
    with pytest.raises(ConfigError, match=r"^retrain\.training: training\.epochs must be above 0, got 0$"):
        read(TrainingSettings, {"epochs": 0}, "retrain.training")


# Parts


class Built:
    """What a user's module offers."""

    def __init__(self, space: str, size: int, inner: Inner | None = None, defaults: Defaults = Defaults()):
        if size > 99:
            raise ValueError(f"size must be at most 99, got {size}")
        self.space, self.size, self.inner, self.defaults = space, size, inner, defaults


class Needs:
    def __init__(self, defaults: Defaults):
        self.defaults = defaults


class Named:
    def __init__(self, *, width: int):
        self.width = width


class ForCheckers:
    def __init__(self, width: "Decimal"):
        self.width = width


def anything(**arguments: Any) -> dict[str, Any]:
    return arguments


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> str:
    module: Any = types.ModuleType("my_plugin")
    for each in (Built, Needs, Named, ForCheckers, anything):
        setattr(module, each.__name__, each)
    monkeypatch.setitem(sys.modules, "my_plugin", module)
    return "my_plugin"


def part(plugin: str, name: str = "Built", **arguments: Any) -> Part:
    return Part("space", f"{plugin}.{name}", arguments)


def test_a_plugins_class_is_built_with_checked_arguments(plugin: str) -> None:
    built = part(plugin, size=3, inner={"rate": 1}).build([plugin], space="s", unused="left out")
    assert (built.space, built.size, built.inner, built.defaults) == ("s", 3, Inner(1.0), Defaults())
    assert part(plugin, "anything", a=1).build([plugin], b=2) == {"a": 1, "b": 2}
    assert part(plugin, "Needs").build([plugin]).defaults == Defaults()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"sise": 3}, r"space\.sise: my_plugin\.Built takes no such argument; allowed: size, inner, defaults; did you"),
        ({"size": 3.5}, r"space\.size: expected an integer, got 3\.5"),
        ({}, r"space\.size: my_plugin\.Built needs this argument; set space\.size=\.\.\."),
        ({"size": 3, "inner": {"rate": "x"}}, r"space\.inner\.rate: expected a number, got 'x' \(or null\)"),
        ({"size": 100}, r"space: size must be at most 99, got 100"),
    ],
)
def test_wrong_arguments_are_named(plugin: str, arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=f"^{expected}"):
        part(plugin, **arguments).build([plugin], space="s")


@pytest.mark.parametrize(
    "target", ["os.system", "subprocess.run", "builtins.eval", "torch.load", "my_plugin.Built", "eval", "childish.X"]
)
def test_what_is_not_ours_is_refused(plugin: str, target: str) -> None:
    with pytest.raises(ConfigError, match=rf"^space\._target_: refused to call '{target}'; allowed: classes of child"):
        Part("space", target, {}).build([])


def test_what_ours_imported_is_not_ours() -> None:
    with pytest.raises(ConfigError, match=r"'child\.standalone\.Path' is none of ours, but of pathlib"):
        Part("space", "child.standalone.Path", {}).build([])


def test_what_a_part_needs(plugin: str) -> None:
    needed = [name for name in ("size", "inner", "nosuch") if part(plugin).needs([plugin], name)]
    assert needed == ["size"]


def test_a_plugin_allows_its_own_module_only(plugin: str) -> None:
    with pytest.raises(ConfigError, match=r"refused to call 'my_plugin\.inner\.Built'"):
        Part("space", "my_plugin.inner.Built", {}).build([plugin])


def test_an_argument_by_name_alone_is_needed_too(plugin: str) -> None:
    with pytest.raises(ConfigError, match=r"space\.width: my_plugin\.Named needs this argument"):
        part(plugin, "Named").build([plugin])


def test_annotations_for_type_checkers_alone_are_named(plugin: str) -> None:
    with pytest.raises(ConfigError, match=r"^space: the annotations of my_plugin\.ForCheckers .*'Decimal' is not def"):
        part(plugin, "ForCheckers", width=1).build([plugin])


def test_what_is_no_class_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^space\._target_: 'child\.macro' is a module, not a class"):
        Part("space", "child.macro", {}).build([])


@pytest.mark.parametrize("target", ["child.macro.MacroSpase", "child.nowhere.X", "envs.nothing"])
def test_what_is_not_there_is_named(target: str) -> None:
    with pytest.raises(ConfigError, match=rf"^space\._target_: cannot find '{target}'"):
        Part("space", target, {}).build([])
