"""ONNX files: what travels with the graph, and running one in ONNX Runtime."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from movinet_port.checkpoint import Checkpoint
from movinet_port.errors import MovinetPortError
from movinet_port.export.compare import Runner
from movinet_port.export.onnx_graph import build_onnx
from movinet_port.export.shape import LOGITS, NEXT, VIDEO, ClipShape, input_axes
from movinet_port.model import MoViNet
from movinet_port.streams import State


def write_onnx(
    checkpoint: Checkpoint, model: MoViNet, shape: ClipShape, facts: Mapping[str, Any], path: Path
) -> None:
    """Write an ONNX file; `facts` go into its metadata, each value as JSON."""
    onnx = _import("onnx")
    metadata = {key: json.dumps(value, ensure_ascii=False) for key, value in facts.items()}
    proto = build_onnx(checkpoint.spec, checkpoint.state_dict, input_axes(model, shape), metadata)
    path.write_bytes(proto.SerializeToString())
    onnx.checker.check_model(str(path), full_check=True)


def run_onnx(path: Path) -> Runner:
    """Return what runs an ONNX file, on one thread per core of ONNX Runtime's own choice."""
    runtime = _import("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]

    def run(clip: Tensor, state: State) -> tuple[Tensor, State]:
        feeds = {VIDEO: clip.numpy(), **{name: value.numpy() for name, value in state.items()}}
        found = dict(zip(outputs, map(torch.from_numpy, session.run(None, feeds)), strict=True))
        return found.pop(LOGITS), {name.removesuffix(NEXT): value for name, value in found.items()}

    return run


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MovinetPortError(
            f"writing and checking ONNX files needs {name}, which cannot be imported "
            f"({str(error).splitlines()[0]}): run pip install 'movinet-port[onnx]'"
        ) from error
