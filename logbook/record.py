"""What a run folder holds, read back and checked; a run may be unfinished, so any of it may be missing."""

import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

Json = dict[str, Any]

FREE_ON_RESUME = ("device", "threads", "checkpoint_every_s", "resume", "output", "analysis")
"""Keys of a config that may differ when a run goes on: where it computes, and how it is watched."""


@dataclass(frozen=True)
class Record:
    """What a run folder holds; None or empty where a file is not there yet.

    Args:
        folder: Where it is.
        config: `config.yaml`.
        config_text: The same as it stands there.
        decisions: Those of `space.json`.
        history: The lines of `history.jsonl`, evaluations.
        updates: The lines of `updates.jsonl`, of the controller and the shared weights.
        candidates: `candidates.json`.
        ranking: `ranking.json`.
        results: `results.json`.
        about: `task.json`, what is known of the task from the beginning.
        neighbors: `neighbors.json`, what every single change of the first choice would give.
        layers: `layers.json`, what each layer of the teacher and the student costs.
        answers: `answers.npz`, what the final networks answered to each sample.
        steps: `steps.json`, of a run of `optimize.py`: the networks measured so far.
        ratios: `ratios.json`, likewise: for each round of pruning the ratios that were tried, the chosen first.
    """

    folder: Path
    config: Json
    config_text: str
    decisions: list[Json] | None
    history: list[Json]
    updates: list[Json]
    candidates: Json | None
    ranking: Json | None
    results: Json | None
    about: Json | None = None
    neighbors: Json | None = None
    layers: Json | None = None
    answers: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    steps: Json | None = None
    ratios: Json | None = None

    @property
    def optimizes(self) -> bool:
        """Whether it is a run of `optimize.py`."""
        return "steps" in self.config

    @property
    def strategies(self) -> list[str]:
        """The searching strategy first, its companion after it."""
        return list(dict.fromkeys(line["strategy"] for line in self.history))

    @property
    def evaluations(self) -> list[Json]:
        """The history without repeats, which the account of a budget told for nothing."""
        return paid(self.history)

    @property
    def rows(self) -> dict[str, Json]:
        """The final networks by name."""
        return {row["name"]: row for row in self.results["rows"]} if self.results else {}

    @property
    def teacher(self) -> str:
        """The name of the teacher's row: of several that were trained, the best on validation data."""
        return (self.results or {}).get("teacher", "teacher")

    @property
    def looked_up(self) -> bool:
        """Whether nothing was trained, because a table knew every training already."""
        return bool(self.results and self.results.get("looked_up"))

    @property
    def metric(self) -> str:
        """The name of the task's metric."""
        return (self.results or self.about or {}).get("metric", "accuracy")

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger metric is a better one."""
        return bool((self.results or self.about or {}).get("higher_is_better", True))

    @property
    def task(self) -> str:
        """The name of the task, or of its folder while nothing says more."""
        return (self.results or self.about or {}).get("task", self.folder.resolve().name)

    @property
    def searching(self) -> str:
        """The name of the strategy that searches; `the search` while there is none."""
        return self.strategies[0] if self.history else "the search"

    @property
    def noisy_rounds(self) -> bool:
        """Whether evaluations of different rounds differ by more than their architectures: shared weights learn."""
        return shared_weights_learned(self.updates)

    @property
    def search(self) -> Json:
        """The config of the search."""
        return self.config.get("search") or {}

    @property
    def evaluator(self) -> Json:
        """The config of what judged the architectures."""
        return self.config.get("evaluator") or {}

    @property
    def judged_by(self) -> Literal["table", "shared weights", "training", "evaluator"]:
        """Where qualities come from: a table, shared weights, a training of each architecture, or the user's own."""
        target = str(self.evaluator.get("_target_"))
        if self.looked_up or target.endswith(".TableEvaluator"):
            return "table"
        if target.endswith(".SupernetEvaluator"):
            return "shared weights"
        return "training" if target.endswith(".StandaloneEvaluator") else "evaluator"

    @property
    def noisy(self) -> bool:
        """Whether an architecture evaluated again could get another quality: from a table only where it has noise."""
        noise, signal = self.evaluator.get("noise"), self.evaluator.get("signal")
        return self.judged_by != "table" or bool(noise) or (isinstance(signal, list) and len(signal) > 1)

    @property
    def on_rungs(self) -> bool:
        """Whether the best were trained on their own for a short time while the search went on."""
        return bool((self.config.get("rungs") or {}).get("fidelities"))

    @property
    def cost_unit(self) -> str:
        """The unit of the costs in the history."""
        return (self.candidates or {}).get("cost_unit") or "macs"

    @property
    def reached(self) -> str:
        """How far the run has come, for a run that is still going or was stopped."""
        if self.results:
            return "finished"
        if self.optimizes:
            return f"{len((self.steps or {'rows': []})['rows'])} of {1 + len(self.config['steps'])} networks measured"
        if not self.history:
            return "no architecture evaluated yet"
        if self.candidates is None:
            rounds = 1 + max(line["round"] for line in self.history)
            planned = self.search.get("rounds")
            budget = self.search.get("budget")
            of = f" of {planned}" if planned and budget is None else ""
            return f"in the search, round {rounds}{of}, {len(self.evaluations)} evaluations"
        if (self.folder / "choices.json").is_file():
            return "every network trained and chosen, not yet tested"
        trained = len(list((self.folder / "networks").glob("*/network.json")))
        return f"search done, {trained} network{'' if trained == 1 else 's'} trained"  # short trials among them


