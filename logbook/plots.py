"""The pictures of a run: one plain function each, from plain data to a matplotlib figure.

Ink and colors are of middle lightness on a transparent ground, so that a file reads on white and on black alike.
`svg` can hand the ink over to the page (`currentColor`), which is how the report follows light and dark.
"""

import io
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, MaxNLocator, NullLocator

INK = "#757575"  # contrast 4.6 on white and on black
# Okabe and Ito (2008), told apart by color-blind readers; their yellow and black would vanish on one of the grounds.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, "#8A8A8A", "#8C6D1F", "#7B6FD0")
CURVES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)  # of reward curves, in their order
LONG_LABEL = 18  # letters, of which three do not fit beside each other above a plot
WIDTH = 4.8  # inches; narrow, so that the letters stay legible on a phone
LETTER = 0.075  # inches, of a tick's label
STYLE = {
    "svg.fonttype": "none",  # text stays text: searchable, and in the page's own font
    "svg.hashsalt": "luban",  # equal data, equal file
    "text.parse_math": False,  # names of a user's networks are no formulas
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
} | dict.fromkeys(
    ["text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color", "grid.color"],
    INK,
)


@contextmanager
def styled() -> Iterator[None]:
    """Draw in this style, as a decorator or in a `with`; what others draw keeps theirs."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():  # pyright: ignore[reportArgumentType]
        # Of a class named in letters that the font lacks: the report shows them in the page's own font.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


Evaluations = Sequence[Mapping[str, Any]]
Decisions = Sequence[Mapping[str, Any]]


def strategy_colors(strategies: Sequence[str]) -> dict[str, str]:
    """A color per strategy: vermilion is random search, blue the first of the others."""
    others = cycle((BLUE, GREEN, PURPLE, ORANGE, SKY))
    return {name: VERMILION if name == "random" else next(others) for name in strategies}


def label_colors(labels: Sequence[str]) -> dict[str, str]:
    """A color per operation, the same in every picture of a run."""
    return dict(zip(labels, cycle(COLORS), strict=False))


@styled()
def reward_over_search(history: Evaluations) -> Figure:
    """Every evaluation as a faint dot, and the mean of every round as a line, per strategy."""
    figure, axes = canvas(4.0)
    scored = [line for line in history if line["reward"] is not None]
    means: list[float] = []
    for place, (strategy, color) in enumerate(strategy_colors(ordered(line["strategy"] for line in history)).items()):
        mine = [line for line in scored if line["strategy"] == strategy]
        steps, rewards = [line["step"] for line in mine], [line["reward"] for line in mine]
        axes.scatter(steps, rewards, s=8, color=color, alpha=0.38, linewidths=0)
        rounds = _by_key(mine, "round")
        middle = [float(np.mean([line["step"] for line in lines])) for lines in rounds.values()]
        mean = [float(np.mean([line["reward"] for line in lines])) for lines in rounds.values()]
        # The searching strategy comes first in the history, and lies on top.
        marker = "o" if len(mean) == 1 else None
        axes.plot(middle, mean, color=color, linewidth=2.2, marker=marker, label=strategy, zorder=4 - place)
        means += mean
    below = _frame(axes, [line["reward"] for line in scored], means, hidden=0.04)
    axes.set(xlabel=f"evaluations{below}", ylabel="reward")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    legend_above(axes)
    return figure


@styled()
def quality_against_cost(
    history: Evaluations,
    candidates: Evaluations,
    networks: Sequence[tuple[str, float, float]],
    cost_label: str,
) -> Figure:
    """All evaluations (faint), the candidates, each strategy's Pareto front, and the final networks.

    Args:
        history: The lines of `history.jsonl`.
        candidates: Those scored again on all validation data.
        networks: Name, cost and quality of each final network.
        cost_label: What the cost counts.
    """
    figure, axes = canvas(4.0)
    scored, rescored = (
        [line for line in lines if line["quality"] is not None and line["cost"] is not None]
        for lines in (history, candidates)
    )
    colors = strategy_colors(ordered(line["strategy"] for line in [*history, *candidates]))
    for place, (strategy, color) in enumerate(colors.items()):
        mine = [line for line in scored if line["strategy"] == strategy]
        costs, qualities = [line["cost"] for line in mine], [line["quality"] for line in mine]
        axes.scatter(costs, qualities, s=8, color=color, alpha=0.35, linewidths=0)
        chosen = [line for line in rescored if line["strategy"] == strategy]
        costs, qualities = [line["cost"] for line in chosen], [line["quality"] for line in chosen]
        axes.scatter(costs, qualities, s=20, facecolors="none", edgecolors=color, linewidths=1.1)
        front = sorted((line["cost"], line["quality"]) for line in chosen if line["on_front"])
        # Steps, not slopes: between two networks of the front there is none that has half of each.
        if front:
            costs, qualities = zip(*front, strict=True)
            axes.step(costs, qualities, where="post", color=color, lw=1.8, label=f"{strategy}: front", zorder=4 - place)
    markers = cycle("*sD^vPX")
    for (name, cost, quality), marker, color in zip(
        networks, markers, cycle((PURPLE, GREEN, ORANGE, SKY, INK)), strict=False
    ):
        size = 130 if marker == "*" else 48
        axes.scatter(
            [cost], [quality], s=size, marker=marker, color=color, edgecolors=INK, linewidths=0.8, zorder=5, label=name
        )
    costs = [cost for cost in [*(line["cost"] for line in scored), *(cost for _, cost, _ in networks)] if cost > 0]
    if costs and max(costs) > 8 * min(costs):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(costs) < 300 * min(costs) else (1,)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(cost_tick)
    choices = [*(quality for _, _, quality in networks), *(line["quality"] for line in rescored)]
    below = _frame(axes, [line["quality"] for line in scored], choices, hidden=0.5)
    axes.set(xlabel=cost_label + below, ylabel="quality")
    legend_above(axes)
    return figure


@styled()
def operation_shares(history: Evaluations, decisions: Decisions) -> Figure:
    """The share of each operation among the architectures of every round, stacked to one.

    Args:
        history: The evaluations of one strategy.
        decisions: Those of `space.json`; the ones of kind `operation` are counted, where they were open.
    """
    figure, axes = canvas(3.4)
    places = [(place, decision) for place, decision in enumerate(decisions) if decision["kind"] == "operation"]
    labels = operation_labels(decisions)
    rounds = _by_key(history, "round")
    shares = np.zeros((len(labels), len(rounds)))
    for column, lines in enumerate(rounds.values()):
        used = Counter(
            decision["labels"][line["genotype"]["tokens"][place]]
            for line in lines
            for place, decision in places
            if place in line.get("open", range(len(decisions)))
        )
        for row, label in enumerate(labels):
            shares[row, column] = used[label] / max(1, used.total())
    numbers = [number + 1 for number in rounds]
    x = numbers if len(numbers) > 1 else [numbers[0] - 0.5, numbers[0] + 0.5]
    shares = shares if len(rounds) > 1 else np.repeat(shares, 2, axis=1)
    colors = label_colors(labels)
    axes.stackplot(x, shares, colors=list(colors.values()), alpha=0.8, linewidth=0)
    # Names stand beside their areas; where those are thin, the names make room for each other.
    tops = np.cumsum(shares[:, -1])
    wanted = tops - shares[:, -1] / 2
    for label, height in zip(labels, _spread(wanted, 0.075), strict=True):
        axes.text(1.02, height, "■", transform=axes.transAxes, va="center", color=colors[label], fontsize=9)
        axes.text(1.065, height, label, transform=axes.transAxes, va="center", fontsize=9)
    axes.set(xlabel="round", ylabel="share", xlim=(min(x), max(x)), ylim=(0, 1))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True) if len(numbers) > 1 else FixedLocator(numbers))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    return figure


def operation_labels(decisions: Decisions) -> list[str]:
    """The operations of a space, in the order in which its decisions list them."""
    return ordered(label for decision in decisions if decision["kind"] == "operation" for label in decision["labels"])


@styled()
def operation_probabilities(decisions: Decisions, probabilities: Sequence[Sequence[float]]) -> Figure:
    """A table of decisions (rows) and operations (columns), each cell as strong as the controller's probability.

    Args:
        decisions: Those of kind `operation`.
        probabilities: Per decision, the probability of each of its choices.
    """
    labels = operation_labels(decisions)
    cells = {
        (row, labels.index(label)): share
        for row, (decision, shares) in enumerate(zip(decisions, probabilities, strict=True))
        for label, share in zip(decision["labels"], shares, strict=False)
    }
    names = [decision["name"].removesuffix(".operation") for decision in decisions]
    return _heatmap(cells, rows=names, columns=labels)


@styled()
def skip_probabilities(decisions: Decisions, probabilities: Sequence[Sequence[float]]) -> Figure:
    """A triangle of target layers (rows) and source layers (columns): the probability that they are connected.

    Args:
        decisions: Named `layerN.skipM`, with the choices no and yes.
        probabilities: Per decision, the probability of each of its choices.
    """
    ends = [skip_ends(decision["name"]) for decision in decisions]
    pairs = [pair for pair in ends if pair is not None]
    targets, sources = sorted({target for target, _ in pairs}), sorted({source for _, source in pairs})
    cells = {
        (targets.index(pair[0]), sources.index(pair[1])): shares[-1]
        for pair, shares in zip(pairs, probabilities, strict=True)
    }
    rows, columns = [f"layer{target}" for target in targets], [str(source) for source in sources]
    return _heatmap(cells, rows, columns, xlabel="from layer")


def skip_ends(name: str) -> tuple[int, int] | None:
    """Target and source of a skip decision named `layerN.skipM`, or None."""
    match = re.fullmatch(r"layer(\d+)\.skip(\d+)", name)
    return (int(match[1]), int(match[2])) if match else None


@styled()
def choice_probabilities(decisions: Decisions, probabilities: Sequence[Sequence[float]]) -> Figure:
    """For decisions of any kind: one bar each, divided among its choices, the likeliest one named."""
    figure, axes = canvas(0.7 + 0.27 * len(decisions))
    colors = label_colors(ordered(label for decision in decisions for label in decision["labels"]))
    for row, (decision, shares) in enumerate(zip(decisions, probabilities, strict=True)):
        start = 0.0
        for label, share in zip(decision["labels"], shares, strict=False):
            axes.barh(row, share, left=start, height=0.7, color=colors[label], alpha=0.8, linewidth=0)
            start += share
        best = int(np.argmax(shares[: len(decision["labels"])]))
        axes.text(1.02, row, f"{decision['labels'][best]}: {shares[best]:.0%}", va="center", fontsize=8.5)
    axes.set(xlim=(0, 1), ylim=(len(decisions) - 0.4, -0.6), xlabel="probability")
    axes.set_yticks(range(len(decisions)), [decision["name"] for decision in decisions], fontsize=8.5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(False)
    return figure


@styled()
def controller_over_rounds(updates: Sequence[Mapping[str, Any]]) -> Figure:
    """The controller's entropy and, where there is one, the loss of the shared weights, per round."""
    panels = [("entropy", "entropy", BLUE), ("supernet_loss", "loss of shared weights", GREEN)]
    panels = [panel for panel in panels if any(update.get(panel[0]) is not None for update in updates)]
    figure = Figure(figsize=(WIDTH, 0.6 + 1.5 * len(panels)), layout="constrained")
    for axes, (key, label, color) in zip(
        figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels, strict=True
    ):
        rounds = _by_key([update for update in updates if update.get(key) is not None], "round")
        mean = [float(np.mean([update[key] for update in group])) for group in rounds.values()]
        numbers = [number + 1 for number in rounds]
        axes.plot(numbers, mean, color=color, linewidth=2, marker="o" if len(numbers) == 1 else None)
        axes.set_ylim(0, 1.08 * max(mean))
        axes.set_title(label, loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("round" if key == panels[-1][0] else "")
    return figure


@styled()
def against_standalone(architectures: Evaluations, key: str, label: str, judged: str) -> Figure:
    """What is known of architectures (sideways) against their quality when each is trained on its own (upwards).

    Args:
        architectures: Those of `ranking.json` that have both.
        key: What is known: `shared` or `macs`.
        label: Its name.
        judged: By what, such as `by its loss`.
    """
    figure, axes = canvas(3.6)
    for kind, name, color, marker in (("random", "random", VERMILION, "s"), ("finalist", "finalists", BLUE, "o")):
        mine = [line for line in architectures if line["kind"] == kind]
        if mine:
            known, alone = [line[key] for line in mine], [line["standalone"] for line in mine]
            axes.scatter(known, alone, s=42, color=color, marker=marker, alpha=0.8, linewidths=0, label=name)
    axes.margins(0.1)
    axes.set(xlabel=label, ylabel=f"quality when trained alone, {judged}")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(cost_tick if key == "macs" else axes.xaxis.get_major_formatter())
    axes.yaxis.set_major_locator(MaxNLocator(6))
    legend_above(axes)
    return figure


@styled()
def network_drawing(
    nodes: Sequence[Sequence[str]], edges: Sequence[Sequence[str]], colors: Mapping[str, str] | None = None
) -> Figure:
    """A network from top to bottom: the chain in the middle, every other connection as an arc beside it.

    Args:
        nodes: Name, label and kind of each.
        edges: Pairs of names.
        colors: A color per label.
    """
    order = _topological([node[0] for node in nodes], edges)
    kinds, labels = {node[0]: node[2] for node in nodes}, {node[0]: node[1] for node in nodes}
    row = {name: place for place, name in enumerate(order)}
    colors = {**label_colors(ordered(labels[name] for name in order if kinds[name] == "operation")), **(colors or {})}
    unit, half = 0.44, 0.29  # inches from row to row; half the height of a box, in rows
    # A letter is about 0.085 inches wide, and a row is one unit of the drawing in both directions.
    width = max(3.0, *(0.2 * (len(labels[name]) + len(_number(name, labels[name]))) + 0.9 for name in order)) / 2
    figure = Figure()
    axes = figure.add_axes((0, 0, 1, 1))
    chain = {(source, target) for source, target in edges if row[target] - row[source] == 1}
    # A layer may read the one before it twice, in the chain and by a skip of its own: the second time is an arc.
    arcs = [(source, target) for source, target in edges if (source, target) not in chain]
    arcs += [edge for edge in chain if sum(tuple(other) == edge for other in edges) > 1]
    reach = _draw_arcs(axes, sorted(arcs, key=lambda arc: (row[arc[0]], row[arc[1]])), row, width, half)
    for source, target in sorted(chain, key=lambda edge: row[edge[0]]):
        axes.add_patch(_arrow(Path([(0, row[source] + half), (0, row[target] - half)]), INK))
    for name in order:
        color = colors.get(labels[name], INK) if kinds[name] == "operation" else INK
        shape = f"round,pad=0,rounding_size={0.12 if kinds[name] == 'operation' else half}"
        corner = (-width, row[name] - half)
        axes.add_patch(
            FancyBboxPatch(corner, 2 * width, 2 * half, shape, facecolor=(color, 0.2), edgecolor=color, linewidth=1.2)
        )
        axes.text(0, row[name], labels[name], ha="center", va="center_baseline", fontsize=9.5)
        axes.text(-width + 0.22, row[name], _number(name, labels[name]), va="center_baseline", fontsize=7.5, alpha=0.85)
    left, right = -width - reach[-1] - 0.1, width + reach[1] + 0.1
    axes.set(xlim=(left, right), ylim=(len(order) - 0.5, -0.5))
    axes.axis("off")
    figure.set_size_inches((right - left) * unit, len(order) * unit)
    return figure


@styled()
def reward_curves(
    groups: Mapping[str, Sequence[Mapping[int, float]]], label: str = "mean reward of the round"
) -> Figure:
    """Rewards per round of several groups of runs: the median of each group and its quartiles as a band.

    Args:
        groups: For each name, one mapping from round to reward per run.
        label: What kind of reward.
    """
    figure, axes = canvas(3.6)
    for (name, runs), color in zip(groups.items(), cycle(CURVES), strict=False):
        rounds = sorted({number for run in runs for number in run})
        values = [[run[number] for run in runs if number in run] for number in rounds]
        low, median, high = (np.array([np.quantile(v, share) for v in values]) for share in (0.25, 0.5, 0.75))
        numbers = [number + 1 for number in rounds]
        axes.fill_between(numbers, low, high, color=color, alpha=0.22, linewidth=0)
        marker = "o" if len(numbers) == 1 else None
        axes.plot(numbers, median, color=color, linewidth=2.2, marker=marker, label=name)
    axes.set(xlabel="round", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    legend_above(axes)
    return figure


def svg(figure: Figure) -> str:
    """The text of an SVG file, the same for equal data."""
    buffer = io.StringIO()
    with styled():
        _settle(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def inline(file: str, name: str) -> str:
    """The text of an SVG file made fit for a page: its ink is the color of the words around it, its ids are its own.

    Args:
        file: What `svg` gave.
        name: What the ids begin with, unique on the page.
    """
    picture = file[file.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", picture)


def png(figure: Figure) -> bytes:
    """The figure as PNG at twice the usual density, the same bytes for equal data."""
    buffer = io.BytesIO()
    with styled():
        _settle(figure)
        figure.savefig(buffer, format="png", dpi=192, metadata={"Software": None})
    return buffer.getvalue()


def _settle(figure: Figure) -> None:
    """Lay a figure out once, and not twice again in each file: a third of the time of a report."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine(None)  # "none" leaves a stand-in, for which every file lays out again


def canvas(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    """An empty plot, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def shorten(name: str, most: int) -> str:
    """A name of at most so many letters, its middle left out where it is longer: beginnings are often alike."""
    if len(name) <= most:
        return name
    return f"{name[: most // 2]}…{name[len(name) - (most - 1) // 2 :]}"


def cost_tick(value: float, _: float) -> str:
    """A cost beside an axis: `20 k`, `1.5 M`; a fraction, as of a millisecond, as it is."""
    return f"{value:g}" if abs(value) < 1 else EngFormatter(sep=" ")(value)


def ordered(names: Iterable[str]) -> list[str]:
    """Each name once, where it first stood."""
    return list(dict.fromkeys(names))


def _by_key(lines: Evaluations, key: str) -> dict[int, list[Mapping[str, Any]]]:
    groups: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[line[key]].append(line)
    return {number: groups[number] for number in sorted(groups)}


def legend_above(axes: Axes) -> None:
    """The legend, if there is anything in it, above the plot."""
    labels = axes.get_legend_handles_labels()[1]
    if labels:
        ncols = 3 if max(map(len, labels)) < LONG_LABEL else 2  # else the third would lie beyond the picture
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=ncols, borderaxespad=0.2, handlelength=1.4, columnspacing=1.2
        )


def _frame(axes: Axes, values: Sequence[float], always: Sequence[float], hidden: float) -> str:
    """Hide at most the lowest share of the values, and say how many: early failures must not flatten the rest."""
    if not values:
        return ""
    bottom, top = min(float(np.quantile(values, hidden)), *always, max(values)), max([*values, *always])
    margin = max(0.04 * (top - bottom), 1e-4)
    axes.set_ylim(bottom - margin, top + margin)
    below = sum(value < bottom - margin for value in values)
    return f" ({below} below the frame)" if below else ""


def _spread(wanted: Any, gap: float) -> list[float]:
    """Heights in [0, 1] as near as possible to the wanted ones, at least a gap apart."""
    gap = min(gap, 1 / max(1, len(wanted)))
    heights: list[float] = []
    for height in wanted:
        heights.append(max(height, heights[-1] + gap) if heights else max(height, gap / 2))
    ceiling = 1 - gap / 2
    for place in reversed(range(len(heights))):
        heights[place] = min(heights[place], ceiling)
        ceiling = heights[place] - gap
    return heights


def _heatmap(cells: Mapping[tuple[int, int], float], rows: list[str], columns: list[str], xlabel: str = "") -> Figure:
    longest = LETTER * max(map(len, columns))
    crowded = longest * len(columns) > WIDTH - LETTER * max(map(len, rows))
    figure, axes = canvas(0.55 + 0.29 * len(rows) + 0.5 * longest * crowded)
    for (row, column), share in cells.items():
        # Opacity is the probability: the cell blends into whatever ground the picture lies on.
        axes.add_patch(Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, facecolor=(BLUE, share), linewidth=0))
        axes.add_patch(
            Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, facecolor="none", edgecolor=(INK, 0.3), lw=0.5)
        )
        color = "white" if share > 0.8 else INK
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center_baseline", fontsize=8, color=color)
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5), xlabel=xlabel)
    axes.set_xticks(range(len(columns)), columns, rotation=40 if crowded else 0, ha="right" if crowded else "center")
    axes.set_yticks(range(len(rows)), rows)
    axes.xaxis.set_label_position("top")
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", pad=1)
    if crowded:
        for text in axes.get_xticklabels():
            text.set_horizontalalignment("left")
    axes.spines[:].set_visible(False)
    axes.grid(False)
    return figure


