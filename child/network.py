"""A trained network on disk: what it is in `network.json`, its weights in `weights.safetensors`, no pickle.

outputs/<run>/networks/student/network.json          format, how to build it, input, objective, preprocessing
outputs/<run>/networks/student/weights.safetensors   weights and running statistics
outputs/<run>/networks/student/SHA256SUMS            of all files; `sha256sum -c SHA256SUMS` checks them too

A network whose channels were pruned is built as it was, and its layers then take the sizes of the weights (`resize`).
`child/export.py` writes more files beside these.
"""

import hashlib
import importlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from child.compact import pack, unpack
from child.space import Genotype, NetworkSpace, is_out_of_memory
from child.task import OBJECTIVES, Classification, Language, Objective, Preprocessing, Regression, Task
from child.transforms import PREPROCESSINGS

FORMAT = 2
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Blueprint:
    """How to build a network: a class by its import path, with plain arguments.

    With `tokens` the class is a search space and the network is that architecture; without, the class is the network.
    `resized` says that its layers have other sizes than those that it is built with, since channels were pruned.
    """

    target: str
    arguments: dict[str, Any]
    tokens: tuple[int, ...] | None = None
    resized: bool = False

    @classmethod
    def of(cls, space: NetworkSpace, genotype: Genotype) -> "Blueprint":
        """Of an architecture of a space."""
        return cls(f"{type(space).__module__}.{type(space).__qualname__}", space.arguments, genotype.tokens)

    @property
    def plugin(self) -> str | None:
        """The module that has to be allowed where the class is not one of `child/`."""
        module_name = self.target.rpartition(".")[0]
        return None if module_name.partition(".")[0] == "child" else module_name

    @torch.no_grad()  # else the weights of an old weight norm could not be copied before the first answer
    def build(self, plugins: Sequence[str] = ()) -> nn.Module:
        """The network, with fresh weights.

        Raises:
            ValueError: The class is not one of `child/` or of the modules in `plugins`, or does not take this.
        """
        made = self._make(plugins)
        if self.tokens is not None and isinstance(made, NetworkSpace):
            try:
                made = made.network(made.genotype(self.tokens))
            except (TypeError, ValueError) as error:
                raise ValueError(f"cannot build {self.target!r} with {self.arguments}: {error}") from None
        if not isinstance(made, nn.Module):
            raise ValueError(f"cannot build {self.target!r}: it is neither a network nor a search space with tokens")
        return made

    def text(self, plugins: Sequence[str] = ()) -> str:
        """The architecture as its space writes it; of a network without a space, its class and arguments."""
        pruned = ", then channels removed" if self.resized else ""
        if self.tokens is not None:
            space = self._make(plugins)
            if isinstance(space, NetworkSpace):
                return space.text(space.genotype(self.tokens)) + pruned
        arguments = ", ".join(f"{name}={value}" for name, value in self.arguments.items())
        return f"{self.target.rpartition('.')[2]}({arguments}){pruned}"

    def _make(self, plugins: Sequence[str]) -> Any:
        """What the target is: a network, or a search space."""
        module_name, _, name = self.target.rpartition(".")
        if self.plugin is not None and self.plugin not in plugins:
            raise ValueError(
                f"refused to build {self.target!r}: only child.* and plugins ({list(plugins)}) may be built; where "
                f"it is yours, allow it with plugins=[{module_name}], or --plugins {module_name} for child.predict and "
                "child.export"
            )
        try:
            built = getattr(importlib.import_module(module_name), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"cannot build {self.target!r}: {error}") from None
        try:
            return built(**self.arguments) if inspect.isclass(built) else None
        except Exception as error:  # there is no list of what somebody's class may raise
            if is_out_of_memory(error):
                raise
            said = str(error) or repr(error)
            raise ValueError(f"cannot build {self.target!r} with {self.arguments}: {said}") from None


