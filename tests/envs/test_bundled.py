"""The tables are the real ones, whole, with their targets in their own unit."""

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes

from child.task import Classification, Regression, Task
from envs.bundled import breast_cancer, diabetes


def together(task: Task) -> tuple[np.ndarray, np.ndarray]:
    task.test.unseal()
    parts = [task.train, task.validation, task.test.read("all")]
    inputs, targets = torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts])
    return inputs.numpy(), targets.numpy()


def test_the_diabetes_of_scikit_learn() -> None:
    task = diabetes(seed=0)
    assert isinstance(task.objective, Regression) and task.objective.name == "progression"
    inputs, targets = together(task)
    found: Any = load_diabetes(scaled=False)
    x, y = found.data.astype(np.float32), found.target
    raw = targets * task.objective.std + task.objective.mean
    order, expected = np.lexsort((*inputs.T, raw.round())), np.lexsort((*x.T, y))
    np.testing.assert_allclose(raw[order], y[expected], rtol=1e-5)
    np.testing.assert_array_equal(inputs[order], x[expected])


def test_the_breast_cancer_of_scikit_learn() -> None:
    task = breast_cancer(seed=0)
    assert task.objective == Classification(("benign", "malignant"))
    inputs, targets = together(task)
    found: Any = load_breast_cancer()
    x, benign = found.data.astype(np.float32), found.target
    order, expected = np.lexsort(inputs.T), np.lexsort(x.T)
    np.testing.assert_array_equal(inputs[order], x[expected])
    np.testing.assert_array_equal(targets[order], 1 - benign[expected])
