"""Downloads from TF Hub, Kaggle and elsewhere, kept as tensorflow_hub keeps them.

The cache is ``$TFHUB_CACHE_DIR``, or ``tfhub_modules`` in the folder for temporary files; a
download is a folder there that is named after the sha1 of its handle. tensorflow_hub (0.16,
``compressed_module_resolver.py``, ``resolver.py``) finds what is downloaded here, and the other way
round. With ``MOVINET_PORT_DOWNLOADS=tensorflow_hub`` in the environment it does the downloading.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import http.client
import os
import re
import socket
import ssl
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from converters.archives import MAX_UNPACKED_BYTES, unpack
from converters.containers.tflite import LITE_FILE, is_lite_file
from converters.errors import SourceError, SourceProblem, reason
from converters.tensorflow import import_tensorflow, import_tensorflow_hub

Progress = Callable[[str], None]

# Seconds that a server may stay silent, and that a download may take.
TIMEOUT = 60.0
DEADLINE = 3600.0

KAGGLE = "https://www.kaggle.com"
STORAGE = "https://storage.googleapis.com"

# Who downloads, if it is "tensorflow_hub"; this module, otherwise.
SETTING = "MOVINET_PORT_DOWNLOADS"


@dataclass(frozen=True)
class Handle:
    """What can be downloaded.

    Attributes:
        name: under which it is cached, and by which messages call it: the same for every spelling.
        url: what is asked for.
    """

    name: str
    url: str


_PART = r"([A-Za-z0-9][\w.-]*)"
_VERSION = r"(\d+)"
_KAGGLE_PAGE = r"https?://(?:www\.)?kaggle\.com/(?:api/v1/)?models/"
# Spellings of a model on Kaggle: owner, model, framework, variation, version.
_KAGGLE_MODELS = (
    rf"{_KAGGLE_PAGE}{_PART}/{_PART}/frameworks/{_PART}/variations/{_PART}/versions/{_VERSION}",
    rf"{_KAGGLE_PAGE}{_PART}/{_PART}/{_PART}/{_PART}(?:/versions)?/{_VERSION}(?:/download)?",
    rf"{_PART}/{_PART}/((?i:tensorflow2|tflite|pytorch|keras|jax|flax))/{_PART}/{_VERSION}",
)
# TF Lite files on TF Hub.
_LITE_HANDLE = re.compile(r"/lite-model/.*/\d+$")
_FRAMEWORKS = {"tensorflow2": "TensorFlow2", "tflite": "TfLite", "pytorch": "PyTorch"}


def recognise_handle(name: str) -> Handle | None:
    """Return what a name asks to download; None if it is no address.

    An address is a TF Hub handle or another http(s) URL; ``gs://bucket/path``; or a model on
    Kaggle: its page's URL, with or without ``frameworks``, ``variations`` and ``versions``, or
    ``owner/model/framework/variation/version``.

    Raises:
        SourceProblem: it is an address, and says too little.
    """
    bare = re.sub(r"[?#].*", "", name).rstrip("/")
    for pattern in _KAGGLE_MODELS:
        if match := re.fullmatch(pattern, bare):
            owner, model, framework, variation, version = match.groups()
            framework = _FRAMEWORKS.get(framework.lower(), framework)
            page = f"{KAGGLE}/models/{owner}/{model}/{framework}/{variation}/{version}"
            short = framework[0].lower() + framework[1:]
            path = f"{owner}/{model}/{short}/{variation}/{version}/download"
            return Handle(page, f"{KAGGLE}/api/v1/models/{path}")
    if re.match(_KAGGLE_PAGE, name):
        raise SourceProblem(
            "a Kaggle handle names owner, model, framework, variation and version, as in "
            "https://www.kaggle.com/models/google/movinet/TensorFlow2/"
            "a0-base-kinetics-600-classification/3"
        )
    if name.startswith("gs://"):
        return Handle(name, f"{STORAGE}/{name.removeprefix('gs://')}")
    if re.match("https?://", name):
        # How TF Hub is asked for an archive, or a TF Lite file; servers of files take no notice.
        joined = "&" if "?" in name else "?"
        asked = "lite-format=tflite" if _LITE_HANDLE.search(bare) else "tf-hub-format=compressed"
        return Handle(name, name if asked in name else f"{name}{joined}{asked}")
    return None


def cache_folder() -> Path:
    """Return the folder that downloads are kept in."""
    named = os.environ.get("TFHUB_CACHE_DIR")
    return Path(named) if named else Path(tempfile.gettempdir()) / "tfhub_modules"


def download(handle: Handle, progress: Progress) -> Path:
    """Return the folder that holds what an archive holds; it is downloaded once.

    Args:
        handle: what to download.
        progress: called with a few words while it comes.

    Raises:
        SourceError: it cannot be had, is no archive, or is unsafe to unpack; nothing is kept.
        TensorFlowMissingError: tensorflow_hub is to download it, and cannot be imported.
    """
    folder = cache_folder() / hashlib.sha1(os.fsencode(handle.name)).hexdigest()
    progress(f"fetching {handle.name}")
    try:
        if folder.is_dir() and any(folder.iterdir()):
            return folder
        if os.environ.get(SETTING) == "tensorflow_hub":
            return _by_tensorflow_hub(handle)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as scratch:
            archive, model = Path(scratch) / "archive", Path(scratch) / "model"
            model.mkdir()
            _receive(handle, archive, progress)
            if is_lite_file(archive):
                archive.rename(model / LITE_FILE)
            else:
                unpack(archive, model, elsewhere="TFHUB_CACHE_DIR names another place")
            _keep(model, folder, handle)
        return folder
    except SourceProblem as error:
        raise SourceError(f"cannot fetch {handle.name}: {error}") from error
    # ValueError: no URL at all.
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise SourceError(
            f"cannot fetch {handle.name}: {_reason(error)}; {_advice(error)}"
        ) from error


def _keep(model: Path, folder: Path, handle: Handle) -> None:
    """Move a whole download to its place; no lock, because that is one step."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    try:
        model.rename(folder)
    except OSError:
        # Somebody else was faster.
        if not folder.is_dir():
            raise
    folder.with_name(f"{folder.name}.descriptor.txt").write_text(
        f"Module: {handle.name}\nDownload Time: {datetime.datetime.today()}\n"
        f"Downloader Hostname: {socket.gethostname()} (PID:{os.getpid()})",
        encoding="utf-8",
    )


