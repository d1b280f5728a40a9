"""Reading the network out of a TF Lite file."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from converters.containers.evidence import Evidence
from converters.containers.variables import SourceVariables, Variable
from converters.errors import ConversionError
from converters.interpreter.engines import DEFAULT
from converters.tflite.network import LiteNetwork
from converters.tflite.schema import IDENTIFIER, read_lite_model
from converters.tflite.verify import verify
from movinet_port.agreement import Agreement
from movinet_port.model import MoViNet

_MOST_LABEL_BYTES = 1 << 20


# What a download is kept as.
LITE_FILE = "model.tflite"


def find_tflite(path: Path) -> Path | None:
    """Return a file that begins as TF Lite's do: `path`, or the one such file in that folder."""
    if path.is_dir():
        files = [file for file in path.glob("*.tflite") if is_lite_file(file)]
        return files[0] if len(files) == 1 else None
    return path if is_lite_file(path) else None


def is_lite_file(path: Path) -> bool:
    """Whether a file begins as TF Lite's do."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(8)[4:] == IDENTIFIER


def read_tflite(path: Path) -> SourceVariables:
    """List the network's parameters, found by the operations that use them.

    Raises:
        ConversionError: the file is damaged, or no MoViNet that can be told by its names.
    """
    found = _network(path).variables()
    return dataclasses.replace(found, labels=_labels(path))


def _labels(path: Path) -> tuple[str, ...]:
    """Return the lines of the one file of labels that TF Lite Metadata put behind the network."""
    try:
        with zipfile.ZipFile(path) as archive:
            lists = [info for info in archive.infolist() if info.filename.endswith(".txt")]
            if len(lists) != 1 or lists[0].file_size > _MOST_LABEL_BYTES:
                return ()
            text = archive.read(lists[0]).decode("utf-8")
    # No archive, or one that is damaged; labels are not what the file is read for.
    except (OSError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        return ()
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def tflite_evidence(path: Path, parameters: Mapping[str, Variable]) -> Evidence:
    """Return what the file's operations say; `parameters` were found by them."""
    return _network(path)


def verify_tflite(path: Path, model: MoViNet, engine: str = DEFAULT) -> Agreement:
    """Compute the file and the network in float64 on one random video.

    Raises:
        ConversionError: the file cannot be computed, or not by that engine.
    """
    if engine != DEFAULT:
        raise ConversionError(
            f"{path}: a TF Lite file is computed by {DEFAULT} alone, not {engine}"
        )
    return verify(_network(path), model)


def _network(path: Path) -> LiteNetwork:
    return LiteNetwork(read_lite_model(path))
