"""The model card of an exported network: what it is, how good, how large, how to use it, and what it is not for.

After Mitchell et al. 2019, "Model Cards for Model Reporting". Everything comes from plain files: the network's folder,
and the `results.json` and `config.yaml` of the run that the folder lies in.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from child.cost import Latency, count_macs, count_parameters
from child.network import TrainedNetwork, add_file, run_around
from child.onnx_module import QUANTIZED
from child.task import Classification, Language, Preprocessing, Regression
from child.transforms import LogMel, Normalize, Tokens

NAME = "MODEL.md"


@dataclass(frozen=True)
class Record:
    """What a run knows of a network beside the network itself; empty where there is no run.

    Args:
        title: What it is in the run, such as `Student (distilled)`.
        task: Name of the task.
        metric: Name of its metric.
        validation: The metric on validation data, of each seed's training.
        test: Likewise on test data.
        samples: How many there are, by split.
        seed: Of the run.
        config: Of the run, as text.
    """

    title: str
    task: str | None = None
    metric: str | None = None
    validation: tuple[float, ...] = ()
    test: tuple[float, ...] = ()
    samples: Mapping[str, int] | None = None
    seed: int | None = None
    config: str | None = None


def read_record(folder: Path) -> Record:
    """What the run around a network's folder, `<run>/networks/<name>`, says of it.

    Raises:
        ValueError: The run's results cannot be read; the message names the file.
    """
    run = run_around(folder)
    if run is None or not (run / "results.json").is_file():
        return Record(folder.resolve().name)
    results, config = run / "results.json", run / "config.yaml"
    try:
        known = json.loads(results.read_text(encoding="utf-8"))
        where = f"networks/{folder.resolve().name}"
        chosen = known.get("chosen") if where == "networks/student" else None  # where a model was made smaller
        mine = (row for row in known["rows"] if row["folder"] == where or row["name"] == chosen)
        row: dict[str, Any] = next(mine, {})
        title = row.get("title", folder.resolve().name)
        return Record(
            title if chosen is None else f"A smaller model ({title})", known["task"], known["metric"],
            tuple(row.get("validation", ())), tuple(row.get("test", ())), known.get("samples"), known.get("seed"),
            config.read_text(encoding="utf-8") if config.is_file() else None,
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{results} is not what a run writes: {error!r}") from None


def write_card(
    network: TrainedNetwork, folder: Path, record: Record, architecture: str, latency: Mapping[str, Latency]
) -> None:
    """Write `MODEL.md` into the network's folder.

    Args:
        network: What the folder holds.
        folder: Its folder; the sizes of all files in it are told.
        record: What its run knows of it.
        architecture: As text.
        latency: Of one sample on one thread, by what ran it.
    """
    add_file(folder, NAME, card(network, folder, record, architecture, latency).encode())


def card(
    network: TrainedNetwork, folder: Path, record: Record, architecture: str, latency: Mapping[str, Latency]
) -> str:
    """The text of the model card."""
    kind, shape = _taken(network)
    task = record.task or "not recorded"
    facts = {
        "task": f"{task}: {_question(network)}",
        "architecture": f"`{architecture}`",
        "class": f"`{network.blueprint.target}`",
        "input": f"{kind} (N, {shape}), preprocessed as below",
        "output": _answer(network),
        **_quality(record, folder),
        "multiply-accumulates": f"{count_macs(network.module, network.input_shape):,} a sample",
        "parameters": f"{count_parameters(network.module):,}",
        **{f"latency, {name}": f"{each.median_ms:.3f} ms ± {each.spread_ms:.3f}" for name, each in latency.items()},
    }
    if record.samples:
        facts["data"] = ", ".join(f"{num:,} samples for {split}" for split, num in record.samples.items())
    files = sorted(path for path in folder.iterdir() if path.name not in (NAME, "SHA256SUMS"))
    parts = [
        f"# {record.title}: {task}",
        f"A neural network that Luban found or trained. {_question(network)[:1].upper()}{_question(network)[1:]}.",
        "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in facts.items()),
        "Latency: one sample on one thread of the processor, median of 50 passes ± distance between the quartiles.",
        "## Files",
        "| file | bytes |\n|---|---|\n" + "\n".join(f"| {path.name} | {path.stat().st_size:,} |" for path in files),
        "`sha256sum -c SHA256SUMS` checks them all.",
        "## Preprocessing",
        f"{describe_preprocessing(network.preprocessing)}. The metadata of the exported models hold it too, as JSON "
        "under `preprocessing`.",
        "## How to use it",
        *_usage(network, folder),
        "## What it is not for",
        _limits(network, record),
        *_provenance(record),
    ]
    return "\n\n".join(parts) + "\n"


def _taken(network: TrainedNetwork) -> tuple[str, str]:
    """The type of the preprocessed inputs, and the shape of one of them."""
    return "int64" if isinstance(network.preprocessing, Tokens) else "float32", ", ".join(map(str, network.input_shape))


def _question(network: TrainedNetwork) -> str:
    objective = network.objective
    if isinstance(objective, Classification):
        names = ", ".join(objective.classes[:20]) + (", ..." if len(objective.classes) > 20 else "")
        return f"one of {len(objective.classes)} classes ({names})"
    if isinstance(objective, Regression):
        return f"the number {objective.name}"
    assert isinstance(objective, Language)
    return f"the next of {objective.unit} at each position of a text, of {len(objective.symbols)}"


def _answer(network: TrainedNetwork) -> str:
    objective = network.objective
    if isinstance(objective, Regression):
        return f"float32 (N, 1); times {objective.std:.6g} plus {objective.mean:.6g} it is in its own unit"
    if not isinstance(objective, Language):
        return f"float32 (N, {objective.num_outputs}), logits; their softmax gives probabilities"
    size, length = network.input_shape[0], network.count_positions()
    return (
        f"float32 (N, {length}, {objective.num_outputs}), logits of what follows upon each of the last {length} of the "
        f"{size}, the others being context; their softmax gives probabilities"
    )


def _quality(record: Record, folder: Path) -> dict[str, str]:
    """Rows for validation and test: the mean, with the spread over seeds where there are several."""
    rows, whose = {}, f" of `{QUANTIZED}`" if (folder / QUANTIZED).is_file() else ""
    for split, values in (("validation", record.validation), ("test", record.test)):
        if values:
            spread = f" ± {stdev(values):.4g} (standard deviation of {len(values)} seeds)" if len(values) > 1 else ""
            rows[f"{split} {record.metric}{whose}"] = f"{fmean(values):.5g}{spread or ' (one seed)'}"
    return rows


def describe_preprocessing(preprocessing: Preprocessing) -> str:
    """What becomes of stored values, in a sentence without its full stop."""
    match preprocessing:
        case Normalize(scale, mean, std, names):
            what = f"Stored values x become (x / {scale:g} - mean) / std, for each channel or feature"
            if len(mean) <= 8:
                what += f"; mean {_numbers(mean)}, std {_numbers(std)}"
            if names:
                what += f". The features, in this order: {', '.join(f'`{name}`' for name in names)}"
            if any("=" in name for name in names):
                what += " (`column=text` is 1 where the column holds that text, else 0)"
        case LogMel(rate=rate, length=length, window=window, hop=hop, bands=bands):
            what = (
                f"Waves of {length} samples at {rate} a second become {bands} mel bands of log power (window {window}, "
                f"hop {hop}), normalized; `child.transforms.LogMel` does it"
            )
        case Tokens():
            what = "None: symbols are told by their numbers, in the order of the metadata's `objective`"
        case other:
            what = f"`{type(other).__name__}`"
    return what


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _usage(network: TrainedNetwork, folder: Path) -> list[str]:
    """Ways to ask the network, as code that runs in its folder."""
    plugin = network.blueprint.plugin
    folders = f"folder and that of `{plugin}` are" if plugin else "folder is"
    with_luban = f"With Luban (whose {folders} on `PYTHONPATH`)"
    image = isinstance(network.preprocessing, Normalize) and len(network.input_shape) == 3
    model = next((name for name in (QUANTIZED, "model.onnx") if (folder / name).is_file()), None)
    parts = []
    kinds = {LogMel: "sound.wav", Tokens: "text.txt"}
    file = "picture.png" if image else kinds.get(type(network.preprocessing))
    if file is not None:
        allowed = f" --plugins {plugin}" if plugin and model is None else ""
        parts += [f"{with_luban}, about files:", f"    python -m child.predict{allowed} {model or '.'} {file}"]
    stored, comment = _stored(network)
    source, call = "network", f'load_network(".", ["{plugin}"])' if plugin else 'load_network(".")'
    if model == QUANTIZED:
        source, call = "onnx_module", f'load_onnx("{QUANTIZED}")'
    parts += [f"{with_luban}, in Python:", (
        f"```python\nimport numpy as np\n\nfrom child.{source} import {call.partition('(')[0]}\n\nnetwork = {call}\n"
        f"samples = {stored}  # {comment}\nprint(network.predict(samples))\n```"
    )]  # fmt: skip
    if model is not None:
        alone = isinstance(network.preprocessing, LogMel)
        how = f"{with_luban} for the preprocessing, and onnxruntime" if alone else "With onnxruntime alone"
        parts += [f"{how}:", f"```python\n{_onnx_snippet(network, model, stored, comment)}```"]
    if (folder / "model.pt2").is_file():
        kind, shape = _taken(network)
        parts += ["With PyTorch alone, which takes preprocessed inputs:", (
            "```python\nimport json\n\nimport torch\n\n"
            'about = {"metadata.json": ""}\n'
            'network = torch.export.load("model.pt2", extra_files=about).module()\n'
            f"inputs = torch.zeros(1, {shape}, dtype=torch.{kind})  # yours, preprocessed\n"
            'print(network(inputs), json.loads(about["metadata.json"])["objective"])\n```'
        )]  # fmt: skip
    return parts


def _stored(network: TrainedNetwork) -> tuple[str, str]:
    """Code for samples as the task stores them, and what to put there."""
    shape = ", ".join(map(str, network.input_shape))
    match network.preprocessing:
        case LogMel(rate=rate, length=length):
            return f"np.zeros((1, {length}), np.int16)", f"yours: waves of 16 bits, {rate} samples a second"
        case Tokens():
            return f"np.zeros((1, {shape}), np.int64)", "yours: numbers of symbols"
        case Normalize(scale=scale) if len(network.input_shape) == 3:
            return f"np.zeros((1, {shape}), np.uint8)", f"yours: (N, C, H, W), values from 0 to {scale:g}"
        case _:
            rows = "(N, C, L)" if len(network.input_shape) == 2 else "one sample a row, its features in their order"
            return f"np.zeros((1, {shape}), np.float32)", f"yours: {rows}"


def _onnx_snippet(network: TrainedNetwork, model: str, stored: str, comment: str) -> str:
    prepare = {
        Tokens: "inputs = samples\n",
        LogMel: (
            "import torch\n\nfrom child.transforms import LogMel\n\n"
            'p = json.loads(about["preprocessing"])\ndel p["kind"]\n'
            "inputs = LogMel(**p)(torch.from_numpy(samples)).numpy()\n"
        ),
    }.get(type(network.preprocessing)) or (
        'p = json.loads(about["preprocessing"])\n'
        f"mean, std = (np.array(p[key]).reshape({(-1, *(1,) * (len(network.input_shape) - 1))}) "
        'for key in ("mean", "std"))\n'
        'inputs = ((samples / p["scale"] - mean) / std).astype(np.float32)\n'
    )
    answer = {
        Classification: (
            'classes = json.loads(about["objective"])["classes"]\n'
            "print([classes[best] for best in outputs.argmax(axis=1)])\n"
        ),
        Regression: (
            'objective = json.loads(about["objective"])\nprint(outputs[:, 0] * objective["std"] + objective["mean"])\n'
        ),
        Language: (
            'symbols = json.loads(about["objective"])["symbols"]\n'
            "print([symbols[best] for best in outputs[0].argmax(axis=1)])\n"
        ),
    }[type(network.objective)]
    return (
        "import json\n\nimport numpy as np\nimport onnxruntime\n\n"
        f'session = onnxruntime.InferenceSession("{model}")\n'
        "about = session.get_modelmeta().custom_metadata_map\n"
        f"samples = {stored}  # {comment}\n{prepare}"
        f'(outputs,) = session.run(["output"], {{"input": inputs}})\n{answer}'
    )


def _limits(network: TrainedNetwork, record: Record) -> str:
    text = (
        f"It was trained for the task {record.task or 'named above'} alone, and its figures hold for data that come "
        "about as that task's test data did; elsewhere, measure it first."
    )
    if isinstance(network.objective, Classification):
        text += (
            " It names one of its classes whatever it is shown, also where none fits, and its probabilities were not "
            "calibrated."
        )
    return f"{text} How it treats groups of people was not examined: do not let it decide about them."


def _provenance(record: Record) -> list[str]:
    if record.config is None:
        return []
    return [
        "## Where it comes from",
        f"A run with seed {record.seed}; its whole config:",
        f"```yaml\n{record.config.rstrip()}\n```",
    ]
