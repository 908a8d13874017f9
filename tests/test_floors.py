"""An import only ever goes down: the floors of the house, held module by module."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FLOORS = ("controller", "envs", "child", "logbook", "conf")

# What a module may import of ours; the longest name that holds the module is its rule. A top script has none: it may
# import every floor.
MAY_IMPORT = {
    "controller": ("controller", "logbook", "child.space"),
    "envs": ("envs", "child"),
    "child": ("child", "logbook"),
    "child.space": (),
    "child.task": (),
    "child.transforms": (),
    "logbook": ("logbook", "child.space"),
    "conf": ("conf", "controller", "child", "logbook"),  # the typed config is made of the settings of the parts
}

# The only package that does something on import: it registers the environments.
BUSY_PACKAGES = ("envs",)

# Its wheel breaks beside the CPU build of torch.
FORBIDDEN = ("torchvision",)


def within(module: str, parents: tuple[str, ...]) -> bool:
    """Whether a module is one of these, or lies below one of them."""
    return any(module == parent or module.startswith(f"{parent}.") for parent in parents)


def find_modules(root: Path) -> dict[str, Path]:
    """The modules of the floors and the top scripts, by dotted name; a package goes by the name of its folder."""
    paths = [*root.glob("*.py"), *(path for floor in FLOORS for path in (root / floor).rglob("*.py"))]
    parts = {path: path.relative_to(root).with_suffix("").parts for path in sorted(paths)}
    return {".".join(names[:-1] if names[-1] == "__init__" else names): path for path, names in parts.items()}


def find_imports(module: str, path: Path, modules: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a module imports: at its top, in a function, for types only, or by name."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name) for alias in node.names)
            case ast.ImportFrom():
                # `from . import x` counts from the package, one folder further up for every further dot.
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                source = ".".join([*above, *([node.module] if node.module else [])])
                for alias in node.names:
                    name = f"{source}.{alias.name}"
                    yield node.lineno, name if name in modules else source
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def find_violations(root: Path) -> list[str]:
    """Everything in a tree that breaks the floors, one readable line each."""
    modules = find_modules(root)
    below: dict[str, set[str]] = {}
    violations = []
    for module, path in modules.items():
        rule = max((floor for floor in MAY_IMPORT if within(module, (floor,))), key=len, default=None)
        allowed = FLOORS if rule is None else MAY_IMPORT[rule]
        imports = list(find_imports(module, path, modules))
        below[module] = {name for _, name in imports if name in modules}
        for line, name in imports:
            top = name.split(".")[0]
            ours = (root / top).is_dir() or (root / f"{top}.py").is_file()
            if (ours and not within(name, allowed)) or within(name, FORBIDDEN):
                violations.append(f"{path.relative_to(root)}:{line}: {module} may not import {name}")
        if path.name == "__init__.py" and module not in BUSY_PACKAGES and path.read_text(encoding="utf-8").strip():
            violations.append(f"{path.relative_to(root)}: must stay empty")
    try:
        TopologicalSorter(below).prepare()
    except CycleError as error:
        violations.append(f"import cycle: {' -> '.join(reversed(error.args[1]))}")
    return violations


def test_imports_only_go_down() -> None:
    assert find_modules(ROOT), f"found no module under {ROOT}"
    assert find_violations(ROOT) == []


# The checker itself, on small trees.

SOUND = {
    "main.py": "import controller.search\nfrom child import space, task\nimport envs\nimport conf.schema",
    "controller/__init__.py": "",
    "controller/search.py": "from child.space import Genotype\nfrom . import policy\nimport torch",
    "controller/policy.py": "def late():\n    from logbook.run import Run",
    "envs/__init__.py": "import gymnasium",
    "envs/digits.py": "from child.task import Task\nimport child.supernet",
    "child/__init__.py": "",
    "child/space.py": "import numpy",
    "child/task.py": "from torch import nn",
    "child/supernet.py": "from child.space import Genotype\nfrom .task import Task",
    "logbook/run.py": "from child.space import Genotype",
    "conf/schema.py": "from dataclasses import dataclass",
    "tests/test_main.py": "import main",
}

BROKEN = {
    "child imports envs": ({"child/a.py": "import envs.digits"}, "child/a.py:1: child.a may not import envs.digits"),
    "child imports controller": ({"child/a.py": "from controller import policy"}, "may not import controller.policy"),
    "space imports task": ({"child/space.py": "from child.task import Task"}, "child.space may not import child.task"),
    "task imports space": ({"child/task.py": "from .space import Decision"}, "child.task may not import child.space"),
    "controller imports supernet": ({"controller/a.py": "from child import supernet"}, "not import child.supernet"),
    "controller imports child whole": ({"controller/a.py": "import child"}, "controller.a may not import child"),
    "controller imports envs": ({"controller/a.py": "from envs.digits import Digits"}, "not import envs.digits"),
    "envs imports logbook": ({"envs/a.py": "import logbook.run"}, "envs.a may not import logbook.run"),
    "logbook imports task": ({"logbook/a.py": "import child.task"}, "logbook.a may not import child.task"),
    "conf imports envs": ({"conf/a.py": "import envs.digits"}, "conf.a may not import envs.digits"),
    "child imports conf": ({"child/a.py": "from conf import schema"}, "child.a may not import conf.schema"),
    "a script is imported": ({"envs/a.py": "import main"}, "envs.a may not import main"),
    "a script imports a script": ({"report.py": "from main import run"}, "report may not import main"),
    "tests are imported": ({"child/a.py": "from tests.test_main import x"}, "may not import tests.test_main"),
    "a folder without a floor": ({"utils/a.py": "", "main.py": "import utils.a"}, "main may not import utils.a"),
    "inside a function": ({"child/a.py": "def f():\n    import envs"}, "child/a.py:2: child.a may not import envs"),
    "for types only": (
        {"child/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import envs"},
        "child/a.py:3: child.a may not import envs",
    ),
    "by name": ({"child/a.py": "import importlib\nimportlib.import_module('envs')"}, "child/a.py:2: child.a may not"),
    "by relative import": (
        {"child/cells/a.py": "from ...envs import digits"},
        "child.cells.a may not import envs.digits",
    ),
    "torchvision": ({"envs/a.py": "from torchvision import datasets"}, "envs.a may not import torchvision"),
    "a busy package": ({"child/__init__.py": "from child.space import Genotype"}, "child/__init__.py: must stay empty"),
    "a cycle": (
        {"child/a.py": "import child.b", "child/b.py": "def f():\n    from . import a"},
        "import cycle: child.",
    ),
}


def plant(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def test_a_sound_tree_passes(tmp_path: Path) -> None:
    plant(tmp_path, SOUND)
    assert find_violations(tmp_path) == []


@pytest.mark.parametrize(("files", "expected"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_tree_is_reported(tmp_path: Path, files: dict[str, str], expected: str) -> None:
    plant(tmp_path, SOUND | files)
    (violation,) = find_violations(tmp_path)
    assert expected in violation
