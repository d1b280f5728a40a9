"""What the benchmarks run: one runner for each way of computing a MoViNet.

A runner is made in a process of its own (`benchmarks.measure.serve`). It returns a call to time
and facts: ``logits``, of the first frames of a video that is the same for every row, so that the
table can say whether two rows compute the same.
"""

from __future__ import annotations

import inspect
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks.measure import NotHereError, Runner, serve  # noqa: E402

Made = tuple[Callable[[], Any], dict[str, Any]]

# Frames of the video: enough that the same pixels do not stay in a cache from call to call.
FRAMES = 8
# Logits are compared after so many steps, so that states have been carried.
COMPARED = 3


def video(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return random pixels in [0, 1], float32, (batch, frames, height, width, 3)."""
    return np.random.default_rng(seed).random(shape, np.float32)


def _clips(batch: int, frames: int, size: int) -> list[np.ndarray]:
    pixels = video((batch, FRAMES * frames, size, size, 3))
    return [np.ascontiguousarray(part) for part in np.split(pixels, FRAMES, axis=1)]


def _stepper(step: Callable[[Any], Any], clips: list[Any], reset: Callable[[], Any]) -> Made:
    """Return a call that feeds the next clip of an endless video."""
    logits = None
    for clip in clips[:COMPARED]:
        logits = np.array(step(clip), np.float32)
    reset()
    endless: Iterator[Any] = itertools.cycle(clips)
    return lambda: step(next(endless)), {"logits": _plain(logits)}


def _plain(logits: Any) -> list[float]:
    return [float(value) for value in np.asarray(logits, np.float32).ravel()[:600]]


# Ours -------------------------------------------------------------------------------------------


def _torch(threads: int) -> Any:
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    return torch


def _load(weights: str, level: str, **how: Any) -> Any:
    """Return our network: "readable", "eager" (optimised) or "compile"."""
    from movinet_port import load

    model = load(weights)
    if level == "readable":
        return model
    import torch

    from movinet_port import optimize

    changes = {k: getattr(torch, v) if k == "dtype" else v for k, v in how.items()}
    return optimize(model, level, **changes)


def _converted(torch: Any, model: Any, dtype: str | None, channels_last: bool = False) -> Any:
    if dtype is not None:
        model = model.to(getattr(torch, dtype))
    if channels_last:
        model = model.to(memory_format=torch.channels_last_3d)
    return model


def ours_stream(
    *,
    weights: str,
    size: int,
    level: str,
    threads: int,
    batch: int = 1,
    frames: int = 1,
    how: Mapping[str, Any] | None = None,
) -> Made:
    """Our stream network, fed `frames` at a time."""
    torch = _torch(threads)
    model = _load(weights, level, **(how or {}))
    clips = [torch.from_numpy(c).permute(0, 4, 1, 2, 3) for c in _clips(batch, frames, size)]

    def step(clip: Any) -> Any:
        return model(clip).float()

    return _stepper(step, clips, model.clean_activation_buffers)


def ours_aot(*, package: str, size: int, threads: int, batch: int = 1, frames: int = 1) -> Made:
    """Our stream network compiled ahead of time, from a file."""
    torch = _torch(threads)
    from movinet_port import load

    if not Path(package).exists():
        raise NotHereError(f"no {Path(package).name}; movinet-port compile makes it")
    model = load(package)
    clips = [torch.from_numpy(c).permute(0, 4, 1, 2, 3) for c in _clips(batch, frames, size)]
    return _stepper(lambda clip: model(clip), clips, model.clean_activation_buffers)


def ours_clip(
    *,
    weights: str,
    size: int,
    frames: int,
    level: str,
    threads: int,
    batch: int = 1,
    chunk: int | None = None,
    how: Mapping[str, Any] | None = None,
) -> Made:
    """Our base network on whole clips, or in pieces of `chunk` frames."""
    torch = _torch(threads)
    model = _load(weights, level, **(how or {}))
    clip = torch.from_numpy(video((batch, frames, size, size, 3))).permute(0, 4, 1, 2, 3)

    def call() -> Any:
        return model(clip) if chunk is None else model.predict_clip(clip, chunk)

    return call, {"logits": _plain(call().float().numpy())}


def ours_pool(
    *, weights: str, size: int, streams: int, together: bool, level: str, threads: int
) -> Made:
    """Several streams: one batch in a `StreamPool`, or one after the other."""
    torch = _torch(threads)
    from movinet_port.stream_pool import StreamPool

    model = _load(weights, level)
    pixels = torch.from_numpy(video((streams, 1, size, size, 3))).permute(0, 4, 1, 2, 3)
    pools = [StreamPool(model, size, size) for _ in range(1 if together else streams)]
    for stream in range(streams):
        pools[stream % len(pools)].join(stream)

    def call() -> dict[int, Any]:
        found: dict[int, Any] = {}
        for pool in pools:
            found.update(pool.step({stream: pixels[stream] for stream in pool.streams}))
        return found

    return call, {"logits": _plain(call()[0].float().numpy())}


def matmul(*, size: int, threads: int, dtype: str = "float32") -> Made:
    """A large matrix product: what this machine can do."""
    torch = _torch(threads)
    if dtype == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        # Tens of seconds for each product.
        raise NotHereError("oneDNN has no bfloat16 for this CPU")
    a, b = (torch.rand(size, size).to(getattr(torch, dtype)) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), {"flops": 2 * size**3}


# Peers ------------------------------------------------------------------------------------------


def _need(*files: str) -> None:
    for file in files:
        if not Path(file).exists():
            raise NotHereError(f"no {Path(file).name}; benchmarks/peers.py makes it")


def _tensorflow(threads: int) -> None:
    try:
        import tensorflow as tf
    except ImportError:
        raise NotHereError("TensorFlow is not installed: pip install 'movinet-port[tf]'") from None
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def tensorflow_stream(*, saved_model: str, size: int, threads: int) -> Made:
    """TensorFlow, one frame at a time."""
    _need(f"{saved_model}/saved_model.pb")
    _tensorflow(threads)
    from benchmarks.peers import SavedStream

    stream = SavedStream(Path(saved_model), (1, 1, size, size, 3))
    return _stepper(stream.step, _clips(1, 1, size), stream.reset)


def tensorflow_clip(*, saved_model: str, size: int, frames: int, threads: int) -> Made:
    """TensorFlow on whole clips."""
    _need(f"{saved_model}/saved_model.pb")
    _tensorflow(threads)
    from benchmarks.peers import SavedClip

    network, clip = SavedClip(Path(saved_model)), video((1, frames, size, size, 3))
    return lambda: network.run(clip), {"logits": _plain(network.run(clip))}


def litert(*, tflite: str, size: int, threads: int, way: str = "copied") -> Made:
    """LiteRT with XNNPACK.

    Args:
        way: "copied": states go from output to input tensors, the fastest way to carry them;
            "runner": through the signature runner; "invoke": they are not carried, and no frame
            is set.
    """
    _need(tflite)
    from benchmarks.peers import LiteRunner, LiteStream

    try:
        stream = (LiteRunner if way == "runner" else LiteStream)(Path(tflite), threads)
    except ImportError:
        raise NotHereError("LiteRT is not installed: pip install 'movinet-port[bench]'") from None
    call, facts = _stepper(stream.step, _clips(1, 1, size), stream.reset)
    return (stream.interpreter.invoke if way == "invoke" else call), facts


def onnx_stream(*, onnx: str, size: int, threads: int) -> Made:
    """ONNX Runtime on our export of one frame; states stay in its own tensors."""
    _need(onnx)
    try:
        import onnxruntime as ort
    except ImportError:
        raise NotHereError(
            "ONNX Runtime is not installed: pip install 'movinet-port[onnx]'"
        ) from None
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32}
    image, *states = session.get_inputs()
    logits, *after = (output.name for output in session.get_outputs())
    fresh = {
        state.name: ort.OrtValue.ortvalue_from_numpy(
            np.zeros([d if isinstance(d, int) else 1 for d in state.shape], kinds[state.type])
        )
        for state in states
    }
    held = dict(fresh)

    def step(clip: np.ndarray) -> np.ndarray:
        inputs = {image.name: ort.OrtValue.ortvalue_from_numpy(clip), **held}
        found = session.run_with_ort_values([logits, *after], inputs)
        held.update(zip(fresh, found[1:], strict=True))
        result: np.ndarray = found[0].numpy()
        return result

    clips = [np.ascontiguousarray(c.transpose(0, 4, 1, 2, 3)) for c in _clips(1, 1, size)]
    return _stepper(step, clips, lambda: held.update(fresh))


def first_port(
    *, checkout: str, name: str, mode: str, size: int, frames: int, threads: int
) -> Made:
    """The first PyTorch port, with random weights of its own: its speed does not depend on them.

    Args:
        checkout: folder of https://github.com/Atze00/MoViNet-pytorch, which is not part of this
            repository.
    """
    torch = _torch(threads)
    if not (Path(checkout) / "movinets").is_dir():
        raise NotHereError(f"{checkout} holds no package movinets; give its checkout")
    sys.path.insert(0, checkout)
    from movinets import MoViNet
    from movinets.config import _C

    config = getattr(_C.MODEL, f"MoViNet{name.upper()}")
    causal = mode == "stream"
    options = {"causal": causal, "pretrained": False, "tf_like": True, "num_classes": 600}
    # Its earliest versions know one kind of convolution.
    if "conv_type" in inspect.signature(MoViNet).parameters:
        options["conv_type"] = "2plus1d" if causal else "3d"
    model = MoViNet(config, **options).eval()
    clips = [torch.from_numpy(c).permute(0, 4, 1, 2, 3) for c in _clips(1, frames, size)]
    if causal:
        call, _ = _stepper(model, clips, model.clean_activation_buffers)
        return call, {}
    return lambda: model(clips[0]), {}


def cuda(
    *,
    weights: str,
    size: int,
    frames: int,
    level: str,
    threads: int,
    batch: int = 1,
    tf32: bool = False,
    dtype: str | None = None,
    channels_last: bool = False,
    graph: bool = False,
) -> Made:
    """Ours on a GPU: a clip of a base network, or a step of a stream one."""
    torch = _torch(threads)
    if not torch.cuda.is_available():
        raise NotHereError("no GPU here")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    model = _converted(torch, _load(weights, level).cuda(), dtype, channels_last)
    kind = getattr(torch, dtype) if dtype else torch.float32
    pixels = torch.from_numpy(video((batch, frames, size, size, 3)))
    clip = pixels.permute(0, 4, 1, 2, 3).cuda().to(kind)
    if channels_last:
        clip = clip.contiguous(memory_format=torch.channels_last_3d)
    state = model.init_state(batch, size, size) if model.spec.causal else None

    def compute() -> Any:
        if state is None:
            return model(clip)
        logits, new = model.step(clip, state)
        for key, value in new.items():
            state[key].copy_(value)
        return logits

    facts = {"logits": _plain(compute().float().cpu().numpy()), "gpu": torch.cuda.get_device_name()}
    run = compute
    if graph:
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                compute()
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            compute()
        run = captured.replay

    def call() -> None:
        run()
        torch.cuda.synchronize()

    return call, facts


RUNNERS: dict[str, Runner] = {
    runner.__name__: runner
    for runner in (
        ours_stream,
        ours_aot,
        ours_clip,
        ours_pool,
        matmul,
        tensorflow_stream,
        tensorflow_clip,
        litert,
        onnx_stream,
        first_port,
        cuda,
    )
}


if __name__ == "__main__":
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    serve(RUNNERS)
