"""Products of 8-bit numbers, for networks that ask for them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from movinet_port.fast.backends.operations import multiplied
from movinet_port.fast.choice import Case
from movinet_port.fast.layers import Layer, Pointwise
from movinet_port.fast.run import Run

# Without VNNI two products of 8-bit numbers are added up in 16 bits, which they may exceed: then
# activations are quantised to 7 bits.
_SATURATES = not getattr(torch.cpu, "_is_vnni_supported", lambda: False)()


def takes_product(block: Pointwise, case: Case) -> bool:
    """Return whether a block is to be computed so."""
    return block.quantized


def product(block: Pointwise, case: Case) -> Callable[[Tensor], Tensor]:
    """Return what computes a 1 x 1 convolution, one scale for all that it is given."""
    weight, activation = block.keep(product, lambda: _quantised(block)), block.activation

    def compute(x: Tensor) -> Tensor:
        y: Tensor = torch.ops.quantized.linear_dynamic(x, weight, _SATURATES)
        return y if activation is None else activation(y)

    return compute


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


def takes_narrow(layer: Layer, case: Case) -> bool:
    """Return whether a projection is to be computed so."""
    return layer.project.quantized


def narrow(layer: Layer, case: Case) -> Callable[[Tensor, Tensor | None, Tensor, Run], Tensor]:
    """Return what computes a projection and its sum with the residual."""
    multiply = product(layer.project, case)

    def compute(wide: Tensor, gates: Tensor | None, rows: Tensor, run: Run) -> Tensor:
        return rows.add_(multiply(wide if gates is None else multiplied(wide, gates, case)))

    return compute