class TrainedNetwork:
    """A trained network with all it needs to answer: `network.classify(image)`, `network.predict(samples)`.

    A module that has parts for training alone takes them off in its `finish()`, which gives its arguments without them.
    """

    def __init__(
        self,
        module: nn.Module,
        blueprint: Blueprint,
        input_shape: Sequence[int],
        objective: Objective,
        preprocessing: Preprocessing,
    ):
        finish = getattr(module, "finish", None)
        if finish is not None:
            blueprint = replace(blueprint, arguments=finish())
        self.module, self.blueprint, self.preprocessing = module.eval(), blueprint, preprocessing
        self.input_shape, self.objective = tuple(input_shape), objective

    def predict(self, samples: NDArray[Any]) -> Tensor:
        """The answers to samples (N, ...), in the values that the task stores (images as (N, C, H, W)).

        Returns:
            Class probabilities (N, K); for a regression the values (N), in their own unit; for a text the
            probabilities of the next symbol at each position (N, T, K).

        Raises:
            ValueError: As for `outputs`.
        """
        outputs = self.outputs(samples)
        if isinstance(self.objective, Regression):
            return outputs[:, 0] * self.objective.std + self.objective.mean
        return outputs.softmax(dim=-1)

    def outputs(self, samples: NDArray[Any]) -> Tensor:
        """What the network itself gives for such samples: logits, or standardized values (N, 1).

        Raises:
            ValueError: The samples have another shape than the network was trained for, or hold what it cannot know:
                a number that is not finite, or a symbol beyond its own.
        """
        samples = np.asarray(samples)
        self._check_values(samples)
        try:
            inputs = self.preprocessing(torch.from_numpy(np.ascontiguousarray(samples)))
        except (RuntimeError, IndexError, ValueError, TypeError):
            inputs = None
        if inputs is None or tuple(inputs.shape[1:]) != self.input_shape:
            raise ValueError(
                f"expected samples of shape (N, {', '.join(map(str, self.input_shape))}), got {samples.shape}"
            )
        with torch.inference_mode():
            return self.module(inputs)

    def count_positions(self) -> int:
        """Of a text, at how many positions of a window the network tells what follows; the others are its context."""
        with torch.inference_mode():
            return self.module(torch.zeros(1, *self.input_shape, dtype=torch.int64)).shape[1]

    def _check_values(self, samples: NDArray[Any]) -> None:
        if samples.dtype.kind == "f" and not np.isfinite(samples).all():
            raise ValueError("expected numbers that are finite, got samples with a value that is not")
        if isinstance(self.objective, Language) and samples.size:
            low, high = samples.min(), samples.max()
            if low < 0 or high >= self.objective.num_outputs:
                raise ValueError(
                    f"expected symbols by their numbers, 0 to {self.objective.num_outputs - 1}, got {low} to {high}"
                )

    def classify(self, sample: NDArray[Any]) -> tuple[str, float]:
        """The class of one sample and its probability; an image is (H, W) or (H, W, C).

        Raises:
            ValueError: The network does not tell classes apart, the sample has the wrong shape, or its values are
                fractions up to 1 where white is 255, say.
        """
        if not isinstance(self.objective, Classification):
            raise ValueError(f"this network does not classify (it learned {self.objective.metric_name}); use predict")
        if len(self.input_shape) == 3:
            scale = getattr(self.preprocessing, "scale", 1.0)
            if scale > 1 and sample.dtype.kind == "f" and sample.max() <= 1 and (sample % 1 != 0).any():
                raise ValueError(f"expected an image of values from 0 to {scale:g}, got none above {sample.max():.3g}")
            sample = (sample[:, :, None] if sample.ndim == 2 else sample).transpose(2, 0, 1)
        probabilities = self.predict(sample[None])[0]
        best = int(probabilities.argmax())
        return self.objective.classes[best], float(probabilities[best])


def part_to_json(part: Any) -> dict[str, Any]:
    """An objective or a preprocessing as plain data."""
    plain = {key: value for key, value in asdict(part).items() if key != "names" or value}
    return {"kind": type(part).__name__, **plain}


def part_from_json(data: Mapping[str, Any], kinds: Mapping[str, type[Any]]) -> Any:
    """Read what `part_to_json` gave (else KeyError or TypeError)."""
    arguments: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}
    return kinds[arguments.pop("kind")](**arguments)


def describe(network: TrainedNetwork) -> dict[str, Any]:
    """All of a network but its weights, as plain data."""
    return {
        "format": FORMAT,
        "build": {key: value for key, value in asdict(network.blueprint).items() if key != "resized" or value},
        "input_shape": list(network.input_shape),
        "objective": part_to_json(network.objective),
        "preprocessing": part_to_json(network.preprocessing),
    }


def restore(
    description: Mapping[str, Any], make: Callable[[Blueprint], nn.Module], source: str | Path
) -> TrainedNetwork:
    """A network from what `describe` gave, around the module that is made for its blueprint.

    Raises:
        ValueError: This is no description, or one of another format; the message names its source.
    """
    try:
        if description["format"] != FORMAT:
            raise ValueError(f"{source} has format {description['format']}, expected {FORMAT}")
        build = description["build"]
        tokens = None if build["tokens"] is None else tuple(build["tokens"])
        blueprint = Blueprint(build["target"], build["arguments"], tokens, build.get("resized", False))
        objective = part_from_json(description["objective"], OBJECTIVES)
        preprocessing = part_from_json(description["preprocessing"], PREPROCESSINGS)
        return TrainedNetwork(make(blueprint), blueprint, description["input_shape"], objective, preprocessing)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{source} is not a network description: {error!r}") from None


