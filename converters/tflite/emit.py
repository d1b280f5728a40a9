"""The network as a TF Lite graph, written operation by operation from its spec and weights.

A stream network takes one frame a call, with states as inputs and outputs under the names and in
the shapes that the authors' files have; a base network takes a clip. All operations are TF Lite's
own: a convolution over frames and space is one over space for each frame that its kernel sees, and
their sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from converters.dialects import FULL_NAME, UNIQUE_MODULES
from converters.tflite.buffer import LiteGraph, LiteTensor, eight_bit_kernel, size_of
from movinet_port.errors import MovinetPortError
from movinet_port.export.folding import folded
from movinet_port.functions import KERAS_LINE, SIXTH
from movinet_port.layers import encoding_rates, legacy_padding, same_padding
from movinet_port.spec import LayerSpec, ModelSpec, Triple
from movinet_port.stages import bottleneck
from movinet_port.streams import POOL_BUFFER, STREAM_BUFFER, state_shapes

Quantisation = Literal["none", "float16", "dynamic"]

# `ActivationFunctionType` of what a convolution can do to its result at once.
_FUSED = {"relu": 1, "relu6": 3}
# Kernels with fewer numbers stay float32, as TensorFlow's converter leaves them.
_FEWEST_IN_8_BITS = 1024

_SPELLINGS = {module: spelling for spelling, module in FULL_NAME.modules.items()}
_ROOT = "movinet_classifier/"
_BACKBONE = f"{_ROOT}movinet/"


def build_lite(
    spec: ModelSpec,
    weights: Mapping[str, Tensor],
    frames: int,
    height: int,
    width: int,
    quantisation: Quantisation = "none",
) -> LiteGraph:
    """Return the network as a TF Lite graph, for one video at a time.

    Args:
        spec: the architecture.
        weights: the state dict of ``MoViNet(spec)``.
        frames: of a clip; 1 for a stream network.
        height, width: of a frame, in pixels.
        quantisation: of the kernels: "none" for float32; "float16", half the size; "dynamic", a
            quarter, in 8 bits with a scale for each channel, where a kernel has 1,024 numbers and
            more. Activations stay float32.

    Raises:
        MovinetPortError: a stream network is to take several frames at once.
    """
    if spec.causal and frames != 1:
        raise MovinetPortError(
            f"a stream network's TF Lite file takes one frame at a time, found {frames}; "
            f"leave the number of frames out"
        )
    return _Emitter(spec, weights, (frames, height, width), quantisation).graph


class _Emitter:
    """Emits one network; a value is (frames, height, width, channels)."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: Mapping[str, Tensor],
        clip: Triple,
        quantisation: Quantisation,
    ) -> None:
        self.spec = spec
        self.weights = weights
        self.quantisation = quantisation
        self.graph = LiteGraph("movinet-port")
        self.frames = clip[0]
        self._outputs: dict[str, int] = {}
        shape = (1, *clip, 3)
        image = self._input("image", shape)
        self._states = self._state_inputs(*clip[1:])
        self._emit(self._reshape(f"{_BACKBONE}stem/stem/conv2d/Reshape", image, shape[1:]))
        # In the order of the authors' signature: the logits, then the states by name.
        logits = self._outputs.pop("logits")
        self.graph.outputs.update({"logits": logits, **dict(sorted(self._outputs.items()))})

    # Inputs and outputs ------------------------------------------------------------------------

    def _input(self, name: str, shape: Sequence[int], dtype: str = "float32") -> int:
        tensor = LiteTensor(f"serving_default_{name}:0", tuple(shape), dtype)
        self.graph.inputs[name] = self.graph.add(tensor)
        return self.graph.inputs[name]

    def _state_inputs(self, height: int, width: int) -> dict[str, int]:
        """Add an input for each state; return them under their names in the signature."""
        if not self.spec.causal:
            return {}
        shapes: dict[str, tuple[tuple[int, ...], str]] = {}
        for name, shape in state_shapes(self.spec, height, width).items():
            layer, _, kind = name.rpartition(".")
            if not layer:
                continue
            channels, *rest = shape
            shapes[f"state_{layer}_{kind}"] = (1, *rest, channels), "float32"
            if kind == POOL_BUFFER:
                shapes[f"state_{layer}_pool_frame_count"] = (1,), "int32"
                if self.spec.positional_encoding and layer != "head":
                    shapes[f"state_{layer}_pos_enc_frame_count"] = (1,), "int32"
        return {name: self._input(name, *shapes[name]) for name in sorted(shapes)}

    def _state(self, layer: str, kind: str) -> int:
        return self._states[f"state_{layer}_{kind}"]

    def _keep(self, layer: str, kind: str, value: int) -> None:
        self._outputs[f"state_{layer}_{kind}"] = value

    # The network -------------------------------------------------------------------------------

    def _emit(self, x: int) -> None:
        spec = self.spec
        if spec.causal:
            self._count_frames()
        stem = spec.stem
        x = self._stream_block("stem", x, stem.kernel_size, stem.strides, depthwise=False)
        for layer in spec.layers():
            x = bottleneck(self, layer, x)
        x = self._conv("head", x, activation=spec.activation)
        pooled = self._mean("head/global_average_pool3d", x, over_time=not spec.causal)
        if spec.causal:
            pooled = self._so_far("head", pooled)
        x = self._conv(
            "classifier.hidden", pooled, norm=False, activation=spec.classifier_activation
        )
        x = self._conv("classifier.output", x, norm=False)
        place = f"{_ROOT}classifier_head/squeeze3d/Squeeze"
        self._outputs["logits"] = self._reshape(place, x, (1, spec.num_classes))

    def _count_frames(self) -> None:
        """Emit one over the number of frames seen, and the counts after this frame."""
        one = self.graph.constant(1, "int32")
        for name, count in self._states.items():
            if name.endswith("frame_count"):
                self._outputs[name] = self.graph.operation(
                    "ADD", f"{name}/add", (count, one), (1,), dtype="int32"
                )
        place = f"{_BACKBONE}head/global_average_pool3d"
        seen = self.graph.operation(
            "CAST", f"{place}/Cast", (self._outputs["state_head_pool_frame_count"],), (1,)
        )
        self._share = self.graph.operation(
            "DIV", f"{place}/share", (self.graph.constant([1.0], "float32"), seen), (1,)
        )
        if self.spec.positional_encoding:
            self._position = self.graph.operation(
                "CAST", f"{place}/position", (self._state("head", "pool_frame_count"),), (1,)
            )

    def residual(self, layer: LayerSpec, x: int) -> int:
        """Emit what the projection is added to."""
        if not layer.has_skip_projection:
            return x
        if layer.downsamples:
            frames, height, width, channels = self.graph.shape(x)
            shape = frames, -(-height // 2), -(-width // 2), channels
            place = f"{_BACKBONE}{layer.name}/bneck/skip/skip_pool/AvgPool"
            valid = self.spec.pool_counts_padding
            if valid:
                x = self._pad_legacy(place, x, (3, 3))
            x = self.graph.operation(
                "AVERAGE_POOL_2D", place, (x,), shape, strides=(2, 2), valid=valid
            )
        return self._conv(f"{layer.name}.skip", x)

    def convolve(self, layer: LayerSpec, x: int) -> int:
        """Emit the expansion and the depthwise convolution."""
        x = self._conv(f"{layer.name}.expansion", x, activation=self.spec.activation)
        name = f"{layer.name}.depthwise"
        return self._stream_block(name, x, layer.kernel_size, layer.strides, depthwise=True)

    def gate(self, layer: LayerSpec, wide: int) -> int:
        """Emit the squeeze-excitation."""
        spec, name = self.spec, layer.name
        if spec.se_type == "none":
            return wide
        place = f"{name}/bneck/se"
        parts = []
        spatial = None
        if spec.se_type in ("2d", "2plus3d"):
            spatial = self._mean(f"{place}/spatial_average_pool3d", wide)
        if spec.se_type in ("3d", "2plus3d"):
            mean = self._mean(f"{place}/global_average_pool3d", wide, over_time=not spec.causal)
            parts.append(self._so_far(name, mean) if spec.causal else mean)
        if spatial is not None:
            parts.append(spatial)
        pooled = parts[0]
        if len(parts) > 1:
            pooled = self._beside(f"{_BACKBONE}{place}/concat", *parts)
        if spec.positional_encoding:
            pooled = self._with_encoding(layer, pooled)
        x = self._conv(f"{name}.squeeze_excitation.reduce", pooled, norm=False)
        x = self._activation(self._place(f"{name}.squeeze_excitation.reduce"), spec.activation, x)
        gate = self._gate(f"{name}.squeeze_excitation.expand", x)
        return self._binary("MUL", f"{_BACKBONE}{place}/mul", wide, gate)

    def narrow(self, layer: LayerSpec, gated: int, residual: int) -> int:
        """Emit the projection, which ReZero's scalar is part of, and the sum."""
        scale = self.weights[f"{layer.name}.rezero.scale"].double().numpy()
        x = self._conv(f"{layer.name}.projection", gated, scale=scale)
        return self._binary("ADD", f"{_BACKBONE}{layer.name}/bneck/add", x, residual)

    # Parts -------------------------------------------------------------------------------------

    def _place(self, module: str, part: str = "") -> str:
        """Return how the reference names what computes a module."""
        owner, _, inner = module.partition(".")
        if module in UNIQUE_MODULES:
            root = _ROOT if module.startswith("classifier.") else _BACKBONE
            return f"{root}{_SPELLINGS[module]}/conv2d{part}"
        return f"{_BACKBONE}{owner}/{_SPELLINGS[inner]}/conv2d{part}"

    def _stream_block(
        self, module: str, x: int, kernel: Triple, strides: Triple, *, depthwise: bool
    ) -> int:
        """Emit a convolution over several frames, which in a stream network has a buffer."""
        activation = self.spec.activation
        if self.spec.splits_time and kernel[0] > 1:
            x = self._over_space(module, x, kernel, strides, depthwise, activation)
            return self._over_time(module, x, kernel[0], depthwise, activation)
        return self._over_space(module, x, kernel, strides, depthwise, activation)

    def _over_space(
        self,
        module: str,
        x: int,
        kernel: Triple,
        strides: Triple,
        depthwise: bool,
        activation: str,
    ) -> int:
        weight, bias = self._folded(module, "", norm=True)
        taps = weight.shape[2]
        place = self._place(module)
        if taps == 1:
            y = self._conv_2d(place, x, weight[:, :, 0], bias, strides[1:], depthwise, activation)
            return self._activation(place, activation, y)
        # One convolution for each frame that the kernel sees, and their sum.
        windows = self._windows(module, x, taps)
        total = None
        for tap, window in enumerate(windows):
            tap_bias = bias if tap == 0 else np.zeros_like(bias)
            y = self._conv_2d(
                f"{place}/tap_{tap}", window, weight[:, :, tap], tap_bias, strides[1:], depthwise
            )
            total = y if total is None else self._binary("ADD", f"{place}/sum_{tap}", total, y)
        assert total is not None  # a kernel sees a frame
        return self._activation(place, activation, total, separate=True)

    def _windows(self, module: str, x: int, taps: int) -> list[int]:
        """Return, for each frame that the kernel sees, the frames that it falls on."""
        frames, *space = self.graph.shape(x)
        place = self._place(module)
        if self.spec.causal:
            window = self._with_buffer(module, x, taps)
            return [self._slice(f"{place}/frame_{t}", window, t, 1) for t in range(taps)]
        before, after = same_padding(1, taps, 1)
        amounts = self.graph.constant([[before, after], [0, 0], [0, 0], [0, 0]], "int32")
        shape = (frames + taps - 1, *space)
        padded = self.graph.operation("PAD", f"{place}/Pad", (x, amounts), shape)
        return [self._slice(f"{place}/from_{t}", padded, t, frames) for t in range(taps)]

    def _with_buffer(self, module: str, x: int, taps: int) -> int:
        """Return the frames before this one and this one; keep the last for the next frame."""
        layer = module.partition(".")[0]
        _, *space = self.graph.shape(x)
        place = f"{_BACKBONE}{layer}/bneck/feature/stream_buffer"
        if layer == "stem":
            place = f"{_BACKBONE}stem/stem/stream_buffer"
        state = self._state(layer, STREAM_BUFFER)
        current = self._reshape(f"{place}/Reshape", x, (1, 1, *space))
        window = self.graph.operation(
            "CONCATENATION", f"{place}/concat", (state, current), (1, taps, *space), axis=1
        )
        begin = self.graph.constant([0, 1, 0, 0, 0], "int32")
        end = self.graph.constant([1, taps, *space], "int32")
        ones = self.graph.constant([1] * 5, "int32")
        kept = self.graph.operation(
            "STRIDED_SLICE",
            f"{place}/strided_slice",
            (window, begin, end, ones),
            (1, taps - 1, *space),
            begin_mask=0b11101,
            end_mask=0b11111,
        )
        self._keep(layer, STREAM_BUFFER, kept)
        return self._reshape(f"{place}/window", window, (taps, *space))

    def _over_time(self, module: str, x: int, taps: int, depthwise: bool, activation: str) -> int:
        weight, bias = self._folded(module, "temporal_", norm=True)
        place = self._place(module, "_temporal")
        frames, height, width, channels = self.graph.shape(x)
        window = self._with_buffer(module, x, taps) if self.spec.causal else x
        seen = self.graph.shape(window)[0]
        # Pixels side by side, frames below one another.
        flat = self._reshape(f"{place}/Reshape", window, (1, seen, height * width, channels))
        y = self._conv_2d(
            place,
            flat,
            weight[:, :, :, :, 0],
            bias,
            (1, 1),
            depthwise,
            activation,
            valid=self.spec.causal,
        )
        y = self._activation(place, activation, y)
        return self._reshape(f"{place}/Reshape_1", y, (frames, height, width, channels))

    def _conv(
        self,
        module: str,
        x: int,
        *,
        norm: bool = True,
        activation: str | None = None,
        scale: NDArray[Any] | None = None,
    ) -> int:
        """Emit a 1 x 1 convolution with what belongs to it folded in, and its activation."""
        weight, bias = self._folded(module, "", norm, scale)
        place = self._place(module)
        y = self._conv_2d(place, x, weight[:, :, 0], bias, (1, 1), False, activation)
        return y if activation is None else self._activation(place, activation, y)

    def _gate(self, module: str, x: int) -> int:
        """Emit the second half of a squeeze-excitation, its gate's constants in the weights."""
        weight, bias = self._folded(module, "", norm=False)
        place, kind = self._place(module), self.spec.gate
        if kind == "hard_sigmoid_keras":
            slope, constant = KERAS_LINE.slope, KERAS_LINE.constant
            kernel = slope * weight[:, :, 0]
            y = self._conv_2d(place, x, kernel, slope * bias + constant, (1, 1), False)
            one = self.graph.constant(KERAS_LINE.limit, "float32")
            y = self._binary("MINIMUM", f"{place}/minimum", y, one)
            return self._unary("RELU", f"{place}/relu", y)
        if kind == "hard_sigmoid_relu6":
            y = self._conv_2d(place, x, weight[:, :, 0], bias + 3.0, (1, 1), False, "relu6")
            sixth = self.graph.constant(SIXTH, "float32")
            return self._binary("MUL", f"{place}/activation/mul", y, sixth)
        y = self._conv_2d(place, x, weight[:, :, 0], bias, (1, 1), False)
        return self._unary("LOGISTIC", f"{place}/Sigmoid", y)

    def _conv_2d(
        self,
        place: str,
        x: int,
        weight: NDArray[Any],
        bias: NDArray[Any],
        strides: Sequence[int],
        depthwise: bool,
        activation: str | None = None,
        *,
        valid: bool = False,
    ) -> int:
        """Emit a 2-D convolution; `weight` is (out, in / groups, height, width)."""
        frames, *size, _ = self.graph.shape(x)
        out, _, *kernel = weight.shape
        if self.spec.causal_padding == "legacy" and not valid and kernel != [1, 1]:
            x = self._pad_legacy(place, x, kernel)
            size = list(self.graph.shape(x)[1:3])
            valid = True
        if valid:
            size = [(n - k) // s + 1 for n, k, s in zip(size, kernel, strides, strict=True)]
        else:
            size = [-(-n // s) for n, s in zip(size, strides, strict=True)]
        axes = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
        kernels = self._kernel(f"{place}/kernel", weight.transpose(axes), 3 if depthwise else 0)
        return self.graph.operation(
            "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
            f"{place}/BiasAdd",
            (x, kernels, self.graph.add(_constant(f"{place}/bias", bias))),
            (frames, *size, out),
            strides=tuple(strides),
            valid=valid,
            fused=_FUSED.get(activation or "", 0),
        )

    def _pad_legacy(self, place: str, x: int, kernel: Sequence[int]) -> int:
        frames, height, width, channels = self.graph.shape(x)
        rows, columns = legacy_padding(kernel[0]), legacy_padding(kernel[1])
        amounts = self.graph.constant([[0, 0], rows, columns, [0, 0]], "int32")
        shape = frames, height + sum(rows), width + sum(columns), channels
        return self.graph.operation("PAD", f"{place}/Pad", (x, amounts), shape)

    def _kernel(self, name: str, value: NDArray[Any], axis: int) -> int:
        """Add a kernel as the quantisation asks, and return what a convolution takes."""
        if self.quantisation == "float16":
            half = self.graph.add(_constant(f"{name}/half", value, "float16"))
            return self.graph.operation("DEQUANTIZE", name, (half,), value.shape)
        if self.quantisation == "dynamic" and size_of(value.shape) >= _FEWEST_IN_8_BITS:
            scale, numbers = eight_bit_kernel(value, axis)
            return self.graph.add(LiteTensor(name, value.shape, "int8", numbers, scale, axis))
        return self.graph.add(_constant(name, value))

    def _activation(self, place: str, kind: str, x: int, *, separate: bool = False) -> int:
        """Emit an activation, unless the convolution in front of it does it at once."""
        if kind in _FUSED and not separate:
            return x
        if kind == "swish":
            sigmoid = self._unary("LOGISTIC", f"{place}/Sigmoid", x)
            return self._binary("MUL", f"{place}/mul_1", x, sigmoid)
        operation = {"hard_swish": "HARD_SWISH", "relu": "RELU", "relu6": "RELU6"}[kind]
        return self._unary(operation, f"{place}/activation", x)

    # Pools -------------------------------------------------------------------------------------

    def _mean(self, name: str, x: int, *, over_time: bool = False) -> int:
        """Emit the mean over space, and over the clip's frames or not."""
        frames, _, _, channels = self.graph.shape(x)
        axes = self.graph.constant([0, 1, 2] if over_time else [1, 2], "int32")
        shape = (1 if over_time else frames, 1, 1, channels)
        return self.graph.operation("MEAN", f"{_BACKBONE}{name}/Mean", (x, axes), shape)

    def _so_far(self, layer: str, mean: int) -> int:
        """Emit the mean over the video so far, of the means over space."""
        place = f"{_BACKBONE}{layer}/{'bneck/se/' if layer != 'head' else ''}global_average_pool3d"
        channels = self.graph.shape(mean)[-1]
        wide = self._reshape(f"{place}/Reshape", mean, (1, 1, 1, 1, channels))
        total = self._binary("ADD", f"{place}/add", wide, self._state(layer, POOL_BUFFER))
        self._keep(layer, POOL_BUFFER, total)
        average = self._binary("MUL", f"{place}/truediv", total, self._share)
        return self._reshape(f"{place}/Reshape_1", average, (1, 1, 1, channels))

    def _beside(self, place: str, clip: int, spatial: int) -> int:
        """Emit the clip's means in front of each frame's."""
        frames, _, _, channels = self.graph.shape(spatial)
        if self.graph.shape(clip)[0] != frames:
            ones = self.graph.constant(np.ones((frames, 1, 1, 1)), "float32")
            clip = self._binary("MUL", f"{place}/Tile", clip, ones)
        shape = (frames, 1, 1, 2 * channels)
        return self.graph.operation("CONCATENATION", place, (clip, spatial), shape, axis=3)

    def _with_encoding(self, layer: LayerSpec, x: int) -> int:
        place = f"{_BACKBONE}{layer.name}/bneck/se/positional_encoding"
        channels = self.graph.shape(x)[-1]
        rates = encoding_rates(channels, torch.float64, "cpu").numpy()
        waves = []
        for wave, start in (("SIN", 0), ("COS", 1)):
            part = self.graph.constant(rates[start::2][None], "float32")
            angle = self._binary("MUL", f"{place}/mul_{start}", part, self._position)
            waves.append(self._unary(wave, f"{place}/{wave.title()}", angle))
        both = self.graph.operation(
            "CONCATENATION", f"{place}/concat", waves, (1, channels), axis=1
        )
        wide = self._reshape(f"{place}/Reshape", both, (1, 1, 1, channels))
        name = f"{layer.name}.squeeze_excitation.positional_encoding.scale"
        scale = self.graph.add(_constant(f"{place}/rezero/scale", self.weights[name].numpy()))
        scaled = self._binary("MUL", f"{place}/rezero/mul", wide, scale)
        return self._binary("ADD", f"{place}/add", x, scaled)

    # Operations --------------------------------------------------------------------------------

    def _folded(
        self, module: str, part: str, norm: bool, scale: NDArray[Any] | None = None
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        return folded(
            self.weights,
            f"{module}.{part}conv",
            f"{module}.{part}norm" if norm else None,
            self.spec.norm_epsilon,
            scale,
        )

    def _unary(self, kind: str, place: str, x: int) -> int:
        return self.graph.operation(kind, place, (x,), self.graph.shape(x))

    def _binary(self, kind: str, place: str, x: int, y: int) -> int:
        shape = np.broadcast_shapes(self.graph.shape(x), self.graph.shape(y))
        return self.graph.operation(kind, place, (x, y), shape)

    def _reshape(self, place: str, x: int, shape: Sequence[int]) -> int:
        target = self.graph.constant(list(shape), "int32")
        return self.graph.operation("RESHAPE", place, (x, target), shape)

    def _slice(self, place: str, x: int, first: int, count: int) -> int:
        """Emit `count` frames from `first` on."""
        _, *space = self.graph.shape(x)
        begin = self.graph.constant([first, 0, 0, 0], "int32")
        end = self.graph.constant([first + count, *space], "int32")
        ones = self.graph.constant([1] * 4, "int32")
        return self.graph.operation(
            "STRIDED_SLICE",
            place,
            (x, begin, end, ones),
            (count, *space),
            begin_mask=0b1110,
            end_mask=0b1110,
        )


def _constant(name: str, value: Any, dtype: str = "float32") -> LiteTensor:
    data = np.ascontiguousarray(value, dtype)
    return LiteTensor(name, data.shape, dtype, data)
