"""The authors' live TensorFlow code, for tests marked `reference`.

TensorFlow and ``official`` are imported when a function is called, not with this module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weights.samples.make_sample import (
    BASE,
    MINI,
    STREAM,
    build,
    export_saved_model,
    pack,
    randomise,
    run,
    sample,
    sample_video,
)

__all__ = [
    "BASE",
    "MINI",
    "STREAM",
    "build",
    "export_saved_model",
    "forget",
    "keras_hard_sigmoid",
    "pack",
    "randomise",
    "run",
    "sample",
    "sample_video",
    "save_checkpoint",
    "traced",
]


def save_checkpoint(model: Any, folder: str | Path) -> str:
    """Write a TF2 object-graph checkpoint of `model` as a training run does; return its prefix."""
    import tensorflow as tf

    prefix: str = tf.train.Checkpoint(model=model).save(str(Path(folder) / "ckpt"))
    return prefix


def keras_hard_sigmoid(x: Any) -> Any:
    """Return Keras' hard sigmoid: what the authors' releases before 2.8 meant by the name."""
    import tensorflow as tf

    return tf.keras.activations.hard_sigmoid(x)


def traced(model: Any) -> Any:
    """Return `model` as a ``tf.function`` of clips and states of any size.

    Called as it is, a model with 3-D convolutions compiles each of them again in every call.
    """
    import tensorflow as tf

    shape = [None, None, None, None, 3]
    inputs = {"image": tf.TensorSpec(shape, tf.float32)}
    if model.backbone.use_external_states:
        for name, state in model.initial_state_specs(shape).items():
            inputs[name] = tf.TensorSpec(state.shape, state.dtype)
    return tf.function(lambda x: model(x), input_signature=[inputs])


def forget() -> None:
    """Let Keras drop the graphs of the models built so far."""
    import tensorflow as tf

    tf.keras.backend.clear_session()
