"""Which parameter of the network each variable of a source fills."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence

from converters import dialects
from converters.containers.variables import SourceVariables, Variable
from converters.errors import ConversionError
from converters.layouts import torch_shape
from movinet_port.checkpoint import listing
from movinet_port.spec import layer_name


@dataclasses.dataclass(frozen=True)
class Located:
    """The variables of a source, sorted out.

    Attributes:
        parameters: canonical parameter or buffer -> the variable that fills it.
        outside: variables that are no part of the network (optimizer, metrics, counters).
        dialect: how the source spells them.
        removed: layers that are not there between others of their block, and were taken out on
            purpose: the first port's files are whole or unreadable.
        averages: what the names of averaged weights start with, if there are any that nothing
            asked for; else empty.
    """

    parameters: Mapping[str, Variable]
    outside: tuple[Variable, ...]
    dialect: dialects.Dialect = dialects.OBJECT_PATH
    averages: str = ""
    removed: tuple[str, ...] = ()

    def stated(self) -> dialects.Stated:
        """Return what the shapes state of the code that wrote them."""
        return self.dialect.tells({p: (v.shape, v.path) for p, v in self.parameters.items()})

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


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which of a file's variables are wanted.

    Attributes:
        root: what the names of the network's variables start with, in a file of several networks.
        averages: take the moving averages of the weights that training kept, where there are any.
        ignore: names of variables to leave out; ``*`` stands for anything.
    """

    root: str | None = None
    averages: bool = False
    ignore: tuple[str, ...] = ()


# The moving average of a variable that tf-models-official's optimizer keeps.
_AVERAGE_SLOT = re.compile(r"/\.OPTIMIZER_SLOT/.*/average$")

Placed = tuple[Variable, dialects.Place]


def locate_variables(source: SourceVariables, selection: Selection | None = None) -> Located:
    """Find out which parameter of the network each variable fills.

    Raises:
        ConversionError: the source is no MoViNet; a variable is unknown; two variables claim one
            parameter; a layer's place in the network cannot be told; or there is no classifier.
    """
    selection = selection or Selection()
    variables: list[Variable] = []
    outside: list[Variable] = []
    for variable in source.variables:
        (variables if _selected(variable, source, selection) else outside).append(variable)
    places = [(variable, _place(variable, source.dialect)) for variable in variables]
    placed = [(variable, place) for variable, place in places if place is not None]
    unplaced = [variable for variable, place in places if place is None]
    if not placed:
        raise ConversionError(
            f"no MoViNet: none of its {len(variables)} variables is one of a MoViNet; found "
            f"{listing([str(v) for v in variables], 3) or 'nothing'}"
        )
    networks = _networks(placed, source.dialect)
    averaged = [root for root in networks if dialects.AVERAGED.search(root)]
    plain = [root for root in networks if root not in averaged]
    slots = [v for v in unplaced if _AVERAGE_SLOT.search(v.path)]
    if selection.averages and not averaged and not slots:
        raise ConversionError("it has no averaged weights; leave --ema out")
    parameters = _parameters(
        source, [item for root in plain or averaged for item in networks[root]]
    )
    if selection.averages:
        parameters |= _parameters(source, [item for root in averaged for item in networks[root]])
        by_path = {_AVERAGE_SLOT.sub("", slot.path): slot for slot in slots}
        parameters = {name: by_path.get(v.path, v) for name, v in parameters.items()}
    used = {id(variable) for variable in parameters.values()}
    others = [root for root in averaged if plain]
    outside += [v for v, _ in placed if id(v) not in used]
    unknown: list[Variable] = []
    for variable in (v for v in unplaced if id(v) not in used):
        beside = variable.path.startswith(tuple(f"{r}{source.dialect.separator}" for r in others))
        known = beside or dialects.NOT_NETWORK.search(variable.path) or _is_counter(variable)
        (outside if known else unknown).append(variable)
    if unknown:
        raise ConversionError(
            f"{len(unknown)} of {len(variables)} variables are none of a MoViNet: "
            f"{listing([str(v) for v in unknown])}; --ignore PATTERN leaves out what is no part of "
            f"the network"
        )
    if not any(parameter.startswith("classifier.") for parameter in parameters):
        raise ConversionError(
            f"a backbone without a classifier: it has {len(parameters)} variables of a MoViNet, "
            f"none of them the classifier's; give the file that the whole model was saved to"
        )
    removed: list[str] = []
    if source.dialect is dialects.FIRST_PORT:
        parameters, removed = _closed_up(parameters)
    unused = "" if selection.averages else ", ".join(others or [v.path for v in slots[:1]])
    return Located(parameters, tuple(outside), source.dialect, unused, tuple(removed))


