"""A language model around a recurrence: windows of tokens in, logits of each next token out.

A sample is a window of L tokens. Its first tokens, the context, only warm the state up, from zero and without gradient;
the gradient flows through the rest. So backpropagation is truncated without a state that is carried from batch to
batch, and a loss stays a function of weights and batch alone.

Letters: B samples, L tokens of a window, W width, V symbols of the vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Recurrence(nn.Identity):
    """What the recurrence gives, (B, L, W), passes through here, so that it can be heard as a layer's features are."""


class LanguageModel(nn.Module):
    """What the models share: an embedding that also decodes (Press and Wolf 2017), and dropout around the recurrence.

    Dropout is variational (Gal and Ghahramani 2016): a mask holds for all steps of a window.

    Args:
        input_shape: (L,).
        num_outputs: V.
        width: Of the embedding and of the recurrent state.
        context: Tokens at the beginning of a window that only warm the state up.
        dropout_input: Share of embedded features dropped in training.
        dropout_output: Share of output features dropped in training.

    Raises:
        ValueError: A size is out of range.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        width: int,
        context: int,
        dropout_input: float,
        dropout_output: float,
    ):
        super().__init__()
        if len(input_shape) != 1:
            raise ValueError(f"a language model reads windows of tokens, (length,), got {tuple(input_shape)}")
        if width < 1 or num_outputs < 2:
            raise ValueError(f"a language model needs width >= 1 and 2 outputs, got {width} and {num_outputs}")
        if not 0 <= context < input_shape[0]:
            raise ValueError(
                f"a window of {input_shape[0]} tokens needs 0 <= context < {input_shape[0]}, got {context}"
            )
        for rate in (dropout_input, dropout_output):
            if not 0 <= rate < 1:
                raise ValueError(f"a language model needs 0 <= dropout < 1, got {rate}")
        self.context, self.dropout_input, self.dropout_output = context, dropout_input, dropout_output
        self.embedding = nn.Embedding(num_outputs, width)
        # At the scale of the recurrent weights, 0.05 at width 128, a cell is slow to take its tokens in: after as much
        # training on characters it was at 3.0 bits, against 2.8. PyTorch's own scale, 1, was no better than this one.
        nn.init.normal_(self.embedding.weight, std=0.3)
        self.bias = nn.Parameter(torch.zeros(num_outputs))
        self.recurrence = Recurrence()

    def embed(self, tokens: Tensor) -> Tensor:
        """Features (L, B, W) of tokens (B, L), of any numeric type."""
        features = self.embedding(tokens.long().t())
        return features * self.mask(features[0], self.dropout_input)

    def decode(self, outputs: Tensor) -> Tensor:
        """Logits (B, L, V) of the recurrence's outputs (L, B, W)."""
        features = self.recurrence(outputs.transpose(0, 1))
        kept = features * self.mask(features[:, :1], self.dropout_output)
        return functional.linear(kept, self.embedding.weight, self.bias)

    def mask(self, features: Tensor, rate: float) -> Tensor:
        """What features (..., W) are multiplied with: 0 where dropped, 1 / (1 - rate) elsewhere; 1 in evaluation."""
        return functional.dropout(torch.ones_like(features), rate, self.training)
