"""Speed and memory of MoViNets, ours and others', side by side in one run: ``make bench``.

    python benchmarks/speed.py                         everything, about half an hour
    python benchmarks/speed.py --prepare               only make the files that it needs
    python benchmarks/speed.py --only frame --variants a0 --rounds 3

The weights are random and the same for every framework (`benchmarks.peers`); logits of every row
are compared with those of our readable network. Tables go to the screen and to ``OUT/bench.md``,
figures to ``OUT/bench.json``, plots to the folder named with ``--plots``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measure import (  # noqa: E402
    Fit,
    Row,
    fit,
    machine,
    machine_line,
    measure,
    run_alone,
)
from benchmarks.peers import SIZES, Peers  # noqa: E402

READABLE = "ours, readable"
OPTIMISED = "ours, optimised"
COMPILED = "ours, compiled"
AOT = "ours, ahead of time"
TENSORFLOW = "TensorFlow SavedModel"
LITERT = "LiteRT (XNNPACK)"
LITERT_RUNNER = "LiteRT, signature runner"
LITERT_INVOKE = "LiteRT, states not carried"
ONNX = "ONNX Runtime, our export"
FIRST_PORT = "first PyTorch port"


class Bench:
    """The settings of a run, and what it found.

    Attributes:
        found: section -> plain data.
        report: lines of Markdown.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.threads: int = options.threads
        self.found: dict[str, Any] = {}
        self.report: list[str] = []

    def peers(self, name: str, mode: str) -> Peers:
        """Return the files of a variant."""
        return Peers(f"{name}-{mode}", self.options.peers, self.options.size)

    def size(self, name: str) -> int:
        """Return the frame size that a variant is measured at."""
        return int(self.options.size or SIZES[name])

    def variants(self, default: str) -> list[str]:
        """Return those of the section's variants that were asked for."""
        chosen = self.options.variants
        return [v for v in default.split(",") if not chosen or v in chosen.split(",")]

    def chosen(self, rows: list[Row]) -> list[Row]:
        """Return the rows that ``--without`` leaves."""
        left_out = [text for text in (self.options.without or "").split(",") if text]
        return [row for row in rows if not any(text in row.name for text in left_out)]

    def measure(self, rows: Sequence[Row], rounds: float = 1.0, threads: int | None = None) -> None:
        """Measure rows side by side, with `rounds` times the usual number of rounds."""
        number = max(2, round(rounds * self.options.rounds))
        measure(rows, rounds=number, threads=threads or self.threads, say=self.say)

    def say(self, text: str) -> None:
        """Show what is going on, where somebody looks."""
        if self.options.verbose:
            print(f"  [{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)

    def table(self, title: str, headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add a table to the report, and print it."""
        text = [[str(cell) for cell in row] for row in (headings, *rows)]
        widths = [max(len(row[i]) for row in text) for i in range(len(headings))]

        def line(cells: Sequence[str]) -> str:
            first, *rest = zip(cells, widths, strict=True)
            shown = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
            return f"| {' | '.join(shown)} |"

        rule = line([f"{'-' * (w - 1)}{':' if i else '-'}" for i, w in enumerate(widths)])
        self.write(f"### {title}", "", line(text[0]), rule, *map(line, text[1:]), "")

    def reasons(self, rows: Sequence[Row]) -> None:
        """Say why rows have no figure."""
        missing = [f"- {row.name}: not measured: {row.error}" for row in rows if row.error]
        if missing:
            self.write(*missing, "")

    def write(self, *lines: str) -> None:
        """Add lines to the report, and print them."""
        self.report += lines
        print("\n".join(lines), flush=True)


# Sections ---------------------------------------------------------------------------------------


def frame(bench: Bench) -> None:
    """One frame of a stream, every way of computing it."""
    for name in bench.variants("a0,a1,a2,a3"):
        peers, size = bench.peers(name, "stream"), bench.size(name)
        ours = {"weights": str(peers.weights), "size": size}
        rows = [
            Row(READABLE, "ours_stream", {**ours, "level": "readable"}),
            Row(OPTIMISED, "ours_stream", {**ours, "level": "eager"}),
            Row(AOT, "ours_aot", {"package": str(peers.path("pt2")), "size": size}),
            Row(LITERT, "litert", {"tflite": str(peers.path("tflite")), "size": size}),
            Row(
                LITERT_RUNNER,
                "litert",
                {"tflite": str(peers.path("tflite")), "size": size, "way": "runner"},
            ),
            Row(
                LITERT_INVOKE,
                "litert",
                {"tflite": str(peers.path("tflite")), "size": size, "way": "invoke"},
            ),
            Row(ONNX, "onnx_stream", {"onnx": str(peers.path("onnx")), "size": size}),
        ]
        # A minute of compiling each, and of XLA's; the other variants say nothing new.
        if name in ("a0", "a2"):
            rows.insert(2, Row(COMPILED, "ours_stream", {**ours, "level": "compile"}))
            saved = {"saved_model": str(peers.path()), "size": size}
            rows.append(Row(TENSORFLOW, "tensorflow_stream", saved))
        rows = bench.chosen([*rows, *_first_port(bench, name, "stream", size, 1)])
        bench.measure(rows)
        _speed_table(
            bench,
            f"frame-{name}",
            f"{name.upper()} stream, one frame of {size} x {size}",
            rows,
            _flops(name, "stream", 1, size),
        )


def clip(bench: Bench) -> None:
    """A clip of 50 frames of a base network."""
    frames = bench.options.frames
    for name in bench.variants("a0,a2"):
        peers, size = bench.peers(name, "base"), bench.size(name)
        ours = {"weights": str(peers.weights), "size": size, "frames": frames}
        saved = {"saved_model": str(peers.path()), "size": size, "frames": frames}
        rows = [
            Row(READABLE, "ours_clip", {**ours, "level": "readable"}),
            Row(OPTIMISED, "ours_clip", {**ours, "level": "eager"}),
            Row(
                f"{READABLE}, heap kept",
                "ours_clip",
                {**ours, "level": "readable"},
                keep_heap=True,
            ),
            Row(f"{OPTIMISED}, heap kept", "ours_clip", {**ours, "level": "eager"}, keep_heap=True),
            Row(
                f"{OPTIMISED}, in pieces of 8",
                "ours_clip",
                {**ours, "level": "eager", "chunk": 8},
            ),
            # A call takes up to a minute.
            Row(TENSORFLOW, "tensorflow_clip", saved, every=4),
            *_first_port(bench, name, "base", size, frames),
        ]
        rows = bench.chosen(rows)
        bench.measure(rows)
        _speed_table(
            bench,
            f"clip-{name}",
            f"{name.upper()} base, a clip of {frames} x {size} x {size}",
            rows,
            _flops(name, "base", frames, size),
        )


def precision(bench: Bench) -> None:
    """Half precision and 8-bit integers on the CPU: speed, and what it costs."""
    for name in bench.variants("a0,a2"):
        peers, size = bench.peers(name, "stream"), bench.size(name)
        ours = {"weights": str(peers.weights), "size": size, "level": "eager"}
        kinds = {"bfloat16": {"dtype": "bfloat16"}, "int8, dynamic": {"quantize": "int8"}}
        rows = [
            Row(OPTIMISED, "ours_stream", ours),
            *(
                Row(f"{OPTIMISED}, {kind}", "ours_stream", {**ours, "how": how})
                for kind, how in kinds.items()
            ),
        ]
        bench.measure(rows, 0.6)
        count = 16 if bench.options.quick else 64
        agreement = run_alone(
            _AGREEMENT, str(peers.weights), str(min(size, 172)), str(count), json.dumps(kinds)
        )
        for row in rows[1:]:
            row.facts.update(agreement.get(row.name.removeprefix(f"{OPTIMISED}, "), {}))
        _keep(bench, f"precision-{name}", rows)
        bench.table(
            f"{name.upper()} stream in other precisions, {count} random clips of 4 frames",
            ["", "ms", "speed-up", "top-1 agrees", "logit error, RMS", "largest"],
            [
                [
                    row.name,
                    _ms(row),
                    _times(rows[0], row),
                    *(
                        (
                            f"{row.facts['agreement']:.1%}",
                            f"{row.facts['rms']:.2%}",
                            f"{row.facts['largest']:.2%}",
                        )
                        if "agreement" in row.facts
                        else ("", "", "")
                    ),
                ]
                for row in rows
            ],
        )
        bench.reasons(rows)


# Errors are shares of the logits' own spread, so that they do not depend on the weights' scale.
_AGREEMENT = """
import json, sys
import torch
from movinet_port import load, optimize
from weights.samples.make_sample import sample_video

torch.set_grad_enabled(False)
path, size, count, kinds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
right = load(path)
found = {}
clips = [
    torch.from_numpy(sample_video(seed, batch=1, frames=4, height=size, width=size))
    .permute(0, 4, 1, 2, 3)
    for seed in range(count)
]

def logits(model):
    rows = []
    for clip in clips:
        rows.append(model(clip).float())
        model.clean_activation_buffers()
    return torch.cat(rows)

expected = logits(right)
# Random weights favour a few classes whatever they see: take what is common to all clips away.
common, spread = expected.mean(0), (expected - expected.mean(0)).std()
for kind, how in kinds.items():
    try:
        changes = {k: getattr(torch, v) if k == 'dtype' else v for k, v in how.items()}
        got = logits(optimize(right, **changes))
    except Exception:
        continue
    error = (got - expected) / spread
    same = ((got - common).argmax(1) == (expected - common).argmax(1)).float().mean()
    found[kind] = {
        "agreement": float(same),
        "rms": float(error.square().mean().sqrt()),
        "largest": float(error.abs().max()),
    }
print(json.dumps(found))
"""


def scaling(bench: Bench) -> None:
    """Cost against pixels, frames, batch and threads."""
    for name in bench.variants("a0"):
        _scale_clips(bench, name)
        _scale_streams(bench, name)
        _scale_threads(bench, name)


def _scale_clips(bench: Bench, name: str) -> None:
    peers, size = bench.peers(name, "base"), bench.size(name)
    ours = {"weights": str(peers.weights), "level": "eager"}
    lengths = [10, 20, 30, 40, 50, 60]
    sizes = [96, 128, 160, 192, 224, 256]
    if bench.options.quick:
        lengths, sizes = [2, 4, 6], [32, 48, 64]
    by_frames = [
        Row(f"{n} frames", "ours_clip", {**ours, "frames": n, "size": size}, keep_heap=True)
        for n in lengths
    ]
    frames = 4 if bench.options.quick else 25
    by_pixels = [
        Row(f"{s} x {s}", "ours_clip", {**ours, "frames": frames, "size": s}, keep_heap=True)
        for s in sizes
    ]
    bench.measure([*by_frames, *by_pixels], 0.6)
    _keep(bench, f"frames-{name}", by_frames)
    _keep(bench, f"pixels-{name}", by_pixels)
    _line(bench, f"frames-{name}", by_frames, [float(n) for n in lengths], "frame")
    _line(bench, f"pixels-{name}", by_pixels, [float(s * s) for s in sizes], "pixel")
    for rows, title in (
        (by_frames, f"frames of {size} x {size}"),
        (by_pixels, f"size, {frames} frames"),
    ):
        key = "frames" if rows is by_frames else "pixels"
        bench.table(
            f"{name.upper()} base, optimised, heap kept: cost of a clip against {title}",
            ["", "ms", "ms on the line"],
            [
                [row.name, _ms(row), f"{1e3 * on_line:.1f}"]
                for row, on_line in zip(
                    rows, bench.found[f"{key}-{name}"].get("line", [0.0] * len(rows)), strict=True
                )
            ],
        )
        if "fit" in bench.found[f"{key}-{name}"]:
            found = bench.found[f"{key}-{name}"]["fit"]
            bench.write(
                f"Line: {1e3 * found['intercept']:.2f} ms + {1e6 * found['slope']:.4g} us for each "
                f"{key.removesuffix('s')}; R^2 = {found['r_squared']:.4f}",
                "",
            )


def _scale_streams(bench: Bench, name: str) -> None:
    peers, size = bench.peers(name, "stream"), bench.size(name)
    ours = {"weights": str(peers.weights), "level": "eager"}
    batches = [1, 2, 4] if bench.options.quick else [1, 2, 4, 8, 16, 32]
    together = [
        Row(
            f"{n} streams",
            "ours_pool",
            {**ours, "size": size, "streams": n, "together": True},
            keep_heap=True,
        )
        for n in batches
    ]
    apart = [
        Row(
            f"{n} streams, one by one",
            "ours_pool",
            {**ours, "size": size, "streams": n, "together": False},
            keep_heap=True,
        )
        for n in batches[:4]
    ]
    bench.measure([*together, *apart], 0.6)
    _keep(bench, f"batch-{name}", together)
    _keep(bench, f"apart-{name}", apart)
    rows = []
    for number, row, other in zip(batches, together, [*apart, *[None] * 9], strict=False):
        rate = [f"{number / r.seconds:.0f}" if r and r.seconds else "" for r in (row, other)]
        memory = row.facts.get("memory")
        rows.append([row.name, _ms(row), *rate, f"{memory:.0f}" if memory else ""])
    bench.table(
        f"{name.upper()} stream, optimised, {size} x {size}: streams of a StreamPool",
        ["", "ms a step", "frames/s", "frames/s one by one", "peak MiB"],
        rows,
    )


def _scale_threads(bench: Bench, name: str) -> None:
    frames = 4 if bench.options.quick else 50
    found, rows = {}, []
    for threads in sorted({1, 2, os.cpu_count() or 1}):
        stream, base = bench.peers(name, "stream"), bench.peers(name, "base")
        size = bench.size(name)
        pair = [
            Row(
                "one frame",
                "ours_stream",
                {"weights": str(stream.weights), "size": size, "level": "eager"},
            ),
            Row(
                f"clip of {frames}",
                "ours_clip",
                {"weights": str(base.weights), "size": size, "level": "eager", "frames": frames},
                keep_heap=True,
            ),
            Row(
                "one frame, ahead of time",
                "ours_aot",
                {"package": str(stream.path("pt2")), "size": size},
            ),
            Row(
                "one frame, LiteRT",
                "litert",
                {"tflite": str(stream.path("tflite")), "size": size},
            ),
        ]
        bench.measure(pair, 0.5, threads=threads)
        found[str(threads)] = {row.name: row.to_dict() for row in pair}
        rows.append([threads, *(_ms(row) for row in pair)])
        missing = [row for row in pair if row.error]
    bench.found[f"threads-{name}"] = found
    bench.table(
        f"{name.upper()}, optimised: milliseconds against threads",
        ["threads", "one frame", f"clip of {frames}", "one frame, AOT", "one frame, LiteRT"],
        rows,
    )
    bench.reasons(missing)


def flat(bench: Bench) -> None:
    """Ten thousand frames of one stream: time and memory of each thousand."""
    for name in bench.variants("a0"):
        peers = bench.peers(name, "stream")
        level, count = ("readable", 60) if bench.options.quick else ("eager", 10_000)
        size = bench.size(name)
        found = run_alone(
            _FLAT, str(peers.weights), level, str(size), str(count), str(bench.threads)
        )
        bench.found[f"flat-{name}"] = found
        if "error" in found:
            bench.write(f"{name} over {count} frames: not measured: {found['error']}", "")
            continue
        bench.table(
            f"{name.upper()} stream, {level}, one video of {count:,} frames of {size} x {size}",
            ["frames", "median ms", "a video that starts anew", "ratio", "MiB in use"],
            [
                [
                    f"{part['from']:,} to {part['to']:,}",
                    f"{part['ms']:.2f}",
                    f"{part['fresh_ms']:.2f}",
                    f"{part['ms'] / part['fresh_ms']:.3f}",
                    f"{part['mib']:.1f}",
                ]
                for part in found["parts"]
            ],
        )
        first, last = found["parts"][1], found["parts"][-1]
        bench.write(
            f"Last part: time x{last['ms'] / last['fresh_ms']:.3f} of a fresh video's, memory "
            f"{last['mib'] - first['mib']:+.1f} MiB since the second part.",
            "",
        )


# A machine drifts over ten thousand frames; so beside the long video runs another, frame by frame,
# that starts anew in every part.
_FLAT = """
import json, statistics, sys, time
import torch
from benchmarks.measure import current_memory
from movinet_port import load
path, level, size, count, threads = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
torch.set_num_threads(threads)
torch.set_grad_enabled(False)
model = load(path)
fresh = load(path)
if level != "readable":
    from movinet_port import optimize
    model, fresh = optimize(model), optimize(fresh)
clips = list(torch.rand(8, 1, 3, 1, size, size))
parts, each = [], count // 10
for part in range(10):
    times = {model: [], fresh: []}
    fresh.clean_activation_buffers()
    for index in range(each):
        for one in (model, fresh) if index % 2 else (fresh, model):
            start = time.perf_counter()
            logits = one(clips[index % 8])
            times[one].append(time.perf_counter() - start)
            assert torch.isfinite(logits).all()
    parts.append({"from": part * each, "to": (part + 1) * each,
                  "ms": 1e3 * statistics.median(times[model]),
                  "fresh_ms": 1e3 * statistics.median(times[fresh]), "mib": current_memory()})
print(json.dumps({"parts": parts}))
"""


def pieces(bench: Bench) -> None:
    """Peak memory of clips that are too long to go through at once."""
    quick = bench.options.quick
    for name in bench.variants("a5"):
        frames, size = (12, 48) if quick else (120, bench.size(name))
        rows, found = [], {}
        cases = {
            "optimised, whole clip": "",
            "optimised, pieces of 8": "8",
            "optimised, pieces of 8, recomputed": "8 recompute",
            "optimised, pieces of 8, on disk": "8 spill",
            "readable, pieces of 8, on disk": "8 spill",
            "readable, whole clip": "",
        }
        for case, how in cases.items():
            bench.say(f"{name} {case}")
            found[case] = one = run_alone(
                _PIECES, name, str(frames), str(size), how, str(bench.threads), case.split(",")[0]
            )
            rows.append(
                [case, "not measured", one["error"], ""]
                if "error" in one
                else [
                    case,
                    f"{one['mib']:.0f}",
                    f"{one['seconds']:.1f}",
                    f"{one['difference']:.1e}",
                ]
            )
        bench.found[f"pieces-{name}"] = found
        bench.table(
            f"{name.upper()} base, a clip of {frames} x {size} x {size}",
            ["", "peak MiB above the input", "seconds", "logits: difference / spread"],
            rows,
        )


# Each in a process of its own, for its peak memory; own random weights, seeded.
_PIECES = """
import json, os, sys, tempfile, time
import torch
from benchmarks.measure import peak_memory
from movinet_port import create_model, optimize
name, how = sys.argv[1], sys.argv[4]
frames, size, threads = map(int, (sys.argv[2], sys.argv[3], sys.argv[5]))
torch.set_num_threads(threads)
torch.set_grad_enabled(False)
torch.manual_seed(0)
model = create_model(name).eval()
for key, value in model.named_parameters():
    if key.endswith("rezero.scale"):
        value.fill_(0.5)
if sys.argv[6] == "optimised":
    model = optimize(model)
clip = torch.rand(1, 3, frames, size, size)
model(clip[:, :, :2, :32, :32])
before, start = peak_memory(), time.perf_counter()
if how:
    chunk, *extra = how.split()
    options = {"recompute": {"recompute": True}, "spill": {"spill": tempfile.gettempdir()}}
    logits = model.predict_clip(clip, int(chunk), **(options[extra[0]] if extra else {}))
else:
    logits = model(clip)
seconds, peak = time.perf_counter() - start, peak_memory() - before
file = os.path.join(tempfile.gettempdir(), f"movinet-bench-{name}-{frames}-{size}.pt")
if not how and sys.argv[6] == "optimised":
    torch.save(logits, file)
whole = torch.load(file)
if not how and sys.argv[6] == "readable":
    os.remove(file)
print(json.dumps({"mib": peak, "seconds": seconds,
                  "difference": float((logits - whole).abs().max() / whole.std())}))
"""


def roofline(bench: Bench) -> None:
    """What a large matrix product reaches here, and how near the networks come."""
    size = 256 if bench.options.quick else 3072
    product = [
        Row(f"matmul {size}, {dtype}", "matmul", {"size": size, "dtype": dtype})
        for dtype in ("float32", "bfloat16")
    ]
    names = bench.variants("a0,a1,a2,a3,a4,a5")
    rows: list[Row] = []
    for name in names:
        weights = bench.options.peers / f"{name}_stream.pt"
        if weights.exists() or name in ("a0", "a2"):
            peers = bench.peers(name, "stream")
            ours = {"weights": str(peers.weights), "size": bench.size(name), "level": "eager"}
            rows.append(Row(f"{name} stream, 1 frame", "ours_stream", ours))
            rows.append(Row(f"{name} stream, 8 frames", "ours_stream", {**ours, "frames": 8}, True))
        weights = bench.options.peers / f"{name}_base.pt"
        if weights.exists():
            frames = 2 if bench.options.quick else 20
            arguments = {
                "weights": str(weights),
                "size": bench.size(name),
                "frames": frames,
                "level": "eager",
            }
            rows.append(Row(f"{name} base, {frames} frames", "ours_clip", arguments, True))
    bench.measure([*product, *rows], 0.5)
    for row in rows:
        name, mode = row.name.split()[:2]
        frames = int(row.name.split()[-2])
        row.facts["flops"] = _flops(name, mode.rstrip(","), frames, row.arguments["size"])
    _keep(bench, "roofline", [*product, *rows])
    top = product[0].facts["flops"] / product[0].seconds if product[0].seconds else None
    bench.table(
        "Roofline: optimised networks against a large float32 matrix product",
        ["", "ms", "GFLOP", "GFLOP/s", "of the matrix product"],
        [
            [
                row.name,
                _ms(row),
                f"{row.facts['flops'] / 1e9:.2f}" if "flops" in row.facts else "",
                f"{row.facts['flops'] / row.seconds / 1e9:.0f}" if row.seconds else "",
                f"{row.facts['flops'] / row.seconds / top:.0%}" if row.seconds and top else "",
            ]
            for row in (*product, *rows)
        ],
    )
    bench.reasons([*product, *rows])


def start(bench: Bench) -> None:
    """Importing the package, and loading a file."""
    names = bench.variants("a5") or bench.variants("a0,a2")[:1]
    cases = {"import torch": "import torch", "import movinet_port": "import movinet_port"}
    code = (
        "import json,sys,time\nstart=time.perf_counter()\nexec(sys.argv[1])\n"
        "print(json.dumps({'seconds': time.perf_counter()-start}))"
    )
    for name in names:
        path = bench.peers(name, "stream").own()
        # torch is imported before the clock starts: that is the row above.
        cases[f"load {path.name}"] = (
            f"import torch, movinet_port; start=time.perf_counter(); "
            f"movinet_port.load({str(path)!r})"
        )
    times: dict[str, list[float]] = {case: [] for case in cases}
    for _ in range(2 if bench.options.quick else 7):
        for case, statement in cases.items():
            times[case].append(run_alone(code, statement)["seconds"])
    bench.found["start"] = times
    bench.table(
        "Starting: each in a fresh process, files in the system's cache",
        ["", "median s", "fastest", "slowest"],
        [
            [case, *(f"{f(values):.2f}" for f in (statistics.median, min, max))]
            for case, values in times.items()
        ],
    )


def gpu(bench: Bench) -> None:
    """A GPU, if there is one."""
    about = run_alone(
        "import json, torch; c = torch.cuda; "
        "print(json.dumps({'name': c.get_device_name() if c.is_available() else None}))"
    )
    if not about.get("name"):
        bench.found["gpu"] = None
        bench.write("### GPU", "", "No GPU on this machine: these rows were not measured.", "")
        return
    for name in bench.variants("a0,a2"):
        size, frames = bench.size(name), bench.options.frames
        plain: dict[str, Any] = {}
        tf32 = {"tf32": True}
        kinds: dict[str, dict[str, Any]] = {
            "float32, no TF32": plain,
            "TF32": tf32,
            "TF32, channels last": {**tf32, "channels_last": True},
            "bfloat16": {"dtype": "bfloat16"},
            "bfloat16, channels last": {"dtype": "bfloat16", "channels_last": True},
        }
        for mode, shape in (
            ("stream", {"frames": 1, "batch": 1}),
            ("stream", {"frames": 1, "batch": 64}),
            ("base", {"frames": frames, "batch": 1}),
            ("base", {"frames": frames, "batch": 8}),
        ):
            weights = str(bench.peers(name, mode).weights)
            rows = [
                Row(
                    f"{level}, {kind}{', CUDA graph' if graph else ''}",
                    "cuda",
                    {
                        "weights": weights,
                        "size": size,
                        "level": level,
                        "graph": graph,
                        **shape,
                        **how,
                    },
                )
                for level in ("readable", "eager")
                for kind, how in kinds.items()
                for graph in (False, True)
            ]
            bench.measure(rows)
            title = f"{about['name']}: {name.upper()} {mode}, {shape['batch']} x {shape['frames']}"
            _speed_table(
                bench,
                f"gpu-{name}-{mode}-{shape['batch']}",
                f"{title} x {size} x {size}",
                rows,
                shape["batch"] * _flops(name, mode, shape["frames"], size),
            )


SECTIONS: dict[str, Callable[[Bench], None]] = {
    section.__name__: section
    for section in (frame, clip, precision, scaling, flat, pieces, roofline, start, gpu)
}


# Helpers ----------------------------------------------------------------------------------------


def _first_port(bench: Bench, name: str, mode: str, size: int, frames: int) -> list[Row]:
    checkout = bench.options.first_port
    if checkout is None:
        return []
    arguments = {
        "checkout": str(checkout.resolve()),
        "name": name,
        "mode": mode,
        "size": size,
        "frames": frames,
    }
    return [Row(FIRST_PORT, "first_port", arguments)]


def _flops(name: str, mode: str, frames: int, size: int) -> int:
    """Count the readable network's floating point operations; a multiply-add is two."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from movinet_port import create_model

    with torch.device("meta"), torch.no_grad():
        model = create_model(name, mode).eval()
        clip = torch.empty(1, 3, frames, size, size)
        with FlopCounterMode(display=False) as counter:
            model(clip)
    return int(counter.get_total_flops())


def _keep(bench: Bench, key: str, rows: Sequence[Row], **more: Any) -> None:
    kept = []
    for row in rows:
        data = row.to_dict()
        data["facts"].pop("logits", None)
        kept.append(data)
    bench.found[key] = {"rows": kept, **more}


def _line(bench: Bench, key: str, rows: Sequence[Row], x: list[float], unit: str) -> None:
    if all(row.seconds for row in rows):
        y = [row.seconds or 0.0 for row in rows]
        line: Fit = fit(x, y)
        bench.found[key].update(
            fit={"slope": line.slope, "intercept": line.intercept, "r_squared": line.r_squared},
            line=[line.slope * value + line.intercept for value in x],
            x=x,
            unit=unit,
        )


def _ms(row: Row) -> str:
    return f"{1e3 * row.seconds:.2f}" if row.seconds else ""


def _times(slow: Row, fast: Row) -> str:
    return f"{slow.seconds / fast.seconds:.2f}x" if slow.seconds and fast.seconds else ""


def _speed_table(bench: Bench, key: str, title: str, rows: Sequence[Row], flops: int) -> None:
    by_name = {row.name: row for row in rows}
    first = rows[0]
    lite = by_name.get(LITERT)
    for row in rows:
        row.facts["logit_error"] = _difference(row, first)
    _keep(bench, key, rows, flops=flops)
    headings = ["", "ms", "fastest to slowest round", f"{first.name} / this", "GFLOP/s"]
    headings += ["this / LiteRT"] if lite else []
    headings += ["peak MiB", "page faults", "logits off by"]
    table = []
    for row in rows:
        if not row.seconds:
            table.append([row.name, *[""] * (len(headings) - 1)])
            continue
        cells = [
            row.name,
            _ms(row),
            f"{1e3 * min(row.rounds):.2f} to {1e3 * max(row.rounds):.2f}",
            _times(first, row),
            f"{flops / row.seconds / 1e9:.0f}",
        ]
        cells += [_times(row, lite)] if lite else []
        error = row.facts["logit_error"]
        cells += [
            f"{row.facts['memory']:.0f}",
            f"{statistics.median(row.faults):.0f}",
            "" if error is None else f"{error:.0e}",
        ]
        table.append(cells)
    bench.table(title, headings, table)
    bench.reasons(rows)


def _difference(row: Row, other: Row) -> float | None:
    """Return the largest difference of logits as a share of the largest logit."""
    a, b = row.facts.get("logits"), other.facts.get("logits")
    if not a or not b or len(a) != len(b):
        return None
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) / max(abs(y) for y in b)


def prepare(bench: Bench, sections: Sequence[str]) -> None:
    """Make the files that the sections need: minutes, the first time."""
    bench.options.peers.mkdir(parents=True, exist_ok=True)
    wanted: dict[tuple[str, str], set[str]] = {}

    def want(section: str, names: str, mode: str, *kinds: str) -> None:
        if section in sections:
            for name in bench.variants(names):
                wanted.setdefault((name, mode), set()).update(kinds)

    want("frame", "a0,a1,a2,a3", "stream", "tflite", "onnx", "pt2")
    want("clip", "a0,a2", "base")
    for section in ("precision", "roofline"):
        want(section, "a0,a2", "stream")
    want("scaling", "a0", "stream", "tflite", "pt2")
    for section in ("scaling", "roofline"):
        want(section, "a0", "base")
    want("flat", "a0", "stream")
    for (name, mode), kinds in wanted.items():
        peers = bench.peers(name, mode)
        for kind in ("pt", *sorted(kinds)):
            if peers.path(kind).exists():
                continue
            bench.say(f"making {peers.path(kind).name}")
            began = time.perf_counter()
            try:
                peers.make(kind)
            except (ImportError, RuntimeError, subprocess.CalledProcessError) as error:
                # The rows that need it say so.
                print(f"{peers.path(kind).name}: cannot be made: {error}", file=sys.stderr)
            else:
                bench.say(f"{peers.path(kind).name}: {time.perf_counter() - began:.0f} s")


@contextlib.contextmanager
def _saved(bench: Bench, sections: Sequence[str]) -> Iterator[None]:
    """Write what was found, also when a run is cut short."""
    out: Path = bench.options.out
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        data = {"machine": bench.found.pop("machine"), "sections": bench.found, "asked": sections}
        (out / "bench.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        (out / "bench.md").write_text("\n".join(bench.report) + "\n", encoding="utf-8")


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help=f"some sections of {','.join(SECTIONS)}")
    parser.add_argument("--variants", help="such as a0,a2; by default what a section is about")
    parser.add_argument("--without", help="leave out rows with these words: TensorFlow,compiled")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--frames", type=int, default=50, help="of a base network's clip")
    parser.add_argument("--size", type=int, help="of frames; by default the variant's own")
    parser.add_argument("--peers", type=Path, default=ROOT / "build" / "peers")
    parser.add_argument("--first-port", type=Path, help="a checkout of Atze00/MoViNet-pytorch")
    parser.add_argument("--out", type=Path, default=ROOT / "build")
    parser.add_argument("--plots", type=Path, help="folder for PNG files")
    parser.add_argument("--prepare", action="store_true", help="only make the files")
    parser.add_argument("--as-is", action="store_true", help="make no files; rows without are out")
    parser.add_argument("--quick", action="store_true", help="small inputs: does it run at all?")
    parser.add_argument("--verbose", action="store_true", help="say what is going on")
    options = parser.parse_args()
    sections = options.only.split(",") if options.only else list(SECTIONS)
    unknown = [section for section in sections if section not in SECTIONS]
    if unknown:
        parser.error(
            f"--only: no section is called {unknown[0]!r}; there are {', '.join(SECTIONS)}"
        )
    unknown = [v for v in (options.variants or "").split(",") if v and v not in SIZES]
    if unknown:
        parser.error(
            f"--variants: no variant is called {unknown[0]!r}; there are {', '.join(SIZES)}"
        )
    bench = Bench(options)
    if options.prepare:
        prepare(bench, sections)
        return 0
    if not options.as_is:
        # A process of its own: making LiteRT's files takes 11 GB, and what is measured needs it.
        made = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--prepare"], check=False)
        if made.returncode:
            return made.returncode
    began = time.perf_counter()
    about = bench.found["machine"] = machine(options.threads)
    with _saved(bench, sections):
        bench.write(machine_line(about), "")
        for section in sections:
            SECTIONS[section](bench)
        bench.write(f"{time.perf_counter() - began:.0f} s in all.")
    if options.plots:
        from benchmarks.plots import draw

        for path in draw(options.out / "bench.json", options.plots):
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
