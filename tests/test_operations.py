"""Every operation of the interpreter's table against TensorFlow's own."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch
from tensorflow.python.framework import op_def_registry

from converters import protos
from converters.interpreter.graph import Graph, Node
from converters.interpreter.operations import OPERATIONS
from converters.interpreter.run import Interpreter

CASES = 40

Random = np.random.Generator
Case = tuple[dict[str, Any], list[Any]]

# What tf.raw_ops calls an argument, where TensorFlow's registry has another name for it.
RENAMED: dict[Any, str] = {
    **dict.fromkeys(("reduction_indices", "squeeze_dims", "split_dim", "dim"), "axis"),
    ("Select", "t"): "x",
    ("Select", "e"): "y",
}
# Sums: their rounding is relative to what is added, however small the sum.
SUMS = ("MatMul", "BatchMatMul", "BatchMatMulV2", "Einsum", "Conv2D", "Conv3D", "Cumsum", "Sum")
SUMS += ("DepthwiseConv2dNative", "Mean", "AvgPool", "AvgPool3D", "AddN")
NUMBERS = {t.as_numpy_dtype: t.as_datatype_enum for t in (tf.float32, tf.float64, tf.int32)}
NUMBERS |= {t.as_numpy_dtype: t.as_datatype_enum for t in (tf.int64, tf.bool, tf.uint8)}
FLOATS = (np.float32, np.float64)
INDICES = (np.int32, np.int64)
# Largest error in units of the largest value, float32 and float64. TensorFlow's own exp, erf and
# pow are rounded to some units of the last place.
TOLERANCE = {np.dtype(np.float32): 6e-7, np.dtype(np.float64): 2e-14}


def type_number(array: Any) -> int:
    return NUMBERS[np.asarray(array).dtype.type]


def attribute(kind: str, value: Any) -> Any:
    """Return an AttrValue of the kind that TensorFlow's registry says."""
    if kind == "type":
        return protos.AttrValue(type=value)
    if kind == "string":
        return protos.AttrValue(s=value.encode())
    if kind == "list(int)":
        return protos.AttrValue(list={"i": value})
    if kind == "list(type)":
        return protos.AttrValue(list={"type": value})
    return protos.AttrValue(**{{"int": "i", "float": "f", "bool": "b"}[kind]: value})


def node_attributes(op: str, attributes: dict[str, Any], inputs: list[Any]) -> dict[str, Any]:
    """Return the attributes of a node, those that the inputs imply too."""
    operation = OPERATIONS[op]
    found = dict(attributes)
    for argument, value in zip(operation.inputs, inputs, strict=True):
        if argument.listed:
            found[argument.type] = [type_number(x) for x in value]
        elif argument.number:
            found[argument.number] = len(value)
            found[argument.type] = type_number(value[0])
        elif argument.type in operation.attributes:
            found[argument.type] = type_number(value)
    return found


def run(
    op: str, attributes: dict[str, Any], inputs: list[Any], device: str = "cpu"
) -> list[np.ndarray]:
    """Return what the interpreter gives for one node."""
    graph = Graph()
    flat = [x for value in inputs for x in (value if isinstance(value, list) else [value])]
    for number, array in enumerate(flat):
        graph.add(Node(f"x{number}", "Placeholder", (), type=type_number(array)))
        graph.inputs[f"x{number}"] = (f"x{number}", 0)
    kinds = OPERATIONS[op].attributes
    given = node_attributes(op, attributes, inputs)
    attr = {name: attribute(kinds[name], value) for name, value in given.items()}
    graph.add(Node("node", op, tuple((f"x{n}", 0) for n in range(len(flat))), attr))
    known = OPERATIONS[op].read(attr)
    count = sum(len(argument.types(known)) for argument in OPERATIONS[op].outputs)
    feeds = {f"x{n}": torch.from_numpy(np.array(array)) for n, array in enumerate(flat)}
    interpreter = Interpreter(graph, lambda number: np.zeros(0), device=device)
    found = dict(interpreter.stream(feeds, [("node", n) for n in range(count)]))
    return [found["node", n].cpu().numpy() for n in range(count)]


def expected(op: str, attributes: dict[str, Any], inputs: list[Any]) -> list[np.ndarray]:
    """Return what TensorFlow gives."""
    names = [argument.name for argument in OPERATIONS[op].inputs]
    tensors = [
        [tf.constant(x) for x in value] if isinstance(value, list) else tf.constant(value)
        for value in inputs
    ]
    arguments = dict(zip(names, tensors, strict=True)) | attributes
    renamed = {name: RENAMED.get((op, name), RENAMED.get(name, name)) for name in arguments}
    result = getattr(tf.raw_ops, op)(**{renamed[name]: x for name, x in arguments.items()})
    several = isinstance(result, (list, tuple))
    return [x.numpy() for x in (result if several else [result])]


