"""The named activations of a MoViNet.

A tap is named by the path of the module whose output it is (``block1_layer0.expansion.norm``), so
there is one name on both sides. Besides modules there is `INPUT`, what the network is given.
"""

from __future__ import annotations

from torch import nn

from movinet_port.layers import Bottleneck, Classifier, SqueezeExcitation
from movinet_port.model import MoViNet

INPUT = "input"

# Modules with modules inside whose own output is a tap: residual sum, gated product, logits.
_COMPOSITE = (Bottleneck, SqueezeExcitation, Classifier)
# Modules that hand on their input in evaluation; TensorFlow's export has nothing in their place.
_PASSIVE = ("stochastic_depth", "dropout")


def model_taps(model: MoViNet) -> tuple[str, ...]:
    """Return the taps that the modules of a network have, in no particular order."""
    return (
        INPUT,
        *(
            name
            for name, module in model.named_modules()
            if name.rpartition(".")[2] not in _PASSIVE
            and (isinstance(module, _COMPOSITE) or not any(module.children()))
            and not isinstance(module, nn.Identity)
        ),
    )
