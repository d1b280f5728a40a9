"""The MoViNet family: the widths, depths and kernels of a0 to a5 and t0, as data.

Source of the numbers: the reference's block table (tf-models-official 2.20.0,
``official.projects.movinet.modeling.movinet.BLOCK_SPECS``).
"""

from __future__ import annotations

import fnmatch
from typing import Any, NamedTuple

from movinet_port.errors import SpecError, nearest
from movinet_port.spec import BlockSpec, HeadSpec, ModelSpec, StemSpec, Triple

# K{t}{s} is a kernel of t frames by s x s pixels.
K13: Triple = (1, 3, 3)
K15: Triple = (1, 5, 5)
K33: Triple = (3, 3, 3)
K53: Triple = (5, 3, 3)

# The first layer of these blocks halves the resolution; nothing strides over time.
DOWNSAMPLING_BLOCKS = frozenset({0, 1, 2, 4})

# How the published models of each mode differ from one another, apart from widths and depths.
# The stream gate is the hub's (version 3); tf-models-official since 2.8 builds the other flavour.
PUBLISHED: dict[str, dict[str, Any]] = {
    "base": {},
    "stream": {
        "causal": True,
        "conv_type": "2plus1d",
        "se_type": "2plus3d",
        "activation": "hard_swish",
        "gate": "hard_sigmoid_keras",
    },
}

# The published stream models of these have positional encodings.
POSITIONAL_ENCODING = frozenset({"a3", "a4", "a5"})


class _Table(NamedTuple):
    stem: int
    # Per block: output width, then (expansion width, kernel) of each layer.
    blocks: tuple[tuple[int, tuple[tuple[int, Triple], ...]], ...]
    project: int
    hidden: int


_FAMILY: dict[str, _Table] = {
    "a0": _Table(
        stem=8,
        blocks=(
            (8, ((24, K15),)),
            (
                32,
                (
                    (80, K33),
                    (80, K33),
                    (80, K33),
                ),
            ),
            (
                56,
                (
                    (184, K53),
                    (112, K33),
                    (184, K33),
                ),
            ),
            (
                56,
                (
                    (184, K53),
                    (184, K33),
                    (184, K33),
                    (184, K33),
                ),
            ),
            (
                104,
                (
                    (384, K53),
                    (280, K15),
                    (280, K15),
                    (344, K15),
                ),
            ),
        ),
        project=480,
        hidden=2048,
    ),
    "a1": _Table(
        stem=16,
        blocks=(
            (
                16,
                (
                    (40, K15),
                    (40, K33),
                ),
            ),
            (
                40,
                (
                    (96, K33),
                    (120, K33),
                    (96, K33),
                    (96, K33),
                ),
            ),
            (
                64,
                (
                    (216, K53),
                    (128, K33),
                    (216, K33),
                    (168, K33),
                    (216, K33),
                ),
            ),
            (
                64,
                (
                    (216, K53),
                    (216, K33),
                    (216, K33),
                    (128, K33),
                    (128, K15),
                    (216, K33),
                ),
            ),
            (
                136,
                (
                    (456, K53),
                    (360, K15),
                    (360, K15),
                    (360, K15),
                    (456, K15),
                    (456, K33),
                    (544, K13),
                ),
            ),
        ),
        project=600,
        hidden=2048,
    ),
    "a2": _Table(
        stem=16,
        blocks=(
            (
                16,
                (
                    (40, K15),
                    (40, K33),
                    (64, K33),
                ),
            ),
            (
                40,
                (
                    (96, K33),
                    (120, K33),
                    (96, K33),
                    (96, K33),
                    (120, K33),
                ),
            ),
            (
                72,
                (
                    (240, K53),
                    (160, K33),
                    (240, K33),
                    (192, K33),
                    (240, K33),
                ),
            ),
            (
                72,
                (
                    (240, K53),
                    (240, K33),
                    (240, K33),
                    (240, K33),
                    (144, K15),
                    (240, K33),
                ),
            ),
            (
                144,
                (
                    (480, K53),
                    (384, K15),
                    (384, K15),
                    (480, K15),
                    (480, K15),
                    (480, K33),
                    (576, K13),
                ),
            ),
        ),
        project=640,
        hidden=2048,
    ),
    "a3": _Table(
        stem=16,
        blocks=(
            (
                16,
                (
                    (40, K15),
                    (40, K33),
                    (64, K33),
                    (40, K33),
                ),
            ),
            (
                48,
                (
                    (112, K33),
                    (144, K33),
                    (112, K33),
                    (112, K15),
                    (144, K33),
                    (144, K33),
                ),
            ),
            (
                80,
                (
                    (240, K53),
                    (152, K33),
                    (240, K33),
                    (192, K33),
                    (240, K33),
                ),
            ),
            (
                88,
                (
                    (264, K53),
                    (264, K33),
                    (264, K33),
                    (264, K33),
                    (160, K15),
                    (264, K33),
                    (264, K33),
                    (264, K33),
                ),
            ),
            (
                168,
                (
                    (560, K53),
                    (448, K15),
                    (448, K15),
                    (560, K15),
                    (560, K15),
                    (560, K33),
                    (448, K15),
                    (448, K15),
                    (560, K33),
                    (672, K13),
                ),
            ),
        ),
        project=744,
        hidden=2048,
    ),
    "a4": _Table(
        stem=24,
        blocks=(
            (
                24,
                (
                    (64, K15),
                    (64, K33),
                    (96, K33),
                    (64, K33),
                    (96, K33),
                    (64, K33),
                ),
            ),
            (
                56,
                (
                    (168, K33),
                    (168, K33),
                    (136, K33),
                    (136, K33),
                    (168, K33),
                    (168, K33),
                    (168, K33),
                    (136, K15),
                    (136, K33),
                ),
            ),
            (
                96,
                (
                    (320, K53),
                    (160, K33),
                    (320, K33),
                    (192, K33),
                    (320, K33),
                    (160, K33),
                    (320, K33),
                    (256, K33),
                    (320, K33),
                ),
            ),
            (
                96,
                (
                    (320, K53),
                    (320, K33),
                    (320, K33),
                    (320, K33),
                    (192, K15),
                    (320, K33),
                    (320, K33),
                    (192, K33),
                    (320, K33),
                    (320, K33),
                ),
            ),
            (
                192,
                (
                    (640, K53),
                    (512, K15),
                    (512, K15),
                    (640, K15),
                    (640, K15),
                    (640, K33),
                    (512, K15),
                    (512, K15),
                    (640, K15),
                    (768, K15),
                    (640, K15),
                    (640, K33),
                    (768, K33),
                ),
            ),
        ),
        project=856,
        hidden=2048,
    ),
    "a5": _Table(
        stem=24,
        blocks=(
            (
                24,
                (
                    (64, K15),
                    (64, K15),
                    (96, K33),
                    (64, K33),
                    (96, K33),
                    (64, K33),
                ),
            ),
            (
                64,
                (
                    (192, K53),
                    (152, K33),
                    (152, K33),
                    (152, K33),
                    (192, K33),
                    (192, K33),
                    (192, K33),
                    (152, K33),
                    (152, K33),
                    (192, K33),
                    (192, K33),
                ),
            ),
            (
                112,
                (
                    (376, K53),
                    (224, K33),
                    (376, K33),
                    (376, K33),
                    (296, K33),
                    (376, K33),
                    (224, K33),
                    (376, K33),
                    (376, K33),
                    (296, K33),
                    (376, K33),
                    (376, K33),
                    (376, K33),
                ),
            ),
            (
                120,
                (
                    (376, K53),
                    (376, K33),
                    (376, K33),
                    (376, K33),
                    (224, K15),
                    (376, K33),
                    (376, K33),
                    (224, K33),
                    (376, K33),
                    (376, K33),
                    (376, K33),
                ),
            ),
            (
                224,
                (
                    (744, K53),
                    (744, K33),
                    (600, K15),
                    (600, K15),
                    (744, K15),
                    (744, K15),
                    (744, K33),
                    (896, K15),
                    (600, K15),
                    (600, K15),
                    (896, K15),
                    (744, K15),
                    (744, K33),
                    (896, K15),
                    (600, K15),
                    (600, K15),
                    (744, K15),
                    (744, K33),
                ),
            ),
        ),
        project=992,
        hidden=2048,
    ),
    "t0": _Table(
        stem=8,
        blocks=(
            (8, ((16, K15),)),
            (
                32,
                (
                    (72, K33),
                    (72, K15),
                ),
            ),
            (
                56,
                (
                    (112, K53),
                    (112, K15),
                    (112, K33),
                ),
            ),
            (
                56,
                (
                    (184, K53),
                    (184, K15),
                    (184, K33),
                    (184, K33),
                ),
            ),
            (
                104,
                (
                    (344, K53),
                    (344, K15),
                    (344, K15),
                    (344, K33),
                ),
            ),
        ),
        project=240,
        hidden=1024,
    ),
}


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of the family's members that match a shell `pattern`, in order."""
    return [name for name in _FAMILY if fnmatch.fnmatch(name, pattern)]


