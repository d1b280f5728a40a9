"""What Keras 3's format, which tf-keras writes too, says beside its variables, or leaves unsaid.

It numbers the network's layers from 0 and does not say where a block begins: that follows from the
model's configuration, or else from the widths.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from converters.containers.variables import Variable
from converters.dialects import KERAS_3
from movinet_port.spec import layer_name
from movinet_port.variants import get_spec, list_models

_BLOCK = re.compile(r"(?:^|/)movinet_block(?:_(\d+))?$")
_STATE = re.compile(r"^state_block(\d+)_layer(\d+)_")

# Keras's names of activations -> a `ModelSpec`'s.
_ACTIVATIONS = {
    "swish": "swish",
    "silu": "swish",
    "simple_swish": "swish",
    "hard_swish": "hard_swish",
    "relu": "relu",
    "relu6": "relu6",
}
# Field of `ModelSpec` -> its type, and where the configuration of the authors' classifier has it.
_FIELDS: dict[str, tuple[type, tuple[str, ...]]] = {
    "causal": (bool, ("backbone", "config", "causal")),
    "activation": (str, ("backbone", "config", "activation")),
    "classifier_activation": (str, ("activation",)),
    "norm_epsilon": (float, ("backbone", "config", "norm_epsilon")),
}


def stated_by_config(config: Any) -> dict[str, tuple[Any, str]]:
    """Return what a model's configuration says: field of `ModelSpec` -> (value, where)."""
    stated: dict[str, tuple[Any, str]] = {}
    for field, (kind, keys) in _FIELDS.items():
        value = _look_up(config, ("config", *keys))
        if isinstance(value, kind):
            value = _ACTIVATIONS.get(value) if isinstance(value, str) else value
            if value is not None:
                stated[field] = (value, f"the model's configuration, {'.'.join(keys)}")
    return stated


def _look_up(config: Any, keys: Iterable[str]) -> Any:
    for key in keys:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def layers_of_blocks(variables: Iterable[Variable], config: Any) -> dict[str, str]:
    """Return the bottleneck layer of what each variable's path starts with.

    It is empty if nothing tells where a block begins.
    """
    owners = _Owners(variables)
    count = len(owners.paths)
    for layers in (
        _layers_of_states(config),
        _layers_of_family(_look_up(config, ("config", "backbone", "config", "model_id"))),
        *(
            _layers_of_family(name)
            for name in list_models()
            if owners.widths == [(x.expand_filters, x.out_filters) for x in get_spec(name).layers()]
        ),
        owners.layers_by_skips(),
    ):
        if layers and len(layers) == count:
            return dict(zip(owners.paths, layers, strict=True))
    return {}


class _Owners:
    """The bottleneck layers of a file, in the network's order."""

    def __init__(self, variables: Iterable[Variable]) -> None:
        self._shapes: dict[str, dict[str, tuple[int, ...]]] = {}
        for variable in variables:
            place = KERAS_3.locate(variable.path)
            if place is not None and _BLOCK.search(place.owner):
                shapes = self._shapes.setdefault(place.owner, {})
                shapes[f"{place.module}.{place.leaf}"] = variable.shape
        self.paths = sorted(self._shapes, key=_number)

    @property
    def widths(self) -> list[tuple[int, int]]:
        """(width of the expansion, width put out) of each layer; 0 where a kernel is missing."""
        return [
            (
                self._width(path, "expansion.conv.weight"),
                self._width(path, "projection.conv.weight"),
            )
            for path in self.paths
        ]

    def layers_by_skips(self) -> list[str]:
        """Return the layers' names if each of the family's five blocks begins with a projection."""
        layers: list[str] = []
        block, layer = -1, 0
        for path in self.paths:
            starts = any(name.startswith("skip.") for name in self._shapes[path])
            block, layer = (block + 1, 0) if starts else (block, layer + 1)
            layers.append(layer_name(max(block, 0), layer))
        return layers if block + 1 == len(get_spec("a0").blocks) else []

    def _width(self, path: str, parameter: str) -> int:
        shape = self._shapes[path].get(parameter)
        return shape[-1] if shape else 0


def _number(path: str) -> int:
    match = _BLOCK.search(path)
    assert match is not None
    return int(match[1] or 0)


def _layers_of_states(config: Any) -> list[str]:
    """Return the layers that a stream model's inputs name."""
    inputs = _look_up(config, ("build_config", "input_shape"))
    matches = map(_STATE.match, inputs if isinstance(inputs, Mapping) else ())
    numbers = sorted({(int(match[1]), int(match[2])) for match in matches if match})
    return [layer_name(block, layer) for block, layer in numbers]


def _layers_of_family(name: Any) -> list[str]:
    return [layer.name for layer in get_spec(name).layers()] if name in list_models() else []
