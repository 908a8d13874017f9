"""Timing of alternatives side by side in one run: interleaved, medians, recorded as a table and as JSON."""

import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT))
SHARED = ROOT.parent / "shared" / "data"
if SHARED.is_dir():  # else where the configs look: data/
    os.environ.setdefault("LUBAN_DATA", str(SHARED))

from child.space import Evaluation  # noqa: E402
from child.training import prepare_process  # noqa: E402

prepare_process()  # as every run does


TURN = 0.02
"""Seconds that a turn takes at least: a quick call is repeated so long, so that the caches are its own."""


def interleaved(alternatives: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median seconds of one call of each, taken in turns so that a slow moment hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    calls = {}
    for name, call in alternatives.items():
        call()
        start = time.perf_counter()
        call()
        calls[name] = math.ceil(TURN / (time.perf_counter() - start))
    for _ in range(repeats):
        for name, call in alternatives.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                call()
            seconds[name].append((time.perf_counter() - start) / calls[name])
    return {name: statistics.median(values) for name, values in seconds.items()}


def matmul_peak(repeats: int = 20) -> float:
    """GFLOP/s of a 1024 x 1024 matrix product in float32, with as many threads as PyTorch has now."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    seconds = interleaved({"product": lambda: a @ b}, repeats)["product"]
    return 2 * 1024**3 / seconds / 1e9


class Constant:
    """An evaluator to which every architecture is worth the same, so that only what is around it is timed."""

    def evaluate(self, genotypes, fidelity, seed):
        return [Evaluation(genotypes[0], 0.5, 1.0, fidelity, seed)] * len(genotypes)


def record(
    name: str,
    title: str,
    rows: list[dict[str, object]],
    notes: list[str],
    how: str = "medians of interleaved repeats",
    script: str | None = None,
) -> None:
    """Print a table, and write it to results/<name>.md and results/<name>.json.

    `how` says how it was timed; `script` names what was run where that is named otherwise.
    """
    columns = list(rows[0])
    machine = f"PyTorch {torch.__version__.partition('+')[0]} on {platform.machine()}"
    made = f"`python benchmarks/{script or name}.py`, {torch.get_num_threads()} thread(s) of {machine}; {how}."
    lines = [f"# {title}", "", made]
    lines += ["", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row[column]) for column in columns) + " |" for row in rows]
    lines += ["", *notes, ""]
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(lines))
    (RESULTS / f"{name}.json").write_text(json.dumps({"title": title, "rows": rows, "notes": notes}, indent=1) + "\n")


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
