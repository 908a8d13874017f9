"""The report of one run: plots and one self-contained HTML page.

A run folder may be unfinished: what is missing is left out, and the page says so.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from logbook import plots
from logbook.numbers import cells, duration, gap, human, known, score, which_way
from logbook.record import Record, read_object, read_run
from logbook.sections.answers import answers_section
from logbook.sections.decisions import decisions_section, neighbors_section
from logbook.sections.networks import layers_section, network_section
from logbook.sections.search import ranking_section, rescored, search_section
from logbook.sections.section import Picture
from logbook.significance import ALPHA, welch

QUANTIZED = "model.int8.onnx"
"""As `child/onnx_module.py` calls it."""

CLONE = Path(__file__).resolve().parent.parent
ONE_SEARCH = "in one search each: other seeds may say otherwise"


def verdict(run: Record) -> str:
    """One sentence about what came out, no stronger than its numbers."""
    rows, metric = run.rows, run.metric
    tests = {name: known(row["test"]) for name, row in rows.items()}
    best = tests.get(run.teacher)
    if not best:
        return (
            f"This run has tested no network yet; so far it has evaluated {len(run.evaluations)} "
            f"architecture{'s' if len(run.evaluations) != 1 else ''} ({run.reached})."
        )
    reached = f"{score(fmean(best), metric)} test {metric}"
    clauses = [f"On {run.task} the best network found reaches {which_way(reached, run.higher_is_better)}"]
    if tests.get("student"):
        loss = fmean(best) - fmean(tests["student"])
        where = f"{gap(loss, metric)} {'below' if loss >= 0 else 'above'} it"
        if _rounds_to_zero(loss, metric):
            where = "level with it"
        share = rows["student"]["macs"] / rows[run.teacher]["macs"]
        clauses.append(f"its student is {where} at {share:.0%} of its MACs")
    if tests.get("teacher") and tests.get("random_best"):
        # The first choices of both: the best of several teachers had several trainings to be chosen from.
        lead = fmean(tests["teacher"]) - fmean(tests["random_best"])
        where = f"{gap(lead, metric)} {'above' if lead >= 0 else 'below'}"
        if _rounds_to_zero(lead, metric):
            where = "level with"
        num, num_random = (
            sum(line["strategy"] == name for line in run.evaluations) for name in (run.searching, "random")
        )  # others where a budget lets repeats be free
        effort = f"{num} evaluations {'each' if num == num_random else f'(random search: {num_random})'}"
        ours = f"the first choice of {run.searching}" if "teacher2" in rows else f"what {run.searching} found"
        # The difference stands in the sentence in any case: a reader may weigh it otherwise.
        clauses.append(
            f"after {effort}, {ours} is {where} what random search found, "
            + (ONE_SEARCH if run.looked_up else _judgement(tests["teacher"], tests["random_best"]))
        )
    return "; ".join(clauses) + "."


def _judgement(first: Sequence[float], second: Sequence[float]) -> str:
    """Of two architectures, by their trainings; the searches that found them were made once."""
    found = welch(first, second)
    if found.num < 2:
        return "from one training each, which is too few to tell a difference from noise"
    if found.p is None:
        return "without any spread to judge that by"
    side = "beyond" if found.p < ALPHA else "within"
    return f"which is {side} the noise of training (Welch's test, p = {found.p:.2g}), {ONE_SEARCH}"


def _rounds_to_zero(difference: float, metric: str) -> bool:
    return abs(difference) < 0.00005 if metric == "accuracy" else difference == 0


def usage_example(folder: str, task: str, network: Mapping[str, Any], is_quantized: bool = False) -> str:
    """A few lines of Python that load a network of a run and let it answer, run from the clone's root.

    Args:
        folder: The network's folder.
        task: `digits` comes with scikit-learn, so its example runs as it is; others get a place for a sample.
        network: The content of its `network.json`.
        is_quantized: Whether its answers are those of the model in 8-bit integers beside it.
    """
    shape, preparation = tuple(network["input_shape"]), network["preprocessing"]
    imports, answers, names = "import numpy\n", "", ", ".join(preparation.get("names", ()))
    features = f"# {names}\n" if names else ""
    one = "image" if len(shape) == 3 else "sample"
    ask = f'label, probability = network.classify({one})\nprint(f"{{label}}: {{probability:.1%}}")\n'
    if preparation["kind"] in ("LogMel", "Tokens"):  # files, as `python -m child.predict` is asked about them
        imports, answers = "from pathlib import Path\n", "from child.predict import answer\n"
        sample = f'file = Path("{"sound.wav" if preparation["kind"] == "LogMel" else "text.txt"}")  # yours'
        ask = "print(answer(network, file))\n"
    elif network["objective"]["kind"] != "Classification":
        kind = "uint8" if len(shape) == 3 else "float32"
        sample = f'{features}samples = numpy.zeros({(1, *shape)}, "{kind}")  # yours: one, or many'
        ask = "print(network.predict(samples))\n"
    elif task == "digits" and shape == (1, 8, 8):
        imports = "from sklearn.datasets import load_digits\n"
        sample = 'image = load_digits().images[0].astype("uint8")'
    elif len(shape) == 3:
        channels, height, width = shape
        size = (height, width) if channels == 1 else (height, width, channels)
        sample = f'image = numpy.zeros({size}, "uint8")  # yours'
    else:
        sample = f'{features}sample = numpy.zeros({shape}, "float32")  # yours'
    module = network["build"]["target"].rpartition(".")[0]
    allowed = "" if module.partition(".")[0] == "child" else f", {json.dumps([module])}"
    source, call = "network", f"load_network({json.dumps(folder)}{allowed})"
    if is_quantized:
        source, call = "onnx_module", f"load_onnx({json.dumps(f'{folder}/{QUANTIZED}')})"
    needed = f"# with the folder of {module} on PYTHONPATH\n" if allowed else ""
    loads = f"from child.{source} import {call.partition('(')[0]}\n"
    return f"{needed}{imports}\n{loads}{answers}\nnetwork = {call}\n{sample}\n{ask}"


def write_report(folder: Path) -> Path:
    """Write the plots and `report.html` of a run into its folder, and return the page's path.

    Raises:
        ValueError: The folder is no run folder, or a file in it is broken.
    """
    run = read_run(folder)
    ranking = [ranking_section(run.ranking)] if run.ranking else []
    sections = [search_section(run), decisions_section(run), neighbors_section(run), *ranking, network_section(run)]
    if not run.looked_up:
        sections += [layers_section(run), *answers_section(run)]
    write_plots(folder / "plots", [picture for section in sections for picture in section.pictures])
    results, candidates = run.results or {}, run.candidates or {}
    usable = [run.rows[name] for name in ("student", run.teacher, *run.rows) if run.rows.get(name, {}).get("folder")]
    page = template("report.html.jinja").render(
        title=f"{run.task}: a run of Luban",
        task=run.task,
        run=run.folder.resolve().name,
        verdict=verdict(run),
        figures=_key_figures(run),
        rows=[{**row, **cells(row, run.metric)} for row in run.rows.values()],
        metric=run.metric,
        looked_up=run.looked_up,
        notes=results.get("notes", []),
        sections=sections,
        usage=usage_of(run, usable[0]["folder"]) if usable else None,
        candidates=_candidate_rows(run),
        rescored=rescored(run),
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


def template(name: str) -> Any:
    """A template of a page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def write_plots(folder: Path, pictures: Sequence[Picture]) -> None:
    """Write each picture as SVG and PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        (folder / f"{picture.name}.svg").write_text(picture.file, encoding="utf-8")
        (folder / f"{picture.name}.png").write_bytes(plots.png(picture.figure))


def usage_of(run: Record, name: str) -> str | None:
    """How the network in this folder of a run is asked; None where there is none."""
    folder = (run.folder / name).resolve()
    network = read_object(folder / "network.json", ("build", "input_shape", "preprocessing", "objective"))
    if network is None:
        return None
    inside = folder.relative_to(CLONE) if folder.is_relative_to(CLONE) else folder
    return usage_example(inside.as_posix(), run.task, network, (folder / QUANTIZED).is_file())


def _key_figures(run: Record) -> list[tuple[str, str, str]]:
    """Name, value and remark of the numbers that head the page."""
    figures, rows, results = [], run.rows, run.results or {}
    for name, part in ((run.teacher, "teacher"), ("student", "student")):
        if name in rows and known(rows[name]["test"]):
            sizes = {"MACs": rows[name]["macs"], "parameters": rows[name]["parameters"]}
            remark = ", ".join(f"{human(size)} {unit}" for unit, size in sizes.items() if size is not None)
            figures.append((f"{part}, test {run.metric}", score(fmean(known(rows[name]["test"])), run.metric), remark))
    if run.history:
        per_strategy = [f"{sum(line['strategy'] == s for line in run.evaluations)} {s}" for s in run.strategies]
        figures.append(("evaluations", human(len(run.evaluations)), ", ".join(per_strategy)))
    seconds = results.get("seconds", {})
    if seconds:
        longest = max(seconds, key=lambda stage: seconds[stage])
        figures.append(("time", duration(sum(seconds.values())), f"longest: {longest}, {duration(seconds[longest])}"))
    return figures


def _candidate_rows(run: Record) -> list[dict[str, str]]:
    listed = (run.candidates or {}).get("candidates", [])
    unit = run.cost_unit
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
