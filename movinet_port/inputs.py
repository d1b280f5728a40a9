"""What a network was made to see: how large, how many, how fast."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

from movinet_port.errors import CheckpointError, MovinetPortError
from movinet_port.transforms import ClipTransform

# Far above what any network is made for, and still within a computer's memory.
LARGEST_SIDE = 4096
MOST_PIXELS = 1 << 28  # of a clip: 3.2 GB
HIGHEST_RATE = 1000.0  # frames per second


def check_clip(frames: int, height: int, width: int, batch: int = 1) -> None:
    """Refuse a clip that no memory has room for.

    Raises:
        MovinetPortError: a side or the whole is too large.
    """
    if max(height, width) > LARGEST_SIDE or batch * frames * height * width > MOST_PIXELS:
        clips = f"{batch} clips" if batch > 1 else "a clip"
        raise MovinetPortError(
            f"{clips} of {frames} frames of {height} x {width} pixels: expected sides of at most "
            f"{LARGEST_SIDE} pixels, and {MOST_PIXELS} pixels in all; take fewer or smaller frames"
        )


@dataclasses.dataclass(frozen=True)
class InputFormat:
    """The clips that a network was trained or evaluated on.

    Attributes:
        size: height and width in pixels.
        resize: what the shorter side of a frame is scaled to before the centre is cut out.
        frames_per_second: of the clip.
        frames: of the clip.

    Raises:
        MovinetPortError: no memory has room for such a clip, or no camera is so fast.
    """

    size: int
    resize: int
    frames_per_second: float
    frames: int

    def __post_init__(self) -> None:
        check_clip(self.frames, self.size, self.size)
        check_clip(1, self.resize, self.resize)
        # A NaN is not above 0.
        if not 0 < self.frames_per_second <= HIGHEST_RATE:
            raise MovinetPortError(
                f"{self.frames_per_second:g} frames per second: expected a rate above 0, and at "
                f"most {HIGHEST_RATE:g}"
            )

    @property
    def seconds(self) -> float:
        """How long a clip lasts."""
        return self.frames / self.frames_per_second

    def transform(self) -> ClipTransform:
        """Return what makes a clip of frames."""
        return ClipTransform(self.size, self.resize)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> InputFormat:
        """Build one from what `to_dict` returned.

        Raises:
            CheckpointError: a field is missing, unknown or no number above 0.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        wrong = [name for name in data if name not in names]
        for name in names:
            value = data.get(name)
            kinds = (int, float) if name == "frames_per_second" else int
            if isinstance(value, bool) or not isinstance(value, kinds) or not value > 0:
                wrong.append(name)
        if wrong:
            raise CheckpointError(
                f"the input's {', '.join(map(str, wrong))} is missing, unknown or no number above "
                f"0; expected {', '.join(names)}"
            )
        try:
            return cls(**data)
        except MovinetPortError as error:
            raise CheckpointError(f"the input: {error}") from error


def published_input(name: str) -> InputFormat | None:
    """Return what the published networks of a name ("a0") are evaluated on; None for others."""
    import weights

    with contextlib.suppress(weights.UnknownModelError):
        model = weights.find_model(name, "base")
        return InputFormat(model.resolution, model.resize, model.frames_per_second, model.frames)
    return None
