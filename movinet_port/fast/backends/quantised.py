"""Products of 8-bit numbers, for networks that ask for them."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from movinet_port.fast.backends.operations import multiplied
from movinet_port.fast.choice import NARROW, PRODUCT, Case, Row, unprepared
from movinet_port.fast.layers import Layer, Pointwise
from movinet_port.fast.run import Run

# Without VNNI two products of 8-bit numbers are added up in 16 bits, which they may exceed: then
# activations are quantised to 7 bits.
_SATURATES = not getattr(torch.cpu, "_is_vnni_supported", lambda: False)()


def _takes_product(block: Pointwise, case: Case) -> bool:
    return block.quantized


def _product(block: Pointwise, case: Case, x: Tensor) -> Tensor:
    """Return a product of 8-bit numbers, one scale for all of `x`."""
    weight = block.keep(_product, lambda: _quantised(block))
    y: Tensor = torch.ops.quantized.linear_dynamic(x, weight, _SATURATES)
    return y if block.activation is None else block.activation(y)


def _quantised(block: Pointwise) -> Any:
    """Return an 8-bit weight, one scale per output channel, for products of 8-bit numbers."""
    weight = block.weight
    scales = (weight.abs().amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny).double()
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    with warnings.catch_warnings():
        # Announced to go; what replaces it has no dynamic product yet.
        warnings.simplefilter("ignore", UserWarning)
        quantised = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(quantised, block.constant)


def _takes_narrow(layer: Layer, case: Case) -> bool:
    return layer.project.quantized


def _narrow(
    layer: Layer, case: Case, wide: Tensor, gates: Tensor | None, rows: Tensor, run: Run
) -> Tensor:
    wide = wide if gates is None else multiplied(wide, gates, case)
    return rows.add_(_product(layer.project, case, wide))


ROWS = (
    Row(NARROW, "quantised", _takes_narrow, unprepared(_narrow)),
    Row(PRODUCT, "quantised", _takes_product, unprepared(_product)),
)
