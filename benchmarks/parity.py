"""Does a right network ever raise an alarm? Every variant against the authors' code.

Run from the repository's root, with the extras ``tf`` and ``reference``::

    python benchmarks/parity.py [--variants a0-stream,a5-base] [--runs 50] [--json out.json]
        [--optimize eager|compile|aot]

For each variant the authors' network gets random values in every variable, its graph is exported,
and both sides are compared on random clips of random sizes, batches and chunks. A run passes if
every tap has its partner, or is declared as folded, and the verdict is parity; the largest error is
given in floors, whose limit for a match is 10.

``--optimize`` compares the optimised network, at the levels of `movinet-port parity --optimize`.
"compile" and "aot" compile each variant once, with one set of weights, for clips of the size
`COMPILED` and one thread. Every run then has its negative controls, whose verdict must not be
parity:

- zeroed: a random buffer is zero at the beginning of every clip (videos of several clips);
- swapped: in a random depthwise kernel two temporal taps are exchanged. At level "eager" in the
  network, before it is optimised. Compiling a wrong network too would double the time, so at the
  other levels the right one is compared with the authors' network that has its taps exchanged.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.diagnosis import Ran  # noqa: E402
from movinet_port import MoViNet, load, optimize  # noqa: E402
from movinet_port.checkpoint import Checkpoint  # noqa: E402
from movinet_port.fast import FastMoViNet, InferenceNetwork  # noqa: E402
from movinet_port.fast.aot import compile_package  # noqa: E402
from movinet_port.fast.optimize import fold_network  # noqa: E402
from movinet_port.fast.state import StreamState  # noqa: E402
from movinet_port.spec import ModelSpec  # noqa: E402
from movinet_port.streams import FRAME_COUNT  # noqa: E402
from parity.clips import random_clip  # noqa: E402
from parity.compare import compare  # noqa: E402
from parity.optimised import Optimised  # noqa: E402
from parity.references import SavedModelReference  # noqa: E402
from parity.reports.report import Report  # noqa: E402
from weights.samples.make_sample import BASE, STREAM, build, randomise, without_traces  # noqa: E402

VARIANTS = tuple(
    f"{name}-{mode}"
    for mode in ("base", "stream")
    for name in ("a0", "a1", "a2", "a3", "a4", "a5", "t0")
)
WITH_POSITIONS = ("a3", "a4", "a5")
NUM_CLASSES = 600
# How many of the runs share one set of weights: an export costs more than a comparison.
RUNS_PER_WEIGHTS = 10
LEVELS = ("eager", "compile", "aot")
# (height, width) that a network is compiled for, with one frame of a stream or so many of a clip:
# odd and even, which SAME pads in two ways, at every stride that such a small frame has.
COMPILED = (33, 38)
COMPILED_FRAMES = 5


@dataclasses.dataclass(frozen=True)
class Swap:
    """Two temporal taps of a depthwise kernel that are exchanged.

    One of them reads the frame that is computed, so that it matters however short a clip is.

    Attributes:
        layer: the bottleneck.
        module: path of the convolution in it.
        taps: which two.
    """

    layer: str
    module: str
    taps: tuple[int, int]

    @classmethod
    def choose(cls, spec: ModelSpec, seed: int) -> Swap:
        """Return a random one."""
        choose = random.Random(seed)
        layer = choose.choice([x for x in spec.layers() if x.kernel_size[0] > 1])
        count = layer.kernel_size[0]
        present = count - 1 if spec.causal else count // 2
        other = choose.choice([tap for tap in range(count) if tap != present])
        split = spec.conv_type != "3d"
        return cls(
            layer.name, "depthwise.temporal_conv" if split else "depthwise.conv", (other, present)
        )

    def apply(self, kernel: Any, axis: int) -> Any:
        """Return an array whose two entries along an axis have changed places."""
        order = list(range(kernel.shape[axis]))
        first, second = self.taps
        order[first], order[second] = second, first
        return kernel.take(order, axis)

    def __str__(self) -> str:
        return f"taps {self.taps[0]} and {self.taps[1]} of {self.layer}.{self.module}"


class Exported:
    """The authors' network, exported again whenever its weights have changed.

    The authors' exporter has Keras trace every layer by itself, for fine-tuning in TensorFlow,
    which takes minutes. Only the signature's graph is read here, so the objects are saved under
    their own paths without their traces.

    Args:
        variant: such as "a0-stream".
        architecture: what `build` takes for it, by default the name.
    """

    def __init__(self, variant: str, architecture: Any = None) -> None:
        import tensorflow as tf

        name, _, mode = variant.partition("-")
        causal = mode == "stream"
        settings: Mapping[str, Any] = STREAM if causal else BASE
        self.model = build(
            architecture or name,
            **settings,
            positional_encoding=causal and name in WITH_POSITIONS,
            num_classes=NUM_CLASSES,
        )
        inputs = {"image": tf.TensorSpec([None] * 4 + [3], tf.float32, name="image")}
        if causal:
            for key, state in self.model.initial_state_specs([None] * 4 + [3]).items():
                inputs[key] = tf.TensorSpec(state.shape, state.dtype, name=key)

        def call(**arguments: Any) -> dict[str, Any]:
            if not causal:
                return {"logits": self.model(arguments)}
            logits, states = self.model(arguments)
            return {"logits": logits, **states}

        self._seed: int | None = None
        self._root = tf.Module()
        self._root.model = without_traces(self.model)
        self._signature = tf.function(call).get_concrete_function(**inputs)
        self._key = "call" if causal else "serving_default"

    def reference(self, seed: int, name: str, swap: Swap | None = None) -> SavedModelReference:
        """Give every variable a random value and return the graph as a reference.

        Args:
            seed: of the values.
            name: of the reference.
            swap: exchange these taps.
        """
        import tensorflow as tf

        if seed != self._seed:
            randomise(self.model, seed)
            self._seed = seed
        right = None
        if swap is not None:
            kernel = self._kernel(swap)
            right = kernel.numpy()
            kernel.assign(swap.apply(right, 0))
        folder = tempfile.mkdtemp(prefix="movinet-port-")
        try:
            tf.saved_model.save(self._root, folder, signatures={self._key: self._signature})
            return SavedModelReference(folder, name=name)
        finally:
            shutil.rmtree(folder)
            if right is not None:
                kernel.assign(right)

    def _kernel(self, swap: Swap) -> Any:
        """Return the variable; its first axis is the frames, in kernels over time alone too."""
        begin = f"{swap.layer}/bneck/feature/"
        if swap.module.endswith("temporal_conv"):
            begin += "conv2d_temporal/"
        kernels = [
            variable
            for variable in self.model.variables
            if variable.name.startswith(begin) and variable.name.endswith("kernel:0")
        ]
        (kernel,) = kernels
        return kernel


class Subjects:
    """What is compared with a reference: the right network of a level, and wrong ones.

    Args:
        reference: with the weights.
        level: None for the readable network.
        source: of wrong references, for levels at which a wrong network is expensive.
        seed: of the reference's weights.
    """

    def __init__(self, reference: Ran, level: str | None, source: Exported, seed: int) -> None:
        self.reference = reference
        self.level = level
        self.spec = reference.spec
        self._source = source
        self._seed = seed
        self._wrong: tuple[Swap, Ran] | None = None
        model = reference.build()
        self._exact: FastMoViNet | None = None
        if level is None:
            self.right: MoViNet | Optimised = model
            return
        if level == "eager":
            self._network = optimize(model)
        else:
            self._exact = fold_network(model, turn=False)
            self._network = self._compiled(model, self._exact)
        self.right = Optimised(self._network, self._exact)

    def _compiled(self, model: MoViNet, exact: FastMoViNet) -> InferenceNetwork:
        if self.level == "compile":
            torch._dynamo.reset()
            return optimize(model, "compile")
        with tempfile.TemporaryDirectory(prefix="movinet-port-") as folder:
            path = Path(folder) / "network.pt2"
            frames = 1 if self.spec.causal else COMPILED_FRAMES
            compile_package(exact, path, frames=frames, size=COMPILED)
            network = load(path)
        assert isinstance(network, InferenceNetwork)
        return network

    def controls(
        self, seed: int, chunks: Sequence[int] | None
    ) -> Iterator[tuple[str, Ran, Optimised]]:
        """Yield (what is wrong, reference, network) of pairs that must not be found equal."""
        if self.level is None:
            return
        if chunks is not None and len(chunks) > 1:
            states = [name for name in self._network.init_state(1, 32, 32) if name != FRAME_COUNT]
            state = random.Random(seed).choice(states)
            wrong = Optimised(forgetful(self._network, state), self._exact)
            yield f"zeroed {state}", self.reference, wrong
        if self.level == "eager":
            swap = Swap.choose(self.spec, seed)
            parameters = dict(self.reference.parameters)
            name = f"{swap.layer}.{swap.module}.weight"
            parameters[name] = torch.from_numpy(swap.apply(parameters[name].numpy(), 2))
            model = Checkpoint(self.spec, parameters).build()
            yield f"swapped {swap}", self.reference, Optimised(optimize(model))
            return
        if self._wrong is None:
            swap = Swap.choose(self.spec, seed)
            self._wrong = swap, Ran(self._source.reference(self._seed, "swapped", swap))
        swap, reference = self._wrong
        assert isinstance(self.right, Optimised)
        yield f"swapped {swap}", reference, self.right


def forgetful(network: InferenceNetwork, state: str) -> InferenceNetwork:
    """Return a network that finds a buffer zeroed at the beginning of every clip."""
    kind = type(network)

    def run(
        self: InferenceNetwork, video: torch.Tensor, held: StreamState | None, *tap: Any
    ) -> tuple[torch.Tensor, StreamState | None]:
        assert held is not None
        public = held.public()
        public[state] = torch.zeros_like(public[state])
        return kind.run(self, video, StreamState.of(public), *tap)

    wrong = copy.copy(network)
    wrong.__class__ = type("Forgetful", (kind,), {"run": run})
    return wrong


def _inputs(
    seed: int, causal: bool, largest: int, compiled: bool = False
) -> tuple[Any, list[int] | None]:
    """Return a random clip and how it is cut."""
    choose = random.Random(seed)
    if compiled:
        frames = choose.randint(2, 8) if causal else COMPILED_FRAMES
        clip = random_clip(1, frames, COMPILED, seed)
        return clip, [1] * frames if causal else None
    height, width = (choose.randint(16, largest) for _ in range(2))
    frames, batch = choose.randint(1, 6), choose.choice((1, 1, 2))
    clip = random_clip(batch, frames, (height, width), seed)
    if not causal:
        return clip, None
    chunks: list[int] = []
    while sum(chunks) < frames:
        chunks.append(choose.randint(1, frames - sum(chunks)))
    return clip, chunks


def _largest(report: Report) -> tuple[float, str]:
    return max(
        (max(layer.end_to_end, layer.introduced or 0.0), layer.name)
        for layer in (*report.layers, *report.states)
    )


def runs(
    variant: str,
    count: int,
    largest: int,
    level: str | None = None,
    source: Exported | None = None,
) -> Iterator[dict[str, Any]]:
    """Compare one variant `count` times; yield what each run gave.

    Args:
        variant: such as "a0-stream".
        count: number of clips.
        largest: height or width; compiled networks have their own.
        level: of optimisation; None for the readable network.
        source: of the references, by default the authors' network.
    """
    exported = source or Exported(variant)
    compiled = level in ("compile", "aot")
    subjects = None
    for seed in range(count):
        if subjects is None or (seed % RUNS_PER_WEIGHTS == 0 and not compiled):
            reference = Ran(exported.reference(seed + 1, variant))
            subjects = Subjects(reference, level, exported, seed + 1)
        clip, chunks = _inputs(seed, subjects.spec.causal, largest, compiled)
        if isinstance(subjects.right, MoViNet):
            subjects.right.clean_activation_buffers()
        report = compare(subjects.reference, subjects.right, clip, chunks=chunks)
        error, where = _largest(report)
        controls = []
        for fault, reference, wrong in subjects.controls(seed, chunks):
            found = compare(reference, wrong, clip, chunks=chunks)
            controls.append({"fault": fault, "verdict": found.verdict, "error": _largest(found)[0]})
        yield {
            "variant": variant,
            "level": level,
            "seed": seed,
            "shape": list(clip.shape),
            "chunks": chunks,
            "verdict": report.verdict,
            "taps": len(report.layers),
            "folded": len(report.model.get("folded", ())),
            "reference_taps": report.reference["taps"],
            "error": error,
            "where": where,
            "diagnosis": [f"{d.layer} {d.cause}" for d in report.diagnosis],
            "controls": controls,
        }


def is_alarm(run: Mapping[str, Any]) -> bool:
    """Whether a right network was not found right, or a tap was lost."""
    complete = run["taps"] + run["folded"] == run["reference_taps"]
    return run["verdict"] != "parity" or not complete


def missed(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the negative controls that were found right."""
    return [control for control in run["controls"] if control["verdict"] == "parity"]


