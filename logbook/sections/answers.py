"""What the final networks get wrong: accuracy by class and confusions, or residuals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from logbook import plots
from logbook.analysis import Confusion, accuracy_by_class, worst_confusions
from logbook.record import Record
from logbook.sections.section import Grid, Picture, Section

MOST_CLASSES = 30
"""In a picture; of more the worst are drawn."""

MOST_LETTERS = 20
"""Of a class's name in a picture."""

MOST_RESIDUALS = 10


def answers_section(run: Record) -> list[Section]:
    """The mistakes of the teacher and the student; nothing of a task with no one answer to a sample."""
    if run.about and run.results and not run.answers:
        return []
    section = Section("What they get wrong")
    if not run.answers:
        section.missing.append("What the final networks answer is not known yet (answers.npz is missing).")
        return [section]
    shown = [name for name in (run.teacher, "student") if f"test {name}" in run.answers]
    classes = (run.about or {}).get("classes")
    if classes:
        _add_classes(run, section, shown, classes)
    else:
        _add_residuals(run, section, shown)
    return [section]


def _add_classes(run: Record, section: Section, shown: Sequence[str], classes: Sequence[str]) -> None:
    splits = [split for split in ("validation", "test") if split in run.answers]
    for split in splits:
        by_name = {
            name: accuracy_by_class(run.answers[split], run.answers[f"{split} {name}"], len(classes)) for name in shown
        }
        where = "on test data, from the one reading of it" if split == "test" else "on validation data"
        rest = f" Of {len(classes)} classes the {MOST_CLASSES} worst are drawn." if len(classes) > MOST_CLASSES else ""
        section.pictures.append(
            Picture(
                f"classes-{split}",
                f"Accuracy by class, {split}",
                f"How many of each class are recognized {where}; the thin line is the 95% interval (Wilson's), which "
                f"is wide where a class has few samples.{rest}",
                draw_classes(by_name, classes),
            )
        )
    teacher = shown[0]
    split = splits[0]
    confusions = worst_confusions(run.answers[split], run.answers[f"{split} {teacher}"])
    images = run.answers.get(f"images {teacher}")
    if not confusions:
        section.missing.append(f"The teacher makes no mistake on {split} data, so there are no confusions to show.")
    elif images is not None and images.shape[1] in (1, 3) and split == "validation":  # gray or in color
        places = {place: number for number, place in enumerate(run.answers[f"places {teacher}"].tolist())}
        rows = [(each, [images[places[place]] for place in each.places if place in places]) for each in confusions]
        section.pictures.append(
            Picture(
                "confusions",
                "The worst confusions of the teacher, with examples",
                "A row is one kind of mistake on validation data, the most frequent on top: what the pictures are, and "
                "what they were taken for. Test pictures are not shown, so that nobody learns from them.",
                draw_confusions(rows, classes),
            )
        )
    rows = []
    for name in shown:
        for each in worst_confusions(run.answers[split], run.answers[f"{split} {name}"], pairs=20, samples=10**9):
            rows.append([
                f"{run.rows[name]['title'] if name in run.rows else name}: {classes[each.right]} taken for "
                f"{classes[each.given]}",
                str(len(each.places)),
                f"{each.share:.1%}",
            ])  # fmt: skip
    if rows:
        reading = f"On {split} data; the share is of all samples of the right class."
        section.grids.append(Grid("Confusions in numbers", reading, ["confusion", "samples", "share"], rows))


def _add_residuals(run: Record, section: Section, shown: Sequence[str]) -> None:
    split = "validation" if "validation" in run.answers else "test"
    right = run.answers[split]
    given = {name: run.answers[f"{split} {name}"] for name in shown}
    section.pictures.append(
        Picture(
            "residuals",
            f"Predicted against true, {split}",
            f"A dot is one sample of the {split} data; on the line the prediction is right, above it too high, and the "
            f"{MOST_RESIDUALS} worst of the teacher are ringed.",
            draw_residuals(right, given),
        )
    )
    worst = np.argsort(-np.abs(given[shown[0]] - right), kind="stable")[:MOST_RESIDUALS]
    rows = [
        [f"sample {place}", f"{right[place]:.4g}", *(f"{given[name][place]:.4g}" for name in shown),
         f"{given[shown[0]][place] - right[place]:+.4g}"]
        for place in worst.tolist()
    ]  # fmt: skip
    header = [f"{split} sample", "true", *(f"{name}'s" for name in shown), "teacher is off by"]
    reading = "The samples whose predictions are furthest off, counted from 0 in the order of the split."
    section.grids.append(Grid("The worst predictions of the teacher", reading, header, rows))


