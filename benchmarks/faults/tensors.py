"""Faults of tensors and of the types that are computed in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.faults.fault import UNKNOWN, Forward, TensorEdit, random_like

# Tensors. Each edit: cause, detail, what it does, further causes that are true of it.

Edit: TypeAlias = tuple[str, str, TensorEdit, tuple[str, ...]]


def tensorflow_bytes(w: Tensor) -> Tensor:
    """Read TensorFlow's (t, h, w, in, out) as though it were (out, in, t, h, w)."""
    return w.permute(2, 3, 4, 1, 0).reshape(w.shape)


def kernel_edits(w: Tensor) -> Iterator[Edit]:
    """Yield the ways to read a kernel wrongly."""
    out, inner, t, h, wide = w.shape
    yield "kernel-layout", "not transposed", tensorflow_bytes, ()
    if h == wide > 1:
        yield "kernel-layout", "height and width", lambda w: w.transpose(3, 4), ()
    if t == h > 1:
        yield "kernel-layout", "frames and height", lambda w: w.transpose(2, 3), ()
        yield "kernel-layout", "axes reversed", lambda w: w.permute(0, 1, 4, 3, 2), ()
    if inner == h > 1:
        yield "kernel-layout", "(h, w, in, out) to (out, h, w, in)", lambda w: w.transpose(1, 3), ()
    if out == inner > 1:
        yield "kernel-layout", "in and out exchanged", lambda w: w.transpose(0, 1), ()
    if inner == 1 and t * h * wide > 1:
        yield (
            "kernel-layout",
            "(C, taps) filled as (taps, C)",
            lambda w: w.reshape(w.shape[0], -1).T.reshape(w.shape),
            (),
        )
    if t > 1:
        yield "kernel-flip", "time", lambda w: w.flip(2), ()
    if h > 1:
        yield "kernel-flip", "height", lambda w: w.flip(3), ()
        yield "kernel-flip", "width", lambda w: w.flip(4), ()
        yield "kernel-flip", "height and width", lambda w: w.flip(3, 4), ()
    if t > 1 and h > 1:
        yield "kernel-flip", "all", lambda w: w.flip(2, 3, 4), ()


def default_kernel(w: Tensor) -> Tensor:
    """Return a kernel as PyTorch creates it."""
    bound = 1 / w[0].numel() ** 0.5
    return (torch.rand(w.shape, generator=torch.Generator().manual_seed(5)) * 2 - 1) * bound


WEIGHT_EDITS: tuple[Edit, ...] = (
    ("tensor-not-loaded", "nn.Conv3d's own", default_kernel, ()),
    (
        "tensor-not-loaded",
        "Kaiming",
        lambda w: random_like(w, 6) * (2 / w[0].numel()) ** 0.5,
        (),
    ),
    ("tensor-not-loaded", "zeros", torch.zeros_like, ("tensor-scaled",)),
    ("tensor-scaled", "twice", lambda w: w * 2, ()),
    ("tensor-scaled", "/ 255", lambda w: w / 255, ()),
    ("tensor-scaled", "negated", torch.neg, ()),
    ("tensor-scaled", "a tenth of a percent", lambda w: w * 1.001, ()),
    ("precision", "stored in bfloat16", lambda w: w.bfloat16().to(w), ()),
    ("precision", "stored in float16", lambda w: w.half().to(w), ()),
    ("weights-differ", "a training step later", lambda w: w + 0.01 * w.std() * random_like(w), ()),
    (
        "weights-differ",
        "filters in another order",
        lambda w: w[torch.randperm(len(w), generator=torch.Generator().manual_seed(2))],
        ("kernel-layout",),
    ),
    (
        "weights-differ",
        "one filter pruned",
        lambda w: torch.cat([torch.zeros_like(w[:1]), w[1:]]),
        (),
    ),
    (
        "weights-differ",
        "another network's",
        lambda w: w.std() * random_like(w, 8),
        ("tensor-not-loaded",),
    ),
    (
        "weights-differ",
        "int8, one scale",
        lambda w: (w / w.abs().max() * 127).round() * w.abs().max() / 127,
        ("precision",),
    ),
)
BIAS_EDITS: tuple[Edit, ...] = (
    ("tensor-not-loaded", "zeros", torch.zeros_like, ("tensor-scaled",)),
    ("tensor-scaled", "added twice", lambda b: b * 2, ()),
    ("weights-differ", "another", lambda b: b + 0.1 * random_like(b), ()),
)
SCALAR_EDITS: tuple[Edit, ...] = (
    ("rezero", "at its initial 0", torch.zeros_like, ()),
    ("rezero", "as 1", torch.ones_like, ()),
    ("rezero", "negated", torch.neg, ("tensor-scaled", "weights-differ")),
    ("rezero", "squared", torch.square, ("tensor-scaled", "weights-differ")),
)

