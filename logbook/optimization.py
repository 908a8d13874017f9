"""What `optimize.py` shows: the original and what each step made of it, as a table, a plot and a small page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from logbook import plots
from logbook.analysis import front_of
from logbook.numbers import duration, human, score, which_way
from logbook.record import Json, Record, read_run
from logbook.report import template, usage_of, write_plots
from logbook.sections.decisions import decisions_section
from logbook.sections.networks import layers_section
from logbook.sections.section import Grid, Picture, Section

COSTS = {"macs": "multiply-accumulates", "bytes": "bytes on disk", "latency_ms": "latency of 64 samples, ms"}
COLUMNS = ("validation", "loss", "test", "macs", "parameters", "bytes", "latency")
TITLES = {"loss": "points lost", "macs": "MACs", "latency": "ms for 64"}


def row_line(row: Mapping[str, Any], metric: str) -> str:
    """A network in a line."""
    return (
        f"{row['title']}: validation {metric} {_with_error(row, metric)}, {human(row['macs'])} MACs, "
        f"{human(row['parameters'])} parameters, {human(row['bytes'])}B"
    )


def steps_table(results: Mapping[str, Any]) -> Table:
    """The original and each step for the console.

    Args:
        results: The content of `results.json`.
    """
    title = f"{results['task']}: {which_way(results['metric'], results['higher_is_better'])}"
    table = Table(title=Text(title), title_justify="left", pad_edge=False)
    table.add_column("network", overflow="fold")
    for key in COLUMNS:
        table.add_column(TITLES.get(key, key), justify="right", no_wrap=True)
    for row in _cells(results):
        table.add_row(Text(_marked(row, results)), *(row[key] for key in COLUMNS))
    chosen = "* chosen; " if results["chosen"] else ""
    said = f"{chosen}±: standard error on validation data; of latency, the distance between quartiles"
    table.caption, table.caption_justify = said, "left"
    return table


def _marked(row: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """A network's title, with a mark if it was chosen."""
    return row["title"] + (" *" if row["name"] == results["chosen"] else "")


def so_far(run: Record) -> Json:
    """What `results.json` will hold, of a run of `optimize.py` that is still going or was stopped."""
    rows = (run.steps or {"rows": []})["rows"]
    return {
        "task": run.task,
        "metric": run.metric,
        "higher_is_better": run.higher_is_better,
        "goal": {name: limit for name, limit in run.config["goal"].items() if limit is not None},
        "chosen": None,
        "verdict": f"This run is not finished: {run.reached}, none tested.",
        "rows": rows,
        "notes": [],
        "seconds": {row["name"]: row["seconds"] for row in rows},
    }


def write_optimization(folder: Path) -> Path:
    """Write the plots and `report.html` of a run of `optimize.py` into its folder, and return the page's path.

    Raises:
        ValueError: The folder is no run folder, or a file in it is broken.
    """
    run = read_run(folder)
    results = run.results or so_far(run)
    titles = {row["name"]: row["title"] for row in results["rows"]}
    section = Section("Quality and cost")
    for key, label in COSTS.items():
        networks = [(_marked(row, results), row[key], row["quality"][0]) for row in results["rows"] if key in row]
        if not networks:
            continue
        front = front_of(networks, key=lambda network: (network[2], network[1]))
        candidates = [
            {"strategy": "steps", "cost": cost, "quality": quality, "on_front": (title, cost, quality) in front}
            for title, cost, quality in networks
        ]
        reading = (
            "Each mark is a network, * the chosen one; higher and further left is better. No other network is better "
            "in both than one on the line."
        )
        figure = plots.quality_against_cost([], candidates, networks, label)
        section.pictures.append(Picture(f"quality-{key}".replace("_", "-"), label.capitalize(), reading, figure))
    section.grids += [_ratios(stage, tried) for stage, tried in (run.ratios or {}).items()]
    sections = [
        section,
        *([decisions_section(run)] if run.decisions else []),
        *([layers_section(run)] if run.layers else []),
    ]
    write_plots(folder / "plots", [picture for each in sections for picture in each.pictures])
    page = template("optimization.html.jinja").render(
        title=f"{results['task']}: a smaller model",
        task=results["task"],
        run=folder.resolve().name,
        verdict=results["verdict"],
        metric=which_way(results["metric"], results["higher_is_better"]),
        goal=results["goal"],
        notes=results["notes"],
        rows=_cells(results),
        columns=[(key, TITLES.get(key, key)) for key in COLUMNS],
        chosen=results["chosen"],
        sections=sections,
        usage=usage_of(run, "networks/student"),
        seconds={titles.get(name, name): duration(time) for name, time in results["seconds"].items()},
        config=run.config_text,
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _ratios(stage: str, tried: Sequence[Json]) -> Grid:
    """What was removed of each layer, for the ratios that a search ended with."""
    header = ["layer", *("even" if each["even"] else "found" for each in tried)]
    header[1] += ", chosen"
    rows = [
        [layer or "(the network)", *(f"{each['removed'][layer]:.1%}" for each in tried)]
        for layer in tried[0]["removed"]
    ]
    rows.append(["quality after a short tuning", *(f"{each['quality']:.4f}" for each in tried)])
    return Grid(
        f"{stage}: ratios that the search ended with",
        "The share removed of each layer, before all are scaled to the wanted cost. Those of the best validation "
        "quality after a short tuning were chosen, but even ones where none is better by more than a standard error. "
        "-1: even the smallest network of these ratios costs more.",
        header, rows,
    )  # fmt: skip


def _cells(results: Mapping[str, Any]) -> list[dict[str, str]]:
    metric, rows = results["metric"], []
    sign = 1 if results["higher_is_better"] else -1
    for row in results["rows"]:
        first = results["rows"][0]
        cells = {
            "name": row["name"],
            "title": row["title"],
            "note": row["note"],
            "validation": _with_error(row, metric),
        }
        lost = sign * (first["validation"][0] - row["validation"][0]) + 0.0
        cells["loss"] = f"{100 * lost:+.2f}" if metric == "accuracy" else f"{lost:+.3g}"
        cells["test"] = score(row["test"][0], metric, 2) if row["test"] else "-"
        for key in ("macs", "parameters", "bytes"):
            cells[key] = human(row[key]) + ("" if row is first else f" ({row[key] / max(1, first[key]):.1%})")
        timed = "latency_ms" in row  # all networks are, together, once the last step is taken
        cells["latency"] = f"{row['latency_ms']:.2f} ± {row['latency_spread_ms']:.2f}" if timed else "-"
        rows.append(cells)
    return rows


def _with_error(row: Mapping[str, Any], metric: str) -> str:
    error = 100 * row["standard_error"] if metric == "accuracy" else row["standard_error"]
    return f"{score(row['validation'][0], metric, 2)} ± {error:.2g}"
