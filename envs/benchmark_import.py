"""The table of NAS-Bench-201 from the benchmark's own files, as `env=nasbench201` reads it.

python -m envs.benchmark_import NATS-tss-v1_0-3ffb9-simple nasbench201_cifar10.csv.gz

The files are those of NATS-Bench's topology space (Dong et al. 2021; github.com/D-X-Y/NATS-Bench), a folder with a file
per architecture or the one file of all, read by their own package (`pip install nats-bench`). They are pickles, which
can run any code: take them from their authors.
"""

import argparse
import csv
import gzip
import io
import math
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from child.nasbench201 import NASBench201Space

Dataset = Literal["cifar10", "cifar100", "ImageNet16-120"]
COLUMNS = (
    *("e01", "e02", "e12", "e03", "e13", "e23"),
    *("valid_acc_12ep", "test_acc_200ep", "train_s_12ep", "params_m", "macs_m"),
)
FORMATS = ("{:.4f}", "{:.4f}", "{:.3f}", "{:.6f}", "{:.5f}")  # far below what a training's chance changes


def open_benchmark(source: Path) -> Any:
    """The official interface to the files.

    Raises:
        ValueError: The package or the files are missing, or they are no benchmark.
    """
    try:
        import nats_bench  # pyright: ignore[reportMissingImports] (an extra)
    except ImportError:
        raise ValueError("reading the benchmark's files needs its package: pip install nats-bench") from None
    if not source.exists():
        raise ValueError(f"there is no {source}; expected NATS-Bench's NATS-tss-v1_0-3ffb9-simple")
    try:
        return nats_bench.create(str(source), "tss", fast_mode=source.is_dir(), verbose=False)
    except Exception as error:  # of whatever kind unpickling raises
        raise ValueError(f"cannot read {source} as NATS-Bench's topology space: {_told(error)}") from None


def rows(benchmark: Any, dataset: Dataset) -> Iterator[list[str]]:
    """A row of the table for each architecture, in the benchmark's order.

    As in the benchmark's paper: a search sees the validation accuracy after 12 epochs, and is charged their training
    and one validation (`simulate_train_eval`, without its draw among the trials: all are averaged); what is reported
    is the test accuracy after 200 epochs, for CIFAR-10 of training with the validation half.

    Raises:
        ValueError: An architecture is missing or cannot be read.
    """
    space = NASBench201Space()
    searched = "cifar10-valid" if dataset == "cifar10" else dataset
    texts = benchmark.meta_archs
    num_all = len(space.decisions[0].labels) ** len(space.decisions)
    if len(set(texts)) < num_all:
        raise ValueError(f"the benchmark names {len(set(texts))} of the {num_all} architectures of NAS-Bench-201")
    for index, text in enumerate(texts):
        try:
            genotype = space.parse(text)
            short = benchmark.get_more_info(index, searched, hp="12", is_random=False)
            full = benchmark.get_more_info(index, dataset, hp="200", is_random=False)
            costs = benchmark.get_cost_info(index, searched, hp="12")
            seconds = short["train-all-time"] + short["valid-per-time"]
            # The benchmark's "flops" are millions of multiply-accumulates.
            figures = (short["valid-accuracy"], full["test-accuracy"], seconds, costs["params"], costs["flops"])
            if not all(math.isfinite(figure) for figure in figures):
                raise ValueError(f"its figures are not all finite: {figures}")
        except Exception as error:  # a missing file is an AssertionError there, a missing training a KeyError
            raise ValueError(f"cannot read architecture {index} ({text}) of {dataset}: {_told(error)}") from None
        benchmark.arch2infos_dict.pop(index)  # else all of them would stay in memory
        yield [*map(str, genotype.tokens), *map(str.format, FORMATS, figures)]


def _told(error: Exception) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}{f' ({words:.200})' if words else ''}"


def write(path: Path, lines: Iterable[list[str]]) -> int:
    """A compressed CSV file, there whole or not at all; its number of rows."""
    if not path.name.endswith(".csv.gz"):
        raise ValueError(f"the table is a compressed CSV file, so its name must end in .csv.gz, got {path.name!r}")
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    num = 0
    for line in lines:
        table.writerow(line)
        num += 1
        if num % 1000 == 0:
            print(f"{num:,} architectures read", file=sys.stderr, flush=True)
    beside = path.with_name(path.name + ".part")
    try:
        beside.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))  # no clock: equal tables, equal files
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    return num


def main(arguments: list[str] | None = None) -> int:
    """Make the table and say where it is; return the exit status."""
    parser = argparse.ArgumentParser(prog="envs.benchmark_import", description="Make the table of NAS-Bench-201.")
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the folder or file of NATS-Bench, topology space")
    parser.add_argument("table", type=Path, metavar="DESTINATION.csv.gz", help="where the table goes")
    parser.add_argument("--dataset", choices=get_args(Dataset), default="cifar10", help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        num = write(options.table, rows(open_benchmark(options.source), options.dataset))
    except (ValueError, OSError) as error:
        print(f"envs.benchmark_import: error: {error}", file=sys.stderr)
        return 2
    print(f"{num:,} architectures in {options.table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
