"""Batch normalisations folded into the convolutions in front of them, for files that have none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def float64(weights: Mapping[str, Tensor], name: str) -> NDArray[Any]:
    """Return a parameter or buffer in float64."""
    value: NDArray[Any] = weights[name].detach().to("cpu").double().numpy()
    return value


def folded(
    weights: Mapping[str, Tensor],
    conv: str,
    norm: str | None,
    epsilon: float,
    scale: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return weight and bias of a convolution and of what is linear behind it, in float64.

    Args:
        weights: a network's state dict.
        conv: path of the convolution.
        norm: path of the batch normalisation; None for a convolution with a bias.
        epsilon: the batch normalisation's.
        scale: what the result is multiplied by.
    """
    weight = float64(weights, f"{conv}.weight")
    if norm is None:
        return weight, float64(weights, f"{conv}.bias")
    gamma, beta, mean, variance = (
        float64(weights, f"{norm}.{leaf}")
        for leaf in ("weight", "bias", "running_mean", "running_var")
    )
    factor = gamma / np.sqrt(variance + epsilon)
    bias = beta - mean * factor
    if scale is not None:
        factor, bias = factor * scale, bias * scale
    return weight * factor[:, None, None, None, None], bias
