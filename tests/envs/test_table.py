"""Tables: what is looked up, what a draw is, and what is wrong with a file."""

import csv
import gzip
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from child.flat import FlatSpace
from child.space import Genotype
from conf.launch import compose
from envs.table import TableEvaluator

SPACE = FlatSpace(["a", "b"], ["x", "y", "z"])
HEADER = ["index", "a", "b", "valid", "valid2", "test", "macs", "seconds"]
DATA = Path(os.environ.get("LUBAN_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def rows() -> list[list[Any]]:
    return [
        [i, a, b, 10 * a + b, 10 * a + b + 50, 20 + a - b, 1 + a, 100 + b]
        for i, (a, b) in enumerate(itertools.product(range(3), repeat=2))
    ]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write(content: list[list[Any]], name: str = "table.csv") -> str:
        path = tmp_path / name
        with (gzip.open if name.endswith(".gz") else open)(path, "wt", newline="") as file:
            csv.writer(file).writerows([HEADER, *content])
        return str(path)

    return write


def table(path: str, **changed: Any) -> TableEvaluator:
    columns = {"tokens": ["a", "b"], "signal": "valid", "report": "test", "cost": "macs", "charge": "seconds"}
    return TableEvaluator(SPACE, path, **{**columns, **changed})


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
def test_rows_are_looked_up(write: Any, name: str) -> None:
    evaluator = table(write(rows()[::-1], name), cost_scale=1e6)
    genotype = Genotype("flat", (2, 1))
    (evaluation,) = evaluator.evaluate([genotype], 1.0, 5)
    assert (evaluation.quality, evaluation.cost, evaluation.seed) == (0.21, 3e6, 5)
    assert evaluator.price(genotype) == 101 and evaluator.true_quality(genotype) == 0.21
    assert table(write(rows()), charge=None, cost=None).price(genotype) == 1


def test_ranks_count_what_is_better(write: Any) -> None:
    evaluator = table(write(rows()))
    assert evaluator.rank(Genotype("flat", (2, 0))) == 1  # 22
    assert evaluator.rank(Genotype("flat", (2, 1))) == evaluator.rank(Genotype("flat", (1, 0))) == 2  # 21 twice
    assert evaluator.rank(Genotype("flat", (0, 2))) == 9


def test_a_noisy_signal_is_one_draw_from_the_seed(write: Any) -> None:
    evaluator, genotype = table(write(rows()), noise=2.0), Genotype("flat", (2, 1))
    drawn = [evaluator.evaluate([genotype], 1.0, seed)[0].quality for seed in range(400)]
    assert evaluator.evaluate([genotype], 1.0, 7)[0].quality == drawn[7]
    assert np.mean(drawn) == pytest.approx(0.21, abs=0.004) and np.std(drawn) == pytest.approx(0.02, rel=0.15)
    both = [e.quality for e in evaluator.evaluate([genotype, Genotype("flat", (2, 2))], 1.0, 7)]
    assert both[1] - both[0] != pytest.approx(0.01)  # each its own draw
    assert table(write(rows()), noise=0.0).is_noisy is False


def test_of_several_signals_each_draw_takes_one(write: Any) -> None:
    evaluator = table(write(rows()), signal=["valid", "valid2"])
    drawn = [evaluator.evaluate([Genotype("flat", (2, 1))], 1.0, seed)[0].quality for seed in range(60)]
    assert set(drawn) == {0.21, 0.71} and evaluator.is_noisy


def changed(row: int, column: str, value: Any) -> list[list[Any]]:
    content = rows()
    content[row][HEADER.index(column)] = value
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(3, "valid", ""), "line 5: column 'valid' needs a number, got ''"),
        (changed(3, "valid", "nan"), "line 5: column 'valid' needs a number, got 'nan'"),
        (changed(0, "a", "1.5"), "line 2: column 'a' needs the number of a choice, got '1.5'"),
        (changed(0, "a", 10**30), "line 2: column 'a' needs the number of a choice, got '1000000"),
        (changed(4, "b", 3), r"line 6: illegal action 3 for decision 1 \(b\); legal choices: 0 \(x\)"),
        (changed(4, "b", -1), "line 6: illegal action -1 for decision 1"),
        (changed(8, "b", 1), "line 10: the same architecture stands in line 9"),
        (rows()[:-1], "holds 8 of the 9 architectures of space 'flat'"),
        ([row[:4] for row in rows()], "line 2: column 'test' needs a number, got ''"),
        (changed(2, "seconds", -1), "costs must not be negative, and charges must be above 0"),
        (changed(2, "seconds", 0), "costs must not be negative, and charges must be above 0"),
        ([*rows()[:2], [], *rows()[2:]], "line 4 is blank, and other rows follow"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(write: Any, content: list[list[Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table(write(content))


def test_columns_are_told_apart(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="signal: name the column that the search sees, or several, got none"):
        table(write(rows()), signal=[])
    monkeypatch.setitem(globals(), "HEADER", ["valid" if name == "valid2" else name for name in HEADER])
    with pytest.raises(ValueError, match=r"table\.csv has 2 columns 'valid'; rename all but one"):
        table(write(rows()))


def test_wrong_columns_and_files_are_told(write: Any, tmp_path: Path) -> None:
    path = write(rows())
    with pytest.raises(ValueError, match=r"has no column 'vali'; allowed: .*did you mean 'valid'"):
        table(path, signal="vali")
    with pytest.raises(ValueError, match="has 2 decisions, got"):
        table(path, tokens=["a"])
    with pytest.raises(ValueError, match=r"there is no table .*; ask the librarian"):
        table(str(tmp_path / "none.csv"), hint="ask the librarian")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"a,b\n" * 999)[:20])
    with pytest.raises(ValueError, match="cannot read"):
        table(str(tmp_path / "cut.csv.gz"))
    bits = bytearray(gzip.compress(b"a,b\n" * 999))
    bits[12] ^= 255
    (tmp_path / "flipped.csv.gz").write_bytes(bits)
    with pytest.raises(ValueError, match="cannot read"):
        table(str(tmp_path / "flipped.csv.gz"))
    (tmp_path / "plain.csv.gz").write_bytes(b"a,b\n0,0\n")
    with pytest.raises(ValueError, match="cannot read"):
        table(str(tmp_path / "plain.csv.gz"))


def test_a_signal_that_is_no_quality_is_told(write: Any) -> None:
    with pytest.raises(ValueError, match=r"line 3: column 'valid' over a scale of 0\.5 is 2, .* set evaluator\.scale"):
        table(write(rows()), scale=0.5)


def test_a_row_that_only_a_search_misses_is_told(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FlatSpace, "masks_depend_on_prefix", True)  # then nobody has counted what is legal
    evaluator = table(write(rows()[:-1]))
    for ask in (evaluator.price, evaluator.cost, lambda genotype: evaluator.evaluate([genotype], 1.0, 0)):
        with pytest.raises(ValueError, match=r"table\.csv has no row of the architecture a=z b=z"):
            ask(Genotype("flat", (2, 2)))


def test_a_mark_tells_tables_apart(write: Any) -> None:
    tables = [rows(), *(changed(4, column, 9) for column in ("valid", "test", "macs", "seconds"))]
    assert len({table(write(content)).mark() for content in tables}) == 5
    assert table(write(rows(), "same.csv.gz")).mark() == table(write(rows())).mark()


def test_files_as_office_programs_write_them(write: Any) -> None:
    path = Path(write(rows()))
    path.write_text("\ufeff" + path.read_text() + "\n\n", encoding="utf-8")
    assert table(str(path)).evaluate([Genotype("flat", (2, 1))], 1.0, 0) == table(write(rows())).evaluate(
        [Genotype("flat", (2, 1))], 1.0, 0
    )


@pytest.mark.data
def test_the_real_table(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (DATA / "nasbench201_cifar10.csv.gz").is_file():
        pytest.skip(f"there is no nasbench201_cifar10.csv.gz in {DATA}; LUBAN_DATA may name another folder")
    monkeypatch.setenv("LUBAN_DATA", str(DATA))
    config = compose("env=nasbench201")
    space = config.space.build(())
    evaluator = config.evaluator.build((), space=space)
    assert len(evaluator.rows) == 15625
    best = max(evaluator.rows, key=lambda tokens: evaluator.true_quality(Genotype(space.name, tokens)))
    assert evaluator.true_quality(Genotype(space.name, best)) == pytest.approx(0.943733)
    assert config.search.budget == 12000
