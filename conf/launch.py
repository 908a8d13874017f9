"""From the command line to a typed config: Hydra composes, `schema` checks, and every mistake ends in one line."""

import importlib
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import hydra
from gymnasium.error import Error as GymnasiumError
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException
from yaml import YAMLError

from child.space import is_out_of_memory, nearest
from child.training import TrainingError, prepare_process
from conf.schema import NOT_TAKEN, OURS, ConfigError, RunConfig, read
from controller.reinforce import ControllerError
from logbook.console import Console
from logbook.interrupt import Interrupted, Interruption
from logbook.record import FREE_ON_RESUME
from logbook.run import Run

# What a user can run into; anything else is a defect of ours and keeps its traceback.
EXPECTED = (
    HydraException,
    OmegaConfBaseException,
    YAMLError,
    GymnasiumError,
    ValueError,
    OSError,
    TrainingError,
    ControllerError,
)

Config = TypeVar("Config", bound=RunConfig)
Built = TypeVar("Built")


def launch(start: Callable[[Config, str], None], kind: type[Config] = RunConfig, name: str = "config") -> None:
    """Compose the config from the command line and hand it on, typed and as the text of `config.yaml`.

    `kind` is its type, and `name` that of the file in `conf/` which it begins with.

    Mistakes and failed runs are told in one line on standard error; the exit status is then 2 for a mistake of the
    user's, 1 for a run that could not go on, 130 for Ctrl-C, 143 for SIGTERM. A job of a multirun that fails does not
    stop the others; all that failed are told at the end.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on instead of printing them itself
    failed: list[tuple[str, int]] = []
    composed_one = False

    @hydra.main(version_base="1.3", config_path=".", config_name=name)
    def entry(composed: DictConfig) -> None:
        nonlocal composed_one
        composed_one = True
        # As they were typed: an interpolation in one of them must not be resolved here.
        overrides: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
        several = HydraConfig.get().mode == RunMode.MULTIRUN
        job = f"{' '.join(overrides)}: " if several else ""
        try:
            start(*resolve(composed, overrides, kind))
        except EXPECTED as error:  # kept from Hydra, which would add lines of its own
            mistaken = [quoted for key, quoted in map(_as_text, overrides) if f"{key}: expected text" in str(error)]
            line = "; as text: ".join([one_line(error), *mistaken]) + _left_out(str(error), overrides)
            failed.append((job + line, 1 if isinstance(error, RuntimeError) else 2))
        except Exception as error:
            if is_out_of_memory(error):
                line = f"memory ran out ({one_line(error)}); ask for less at once"
                failed.append((job + line if several else _with_overrides(line), 1))
            elif several:
                traceback.print_exc()
                failed.append((f"{job}a defect, see above", 1))
            else:
                raise

    try:
        entry()
    except OverrideParseException as error:
        quoted = f"; if its value is a text, quote it: {_as_text(error.override)[1]}" if "=" in error.override else ""
        failed.append((f"cannot read {error.override} as Hydra's key=value{quoted}", 2))
    except EXPECTED as error:
        failed.append((_with_overrides(one_line(error)), 2))
    except Exception as error:  # Hydra stumbles over some overrides itself
        if composed_one:
            raise
        failed.append((f"cannot compose the config from {' '.join(sys.argv[1:])} ({one_line(error)})", 2))
    except Interrupted as error:
        failed.append((str(error), 128 + error.signal_number))
    except KeyboardInterrupt:
        failed.append(("interrupted", 130))
    for message, _ in failed:
        print(f"luban: {message}", file=sys.stderr)
    if failed:
        sys.exit(max(status for _, status in failed))


@contextmanager
def under_way(
    config: RunConfig, text: str, script: str, build: Callable[[Run | None], Built]
) -> Iterator[tuple[Run, Console, Built]]:
    """A run, new or gone on with, and what `build` makes of it; closed in the end, however it ends.

    A new run's folder is there only once all is built, so that a mistake in the config leaves none behind.
    """
    prepare_process()
    console = Console()
    with Interruption() as interruption:
        every = config.checkpoint_every_s
        run = Run.resume(Path(config.resume), every, interruption) if config.resume else None
        try:
            built = build(run)
        except (ValueError, OSError) as error:
            if run is None or config.env.path is None or Path(config.env.path).exists():
                raise
            where = f"where {config.env.path} has moved to, write into {run.folder / 'config.yaml'}"
            raise ConfigError(f"{one_line(error)}; {where}") from None
        if run is None:
            run = Run.create(Path(config.output), config.name, text, every, interruption)
        try:
            for remark in run.remarks:
                console.say(remark)
            yield run, console, built
        except Interrupted:
            console.say(f"Stopped. Go on with: python {script} {override('resume', run.folder)}")
            raise
        finally:
            run.close()


def compose(*overrides: str, kind: type[Config] = RunConfig, name: str = "config") -> Config:
    """The typed config that these overrides give, for tests and benchmarks that run parts of a run."""
    with hydra.initialize_config_module("conf", version_base="1.3"):
        return resolve(hydra.compose(name, list(overrides)), list(overrides), kind)[0]


def resolve(composed: DictConfig, overrides: list[str], kind: type[Config] = RunConfig) -> tuple[Config, str]:
    """The typed config and its text; of a run that is resumed, the one it was started with.

    Raises:
        ConfigError: A key or value is wrong, or an override sets what is not read, or differs from the run to go on.
    """
    keys = _typed(overrides)
    for key in sorted(keys):
        if any(f"{key}.".startswith(f"{unread}.") for unread in kind.UNREAD):
            raise ConfigError(f"{key}: nothing here reads it; it is of a search by main.py, so leave it out")
    data = composed
    if composed.get("resume"):
        path = Path(str(composed.resume)) / "config.yaml"
        if not path.is_file():
            raise ConfigError(f"resume: {composed.resume} is not a run folder (it has no config.yaml)")
        saved = OmegaConf.load(path)
        assert isinstance(saved, DictConfig)
        script = "optimize.py" if "steps" in saved else "main.py"
        if ("steps" in saved) != ("steps" in composed):
            raise ConfigError(
                f"resume: {composed.resume} is a run of {script}; go on with: python {script} "
                f"{override('resume', composed.resume)}"
            )
        free = [key for key in FREE_ON_RESUME if key not in kind.UNREAD]
        _refuse_changes(saved, composed, keys, free)
        data = OmegaConf.merge(saved, {key: composed[key] for key in free if key in {*keys, "resume"}})
        assert isinstance(data, DictConfig)
    plain: Any = OmegaConf.to_container(data, resolve=True, throw_on_missing=True)
    for plugin in read(tuple[str, ...], plain.get("plugins", []), "plugins"):
        try:
            importlib.import_module(plugin)
        except ImportError as error:
            raise ConfigError(f"plugins: cannot import {plugin!r} ({error}); is its folder on PYTHONPATH?") from None
    return read(kind, plain, ""), OmegaConf.to_yaml(data, resolve=True)


def override(key: str, value: Path | str) -> str:
    """`key=value` for a shell, with the quotes that it and Hydra's grammar need for this very text."""
    plain = f"{key}={value}"
    try:
        as_it_is = OverridesParser.create().parse_override(plain).value() == str(value)
    except HydraException:
        as_it_is = False
    return shlex.quote(plain if as_it_is else f"{key}={QuotedString(str(value), Quote.double).with_quotes()}")


