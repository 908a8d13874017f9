"""Long benchmarks in pieces, whole runs of a script or jobs of a line each: what was stopped goes on, all is kept."""

from timing import RESULTS, ROOT  # isort: skip

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Job = tuple[str, Path, Sequence[str]]
"""What to call a run, its folder, and its overrides."""


def folder_of(benchmark: str, name: str, seed: int) -> Path:
    """Of one run of a benchmark."""
    return ROOT / "outputs" / f"benchmark-{benchmark}" / f"{name.replace(' ', '-')}{seed}"


def is_finished(folder: Path) -> bool:
    """Whether a run has its results."""
    return (folder / "results.json").exists()


def finish(jobs: Iterable[Job], script: str = "main.py") -> None:
    """Run what has no results yet, each with one thread unless it asks for more.

    The command line's arguments are overrides for every run.
    """
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(partial(_run, script), jobs))


def _run(script: str, job: Job) -> None:
    title, folder, overrides = job
    if is_finished(folder):
        return
    begun = any(folder.glob("checkpoints/*.ckpt"))
    new = ["threads=1", *overrides, f"name={folder.name}", f"output={folder.parent}", *sys.argv[1:]]
    arguments = [f"resume={folder}"] if begun else new
    done = subprocess.run([sys.executable, script, *arguments], cwd=ROOT, capture_output=True, text=True)
    last = done.stdout.strip().splitlines()[-1] if done.returncode == 0 else done.stderr
    print(f"{title}: {last}", flush=True)


def read_results(folder: Path) -> dict[str, Any]:
    """The results of a run, with its rows by their names."""
    results = json.loads((folder / "results.json").read_text())
    return {**results, "rows": {row["name"]: row for row in results["rows"]}}


def names_given(what: str, known: Iterable[str]) -> list[str]:
    """Those named on the command line, all that are known where none is; ends with a message where one is not."""
    known = list(known)
    names = sys.argv[1:] or known
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"there is no {what} {unknown[0]!r}; there are: {', '.join(known)}")
    return names


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The jobs that are finished, without a last line that a stop cut off."""
    found = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return found


def finish_lines(path: Path, run: Callable[[Any], dict[str, Any]], jobs: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Run jobs, one on each core, and write down what each gives as a line of the file, as soon as it is there."""
    path.parent.mkdir(exist_ok=True)
    with multiprocessing.Pool(os.cpu_count()) as pool, path.open("a") as file:
        for line in pool.imap_unordered(run, jobs):
            file.write(json.dumps(line) + "\n")
            file.flush()
            yield line


def with_error(gains: Sequence[float] | np.ndarray, digits: int) -> str:
    """The mean with its sign, and its standard error."""
    error = np.std(gains, ddof=1) / np.sqrt(len(gains))
    return f"{np.mean(gains):+.{digits}f} ± {error:.{digits}f}"


def write(name: str, rows: list[dict], text: str) -> None:
    """Print a table, and write it and its rows to results/<name>.md and results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(text)
    print(text)
