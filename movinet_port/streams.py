"""What a stream network remembers between clips: names, shapes, checks, and who remembers it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from movinet_port.errors import MovinetPortError, StateError
from movinet_port.layers import at_least_float32
from movinet_port.spec import ModelSpec, Triple
from movinet_port.stages import Pieces

State = dict[str, Tensor]
VideoShape = tuple[int, int, int]  # (batch, height, width) of a video's clips

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


def check_state(
    spec: ModelSpec, state: Mapping[str, Tensor], shape: VideoShape, device: torch.device
) -> None:
    """Check names, shapes and devices of a public state.

    Args:
        spec: the architecture.
        state: as `MoViNet.init_state` describes it.
        shape: (batch, height, width) of the clips.
        device: where they are.

    Raises:
        StateError: it is not one of this architecture for this batch and frame size.
    """
    batch, height, width = shape
    shapes = state_shapes(spec, height, width)
    missing, unknown = shapes.keys() - state.keys(), state.keys() - shapes.keys()
    if missing or unknown:
        raise StateError(
            f"the state is not one of {spec.name}: missing "
            f"{', '.join(sorted(missing)) or 'none'}; unknown "
            f"{', '.join(sorted(unknown)) or 'none'}; start with init_state()"
        )
    for name, axes in shapes.items():
        if tuple(state[name].shape) != (batch, *axes):
            raise StateError(
                f"state {name!r} has shape {tuple(state[name].shape)}, expected "
                f"{(batch, *axes)} for a batch of {batch} at {height} x {width}; "
                f"a new batch or frame size starts with a new init_state()"
            )
        if state[name].device != device:
            raise StateError(
                f"state {name!r} is on {state[name].device}, the clip on {device}; move one "
                f"of them with .to()"
            )


def check_video(video: Tensor) -> VideoShape:
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
    if video.shape[0] == 0 or video.shape[3] == 0 or video.shape[4] == 0:
        raise StateError(
            f"the clip has shape {tuple(video.shape)}, expected at least one video and one pixel"
        )
    return video.shape[0], video.shape[3], video.shape[4]


def check_finite(video: Tensor, what: str = "the clip") -> None:
    """Refuse a clip that would leave a NaN or an infinity in a stream's state.

    Raises:
        StateError: it has such a value.
    """
    if not video.isfinite().all():
        raise StateError(
            f"{what} has values that are NaN or infinite, which would stay in the state for the "
            f"rest of the video; leave these frames out"
        )


def moved(state: Mapping[str, Tensor], fn: Callable[[Tensor], Tensor]) -> State:
    """Return a state after ``.to()`` or the like; sums over a video stay float32 or wider."""
    found = {name: fn(value) for name, value in state.items()}
    for name, value in found.items():
        if name.endswith(POOL_BUFFER):
            found[name] = state[name].to(value.device, at_least_float32(value.dtype))
    return found


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What a network remembers of a video between calls.

    Attributes:
        state: as `MoViNet.init_state` describes it. No copies: change no tensor in place.
        shape: (batch, height, width) of the video's clips.
    """

    state: State
    shape: VideoShape


