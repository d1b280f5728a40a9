"""Builds MoViNets with the authors' code, gives them random weights, and exports SavedModels.

Run from the repository's root, with ``tf-models-official`` 2.20.0 installed:

    python -m weights.samples.make_sample stream weights/samples/movinet_mini_stream.tar.gz \\
        --expected tests/data/era3_mini_stream.expected.npz
    python -m weights.samples.make_sample base tests/data/era3_mini_base.tar.gz \\
        --expected tests/data/era3_mini_base.expected.npz
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

SEED = 20210321

# What the authors' `MovinetClassifier` is built with in either mode; "hard_sigmoid" is
# relu6(x + 3) * 0.16667 in this release.
BASE: Mapping[str, Any] = {
    "causal": False,
    "conv_type": "3d",
    "se_type": "3d",
    "activation": "swish",
    "gating_activation": "sigmoid",
}
STREAM: Mapping[str, Any] = {
    "causal": True,
    "conv_type": "2plus1d",
    "se_type": "2plus3d",
    "activation": "hard_swish",
    "gating_activation": "hard_sigmoid",
}


def _block(
    base_filters: int,
    expand_filters: tuple[int, ...],
    kernel_sizes: tuple[tuple[int, int, int], ...],
    stride: int = 2,
) -> SimpleNamespace:
    """One block whose first layer strides."""
    return SimpleNamespace(
        base_filters=base_filters,
        expand_filters=expand_filters,
        kernel_sizes=kernel_sizes,
        strides=((1, stride, stride), *[(1, 1, 1)] * (len(kernel_sizes) - 1)),
    )


# K{t}{s} is a kernel of t frames by s x s pixels.
K15, K33, K53 = (1, 5, 5), (3, 3, 3), (5, 3, 3)

# Every kind of layer at a fraction of the width: no temporal kernel (block 0, last layer), a skip
# projection at equal width (blocks 0 and 2), and one without stride (block 3).
MINI = SimpleNamespace(
    stem=SimpleNamespace(filters=8, kernel_size=(1, 3, 3), strides=(1, 2, 2)),
    blocks=(
        _block(8, (16,), (K15,)),
        _block(16, (24, 32), (K33, K33)),
        _block(16, (40, 24), (K53, K33)),
        _block(24, (40, 40), (K53, K33), stride=1),
        _block(32, (56, 48), (K53, K15)),
    ),
    head=SimpleNamespace(project_filters=48, head_filters=64),
)


def _authors() -> tuple[Any, Any, Any]:
    """Import TensorFlow, the authors' backbone module and their classifier module."""
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf
    from official.projects.movinet.modeling import movinet, movinet_model

    return tf, movinet, movinet_model


def build(
    model_id_or_spec: Any,
    *,
    causal: bool = False,
    conv_type: str = "3d",
    se_type: str = "3d",
    activation: str = "swish",
    gating_activation: Any = "sigmoid",
    positional_encoding: bool = False,
    num_classes: int = 600,
    external_states: bool | None = None,
) -> Any:
    """Return the authors' Keras ``MovinetClassifier``, built, with its initial values.

    Args:
        model_id_or_spec: "a0" to "a5" or "t0" for the authors' own table of widths, or an object
            with the ``stem``, ``blocks`` and ``head`` of a `movinet_port.spec.ModelSpec`.
        causal, conv_type, se_type, positional_encoding, num_classes: as the authors name them.
        activation: the backbone's; the classifier has swish whatever the backbone has.
        gating_activation: a name or a function of a tensor.
        external_states: whether states are inputs and outputs; None means if causal.
    """
    tf, movinet, movinet_model = _authors()
    external_states = causal if external_states is None else external_states
    image = tf.keras.layers.InputSpec(shape=[None, None, None, None, 3])
    registered = model_id_or_spec if isinstance(model_id_or_spec, str) else "custom"
    if registered == "custom":
        movinet.BLOCK_SPECS[registered] = _block_specs(movinet, model_id_or_spec)
    try:
        backbone = movinet.Movinet(
            model_id=registered,
            causal=causal,
            use_positional_encoding=positional_encoding,
            conv_type=conv_type,
            se_type=se_type,
            input_specs=image,
            activation=_exported(activation),
            gating_activation=gating_activation,
            use_sync_bn=False,
            use_external_states=external_states,
        )
        return movinet_model.MovinetClassifier(
            backbone,
            num_classes=num_classes,
            output_states=external_states,
            input_specs={"image": image},
            activation=_exported("swish"),
        )
    finally:
        movinet.BLOCK_SPECS.pop("custom", None)