def paid(history: Iterable[Json]) -> list[Json]:
    """The lines of a history without repeats, which the account of a budget told for nothing."""
    return [line for line in history if line.get("charge") != 0]


def shared_weights_learned(updates: Iterable[Json]) -> bool:
    """Whether shared weights were trained beside these updates, so that results drift as the search goes on."""
    return any(update.get("supernet_loss") is not None for update in updates)


def read_run(folder: Path) -> Record:
    """Read a run folder.

    Raises:
        ValueError: It is no run folder, or a file in it is broken; one line that names the file.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    config = folder / "config.yaml"
    if not config.is_file():
        raise ValueError(f"{folder} is no run folder: it has no config.yaml")
    try:
        config_text = config.read_text(encoding="utf-8")
        content = OmegaConf.to_container(OmegaConf.create(config_text))
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(f"{config} is not valid YAML ({_first_line(error)})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{config} holds no mapping of keys to values")
    space = read_object(folder / "space.json", ("decisions",))
    decisions = None if space is None else space["decisions"]
    for decision in decisions or []:
        _require(decision, ("name", "kind", "labels"), folder / "space.json")
    history = _read_lines(
        folder / "history.jsonl", ("strategy", "round", "step", "genotype", "quality", "cost", "reward")
    )
    updates = _read_lines(folder / "updates.jsonl", ("round", "strategy"))
    for number, line in enumerate(history, start=1):
        _check_genotype(line["genotype"], decisions, f"{folder / 'history.jsonl'}, line {number}")
    for number, line in enumerate(updates, start=1):
        if decisions and line.get("probabilities") and len(line["probabilities"]) != len(decisions):
            raise ValueError(
                f"{folder / 'updates.jsonl'}, line {number}: expected probabilities of {len(decisions)} decisions, "
                f"got {len(line['probabilities'])}"
            )
    candidates = read_object(folder / "candidates.json", ("candidates",))
    for candidate in candidates["candidates"] if candidates else []:
        _require(candidate, ("strategy", "text", "quality", "cost", "on_front"), folder / "candidates.json")
    ranking = read_object(folder / "ranking.json", ("sentence", "epochs", "architectures"))
    for architecture in ranking["architectures"] if ranking else []:
        _require(architecture, ("kind", "text", "macs", "shared", "standalone", "failure"), folder / "ranking.json")
    results = read_object(folder / "results.json", ("task", "metric", "rows"))
    steps = read_object(folder / "steps.json", ("rows",))
    for file, content_of in (("results.json", results), ("steps.json", steps)):
        for row in content_of["rows"] if content_of else []:
            _require(row, ("name", "title", "validation", "quality", "test", "macs", "parameters"), folder / file)
    about = read_object(folder / "task.json", ("task", "metric", "higher_is_better"))
    neighbors = read_object(folder / "neighbors.json", ("center", "neighbors", "num_all", "missing"))
    changes = ("decision", "from", "to", "text", "quality", "cost", "reward", "failure")
    for neighbor in neighbors["neighbors"] if neighbors else []:
        _require(neighbor, changes, folder / "neighbors.json")
    layers = read_object(folder / "layers.json", ())
    ratios = read_object(folder / "ratios.json", ())
    for trial in [trial for tried in (ratios or {}).values() for trial in tried]:
        _require(trial, ("removed", "quality", "even"), folder / "ratios.json")
    return Record(
        folder, content, config_text, decisions, history, updates, candidates, ranking, results,  # pyright: ignore[reportArgumentType]
        about, neighbors, layers, _read_arrays(folder / "answers.npz"), steps, ratios,
    )  # fmt: skip


def read_object(path: Path, keys: Iterable[str]) -> Json | None:
    """A JSON file that holds an object with these keys; None where there is no file (else ValueError, naming it)."""
    if not path.is_file():
        return None
    try:
        content = _parse(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({_first_line(error)})") from None
    return _require(content, keys, path)


def _read_arrays(path: Path) -> Mapping[str, NDArray[Any]]:
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a file of arrays ({_first_line(error)})") from None


def _read_lines(path: Path, keys: Sequence[str]) -> list[Json]:
    if not path.is_file():
        return []
    found, lines = [], path.read_bytes().split(b"\n")
    unfinished = len(lines)  # the last line, which has no line break yet while a run writes it
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            content = _parse(line)
        except ValueError as error:
            if number == unfinished:
                break
            raise ValueError(f"{path}, line {number} is not valid JSON ({_first_line(error)})") from None
        found.append(_require(content, keys, f"{path}, line {number}"))
    return found


def _parse(text: bytes) -> Any:
    # A quality that is not a number (NaN, or infinite) is one that is not there.
    return json.loads(text, parse_constant=lambda _: None)


def _require(content: Any, keys: Iterable[str], where: object) -> Json:
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected an object, got {content!r:.60}")
    absent = [key for key in keys if key not in content]
    if absent:
        raise ValueError(f"{where}: {absent[0]!r} is missing")
    return content


def _check_genotype(genotype: Any, decisions: list[Json] | None, where: str) -> None:
    tokens = _require(genotype, ("tokens",), where)["tokens"]
    if decisions is None:
        return
    if len(tokens) != len(decisions):
        raise ValueError(f"{where}: expected {len(decisions)} tokens, as space.json has it, got {len(tokens)}")
    for token, decision in zip(tokens, decisions, strict=True):
        if not 0 <= token < len(decision["labels"]):
            raise ValueError(f"{where}: {decision['name']} has no choice {token}")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
