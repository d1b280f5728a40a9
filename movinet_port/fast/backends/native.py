"""The project's own C++: called at once, or compiled together with a package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch

from movinet_port.fast import extension
from movinet_port.fast.backends.operations import frames_of, residual
from movinet_port.fast.choice import (
    CLASSIFIER,
    CONVOLVE,
    LAYER,
    NARROW,
    POOL,
    PRODUCT,
    STEM,
    Case,
    Compute,
    Row,
)
from movinet_port.fast.extension import ClipKernel, FrameKernel, MatrixKernel, StemKernel
from movinet_port.fast.layers import FoldedModule, Layer, Pointwise, StreamConv
from movinet_port.layers import same_padding


def _kernel(kind: Any, part: FoldedModule) -> Any:
    """Return the kernel of a part, made once; None if no library here computes it."""
    return part.keep(kind, lambda: extension.kernel(kind, part))


def _plain(case: Case) -> bool:
    return case.dtype == torch.float32 and case.device == "cpu" and not case.traced


def _computes(kind: Any) -> Callable[[Any, Case], bool]:
    """Return whether a kernel takes a part in a case: float32 on the CPU."""
    return lambda part, case: _plain(case) and _kernel(kind, part) is not None


def _kernel_of(kind: Any) -> Callable[[Any, Case], Any]:
    return lambda part, case: _kernel(kind, part)


def _takes_narrow(layer: Layer, case: Case) -> bool:
    return _computes(MatrixKernel)(layer.project, case)


def _narrow(layer: Layer, case: Case) -> Compute:
    return cast(Compute, _kernel(MatrixKernel, layer.project).add)


def _stem(conv: StreamConv, case: Case) -> Compute:
    """Return what computes a stem, whose kernel turns frames on its way."""
    kernel = _kernel(StemKernel, conv)
    return lambda video, run: run.show(
        f"{conv.name}.activation", kernel(frames_of(video), run.workspace)
    )


def _takes_clip(layer: Layer, case: Case) -> bool:
    return not case.watched and _computes(ClipKernel)(layer, case)


def _takes_frame(layer: Layer, case: Case) -> bool:
    return case.alone and not case.watched and _computes(FrameKernel)(layer, case)


def _frame(layer: Layer, case: Case) -> Compute:
    """Return what computes a layer of one new frame of one stream."""
    kernel, rows = _kernel(FrameKernel, layer), residual(layer, case)
    return lambda x, run: kernel(x, rows(x, run), run)


def _takes_pool(layer: Layer, case: Case) -> bool:
    assert layer.skip is not None
    channels = layer.skip.weight.shape[1]
    plain = _plain(case) and not layer.pool_counts_padding
    return plain and any(channels % (one.lanes // 2) == 0 for one in extension.libraries())


def _pool(layer: Layer, case: Case) -> Compute:
    """Return what averages 3 x 3 pixels with stride 2, as `operations.pool`."""
    (top, bottom), (left, right) = (same_padding(n, 3, 2) for n in (case.height, case.width))
    before = (bottom, right) if layer.depthwise.turned else (top, left)
    size = (case.height + 1) // 2, (case.width + 1) // 2
    return lambda x: extension.average_pool(x, size, *before)


# In a package: `case.package` is the `Kernels` of movinet_port.fast.packaged ---------------------


def _packs(takes: str) -> Callable[[Any, Case], bool]:
    return lambda part, case: case.package is not None and getattr(case.package, takes)(part, case)


def _packaged_stem(conv: StreamConv, case: Case) -> Compute:
    return lambda video, run: case.package.compute_stem(conv, video)


def _packaged_layer(layer: Layer, case: Case) -> Compute:
    rows = residual(layer, case)
    return lambda x, run: case.package.compute(layer, x, rows(x, run), run)


def _packaged_vector(block: Pointwise, case: Case) -> Compute:
    return lambda x: case.package.compute_vector(block, x)


ROWS = (
    Row(STEM, "native", _packs("takes_stem"), _packaged_stem),
    Row(STEM, "native", _computes(StemKernel), _stem),
    Row(LAYER, "native", _packs("takes"), _packaged_layer),
    Row(LAYER, "native", _takes_frame, _frame),
    Row(CONVOLVE, "native", _takes_clip, _kernel_of(ClipKernel)),
    Row(NARROW, "native", _takes_narrow, _narrow),
    Row(POOL, "native", _takes_pool, _pool),
    Row(PRODUCT, "native", _computes(MatrixKernel), _kernel_of(MatrixKernel)),
    Row(CLASSIFIER, "native", _packs("takes_vector"), _packaged_vector),
)
