"""How the benchmarks measure: a process for each row, all of them side by side, round by round.

Every row runs in a worker of its own, so that no two frameworks share a process, its threads or
its heap, and peak memory belongs to the row. A worker loads and warms up, then sleeps until its
turn: in every round each worker in turn makes some calls, so that whatever drifts on the machine
drifts for all of them. A row's figure is the median over rounds of the median over a round's
calls; ratios are of these medians.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
MIB = 2**20

# A round's calls of one row take about this long, in seconds; a call that takes longer is one.
ROUND_SECONDS = 0.25
MOST_CALLS = 200
# Calls at the start of a row's turn that are not timed: caches are cold from the row before.
SETTLE = 0.1

# glibc gives large buffers back to the system after each call and gets them again, page by page;
# with these it keeps them. Timings of clips have two modes for this reason.
KEEP_HEAP = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(256 * MIB),
}


@dataclasses.dataclass
class Row:
    """One thing that is measured, and what came out.

    Attributes:
        name: as the table has it.
        runner: its name in `benchmarks.rows.RUNNERS`.
        arguments: of the runner.
        keep_heap: whether the worker's allocator keeps what was freed.
        every: of how many rounds it has a turn in one, the first: more than 1 for what takes long.
        error: why it could not be measured.
        facts: what else the worker said: "logits", "memory" (peak, MiB).
        rounds: median seconds of a call in each of its rounds.
        faults: page faults of a call in each of its rounds.
    """

    name: str
    runner: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    keep_heap: bool = False
    every: int = 1
    error: str | None = None
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    rounds: list[float] = dataclasses.field(default_factory=list)
    faults: list[float] = dataclasses.field(default_factory=list)

    @property
    def seconds(self) -> float | None:
        """Median seconds of a call."""
        return statistics.median(self.rounds) if self.rounds else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        found = dataclasses.asdict(self)
        if self.rounds:
            found.update(seconds=self.seconds, fastest=min(self.rounds), slowest=max(self.rounds))
        return found


class Worker:
    """The process of one row.

    Args:
        row: its runner is made at once; `wait` waits until it is warm.
        threads: for the worker's framework.
    """

    def __init__(self, row: Row, threads: int) -> None:
        self.row = row
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # open as long as the worker is
        environment = {
            **os.environ,
            "TF_USE_LEGACY_KERAS": "1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "OMP_NUM_THREADS": str(threads),
            **(KEEP_HEAP if row.keep_heap else {}),
        }
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / "rows.py")],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._send(runner=row.runner, arguments=dict(row.arguments), threads=threads)

    def wait(self) -> bool:
        """Wait until the runner is warm; False if it could not be made, and `row` says why."""
        return self._note(self._receive())

    def calls(self, count: int) -> bool:
        """Make some calls, and note their median."""
        self._send(calls=count)
        answer = self._receive()
        if self._note(answer):
            self.row.rounds.append(statistics.median(answer["times"]))
            self.row.faults.append(answer["faults"])
        return self.row.error is None

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def _note(self, answer: Mapping[str, Any]) -> bool:
        self.row.error = answer.get("error")
        self.row.facts.update(answer.get("facts", {}))
        return self.row.error is None

    def _send(self, **message: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # _receive finds out why

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self._log.seek(0)
        last = self._log.read().strip().splitlines()[-1:] or ["no message"]
        return {"error": f"the worker ended with {self._process.wait()}: {last[0]}"}


class NotHereError(Exception):
    """A row cannot be measured here; the message says why."""


# What a runner returns: a call to time, and facts for the table, "logits" among them.
Runner = Callable[..., tuple[Callable[[], Any], dict[str, Any]]]


def serve(runners: Mapping[str, Runner]) -> None:
    """Be the process of one row: read commands, make calls, write figures."""
    # Frameworks print; figures go where nobody else writes.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**message: Any) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    call: Callable[[], Any] | None = None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if call is None:
                threads = message["threads"]
                before = peak_memory()
                start = time.perf_counter()
                call, facts = runners[message["runner"]](threads=threads, **message["arguments"])
                facts["start_seconds"] = time.perf_counter() - start
                facts["first_call_seconds"] = _timed(call)
                facts["memory_before"] = before
            else:
                settle = round(SETTLE * message["calls"])
                for _ in range(settle):
                    call()
                faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                times = [_timed(call) for _ in range(message["calls"])]
                faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
                answer(times=times, faults=faults / len(times), facts={"memory": peak_memory()})
                continue
            answer(facts=facts)
        except NotHereError as error:
            answer(error=str(error))
        except Exception as error:
            traceback.print_exc()
            first = str(error).strip().splitlines()[:1]
            answer(error=f"{type(error).__name__}: {first[0] if first else ''}"[:300])


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_memory() -> float:
    """Return the most memory that this process ever had, in MiB."""
    # getrusage counts what the parent had before it started this process.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def current_memory() -> float:
    """Return the memory that this process has now, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


