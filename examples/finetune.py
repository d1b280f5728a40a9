"""Fine-tune a converted MoViNet on your own videos: one subfolder for each class.

    python examples/finetune.py videos --weights a0_stream.pt --out run
    torchrun --nproc-per-node 4 examples/finetune.py videos --weights a0_stream.pt --out run

A run that was stopped goes on with the same command. `movinet-port finetune` has more options; this
file is the short form, to be changed.
"""

import argparse
from pathlib import Path

import torch

from movinet_port import load_checkpoint
from movinet_port.training import (
    Augmentation,
    Run,
    Schedule,
    Trainer,
    VideoClips,
    clip_for,
    find_splits,
    freeze,
    joined,
    start_from,
    write_results,
)

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("data", type=Path, help="classes as subfolders, or 'train' and 'val' of them")
parser.add_argument("--weights", type=Path, required=True, help="from movinet-port convert")
parser.add_argument("--out", type=Path, required=True, help="folder for the results")
parser.add_argument("--train", default="all", help="all, head, or a number of last blocks")
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--batch", type=int, default=8, help="videos per process")
parser.add_argument("--learning-rate", type=float, default=1e-3)
parser.add_argument("--dropout", type=float, default=0.2)
parser.add_argument("--stochastic-depth", type=float, default=0.2)
parser.add_argument("--frames", type=int, help="of a video; default: what the model is made for")
parser.add_argument("--size", type=int, help="in pixels; likewise")
parser.add_argument("--fps", type=float, help="frames per second; likewise")
parser.add_argument("--clip-frames", type=int, help="stream: videos come in clips of so many")
parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "float16"])
parser.add_argument("--workers", type=int, default=2, help="processes that read videos")
parser.add_argument("--device", help="cpu or cuda; default: a GPU if there is one")


def main() -> None:
    """Train, and write the results after each epoch."""
    options = parser.parse_args()
    source = load_checkpoint(options.weights)
    clip = clip_for(source, frames=options.frames, size=options.size, frames_per_second=options.fps)
    schedule = Schedule(
        epochs=options.epochs,
        batch=options.batch,
        learning_rate=options.learning_rate,
        clip_frames=options.clip_frames,
        precision=options.precision,
    )
    run = Run(options.data, options.out, options.weights, clip, schedule, train=options.train)

    classes, train, val = find_splits(options.data)
    torch.manual_seed(schedule.seed)
    model = start_from(source, classes)  # a new last layer, with the classes' names
    model.set_drop_rates(options.dropout, options.stochastic_depth)
    freeze(model, options.train)

    with joined(options.device) as process:
        trainer = Trainer(
            model,
            schedule,
            VideoClips(train, clip, Augmentation(), seed=schedule.seed),
            VideoClips(val, clip),
            process,
            workers=options.workers,
        )
        if (options.out / "state.pt").exists():
            trainer.load_state(options.out / "state.pt")
        for epoch in trainer.epochs():
            write_results(run, source, trainer)
            if process.is_first:
                print(
                    f"epoch {epoch.epoch:>3}  loss {epoch.train_loss:.4f}  "
                    f"validation: loss {epoch.val_loss:.4f}, accuracy {epoch.val_accuracy:.1%}"
                )


if __name__ == "__main__":
    main()
