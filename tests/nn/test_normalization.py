from __future__ import annotations

from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from faststy.nn.normalization import (
    ConditionalInstanceNorm2d,
    InstanceNorm2d,
    replace_instance_norm,
)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("tracking", [False, True])
@pytest.mark.parametrize(
    ("momentum", "dtype"), [(0.3, torch.float32), (None, torch.float32), (0.3, torch.float64)]
)
def test_same_as_torch(
    affine: bool, tracking: bool, momentum: float | None, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    arguments: Any = (3, 1e-3, momentum, affine, tracking, "cpu", dtype)
    theirs = nn.InstanceNorm2d(*arguments)
    ours = InstanceNorm2d(*arguments)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    for p in theirs.parameters():
        nn.init.normal_(p)
    ours.load_state_dict(theirs.state_dict())
    for training in (True, True, False):
        x = torch.randn(2, 3, 5, 6, dtype=dtype) + 2
        results = []
        for module in (theirs, ours):
            leaf = x.clone().requires_grad_()
            y = module.train(training)(leaf)
            y.square().sum().backward()
            results.append((y, leaf.grad, *module.state_dict().values()))
        torch.testing.assert_close(results[0], results[1], atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(ours(x[0]), theirs(x[0]))


def test_state_dicts_of_torch() -> None:
    tracked = nn.InstanceNorm2d(3, affine=True, track_running_stats=True)
    assert list(InstanceNorm2d(3, affine=True, track_running_stats=True).state_dict()) == list(
        tracked.state_dict()
    )
    assert InstanceNorm2d(3).state_dict() == {}
    with pytest.raises(RuntimeError, match=r"Unexpected key.*running_mean"):
        InstanceNorm2d(3, affine=True).load_state_dict(tracked.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*running_mean"):
        InstanceNorm2d(3, track_running_stats=True).load_state_dict({})
    assert list(InstanceNorm2d(3, affine=True, bias=False).state_dict()) == ["weight"]


def test_channels_matter_only_to_parameters_and_running_statistics() -> None:
    x = torch.randn(2, 4, 5, 5)
    with pytest.warns(UserWarning, match="4 channels, num_features is 3"):
        y = InstanceNorm2d(3)(x)
    torch.testing.assert_close(y, nn.functional.instance_norm(x))
    for norm in (InstanceNorm2d(3, affine=True), InstanceNorm2d(3, track_running_stats=True)):
        for wrong in (x, x[0]):
            with pytest.raises(ValueError, match=r"x: expected \[N, 3, H, W\] or \[3, H, W\], got"):
                norm(wrong)


def test_activation_and_residual() -> None:
    norm = InstanceNorm2d(3, activation="relu")
    x, residual = torch.randn(2, 2, 3, 5, 6)
    truth = nn.functional.instance_norm(x) + residual
    torch.testing.assert_close(norm(x, residual=residual), truth.relu())
    torch.testing.assert_close(norm(x[0], residual=residual[0]), truth[0].relu())
    silu = norm(x, activation="silu", residual=residual)
    torch.testing.assert_close(silu, nn.functional.silu(truth))
    assert "activation='relu'" in repr(norm)


def test_hooks_see_a_single_picture_once() -> None:
    """As in torch: of one shape, and what a hook returns is not handed to it again."""
    x = torch.randn(3, 8, 8)
    found = []
    for norm in (nn.InstanceNorm2d(3), InstanceNorm2d(3)):
        norm.register_forward_pre_hook(lambda _, args: found.append(args[0].shape))
        norm.register_forward_hook(lambda _, args, y: y * 2)
        found.append(norm(x))
    assert found[0] == found[2] == x.shape
    torch.testing.assert_close(found[3], found[1])


def test_one_style_or_a_mixture() -> None:
    torch.manual_seed(1)
    norm = ConditionalInstanceNorm2d(3, 4)
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(norm(x, torch.eye(3)[0]), nn.functional.instance_norm(x))
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    plain = nn.functional.instance_norm(x)
    mixes = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]])
    weight, bias = mixes @ norm.weight, mixes @ norm.bias
    truth = plain * weight[..., None, None] + bias[..., None, None]
    torch.testing.assert_close(norm(x, mixes), truth)
    torch.testing.assert_close(norm(x, mixes[1])[1], truth[1])
    norm(x, mixes, activation="relu", residual=x).sum().backward()
    assert norm.weight.grad is not None
    assert norm.weight.grad.abs().sum() > 0


