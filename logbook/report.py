"""The report of one run, and the comparison of several: plots and one self-contained HTML page.

A run folder may be unfinished: what is missing is left out, and the page says so.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.table import Table
from rich.text import Text
from yaml import YAMLError

from logbook import plots
from logbook.console import duration, human

Json = dict[str, Any]

CLONE = Path(__file__).resolve().parent.parent
COSTS = {"macs": "multiply-accumulates (MACs)", "parameters": "parameters", "latency_ms": "latency in milliseconds"}
# Runs that differ in these alone are repetitions of one experiment: the keys say where it ran, not what it was.
REPETITION_KEYS = frozenset({"seed", "device", "threads", "name", "output", "checkpoint_every_s", "resume"})


@dataclass(frozen=True)
class Run:
    """What a run folder holds; None or empty where a file is not there yet."""

    folder: Path
    config: Json
    config_text: str
    decisions: list[Json] | None
    history: list[Json]
    updates: list[Json]
    candidates: Json | None
    ranking: Json | None
    results: Json | None

    @property
    def strategies(self) -> list[str]:
        """The searching strategy first, its companion after it."""
        return list(dict.fromkeys(line["strategy"] for line in self.history))

    @property
    def rows(self) -> dict[str, Json]:
        """The final networks by name."""
        return {row["name"]: row for row in self.results["rows"]} if self.results else {}

    @property
    def looked_up(self) -> bool:
        """Whether nothing was trained, because a table knew every training already."""
        return bool(self.results and self.results.get("looked_up"))

    @property
    def metric(self) -> str:
        """The name of the task's metric."""
        return self.results["metric"] if self.results else "accuracy"

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger metric is a better one."""
        return bool((self.results or {}).get("higher_is_better", True))

    @property
    def task(self) -> str:
        """The name of the task, or of its folder while nothing says more."""
        return self.results["task"] if self.results else self.folder.resolve().name


@dataclass(frozen=True)
class Picture:
    """A plot, and the sentence that says how to read it."""

    name: str
    title: str
    reading: str
    figure: Figure
    detail: str = ""

    @property
    def wide(self) -> bool:
        """Whether the plot needs the room of two small ones."""
        return self.figure.get_figwidth() > 3.2

    @cached_property
    def file(self) -> str:
        """The plot as the text of an SVG file."""
        return plots.svg(self.figure)

    @property
    def inline(self) -> str:
        """The plot for the page."""
        return plots.inline(self.file, self.name)


@dataclass
class Section:
    """A part of the page: pictures, and sentences about what is missing."""

    title: str
    intro: str = ""
    pictures: list[Picture] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    layout: str = "pictures"  # a class of the page's style sheet


# Reading a run folder


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        ValueError: It is no run folder, or a file in it is broken; one line that names the file.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    config = folder / "config.yaml"
    if not config.is_file():
        raise ValueError(f"{folder} is no run folder: it has no config.yaml")
    try:
        config_text = config.read_text(encoding="utf-8")
        content = OmegaConf.to_container(OmegaConf.create(config_text))
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(f"{config} is not valid YAML ({_first_line(error)})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{config} holds no mapping of keys to values")
    space = _read_object(folder / "space.json", ("decisions",))
    decisions = None if space is None else space["decisions"]
    for decision in decisions or []:
        _require(decision, ("name", "kind", "labels"), folder / "space.json")
    history = _read_lines(
        folder / "history.jsonl", ("strategy", "round", "step", "genotype", "quality", "cost", "reward")
    )
    updates = _read_lines(folder / "updates.jsonl", ("round", "strategy"))
    for number, line in enumerate(history, start=1):
        _check_genotype(line["genotype"], decisions, f"{folder / 'history.jsonl'}, line {number}")
    for number, line in enumerate(updates, start=1):
        if decisions and line.get("probabilities") and len(line["probabilities"]) != len(decisions):
            raise ValueError(
                f"{folder / 'updates.jsonl'}, line {number}: expected probabilities of {len(decisions)} decisions, "
                f"got {len(line['probabilities'])}"
            )
    candidates = _read_object(folder / "candidates.json", ("candidates",))
    for candidate in candidates["candidates"] if candidates else []:
        _require(candidate, ("strategy", "text", "quality", "cost", "on_front"), folder / "candidates.json")
    ranking = _read_object(folder / "ranking.json", ("sentence", "epochs", "architectures"))
    for architecture in ranking["architectures"] if ranking else []:
        _require(architecture, ("kind", "text", "macs", "shared", "standalone", "failure"), folder / "ranking.json")
    results = _read_object(folder / "results.json", ("task", "metric", "rows"))
    for row in results["rows"] if results else []:
        _require(row, ("name", "title", "validation", "quality", "test", "macs", "parameters"), folder / "results.json")
    return Run(folder, content, config_text, decisions, history, updates, candidates, ranking, results)  # pyright: ignore[reportArgumentType]


def _read_object(path: Path, keys: Iterable[str]) -> Json | None:
    if not path.is_file():
        return None
    try:
        content = _parse(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({_first_line(error)})") from None
    return _require(content, keys, path)


def _read_lines(path: Path, keys: Sequence[str]) -> list[Json]:
    if not path.is_file():
        return []
    found, lines = [], path.read_bytes().split(b"\n")
    unfinished = len(lines)  # the last line, which has no line break yet while a run writes it
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            content = _parse(line)
        except ValueError as error:
            if number == unfinished:
                break
            raise ValueError(f"{path}, line {number} is not valid JSON ({_first_line(error)})") from None
        found.append(_require(content, keys, f"{path}, line {number}"))
    return found


def _parse(text: bytes) -> Any:
    # A quality that is not a number (NaN, or infinite) is one that is not there.
    return json.loads(text, parse_constant=lambda _: None)


def _require(content: Any, keys: Iterable[str], where: object) -> Json:
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected an object, got {content!r:.60}")
    absent = [key for key in keys if key not in content]
    if absent:
        raise ValueError(f"{where}: {absent[0]!r} is missing")
    return content


def _check_genotype(genotype: Any, decisions: list[Json] | None, where: str) -> None:
    tokens = _require(genotype, ("tokens",), where)["tokens"]
    if decisions is None:
        return
    if len(tokens) != len(decisions):
        raise ValueError(f"{where}: expected {len(decisions)} tokens, as space.json has it, got {len(tokens)}")
    for token, decision in zip(tokens, decisions, strict=True):
        if not 0 <= token < len(decision["labels"]):
            raise ValueError(f"{where}: {decision['name']} has no choice {token}")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


# Numbers for people


def score(value: float, metric: str, decimals: int = 1) -> str:
    """A value of the metric: accuracy in percent, anything else to four digits."""
    return f"{100 * value:.{decimals}f}%" if metric == "accuracy" else f"{value:.4g}"


def _scores(values: Sequence[float | None], metric: str) -> str:
    """The mean, and the sample standard deviation behind ± where there are several values."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    if len(known) == 1:
        return score(known[0], metric, decimals=2)
    spread = f"{100 * stdev(known):.2f}" if metric == "accuracy" else f"{stdev(known):.2g}"
    return f"{score(fmean(known), metric, decimals=2)} ± {spread}"


