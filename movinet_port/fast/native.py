"""Layers of a package in C++: a whole bottleneck of a stream for one new frame of one video.

`layer.cpp` computes it. In a graph it is an operation without an implementation in PyTorch: it is
there while the graph is exported, and becomes a call of a function that AOTInductor compiles
together with the package. What the function does not cover, Inductor computes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import resources
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from movinet_port.fast.network import FastMoViNet
from movinet_port.fast.parts import Layer, Pass

# Activations by the C++'s names. It has no swish: the streams that have it are causal in 3-D.
_ACTIVATIONS = {"hard_swish": "kHardSwish", "relu": "kRelu", "relu6": "kRelu6"}
_HIGHEST_KERNEL = 8
_MOST_TAPS = 7

# The lists of tensors that the operation takes, and the members of the C++'s `Layer` that they are.
# A list is empty where the layer has none of it; more tensors than names are held frames.
_TENSORS = {
    "products": ("x", "residual", "expansion", "expansion_bias", "projection"),
    "spatial_part": ("cells", "bias"),
    "temporal_part": ("taps", "temporal_bias"),
    "gate": ("reduce", "reduce_bias", "expand", "expand_bias"),
    "memory": ("pool", "part"),
    "encoding": ("wave",),
}
_NUMBERS = (
    *("height", "width", "inputs", "out_height", "out_width", "outputs", "channels"),
    *("kernel_height", "kernel_width", "stride_height", "stride_width", "top", "left"),
    *("squeezed", "hidden", "spatial", "whole"),
)

_SCHEMA = (
    "({tensors}, int[] numbers, float limit) -> (Tensor out, Tensor mixed, Tensor total)".format(
        tensors=", ".join(f"Tensor[] {name}" for name in _TENSORS)
    )
)

_HEAD = """
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <omp.h>
#define LANES {lanes}
#define HIGHEST_KERNEL {highest_kernel}
#define MOST_TAPS {most_taps}
#pragma GCC push_options
#pragma GCC optimize("O3")
"""

# How AOTInductor calls an operation: lists as a pointer and a length, results through pointers.
_FUNCTION = """
static AOTITorchError aoti_torch_cpu_stream_layer(
    {parameters}, const int64_t* numbers, int64_t, double limit,
    AtenTensorHandle* out, AtenTensorHandle* mixed, AtenTensorHandle* total
) {{
    using namespace movinet_port;
    const auto data = [](AtenTensorHandle tensor) {{
        void* found = nullptr;
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &found));
        return static_cast<float*>(found);
    }};
    const auto make = [&](int64_t dimensions, const int64_t* shape, const int64_t* strides,
                          AtenTensorHandle* tensor) {{
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
            dimensions, shape, strides, aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0,
            tensor));
        return data(*tensor);
    }};
    const auto make_frame = [&](int64_t height, int64_t width, int64_t channels,
                                AtenTensorHandle* tensor) {{
        const int64_t shape[] = {{1, height, width, channels}};
        const int64_t strides[] = {{height * width * channels, width * channels, channels, 1}};
        return make(4, shape, strides, tensor);
    }};
    const auto make_vector = [&](int64_t size, AtenTensorHandle* tensor) {{
        const int64_t shape[] = {{1, size}}, strides[] = {{size, 1}};
        return make(2, shape, strides, tensor);
    }};
    Layer l = {{}};
    {members}
    l.limit = static_cast<float>(limit);
    l.out = make_frame(l.out_height, l.out_width, l.outputs, out);
    if (temporal_part_length) {{
        l.mixed = make_frame(l.out_height, l.out_width, l.channels, mixed);
        l.frames = temporal_part_length - {before_frames};
        for (int64_t i = 0; i < l.frames; ++i) l.held[i] = data(temporal_part[{before_frames} + i]);
    }} else {{
        make_vector(0, mixed);
    }}
    l.total = make_vector(memory_length ? l.channels : 0, total);
    compute<{activation}>(l);
    return AOTI_TORCH_SUCCESS;
}}
"""

# The option of AOTInductor that takes the code.
_SHIMS = "custom_ops_to_c_shims"

_library = torch.library.Library("movinet_port", "DEF")


def _shapes(
    products: Sequence[Tensor],
    spatial_part: Sequence[Tensor],
    temporal_part: Sequence[Tensor],
    gate: Sequence[Tensor],
    memory: Sequence[Tensor],
    encoding: Sequence[Tensor],
    numbers: Sequence[int],
    limit: float,
) -> tuple[Tensor, Tensor, Tensor]:
    x = products[0]
    sizes = dict(zip(_NUMBERS, numbers, strict=True))
    height, width, channels = sizes["out_height"], sizes["out_width"], sizes["channels"]
    out = x.new_empty(1, height, width, sizes["outputs"])
    mixed = x.new_empty(1, height, width, channels) if temporal_part else x.new_empty(1, 0)
    return out, mixed, x.new_empty(1, channels if memory else 0)


_library.define("stream_layer" + _SCHEMA, tags=(torch.Tag.needs_exact_strides,))
torch.library.register_fake("movinet_port::stream_layer", _shapes, lib=_library)
_OPERATION = torch.ops.movinet_port.stream_layer.default


class LayerKernel:
    """The layers that `layer.cpp` computes.

    Args:
        lanes: float32 numbers in a vector of this CPU.
        activation: of the network; one that the C++ has.
    """

    def __init__(self, lanes: int, activation: str) -> None:
        self._lanes = lanes
        self._activation = activation

    def takes(self, layer: Layer, x: Tensor, run: Pass) -> bool:
        """Return whether it computes a layer of `x`, (frames * batch, height, width, channels)."""
        conv = layer.depthwise
        channels = layer.expansion.weight.shape[0], layer.project.weight.shape[0]
        return (
            x.shape[0] == 1
            and x.dtype == torch.float32
            and run.state is not None
            and conv.in_plane
            and conv.splits == (conv.taps > 1)
            and min(channels) >= self._lanes
            and max(conv.kernel) <= _HIGHEST_KERNEL
            and conv.taps <= _MOST_TAPS
        )

    def compute(self, layer: Layer, x: Tensor, residual: Tensor, run: Pass) -> Tensor:
        """Return what a layer hands on, as `Layer.forward` does.

        Args:
            layer, x, run: which it takes.
            residual: (pixels, out channels), what the projection is added to.
        """
        assert run.state is not None
        conv, gate = layer.depthwise, layer.gate
        numbers: dict[str, int] = dict.fromkeys(_NUMBERS, 0)
        numbers["height"], numbers["width"] = size = x.shape[1:3]
        numbers["channels"], numbers["inputs"] = layer.expansion.weight.shape
        numbers["outputs"] = layer.project.weight.shape[0]
        numbers["out_height"], numbers["out_width"] = conv.out_size(*size)
        numbers["kernel_height"], numbers["kernel_width"] = conv.kernel
        numbers["stride_height"], numbers["stride_width"] = conv.stride
        (numbers["top"], _), (numbers["left"], _) = conv.pads(*size)
        expansion, projection = map(self._laid_out, (layer.expansion.weight, layer.project.weight))
        tensors: dict[str, list[Tensor | None]] = {name: [] for name in _TENSORS}
        tensors["products"] = [x, residual, expansion, layer.expansion.constant, projection]
        tensors["spatial_part"] = [conv.cells[0], conv.constant]
        held: tuple[Tensor, ...] = ()
        if conv.splits:
            held = run.state.frames[conv.key]
            tensors["temporal_part"] = [conv.temporal_matrix, conv.temporal_constant, *held]
        limit = 0.0
        if gate is not None:
            reduce, expand = gate.reduce, gate.expand
            numbers["hidden"], numbers["squeezed"] = reduce.weight.shape
            numbers["spatial"], numbers["whole"] = int(gate.spatial), int(gate.whole)
            assert reduce.constant is not None
            # The hidden layer in whole vectors.
            more = -reduce.weight.shape[0] % self._lanes
            reduce_matrix = self._laid_out(F.pad(reduce.weight, (0, 0, 0, more)))
            tensors["gate"] = [reduce_matrix, F.pad(reduce.constant, (0, more))]
            tensors["gate"] += [self._laid_out(expand.weight), expand.constant]
            limit = -1.0 if gate.limit is None else gate.limit
            if gate.whole:
                tensors["memory"] = [run.state.pools[layer.name], run.part_now]
            if gate.scale is not None:
                tensors["encoding"] = [run.waves[layer.name]]
        out: Tensor
        out, mixed, total = _OPERATION(*tensors.values(), list(numbers.values()), limit)
        if held:
            run.new_frames[conv.key] = (*held, mixed)[1:]
        if tensors["memory"]:
            run.new_pools[layer.name] = total
        return out

    def _laid_out(self, weight: Tensor) -> Tensor:
        """Return a matrix (out, in) as the C++'s `Product` wants it."""
        rows = weight.shape[0]
        starts = [min(first, rows - self._lanes) for first in range(0, rows, self._lanes)]
        vectors = torch.stack([weight[start : start + self._lanes] for start in starts])
        return vectors.transpose(1, 2).contiguous()

    def options(self) -> dict[str, Any]:
        """Return what Inductor must be told for it."""
        source = resources.files(__package__).joinpath("layer.cpp").read_text(encoding="utf-8")
        members = [
            f"if ({tensors}_length) l.{member} = data({tensors}[{i}]);"
            for tensors, names in _TENSORS.items()
            for i, member in enumerate(names)
        ]
        members += [f"l.{member} = numbers[{i}];" for i, member in enumerate(_NUMBERS)]
        function = _FUNCTION.format(
            parameters=", ".join(
                f"const AtenTensorHandle* {tensors}, int64_t {tensors}_length"
                for tensors in _TENSORS
            ),
            members="\n    ".join(members),
            before_frames=len(_TENSORS["temporal_part"]),
            activation=_ACTIVATIONS[self._activation],
        )
        head = _HEAD.format(lanes=self._lanes, highest_kernel=_HIGHEST_KERNEL, most_taps=_MOST_TAPS)
        code = f"{head}{source}{function}#pragma GCC pop_options\n"
        # What Inductor writes is `extern`, this, and a semicolon.
        return {f"aot_inductor.{_SHIMS}": {_OPERATION: [f'"C++" {{\n{code}\n}}']}}


def layer_kernel(network: FastMoViNet) -> LayerKernel | None:
    """Return the kernel for a network on this machine; None where Inductor's code has to do.

    It is written for x86. The way into a package is an inner part of PyTorch: a version without it
    does without.
    """
    try:
        from torch._inductor import config
        from torch._inductor.cpu_vec_isa import VecAVX2, VecAVX512, pick_vec_isa

        there = hasattr(config.aot_inductor, _SHIMS)
    except (ImportError, AttributeError):
        return None
    if not there or sys.platform == "win32" or network.dtype != torch.float32:
        return None
    activation = network.spec.activation
    if activation not in _ACTIVATIONS:
        return None
    isa = pick_vec_isa()
    if isinstance(isa, VecAVX512):
        return LayerKernel(16, activation)
    return LayerKernel(8, activation) if isinstance(isa, VecAVX2) else None
