"""Batch normalisations: their four tensors, their epsilon, whose statistics they use."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from parity.hypotheses.faulty_layer import (
    FEWEST_FOR_A_LINE,
    Explanation,
    FaultyLayer,
    Tensors,
    by_channel,
    distance,
    line_through,
    precision,
    same_shapes,
)
from parity.hypotheses.tensors import differing, parameters_of, relations, tensors_of
from parity.reports.report import status_of

_NORM = ("weight", "bias", "running_mean", "running_var")
_EPSILONS = (1e-3, 1e-5, 1e-6, 1e-4, 1e-2, 1e-8, 0.0)


def normalisation(layer: FaultyLayer) -> Iterator[Explanation]:
    """Whose statistics it uses, its epsilon, its tensors, its precision."""
    module: Any = layer.module
    own = tensors_of(module, _NORM)

    def compute(tensors: Mapping[str, Tensor], eps: float | None = None) -> Tensors:
        shape = (1, -1, *[1] * (layer.inputs[0].ndim - 2))
        epsilon = module.eps if eps is None else eps
        scale = tensors["weight"] / torch.sqrt(tensors["running_var"] + epsilon)
        shift = tensors["bias"] - tensors["running_mean"] * scale
        return [x * scale.view(shape) + shift.view(shape) for x in layer.inputs]

    if "weight" not in own or "bias" not in own:
        return
    # Without statistics of its own it can only use the clip's; the reference's show what is right.
    whole = {**{name: layer.truth[name] for name in _NORM if name in layer.truth}, **own}
    if len(whole) != len(_NORM):
        return
    exact = compute(whole)
    by_clip = layer.reproduces(_by_clip_statistics(layer, own)) and not layer.reproduces(exact)
    found: list[Explanation] = []
    if not layer.fits(exact):
        found = list(_explained(layer, whole, compute))
    elif not by_clip:
        found = list(precision(layer, exact))
    if by_clip and (found or layer.fits(exact)):
        after = found[0].after if found else layer.score(exact)
        mend = f"Call eval() on {layer.path}."
        what = "normalises by the statistics of the clip"
        found.append(Explanation("norm-not-in-eval", what, mend, after))
    elif not found and not layer.fits(exact) and len(own) == len(_NORM):
        found = list(_fitted_norm(layer))
    yield from found


def _explained(
    layer: FaultyLayer, own: Mapping[str, Tensor], compute: Callable[..., Tensors]
) -> Iterator[Explanation]:
    """Another epsilon, exchanged or other tensors; or an epsilon and tensors."""
    right = [
        (eps, after)
        for eps in _EPSILONS
        if status_of(after := layer.score(compute(own, eps))) == "match"
    ]
    for eps, after in right[:1]:
        yield _epsilon(layer, eps, after)
    found = list(_exchanged(layer, own, compute))
    if not right and not found and len(tensors_of(layer.module, _NORM)) == len(_NORM):
        found = list(parameters_of(layer, compute, _NORM))
    yield from found
    wrong = differing(layer, own)
    if right or found or not wrong or not layer.truth.keys() >= {*_NORM}:
        return
    for eps in _EPSILONS:
        after = layer.score(compute({**own, **layer.truth}, eps))
        if status_of(after) == "match":
            yield _epsilon(layer, eps, after)
            exchanged = list(_exchanged(layer, own, functools.partial(compute, eps=eps)))
            yield from exchanged or relations(layer, own, wrong, after)
            return


def _epsilon(layer: FaultyLayer, eps: float, after: float) -> Explanation:
    module: Any = layer.module
    detail = f"adds {module.eps:g} to the variance, the reference {eps:g}"
    return Explanation(
        "norm-epsilon", detail, f"Set the epsilon of {layer.path} to {eps:g}.", after
    )


def _exchanged(
    layer: FaultyLayer,
    own: Mapping[str, Tensor],
    compute: Callable[[Mapping[str, Tensor]], Tensors],
) -> Iterator[Explanation]:
    """The four tensors are there, under one another's names."""
    for order in itertools.permutations(_NORM):
        if order == _NORM:
            continue
        moved = {name: own[other] for name, other in zip(_NORM, order, strict=True)}
        if status_of(after := layer.score(compute(moved))) == "match":
            pairs = [(n, o) for n, o in zip(_NORM, order, strict=True) if n != o]
            yield Explanation(
                "norm-stats-swapped",
                ", ".join(f"{n} is in {o}" for n, o in pairs),
                f"Exchange them in {layer.path}.",
                after,
                layer.parameter(pairs[0][0]),
            )


def _by_clip_statistics(layer: FaultyLayer, own: Mapping[str, Tensor]) -> Tensors:
    """Return what normalising each chunk by its own mean and variance gives."""
    outputs = []
    module: Any = layer.module
    epsilon = float(module.eps)
    for x in layer.inputs:
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = (1, -1, *[1] * (x.ndim - 2))
        mean = x.mean(axes, keepdim=True)
        spread = torch.sqrt(((x - mean) ** 2).mean(axes, keepdim=True) + epsilon)
        outputs.append((x - mean) / spread * own["weight"].view(shape) + own["bias"].view(shape))
    return outputs


def _fitted_norm(layer: FaultyLayer) -> Iterator[Explanation]:
    """One factor and one offset for each channel do what the reference does."""
    if not same_shapes(layer.inputs, layer.expected):
        return
    x, y = by_channel(layer.inputs), by_channel(layer.expected)
    if x.shape[1] < FEWEST_FOR_A_LINE:
        return
    after = distance([line_through(x, y)], [y]) / layer.floor
    if status_of(after) == "match":
        yield Explanation(
            "weights-differ",
            "another factor and offset for each channel fit",
            f"Load the tensors of {layer.path} again from the reference.",
            after,
            layer.parameter("weight"),
        )
