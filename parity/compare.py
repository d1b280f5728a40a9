"""Comparing a PyTorch network with a reference: the report of one video."""

from __future__ import annotations

import dataclasses
import fnmatch
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, nn

from movinet_port.checkpoint import listing
from movinet_port.wiring import wiring
from parity.chunk_values import Array, ChunkValues
from parity.compared_model import ComparedModel
from parity.comparison import Comparison
from parity.diagnose import diagnose as explain
from parity.errors import ComparisonError
from parity.references import Reference, SavedReference
from parity.reports.report import Report
from parity.results import layer_results, state_results

Progress: TypeAlias = Callable[[str], None]


def compare(
    reference: Reference,
    model: nn.Module,
    clip: Array | Tensor | None = None,
    *,
    chunks: Sequence[int] | None = None,
    table: Mapping[str, str] | None = None,
    layers: str | None = None,
    diagnose: bool = True,
    source: Mapping[str, Any] | None = None,
    name: str | None = None,
    progress: Progress = lambda activity: None,
) -> Report:
    """Compare a network with a reference on one video.

    Args:
        reference: what is right, see `parity.references`.
        model: the network, used as it is: its mode, its type, the state it holds. Nothing of it
            is changed.
        clip: the video, (batch, channels, frames, height, width), in the range that the
            reference expects (RGB in [0, 1]); None for the one that a saved reference holds.
        chunks: number of frames in each clip that a stream network gets; by default one clip.
        table: name of the reference's activation -> path of a module; by default the
            reference's own table, or else the taps of a MoViNet.
        layers: report only taps that match this pattern (``block1_*``).
        diagnose: look for the causes of what does not match.
        source: plain data for the report's "input".
        name: of the network, for the report.
        progress: called with a line of text when a step begins.

    Raises:
        ComparisonError: a tap of one side has no partner on the other, the clip does not fit, or
            the reference cannot be run.
    """
    clock = _Clock(progress)
    parts = _split(reference, clip, chunks)
    compared = ComparedModel(model, table if table is not None else reference.table)
    if len(parts) > 1 and not compared.causal and compared.network is not None:
        raise ComparisonError(
            f"{compared.network.spec.name} base sees a clip as a whole; leave out the chunks"
        )
    with clock("running the reference"):
        expected = _without(compared.folded, reference.run(parts))
    _check_pairs(expected, compared)
    comparison = Comparison(compared, parts, expected)
    with clock("running each layer on the reference's input"):
        comparison.run_layers()
    with clock("running the network"):
        comparison.run_network()
    wanted = [tap for tap in comparison.order if layers is None or fnmatch.fnmatch(tap, layers)]
    if not wanted:
        raise ComparisonError(
            f"no tap matches {layers!r}; there are {listing(list(comparison.order), 5)}"
        )
    results = layer_results(comparison, wanted)
    states = state_results(comparison) if layers is None else ()
    report = Report(
        reference=dict(reference.description),
        model=_describe(compared, name),
        input=_describe_input(parts, source),
        layers=results,
        states=states,
    )
    # The diagnosis compares parameters and replaces layers: it is for the readable network, and for
    # a reference that has all that flows into each layer.
    whole = compared.network is None or set(wiring(compared.network.spec)) <= set(compared.table)
    if diagnose and not report and not compared.folded and whole:
        with clock("looking for the causes"):
            found = explain(comparison, report, reference.parameters)
        report = dataclasses.replace(report, diagnosis=found)
    return dataclasses.replace(report, seconds=clock.seconds)


def _split(
    reference: Reference, clip: Array | Tensor | None, chunks: Sequence[int] | None
) -> list[Array]:
    if clip is None:
        if not isinstance(reference, SavedReference):
            raise ComparisonError("no clip is given; only a saved reference brings its own")
        if chunks is not None and list(chunks) != [part.shape[2] for part in reference.chunks]:
            raise ComparisonError(
                f"{reference.description['file']} was saved for chunks of "
                f"{[part.shape[2] for part in reference.chunks]} frames, not {list(chunks)}"
            )
        return list(reference.chunks)
    return split_clip(clip, chunks)


def split_clip(clip: Array | Tensor, chunks: Sequence[int] | None) -> list[Array]:
    """Return a video as float32, cut into clips of so many frames.

    Raises:
        ComparisonError: it is not floating point, or has another number of frames.
    """
    video = clip.numpy() if isinstance(clip, Tensor) else np.asarray(clip)
    if video.dtype.kind != "f" or not np.isfinite(video).all():
        raise ComparisonError(
            f"the clip is {video.dtype}, expected finite floating-point numbers; "
            f"divide RGB bytes by 255"
        )
    video = np.ascontiguousarray(video, dtype=np.float32)
    if chunks is None:
        return [video]
    if video.ndim != 5 or sum(chunks) != video.shape[2] or min(chunks) < 1:
        raise ComparisonError(
            f"the chunks {list(chunks)} have {sum(chunks)} frames in all, the clip is "
            f"{video.shape}, expected (batch, channels, frames, height, width) with as many"
        )
    edges = np.cumsum(chunks)[:-1]
    return [np.ascontiguousarray(part) for part in np.split(video, edges, axis=2)]


def _without(folded: Sequence[str], expected: Sequence[ChunkValues]) -> list[ChunkValues]:
    """Return the expected less the activations that the network declares as folded."""
    return [
        dataclasses.replace(
            values,
            activations={
                tap: value for tap, value in values.activations.items() if tap not in folded
            },
        )
        for values in expected
    ]


def _check_pairs(expected: Sequence[ChunkValues], compared: ComparedModel) -> None:
    there, here = set(expected[0].activations), set(compared.table)
    alone = [f"{name} (reference only)" for name in expected[0].activations if name not in here]
    alone += [f"{name} (network only)" for name in compared.table if name not in there]
    if alone:
        raise ComparisonError(
            f"{len(alone)} of {len(there | here)} taps have no partner: {listing(alone)}; "
            f"both sides must be networks of one shape"
        )


def _describe(compared: ComparedModel, name: str | None) -> dict[str, Any]:
    described: dict[str, Any] = {"name": name or type(compared.model).__name__}
    if compared.network is not None:
        spec = compared.network.spec
        described["network"] = f"{spec.name} {spec.mode}"
    if compared.folded:
        described["folded"] = list(compared.folded)
    described["dtype"] = str(compared.dtype).removeprefix("torch.")
    return described


def _describe_input(parts: Sequence[Array], source: Mapping[str, Any] | None) -> dict[str, Any]:
    shape = list(parts[0].shape)
    described = {"kind": "array", **(source or {}), "shape": shape, "chunks": [1]}
    if len(shape) == 5:
        described["chunks"] = [part.shape[2] for part in parts]
        shape[2] = sum(part.shape[2] for part in parts)
    return described


class _Clock:
    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def __call__(self, activity: str) -> Iterator[None]:
        self._progress(activity)
        start = time.perf_counter()
        yield
        self.seconds[activity] = round(time.perf_counter() - start, 3)
