"""TensorFlow's operations, computed by PyTorch: one table, a small function for each.

A row has the operation's signature in the words of TensorFlow's registry: ``inputs -> outputs |
attributes``. An argument is ``name:type``, where the type is an attribute, ``N*T`` for as many as
the attribute N says, or ``[T]`` for one of each type in a list; an attribute is ``name:kind``, with
its default behind ``=``. The functions take the attributes as a dictionary and then the inputs;
what they do is what TensorFlow's kernels do, SAME padding and layouts included, for tensors of
floats, integers and truth values. What a row does not say is refused, and never guessed.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Attributes: TypeAlias = Mapping[str, Any]
Compute: TypeAlias = Callable[..., "Tensor | tuple[Tensor, ...]"]

# What one value may hold; the largest of a5 for its published clip has 2^28.
MOST_ELEMENTS = 1 << 30

# TensorFlow's number of a type (types.proto) -> PyTorch's.
TYPES = {
    1: torch.float32,
    2: torch.float64,
    3: torch.int32,
    4: torch.uint8,
    5: torch.int16,
    6: torch.int8,
    9: torch.int64,
    10: torch.bool,
}
RESOURCE = 20
_NUMBERS = {str(t).removeprefix("torch."): n for n, t in TYPES.items()} | {"resource": RESOURCE}


class UnsupportedError(ValueError):
    """An operation does not do this, here or in TensorFlow; who calls it names the node."""


@dataclasses.dataclass(frozen=True)
class Argument:
    """An input or output of an operation.

    Attributes:
        name: TensorFlow's.
        type: a type's name, or the attribute that says it.
        number: attribute that says how many tensors it stands for; empty for one.
        listed: whether `type` is a list, with a tensor for each entry.
    """

    name: str
    type: str
    number: str = ""
    listed: bool = False

    def types(self, attributes: Attributes) -> tuple[int, ...]:
        """Return TensorFlow's number of the type of each tensor."""
        if self.listed:
            return tuple(attributes[self.type])
        kind = _NUMBERS.get(self.type) or attributes[self.type]
        count = attributes[self.number] if self.number else 1
        if not 0 <= count <= MOST_TENSORS:
            raise UnsupportedError(f"{count} tensors as {self.name}")
        return (kind,) * count


MOST_TENSORS = 10_000

# Kind of an attribute -> field of AttrValue, and what it is in Python.
_KINDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "type": ("type", int),
    "int": ("i", int),
    "float": ("f", float),
    "bool": ("b", bool),
    "string": ("s", bytes.decode),
    "tensor": ("tensor", lambda tensor: tensor),
    "shape": ("shape", lambda shape: shape),
    "list(int)": ("list", lambda entries: list(entries.i)),
    "list(type)": ("list", lambda entries: list(entries.type)),
}


@dataclasses.dataclass(frozen=True)
class Operation:
    """One row of the table.

    Attributes:
        compute: what it does: attributes, inputs -> output or outputs.
        inputs, outputs: its arguments, in order.
        attributes: name -> kind.
        defaults: name -> value of an attribute that need not be given.
    """

    compute: Compute
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]
    attributes: Mapping[str, str]
    defaults: Mapping[str, Any]

    def read(self, attr: Mapping[str, Any]) -> dict[str, Any]:
        """Return the attributes of a node as Python's values; types are TensorFlow's numbers.

        Args:
            attr: name -> ``AttrValue``; names that begin with "_" are annotations.

        Raises:
            UnsupportedError: one is not of this operation, is of another kind or is missing.
        """
        found = dict(self.defaults)
        for name, value in attr.items():
            if name.startswith("_"):
                continue
            if name not in self.attributes:
                raise UnsupportedError(f"attribute {name} is not known")
            field, convert = _KINDS[self.attributes[name]]
            if value.WhichOneof("value") != field:
                raise UnsupportedError(
                    f"attribute {name} is no {self.attributes[name]}: {value.WhichOneof('value')}"
                )
            try:
                found[name] = convert(getattr(value, field))
            except UnicodeDecodeError as error:
                raise UnsupportedError(f"attribute {name} is no text") from error
        missing = [name for name in self.attributes if name not in found]
        if missing:
            raise UnsupportedError(f"attribute {missing[0]} is missing")
        return found


def _operation(compute: Compute, signature: str) -> Operation:
    arguments, _, attributes = signature.partition("|")
    inputs, _, outputs = arguments.partition("->")
    kinds, defaults = {}, {}
    for text in attributes.split():
        name, _, kind = text.partition(":")
        kind, given, default = kind.partition("=")
        kinds[name] = kind
        if given:
            defaults[name] = _default(kind, default)
    return Operation(
        compute,
        tuple(map(_argument, inputs.split())),
        tuple(map(_argument, outputs.split())),
        kinds,
        defaults,
    )


def _argument(text: str) -> Argument:
    name, _, kind = text.partition(":")
    number, star, rest = kind.partition("*")
    if star:
        return Argument(name, rest, number)
    return Argument(name, kind.strip("[]"), listed=kind.startswith("["))


def _default(kind: str, text: str) -> Any:
    if kind == "shape":
        return None
    if kind == "type":
        return _NUMBERS[text]
    if kind == "float":  # an attribute of this kind is a float32
        return float(np.float32(text))
    return text if kind == "string" else json.loads(text)


def bounded(shape: Iterable[int]) -> list[int]:
    """Return a shape as a list.

    Raises:
        UnsupportedError: a size is negative, or a tensor of it would be larger than any here.
    """
    sizes = list(shape)
    if min(sizes, default=0) < 0 or math.prod(sizes) > MOST_ELEMENTS:
        raise UnsupportedError(f"a tensor of shape {tuple(sizes)}")
    return sizes


