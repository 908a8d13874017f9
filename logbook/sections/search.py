"""How the search went: rewards, costs, operations, the controller, and how far the ranking can be trusted."""

from collections.abc import Callable
from statistics import fmean

from matplotlib.figure import Figure

from logbook import plots
from logbook.numbers import COSTS, known
from logbook.record import Json, Record
from logbook.sections.section import Picture, Section


def search_section(run: Record) -> Section:
    """Rewards, costs and operations over the search, and what the controller learned."""
    section = Section("The search")
    _add_evaluations(run, section)
    _add_controller(run, section)
    told: dict[str, int] = {}
    for update in run.updates:
        if update.get("note"):
            told.setdefault(update["note"], update["round"])
    section.notes += [f"Round {number + 1}: {note}." for note, number in told.items()]
    return section


def _add_evaluations(run: Record, section: Section) -> None:
    if not run.history:
        section.missing.append("No architecture has been evaluated yet (history.jsonl is missing or empty).")
        return
    searching = run.searching
    if "random" in run.strategies[1:]:
        how = {
            "table": "on the same table",
            "shared weights": "with the same shared weights",
            "training": "which trains its architectures in the same way",
            "evaluator": "with the same evaluator",
        }[run.judged_by] + (", and rungs of its own" if run.on_rungs else "")
        beside = f"{searching} beside random search {how}: a policy that learns pulls its line away"
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
    unit = run.cost_unit
    score = run.evaluator.get("score")
    two_scales = score == "combined" or (score == "loss" and run.metric == "accuracy")  # other metrics are of the loss
    scale = f" and are judged by their {run.metric}, not by their loss as the others are" if two_scales else ""
    marked = {
        "table": "the chosen ones are marked",
        "shared weights": f"the marked networks were trained on their own{scale}, which is why they may lie far off",
        "training": f"the marked networks were trained for good{scale}",
        "evaluator": "the marked networks were trained for good",
    }[run.judged_by]
    how = rescored(run)
    again = f" {how}" if how else ""
    if run.candidates is None:
        section.missing.append("The candidates have not been scored again yet (candidates.json is missing).")
    section.pictures.append(
        Picture(
            "quality-cost",
            "Quality against cost",
            f"Up and to the left is better: faint dots are what the search saw, rings the candidates{again}, the "
            f"stepped line their best trade-offs, and {marked}.",
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


def rescored(run: Record) -> str:
    """How candidates were judged, more thoroughly than the search saw them; nothing where a table knows no more."""
    how = {
        "table": "",
        "shared weights": "scored again on all validation data",
        "training": "trained for their full time",
        "evaluator": "evaluated in full",
    }[run.judged_by]
    return f"{how}, or on the rungs" if run.on_rungs else how


def _add_controller(run: Record, section: Section) -> None:
    if not run.updates:
        section.missing.append("The controller has not been updated (updates.jsonl is missing or empty).")
        return
    readings = {
        "entropy": "Entropy says how open the controller still is: a slow fall is learning, a sudden one is a choice "
        "made too early.",
        "supernet_loss": "The lower the loss, the more the shared weights have learned of their training data.",
    }
    told = [key for key in readings if any(update.get(key) is not None for update in run.updates)]
    if told:
        section.pictures.append(
            Picture(
                "controller",
                f"The {'controller' if 'entropy' in told else 'shared weights'} over the rounds",
                " ".join(readings[key] for key in told),
                plots.controller_over_rounds(run.updates),
            )
        )
    told = [update["probabilities"] for update in run.updates if update.get("probabilities")]
    if not told or run.decisions is None:
        section.missing.append("This run keeps no probabilities per decision.")
        return
    pairs: list[tuple[Json, list[float]]] = []
    for place, decision in enumerate(run.decisions):
        # The last that is known: a round whose architectures all lacked it says nothing of it.
        last = next((rows[place] for rows in reversed(told) if None not in rows[place]), None)
        if last is not None:
            pairs.append((decision, last[: len(decision["labels"])]))
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


def ranking_section(ranking: Json) -> Section:
    """What was found when some architectures were trained on their own."""
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
    judged = "by its loss" if ranking.get("score") == "loss" else "by its metric"  # as all were in older runs
    for name, title, reading, key, label in panels:
        section.pictures.append(Picture(name, title, reading, plots.against_standalone(kept, key, label, judged)))
    return section


def _final_points(run: Record, unit: str) -> list[tuple[str, float, float]]:
    """Name, cost and validation quality of the final networks."""
    rows = [row for row in run.rows.values() if known(row["quality"]) and row.get(unit) is not None]
    return [(row["name"].replace("_", " "), row[unit], fmean(known(row["quality"]))) for row in rows]