def main() -> int:
    """Print one line for each variant; return 1 if a run was not parity, or a control was."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--largest", type=int, default=96, help="height or width in pixels")
    parser.add_argument("--optimize", choices=LEVELS, help="compare the optimised network")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    variants = options.variants.split(",")
    unknown = [variant for variant in variants if variant not in VARIANTS]
    if unknown:
        parser.error(
            f"--variants: no variant is called {unknown[0]!r}; there are {', '.join(VARIANTS)}"
        )
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    alarms = 0
    print(
        "variant      taps  runs  alarms  largest error in floors: median, maximum (where)"
        + ("; controls, missed, smallest error" if options.optimize else "")
    )
    for variant in variants:
        start = time.perf_counter()
        found = list(runs(variant, options.runs, options.largest, options.optimize))
        results += found
        wrong = [run for run in found if is_alarm(run) or missed(run)]
        alarms += len(wrong)
        worst = max(found, key=lambda r: r["error"])
        median = statistics.median(r["error"] for r in found)
        print(
            f"{variant:11}{found[0]['taps']:6}{len(found):6}{sum(map(is_alarm, found)):8}  "
            f"{median:.2f}, {worst['error']:.2f} ({worst['where']}){_controls(found)}  "
            f"[{time.perf_counter() - start:.0f} s]",
            flush=True,
        )
        for run in wrong:
            print(f"  alarm: {run}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 1 if alarms else 0


def _controls(found: Sequence[Mapping[str, Any]]) -> str:
    controls = [control for run in found for control in run["controls"]]
    if not controls:
        return ""
    smallest = min(control["error"] for control in controls)
    return f"; {len(controls)}, {sum(len(missed(run)) for run in found)}, {smallest:.1e}"


if __name__ == "__main__":
    sys.exit(main())
