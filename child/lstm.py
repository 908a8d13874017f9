"""The hand-designed opponent of a recurrent cell: LSTM layers (Hochreiter and Schmidhuber 1997) of any width."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from child.language import LanguageModel
from child.space import check_counts


class LSTMLanguageModel(LanguageModel):
    """The language model of the recurrent space with PyTorch's LSTM in place of the cell.

    Differences: it has no dropout on the state, which PyTorch's LSTM does not offer.

    Args:
        input_shape: (L,).
        num_outputs: V.
        width: Of the embedding and of each layer's state.
        num_layers: LSTM layers.
        context: Tokens at the beginning of a window that only warm the state up.
        dropout_input: Share of embedded features dropped in training.
        dropout_output: Share of output features dropped in training.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        width: int,
        num_layers: int = 1,
        context: int = 32,
        dropout_input: float = 0.1,
        dropout_output: float = 0.1,
    ):
        check_counts("an LSTM", num_layers=num_layers)
        super().__init__(input_shape, num_outputs, width, context, dropout_input, dropout_output)
        self.lstm = nn.LSTM(width, width, num_layers)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, L - context, V) of tokens (B, L)."""
        features = self.embed(x)
        state = None
        if self.context:
            with torch.no_grad():
                _, state = self.lstm(features[: self.context])
        outputs, _ = self.lstm(features[self.context :], state)
        return self.decode(outputs)
