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
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from converters.tensorflow import import_tensorflow, import_tensorflow_hub
from movinet_port.checkpoint import listing
from movinet_port.errors import MovinetPortError

Kind = Literal["saved_model", "checkpoint", "hdf5", "keras", "state_dict"]
Progress = Callable[[str], None]

# The graph and weights of the largest network, A5, are a few hundred MB in a handful of files.
MAX_UNPACKED_BYTES = 4 * 1024**3
MAX_MEMBERS = 10_000
# Seconds that a server may stay silent.
TIMEOUT = 60.0

GRAPH_FILE = "saved_model.pb"
VARIABLES = "variables"


class SourceError(MovinetPortError):
    """A source is not there, is damaged, or holds neither a SavedModel nor a checkpoint."""


@dataclass(frozen=True)
class Source:
    """TensorFlow weights on this machine.

    Attributes:
        path: the folder that holds ``saved_model.pb``; a checkpoint's prefix: the path of its
            index file without ``.index``; or a file.
        kind: which of them; a file's kind is "hdf5", "keras" (Keras 3's zip) or "state_dict".
        provenance: ``source``, as given; ``sha256`` of the files that matter, which is what
            ``sha256sum saved_model.pb variables/* | sha256sum`` prints in a SavedModel's folder
            (``sha256sum PREFIX.data-* PREFIX.index | sha256sum`` for a checkpoint), or the file's;
            and ``archive_sha256`` of a local archive.
    """

    path: Path
    kind: Kind
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
                raise _Problem(
                    "a user name or password in a URL is not sent; "
                    "download the file yourself and give its path"
                )
            if re.match("https?://", name):
                report(f"fetching {name}")
                folder = _fetch(name)
                advice = f"; delete {folder}, where the download is kept, to fetch it again"
                kind, path = _find_in(folder)
            elif name and Path(name).is_dir():
                kind, path = _find_in(Path(name))
            elif (prefix := _as_prefix(name)) is not None:
                kind, path = "checkpoint", prefix
            elif (file_kind := _kind_of_file(Path(name))) is not None:
                kind, path = file_kind, Path(name)
            else:
                archive = _as_archive(name)
                report(f"unpacking {name}")
                provenance["archive_sha256"] = _sha256(archive)
                temporary = tempfile.TemporaryDirectory(prefix="movinet-port-")
                folder = Path(stack.enter_context(temporary))
                _unpack(archive, folder)
                kind, path = _find_in(folder)
            whole = kind in ("saved_model", "checkpoint")
            provenance["sha256"] = _digest(path, kind) if whole else _sha256(path)
        except (_Problem, OSError) as error:
            raise SourceError(
                f"cannot read {name or repr('')}: {_reason(error)}{advice}"
            ) from error
        yield Source(path, kind, provenance)


class _Problem(Exception):
    """What is wrong with a source, without its name."""


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


# Single files

_HDF5 = b"\x89HDF\r\n\x1a\n"
_FILE_KINDS: dict[str, Kind] = {
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".keras": "keras",
    ".pt": "state_dict",
    ".pth": "state_dict",
}


