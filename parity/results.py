"""What the runs of a comparison say about each layer and each stream state."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from movinet_port.checkpoint import listing
from parity.comparison import (
    LARGEST_NETWORK_ROUNDING,
    Comparison,
    distance_of,
    floor_of,
    magnitude_of,
)
from parity.errors import ComparisonError
from parity.reports.report import HeatMap, Histogram, LayerResult, Report, StateResult

HEAT_MAPS = 8
HEAT_MAP_CHANNELS = 64
# Powers of ten, in floor units.
_EDGES = tuple(x / 2 for x in range(-6, 17))


def layer_results(comparison: Comparison, taps: Sequence[str]) -> tuple[LayerResult, ...]:
    """Return the results of some taps; the worst have heat maps and histograms."""
    results = [_layer_result(comparison, tap) for tap in taps]
    report = Report({}, {}, {}, tuple(results))
    worst = {layer.name for layer in report.worst(HEAT_MAPS)}
    return tuple(
        dataclasses.replace(
            layer,
            heat_map=_heat_map(comparison, layer.name, layer.floor),
            histogram=_histogram(comparison, layer.name, layer.floor),
        )
        if layer.name in worst
        else layer
        for layer in results
    )


def state_results(comparison: Comparison) -> tuple[StateResult, ...]:
    """Return the result of every stream state after every chunk."""
    results = []
    for number, values in enumerate(comparison.expected):
        own, alone = comparison.own[number].states, comparison.layer_states[number].states
        for name, value in values.states.items():
            if comparison.model.network is not None and name not in own:
                raise ComparisonError(
                    f"the reference has the stream state {name}, the network has not; "
                    f"it has {listing(sorted(own), 4) or 'none'}"
                )
            magnitude = magnitude_of([value])
            rounding = comparison.states_rounding.get((number, name), math.nan)
            floor = floor_of(rounding, magnitude, LARGEST_NETWORK_ROUNDING)
            results.append(
                StateResult(
                    name=name,
                    chunk=number,
                    end_to_end=distance_of(own[name], value) / floor,
                    introduced=distance_of(alone[name], value) / floor,
                    floor=floor,
                    magnitude=magnitude,
                    shape=value.shape,
                )
            )
    return tuple(results)


def _layer_result(comparison: Comparison, tap: str) -> LayerResult:
    floor = comparison.total_floor(tap)
    total = comparison.total[tap]
    by_chunk = [error / floor for error in total.chunks()]
    shapes = [values.activations[tap].shape for values in comparison.expected]
    frames = sum(shape[2] for shape in shapes) if len(shapes[0]) == 5 else None
    shape = shapes[0] if frames is None else (*shapes[0][:2], frames, *shapes[0][3:])
    return LayerResult(
        name=tap,
        end_to_end=total.rms / floor,
        introduced=comparison.error(tap),
        floor=floor,
        introduced_floor=comparison.floor(tap),
        magnitude=comparison.magnitude[tap],
        max_error=total.largest,
        shape=shape,
        chunk=int(np.argmax(np.nan_to_num(by_chunk, nan=np.inf))),
        chunks=tuple(by_chunk),
        note=comparison.notes.get(tap, ""),
    )


def _differences(comparison: Comparison, tap: str) -> list[Tensor] | None:
    if comparison.notes.get(tap):
        return None
    return [
        record.activations[tap].double() - torch.from_numpy(values.activations[tap]).double()
        for record, values in zip(comparison.own, comparison.expected, strict=True)
    ]


def _heat_map(comparison: Comparison, tap: str, floor: float) -> HeatMap | None:
    differences = _differences(comparison, tap)
    if differences is None or differences[0].ndim < 2:
        return None
    columns: list[Tensor] = []
    frames: list[int] = []
    first = 0
    for difference, chunk in zip(differences, comparison.chunks, strict=True):
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
    return HeatMap(tuple(rows), tuple(frames), tuple(tuple(row) for row in values[rows].tolist()))


def _histogram(comparison: Comparison, tap: str, floor: float) -> Histogram | None:
    differences = _differences(comparison, tap)
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
