"""Converting against loading: wall time and peak memory, side by side in one run.

    python benchmarks/convert.py FOLDER [FOLDER ...]      SavedModels that are there already
    python benchmarks/convert.py --export a0 a5           made first, with tf-models-official

Each measurement runs in a process of its own, after TensorFlow is imported; the two sides take
turns, and the table shows medians and their ratio. Memory is the peak above what the process had
after importing TensorFlow.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
MIB = 1024.0


def _convert(folder: str) -> None:
    from converters import convert

    checkpoint = convert(folder, verify=False)
    weights = sum(t.numel() * t.element_size() for t in checkpoint.state_dict.values())
    print(json.dumps({"weights": weights / MIB**2}))


def _load(folder: str) -> None:
    import tensorflow as tf

    tf.saved_model.load(folder)


SIDES = {"convert": _convert, "tf.saved_model.load": _load}


def _child(side: str, folder: str) -> None:
    """Measure one side; print the figures as the last line."""
    import torch  # noqa: F401  # imported by both sides, so that only the work is compared

    import converters  # noqa: F401
    from benchmarks.measure import peak_memory
    from converters.tensorflow import import_tensorflow

    import_tensorflow()
    before = peak_memory()
    start = time.perf_counter()
    SIDES[side](folder)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "memory": peak_memory() - before}))


def _measure(side: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", side, str(folder)]
    environment = {
        **os.environ,
        "TF_USE_LEGACY_KERAS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    figures: dict[str, float] = {}
    for line in done.stdout.decode().splitlines():
        if line.startswith("{"):
            figures.update(json.loads(line))
    return figures


def _export(model: str, folder: Path) -> Path:
    sys.path.insert(0, str(ROOT / "weights/samples"))
    import make_sample

    network = make_sample.build(
        model,
        causal=True,
        conv_type="2plus1d",
        se_type="2plus3d",
        activation="hard_swish",
        gating_activation="hard_sigmoid",
        positional_encoding=model in ("a3", "a4", "a5"),
        num_classes=600,
        external_states=True,
    )
    make_sample.randomise(network, seed=0)
    make_sample.export_saved_model(network, folder / f"{model}_stream")
    return folder / f"{model}_stream"


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--export", nargs="*", default=[], metavar="MODEL")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        _child(*arguments.child)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folders = [*arguments.folders, *(_export(m, Path(scratch)) for m in arguments.export)]
        if not folders:
            parser.error("name SavedModel folders, or models with --export")
        rows = [_compare(folder, arguments.rounds) for folder in folders]
    table = Table(title=f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    for heading in ("source", "weights", "side", "seconds", "ratio", "peak MiB", "x weights"):
        table.add_column(heading, justify="right" if heading != "source" else "left")
    for row in rows:
        for side in SIDES:
            table.add_row(
                row["source"] if side == "convert" else "",
                f"{row['weights']:.1f} MiB" if side == "convert" else "",
                side,
                f"{row[side]['seconds']:.2f}",
                f"{row[side]['seconds'] / row['tf.saved_model.load']['seconds']:.3f}",
                f"{row[side]['memory']:.0f}",
                f"{row[side]['memory'] / row['weights']:.1f}",
            )
    Console(width=110).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


def _compare(folder: Path, rounds: int) -> dict[str, object]:
    figures: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side, measured in figures.items():
            measured.append(_measure(side, folder))
    row: dict[str, object] = {
        "source": folder.name,
        "weights": figures["convert"][0]["weights"],
    }
    for side, measured in figures.items():
        row[side] = {
            key: statistics.median(m[key] for m in measured) for key in ("seconds", "memory")
        }
    return row


if __name__ == "__main__":
    main()
