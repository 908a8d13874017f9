"""Knowledge distillation: a student learns from a teacher's softened outputs (Hinton, Vinyals and Dean 2015).

It may learn from what happens inside the teacher too: from features, as hints, or from where they are large, as
attention. Several teachers speak with one voice, and a network may be its own teacher.

Letters: B samples, C channels, H height, W width, T positions, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from child.language import Recurrence
from child.task import Task, WithAuxiliary
from child.training import LossOf

CHANNELS_FIRST = nn.Conv1d | nn.ConvTranspose1d | nn.BatchNorm1d | nn.GroupNorm
FEATURES_LAST = nn.Linear | nn.LayerNorm | nn.Embedding | nn.RNNBase | nn.MultiheadAttention


@dataclass(frozen=True)
class SoftTargets:
    """How a student listens to its teacher.

    Args:
        temperature: Both networks' logits are divided by it before the softmax.
        weight: Share of the teacher's term in the loss; the rest is the task's own loss.
    """

    temperature: float = 4.0
    weight: float = 0.7

    def __post_init__(self) -> None:
        if not self.temperature > 0 or not 0 <= self.weight <= 1:
            raise ValueError(
                f"distillation needs temperature > 0 and weight in [0, 1], got {self.temperature} and {self.weight}"
            )

    def loss(self, student: nn.Module, teacher: nn.Module, task: Task, label_smoothing: float = 0.0) -> LossOf:
        """(1 - w) * task loss + w * the objective's loss against the teacher, who sees the same augmented batch.

        Of a `Pupil` the distance of its features is added.
        """
        teacher.eval()

        def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
            with torch.no_grad():
                wanted = teacher(inputs).float()
            outputs = student(inputs)
            main = outputs.outputs if isinstance(outputs, WithAuxiliary) else outputs
            soft = task.objective.imitation(main.float(), wanted, self.temperature)
            loss = (1 - self.weight) * task.loss(outputs, targets, label_smoothing) + self.weight * soft
            return loss + student.distance() if isinstance(student, Pupil) else loss

        return loss_of


class Ensemble(nn.Module):
    """Several networks as one teacher, whose outputs are their mean.

    Of logits that is the geometric mean of the predicted distributions, one of the two means that Hinton et al. (2015)
    name; of a regression the mean of the values.
    """

    def __init__(self, members: Sequence[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (B, ...) like those of each."""
        return torch.stack([member(x) for member in self.members]).mean(dim=0)


@dataclass(frozen=True)
class FeatureTransfer:
    """What a student takes from inside its teacher.

    `hint`: the teacher's features, which the student's are mapped to by a linear map for each layer that is learned
    beside it (FitNets, Romero et al. 2015, eq. 3; here the mean of squares, and together with the outputs, not before).
    `attention`: the mean over channels of squared features, as a unit vector over the positions (Zagoruyko and
    Komodakis 2017, eq. 2, with the mean of squares of the public code).

    Args:
        kind: Which of the two.
        weight: Of this term in the loss.
        layers: Where: names of modules that both networks have, or `student.layer:teacher.layer`; None for
            `num_layers` of those that both have, spread evenly. A language model's recurrence is `recurrence`.
        num_layers: How many of them.
    """

    kind: Literal["hint", "attention"]
    weight: float = 1.0
    layers: tuple[str, ...] | None = None
    num_layers: int = 3

    def __post_init__(self) -> None:
        if not self.weight > 0 or self.num_layers < 1 or self.layers == ():
            raise ValueError(
                "distill.features needs weight > 0 and at least one layer, got "
                f"{self.weight} and {self.num_layers if self.layers is None else 0}"
            )


