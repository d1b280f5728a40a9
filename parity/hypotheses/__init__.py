"""What is tried for which kind of layer.

A hypothesis recomputes the layer in float64 with one thing changed. It is reported only if that
brings the error to the floor; if none does, the cause is "unknown".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeAlias

from torch import nn

from movinet_port.layers import (
    AveragePool,
    Bottleneck,
    PositionalEncoding,
    Scale,
    SqueezeExcitation,
)
from parity.hypotheses.convolutions import affine
from parity.hypotheses.faulty_layer import Explanation, FaultyLayer, precision
from parity.hypotheses.functions import elementwise
from parity.hypotheses.norms import normalisation
from parity.hypotheses.pools import mean, window_average
from parity.hypotheses.scalars import positional_encoding, scale
from parity.hypotheses.sums import gated_product, residual_sum
from parity.reports.report import status_of


def _wrong_input(layer: FaultyLayer) -> Iterator[Explanation]:
    """The layer is right, and is given something else than the reference's."""
    if layer.reference is None or not layer.given[0].numel():
        return
    changes = layer.reference.wrong_arguments(layer.tap, layer.args)
    if not changes:
        return
    outputs = layer.reference.recompute(layer.tap, layer.module)
    after = layer.score(outputs) if outputs is not None else math.inf
    if status_of(after) != "match":
        return
    for change in changes:
        yield Explanation(change.cause, change.detail, change.mend, after, change.parameter)


def _unchanged(layer: FaultyLayer) -> Iterator[Explanation]:
    """Nothing but another shape or type happens here: precision only."""
    if all(a.numel() == b.numel() for a, b in zip(layer.inputs, layer.expected, strict=True)):
        exact = [x.reshape(y.shape) for x, y in zip(layer.inputs, layer.expected, strict=True)]
        yield from precision(layer, exact)


_POOLS = ("spatial_pool", "temporal_pool", "pool")


def _leaf(layer: FaultyLayer) -> Iterator[Explanation]:
    if any(True for _ in layer.module.parameters()):
        return
    if layer.reference is not None and layer.tap.rpartition(".")[2] in _POOLS:
        yield from mean(layer)
    else:
        yield from elementwise(layer)


Hypothesis: TypeAlias = Callable[[FaultyLayer], Iterator[Explanation]]

# Kinds of module -> what is tried for it; in this order, until something fits.
HYPOTHESES: tuple[tuple[tuple[type[nn.Module], ...], Hypothesis], ...] = (
    ((nn.Module,), _wrong_input),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear), affine),
    ((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), normalisation),
    ((AveragePool,), window_average),
    ((PositionalEncoding,), positional_encoding),
    ((Scale,), scale),
    ((Bottleneck,), residual_sum),
    ((SqueezeExcitation,), gated_product),
    ((nn.Module,), _leaf),
    ((nn.Module,), _unchanged),
)
