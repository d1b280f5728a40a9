"""Parts of a package in C++: what a stream computes for one new frame of one video.

`frame.cpp` computes it: the stem, whole bottlenecks, and the classifier's products. In a graph each
is an operation without an implementation in PyTorch: it is there while the graph is exported, and
becomes a call of a function that AOTInductor compiles together with the package. What the functions
do not cover, Inductor computes.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from movinet_port.fast.choice import Case
from movinet_port.fast.extension import (
    fits_frame,
    fits_stem,
    laid_out,
    layer_tensors,
    set_geometry,
)
from movinet_port.fast.layers import Layer, Pointwise, StreamConv
from movinet_port.fast.library import MEMBERS, source
from movinet_port.fast.network import FastMoViNet
from movinet_port.fast.run import Run

# Activations by the C++'s names. It has no swish: the streams that have it are causal in 3-D.
_ACTIVATIONS = {"hard_swish": "kHardSwish", "relu": "kRelu", "relu6": "kRelu6"}

# The option of AOTInductor that takes the code.
_SHIMS = "custom_ops_to_c_shims"

_WORD = ctypes.sizeof(ctypes.c_int64)
_library = torch.library.Library("movinet_port", "DEF")


def _words(kind: Any) -> Any:
    """Return the type of a structure of `members.h` as the numbers that an operation can take."""
    return ctypes.c_int64 * (ctypes.sizeof(kind) // _WORD)


def _define(
    name: str, structure: str, outputs: str, shapes: Callable[..., Any]
) -> torch._ops.OpOverload:
    """Return an operation that takes a structure of the C++'s, and its tensors.

    Args:
        name: of the operation.
        structure: its name in `members.h`.
        outputs: in the operation's schema.
        shapes: returns empty outputs for an input `x` and a structure.
    """
    kind = MEMBERS.structures[structure]

    def empty(tensors: Sequence[Tensor], places: Sequence[int], words: Sequence[int]) -> Any:
        return shapes(tensors[0], kind.from_buffer_copy(_words(kind)(*words)))

    _library.define(
        f"{name}(Tensor[] tensors, int[] places, int[] words) -> {outputs}",
        tags=(torch.Tag.needs_exact_strides,),
    )
    torch.library.register_fake(f"movinet_port::{name}", empty, lib=_library)
    found: torch._ops.OpOverload = getattr(torch.ops.movinet_port, name).default
    return found


def _call(
    operation: torch._ops.OpOverload,
    structure: Any,
    tensors: Mapping[str, Tensor],
    held: Sequence[Tensor] = (),
) -> Any:
    """Return what an operation does of a structure.

    Args:
        operation: that `_define` made.
        structure: its numbers are set.
        tensors: by the members that are their addresses; the first is `x`.
        held: those whose addresses `held` is.
    """
    kind = type(structure)
    places = [getattr(kind, name).offset // _WORD for name in tensors]
    places += [kind.held.offset // _WORD + number for number in range(len(held))]
    words = list(_words(kind).from_buffer_copy(structure))
    return operation([*tensors.values(), *held], places, words)


def _layer_shapes(x: Tensor, a: Any) -> tuple[Tensor, Tensor, Tensor]:
    frame = 1, a.out_height, a.out_width
    mixed = (*frame, a.channels) if a.mixes else (1, 0)
    total = 1, a.channels if a.whole else 0
    return x.new_empty(*frame, a.outputs), x.new_empty(mixed), x.new_empty(total)


_STEM = _define(
    "stream_stem",
    "Stem",
    "Tensor",
    lambda x, a: x.new_empty(1, a.out_height, a.out_width, a.filters),
)
_VECTOR = _define("stream_vector", "MatrixVector", "Tensor", lambda x, a: x.new_empty(1, a.rows))
_LAYER = _define("stream_layer", "Layer", "(Tensor out, Tensor mixed, Tensor total)", _layer_shapes)


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
        assert conv.constant is not None
        structure = MEMBERS.structures["Stem"](frames=1)
        set_geometry(structure, conv, *video.shape[3:])
        (kernel,) = conv.kernels
        structure.filters, structure.channels = kernel.shape[:2]
        structure.out_step = structure.filters
        cells = kernel.permute(1, 2, 3, 0).contiguous()
        out: Tensor = _call(_STEM, structure, {"x": video, "cells": cells, "bias": conv.constant})
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
        assert block.constant is not None
        rows, columns = block.weight.shape
        structure = MEMBERS.structures["MatrixVector"](rows=rows, columns=columns)
        matrix = laid_out(block.weight, self._lanes)
        y: Tensor = _call(_VECTOR, structure, {"x": x, "matrix": matrix, "bias": block.constant})
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
        structure = MEMBERS.structures["Layer"]()
        tensors = {"x": x, "residual": residual, **layer_tensors(structure, layer, self._lanes)}
        set_geometry(structure, conv, *x.shape[1:3])
        held = run.state.frames[conv.key] if conv.splits else ()
        if gate is not None and gate.whole:
            tensors.update(pool=run.state.pools[layer.name], part=run.part_now)
        if gate is not None and gate.scale is not None:
            tensors["wave"] = run.waves[layer.name]
        out: Tensor
        out, mixed, total = _call(_LAYER, structure, tensors, held)
        if held:
            run.new_frames[conv.key] = (*held, mixed)[1:]
        if structure.whole:
            run.new_pools[layer.name] = total
        return out

    def options(self) -> dict[str, Any]:
        """Return what Inductor must be told for it."""
        code = (
            f"#define LANES {self._lanes}\n"
            f"#define ACTIVATION {_ACTIVATIONS[self._activation]}\n"
            f"{source('package.cpp')}"
        )
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
