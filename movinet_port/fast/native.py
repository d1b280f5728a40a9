"""Parts of a package in C++: what a stream computes for one new frame of one video.

`frame.cpp` computes it: the stem, whole bottlenecks, and the classifier's products. In a graph each
is an operation without an implementation in PyTorch: it is there while the graph is exported, and
becomes a call of a function that AOTInductor compiles together with the package. What the functions
do not cover, Inductor computes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from movinet_port.fast.choice import Case
from movinet_port.fast.extension import (
    GEOMETRY,
    HIGHEST_KERNEL,
    MOST_TAPS,
    fits_frame,
    fits_stem,
    gate_tensors,
    geometry,
    laid_out,
)
from movinet_port.fast.layers import Layer, Pointwise, StreamConv
from movinet_port.fast.network import FastMoViNet
from movinet_port.fast.run import Run

# Activations by the C++'s names. It has no swish: the streams that have it are causal in 3-D.
_ACTIVATIONS = {"hard_swish": "kHardSwish", "relu": "kRelu", "relu6": "kRelu6"}

# The lists of tensors that a layer takes, and the members of the C++'s `Layer` that they are. One
# is empty where a layer has none of it; more tensors than names are held frames.
_TENSORS = {
    "products": ("x", "residual", "expansion", "expansion_bias", "projection"),
    "spatial_part": ("cells", "bias"),
    "temporal_part": ("taps", "temporal_bias"),
    "gate": ("reduce", "reduce_bias", "expand", "expand_bias"),
    "memory": ("pool", "part"),
    "encoding": ("wave",),
}
_NUMBERS = (
    *GEOMETRY,
    *("inputs", "channels", "outputs", "squeezed", "hidden", "spatial", "whole"),
)
_STEM_NUMBERS = (*GEOMETRY, "channels", "filters")

_HEAD = """
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <immintrin.h>
#include <omp.h>
#define LANES {lanes}
#define HIGHEST_KERNEL {highest_kernel}
#define MOST_TAPS {most_taps}
#pragma GCC push_options
#pragma GCC optimize("O3")
"""

# How AOTInductor calls an operation: lists as a pointer and a length, results through pointers.
_FUNCTIONS = """
namespace movinet_port {{
namespace {{

float* data_of(AtenTensorHandle tensor) {{
    void* found = nullptr;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &found));
    return static_cast<float*>(found);
}}

float* make(int64_t dimensions, const int64_t* shape, const int64_t* strides,
            AtenTensorHandle* tensor) {{
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        dimensions, shape, strides, aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0,
        tensor));
    return data_of(*tensor);
}}

float* make_frame(int64_t height, int64_t width, int64_t channels, AtenTensorHandle* tensor) {{
    const int64_t shape[] = {{1, height, width, channels}};
    const int64_t strides[] = {{height * width * channels, width * channels, channels, 1}};
    return make(4, shape, strides, tensor);
}}

float* make_vector(int64_t size, AtenTensorHandle* tensor) {{
    const int64_t shape[] = {{1, size}}, strides[] = {{size, 1}};
    return make(2, shape, strides, tensor);
}}

}}  // namespace
}}  // namespace movinet_port

static AOTITorchError aoti_torch_cpu_stream_stem(
    AtenTensorHandle video, AtenTensorHandle cells, AtenTensorHandle bias, const int64_t* numbers,
    int64_t, AtenTensorHandle* out
) {{
    using namespace movinet_port;
    Stem s = {{}};
    {stem_numbers}
    // Those of the clip that is there now, whatever it was compiled with.
    int64_t* strides = nullptr;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(video, &strides));
    s.channel_step = strides[1];
    s.row_step = strides[3];
    s.pixel_step = strides[4];
    s.x = data_of(video);
    s.cells = data_of(cells);
    s.bias = data_of(bias);
    s.out = make_frame(s.out_height, s.out_width, s.filters, out);
    s.out_step = s.filters;
    if (s.filters % LANES)
        compute_stem_of<{activation}, LANES / 2>(s);
    else
        compute_stem_of<{activation}, LANES>(s);
    return AOTI_TORCH_SUCCESS;
}}

static AOTITorchError aoti_torch_cpu_stream_vector(
    AtenTensorHandle x, AtenTensorHandle matrix, AtenTensorHandle bias, const int64_t* numbers,
    int64_t, AtenTensorHandle* out
) {{
    using namespace movinet_port;
    const int64_t rows = numbers[0], columns = numbers[1];
    multiply_whole(
        data_of(matrix), data_of(x), columns, data_of(bias), rows, make_vector(rows, out));
    return AOTI_TORCH_SUCCESS;
}}