def _kind_of_file(path: Path) -> Kind | None:
    """Return what a file is, by its content or else, if that is damaged, by its name."""
    try:
        if not path.is_file():
            return None
    # A path that no file system has: with a null character, say.
    except ValueError:
        return None
    with path.open("rb") as file:
        if file.read(len(_HDF5)) == _HDF5:
            return "hdf5"
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    # No zip file, or a damaged one; NotImplementedError: what a damaged header asks for.
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        members = []
    if "model.weights.h5" in members:
        return "keras"
    # What torch.save puts into every file.
    if any(member.endswith("/data.pkl") for member in members):
        return "state_dict"
    return _FILE_KINDS.get(path.suffix.lower())


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
        raise _Problem(f"no such file or folder; {advice}")
    if not path.is_file():
        raise _Problem(f"neither a file nor a folder; {_ACCEPTED}")
    for pattern, text in _OTHER_FILES.items():
        if re.search(pattern, path.name):
            raise _Problem(text)
    return path


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive of plain files and folders into an empty folder."""
    # Filters came with security releases of older Pythons: 3.10.12 and 3.11.4.
    if not hasattr(tarfile, "data_filter"):
        raise _Problem(
            f"Python {sys.version.split()[0]} has no safe way to unpack it; use 3.10.12, 3.11.4 or "
            f"later, or unpack it and give the folder"
        )
    try:
        with tarfile.open(archive) as opened:
            _extract(opened, folder)
    except tarfile.FilterError as error:
        raise _Problem(f"it is not safe to unpack: {_reason(error)}") from error
    except tarfile.ReadError as error:
        with archive.open("rb") as file:
            start = file.read(16)
        found = f"it starts with {start!r}" if start else "it is empty"
        raise _Problem(f"no tar archive: {found}; {_ACCEPTED}") from error
    except (EOFError, zlib.error, lzma.LZMAError, _Damaged) as error:
        raise _Problem(f"the archive is damaged: {_reason(error)}; download it again") from error
    except OSError as error:
        # gzip and bz2 report damage as an error without a number.
        if error.errno is None:
            text = f"the archive is damaged: {_reason(error)}; download it again"
        else:
            text = f"cannot unpack it into {folder}: {_reason(error)}; TMPDIR names another place"
        raise _Problem(text) from error


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
        raise _Problem("the archive is empty; download it again")


def _check_member(member: tarfile.TarInfo) -> None:
    # The filter allows links inside the folder and drops a leading '/': nothing here needs either.
    if member.name.startswith(("/", "\\")):
        raise _Problem(f"it is not safe to unpack: {member.name!r} is an absolute path")
    if member.issparse() or not (member.isreg() or member.isdir()):
        raise _Problem(
            f"it is not safe to unpack: {member.name!r} is a link or a special file; unpack it and "
            f"give the folder"
        )


def _check_limits(count: int, size: int) -> None:
    if count > MAX_MEMBERS:
        raise _Problem(f"it holds more than {MAX_MEMBERS} files; a SavedModel is a handful")
    if size > MAX_UNPACKED_BYTES:
        raise _Problem(
            f"it unpacks to more than {MAX_UNPACKED_BYTES} bytes; a MoViNet is a few hundred MB"
        )


# Folders and checkpoints


def _find_in(folder: Path) -> tuple[Kind, Path]:
    """Return what a folder, or else the one of its sub-folders that has something, holds."""
    if folder.name == VARIABLES and (folder.parent / GRAPH_FILE).is_file():
        raise _Problem("this is a part of a SavedModel; give the folder above it")
    if (kind := _holds(folder)) is not None:
        return kind, _in_folder(folder, kind)
    entries = sorted(folder.iterdir())
    # A SavedModel's variables look like a checkpoint; without the graph they are half a model.
    subfolders = [entry for entry in entries if entry.is_dir() and entry.name != VARIABLES]
    inner = [(entry, kind) for entry in subfolders if (kind := _holds(entry))]
    if len(inner) == 1:
        entry, kind = inner[0]
        return kind, _in_folder(entry, kind)
    if inner:
        raise _Problem(f"several models: {listing([entry.name for entry, _ in inner])}; give one")
    there = listing([entry.name + "/" * entry.is_dir() for entry in entries]) or "nothing"
    raise _Problem(
        f"it holds no SavedModel ({GRAPH_FILE}) and no TF2 checkpoint (*.index), nor does one of "
        f"its sub-folders; there is: {there}"
    )


def _holds(folder: Path) -> Kind | None:
    if (folder / GRAPH_FILE).is_file():
        return "saved_model"
    if _prefixes(folder):
        return "checkpoint"
    return None


def _prefixes(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix(".index") for path in folder.glob("*.index"))


def _in_folder(folder: Path, kind: Kind) -> Path:
    """Return a Source's path: the folder itself, or the prefix of its newest checkpoint."""
    if kind == "saved_model":
        return folder
    prefixes = _prefixes(folder)
    named = _named_in(folder / "checkpoint")
    if named is not None:
        if named not in prefixes:
            raise _Problem(
                f"the file {folder / 'checkpoint'} names {named}, and {named}.index is not there; "
                f"there is: {listing([f'{prefix}.index' for prefix in prefixes])}; "
                f"give a checkpoint's prefix"
            )
        return folder / named
    if len(prefixes) > 1:
        raise _Problem(f"several checkpoints: {listing(prefixes)}; give the prefix of one")
    return folder / prefixes[0]


def _named_in(state: Path) -> str | None:
    """Return the newest checkpoint's name in a file that tf.train.Checkpoint keeps, if any."""
    if not state.is_file():
        return None
    text = state.read_text(encoding="utf-8", errors="replace")
    match = re.search(r'^model_checkpoint_path:\s*"([^"]*)"', text, re.MULTILINE)
    # A folder in it is one of the machine that trained.
    return re.split(r"[/\\]", match[1])[-1] if match else None


def _as_prefix(name: str) -> Path | None:
    """Return the prefix that a path stands for, if it stands for a checkpoint."""
    path = Path(name)
    if name.endswith(".index") and path.is_file():
        return Path(name.removesuffix(".index"))
    if not name or path.exists():
        return None
    if Path(f"{name}.index").is_file():
        return path
    if path.parent.is_dir() and _shards(path):
        raise _Problem(f"{path.name}.index is missing; copy every file of it")
    return None


def _shards(prefix: Path) -> dict[int, dict[int, str]]:
    """Return the names of a checkpoint's data files: number of parts -> part -> name."""
    pattern = re.compile(re.escape(prefix.name) + r"\.data-(\d{5})-of-(\d{5})")
    found: dict[int, dict[int, str]] = {}
    for path in sorted(prefix.parent.iterdir()):
        if match := pattern.fullmatch(path.name):
            found.setdefault(int(match[2]), {})[int(match[1])] = path.name
    return found


def _checkpoint_files(prefix: Path) -> list[str]:
    """Return the names of a checkpoint's files, all of them present."""
    index = f"{prefix.name}.index"
    if not (prefix.parent / index).is_file():
        raise _Problem(f"{index} is missing; copy every file of it")
    # A checkpoint saved again with another number of parts may have left old ones behind.
    missing = [f"{prefix.name}.data-00000-of-00001"]
    for count, parts in sorted(_shards(prefix).items()):
        missing = [
            f"{prefix.name}.data-{part:05}-of-{count:05}"
            for part in range(count)
            if part not in parts
        ]
        if not missing:
            return [index, *parts.values()]
    raise _Problem(
        f"{listing(missing)} {'is' if len(missing) == 1 else 'are'} missing; copy every file of it"
    )


def _digest(path: Path, kind: Kind) -> str:
    """Return the sha256 of the list that sha256sum prints for a source's files."""
    names: Iterable[str]
    if kind == "checkpoint":
        folder, names = path.parent, _checkpoint_files(path)
    else:
        folder, variables = path, path / VARIABLES
        if not variables.is_dir():
            raise _Problem(
                f"the folder {VARIABLES} is missing next to {GRAPH_FILE}; copy every file of it"
            )
        _checkpoint_files(variables / VARIABLES)
        files = (file for file in variables.iterdir() if file.is_file())
        names = [GRAPH_FILE, *(f"{VARIABLES}/{file.name}" for file in files)]
    lines = [f"{_sha256(folder / name)}  {name}\n" for name in sorted(names)]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
