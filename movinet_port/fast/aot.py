"""Packages: an optimised network compiled ahead of time for one shape of clip.

A package is a ``.pt2`` file of AOTInductor: a shared library with the network's weights in it, and
next to it, as JSON, what it is. It is native code. Loading one runs it, so a package must come from
where programs may come from; ``weights_only`` protects from nothing here. It fits the kind of CPU
and the version of PyTorch that it was made with, and refuses others; making one needs a C++
compiler, loading one does not.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from movinet_port.errors import CheckpointError, MovinetPortError, SpecError
from movinet_port.fast.graph import OPTIONS, PRODUCTS, Graph, GraphNetwork
from movinet_port.fast.kernels import own_products
from movinet_port.fast.network import FastMoViNet
from movinet_port.fast.packaged import kernels_for, takes_any_strides
from movinet_port.fast.state import StreamState
from movinet_port.files import whole_file
from movinet_port.labels import check_labels
from movinet_port.spec import ModelSpec

SUFFIX = ".pt2"
FORMAT_VERSION = 1
# Where in the archive, below its one folder, the description is.
_DESCRIPTION = "extra/movinet_port.json"


class CompileError(MovinetPortError):
    """A network cannot be compiled ahead of time."""


@dataclasses.dataclass(frozen=True)
class Package:
    """What a package says of itself.

    Attributes:
        spec, labels: of the network.
        shape: (batch, frames, height, width) of the clips that it takes.
        dtype: that it computes in, such as "float32".
        strided: whether its clips may lie in memory in any way; otherwise they are contiguous.
        made_for: version of PyTorch, machine and CPU capability that it fits.
    """

    spec: ModelSpec
    labels: tuple[str, ...] | None
    shape: tuple[int, int, int, int]
    dtype: str
    strided: bool
    made_for: Mapping[str, str]


def this_machine() -> dict[str, str]:
    """Return what a package made here fits."""
    return {
        "torch": torch.__version__,
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def compile_package(
    network: FastMoViNet,
    path: str | os.PathLike[str],
    *,
    frames: int = 1,
    size: tuple[int, int],
    batch: int = 1,
) -> None:
    """Write a package; it appears whole or not at all. Takes minutes.

    Args:
        network: from ``movinet_port.fast.optimize.fold_network(model, turn=False)``, on the CPU.
            One that computes turned frames, as ``movinet_port.optimize`` gives, is slower here.
        path: of the file; it must end in ``.pt2``.
        frames, batch: of the clips that it shall take.
        size: (height, width) of their frames.

    Raises:
        CompileError: there is no C++ compiler, or it fails.
        MovinetPortError: the file cannot be written, or is not called ``.pt2``.
    """
    if Path(path).suffix != SUFFIX:
        raise CompileError(f"cannot write {path}: a compiled network's file ends in {SUFFIX}")
    if network.device.type != "cpu":
        raise CompileError(f"a package is made on the CPU, the network is on {network.device}")
    if min(frames, batch, *size) < 1:
        raise SpecError(f"{batch} clips of {frames} frames of {size}: expected at least 1 of each")
    shape = (batch, frames, *size)
    description = {
        "format_version": FORMAT_VERSION,
        "spec": network.spec.to_dict(),
        "labels": None if network.labels is None else list(network.labels),
        "shape": list(shape),
        "dtype": str(network.dtype).removeprefix("torch."),
        "made_for": this_machine(),
    }
    with whole_file(path) as final, tempfile.TemporaryDirectory() as folder:
        # AOTInductor insists on the suffix.
        package = Path(folder) / f"package{SUFFIX}"
        description["strided"] = _compile(network, package, shape)
        with zipfile.ZipFile(package, "a", zipfile.ZIP_STORED) as archive:
            root = archive.namelist()[0].partition("/")[0]
            archive.writestr(f"{root}/{_DESCRIPTION}", json.dumps(description))
        final.write_bytes(package.read_bytes())


def _compile(network: FastMoViNet, package: Path, shape: tuple[int, int, int, int]) -> bool:
    """Write AOTInductor's package; return whether clips may lie in memory in any way."""
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.exc import CppCompileError, InductorError, InvalidCxxCompiler

    batch, frames, height, width = shape
    video = torch.rand(batch, 3, frames, height, width).to(network.dtype)
    state = []
    if network.spec.causal:
        state = StreamState.of(network.init_state(batch, height, width)).flat()
    kernels = kernels_for(network)
    with torch.no_grad():
        try:
            program = torch.export.export(Graph(network, kernels), (video, *state), strict=False)

            def write(options: Mapping[str, Any]) -> None:
                options = {**OPTIONS, **options}
                if kernels is not None:
                    options.update(kernels.options())
                aoti_compile_and_package(
                    program, package_path=str(package), inductor_configs=options
                )

            try:
                with own_products():
                    write({} if network.dtype == torch.float64 else PRODUCTS)
            except InductorError as error:
                if "NoValidChoices" not in str(error):
                    raise
                # A product that Inductor has no code for on this CPU.
                write({})
        except InvalidCxxCompiler as error:
            raise CompileError(
                "cannot compile: no C++ compiler is found; install g++, or name one with the "
                "environment variable CXX; loading a package needs none"
            ) from error
        except CppCompileError as error:
            raise CompileError(
                f"cannot compile: the C++ compiler fails ({str(error).splitlines()[0]}); "
                f"CXX names another"
            ) from error
    return takes_any_strides(program)