def magnitudes(inputs: list[Any]) -> list[Any]:
    """Return inputs with the absolute values of their floats."""
    return [
        magnitudes(x) if isinstance(x, list) else np.abs(x) if x.dtype.kind == "f" else x
        for x in inputs
    ]


def assert_close(
    found: list[np.ndarray], right: list[np.ndarray], sizes: list[np.ndarray], what: object
) -> None:
    """Compare outputs; `sizes` are as large as what rounding is relative to."""
    assert len(found) == len(right), what
    for number, (a, b, size) in enumerate(zip(found, right, sizes, strict=True)):
        assert a.shape == b.shape, (what, number, a.shape, b.shape)
        assert a.dtype == b.dtype, (what, number, a.dtype, b.dtype)
        if b.dtype.kind != "f":
            np.testing.assert_array_equal(a, b, str((what, number)))
            continue
        finite = np.isfinite(b)
        np.testing.assert_array_equal(a[~finite], b[~finite], str((what, number)))
        largest = np.abs(size[finite]).max(initial=0)
        allowed = TOLERANCE[b.dtype] * max(largest, np.finfo(b.dtype).tiny)
        assert np.abs(a[finite] - b[finite]).max(initial=0) <= allowed, (what, number, a, b)


# ---- random values


def shape_of(
    r: Random, least: int = 0, most: int = 4, sizes: tuple[int, int] = (1, 5)
) -> list[int]:
    return [int(r.integers(*sizes)) for _ in range(r.integers(least, most + 1))]


def floats(r: Random, shape: Any, dtype: Any = None, low: float = -4, high: float = 4) -> Any:
    return r.uniform(low, high, shape).astype(dtype or r.choice(FLOATS))


def integers(r: Random, shape: Any, dtype: Any = None, low: int = -9, high: int = 10) -> Any:
    return r.integers(low, high, shape).astype(dtype or r.choice(INDICES))


def numbers(r: Random, shape: Any) -> Any:
    return floats(r, shape) if r.random() < 0.6 else integers(r, shape)


def anything(r: Random, shape: Any) -> Any:
    return r.random(shape) < 0.5 if r.random() < 0.2 else numbers(r, shape)


def index(r: Random, values: Any) -> Any:
    return np.asarray(values, r.choice(INDICES))


def maybe(r: Random, **attributes: Any) -> dict[str, Any]:
    """Return some of the attributes: the rest is left to the default."""
    return {name: value for name, value in attributes.items() if r.random() < 0.7}


def with_specials(r: Random, x: Any) -> Any:
    """Return x, now and then with values that are no numbers, and zeros of both signs."""
    if x.dtype.kind == "f" and x.size and r.random() < 0.2:
        x = np.array(x)
        x.flat[r.integers(x.size)] = r.choice([np.inf, -np.inf, np.nan, 0.0, -0.0])
    return x


def broadcastable(r: Random) -> tuple[list[int], list[int]]:
    shape = shape_of(r)
    other = [n if r.random() < 0.7 else 1 for n in shape][r.integers(0, len(shape) + 1) :]
    shape = [n if r.random() < 0.8 else 1 for n in shape]
    return (shape, other) if r.random() < 0.5 else (other, shape)


def unary(low: float = -4, high: float = 4, whole: bool = False) -> Callable[[Random], Case]:
    def case(r: Random) -> Case:
        shape = shape_of(r)
        if whole and r.random() < 0.4:
            return {}, [integers(r, shape)]
        return {}, [with_specials(r, floats(r, shape, low=low, high=high))]

    return case


def binary(low: float = -4, high: float = 4, whole: bool = True) -> Callable[[Random], Case]:
    def case(r: Random) -> Case:
        a, b = broadcastable(r)
        if whole and r.random() < 0.4:
            dtype = r.choice(INDICES)
            return {}, [integers(r, a, dtype), integers(r, b, dtype)]
        dtype = r.choice(FLOATS)
        pair = [floats(r, s, dtype, low, high) for s in (a, b)]
        return {}, [with_specials(r, x) for x in pair]

    return case


