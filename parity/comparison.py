"""Comparing a PyTorch network with a reference, activation by activation.

Four runs of the network make a report. As it is, and in float64, from the input alone: how far
both sides are apart at the end, and what rounding does on the way. The same two with every tap's
value replaced by the reference's: what each layer adds by itself, and its own rounding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from parity.chunk_values import Array, ChunkValues
from parity.compared_model import ComparedModel, Recorded

# The reference rounds too, in other orders and with other approximations of exp: its own error
# is taken to be up to this multiple of ours.
REFERENCE_MULTIPLE = 2.0
# Where both orders happen to round alike, the floor is still half a unit of float32's last place.
ROUNDING = 2.0**-24
# TensorFlow adds up a mean's summands almost one after the other, PyTorch in a tree. Its error,
# measured for 64 to 768,000 summands, is 0.06 to 0.14 units for each root of their number.
SUMMING = ROUNDING / 8
# A float32 layer loses less than this share; what loses more computes in fewer bits, and must
# not raise its own floor. The second is for a whole network's rounding.
LARGEST_LAYER_ROUNDING = 1e-5
LARGEST_NETWORK_ROUNDING = 1e-4


@dataclasses.dataclass
class ErrorSum:
    """Sums of squared differences, chunk by chunk."""

    squares: list[float] = dataclasses.field(default_factory=list)
    counts: list[int] = dataclasses.field(default_factory=list)
    largest: float = 0.0

    def add(self, difference: Tensor) -> None:
        """Take one chunk's differences into account."""
        wide = difference.double()
        self.squares.append(float((wide * wide).sum()))
        self.counts.append(wide.numel())
        if wide.numel():
            # max() of a NaN is the NaN; Python's would drop it.
            self.largest = float(torch.stack([wide.abs().max(), torch.tensor(self.largest)]).max())

    def fail(self, count: int) -> None:
        """Count a chunk whose differences cannot be computed."""
        self.squares.append(math.inf)
        self.counts.append(max(count, 1))
        self.largest = math.inf

    @property
    def rms(self) -> float:
        """Root mean square over all chunks."""
        return _root(math.fsum(self.squares), sum(self.counts))

    def chunks(self) -> list[float]:
        """Return the root mean square of each chunk."""
        return [_root(s, n) for s, n in zip(self.squares, self.counts, strict=True)]


def _root(squares: float, count: int) -> float:
    mean = squares / max(count, 1)
    return math.sqrt(mean) if mean >= 0 else math.nan


def floor_of(rounding: float, magnitude: float, largest: float) -> float:
    """Return the floor of a tap from what float32 rounding does to our side of it.

    Args:
        rounding: root mean square difference of float32 and float64.
        magnitude: root mean square of the reference.
        largest: share of the magnitude that rounding can be.
    """
    least = max(ROUNDING * magnitude, float(np.finfo(np.float32).tiny))
    if not math.isfinite(rounding):
        return least
    return max(REFERENCE_MULTIPLE * min(rounding, largest * magnitude), least)


