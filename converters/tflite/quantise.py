"""A float32 TF Lite graph in 8 bits, activations too, as TF Lite's specification of int8 asks.

Weights have a scale for each channel; an activation has one scale and zero point, from the range
that it was seen to have. What adds up over a video stays float32, since no fixed range holds it,
and so do inputs and outputs: an app feeds the same tensors as before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
import torch

from converters.tflite.buffer import LiteGraph, LiteOperation, LiteTensor, eight_bit_kernel
from converters.tflite.schema import parse_lite_model
from converters.tflite.verify import LiteStream
from movinet_port.errors import MovinetPortError

# Number of a tensor -> the smallest and largest value that it was seen to have.
Ranges = Mapping[int, tuple[float, float]]

_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
# What must have one scale for all that goes in and comes out.
_SAME_SCALE = (
    *("RESHAPE", "STRIDED_SLICE", "PAD", "CONCATENATION", "AVERAGE_POOL_2D"),
    *("MINIMUM", "MAXIMUM"),
)
_QUANTISED = (
    *_CONVOLUTIONS,
    *_SAME_SCALE,
    *("ADD", "MUL", "MEAN", "HARD_SWISH", "LOGISTIC", "RELU", "RELU6"),
)
# Sums and shares of the video so far, and sinusoids of the frame's number.
_STAYS_FLOAT = ("global_average_pool3d/add", "global_average_pool3d/truediv", "positional_encoding")


def calibrate(graph: LiteGraph, clips: Iterable[torch.Tensor]) -> dict[int, tuple[float, float]]:
    """Compute a graph on clips, and return the range of each tensor.

    Args:
        graph: float32.
        clips: consecutive (1, frames, height, width, 3) of one video, or of several one after the
            other; a state goes on from clip to clip.

    Raises:
        MovinetPortError: there is no clip.
    """
    model = parse_lite_model(graph.write({}))
    stream = LiteStream(model)
    wanted = [i for i, t in enumerate(graph.tensors) if t.dtype == "float32" and t.data is None]
    ranges: dict[int, tuple[float, float]] = {}
    for clip in clips:
        for index, value in stream.watch(clip, wanted).items():
            low, high = ranges.get(index, (0.0, 0.0))
            ranges[index] = min(low, float(value.min())), max(high, float(value.max()))
    if not ranges:
        raise MovinetPortError("8-bit activations need at least one frame to be calibrated on")
    return ranges


def in_8_bits(graph: LiteGraph, ranges: Ranges) -> LiteGraph:
    """Return a graph whose convolutions and what is between them are computed in 8 bits.

    Args:
        graph: float32, from `converters.tflite.emit.build_lite`.
        ranges: of `calibrate`.
    """
    return _Quantiser(graph, ranges).run()


@dataclasses.dataclass(frozen=True)
class _Scale:
    scale: float
    zero_point: int


class _Quantiser:
    def __init__(self, graph: LiteGraph, ranges: Ranges) -> None:
        self._graph = graph
        self._ranges = ranges
        self._made = LiteGraph(graph.description)
        self._eight = [operation for operation in graph.operations if _takes(graph, operation)]
        self._class = list(range(len(graph.tensors)))
        for operation in self._eight:
            if operation.kind in _SAME_SCALE:
                for index in self._values(operation):
                    self._join(index, operation.output)
        self._scales = self._find_scales()
        # Number of a tensor -> its number in the new graph, in float32 and in 8 bits.
        self._float: dict[int, int] = {}
        self._int8: dict[int, int] = {}

    def run(self) -> LiteGraph:
        """Write every operation, and what turns numbers from one kind to the other."""
        graph, made = self._graph, self._made
        for name, index in graph.inputs.items():
            made.inputs[name] = self._float[index] = made.add(graph.tensors[index])
        eight = {id(operation) for operation in self._eight}
        for operation in graph.operations:
            if id(operation) in eight:
                self._quantised(operation)
            else:
                inputs = [self._in_float(index) for index in operation.inputs]
                self._float[operation.output] = made.again(
                    operation, inputs, graph.tensors[operation.output]
                )
        for name, index in graph.outputs.items():
            made.outputs[name] = self._in_float(index)
        return made

    # Scales ------------------------------------------------------------------------------------

    def _values(self, operation: LiteOperation) -> list[int]:
        """Return the inputs that are numbers of the network, and no shape or axis."""
        return [i for i in operation.inputs if self._graph.tensors[i].dtype == "float32"]

    def _root(self, index: int) -> int:
        while self._class[index] != index:
            index = self._class[index]
        return index

    def _join(self, one: int, other: int) -> None:
        self._class[self._root(one)] = self._root(other)

    def _find_scales(self) -> dict[int, _Scale]:
        ranges: dict[int, tuple[float, float]] = {}
        for index, tensor in enumerate(self._graph.tensors):
            if tensor.dtype != "float32":
                continue
            low, high = self._ranges.get(index, (0.0, 0.0))
            if tensor.data is not None:
                low, high = float(tensor.data.min()), float(tensor.data.max())
            root = self._root(index)
            before = ranges.get(root, (0.0, 0.0))
            # Zero must be a number of its own, for padding.
            ranges[root] = min(low, before[0]), max(high, before[1])
        scales = {}
        for root, (low, high) in ranges.items():
            scale = max((high - low) / 255, float(np.finfo(np.float32).tiny))
            scales[root] = _Scale(scale, round(-128 - low / scale))
        for operation in self._eight:
            if operation.kind == "LOGISTIC":
                # The specification fixes it.
                scales[self._root(operation.output)] = _Scale(1 / 256, -128)
        return scales

    def _scale(self, index: int) -> _Scale:
        return self._scales[self._root(index)]

    # Tensors -----------------------------------------------------------------------------------

    def _eight_bits(self, index: int, data: np.ndarray | None = None) -> LiteTensor:
        tensor, how = self._graph.tensors[index], self._scale(index)
        return LiteTensor(
            tensor.name,
            tensor.shape,
            "int8",
            data,
            np.array([how.scale], np.float32),
            zero_point=how.zero_point,
        )

    def _in_8_bits(self, index: int) -> int:
        """Return a value in 8 bits, turned into them if it is not."""
        if index not in self._int8:
            tensor, how = self._graph.tensors[index], self._scale(index)
            if tensor.data is not None:
                numbers = np.round(tensor.data / how.scale) + how.zero_point
                data = np.clip(numbers, -128, 127).astype(np.int8)
                self._int8[index] = self._made.add(self._eight_bits(index, data))
            else:
                quantise = LiteOperation("QUANTIZE", (self._float[index],), -1, {})
                self._int8[index] = self._made.again(
                    quantise, quantise.inputs, self._eight_bits(index)
                )
        return self._int8[index]

    def _in_float(self, index: int) -> int:
        """Return a value in float32, turned into it if it is in 8 bits."""
        if index not in self._float:
            tensor = self._graph.tensors[index]
            if index in self._int8:
                back = LiteOperation("DEQUANTIZE", (self._int8[index],), -1, {})
                self._float[index] = self._made.again(back, back.inputs, tensor)
            else:
                self._float[index] = self._made.add(tensor)
        return self._float[index]

    # Operations --------------------------------------------------------------------------------

    def _quantised(self, operation: LiteOperation) -> None:
        if operation.kind in _CONVOLUTIONS:
            inputs = self._of_convolution(operation)
        else:
            inputs = [
                self._in_8_bits(i)
                if self._graph.tensors[i].dtype == "float32"
                else self._in_float(i)
                for i in operation.inputs
            ]
        self._int8[operation.output] = self._made.again(
            operation, inputs, self._eight_bits(operation.output)
        )

    def _of_convolution(self, operation: LiteOperation) -> list[int]:
        x, weight, bias = operation.inputs
        kernel, offsets = self._graph.tensors[weight], self._graph.tensors[bias]
        assert kernel.data is not None
        assert offsets.data is not None
        axis = 3 if operation.kind == "DEPTHWISE_CONV_2D" else 0
        scale, numbers = eight_bit_kernel(kernel.data, axis)
        # A bias is added to products, and is worth what they are; in float64, that it may be exact.
        worth = self._scale(x).scale * scale.astype(np.float64)
        limit = np.iinfo(np.int32).max
        biases = np.clip(np.round(offsets.data / worth), -limit, limit).astype(np.int32)
        made = self._made
        return [
            self._in_8_bits(x),
            made.add(LiteTensor(kernel.name, kernel.shape, "int8", numbers, scale, axis)),
            made.add(
                LiteTensor(offsets.name, offsets.shape, "int32", biases, worth.astype(np.float32))
            ),
        ]


def _takes(graph: LiteGraph, operation: LiteOperation) -> bool:
    """Whether an operation is computed in 8 bits."""
    output = graph.tensors[operation.output]
    if operation.kind not in _QUANTISED or output.dtype != "float32":
        return False
    return not any(words in output.name for words in _STAYS_FLOAT)
