"""Damaged sources: each must end in one line and exit code 2, or in a correct file.

    python tests/fuzz.py                        200 damaged inputs for each container
    python tests/fuzz.py --count 20 --container hdf5 --seed 7

A correct file holds the undamaged network bit for bit. Two kinds of damage cannot be told from a
source that was meant so: numbers in an HDF5 file, which has no checksums, and constants in a
SavedModel's graph. There the file must hold what the source says: the numbers that h5py finds in
it, or a network whose logits are those that TensorFlow computes from the damaged source.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import resource
import shutil
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import containers
import h5py
import torch
from click.testing import CliRunner

from converters import convert
from converters.tensorflow import import_tensorflow
from movinet_port import BlockSpec, HeadSpec, ModelSpec, StemSpec, load_checkpoint
from movinet_port.command_line.cli import main as movinet_port_cli
from movinet_port.errors import MovinetPortError

DATA = Path(__file__).parent / "data"

LONGEST_SECONDS = 60.0
LARGEST_GIB = 4.0

K13, K33, K53 = (1, 3, 3), (3, 3, 3), (5, 3, 3)
S11, S12 = (1, 1, 1), (1, 2, 2)
SPEC = ModelSpec(
    "custom",
    StemSpec(8),
    (
        BlockSpec(8, (16,), (K13,), (S12,)),
        BlockSpec(16, (24, 32), (K33, K33), (S12, S11)),
        BlockSpec(24, (40,), (K53,), (S12,)),
        BlockSpec(32, (40,), (K33,), (S11,)),
        BlockSpec(40, (56,), (K13,), (S12,)),
    ),
    HeadSpec(48, 64),
    num_classes=5,
)


def _saved_model(folder: Path) -> Path:
    with tarfile.open(DATA / "era1_mini_base.tar.gz") as archive:
        archive.extractall(folder / "model", filter="data")
    return folder / "model"


def _archive(folder: Path) -> Path:
    return Path(shutil.copy(DATA / "era1_mini_base.tar.gz", folder / "model.tar.gz"))


def _checkpoint(folder: Path) -> Path:
    (folder / "model").mkdir()
    containers.write_checkpoint(containers.records(SPEC), folder / "model" / "ckpt-1")
    return folder / "model"


def _hdf5(folder: Path) -> Path:
    return containers.write_hdf5(containers.records(SPEC), folder / "model.h5")


def _keras(folder: Path) -> Path:
    return containers.write_keras(containers.records(SPEC), folder / "model.keras", {})


def _first_port(folder: Path) -> Path:
    return containers.write_first_port(containers.records(SPEC), folder / "model.pt")


# How to write an undamaged source of each sort into an empty folder.
CONTAINERS: dict[str, Callable[[Path], Path]] = {
    "saved_model": _saved_model,
    "archive": _archive,
    "checkpoint": _checkpoint,
    "hdf5": _hdf5,
    "keras": _keras,
    "first_port": _first_port,
}


def _truncate(rng: random.Random, path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def _flip_bits(rng: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _flip_bits_near_an_end(rng: random.Random, path: Path) -> None:
    # Headers, directories and footers are there.
    data = bytearray(path.read_bytes())
    near = min(len(data), 400)
    at = rng.randrange(near)
    data[at if rng.random() < 0.5 else -1 - at] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _overwrite(rng: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data))
    length = min(rng.choice((4, 100, 5000)), len(data) - start)
    data[start : start + length] = rng.choice((bytes(length), rng.randbytes(length)))
    path.write_bytes(data)


def _insert(rng: random.Random, path: Path) -> None:
    data = path.read_bytes()
    start = rng.randrange(len(data))
    path.write_bytes(data[:start] + rng.randbytes(rng.choice((1, 8, 1000))) + data[start:])


def _empty(rng: random.Random, path: Path) -> None:
    path.write_bytes(b"")


def _remove(rng: random.Random, path: Path) -> None:
    path.unlink()


def _rename(rng: random.Random, path: Path) -> None:
    path.rename(path.with_name(f"{path.name}.old"))


def _make_folder(rng: random.Random, path: Path) -> None:
    path.unlink()
    path.mkdir()


def _make_text(rng: random.Random, path: Path) -> None:
    path.write_text("<!doctype html><title>404</title>" * rng.choice((1, 500)))


DAMAGES = (
    *(_flip_bits,) * 4,
    *(_truncate,) * 2,
    *(_flip_bits_near_an_end,) * 2,
    *(_overwrite,) * 2,
    _insert,
    _empty,
    _remove,
    _rename,
    _make_folder,
    _make_text,
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One damaged source and how the command ended; true if as it must."""

    container: str
    number: int
    damage: str
    outcome: str
    fault: str = ""

    def __bool__(self) -> bool:
        return not self.fault


