"""MoViNets in PyTorch with Google's weights.

`load` reads a converted checkpoint, `create_model` builds a network by name. This package needs
PyTorch only; `converters` reads TensorFlow's files.
"""

from typing import Any

from movinet_port.checkpoint import Checkpoint, load_checkpoint, save
from movinet_port.errors import CheckpointError, MovinetPortError, SpecError, StateError
from movinet_port.fast import optimize
from movinet_port.loading import create_model, load
from movinet_port.model import MoViNet
from movinet_port.spec import BlockSpec, HeadSpec, ModelSpec, StemSpec
from movinet_port.variants import get_spec, list_models

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Made from the catalogue, which loading a file has no use for.
    if name == "MoViNetWeights":
        from movinet_port.pretrained import MoViNetWeights

        return MoViNetWeights
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "BlockSpec",
    "Checkpoint",
    "CheckpointError",
    "HeadSpec",
    "MoViNet",
    "MoViNetWeights",
    "ModelSpec",
    "MovinetPortError",
    "SpecError",
    "StateError",
    "StemSpec",
    "__version__",
    "create_model",
    "get_spec",
    "list_models",
    "load",
    "load_checkpoint",
    "optimize",
    "save",
]
