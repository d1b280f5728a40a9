"""Entry points for torch.hub: movinet_a0_base, movinet_a0_stream, ..., movinet_a5_stream.

torch.hub.load(repository, "movinet_a0_stream", weights="a0_stream.pt")
"""

from functools import partial as _partial

import weights as _weights
from movinet_port import pretrained as _pretrained  # noqa: F401  # torch.hub's path is gone later
from movinet_port.loading import create_model as _create_model

dependencies = ["torch", "numpy"]


def _entry(name, mode, weights=False, num_classes=None, **options):
    return _create_model(name, mode, num_classes, pretrained=weights or False, **options)


for _model in _weights.models():
    _function = _partial(_entry, _model.name, _model.mode)
    _function.__doc__ = f"""MoViNet {_model.name} {_model.mode}.

    Args:
        weights: a file that ``movinet-port convert --model {_model.name} --mode {_model.mode}``
            wrote; True for the one in the cache folder; None for random weights.
        num_classes: number of logits, by default 600 or what the file has.
        **options: as `movinet_port.create_model` takes them.
    """
    globals()[f"movinet_{_model.name}_{_model.mode}"] = _function
