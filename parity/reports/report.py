"""What a comparison found, as values; how it is shown is the renderers' business.

A `Report` is true if the two networks agree. Errors are root mean squares over a tensor and are
given in units of the floor: what rounding to float32 does at that place. `Report.to_dict` is the
JSON that `movinet-port parity --json` writes::

    schema_version  1; raised when a key is renamed or removed, or changes its meaning
    verdict         "parity", "suspect" or "mismatch": the worst status of a layer or state
    reference       {"kind", "name", ...}: what was compared with; other keys depend on the kind
    model           {"name", ...}: the PyTorch network
    input           {"kind", "shape", "chunks", ...}: shape (batch, channels, frames, height,
                    width); chunks is the number of frames in each
    thresholds      {"suspect", "mismatch"}: errors, in floor units, at which a status begins
    layers          one object per tap, in the order of computation:
        name            canonical name, or the one of the user's table
        status          "match", "suspect" or "mismatch", by the larger of both errors
        end_to_end      error when the whole network runs, in floor units
        introduced      error when only this layer runs, on the reference's own input of it, in
                        floor units; null if the layer cannot be run alone
        inherited       what end_to_end shows beyond introduced, in floor units
        introduces      whether introduced reaches the suspect threshold
        floor           of end_to_end, absolute
        introduced_floor  of introduced, absolute
        magnitude       root mean square of the reference's values
        max_error       largest absolute end-to-end difference of a value
        shape           of the tap, (batch, channels, frames, height, width), frames of all chunks
        chunk           where end_to_end is largest, counted from 0
        chunks          end_to_end of each chunk, in floor units
        heat_map        null, or for the worst layers {"channels", "frames", "values"}: error in
                        floor units, end to end, values[row][column] of that channel and frame
        histogram       null, or {"edges", "counts", "zeros"}: how many values have an absolute
                        end-to-end difference of 10**edges[i] to 10**edges[i + 1] floors (the
                        first and last bin hold what lies beyond), and how many none at all
        note            "" or one sentence, such as that shapes differ
    states          one object per stream state and chunk:
        name, chunk, shape, status, end_to_end, introduced, introduces, floor, magnitude, note
                        as of a layer; introduced is null, and introduces false, where the state
                        is not computed from the reference's alone
    diagnosis       one object per explanation:
        layer, parameter (or null), cause (one of CAUSES), detail,
        before          error that the layer introduces as it is, in floor units
        after           error with the hypothesis applied, in floor units; null if none fits
        mend            one sentence
    seconds         {"step": seconds} of the parts of the comparison

A number that is infinite or not a number, an error where shapes differ say, is null.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

SCHEMA_VERSION = 1

Status: TypeAlias = Literal["match", "suspect", "mismatch"]
Verdict: TypeAlias = Literal["parity", "suspect", "mismatch"]

STATUSES: tuple[Status, ...] = ("match", "suspect", "mismatch")
_VERDICTS: dict[Status, Verdict] = {
    "match": "parity",
    "suspect": "suspect",
    "mismatch": "mismatch",
}

# Errors in floor units at which a layer is no longer a match. Rounding stays below the first
# for every published variant; the smallest fault worth a name (the gate's 0.16667 for 1/6) is
# above the second.
SUSPECT = 10.0
MISMATCH = 50.0

# Cause -> what it means.
CAUSES: dict[str, str] = {
    "kernel-layout": "the axes of a kernel are in another order",
    "kernel-flip": "a kernel is reversed along an axis",
    "tensor-swapped": "another tensor of the network is in this one's place",
    "tensor-not-loaded": "the tensor has the values it was created with",
    "tensor-scaled": "the tensor is a multiple of what it should be",
    "norm-stats-swapped": "tensors of one normalisation are exchanged",
    "norm-epsilon": "another epsilon is added to the variance",
    "norm-not-in-eval": "the normalisation uses the clip's own statistics",
    "activation": "another activation function is computed",
    "gate": "another flavour of the squeeze-excitation's gate is computed",
    "padding": "the input is padded by another rule",
    "pool-divisor": "an average divides by another number of cells",
    "skip-path": "the residual connection adds something else",
    "se-pooling": "the squeeze-excitation pools something else",
    "positional-encoding": "another positional encoding is added",
    "rezero": "the residual branch is scaled by another number",
    "stream-state": "what is remembered from clip to clip is not the reference's",
    "frame-order": "frames are missing, repeated or in another order",
    "channel-order": "channels are in another order",
    "input-scaling": "the input has another range",
    "input-layout": "the axes of the input are in another order",
    "precision": "the layer computes or stores in fewer bits than float32",
    "weights-differ": "the same computation with other numbers",
    "unknown": "no hypothesis explains the error",
}


def status_of(error: float) -> Status:
    """Return the status of an error in floor units; one that is not a number is a mismatch."""
    if not error < MISMATCH:
        return "mismatch"
    return "match" if error < SUSPECT else "suspect"


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """Errors by channel and frame.

    Attributes:
        channels: number of the channel of each row.
        frames: number of the frame, over all chunks, of each column.
        values: rows of errors in floor units, root mean square over batch and space.
    """

    channels: tuple[int, ...]
    frames: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True)
class Histogram:
    """How many values differ by how much.

    Attributes:
        edges: powers of ten, in floor units; one more than there are counts.
        counts: values in each bin; the first and last also hold what lies beyond.
        zeros: values that do not differ at all.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    zeros: int