def run(container: str, count: int, seed: int) -> Iterator[Case]:
    """Damage a container `count` times and yield how each conversion ended."""
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        whole.mkdir()
        source = CONTAINERS[container](whole)
        expected = convert(source, verify=False)
        for number in range(count):
            rng = random.Random(f"{container} {seed} {number}")
            folder = Path(scratch) / "damaged"
            shutil.copytree(whole, folder)
            damaged = folder / source.relative_to(whole)
            files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
            damage, victim = rng.choice(DAMAGES), rng.choice(files)
            damage(rng, victim)
            what = f"{damage.__name__[1:]} {victim.relative_to(folder)}"
            yield Case(container, number, what, *_outcome(damaged, expected))
            shutil.rmtree(folder)


def _outcome(damaged: Path, expected: object) -> tuple[str, str]:
    output = damaged.parent / "out.pt"
    start = time.monotonic()
    result = CliRunner().invoke(
        movinet_port_cli, ["convert", "--hub-url", str(damaged), "--no-verify", "-o", str(output)]
    )
    seconds = time.monotonic() - start
    lines = result.stderr.splitlines()
    if seconds > LONGEST_SECONDS:
        return "slow", f"took {seconds:.0f} s"
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return "traceback", repr(result.exception)
    if result.exit_code == 2:
        if len(lines) != 1 or not lines[0].startswith("error: "):
            return "refused", f"expected one line, found {lines}"
        return "refused", "a file was written" if output.exists() else ""
    if result.exit_code != 0:
        return "refused", f"exit code {result.exit_code}: {lines}"
    return _check_written(damaged, load_checkpoint(output), expected)


def _check_written(damaged: Path, found: object, expected: object) -> tuple[str, str]:
    from movinet_port import Checkpoint

    assert isinstance(found, Checkpoint)
    assert isinstance(expected, Checkpoint)
    same = found.spec == expected.spec and all(
        torch.equal(found.state_dict[name], tensor) for name, tensor in expected.state_dict.items()
    )
    if same:
        return "correct", ""
    if damaged.suffix == ".h5":
        stray = _not_in_file(damaged, found)
        return "as the file says", f"{stray} is nowhere in the file" if stray else ""
    if damaged.is_dir() and (damaged / "saved_model.pb").exists():
        try:
            convert(damaged, verify=True)
        except MovinetPortError:
            # Without --no-verify, which the program gives for speed, nothing is written.
            return "refused when compared", ""
        return "as the graph says", ""
    return "wrong", "the file is another network"


def _not_in_file(path: Path, checkpoint: object) -> str:
    """Return a tensor of the checkpoint whose numbers no dataset of the HDF5 file has."""
    from movinet_port import Checkpoint

    assert isinstance(checkpoint, Checkpoint)
    there: set[bytes] = set()

    def collect(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
            values = torch.from_numpy(item[()].astype("float32").reshape(-1))
            there.add(values.sort().values.numpy().tobytes())

    with h5py.File(path, "r") as file:
        file.visititems(collect)
    for name, tensor in checkpoint.state_dict.items():
        if tensor.is_floating_point() and (
            tensor.flatten().sort().values.numpy().tobytes() not in there
        ):
            return name
    return ""


def main() -> None:
    """Run the program; exit code 1 if any source was mistreated."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--container", choices=CONTAINERS, action="append")
    arguments = parser.parse_args()
    import_tensorflow()
    faults = 0
    for container in arguments.container or CONTAINERS:
        start = time.monotonic()
        tally: Counter[str] = Counter()
        for case in run(container, arguments.count, arguments.seed):
            tally[case.outcome] += 1
            if not case:
                faults += 1
                print(f"FAULT {case}", flush=True)
        counts = ", ".join(f"{number} {outcome}" for outcome, number in sorted(tally.items()))
        print(f"{container:<12} {counts}; {time.monotonic() - start:.0f} s", flush=True)
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory {gib:.2f} GiB, at most {LARGEST_GIB} allowed")
    sys.exit(1 if faults or gib > LARGEST_GIB else 0)


if __name__ == "__main__":
    main()
