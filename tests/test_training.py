"""Training is real: what drops, what is averaged, where gradients go, and that the loss falls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from movinet_port import MoViNet, create_model
from movinet_port.config import _C
from movinet_port.layers import StochasticDepth

pytestmark = pytest.mark.usefixtures("one_thread")

CLIPS, FRAMES = 5, 8


# Dropout, stochastic depth and batch statistics -----------------------------------------------


def test_stochastic_depth_drops_whole_clips_and_scales_the_rest() -> None:
    torch.manual_seed(0)
    layer = StochasticDepth(0.25).train()
    out = layer(torch.ones(4000, 2, 3, 1, 1))
    per_clip = out.flatten(1)
    assert (per_clip == per_clip[:, :1]).all()
    kept = per_clip[:, 0] != 0
    assert 0.72 < kept.double().mean() < 0.78
    torch.testing.assert_close(per_clip[kept], torch.full_like(per_clip[kept], 1 / 0.75))


@pytest.mark.parametrize(("rate", "training"), [(0.25, False), (0.0, True)])
def test_stochastic_depth_is_the_identity_in_evaluation_and_at_rate_0(
    rate: float, training: bool
) -> None:
    x = torch.randn(8, 2, 3, 4, 4)
    assert torch.equal(StochasticDepth(rate).train(training)(x), x)


def test_stochastic_depth_at_rate_1_drops_every_clip() -> None:
    assert torch.equal(StochasticDepth(1.0)(torch.ones(4, 1, 1, 1, 1)), torch.zeros(4, 1, 1, 1, 1))


def test_stochastic_depth_grows_linearly_with_depth() -> None:
    with torch.device("meta"):
        model = create_model("a0", stochastic_depth=0.3)
    rates = [m.drop_rate for m in model.modules() if isinstance(m, StochasticDepth)]
    assert rates == pytest.approx([0.3 * number / 15 for number in range(1, 16)])


def test_dropout_is_in_front_of_the_last_layer(tiny_spec: Any, video: Any) -> None:
    torch.manual_seed(0)
    model = MoViNet(tiny_spec(), dropout=0.5)
    seen: list[Tensor] = []
    model.classifier.output.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    hidden: list[Tensor] = []
    model.classifier.hidden.register_forward_hook(lambda *args: hidden.append(args[2]))
    model(video(256, 1, 8, 8, dtype=torch.float32))
    dropped = seen[0].eq(0)
    assert 0.45 < dropped.double().mean() < 0.55
    torch.testing.assert_close(seen[0][~dropped], 2 * hidden[0][~dropped])


@pytest.mark.parametrize("mode", ["base", "stream"])
@pytest.mark.parametrize("rates", [{"dropout": 0.5}, {"stochastic_depth": 0.9}])
def test_dropout_and_stochastic_depth_act_in_training_only(
    mini_spec: Any, randomised: Any, video: Any, rates: dict[str, float], mode: str
) -> None:
    off = {"dropout": 0.0, "stochastic_depth": 0.0}
    model = randomised(MoViNet(mini_spec(mode), **{**off, **rates}))
    plain = randomised(MoViNet(mini_spec(mode), **off))
    clip = video(4, 2, dtype=torch.float32)

    def logits(network: MoViNet, training: bool) -> Tensor:
        network.train(training).clean_activation_buffers()
        with torch.no_grad():
            return network(clip)

    assert torch.equal(logits(model, False), logits(plain, False))
    assert torch.equal(logits(model, False), logits(model, False))
    torch.manual_seed(0)
    one, two = logits(model, True), logits(model, True)
    assert one.ne(two).any()
    assert torch.equal(logits(plain, True), logits(plain, True))


def test_running_statistics_move_by_one_hundredth(
    mini_spec: Any, randomised: Any, video: Any
) -> None:
    model = randomised(MoViNet(mini_spec("stream"))).double().train()
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm3d)}
    before = {name: (m.running_mean.clone(), m.running_var.clone()) for name, m in norms.items()}
    inputs: dict[str, Tensor] = {}
    for name, module in norms.items():
        module.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
    model(video(3))
    assert inputs.keys() == norms.keys()
    for name, module in norms.items():
        values = inputs[name].detach().transpose(0, 1).flatten(1)
        mean, var = before[name]
        torch.testing.assert_close(module.running_mean, 0.99 * mean + 0.01 * values.mean(dim=1))
        torch.testing.assert_close(module.running_var, 0.99 * var + 0.01 * values.var(dim=1))


@pytest.mark.parametrize("mode", ["base", "stream"])
def test_evaluation_changes_no_statistic(
    mini_spec: Any, randomised: Any, video: Any, mode: str
) -> None:
    model = randomised(MoViNet(mini_spec(mode)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(video(dtype=torch.float32))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# Gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("se_type", ["3d", "2d", "2plus3d", "none"])
@pytest.mark.parametrize(
    ("mode", "changes"),
    [
        ("base", {}),
        ("base", {"conv_type": "2plus1d"}),
        ("stream", {}),
        ("stream", {"conv_type": "3d_2plus1d", "gate": "hard_sigmoid_relu6"}),
        ("stream", {"conv_type": "3d", "causal_padding": "legacy", "activation": "relu6"}),
    ],
)
def test_gradient_reaches_every_parameter(
    mini_spec: Any,
    randomised: Any,
    video: Any,
    mode: str,
    changes: dict[str, Any],
    se_type: str,
    training: bool,
) -> None:
    spec = mini_spec(mode, se_type=se_type, **changes)
    spec = spec.replace(positional_encoding=spec.causal and se_type != "none")
    model = randomised(MoViNet(spec, stochastic_depth=0.0, dropout=0.0)).double().train(training)
    F.cross_entropy(model(video(2, 3)), torch.tensor([0, 1])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # In training a bias in front of a normalisation would get none: there is no such bias.
        assert parameter.grad.ne(0).any(), name


def test_only_rezero_stands_between_a_fresh_network_and_its_blocks(
    mini_spec: Any, video: Any
) -> None:
    """ReZero starts at 0, so after one step of its own every parameter learns."""
    torch.manual_seed(0)
    model = MoViNet(mini_spec("stream"), stochastic_depth=0.0, dropout=0.0).double()
    for learns in (False, True):
        model.clean_activation_buffers()
        model.zero_grad()
        F.cross_entropy(model(video(2, 3)), torch.tensor([0, 1])).backward()
        for name, parameter in model.named_parameters():
            if "block" in name and "rezero" not in name and "skip" not in name:
                assert parameter.grad.ne(0).any() == learns, name
            elif "rezero" in name:
                assert parameter.grad.ne(0), name
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "rezero" in name:
                    parameter -= 0.1 * parameter.grad.sign()


@pytest.mark.parametrize("mode", ["base", "stream"])
def test_gradient_agrees_with_finite_differences(
    mini_spec: Any, randomised: Any, video: Any, mode: str
) -> None:
    model = randomised(MoViNet(mini_spec(mode), stochastic_depth=0.0, dropout=0.0)).double()
    generator = torch.Generator().manual_seed(0)
    parameters = list(model.parameters())
    direction = [
        torch.randn(p.shape, generator=generator, dtype=torch.float64) * 1e-3 for p in parameters
    ]

    def loss(offset: float) -> Tensor:
        moved = {
            name: p + offset * d
            for (name, p), d in zip(model.named_parameters(), direction, strict=True)
        }
        model.clean_activation_buffers()
        logits = torch.func.functional_call(model, moved, video(2, 3))
        return F.cross_entropy(logits, torch.tensor([0, 1]))

    gradient = torch.autograd.grad(loss(0.0), parameters)
    expected = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
    with torch.no_grad():
        found = (loss(1e-3) - loss(-1e-3)) / 2e-3
    assert expected.abs() > 1e-6
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def test_frozen_backbone_trains_the_new_classifier_only(
    mini_spec: Any, randomised: Any, video: Any
) -> None:
    model = randomised(MoViNet(mini_spec("stream")))
    model.requires_grad_(False)
    model.reset_classifier(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) == 2
    optimizer = torch.optim.SGD(trained, lr=0.1)
    F.cross_entropy(model(video(dtype=torch.float32)), torch.tensor([0, 2])).backward()
    optimizer.step()
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {"classifier.output.conv.weight", "classifier.output.conv.bias"}


# Clip by clip ----------------------------------------------------------------------------------


def test_no_buffer_carries_a_graph_from_clip_to_clip(
    mini_spec: Any, randomised: Any, video: Any
) -> None:
    model = randomised(MoViNet(mini_spec("stream", positional_encoding=True))).double().train()
    clips = [clip.clone().requires_grad_() for clip in video(2, 9).split(3, dim=2)]
    for index, clip in enumerate(clips):
        model(clip).square().sum().backward()
        for name, value in model.snapshot().state.items():
            assert value.grad_fn is None, name
            assert not value.requires_grad, name
        reached = [other.grad is not None for other in clips]
        assert reached == [other <= index for other in range(3)]
        for other in clips[:index]:
            assert other.grad.eq(0).all()  # set below, and untouched since
        clip.grad.zero_()


def test_gradient_of_a_clip_is_that_of_a_step_from_a_detached_state(
    mini_spec: Any, randomised: Any, video: Any
) -> None:
    model = randomised(MoViNet(mini_spec("stream"))).double()
    first, second = video().split([3, 4], dim=2)
    model(first)
    _, state = model.step(first, model.init_state(2, 19, 26))
    state = {name: value.detach() for name, value in state.items()}
    parameters = list(model.parameters())
    found = torch.autograd.grad(model(second).square().sum(), parameters)
    expected = torch.autograd.grad(model.step(second, state)[0].square().sum(), parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_optimizer_may_step_between_clips(tiny_spec: Any, video: Any) -> None:
    model = MoViNet(tiny_spec("stream"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for clip in video(2, 9, dtype=torch.float32).split(3, dim=2):
        model(clip).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("mode", ["base", "stream"])
def test_training_runs_in_bfloat16_and_under_autocast(
    mini_spec: Any, video: Any, mode: str
) -> None:
    torch.manual_seed(0)
    clips = video(2, 4, dtype=torch.float32).split(2, dim=2)
    for dtype, autocast in ((torch.bfloat16, False), (torch.float32, True)):
        model = MoViNet(mini_spec(mode)).to(dtype)
        for clip in clips:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                logits = model(clip.to(dtype))
            F.cross_entropy(logits.float(), torch.tensor([0, 1])).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())


def train(
    model: MoViNet,
    optimizer: torch.optim.Optimizer,
    videos: Tensor,
    targets: Tensor,
    epochs: int,
    check: Callable[[], None] = lambda: None,
) -> list[float]:
    """The clip-wise loop: backward() after each clip of a video, then one step of the optimizer."""
    losses = []
    for _ in range(epochs):
        total = 0.0
        optimizer.zero_grad()
        for clip in videos.split(FRAMES, dim=2):
            loss = F.cross_entropy(model(clip), targets) / CLIPS
            loss.backward()
            check()
            total += loss.item()
        optimizer.step()
        model.clean_activation_buffers()
        losses.append(total)
    return losses


def test_clip_wise_training_learns_two_random_videos(mini_spec: Any, video: Any) -> None:
    torch.manual_seed(0)
    model = MoViNet(mini_spec("stream"))
    videos = video(2, CLIPS * FRAMES, 32, 32, dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def detached() -> None:
        assert all(value.grad_fn is None for value in model.snapshot().state.values())

    losses = train(model, optimizer, videos, torch.tensor([1, 5]), epochs=25, check=detached)
    assert losses[0] == pytest.approx(torch.tensor(7.0).log().item(), abs=0.3)
    assert losses[-1] < 0.5 * losses[0]


def test_clip_wise_training_is_reproducible(tiny_spec: Any, video: Any) -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        model = MoViNet(tiny_spec("stream"))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        videos = video(2, CLIPS * FRAMES, 16, 16, dtype=torch.float32)
        runs.append(train(model, optimizer, videos, torch.tensor([0, 2]), epochs=3))
    assert runs[0] == runs[1]


def test_clip_wise_training_of_the_published_network_lowers_the_loss(video: Any) -> None:
    torch.manual_seed(0)
    model = MoViNet(_C.MODEL.MoViNetA0, 5, causal=True)
    videos = video(2, CLIPS * FRAMES, 32, 32, dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = train(model, optimizer, videos, torch.tensor([1, 3]), epochs=4)
    assert losses[-1] < 0.8 * losses[0]


def test_base_network_learns_two_random_clips(mini_spec: Any, video: Any) -> None:
    torch.manual_seed(0)
    model = MoViNet(mini_spec())
    clips, targets = video(2, FRAMES, 32, 32, dtype=torch.float32), torch.tensor([1, 5])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(clips), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
