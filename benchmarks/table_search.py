"""The whole search loop on a table: environment, policy, update and history lines, 64 architectures at once and one.

python benchmarks/table_search.py      # half a minute, one thread
"""

from timing import interleaved, record  # isort: skip

import os
import tempfile
from pathlib import Path

import torch

import main as script
from conf.launch import compose
from controller.search import search
from logbook.console import Console
from logbook.run import Run

ROUNDS = 200


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for num in (1, 8, 64, 256):
            config = compose(
                "env=nasbench201", "controller=reinforce", f"search.episodes={num}", f"search.rounds={ROUNDS}",
                "search.budget=null", "search.compare_random=false", "threads=1",
            )  # fmt: skip
            parts = script.build_parts(config)
            with open(os.devnull, "w") as nowhere:
                console = Console(nowhere)

                def play(parts=parts, config=config, console=console):
                    run = Run.create(Path(tempfile.mkdtemp(dir=folder)), "run", "", 1e9)
                    search(parts.join, parts.strategy, parts.evaluator, config.search, 0, run, console)
                    run.close()

                seconds = interleaved({"loop": play}, 5)["loop"]
            rows.append({
                "architectures at once": num,
                "architectures/s": ROUNDS * num / seconds,
                "ms a round": 1000 * seconds / ROUNDS,
            })  # fmt: skip
    record("table_search", "The whole loop on a table", rows, [
        "NAS-Bench-201, LSTM of 64 units, REINFORCE; environment, update, history and TensorBoard included.",
    ], how=f"medians of five searches of {ROUNDS} rounds")  # fmt: skip


if __name__ == "__main__":
    main()
