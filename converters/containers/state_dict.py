"""Reading the state dict files of the first PyTorch port."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from converters.containers.archive import members_of_zip
from converters.containers.variables import SourceVariables, Variable
from converters.dialects import FIRST_PORT
from converters.errors import ConversionError

# How PyTorch before 1.6 begins a file: a number, pickled.
_OLD_FORMAT = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

_NUMPY: list[Any] = [
    np.float64(0).__reduce__()[0],
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")),
]

# What torch.nn.utils.prune makes of a parameter: its value before, and what is kept of it.
_UNPRUNED, _MASK = "_orig", "_mask"


def find_state_dict(path: Path) -> Path | None:
    """Return `path` if ``torch.save`` wrote it, whatever its name."""
    if any(member.endswith("/data.pkl") for member in members_of_zip(path)):
        return path
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return path if _OLD_FORMAT in file.read(2 * len(_OLD_FORMAT)) else None


def read_state_dict(path: Path) -> SourceVariables:
    """List the tensors that ``torch.save`` wrote, however deep in dicts and lists.

    Nothing in the file is executed: it is loaded with ``weights_only=True``.

    Raises:
        ConversionError: the file is no such file, holds whole modules, or is one that
            movinet-port wrote.
    """
    try:
        _check_sums(path)
        # Training scripts keep numpy's numbers beside the weights; making them runs nothing.
        with torch.serialization.safe_globals(_NUMPY):
            content = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file fails in as many ways as there are parsers inside torch.load.
    except Exception as error:
        pickled = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
        if pickled is not None:
            raise ConversionError(
                f"{path}: it holds a pickled object of {pickled[1]}, which only running its code "
                f"unpacks; where it was made, save model.state_dict(), not the model"
            ) from error
        raise ConversionError(
            f"{path}: cannot read it: no PyTorch file that loads with weights_only=True "
            f"({type(error).__name__}); save model.state_dict(), not the model, or get it again"
        ) from error
    if isinstance(content, Mapping) and "format_version" in content and "spec" in content:
        raise ConversionError(
            f"{path}: is converted already; movinet_port.load({path.name!r}) gives the network"
        )
    tensors: dict[str, torch.Tensor] = {}
    for name, value in _leaves(content):
        if _is_plain(value):
            tensors[name] = value
        elif isinstance(value, torch.Tensor) or FIRST_PORT.locate(name) is not None:
            raise ConversionError(
                f"{path}: {name!r} is {_described(value)}, expected a plain tensor: "
                f"save model.state_dict()"
            )
    if not tensors:
        raise ConversionError(
            f"{path}: holds {type(content).__name__}, expected a state dict: names and tensors"
        )
    pruned = _pruned(path, tensors)
    return SourceVariables([_variable(*item) for item in pruned.items()], FIRST_PORT)


def _leaves(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield what dicts and lists hold in the end; its name is what led there, with dots."""
    pending = [("", content)]
    seen: set[int] = set()
    while pending:
        name, value = pending.pop()
        items: Iterable[tuple[Any, Any]]
        if isinstance(value, Mapping):
            items = value.items()
        elif isinstance(value, (list, tuple)):
            items = enumerate(value)
        else:
            yield name, value
            continue
        # A file may hold one dict under two names, or in itself.
        if id(value) not in seen:
            seen.add(id(value))
            children = [(f"{name}.{key}".lstrip("."), child) for key, child in items]
            pending += reversed(children)


def _pruned(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors with what was pruned multiplied out."""
    found = dict(tensors)
    for name in tensors:
        parameter = name.removesuffix(_UNPRUNED)
        mask = f"{parameter}{_MASK}"
        if parameter != name and mask in tensors:
            if tensors[mask].shape != tensors[name].shape:
                raise ConversionError(
                    f"{path}: {mask} is {tuple(tensors[mask].shape)} and {name} "
                    f"{tuple(tensors[name].shape)}; expected one shape"
                )
            found[parameter] = found.pop(name) * found.pop(mask)
    return found


def _check_sums(path: Path) -> None:
    """Raise unless every part of the file has its checksum, which ``torch.load`` does not look at.

    Files of PyTorch before 1.6 are no zip archives and have none.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} fails")


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