static AOTITorchError aoti_torch_cpu_stream_layer(
    {parameters}, const int64_t* numbers, int64_t, double limit,
    AtenTensorHandle* out, AtenTensorHandle* mixed, AtenTensorHandle* total
) {{
    using namespace movinet_port;
    Layer l = {{}};
    {members}
    l.limit = static_cast<float>(limit);
    l.out = make_frame(l.out_height, l.out_width, l.outputs, out);
    if (temporal_part_length) {{
        l.mixed = make_frame(l.out_height, l.out_width, l.channels, mixed);
        l.frames = temporal_part_length - {before_frames};
        for (int64_t i = 0; i < l.frames; ++i)
            l.held[i] = data_of(temporal_part[{before_frames} + i]);
    }} else {{
        make_vector(0, mixed);
    }}
    l.total = make_vector(memory_length ? l.channels : 0, total);
    compute_layer<{activation}>(l);
    return AOTI_TORCH_SUCCESS;
}}
"""

# The option of AOTInductor that takes the code.
_SHIMS = "custom_ops_to_c_shims"

_library = torch.library.Library("movinet_port", "DEF")


def _layer_shapes(
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


def _stem_shape(video: Tensor, cells: Tensor, bias: Tensor, numbers: Sequence[int]) -> Tensor:
    sizes = dict(zip(_STEM_NUMBERS, numbers, strict=True))
    return video.new_empty(1, sizes["out_height"], sizes["out_width"], sizes["filters"])


def _vector_shape(x: Tensor, matrix: Tensor, bias: Tensor, numbers: Sequence[int]) -> Tensor:
    return x.new_empty(1, numbers[0])


def _define(name: str, schema: str, shapes: Callable[..., Any]) -> torch._ops.OpOverload:
    _library.define(name + schema, tags=(torch.Tag.needs_exact_strides,))
    torch.library.register_fake(f"movinet_port::{name}", shapes, lib=_library)
    found: torch._ops.OpOverload = getattr(torch.ops.movinet_port, name).default
    return found


_STEM = _define(
    "stream_stem", "(Tensor video, Tensor cells, Tensor bias, int[] numbers) -> Tensor", _stem_shape
)
_VECTOR = _define(
    "stream_vector",
    "(Tensor x, Tensor matrix, Tensor bias, int[] numbers) -> Tensor",
    _vector_shape,
)
_LAYER = _define(
    "stream_layer",
    "({}, int[] numbers, float limit) -> (Tensor out, Tensor mixed, Tensor total)".format(
        ", ".join(f"Tensor[] {name}" for name in _TENSORS)
    ),
    _layer_shapes,
)


class Kernels:
    """What `frame.cpp` computes.

    Args:
        lanes: float32 numbers in a vector of this CPU.
        activation: of the network; one that the C++ has.
    """

    def __init__(self, lanes: int, activation: str) -> None:
        self._lanes = lanes
        self._activation = activation

    def takes_stem(self, conv: StreamConv, case: Case) -> bool:
        """Return whether it computes a stem."""
        return case.alone and case.dtype == torch.float32 and fits_stem(conv, self._lanes)

    def compute_stem(self, conv: StreamConv, video: Tensor) -> Tensor:
        """Return what a stem hands on, as `movinet_port.fast.backends.operations.stem` does.

        Args:
            conv, video: which it takes. In a package `video` may have any strides.
        """
        numbers = geometry(conv, *video.shape[3:])
        (kernel,) = conv.kernels
        numbers["filters"], numbers["channels"] = kernel.shape[:2]
        out: Tensor = _STEM(
            video,
            kernel.permute(1, 2, 3, 0).contiguous(),
            conv.constant,
            [numbers[name] for name in _STEM_NUMBERS],
        )
        return out

    def takes_vector(self, block: Pointwise, case: Case) -> bool:
        """Return whether it computes a matrix times a row."""
        return (
            case.rows == 1
            and case.dtype == torch.float32
            and block.constant is not None
            and block.weight.shape[0] >= self._lanes
        )

    def compute_vector(self, block: Pointwise, x: Tensor) -> Tensor:
        """Return what a block hands on, as `movinet_port.fast.backends.operations.product` does.

        Args:
            block, x: which it takes.
        """
        weight = block.weight
        y: Tensor = _VECTOR(x, laid_out(weight, self._lanes), block.constant, list(weight.shape))
        return y if block.activation is None else block.activation(y)

    def takes(self, layer: Layer, case: Case) -> bool:
        """Return whether it computes a layer."""
        return case.alone and case.dtype == torch.float32 and fits_frame(layer, self._lanes)

    def compute(self, layer: Layer, x: Tensor, residual: Tensor, run: Run) -> Tensor:
        """Return what a layer hands on, as `movinet_port.fast.backends.operations.Staged` does.

        Args:
            layer, x, run: which it takes.
            residual: (pixels, out channels), what the projection is added to.
        """
        assert run.state is not None
        conv, gate = layer.depthwise, layer.gate
        numbers = {**dict.fromkeys(_NUMBERS, 0), **geometry(conv, *x.shape[1:3])}
        numbers["channels"], numbers["inputs"] = layer.expansion.weight.shape
        numbers["outputs"] = layer.project.weight.shape[0]
        weights = layer.expansion.weight, layer.project.weight
        expansion, projection = (laid_out(weight, self._lanes) for weight in weights)
        tensors: dict[str, list[Tensor | None]] = {name: [] for name in _TENSORS}
        tensors["products"] = [x, residual, expansion, layer.expansion.constant, projection]
        tensors["spatial_part"] = [conv.cells[0], conv.constant]
        held: tuple[Tensor, ...] = ()
        if conv.splits:
            held = run.state.frames[conv.key]
            tensors["temporal_part"] = [conv.temporal_matrix, conv.temporal_constant, *held]
        limit = 0.0
        if gate is not None:
            numbers["hidden"], numbers["squeezed"] = gate.reduce.weight.shape
            numbers["spatial"], numbers["whole"] = int(gate.spatial), int(gate.whole)
            found = gate_tensors(gate, self._lanes)
            tensors["gate"] = [found[name] for name in _TENSORS["gate"]]
            limit = -1.0 if gate.limit is None else gate.limit
            if gate.whole:
                tensors["memory"] = [run.state.pools[layer.name], run.part_now]
            if gate.scale is not None:
                tensors["encoding"] = [run.waves[layer.name]]
        out: Tensor
        out, mixed, total = _LAYER(*tensors.values(), list(numbers.values()), limit)
        if held:
            run.new_frames[conv.key] = (*held, mixed)[1:]
        if tensors["memory"]:
            run.new_pools[layer.name] = total
        return out

    def options(self) -> dict[str, Any]:
        """Return what Inductor must be told for it."""
        source = resources.files(__package__).joinpath("frame.cpp").read_text(encoding="utf-8")
        members = [
            f"if ({tensors}_length) l.{member} = data_of({tensors}[{i}]);"
            for tensors, names in _TENSORS.items()
            for i, member in enumerate(names)
        ]
        members += [f"l.{member} = numbers[{i}];" for i, member in enumerate(_NUMBERS)]
        stem_numbers = [f"s.{member} = numbers[{i}];" for i, member in enumerate(_STEM_NUMBERS)]
        functions = _FUNCTIONS.format(
            parameters=", ".join(
                f"const AtenTensorHandle* {tensors}, int64_t {tensors}_length"
                for tensors in _TENSORS
            ),
            members="\n    ".join(members),
            stem_numbers="\n    ".join(stem_numbers),
            before_frames=len(_TENSORS["temporal_part"]),
            activation=_ACTIVATIONS[self._activation],
        )
        head = _HEAD.format(lanes=self._lanes, highest_kernel=HIGHEST_KERNEL, most_taps=MOST_TAPS)
        code = f"{head}{source}{functions}#pragma GCC pop_options\n"
        # What Inductor writes of each is `extern`, this, and a semicolon.
        shims = {_STEM: [f'"C++" {{\n{code}\n}}'], _VECTOR: [], _LAYER: []}
        return {f"aot_inductor.{_SHIMS}": shims}


def takes_any_strides(program: torch.export.ExportedProgram) -> bool:
    """Return whether the program's clips may lie in memory in any way: only the stem reads them."""
    return any(node.target is _STEM for node in program.graph.nodes)


def kernels_for(network: FastMoViNet) -> Kernels | None:
    """Return the kernels for a network on this machine; None where Inductor's code has to do.

    They are written for x86. The way into a package is an inner part of PyTorch: a version without
    it does without.
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
        return Kernels(16, activation)
    return Kernels(8, activation) if isinstance(isa, VecAVX2) else None
