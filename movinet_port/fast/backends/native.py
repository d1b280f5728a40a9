"""The project's own C++: called at once, or compiled together with a package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from movinet_port.fast import extension
from movinet_port.fast.backends.operations import Wide, frames_of, residual
from movinet_port.fast.choice import Case
from movinet_port.fast.extension import ClipKernel, FrameKernel, MatrixKernel, StemKernel
from movinet_port.fast.layers import FoldedModule, Layer, Pointwise, StreamConv
from movinet_port.fast.run import Run
from movinet_port.layers import same_padding


def _kernel(kind: Any, part: FoldedModule) -> Any:
    """Return the kernel of a part, made once; None if no library here computes it."""
    return part.keep(kind, lambda: extension.kernel(kind, part))


def _takes(kind: Any, part: FoldedModule, case: Case) -> bool:
    plain = case.dtype == torch.float32 and case.device == "cpu" and not case.traced
    return plain and _kernel(kind, part) is not None


def takes_product(block: Pointwise, case: Case) -> bool:
    """Return whether it computes a 1 x 1 convolution."""
    return _takes(MatrixKernel, block, case)


def product(block: Pointwise, case: Case) -> Callable[[Tensor], Tensor]:
    """Return what computes a 1 x 1 convolution."""
    found: Callable[[Tensor], Tensor] = _kernel(MatrixKernel, block)
    return found


def takes_narrow(layer: Layer, case: Case) -> bool:
    """Return whether it computes a projection."""
    return _takes(MatrixKernel, layer.project, case)


def narrow(layer: Layer, case: Case) -> Callable[[Tensor, Tensor | None, Tensor, Run], Tensor]:
    """Return what gates, projects and adds to the residual."""
    found: Callable[..., Tensor] = _kernel(MatrixKernel, layer.project).add
    return found


def takes_stem(conv: StreamConv, case: Case) -> bool:
    """Return whether it computes a stem."""
    return _takes(StemKernel, conv, case)


def stem(conv: StreamConv, case: Case) -> Callable[[Tensor, Run], Tensor]:
    """Return what computes a stem, whose kernel turns frames on its way."""
    kernel = _kernel(StemKernel, conv)
    return lambda video, run: run.show(
        f"{conv.name}.activation", kernel(frames_of(video), run.workspace)
    )


def takes_clip(layer: Layer, case: Case) -> bool:
    """Return whether it expands and convolves the clips of a layer."""
    return not case.watched and _takes(ClipKernel, layer, case)


def clip(layer: Layer, case: Case) -> Callable[[Tensor, Run], Wide]:
    """Return what expands and convolves a clip, and takes its means over space on the way."""
    found: Callable[[Tensor, Run], Wide] = _kernel(ClipKernel, layer)
    return found


def takes_frame(layer: Layer, case: Case) -> bool:
    """Return whether it computes a layer's single frames."""
    return case.alone and not case.watched and _takes(FrameKernel, layer, case)


def frame(layer: Layer, case: Case) -> Callable[[Tensor, Run], Tensor]:
    """Return what computes a layer of one new frame of one stream."""
    kernel, rows = _kernel(FrameKernel, layer), residual(layer, case)
    return lambda x, run: kernel(x, rows(x, run), run)


def takes_pool(layer: Layer, case: Case) -> bool:
    """Return whether it computes a pool."""
    assert layer.skip is not None
    channels = layer.skip.weight.shape[1]
    plain = case.dtype == torch.float32 and case.device == "cpu" and not case.traced
    return plain and any(channels % (one.lanes // 2) == 0 for one in extension.libraries())


def pool(layer: Layer, case: Case) -> Callable[[Tensor], Tensor | None]:
    """Return what averages 3 x 3 pixels with stride 2, as `operations.pool`."""
    (top, bottom), (left, right) = (same_padding(n, 3, 2) for n in (case.height, case.width))
    before = (bottom, right) if layer.depthwise.turned else (top, left)
    size = (case.height + 1) // 2, (case.width + 1) // 2
    return lambda x: extension.average_pool(x, size, *before)


# In a package -----------------------------------------------------------------------------------


def takes_packaged_stem(conv: StreamConv, case: Case) -> bool:
    """Return whether a package's C++ computes a stem."""
    return case.package is not None and case.package.takes_stem(conv, case)


def packaged_stem(conv: StreamConv, case: Case) -> Callable[[Tensor, Run], Tensor]:
    """Return what computes a stem in a package."""
    return lambda video, run: case.package.compute_stem(conv, video)


def takes_packaged_layer(layer: Layer, case: Case) -> bool:
    """Return whether a package's C++ computes a layer."""
    return case.package is not None and case.package.takes(layer, case)


def packaged_layer(layer: Layer, case: Case) -> Callable[[Tensor, Run], Tensor]:
    """Return what computes a layer in a package."""
    rows = residual(layer, case)
    return lambda x, run: case.package.compute(layer, x, rows(x, run), run)


def takes_packaged_vector(block: Pointwise, case: Case) -> bool:
    """Return whether a package's C++ computes a matrix times one vector."""
    return case.package is not None and case.package.takes_vector(block, case)


def packaged_vector(block: Pointwise, case: Case) -> Callable[[Tensor], Tensor]:
    """Return what computes a matrix times one vector in a package."""
    return lambda x: case.package.compute_vector(block, x)
