"""The MoViNet family: the widths, depths and kernels of a0 to a5 and t0, as data.

Source of the numbers: the reference's block table (tf-models-official 2.20.0,
``official.projects.movinet.modeling.movinet.BLOCK_SPECS``).
"""

from __future__ import annotations

import fnmatch
from typing import Any, NamedTuple

from movinet_port.errors import SpecError, nearest
from movinet_port.spec import BlockSpec, HeadSpec, ModelSpec, StemSpec

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


class _Member(NamedTuple):
    stem: int
    # Of each block the output width, then its layers: "184:53" expands to 184 channels and has a
    # kernel of 5 frames by 3 x 3 pixels.
    blocks: tuple[tuple[int, str], ...]
    project: int
    hidden: int


_FAMILY = {
    "a0": _Member(
        stem=8,
        blocks=(
            (8, "24:15"),
            (32, "80:33 80:33 80:33"),
            (56, "184:53 112:33 184:33"),
            (56, "184:53 184:33 184:33 184:33"),
            (104, "384:53 280:15 280:15 344:15"),
        ),
        project=480,
        hidden=2048,
    ),
    "a1": _Member(
        stem=16,
        blocks=(
            (16, "40:15 40:33"),
            (40, "96:33 120:33 96:33 96:33"),
            (64, "216:53 128:33 216:33 168:33 216:33"),
            (64, "216:53 216:33 216:33 128:33 128:15 216:33"),
            (136, "456:53 360:15 360:15 360:15 456:15 456:33 544:13"),
        ),
        project=600,
        hidden=2048,
    ),
    "a2": _Member(
        stem=16,
        blocks=(
            (16, "40:15 40:33 64:33"),
            (40, "96:33 120:33 96:33 96:33 120:33"),
            (72, "240:53 160:33 240:33 192:33 240:33"),
            (72, "240:53 240:33 240:33 240:33 144:15 240:33"),
            (144, "480:53 384:15 384:15 480:15 480:15 480:33 576:13"),
        ),
        project=640,
        hidden=2048,
    ),
    "a3": _Member(
        stem=16,
        blocks=(
            (16, "40:15 40:33 64:33 40:33"),
            (48, "112:33 144:33 112:33 112:15 144:33 144:33"),
            (80, "240:53 152:33 240:33 192:33 240:33"),
            (88, "264:53 264:33 264:33 264:33 160:15 264:33 264:33 264:33"),
            (168, "560:53 448:15 448:15 560:15 560:15 560:33 448:15 448:15 560:33 672:13"),
        ),
        project=744,
        hidden=2048,
    ),
    "a4": _Member(
        stem=24,
        blocks=(
            (24, "64:15 64:33 96:33 64:33 96:33 64:33"),
            (56, "168:33 168:33 136:33 136:33 168:33 168:33 168:33 136:15 136:33"),
            (96, "320:53 160:33 320:33 192:33 320:33 160:33 320:33 256:33 320:33"),
            (96, "320:53 320:33 320:33 320:33 192:15 320:33 320:33 192:33 320:33 320:33"),
            (
                192,
                "640:53 512:15 512:15 640:15 640:15 640:33 512:15 512:15 640:15 768:15 640:15 "
                "640:33 768:33",
            ),
        ),
        project=856,
        hidden=2048,
    ),
    "a5": _Member(
        stem=24,
        blocks=(
            (24, "64:15 64:15 96:33 64:33 96:33 64:33"),
            (64, "192:53 152:33 152:33 152:33 192:33 192:33 192:33 152:33 152:33 192:33 192:33"),
            (
                112,
                "376:53 224:33 376:33 376:33 296:33 376:33 224:33 376:33 376:33 296:33 376:33 "
                "376:33 376:33",
            ),
            (120, "376:53 376:33 376:33 376:33 224:15 376:33 376:33 224:33 376:33 376:33 376:33"),
            (
                224,
                "744:53 744:33 600:15 600:15 744:15 744:15 744:33 896:15 600:15 600:15 896:15 "
                "744:15 744:33 896:15 600:15 600:15 744:15 744:33",
            ),
        ),
        project=992,
        hidden=2048,
    ),
    "t0": _Member(
        stem=8,
        blocks=(
            (8, "16:15"),
            (32, "72:33 72:15"),
            (56, "112:53 112:15 112:33"),
            (56, "184:53 184:15 184:33 184:33"),
            (104, "344:53 344:15 344:15 344:33"),
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
    member = _FAMILY[name]
    spec = ModelSpec(
        name=name,
        stem=StemSpec(filters=member.stem),
        blocks=tuple(
            _block(width, layers, downsamples=index in DOWNSAMPLING_BLOCKS)
            for index, (width, layers) in enumerate(member.blocks)
        ),
        head=HeadSpec(project_filters=member.project, head_filters=member.hidden),
        num_classes=num_classes,
        **PUBLISHED[mode],
    )
    if mode == "stream" and name in POSITIONAL_ENCODING:
        overrides = {"positional_encoding": True, **overrides}
    return spec.replace(**overrides)


def _block(width: int, layers: str, downsamples: bool) -> BlockSpec:
    """Return a block of a row of the table."""
    widths, kernels = zip(*(layer.split(":") for layer in layers.split()), strict=True)
    first = (1, 2, 2) if downsamples else (1, 1, 1)
    return BlockSpec(
        base_filters=width,
        expand_filters=tuple(map(int, widths)),
        kernel_sizes=tuple((int(t), int(s), int(s)) for t, s in kernels),
        strides=(first, *[(1, 1, 1)] * (len(widths) - 1)),
    )


def family_name(spec: ModelSpec) -> str:
    """Return the family member with the widths, depths, kernels and strides of `spec`.

    Returns "custom" if there is none.
    """
    for name in _FAMILY:
        member = get_spec(name)
        if (member.stem, member.blocks, member.head) == (spec.stem, spec.blocks, spec.head):
            return name
    return "custom"
