"""Folders of files by class, of any kind: a subfolder for each class, or `train`, `validation` and `test` of such."""

import os
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from child.space import nearest
from envs.cache import cached, content_key

Files = Mapping[str, Sequence[Path]]
"""Those of each part."""

PARTS = ("train", "validation", "test")
PART = re.compile(r"(train|test|val)(ing|id|idation)?([ _-]?(set|data))?", re.IGNORECASE)
"""What else they are called."""
NOT_READ = frozenset((
    ".heic", ".heif", ".avif", ".jxl", ".svg", ".raw", ".cr2", ".nef", ".dng", ".arw",
    ".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".wma",
))  # fmt: skip
"""Endings of images and sounds that no class may lose without a word, where they are not read."""


def read_folder(
    path: str,
    endings: Container[str],
    kind: str,
    decode: Callable[[Files], dict[str, NDArray[Any]]],
    name: str,
    *shaping: Any,
) -> dict[str, tuple[NDArray[Any], NDArray[np.str_]]]:
    """What the files hold and the class of each, for `train` and each other part there is; read once, then cached.

    Args:
        path: The folder.
        endings: Of files that count, such as `.png`, in lower case.
        kind: Of the files, for messages.
        decode: From the files of each part to what they hold.
        name: What the cache calls it.
        shaping: All that what they hold follows from, beside the files.

    Raises:
        ValueError: The folder is missing; or as for `files_by_part`; or a file cannot be read.
    """
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"{path} is not a folder; expected one with a subfolder of {kind}s per class")
    listed = files_by_part(root, endings, kind)
    files = {part: [file for group in classes.values() for file in group] for part, classes in listed.items()}
    named = {str(file.relative_to(root)): file for group in files.values() for file in group}
    held = cached(name, content_key(named, *shaping), lambda: decode(files))
    return {part: (held[part], class_of_each(classes)) for part, classes in listed.items()}


def files_by_part(root: Path, endings: Container[str], kind: str) -> dict[str, dict[str, list[Path]]]:
    """The files of each class, for `train` and whichever of `validation` and `test` stand beside it.

    A folder with none of these holds classes, all of them for training.

    Args:
        root: The folder.
        endings: Of files that count.
        kind: Of the files, for messages.

    Raises:
        ValueError: As for `class_files`; or something else stands beside `train`; or training lacks a class; or there
            are parts, but with other names.
    """
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    # A class may be called train too; but then it holds files, not folders.
    if "train" not in names or not (set(names) <= set(PARTS) or holds_folders_alone(root / "train", endings)):
        refuse_parts(root, names, endings)
        return {"train": class_files(root, endings, kind)}
    for other in names:
        if other not in PARTS:
            raise ValueError(
                f"{root / other} stands beside train; {nearest(other, PARTS)}, so rename it, or move it elsewhere"
            )
    refuse_strays(root, endings, kind)
    listed = {part: class_files(root / part, endings, kind) for part in PARTS if part in names}
    for part, classes in listed.items():
        for unknown in sorted(set(classes) - set(listed["train"])):
            known = nearest(unknown, sorted(listed["train"]))
            raise ValueError(f"{root / part / unknown} is a class that training lacks; {known}")
    return listed


def refuse_parts(root: Path, names: Sequence[str], endings: Container[str]) -> None:
    """Raise ValueError where subfolders are no classes but parts under other names, such as Train and Test."""
    parts = [name for name in names if PART.fullmatch(name)]
    if len(parts) > 1 and any(holds_folders_alone(root / name, endings) for name in parts):
        raise ValueError(
            f"{' and '.join(parts)} in {root} look like parts of a data set; call them train, validation and test, "
            "with a folder for each class inside; if they are classes, put their files into them directly"
        )


def holds_folders_alone(folder: Path, endings: Container[str]) -> bool:
    """Whether there are subfolders, and none of the files that count beside them."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    return any(e.is_dir() for e in entries) and not any(e.suffix.lower() in endings for e in entries if e.is_file())


def class_of_each(classes: Mapping[str, Sequence[Path]]) -> NDArray[np.str_]:
    """The class of each file, in their order."""
    return np.repeat(list(classes), [len(files) for files in classes.values()])


def class_files(folder: Path, endings: Container[str], kind: str) -> dict[str, list[Path]]:
    """The files of each subfolder, which is a class, at any depth; classes and files in the order of their names.

    What is called .something is left out, and all that lies in it: editors keep copies of files there.

    Args:
        folder: Holds the subfolders.
        endings: Of files that count, such as `.png`, in lower case.
        kind: Of the files, for messages.

    Raises:
        ValueError: There is no subfolder, or one without such a file, with others that would be lost, with parts of
            the data inside, or with a link to what is there already; or a file lies beside them.
    """
    refuse_strays(folder, endings, kind)
    found, known = {}, set[Path]()
    for subfolder in sorted(entry for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."):
        shown = sorted(files_below(subfolder, known))
        refuse_lost(subfolder, shown, endings)
        inside = [file.relative_to(subfolder) for file in shown if file.suffix.lower() in endings]
        parts = sorted({file.parts[0] for file in inside if len(file.parts) > 1 and PART.fullmatch(file.parts[0])})
        if len(parts) > 1:
            raise ValueError(
                f"{' and '.join(parts)} in {subfolder} look like parts of a data set; put the classes into the parts, "
                f"as in {folder.name}/train/{subfolder.name}"
            )
        files = [subfolder / file for file in inside]
        if not files:
            raise ValueError(f"{subfolder} holds no {kind}; every subfolder is a class and needs some")
        found[subfolder.name] = files
    if not found:
        raise ValueError(f"{folder} has no subfolders; expected one per class, each with its {kind}s")
    return found


def refuse_strays(folder: Path, endings: Container[str], kind: str) -> None:
    """Raise ValueError where files of the data lie beside the subfolders, where they are of no class."""
    beside = sorted(file for file in folder.iterdir() if file.is_file() and file.name[0] != ".")
    refuse_lost(folder, beside, endings)
    strays = [file for file in beside if file.suffix.lower() in endings]
    if strays:
        raise ValueError(
            f"{strays[0]} lies beside the folders, and would be left out; put each {kind} into the folder of its "
            f"class, or take it away (of such there are {len(strays)})"
        )


def refuse_lost(folder: Path, files: Sequence[Path], endings: Container[str]) -> None:
    """Raise ValueError where some of a folder's files are data of a kind that is not read."""
    lost = [file for file in files if file.suffix.lower() in NOT_READ and file.suffix.lower() not in endings]
    if lost:
        raise ValueError(
            f"{lost[0]} is of a kind that is not read, and would be left out; convert it, or take it away (of such "
            f"there are {len(lost)} in {folder})"
        )


def files_below(folder: Path, known: set[Path]) -> Iterator[Path]:
    """All files in a folder, at any depth, also where links lead; what is called .something is left out.

    Args:
        folder: Where they lie.
        known: The folders that were looked into already; these come to them.

    Raises:
        ValueError: A folder was, as where links lead in a circle, and its files would count again.
    """
    for name, inner, files in os.walk(folder, followlinks=True):
        inner[:] = [each for each in inner if each[0] != "."]
        place = Path(name).resolve()
        if place in known:
            raise ValueError(f"{name} is a link to {place}, whose files are there already; take it away")
        known.add(place)
        yield from (Path(name) / file for file in files if file[0] != ".")
