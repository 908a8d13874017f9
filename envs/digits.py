"""scikit-learn's handwritten digits: 1,797 real images of 8x8 (UCI, Alpaydin and Kaynak 1998), inside its wheel."""

import numpy as np
from sklearn.datasets import load_digits

from child.task import Task
from child.transforms import Augmentation
from envs.arrays import array_task


def digits(
    seed: int,
    test_share: float = 0.25,
    validation_share: float = 0.25,
    augmentation: Augmentation | None = None,
) -> Task:
    """The digits with a stratified test split drawn by the seed. Arguments as for `envs.arrays.array_task`."""
    pixels, labels = load_digits(return_X_y=True)
    images = np.asarray(pixels).reshape(-1, 8, 8).astype(np.uint8)  # 0 to 16
    return array_task("digits", images, labels, seed, test_share, validation_share, augmentation, scale=16.0)
