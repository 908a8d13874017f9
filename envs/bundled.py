"""The tables inside scikit-learn's wheel: diabetes (Efron et al. 2004) and breast cancer (UCI, Wolberg et al. 1995)."""

from functools import partial
from typing import Any

from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_diabetes

from child.task import Task
from child.transforms import Normalize
from envs.arrays import make_task, store


def diabetes(seed: int, test_share: float = 0.25, validation_share: float = 0.25) -> Task:
    """How a disease goes on within a year, a number, from 10 measures of each of 442 patients."""
    found: Any = load_diabetes(scaled=False)
    names = tuple(found.feature_names)
    return _task("diabetes", found.data, names, found.target, "progression", seed, test_share, validation_share)


def breast_cancer(seed: int, test_share: float = 0.25, validation_share: float = 0.25) -> Task:
    """Malignant or benign, from 30 measures of cell nuclei of each of 569 tumors."""
    found: Any = load_breast_cancer()
    names, answers = tuple(map(str, found.feature_names)), found.target_names[found.target]
    return _task("breast cancer", found.data, names, answers, "diagnosis", seed, test_share, validation_share)


def _task(
    name: str,
    x: NDArray[Any],
    names: tuple[str, ...],
    y: NDArray[Any],
    answer: str,
    seed: int,
    test_share: float,
    validation_share: float,
) -> Task:
    fit = partial(Normalize.fit, scale=1.0, names=names)
    return make_task(name, store(name, x), y, seed, test_share, validation_share, fit, answer=answer)
