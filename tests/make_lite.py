"""Makes the small TF Lite files in tests/data with the authors' code and TensorFlow's converter.

    TF_USE_LEGACY_KERAS=1 python -m tests.make_lite

Needs tf-models-official 2.20.0. Beside each network's files lies what the authors' network gives:
``video`` (1, frames, 32, 40, 3) and ``logits`` (1, frames, classes), after each frame.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from weights.samples.make_sample import (
    K15,
    K33,
    K53,
    STREAM,
    _block,
    build,
    randomise,
    run,
    sample_video,
    without_traces,
)

DATA = Path(__file__).parent / "data"
SIZE = 32, 40
FRAMES = 4
CLASSES = 5
SEED = 7

TINY = SimpleNamespace(
    stem=SimpleNamespace(filters=8, kernel_size=(1, 3, 3), strides=(1, 2, 2)),
    blocks=(
        _block(8, (16,), (K15,)),
        _block(8, (16, 16), (K33, K33)),
        _block(8, (16,), (K15,)),
        _block(16, (24,), (K53,), stride=1),
    ),
    head=SimpleNamespace(project_filters=24, head_filters=64),
)


def _settings(name: str) -> dict[str, Any]:
    import tensorflow as tf

    return {
        # What tf-models-official 2.20 builds for phones.
        "relu6_gate": {**STREAM, "positional_encoding": True},
        # The hub's version 3.
        "keras_gate": {**STREAM, "gating_activation": tf.keras.activations.hard_sigmoid},
        "sigmoid_gate": {**STREAM, "activation": "swish", "gating_activation": "sigmoid"},
        "space_only": {**STREAM, "se_type": "2d"},
        # The published int8 files.
        "no_se": {**STREAM, "activation": "relu6", "se_type": "none"},
    }[name]


# Network -> how its weights are stored.
FILES = {
    "relu6_gate": ("float32", "float16", "dynamic", "int8"),
    "keras_gate": ("float32", "int8"),
    "sigmoid_gate": ("float16",),
    "space_only": ("float32",),
    "no_se": ("int8",),
}


def make(name: str, quantisations: tuple[str, ...]) -> None:
    """Write the files of one network."""
    import tensorflow as tf

    model = build(TINY, num_classes=CLASSES, **_settings(name))
    randomise(model, SEED)
    video = sample_video(SEED, batch=1, frames=FRAMES, height=SIZE[0], width=SIZE[1])
    logits = np.stack([found for found, _ in run(model, video, [1] * FRAMES)], axis=1)
    np.savez_compressed(
        DATA / f"lite_{name}.expected.npz", video=video.astype(np.float16), logits=logits
    )
    shape = (1, 1, *SIZE, 3)
    inputs = {"image": tf.TensorSpec(shape, tf.float32, name="image")}
    for key, state in model.initial_state_specs(shape).items():
        inputs[key] = tf.TensorSpec(state.shape, state.dtype, name=key)

    def call(**arguments: Any) -> dict[str, Any]:
        found, states = model(arguments)
        return {"logits": found, **states}

    def calibration() -> Iterator[dict[str, Any]]:
        for seed in range(4):
            clip = sample_video(seed, batch=1, frames=1, height=SIZE[0], width=SIZE[1])
            yield {"image": tf.constant(clip), **model.init_states(tf.constant(shape))}

    root = tf.Module()
    root.model = without_traces(model)
    signature = tf.function(call).get_concrete_function(**inputs)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(root, folder, signatures={"serving_default": signature})
        for quantisation in quantisations:
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
            if quantisation != "float32":
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            if quantisation == "float16":
                converter.target_spec.supported_types = [tf.float16]
            if quantisation == "int8":
                converter.representative_dataset = calibration
            (DATA / f"lite_{name}.{quantisation}.tflite").write_bytes(converter.convert())


if __name__ == "__main__":
    for chosen in sys.argv[1:] or FILES:
        make(chosen, FILES[chosen])