def _as_text(typed: str) -> tuple[str, str]:
    """The key of an override, and the override for a shell by which its value is the text that was typed."""
    key, _, value = typed.partition("=")
    return key.lstrip("+"), override(key, value)


def _left_out(line: str, overrides: Sequence[str]) -> str:
    """How to go without an argument that is not taken, where it is that of a config which was chosen as a whole."""
    key, _, said = line.partition(": ")
    if NOT_TAKEN not in said or key in _typed(overrides):
        return ""
    return f"; it comes with a config that was chosen, and {shlex.quote(f'~{key}')} leaves it out"


def _typed(overrides: Sequence[str]) -> set[str]:
    """The keys that overrides set."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {key for each in parsed for key in _keys(each.key_or_group.replace("/", "."), each.value())}


def _keys(key: str, value: Any) -> Iterator[str]:
    """What an override sets: the key itself, or where its value is a mapping the keys within it."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _keys(f"{key}.{name}", inner)
    else:
        yield key


def _refuse_changes(saved: DictConfig, composed: DictConfig, keys: set[str], free: Sequence[str]) -> None:
    """Prove that the keys which the overrides name are free, or the same as in the saved run."""
    # An experiment leaves no key of its own, only what it sets.
    named = keys if "experiment" not in keys else keys | {str(key) for key in composed if key in saved}
    for key in sorted(named):
        if key not in free and OmegaConf.select(saved, key) != OmegaConf.select(composed, key):
            raise ConfigError(
                f"resume: a run goes on with its own config, but {key} was {_plain(OmegaConf.select(saved, key))} and "
                f"is now {_plain(OmegaConf.select(composed, key))}; only {', '.join(free)} may differ"
            )


def _with_overrides(line: str) -> str:
    """A line that names no override, as some of Hydra's do not, with all of them after it."""
    given = [each for each in sys.argv[1:] if not each.startswith("-")]
    named = any(each.lstrip("+~").partition("=")[0] in line for each in given)
    return line if named or not given else f"{line} (in {' '.join(given)})"


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def one_line(error: Exception) -> str:
    """What to tell the user of an error; to Hydra's and OmegaConf's own the nearest valid name is added."""
    root = error
    while root.__cause__ is not None and isinstance(root.__cause__, Exception):
        root = root.__cause__
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"{group}: there is no config {name!r}; {nearest(name, error.options)}"
    key = getattr(root, "full_key", None)
    parent = getattr(root, "parent_node", None)
    if key and isinstance(parent, DictConfig) and "not in struct" in str(root):
        known = nearest(key.rpartition(".")[2], [name for name in parent if name != "hydra"])
        is_own = str(parent.get("_target_", OURS[0])).partition(".")[0] not in OURS
        return f"{key}: unknown key; {known}{f'; where your class takes it, +{key}=... sets it' if is_own else ''}"
    if key and isinstance(root, InterpolationKeyError):
        return f"{key}: {str(root).splitlines()[0]}; set {key}=..."
    if key and "mandatory" in str(root).lower():
        return f"{key}: this key has no default; set {key}=..."
    return " ".join(line.strip() for line in str(root).splitlines() if line.strip())
