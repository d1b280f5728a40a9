"""What tells two sources apart: architecture and weights, each by itself."""

from __future__ import annotations

import dataclasses

import torch

from movinet_port.checkpoint import Checkpoint

# Fields of a spec that follow from others or are only a name.
_NOT_COMPARED = frozenset({"name"})


@dataclasses.dataclass(frozen=True)
class TensorDifference:
    """A parameter or buffer that two sources do not share, or share with other values.

    Attributes:
        name: canonical name.
        largest: largest absolute difference; None where only one has it or the shapes differ.
        detail: what is different, in words.
    """

    name: str
    largest: float | None
    detail: str


@dataclasses.dataclass(frozen=True)
class SourceDifference:
    """How two sources differ; true if they do.

    Attributes:
        architecture: (field of `ModelSpec`, value in the first, value in the second).
        weights: every tensor that differs.
        tensors: how many tensors there are in both together.
    """

    architecture: tuple[tuple[str, object, object], ...]
    weights: tuple[TensorDifference, ...]
    tensors: int

    def __bool__(self) -> bool:
        return bool(self.architecture or self.weights)

    def summary(self) -> str:
        """Say in one line what differs."""
        fields = [field for field, _, _ in self.architecture]
        if not self:
            return "the architectures and the weights are equal"
        if not self.weights:
            what = "the weights are equal and " + _listed(
                [_PLURALS.get(field, field.replace("_", " ") + "s") for field in fields]
            )
            issue = " (tensorflow/models#13559)" if fields == ["gate"] else ""
            return f"{what} differ{issue}"
        share = f"{len(self.weights)} of {self.tensors} tensors differ"
        if not fields:
            return f"the architectures are equal and {share}"
        return f"the architectures differ in {_listed(fields)} and {share}"


_PLURALS = {
    "gate": "the gates",
    "activation": "the activations",
    "classifier_activation": "the classifier activations",
    "causal_padding": "the causal paddings",
    "conv_type": "the convolution types",
    "se_type": "the squeeze-excitation types",
    "norm_epsilon": "the batch normalisation epsilons",
    "causal": "causality",
}


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def difference(a: Checkpoint, b: Checkpoint) -> SourceDifference:
    """Compare two networks, architecture and weights apart."""
    fields = [field.name for field in dataclasses.fields(a.spec) if field.name not in _NOT_COMPARED]
    architecture = tuple(
        (name, getattr(a.spec, name), getattr(b.spec, name))
        for name in fields
        if getattr(a.spec, name) != getattr(b.spec, name)
    )
    names = dict.fromkeys([*a.state_dict, *b.state_dict])
    weights = []
    for name in names:
        if name not in a.state_dict or name not in b.state_dict:
            where = "first" if name in a.state_dict else "second"
            weights.append(TensorDifference(name, None, f"only in the {where}"))
            continue
        one, other = a.state_dict[name], b.state_dict[name]
        if one.shape != other.shape:
            shapes = f"{tuple(one.shape)} and {tuple(other.shape)}"
            weights.append(TensorDifference(name, None, f"shapes {shapes}"))
        elif not torch.equal(one, other):
            gap = (one.double() - other.double()).abs()
            count = int((gap > 0).sum())
            weights.append(
                TensorDifference(name, gap.max().item(), f"{count} of {gap.numel()} values")
            )
    return SourceDifference(architecture, tuple(weights), len(names))