def read_package(path: str | os.PathLike[str]) -> Package:
    """Read what a package says of itself. Nothing in it is executed.

    Raises:
        CheckpointError: the file is missing, damaged, or no package of movinet-port.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [name for name in archive.namelist() if name.endswith(_DESCRIPTION)]
            if len(entries) != 1:
                raise ValueError("no description in it")
            found: Any = json.loads(archive.read(entries[0]))
        if found["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {found['format_version']!r}")
        spec = ModelSpec.from_dict(found["spec"])
        labels = None if found["labels"] is None else tuple(found["labels"])
        if labels is not None:
            check_labels(labels, spec.num_classes, "labels")
        batch, frames, height, width = map(int, found["shape"])
        return Package(
            spec,
            labels,
            (batch, frames, height, width),
            found["dtype"],
            bool(found.get("strided", False)),
            dict(found["made_for"]),
        )
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, MovinetPortError) as error:
        raise CheckpointError(
            f"cannot read {path}: no package of movinet-port ({type(error).__name__}: {error}); "
            f"'movinet-port compile' makes one"
        ) from error


def load_package(path: str | os.PathLike[str]) -> GraphNetwork:
    """Return the network of a package. This runs native code from the file: see the module.

    No compiler is needed.

    Raises:
        CheckpointError: the file is missing, damaged, no package of movinet-port, or made for
            another version of PyTorch or another kind of CPU.
    """
    package = read_package(path)
    here = this_machine()
    differ = [
        f"{k} {package.made_for.get(k)}, here {v}"
        for k, v in here.items()
        if package.made_for.get(k) != v
    ]
    if differ:
        raise CheckpointError(
            f"cannot load {path}: it was compiled for {'; '.join(differ)}; "
            f"compile it here with 'movinet-port compile'"
        )
    from torch._inductor import aoti_load_package

    try:
        compiled = aoti_load_package(os.fspath(path))
    except Exception as error:  # A damaged archive fails in as many ways as it has parts.
        raise CheckpointError(
            f"cannot load {path}: {str(error).splitlines()[0]}; compile it again"
        ) from error
    run = compiled.loader.run  # past what it checks at every call
    return GraphNetwork(
        package.spec,
        package.labels,
        lambda *tensors: run(list(tensors)),
        getattr(torch, package.dtype),
        package.shape,
        package.strided,
    )
