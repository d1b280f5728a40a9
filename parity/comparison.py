"""Comparing a PyTorch network with a reference, activation by activation.

Four runs of the network make a report. As it is, and in float64, from the input alone: how far
both sides are apart at the end, and what rounding does on the way. The same two with every tap's
value replaced by the reference's: what each layer adds by itself, and its own rounding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from movinet_port.checkpoint import listing
from parity.compared_model import ComparedModel, Recorded, Replacements
from parity.errors import ComparisonError
from parity.references import ChunkValues
from parity.reports.report import (
    HeatMap,
    Histogram,
    LayerResult,
    Report,
    StateResult,
)

Array: TypeAlias = NDArray[Any]
Progress: TypeAlias = Callable[[str], None]

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

HEAT_MAPS = 8
HEAT_MAP_CHANNELS = 64
_EDGES = tuple(x / 2 for x in range(-6, 17))


@dataclasses.dataclass
class Tally:
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
        chunks: the chunks.
        expected: the reference's values for each.
        order: taps, in the reference's order of computation.
        replacements: the reference's values as the network gets them.
        introduced, rounding: tap -> what a layer adds by itself; its own float32 rounding.
    """

    def __init__(
        self, model: ComparedModel, chunks: Sequence[Array], expected: Sequence[ChunkValues]
    ) -> None:
        self.model = model
        self.chunks = chunks
        self.expected = expected
        self.order = tuple(expected[0].activations)
        before: list[Mapping[str, Array]] = [{}, *(values.states for values in expected[:-1])]
        self.replacements = [
            Replacements(values.activations, states)
            for values, states in zip(expected, before, strict=True)
        ]
        self.magnitude = {
            tap: self._magnitude(values.activations[tap] for values in expected)
            for tap in self.order
        }
        self.introduced: dict[str, Tally] = {}
        self.rounding: dict[str, Tally] = {}
        self.total: dict[str, Tally] = {}
        self.total_rounding: dict[str, Tally] = {}
        self.notes: dict[str, str] = {}
        self.own: list[Recorded] = []
        self.layer_states: list[Recorded] = []
        self.states_rounding: dict[tuple[int, str], float] = {}

    def run_layers(self) -> None:
        """Run every layer on the reference's own input."""
        found, exact = self._pair(self.replacements)
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

    def error(self, tap: str) -> float:
        """Return what a layer introduces, in floor units."""
        return self.introduced[tap].rms / self.floor(tap)

    def layer_results(self, taps: Sequence[str]) -> tuple[LayerResult, ...]:
        """Return the results of some taps; the worst have heat maps and histograms."""
        results = [self._layer_result(tap) for tap in taps]
        report = Report({}, {}, {}, tuple(results))
        worst = {layer.name for layer in report.worst(HEAT_MAPS)}
        return tuple(
            dataclasses.replace(
                layer,
                heat_map=self._heat_map(layer.name, layer.floor),
                histogram=self._histogram(layer.name, layer.floor),
            )
            if layer.name in worst
            else layer
            for layer in results
        )

    def state_results(self) -> tuple[StateResult, ...]:
        """Return the result of every stream state after every chunk."""
        results = []
        for number, values in enumerate(self.expected):
            own, alone = self.own[number].states, self.layer_states[number].states
            for name, value in values.states.items():
                if self.model.network is not None and name not in own:
                    raise ComparisonError(
                        f"the reference has the stream state {name}, the network has not; "
                        f"it has {listing(sorted(own), 4) or 'none'}"
                    )
                magnitude = self._magnitude([value])
                rounding = self.states_rounding.get((number, name), math.nan)
                floor = floor_of(rounding, magnitude, LARGEST_NETWORK_ROUNDING)
                results.append(
                    StateResult(
                        name=name,
                        chunk=number,
                        end_to_end=_distance(own[name], value) / floor,
                        introduced=_distance(alone[name], value) / floor,
                        floor=floor,
                        magnitude=magnitude,
                        shape=value.shape,
                    )
                )
        return tuple(results)

    def _pair(
        self, replacements: Sequence[Replacements] | None
    ) -> tuple[list[Recorded], dict[str, Tally]]:
        """Run as it is, and again in float64; return the first, and what float32 rounding does."""
        found = self.model.run(self.chunks, replacements=replacements)
        narrow = self.model.dtype != torch.float32
        base = (
            self.model.run(self.chunks, replacements=replacements, dtype=torch.float32)
            if narrow
            else found
        )
        rounding: dict[str, Tally] = {}

        def watch(number: int, tap: str, value: Tensor) -> None:
            tally = rounding.setdefault(tap, Tally())
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
                    self.states_rounding[number, name] = _distance(value, wide)
        return found, rounding

    def _against_reference(self, found: Sequence[Recorded]) -> dict[str, Tally]:
        tallies = {tap: Tally() for tap in self.order}
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

    def _layer_result(self, tap: str) -> LayerResult:
        magnitude = self.magnitude[tap]
        rounding = self.total_rounding.get(tap)
        floor = floor_of(
            rounding.rms if rounding else math.nan, magnitude, LARGEST_NETWORK_ROUNDING
        )
        total = self.total[tap]
        by_chunk = [error / floor for error in total.chunks()]
        shapes = [values.activations[tap].shape for values in self.expected]
        frames = sum(shape[2] for shape in shapes) if len(shapes[0]) == 5 else None
        shape = shapes[0] if frames is None else (*shapes[0][:2], frames, *shapes[0][3:])
        return LayerResult(
            name=tap,
            end_to_end=total.rms / floor,
            introduced=self.error(tap),
            floor=floor,
            introduced_floor=self.floor(tap),
            magnitude=magnitude,
            max_error=total.largest,
            shape=shape,
            chunk=int(np.argmax(np.nan_to_num(by_chunk, nan=np.inf))),
            chunks=tuple(by_chunk),
            note=self.notes.get(tap, ""),
        )

    def _differences(self, tap: str) -> list[Tensor] | None:
        if self.notes.get(tap):
            return None
        return [
            record.activations[tap].double() - torch.from_numpy(values.activations[tap]).double()
            for record, values in zip(self.own, self.expected, strict=True)
        ]

    def _heat_map(self, tap: str, floor: float) -> HeatMap | None:
        differences = self._differences(tap)
        if differences is None or differences[0].ndim < 2:
            return None
        columns: list[Tensor] = []
        frames: list[int] = []
        first = 0
        for difference, chunk in zip(differences, self.chunks, strict=True):
            wide = difference if difference.ndim == 5 else difference[:, :, None]
            others = [axis for axis in range(wide.ndim) if axis not in (1, 2)]
            columns.append((wide**2).mean(dim=others).sqrt() / floor)
            last = first + (chunk.shape[2] if chunk.ndim == 5 else 1)
            # One column for a value that stands for the whole chunk.
            frames += range(first, last) if wide.shape[2] == last - first else [last - 1]
            first = last
            if wide.shape[2] not in (1, chunk.shape[2] if chunk.ndim == 5 else 1):
                return None
        values = torch.cat(columns, dim=1)
        worst = torch.nan_to_num(values, nan=math.inf).amax(dim=1).argsort(descending=True)
        rows = sorted(worst[:HEAT_MAP_CHANNELS].tolist())
        return HeatMap(
            tuple(rows), tuple(frames), tuple(tuple(row) for row in values[rows].tolist())
        )

    def _histogram(self, tap: str, floor: float) -> Histogram | None:
        differences = self._differences(tap)
        if differences is None:
            return None
        counts, zeros = torch.zeros(len(_EDGES) - 1, dtype=torch.int64), 0
        for difference in differences:
            values = difference.abs().flatten() / floor
            values = values[torch.isfinite(values)]
            zeros += int((values == 0).sum())
            powers = values[values > 0].log10().clamp(_EDGES[0], _EDGES[-1])
            counts += torch.histc(powers, len(_EDGES) - 1, _EDGES[0], _EDGES[-1]).long()
        return Histogram(_EDGES, tuple(counts.tolist()), zeros)

    @staticmethod
    def _magnitude(values: Iterable[Array]) -> float:
        squares, count = 0.0, 0
        for value in values:
            squares += float(np.square(value, dtype=np.float64).sum())
            count += value.size
        return math.sqrt(squares / count) if count else 0.0


def _distance(found: Tensor, expected: Array) -> float:
    """Return the root mean square difference, infinite if the shapes differ."""
    if tuple(found.shape) != expected.shape:
        return math.inf
    difference = found.double().numpy() - expected
    return float(np.sqrt(np.mean(difference**2)))
