"""The LSTM opponent and the language model around it."""

import pytest
import torch
from torch import nn

from child.cost import count_macs
from child.language import LanguageModel
from child.lstm import LSTMLanguageModel


@pytest.mark.parametrize(("num_layers", "context"), [(1, 0), (1, 3), (2, 3)])
def test_it_is_an_lstm_over_the_whole_window_cut_off_at_the_context(num_layers: int, context: int) -> None:
    torch.manual_seed(0)
    network = LSTMLanguageModel((7,), 5, 6, num_layers, context).eval()
    tokens = torch.randint(5, (3, 7))
    outputs = network(tokens)
    features, _ = network.lstm(network.embedding(tokens).transpose(0, 1))
    expected = (features @ network.embedding.weight.T + network.bias).transpose(0, 1)[:, context:]
    torch.testing.assert_close(outputs, expected)
    parameters = list(network.parameters())
    cut, whole = (torch.autograd.grad(each.square().sum(), parameters) for each in (outputs, expected))
    recurrent = [name for name, _ in network.named_parameters()].index("lstm.weight_hh_l0")
    assert torch.allclose(cut[recurrent], whole[recurrent]) == (context == 0)


def test_costs_are_the_known_ones() -> None:
    network = LSTMLanguageModel((7,), 5, 6, 2, 3)
    assert count_macs(network, (7,)) == 7 * 2 * 4 * (6 * 6 + 6 * 6) + 4 * 6 * 5
    assert sum(value.numel() for value in network.parameters()) == 2 * (8 * 36 + 8 * 6) + 6 * 5 + 5


class Bare(LanguageModel):
    """A recurrence that gives its input back, but for dropout."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.embed(x)
        return features, self.decode(torch.ones_like(features))


def test_one_dropout_mask_holds_for_all_steps_and_differs_between_samples() -> None:
    torch.manual_seed(0)
    model = Bare((9,), 3, 500, 0, 0.4, 0.2)
    nn.init.ones_(model.embedding.weight)
    features, logits = model(torch.zeros(2, 9))  # (L, B, W) and (B, L, V)
    assert features.equal(features[:1].expand_as(features))
    assert sorted(features.unique().tolist()) == [0.0, pytest.approx(1 / 0.6)]
    assert (features[0] == 0).float().mean().item() == pytest.approx(0.4, abs=0.06)  # four standard deviations
    assert not features[0, 0].equal(features[0, 1])
    torch.testing.assert_close(logits, logits[:, :1].expand_as(logits))
    assert (logits[:, 0, 0] - 500).abs().max() > 1  # a sum over the 0.8 that are kept, each 1 / 0.8
    features, logits = model.eval()(torch.zeros(2, 9))
    assert features.equal(torch.ones(9, 2, 500)) and logits.equal(torch.full((2, 9, 3), 500.0))


def test_decoding_is_tied_to_the_embedding() -> None:
    model = Bare((4,), 3, 2, 0, 0.0, 0.0).eval()
    with torch.no_grad():
        model.embedding.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 5.0], [-1.0, 0.0]]))
        model.bias.copy_(torch.tensor([0.5, 0.0, 0.0]))
    features, logits = model(torch.tensor([[2, 1, 0, 0]]))
    assert features[:, 0].tolist() == [[-1, 0], [3, 5], [1, 2], [1, 2]]
    assert logits[0].tolist() == [[3.5, 8.0, -1.0]] * 4
