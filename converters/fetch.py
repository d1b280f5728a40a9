"""Where weights come from: a URL, an archive, a SavedModel folder, a checkpoint, or one file.

`open_source` makes a local SavedModel folder, checkpoint prefix or file of each of them. Only URLs
need TensorFlow, because tensorflow_hub does.
"""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import os
import re
import socket
import sys
import tarfile
import tempfile
import urllib.error
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from converters.containers import CONTAINERS, identify, identify_in
from converters.containers.checkpoint import GRAPH_FILE
from converters.errors import SourceProblem
from converters.tensorflow import import_tensorflow, import_tensorflow_hub
from movinet_port.errors import MovinetPortError

Progress = Callable[[str], None]

# The graph and weights of the largest network, A5, are a few hundred MB in a handful of files.
MAX_UNPACKED_BYTES = 4 * 1024**3
MAX_MEMBERS = 10_000
# Seconds that a server may stay silent.
TIMEOUT = 60.0


class SourceError(MovinetPortError):
    """A source is not there, is damaged, or holds neither a SavedModel nor a checkpoint."""


@dataclass(frozen=True)
class Source:
    """TensorFlow weights on this machine.

    Attributes:
        path: the folder that holds ``saved_model.pb``; a checkpoint's index file; or a file.
        kind: which row of `converters.containers.CONTAINERS` reads it.
        provenance: ``source``, as given; ``sha256`` of the files that matter, which is what
            ``sha256sum saved_model.pb variables/* | sha256sum`` prints in a SavedModel's folder
            (``sha256sum PREFIX.data-* PREFIX.index | sha256sum`` for a checkpoint), or the file's;
            and ``archive_sha256`` of a local archive.
    """

    path: Path
    kind: str
    provenance: Mapping[str, str]


@contextlib.contextmanager
def open_source(
    source: str | os.PathLike[str], progress: Progress | None = None
) -> Iterator[Source]:
    """Find what holds weights; what had to be unpacked is removed at the end.

    Args:
        source: a TF Hub or Kaggle handle or another http(s) URL of a tar archive, which
            tensorflow_hub downloads and caches (under ``TFHUB_CACHE_DIR``, if set); a folder or a
            tar archive that holds a SavedModel or a TF2 checkpoint, itself or in one sub-folder;
            a TF2 checkpoint's prefix or index file; or a Keras or PyTorch file.
        progress: called with a few words before each step that may take long.

    Raises:
        SourceError: there is no such thing, or it is damaged or unsafe to unpack.
        TensorFlowMissingError: a URL was given, and TensorFlow cannot be imported.
    """
    name = os.fspath(source)
    report = progress or _say_nothing
    provenance = {"source": name}
    advice = ""
    with contextlib.ExitStack() as stack:
        try:
            if re.match("https?://[^/]*@", name):
                # Said here, so that no password gets into a message, a cache or a file.
                name = re.sub("://[^/]*@", "://", name)
                raise SourceProblem(
                    "a user name or password in a URL is not sent; "
                    "download the file yourself and give its path"
                )
            if re.match("https?://", name):
                report(f"fetching {name}")
                folder = _fetch(name)
                advice = f"; delete {folder}, where the download is kept, to fetch it again"
                kind, path = identify_in(folder)
            elif name and Path(name).is_dir():
                kind, path = identify_in(Path(name))
            elif (known := _identify(name)) is not None:
                kind, path = known
            else:
                archive = _as_archive(name)
                report(f"unpacking {name}")
                provenance["archive_sha256"] = _sha256(archive)
                temporary = tempfile.TemporaryDirectory(prefix="movinet-port-")
                folder = Path(stack.enter_context(temporary))
                _unpack(archive, folder)
                kind, path = identify_in(folder)
            files = CONTAINERS[kind].files
            provenance["sha256"] = _sha256(path) if files is None else _digest(path, files(path))
        except (SourceProblem, OSError) as error:
            raise SourceError(
                f"cannot read {name or repr('')}: {_reason(error)}{advice}"
            ) from error
        yield Source(path, kind, provenance)


def _identify(name: str) -> tuple[str, Path] | None:
    try:
        return identify(Path(name)) if name else None
    # A path that no file system has: with a null character, say.
    except ValueError:
        return None


def _say_nothing(message: str) -> None:
    pass


