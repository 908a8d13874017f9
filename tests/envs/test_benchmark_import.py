"""The table that is made of the benchmark's own files; their package is stood in for."""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from child.nasbench201 import OPERATIONS, NASBench201Space
from child.space import Genotype
from conf.launch import compose
from envs.benchmark_import import main

SPACE = NASBench201Space()
CODES = list(itertools.product(range(5), repeat=6))[::-1]  # an order of its own, as the benchmark's is


def accuracy(index: int, dataset: str, hp: str) -> float:
    """A figure that tells what was asked for."""
    place = ("cifar10-valid", "cifar10", "cifar100", "ImageNet16-120").index(dataset)
    return 10 * place + (5 if hp == "200" else 0) + index / 15625


class Benchmark:
    """Answers as `nats_bench.create(...)` does (version 1.8), for an architecture whose file is there."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.meta_archs = [SPACE.text(Genotype(SPACE.name, codes)) for codes in CODES]
        self.arch2infos_dict: dict[int, Any] = {}

    def _prepare(self, index: int) -> None:
        if (self.folder / f"{index}.missing").exists():
            raise AssertionError(f"invalid data path : {index}")
        self.arch2infos_dict[index] = True
        assert len(self.arch2infos_dict) == 1, "what was read before is still in memory"

    def get_more_info(
        self, index: int, dataset: str, iepoch: int | None = None, hp: str = "12", is_random: bool = True
    ) -> dict[str, float]:
        self._prepare(index)
        assert iepoch is None and not is_random
        of = accuracy(index, dataset, hp)
        info = {"train-all-time": 1200.0 + index, "train-per-time": 100.0, "test-accuracy": of + 2}
        if dataset != "cifar10":  # which is trained with its validation half
            info |= {"valid-accuracy": of + 1, "valid-all-time": 12.0, "valid-per-time": 1.0}
        return info

    def get_cost_info(self, index: int, dataset: str, hp: str = "12") -> dict[str, float]:
        self._prepare(index)
        return {"flops": 1.5 + index, "params": 0.25, "latency": 0.01}


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    def create(path: str, search_space: str, fast_mode: bool = False, verbose: bool = True) -> Benchmark:
        assert search_space == "tss" and fast_mode and not verbose
        if not (Path(path) / "meta").exists():
            raise FileNotFoundError(2, "No such file or directory", f"{path}/meta.pickle.pbz2")
        return Benchmark(Path(path))

    monkeypatch.setitem(sys.modules, "nats_bench", SimpleNamespace(create=create))
    folder = tmp_path / "NATS-tss-v1_0-3ffb9-simple"
    folder.mkdir()
    (folder / "meta").touch()
    return folder


@pytest.mark.parametrize(("dataset", "searched"), [("cifar10", "cifar10-valid"), ("cifar100", "cifar100")])
def test_the_environment_reads_what_was_made(archive: Path, tmp_path: Path, dataset: str, searched: str) -> None:
    path = tmp_path / "table.csv.gz"
    assert main([str(archive), str(path), "--dataset", dataset]) == 0
    config = compose("env=nasbench201", f"env.path={path}")
    evaluator = config.evaluator.build((), space=SPACE)
    for index in (0, 7, 4711, 15624):
        genotype = Genotype(SPACE.name, CODES[index])
        (evaluation,) = evaluator.evaluate([genotype], 1.0, 0)
        assert 100 * evaluation.quality == pytest.approx(accuracy(index, searched, "12") + 1, abs=1e-4)
        assert 100 * evaluator.true_quality(genotype) == pytest.approx(accuracy(index, dataset, "200") + 2, abs=1e-4)
        assert evaluation.cost == pytest.approx((1.5 + index) * 1e6)
        assert evaluator.price(genotype) == 1201 + index  # training, and one validation
    assert [each.name for each in tmp_path.glob("table*")] == ["table.csv.gz"]


def test_the_texts_are_the_benchmarks() -> None:
    """The benchmark's first architecture, and the numbers of its operations in the table that is shipped."""
    text = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
    assert SPACE.parse(text).tokens == (4, 2, 1, 2, 1, 1)
    assert OPERATIONS == ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


Break = Callable[[Path, pytest.MonkeyPatch], None]


def lose_file(archive: Path, patch: pytest.MonkeyPatch) -> None:
    (archive / "1500.missing").touch()


def lose_meta(archive: Path, patch: pytest.MonkeyPatch) -> None:
    (archive / "meta").unlink()


def lose_training(archive: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Benchmark, "get_cost_info", lambda *given, **named: {}["12"])


def lose_clock(archive: Path, patch: pytest.MonkeyPatch) -> None:
    answer = Benchmark.get_more_info
    patch.setattr(Benchmark, "get_more_info", lambda *a, **k: answer(*a, **k) | {"train-all-time": np.nan})


def lose_package(archive: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "nats_bench", None)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lose_file, "of cifar10: AssertionError (invalid data path : 1500)"),
        (lose_meta, "as NATS-Bench's topology space: FileNotFoundError"),
        (lose_training, "of cifar10: KeyError ('12')"),
        (lose_clock, "of cifar10: ValueError (its figures are not all finite"),
        (lose_package, "pip install nats-bench"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, broken: Break, message: str
) -> None:
    """And the table that stood there before still does."""
    path = tmp_path / "table.csv.gz"
    path.write_bytes(b"before")
    broken(archive, monkeypatch)
    assert main([str(archive), str(path)]) == 2
    error = capsys.readouterr().err.splitlines()
    told = [line for line in error if "architectures read" not in line]
    assert len(told) == 1 and message in told[0]
    assert path.read_bytes() == b"before" and len(list(tmp_path.glob("table*"))) == 1


def test_names_of_files_are_checked(archive: Path, tmp_path: Path, capsys: Any) -> None:
    assert main([str(archive), str(tmp_path / "table.csv")]) == 2
    assert "must end in .csv.gz, got 'table.csv'" in capsys.readouterr().err
    assert main([str(tmp_path / "none"), str(tmp_path / "table.csv.gz")]) == 2
    assert "there is no" in capsys.readouterr().err
    assert main([str(archive), str(tmp_path / "none" / "table.csv.gz")]) == 2
    assert "No such file" in capsys.readouterr().err
