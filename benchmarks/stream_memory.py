"""Does a long stream take more memory than a short one? 10,000 generated frames through `predict`.

Run from the repository's root, with the extra ``video``::

    python benchmarks/stream_memory.py [--networks mini,a0] [--frames 10000] [--json out.json]

Each network runs in a process of its own, frame by frame, as ``movinet-port predict --stream
--plot`` does: decoding, scaling, the network and the record for the plot. The weights are random.
Reported is the peak of the resident memory after the first frames and at the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from movinet_port import BlockSpec, HeadSpec, ModelSpec, MoViNet, StemSpec  # noqa: E402
from movinet_port import create_model as create  # noqa: E402
from movinet_port.drawing import History  # noqa: E402
from movinet_port.inputs import InputFormat, published_input  # noqa: E402
from movinet_port.predict import Predictor  # noqa: E402
from movinet_port.video import write_video  # noqa: E402

FPS = 25.0
HEIGHT, WIDTH = 128, 160


def pictures(count: int) -> Iterator[Tensor]:
    """Yield coloured squares that move."""
    generator = torch.Generator().manual_seed(0)
    squares = torch.randint(0, 256, (HEIGHT // 16, WIDTH // 16, 3), generator=generator)
    image = squares.to(torch.uint8).repeat_interleave(16, 0).repeat_interleave(16, 1)
    for number in range(count):
        yield image.roll(number * 3, 1)


def network(name: str) -> tuple[MoViNet, InputFormat]:
    """Return a stream network with random weights, and its input at the video's own rate."""
    torch.manual_seed(0)
    if name != "mini":
        made_for = published_input(name)
        if made_for is None:
            raise SystemExit(f"unknown network {name}")
        size, resize = made_for.size, made_for.resize
        return create(name, "stream"), InputFormat(size, resize, FPS, made_for.frames)
    spec = ModelSpec(
        name="custom",
        stem=StemSpec(8),
        blocks=(
            BlockSpec(8, (16,), ((1, 3, 3),), ((1, 2, 2),)),
            BlockSpec(16, (24, 32), ((3, 3, 3), (5, 3, 3)), ((1, 2, 2), (1, 1, 1))),
        ),
        head=HeadSpec(48, 64),
        num_classes=600,
        causal=True,
        conv_type="2plus1d",
        se_type="2plus3d",
        activation="hard_swish",
        gate="hard_sigmoid_keras",
    )
    return MoViNet(spec), InputFormat(64, 72, FPS, 50)


def resident() -> tuple[float, float]:
    """Return this process's resident memory now and at its peak, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return tuple(int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def measure(name: str, path: str, marks: list[int]) -> None:
    """Stream the video; print a JSON line at each mark."""
    torch.set_num_threads(1)
    model, made_for = network(name)
    predictor = Predictor([model], [made_for])
    history = History()
    begun = time.perf_counter()
    for moment in predictor.stream(path):
        history.add(moment.seconds, moment.probabilities)
        if moment.frames in marks:
            now, peak = resident()
            seconds = time.perf_counter() - begun
            row = {"network": name, "frames": moment.frames, "seconds": round(seconds, 1)}
            print(json.dumps({**row, "now_mb": round(now, 1), "peak_mb": round(peak, 1)}))
            sys.stdout.flush()


def main() -> None:
    """Make the video, run each network on it, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default="mini,a0")
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    marks = sorted({min(n, options.frames) for n in (100, 1000, 10_000, options.frames)})
    if options.measure:
        measure(*options.measure, marks)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "long.mp4")
        write_video(path, pictures(options.frames), FPS)
        print(f"{'network':<8}{'frames':>8}{'now':>12}{'peak':>12}{'time':>10}")
        for name in options.networks.split(","):
            command = [sys.executable, __file__, "--frames", str(options.frames)]
            with subprocess.Popen(
                [*command, "--measure", name, path], stdout=subprocess.PIPE, text=True
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    row = json.loads(line)
                    rows.append(row)
                    print(
                        f"{row['network']:<8}{row['frames']:>8}{row['now_mb']:>9.1f} MB"
                        f"{row['peak_mb']:>9.1f} MB{row['seconds']:>8.1f} s",
                        flush=True,
                    )
            if process.returncode:
                raise SystemExit(f"{name} failed")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
