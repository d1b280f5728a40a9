"""Writing a network as a TF Lite file, and running it in LiteRT beside the network."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from converters.dialects import state_name
from converters.errors import ConversionError
from converters.tflite.buffer import LABELS, LiteGraph, task_metadata
from converters.tflite.emit import Quantisation, build_lite
from converters.tflite.quantise import calibrate, in_8_bits
from converters.tflite.schema import read_lite_model
from converters.tflite.verify import LiteStream
from movinet_port.agreement import Agreement, Tally
from movinet_port.checkpoint import Checkpoint
from movinet_port.errors import MovinetPortError
from movinet_port.export.compare import require
from movinet_port.export.targets import ExportError, Notes, Request, Target, facts_of
from movinet_port.files import whole_file
from movinet_port.inputs import published_input
from movinet_port.streams import FRAME_COUNT

SUFFIX = ".tflite"
# What int8 adds to what a kernel can be stored as.
QUANTISATIONS = (*get_args(Quantisation), "int8")

# Frames that both sides see, of a stream network one after the other.
_FRAMES = 8


def write_tflite(request: Request) -> tuple[Agreement | None, Notes]:
    """Write a TF Lite file.

    Raises:
        ExportError: the network cannot be written as asked.
        MismatchError: the file gives other logits; nothing was written.
        MovinetPortError: a package is missing.
    """
    checkpoint, quantisation = request.checkpoint, request.quantise or "none"
    if importlib.util.find_spec("flatbuffers") is None:
        raise MovinetPortError(
            "writing TF Lite files needs flatbuffers: run pip install 'movinet-port[tflite]'"
        )
    graph = _graph(request, quantisation)
    metadata = {
        "movinet-port": json.dumps(facts_of(checkpoint), ensure_ascii=False).encode(),
        "TFLITE_METADATA": task_metadata(checkpoint.spec.name, checkpoint.labels is not None),
    }
    with whole_file(request.path) as temporary:
        request.progress(f"writing {request.path}")
        temporary.write_bytes(graph.write(metadata))
        if checkpoint.labels is not None:
            # As TF Lite Metadata has it: a zip archive behind the network.
            with zipfile.ZipFile(temporary, "a", zipfile.ZIP_STORED) as archive:
                archive.writestr(LABELS, "\n".join(checkpoint.labels) + "\n")
        notes = [("takes", _takes(graph)), ("stored as", _WORDS[quantisation])]
        if not request.verify:
            return None, tuple(notes)
        request.progress("running both sides on random frames")
        runner, name = _runner(temporary)
        agreement = _compare(checkpoint, runner, graph.shape(graph.inputs["image"]), name)
        if quantisation == "none":
            require(agreement, "the TF Lite file")
        notes.append(("computed by", f"{name}, on random frames"))
        return agreement, tuple(notes)


_WORDS = {
    "none": "float32",
    "float16": "float16 weights, computed in float32",
    "dynamic": "8-bit weights, a scale for each channel; small ones and activations in float32",
    "int8": "8-bit weights and activations; states, inputs and outputs in float32",
}


def _graph(request: Request, quantisation: str) -> LiteGraph:
    checkpoint, shape = request.checkpoint, request.shape
    spec = checkpoint.spec
    if shape.batch not in (None, 1):
        raise ExportError(f"a TF Lite file takes one video at a time, found --batch {shape.batch}")
    made_for = checkpoint.input or published_input(spec.name)
    frames = shape.frames or (1 if spec.causal else made_for.frames if made_for else None)
    if frames is None:
        raise ExportError("a TF Lite file is for one number of frames; name it with --frames")
    assert shape.height is not None  # the target's sizes ask for it
    assert shape.width is not None
    stored: Any = "none" if quantisation == "int8" else quantisation
    weights = {name: value.detach().cpu() for name, value in checkpoint.state_dict.items()}
    graph = build_lite(spec, weights, frames, shape.height, shape.width, stored)
    if quantisation != "int8":
        return graph
    if request.calibration is None:
        raise ExportError(
            "8-bit activations need the ranges that they have on real videos; name a folder of "
            "videos with --calibrate"
        )
    request.progress("calibrating on videos")
    clips = request.calibration(frames, (shape.height, shape.width))
    return in_8_bits(graph, calibrate(graph, clips))


def _takes(graph: LiteGraph) -> str:
    states = len(graph.inputs) - 1
    return (
        f"image {graph.shape(graph.inputs['image'])}, RGB in [0, 1]"
        f"{f', and {states} states' if states else ''}; signature serving_default"
    )


class LiteRt:
    """A TF Lite file in LiteRT, called clip after clip of one video.

    Args:
        path: the file.

    Raises:
        ConversionError: LiteRT cannot load it.
    """

    def __init__(self, path: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        try:
            self._runner = Interpreter(str(path), num_threads=1).get_signature_runner()
        except (ValueError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConversionError(f"{path}: LiteRT cannot load it: {reason}") from error
        self._details = self._runner.get_input_details()
        self.reset()

    @property
    def states(self) -> dict[str, Tensor]:
        """What the file hands to itself from clip to clip, under its names."""
        return {name: torch.from_numpy(value) for name, value in self._states.items()}

    def reset(self) -> None:
        """Start another video."""
        self._states: dict[str, Any] = {
            name: np.zeros(detail["shape"], detail["dtype"])
            for name, detail in self._details.items()
            if name != "image"
        }

    def __call__(self, clip: Tensor) -> Tensor:
        """Return the logits after this clip, (1, frames, height, width, 3) in [0, 1]."""
        found = self._runner(image=clip.float().numpy(), **self._states)
        logits = torch.from_numpy(found.pop("logits"))
        self._states = found
        return logits


def _runner(path: Path) -> tuple[LiteRt | LiteStream, str]:
    if importlib.util.find_spec("ai_edge_litert") is not None:
        return LiteRt(path), "LiteRT"
    return LiteStream(read_lite_model(path)), "movinet-port (LiteRT is not installed)"


def _compare(
    checkpoint: Checkpoint, run: LiteRt | LiteStream, shape: tuple[int, ...], name: str
) -> Agreement:
    generator = torch.Generator().manual_seed(0)
    model, causal = checkpoint.build(), checkpoint.spec.causal
    tally = Tally(reference=name)
    state = model.init_state(1, *shape[2:4]) if causal else {}
    with torch.inference_mode():
        for _ in range(_FRAMES if causal else 1):
            clip = torch.rand(shape, generator=generator)
            video = clip.permute(0, 4, 1, 2, 3)
            expected, state = model.step(video, state) if causal else (model(video), {})
            tally.add(shape[:4], expected, run(clip).to(expected.dtype))
            for key, found in run.states.items():
                canonical = state_name(key)
                if canonical is None or canonical == FRAME_COUNT:
                    continue
                right = state[canonical]
                tally.add_state(right, found.permute(0, 4, 1, 2, 3).to(right.dtype))
    return tally.agreement()


TARGETS: Mapping[str, Target] = {
    "tflite": Target(
        "TF Lite file",
        write_tflite,
        extra="tflite",
        sizes="frame",
        suffix=SUFFIX,
        quantisations=QUANTISATIONS[1:],
    ),
}
