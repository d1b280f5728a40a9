"""The activations and gates of the family: each formula and each constant stands here, once."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class Line:
    """The function clip(slope * x + constant, 0, limit)."""

    slope: float
    constant: float
    limit: float


# tf-models-official rounds 1/6 to this.
SIXTH = 0.16667

KERAS_LINE = Line(0.2, 0.5, 1.0)
RELU6_LINE = Line(SIXTH, 3.0 * SIXTH, 6.0 * SIXTH)


class HardSigmoidKeras(nn.Module):
    """clip(0.2 x + 0.5, 0, 1): Keras 2's hard sigmoid, the gate in the published stream models."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the gate, in [0, 1], with the shape of `x`."""
        line = KERAS_LINE
        return torch.clamp(line.slope * x + line.constant, 0.0, line.limit)


class HardSigmoidRelu6(nn.Module):
    """relu6(x + 3) * 0.16667: the gate of tf-models-official, its rounded constant included."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the gate, in [0, 1.00002], with the shape of `x`."""
        return F.relu6(x + 3.0) * SIXTH


@dataclasses.dataclass(frozen=True)
class Function:
    """An activation or a gate.

    Attributes:
        module: computes it.
        formula: for people.
        line: what it is, if it is a clipped line, for what computes it in another way.
    """

    module: type[nn.Module]
    formula: str
    line: Line | None = None


# By their names in a `ModelSpec`.
ACTIVATIONS: dict[str, Function] = {
    "swish": Function(nn.SiLU, "x * sigmoid(x)"),
    "hard_swish": Function(nn.Hardswish, "x * relu6(x + 3) / 6"),
    "relu": Function(nn.ReLU, "max(x, 0)"),
    "relu6": Function(nn.ReLU6, "clip(x, 0, 6)", Line(1.0, 0.0, 6.0)),
}
GATES: dict[str, Function] = {
    "sigmoid": Function(nn.Sigmoid, "sigmoid(x)"),
    "hard_sigmoid_keras": Function(
        HardSigmoidKeras, "clip(0.2 x + 0.5, 0, 1), Keras's hard sigmoid", KERAS_LINE
    ),
    "hard_sigmoid_relu6": Function(HardSigmoidRelu6, "relu6(x + 3) * 0.16667", RELU6_LINE),
}
