"""The files around the code: what is pinned is what is asked for, and nothing names one particular machine."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from child.export import VERSION

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]

# An absolute path into a home or a working folder; one inside a longer path or an address does not count.
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|home)/")


def read_lock() -> dict[NormalizedName, str]:
    """Package names to pinned versions."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    for pin in pins:
        # No local version either: which build of torch is installed is up to the machine.
        assert re.fullmatch(r"[\w.-]+==[\w.]+", pin), f"expected name==version, got {pin!r}"
    versions = {canonicalize_name(name): version for name, version in (pin.split("==") for pin in pins)}
    assert len(versions) == len(pins), "a package is pinned twice"
    return versions


@pytest.mark.parametrize(
    "dependency", [*PROJECT["dependencies"], *EXTRAS["onnx"], *EXTRAS["rl"], *EXTRAS["prune"], *EXTRAS["dev"]]
)
def test_dependency_is_pinned(dependency: str) -> None:
    requirement = Requirement(dependency)
    version = read_lock()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version), f"{requirement} is pinned to {version}"


def test_no_path_of_one_machine() -> None:
    git = shutil.which("git")
    listing = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True) if git else None
    if listing is None or listing.returncode != 0:
        pytest.skip("not in a git checkout")
    found = []
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        if not path.is_file() or b"\0" in (content := path.read_bytes()):
            continue  # deleted but not yet committed, or not text
        for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), 1):
            if MACHINE_PATH.search(line):
                found.append(f"{name}:{number}: {line.strip()}")
    assert found == []


def test_exported_models_tell_the_version() -> None:
    assert PROJECT["version"] == VERSION
