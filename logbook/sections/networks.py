"""What the final networks look like, and where their cost is."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from logbook import plots
from logbook.numbers import cells, human
from logbook.record import Json, Record
from logbook.sections.section import Grid, Picture, Section


def network_section(run: Record) -> Section:
    """The final networks, drawn."""
    section = Section("The networks", layout="networks")
    drawn = [row for row in run.rows.values() if row.get("graph")]
    if drawn:
        section.intro = (
            "Data flow from top to bottom; an arc carries a layer's output past its neighbors to a later one."
        )
    colors = plots.label_colors(plots.operation_labels(run.decisions)) if run.decisions else None
    for row in drawn:
        said = cells(row, run.metric)
        reading = said["test"] + ("" if row["macs"] is None else f" at {said['macs']} MACs")
        graph = row["graph"]
        drawing = plots.network_drawing(graph["nodes"], graph["edges"], colors)
        section.pictures.append(
            Picture(f"network-{row['name']}", row["title"], reading, drawing, row.get("text") or "")
        )
    for row in run.rows.values():
        if row not in drawn and row.get("text"):
            section.missing.append(f"{row['title']} is not drawn; in words it is {row['text']}")
    if not run.rows:
        section.missing.append("There are no tested networks to draw yet (results.json is missing).")
    return section


OUTSIDE = "(outside of its modules)"
"""The layer that holds what a network computes in its own code, as `child/cost.py` calls it."""

MOST_LAYERS = 24
"""In a picture; smaller ones are drawn as one."""


def layers_section(run: Record) -> Section:
    """Where the teacher and the student spend multiply-accumulates and parameters."""
    section = Section("Where the cost is")
    if run.layers is None:
        section.missing.append("The layers of the final networks have not been counted yet (layers.json is missing).")
    for name, rows in (run.layers or {}).items():
        title = run.rows[name]["title"] if name in run.rows else name
        shown = folded(rows)
        totals = {key: human(sum(row[key] for row in rows)) for key in ("macs", "parameters")}
        reading = (
            f"The share of each layer in the {totals['macs']} multiply-accumulates and {totals['parameters']} "
            "parameters: the longest bars are where something can be saved."
        )
        if rows[-1]["name"] == OUTSIDE and 2 * rows[-1]["macs"] > sum(row["macs"] for row in rows):
            reading += (
                " Most is computed by the network itself, as by a recurrent cell, whose parts are not told apart."
            )
        section.pictures.append(Picture(f"layers-{name}", title, reading, draw_layers(shown)))
        section.grids.append(
            Grid(
                f"{title}: every layer in numbers",
                "Names are those of the modules in the network's weights.",
                ["layer", "MACs", "parameters"],
                [[row["name"], human(row["macs"]), human(row["parameters"])] for row in rows],
            )
        )
    return section


def folded(rows: Sequence[Json]) -> list[Json]:
    """The layers that cost at least 1% of either, at most so many, and the rest as one; they add up as before."""
    totals = {key: max(1, sum(row[key] for row in rows)) for key in ("macs", "parameters")}

    def weight(row: Json) -> float:
        return max(row[key] / total for key, total in totals.items())

    heavy = sorted((row for row in rows if weight(row) >= 0.01), key=lambda row: -weight(row))[:MOST_LAYERS]
    kept = [row for row in rows if row in heavy]
    small = [row for row in rows if row not in heavy]
    if not small:
        return kept
    rest = {key: sum(row[key] for row in small) for key in totals}
    return [*kept, {"name": f"{len(small)} smaller layer{'' if len(small) == 1 else 's'}", **rest}]


@plots.styled()
def draw_layers(rows: Sequence[Json]) -> Figure:
    """Two bars per layer, as shares of the whole."""
    figure, axes = plots.canvas(0.8 + 0.34 * len(rows))
    for place, (key, label, color) in enumerate(
        (("macs", "MACs", plots.BLUE), ("parameters", "parameters", plots.ORANGE))
    ):
        total = max(1, sum(row[key] for row in rows))
        heights = [row + 0.19 * (2 * place - 1) for row in range(len(rows))]
        shares = [row[key] / total for row in rows]
        axes.barh(heights, shares, height=0.36, color=color, alpha=0.85, label=label, linewidth=0)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8.5)
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel="share of the whole network")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(axis="y", visible=False)
    plots.legend_above(axes)
    return figure
