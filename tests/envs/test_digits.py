"""The digits are the real ones, and split fairly."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from child.task import Classification
from child.transforms import Normalize
from envs.digits import digits


def test_the_digits_of_scikit_learn_divided() -> None:
    task = digits(seed=3)
    assert task.objective == Classification(tuple("0123456789"))
    assert task.input_shape == (1, 8, 8)
    sizes = [len(task.train), len(task.validation), len(task.test)]
    assert sizes == [1010, 337, 450]  # a quarter for the test set, then a quarter of the rest, rounded up

    task.test.unseal()
    parts = [task.train, task.validation, task.test.read("all")]
    pixels, labels = load_digits(return_X_y=True)
    together = torch.cat([part.inputs for part in parts]).numpy().reshape(-1, 64)
    targets = torch.cat([part.targets for part in parts]).numpy()
    original = np.column_stack([pixels, labels]).astype(np.int64)
    ours = np.column_stack([together, targets]).astype(np.int64)
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, original.tolist()))


def test_sixteen_means_one() -> None:
    task = digits(seed=0)
    assert isinstance(task.preprocessing, Normalize) and task.preprocessing.scale == 16.0
    assert int(task.train.inputs.max()) == 16
    seen = task.preprocessing(task.train.inputs)
    assert abs(float(seen.mean())) < 1e-4 and abs(float(seen.std()) - 1) < 1e-3