def measure(
    rows: Sequence[Row],
    *,
    rounds: int,
    threads: int,
    seconds: float = ROUND_SECONDS,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Measure rows side by side; the figures go into them.

    Args:
        rows: measured in this order in every other round, backwards in the rest.
        rounds: how many turns each row has, after a few calls to warm up.
        threads: for every framework.
        seconds: about how long a turn takes.
        say: told what is going on.
    """
    workers: list[Worker] = []
    try:
        for row in rows:
            # One after the other: what loads must not slow what is being compiled.
            say(f"starting {row.name}")
            worker = Worker(row, threads)
            if worker.wait():
                workers.append(worker)
            else:
                worker.close()
                say(f"{row.name}: {row.error}")
        counts: dict[str, int] = {}
        for worker in workers:
            worker.calls(1)
            worker.calls(3 if worker.row.rounds[-1] < seconds else 1)
            once = worker.row.rounds[-1]
            counts[worker.row.name] = min(MOST_CALLS, max(1, round(seconds / once)))
            worker.row.rounds.clear()
            worker.row.faults.clear()
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for worker in workers if number % 2 == 0 else reversed(workers):
                if worker.row.error is None and number % worker.row.every == 0:
                    worker.calls(counts[worker.row.name])
    finally:
        for worker in workers:
            worker.close()


# What is said about the run ---------------------------------------------------------------------


def machine(threads: int) -> dict[str, Any]:
    """Return what a figure cannot be read without: machine, date, threads, versions."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "threads": threads,
        "load_before": os.getloadavg()[0],
        "versions": _versions(
            "torch", "tensorflow", "ai-edge-litert", "onnxruntime", "numpy", "movinet-port"
        ),
    }


def machine_line(about: Mapping[str, Any]) -> str:
    """Return `machine` in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{about['date']}; {about['cpu']}, {about['cores']} cores, {about['memory_gib']} GiB, "
        f"{about['system']}; {about['threads']} threads; load before the run "
        f"{about['load_before']:.1f}; Python {about['python']}, {versions}"
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    flags = set(found.get("flags", "").split())
    units = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    return f"{found.get('model name', platform.machine())} ({', '.join(units)})"


def _versions(*names: str) -> dict[str, str]:
    from importlib import metadata

    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclasses.dataclass(frozen=True)
class Fit:
    """A straight line through measured points, by least squares."""

    slope: float
    intercept: float
    r_squared: float


def fit(x: Sequence[float], y: Sequence[float]) -> Fit:
    """Return the line through the points."""
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    slope, intercept = np.polyfit(xs, ys, 1)
    spread = float(((ys - ys.mean()) ** 2).sum())
    left = float(((ys - (slope * xs + intercept)) ** 2).sum())
    return Fit(float(slope), float(intercept), 1.0 - left / spread if spread else 1.0)


def run_alone(code: str, *arguments: str) -> dict[str, Any]:
    """Run Python code in a process of its own; return the JSON that it prints last.

    Args:
        code: may import what is in the repository.
        *arguments: its ``sys.argv[1:]``.
    """
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return {"error": last[0]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
