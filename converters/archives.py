"""Unpacking what came from outside: plain files and folders, counted, into an empty folder."""

from __future__ import annotations

import lzma
import sys
import tarfile
import zlib
from pathlib import Path

from converters.errors import SourceProblem, reason

# The graph and weights of the largest network, A5, are a few hundred MB in a handful of files.
MAX_UNPACKED_BYTES = 4 * 1024**3
MAX_MEMBERS = 10_000

ACCEPTED = (
    "give a TF Hub handle, a SavedModel folder, a tar.gz of one, or the prefix of a TF2 checkpoint"
)


def unpack(archive: Path, folder: Path, elsewhere: str = "TMPDIR names another place") -> None:
    """Unpack a tar archive of plain files and folders into an empty folder.

    Args:
        archive: the file.
        folder: where to.
        elsewhere: what to do if that folder cannot be written.

    Raises:
        SourceProblem: it is no such archive, is damaged, unsafe or too large.
    """
    # Filters came with security releases of older Pythons: 3.10.12 and 3.11.4.
    if not hasattr(tarfile, "data_filter"):
        raise SourceProblem(
            f"Python {sys.version.split()[0]} has no safe way to unpack it; use 3.10.12, 3.11.4 or "
            f"later, or unpack it and give the folder"
        )
    try:
        with tarfile.open(archive) as opened:
            _extract(opened, folder)
    except tarfile.FilterError as error:
        raise SourceProblem(f"it is not safe to unpack: {reason(error)}") from error
    except tarfile.ReadError as error:
        with archive.open("rb") as file:
            start = file.read(16)
        found = f"it starts with {start!r}" if start else "it is empty"
        raise SourceProblem(f"no tar archive: {found}; {ACCEPTED}") from error
    except (EOFError, zlib.error, lzma.LZMAError, _Damaged) as error:
        raise SourceProblem(
            f"the archive is damaged: {reason(error)}; download it again"
        ) from error
    except OSError as error:
        # gzip and bz2 report damage as an error without a number.
        if error.errno is None:
            text = f"the archive is damaged: {reason(error)}; download it again"
        else:
            text = f"cannot unpack it into {folder}: {reason(error)}; {elsewhere}"
        raise SourceProblem(text) from error


class _Damaged(Exception):
    """An archive that tarfile opens does not go on as it should."""


def _extract(opened: tarfile.TarFile, folder: Path) -> None:
    count = size = end = 0
    members = iter(opened)
    while True:
        try:
            # One by one: what is over a limit is not even decompressed.
            member = next(members, None)
            if member is None:
                break
            count, size = count + 1, size + member.size
            _check_member(member)
            _check_limits(count, size)
            opened.extract(member, folder, filter="data")
        except tarfile.FilterError:
            raise
        except tarfile.TarError as error:
            raise _Damaged(reason(error)) from error
        # Data come in blocks of 512 bytes.
        end = member.offset_data + -(-member.size // 512) * 512
    # tarfile takes a damaged header for the end, and leaves gzip's checksum, behind it, unread.
    rest = opened.fileobj
    assert rest is not None
    rest.seek(end)
    mark = 0
    while block := rest.read(1 << 20):
        mark += len(block)
        _check_limits(count, size + mark)
        if block.strip(b"\0"):
            raise _Damaged(f"what follows its entry {count} is unreadable")
    if not mark:
        raise _Damaged("its end is missing")
    if not count:
        raise SourceProblem("the archive is empty; download it again")


def _check_member(member: tarfile.TarInfo) -> None:
    # The filter allows links inside the folder and drops a leading '/': nothing here needs either.
    if member.name.startswith(("/", "\\")):
        raise SourceProblem(f"it is not safe to unpack: {member.name!r} is an absolute path")
    if member.issparse() or not (member.isreg() or member.isdir()):
        raise SourceProblem(
            f"it is not safe to unpack: {member.name!r} is a link or a special file; unpack it and "
            f"give the folder"
        )


def _check_limits(count: int, size: int) -> None:
    if count > MAX_MEMBERS:
        raise SourceProblem(f"it holds more than {MAX_MEMBERS} files; a SavedModel is a handful")
    if size > MAX_UNPACKED_BYTES:
        raise SourceProblem(
            f"it unpacks to more than {MAX_UNPACKED_BYTES} bytes; a MoViNet is a few hundred MB"
        )