class Comparison:
    """The runs of one comparison, and the sums that the report is made of.

    Attributes:
        model: the PyTorch side.
        chunks: the video, each (batch, channels, frames, height, width).
        expected: the reference's values for each.
        order: taps, in the reference's order of computation.
        introduced, rounding: tap -> what a layer adds by itself; its own float32 rounding.
    """

    def __init__(
        self, model: ComparedModel, chunks: Sequence[Array], expected: Sequence[ChunkValues]
    ) -> None:
        self.model = model
        self.chunks = chunks
        self.expected = expected
        self.order = tuple(expected[0].activations)
        self.magnitude = {
            tap: magnitude_of(values.activations[tap] for values in expected) for tap in self.order
        }
        self.introduced: dict[str, ErrorSum] = {}
        self.rounding: dict[str, ErrorSum] = {}
        self.total: dict[str, ErrorSum] = {}
        self.total_rounding: dict[str, ErrorSum] = {}
        self.notes: dict[str, str] = {}
        self.own: list[Recorded] = []
        self.layer_states: list[Recorded] = []
        self.states_rounding: dict[tuple[int, str], float] = {}

    def run_layers(self) -> None:
        """Run every layer on the reference's own input."""
        found, exact = self._pair(self.expected)
        self.introduced = self._against_reference(found)
        self.rounding = exact
        for record in found:
            record.activations.clear()  # Gigabytes of the larger networks, not needed again.
        self.layer_states = found

    def run_network(self) -> None:
        """Run the network from its input alone; its activations are kept."""
        self.own, self.total_rounding = self._pair(None)
        self.total = self._against_reference(self.own)

    def floor(self, tap: str) -> float:
        """Return the floor of what a layer introduces, absolute."""
        rounding = self.rounding.get(tap)
        return floor_of(
            rounding.rms if rounding else math.nan, self.magnitude[tap], LARGEST_LAYER_ROUNDING
        )

    def total_floor(self, tap: str) -> float:
        """Return the floor of the error end to end, absolute."""
        rounding = self.total_rounding.get(tap)
        return floor_of(
            rounding.rms if rounding else math.nan, self.magnitude[tap], LARGEST_NETWORK_ROUNDING
        )

    def error(self, tap: str) -> float:
        """Return what a layer introduces, in floor units."""
        return self.introduced[tap].rms / self.floor(tap)

    def _pair(
        self, replacements: Sequence[ChunkValues] | None
    ) -> tuple[list[Recorded], dict[str, ErrorSum]]:
        """Run as it is, and again in float64; return the first, and what float32 rounding does."""
        found = self.model.run(self.chunks, replacements=replacements)
        narrow = self.model.dtype != torch.float32
        base = (
            self.model.run(self.chunks, replacements=replacements, dtype=torch.float32)
            if narrow
            else found
        )
        rounding: dict[str, ErrorSum] = {}

        def watch(number: int, tap: str, value: Tensor) -> None:
            tally = rounding.setdefault(tap, ErrorSum())
            narrow = base[number].activations.get(tap)
            if narrow is None or narrow.shape != value.shape:
                tally.fail(value.numel())
            else:
                tally.add(narrow.double() - value)

        # With the reference's rounding where it adds up a clip, which is coarser than PyTorch's.
        exact = self.model.run(
            self.chunks,
            replacements=replacements,
            dtype=torch.float64,
            watch=watch,
            summing=SUMMING,
        )
        if replacements is None:
            for number, (a, b) in enumerate(zip(base, exact, strict=True)):
                for name, value in a.states.items():
                    wide = b.states[name].double().numpy()
                    self.states_rounding[number, name] = distance_of(value, wide)
        return found, rounding

    def _against_reference(self, found: Sequence[Recorded]) -> dict[str, ErrorSum]:
        tallies = {tap: ErrorSum() for tap in self.order}
        for values, record in zip(self.expected, found, strict=True):
            for tap in self.order:
                expected = values.activations[tap]
                value = record.activations.get(tap)
                if value is None:
                    self.notes[tap] = "the network does not run it"
                    tallies[tap].fail(expected.size)
                elif tuple(value.shape) != expected.shape:
                    shape = tuple(value.shape)
                    self.notes[tap] = f"shape {shape}, the reference's is {expected.shape}"
                    tallies[tap].fail(expected.size)
                else:
                    tallies[tap].add(value - torch.from_numpy(expected))
        return tallies


def magnitude_of(values: Iterable[Array]) -> float:
    """Return the root mean square over several arrays."""
    squares, count = 0.0, 0
    for value in values:
        squares += float(np.square(value, dtype=np.float64).sum())
        count += value.size
    return math.sqrt(squares / count) if count else 0.0


def distance_of(found: Tensor, expected: Array) -> float:
    """Return the root mean square difference, infinite if the shapes differ."""
    if tuple(found.shape) != expected.shape:
        return math.inf
    difference = found.double().numpy() - expected
    return float(np.sqrt(np.mean(difference**2)))
