"""The examples at the end of each command's help."""

from __future__ import annotations

import click

EXAMPLES: dict[str, tuple[str, ...]] = {
    "convert": (
        "movinet-port convert --model a0 --mode stream -o a0_stream.pt",
        "movinet-port convert --hub-url my_saved_model/ --labels classes.txt -o mine.pt",
        "movinet-port convert --all --out converted",
    ),
    "inspect": (
        "movinet-port inspect my_saved_model/",
        "movinet-port inspect before.tar.gz after.tar.gz",
    ),
    "list": ("movinet-port list", "movinet-port list --files"),
    "parity": (
        "movinet-port parity --hub-url SOURCE --weights a0_stream.pt --report parity.html",
        "movinet-port parity --hub-url SOURCE --input video.npy --size 181x227",
    ),
    "predict": (
        "movinet-port predict --weights a0_base.pt --labels kinetics-600 video.mp4",
        "movinet-port predict --weights a0_stream.pt --stream webcam",
        "movinet-port predict --weights a0_base.pt --json videos/ > results.jsonl",
    ),
    "finetune": (
        "movinet-port finetune videos --weights a0_base.pt -o run",
        "movinet-port finetune videos --weights a0_stream.pt --clip-frames 8 -o run",
        "movinet-port finetune videos --weights a2_base.pt --train head -o run --resume",
        "torchrun --no-python --nproc-per-node 4 movinet-port finetune videos --weights a0_base.pt "
        "-o run",
    ),
    "export": (
        "movinet-port export --weights a0_stream.pt --to onnx -o a0_stream.onnx",
        "movinet-port export --weights run/best.pt --to tf-checkpoint -o checkpoint/mine",
    ),
    "compile": ("movinet-port compile --weights a0_stream.pt --size 172 -o a0_stream.pt2",),
    "demo": ("movinet-port demo --out demo",),
    "completion": (
        'eval "$(movinet-port completion bash)"  # in ~/.bashrc',
        'eval "$(movinet-port completion zsh)"   # in ~/.zshrc',
        "movinet-port completion fish > ~/.config/fish/completions/movinet-port.fish",
    ),
}


def add_examples(group: click.Group) -> None:
    """Put each command's examples below its help."""
    for name, command in group.commands.items():
        if name in EXAMPLES:
            lines = "\n".join(f"  {example}" for example in EXAMPLES[name])
            command.epilog = f"\b\nExamples:\n{lines}"
