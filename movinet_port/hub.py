"""Networks on the Hugging Face hub, by huggingface_hub's mixin (the extra ``hub``).

A repository, or a folder, holds ``config.json`` (spec, labels, input, provenance) and
``model.safetensors``, which is also a checkpoint that `movinet_port.load` reads by itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from movinet_port.checkpoint import Checkpoint, load_checkpoint, save
from movinet_port.errors import CheckpointError, MovinetPortError
from movinet_port.files import whole_file
from movinet_port.inputs import InputFormat
from movinet_port.model import MoViNet
from movinet_port.spec import ModelSpec

try:
    from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
except ImportError as error:
    raise MovinetPortError(
        "movinet_port.hub needs huggingface_hub: pip install 'movinet-port[hub]'"
    ) from error

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class HubMoViNet(
    MoViNet,
    PyTorchModelHubMixin,
    library_name="movinet-port",
    tags=["movinet", "video-classification"],
    pipeline_tag="video-classification",
    license="apache-2.0",
    paper_url="https://arxiv.org/abs/2103.11511",
):
    """A `MoViNet` with ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``.

    Attributes:
        provenance: where the weights came from.
        input: the clips that the network was made for, if known.
    """

    provenance: dict[str, Any]
    input: InputFormat | None

    def __init__(self, spec: ModelSpec, **options: Any) -> None:
        super().__init__(spec, **options)
        self.provenance = {}
        self.input = None

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> HubMoViNet:
        """Return the network of a checkpoint, in eval mode.

        Raises:
            CheckpointError: the weights do not fit the spec.
        """
        model = cls(checkpoint.spec)
        model.load_state_dict(checkpoint.build().state_dict())
        model.labels = checkpoint.labels
        model.provenance = dict(checkpoint.provenance)
        model.input = checkpoint.input
        return model.eval()

    def to_checkpoint(self) -> Checkpoint:
        """Return the network as a checkpoint."""
        state_dict = {name: value.detach().cpu() for name, value in self.state_dict().items()}
        return Checkpoint(self.spec, state_dict, self.provenance, self.labels, self.input)

    def _save_pretrained(self, save_directory: Path) -> None:
        checkpoint = self.to_checkpoint()
        save(checkpoint, save_directory / WEIGHTS)
        config = {
            "spec": checkpoint.spec.to_dict(),
            "labels": None if checkpoint.labels is None else list(checkpoint.labels),
            "input": None if checkpoint.input is None else checkpoint.input.to_dict(),
            "provenance": dict(checkpoint.provenance),
        }
        with whole_file(save_directory / CONFIG) as temporary:
            temporary.write_text(json.dumps(config, indent=2), "utf-8")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **options: Any
    ) -> HubMoViNet:
        """Return the network of a folder or of a repository on the hub, in eval mode.

        Args:
            pretrained_model_name_or_path: a folder that ``save_pretrained`` wrote, or the name of
                a repository such as ``user/movinet-a0``.
            **options: ``revision``, ``token``, ``cache_dir``, ``force_download`` and
                ``local_files_only``, as `huggingface_hub.hf_hub_download` takes them.

        Raises:
            CheckpointError: there is none, or it is no network of movinet-port.
        """
        source = str(pretrained_model_name_or_path)
        if Path(source).is_dir():
            path = Path(source) / WEIGHTS
        else:
            try:
                path = Path(hf_hub_download(source, WEIGHTS, **options))
            except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise CheckpointError(
                    f"cannot read {source}: neither a folder nor a repository of the hub with "
                    f"{WEIGHTS}: {reason}"
                ) from error
        return cls.from_checkpoint(load_checkpoint(path))
