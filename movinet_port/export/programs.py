"""TorchScript files and exported programs (``torch.export``)."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from movinet_port.checkpoint import Checkpoint
from movinet_port.export.compare import Runner
from movinet_port.export.shape import ClipShape, input_axes
from movinet_port.model import MoViNet
from movinet_port.streams import State

# A file in the archive that either kind of program is.
FACTS = "movinet_port.json"

# What a free axis is while the network is traced: odd, none a multiple of another.
_EXAMPLE = {"batch": 2, "frames": 3, "height": 61, "width": 83}


class StepProgram(nn.Module):
    """A stream network whose state is a dict in and a dict out."""

    def __init__(self, model: MoViNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits and the state after the clip."""
        return self.model.step(video, state)


def write_torchscript(
    checkpoint: Checkpoint, model: MoViNet, shape: ClipShape, facts: Mapping[str, Any], path: Path
) -> None:
    """Trace the network; sizes that `shape` leaves free are computed from the clip."""
    program, inputs = _program(model, shape)
    with warnings.catch_warnings(), torch.no_grad():
        # Of sizes becoming constants: `compare` finds out.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(program, inputs, check_trace=False, strict=False)
        torch.jit.save(traced, str(path), _extra_files={FACTS: json.dumps(facts).encode()})


def run_torchscript(path: Path) -> Runner:
    """Return what runs a TorchScript file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _runner(torch.jit.load(str(path), map_location="cpu"))


def write_exported_program(
    checkpoint: Checkpoint, model: MoViNet, shape: ClipShape, facts: Mapping[str, Any], path: Path
) -> None:
    """Export the network with ``torch.export``."""
    program, inputs = _program(model, shape)
    free = torch.export.Dim.DYNAMIC
    dynamic = [
        {i: free for i, axis in enumerate(axes) if isinstance(axis, str)}
        for axes in input_axes(model, shape).values()
    ]
    shapes: Any = (dynamic[0],)
    if model.spec.causal:
        shapes += (dict(zip(inputs[1], dynamic[1:], strict=True)),)
    with torch.no_grad():
        exported = torch.export.export(
            program,
            inputs,
            dynamic_shapes=shapes,
            # That a state has the size its clip implies is checked when it runs.
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    with path.open("wb") as file:
        torch.export.save(exported, file, extra_files={FACTS: json.dumps(facts)})


def run_exported_program(path: Path) -> Runner:
    """Return what runs an exported program."""
    with path.open("rb") as file:
        return _runner(torch.export.load(file).module())


def _program(model: MoViNet, shape: ClipShape) -> tuple[nn.Module, tuple[Any, ...]]:
    size = {
        name: _EXAMPLE[name] if (fixed := getattr(shape, name)) is None else fixed
        for name in _EXAMPLE
    }
    video = torch.rand(size["batch"], 3, size["frames"], size["height"], size["width"])
    model.requires_grad_(False)
    if not model.spec.causal:
        return model, (video,)
    return StepProgram(model), (
        video,
        model.init_state(size["batch"], size["height"], size["width"]),
    )


def _runner(program: Any) -> Runner:
    def run(clip: Tensor, state: State) -> tuple[Tensor, State]:
        if not state:
            return program(clip), {}
        logits, state = program(clip, state)
        return logits, state

    return run