def _gap(difference: float, metric: str) -> str:
    """A difference of the metric without its sign: `0.2 points`; `0.02 points` where one decimal would say nothing."""
    if metric != "accuracy":
        return f"{abs(difference):.3g}"
    points = 100 * abs(difference)
    return f"{points:.{1 if points >= 0.095 else 2}f} points"


def _latency(row: Mapping[str, Any]) -> str:
    if row.get("latency_ms") is None:
        return "-"
    spread = row.get("latency_spread_ms")
    return f"{row['latency_ms']:.2f}" + ("" if spread is None else f" ± {spread:.2f}")


def results_table(results: Mapping[str, Any]) -> Table:
    """The final networks for the console: what they reach and what they cost.

    Args:
        results: The content of `results.json`.
    """
    metric = results["metric"]
    better = "" if results.get("higher_is_better", True) else " (lower is better)"
    table = Table(title=f"{results['task']}: {metric}{better}", title_justify="left", pad_edge=False)
    table.add_column("network", overflow="fold")
    for title in ("validation", "test", "n", "MACs", "parameters", "latency ms"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in results["rows"]:
        cells = _cells(row, metric)
        keys = ("validation", "test", "n", "macs", "parameters", "latency")
        table.add_row(Text(row["title"]), *(cells[key] for key in keys))
    if any(len(row["test"]) > 1 for row in results["rows"]):
        table.caption, table.caption_justify = "±: sample standard deviation over n trainings", "left"
    return table


def _cells(row: Mapping[str, Any], metric: str) -> dict[str, str]:
    return {
        "validation": _scores(row["validation"], metric),
        "test": _scores(row["test"], metric),
        "n": str(max(len(row["validation"]), len(row["test"]))),
        "macs": human(row["macs"]),
        "parameters": human(row["parameters"]),
        "latency": _latency(row),
    }


# The verdict


def verdict(run: Run) -> str:
    """One sentence about what came out, no stronger than its numbers."""
    rows, metric = run.rows, run.metric
    tests = {name: _known(row["test"]) for name, row in rows.items()}
    if not tests.get("teacher"):
        return (
            f"This run has no final networks yet; so far it has evaluated {len(run.history)} "
            f"architecture{'s' if len(run.history) != 1 else ''}."
        )
    reached = f"{score(fmean(tests['teacher']), metric)} test {metric}"
    better = "" if run.higher_is_better else " (lower is better)"
    clauses = [f"On {run.task} the best network found reaches {reached}{better}"]
    if tests.get("student"):
        loss = fmean(tests["teacher"]) - fmean(tests["student"])
        where = f"{_gap(loss, metric)} {'below' if loss >= 0 else 'above'} it"
        if _rounds_to_zero(loss, metric):
            where = "level with it"
        clauses.append(f"its student is {where} at {rows['student']['macs'] / rows['teacher']['macs']:.0%} of its MACs")
    if tests.get("random_best"):
        lead = fmean(tests["teacher"]) - fmean(tests["random_best"])
        side = "above" if lead >= 0 else "below"
        strategy = next((name for name in run.strategies if name != "random"), "the search")
        counts = {sum(line["strategy"] == name for line in run.history) for name in run.strategies}
        known = len(run.strategies) == 2 and len(counts) == 1
        effort = f"{counts.pop()} evaluations each" if known else "equal evaluations"
        if run.looked_up and not known:
            effort = "equal budgets"
        # The difference stands in the sentence in any case: a reader may weigh it otherwise than two standard errors.
        clauses.append(
            f"after {effort}, what {strategy} found is {_gap(lead, metric)} {side} what random search found, "
            + (
                "in one search each: other seeds may say otherwise"
                if run.looked_up
                else _judgement(lead, _standard_error(tests["teacher"], tests["random_best"]))
            )
        )
    return "; ".join(clauses) + "."


def _judgement(difference: float, error: float | None) -> str:
    if error is None:
        return "from one training each, which is too few to tell a difference from noise"
    if abs(difference) <= 2 * error:
        return "which is within noise (two standard errors of the difference)"
    return "which is beyond noise (two standard errors of the difference)"


def _standard_error(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Of the difference of two means, by Welch's formula; None where one of the spreads is unknown."""
    if len(first) < 2 or len(second) < 2:
        return None
    return math.sqrt(stdev(first) ** 2 / len(first) + stdev(second) ** 2 / len(second))


def _rounds_to_zero(difference: float, metric: str) -> bool:
    return metric == "accuracy" and abs(difference) < 0.00005


def _mean(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return fmean(known) if known else None


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


# The sections of pictures


def _search_section(run: Run) -> Section:
    section = Section("The search")
    _add_evaluations(run, section)
    _add_controller(run, section)
    return section


def _add_evaluations(run: Run, section: Section) -> None:
    if not run.history:
        section.missing.append("No architecture has been evaluated yet (history.jsonl is missing or empty).")
        return
    searching = run.strategies[0]
    if "random" in run.strategies[1:]:
        shared = "on the same table" if run.looked_up else "with the same shared weights"
        beside = f"{searching} beside random search {shared}: a policy that learns pulls its line away"
    else:
        beside = f"{searching} alone: a policy that learns raises its line"
    section.pictures.append(
        Picture(
            "reward",
            "Reward over the search",
            f"A dot is one evaluated architecture and a line the mean of each round, {beside}.",
            plots.reward_over_search(run.history),
        )
    )
    unit = _cost_unit(run)
    if run.candidates is None:
        section.missing.append("The candidates have not been scored again yet (candidates.json is missing).")
    section.pictures.append(
        Picture(
            "quality-cost",
            "Quality against cost",
            "Up and to the left is better: faint dots are what the search saw, rings the candidates, the stepped line "
            "their best trade-offs, and marked is what the table reports of the chosen ones."
            if run.looked_up
            else "Up and to the left is better: faint dots are evaluations with shared weights, rings the candidates "
            "scored again on all validation data, the stepped line their best trade-offs, and the marked networks were "
            "trained on their own, which is why they may lie far above.",
            plots.quality_against_cost(
                run.history,
                (run.candidates or {}).get("candidates", []),
                _final_points(run, unit),
                COSTS.get(unit, unit),
            ),
        )
    )
    mine = [line for line in run.history if line["strategy"] == searching]
    if run.decisions is None:
        section.missing.append("Shares of operations cannot be drawn: space.json is missing.")
    elif any(decision["kind"] == "operation" for decision in run.decisions):
        section.pictures.append(
            Picture(
                "operations",
                "Share of each operation",
                f"How often {searching} chose each operation in each round: an even mix is exploration, a band that "
                "swallows the others is a decision, or a collapse.",
                plots.operation_shares(mine, run.decisions),
            )
        )


def _add_controller(run: Run, section: Section) -> None:
    if not run.updates:
        section.missing.append("The controller has not been updated (updates.jsonl is missing or empty).")
        return
    if any(update.get("entropy") is not None or update.get("supernet_loss") is not None for update in run.updates):
        section.pictures.append(
            Picture(
                "controller",
                "The controller over the rounds",
                "Entropy says how open the controller still is: a slow fall is learning, a sudden one is a choice made "
                "too early.",
                plots.controller_over_rounds(run.updates),
            )
        )
    last = next((update["probabilities"] for update in reversed(run.updates) if update.get("probabilities")), None)
    if last is None or run.decisions is None:
        section.missing.append("This run keeps no probabilities per decision.")
        return
    pairs = [(d, p[: len(d["labels"])]) for d, p in zip(run.decisions, last, strict=True)]
    operations = [pair for pair in pairs if pair[0]["kind"] == "operation"]
    skips = [pair for pair in pairs if pair[0]["kind"] == "skip" and plots.skip_ends(pair[0]["name"])]
    others = [pair for pair in pairs if pair not in operations and pair not in skips]
    kinds: list[tuple[str, str, str, list[tuple[Json, list[float]]], Callable[..., Figure]]] = [
        (
            "operation-probabilities",
            "Operations in the end",
            "The probability in percent of each operation per layer after the last update; a strong cell is settled.",
            operations,
            plots.operation_probabilities,
        ),
        (
            "skip-probabilities",
            "Skip connections in the end",
            "The probability in percent that a layer (row) also reads the output of an earlier one (column).",
            skips,
            plots.skip_probabilities,
        ),
        (
            "other-probabilities",
            "Other decisions in the end",
            "A bar is one decision, divided among its choices by probability; the likeliest is named.",
            others,
            plots.choice_probabilities,
        ),
    ]
    for name, title, reading, chosen, draw in kinds:
        if chosen:
            decisions, shares = zip(*chosen, strict=True)
            section.pictures.append(Picture(name, title, reading, draw(list(decisions), list(shares))))


def _ranking_section(ranking: Json) -> Section:
    section = Section("How far to trust this ranking", ranking["sentence"])
    section.missing += [
        f"Left out: {line['text']} ({line['failure']})" for line in ranking["architectures"] if line["failure"]
    ]
    kept = [line for line in ranking["architectures"] if not line["failure"]]
    if not kept:
        return section
    panels = [
        (
            "ranking",
            "Shared weights against training alone",
            "The nearer the dots to a rising line, the better the ranking. Kendall's tau is the share of pairs that "
            "both axes order alike, minus the share that they order otherwise: 1 is the same order, 0 no relation. Few "
            "validation data and a short training from one seed blur both axes, so that a perfect ranking would not "
            "reach 1; and it is easier to tell finalists from random architectures than from each other.",
            "shared",
            "quality with shared weights",
        ),
        (
            "ranking-macs",
            "Size against training alone",
            "What knowing nothing but the size would give: a ranking by shared weights is worth its time where its "
            "dots lie nearer to a line than these.",
            "macs",
            COSTS["macs"],
        ),
    ]
    for name, title, reading, key, label in panels:
        section.pictures.append(Picture(name, title, reading, plots.against_standalone(kept, key, label)))
    return section


def _network_section(run: Run) -> Section:
    section = Section("The networks", layout="networks")
    drawn = [row for row in run.rows.values() if row.get("graph")]
    if drawn:
        section.intro = (
            "Data flow from top to bottom; an arc carries a layer's output past its neighbors to a later one."
        )
    colors = plots.label_colors(plots.operation_labels(run.decisions)) if run.decisions else None
    for row in drawn:
        cells = _cells(row, run.metric)
        reading = f"{cells['test']} at {cells['macs']} MACs"
        graph = row["graph"]
        drawing = plots.network_drawing(graph["nodes"], graph["edges"], colors)
        section.pictures.append(
            Picture(f"network-{row['name']}", row["title"], reading, drawing, row.get("text") or "")
        )
    for row in run.rows.values():
        if row not in drawn and row.get("text"):
            section.missing.append(f"{row['title']} is not drawn; in words it is {row['text']}")
    if not run.rows:
        section.missing.append("There are no final networks to draw yet (results.json is missing).")
    return section


def _cost_unit(run: Run) -> str:
    return (run.results or {}).get("cost_unit") or (run.candidates or {}).get("cost_unit") or "macs"


def _final_points(run: Run, unit: str) -> list[tuple[str, float, float]]:
    """Name, cost and validation quality of the final networks."""
    rows = [row for row in run.rows.values() if _known(row["quality"]) and row.get(unit) is not None]
    return [(row["name"].replace("_", " "), row[unit], fmean(_known(row["quality"]))) for row in rows]


# The pages


def usage_example(folder: str, task: str, network: Mapping[str, Any]) -> str:
    """A few lines of Python that load a network of a run and let it answer, run from the clone's root.

    Args:
        folder: The network's folder.
        task: `digits` comes with scikit-learn, so its example runs as it is; others get a place for a sample.
        network: The content of its `network.json`.
    """
    shape, preparation = tuple(network["input_shape"]), network["preprocessing"]
    imports, ask = (
        "import numpy\n",
        'label, probability = network.classify(image)\nprint(f"{label}: {probability:.1%}")\n',
    )
    if task == "digits":
        imports = "from sklearn.datasets import load_digits\n"
        sample = 'image = load_digits().images[0].astype("uint8")'
    elif len(shape) == 3 and network["objective"]["kind"] == "Classification":
        channels, height, width = shape
        size = (height, width) if channels == 1 else (height, width, channels)
        sample = f'image = numpy.zeros({size}, "uint8")  # your image'
    else:
        kinds = {"Tokens": "int64", "LogMel": "int16"}
        stored = (preparation["length"],) if "length" in preparation else shape
        kind = "uint8" if len(shape) == 3 else kinds.get(preparation["kind"], "float32")
        sample = f'samples = numpy.zeros({(1, *stored)}, "{kind}")  # yours: one, or many'
        ask = "print(network.predict(samples))\n"
    return (
        f"{imports}\nfrom child.network import load_network\n\n"
        f"network = load_network({json.dumps(folder)})\n{sample}\n{ask}"
    )


def write_report(folder: Path) -> Path:
    """Write the plots and `report.html` of a run into its folder, and return the page's path.

    Raises:
        ValueError: The folder is no run folder, or a file in it is broken.
    """
    run = read_run(folder)
    ranking = [_ranking_section(run.ranking)] if run.ranking else []
    sections = [_search_section(run), *ranking, _network_section(run)]
    _write_plots(folder / "plots", [picture for section in sections for picture in section.pictures])
    results, candidates = run.results or {}, run.candidates or {}
    usable = [run.rows[name] for name in ("student", "teacher", *run.rows) if run.rows.get(name, {}).get("folder")]
    page = _template("report.html.jinja").render(
        title=f"{run.task}: a run of Luban",
        task=run.task,
        run=run.folder.resolve().name,
        verdict=verdict(run),
        figures=_key_figures(run),
        rows=[{**row, **_cells(row, run.metric)} for row in run.rows.values()],
        metric=run.metric,
        looked_up=run.looked_up,
        notes=results.get("notes", []),
        sections=sections,
        usage=_usage(run, usable[0]) if usable else None,
        candidates=_candidate_rows(run),
        hypervolume=candidates.get("hypervolume") or {},
        hypervolume_reference=candidates.get("hypervolume_reference"),
        reward_formula=candidates.get("reward_formula"),
        seconds={stage: duration(seconds) for stage, seconds in results.get("seconds", {}).items()},
        failures=[line for line in run.history if line.get("failure")],
        config=run.config_text,
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _template(name: str) -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _write_plots(folder: Path, pictures: Sequence[Picture]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        (folder / f"{picture.name}.svg").write_text(picture.file, encoding="utf-8")
        (folder / f"{picture.name}.png").write_bytes(plots.png(picture.figure))


def _usage(run: Run, row: Mapping[str, Any]) -> str | None:
    folder = (run.folder / row["folder"]).resolve()
    network = _read_object(folder / "network.json", ("input_shape", "preprocessing", "objective"))
    if network is None:
        return None
    inside = folder.relative_to(CLONE) if folder.is_relative_to(CLONE) else folder
    return usage_example(inside.as_posix(), run.task, network)


def _key_figures(run: Run) -> list[tuple[str, str, str]]:
    """Name, value and remark of the numbers that head the page."""
    figures, rows, results = [], run.rows, run.results or {}
    for name in ("teacher", "student"):
        if name in rows and _known(rows[name]["test"]):
            remark = f"{human(rows[name]['macs'])} MACs, {human(rows[name]['parameters'])} parameters"
            figures.append((f"{name}, test {run.metric}", score(fmean(_known(rows[name]["test"])), run.metric), remark))
    if run.history:
        per_strategy = [f"{sum(line['strategy'] == s for line in run.history)} {s}" for s in run.strategies]
        figures.append(("evaluations", human(len(run.history)), ", ".join(per_strategy)))
    seconds = results.get("seconds", {})
    if seconds:
        longest = max(seconds, key=lambda stage: seconds[stage])
        figures.append(("time", duration(sum(seconds.values())), f"longest: {longest}, {duration(seconds[longest])}"))
    return figures


def _candidate_rows(run: Run) -> list[dict[str, str]]:
    listed = (run.candidates or {}).get("candidates", [])
    unit = _cost_unit(run)
    return [
        {
            "strategy": line["strategy"],
            "quality": "-" if line["quality"] is None else f"{line['quality']:.4f}",
            "cost": f"{line['cost']:.3g} ms" if unit == "latency_ms" else human(line["cost"]),
            "reward": "-" if line.get("reward") is None else f"{line['reward']:.4f}",
            "text": line["text"],
            "front": "yes" if line["on_front"] else "",
        }
        for line in sorted(listed, key=lambda line: (not line["on_front"], -(line.get("reward") or 0.0)))
    ]


# Several runs


@dataclass(frozen=True)
class _Group:
    """Runs of one experiment: equal in everything but the seed."""

    letter: str
    description: str
    runs: list[Run]

    def tests(self, name: str) -> list[float]:
        """One value per run: the mean over that run's trainings of a network."""
        return self._per_run(name, "test")

    def _per_run(self, name: str, split: str) -> list[float]:
        values = [_known(run.rows[name][split]) for run in self.runs if name in run.rows]
        return [fmean(value) for value in values if value]

    def cells(self, name: str, metric: str) -> dict[str, str]:
        """What the table says about a network."""
        rows = [run.rows[name] for run in self.runs if name in run.rows]
        return {
            "title": rows[0]["title"],
            "n": str(len(rows)),
            "validation": _scores(self._per_run(name, "validation"), metric),
            "test": _scores(self.tests(name), metric),
            "macs": human(_mean(row["macs"] for row in rows)),
            "parameters": human(_mean(row["parameters"] for row in rows)),
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
    page = _template("comparison.html.jinja").render(
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


def _grouped(runs: Sequence[Run]) -> list[_Group]:
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
                difference, error = fmean(ours) - fmean(theirs), _standard_error(ours, theirs)
                pair = f"{first.letter} against {second.letter}"
                rows.append({"pair": pair, "network": name.replace("_", " "), **_difference(difference, error, metric)})
    return rows


def _against_random(groups: Sequence[_Group], metric: str) -> list[dict[str, str]]:
    """What the search found against what random search found in the same run, run by run, so that seeds cancel out."""
    rows = []
    for group in groups:
        pairs = [
            fmean(_known(run.rows["teacher"]["test"])) - fmean(_known(run.rows["random_best"]["test"]))
            for run in group.runs
            if all(_known(run.rows.get(name, {}).get("test", [])) for name in ("teacher", "random_best"))
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
        "difference": f"{sign}{_gap(difference, metric)}",
        "error": "-" if error is None else _gap(error, metric),
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
