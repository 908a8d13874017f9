"""Searched perceptrons against tuned ones of scikit-learn on two tables, cross-validated.

    python benchmarks/tables.py     # goes on where it was stopped

Diabetes (R squared) and breast cancer (accuracy), each in five outer folds. The search, and scikit-learn's tuning, see
the training part of a fold alone, and judge by cross-validation inside it; then both train on all of it, and the fold's
test rows are read once. The rates and lengths of our configs are the same for all folds, settled by cross-validation
inside their training parts, which together hold every row. Two folds at a time, each with one thread, in
outputs/benchmark-tables/. Further arguments are overrides for every run. Writes benchmarks/results/tables.md and
tables.json.
"""

from whole_runs import finish, folder_of, read_results, with_error, write  # isort: skip

import json
import warnings
from functools import partial
from typing import Any

import numpy as np
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.outer_folds import NUM_FOLDS, Name, divide, load

folder = partial(folder_of, "tables")
TABLES: tuple[Name, ...] = ("diabetes", "breast_cancer")
INNER_FOLDS = 4  # of both sides
SETTINGS = (
    "plugins=[benchmarks.outer_folds]",
    "env.task._target_=benchmarks.outer_folds.outer_fold",
    "~env.task.test_share",
    "evaluator=standalone",
    f"evaluator.folds={INNER_FOLDS}",
    # As in the final training, for what is good after 10 epochs need not be so after 30.
    "evaluator.settings=${retrain.training}",
    "search.rounds=12",
    "search.episodes=4",
    "search.fidelity=1.0",
    "search.warmup_batches=0",
    "derive.candidates=8",  # the best are trained a second time, the others would only cost as much again
    "retrain.join_validation=true",
    "reward=quality",  # as scikit-learn's: networks are this small anyway
    "distill.budget=1.0",
)
GRID = {"learning_rate_init": [0.001, 0.003, 0.01], "hidden_layer_sizes": [(32,), (128,), (64, 64)],
        "alpha": [0.0001, 0.1, 10.0]}  # fmt: skip


def main() -> None:
    folds: list[tuple[Name, int]] = [(name, fold) for name in TABLES for fold in range(NUM_FOLDS)]
    finish((f"{name}, fold {fold}", folder(name, fold), overrides(name, fold)) for name, fold in folds)
    rows = [{"table": name, "fold": fold, "scikit_learn": tuned(name, fold), **searched(name, fold)}
            for name, fold in folds]  # fmt: skip
    write("tables", rows, table(rows))


def overrides(name: Name, fold: int) -> list[str]:
    return [f"env={name}", *SETTINGS, f"+env.task.name={name}", f"+env.task.fold={fold}", f"seed={fold}"]


def tuned(name: Name, fold: int) -> float:
    """Test figure of scikit-learn's perceptron with the best settings of the grid, kept beside the runs."""
    path = folder("scikit-learn-" + name, fold).with_suffix(".json")
    if not path.exists():
        x, y = load(name)
        train, test = divide(name, fold)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # its default of 200 epochs is ample here
            if name == "diabetes":
                network = TransformedTargetRegressor(
                    GridSearchCV(MLPRegressor(random_state=fold), GRID, cv=INNER_FOLDS), transformer=StandardScaler()
                )
            else:
                network = GridSearchCV(MLPClassifier(random_state=fold), GRID, cv=INNER_FOLDS)
            figure = make_pipeline(StandardScaler(), network).fit(x[train], y[train]).score(x[test], y[test])
        path.write_text(json.dumps(float(figure)))
    return json.loads(path.read_text())


def searched(name: Name, fold: int) -> dict[str, Any]:
    """Test figures of a run's networks, and what was found."""
    rows = read_results(folder(name, fold))["rows"]
    return {
        "found": rows["teacher"]["test"][0],
        "random": rows["random_best"]["test"][0],
        "text": rows["teacher"]["text"],
    }


def table(rows: list[dict]) -> str:
    """Markdown: per table the mean of each side, and their difference fold by fold."""
    lines = [
        "# Tables",
        "",
        "`python benchmarks/tables.py`: mean over five outer test folds ± sample standard deviation; the difference",
        "is taken fold by fold, ± its standard error. R squared for diabetes, accuracy for breast cancer.",
        "",
        "| table | found | best of random search | scikit-learn, tuned | found - scikit-learn |",
        "|---|---|---|---|---|",
    ]
    for name in TABLES:
        mine = [row for row in rows if row["table"] == name]
        sides = [np.array([row[side] for row in mine]) for side in ("found", "random", "scikit_learn")]
        gain = sides[0] - sides[2]
        cells = [f"{side.mean():.4f} ± {side.std(ddof=1):.4f}" for side in sides]
        lines.append(f"| {name} | {' | '.join(cells)} | {with_error(gain, 4)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
