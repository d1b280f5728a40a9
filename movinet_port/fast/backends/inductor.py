"""What a compiler is given: operations that Inductor makes the most of."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from movinet_port.fast.backends.operations import (
    Wide,
    Windows,
    expanded_bytes,
    expansion,
    multiplied,
    over_time,
)
from movinet_port.fast.choice import (
    CONVOLVE,
    NARROW,
    PRODUCT,
    SPACE,
    Case,
    Compute,
    Row,
    unprepared,
)
from movinet_port.fast.layers import Layer, Pointwise, StreamConv
from movinet_port.fast.run import Run

# The most that a strip of an expanded frame takes, so that it stays in a core's cache while it is
# padded and convolved. What is larger and cannot be cut up is convolved by oneDNN, which needs no
# padded copy.
STRIP_BYTES = 640 << 10


def _takes(part: Any, case: Case) -> bool:
    return case.traced


def _takes_product(block: Pointwise, case: Case) -> bool:
    return case.traced and case.rows == 1


def _product(block: Pointwise, case: Case, x: Tensor) -> Tensor:
    """Return the product with one vector: a sum that a compiler fuses with what is around it."""
    y = (x * block.weight).sum(1)[None]
    y = y if block.constant is None else y + block.constant
    return y if block.activation is None else block.activation(y)


def _narrow(
    layer: Layer, case: Case, wide: Tensor, gates: Tensor | None, rows: Tensor, run: Run
) -> Tensor:
    if gates is not None:
        wide = wide * gates if gates.shape[0] == 1 else multiplied(wide, gates, case)
    return torch.mm(wide, layer.project.weight.t()) + rows


def _over_space(conv: StreamConv, case: Case, windows: Windows, run: Run) -> Tensor:
    """Convolve so that a compiler can fuse it with what is around it."""
    vertical, horizontal = conv.pads(case.height, case.width)
    left, top = conv.grown(case.height, case.width)
    padding = max(vertical), max(horizontal)
    frames = max(x.shape[0] for x, _ in windows)
    total: Tensor | None = conv.constant
    assert total is not None
    for tap, (x, first) in enumerate(windows):
        if not x.shape[0]:
            continue
        if conv.groups == 1 or x.numel() * x.element_size() > STRIP_BYTES:
            kernel = F.pad(conv.kernels[tap], (left, 0, top, 0))
            kernel = kernel.contiguous(memory_format=torch.channels_last)
            planes = x.permute(0, 3, 1, 2)
            part = F.conv2d(planes, kernel, None, conv.stride, padding, 1, conv.groups)
            part = part.permute(0, 2, 3, 1)
        else:
            part = _slices(conv, F.pad(x, (0, 0, *horizontal, *vertical)), tap)
        if x.shape[0] < frames:
            # Nothing from the frames outside the clip.
            part = F.pad(part, (0, 0, 0, 0, 0, 0, first, frames - first - x.shape[0]))
        total = total + part
    return conv.activation(total)


def _slices(conv: StreamConv, padded: Tensor, tap: int) -> Tensor:
    """Return a depthwise convolution, without bias, as a sum of slices of padded frames."""
    total: Tensor | None = None
    for row, column in itertools.product(*map(range, conv.kernel)):
        seen = padded[
            :,
            _every(row, padded.shape[1], conv.kernel[0], conv.stride[0]),
            _every(column, padded.shape[2], conv.kernel[1], conv.stride[1]),
        ]
        term = seen * conv.cells[tap][row, column]
        total = term if total is None else total + term
    assert total is not None
    return total


def _every(first: int, size: int, kernel: int, stride: int) -> slice:
    """Return the cells of a padded axis that one cell of the kernel sees."""
    return slice(first, first + (size - kernel) // stride * stride + 1, stride)


def _takes_strips(layer: Layer, case: Case) -> bool:
    """Return whether it is one frame that is too large to be expanded at once."""
    conv = layer.depthwise
    return (
        case.traced
        and case.frames * case.batch == 1
        and (conv.splits or conv.taps == 1)
        and expanded_bytes(layer, case) > STRIP_BYTES
    )


def _in_strips(layer: Layer, case: Case) -> Compute:
    """Return what expands and convolves one frame strip by strip."""
    conv, height = layer.depthwise, case.height
    (top, _), (left, right) = conv.pads(height, case.width)
    out, _ = conv.out_size(height, case.width)
    count = min(-(-expanded_bytes(layer, case) // STRIP_BYTES), out)
    bounds = [out * i // count for i in range(count + 1)]

    def compute(x: Tensor, run: Run) -> Wide:
        constant = conv.constant
        assert constant is not None
        strips = []
        for start, stop in itertools.pairwise(bounds):
            # The rows that these rows of the output see, of which some are outside the frame.
            first = start * conv.stride[0] - top
            last = (stop - 1) * conv.stride[0] - top + conv.kernel[0]
            seen = x[:, max(first, 0) : min(last, height)]
            hidden = expansion(layer, case.of_size(seen.shape[1], case.width))(seen)
            outside = max(-first, 0), max(last - height, 0)
            padded = F.pad(hidden, (0, 0, left, right, *outside))
            strips.append(conv.activation(constant + _slices(conv, padded, 0)))
        y = torch.cat(strips, 1)
        return over_time(conv, y, run) if conv.splits else y, None

    return compute


ROWS = (
    Row(CONVOLVE, "inductor", _takes_strips, _in_strips),
    Row(SPACE, "inductor", _takes, unprepared(_over_space)),
    Row(NARROW, "inductor", _takes, unprepared(_narrow)),
    Row(PRODUCT, "inductor", _takes_product, unprepared(_product)),
)