@plots.styled()
def draw_classes(counts: dict[str, list[tuple[int, int]]], classes: Sequence[str]) -> Figure:
    """A dot with its interval per class and network, the worst class of the first network on top."""
    first = next(iter(counts.values()))
    there = [number for number in range(len(classes)) if first[number][1]]
    order = sorted(there, key=lambda number: first[number][0] / first[number][1])[:MOST_CLASSES]
    figure, axes = plots.canvas(0.9 + 0.3 * len(order))
    for place, ((name, each), color) in enumerate(zip(counts.items(), (plots.BLUE, plots.ORANGE), strict=False)):
        rows = np.arange(len(order)) + 0.16 * (2 * place - 1) * (len(counts) > 1)
        axes.hlines(
            rows, *zip(*(wilson(*each[number]) for number in order), strict=True), color=color, lw=1.2, alpha=0.7
        )
        shares = [each[number][0] / each[number][1] for number in order]
        axes.scatter(shares, rows, s=26, color=color, zorder=3, label=name.replace("_", " "))
    labels = [f"{plots.shorten(classes[number], MOST_LETTERS)} ({first[number][1]})" for number in order]
    axes.set_yticks(range(len(order)), labels, fontsize=8.5)
    axes.set(ylim=(len(order) - 0.4, -0.6), xlabel="accuracy (beside a class: its samples)")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(axis="y", visible=False)
    plots.legend_above(axes)
    return figure


def wilson(num_right: int, num: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927), which stays within 0 and 1."""
    z = 1.96
    share = num_right / num
    middle = (share + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num) * float(np.sqrt(share * (1 - share) / num + z * z / (4 * num * num)))
    return max(0.0, middle - half), min(1.0, middle + half)


@plots.styled()
def draw_confusions(rows: Sequence[tuple[Confusion, Sequence[NDArray[Any]]]], classes: Sequence[str]) -> Figure:
    """A row of images (C, H, W) per confusion."""
    columns = max(1, *(len(images) for _, images in rows))
    figure, axes = plots.canvas(0.72 * len(rows))
    for row, (confusion, images) in enumerate(rows):
        right, given = (plots.shorten(classes[each], MOST_LETTERS) for each in (confusion.right, confusion.given))
        said = f"{right},\ntaken for {given}\n{confusion.share:.1%} of its class"
        axes.text(-0.6, row, said, va="center", ha="right", fontsize=8.5)
        for column, image in enumerate(images):
            picture = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            place = (column - 0.45, column + 0.45, row + 0.45, row - 0.45)
            axes.imshow(picture, cmap="gray" if len(image) == 1 else None, interpolation="nearest", extent=place)
    # Room for the words at the left: about three pictures.
    axes.set(xlim=(-3.2, columns - 0.5), ylim=(len(rows) - 0.5, -0.5), aspect="equal")
    axes.axis("off")
    return figure


@plots.styled()
def draw_residuals(right: NDArray[Any], given: dict[str, NDArray[Any]]) -> Figure:
    """Predictions upwards against the truth sideways."""
    figure, axes = plots.canvas(4.0)
    low, high = float(right.min()), float(right.max())
    axes.plot([low, high], [low, high], color=plots.INK, lw=1)
    for (name, each), color in zip(given.items(), (plots.BLUE, plots.ORANGE), strict=False):
        axes.scatter(right, each, s=12, color=color, alpha=0.5, linewidths=0, label=name.replace("_", " "))
    first = next(iter(given.values()))
    worst = np.argsort(-np.abs(first - right), kind="stable")[:MOST_RESIDUALS]
    axes.scatter(right[worst], first[worst], s=42, facecolors="none", edgecolors=plots.VERMILION, linewidths=1)
    axes.set(xlabel="true", ylabel="predicted")
    plots.legend_above(axes)
    return figure