def _topological(names: Sequence[str], edges: Sequence[Sequence[str]]) -> list[str]:
    """Every node after its sources; among those that may come next, the earliest given one."""
    waiting, order = list(names), []
    while waiting:
        ready = (n for n in waiting if not any(target == n and source in waiting for source, target in edges))
        chosen = next(ready, waiting[0])  # a circle, which no network has, is cut rather than waited for
        waiting.remove(chosen)
        order.append(chosen)
    return order


def _draw_arcs(
    axes: Axes, arcs: Sequence[tuple[str, str]], row: Mapping[str, int], width: float, half: float
) -> dict[int, float]:
    """Draw arcs between boxes of this half width and half height; return how far they reach beside them, per side.

    Arcs of one source stay on one side, where they share a color, and sources take turns.
    """
    sources = ordered(source for source, _ in arcs)
    sides = {source: 1 if place % 2 == 0 else -1 for place, source in enumerate(sources)}
    colors = dict(zip(sources, cycle(CURVES), strict=False))
    reach = {-1: 0.0, 1: 0.0}
    for source, target in arcs:
        side = sides[source]
        # Ends are spread over the side of a box: the nearest source arrives highest, inside the longer arcs.
        rivals = sorted((s for s, t in arcs if t == target and sides[s] == side), key=lambda name: -row[name])
        share = rivals.index(source) / max(1, len(rivals) - 1)
        leaving, landing = row[source] + half * 0.45, row[target] - half * (0.75 - 0.675 * share)
        bulge = 0.75 + 0.52 * abs(row[target] - row[source]) ** 0.85
        near, far = side * width, side * (width + bulge)
        points = [(near, leaving), (far, leaving), (far, landing), (near, landing)]
        axes.add_patch(_arrow(Path(points, [Path.MOVETO, *[Path.CURVE4] * 3]), colors[source]))
        reach[side] = max(reach[side], bulge * 0.75 + 0.1)  # a curve goes three quarters of the way to its handles
    return reach


def _number(name: str, label: str) -> str:
    """A node's number, small beside its label, where the name has one and the label does not repeat it."""
    match = re.search(r"\d+$", name)
    return match[0] if match and name not in label else ""


def _arrow(path: Path, color: str) -> FancyArrowPatch:
    style = "-|>,head_length=3.2,head_width=1.7"
    return FancyArrowPatch(path=path, arrowstyle=style, color=color, linewidth=1.2, shrinkA=0, shrinkB=0)