def divided(r: Random) -> Case:
    attributes, (x, y) = binary()(r)
    # Quotients are often whole, where rounding decides.
    if x.dtype.kind == "f" and r.random() < 0.5:
        x, y = np.round(x) / x.dtype.type(10), np.round(y) / y.dtype.type(10)
    return attributes, [x, np.where(y == 0, y.dtype.type(3), y)]


def power(r: Random) -> Case:
    a, b = broadcastable(r)
    if r.random() < 0.3:
        dtype = r.choice(INDICES)
        return {}, [integers(r, a, dtype, -4, 5), integers(r, b, dtype, 0, 5)]
    dtype = r.choice(FLOATS)
    exponent = floats(r, b, dtype, -3, 3)
    if r.random() < 0.3:
        return {}, [floats(r, a, dtype), np.round(exponent)]
    return {}, [floats(r, a, dtype, 0, 5), exponent]


def compared(r: Random) -> Case:
    a, b = broadcastable(r)
    if r.random() < 0.3:
        dtype = r.choice(INDICES)
        return {}, [integers(r, a, dtype, -2, 3), integers(r, b, dtype, -2, 3)]
    dtype = r.choice(FLOATS)
    return {}, [with_specials(r, np.round(floats(r, s, dtype, -2, 2))) for s in (a, b)]


def equality(r: Random) -> Case:
    attributes, inputs = compared(r)
    if r.random() < 0.2:
        return {"incompatible_shape_error": False}, [inputs[0], np.zeros(7, inputs[0].dtype)]
    return attributes, inputs


def truths(count: int) -> Callable[[Random], Case]:
    def case(r: Random) -> Case:
        shapes = broadcastable(r)[:count]
        return {}, [np.asarray(r.random(s) < 0.5) for s in shapes]

    return case


def rounded(r: Random) -> Case:
    return {}, [np.round(floats(r, shape_of(r)) * 2) / 2]


def reduced(values: Callable[..., Any] = numbers) -> Callable[[Random], Case]:
    def case(r: Random) -> Case:
        shape = shape_of(r)
        axes = [int(a) for a in r.permutation(len(shape))[: r.integers(0, len(shape) + 1)]]
        axes = [a - len(shape) if r.random() < 0.3 else a for a in axes]
        axis = index(r, axes[0] if len(axes) == 1 and r.random() < 0.5 else axes)
        return maybe(r, keep_dims=bool(r.random() < 0.5)), [values(r, shape), axis]

    return case


def one_axis(r: Random, values: Callable[..., Any] = numbers) -> tuple[Any, Any]:
    shape = shape_of(r, 1)
    return values(r, shape), index(r, r.integers(-len(shape), len(shape)))


def placed(r: Random) -> Case:
    x, axis = one_axis(r, lambda r, shape: np.round(numbers(r, shape)))
    return maybe(r, output_type=int(r.choice([3, 9]))), [x, axis]


def cumulated(r: Random) -> Case:
    flags = {name: bool(r.random() < 0.5) for name in ("exclusive", "reverse")}
    return maybe(r, **flags), list(one_axis(r))


def softmaxed(r: Random) -> Case:
    return {}, [floats(r, shape_of(r, 1))]


def cast(r: Random) -> Case:
    x = floats(r, shape_of(r), low=-100, high=100) if r.random() < 0.5 else anything(r, shape_of(r))
    return {"DstT": int(r.choice([1, 2, 3, 9, 10]))}, [np.array(x)]


def added(r: Random) -> Case:
    shape, dtype = shape_of(r), r.choice(FLOATS)
    return {}, [[floats(r, shape, dtype) for _ in range(r.integers(1, 5))]]


def clipped(r: Random) -> Case:
    dtype = r.choice(FLOATS)
    low = floats(r, [], dtype, -2, 0)
    return {}, [floats(r, shape_of(r), dtype), low, low + floats(r, [], dtype, 0.5, 2)]


def selected(r: Random) -> Case:
    shape = shape_of(r)
    t = numbers(r, shape)
    e = numbers(r, shape).astype(t.dtype)
    condition = np.array(r.random(shape) < 0.5)
    if shape and r.random() < 0.5:
        condition = r.random(shape[0]) < 0.5
    elif r.random() < 0.3:
        condition = np.array(r.random() < 0.5)
    return {}, [condition, t, e]


def selected_v2(r: Random) -> Case:
    a, b = broadcastable(r)
    t = numbers(r, a)
    condition = np.asarray(r.random(a if r.random() < 0.5 else b) < 0.5)
    return {}, [condition, t, numbers(r, b).astype(t.dtype)]


# ---- products, convolutions, pools, normalisation


