"""Whole runs of `main.py` for a benchmark: two at a time, each goes on where it was stopped, results kept."""

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT))

Job = tuple[str, Path, Sequence[str]]
"""What to call a run, its folder, and its overrides."""


def finish(jobs: Iterable[Job]) -> None:
    """Run what has no results yet, each with one thread; the command line's arguments are overrides for every run."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_run, jobs))


def _run(job: Job) -> None:
    title, folder, overrides = job
    if (folder / "results.json").exists():
        return
    begun = any(folder.glob("checkpoints/*.ckpt"))
    new = [*overrides, f"name={folder.name}", f"output={folder.parent}", "threads=1", *sys.argv[1:]]
    arguments = [f"resume={folder}"] if begun else new
    done = subprocess.run([sys.executable, "main.py", *arguments], cwd=ROOT, capture_output=True, text=True)
    last = done.stdout.strip().splitlines()[-1] if done.returncode == 0 else done.stderr
    print(f"{title}: {last}", flush=True)


def write(name: str, rows: list[dict], text: str) -> None:
    """Print a table, and write it and its rows to results/<name>.md and results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(text)
    print(text)
