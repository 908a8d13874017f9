"""Numbers for people: counts, times, values of a metric, differences, spreads, and the table of final networks."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from rich.table import Table
from rich.text import Text

COSTS = {"macs": "multiply-accumulates (MACs)", "parameters": "parameters", "latency_ms": "latency in milliseconds"}


def human(number: float | None) -> str:
    """A count to three digits with its unit prefix: 1234567 as `1.23 M`; `-` where it is not known."""
    if number is None:
        return "-"
    prefixes = ["", " k", " M", " G", " T"]
    while abs(number) >= 999.5 and len(prefixes) > 1:
        number /= 1000
        prefixes.pop(0)
    digits = f"{number:.3g}" if prefixes[0] == "" or abs(number) >= 999.5 else f"{number:#.3g}".rstrip(".")
    return digits + prefixes[0]


def duration(seconds: float) -> str:
    """A time span in at most two units: `8 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def score(value: float, metric: str, decimals: int = 1) -> str:
    """A value of the metric: accuracy in percent, anything else to four digits."""
    return f"{100 * value:.{decimals}f}%" if metric == "accuracy" else f"{value:.4g}"


def scores(values: Sequence[float | None], metric: str) -> str:
    """The mean, and the sample standard deviation behind ± where there are several values."""
    kept = known(values)
    if not kept:
        return "-"
    if len(kept) == 1:
        return score(kept[0], metric, decimals=2)
    spread = f"{100 * stdev(kept):.2f}" if metric == "accuracy" else f"{stdev(kept):.2g}"
    return f"{score(fmean(kept), metric, decimals=2)} ± {spread}"


def which_way(metric: str, higher_is_better: bool) -> str:
    """A metric, its name or its value, with what is better where that is not more: `perplexity (lower is better)`."""
    return metric if higher_is_better else f"{metric} (lower is better)"


def gap(difference: float, metric: str) -> str:
    """A difference of the metric without its sign: `0.2 points`; `0.02 points` where one decimal would say nothing."""
    if metric != "accuracy":
        return f"{abs(difference):.3g}"
    points = 100 * abs(difference)
    return f"{points:.{1 if points >= 0.095 else 2}f} points"


def latency(row: Mapping[str, Any]) -> str:
    """Milliseconds, and their spread behind ±."""
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
    title = f"{results['task']}: {which_way(metric, results.get('higher_is_better', True))}"
    table = Table(title=Text(title), title_justify="left", pad_edge=False)
    table.add_column("network", overflow="fold")
    for title in ("validation", "test", "n", "MACs", "parameters", "latency ms"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in results["rows"]:
        said = cells(row, metric)
        keys = ("validation", "test", "n", "macs", "parameters", "latency")
        table.add_row(Text(row["title"]), *(said[key] for key in keys))
    if any(len(row["test"]) > 1 for row in results["rows"]):
        said = "±: sample standard deviation over n trainings; of latency, the distance between quartiles"
        table.caption, table.caption_justify = said, "left"
    return table


def cells(row: Mapping[str, Any], metric: str) -> dict[str, str]:
    """What the table of final networks says about one."""
    return {
        "validation": scores(row["validation"], metric),
        "test": scores(row["test"], metric),
        "n": str(max(len(row["validation"]), len(row["test"]))),
        "macs": human(row["macs"]),
        "parameters": human(row["parameters"]),
        "latency": latency(row),
    }


def mean(values: Iterable[float | None]) -> float | None:
    """Of the known ones; None where there are none."""
    kept = known(values)
    return fmean(kept) if kept else None


def known(values: Iterable[float | None]) -> list[float]:
    """Those that are numbers."""
    return [value for value in values if value is not None]
