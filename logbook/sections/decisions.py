"""Which decisions mattered, what was preferred and when, and what every single change of the choice would give."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from logbook import plots
from logbook.analysis import TELLABLE, Effect, Preferences, effects, preferences
from logbook.numbers import human
from logbook.record import Json, Record
from logbook.sections.section import Grid, Picture, Section

MOST_ROWS = 30
"""Decisions in a picture: more would not be read."""


def decisions_section(run: Record) -> Section:
    """Which decisions the reward depends on, and what the strategy came to prefer."""
    section = Section("Which decisions mattered")
    if run.decisions is None or not run.history:
        section.missing.append("This cannot be told before the first evaluations (space.json and history.jsonl).")
        return section
    _add_effects(run, run.decisions, section)
    mine = [line for line in run.history if line["strategy"] == run.searching]
    updates = [update for update in run.updates if update["strategy"] == run.searching]
    preferred = preferences(run.decisions, mine, updates)
    places, left_out = ([], "") if preferred is None else _most_settled(preferred)
    if preferred is not None and places:
        what = "the controller's probability of it" if preferred.are_probabilities else "how often it was chosen"
        section.pictures.append(
            Picture(
                "preferences",
                f"What {run.searching} came to prefer, and when",
                f"A row is a decision, read from left to right over the rounds: the color is the favorite choice, and "
                f"the stronger it is, the larger {what}. At the right stands the favorite in the end, and the "
                f"round since which it has been the favorite, where that is not the first.{left_out}",
                draw_preferences(run.decisions, preferred, places),
            )
        )
    return section


def _add_effects(run: Record, decisions: Sequence[Json], section: Section) -> None:
    uniform = "random" in run.strategies
    source = "random" if uniform else run.searching
    lines = [line for line in run.evaluations if line["strategy"] == source]
    found = effects(decisions, lines, run.noisy_rounds)
    tellable = [effect for effect in found if effect.tellable]
    if not tellable:
        section.missing.append(
            f"{len(lines)} evaluations of {source} are too few to tell which decisions matter: a decision without any "
            f"influence would often seem to explain more than {TELLABLE:.0%} of the variance."
        )
        return
    beyond = [effect for effect in tellable if effect.share > effect.chance]
    section.intro = (
        f"From {len(lines)} evaluations of {source}. {len(beyond)} of {len(tellable)} decisions explain more of the "
        "reward's variance than chance would"
    )
    conditional = any("open" in line for line in lines)
    rest = "their interplay and the noise of the evaluations" if run.noisy else "their interplay"
    if conditional:
        section.intro += ", each counted over the architectures that have it"
    if uniform and conditional:
        section.intro += f". The rest of the variance is {rest}."
    elif uniform:
        # A share is an unbiased estimate, so one by chance below 0 offsets another by chance above.
        alone = min(1.0, max(0.0, sum(effect.share for effect in tellable)))
        section.intro += f"; the decisions taken one by one explain {alone:.0%}, and what is left is {rest}."
    else:
        section.intro += (
            f". {run.searching} did not draw them independently, so that a decision may get the credit of another that "
            "went with it."
        )
    if run.noisy_rounds:
        section.intro += " What all architectures of a round have in common, as shared weights learn, is taken off."
    shown = sorted(tellable, key=lambda effect: -effect.share)[:MOST_ROWS]
    left_out = f" The other {len(tellable) - len(shown)} explain less." if len(shown) < len(tellable) else ""
    section.pictures.append(
        Picture(
            "decision-effects",
            "Share of the reward's variance that each decision explains",
            "The further right a dot, the more the reward depends on that decision alone; the line is its 95% "
            f"interval, and left of the small upright mark a decision may as well have no influence.{left_out}",
            draw_effects(decisions, shown),
        )
    )


def _most_settled(preferred: Preferences) -> tuple[list[int], str]:
    """The decisions to draw, in their order, and a remark about the others."""
    there = [place for place, shares in enumerate(preferred.shares) if not np.isnan(shares).all()]
    there = [place for place in there if preferred.shares[place].shape[1] > 1]

    def certainty(place: int) -> float:
        num = preferred.shares[place].shape[1]
        return (preferred.settled(place)[1] - 1 / num) / (1 - 1 / num)

    kept = sorted(sorted(there, key=certainty, reverse=True)[:MOST_ROWS])
    left_out = f" Of {len(there)} decisions the {len(kept)} most settled are shown." if len(kept) < len(there) else ""
    return kept, left_out


@plots.styled()
def draw_effects(decisions: Sequence[Mapping[str, Any]], shown: Sequence[Effect]) -> Figure:
    """Dots with intervals, the largest on top, and marks for what chance would show."""
    figure, axes = plots.canvas(0.75 + 0.24 * len(shown))
    rows = np.arange(len(shown))
    shares, low, high, chance = np.array([(each.share, each.low, each.high, each.chance) for each in shown]).T.clip(
        0, 1
    )
    colors = [plots.BLUE if effect.share > effect.chance else plots.INK for effect in shown]
    axes.hlines(rows, low, high, color=colors, lw=1.6)
    axes.scatter(shares, rows, s=30, color=colors, zorder=3)
    axes.vlines(chance, rows - 0.32, rows + 0.32, color=plots.VERMILION, lw=1.1)
    names = [decisions[effect.place]["name"] for effect in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=8.5)
    axes.set(ylim=(len(shown) - 0.4, -0.6), xlabel="share of the variance")
    axes.set_xlim(left=-0.005)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    axes.grid(axis="y", visible=False)
    return figure


@plots.styled()
def draw_preferences(decisions: Sequence[Mapping[str, Any]], preferred: Preferences, places: Sequence[int]) -> Figure:
    """A row per decision and a column per few rounds: hue for the favorite, strength for its share."""
    figure, axes = plots.canvas(0.75 + 0.24 * len(places), 5.7)
    others = (label for decision in decisions for label in decision["labels"])
    colors = plots.label_colors(plots.ordered([*plots.operation_labels(decisions), *others]))
    image = np.zeros((len(places), len(preferred.starts), 4))
    for row, place in enumerate(places):
        labels, shares = decisions[place]["labels"], preferred.shares[place]
        for column, each in enumerate(shares):
            if not np.isnan(each[0]):
                certainty = (each.max() - 1 / len(labels)) / (1 - 1 / len(labels))
                image[row, column] = to_rgba(colors[labels[int(each.argmax())]], 0.08 + 0.92 * max(0.0, certainty))
        favorite, share, since = preferred.settled(place)
        since_text = f", since {since + 1}" if since > preferred.starts[0] else ""
        text = f"{labels[favorite]} {share:.0%}{since_text}"
        if share < 1.05 / len(labels):
            text = "open"
        if np.isnan(shares[-1, 0]):
            text = "not there"
        axes.text(1.02, row, "■", transform=axes.get_yaxis_transform(), va="center", fontsize=9,
                  color=plots.INK if text in ("open", "not there") else colors[labels[favorite]])  # fmt: skip
        axes.text(1.07, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8.5)
    axes.imshow(image, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(places)), [decisions[place]["name"] for place in places], fontsize=8.5)
    ticks = np.unique(np.linspace(0, len(preferred.starts) - 1, min(6, len(preferred.starts))).round().astype(int))
    axes.set_xticks(ticks, [str(preferred.starts[tick] + 1) for tick in ticks])
    axes.set_xlabel("round")
    axes.set_yticks(np.arange(len(places) - 1) + 0.5, minor=True)
    axes.grid(visible=False)
    axes.grid(axis="y", which="minor", visible=True, lw=1.2, alpha=0.35)
    axes.tick_params(which="minor", size=0)
    axes.spines[:].set_visible(False)
    return figure


def neighbors_section(run: Record) -> Section:
    """What every single change of the first choice would give."""
    section, found = Section("Why this one: its neighbors"), run.neighbors
    if found is None or found["missing"] or not found["neighbors"]:
        section.missing.append(
            (found or {}).get("missing")
            or "What single changes of the choice would give is not known yet (neighbors.json is missing or empty)."
        )
        return section
    center = found["center"]
    lines = [line for line in found["neighbors"] if line["failure"] is None]
    if center["failure"] or not lines:
        section.missing.append("Neither the choice nor its neighbors could be evaluated again.")
        return section
    better = sum(line["reward"] > center["reward"] for line in lines)
    how_many = f"All {found['num_all']}" if len(found["neighbors"]) == found["num_all"] else (
        f"A sample of {len(found['neighbors'])} of {found['num_all']}"
    )  # fmt: skip
    judged = {
        "table": "looked up in the table",
        "shared weights": "scored with the same shared weights on all validation data",
        "training": "each trained on its own",
        "evaluator": "judged by the same evaluator",
    }[run.judged_by]
    section.intro = (
        f"{how_many} architectures that differ from the first choice in one decision, {judged} like itself. "
        f"{better} of {len(lines)} have a higher reward than its {center['reward']:.4f}. The first choice is "
        f"{center['text']}."
    )
    if run.on_rungs:
        section.intro += (
            " Trainings on the rungs, which the first choice owes its place to, do not count here, so that it may look "
            "worse than what was never trained."
        )
    error = found.get("standard_error")
    noise = (
        f" The gray band is one standard error of a quality ({error:.4f}): differences within it are noise."
        if error
        else ""
    )
    section.pictures.append(
        Picture(
            "neighbors",
            "What each single change would give",
            "A dot is one other choice of the decision in its row. Left of the line it is worse than what was chosen "
            "in reward or quality, right of it better; in cost, right is dearer. The best other choice is named."
            f"{noise}",
            draw_neighbors(center, lines, error),
        )
    )
    section.grids.append(
        Grid(
            f"All {len(lines)} changes in numbers",
            "Each change against the first choice, the highest reward first.",
            ["change", "reward", "difference", "quality", "difference", "cost"],
            [_neighbor_row(line, center) for line in sorted(lines, key=lambda line: -line["reward"])],
        )
    )
    failed = [line for line in found["neighbors"] if line["failure"]]
    if failed:
        section.missing.append(f"{len(failed)} neighbors could not be evaluated; the first: {failed[0]['failure']}")
    return section


def _neighbor_row(line: Json, center: Json) -> list[str]:
    reward, quality = line["reward"] - center["reward"], line["quality"] - center["quality"]
    change = f"{line['decision']}: {line['from']} to {line['to']}"
    return [
        change, f"{line['reward']:.4f}", f"{reward:+.4f}", f"{line['quality']:.4f}", f"{quality:+.4f}",
        human(line["cost"]),
    ]  # fmt: skip


@plots.styled()
def draw_neighbors(center: Json, lines: Sequence[Json], error: float | None) -> Figure:
    """Dots per decision in panels for reward, quality and cost, relative to the choice; the rows of largest effect."""
    names = plots.ordered(line["decision"] for line in lines)
    reach = {name: max(abs(x["reward"] - center["reward"]) for x in lines if x["decision"] == name) for name in names}
    kept = set(sorted(names, key=lambda name: -reach[name])[:MOST_ROWS])
    rows = [name for name in names if name in kept]
    with_cost = center["cost"] and all(line["cost"] is not None for line in lines)
    keys = ["reward", "quality", "cost"] if with_cost else ["reward", "quality"]
    figure = Figure(figsize=(10.4, 0.9 + 0.25 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    for axes, key in zip(panels, keys, strict=True):
        scale = center["cost"] if key == "cost" else 1.0
        axes.axvline(0, color=plots.INK, lw=1.2)
        if key == "quality" and error:
            axes.axvspan(-error, error, color=plots.INK, alpha=0.15, lw=0)
        dots = [line for line in lines if line["decision"] in kept]
        moved = np.array([(line[key] - center[key]) / scale for line in dots])
        worse = plots.BLUE if key != "cost" else plots.INK
        colors = [plots.GREEN if key == "reward" and value > 0 else worse for value in moved]
        heights = [rows.index(line["decision"]) for line in dots]
        axes.scatter(moved, heights, s=20, color=colors, alpha=0.75, linewidths=0)
        for row, name in enumerate(rows if key == "reward" else []):
            best = max((line for line in dots if line["decision"] == name), key=lambda line: line["reward"])
            said = f"{best['to']} {best['reward'] - center['reward']:+.3f}"
            axes.text(1.02, row, said, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
        axes.set_title(f"change of {key}", loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(
            (lambda value, _: f"{100 * value:+.3g}%" if value else "0")
            if key == "cost"
            else (lambda value, _: f"{value:+.3g}" if value else "0")
        )
        axes.grid(axis="y", visible=False)
    chosen = {line["decision"]: line["from"] for line in lines}
    labels = [plots.shorten(f"{name} = {chosen[name]}", 34) for name in rows]
    panels[0].set_yticks(range(len(rows)), labels, fontsize=8.5)
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    return figure
