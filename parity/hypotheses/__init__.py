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
from parity.hypotheses.functions import elementwise
from parity.hypotheses.norms import normalisation
from parity.hypotheses.pools import mean, window_average
from parity.hypotheses.scalars import positional_encoding, scale
from parity.hypotheses.site import Explanation, Site, precision
from parity.hypotheses.sums import gated_product, residual_sum
from parity.report import status_of


def _wrong_input(site: Site) -> Iterator[Explanation]:
    """The layer is right, and is given something else than the reference's."""
    if site.flow is None or not site.given[0].numel():
        return
    changes = site.flow.wrong_arguments(site.tap, site.args)
    if not changes:
        return
    outputs = site.flow.recompute(site.tap, site.module)
    after = site.score(outputs) if outputs is not None else math.inf
    if status_of(after) != "match":
        return
    for change in changes:
        yield Explanation(change.cause, change.detail, change.mend, after, change.parameter)


def _unchanged(site: Site) -> Iterator[Explanation]:
    """Nothing but another shape or type happens here: precision only."""
    if all(a.numel() == b.numel() for a, b in zip(site.inputs, site.expected, strict=True)):
        exact = [x.reshape(y.shape) for x, y in zip(site.inputs, site.expected, strict=True)]
        yield from precision(site, exact)


_POOLS = ("spatial_pool", "temporal_pool", "pool")


def _leaf(site: Site) -> Iterator[Explanation]:
    if any(True for _ in site.module.parameters()):
        return
    if site.flow is not None and site.tap.rpartition(".")[2] in _POOLS:
        yield from mean(site)
    else:
        yield from elementwise(site)


Hypothesis: TypeAlias = Callable[[Site], Iterator[Explanation]]

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