def _closed_up(parameters: Mapping[str, Variable]) -> tuple[dict[str, Variable], list[str]]:
    """Number the layers of each block without gaps; return which layers were missing, too.

    Who shortens a network puts ``Identity`` in the place of a layer, which leaves no variable. The
    first layer of a block is no such one: it strides, or changes the width.
    """
    blocks: dict[int, set[int]] = {}
    for name in parameters:
        if match := _LAYER.match(name):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    renamed: dict[str, str] = {}
    removed: list[str] = []
    for block, present in blocks.items():
        removed += [layer_name(block, n) for n in range(1, max(present)) if n not in present]
        numbers = sorted(present) if 0 in present else []
        renamed |= {layer_name(block, n): layer_name(block, i) for i, n in enumerate(numbers)}
    closed = {}
    for name, variable in parameters.items():
        layer, dot, rest = name.partition(".")
        closed[f"{renamed.get(layer, layer)}{dot}{rest}"] = variable
    return closed, removed


_LAYER = re.compile(r"block(\d+)_layer(\d+)\.")


def _selected(variable: Variable, source: SourceVariables, selection: Selection) -> bool:
    names = [name for name in (variable.path, variable.full_name) if name]
    if any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in selection.ignore):
        return False
    start = f"{selection.root}{source.dialect.separator}"
    return selection.root is None or any(name.startswith(start) for name in names)


def _place(variable: Variable, dialect: dialects.Dialect) -> dialects.Place | None:
    """Return where a variable goes by its path or, where that says nothing, by its full name."""
    if dialects.NOT_NETWORK.search(variable.path):
        return None
    return dialect.locate(variable.path) or dialects.FULL_NAME.locate(variable.full_name)


def _is_counter(variable: Variable) -> bool:
    """Whether a variable is a single whole number or truth value: no weight is."""
    return variable.shape == () and not variable.dtype.startswith(("float", "bfloat"))


def _networks(placed: Iterable[Placed], dialect: dialects.Dialect) -> dict[str, list[Placed]]:
    """Return the variables of each network of a file: what its names start with -> variables."""
    networks: dict[str, list[Placed]] = {}
    for variable, place in placed:
        root = "" if dialect.inside is None else dialect.inside.sub("", place.owner)
        networks.setdefault(root, []).append((variable, place))
    return networks


def _joined(networks: Mapping[str, list[Placed]], roots: Iterable[str]) -> list[Placed]:
    return [item for root in roots for item in networks[root]]


def _parameters(source: SourceVariables, placed: Sequence[Placed]) -> dict[str, Variable]:
    """Return canonical parameter -> the variable that fills it."""
    layers = _layers_of_owners(placed, source.layers)
    parameters: dict[str, Variable] = {}
    for variable, place in placed:
        module = place.module
        if module not in dialects.UNIQUE_MODULES:
            module = f"{layers[place.owner]}.{module}"
        parameter = f"{module}.{place.leaf}"
        if parameter in parameters:
            raise ConversionError(
                f"variables {parameters[parameter]} and {variable} both are {parameter}; "
                f"expected one: --root NAME takes the variables whose names start with it, "
                f"in a file of several networks"
            )
        parameters[parameter] = variable
    return parameters


def _layers_of_owners(placed: Iterable[Placed], known: Mapping[str, str]) -> dict[str, str]:
    """Return the canonical layer of each object that holds a bottleneck layer's variables."""
    said: dict[str, set[str]] = {}
    witnesses: dict[str, Variable] = {}
    for variable, place in placed:
        if place.module not in dialects.UNIQUE_MODULES:
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
