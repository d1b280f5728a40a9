"""What goes wrong when a network is ported, as data: each fault, and what should be said of it.

Tables of edits (to a tensor, to a module's forward, to the video) are laid over every place of a
network where they apply. A fault names the taps where it should be found and the causes that are
true of it: several where one thing has two names, ``unknown`` alone where the network computes
what no cause describes.
"""

from benchmarks.faults.fault import SHAPE, Around, Fault, at, patch
from benchmarks.faults.places import porting_faults
from benchmarks.faults.right import right_networks

__all__ = ["SHAPE", "Around", "Fault", "at", "patch", "porting_faults", "right_networks"]