# ---- one by one


def _elementwise(function: Callable[..., Any]) -> Compute:
    """Return what computes a function of as many tensors as it takes, broadcast."""

    def compute(a: Attributes, *inputs: Tensor) -> Tensor:
        # Where shapes do not match, each element of one may meet each of another.
        if math.prod(x.numel() for x in inputs) > MOST_ELEMENTS:
            # Not torch.broadcast_shapes, which imports its compiler first: a second.
            bounded(np.broadcast_shapes(*(x.shape for x in inputs)))
        return torch.as_tensor(function(*inputs))

    return compute


def _divisor(y: Tensor) -> Tensor:
    if not y.is_floating_point() and bool((y == 0).any()):
        raise UnsupportedError("an integer is divided by zero")
    return y


def _floor_div(x: Tensor, y: Tensor) -> Tensor:
    # Of floats, PyTorch's floor_divide takes the remainder first, which rounds otherwise.
    return torch.floor(x / y) if x.is_floating_point() else torch.floor_divide(x, _divisor(y))


def _real_div(x: Tensor, y: Tensor) -> Tensor:
    if not x.is_floating_point():
        raise UnsupportedError("a real division of integers")
    return x / y


def _power(x: Tensor, y: Tensor) -> Tensor:
    if not y.is_floating_point() and bool((y < 0).any()):
        raise UnsupportedError("an integer to a negative power")
    return torch.pow(x, y)


def _equal(negated: bool) -> Compute:
    def compute(a: Attributes, x: Tensor, y: Tensor) -> Tensor:
        try:
            shape = np.broadcast_shapes(x.shape, y.shape)
        except ValueError:
            if a["incompatible_shape_error"]:
                raise
            return torch.tensor(negated)
        bounded(shape)
        return x != y if negated else x == y

    return compute


def _add_n(a: Attributes, *inputs: Tensor) -> Tensor:
    total = inputs[0]
    for x in inputs[1:]:
        if x.shape != total.shape:
            raise UnsupportedError("summands of different shapes")
        total = total + x
    return total


def _leaky_relu(a: Attributes, x: Tensor) -> Tensor:
    return torch.where(x > 0, x, x * a["alpha"])


def _selu(x: Tensor) -> Tensor:
    scale, alpha = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
    return torch.where(x < 0, scale * alpha * torch.expm1(x), scale * x)


def _cast(a: Attributes, x: Tensor) -> Tensor:
    if a["Truncate"]:
        raise UnsupportedError("a cast that truncates floats")
    return x != 0 if a["DstT"] == torch.bool else x.to(a["DstT"])


# ---- reductions


def _axes(x: Tensor, axes: Tensor) -> list[int]:
    """Return the axes that a tensor names, from 0, each once."""
    found = [_axis(int(axis), x.ndim) for axis in axes.flatten().tolist()]
    if len(set(found)) != len(found):
        raise UnsupportedError(f"axes {found} name one twice")
    return found


def _axis(axis: int, ndim: int) -> int:
    if not -ndim <= axis < ndim:
        raise UnsupportedError(f"axis {axis} of a tensor of {ndim} axes")
    return axis % ndim


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Compute:
    def compute(a: Attributes, x: Tensor, axes: Tensor) -> Tensor:
        dims = _axes(x, axes)
        # PyTorch takes no axes for all axes.
        return function(x, dims, a["keep_dims"]) if dims else x

    return compute


