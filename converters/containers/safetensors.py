"""State dicts in safetensors files."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from converters.containers.variables import SourceVariables, Variable
from converters.dialects import FIRST_PORT
from converters.errors import ConversionError

SUFFIX = ".safetensors"


def find_safetensors(path: Path) -> Path | None:
    """Return `path` if it is named so: nothing at the start of such a file marks it."""
    return path if path.suffix.lower() == SUFFIX and path.is_file() else None


def read_safetensors(path: Path) -> SourceVariables:
    """List the tensors of a safetensors file as those of a state dict.

    Raises:
        ConversionError: the file is damaged, or is one that movinet-port wrote.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            metadata = file.metadata() or {}
            slices = [file.get_slice(name) for name in names]
            kinds = [(tuple(piece.get_shape()), _dtype(piece.get_dtype())) for piece in slices]
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ConversionError(
            f"{path}: cannot read it: {reason}; the file is damaged, get it again"
        ) from error
    if "spec" in metadata:
        raise ConversionError(
            f"{path}: is converted already; movinet_port.load({path.name!r}) gives the network"
        )
    return SourceVariables(
        [
            Variable(name, "", shape, dtype, -1, functools.partial(_read, path, name))
            for name, (shape, dtype) in zip(names, kinds, strict=True)
        ],
        FIRST_PORT,
    )


def _dtype(kind: str) -> str:
    """Return numpy's name of a type: float32 for F32."""
    for short, name in (("BF", "bfloat"), ("F", "float"), ("I", "int"), ("U", "uint")):
        if kind.startswith(short):
            return f"{name}{kind.removeprefix(short)}"
    return kind.lower()


def _read(path: Path, name: str) -> NDArray[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensor = file.get_tensor(name)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConversionError(f"{path}: cannot read {name}: {error}; get it again") from error
    value: NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return value
