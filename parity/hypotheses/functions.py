"""Activations and gates: which function is computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from movinet_port.functions import ACTIVATIONS, GATES
from parity.hypotheses.faulty_layer import Explanation, FaultyLayer, distance, precision, rms
from parity.reports.report import status_of

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: kind.module() for name, kind in {**ACTIVATIONS, **GATES}.items()},
    "hard_sigmoid (x + 3) / 6": F.hardsigmoid,
    "linear": lambda x: x,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "gelu (tanh)": lambda x: F.gelu(x, approximate="tanh"),
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "softplus": F.softplus,
    "mish": F.mish,
}


def elementwise(layer: FaultyLayer) -> Iterator[Explanation]:
    """Which function the layer computes, and which the reference."""
    if any(a.shape != b.shape for a, b in zip(layer.inputs, layer.expected, strict=True)):
        return
    ours = "something else"
    right: list[tuple[str, float]] = []
    closest = math.inf
    for name, function in FUNCTIONS.items():
        outputs = [function(x) for x in layer.inputs]
        if status_of(after := layer.score(outputs)) == "match":
            right.append((name, after))
        if (far := distance(outputs, layer.outputs)) < closest:
            closest = far
            if far <= 1e-5 * rms(layer.outputs) + 1e-12:
                ours = name
    for name, _ in right:
        exact = [FUNCTIONS[name](x) for x in layer.inputs]
        if ours in (name, "something else") and (rounded := list(precision(layer, exact))):
            yield from rounded
            return
    cause = "gate" if layer.tap.endswith("expand.activation") else "activation"
    for name, after in right:
        yield Explanation(
            cause,
            f"computes {ours}, the reference {name}",
            f"Use {name} in {layer.tap}.",
            after,
        )
