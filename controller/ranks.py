"""Rewards as ranks, which neither their scale nor outliers disturb."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import rankdata


def normal_scores(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a standard normal variable has at the ranks of these values (N,); equal values get equal scores."""
    return ndtri((rankdata(values) - 0.5) / len(values))