def _receive(handle: Handle, archive: Path, progress: Progress) -> None:
    start = shown = time.monotonic()
    received = 0
    request = urllib.request.Request(handle.url, headers={"User-Agent": "movinet-port"})
    with (
        urllib.request.urlopen(request, timeout=TIMEOUT) as response,
        archive.open("wb") as file,
    ):
        total = int(response.headers.get("Content-Length") or 0)
        while True:
            # What is there, and not a full block: of a slow server that would take for ever.
            block = response.read1(1 << 20)
            received += len(block)
            file.write(block)
            now = time.monotonic()
            amount = _amount(received, total)
            if not block:
                break
            if received > MAX_UNPACKED_BYTES:
                raise SourceProblem(f"it takes more than {MAX_UNPACKED_BYTES} bytes")
            if now - start > DEADLINE:
                raise SourceProblem(
                    f"only {amount} came in {DEADLINE:g} seconds; download it by other means and "
                    f"give its path"
                )
            if now - shown > 0.2:
                shown = now
                rate = received / 1e6 / (now - start)
                progress(f"fetching {handle.name}: {amount}, {rate:.1f} MB/s")
    if received < total:
        raise ConnectionError(f"the connection ended after {amount}")


def _amount(received: int, total: int) -> str:
    return f"{received / 1e6:.1f} MB" + (f" of {total / 1e6:.1f} MB" if total else "")


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}".strip()
    if isinstance(error, urllib.error.URLError):
        return error.reason if isinstance(error.reason, str) else _reason(error.reason)
    if isinstance(error, TimeoutError):
        return f"no answer for {TIMEOUT:g} seconds"
    return reason(error)


def _advice(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError) and error.code in (401, 403):
        return "log in with a browser, download the file and give its path"
    network = (urllib.error.URLError, ConnectionError, TimeoutError, ssl.SSLError)
    if isinstance(error, network) and not isinstance(error, urllib.error.HTTPError):
        return "check the address and the network, or give a file or folder on this machine"
    if isinstance(error, OSError) and not isinstance(error, urllib.error.HTTPError):
        return (
            f"set TFHUB_CACHE_DIR to a folder that is writable and has room (it is "
            f"{cache_folder()}), or download the file and give its path"
        )
    return "give the handle of a TF2 SavedModel on TF Hub or Kaggle, or a tar.gz file's URL"


# By tensorflow_hub


def _by_tensorflow_hub(handle: Handle) -> Path:
    hub = import_tensorflow_hub()
    try:
        with _hub_settings():
            # Its unpacking is safe as it is (0.16): '..' and all but plain files and folders are
            # refused, a leading '/' is dropped, and only a complete folder moves into the cache.
            return Path(hub.resolve(handle.name))
    except import_tensorflow().errors.OpError as error:
        raise OSError(reason(error)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        # It says "not a valid module", and tarfile, under it, why.
        if isinstance(error.__context__, tarfile.ReadError):
            why = reason(error.__context__)
            raise SourceProblem(f"no tar archive came, or not all of one ({why})") from error
        raise


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