# Normalisations: what is in the four vectors (weight, bias, mean, variance).
FOUR = ("weight", "bias", "running_mean", "running_var")
NORM_ORDERS: tuple[tuple[str, str], ...] = (
    ("weight", "bias"),
    ("running_mean", "running_var"),
    ("weight", "running_var"),
    ("bias", "running_mean"),
    ("weight", "running_mean"),
)
NORM_EDITS: tuple[tuple[str, str, str, TensorEdit, tuple[str, ...]], ...] = (
    ("tensor-not-loaded", "weight", "weight at 1", torch.ones_like, ()),
    ("tensor-not-loaded", "bias", "bias at 0", torch.zeros_like, ("tensor-scaled",)),
    ("tensor-not-loaded", "running_mean", "mean at 0", torch.zeros_like, ("tensor-scaled",)),
    ("tensor-not-loaded", "running_var", "variance at 1", torch.ones_like, ()),
    ("tensor-scaled", "bias", "bias added twice", lambda t: t * 2, ()),
    ("tensor-scaled", "running_var", "variance of 1 / (n - 1)", lambda t: t * 1.02, ()),
    ("tensor-scaled", "weight", "weight halved", lambda t: t / 2, ()),
    ("weights-differ", "running_var", "deviation for variance", torch.sqrt, (UNKNOWN,)),
    ("weights-differ", "running_var", "inverse variance", torch.reciprocal, (UNKNOWN,)),
    ("weights-differ", "weight", "weight - 1", lambda t: t - 1, (UNKNOWN,)),
    (
        "weights-differ",
        "running_mean",
        "before the last update",
        lambda t: 0.99 * t + 0.01 * random_like(t),
        (),
    ),
)


def norm_forward(eps_outside: bool = False, **changes: Any) -> Forward:
    """Normalise by hand, with some tensors exchanged or changed."""

    def forward(norm: Any, right: Any, x: Tensor) -> Tensor:
        if eps_outside:
            shape = (1, -1, 1, 1, 1)
            scale = norm.weight / (norm.running_var.sqrt() + norm.eps)
            return (x - norm.running_mean.view(shape)) * scale.view(shape) + norm.bias.view(shape)
        return F.batch_norm(
            x,
            norm.running_mean,
            norm.running_var,
            norm.weight,
            norm.bias,
            norm.training,
            0.0,
            changes.get("eps", norm.eps),
        )

    return forward


def in_bfloat16(module: Any, right: Any, *args: Any) -> Any:
    """Round the inputs and the result, as a layer in bfloat16 does."""
    rounded = [
        a.bfloat16().to(a) if torch.is_tensor(a) and a.is_floating_point() else a for a in args
    ]
    out = right(*rounded)
    if isinstance(out, tuple):
        return out[0].bfloat16().to(out[0]), *out[1:]
    return out.bfloat16().to(out)


def rounded_inside(dtype: torch.dtype) -> Forward:
    """Round the operands of a convolution, and sum up in float32, as hardware does."""

    def forward(conv: Any, right: Any, x: Tensor) -> Tensor:
        x = F.pad(x, conv.padding_for(x)) if conv.kernel_size != (1, 1, 1) else x
        weight = conv.weight.to(dtype).to(x)
        return F.conv3d(x.to(dtype).to(x), weight, conv.bias, conv.stride, groups=conv.groups)

    return forward


def result_in_bfloat16(module: Any, right: Any, *args: Any) -> Any:
    """Round the result to bfloat16."""
    out = right(*args)
    if isinstance(out, tuple):
        return out[0].bfloat16().to(out[0]), *out[1:]
    return out.bfloat16().to(out)


def result_in_float16(module: Any, right: Any, *args: Any) -> Any:
    """Round the result to float16."""
    out = right(*args)
    if isinstance(out, tuple):
        return out[0].half().to(out[0]), *out[1:]
    return out.half().to(out)