class _Judged:
    """What has an error of its own and one end to end; true if both match."""

    name: str
    end_to_end: float
    introduced: float | None

    @property
    def introduces(self) -> bool:
        """Whether it adds an error of its own."""
        return self.introduced is not None and status_of(self.introduced) != "match"

    @property
    def status(self) -> Status:
        """The status of the larger error."""
        errors = (
            [self.end_to_end] if self.introduced is None else [self.end_to_end, self.introduced]
        )
        return max((status_of(error) for error in errors), key=STATUSES.index)

    def __bool__(self) -> bool:
        return self.status == "match"


@dataclasses.dataclass(frozen=True)
class LayerResult(_Judged):
    """One tap; true if it matches. The module's docstring says what each field is."""

    name: str
    end_to_end: float
    introduced: float | None
    floor: float
    introduced_floor: float
    magnitude: float
    max_error: float
    shape: tuple[int, ...]
    chunk: int = 0
    chunks: tuple[float, ...] = ()
    heat_map: HeatMap | None = None
    histogram: Histogram | None = None
    note: str = ""

    @property
    def inherited(self) -> float:
        """What `end_to_end` shows beyond `introduced`, in floor units."""
        if self.introduced is None or not math.isfinite(self.end_to_end):
            return self.end_to_end
        # The two differences are independent, so their squares add up.
        own = self.introduced * self.introduced_floor / self.floor
        if own >= self.end_to_end:
            return 0.0
        # Factored, because the squares of very large errors overflow.
        return math.sqrt(self.end_to_end - own) * math.sqrt(self.end_to_end + own)


@dataclasses.dataclass(frozen=True)
class StateResult(_Judged):
    """A stream state after one chunk; true if it matches.

    Attributes:
        name: canonical name.
        chunk: counted from 0.
        end_to_end: error when the whole network runs, in floor units.
        introduced: error when it is computed from the reference's states and activations.
        floor: absolute.
        magnitude: root mean square of the reference's values.
        shape: of the state.
        note: "" or one sentence.
    """

    name: str
    chunk: int
    end_to_end: float
    introduced: float | None
    floor: float
    magnitude: float
    shape: tuple[int, ...]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """An explanation of the error that one layer introduces.

    Attributes:
        layer: the tap.
        parameter: the parameter or state concerned, or None.
        cause: one of `CAUSES`.
        detail: what was found, in a few words.
        before: error that the layer introduces as it is, in floor units.
        after: error with the hypothesis applied; None if no hypothesis fits.
        mend: what to do, one sentence.
    """

    layer: str
    parameter: str | None
    cause: str
    detail: str
    before: float
    after: float | None
    mend: str

    def __bool__(self) -> bool:
        """Whether the error is explained."""
        return self.cause != "unknown"


@dataclasses.dataclass(frozen=True)
class Report:
    """A whole comparison; true if the verdict is parity."""

    reference: Mapping[str, Any]
    model: Mapping[str, Any]
    input: Mapping[str, Any]
    layers: tuple[LayerResult, ...]
    states: tuple[StateResult, ...] = ()
    diagnosis: tuple[Diagnosis, ...] = ()
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """The worst status of a layer or state; an empty comparison proves nothing."""
        items: list[LayerResult | StateResult] = [*self.layers, *self.states]
        found = [item.status for item in items]
        return _VERDICTS[max(found, key=STATUSES.index)] if found else "mismatch"

    def __bool__(self) -> bool:
        return self.verdict == "parity"

    def layer(self, name: str) -> LayerResult:
        """Return one tap's result.

        Raises:
            KeyError: no tap has this name.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def worst(self, count: int = 8) -> tuple[LayerResult, ...]:
        """Return the layers with the largest introduced errors, then end-to-end errors."""

        def rank(layer: LayerResult) -> tuple[float, float]:
            own = _rank(layer.introduced or 0.0)
            return (own if layer.introduces else 0.0, _rank(layer.end_to_end))

        return tuple(sorted(self.layers, key=rank, reverse=True)[:count])

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as the module's docstring describes it."""
        layers = [
            {
                "name": layer.name,
                "status": layer.status,
                "end_to_end": layer.end_to_end,
                "introduced": layer.introduced,
                "inherited": layer.inherited,
                "introduces": layer.introduces,
                **_fields(
                    layer,
                    "floor introduced_floor magnitude max_error shape chunk chunks heat_map "
                    "histogram note",
                ),
            }
            for layer in self.layers
        ]
        states = [
            {
                **dataclasses.asdict(state),
                "status": state.status,
                "introduces": state.introduces,
            }
            for state in self.states
        ]
        data = {
            "schema_version": SCHEMA_VERSION,
            "verdict": self.verdict,
            "reference": dict(self.reference),
            "model": dict(self.model),
            "input": dict(self.input),
            "thresholds": {"suspect": SUSPECT, "mismatch": MISMATCH},
            "layers": layers,
            "states": states,
            "diagnosis": [dataclasses.asdict(diagnosis) for diagnosis in self.diagnosis],
            "seconds": dict(self.seconds),
        }
        plain: dict[str, Any] = _plain(data)
        return plain

    def to_json(self, indent: int | None = 1) -> str:
        """Return `to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)


def _rank(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _fields(item: Any, names: str) -> dict[str, Any]:
    values = {name: getattr(item, name) for name in names.split()}
    return {
        name: dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
        for name, value in values.items()
    }


def _plain(value: Any) -> Any:
    """Return data that JSON knows: numpy's numbers as Python's, five digits, no infinities."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value