def _exported(activation: str) -> str:
    """The authors' exporter replaces swish by one without a custom gradient."""
    return "simple_swish" if activation == "swish" else activation


def _block_specs(movinet: Any, spec: Any) -> tuple[Any, ...]:
    stem = movinet.StemSpec(spec.stem.filters, spec.stem.kernel_size, spec.stem.strides)
    blocks = (
        movinet.MovinetBlockSpec(b.base_filters, b.expand_filters, b.kernel_sizes, b.strides)
        for b in spec.blocks
    )
    return stem, *blocks, movinet.HeadSpec(spec.head.project_filters, spec.head.head_filters)


def randomise(model: Any, seed: int) -> None:
    """Give every variable of `model` a random value that keeps activations in scale.

    Initial values would make the comparison vacuous: ReZero starts at 0, so every block is an
    identity, and the positional encoding's scale starts at 0 too.

    Raises:
        ValueError: a variable of an unknown kind, or one whose value did not change.
    """
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        before = variable.numpy()
        variable.assign(_random_value(rng, variable.name, before.shape).astype(before.dtype))
        if np.array_equal(variable.numpy(), before):
            raise ValueError(f"{variable.name} kept its initial value")


def _random_value(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> Any:
    kind = name.rpartition("/")[2].partition(":")[0]
    if kind in ("kernel", "depthwise_kernel"):
        fan_in = np.prod(shape[:-1] if kind == "kernel" else shape[:2])
        # He's 2 makes the logits of A5, 59 layers deep, a hundred times those of A0.
        return rng.normal(0.0, np.sqrt(1.6 / fan_in), shape)
    if kind in ("bias", "beta", "moving_mean"):
        return rng.normal(0.0, 0.2, shape)
    low, high = {"gamma": (0.5, 1.5), "moving_variance": (0.5, 2.0), "scale": (0.2, 0.8)}[kind]
    return rng.uniform(low, high, shape)


def run(
    model: Any,
    video: np.ndarray,
    chunks: Iterable[int] | None = None,
    call: Callable[[dict[str, Any]], Any] | None = None,
) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Run the authors' `model` over `video` and return (logits, states) after each chunk.

    Args:
        model: what `build` returned.
        video: (batch, frames, height, width, 3), float32.
        chunks: lengths in frames, which add up to the video's; None is the whole video at once.
            States are carried from chunk to chunk. A model without external states takes one chunk
            and has no states.
        call: what to call with the inputs in place of `model`, such as a ``tf.function`` of it.
    """
    import tensorflow as tf

    lengths = [video.shape[1]] if chunks is None else list(chunks)
    if sum(lengths) != video.shape[1]:
        raise ValueError(f"chunks {lengths} do not add up to {video.shape[1]} frames")
    streams = model.backbone.use_external_states
    if not streams and len(lengths) > 1:
        raise ValueError("a model without external states cannot carry on from chunk to chunk")
    states = model.init_states(tf.constant(video.shape)) if streams else {}
    results = []
    for stop, length in zip(np.cumsum(lengths), lengths, strict=True):
        clip = tf.constant(video[:, stop - length : stop])
        output = (call or model)({**states, "image": clip})
        logits, states = output if streams else (output, {})
        results.append((logits.numpy(), {name: value.numpy() for name, value in states.items()}))
    return results


def export_saved_model(model: Any, folder: str | Path) -> None:
    """Export `model` into `folder` with the authors' exporter, every input size open."""
    from official.projects.movinet.tools import export_saved_model as exporter

    exporter.export_saved_model(
        model,
        input_shape=(None, None, None, None, 3),
        export_path=str(folder),
        causal=model.backbone.use_external_states,
    )


def without_traces(model: Any) -> Any:
    """Return plain objects with a Keras model's variables under its object paths.

    Keras traces every layer by itself when a model is saved, for fine-tuning in TensorFlow, which
    takes minutes. Saved through these objects, a signature of the model is there in seconds.
    """
    import tensorflow as tf

    view = tf.train.TrackableView(model)
    made: dict[int, Any] = {}

    def copy(item: Any) -> Any:
        if isinstance(item, tf.Variable):
            return item
        if id(item) not in made:
            made[id(item)] = tf.Module()
            for name, child in view.children(item).items():
                made[id(item)]._track_trackable(copy(child), name)
        return made[id(item)]

    return copy(model)


def pack(folder: str | Path, archive: str | Path) -> None:
    """Pack a SavedModel into `archive`, ``saved_model.pb`` at its root as TF Hub serves it.

    The same files give the same bytes. ``fingerprint.pb`` stays out: it holds a random id.
    """
    folder = Path(folder)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            if path.name == "fingerprint.pb":
                continue
            info = tarfile.TarInfo(path.relative_to(folder).as_posix())
            info.size = path.stat().st_size
            with path.open("rb") as file:
                tar.addfile(info, file)
    Path(archive).write_bytes(gzip.compress(buffer.getvalue(), mtime=0))


def sample_video(
    seed: int, *, batch: int = 2, frames: int = 6, height: int = 64, width: int = 72
) -> np.ndarray:
    """Return a random video (batch, frames, height, width, 3), float32 in [0, 1].

    Coarse coloured tiles that change from frame to frame, under noise, so that frames and videos
    differ in more than noise that the pools average away. Values are multiples of 1/32, which
    float16 holds exactly.
    """
    rng = np.random.default_rng(seed)
    tiles = (
        rng.random((batch, frames, 4, 4, 3)).repeat(-(-height // 4), 2).repeat(-(-width // 4), 3)
    )
    noise = rng.random((batch, frames, height, width, 3))
    video = 0.75 * tiles[:, :, :height, :width] + 0.25 * noise
    return (np.round(video * 32) / 32).astype(np.float32)


def sample(mode: str, seed: int = SEED) -> tuple[Any, dict[str, np.ndarray]]:
    """Return the small network of a mode with random weights, and what to expect of it.

    Args:
        mode: "stream" (with positional encodings) or "base".
        seed: of the weights and of the video.

    Returns:
        The authors' model; ``video`` (2, 6, 64, 72, 3) float16, ``logits`` (2, 5) of all of it,
        and for a stream model ``frame_logits`` (2, 6, 5), after each frame.
    """
    streams = mode == "stream"
    settings = STREAM if streams else BASE
    model = build(MINI, **settings, positional_encoding=streams, num_classes=5)
    randomise(model, seed)
    video = sample_video(seed)
    expected = {"video": video.astype(np.float16), "logits": run(model, video)[0][0]}
    if streams:
        frames = run(model, video, [1] * video.shape[1])
        expected["frame_logits"] = np.stack([logits for logits, _ in frames], axis=1)
    return model, expected


def main() -> None:
    """Make one archive and the logits to expect from it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("mode", choices=["stream", "base"])
    parser.add_argument("archive", type=Path, help="the .tar.gz to write")
    parser.add_argument("--expected", type=Path, help="the .npz to write video and logits to")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()

    model, expected = sample(options.mode, options.seed)
    if options.expected:
        np.savez_compressed(options.expected, allow_pickle=False, **expected)
    with tempfile.TemporaryDirectory() as folder:
        export_saved_model(model, folder)
        pack(folder, options.archive)


if __name__ == "__main__":
    main()
