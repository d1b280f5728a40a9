"""Activations and gates: which function is computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from movinet_port.layers import ACTIVATIONS, GATES
from parity.hypotheses.site import Explanation, Site, distance, precision, rms
from parity.report import status_of

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: kind() for name, kind in {**ACTIVATIONS, **GATES}.items()},
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


def elementwise(site: Site) -> Iterator[Explanation]:
    """Which function the layer computes, and which the reference."""
    if any(a.shape != b.shape for a, b in zip(site.inputs, site.expected, strict=True)):
        return
    ours = "something else"
    right: list[tuple[str, float]] = []
    closest = math.inf
    for name, function in FUNCTIONS.items():
        outputs = [function(x) for x in site.inputs]
        if status_of(after := site.score(outputs)) == "match":
            right.append((name, after))
        if (far := distance(outputs, site.outputs)) < closest:
            closest = far
            if far <= 1e-5 * rms(site.outputs) + 1e-12:
                ours = name
    for name, _ in right:
        exact = [FUNCTIONS[name](x) for x in site.inputs]
        if ours in (name, "something else"):
            slow = list(precision(site, exact))
            if slow:
                yield from slow
                return
    cause = "gate" if site.tap.endswith("expand.activation") else "activation"
    for name, after in right:
        yield Explanation(
            cause,
            f"computes {ours}, the reference {name}",
            f"Use {name} in {site.tap}.",
            after,
        )