def check_storable(blueprint: Blueprint, task: Task) -> None:
    """Prove that such a network of this task could be written down (else ValueError), before one is trained."""
    for part, known in ((task.objective, OBJECTIVES), (task.preprocessing, PREPROCESSINGS)):
        if type(part) not in known.values():
            raise ValueError(
                f"env.task: {task.name} has a {type(part).__name__}, which no network on disk could be stored with; "
                f"allowed: {', '.join(known)}"
            )
    parts = [blueprint.arguments, part_to_json(task.objective), part_to_json(task.preprocessing)]
    for owner, part in zip((blueprint.target, task.name, task.name), parts, strict=True):
        try:
            json.dumps(part)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"a network on disk could not be stored with what {owner} has: {error}; make that Python's own numbers "
                f"and texts: {part!s:.200}"
            ) from None


def check_rebuilt(space: NetworkSpace, genotype: Genotype, plugins: Sequence[str]) -> None:
    """Prove that a space's `arguments` build the network of an architecture again, as final ones are built and loaded.

    Raises:
        ValueError: They do not, or give one of other weights.
    """
    blueprint = Blueprint.of(space, genotype)
    with torch.random.fork_rng(devices=[]):
        own, again = space.network(genotype).state_dict(), blueprint.build(plugins).state_dict()
    for name in {**own, **again}:
        its, other = (tuple(state[name].shape) if name in state else "nothing" for state in (own, again))
        if its != other:
            raise ValueError(
                f"space: the arguments that {blueprint.target} keeps build another network again: its {name} has {its} "
                f"there and {other} here; keep all that the space was made with, got {blueprint.arguments}"
            )


def check_state(blueprint: Blueprint, module: nn.Module) -> None:
    """Prove that the state of a fresh network is made of tensors of known sizes (else ValueError), as files hold it."""
    parameters = dict(module.named_parameters()) | dict(module.named_buffers())
    lazy = [name for name, value in parameters.items() if nn.parameter.is_lazy(value)]
    if lazy:
        raise ValueError(
            f"{blueprint.target} does not know the size of {lazy[0]} before it is used; take a layer that is not lazy"
        )
    strange = [name for name, value in module.state_dict().items() if not isinstance(value, Tensor)]
    if strange:
        raise ValueError(
            f"{blueprint.target} keeps {strange[0]}, which is no tensor, and which no network on disk could be stored "
            "with; keep it in a buffer"
        )


def save_network(network: TrainedNetwork, folder: Path) -> None:
    """Write `network.json`, `weights.safetensors` and their `SHA256SUMS`."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "network.json": json.dumps(describe(network), indent=2).encode() + b"\n",
        WEIGHTS: pack(network.module.state_dict()),
    }
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in contents.items())
    for name, data in {**contents, "SHA256SUMS": sums.encode()}.items():
        (folder / name).write_bytes(data)


def load_network(folder: str | Path, plugins: Sequence[str] = ()) -> TrainedNetwork:
    """Read a network, ready to classify; needs neither the data nor the search.

    Args:
        folder: Where `save_network` wrote it.
        plugins: Modules outside `child/` whose classes may be built.

    Raises:
        ValueError: A file is missing, damaged or of another format; the message names it.
    """
    folder = Path(folder)
    path = folder / "network.json"
    contents = {name: read_checked(folder / name) for name in (path.name, WEIGHTS)}
    try:
        description = json.loads(contents[path.name])
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a network description: {error!r}") from None

    def make(blueprint: Blueprint) -> nn.Module:
        module = blueprint.build(plugins)
        try:
            weights, same = unpack(contents[WEIGHTS])
            if blueprint.resized:
                resize(module, weights)
            module.load_state_dict(weights)
            tie(module, same)
            if blueprint.resized:  # whose layers might not fit each other
                with torch.no_grad():
                    module.eval()(torch.zeros(1, *description["input_shape"]))
        except Exception as error:  # there is no list of what somebody's network may raise
            if is_out_of_memory(error):
                raise
            raise ValueError(f"{folder / WEIGHTS} does not fit the network: {str(error) or repr(error)}") from None
        return module

    return restore(description, make, path)


def resize(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give layers the sizes of these weights, in place; the values stay undefined until they are loaded."""
    for prefix, layer in module.named_modules():
        tables: tuple[Any, ...] = (layer._parameters, layer._buffers)
        for held in tables:
            for name, value in held.items():
                wanted = weights.get(f"{prefix}.{name}" if prefix else name)
                if value is None or wanted is None or value.shape == wanted.shape:
                    continue
                if value.ndim != wanted.ndim:
                    raise ValueError(f"{prefix}.{name} has shape {tuple(wanted.shape)}, not like {tuple(value.shape)}")
                fresh = torch.empty_like(wanted, device=value.device)
                own = held is layer._parameters
                held[name] = nn.Parameter(fresh, requires_grad=value.requires_grad) if own else fresh
        _adopt_sizes(layer)
    order_channels_last(module)


