"""What is in a zip archive, which both Keras's and PyTorch's files are."""

from __future__ import annotations

import zipfile
from pathlib import Path


def members_of_zip(path: Path) -> list[str]:
    """Return the names of a zip archive's members; none if it is no such archive, or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    # NotImplementedError: what a damaged header asks for.
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return []