def product(r: Random) -> Case:
    n, k, m = r.integers(1, 6, 3)
    a, b = (bool(r.random() < 0.5) for _ in range(2))
    dtype = r.choice(FLOATS)
    x, y = floats(r, (k, n) if a else (n, k), dtype), floats(r, (m, k) if b else (k, m), dtype)
    return {"transpose_a": a, "transpose_b": b}, [x, y]


def batch_product(broadcast: bool) -> Callable[[Random], Case]:
    def case(r: Random) -> Case:
        attributes, (x, y) = product(r)
        front, other = broadcastable(r)
        if not broadcast:
            other = front
        a, b = attributes["transpose_a"], attributes["transpose_b"]
        x = floats(r, (*front, *x.shape), x.dtype)
        y = floats(r, (*other, *y.shape), x.dtype)
        return {"adj_x": a, "adj_y": b}, [x, y]

    return case


EQUATIONS = ("ij,jk->ik", "bij,bjk->bik", "abc,cde->abde", "...ij,jk->...ik", "ij->ji", "ijk->ik")
EQUATIONS += ("aecd,abcd->acbe", "acbe,aecd->abcd", "i,j->ij", "ij,ij->", "b...i,bi->b...")


def einsum(r: Random) -> Case:
    equation = str(r.choice(EQUATIONS))
    sizes = {label: int(r.integers(1, 5)) for label in "abcdeijk"}
    extra = [2, 3][: r.integers(0, 3)]
    dtype = r.choice(FLOATS)
    inputs = []
    for term in equation.partition("->")[0].split(","):
        front, dots, back = term.partition("...")
        shape = [sizes[c] for c in front] + (extra if dots else []) + [sizes[c] for c in back]
        inputs.append(floats(r, shape, dtype))
    return {"equation": equation}, [inputs]


def layout(r: Random, rank: int) -> tuple[str, bool]:
    """Return a data format, and whether its channels are last."""
    last = bool(r.random() < 0.7)
    return {4: ("NCHW", "NHWC"), 5: ("NCDHW", "NDHWC")}[rank][last], last


def every_axis(values: Any, last: bool, ends: Any = (1, 1)) -> list[Any]:
    """Return spatial values with those of batch and channels, as `last` lays them out."""
    spatial = [int(v) for v in values]
    return [ends[0], *spatial, ends[1]] if last else [*ends, *spatial]


def convolution(rank: int, depthwise: bool = False) -> Callable[[Random], Case]:
    def case(r: Random) -> Case:
        n = rank - 2
        data_format, last = layout(r, rank)
        sizes = r.integers(3 if rank == 5 else 4, 8, n)
        window = r.integers(1, 4, n)
        dilations = r.integers(1, 3, n) if r.random() < 0.3 else np.ones(n, int)
        padding = str(r.choice(["SAME", "VALID", "EXPLICIT"] if rank == 4 else ["SAME", "VALID"]))
        if padding != "SAME":
            sizes = np.maximum(sizes, (window - 1) * dilations + 1)
        groups, per_group, out = r.integers(1, 4, 3)
        dtype = r.choice(FLOATS)
        channels = groups * per_group
        strides = r.integers(1, 4, n)
        if rank == 5 and dtype == np.float64:
            # TensorFlow 2.20's Conv3D of float64 takes other cells than its own of float32 where
            # SAME windows leave cells out.
            strides = np.minimum(strides, window)
        if depthwise:
            strides[:] = strides[0]
            kernel = floats(r, (*window, channels, out), dtype)
        else:
            kernel = floats(r, (*window, per_group, groups * out), dtype)
        x = floats(r, every_axis(sizes, last, (int(r.integers(1, 3)), int(channels))), dtype)
        attributes = {
            "strides": every_axis(strides, last),
            "padding": padding,
            "data_format": data_format,
            "dilations": every_axis(dilations, last),
        }
        if padding == "EXPLICIT":
            pads = r.integers(0, 3, (n, 2))
            pairs = [[0, 0], *pads, [0, 0]] if last else [[0, 0], [0, 0], *pads]
            attributes["explicit_paddings"] = [int(v) for pair in pairs for v in pair]
        return attributes, [x, kernel]

    return case


