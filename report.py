"""The report of one run, or the comparison of several.

python report.py outputs/RUN                                  # writes outputs/RUN/report.html
python report.py runs=[outputs/A,outputs/B]                   # writes outputs/comparison.html
python report.py outputs/A outputs/B --output comparison.html
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from logbook.compare import comparison_tables, read_parts, write_comparison
from logbook.console import Console
from logbook.numbers import results_table
from logbook.optimization import so_far, steps_table, write_optimization
from logbook.record import read_run
from logbook.report import write_report


def main(arguments: list[str] | None = None) -> int:
    """Write a report and say where it is; return the exit status."""
    parser = argparse.ArgumentParser(prog="report.py", description="Report one run, or compare several.")
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run folder; several, or runs=[A,B,...], make a comparison"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        default=Path("outputs/comparison.html"),
        help="where a comparison goes (default: %(default)s); the report of one run goes into its folder",
    )
    options = parser.parse_args(arguments)
    console = Console()
    try:
        folders, several = named_folders(options.runs)
        if several:
            parts = read_parts(folders)
            path, tables = write_comparison(parts, options.output), comparison_tables(parts)
        else:
            path, tables = report_of(folders[0])
    except (ValueError, OSError) as error:
        print(f"report.py: error: {error}", file=sys.stderr)
        return 2
    for table in tables:
        console.table(table)
    console.say(str(path))
    return 0


def report_of(folder: Path) -> tuple[Path, list[Table]]:
    """Write the report of a run of `main.py` or `optimize.py`, and give its path and the console's tables."""
    run = read_run(folder)
    if run.optimizes:
        return write_optimization(folder), [steps_table(run.results or so_far(run))]
    return write_report(folder), [results_table(run.results)] if run.results else []


def named_folders(words: Sequence[str]) -> tuple[list[Path], bool]:
    """The run folders that the command line names, and whether they are to be compared.

    Raises:
        ValueError: A list is not written as one.
    """
    listed = [word for word in words if word.startswith("runs=")]
    if not listed:
        return [Path(word) for word in words], len(words) > 1
    given = " ".join(words)
    inside = listed[0].removeprefix("runs=")
    if len(words) > 1 or not (inside.startswith("[") and inside.endswith("]")):
        raise ValueError(f"expected one list without spaces, such as runs=[outputs/A,outputs/B], got {given!r:.200}")
    names = [name.strip().strip("'\"") for name in inside[1:-1].split(",")]
    if not all(names):
        raise ValueError(f"runs: expected run folders such as runs=[outputs/A,outputs/B], got {given!r:.200}")
    return [Path(name) for name in names], True


if __name__ == "__main__":
    sys.exit(main())
