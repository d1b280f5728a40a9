"""The published weights as objects in torchvision's manner, and networks with weights by name.

``MoViNetWeights.A0_STREAM.transforms()`` makes the network's input of frames; ``.meta`` says what
it reaches. The weights themselves are published for TensorFlow only: ``movinet-port convert``
fetches and converts a file once, and what it writes is loaded from then on. `create_model` with
``pretrained=True`` looks for it in the folder ``checkpoints`` of ``MOVINET_PORT_CACHE``, by default
``~/.cache/movinet-port``.
"""

from __future__ import annotations

import dataclasses
import enum
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import weights
from movinet_port.checkpoint import load_checkpoint
from movinet_port.errors import CheckpointError
from movinet_port.files import cache_folder
from movinet_port.inputs import published_input
from movinet_port.labels import find_labels
from movinet_port.model import MoViNet
from movinet_port.transforms import ClipTransform
from movinet_port.variants import get_spec

DATA_SET = "kinetics-600"


class _Published(enum.Enum):
    """One published network; the value is its (name, mode)."""

    @property
    def published(self) -> weights.PublishedModel:
        """What the catalogue knows about it."""
        return weights.find_model(*self.value)

    @property
    def url(self) -> str:
        """The handle of the newest TensorFlow file: what ``movinet-port convert`` takes."""
        return weights.newest_handle(*self.value)

    @property
    def meta(self) -> dict[str, Any]:
        """Input, size and published accuracy, under torchvision's names where it has them."""
        model = self.published
        return {
            "num_params": model.parameters,
            "min_size": (model.resolution, model.resolution),
            "frames": model.frames,
            "frames_per_second": model.frames_per_second,
            "num_classes": 600,
            "_metrics": {"Kinetics-600": {"acc@1": model.top1, "acc@5": model.top5}},
        }

    def transforms(self) -> ClipTransform:
        """Return what makes the network's input of uint8 frames."""
        found = published_input(self.value[0])
        assert found is not None
        return found.transform()

    def categories(self) -> tuple[str, ...]:
        """Return the classes' names: the authors' file, downloaded once.

        Raises:
            LabelsError: it cannot be fetched.
        """
        return find_labels(DATA_SET, 600)

    def load(self) -> MoViNet:
        """Return the network from the cache folder, in eval mode.

        Raises:
            CheckpointError: it was not converted yet; the message says how.
        """
        return load_pretrained(*self.value)


# mypy knows no enumeration whose members are data.
_enumeration: Any = _Published
# A0_BASE, A0_STREAM, ..., A5_STREAM.
MoViNetWeights = _enumeration(
    "MoViNetWeights",
    {f"{m.name}_{m.mode}".upper(): (m.name, m.mode) for m in weights.models()},
    module=__name__,
)


def cached_file(name: str, mode: str) -> Path:
    """Return where the converted file of a published network is looked for."""
    return cache_folder() / "checkpoints" / f"movinet_{name}_{mode}.pt"


def load_pretrained(
    name: str,
    mode: str,
    path: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> MoViNet:
    """Return a network of the family with the weights of a converted file, in eval mode.

    Args:
        name, mode: as in `create_model`; the file must hold this network.
        path: the file; None for the one in the cache folder.
        overrides: fields of the spec that are to be other than in the file.

    Raises:
        SpecError: unknown name, mode or field.
        CheckpointError: the file is missing, or holds another network.
    """
    expected = get_spec(name, mode)
    if path is None:
        path = cached_file(name, mode)
        if not path.exists():
            raise CheckpointError(
                f"{name} {mode} is not converted yet: run mkdir -p {path.parent} && movinet-port "
                f"convert --model {name} --mode {mode} -o {path}, "
                f"or give a converted file"
            )
    checkpoint = load_checkpoint(path)
    found = checkpoint.spec
    if (found.name, found.mode) != (expected.name, expected.mode):
        raise CheckpointError(
            f"{path} holds {found.name} {found.mode}, expected {name} {mode}; "
            f"movinet_port.load takes any network"
        )
    spec = found.replace(**(overrides or {}))
    return dataclasses.replace(checkpoint, spec=spec).build()
