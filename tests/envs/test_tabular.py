"""Tables: what becomes a feature, what is decided about the target, and mistakes that name their line and column."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from child.network import PREPROCESSINGS, part_from_json, part_to_json
from child.task import Classification, Regression, Split, Task
from child.transforms import Normalize
from envs.tabular import MISSING, read_table, tabular

NUM = 40


def write(folder: Path, text: str, name: str = "homes.csv") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def rows(num: int = NUM) -> list[tuple[Any, ...]]:
    """Rooms, a color, and a price that tells which row it is."""
    return [(row % 5, ("red", "green", "blue")[row % 3], f"{row + 0.5}") for row in range(num)]


def table(header: str, lines: list[tuple[Any, ...]], separator: str = ",") -> str:
    return "\n".join([header, *(separator.join(map(str, line)) for line in lines)]) + "\n"


HOMES = table("rooms,color,price", rows())


def everything(task: Task) -> list[Split]:
    task.test.unseal()
    return [task.train, task.validation, task.test.read("all")]


def test_every_row_becomes_its_numbers_and_levels(tmp_path: Path) -> None:
    task = tabular(write(tmp_path, HOMES), "price", seed=0)
    assert task.name == "homes (regression of price)"
    assert isinstance(task.objective, Regression) and task.objective.name == "price"
    found = {}
    for split in everything(task):
        assert split.inputs.dtype == torch.float32
        for inputs, target in zip(split.inputs, split.targets, strict=True):
            found[round(float(target) * task.objective.std + task.objective.mean - 0.5)] = inputs.tolist()
    colors = ("blue", "green", "red")
    assert found == {
        number: [rooms, *(float(color == each) for each in colors)] for number, (rooms, color, _) in enumerate(rows())
    }


def test_numbers_are_standardized_by_training_data_and_levels_stay(tmp_path: Path) -> None:
    task = tabular(write(tmp_path, HOMES), "price", seed=0)
    seen = task.preprocessing(task.train.inputs)
    assert float(seen[:, 0].mean()) == pytest.approx(0, abs=1e-6)
    assert float(seen[:, 0].std()) == pytest.approx(1, abs=1e-5)
    assert seen[:, 1:].equal(task.train.inputs[:, 1:])


def test_a_level_that_training_lacks_is_all_zeros(tmp_path: Path) -> None:
    other = write(tmp_path, table("color,rooms,price", [("green", 1, 2.5), ("violet", 2, 3.5)]), "test.csv")

    def with_green(*places: int) -> Task:
        lines = [(row, "green" if row in places else ("red", "blue")[row % 2], row + 0.5) for row in range(NUM)]
        return tabular(write(tmp_path, table("rooms,color,price", lines)), "price", 0, test_path=other)

    drawn = with_green()  # the colors are no part of the draw
    for split, green_known in ((drawn.train, 1.0), (drawn.validation, 0.0)):
        task = with_green(int(split.inputs[0, 0]))
        seen = task.preprocessing(everything(task)[2].inputs)
        torch.testing.assert_close(seen[:, 1:], torch.tensor([[0, green_known, 0], [0, 0, 0]]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("cells", "kind", "expected"),
    [
        (["yes", "no"], None, Classification(("no", "yes"))),
        (["1", "2", "10"], None, Classification(("1", "2", "10"))),
        (["0.0", "1.0"], None, Classification(("0", "1"))),
        (["01", "02", "10"], None, Classification(("01", "02", "10"))),
        (["1", "01", "2"], None, Classification(("01", "1", "2"))),
        ([f"{number:03}" for number in range(25)], None, Classification(tuple(f"{number:03}" for number in range(25)))),
        (["1", "x"], None, Classification(("1", "x"))),
        ([str(number) for number in range(20)], None, Classification(tuple(map(str, range(20))))),
        ([str(number) for number in range(21)], None, "regression"),
        (["1", "2.5"], None, "regression"),
        (["1", "2"], "regression", "regression"),
        (["0.5", "1.5"], "classification", Classification(("0.5", "1.5"))),
        (["5%", "7.5%"], "classification", Classification(("5%", "7.5%"))),
        (["2", "3", "4", "5more"], None, Classification(("2", "3", "4", "5more"))),
        ([str(2**53 + 1), str(2**53)], None, Classification((str(2**53), str(2**53 + 1)))),
        ([str(2**53 + number) for number in range(21)], None, "regression"),
        ([str(10**19), "3", str(10**19 + 1)], None, Classification((str(10**19), str(10**19 + 1), "3"))),
    ],
)
def test_what_a_target_is(tmp_path: Path, cells: list[str], kind: Any, expected: Any) -> None:
    lines = [(row, cells[row % len(cells)]) for row in range(10 * len(cells))]
    task = tabular(write(tmp_path, table("x,y", lines)), "y", 0, kind)
    if expected == "regression":
        assert isinstance(task.objective, Regression) and task.name == "homes (regression of y)"
        raw = torch.cat([split.targets for split in everything(task)]) * task.objective.std + task.objective.mean
        torch.testing.assert_close(raw.sort().values, torch.tensor(sorted(float(cell) for _, cell in lines)))
    else:
        assert task.objective == expected and task.name == "homes (classification of y)"


def test_columns_can_be_left_out_and_the_split_follows_the_seed(tmp_path: Path) -> None:
    path = write(tmp_path, HOMES)
    assert tabular(path, "price", 0, ignore=["color"]).input_shape == (1,)
    first, again, other = (tabular(path, "price", seed).train.inputs for seed in (1, 1, 2))
    assert first.equal(again) and not first.equal(other)


@pytest.mark.parametrize(
    ("cells", "levels"),
    [
        (["2", "3", "4", "5more"], 4),
        ([*map(str, range(1, 11)), "J", "Q", "K"], 13),
        (["1", "0,5", "some"], 3),
        ([*map(str, range(12)), *"ABCDEFGHIJKL"], 24),
        (["1_0", "2_0"], 2),
    ],
)
def test_kinds_may_be_numbers_in_part(tmp_path: Path, cells: list[str], levels: int) -> None:
    lines = [(f'"{cells[row % len(cells)]}"', row + 0.5) for row in range(5 * len(cells))]
    assert tabular(write(tmp_path, table("x,y", lines)), "y", 0).input_shape == (levels,)


def numbers_and(*others: str) -> list[str]:
    return [*map(str, range(20)), *others]


@pytest.mark.parametrize(
    ("cells", "line"),
    [
        (numbers_and("inf"), 22),
        (["1", "2", "-Infinity"], 4),
        (["1", "1e39"], 3),
        (numbers_and("None"), 22),
        (numbers_and("-", "1"), 22),
        (["0,5", "1,5"], 2),
        ([*(f"{number},5" for number in range(13)), "none"], 2),
        (["999", "1,234", "1,234,567.5"], 3),
        (["0%", "5 %", "7.5%"], 2),
    ],
)
def test_a_column_that_was_meant_to_be_numbers_is_refused(tmp_path: Path, cells: list[str], line: int) -> None:
    lines = [(f'"{cell}"', row + 0.5) for row, cell in enumerate(cells)]
    said = rf"homes\.csv, line {line}: column 'x' holds numbers, got '{re.escape(cells[line - 2])}'; .* decimal point"
    with pytest.raises(ValueError, match=rf"{said} .*ignore=\[x\]$"):
        tabular(write(tmp_path, table("x,y", lines)), "y", 0)
    with pytest.raises(ValueError, match=rf"{said} .*set env\.task\.kind=classification$"):
        tabular(write(tmp_path, table("x,y", lines)), "x", 0)


def test_a_column_whose_digits_would_be_lost_is_refused(tmp_path: Path) -> None:
    days = [(f"{2459000 + row / 20:.5f}", 7, row % 2) for row in range(60)]  # Julian dates
    with pytest.raises(
        ValueError, match=r"homes\.csv: column 't' has values around .*; subtract its mean .*ignore=\[t\]"
    ):
        tabular(write(tmp_path, table("t,same,y", days)), "y", 0)
    near = [(f"{float(day) - 2459000:.5f}", 2459000.1, label) for day, _, label in days]
    task = tabular(write(tmp_path, table("t,same,y", near)), "y", 0)
    assert len(torch.cat([split.inputs[:, 0] for split in everything(task)]).unique()) == 60


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('"price, EUR";y\n1;2\n', ("price, EUR", "y")),
        ('"si\nze";a;y\n1;2;3\n', ("si\nze", "a", "y")),
        ('"size\n(m2)"\ta\ty\n1\t2\t3\n', ("size\n(m2)", "a", "y")),
        ('"a ""big"", old; one";y\n1;2\n', ('a "big", old; one', "y")),
        ('"name"\t"y"\n"a0"\t"k0"\n', ("name", "y")),
        ("\n\na;y\n1,5;2\n", ("a", "y")),
        ('length (");y\n1;"a,b,c"\n', ('length (")', "y")),
    ],
)
def test_marks_in_quotes_do_not_separate(tmp_path: Path, text: str, names: tuple[str, ...]) -> None:
    assert read_table(write(tmp_path, text)).names == names


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_ways_to_write_the_same_table(tmp_path: Path, separator: str) -> None:
    text = table(separator.join(['"rooms"', " color ", "price"]), rows(), separator).replace("\n", "\r\n\r\n")
    (tmp_path / "homes.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))
    found = tabular(str(tmp_path / "homes.csv.gz"), "price", 0)
    expected = tabular(write(tmp_path, HOMES), "price", 0)
    assert found.name == expected.name
    assert found.train.inputs.equal(expected.train.inputs) and found.train.targets.equal(expected.train.targets)


def test_a_given_test_set_is_read_by_the_names_of_its_columns(tmp_path: Path) -> None:
    other = write(tmp_path, table("note,price,color,rooms", [("-", 9.5, "red", 4)]), "test.csv")
    task = tabular(write(tmp_path, HOMES), "price", 0, test_path=other)
    assert (len(task.train), len(task.validation), len(task.test)) == (30, 10, 1)
    assert everything(task)[2].inputs.tolist() == [[4, 0, 0, 1]]


many = [(row, f"name{row}", row % 2) for row in range(60)]


@pytest.mark.parametrize(
    ("text", "arguments", "expected"),
    [
        (HOMES, {"target": "prize"}, r"homes\.csv has no column 'prize'; allowed: .*; did you mean 'price'\?"),
        (HOMES, {"ignore": ["colour"]}, r"ignore: .*homes\.csv has no column 'colour'; .* did you mean 'color'\?"),
        (HOMES, {"ignore": ["price"]}, "predicting 'price' needs it and another column"),
        (HOMES, {"ignore": ["rooms", "color"]}, "predicting 'price' needs it and another column"),
        (HOMES, {"target": "color", "kind": "regression"}, "line 2: column 'color' holds numbers, got 'red'"),
        ("", {}, "homes.csv needs a header and rows below it, got 0 lines"),
        ("rooms,price\n", {}, "homes.csv needs a header and rows below it, got 1 lines"),
        ("rooms,price\n1,2\n\n1,2,3\n", {}, "homes.csv, line 4: expected 2 cells as in the header, got 3"),
        ("rooms,rooms,price\n1,2,3\n", {}, "homes.csv: two columns are named 'rooms'; rename one"),
        (",price\n1,2\n", {}, "homes.csv: column 1 has no name"),
        ('rooms,price\n"1,2\n', {}, "homes.csv, line 2: this is not CSV"),
        ("rooms,price\n1,2\nNaN,3\n", {}, r"line 3: column 'rooms' has no value \('NaN'\); .*ignore=\[rooms\]$"),
        ("rooms,price\n1,2\n3,\n", {}, r"line 3: column 'price' has no value \(''\); .*, or remove its lines$"),
        (
            "rooms,price,age,id\n1,2,3,0\n3,4,?,1\n,5,6,2\n", {"ignore": ["id"]},
            r"line 4: column 'rooms' has no value \(''\) \(nor has one each of 'age'\); .*ignore=\[id,rooms,age\]$",
        ),
        ("x,price\n1,a\n2,a\n", {}, "classification needs at least 2 classes, got 1"),
        ("x,price\n1,1.5\n2,1.5\n3,1.5\n4,1.5\n5,1.5\n", {}, "every training sample has the same price, 1.5"),
        (
            table("x,name,price", many), {},
            r"homes.csv: column 'name' is text \(such as 'name0' in line 2\) of 60 different kinds, and at most 50",
        ),
        (table("x,price", [(row, row % 2) for row in range(3)]), {}, "cannot hold out test_share=0.25 of 3 samples"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path: Path, text: str, arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        tabular(write(tmp_path, text), **{"target": "price", "seed": 0, **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rooms,price\n1,2\n", "test.csv has no column 'color'"),
        ("rooms,color,price\nfour,red,2\n", "test.csv, line 2: column 'rooms' holds numbers, got 'four'"),
        ("rooms,color,price\n4,red,cheap\n", "test.csv, line 2: column 'price' holds numbers, got 'cheap'"),
    ],
)
def test_mistakes_in_the_test_set_are_named(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        tabular(write(tmp_path, HOMES), "price", 0, test_path=write(tmp_path, text, "test.csv"))


def test_a_class_that_is_no_whole_number_is_refused(tmp_path: Path) -> None:
    train = write(tmp_path, table("size,kind", [(number, number % 3) for number in range(30)]))
    for cell in ("1.5", str(2**63)):
        test = write(tmp_path, table("size,kind", [(1, 0), (2, cell)]), "test.csv")
        said = rf"test.csv, line 3: classes are whole numbers of 64 bits in .*homes.csv, got '{cell}'"
        with pytest.raises(ValueError, match=said):
            tabular(train, "kind", 0, test_path=test)


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("größe,price\n1,2\n".encode("latin-1"))
    (tmp_path / "plain.csv.gz").write_bytes(b"rooms,price\n")
    whole = gzip.compress(HOMES.encode())
    (tmp_path / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    for name in ("latin.csv", "plain.csv.gz", "cut.csv.gz", "missing.csv"):
        with pytest.raises(ValueError, match=rf"cannot read .*{name}: expected "):
            tabular(str(tmp_path / name), "price", 0)


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        found = read_table(str(path))
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert found.lines and all(len(cells) == len(found.lines) for cells in found.columns.values())
        assert len(set(found.names)) == len(found.names) and all(found.names)


@pytest.mark.parametrize("cell", MISSING)
@pytest.mark.parametrize("change", [str.upper, str.title, lambda cell: f" {cell} "])
def test_every_way_to_write_nothing(tmp_path: Path, cell: str, change: Any) -> None:
    with pytest.raises(ValueError, match="line 3: column 'x' has no value"):
        tabular(write(tmp_path, f"x,y\n1,a\n{change(cell)},b\n"), "y", 0)


def test_it_is_fitted_to_training_rows_alone(tmp_path: Path) -> None:
    far = write(tmp_path, table("rooms,color,price", [(10**6, "red", 1e6)]), "test.csv")
    task = tabular(write(tmp_path, HOMES), "price", 0, test_path=far)
    assert isinstance(task.preprocessing, Normalize) and isinstance(task.objective, Regression)
    rooms = task.train.inputs[:, 0].double().numpy()
    assert task.preprocessing.mean[0] == pytest.approx(np.mean(rooms), rel=1e-6)
    assert task.objective.mean < NUM


def test_what_the_features_are_is_written_down(tmp_path: Path) -> None:
    task = tabular(write(tmp_path, HOMES), "price", 0)
    assert isinstance(task.preprocessing, Normalize)
    names = task.preprocessing.names
    assert names[0] == "rooms" and names[1].startswith("color=") and len(names) == task.train.inputs.shape[1]
    plain = part_to_json(task.preprocessing)
    again = part_from_json(json.loads(json.dumps(plain)), PREPROCESSINGS)
    assert again == task.preprocessing and again.names == names
    older = part_from_json({key: value for key, value in plain.items() if key != "names"}, PREPROCESSINGS)
    assert older == task.preprocessing
