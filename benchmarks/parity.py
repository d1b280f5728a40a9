"""Does a right network ever raise an alarm? Every variant against the authors' code.

Run from the repository's root, with the extras ``tf`` and ``reference``::

    python benchmarks/parity.py [--variants a0-stream,a5-base] [--runs 50] [--json out.json]

For each variant the authors' network gets random values in every variable, its graph is exported,
and both sides are compared on random clips of random sizes, batches and chunks. A run passes if
every tap has its partner and the verdict is parity; the largest error is given in floors, whose
limit for a match is 10.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from movinet_port.checkpoint import Checkpoint  # noqa: E402
from parity.clips import random_clip  # noqa: E402
from parity.compare import compare  # noqa: E402
from parity.references import SavedModelReference  # noqa: E402
from parity.report import Report  # noqa: E402
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


class Exported:
    """The authors' network, exported again whenever its weights have changed.

    The authors' exporter has Keras trace every layer by itself, for fine-tuning in TensorFlow,
    which takes minutes. Only the signature's graph is read here, so the objects are saved under
    their own paths without their traces.

    Args:
        variant: such as "a0-stream".
    """

    def __init__(self, variant: str) -> None:
        import tensorflow as tf

        name, _, mode = variant.partition("-")
        causal = mode == "stream"
        settings: Mapping[str, Any] = STREAM if causal else BASE
        self.model = build(
            name,
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

        self._root = tf.Module()
        self._root.model = without_traces(self.model)
        self._signature = tf.function(call).get_concrete_function(**inputs)
        self._key = "call" if causal else "serving_default"

    def reference(self, seed: int, name: str) -> SavedModelReference:
        """Give every variable a random value and return the graph as a reference."""
        import tensorflow as tf

        randomise(self.model, seed)
        folder = tempfile.mkdtemp(prefix="movinet-port-")
        try:
            tf.saved_model.save(self._root, folder, signatures={self._key: self._signature})
            return SavedModelReference(folder, name=name)
        finally:
            shutil.rmtree(folder)


def _inputs(seed: int, causal: bool, largest: int) -> tuple[Any, list[int] | None]:
    """Return a random clip and how it is cut."""
    choose = random.Random(seed)
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
        (max(layer.end_to_end, layer.introduced), layer.name)
        for layer in (*report.layers, *report.states)
    )


def runs(variant: str, count: int, largest: int) -> Iterator[dict[str, Any]]:
    """Compare one variant `count` times; yield what each run gave."""
    exported = Exported(variant)
    reference, model = None, None
    for seed in range(count):
        if reference is None or seed % RUNS_PER_WEIGHTS == 0:
            reference = exported.reference(seed + 1, variant)
            model = Checkpoint(reference.spec, dict(reference.parameters)).build()
        assert model is not None
        clip, chunks = _inputs(seed, reference.spec.causal, largest)
        model.clean_activation_buffers()
        report = compare(reference, model, clip, chunks=chunks)
        error, where = _largest(report)
        yield {
            "variant": variant,
            "seed": seed,
            "shape": list(clip.shape),
            "chunks": chunks,
            "verdict": report.verdict,
            "taps": len(report.layers),
            "reference_taps": len(reference.taps),
            "error": error,
            "where": where,
            "diagnosis": [f"{d.layer} {d.cause}" for d in report.diagnosis],
        }


def main() -> int:
    """Print one line for each variant; return 1 if a run was not parity."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--largest", type=int, default=96, help="height or width in pixels")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    alarms = 0
    print("variant      taps  runs  alarms  largest error in floors: median, maximum (where)")
    for variant in options.variants.split(","):
        start = time.perf_counter()
        found = list(runs(variant, options.runs, options.largest))
        results += found
        wrong = [r for r in found if r["verdict"] != "parity" or r["taps"] != r["reference_taps"]]
        alarms += len(wrong)
        worst = max(found, key=lambda r: r["error"])
        median = statistics.median(r["error"] for r in found)
        print(
            f"{variant:11}{found[0]['taps']:6}{len(found):6}{len(wrong):8}  {median:.2f}, "
            f"{worst['error']:.2f} ({worst['where']})  [{time.perf_counter() - start:.0f} s]",
            flush=True,
        )
        for run in wrong:
            print(f"  alarm: {run}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 1 if alarms else 0


if __name__ == "__main__":
    sys.exit(main())
