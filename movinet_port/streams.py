"""What a stream network remembers between clips: names, shapes, and whether a state fits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from movinet_port.errors import StateError
from movinet_port.layers import at_least_float32
from movinet_port.spec import ModelSpec, Triple

State = dict[str, Tensor]

# Canonical names of what a stream network remembers; the first two have a layer's name before.
STREAM_BUFFER = "stream_buffer"
POOL_BUFFER = "pool_buffer"
FRAME_COUNT = "frame_count"


def state_shapes(spec: ModelSpec, height: int, width: int) -> dict[str, tuple[int, ...]]:
    """Return the shape, without the batch, of every state of a stream network.

    Args:
        spec: the architecture.
        height, width: size of the frames, in pixels.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def visit(name: str, channels: tuple[int, int], kernel: Triple, strides: Triple) -> None:
        nonlocal height, width
        before = height, width
        height, width = -(-height // strides[1]), -(-width // strides[2])
        if kernel[0] > 1 and spec.causal:
            # In front of the temporal convolution where it is split off, else of the 3-D one.
            channel, size = (
                (channels[1], (height, width))
                if spec.splits_time
                else (
                    channels[0],
                    before,
                )
            )
            shapes[f"{name}.{STREAM_BUFFER}"] = (channel, kernel[0] - 1, *size)

    visit("stem", (3, spec.stem.filters), spec.stem.kernel_size, spec.stem.strides)
    for layer in spec.layers():
        filters = layer.expand_filters
        visit(layer.name, (filters, filters), layer.kernel_size, layer.strides)
        if spec.se_type in ("3d", "2plus3d"):
            shapes[f"{layer.name}.{POOL_BUFFER}"] = (filters, 1, 1, 1)
    shapes[f"head.{POOL_BUFFER}"] = (spec.head.project_filters, 1, 1, 1)
    shapes[FRAME_COUNT] = ()
    return shapes


def init_state(
    spec: ModelSpec,
    batch: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
) -> State:
    """Return the state before the first frame, as `MoViNet.init_state` describes it.

    Raises:
        StateError: the network is not causal, so it has no state.
    """
    if not spec.causal:
        raise StateError(
            f"{spec.name} base is no stream network and has no state; create it with mode='stream'"
        )
    dtypes = {FRAME_COUNT: torch.int64, POOL_BUFFER: at_least_float32(dtype)}
    return {
        name: torch.zeros(
            (batch, *shape), dtype=dtypes.get(name.rpartition(".")[2], dtype), device=device
        )
        for name, shape in state_shapes(spec, height, width).items()
    }


def check_state(spec: ModelSpec, video: Tensor, state: Mapping[str, Tensor]) -> None:
    """Check names, shapes and devices of a public state.

    Raises:
        StateError: it is not one of this architecture for this batch and frame size.
    """
    batch, height, width = check_video(video)
    shapes = state_shapes(spec, height, width)
    missing, unknown = shapes.keys() - state.keys(), state.keys() - shapes.keys()
    if missing or unknown:
        raise StateError(
            f"the state is not one of {spec.name}: missing "
            f"{', '.join(sorted(missing)) or 'none'}; unknown "
            f"{', '.join(sorted(unknown)) or 'none'}; start with init_state()"
        )
    for name, shape in shapes.items():
        if tuple(state[name].shape) != (batch, *shape):
            raise StateError(
                f"state {name!r} has shape {tuple(state[name].shape)}, expected "
                f"{(batch, *shape)} for a batch of {batch} at {height} x {width}; "
                f"a new batch or frame size starts with a new init_state()"
            )
        if state[name].device != video.device:
            raise StateError(
                f"state {name!r} is on {state[name].device}, the clip on {video.device}; move one "
                f"of them with .to()"
            )


def check_video(video: Tensor) -> tuple[int, int, int]:
    """Return (batch, height, width)."""
    if video.ndim != 5 or video.shape[1] != 3:
        raise StateError(
            f"the clip has shape {tuple(video.shape)}, expected (batch, 3, frames, height, width); "
            f"TensorFlow's (batch, frames, height, width, 3) becomes that by "
            f".permute(0, 4, 1, 2, 3)"
        )
    if not video.is_floating_point():
        raise StateError(
            f"the clip is {video.dtype}, expected floating point in [0, 1]: clip.float() / 255"
        )
    if video.shape[2] == 0:
        raise StateError("the clip has no frames, expected at least one")
    return video.shape[0], video.shape[3], video.shape[4]


def is_pool(state_name: str) -> bool:
    """Return whether a state is a sum over the video, which is kept in float32 or wider."""
    return state_name.endswith(POOL_BUFFER)