def _mean(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(dims, keepdim=keep)
    count = math.prod(x.shape[axis] for axis in dims)
    total = x.sum(dims, keepdim=keep, dtype=x.dtype)
    return torch.div(total, count, rounding_mode="trunc")


def _one_by_one(function: Callable[..., Tensor]) -> Callable[[Tensor, list[int], bool], Tensor]:
    """Return a reduction of several axes, of one that PyTorch has for a single axis."""

    def reduce(x: Tensor, dims: list[int], keep: bool) -> Tensor:
        for axis in sorted(dims, reverse=True):
            x = function(x, axis, keep)
        return x

    return reduce


def _place(function: Callable[..., Tensor]) -> Compute:
    def compute(a: Attributes, x: Tensor, axis: Tensor) -> Tensor:
        return function(x, _axis(int(axis), x.ndim)).to(a["output_type"])

    return compute


def _cumsum(a: Attributes, x: Tensor, axis: Tensor) -> Tensor:
    dim = _axis(int(axis), x.ndim)
    flipped = x.flip(dim) if a["reverse"] else x
    total = flipped.cumsum(dim, dtype=x.dtype)
    if a["exclusive"]:
        length = x.shape[dim]
        zero = torch.zeros_like(total.narrow(dim, 0, min(1, length)))
        total = torch.cat([zero, total.narrow(dim, 0, max(length - 1, 0))], dim)
    return total.flip(dim) if a["reverse"] else total


# ---- convolutions, pools, normalisation


def _channels_first(a: Attributes, x: Tensor) -> Tensor:
    """Return x with its channels in front of its spatial axes, as PyTorch computes."""
    return x.movedim(-1, 1) if _channels_last(a, x.ndim) else x


def _as_it_was(a: Attributes, x: Tensor) -> Tensor:
    return x.movedim(1, -1) if _channels_last(a, x.ndim) else x


_FORMATS = {(4, "NHWC"): True, (4, "NCHW"): False, (5, "NDHWC"): True, (5, "NCDHW"): False}


def _channels_last(a: Attributes, ndim: int) -> bool:
    layout = a["data_format"]
    if (ndim, layout) not in _FORMATS:
        raise UnsupportedError(f"data format {layout!r} of a tensor of {ndim} axes")
    return _FORMATS[ndim, layout]


def _spatial(a: Attributes, name: str, ndim: int) -> list[int]:
    """Return the spatial part of an attribute that has a number for each axis."""
    values = a[name] or [1] * ndim
    last = _channels_last(a, ndim)
    spatial = values[1:-1] if last else values[2:]
    if len(values) != ndim or values[0] != 1 or values[-1 if last else 1] != 1:
        raise UnsupportedError(f"{name} {values}")
    if min(spatial) < 1:
        raise UnsupportedError(f"{name} {values}")
    return list(spatial)


Pads = list[tuple[int, int]]


def _pads(a: Attributes, x: Tensor, windows: Sequence[int], strides: Sequence[int]) -> Pads:
    """Return (before, after) of each spatial axis of x, channels first."""
    sizes = x.shape[2:]
    if a["padding"] == "VALID":
        return [(0, 0)] * len(sizes)
    if a["padding"] == "SAME":
        totals = [
            max((math.ceil(n / s) - 1) * s + k - n, 0)
            for n, k, s in zip(sizes, windows, strides, strict=True)
        ]
        return [(total // 2, total - total // 2) for total in totals]
    explicit = a.get("explicit_paddings", [])
    if a["padding"] != "EXPLICIT" or len(explicit) != 2 * x.ndim or min(explicit) < 0:
        raise UnsupportedError(f"padding {a['padding']!r} with {explicit}")
    pairs = list(zip(explicit[::2], explicit[1::2], strict=True))
    spatial = pairs[1:-1] if _channels_last(a, x.ndim) else pairs[2:]
    if sum(map(sum, pairs)) != sum(map(sum, spatial)):
        raise UnsupportedError(f"explicit paddings {explicit} of another than a spatial axis")
    return spatial


def _padded(x: Tensor, pads: Pads, value: float = 0.0) -> Tensor:
    """Return x with cells of `value` around its last axes."""
    if not any(map(any, pads)):
        return x
    bounded([*x.shape[: -len(pads)], *(n + sum(p) for n, p in zip(x.shape[2:], pads, strict=True))])
    return F.pad(x, [cells for pair in reversed(pads) for cells in pair], value=value)


_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {4: F.conv2d, 5: F.conv3d}


def _convolve(a: Attributes, x: Tensor, kernel: Tensor, groups: int) -> Tensor:
    """Convolve x, as its attributes lay it out, with a kernel in PyTorch's layout."""
    strides, dilations = (_spatial(a, name, x.ndim) for name in ("strides", "dilations"))
    windows = [(k - 1) * d + 1 for k, d in zip(kernel.shape[2:], dilations, strict=True)]
    x = _channels_first(a, x)
    x = _padded(x, _pads(a, x, windows, strides))
    bounded([x.shape[0], kernel.shape[0], *x.shape[2:]])
    if x.ndim == 5 and groups == kernel.shape[0] == x.shape[1] and groups > 1:
        return _as_it_was(a, _depthwise(x, kernel, strides, dilations))
    if x.shape[1] == 1:
        # PyTorch 2.13's oneDNN is wrong about one channel, channels last, one column wide.
        x = x.contiguous()
    return _as_it_was(a, _CONVOLUTIONS[x.ndim](x, kernel, None, strides, 0, dilations, groups))


def _conv(a: Attributes, x: Tensor, kernel: Tensor) -> Tensor:
    """Conv2D and Conv3D; a kernel is (spatial axes, channels in / groups, channels out)."""
    if kernel.ndim != x.ndim:
        raise UnsupportedError(f"a kernel of shape {tuple(kernel.shape)}")
    channels = x.shape[-1 if _channels_last(a, x.ndim) else 1]
    groups, rest = divmod(channels, kernel.shape[-2])
    if rest or kernel.shape[-1] % groups:
        raise UnsupportedError(f"{channels} channels and a kernel of {tuple(kernel.shape)}")
    return _convolve(a, x, kernel.movedim((-1, -2), (0, 1)), groups)


def _depthwise_conv(a: Attributes, x: Tensor, kernel: Tensor) -> Tensor:
    """DepthwiseConv2dNative; its kernel is (height, width, channels, multiplier)."""
    height, width, channels, multiplier = kernel.shape
    kernel = kernel.permute(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width)
    return _convolve(a, x, kernel, channels)


def _depthwise(x: Tensor, kernel: Tensor, strides: list[int], dilations: list[int]) -> Tensor:
    """Convolve each channel of (batch, channels, ...) with its own window, tap by tap.

    PyTorch has no kernel for this in 3-D and float64 that takes less than seconds.
    """
    sizes = [
        (n - (k - 1) * d - 1) // s + 1
        for n, k, s, d in zip(x.shape[2:], kernel.shape[2:], strides, dilations, strict=True)
    ]
    total = None
    for tap in itertools.product(*map(range, kernel.shape[2:])):
        cells: tuple[Any, ...] = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, dilations, sizes, strides, strict=True)
        )
        place: tuple[Any, ...] = (slice(None), 0, *tap)
        window, weight = x[(..., *cells)], kernel[place].reshape(-1, *[1] * len(sizes))
        total = window * weight if total is None else total.addcmul_(window, weight)
    if total is None or min(sizes) < 1:
        raise UnsupportedError(f"a kernel of {tuple(kernel.shape[2:])} on {tuple(x.shape[2:])}")
    return total


_AVERAGES: dict[int, Callable[..., Tensor]] = {4: F.avg_pool2d, 5: F.avg_pool3d}
_MAXIMA: dict[int, Callable[..., Tensor]] = {4: F.max_pool2d, 5: F.max_pool3d}


def _average_pool(a: Attributes, value: Tensor) -> Tensor:
    """AvgPool and AvgPool3D: cells of padding count neither in the sum nor in the divisor."""
    windows, strides = (_spatial(a, name, value.ndim) for name in ("ksize", "strides"))
    x = _channels_first(a, value)
    pads = _pads(a, x, windows, strides)
    sums = _AVERAGES[x.ndim](_padded(x, pads), windows, strides, divisor_override=1)
    for axis, (window, stride, (before, _)) in enumerate(zip(windows, strides, pads, strict=True)):
        size = x.shape[2 + axis]
        starts = [n * stride - before for n in range(sums.shape[2 + axis])]
        counts = [min(start + window, size) - max(start, 0) for start in starts]
        divisor = torch.tensor(counts, dtype=x.dtype, device=x.device)
        sums = sums / divisor.reshape(-1, *[1] * (x.ndim - 3 - axis))
    return _as_it_was(a, sums)


def _max_pool(a: Attributes, value: Tensor) -> Tensor:
    windows, strides = (_spatial(a, name, value.ndim) for name in ("ksize", "strides"))
    x = _channels_first(a, value)
    x = _padded(x, _pads(a, x, windows, strides), -math.inf)
    return _as_it_was(a, _MAXIMA[x.ndim](x, windows, strides))


def _batch_norm(
    a: Attributes, x: Tensor, scale: Tensor, offset: Tensor, mean: Tensor, variance: Tensor
) -> tuple[Tensor, ...]:
    channels = x.ndim - 1 if _channels_last(a, x.ndim) else 1
    others = [axis for axis in range(x.ndim) if axis != channels]
    shape = [x.shape[channels] if axis == channels else 1 for axis in range(x.ndim)]
    running_mean, running_variance = mean, variance
    if a["is_training"]:
        variance, mean = torch.var_mean(x, others, correction=0)
        count = x.numel() // max(x.shape[channels], 1)
        unbiased = variance * (count / max(count - 1, 1))
        factor = a["exponential_avg_factor"]
        if factor == 1:
            running_mean, running_variance = mean, unbiased
        else:
            running_mean = (1 - factor) * running_mean + factor * mean
            running_variance = (1 - factor) * running_variance + factor * unbiased
    factors = torch.rsqrt(variance + a["epsilon"]) * scale
    y = (x - mean.reshape(shape)) * factors.reshape(shape) + offset.reshape(shape)
    nothing = torch.zeros(0, dtype=mean.dtype, device=mean.device)
    return y, running_mean, running_variance, mean, variance, nothing


def _bias_add(a: Attributes, x: Tensor, bias: Tensor) -> Tensor:
    if a["data_format"] not in ("NHWC", "NCHW"):
        raise UnsupportedError(f"data format {a['data_format']!r}")
    if bias.ndim != 1:
        raise UnsupportedError(f"a bias of shape {tuple(bias.shape)}")
    last = a["data_format"] == "NHWC"
    return x + (bias if last else bias.reshape(-1, *[1] * (x.ndim - 2)))


def _matmul(a: Attributes, x: Tensor, y: Tensor) -> Tensor:
    if a.get("grad_a") or a.get("grad_b") or a.get("grad_x") or a.get("grad_y"):
        raise UnsupportedError("a product that is marked as a gradient")
    x = x.mT if a.get("transpose_a") or a.get("adj_x") else x
    y = y.mT if a.get("transpose_b") or a.get("adj_y") else y
    bounded([*np.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1]])
    return x @ y