def get_spec(name: str, mode: str = "base", num_classes: int = 600, **overrides: Any) -> ModelSpec:
    """Return the spec of a family member as published.

    Args:
        name: "a0" to "a5", or "t0".
        mode: "base" (3-D convolutions, sees the whole clip) or "stream" (causal (2+1)D).
        num_classes: number of logits; the published models have 600 (Kinetics-600).
        **overrides: any field of `ModelSpec`, such as ``gate="hard_sigmoid_relu6"``.

    Raises:
        SpecError: unknown name, mode or field, or values that make no MoViNet.
    """
    if name not in _FAMILY:
        raise SpecError(
            f"no MoViNet is called {name!r}{nearest(name, _FAMILY)}; "
            f"the family is {', '.join(_FAMILY)}"
        )
    if mode not in PUBLISHED:
        raise SpecError(
            f"mode is {mode!r}, expected 'base' or 'stream'{nearest(str(mode), PUBLISHED)}"
        )
    table = _FAMILY[name]
    spec = ModelSpec(
        name=name,
        stem=StemSpec(filters=table.stem),
        blocks=tuple(
            BlockSpec(
                base_filters=width,
                expand_filters=tuple(filters for filters, _ in layers),
                kernel_sizes=tuple(kernel for _, kernel in layers),
                strides=tuple(
                    (1, 2, 2) if index in DOWNSAMPLING_BLOCKS and first else (1, 1, 1)
                    for first in (True, *[False] * (len(layers) - 1))
                ),
            )
            for index, (width, layers) in enumerate(table.blocks)
        ),
        head=HeadSpec(project_filters=table.project, head_filters=table.hidden),
        num_classes=num_classes,
        **PUBLISHED[mode],
    )
    if mode == "stream" and name in POSITIONAL_ENCODING:
        overrides = {"positional_encoding": True, **overrides}
    return spec.replace(**overrides)


def family_name(spec: ModelSpec) -> str:
    """Return the family member with the widths, depths, kernels and strides of `spec`.

    Returns "custom" if there is none.
    """
    for name in _FAMILY:
        member = get_spec(name)
        if (member.stem, member.blocks, member.head) == (spec.stem, spec.blocks, spec.head):
            return name
    return "custom"