def pool(rank: int, explicit: bool = False) -> Callable[[Random], Case]:
    def case(r: Random) -> Case:
        n = rank - 2
        data_format, last = layout(r, rank)
        window = r.integers(1, 4, n)
        padding = str(r.choice(["SAME", "VALID", "EXPLICIT"] if explicit else ["SAME", "VALID"]))
        sizes = np.maximum(r.integers(1, 8, n), window if padding != "SAME" else 1)
        ends = (int(r.integers(1, 3)), int(r.integers(1, 4)))
        x = floats(r, every_axis(sizes, last, ends), np.float32)
        attributes = {
            "ksize": every_axis(window, last),
            "strides": every_axis(r.integers(1, 4, n), last),
            "padding": padding,
            "data_format": data_format,
        }
        if padding == "EXPLICIT":
            pads = np.minimum(r.integers(0, 2, (n, 2)), window[:, None] - 1)
            pairs = [[0, 0], *pads, [0, 0]] if last else [[0, 0], [0, 0], *pads]
            attributes["explicit_paddings"] = [int(v) for pair in pairs for v in pair]
        return attributes, [x]

    return case


def normalised(r: Random) -> Case:
    data_format, last = layout(r, 4)
    channels = int(r.integers(1, 5))
    x = floats(
        r, every_axis(r.integers(2, 5, 2), last, (int(r.integers(1, 3)), channels)), np.float32
    )
    training = bool(r.random() < 0.5)
    attributes = {"data_format": data_format, "is_training": training}
    attributes |= maybe(r, epsilon=float(r.choice([1e-3, 1.001e-5, 0.1])))
    scale, offset, mean = (floats(r, channels, np.float32) for _ in range(3))
    variance = floats(r, channels, np.float32, 0.5, 2)
    if training and r.random() < 0.5:
        attributes["exponential_avg_factor"] = 0.25
    elif training:
        mean, variance = (np.zeros(0, np.float32) for _ in range(2))
    return attributes, [x, scale, offset, mean, variance]


def biased(r: Random) -> Case:
    shape, dtype = shape_of(r, 2), r.choice(FLOATS)
    data_format = str(r.choice(["NHWC", "NCHW"]))
    channels = shape[-1] if data_format == "NHWC" else shape[1]
    return {"data_format": data_format}, [floats(r, shape, dtype), floats(r, channels, dtype)]


# ---- shapes


def alone(r: Random) -> Case:
    return {}, [anything(r, shape_of(r))]


def sized(r: Random) -> Case:
    return maybe(r, out_type=int(r.choice([3, 9]))), [anything(r, shape_of(r, sizes=(0, 4)))]


def identities(r: Random) -> Case:
    return {}, [[anything(r, shape_of(r)) for _ in range(r.integers(1, 5))]]


def leaky(r: Random) -> Case:
    return maybe(r, alpha=float(np.float32(r.uniform(0, 0.5)))), unary()(r)[1]


def broadcast(r: Random) -> Case:
    shape = shape_of(r)
    other = [n if r.random() < 0.6 else 1 for n in shape][r.integers(0, len(shape) + 1) :]
    return {}, [anything(r, other), index(r, shape)]


def concatenated(r: Random) -> Case:
    shape = shape_of(r, 1)
    axis = int(r.integers(len(shape)))
    first = anything(r, shape)
    values = [first]
    for _ in range(r.integers(1, 4)):
        shape[axis] = int(r.integers(0, 4))
        values.append(anything(r, shape).astype(first.dtype))
    return {}, [values, index(r, axis - len(shape) if r.random() < 0.3 else axis)]


def expanded(r: Random) -> Case:
    shape = shape_of(r)
    axis = r.integers(-len(shape) - 1, len(shape) + 1)
    return {}, [anything(r, shape), index(r, axis)]


def filled(r: Random) -> Case:
    return {}, [index(r, shape_of(r, sizes=(0, 5))), anything(r, [])]


def gathered(r: Random) -> Case:
    x = anything(r, shape_of(r, 1))
    return {}, [x, integers(r, shape_of(r, 0, 3), low=0, high=x.shape[0])]


def gathered_v2(r: Random) -> Case:
    shape = shape_of(r, 1)
    axis = int(r.integers(len(shape)))
    batch = int(r.integers(0, axis + 1))
    indices = integers(r, [*shape[:batch], *shape_of(r, 0, 2)], low=0, high=shape[axis])
    signed = axis - len(shape) if r.random() < 0.3 else axis
    return {"batch_dims": batch}, [anything(r, shape), indices, index(r, signed)]


