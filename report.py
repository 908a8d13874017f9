"""The report of one run, or the comparison of several: `python report.py outputs/RUN [outputs/RUN ...]`."""

import argparse
import sys
from pathlib import Path

from logbook.compare import write_comparison
from logbook.console import Console
from logbook.numbers import results_table
from logbook.record import read_run
from logbook.report import write_report


def main(arguments: list[str] | None = None) -> int:
    """Write a report and say where it is; return the exit status."""
    parser = argparse.ArgumentParser(prog="report.py", description="Report one run, or compare several.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder; several make a comparison")
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
        if len(options.runs) > 1:
            console.say(str(write_comparison(options.runs, options.output)))
            return 0
        path = write_report(options.runs[0])
        results = read_run(options.runs[0]).results
    except (ValueError, OSError) as error:
        print(f"report.py: error: {error}", file=sys.stderr)
        return 2
    if results:
        console.table(results_table(results))
    console.say(str(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
