"""The tasks of `tables.py`: tables of scikit-learn whose test set is an outer fold."""

from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.model_selection import KFold, StratifiedKFold

from child.task import Task
from child.transforms import Normalize
from envs.arrays import make_task, store

NUM_FOLDS = 5

Name = Literal["diabetes", "breast_cancer"]


def load(name: Name) -> tuple[NDArray[Any], NDArray[Any]]:
    found: Any = load_diabetes(scaled=False) if name == "diabetes" else load_breast_cancer()
    return found.data, found.target


def divide(name: Name, fold: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of the training part and of the test part of an outer fold, the same for both sides."""
    dealer = KFold if name == "diabetes" else StratifiedKFold
    return list(dealer(NUM_FOLDS, shuffle=True, random_state=0).split(*load(name)))[fold]


def outer_fold(name: Name, fold: int, seed: int, validation_share: float = 0.25) -> Task:
    """The task of an outer fold: its test part is the test set."""
    x, y = load(name)
    train, test = divide(name, fold)
    return make_task(
        name, store(name, x[train]), y[train], seed, 0.25, validation_share, partial(Normalize.fit, scale=1.0),
        test=(store(name, x[test]), y[test]),
    )  # fmt: skip