def padded(mode: str = "") -> Callable[[Random], Case]:
    def case(r: Random) -> Case:
        x = numbers(r, shape_of(r, 0 if not mode else 1, sizes=(2, 6)))
        most = {"REFLECT": lambda n: n, "SYMMETRIC": lambda n: n + 1}.get(mode, lambda n: 4)
        pads = [[int(r.integers(0, most(n))) for _ in range(2)] for n in x.shape]
        attributes = {"mode": mode} if mode else {}
        return attributes, [x, index(r, np.reshape(pads, (x.ndim, 2)))]

    return case


def mirrored(r: Random) -> Case:
    return padded(str(r.choice(["REFLECT", "SYMMETRIC"])))(r)


def padded_v2(r: Random) -> Case:
    _, (x, pads) = padded()(r)
    return {}, [x, pads, numbers(r, []).astype(x.dtype)]


def packed(r: Random) -> Case:
    shape = shape_of(r)
    first = anything(r, shape)
    values = [anything(r, shape).astype(first.dtype) for _ in range(r.integers(1, 4))]
    return maybe(r, axis=int(r.integers(-len(shape) - 1, len(shape) + 1))), [values]


def ranged(r: Random) -> Case:
    if r.random() < 0.6:
        dtype = r.choice(INDICES)
        start, limit = r.integers(-9, 10, 2)
        delta = int(r.integers(1, 4)) * (1 if limit >= start else -1)
    else:
        dtype = r.choice(FLOATS)
        start, limit = np.round(r.uniform(-4, 4, 2), 1)
        delta = float(r.choice([0.25, 0.3, 1])) * (1 if limit >= start else -1)
    return {}, [np.asarray(v, dtype) for v in (start, limit, delta)]


def reshaped(r: Random) -> Case:
    x = anything(r, shape_of(r))
    shape = [int(n) for n in r.permutation(x.shape)] if r.random() < 0.5 else [x.size]
    if shape and r.random() < 0.5:
        shape[r.integers(len(shape))] = -1
    return {}, [x, index(r, shape)]


def reversed_case(r: Random) -> Case:
    _, (x, axes) = reduced(anything)(r)
    return {}, [x, np.atleast_1d(axes)]


def sliced(r: Random) -> Case:
    x = anything(r, shape_of(r, 1))
    begin = [int(r.integers(0, n + 1)) for n in x.shape]
    size = [int(r.integers(-1, n - b + 1)) for n, b in zip(x.shape, begin, strict=True)]
    dtype = r.choice(INDICES)
    return {}, [x, np.asarray(begin, dtype), np.asarray(size, dtype)]


def strided(r: Random) -> Case:
    x = anything(r, shape_of(r, 1, sizes=(1, 7)))
    entries, axes = [], x.ndim
    masks = dict.fromkeys(("begin", "end", "ellipsis", "new_axis", "shrink_axis"), 0)
    ellipsis = False
    axis = 0
    while axes > 0 and r.random() < 0.9:
        bit = 1 << len(entries)
        kind = r.choice(["slice", "slice", "slice", "new_axis", "shrink_axis", "ellipsis"])
        begin, end = (int(v) for v in r.integers(-9, 9, 2))
        stride = int(r.choice([1, 1, 1, 2, 3, -1, -2]))
        if kind == "ellipsis" and not ellipsis:
            ellipsis = True
            masks["ellipsis"] |= bit
        elif kind == "new_axis":
            masks["new_axis"] |= bit
            masks["shrink_axis"] |= bit * int(r.integers(2))
        else:
            # Behind an ellipsis, an entry's axis is not known here.
            n = min(x.shape) if ellipsis else x.shape[axis]
            axes, axis = axes - 1, axis + 1
            if kind == "shrink_axis":
                begin, stride = int(r.integers(-n, n)), 1
                masks["shrink_axis"] |= bit
            masks["begin"] |= bit * int(r.integers(2) and kind == "slice")
            masks["end"] |= bit * int(r.integers(2))
        entries.append((begin, end, stride))
    dtype = r.choice(INDICES)
    columns = np.asarray(entries, dtype).reshape(-1, 3)
    attributes = {f"{name}_mask": mask for name, mask in masks.items()}
    return attributes, [x, *columns.T]


def split(r: Random) -> Case:
    shape = shape_of(r, 1)
    axis, parts = int(r.integers(len(shape))), int(r.integers(1, 4))
    shape[axis] *= parts
    return {"num_split": parts}, [np.int32(axis), anything(r, shape)]


def split_v(r: Random) -> Case:
    shape = shape_of(r, 1)
    axis = int(r.integers(len(shape)))
    lengths = [int(n) for n in r.integers(0, 4, r.integers(1, 4))]
    shape[axis] = sum(lengths)
    if len(lengths) > 1 and r.random() < 0.5:
        lengths[r.integers(len(lengths))] = -1
    x = anything(r, shape)
    return {"num_split": len(lengths)}, [x, index(r, lengths), np.int32(axis - len(shape))]


