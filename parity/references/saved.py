"""A reference's activations in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from movinet_port.files import whole_file
from movinet_port.spec import ModelSpec
from movinet_port.wiring import INPUT
from parity.chunk_values import Array, ChunkValues
from parity.errors import ComparisonError
from parity.references.reference import Reference

FILE_VERSION = 1


class SavedReference:
    """Activations from a file that `save_reference` wrote; needs no TensorFlow.

    Attributes:
        chunks: the video that they belong to.

    Raises:
        ComparisonError: it is no such file.
    """

    table: Mapping[str, str] | None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            with np.load(path, allow_pickle=False) as content:
                header = json.loads(str(content["header"]))
                if header["version"] != FILE_VERSION:
                    raise ComparisonError(
                        f"{path}: version {header['version']} of the file, this release reads "
                        f"{FILE_VERSION}; save the reference again"
                    )
                arrays = {name: content[name] for name in content.files if name != "header"}
        except ComparisonError:
            raise
        # numpy's reader raises errors of every type on damaged files.
        except Exception as error:
            raise ComparisonError(
                f"{path}: no reference that 'movinet-port parity --save-reference' wrote "
                f"({str(error).splitlines()[0] if str(error) else type(error).__name__})"
            ) from error
        self.table = header["table"]
        self.description: Mapping[str, Any] = {**header["description"], "file": str(path)}
        self.spec = ModelSpec.from_dict(header["spec"]) if header["spec"] else None
        self.parameters: Mapping[str, Tensor] = {
            name.removeprefix("parameter/"): torch.from_numpy(value)
            for name, value in arrays.items()
            if name.startswith("parameter/")
        }
        self._values = []
        for number in range(header["chunks"]):
            self._values.append(
                ChunkValues(
                    _with_prefix(arrays, f"{number}/tap/"),
                    _with_prefix(arrays, f"{number}/state/"),
                )
            )
        self.chunks = [values.activations[INPUT] for values in self._values]

    def run(self, chunks: Sequence[Array]) -> list[ChunkValues]:
        """Return the saved activations.

        Raises:
            ComparisonError: the video is another one.
        """
        same = len(chunks) == len(self.chunks) and all(
            np.array_equal(a, b) for a, b in zip(chunks, self.chunks, strict=True)
        )
        if not same:
            shapes = [chunk.shape for chunk in self.chunks]
            raise ComparisonError(
                f"{self.description['file']} was saved for another video (chunks {shapes}); "
                f"leave the input out to use the one in the file"
            )
        return self._values


def _with_prefix(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {
        name.removeprefix(prefix): value
        for name, value in arrays.items()
        if name.startswith(prefix)
    }


def save_reference(
    reference: Reference, chunks: Sequence[Array], path: str | os.PathLike[str]
) -> None:
    """Run a reference on a video and write all that a comparison needs of it into a ``.npz``.

    Args:
        reference: to run.
        chunks: the video, each chunk (batch, channels, frames, height, width).
        path: file to write.

    Raises:
        MovinetPortError: the file cannot be written.
    """
    arrays: dict[str, Array] = {}
    for number, values in enumerate(reference.run(chunks)):
        arrays.update({f"{number}/tap/{name}": v for name, v in values.activations.items()})
        arrays.update({f"{number}/state/{name}": v for name, v in values.states.items()})
    arrays.update({f"parameter/{name}": v.numpy() for name, v in reference.parameters.items()})
    spec = getattr(reference, "spec", None)
    header = {
        "version": FILE_VERSION,
        "description": dict(reference.description),
        "table": None if reference.table is None else dict(reference.table),
        "spec": spec.to_dict() if spec is not None else None,
        "chunks": len(chunks),
    }
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, header=np.array(json.dumps(header)), **arrays)  # type: ignore[arg-type]
