"""A layer that introduces an error, and what every hypothesis about it needs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from movinet_port.wiring import INPUT
from parity.comparison import Comparison
from parity.reference_inputs import ReferenceInputs
from parity.reports.report import status_of

# Two tensors are the same if no value differs by more than this share of the largest.
EQUAL = 1e-6
# What bfloat16, the coarsest type that networks run in, can do to one layer's output.
LARGEST_PRECISION_LOSS = 2e-2
# What bfloat16 does inside a layer that gives float32. No known type loses more.
LARGEST_GUESS = 8e-3
# How far a layer's float32 may be from float64, in floor units; and which share of an error an
# explanation may leave.
SAME_IN_FLOORS = 3.0
MOST = 0.2
# A line through fewer points than this says nothing.
FEWEST_FOR_A_LINE = 16

Tensors: TypeAlias = list[Tensor]


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A hypothesis that fits: `after` is the error left, in floor units."""

    cause: str
    detail: str
    mend: str
    after: float
    parameter: str | None = None


class FaultyLayer:
    """One layer that introduces an error, and all that is known about it.

    Attributes:
        tap, path, module: the layer.
        before: error that it introduces, in floor units.
        expected: the reference's output for each chunk, float64.
        args: what the module got in each chunk while every tap had the reference's value.
        outputs: what it gave.
        inputs: the reference's own first argument of it for each chunk, float64.
        truth: the reference's tensors of this module, by name inside the module; may be empty.
        everything: the reference's tensors of the whole network.
        own: the network's tensors.
    """

    def __init__(
        self,
        comparison: Comparison,
        tap: str,
        captured: Sequence[tuple[tuple[Any, ...], Any]],
        parameters: Mapping[str, Tensor],
        reference: ReferenceInputs | None,
    ) -> None:
        self.comparison = comparison
        self.reference = reference
        self.tap = tap
        self.path = comparison.model.path(tap) if tap != INPUT else INPUT
        self.module = comparison.model.modules[tap]
        self.before = comparison.error(tap)
        self.floor = comparison.floor(tap)
        self.expected: Tensors = [
            torch.from_numpy(values.activations[tap]).double() for values in comparison.expected
        ]
        self.args = [args for args, _ in captured]
        self.outputs: Tensors = [
            (out[0] if isinstance(out, (tuple, list)) else out).double() for _, out in captured
        ]
        self.given: Tensors = [
            args[0].double() if args and isinstance(args[0], Tensor) else torch.empty(0)
            for args in self.args
        ]
        known = reference.inputs(tap) if reference is not None else None
        self.inputs: Tensors = known if known is not None else self.given
        self.everything = parameters
        self.own = comparison.model.parameters()
        prefix = f"{self.path}."
        self.truth = {
            name.removeprefix(prefix): value.double()
            for name, value in parameters.items()
            if name.startswith(prefix) and "." not in name.removeprefix(prefix)
        }

    def score(self, outputs: Sequence[Tensor]) -> float:
        """Return the error of recomputed outputs, in floor units."""
        return distance(outputs, self.expected) / self.floor

    def fits(self, outputs: Sequence[Tensor]) -> bool:
        """Whether recomputed outputs are the reference's."""
        return status_of(self.score(outputs)) == "match"

    def reproduces(self, outputs: Sequence[Tensor]) -> bool:
        """Whether recomputed outputs are what the layer gave, its error included."""
        left = distance(outputs, self.outputs)
        if left / self.floor < SAME_IN_FLOORS:
            return True
        # An explanation that leaves most of the error explains nothing.
        error = distance(self.outputs, self.expected)
        return left <= 1e-4 * rms(self.outputs) and left <= MOST * error

    def parameter(self, name: str) -> str:
        """Return the full name of one of the module's parameters."""
        return f"{self.path}.{name}"


def rms(values: Sequence[Tensor]) -> float:
    """Return the root mean square over several tensors."""
    count = sum(value.numel() for value in values)
    return math.sqrt(sum(float((v.double() ** 2).sum()) for v in values) / max(count, 1))


def distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the root mean square difference; infinite where it has none."""
    if any(a.shape != b.shape for a, b in zip(found, expected, strict=True)):
        return math.inf
    value = rms([a - b for a, b in zip(found, expected, strict=True)])
    return value if math.isfinite(value) else math.inf


def equal(a: Tensor, b: Tensor, tolerance: float = EQUAL) -> bool:
    """Whether two tensors have the same shape and values."""
    if a.shape != b.shape or not a.numel():
        return False
    a, b = a.double(), b.double()
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


def precision(
    layer: FaultyLayer, exact: Tensors, what: str = "computes", *, guess: bool = True
) -> Iterator[Explanation]:
    """The layer does what it should, in fewer bits.

    Args:
        layer: the layer.
        exact: what it should give, and what it would give in all bits.
        what: how the detail begins.
        guess: whether noise of the right size is enough; else only values of a narrower type are.
    """
    after = layer.score(exact)
    if status_of(after) != "match" or not same_shapes(layer.outputs, exact):
        return
    lost = distance(layer.outputs, exact)
    if not 0 < lost <= LARGEST_PRECISION_LOSS * rms(exact):
        return
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(out, out.to(dtype).double()) for out in layer.outputs):
            name = str(dtype).removeprefix("torch.")
            yield Explanation(
                "precision", f"{what} in {name}", f"Run {layer.tap} in float32.", after
            )
            return
    guess = guess and lost <= LARGEST_GUESS * rms(exact)
    if guess and not _systematic(layer.outputs, exact):
        bits = max(1, round(-math.log2(lost / rms(exact))))
        yield Explanation(
            "precision",
            f"{what} with about {bits} bits instead of 24",
            f"Run {layer.tap} in float32, without autocast or TF32.",
            after,
        )


def same_shapes(a: Tensors, b: Tensors) -> bool:
    """Whether tensors have the same shapes, one by one."""
    return all(x.shape == y.shape for x, y in zip(a, b, strict=True))


def _systematic(found: Tensors, exact: Tensors) -> bool:
    """Whether an error follows the values, as rounding's does not: a factor, an offset."""
    if exact[0].ndim < 2:
        return False
    x, y = by_channel(exact), by_channel(found)
    if x.shape[1] < FEWEST_FOR_A_LINE:
        x, y = x.reshape(1, -1), y.reshape(1, -1)
    if x.shape[1] < FEWEST_FOR_A_LINE:
        return False
    error = y - x
    left = error - line_through(x, error)
    return float((left**2).sum()) < 0.5 * float((error**2).sum())


def by_channel(values: Tensors) -> Tensor:
    """Return (channels, everything else) of all chunks."""
    return torch.cat([v.movedim(1, 0).flatten(1) for v in values], dim=1)


def line_through(x: Tensor, y: Tensor) -> Tensor:
    """Return the factor and offset of `x` that come closest to `y`, row by row, applied."""
    mean_x, mean_y = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    square = ((x - mean_x) ** 2).mean(1, keepdim=True).clamp_min(1e-30)
    slope = ((x - mean_x) * (y - mean_y)).mean(1, keepdim=True) / square
    return slope * (x - mean_x) + mean_y
