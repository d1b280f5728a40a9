"""Wheel and sdist hold everything, and work outside the checkout."""

from __future__ import annotations

import configparser
import fcntl
import hashlib
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import movinet_port
from movinet_port.fast import extension

ROOT = Path(__file__).parents[1]
# Files that a package works with.
KINDS = (".py", ".json", ".typed", ".tar.gz", ".cpp", ".h")
PACKAGES = {path.parent.name for path in ROOT.glob("*/__init__.py")}


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, **options
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return ended


def tracked() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: nothing says which files belong to it")
    listed = run("git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it.

    They are built once for all processes, and again when something that they are of has changed.
    """
    pytest.importorskip("build")
    names = tracked()
    digest = hashlib.sha256(repr(names).encode())
    for name in names:
        # Of tests and docs their names matter, not what is in them.
        if name.partition("/")[0] in PACKAGES or "/" not in name:
            digest.update(hashlib.sha256((ROOT / name).read_bytes()).digest())
    packages = ROOT / "build/packages"
    out = packages / digest.hexdigest()[:16]
    packages.mkdir(parents=True, exist_ok=True)
    with open(packages / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            for old in packages.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            copy = tmp_path_factory.mktemp("checkout")
            for name in names:
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, copy / name)
            # In this environment: an isolated one would be downloaded.
            unfinished = packages / "unfinished"
            run(sys.executable, "-m", "build", "--no-isolation", "--outdir", unfinished, copy)
            unfinished.rename(out)
    return out


def test_sdist_holds_every_file_of_the_checkout(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    # How the project is hosted and checked is not part of it.
    wanted = {name for name in tracked() if not name.startswith((".ci/", ".git"))}
    assert wanted - found == set()


def test_wheel_holds_the_packages_with_their_data_and_nothing_else(built: Path) -> None:
    (path,) = built.glob("*.whl")
    names = zipfile.ZipFile(path).namelist()
    metadata = f"movinet_port-{movinet_port.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == PACKAGES | {metadata}
    wanted = {
        name
        for name in tracked()
        if name.partition("/")[0] in PACKAGES
        and (name.endswith(KINDS) or "/templates/" in name)
        # Run by hand, with the authors' code.
        and name != "weights/samples/make_sample.py"
    }
    assert wanted - set(names) == set()
    assert f"{metadata}/licenses/LICENSE" in names


@pytest.mark.skipif(not extension.libraries(), reason="it could not be compiled here")
def test_wheel_holds_the_compiled_libraries_and_sdist_none(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    compiled = {name for name in names if name.endswith(".so")}
    assert compiled == {f"movinet_port/fast/_{kind}.so" for kind in ("avx2", "avx512")}
    with tarfile.open(sdist) as archive:
        assert not [name for name in archive.getnames() if name.endswith(".so")]


@pytest.mark.skipif(not extension.libraries(), reason="it could not be compiled here")
def test_wheel_is_for_every_python_and_needs_only_what_pytorch_brings(built: Path) -> None:
    pytest.importorskip("auditwheel")
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"movinet_port-{movinet_port.__version__}-py3-none-linux_x86_64.whl"
    shown = " ".join(run(sys.executable, "-m", "auditwheel", "show", wheel).stdout.split())
    assert 'consistent with the following platform tag: "linux_x86_64"' in shown
    # Not bundled: a second OpenMP would have threads of its own beside PyTorch's.
    needed = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6", "libgomp.so.1"}
    assert set(re.findall(r"[\w+-]+\.so\.\d+", shown)) == needed


def test_without_a_compiler_the_sdist_gives_a_wheel_that_does_without(
    built: Path, tmp_path: Path
) -> None:
    (sdist,) = built.glob("*.tar.gz")
    shutil.unpack_archive(sdist, tmp_path)
    environment = {**outside(), "CC": "no-compiler", "CXX": "no-compiler"}
    (folder,) = tmp_path.iterdir()
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", folder]
    ended = run(*build, env=environment)
    assert "no-compiler" in ended.stdout + ended.stderr
    (wheel,) = folder.glob("dist/*.whl")
    shutil.unpack_archive(wheel, tmp_path / "wheel", "zip")
    script = "import movinet_port.fast.library as one; print(one.__file__, one.libraries())"
    found = run(sys.executable, "-c", script, cwd=tmp_path / "wheel", env=outside()).stdout
    assert found.startswith(str(tmp_path))
    assert found.endswith("()\n")


def test_every_top_level_package_is_named_in_the_setup() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = setup["options.packages.find"]["include"].split()
    assert {pattern.rstrip("*") for pattern in patterns} == PACKAGES


def test_version_is_said_once_and_the_same_everywhere() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    version = movinet_port.__version__
    assert setup["metadata"]["version"] == version
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture(scope="session")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of an environment that has the wheel, and sees our libraries."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin/python"
    (wheel,) = built.glob("*.whl")
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps",
        "--no-index", "--ignore-installed", "--disable-pip-version-check", wheel,
    )  # fmt: skip
    purelib = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    libraries.update(site.getsitepackages())
    Path(purelib.stdout.strip(), "libraries.pth").write_text("\n".join(sorted(libraries)))
    return folder / "bin"


def outside() -> dict[str, str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    return {**environment, "TF_CPP_MIN_LOG_LEVEL": "3"}


def test_installed_package_is_not_the_checkout(installed: Path, tmp_path: Path) -> None:
    script = "import movinet_port, movinet_port.training; print(movinet_port.__file__)"
    ended = run(installed / "python", "-c", script, cwd=tmp_path, env=outside())
    assert Path(ended.stdout.strip()).is_relative_to(installed.parent)
    ended = run(installed / "movinet-port", "--version", cwd=tmp_path, env=outside())
    assert ended.stdout == f"movinet-port, version {movinet_port.__version__}\n"


def test_demo_runs_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    command = [installed / "movinet-port", "demo", "--out", "deep/demo"]
    ended = run(*command, cwd=tmp_path, env=outside())
    written = sorted(path.name for path in (tmp_path / "deep/demo").iterdir())
    assert written == ["movinet_mini_stream.pt", "parity.html"]
    assert movinet_port.load(tmp_path / "deep/demo/movinet_mini_stream.pt").spec.num_classes == 5
    assert "<html" in (tmp_path / "deep/demo/parity.html").read_text("utf-8")
    assert re.search("^parity: .* 209 taps, 54 states", ended.stdout, re.MULTILINE)


def test_demo_needs_no_tensorflow(installed: Path, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    (hidden / "tensorflow").mkdir(parents=True)
    (hidden / "tensorflow/__init__.py").write_text("raise ImportError('none')")
    ended = subprocess.run(
        [str(installed / "movinet-port"), "demo", "--out", "demo"],
        cwd=tmp_path,
        env={**outside(), "PYTHONPATH": str(hidden)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert re.search("^parity: .* 209 taps, 54 states", ended.stdout, re.MULTILINE)
