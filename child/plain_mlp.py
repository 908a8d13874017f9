"""The hand-designed opponent of searched perceptrons: hidden layers of one width, with ReLU, for vectors."""

from collections.abc import Sequence

from torch import nn

from child.space import check_counts


class PlainMLP(nn.Sequential):
    """A multilayer perceptron, such as scikit-learn's `MLPClassifier` of two hidden layers.

    Args:
        input_shape: (F,), features.
        num_outputs: Of the last linear map; 1 for regression.
        width: Features of each hidden layer.
        num_layers: Hidden layers.
        dropout: Share of the last features dropped in training.

    Raises:
        ValueError: Samples are not vectors.
    """

    def __init__(
        self, input_shape: Sequence[int], num_outputs: int, width: int, num_layers: int = 2, dropout: float = 0.1
    ):
        check_counts("a multilayer perceptron", num_layers=num_layers)
        if len(input_shape) != 1:
            raise ValueError(f"a multilayer perceptron reads vectors, (features,), got {tuple(input_shape)}")
        layers: list[nn.Module] = []
        for layer in range(num_layers):
            layers += [nn.Linear(width if layer else input_shape[0], width), nn.ReLU()]
        super().__init__(*layers, nn.Dropout(dropout), nn.Linear(width, num_outputs))
