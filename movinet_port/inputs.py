"""What a network was made to see: how large, how many, how fast."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

from movinet_port.errors import CheckpointError
from movinet_port.transforms import ClipTransform


@dataclasses.dataclass(frozen=True)
class InputFormat:
    """The clips that a network was trained or evaluated on.

    Attributes:
        size: height and width in pixels.
        resize: what the shorter side of a frame is scaled to before the centre is cut out.
        frames_per_second: of the clip.
        frames: of the clip.
    """

    size: int
    resize: int
    frames_per_second: float
    frames: int

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
        return cls(**data)


def published_input(name: str) -> InputFormat | None:
    """Return what the published networks of a name ("a0") are evaluated on; None for others."""
    import weights

    with contextlib.suppress(weights.UnknownModelError):
        model = weights.find_model(name, "base")
        return InputFormat(model.resolution, model.resize, model.frames_per_second, model.frames)
    return None
