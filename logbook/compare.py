"""The comparison of several runs, finished or not: groups, means with intervals, tests of difference, one HTML page.

Runs of different tasks stand side by side; only runs of one task and metric are compared.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean

from rich.table import Table
from rich.text import Text

from logbook.numbers import gap, human, known, mean, score, which_way
from logbook.record import FREE_ON_RESUME, Json, Record, read_run
from logbook.report import template
from logbook.sections.comparison import curves_section
from logbook.significance import ALPHA, Estimate, difference, estimate, holm

# Runs that differ in these alone are repetitions of one experiment: the keys say where it ran, not what it was.
REPETITION_KEYS = frozenset({"seed", "name", *FREE_ON_RESUME})


@dataclass(frozen=True)
class Group:
    """Runs of one experiment: equal in everything but the seed."""

    letter: str
    description: str
    runs: list[Record]

    def by_seed(self, name: str, split: str = "test") -> dict[int, float]:
        """One value per seed: the mean over the trainings of a network; a seed that ran twice counts once."""
        found: dict[int, list[float]] = {}
        for run in self.runs:
            if measured := known(compared(run).get(name, {}).get(split, [])):
                found.setdefault(run.config.get("seed", 0), []).append(fmean(measured))
        return {seed: fmean(each) for seed, each in found.items()}

    def values(self, name: str, split: str = "test") -> list[float]:
        """The same without the seeds."""
        return list(self.by_seed(name, split).values())

    def cells(self, name: str, metric: str) -> dict[str, str]:
        """What the table says about a network."""
        rows = [rows[name] for rows in map(compared, self.runs) if name in rows]
        return {
            "title": rows[0]["title"],
            "n": str(len(self.values(name))),
            "validation": with_interval(self.values(name, "validation"), metric),
            "test": with_interval(self.values(name), metric),
            "macs": human(mean(row["macs"] for row in rows)),
            "parameters": human(mean(row["parameters"] for row in rows)),
        }

    def names(self) -> list[str]:
        """The networks that at least one of the runs has."""
        return list(dict.fromkeys(name for run in self.runs for name in compared(run)))


def compared(run: Record) -> dict[str, Json]:
    """The final networks of a run under names that mean the same in every run.

    Which of several teachers is the best differs from run to run, so that it has a name of its own, beside the first
    choice, the second and so on. So does which step made the smaller model that was chosen.
    """
    if run.optimizes and run.results:
        chosen = run.rows[run.results["chosen"]]
        return {"original": run.rows["original"], "result": {**chosen, "title": "Result"}}
    if "teacher2" not in run.rows:
        return run.rows
    rows = {}
    for name, row in run.rows.items():
        number = name.removeprefix("teacher") or "1"
        rows[name] = {**row, "title": f"Teacher {number}"} if number.isdecimal() else row
    return {"best_teacher": run.rows[run.teacher], **rows}


@dataclass(frozen=True)
class Part:
    """Runs that measure the same: those of one task and metric, in their groups."""

    task: str
    metric: str
    higher_is_better: bool
    groups: list[Group]

    @property
    def measure(self) -> str:
        return which_way(self.metric, self.higher_is_better)

    @property
    def title(self) -> str:
        return f"{self.task}: {self.measure}"


def with_interval(values: Sequence[float], metric: str) -> str:
    """The mean, and its 95% interval in brackets where there are several values."""
    if not values:
        return "-"
    found = estimate(values)
    said = score(found.mean, metric, decimals=2)
    if found.low is None or found.high is None:
        return said
    low, high = _possible(found.low, found.high, metric, 0.0)
    return f"{said} [{score(low, metric, decimals=2)}, {score(high, metric, decimals=2)}]"


def _possible(low: float, high: float, metric: str, least: float) -> tuple[float, float]:
    """An interval of few runs may reach beyond what there is: of accuracies from the least to 1."""
    return (max(low, least), min(high, 1.0)) if metric == "accuracy" else (low, high)


def read_parts(folders: Sequence[Path]) -> list[Part]:
    """Read runs and sort them by what they measure.

    Raises:
        ValueError: A folder is no run folder, or is given twice.
    """
    places = [folder.resolve() for folder in folders]
    twice = next((folder for folder in folders if places.count(folder.resolve()) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is given twice; a run counts once")
    sorted_runs: dict[tuple[str, str], list[Record]] = {}
    for folder in folders:
        run = read_run(folder)
        sorted_runs.setdefault((run.task, run.metric), []).append(run)
    parts: list[Part] = []
    for (task, metric), runs in sorted_runs.items():
        first = sum(len(part.groups) for part in parts)
        parts.append(Part(task, metric, runs[0].higher_is_better, _grouped(runs, first)))
    return parts


def _grouped(runs: Sequence[Record], first: int) -> list[Group]:
    """Runs with equal configs together, the seed aside; what sets them apart is named. Letters begin at the `first`."""
    flat = [_flatten({key: value for key, value in run.config.items() if key not in REPETITION_KEYS}) for run in runs]
    members: dict[str, list[int]] = {}
    for number, config in enumerate(flat):
        members.setdefault(json.dumps(config, sort_keys=True, default=str), []).append(number)
    firsts = [flat[numbers[0]] for numbers in members.values()]
    keys = sorted({key for config in firsts for key in config})
    differing = [key for key in keys if len({json.dumps(config.get(key), default=str) for config in firsts}) > 1]
    telling = [key for key in differing if not _follows(key, differing, firsts)]
    groups = []
    for place, numbers in enumerate(members.values()):
        config = firsts[place]
        words = [f"{key}={config[key]}" if key in config else f"no {key}" for key in telling]
        letter = chr(ord("A") + first + place) if first + place < 26 else f"G{first + place + 1}"
        groups.append(Group(letter, ", ".join(words), [runs[number] for number in numbers]))
    return groups


def _follows(key: str, differing: Sequence[str], configs: Sequence[Json]) -> bool:
    """Whether a key differs only because its part was swapped, or because a search stands beside a smaller model."""

    def told_by(other: Callable[[Json], object]) -> bool:
        values: dict[str, set[str]] = {}
        for config in configs:
            values.setdefault(str(other(config)), set()).add(json.dumps(config.get(key), default=str))
        return all(len(each) == 1 for each in values.values())

    if "steps" in differing and key != "steps" and told_by(lambda config: "steps" in config):
        return True
    parts = [target for target in differing if target.endswith("_target_") and target != key]
    return any(
        key.startswith(target.removesuffix("_target_")) and told_by(lambda config, target=target: config.get(target))
        for target in parts
    )


def _flatten(config: Mapping[str, object], prefix: str = "") -> Json:
    flat: Json = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def tests(part: Part) -> list[dict[str, str]]:
    """All tests of difference within a part, their p-values corrected together (Holm).

    For every two groups and every network that both have; and within each group what the search found against what
    random search found in the same run, so that seeds cancel out.
    """
    found: list[tuple[str, str, Estimate]] = []
    for first, second in combinations(part.groups, 2):
        for name in first.names():
            ours, theirs = first.by_seed(name), second.by_seed(name)
            if ours and theirs:
                pair = f"{first.letter} against {second.letter}"
                found.append((pair, name.replace("_", " "), difference(ours, theirs)))
    for group in part.groups:
        ours, theirs = group.by_seed("teacher"), group.by_seed("random_best")
        pairs = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        if pairs:
            found.append((group.letter, "teacher against random best", estimate(pairs, paired=True)))
    corrected = holm([each.p for _, _, each in found])
    return [
        {"pair": pair, "network": network, **_told(each, p, part.metric)}
        for (pair, network, each), p in zip(found, corrected, strict=True)
    ]


def _told(found: Estimate, corrected: float | None, metric: str) -> dict[str, str]:
    judged = "too few runs to tell" if found.num < 2 else "no spread to judge by"
    if corrected is not None:
        judged = "beyond noise" if corrected < ALPHA else "within noise"
    interval = "-"
    if found.low is not None and found.high is not None:
        low, high = _possible(found.low, found.high, metric, -1.0)
        interval = f"{_signed(low, metric)} to {_signed(high, metric)}"
    return {
        "difference": _signed(found.mean, metric),
        "interval": interval,
        "p": "-" if found.p is None else f"{found.p:.3g}",
        "corrected": "-" if corrected is None else f"{corrected:.3g}",
        "n": str(found.num),
        "how": "-" if found.p is None else "paired" if found.paired else "Welch",
        "judged": judged,
    }


def _signed(value: float, metric: str) -> str:
    sign = "+" if value > 0 else "-" if value < 0 else ""
    return f"{sign}{gap(value, metric)}"


def verdict(parts: Sequence[Part], judged: Sequence[Sequence[Json]]) -> str:
    """What the tests said, in one sentence per task."""
    sentences = []
    for part, rows in zip(parts, judged, strict=True):
        start = f"On {part.task}, " if len(parts) > 1 else ""
        between = [row for row in rows if " against " in row["pair"]]
        within = [row for row in rows if row not in between and row["corrected"] != "-"]
        num_runs = sum(len(group.runs) for group in part.groups)
        if len(part.groups) > 1:
            tested = [row for row in between if row["corrected"] != "-"]
            beyond = sum(row["judged"] == "beyond noise" for row in tested)
            groups = f"between these {len(part.groups)} groups"
            which = " that can be tested" if len(tested) < len(between) else ""
            differences = "difference" if len(tested) == 1 else "differences"
            lie = "lies" if beyond == 1 else "lie"
            text = f"of {len(tested)} {differences} {groups}{which}, {beyond} {lie} beyond noise"
            if not tested:
                text = f"no difference {groups} can be tested (too few runs, or no spread)"
        elif num_runs == 1:
            text = "there is a single run"
        else:
            text = f"these {num_runs} runs repeat one experiment"
        if within:
            good = "+" if part.higher_is_better else "-"
            better = sum(row["judged"] == "beyond noise" and row["difference"].startswith(good) for row in within)
            if len(within) == 1:
                text += f"; the search {'beats' if better else 'does not beat'} random search beyond noise"
            else:
                text += f"; the search beats random search beyond noise in {better} of {len(within)} groups"
        text = start + text
        sentences.append(f"{text[0].upper()}{text[1:]}.")
    return " ".join(sentences)


def side_by_side(parts: Sequence[Part]) -> list[list[str]]:
    """The test results of every network of every group, one column per task; nothing is compared across columns."""
    rows = []
    settings = list(dict.fromkeys(group.description for part in parts for group in part.groups))
    names = list(dict.fromkeys(name for part in parts for group in part.groups for name in group.names()))
    for setting in settings:
        for name in names:
            groups = [next((g for g in part.groups if g.description == setting), None) for part in parts]
            cells = [
                with_interval(group.values(name), part.metric) if group else "-"
                for part, group in zip(parts, groups, strict=True)
            ]
            if set(cells) != {"-"}:
                rows.append([setting or "the one of its task", name.replace("_", " "), *cells])
    return rows


def write_comparison(parts: Sequence[Part], target: Path) -> Path:
    """Write a page that compares runs, grouped by equal config but for the seed, and return its path."""
    judged = [tests(part) for part in parts]
    runs = [run for part in parts for group in part.groups for run in group.runs]
    sections = [
        curves_section(
            f"The searches{f' on {part.task}' if len(parts) > 1 else ''}",
            f"part{number}",
            {group.letter: group.runs for group in part.groups},
        )
        for number, part in enumerate(parts, 1)
        if any(run.history or not run.optimizes for group in part.groups for run in group.runs)
    ]
    page = template("comparison.html.jinja").render(
        title=f"{len(runs)} runs of Luban",
        num_runs=len(runs),
        num_groups=sum(len(part.groups) for part in parts),
        parts=[
            (part, [(group, [group.cells(n, part.metric) for n in group.names()]) for group in part.groups], rows)
            for part, rows in zip(parts, judged, strict=True)
        ],
        side_by_side=side_by_side(parts) if len(parts) > 1 else [],
        unfinished=[(run.folder.as_posix(), run.reached) for run in runs if not run.results],
        verdict=verdict(parts, judged),
        sections=sections,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    return target


def comparison_tables(parts: Sequence[Part]) -> list[Table]:
    """The same for the console: a table per task, and what each letter stands for below it."""
    tables = []
    for part in parts:
        table = Table(title=Text(part.title), title_justify="left", pad_edge=False)
        table.add_column("group")
        table.add_column("network", overflow="fold")
        for title in ("seeds", "test, mean [95%]", "MACs"):
            table.add_column(title, justify="right", no_wrap=True)
        for group in part.groups:
            for name in group.names():
                cells = group.cells(name, part.metric)
                table.add_row(group.letter, Text(cells["title"]), cells["n"], cells["test"], cells["macs"])
            if not group.names():
                table.add_row(group.letter, Text("; ".join(run.reached for run in group.runs)), "0", "-", "-")
        named = [f"{group.letter}: {group.description}" for group in part.groups if group.description]
        if named:
            table.caption, table.caption_justify = Text("\n".join(named)), "left"
        tables.append(table)
    return tables