def _einsum(a: Attributes, *inputs: Tensor) -> Tensor:
    equation = a["equation"]
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow or len(terms) != len(inputs) or len(inputs) > 2:
        raise UnsupportedError(f"equation {equation!r} of {len(inputs)} tensors")
    sizes: dict[str, int] = {}
    for term, x in zip(terms, inputs, strict=True):
        labels = [label for label in term.replace("...", "") if not label.isspace()]
        front = term.replace(" ", "").find("...")
        front = len(labels) if front < 0 else front
        shape = [*x.shape[:front], *x.shape[x.ndim - (len(labels) - front) :]]
        sizes |= dict(zip(labels, shape, strict=False))
    extra = max(
        (x.numel() for term, x in zip(terms, inputs, strict=True) if "..." in term), default=1
    )
    bounded([extra if "..." in right else 1, *(sizes.get(label, 1) for label in right)])
    return torch.einsum(equation, *inputs)


# ---- shapes


def _shape(a: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=a["out_type"])


def _size(a: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=a["out_type"])


def _reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    return x.reshape(_integers(shape))


def _integers(x: Tensor) -> list[int]:
    if x.ndim != 1:
        raise UnsupportedError(f"a list of numbers of shape {tuple(x.shape)}")
    return [int(number) for number in x.tolist()]


def _squeeze(a: Attributes, x: Tensor) -> Tensor:
    axes = [_axis(axis, x.ndim) for axis in a["squeeze_dims"]]
    if any(x.shape[axis] != 1 for axis in axes):
        raise UnsupportedError(f"axes {axes} of {tuple(x.shape)} are not all 1 long")
    keep = [n for axis, n in enumerate(x.shape) if (axis not in axes if axes else n != 1)]
    return x.reshape(keep)


def _expand_dims(a: Attributes, x: Tensor, axis: Tensor) -> Tensor:
    return x.unsqueeze(_axis(int(axis), x.ndim + 1))


def _concat(a: Attributes, *inputs: Tensor) -> Tensor:
    *values, axis = inputs
    if len({x.ndim for x in values}) != 1:  # PyTorch would skip an empty vector.
        raise UnsupportedError("tensors of different numbers of axes")
    return torch.cat(values, _axis(int(axis), values[0].ndim))


