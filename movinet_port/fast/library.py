"""The compiled library, and the structures that its functions take.

`members.h` lists their members. The compiler makes C++'s structures of that list, this module makes
`ctypes`' of it, and a library whose members are not the same, in name, type and place, is not used.
"""

from __future__ import annotations

import ctypes
import functools
import re
import warnings
from collections.abc import Callable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_FOLDER = Path(__file__).parent
_FUNCTIONS = ("Stem", "Clip", "Layer", "Pixels", "MatrixVector", "Pool")
# For how many sizes a structure is kept.
_SIZES = 16


def source(name: str) -> str:
    """Return a C++ file of this folder, with those that it includes in their places."""
    text = (_FOLDER / name).read_text(encoding="utf-8")
    return re.sub('^#include "(.*)"$', lambda found: source(found[1]), text, flags=re.MULTILINE)


class Members:
    """What a list of members says.

    Args:
        text: as in `members.h`.

    Attributes:
        highest_kernel: the most rows, or columns, that a kernel may have.
        most_taps: the most frames that it may see.
        activations: their numbers.
        structures: by name, with those that others begin with.
        layout: where everything is, in the words of `layout` in `structures.h`.
    """

    def __init__(self, text: str) -> None:
        text = re.sub("//.*", "", text)
        constants = {name: int(value) for name, value in re.findall(r"#define (\w+) (\d+)", text)}
        self.highest_kernel, self.most_taps = constants["HIGHEST_KERNEL"], constants["MOST_TAPS"]
        frames = ctypes.c_void_p * (self.most_taps - 1)
        kinds = {
            **{"Number": ctypes.c_int64, "Real": ctypes.c_double},
            **{"Input": ctypes.c_void_p, "Output": ctypes.c_void_p},
            **{"Inputs": frames, "Outputs": frames},
        }
        (activations,) = re.findall(r"ACTIVATIONS\((.*)\)", text)
        self.activations = {name: n for n, name in enumerate(activations.split(", "))}
        self.structures: dict[str, Any] = {}
        said = [f"HIGHEST_KERNEL: {self.highest_kernel}", f"activations: {activations}"]
        blocks = re.findall(r"STRUCTURE\((\w+), (\w+)\)(.*?)END", text, re.DOTALL)
        for name, base, inside in blocks:
            members = [
                (member, kind.title()) for kind, member in re.findall(r"(\w+)\((\w+)\)", inside)
            ]
            fields = [(member, kinds[kind]) for member, kind in members]
            bases = (self.structures.get(base, ctypes.Structure),)
            # No slots: what is not listed cannot be set.
            made: Any = type(name, bases, {"__slots__": (), "_fields_": fields})
            self.structures[name] = made
            said.append(f"{name}: {ctypes.sizeof(made)} bytes")
            said += [f"{name}.{m}: {kind} at {getattr(made, m).offset}" for m, kind in members]
        self.layout = "; ".join(said)


MEMBERS = Members(source("members.h"))


class Library:
    """The compiled library for one kind of CPU.

    Args:
        path: of the file.

    Attributes:
        lanes: float32 numbers in a vector.
        functions: by the name of the structure that each takes.

    Raises:
        OSError: it cannot be loaded, or was compiled from another list of members.
    """

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        try:
            library.movinet_port_layout.restype = ctypes.c_char_p
            found = library.movinet_port_layout().decode()
        except AttributeError:
            found = "no members"
        if found != MEMBERS.layout:
            pairs = zip_longest(found.split("; "), MEMBERS.layout.split("; "), fillvalue="no more")
            here, expected = next(pair for pair in pairs if pair[0] != pair[1])
            raise OSError(
                f"{path} belongs to another version of movinet-port: it has {here!r} where "
                f"{expected!r} is expected; install movinet-port again"
            )
        self.lanes = int(library.movinet_port_lanes())
        self.functions: dict[str, Any] = {}
        for name in _FUNCTIONS:
            function = self.functions[name] = getattr(library, f"movinet_port_{name}")
            function.restype = None
            function.argtypes = [ctypes.POINTER(MEMBERS.structures[name])]


@functools.cache
def libraries() -> tuple[Library, ...]:
    """Return the libraries that this CPU can use, the one with the widest vectors first.

    One that is there and cannot be used is warned of.
    """
    kinds = ("AVX512", "AVX2")
    capability = torch.backends.cpu.get_cpu_capability()
    found = []
    for kind in kinds[kinds.index(capability) :] if capability in kinds else ():
        path = _FOLDER / f"_{kind.lower()}.so"
        try:
            if path.exists():
                found.append(Library(str(path)))
        except OSError as error:
            warnings.warn(f"{error}; until then networks are slower", RuntimeWarning, stacklevel=1)
    return tuple(found)


class Call:
    """A function of the library, and what it takes at every call.

    Args:
        library: the compiled library.
        structure: with what is the same for all sizes.
        tensors: whose addresses are the same for all sizes.
        fill: sets the numbers that depend on a size: (structure, *size).

    Attributes:
        compute: the function; it takes a structure.
    """

    def __init__(
        self,
        library: Library,
        structure: Any,
        tensors: Mapping[str, Tensor],
        fill: Callable[..., None],
    ) -> None:
        # Kept, because the C++ sees addresses only.
        self._tensors = tensors
        for name, tensor in tensors.items():
            setattr(structure, name, tensor.data_ptr())
        self._kind = type(structure)
        self._fill = fill
        self._any_size = bytes(structure)
        self._sizes: dict[tuple[int, ...], bytes] = {}
        self.compute = library.functions[self._kind.__name__]

    def structure(self, *size: int) -> Any:
        """Return a structure for a size, and for as many threads as PyTorch has now."""
        threads = torch.get_num_threads()
        key = (threads, *size)
        known = self._sizes.get(key)
        if known is None:
            if len(self._sizes) >= _SIZES:
                self._sizes.clear()
            new = self._kind.from_buffer_copy(self._any_size)
            new.threads = threads
            self._fill(new, *size)
            known = self._sizes[key] = bytes(new)
        return self._kind.from_buffer_copy(known)