def squeezed(r: Random) -> Case:
    shape = [n if r.random() < 0.5 else 1 for n in shape_of(r)]
    ones = [a for a, n in enumerate(shape) if n == 1]
    axes = [a - len(shape) if r.random() < 0.3 else a for a in ones if r.random() < 0.7]
    return maybe(r, squeeze_dims=axes), [anything(r, shape)]


def tiled(r: Random) -> Case:
    x = anything(r, shape_of(r))
    return {}, [x, index(r, r.integers(0, 4, x.ndim))]


def transposed(r: Random) -> Case:
    x = anything(r, shape_of(r))
    return {}, [x, index(r, r.permutation(x.ndim))]


def unpacked(r: Random) -> Case:
    shape = shape_of(r, 1)
    axis = int(r.integers(-len(shape), len(shape)))
    return {"num": shape[axis], "axis": axis}, [anything(r, shape)]


def each(names: str, case: Callable[[Random], Case]) -> dict[str, Callable[[Random], Case]]:
    return dict.fromkeys(names.split(), case)


OPS: dict[str, Callable[[Random], Case]] = {
    **each("Abs Neg Sign Square OnesLike ZerosLike", unary(whole=True)),
    **each("Ceil Cos Elu Erf Erfc Exp Expm1 Floor Relu Relu6 Selu", unary()),
    **each("Sigmoid Sin Softplus Softsign Tanh", unary(-9, 9)),
    **each("Log Rsqrt Sqrt Reciprocal", unary(0.1, 9)),
    "Log1p": unary(-0.9, 9),
    "LeakyRelu": leaky,
    "Round": rounded,
    **each("Add AddV2 Maximum Minimum Mul Sub SquaredDifference", binary()),
    **each("FloorDiv FloorMod", divided),
    "RealDiv": binary(whole=False),
    "Pow": power,
    **each("Greater GreaterEqual Less LessEqual", compared),
    **each("Equal NotEqual", equality),
    **each("LogicalAnd LogicalOr", truths(2)),
    "LogicalNot": truths(1),
    "AddN": added,
    "ClipByValue": clipped,
    "Select": selected,
    "SelectV2": selected_v2,
    **each("Max Mean Min Prod Sum", reduced()),
    **each("All Any", reduced(lambda r, shape: np.asarray(r.random(shape) < 0.7))),
    **each("ArgMax ArgMin", placed),
    "Cumsum": cumulated,
    **each("Softmax LogSoftmax", softmaxed),
    "Cast": cast,
    "MatMul": product,
    "BatchMatMul": batch_product(False),
    "BatchMatMulV2": batch_product(True),
    "Einsum": einsum,
    "Conv2D": convolution(4),
    "Conv3D": convolution(5),
    "DepthwiseConv2dNative": convolution(4, depthwise=True),
    "AvgPool": pool(4),
    "AvgPool3D": pool(5),
    "MaxPool": pool(4, explicit=True),
    "MaxPool3D": pool(5),
    "FusedBatchNormV3": normalised,
    "BiasAdd": biased,
    **each("Identity StopGradient Rank", alone),
    "IdentityN": identities,
    **each("Shape Size", sized),
    "BroadcastTo": broadcast,
    "ConcatV2": concatenated,
    "ExpandDims": expanded,
    "Fill": filled,
    "Gather": gathered,
    "GatherV2": gathered_v2,
    "MirrorPad": mirrored,
    "Pack": packed,
    "Pad": padded(),
    "PadV2": padded_v2,
    "Range": ranged,
    "Reshape": reshaped,
    "ReverseV2": reversed_case,
    "Slice": sliced,
    "Split": split,
    "SplitV": split_v,
    "Squeeze": squeezed,
    "StridedSlice": strided,
    "Tile": tiled,
    "Transpose": transposed,
    "Unpack": unpacked,
}

# Given from outside, or without a value: the tests of the graph run these.
GIVEN = {"Const", "Placeholder", "ReadVariableOp", "NoOp"}


# ---- what TensorFlow's CPU kernels do not have: other layouts, groups, dilations in 3-D