def _pack(a: Attributes, *inputs: Tensor) -> Tensor:
    return torch.stack(inputs, _axis(a["axis"], inputs[0].ndim + 1))


def _unpack(a: Attributes, value: Tensor) -> tuple[Tensor, ...]:
    axis = _axis(a["axis"], value.ndim)
    if value.shape[axis] != a["num"]:
        raise UnsupportedError(f"axis {axis} of {tuple(value.shape)} has not {a['num']} entries")
    return value.unbind(axis)


def _split(a: Attributes, axis: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    dim = _axis(int(axis), value.ndim)
    size, rest = divmod(value.shape[dim], a["num_split"])
    if rest:
        raise UnsupportedError(f"axis {dim} of {tuple(value.shape)} in {a['num_split']} parts")
    return _parts(value, [size] * a["num_split"], dim)


def _split_v(a: Attributes, value: Tensor, sizes: Tensor, axis: Tensor) -> tuple[Tensor, ...]:
    dim, lengths = _axis(int(axis), value.ndim), _integers(sizes)
    if lengths.count(-1) == 1:
        rest = value.shape[dim] - sum(lengths) - 1
        lengths = [rest if length == -1 else length for length in lengths]
    if min(lengths) < 0 or sum(lengths) != value.shape[dim] or len(lengths) != a["num_split"]:
        raise UnsupportedError(f"axis {dim} of {tuple(value.shape)} in parts of {lengths}")
    return _parts(value, lengths, dim)


def _parts(value: Tensor, lengths: list[int], dim: int) -> tuple[Tensor, ...]:
    return tuple(value.split(lengths, dim)) if lengths else ()


def _tile(a: Attributes, x: Tensor, multiples: Tensor) -> Tensor:
    times = _integers(multiples)
    if len(times) != x.ndim or min(times, default=0) < 0:
        raise UnsupportedError(f"{times} times a tensor of {x.ndim} axes")
    bounded(n * m for n, m in zip(x.shape, times, strict=True))
    return x.repeat(times)


def _transpose(a: Attributes, x: Tensor, permutation: Tensor) -> Tensor:
    return x.permute([_axis(axis, x.ndim) for axis in _integers(permutation)])


def _broadcast(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    return x.broadcast_to(bounded(_integers(shape)))


def _fill(a: Attributes, shape: Tensor, value: Tensor) -> Tensor:
    if value.ndim:
        raise UnsupportedError(f"a fill with a tensor of shape {tuple(value.shape)}")
    return value.expand(bounded(_integers(shape)))


def _range(a: Attributes, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    first, last, step = (x.item() for x in (start, limit, delta))
    if not step or not all(math.isfinite(number) for number in (first, last, step)):
        raise UnsupportedError(f"a range from {first} to {last} by {step}")
    if (last - first) * step < 0:
        raise UnsupportedError(f"a range from {first} to {last} by {step}")
    exact = not start.is_floating_point()
    count = -((first - last) // step) if exact else math.ceil((last - first) / step)
    steps = torch.arange(bounded([int(count)])[0], device=start.device)
    return start + steps.to(start.dtype) * delta


def _slice(a: Attributes, x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    begins, sizes = _integers(begin), _integers(size)
    index = []
    for length, first, count in zip(x.shape, begins, sizes, strict=True):
        last = length if count == -1 else first + count
        if not 0 <= first <= last <= length:
            raise UnsupportedError(f"a slice from {begins} of {sizes} of {tuple(x.shape)}")
        index.append(slice(first, last))
    return x[tuple(index)]


def _strided_slice(a: Attributes, x: Tensor, begin: Tensor, end: Tensor, strides: Tensor) -> Tensor:
    begins, ends, steps = (_integers(numbers) for numbers in (begin, end, strides))
    if not len(begins) == len(ends) == len(steps):
        raise UnsupportedError("a slice whose begin, end and strides differ in length")

    def masked(mask: str, entry: int) -> bool:
        return bool(a[f"{mask}_mask"] >> entry & 1)

    entries = range(len(steps))
    ellipses = [entry for entry in entries if masked("ellipsis", entry)]
    # A new axis takes none of x's; an ellipsis takes what the others leave.
    taking = [e for e in entries if not masked("new_axis", e) and e not in ellipses]
    left = x.ndim - len(taking)
    if len(ellipses) > 1 or left < 0:
        raise UnsupportedError(f"a slice of {len(steps)} entries of {x.ndim} axes")
    axis = 0
    for entry in entries:
        if entry in ellipses:
            axis += left
        elif masked("new_axis", entry):
            x = x.unsqueeze(axis)
            axis += 1
        elif masked("shrink_axis", entry):
            # The one number of this entry; its end does not matter.
            if steps[entry] != 1 and not masked("begin", entry):
                raise UnsupportedError(f"a stride of {steps[entry]} at a single index")
            x = x.select(axis, 0 if masked("begin", entry) else _axis(begins[entry], x.shape[axis]))
        else:
            first = None if masked("begin", entry) else begins[entry]
            last = None if masked("end", entry) else ends[entry]
            x = _every(x, axis, slice(first, last, steps[entry]))
            axis += 1
    return x


def _every(x: Tensor, axis: int, part: slice) -> Tensor:
    """Return a slice along one axis; PyTorch's own have no negative steps."""
    indices = range(*part.indices(x.shape[axis]))
    if indices.step > 0:
        return x[(slice(None),) * axis + (slice(indices.start, indices.stop, indices.step),)]
    return x.index_select(axis, torch.tensor(list(indices), dtype=torch.int64, device=x.device))


def _gather_v2(a: Attributes, params: Tensor, indices: Tensor, axis: Tensor) -> Tensor:
    return _gathered(params, indices, _axis(int(axis), params.ndim), a["batch_dims"])


def _gather(a: Attributes, params: Tensor, indices: Tensor) -> Tensor:
    return _gathered(params, indices, _axis(0, params.ndim), 0)


def _gathered(params: Tensor, indices: Tensor, axis: int, batch_dims: int) -> Tensor:
    batch = _axis(batch_dims, indices.ndim + 1)
    if batch > axis or params.shape[:batch] != indices.shape[:batch]:
        raise UnsupportedError(
            f"{batch} batch axes of {tuple(params.shape)} and {tuple(indices.shape)}"
        )
    length = params.shape[axis]
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < length:
        raise UnsupportedError(f"an index outside of the {length} entries of axis {axis}")
    shape = [*params.shape[:axis], *indices.shape[batch:], *params.shape[axis + 1 :]]
    bounded(shape)
    many = math.prod(params.shape[:batch])
    middle = math.prod(params.shape[batch:axis])
    rest = math.prod(params.shape[axis + 1 :])
    rows = params.reshape(many, middle, length, rest)
    chosen = indices.to(params.device, torch.int64).reshape(many, -1)
    found = [row.index_select(1, index) for row, index in zip(rows, chosen, strict=True)]
    return torch.stack(found).reshape(shape) if found else params.new_empty(shape)


def _select(a: Attributes, condition: Tensor, t: Tensor, e: Tensor) -> Tensor:
    if t.shape != e.shape or (condition.ndim > 1 and condition.shape != t.shape):
        raise UnsupportedError("a selection between tensors of different shapes")
    if condition.ndim == 1 and t.ndim > 1:
        # One answer for each row.
        if condition.shape[0] != t.shape[0]:
            raise UnsupportedError("a selection with another number of rows")
        condition = condition.reshape(-1, *[1] * (t.ndim - 1))
    return torch.where(condition.to(t.device), t, e)


def _select_v2(a: Attributes, condition: Tensor, t: Tensor, e: Tensor) -> Tensor:
    bounded(np.broadcast_shapes(condition.shape, t.shape, e.shape))
    return torch.where(condition.to(t.device), t, e)


def _pad(a: Attributes, x: Tensor, paddings: Tensor, value: Tensor | None = None) -> Tensor:
    pairs = _pad_pairs(x, paddings)
    bounded(n + sum(pair) for n, pair in zip(x.shape, pairs, strict=True))
    cells = [n for pair in reversed(pairs) for n in pair]
    return F.pad(x, cells, value=0 if value is None else value.item())


def _mirror_pad(a: Attributes, x: Tensor, paddings: Tensor) -> Tensor:
    pairs = _pad_pairs(x, paddings)
    if a["mode"] not in ("REFLECT", "SYMMETRIC"):
        raise UnsupportedError(f"mode {a['mode']!r}")
    edge = 1 if a["mode"] == "REFLECT" else 0
    for axis, (before, after) in enumerate(pairs):
        n = x.shape[axis]
        if max(before, after) > n - edge:
            raise UnsupportedError(f"{before, after} mirrored cells beside {n}")
        index = [
            *range(before + edge - 1, edge - 1, -1),
            *range(n),
            *range(n - 1 - edge, n - 1 - edge - after, -1),
        ]
        x = x.index_select(axis, torch.tensor(index, dtype=torch.int64, device=x.device))
    return x


def _pad_pairs(x: Tensor, paddings: Tensor) -> list[list[int]]:
    if tuple(paddings.shape) != (x.ndim, 2) or bool((paddings < 0).any()):
        raise UnsupportedError(f"paddings {paddings.tolist()} of a tensor of {x.ndim} axes")
    return [[int(n) for n in pair] for pair in paddings.tolist()]


def _reverse(a: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    return x.flip(_axes(x, axes))


def _same(a: Attributes, x: Tensor) -> Tensor:
    return x


def _given(a: Attributes, *inputs: Tensor) -> Tensor:
    raise UnsupportedError("its value is not given")


def _nothing(a: Attributes) -> tuple[Tensor, ...]:
    return ()


# ---- the table

_X = "x:T -> y:T | T:type"
_FEATURES = "features:T -> activations:T | T:type"
_XY = "x:T y:T -> z:T | T:type"
_COMPARED = "x:T y:T -> z:bool | T:type"
_EQUAL = "x:T y:T -> z:bool | T:type incompatible_shape_error:bool=true"
_REDUCED = (
    "input:T reduction_indices:Tidx -> output:T | keep_dims:bool=false T:type Tidx:type=int32"
)
_TRUTHS = "input:bool reduction_indices:Tidx -> output:bool | keep_dims:bool=false Tidx:type=int32"
_PLACE = (
    "input:T dimension:Tidx -> output:output_type | T:type Tidx:type=int32 output_type:type=int64"
)
_POOL_3D = (
    "input:T -> output:T | ksize:list(int) strides:list(int) padding:string "
    "data_format:string=NDHWC T:type"
)
_BATCH_MATMUL = (
    "x:T y:T -> output:T | T:type adj_x:bool=false adj_y:bool=false "
    "grad_x:bool=false grad_y:bool=false"
)

OPERATIONS: dict[str, Operation] = {
    name: _operation(compute, signature)
    for name, compute, signature in (
        # Given from outside.
        ("Const", _given, "-> output:dtype | value:tensor dtype:type"),
        ("Placeholder", _given, "-> output:dtype | dtype:type shape:shape=?"),
        ("ReadVariableOp", _given, "resource:resource -> value:dtype | dtype:type"),
        ("NoOp", _nothing, "-> |"),
        # Handed on.
        ("Identity", _same, "input:T -> output:T | T:type"),
        ("IdentityN", lambda a, *x: x, "input:[T] -> output:[T] | T:list(type)"),
        ("StopGradient", _same, "input:T -> output:T | T:type"),
        ("Cast", _cast, "x:SrcT -> y:DstT | SrcT:type DstT:type Truncate:bool=false"),
        # One by one.
        ("Abs", _elementwise(torch.abs), _X),
        ("Ceil", _elementwise(torch.ceil), _X),
        ("Cos", _elementwise(torch.cos), _X),
        ("Elu", _elementwise(F.elu), _FEATURES),
        ("Erf", _elementwise(torch.erf), _X),
        ("Erfc", _elementwise(torch.erfc), _X),
        ("Exp", _elementwise(torch.exp), _X),
        ("Expm1", _elementwise(torch.expm1), _X),
        ("Floor", _elementwise(torch.floor), _X),
        (
            "LeakyRelu",
            _leaky_relu,
            "features:T -> activations:T | alpha:float=0.2 T:type=float32",
        ),
        ("Log", _elementwise(torch.log), _X),
        ("Log1p", _elementwise(torch.log1p), _X),
        ("LogicalNot", _elementwise(torch.logical_not), "x:bool -> y:bool |"),
        ("Neg", _elementwise(torch.neg), _X),
        ("OnesLike", _elementwise(torch.ones_like), _X),
        ("Reciprocal", _elementwise(torch.reciprocal), _X),
        ("Relu", _elementwise(torch.relu), _FEATURES),
        ("Relu6", _elementwise(F.relu6), _FEATURES),
        ("Round", _elementwise(torch.round), _X),
        ("Rsqrt", _elementwise(torch.rsqrt), _X),
        ("Selu", _elementwise(_selu), _FEATURES),
        ("Sigmoid", _elementwise(torch.sigmoid), _X),
        ("Sign", _elementwise(lambda x: torch.where(x != x, x, torch.sign(x))), _X),
        ("Sin", _elementwise(torch.sin), _X),
        ("Softplus", _elementwise(lambda x: torch.logaddexp(x, torch.zeros_like(x))), _FEATURES),
        ("Softsign", _elementwise(F.softsign), _FEATURES),
        ("Sqrt", _elementwise(torch.sqrt), _X),
        ("Square", _elementwise(torch.square), _X),
        ("Tanh", _elementwise(torch.tanh), _X),
        ("ZerosLike", _elementwise(torch.zeros_like), _X),
        # Two by two.
        ("Add", _elementwise(torch.add), _XY),
        ("AddV2", _elementwise(torch.add), _XY),
        ("FloorDiv", _elementwise(_floor_div), _XY),
        ("FloorMod", _elementwise(lambda x, y: torch.remainder(x, _divisor(y))), _XY),
        ("Maximum", _elementwise(torch.maximum), _XY),
        ("Minimum", _elementwise(torch.minimum), _XY),
        ("Mul", _elementwise(torch.mul), _XY),
        ("Pow", _elementwise(_power), _XY),
        ("RealDiv", _elementwise(_real_div), _XY),
        ("SquaredDifference", _elementwise(lambda x, y: torch.square(x - y)), _XY),
        ("Sub", _elementwise(torch.sub), _XY),
        ("Equal", _equal(False), _EQUAL),
        ("Greater", _elementwise(torch.gt), _COMPARED),
        ("GreaterEqual", _elementwise(torch.ge), _COMPARED),
        ("Less", _elementwise(torch.lt), _COMPARED),
        ("LessEqual", _elementwise(torch.le), _COMPARED),
        ("NotEqual", _equal(True), _EQUAL),
        ("LogicalAnd", _elementwise(torch.logical_and), "x:bool y:bool -> z:bool |"),
        ("LogicalOr", _elementwise(torch.logical_or), "x:bool y:bool -> z:bool |"),
        # Three and more.
        ("AddN", _add_n, "inputs:N*T -> sum:T | N:int T:type"),
        (
            "ClipByValue",
            _elementwise(lambda x, low, high: torch.minimum(torch.maximum(x, low), high)),
            "t:T clip_value_min:T clip_value_max:T -> output:T | T:type",
        ),
        ("Select", _select, "condition:bool t:T e:T -> output:T | T:type"),
        ("SelectV2", _select_v2, "condition:bool t:T e:T -> output:T | T:type"),
        # Reductions.
        ("All", _reduction(_one_by_one(torch.all)), _TRUTHS),
        ("Any", _reduction(_one_by_one(torch.any)), _TRUTHS),
        ("ArgMax", _place(torch.argmax), _PLACE),
        ("ArgMin", _place(torch.argmin), _PLACE),
        (
            "Cumsum",
            _cumsum,
            "x:T axis:Tidx -> out:T | exclusive:bool=false reverse:bool=false "
            "T:type Tidx:type=int32",
        ),
        ("LogSoftmax", lambda a, x: F.log_softmax(x, -1), "logits:T -> logsoftmax:T | T:type"),
        ("Max", _reduction(torch.amax), _REDUCED),
        ("Mean", _reduction(_mean), _REDUCED),
        ("Min", _reduction(torch.amin), _REDUCED),
        (
            "Prod",
            _reduction(_one_by_one(lambda x, axis, keep: x.prod(axis, keep, dtype=x.dtype))),
            _REDUCED,
        ),
        ("Softmax", lambda a, x: F.softmax(x, -1), "logits:T -> softmax:T | T:type"),
        (
            "Sum",
            _reduction(lambda x, dims, keep: x.sum(dims, keep, dtype=x.dtype)),
            _REDUCED,
        ),
        # Products, convolutions, pools, normalisation.
        ("BatchMatMul", _matmul, _BATCH_MATMUL),
        ("BatchMatMulV2", _matmul, _BATCH_MATMUL),
        ("BiasAdd", _bias_add, "value:T bias:T -> output:T | T:type data_format:string=NHWC"),
        ("Einsum", _einsum, "inputs:N*T -> output:T | equation:string N:int T:type"),
        (
            "MatMul",
            _matmul,
            "a:T b:T -> product:T | transpose_a:bool=false transpose_b:bool=false T:type "
            "grad_a:bool=false grad_b:bool=false",
        ),
        (
            "Conv2D",
            _conv,
            "input:T filter:T -> output:T | T:type strides:list(int) use_cudnn_on_gpu:bool=true "
            "padding:string explicit_paddings:list(int)=[] data_format:string=NHWC "
            "dilations:list(int)=[1,1,1,1]",
        ),
        (
            "Conv3D",
            _conv,
            "input:T filter:T -> output:T | T:type strides:list(int) padding:string "
            "data_format:string=NDHWC dilations:list(int)=[1,1,1,1,1]",
        ),
        (
            "DepthwiseConv2dNative",
            _depthwise_conv,
            "input:T filter:T -> output:T | T:type strides:list(int) padding:string "
            "explicit_paddings:list(int)=[] data_format:string=NHWC dilations:list(int)=[1,1,1,1]",
        ),
        (
            "AvgPool",
            _average_pool,
            "value:T -> output:T | ksize:list(int) strides:list(int) padding:string "
            "data_format:string=NHWC T:type",
        ),
        ("AvgPool3D", _average_pool, _POOL_3D),
        (
            "MaxPool",
            _max_pool,
            "input:T -> output:T | T:type=float32 ksize:list(int) strides:list(int) "
            "padding:string explicit_paddings:list(int)=[] data_format:string=NHWC",
        ),
        ("MaxPool3D", _max_pool, _POOL_3D),
        (
            "FusedBatchNormV3",
            _batch_norm,
            "x:T scale:U offset:U mean:U variance:U -> y:T batch_mean:U batch_variance:U "
            "reserve_space_1:U reserve_space_2:U reserve_space_3:U | T:type U:type "
            "epsilon:float=0.0001 exponential_avg_factor:float=1.0 data_format:string=NHWC "
            "is_training:bool=true",
        ),
        # Shapes.
        (
            "BroadcastTo",
            _broadcast,
            "input:T shape:Tidx -> output:T | T:type Tidx:type=int32",
        ),
        (
            "ConcatV2",
            _concat,
            "values:N*T axis:Tidx -> output:T | N:int T:type Tidx:type=int32",
        ),
        ("ExpandDims", _expand_dims, "input:T dim:Tdim -> output:T | T:type Tdim:type=int32"),
        (
            "Fill",
            _fill,
            "dims:index_type value:T -> output:T | T:type index_type:type=int32",
        ),
        (
            "Gather",
            _gather,
            "params:Tparams indices:Tindices -> output:Tparams | validate_indices:bool=true "
            "Tparams:type Tindices:type",
        ),
        (
            "GatherV2",
            _gather_v2,
            "params:Tparams indices:Tindices axis:Taxis -> output:Tparams | batch_dims:int=0 "
            "Tparams:type Tindices:type Taxis:type",
        ),
        (
            "MirrorPad",
            _mirror_pad,
            "input:T paddings:Tpaddings -> output:T | T:type Tpaddings:type=int32 mode:string",
        ),
        ("Pack", _pack, "values:N*T -> output:T | N:int T:type axis:int=0"),
        (
            "Pad",
            _pad,
            "input:T paddings:Tpaddings -> output:T | T:type Tpaddings:type=int32",
        ),
        (
            "PadV2",
            _pad,
            "input:T paddings:Tpaddings constant_values:T -> output:T | T:type "
            "Tpaddings:type=int32",
        ),
        (
            "Range",
            _range,
            "start:Tidx limit:Tidx delta:Tidx -> output:Tidx | Tidx:type=int32",
        ),
        (
            "Rank",
            lambda a, x: torch.tensor(x.ndim, dtype=torch.int32),
            "input:T -> output:int32 | T:type",
        ),
        (
            "Reshape",
            _reshape,
            "tensor:T shape:Tshape -> output:T | T:type Tshape:type=int32",
        ),
        ("ReverseV2", _reverse, "tensor:T axis:Tidx -> output:T | Tidx:type=int32 T:type"),
        ("Shape", _shape, "input:T -> output:out_type | T:type out_type:type=int32"),
        ("Size", _size, "input:T -> output:out_type | T:type out_type:type=int32"),
        ("Slice", _slice, "input:T begin:Index size:Index -> output:T | T:type Index:type"),
        (
            "Split",
            _split,
            "split_dim:int32 value:T -> output:num_split*T | num_split:int T:type",
        ),
        (
            "SplitV",
            _split_v,
            "value:T size_splits:Tlen split_dim:int32 -> output:num_split*T | num_split:int "
            "T:type Tlen:type=int64",
        ),
        ("Squeeze", _squeeze, "input:T -> output:T | T:type squeeze_dims:list(int)=[]"),
        (
            "StridedSlice",
            _strided_slice,
            "input:T begin:Index end:Index strides:Index -> output:T | T:type Index:type "
            "begin_mask:int=0 end_mask:int=0 ellipsis_mask:int=0 new_axis_mask:int=0 "
            "shrink_axis_mask:int=0",
        ),
        ("Tile", _tile, "input:T multiples:Tmultiples -> output:T | T:type Tmultiples:type=int32"),
        ("Transpose", _transpose, "x:T perm:Tperm -> y:T | T:type Tperm:type=int32"),
        ("Unpack", _unpack, "value:T -> output:num*T | num:int T:type axis:int=0"),
    )
}
