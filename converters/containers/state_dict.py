"""Reading the state dict files of the first PyTorch port."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from converters.containers.archive import members_of_zip
from converters.containers.variables import SourceVariables, Variable
from converters.dialects import FIRST_PORT
from converters.errors import ConversionError

# Keys under which training scripts keep a state dict beside other things.
_WRAPPERS = ("state_dict", "model", "model_state_dict")


def find_state_dict(path: Path) -> Path | None:
    """Return `path` if it is a zip archive that ``torch.save`` wrote."""
    saved = any(member.endswith("/data.pkl") for member in members_of_zip(path))
    return path if saved else None


def read_state_dict(path: Path) -> SourceVariables:
    """List the tensors of a state dict that ``torch.save`` wrote.

    Nothing in the file is executed: it is loaded with ``weights_only=True``.

    Raises:
        ConversionError: the file is no such file, holds whole modules, or is one that
            movinet-port wrote.
    """
    try:
        _check_sums(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file fails in as many ways as there are parsers inside torch.load.
    except Exception as error:
        raise ConversionError(
            f"{path}: cannot read it: no PyTorch file that loads with weights_only=True "
            f"({type(error).__name__}); save model.state_dict(), not the model, or get it again"
        ) from error
    if isinstance(content, Mapping) and "format_version" in content and "spec" in content:
        raise ConversionError(
            f"{path}: is converted already; movinet_port.load({path.name!r}) gives the network"
        )
    while wrapper := _wrapper(content):
        content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise ConversionError(
            f"{path}: holds {type(content).__name__}, expected a state dict: names and tensors"
        )
    for name, tensor in content.items():
        if not _is_plain(tensor):
            raise ConversionError(
                f"{path}: {name!r} is {_described(tensor)}, expected a plain tensor: "
                f"save model.state_dict()"
            )
    return SourceVariables(
        [_variable(str(name), tensor) for name, tensor in content.items()], FIRST_PORT
    )


def _check_sums(path: Path) -> None:
    """Raise unless every part of the file has its checksum, which ``torch.load`` does not look at.

    Files of PyTorch before 1.6 are no zip archives and have none.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} fails")


def _wrapper(content: Any) -> str | None:
    if not isinstance(content, Mapping):
        return None
    return next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)


def _is_plain(tensor: Any) -> bool:
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.layout is torch.strided
        and not tensor.is_quantized
        and not tensor.is_meta
    )


def _described(value: Any) -> str:
    return (
        f"a tensor of {value.layout}" if isinstance(value, torch.Tensor) else type(value).__name__
    )


def _variable(name: str, tensor: torch.Tensor) -> Variable:
    return Variable(
        path=name,
        full_name="",
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        node=-1,
        read=_reader_of(tensor),
    )


def _reader_of(tensor: torch.Tensor) -> Callable[[], NDArray[Any]]:
    def read() -> NDArray[Any]:
        # numpy has neither bfloat16 nor the 8-bit types.
        plain = tensor.detach()
        value: NDArray[Any] = (plain.float() if plain.is_floating_point() else plain).numpy()
        return value

    return read
