"""What the final networks look like."""

from logbook import plots
from logbook.numbers import cells
from logbook.record import Record
from logbook.sections.section import Picture, Section


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
        reading = f"{said['test']} at {said['macs']} MACs"
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