class Pupil(nn.Module):
    """A student with the ears that it needs to learn from a teacher's features; `student` is what stays.

    Args:
        student: Learns.
        teacher: Is only listened to.
        transfer: What is taken over.
        inputs: A batch, from which the sizes of features are read.

    Raises:
        ValueError: A layer does not exist, or features of the two do not belong together.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, transfer: FeatureTransfer, inputs: Tensor):
        super().__init__()
        self.student, self.transfer = student, transfer
        self._heard: dict[tuple[int, str], Tensor] = {}
        networks = (student, teacher)
        for network in networks:
            network.eval()
        pairs = [tuple(name.split(":")) * (2 if ":" not in name else 1) for name in transfer.layers or ()]
        if not pairs:
            pairs = [(name, name) for name in self._alike(networks, inputs)]
        self.pairs = pairs
        for pair in pairs:
            if len(pair) != 2:
                raise ValueError(f"distill.features.layers: expected student.layer:teacher.layer, got {':'.join(pair)}")
        for side, network in enumerate(networks):
            known = dict(network.named_modules())
            for pair in pairs:
                if pair[side] not in known:
                    raise ValueError(f"distill.features.layers: {type(network).__name__} has no layer {pair[side]!r}")
                known[pair[side]].register_forward_hook(self._listen(side, pair[side]))
        with torch.no_grad():
            for network in networks:
                network(inputs)
        maps = [self._map(mine, its, len(inputs)) for mine, its in pairs]
        self.maps = nn.ModuleList(maps).to(inputs.device)

    def forward(self, x: Tensor) -> Tensor:
        """What the student says."""
        return self.student(x)

    def distance(self) -> Tensor:
        """How far the features of the last batch, which the teacher has seen too, are from the teacher's: a scalar."""
        total = torch.zeros(())
        for (mine, its), change in zip(self.pairs, self.maps, strict=True):
            own, wanted = self._heard[0, mine], self._heard[1, its].detach()
            total = total.to(own.device) + self._distance(change, own.float(), wanted.float())
        return self.transfer.weight * total / len(self.pairs)

    def _distance(self, change: nn.Module, own: Tensor, wanted: Tensor) -> Tensor:
        if own.ndim == 4 and own.shape[2:] != wanted.shape[2:]:
            smaller = min(own.shape[2], wanted.shape[2]), min(own.shape[3], wanted.shape[3])
            own, wanted = (functional.adaptive_avg_pool2d(x, smaller) for x in (own, wanted))
        if self.transfer.kind == "attention":
            return (attention(own) - attention(wanted)).pow(2).mean()
        return (change(own) - wanted).pow(2).mean()

    def _map(self, mine: str, its: str, num_samples: int) -> nn.Module:
        """From the student's features to the size of the teacher's."""
        for side, name in enumerate((mine, its)):
            if (side, name) not in self._heard:
                raise ValueError(f"distill.features.layers: {name!r} gives no tensor that could be learned from")
        own, wanted = self._heard[0, mine], self._heard[1, its]
        for name, features in ((mine, own), (its, wanted)):
            if not self._has_positions(features, num_samples):
                raise ValueError(
                    f"distill.features: attention is over the positions of each sample, and {name!r} gives "
                    f"{tuple(features.shape)}; use hint"
                )
        pooled = own.ndim == 4  # to the smaller of the two
        if own.ndim == wanted.ndim and own.ndim in (2, 3, 4) and (pooled or own.shape[:-1] == wanted.shape[:-1]):
            if self.transfer.kind == "attention":
                return nn.Identity()
            return nn.Conv2d(own.shape[1], wanted.shape[1], 1) if pooled else nn.Linear(own.shape[-1], wanted.shape[-1])
        raise ValueError(
            f"distill.features: {mine!r} gives {tuple(own.shape)} and the teacher's {its!r} {tuple(wanted.shape)}, "
            "which do not belong together; name others in distill.features.layers"
        )

    def _has_positions(self, features: Tensor, num_samples: int) -> bool:
        """Whether each sample has some, which attention alone asks for."""
        return self.transfer.kind == "hint" or (features.ndim > 2 and len(features) == num_samples)

    def _listen(self, side: int, name: str):
        def hear(module: nn.Module, inputs: object, outputs: Any) -> None:
            if isinstance(outputs, Tensor):
                self._heard[side, name] = as_image(module, outputs)

        return hear

    def _alike(self, networks: tuple[nn.Module, nn.Module], inputs: Tensor) -> list[str]:
        """Layers with weights that both have by the same name, the last left out: its features are the outputs.

        What a recurrence gives is a layer too, and never left out: a language model decodes it into its outputs.
        """
        found: list[dict[str, Tensor]] = [{}, {}]
        for network, heard in zip(networks, found, strict=True):
            handles = []
            for name, layer in network.named_modules():
                # What holds a layer's values in place stands below it, and is no layer.
                inside = [part for part, _ in layer.named_children() if part != "parametrizations"]
                held = "parametrizations" in name.split(".")
                learns = next(layer.parameters(), None) is not None
                if not inside and not held and (learns or isinstance(layer, Recurrence)):

                    def hear(module: nn.Module, inputs: object, outputs: Tensor, heard: Any = heard, name: str = name):
                        heard[name] = outputs

                    handles.append(layer.register_forward_hook(hear))
            with torch.no_grad():
                network(inputs)
            for handle in handles:
                handle.remove()
        heard = list(found[0].items())
        if heard and not isinstance(networks[0].get_submodule(heard[-1][0]), Recurrence):
            heard.pop()
        both = {
            name: out
            for name, out in heard
            if isinstance(out, Tensor) and isinstance(found[1].get(name), Tensor) and 2 <= out.ndim <= 4
        }
        if not both:
            raise ValueError(
                "distill.features: student and teacher have no layers of the same name before their outputs; name "
                "pairs, such as distill.features.layers=[student.layer:teacher.layer]"
            )
        # Where none has positions, they stay, and the first is refused by its name.
        alike = [name for name, out in both.items() if self._has_positions(out, len(inputs))] or list(both)
        num = min(self.transfer.num_layers, len(alike))
        return [alike[round((place + 1) * len(alike) / num) - 1] for place in range(num)]


def as_image(module: nn.Module, outputs: Tensor) -> Tensor:
    """What a module gives, as (B, C, H, W) where it has channels at positions: a sequence is an image of height 1.

    Of three axes the last are features (B, T, F), unless what the module ends with has channels before positions.
    """
    parts = [part for part in module.modules() if isinstance(part, CHANNELS_FIRST | FEATURES_LAST)]
    if outputs.ndim == 3 and parts and isinstance(parts[-1], CHANNELS_FIRST):
        return outputs.unsqueeze(2)
    # A subclass of LayerNorm is often one for channels that come first.
    if outputs.ndim == 4 and (isinstance(module, nn.Linear) or type(module) is nn.LayerNorm):
        return outputs.permute(0, 3, 1, 2)
    return outputs


def attention(features: Tensor) -> Tensor:
    """Where features are large: the mean of their squares over channels, as a unit vector (B, positions)."""
    energies = features.pow(2).mean(dim=1 if features.ndim == 4 else -1).flatten(1)
    return functional.normalize(energies, dim=1)