def _reason(error: BaseException) -> str:
    """Return one line that says why."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}".strip()
    if isinstance(error, urllib.error.URLError):
        return error.reason if isinstance(error.reason, str) else _reason(error.reason)
    if isinstance(error, TimeoutError):
        return f"no answer for {TIMEOUT:g} seconds"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0]


# URLs


def _fetch(url: str) -> Path:
    """Return the folder in tensorflow_hub's cache that holds what a URL's archive holds."""
    hub = import_tensorflow_hub()
    try:
        with _hub_settings():
            # Its unpacking is safe as it is (0.16): '..' and all but plain files and folders are
            # refused, a leading '/' is dropped, and only a complete folder moves into the cache.
            return Path(hub.resolve(url))
    # urllib, http.client, tarfile, zlib and TensorFlow's file system have an error type each.
    except Exception as error:
        reason = _reason(error)
        advice = "give the handle of a TF2 SavedModel on TF Hub or Kaggle, or a tar.gz file's URL"
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        elif isinstance(error, (urllib.error.URLError, ConnectionError, TimeoutError)):
            advice = "check the address and the network, or give a file or folder on this machine"
        elif isinstance(error, import_tensorflow().errors.OpError):
            advice = (
                "set TFHUB_CACHE_DIR to a folder that is writable and has room, or download the "
                "file and give its path"
            )
        # tensorflow_hub says "not a valid module", and tarfile, under it, why.
        elif isinstance(error.__context__, tarfile.ReadError):
            reason = f"no tar archive came, or not all of one ({_reason(error.__context__)})"
        raise SourceError(f"cannot fetch {url}: {reason}; {advice}") from error


@contextlib.contextmanager
def _hub_settings() -> Iterator[None]:
    """Have tensorflow_hub download into a folder, draw on terminals only, and not wait for ever."""
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    wanted = {
        "TFHUB_MODEL_LOAD_FORMAT": "COMPRESSED",
        "TFHUB_DOWNLOAD_PROGRESS": "1" if on_terminal else "",
    }
    before = {name: os.environ.get(name) for name in wanted}
    timeout = socket.getdefaulttimeout()
    os.environ.update(wanted)
    socket.setdefaulttimeout(TIMEOUT)
    try:
        # It draws on standard output, which is for results.
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        socket.setdefaulttimeout(timeout)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# Archives

_ACCEPTED = (
    "give a TF Hub handle, a SavedModel folder, a tar.gz of one, or the prefix of a TF2 checkpoint"
)

_OTHER_FILES = {
    r"\.safetensors$": f"safetensors files are not read here; {_ACCEPTED}",
    r"\.(tflite|onnx|ckpt)$": f"this format is not read here; {_ACCEPTED}",
    r"\.zip$": "zip archives are not read here; unpack it and give the folder",
    rf"^{re.escape(GRAPH_FILE)}$": "this is one file of a SavedModel; give the folder it is in",
    r"^checkpoint$": "this file only names a checkpoint; give the folder it is in",
    r"\.data-\d{5}-of-\d{5}$": "this is a part of a checkpoint; give its prefix or .index file",
}

_OTHER_NAMES = {
    r"gs://": "for a file on Google Cloud Storage give https://storage.googleapis.com/...",
    r"file://": "for a file on this machine give its path",
    r"[A-Za-z][A-Za-z0-9+.-]*://": "a URL starts with http:// or https://",
    r"(www\.)?(tfhub\.dev|kaggle\.com|storage\.googleapis\.com)/": "a URL starts with https://",
    r"": _ACCEPTED,
}


def _as_archive(name: str) -> Path:
    """Return the path of a file that is not known to be something else."""
    path = Path(name)
    if not name or not path.exists():
        advice = next(text for pattern, text in _OTHER_NAMES.items() if re.match(pattern, name))
        raise SourceProblem(f"no such file or folder; {advice}")
    if not path.is_file():
        raise SourceProblem(f"neither a file nor a folder; {_ACCEPTED}")
    for pattern, text in _OTHER_FILES.items():
        if re.search(pattern, path.name):
            raise SourceProblem(text)
    return path


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive of plain files and folders into an empty folder."""
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
        raise SourceProblem(f"it is not safe to unpack: {_reason(error)}") from error
    except tarfile.ReadError as error:
        with archive.open("rb") as file:
            start = file.read(16)
        found = f"it starts with {start!r}" if start else "it is empty"
        raise SourceProblem(f"no tar archive: {found}; {_ACCEPTED}") from error
    except (EOFError, zlib.error, lzma.LZMAError, _Damaged) as error:
        raise SourceProblem(
            f"the archive is damaged: {_reason(error)}; download it again"
        ) from error
    except OSError as error:
        # gzip and bz2 report damage as an error without a number.
        if error.errno is None:
            text = f"the archive is damaged: {_reason(error)}; download it again"
        else:
            text = f"cannot unpack it into {folder}: {_reason(error)}; TMPDIR names another place"
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
            raise _Damaged(_reason(error)) from error
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


# Digests


def _digest(source: Path, files: Sequence[Path]) -> str:
    """Return the sha256 of the list that sha256sum prints for a source's files."""
    folder = source if source.is_dir() else source.parent
    named = sorted((path.relative_to(folder).as_posix(), path) for path in files)
    lines = [f"{_sha256(path)}  {name}\n" for name, path in named]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
