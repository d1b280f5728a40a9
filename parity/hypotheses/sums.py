"""What a layer makes of its parts: the residual sum, the gated product."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from movinet_port.layers import StochasticDepth
from parity.hypotheses.faulty_layer import Explanation, FaultyLayer, Tensors, precision
from parity.hypotheses.functions import FUNCTIONS


def _combination(
    layer: FaultyLayer,
    cause: str,
    parts: Mapping[str, Tensors],
    right: str,
    texts: Mapping[str, Tensors],
) -> Iterator[Explanation]:
    exact = texts[right]
    if not layer.fits(exact):
        return
    ours = next((n for n, out in texts.items() if n != right and layer.reproduces(out)), None)
    ours = ours or _linear(layer, parts)
    if ours is not None:
        yield Explanation(
            cause,
            f"gives {ours}, the reference {right}",
            f"Make {layer.tap} {right}.",
            layer.score(exact),
        )
        return
    if rounded := list(precision(layer, exact)):
        yield from rounded
        return
    for name, function in FUNCTIONS.items():
        if name != "linear" and layer.reproduces([function(x) for x in exact]):
            yield Explanation(
                "activation",
                f"gives {name} of {right}, the reference {right}",
                f"Take the activation behind {layer.tap} out.",
                layer.score(exact),
            )
            return


def _linear(layer: FaultyLayer, parts: Mapping[str, Tensors]) -> str | None:
    """Return the output as a combination of parts, if it is one."""
    usable = {
        name: values
        for name, values in parts.items()
        if all(a.shape == b.shape for a, b in zip(values, layer.outputs, strict=True))
    }
    if not usable:
        return None
    columns = torch.stack([torch.cat([v.flatten() for v in vs]) for vs in usable.values()], 1)
    target = torch.cat([out.flatten() for out in layer.outputs])
    solution = torch.linalg.lstsq(columns, target[:, None]).solution[:, 0]
    fitted = (columns @ solution).split([out.numel() for out in layer.outputs])
    shaped = [v.view(out.shape) for v, out in zip(fitted, layer.outputs, strict=True)]
    if not layer.reproduces(shaped):
        return None
    terms = [
        f"{float(s):.4g} x {name}"
        for s, name in zip(solution, usable, strict=True)
        if abs(float(s)) > 1e-4
    ]
    return " + ".join(terms) or "nothing"


def residual_sum(layer: FaultyLayer) -> Iterator[Explanation]:
    """What is added to the branch."""
    assert layer.reference is not None
    parts = layer.reference.residual_parts(layer.tap)
    branch, skip = parts["the branch"], parts["the skip"]
    both = [a + b for a, b in zip(branch, skip, strict=True)]
    texts = {"the branch plus the skip": both, **parts}
    if "the layer's input" in parts:
        same = [a.shape == b.shape for a, b in zip(branch, parts["the layer's input"], strict=True)]
        if all(same):
            texts["the branch plus the layer's input, not projected"] = [
                a + b for a, b in zip(branch, parts["the layer's input"], strict=True)
            ]
    depth = layer.module.stochastic_depth
    drops = isinstance(depth, StochasticDepth) and depth.training and depth.drop_rate > 0
    if drops and layer.fits(both):
        yield Explanation(
            "unknown",
            "drops or scales branches as in training: stochastic depth is on",
            f"Call eval() on {layer.path}.",
            layer.score(both),
        )
        return
    yield from _combination(layer, "skip-path", parts, "the branch plus the skip", texts)


def gated_product(layer: FaultyLayer) -> Iterator[Explanation]:
    """What the gate does to the input."""
    assert layer.reference is not None
    gate, x = layer.reference.gate_parts(layer.tap)
    product = [g * v for g, v in zip(gate, x, strict=True)]
    texts = {
        "the gate times the input": product,
        "the input, not gated": x,
        "the gate squared times the input": [g * p for g, p in zip(gate, product, strict=True)],
        "the input plus the gated input": [p + v for p, v in zip(product, x, strict=True)],
    }
    parts = {"the input": x, "the gated input": product}
    parts["the gate"] = [g.expand_as(v) for g, v in zip(gate, x, strict=True)]
    yield from _combination(layer, "gate", parts, "the gate times the input", texts)
