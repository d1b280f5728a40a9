"""Fine-tuning a MoViNet on a folder of videos. Reading videos needs PyAV (the extra ``video``)."""

from movinet_port.training.data import (
    Augmentation,
    Batches,
    DataError,
    Video,
    VideoClips,
    find_splits,
    find_videos,
)
from movinet_port.training.distributed import Process, SyncBatchNorm3d, joined, synchronise_norms
from movinet_port.training.freeze import freeze, set_training_mode
from movinet_port.training.run import (
    Run,
    clip_for,
    finetune,
    start_from,
    trained_checkpoint,
    write_results,
)
from movinet_port.training.trainer import Epoch, ResumeError, Schedule, Trainer, write_log

__all__ = [
    "Augmentation",
    "Batches",
    "DataError",
    "Epoch",
    "Process",
    "ResumeError",
    "Run",
    "Schedule",
    "SyncBatchNorm3d",
    "Trainer",
    "Video",
    "VideoClips",
    "clip_for",
    "find_splits",
    "find_videos",
    "finetune",
    "freeze",
    "joined",
    "set_training_mode",
    "start_from",
    "synchronise_norms",
    "trained_checkpoint",
    "write_log",
    "write_results",
]