def channels_last(op: str, attributes: dict[str, Any], inputs: list[Any]) -> tuple[Any, ...]:
    """Return a case with channels last, and what turns the result back."""
    x = inputs[0]
    if attributes["data_format"].endswith("C"):
        return attributes, inputs, lambda y: y
    turned = dict(attributes, data_format="NHWC" if x.ndim == 4 else "NDHWC")
    for name in ("strides", "ksize", "dilations"):
        if name in turned:
            turned[name] = every_axis(turned[name][2:], True)
    if "explicit_paddings" in turned:
        turned["explicit_paddings"] = [0, 0, *turned["explicit_paddings"][4:], 0, 0]
    return turned, [np.moveaxis(x, 1, -1), *inputs[1:]], lambda y: np.moveaxis(y, -1, 1)


def convolved(op: str, attributes: dict[str, Any], inputs: list[Any]) -> list[np.ndarray]:
    attributes, (x, kernel), back = channels_last(op, attributes, inputs)
    dilations = attributes.pop("dilations")[1:-1]
    wide = np.zeros(
        [(k - 1) * d + 1 for k, d in zip(kernel.shape, dilations, strict=False)]
        + list(kernel.shape[-2:]),
        kernel.dtype,
    )
    wide[tuple(slice(None, None, d) for d in dilations)] = kernel
    if op == "DepthwiseConv2dNative":
        return [back(y) for y in expected(op, attributes, [x, wide])]
    groups = x.shape[-1] // kernel.shape[-2]
    parts = zip(np.split(x, groups, -1), np.split(wide, groups, -1), strict=True)
    found = [expected(op, attributes, [a, np.ascontiguousarray(b)])[0] for a, b in parts]
    return [back(np.concatenate(found, -1))]


def laid_out(op: str, attributes: dict[str, Any], inputs: list[Any]) -> list[np.ndarray]:
    attributes, inputs, back = channels_last(op, attributes, inputs)
    found = expected(op, attributes, inputs)
    return [back(found[0]), *found[1:]]


REFERENCES: dict[str, Callable[..., list[np.ndarray]]] = {
    **dict.fromkeys(("Conv2D", "Conv3D", "DepthwiseConv2dNative"), convolved),
    **dict.fromkeys(("AvgPool", "AvgPool3D", "MaxPool", "MaxPool3D"), laid_out),
    "FusedBatchNormV3": laid_out,
}


def test_every_operation_is_compared() -> None:
    assert OPS.keys() | GIVEN == OPERATIONS.keys()


@pytest.mark.parametrize("op", OPS)
def test_operation_is_tensorflows(op: str, one_thread: None) -> None:
    for seed in range(CASES):
        r = np.random.default_rng([zlib.crc32(op.encode()), seed])
        attributes, inputs = OPS[op](r)
        reference = REFERENCES.get(op, expected)
        right = reference(op, dict(attributes), inputs)
        sizes = reference(op, dict(attributes), magnitudes(inputs)) if op in SUMS else right
        assert_close(run(op, attributes, inputs), right, sizes, (op, seed, attributes, inputs))


@pytest.mark.parametrize("op", OPERATIONS)
def test_signature_is_that_of_tensorflows_registry(op: str) -> None:
    operation, definition = OPERATIONS[op], op_def_registry.get(op)

    def described(argument: Any) -> tuple[str, str, str, bool]:
        kind = argument.type_attr or argument.type_list_attr
        kind = kind or tf.as_dtype(argument.type).name
        listed = bool(argument.type_list_attr)
        return argument.name, kind, argument.number_attr, listed

    for ours, theirs in (
        (operation.inputs, definition.input_arg),
        (operation.outputs, definition.output_arg),
    ):
        assert [(a.name, a.type, a.number, a.listed) for a in ours] == list(map(described, theirs))
    assert operation.attributes == {a.name: a.type for a in definition.attr}
    defaults = {a.name: a.default_value for a in definition.attr if a.HasField("default_value")}
    assert operation.defaults.keys() == defaults.keys()
    given = {
        name: protos.AttrValue.FromString(v.SerializeToString()) for name, v in defaults.items()
    }
    required = {
        name: attribute(kind, {"type": 1, "int": 1, "string": "", "list(int)": []}.get(kind, [1]))
        for name, kind in operation.attributes.items()
        if name not in defaults and kind != "tensor"
    }
    if "value" in operation.attributes:
        required["value"] = protos.AttrValue(tensor={})
    left_out = operation.read(required)
    told = operation.read(required | given)
    for name in defaults:
        if operation.attributes[name] == "float":
            assert np.float32(left_out[name]) == np.float32(told[name])
        elif operation.attributes[name] != "shape":
            assert left_out[name] == told[name]
