"""Where the time of the default run goes.

    python benchmarks/run_profile.py       # one whole run, as many threads as PyTorch takes; further arguments override

Clocks around the parts that take time; each counts only what no clock within it counts.
"""

from timing import record  # isort: skip

import functools
import sys
import tempfile
import time
from collections import defaultdict
from typing import Any

STARTED = time.perf_counter()

import hydra  # noqa: E402
import torch  # noqa: E402

import main as luban  # noqa: E402
from child.supernet import SupernetEvaluator  # noqa: E402
from child.task import Task  # noqa: E402
from child.training import Training  # noqa: E402
from conf.launch import resolve  # noqa: E402
from controller.reinforce import Reinforce  # noqa: E402
from logbook.run import Run  # noqa: E402

IMPORTED = time.perf_counter() - STARTED

seconds: dict[tuple[str, str], float] = defaultdict(float)
calls: dict[tuple[str, str], int] = defaultdict(int)
running: list[list[Any]] = []  # [what, when it began to count]
stage = ["before the search"]


def clock(owner: Any, name: str, what: str, begins: str | None = None) -> None:
    """Count the time of a function under a name; with `begins` all that it calls belongs to that stage."""
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def timed(*args: Any, **kwargs: Any) -> Any:
        now = time.perf_counter()
        if running:
            seconds[stage[0], running[-1][0]] += now - running[-1][1]
        before = stage[0]
        if begins is not None:
            stage[0] = begins
        running.append([what, time.perf_counter()])
        calls[stage[0], what] += 1
        try:
            return inner(*args, **kwargs)
        finally:
            now = time.perf_counter()
            seconds[stage[0], what] += now - running.pop()[1]
            stage[0] = before
            if running:
                running[-1][1] = time.perf_counter()

    setattr(owner, name, timed)


def main() -> None:
    clock(luban, "main", "the rest")
    clock(luban, "search_and_derive", "the rest", "search")
    clock(luban, "check_ranking", "the rest", "ranking")
    clock(luban, "train_finals", "the rest", "final training")
    clock(luban, "test_finals", "the rest", "test")
    clock(luban, "write_report", "drawing", "report")
    clock(luban, "measure_latency", "latency")
    clock(luban, "count_macs", "counting MACs")
    clock(luban, "ask", "validation and test")
    clock(SupernetEvaluator, "evaluate", "evaluating architectures")
    clock(Reinforce, "act", "drawing tokens")
    clock(Reinforce, "sample", "drawing paths to train")
    clock(Reinforce, "learn", "updating the policy")
    clock(Training, "step", "forward pass")
    clock(torch.Tensor, "backward", "backward pass")
    clock(torch.nn.utils, "clip_grad_norm_", "clipping")
    clock(torch.optim.SGD, "step", "optimizer")
    clock(Task, "training_batch", "augmented batches")
    clock(Run, "save", "checkpoints")
    clock(Run, "append", "journal")
    clock(Run, "log", "TensorBoard")
    with tempfile.TemporaryDirectory() as folder, hydra.initialize_config_module("conf", version_base="1.3"):
        overrides = [f"output={folder}", "name=run", *sys.argv[1:]]
        began = time.perf_counter()
        luban.main(*resolve(hydra.compose("config", overrides), overrides))
        whole = time.perf_counter() - began + IMPORTED
    seconds["start", "imports"] = IMPORTED
    rows = [
        {"stage": where, "what": what, "calls": calls[where, what] or 1, "seconds": value,
         "share": f"{value / whole:.1%}"}
        for (where, what), value in sorted(seconds.items(), key=lambda item: -item[1]) if value > 0.001 * whole
    ]  # fmt: skip
    record("profile", "Where the time of the default run goes", rows, [f"{whole:.0f} s in all."],
           "clocks of one run", "run_profile")  # fmt: skip


if __name__ == "__main__":
    main()