def order_channels_last(module: nn.Module) -> None:
    """Lay the weights of images out as images are; unlike `Module.to`, this bears convolutions of three dimensions."""
    for value in (*module.parameters(), *module.buffers()):
        if value.ndim == 4:
            value.data = value.data.to(memory_format=torch.channels_last)


def _adopt_sizes(layer: nn.Module) -> None:
    """What a layer says of its size, made to agree with its weights."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        return
    match layer:
        case nn.modules.conv._ConvNd():
            first, second = weight.shape[:2]
            layer.groups = min(layer.groups, first)  # depthwise, or pruned until it was: a group for each channel
            inputs, outputs = (first, second * layer.groups) if layer.transposed else (second * layer.groups, first)
            layer.in_channels, layer.out_channels = inputs, outputs
        case nn.Linear():
            layer.out_features, layer.in_features = weight.shape
        case nn.modules.batchnorm._NormBase():
            layer.num_features = len(weight)
        case nn.GroupNorm():
            layer.num_channels = len(weight)
        case nn.LayerNorm():
            layer.normalized_shape = tuple(weight.shape)
        case nn.Embedding():
            layer.num_embeddings, layer.embedding_dim = weight.shape
        case nn.PReLU():
            layer.num_parameters = len(weight)


def tie(module: nn.Module, same: Mapping[str, str]) -> None:
    """Let parameters that are the same be one, so that they are counted and trained once."""
    for name, other in same.items():
        (layer, own), (source, its) = (
            (module.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]) for path in (name, other)
        )
        if own in layer._parameters and its in source._parameters:
            layer._parameters[own] = source._parameters[its]


def run_around(folder: Path) -> Path | None:
    """The run that a network lies in, whose folder is `<run>/networks/<name>`; None where it lies elsewhere."""
    place = folder.resolve().parent
    return place.parent if place.name == "networks" else None


def chosen_networks(run: Path) -> dict[str, Path]:
    """The folder of every network that a run's results name, of several trainings the chosen one; none without results.

    Raises:
        ValueError: The results cannot be read.
    """
    results = run / "results.json"
    if not results.is_file():
        return {}
    try:
        rows = json.loads(results.read_text(encoding="utf-8"))["rows"]
        return {row["name"]: run / row["folder"] for row in rows if row["folder"] is not None}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{results} is not what a run writes: {error!r}") from None


def find_network(path: str | Path) -> Path:
    """The folder of a network: of a run folder its student's, else the folder itself.

    Raises:
        ValueError: The run has no student yet, or its results cannot be read.
    """
    run = Path(path)
    results, inside = run / "results.json", run / "networks" / "student"
    chosen = chosen_networks(run)
    if "student" in chosen:
        return chosen["student"]
    if not inside.is_dir() and (run / "config.yaml").is_file():
        if results.is_file():
            raise ValueError(f"{run} is finished, and has no network: it trained none")
        raise ValueError(
            f"{run} has no student yet; finish the run with resume={run}, or name a folder of its networks/"
        )
    return inside if inside.is_dir() else run


def add_file(folder: Path, name: str, data: bytes) -> None:
    """Write a file beside a saved network, and its line in `SHA256SUMS`; cut short, it leaves the network whole."""
    from logbook.checkpoint import write_atomically  # here, since to load a network takes nothing but child

    lines = _read(folder / "SHA256SUMS").decode(errors="replace").splitlines()
    kept = [line for line in lines if line.partition("  ")[2] != name]
    write_atomically(folder / name, data)
    sums = "".join(f"{line}\n" for line in [*kept, f"{hashlib.sha256(data).hexdigest()}  {name}"])
    write_atomically(folder / "SHA256SUMS", sums.encode())


def read_checked(path: Path) -> bytes:
    """A file of a network's folder (else ValueError: it is missing, or not what its line in `SHA256SUMS` says)."""
    known = read_sums(path.parent)
    data = _read(path)
    if hashlib.sha256(data).hexdigest() != known.get(path.name):
        raise ValueError(f"{path} is damaged: its SHA-256 is not the one in SHA256SUMS")
    return data


def read_sums(folder: Path) -> dict[str, str]:
    """The digest of each file that a folder's `SHA256SUMS` names (else ValueError: there is none)."""
    lines = _read(folder / "SHA256SUMS").decode(errors="replace").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; expected a folder that a run wrote") from None