def test_replace_keeps_results_parameters_and_names() -> None:
    torch.manual_seed(2)
    shared = nn.ReLU()
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.InstanceNorm2d(4, affine=True),
        shared,
        nn.Sequential(nn.InstanceNorm2d(4, track_running_stats=True), nn.LeakyReLU(0.1)),
        nn.InstanceNorm2d(4),
        nn.LeakyReLU(0.2),
        shared,
    )
    x = torch.randn(2, 3, 9, 9)
    model.eval()
    truth, names = model(x), list(model.state_dict())
    parameters = list(model.parameters())
    assert replace_instance_norm(model) is model
    torch.testing.assert_close(model(x), truth)
    assert list(model.state_dict()) == names
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert not any(type(m) is nn.InstanceNorm2d for m in model.modules())
    fused = [m.activation for m in model.modules() if isinstance(m, InstanceNorm2d)]
    assert fused == ["relu", None, "leaky_relu"]
    assert isinstance(model[2], nn.Identity)
    assert not model[1].training


def test_replace_leaves_hooks_and_subclasses_alone() -> None:
    class Special(nn.InstanceNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)

    hooked = nn.InstanceNorm2d(3)
    hooked.register_forward_hook(lambda *_: None)
    model = nn.Sequential(Special(3), hooked, nn.ReLU())
    replace_instance_norm(model)
    assert [type(m) for m in model] == [Special, nn.InstanceNorm2d, nn.ReLU]
    assert type(replace_instance_norm(nn.InstanceNorm2d(3))) is InstanceNorm2d


def test_replace_leaves_alone_what_others_have_changed() -> None:
    class Negative(InstanceNorm2d):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return -super().forward(x)

    seen: list[nn.Module] = []
    hooked, watched = InstanceNorm2d(3), nn.InstanceNorm2d(3)
    hooked.register_forward_hook(lambda module, *_: seen.append(module))
    watched._register_load_state_dict_pre_hook(lambda *_: None)
    own = nn.InstanceNorm2d(3)
    own.forward = MethodType(lambda self, x: x, own)  # type: ignore[method-assign]
    model = nn.Sequential(Negative(3), nn.ReLU(), hooked, nn.ReLU(), watched, own)
    x = torch.randn(1, 3, 5, 5)
    truth, modules = model(x), list(model)
    replace_instance_norm(model)
    assert list(model) == modules
    torch.testing.assert_close(model(x), truth)
    assert len(seen) == 2


def test_replace_passes_by_what_is_scripted() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    model = nn.Sequential(scripted, nn.InstanceNorm2d(4), nn.ReLU())
    replace_instance_norm(model)
    assert model[1].activation == "relu"


def test_replace_keeps_what_is_shared_shared() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            norm = nn.InstanceNorm2d(3, track_running_stats=True)
            norm.register_buffer("passing", torch.zeros(1), persistent=False)
            self.a, self.b = norm, norm
            self.layers = nn.Sequential(norm, nn.ReLU())

    model = Twice()
    names = list(model.state_dict())
    replace_instance_norm(model)
    assert type(model.a) is InstanceNorm2d
    assert model.a is model.b is model.layers[0]
    assert model.a.activation is None  # which the other places would gain
    assert isinstance(model.layers[1], nn.ReLU)
    assert list(model.state_dict()) == names


def test_one_pixel_leaves_the_running_variance_as_it_is() -> None:
    norm = InstanceNorm2d(2, track_running_stats=True)
    norm(torch.full((3, 2, 1, 1), 5.0))
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, torch.full((2,), 0.5))
    torch.testing.assert_close(norm.running_var, torch.ones(2))


def test_running_statistics_of_half_precision_are_read_in_float32() -> None:
    torch.manual_seed(4)
    norm = InstanceNorm2d(8, track_running_stats=True).to(torch.bfloat16).eval()
    assert norm.running_var is not None
    norm.running_var.uniform_(0.5, 4)
    x = torch.randn(2, 8, 9, 9)
    truth = x.bfloat16().double() * (norm.running_var.double() + norm.eps).rsqrt()[:, None, None]
    error = (norm(input=x.bfloat16()).double() - truth).abs().max()
    assert error <= truth.abs().max() * 2**-8  # what rounding the result alone can do


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"x: expected \[N, 3, H, W\].*got \[2, 4\]"):
        InstanceNorm2d(3)(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"style: expected \[2\] or \[N, 2\].*got \[3\]"):
        ConditionalInstanceNorm2d(2, 3)(torch.zeros(1, 3, 5, 5), torch.zeros(3))
    for n in (1, 3):
        with pytest.raises(ValueError, match=rf"style: .*\[N, 2\] = \[2, 2\].*got \[{n}, 2\]"):
            ConditionalInstanceNorm2d(2, 3)(torch.zeros(2, 3, 5, 5), torch.zeros(n, 2))
    with pytest.raises(ValueError, match=r"x: expected \[N, 3, H, W\], got \[2, 4, 5, 5\]"):
        ConditionalInstanceNorm2d(2, 3)(torch.zeros(2, 4, 5, 5), torch.zeros(2))
