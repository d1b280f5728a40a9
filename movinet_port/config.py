"""Configuration nodes in the form ``MoViNet(_C.MODEL.MoViNetA0, 600, causal=True)``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from movinet_port.errors import nearest
from movinet_port.variants import list_models


class VariantNode:
    """Names one member of the family; what it looks like is in `movinet_port.variants`."""

    def __init__(self, variant: str) -> None:
        self.variant = variant

    def __repr__(self) -> str:
        return f"_C.MODEL.{node_name(self.variant)}"


class _ModelNodes(SimpleNamespace):
    def __getattr__(self, name: str) -> Any:
        known = [node_name(variant) for variant in list_models()]
        raise AttributeError(
            f"_C.MODEL has no {name!r}{nearest(name, known)}; it has {', '.join(known)}"
        )


def node_name(variant: str) -> str:
    """Return the node's name of a variant: "a0" is ``MoViNetA0``."""
    return f"MoViNet{variant.upper()}"


_C = SimpleNamespace(
    MODEL=_ModelNodes(**{node_name(variant): VariantNode(variant) for variant in list_models()})
)