class StatefulNetwork(nn.Module):
    """A network that can remember the video so far from call to call.

    ``forward`` of a subclass computes from `_so_far` and puts what comes after into `_stream`. It
    may keep the state in a form of its own, which `_keep`, `_public` and `_move` then translate.

    Attributes:
        spec: the architecture.
        finite_only: whether calls that remember refuse clips with a NaN or an infinity. To be set;
            by default they do not look.
    """

    spec: ModelSpec
    finite_only: bool = False

    def __init__(self) -> None:
        super().__init__()
        self._stream: tuple[VideoShape, Any] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The type it computes in."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device("cpu")

    def init_state(self, batch: int, height: int, width: int) -> State:
        """Return the state before the first frame of a video.

        Args:
            batch: number of videos.
            height, width: size of the frames, in pixels.

        Returns:
            Tensors on the network's device: ``{layer}.stream_buffer`` (batch, channels, frames,
            height, width) in the network's dtype; ``{layer}.pool_buffer`` and
            ``head.pool_buffer`` (batch, channels, 1, 1, 1), float32 or wider;
            ``frame_count`` (batch,) int64.

        Raises:
            StateError: the network is not causal, so it has no state.
        """
        return init_state(self.spec, batch, height, width, self.dtype, self.device)

    def state_shapes(self, height: int, width: int) -> dict[str, tuple[int, ...]]:
        """Return the shape, without the batch, of every state for frames of the given size."""
        return state_shapes(self.spec, height, width)

    def step(self, video: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        """Return logits of the video up to and with this clip, and the state after it.

        Pure: nothing is kept in the network, `state` is not changed. Gradients flow through the
        readable network. Each network takes the states of the others.

        Args:
            video: the next clip of the video, (batch, 3, frames, height, width).
            state: from `init_state`, or from the clip before.

        Returns:
            (batch, classes) logits; the state, as `init_state` describes it.

        Raises:
            StateError: the network is not causal, or the state is not one of this network for
                this batch and frame size.
        """
        if not self.spec.causal:
            self.init_state(1, 1, 1)  # raises, with the reason
        if not torch.compiler.is_compiling():
            check_state(self.spec, state, self.check(video), video.device)
        return self._step(video, state)

    def check(self, video: Tensor) -> VideoShape:
        """Return (batch, height, width) of a clip that this network can take.

        Raises:
            StateError: it cannot.
        """
        return check_video(video)

    def pieces(self, batch: int) -> Pieces:
        """Return the stages of a base network for pieces of clips, as `predict_clip` takes them.

        Args:
            batch: of the clips.

        Raises:
            MovinetPortError: it computes whole clips only.
        """
        raise MovinetPortError(
            "predict_clip: a compiled base network computes whole clips only; use "
            "movinet_port.optimize(model), whose level is 'eager'"
        )

    @contextlib.contextmanager
    def video(self) -> Iterator[None]:
        """Let the calls inside be one video: it starts anew, and is forgotten at the end.

        Example::

            with model.video():
                for clip in clips:
                    logits = model(clip)
        """
        self.clean_activation_buffers()
        try:
            yield
        finally:
            self.clean_activation_buffers()

    def clean_activation_buffers(self) -> None:
        """Forget the video so far. To be called after the last clip of a video."""
        self._stream = None

    def snapshot(self) -> Snapshot | None:
        """Return what is remembered of the video so far; None before its first clip."""
        if self._stream is None:
            return None
        shape, kept = self._stream
        return Snapshot(self._public(kept), shape)

    def restore(self, snapshot: Snapshot | None) -> None:
        """Go on with the video of a `snapshot`, of this network or of one of the same spec.

        Raises:
            StateError: the state is none of this network.
        """
        if snapshot is None:
            self._stream = None
            return
        check_state(self.spec, snapshot.state, snapshot.shape, self.device)
        self._stream = snapshot.shape, self._keep(snapshot.state)

    def _so_far(self, video: Tensor, shape: VideoShape) -> Any:
        """Return what to go on from with a clip, whose shape is that of its video.

        Raises:
            StateError: the clip is none of the video so far, or is refused.
        """
        if self.finite_only:
            check_finite(video)
        if self._stream is None:
            return self._keep(self.init_state(*shape))
        before, kept = self._stream
        if before != shape:
            raise StateError(
                f"the clip is (batch, height, width) = {shape}, but the video so far was "
                f"{before}; call clean_activation_buffers() before another video"
            )
        return kept

    def _step(self, video: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        raise NotImplementedError

    def _keep(self, state: Mapping[str, Tensor]) -> Any:
        return {name: value.detach() for name, value in state.items()}

    def _public(self, kept: Any) -> State:
        return dict(kept)

    def _move(self, kept: Any, fn: Callable[[Tensor], Tensor]) -> Any:
        return moved(kept, fn)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        # What .to(), .half(), .cuda() do to the parameters they do to the stream in flight too.
        super()._apply(fn, recurse)
        if self._stream is not None:
            shape, kept = self._stream
            self._stream = shape, self._move(kept, fn)
        return self
