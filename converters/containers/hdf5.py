"""Reading Keras's HDF5 files; only datasets are read, and nothing in a file is executed.

Keras writes three kinds: ``save_weights("x.h5")``; the whole model, ``save("x.h5")``, with the
same below "model_weights"; and Keras 3's ``save_weights("x.weights.h5")``, which ``x.keras`` files
hold too (`converters.containers.keras3`).
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from converters.containers.archive import members_of_zip
from converters.containers.keras3 import layers_of_blocks, stated_by_config
from converters.containers.variables import MOST_BYTES, SourceVariables, Variable
from converters.dialects import FULL_NAME, KERAS_3
from converters.errors import ConversionError

_WEIGHTS = "model.weights.h5"
_CONFIG = "config.json"

# How Keras 3's format ends the name of every variable.
_NUMBERED = re.compile(r"(^|/)vars/\d+$")


_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def find_hdf5(path: Path) -> Path | None:
    """Return `path` if it is an HDF5 file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return path if file.read(len(_SIGNATURE)) == _SIGNATURE else None


def find_keras(path: Path) -> Path | None:
    """Return `path` if it is a zip archive with Keras 3's weights in it."""
    return path if _WEIGHTS in members_of_zip(path) else None


def read_hdf5(path: Path) -> SourceVariables:
    """List the variables of an HDF5 file that Keras wrote.

    Raises:
        ConversionError: the file is no HDF5 file, is damaged, or holds links to other files.
    """
    return _read(path, path)


def read_keras(path: Path) -> SourceVariables:
    """List the variables of a ``.keras`` file.

    Raises:
        ConversionError: the file is no such file, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = archive.getinfo(_WEIGHTS).file_size
            if size > MOST_BYTES:
                raise ValueError(f"{_WEIGHTS} takes {size} bytes, no MoViNet does")
            weights = io.BytesIO(archive.read(_WEIGHTS))
            config = json.loads(archive.read(_CONFIG)) if _CONFIG in archive.namelist() else None
    except (OSError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error.args[0] if error.args else error) or type(error).__name__
        raise ConversionError(
            f"{path}: cannot read it: {reason.splitlines()[0]}; the file is damaged or no .keras "
            f"file, get it again"
        ) from error
    return _read(weights, path, config)


def _read(file: Path | IO[bytes], name: Path, config: Any = None) -> SourceVariables:
    """List the variables of an HDF5 file; `config` is the model's, if it is kept elsewhere."""
    import h5py  # when a file needs it, and not with every other container

    try:
        opened = h5py.File(file, "r")
        variables = [
            _variable(name, path, dataset) for path, dataset in _datasets(opened, h5py).items()
        ]
        if config is None and "model_config" in opened.attrs:
            config = json.loads(opened.attrs["model_config"])
    # h5py's errors have no common type: OSError, RuntimeError, KeyError, ValueError, ...
    except Exception as error:
        raise _damaged(name, "it", error) from error
    stated = stated_by_config(config)
    if any(_NUMBERED.search(v.path) for v in variables):
        return SourceVariables(variables, KERAS_3, layers_of_blocks(variables, config), stated)
    return SourceVariables(variables, FULL_NAME, stated=stated)


def _datasets(opened: Any, h5py: Any) -> dict[str, Any]:
    """Return the numeric datasets, by path; soft and external links are not followed."""
    found: dict[str, Any] = {}

    def visit(path: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            # Such datasets take their values from other files.
            if item.external or item.is_virtual:
                raise ValueError(f"dataset {path} keeps its values in another file")
            # Names that are no UTF-8 come as bytes.
            found[str(path)] = item

    opened.visititems(visit)
    return found


def _variable(name: Path, path: str, dataset: Any) -> Variable:
    return Variable(
        path=path,
        full_name="",
        shape=tuple(dataset.shape or ()),
        dtype=str(dataset.dtype),
        node=-1,
        read=_reader_of(name, path, dataset),
    )


def _reader_of(name: Path, path: str, dataset: Any) -> Callable[[], NDArray[Any]]:
    def read() -> NDArray[Any]:
        try:
            return np.asarray(dataset[()])
        except Exception as error:
            raise _damaged(name, f"its variable {path}", error) from error

    return read


def _damaged(name: Path, what: str, error: Exception) -> ConversionError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ConversionError(
        f"{name}: cannot read {what}: {reason}; the file is damaged or no HDF5 file of Keras's, "
        f"get it again"
    )
