"""The comparison of several runs."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from logbook import plots
from logbook.console import human
from logbook.numbers import gap, known, mean, scores
from logbook.record import Json, Record, read_run
from logbook.report import standard_error, template
from logbook.sections.section import Picture, Section

# Runs that differ in these alone are repetitions of one experiment: the keys say where it ran, not what it was.
REPETITION_KEYS = frozenset({"seed", "device", "threads", "name", "output", "checkpoint_every_s", "resume", "analysis"})


@dataclass(frozen=True)
class _Group:
    """Runs of one experiment: equal in everything but the seed."""

    letter: str
    description: str
    runs: list[Record]

    def tests(self, name: str) -> list[float]:
        """One value per run: the mean over that run's trainings of a network."""
        return self._per_run(name, "test")

    def _per_run(self, name: str, split: str) -> list[float]:
        values = [known(run.rows[name][split]) for run in self.runs if name in run.rows]
        return [fmean(value) for value in values if value]

    def cells(self, name: str, metric: str) -> dict[str, str]:
        """What the table says about a network."""
        rows = [run.rows[name] for run in self.runs if name in run.rows]
        return {
            "title": rows[0]["title"],
            "n": str(len(rows)),
            "validation": scores(self._per_run(name, "validation"), metric),
            "test": scores(self.tests(name), metric),
            "macs": human(mean(row["macs"] for row in rows)),
            "parameters": human(mean(row["parameters"] for row in rows)),
        }

    def names(self) -> list[str]:
        """The networks that at least one of the runs has."""
        return list(dict.fromkeys(name for run in self.runs for name in run.rows))


def write_comparison(folders: Sequence[Path], target: Path) -> Path:
    """Write a page that compares several runs, grouped by equal config but for the seed, and return its path.

    Raises:
        ValueError: A folder is no run folder, is given twice, or measures another metric than the first.
    """
    places = [folder.resolve() for folder in folders]
    twice = next((folder for folder in folders if places.count(folder.resolve()) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is given twice; a run counts once")
    runs = [read_run(folder) for folder in folders]
    finished = [run for run in runs if run.results]
    metrics = list(dict.fromkeys(run.metric for run in finished))
    if len(metrics) > 1:
        raise ValueError(f"these runs measure different things ({', '.join(metrics)}) and cannot be compared")
    metric = metrics[0] if metrics else "accuracy"
    groups = _grouped(runs)
    differences, against_random = _between_groups(groups, metric), _against_random(groups, metric)
    section = Section("Reward over the rounds")
    curves = _curves(groups)
    if curves:
        reading = (
            "A line is the median over a group's runs of their mean reward per round; its band spans the quartiles."
        )
        section.pictures.append(Picture("reward-curves", "", reading, plots.reward_curves(curves)))
    else:
        section.missing.append("None of these runs has evaluated an architecture yet.")
    page = template("comparison.html.jinja").render(
        title=f"{len(runs)} runs of Luban",
        metric=metric,
        num_runs=len(runs),
        groups=[(group, [group.cells(name, metric) for name in group.names()]) for group in groups],
        unfinished=[run.folder.as_posix() for run in runs if not run.results],
        differences=differences,
        against_random=against_random,
        verdict=_comparison_verdict(groups, differences, against_random),
        sections=[section],
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    return target


def _grouped(runs: Sequence[Record]) -> list[_Group]:
    flat = [_flatten({key: value for key, value in run.config.items() if key not in REPETITION_KEYS}) for run in runs]
    members: dict[str, list[int]] = {}
    for number, config in enumerate(flat):
        members.setdefault(json.dumps(config, sort_keys=True, default=str), []).append(number)
    firsts = [flat[numbers[0]] for numbers in members.values()]
    keys = sorted({key for config in firsts for key in config})
    differing = [key for key in keys if len({json.dumps(config.get(key), default=str) for config in firsts}) > 1]
    groups = []
    for place, numbers in enumerate(members.values()):
        config = firsts[place]
        words = [f"{key}={config[key]}" if key in config else f"no {key}" for key in differing]
        letter = chr(ord("A") + place) if place < 26 else f"G{place + 1}"
        groups.append(_Group(letter, ", ".join(words), [runs[number] for number in numbers]))
    return groups


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Json:
    flat: Json = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _between_groups(groups: Sequence[_Group], metric: str) -> list[dict[str, str]]:
    """For every two groups and every network that both have: the difference in test, and whether it says anything."""
    rows = []
    for first, second in combinations(groups, 2):
        for name in first.names():
            ours, theirs = first.tests(name), second.tests(name)
            if ours and theirs:
                difference, error = fmean(ours) - fmean(theirs), standard_error(ours, theirs)
                pair = f"{first.letter} against {second.letter}"
                rows.append({"pair": pair, "network": name.replace("_", " "), **_difference(difference, error, metric)})
    return rows


def _against_random(groups: Sequence[_Group], metric: str) -> list[dict[str, str]]:
    """What the search found against what random search found in the same run, run by run, so that seeds cancel out."""
    rows = []
    for group in groups:
        pairs = [
            fmean(known(run.rows["teacher"]["test"])) - fmean(known(run.rows["random_best"]["test"]))
            for run in group.runs
            if all(known(run.rows.get(name, {}).get("test", [])) for name in ("teacher", "random_best"))
        ]
        if pairs:
            error = stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else None
            rows.append({"group": group.letter, "n": str(len(pairs)), **_difference(fmean(pairs), error, metric)})
    return rows


def _difference(difference: float, error: float | None, metric: str) -> dict[str, str]:
    sign = "+" if difference > 0 else "-" if difference < 0 else ""
    if error is None:
        judged = "too few runs to tell"
    else:
        judged = "within noise" if abs(difference) <= 2 * error else "beyond noise"
    return {
        "difference": f"{sign}{gap(difference, metric)}",
        "error": "-" if error is None else gap(error, metric),
        "judged": judged,
    }


def _comparison_verdict(groups: Sequence[_Group], differences: Sequence[Json], against_random: Sequence[Json]) -> str:
    if len(groups) > 1:
        beyond = sum(row["judged"] == "beyond noise" for row in differences)
        text = f"Of {len(differences)} differences between these {len(groups)} groups, {beyond} lie beyond noise"
    else:
        text = f"These {len(groups[0].runs)} runs repeat one experiment"
    judged = [row for row in against_random if row["judged"] != "too few runs to tell"]
    if judged:
        good = "+" if groups[0].runs[0].higher_is_better else "-"
        better = sum(row["judged"] == "beyond noise" and row["difference"].startswith(good) for row in judged)
        if len(judged) == 1:
            text += f"; the search {'beats' if better else 'does not beat'} random search beyond noise"
        else:
            text += f"; the search beats random search beyond noise in {better} of {len(judged)} groups"
    return text + "."


def _curves(groups: Sequence[_Group]) -> dict[str, list[dict[int, float]]]:
    """Mean reward per round and run, for each group's search and, where few lines leave room, its random search."""
    curves: dict[str, list[dict[int, float]]] = {}
    for group in groups:
        for run in group.runs:
            for strategy in run.strategies if len(groups) <= 3 else run.strategies[:1]:
                rewards: dict[int, list[float]] = {}
                for line in run.history:
                    if line["strategy"] == strategy and line["reward"] is not None:
                        rewards.setdefault(line["round"], []).append(line["reward"])
                name = f"{group.letter}: {strategy}" if len(groups) > 1 else strategy
                if rewards:
                    curves.setdefault(name, []).append({number: fmean(r) for number, r in rewards.items()})
    return curves
