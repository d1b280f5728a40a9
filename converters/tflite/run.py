"""Computing a TF Lite file operation by operation in PyTorch.

Quantised numbers are taken for the real ones that they stand for, and nothing is rounded to 8 bits
on the way: this is the network that the file holds, not what a phone makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from converters.errors import ConversionError
from converters.tflite.schema import LiteModel, Operation
from movinet_port.layers import same_padding

# What an operation does to its result at once.
FUSED: Mapping[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": torch.relu,
    "relu_n1_to_1": lambda x: x.clamp(-1.0, 1.0),
    "relu6": lambda x: x.clamp(0.0, 6.0),
    "tanh": torch.tanh,
}

# The largest network's largest activation has some 100 million numbers.
_MOST_NUMBERS = 1 << 30

Compute = Callable[[Operation, Sequence[Any]], Tensor]


class LiteRunner:
    """A TF Lite file's graph, ready to be computed.

    Args:
        model: the file.
        dtype: what floating-point numbers are computed in.
        constants: (number of the operation, position of its input) -> what stands there in place
            of the file's constant.

    Raises:
        ConversionError: an operation is not known; it is named.
    """

    def __init__(
        self,
        model: LiteModel,
        dtype: torch.dtype = torch.float64,
        constants: Mapping[tuple[int, int], Tensor] | None = None,
    ) -> None:
        unknown = sorted({op.kind for op in model.operations} - OPERATIONS.keys())
        if unknown:
            raise ConversionError(
                f"operations of the file are not known: {', '.join(unknown)}; a MoViNet has none "
                f"of them"
            )
        self._model = model
        self._dtype = dtype
        self._given = constants or {}
        self._constants: dict[int, Tensor] = {}
        self._last_use: dict[int, int] = {}
        for operation in model.operations:
            self._last_use.update(dict.fromkeys(operation.inputs, operation.index))

    def __call__(
        self, inputs: Mapping[int, Tensor], wanted: Iterable[int] | None = None
    ) -> dict[int, Tensor]:
        """Compute the graph.

        Args:
            inputs: number of a tensor -> value; any tensor may be given, and what leads to it is
                not computed.
            wanted: numbers of tensors; by default the graph's outputs.

        Returns:
            number -> value.

        Raises:
            ConversionError: an operation's inputs do not fit it, or one is missing.
        """
        keep = set(self._model.outputs if wanted is None else wanted)
        values = {index: self._typed(value) for index, value in inputs.items()}
        needed = self._needed(keep, values)
        found = {index: values[index] for index in keep & values.keys()}
        for operation in self._model.operations:
            if operation.index not in needed:
                continue
            (output,) = operation.outputs
            values[output] = self._compute(operation, values)
            if output in keep:
                found[output] = values[output]
            for index in set(operation.inputs):
                if self._last_use[index] == operation.index:
                    values.pop(index, None)
        return found

    def constant(self, index: int) -> Tensor:
        """Return a constant as the numbers it stands for."""
        if index not in self._constants:
            real = self._model.tensors[index].real()
            self._constants[index] = self._typed(torch.from_numpy(np.array(real)))
        return self._constants[index]

    def _typed(self, value: Tensor) -> Tensor:
        return value.to(self._dtype) if value.is_floating_point() else value

    def _needed(self, wanted: set[int], known: Mapping[int, Tensor]) -> set[int]:
        needed, open_ = set(), set(wanted) - known.keys()
        for operation in reversed(self._model.operations):
            if open_.intersection(operation.outputs):
                needed.add(operation.index)
                open_.difference_update(operation.outputs)
                open_.update(i for i in operation.inputs if i >= 0 and i not in known)
        missing = [i for i in open_ if self._model.tensors[i].data is None]
        if missing:
            names = ", ".join(self._model.tensors[i].name or str(i) for i in sorted(missing)[:3])
            raise ConversionError(f"the file's graph needs {len(missing)} further inputs: {names}")
        return needed

    def _compute(self, operation: Operation, values: Mapping[int, Tensor]) -> Tensor:
        inputs: list[Tensor | None] = []
        for position, index in enumerate(operation.inputs):
            given = self._given.get((operation.index, position))
            if given is not None:
                inputs.append(given.to(self._dtype))
            elif index < 0:
                inputs.append(None)
            else:
                inputs.append(values[index] if index in values else self.constant(index))
        return self._apply(operation, inputs)

    def one_by_one(self, operation: Operation, inputs: Sequence[Tensor]) -> Tensor:
        """Return what an operation makes of numbers that stand for themselves, in any shape."""
        if operation.kind in ("RESHAPE", "EXPAND_DIMS", "SQUEEZE"):
            return inputs[0]
        return self._apply(operation, inputs)

    def _apply(self, operation: Operation, inputs: Sequence[Tensor | None]) -> Tensor:
        try:
            result = OPERATIONS[operation.kind](operation, inputs)
        # PyTorch refuses what does not fit by RuntimeError, the operations here by the others.
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConversionError(
                f"operation {operation.index} ({operation.kind}) cannot be computed: {reason}"
            ) from error
        if result.numel() > _MOST_NUMBERS:
            raise ConversionError(
                f"operation {operation.index} ({operation.kind}) makes {result.numel():,} numbers"
            )
        activation = operation.options.get("activation", "linear")
        return FUSED[activation](result)


# Operations ------------------------------------------------------------------------------------


def _convolve(op: Operation, inputs: Sequence[Any]) -> Tensor:
    x, weight = inputs[0], inputs[1]
    bias = inputs[2] if len(inputs) > 2 else None
    depthwise = op.kind == "DEPTHWISE_CONV_2D"
    if op.options["dilations"] != (1, 1):
        raise ValueError(f"dilations {op.options['dilations']}, which no MoViNet has")
    # (out, height, width, in), or (1, height, width, channels).
    kernel = weight.permute(3, 0, 1, 2) if depthwise else weight.permute(0, 3, 1, 2)
    strides = _positive(op.options["strides"])
    planes = x.permute(0, 3, 1, 2)
    groups = planes.shape[1] // kernel.shape[1]
    if op.options["padding"] == "SAME":
        planes = F.pad(planes, _same(planes.shape[2:], kernel.shape[2:], strides))
    return F.conv2d(planes, kernel, bias, strides, groups=groups).permute(0, 2, 3, 1)


def _convolve_3d(op: Operation, inputs: Sequence[Any]) -> Tensor:
    x, weight = inputs[0], inputs[1]
    bias = inputs[2] if len(inputs) > 2 else None
    kernel = weight.permute(4, 3, 0, 1, 2)
    strides = _positive(op.options["strides"])
    planes = x.permute(0, 4, 1, 2, 3)
    if op.options["padding"] == "SAME":
        planes = F.pad(planes, _same(planes.shape[2:], kernel.shape[2:], strides))
    groups = planes.shape[1] // kernel.shape[1]
    return F.conv3d(planes, kernel, bias, strides, groups=groups).permute(0, 2, 3, 4, 1)


def _positive(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if min(numbers) < 1:
        raise ValueError(f"strides or a window of {numbers}")
    return numbers


def _same(sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int]) -> list[int]:
    pads: list[int] = []
    for size, window, stride in reversed(list(zip(sizes, kernel, strides, strict=True))):
        pads += same_padding(size, window, stride)
    return pads


def _average_pool(op: Operation, inputs: Sequence[Any]) -> Tensor:
    window, strides = _positive(op.options["window"]), _positive(op.options["strides"])
    planes = inputs[0].permute(0, 3, 1, 2)
    pads = [0, 0, 0, 0]
    if op.options["padding"] == "SAME":
        pads = _same(planes.shape[2:], window, strides)

    def sums(x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x, pads), window, strides, divisor_override=1)

    # Padded cells do not count.
    return (sums(planes) / sums(torch.ones_like(planes[:1, :1]))).permute(0, 2, 3, 1)


def _fully_connected(op: Operation, inputs: Sequence[Any]) -> Tensor:
    x, weight = inputs[0], inputs[1]
    bias = inputs[2] if len(inputs) > 2 else None
    if op.options["format"]:
        raise ValueError(f"weights in format {op.options['format']}")
    rows = x if op.options["keep_dims"] else x.reshape(-1, weight.shape[1])
    return F.linear(rows, weight, bias)


def _axes(axes: Any) -> list[int]:
    return [int(axis) for axis in axes.reshape(-1).tolist()]


def _reduce(function: Callable[..., Tensor]) -> Compute:
    def compute(op: Operation, inputs: Sequence[Any]) -> Tensor:
        return function(inputs[0], _axes(inputs[1]), op.options["keep_dims"])

    return compute


def _strided_slice(op: Operation, inputs: Sequence[Any]) -> Tensor:
    x, begin, end, strides = inputs[0], *(_axes(value) for value in inputs[1:4])
    options = op.options
    if options["ellipsis_mask"] or options["new_axis_mask"] or options["offset"]:
        raise ValueError("a slice with an ellipsis, a new axis or an offset")
    index: list[slice | int] = []
    for axis, (first, last, step) in enumerate(zip(begin, end, strides, strict=True)):
        bit = 1 << axis
        if options["shrink_axis_mask"] & bit:
            index.append(first)
            continue
        if step < 1:
            raise ValueError(f"a slice with stride {step}")
        start = None if options["begin_mask"] & bit else first
        index.append(slice(start, None if options["end_mask"] & bit else last, step))
    result: Tensor = x[tuple(index)]
    return result


def _range(op: Operation, inputs: Sequence[Any]) -> Tensor:
    start, limit, delta = (value.item() for value in inputs)
    if delta == 0 or (limit - start) / delta > _MOST_NUMBERS:
        raise ValueError(f"a range from {start} to {limit} by {delta}")
    return torch.arange(start, limit, delta, dtype=inputs[0].dtype)


def _pad(op: Operation, inputs: Sequence[Any]) -> Tensor:
    amounts: list[list[int]] = inputs[1].tolist()
    if min(min(pair) for pair in amounts) < 0:
        raise ValueError(f"padding by {amounts}")
    return F.pad(inputs[0], [cell for pair in reversed(amounts) for cell in pair])


def _cast(op: Operation, inputs: Sequence[Any]) -> Tensor:
    # The type is the output tensor's; the runner's own is float64 whatever the file says.
    x: Tensor = inputs[0]
    return x if x.is_floating_point() else x.to(torch.float64)


def _plain(function: Callable[..., Tensor]) -> Compute:
    return lambda op, inputs: function(*inputs)


# A quantised tensor is taken for what it stands for, so that quantising does nothing.
_identity = _plain(lambda x: x)

OPERATIONS: Mapping[str, Compute] = {
    "ADD": _plain(torch.add),
    "AVERAGE_POOL_2D": _average_pool,
    "BROADCAST_TO": _plain(lambda x, shape: x.expand(_axes(shape))),
    "CAST": _cast,
    "CONCATENATION": lambda op, inputs: torch.cat(list(inputs), op.options["axis"]),
    "CONV_2D": _convolve,
    "CONV_3D": _convolve_3d,
    "COS": _plain(torch.cos),
    "CUMSUM": lambda op, inputs: torch.cumsum(inputs[0], _axes(inputs[1])[0]),
    "DEPTHWISE_CONV_2D": _convolve,
    "DEQUANTIZE": _identity,
    "DIV": _plain(torch.div),
    "EXPAND_DIMS": _plain(lambda x, axis: x.unsqueeze(_axes(axis)[0])),
    "FULLY_CONNECTED": _fully_connected,
    "HARD_SWISH": _plain(lambda x: x * (x + 3).clamp(0, 6) / 6),
    "LOGISTIC": _plain(torch.sigmoid),
    "MAXIMUM": _plain(torch.maximum),
    "MEAN": _reduce(torch.mean),
    "MINIMUM": _plain(torch.minimum),
    "MUL": _plain(torch.mul),
    "NEG": _plain(torch.neg),
    "PAD": _pad,
    "POW": _plain(torch.pow),
    "QUANTIZE": _identity,
    "RANGE": _range,
    "RELU": _plain(torch.relu),
    "RELU6": _plain(FUSED["relu6"]),
    "RELU_0_TO_1": _plain(lambda x: x.clamp(0.0, 1.0)),
    "RESHAPE": _plain(lambda x, shape: x.reshape(_axes(shape))),
    "RSQRT": _plain(torch.rsqrt),
    "SIN": _plain(torch.sin),
    "SOFTMAX": lambda op, inputs: torch.softmax(inputs[0] * op.options["beta"], -1),
    "SQRT": _plain(torch.sqrt),
    "SQUARE": _plain(torch.square),
    "SQUEEZE": lambda op, inputs: inputs[0].squeeze(op.options["axes"]),
    "STRIDED_SLICE": _strided_slice,
    "SUB": _plain(torch.sub),
    "SUM": _reduce(torch.sum),
    "TRANSPOSE": _plain(lambda x, axes: x.permute(_axes(axes))),
}
