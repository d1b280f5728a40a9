"""Fast inference: the readable network, folded.

`optimize` turns a MoViNet into a network with the same call signature and the same outputs within
rounding.
"""

from movinet_port.fast.network import FastMoViNet, InferenceNetwork
from movinet_port.fast.optimize import LEVELS, optimize

__all__ = ["LEVELS", "FastMoViNet", "InferenceNetwork", "optimize"]
