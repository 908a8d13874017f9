"""Pictures of several runs: their search curves and their fronts, laid over each other."""

from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from logbook import plots
from logbook.numbers import COSTS
from logbook.record import Record
from logbook.sections.section import Picture, Section

Groups = Mapping[str, Sequence[Record]]


def curves_section(title: str, name: str, groups: Groups) -> Section:
    """Of groups of runs with one task.

    Args:
        title: Of the section.
        name: What the names of its pictures begin with, unique on the page.
        groups: The runs of each, by the group's letter.
    """
    section = Section(title)
    means, best = _curves(groups)
    if not means:
        section.missing.append("None of these runs has evaluated an architecture yet.")
        return section
    unlike = (
        " The runs are not rewarded alike, so that heights compare within a group alone." if _unlike(groups) else ""
    )
    if len(groups) > 1 and any(run.judged_by == "shared weights" for runs in groups.values() for run in runs):
        unlike += (
            " Rewards are told by shared weights of the run's own, which learn what its strategy lets them: how good "
            "its networks are in the end, the tables say."
        )
    budgets = [run.search.get("budget") for runs in groups.values() for run in runs]
    free = " With a budget that is no measure: repeats are free, and take rounds." if any(budgets) else ""
    section.pictures += [
        Picture(
            f"{name}-reward-curves",
            "Mean reward of each round",
            "A line is the median over a group's runs, its band spans their quartiles: a policy that learns rises. The "
            "last rounds are those of the longest runs alone." + unlike,
            plots.reward_curves(means),
        ),
        Picture(
            f"{name}-best-curves",
            "Best reward so far",
            "The same of the best reward that a run has seen until then: the sooner a line is high, the fewer rounds "
            "its search needs." + free,
            plots.reward_curves(best, "best reward so far"),
        ),
    ]
    fronts = {letter: [run for run in runs if run.candidates] for letter, runs in groups.items()}
    units = {run.cost_unit for runs in fronts.values() for run in runs}
    if len(units) > 1:
        section.missing.append(f"Fronts are not drawn: these runs count cost differently ({', '.join(sorted(units))}).")
    elif units:
        section.pictures.append(
            Picture(
                f"{name}-fronts",
                "Fronts of quality and cost",
                "A stepped line is the best trade-offs that one run's search derived, in the color of its group: up "
                "and to the left is better.",
                draw_fronts(fronts, _colors(list(means)), COSTS.get(*units, *units)),
            )
        )
    return section


def _unlike(groups: Groups) -> bool:
    """Whether what is rewarded, or by what quality is judged, differs between the groups."""
    searches = [run for runs in groups.values() for run in runs if run.history]
    rewards = [
        (run.config.get("reward"), run.evaluator.get("_target_"), run.evaluator.get("score")) for run in searches
    ]
    return any(reward != rewards[0] for reward in rewards)


def _curves(groups: Groups) -> tuple[dict[str, list[dict[int, float]]], dict[str, list[dict[int, float]]]]:
    """Mean reward and best so far per round and run: of each group's search and, where few lines leave room, random."""
    means: dict[str, list[dict[int, float]]] = {}
    best: dict[str, list[dict[int, float]]] = {}
    for letter, runs in groups.items():
        for run in runs:
            for strategy in run.strategies if len(groups) <= 3 else run.strategies[:1]:
                rewards: dict[int, list[float]] = {}
                for line in run.history:
                    if line["strategy"] == strategy and line["reward"] is not None:
                        rewards.setdefault(line["round"], []).append(line["reward"])
                if not rewards:
                    continue
                name, highest = f"{letter}: {strategy}", float("-inf")
                reached = {}
                for number in sorted(rewards):
                    highest = max(highest, *rewards[number])
                    reached[number] = highest
                means.setdefault(name, []).append({number: sum(r) / len(r) for number, r in rewards.items()})
                best.setdefault(name, []).append(reached)
    for reaches in best.values():  # a run that ended before others keeps what it had
        last = max(number for reached in reaches for number in reached)
        for reached in reaches:
            for number in range(min(reached) + 1, last + 1):
                reached.setdefault(number, reached[number - 1])
    return means, best


def _colors(curves: Sequence[str]) -> dict[str, str]:
    """The color of each group: that of its first curve, whose name begins with the group's letter."""
    found: dict[str, str] = {}
    for name, color in zip(curves, cycle(plots.CURVES), strict=False):
        found.setdefault(name.partition(":")[0], color)
    return found


@plots.styled()
def draw_fronts(groups: Groups, colors: Mapping[str, str], cost_label: str) -> Figure:
    """A step line per run, in the color of its group."""
    figure, axes = plots.canvas(3.8)
    for letter, runs in groups.items():
        for number, run in enumerate(runs):
            listed = (run.candidates or {})["candidates"]
            points = [(c["cost"], c["quality"]) for c in listed if c["on_front"] and c["strategy"] == run.searching]
            points = sorted(point for point in points if None not in point)
            if points:
                costs, qualities = zip(*points, strict=True)
                label = letter if number == 0 else None
                axes.step(
                    costs, qualities, where="post", color=colors[letter], lw=1.5, alpha=0.75, marker=".", label=label
                )
    axes.set(xlabel=cost_label, ylabel="quality")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(plots.cost_tick)
    plots.legend_above(axes)
    return figure
