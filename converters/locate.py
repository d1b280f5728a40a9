"""Which parameter of the network each variable of a source fills."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

from converters import dialects
from converters.containers.variables import SourceVariables, Variable
from converters.errors import ConversionError
from converters.layouts import torch_shape
from movinet_port.checkpoint import listing


@dataclasses.dataclass(frozen=True)
class Located:
    """The variables of a source, sorted out.

    Attributes:
        parameters: canonical parameter or buffer -> the variable that fills it.
        outside: variables that are no part of the network (optimizer, metrics, counters).
        dialect: how the source spells them.
    """

    parameters: Mapping[str, Variable]
    outside: tuple[Variable, ...]
    dialect: dialects.Dialect = dialects.OBJECT_PATH

    def shape(self, parameter: str) -> tuple[int, ...]:
        """Return a parameter's shape in PyTorch's layout.

        Raises:
            ConversionError: there is no such variable, or it has the rank of no kernel.
        """
        variable = self.parameters.get(parameter)
        if variable is None:
            raise ConversionError(
                f"variable for {parameter} is missing: the source is incomplete, or no MoViNet"
            )
        shape = torch_shape(self.dialect.layout, parameter, variable.shape)
        if shape is None:
            raise ConversionError(
                f"variable {variable} has shape {variable.shape}, which is no kernel of a "
                f"convolution; expected rank 4 or 5"
            )
        return shape

    def has_short_names(self) -> bool:
        """Whether layers are spelt as on the hub, ``b0/l0`` and not ``block0_layer0``.

        So are those of the first PyTorch port, whose weights are the hub's.
        """
        matches = (dialects.LAYER.search(v.full_name or v.path) for v in self.parameters.values())
        return any(match[1] is not None or match[5] is not None for match in matches if match)

    def has_later_names(self) -> bool:
        """Whether names are those of tf-models-official 2.8 and later: era 3."""
        return self.dialect is dialects.KERAS_3 or any(
            dialects.LATER_NAMES.search(v.full_name or v.path) for v in self.parameters.values()
        )


def locate_variables(source: SourceVariables) -> Located:
    """Find out which parameter of the network each variable fills.

    Raises:
        ConversionError: the source is no MoViNet; a variable is unknown; two variables claim one
            parameter; a layer's place in the network cannot be told; or there is no classifier.
    """
    variables = source.variables
    placed = [(variable, source.dialect.locate(variable.path)) for variable in variables]
    layers = _layers_of_owners(placed, source.layers)
    parameters: dict[str, Variable] = {}
    unplaced: list[Variable] = []
    for variable, place in placed:
        if place is None:
            unplaced.append(variable)
            continue
        module = place.module
        if module not in dialects.UNIQUE_MODULES:
            module = f"{layers[place.owner]}.{module}"
        parameter = f"{module}.{place.leaf}"
        if parameter in parameters:
            raise ConversionError(
                f"variables {parameters[parameter]} and {variable} both are {parameter}; "
                f"expected one"
            )
        parameters[parameter] = variable
    if not parameters:
        raise ConversionError(
            f"no MoViNet: none of its {len(variables)} variables is one of a MoViNet; found "
            f"{listing([str(v) for v in variables], 3) or 'nothing'}"
        )
    roots = _roots(parameters.values())
    outside = [v for v in unplaced if dialects.NOT_NETWORK.search(v.path) or _is_beside(v, roots)]
    unknown = [variable for variable in unplaced if variable not in outside]
    if unknown:
        raise ConversionError(
            f"{len(unknown)} of {len(variables)} variables are none of a MoViNet: "
            f"{listing([str(v) for v in unknown])}"
        )
    if not any(parameter.startswith("classifier.") for parameter in parameters):
        raise ConversionError(
            f"a backbone without a classifier: it has {len(parameters)} variables of a MoViNet, "
            f"none of them the classifier's; give the file that the whole model was saved to"
        )
    return Located(parameters, tuple(outside), source.dialect)


def _roots(variables: Iterable[Variable]) -> frozenset[str]:
    """Return the names under which a checkpoint's root holds the network, such as "model".

    It is empty if the root is the network itself.
    """
    roots = frozenset(variable.path.partition("/")[0] for variable in variables)
    return frozenset() if any(_PART_OF_MODEL.match(root) for root in roots) else roots


_PART_OF_MODEL = re.compile(r"layer_with_weights-\d+$|layer-\d+$|_|keras_api$")


def _is_beside(variable: Variable, roots: frozenset[str]) -> bool:
    """Whether a checkpoint keeps a variable beside the network, not in it."""
    root, slash, _ = variable.path.partition("/")
    return bool(roots) and root not in roots and (bool(slash) or "." not in root)


def _layers_of_owners(
    placed: Iterable[tuple[Variable, dialects.Place | None]], known: Mapping[str, str]
) -> dict[str, str]:
    """Return the canonical layer of each object that holds a bottleneck layer's variables."""
    said: dict[str, set[str]] = {}
    witnesses: dict[str, Variable] = {}
    for variable, place in placed:
        if place is not None and place.module not in dialects.UNIQUE_MODULES:
            layer = known.get(place.owner) or dialects.layer_of(variable.full_name or variable.path)
            said.setdefault(place.owner, set()).update([layer] if layer else [])
            witnesses.setdefault(place.owner, variable)
    for owner, layers in said.items():
        if len(layers) != 1:
            raise ConversionError(
                f"variable {witnesses[owner]}: its name and those next to it speak of "
                f"{', '.join(sorted(layers)) or 'no block and layer'}, expected one such as "
                f"b1/l0 or block1_layer0"
                f"{'' if witnesses[owner].full_name else '; give a TF2 checkpoint or SavedModel'}"
            )
    return {owner: next(iter(layers)) for owner, layers in said.items()}
