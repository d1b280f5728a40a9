"""The network as an ONNX graph, written node by node from its spec and weights.

Not traced: what PyTorch computes from a clip's size, SAME padding above all, ONNX has attributes
for, so that every size stays free. Batch normalisations are folded into the convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from movinet_port.export.shape import LOGITS, NEXT, VIDEO, Axis
from movinet_port.functions import KERAS_LINE, SIXTH
from movinet_port.layers import encoding_rates, legacy_padding, same_padding
from movinet_port.spec import LayerSpec, ModelSpec, Triple
from movinet_port.stages import bottleneck
from movinet_port.streams import FRAME_COUNT, POOL_BUFFER, STREAM_BUFFER

if TYPE_CHECKING:
    import onnx

OPSET = 18
# Understood by every ONNX Runtime since 1.14 (February 2023).
IR_VERSION = 8


def build_onnx(
    spec: ModelSpec,
    weights: Mapping[str, Tensor],
    inputs: Mapping[str, Sequence[Axis]],
    metadata: Mapping[str, str],
) -> onnx.ModelProto:
    """Return the network as an ONNX model.

    Args:
        spec: the architecture.
        weights: the state dict of ``MoViNet(spec)``.
        inputs: name -> axes: "video", then the states of a stream network.
        metadata: what goes into ``metadata_props``.
    """
    one_frame = spec.causal and spec.splits_time and inputs[VIDEO][2] == 1
    emitter = _FrameEmitter if one_frame and spec.stem.kernel_size[0] == 1 else _Emitter
    return emitter(spec, weights, inputs).model(metadata)


class _Emitter:
    """Emits one network; every value is (batch, channels, frames, height, width)."""

    # The last axes of an activation.
    space: tuple[int, ...] = (3, 4)

    def __init__(
        self,
        spec: ModelSpec,
        weights: Mapping[str, Tensor],
        inputs: Mapping[str, Sequence[Axis]],
    ) -> None:
        from onnx import helper, numpy_helper

        self._helper = helper
        self._to_proto = numpy_helper.from_array
        self.spec = spec
        self.weights = weights
        self.inputs = inputs
        self.nodes: list[Any] = []
        self.initialisers: dict[str, Any] = {}
        self.states: dict[str, str] = {}
        # Height and width of what the stages hand on.
        self._size: tuple[Axis, Axis] = inputs[VIDEO][3], inputs[VIDEO][4]

    def model(self, metadata: Mapping[str, str]) -> onnx.ModelProto:
        """Emit everything."""
        make = self._helper
        self._network()
        video = self.inputs[VIDEO]
        graph = make.make_graph(
            self.nodes,
            f"movinet_{self.spec.name}_{self.spec.mode}",
            [self._value(name, axes) for name, axes in self.inputs.items()],
            [
                self._value(LOGITS, (video[0], self.spec.num_classes)),
                *(self._value(name + NEXT, self.inputs[name]) for name in self.states),
            ],
            list(self.initialisers.values()),
        )
        model = make.make_model(
            graph,
            producer_name="movinet-port",
            opset_imports=[make.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
        )
        make.set_model_props(model, dict(metadata))
        return model

    def _value(self, name: str, axes: Sequence[Axis]) -> Any:
        from onnx import TensorProto

        kind = TensorProto.INT64 if name.startswith(FRAME_COUNT) else TensorProto.FLOAT
        return self._helper.make_tensor_value_info(name, kind, list(axes))

    def op(self, kind: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Add a node whose one output has the node's name."""
        self.nodes.append(self._helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def constant(self, name: str, value: Any, dtype: type = np.float32) -> str:
        """Add an initialiser; the same name is the same value."""
        if name not in self.initialisers:
            self.initialisers[name] = self._to_proto(np.asarray(value, dtype), name)
        return name

    def ints(self, *values: int) -> str:
        """Add a list of whole numbers."""
        return self.constant(f"ints_{'_'.join(map(str, values))}", values, np.int64)

    def state(self, name: str, value: str) -> None:
        """Let `value` be the state of this name after the clip."""
        if self.spec.causal:
            self.states[name] = self.op("Identity", name + NEXT, value)

    def _network(self) -> None:
        spec = self.spec
        if spec.causal:
            self._count_frames()
        stem = spec.stem
        shape = stem.kernel_size, stem.strides
        x = self._stream_block("stem", VIDEO, shape, 3, stem.filters)
        for layer in spec.layers():
            x = bottleneck(self, layer, x)
        x = self._conv("head", x, activation=spec.activation)
        x = self._clip_pool("head", x)
        x = self._conv("classifier.hidden", x, norm=False, activation=spec.classifier_activation)
        x = self._conv("classifier.output", x, norm=False)
        self.op("Flatten", LOGITS, x, axis=1)
        if spec.causal:
            self.state(FRAME_COUNT, self.op("Add", "frames_seen", FRAME_COUNT, "frames"))

    def _count_frames(self) -> None:
        """Emit what several layers need: frames of the clip, and of the video up to each frame."""
        zero, one = self.constant("zero", 0, np.int64), self.constant("one", 1, np.int64)
        self.op("Shape", "frames_axis", VIDEO, start=2, end=3)
        frames = self.op("Squeeze", "frames", "frames_axis")
        numbers = self.op("Range", "frame_numbers", zero, frames, one)
        before = self.op("Unsqueeze", "frames_before", FRAME_COUNT, self.ints(1))
        self.op("Add", "positions", before, numbers)  # (batch, frames)
        counts = self.op("Add", "counts", "positions", one)
        counts = self.op("Cast", "counts_float", counts, to=1)
        self.op("Unsqueeze", "seen", counts, self.ints(1, 3, 4))

    def residual(self, layer: LayerSpec, x: str) -> str:
        """Emit what the projection is added to."""
        if not layer.has_skip_projection:
            return x
        if layer.downsamples:
            x = self._average_pool(f"{layer.name}.skip.pool", x)
        return self._conv(f"{layer.name}.skip", x)

    def convolve(self, layer: LayerSpec, x: str) -> str:
        """Emit the expansion and the depthwise convolution."""
        x = self._conv(f"{layer.name}.expansion", x, activation=self.spec.activation)
        shape, width = (layer.kernel_size, layer.strides), layer.expand_filters
        return self._stream_block(f"{layer.name}.depthwise", x, shape, width, width)

    def gate(self, layer: LayerSpec, wide: str) -> str:
        """Emit the squeeze-excitation."""
        return wide if self.spec.se_type == "none" else self._squeeze_excitation(layer.name, wide)

    def narrow(self, layer: LayerSpec, gated: str, residual: str) -> str:
        """Emit the projection and the sum."""
        scale = self._numpy(f"{layer.name}.rezero.scale")
        x = self._conv(f"{layer.name}.projection", gated, scale=scale)
        return self.op("Add", f"{layer.name}.sum", x, residual)

    def _stream_block(
        self,
        name: str,
        x: str,
        kernel_and_strides: tuple[Triple, Triple],
        in_channels: int,
        out_channels: int,
    ) -> str:
        """Emit a convolution over several frames, which in a stream network has a buffer."""
        kernel, strides = kernel_and_strides
        spec, activation = self.spec, self.spec.activation
        groups = in_channels if name != "stem" else 1
        size = height, width = self._size
        self._size = _strided(height, strides[1]), _strided(width, strides[2])
        if spec.splits_time and kernel[0] > 1:
            spatial, temporal = (1, *kernel[1:]), (kernel[0], 1, 1)
            x = self._conv(
                name, x, spatial, strides, size=size, groups=groups, activation=activation
            )
            x = self._with_buffer(name, x, kernel[0])
            x = self._conv(
                name, x, temporal, groups=groups, activation=activation, part="temporal_"
            )
        else:
            x = self._with_buffer(name, x, kernel[0])
            x = self._conv(
                name, x, kernel, strides, size=size, groups=groups, activation=activation
            )
        return x

    def _with_buffer(self, name: str, x: str, frames: int) -> str:
        if not self.spec.causal or frames == 1:
            return x
        state = f"{name.removesuffix('.depthwise')}.{STREAM_BUFFER}"
        x = self.op("Concat", f"{name}.with_buffer", state, x, axis=2)
        last = (self.ints(1 - frames), self.ints(np.iinfo(np.int64).max), self.ints(2))
        self.state(state, self.op("Slice", f"{name}.last_frames", x, *last))
        return x

    def _conv(
        self,
        name: str,
        x: str,
        kernel: Triple = (1, 1, 1),
        strides: Triple = (1, 1, 1),
        *,
        size: tuple[Axis, Axis] | None = None,
        groups: int = 1,
        norm: bool = True,
        activation: str | None = None,
        scale: NDArray[Any] | None = None,
        part: str = "",
    ) -> str:
        """Emit a convolution with what belongs to it folded in, and its activation."""
        conv = f"{name}.{part}conv"
        weight, bias = self._folded(conv, f"{name}.{part}norm" if norm else None, scale)
        padding, cut = self._padding(kernel, strides, size)
        x = self._emit_conv(
            conv, x, weight, bias, kernel_shape=kernel, strides=strides, group=groups, **padding
        )
        if cut is not None:
            x = self.op("Slice", f"{conv}.valid", x, *(self.ints(n) for n in (*cut, 2)))
        return (
            x if activation is None else self._activation(f"{name}.{part}activation", activation, x)
        )

    def _emit_conv(
        self, name: str, x: str, weight: NDArray[Any], bias: NDArray[Any], **attributes: Any
    ) -> str:
        parameters = (
            self.constant(f"{name}.weight", weight),
            self.constant(f"{name}.bias", bias),
        )
        return self.op("Conv", name, x, *parameters, **attributes)

    def _padding(
        self, kernel: Triple, strides: Triple, size: tuple[Axis, Axis] | None
    ) -> tuple[dict[str, Any], tuple[int, int] | None]:
        """Return the padding, and which frames of the result are to be kept if not all.

        ONNX can pad as TensorFlow whatever the size, but then every axis: frames too.
        """
        spec = self.spec
        legacy = spec.causal_padding == "legacy"
        before, after = [0], [0]
        if not spec.causal:
            before[0], after[0] = same_padding(1, kernel[0], 1)
        for k, stride, axis in zip(kernel[1:], strides[1:], size or (1, 1), strict=True):
            # Padding depends on the size in strided convolutions only.
            known = axis if isinstance(axis, int) else 1
            if legacy:
                pads = legacy_padding(k)
            elif isinstance(axis, int) or stride == 1 or k == 1:
                pads = same_padding(known, k, stride)
            elif not spec.causal or kernel[0] == 1:
                return {"auto_pad": "SAME_UPPER"}, None
            else:
                first, last = same_padding(1, kernel[0], 1)
                return {"auto_pad": "SAME_UPPER"}, (first, -last)
            before.append(pads[0])
            after.append(pads[1])
        return {"pads": [*before, *after]}, None

    def _average_pool(self, name: str, x: str) -> str:
        return self._emit_pool(name, x, (1, 3, 3), (1, 2, 2))

    def _emit_pool(self, name: str, x: str, kernel: Sequence[int], strides: Sequence[int]) -> str:
        return self.op(
            "AveragePool",
            name,
            x,
            kernel_shape=kernel,
            strides=strides,
            **self._pool_padding(kernel),
        )

    def _pool_padding(self, kernel: Sequence[int]) -> dict[str, Any]:
        if not self.spec.pool_counts_padding:
            return {"auto_pad": "SAME_UPPER", "count_include_pad": 0}
        return {"pads": [k // 2 for k in kernel] * 2, "count_include_pad": 1}

    def _squeeze_excitation(self, layer: str, x: str) -> str:
        spec, name = self.spec, f"{layer}.squeeze_excitation"
        spatial = None
        pooled = x
        if spec.se_type in ("2d", "2plus3d"):
            pooled = spatial = self.op(
                "ReduceMean", f"{name}.spatial_pool", x, self.ints(*self.space)
            )
        if spec.se_type != "2d":
            pool = self._cumulative_pool if spec.causal else self._clip_pool
            pooled = pool(layer, pooled)
        if spec.se_type == "2plus3d":
            assert spatial is not None
            if not spec.causal:
                shape = self.op("Shape", f"{name}.shape", spatial)
                pooled = self.op("Expand", f"{name}.expanded", pooled, shape)
            pooled = self.op("Concat", f"{name}.pooled", pooled, spatial, axis=1)
        if spec.positional_encoding:
            pooled = self._positional_encoding(f"{name}.positional_encoding", pooled, layer)
        gate = self._conv(f"{name}.reduce", pooled, norm=False, activation=spec.activation)
        gate = self._conv(f"{name}.expand", gate, norm=False, activation=spec.gate)
        return self.op("Mul", name, x, gate)

    def _cumulative_pool(self, layer: str, x: str) -> str:
        """Emit the mean over the video up to each frame."""
        name = f"{layer}.cumulative_pool"
        if self.spec.se_type == "3d":
            x = self.op("ReduceMean", f"{name}.mean", x, self.ints(3, 4))
        total = self.op("CumSum", f"{name}.clip", x, self.constant("frame_axis", 2, np.int64))
        total = self.op("Add", f"{name}.total", total, f"{layer}.{POOL_BUFFER}")
        last = (self.ints(-1), self.ints(np.iinfo(np.int64).max), self.ints(2))
        self.state(f"{layer}.{POOL_BUFFER}", self.op("Slice", f"{name}.last", total, *last))
        return self.op("Div", name, total, "seen")

    def _clip_pool(self, layer: str, x: str) -> str:
        """Emit the mean over the clip, or over the video so far if there is one."""
        name = f"{layer}.clip_pool"
        if not self.spec.causal:
            return self.op("ReduceMean", name, x, self.ints(2, 3, 4))
        frames = self.op("ReduceMean", f"{name}.frames", x, self.ints(3, 4))
        total = self.op("ReduceSum", f"{name}.clip", frames, self.ints(2))
        total = self.op("Add", f"{name}.total", total, f"{layer}.{POOL_BUFFER}")
        self.state(f"{layer}.{POOL_BUFFER}", total)
        seen = (self.ints(-1), self.ints(np.iinfo(np.int64).max), self.ints(2))
        return self.op("Div", name, total, self.op("Slice", f"{name}.seen", "seen", *seen))

    def _positional_encoding(self, name: str, x: str, layer: str) -> str:
        # The numbers are computed as the network does, so that they are the same.
        channels = self.spec.se_pooled_filters(self._width(layer))
        rate = encoding_rates(channels, torch.float32, "cpu").numpy()[None, :, None]
        if "positions_float" not in (node.name for node in self.nodes):
            positions = self.op("Cast", "positions_float", "positions", to=1)
            self.op("Unsqueeze", "position", positions, self.ints(1))  # (batch, 1, frames)
        waves = [
            self.op(
                wave,
                f"{name}.{wave.lower()}",
                self.op(
                    "Mul",
                    f"{name}.{wave.lower()}_angle",
                    self.constant(f"rate_{channels}_{wave.lower()}", rate[:, start::2]),
                    "position",
                ),
            )
            for wave, start in (("Sin", 0), ("Cos", 1))
        ]
        encoding = self.op("Concat", f"{name}.waves", *waves, axis=1)
        scale = self.constant(f"{name}.scale", self._numpy(f"{name}.scale"))
        encoding = self.op("Mul", f"{name}.scaled", encoding, scale)
        return self.op("Add", name, x, self._encoding(f"{name}.encoding", encoding))

    def _encoding(self, name: str, x: str) -> str:
        """Give (batch, channels, frames) the axes of an activation."""
        return self.op("Unsqueeze", name, x, self.ints(3, 4))

    def _width(self, name: str) -> int:
        return next(layer.expand_filters for layer in self.spec.layers() if layer.name == name)

    def _activation(self, name: str, kind: str, x: str) -> str:
        if kind == "swish":
            return self.op("Mul", name, x, self.op("Sigmoid", f"{name}.sigmoid", x))
        if kind == "hard_sigmoid_relu6":
            x = self.op("Add", f"{name}.plus_3", x, self.constant("three", 3.0))
            x = self._clip(f"{name}.relu6", x, 6.0)
            return self.op("Mul", name, x, self.constant("sixth", SIXTH))
        if kind == "relu6":
            return self._clip(name, x, 6.0)
        line = KERAS_LINE if kind == "hard_sigmoid_keras" else None
        attributes = {} if line is None else {"alpha": line.slope, "beta": line.constant}
        return self.op(_ACTIVATIONS[kind], name, x, **attributes)

    def _clip(self, name: str, x: str, high: float) -> str:
        return self.op(
            "Clip", name, x, self.constant("low_0", 0.0), self.constant(f"high_{high:g}", high)
        )

    def _numpy(self, name: str) -> NDArray[Any]:
        return self.weights[name].detach().to("cpu", torch.float64).numpy()

    def _folded(
        self, conv: str, norm: str | None, scale: NDArray[Any] | None
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return weight and bias of a convolution and of what is linear behind it."""
        weight = self._numpy(f"{conv}.weight")
        if norm is None:
            return weight, self._numpy(f"{conv}.bias")
        gamma, beta, mean, variance = (
            self._numpy(f"{norm}.{leaf}")
            for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        factor = gamma / np.sqrt(variance + self.spec.norm_epsilon)
        bias = beta - mean * factor
        if scale is not None:
            factor, bias = factor * scale, bias * scale
        return weight * factor[:, None, None, None, None], bias


class _FrameEmitter(_Emitter):
    """Emits a (2+1)-D stream network that sees one frame at a time, with 2-D operations.

    Values are (batch, channels, height, width), which runtimes have their fastest kernels for.
    """

    space = (2, 3)

    def _network(self) -> None:
        self._frame = self.op("Squeeze", "frame", VIDEO, self.ints(2))
        super()._network()

    def _stream_block(self, name: str, x: str, *rest: Any) -> str:
        return super()._stream_block(name, self._frame if x == VIDEO else x, *rest)

    def _with_buffer(self, name: str, x: str, frames: int) -> str:
        return super()._with_buffer(name, self._with_frames(x), frames) if frames > 1 else x

    def _with_frames(self, x: str) -> str:
        return self.op("Unsqueeze", f"{x}.with_frames", x, self.ints(2))

    def _without_frames(self, x: str) -> str:
        return self.op("Squeeze", f"{x}.without_frames", x, self.ints(2))

    def _emit_conv(
        self, name: str, x: str, weight: NDArray[Any], bias: NDArray[Any], **attributes: Any
    ) -> str:
        frames = attributes["kernel_shape"][0]
        if frames == 1:
            attributes["kernel_shape"] = attributes["kernel_shape"][1:]
            attributes["strides"] = attributes["strides"][1:]
            if "pads" in attributes:
                _, top, left, _, bottom, right = attributes["pads"]
                attributes["pads"] = [top, left, bottom, right]
            return super()._emit_conv(name, x, weight[:, :, 0], bias, **attributes)
        # One frame for each channel out of `frames`: a weighted sum.
        kernel = self.constant(f"{name}.weight", weight[None, :, 0])
        x = self.op("Mul", f"{name}.weighted", x, kernel)
        x = self.op("ReduceSum", f"{name}.sum", x, self.ints(2), keepdims=0)
        return self.op("Add", name, x, self.constant(f"{name}.bias", bias[None, :, None, None]))

    def _average_pool(self, name: str, x: str) -> str:
        return self._emit_pool(name, x, (3, 3), (2, 2))

    def _cumulative_pool(self, layer: str, x: str) -> str:
        name = f"{layer}.cumulative_pool"
        if self.spec.se_type == "3d":
            x = self.op("ReduceMean", f"{name}.mean", x, self.ints(*self.space))
        return self._pool_so_far(layer, name, x)

    def _clip_pool(self, layer: str, x: str) -> str:
        name = f"{layer}.clip_pool"
        x = self.op("ReduceMean", f"{name}.mean", x, self.ints(*self.space))
        return self._pool_so_far(layer, name, x)

    def _pool_so_far(self, layer: str, name: str, x: str) -> str:
        state = f"{layer}.{POOL_BUFFER}"
        total = self.op("Add", f"{name}.total", self._with_frames(x), state)
        self.state(state, total)
        return self._without_frames(self.op("Div", name, total, "seen"))

    def _encoding(self, name: str, x: str) -> str:
        return self.op("Unsqueeze", name, x, self.ints(3))


_ACTIVATIONS = {
    "hard_swish": "HardSwish",
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "hard_sigmoid_keras": "HardSigmoid",
}


def _strided(axis: Axis, stride: int) -> Axis:
    if stride == 1 or isinstance(axis, str):
        return axis  # free stays free
    return -(-axis // stride)
