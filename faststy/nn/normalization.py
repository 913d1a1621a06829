"""Instance normalisation as modules: torch's, one with a scale and shift per style, and a swap."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import TypeVar

import torch
from torch import Tensor, nn

from faststy import ops
from faststy.ops.instance_norm import Activation
from faststy.ops.reference import wide, without_autocast

Net = TypeVar("Net", bound=nn.Module)


class InstanceNorm2d(nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d` (same arguments, state dict and results) on the fused op.

    Beyond it: a residual and an activation in the same pass, and planes of a single pixel, which
    have no variance that running statistics could learn. What rewrites Python (torch.jit.script,
    torch.fx) and the transforms of torch.func do not see through it; torch.compile, torch.export
    and second derivatives do.

    Args:
        bias: without it, `affine` means a weight alone, as in newer versions of torch.
        activation: "relu", "leaky_relu" (slope 0.2), "silu" or None, applied at every call.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: Activation | None = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype
        )
        if not bias:
            self.register_parameter("bias", None)
        self.activation: Activation | None = activation

    def forward(
        self,
        input: Tensor,  # torch's name
        *,
        activation: Activation | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """`activation(normalised(x) · weight + bias + residual)`, shaped as the input `x`.

        `x` and `residual` are [N, C, H, W] or [C, H, W]; `activation` defaults to the module's.
        """
        x = input
        # Without parameters any number of channels will do, as in torch, which warns.
        bound = self.affine or self.track_running_stats
        if x.ndim not in (3, 4) or (bound and x.shape[-3] != self.num_features):
            expected = f"[N, {self.num_features}, H, W] or [{self.num_features}, H, W]"
            raise ValueError(f"x: expected {expected}, got {list(x.shape)}")
        if x.ndim == 3:
            one = None if residual is None else residual[None]
            return self.forward(x[None], activation=activation, residual=one)[0]
        if x.shape[1] != self.num_features:
            warnings.warn(
                f"x has {x.shape[1]} channels, num_features is {self.num_features}", stacklevel=2
            )
        statistics = None
        if self.track_running_stats:
            if self.training:
                self._track(x)
            else:
                assert self.running_mean is not None
                assert self.running_var is not None
                variance = self.running_var.to(wide(self.running_var.dtype))
                statistics = (self.running_mean, torch.rsqrt(variance + self.eps))
        return ops.instance_norm(
            x,
            self.weight,
            self.bias,
            self.eps,
            activation=activation or self.activation,
            residual=residual,
            statistics=statistics,
        )

    @torch.no_grad()
    def _track(self, x: Tensor) -> None:
        """Move the running statistics towards those of `x`, as torch does."""
        assert self.running_mean is not None
        assert self.running_var is not None
        share = self.momentum or 0.0  # None is 0, as in torch
        x = x.to(wide(x.dtype))
        mean = x.mean((0, 2, 3))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        if x.shape[2:].numel() > 1:
            variance = x.var((2, 3)).mean(0)  # the unbiased one
            self.running_var.lerp_(variance.to(self.running_var.dtype), share)

    def extra_repr(self) -> str:
        fused = f", activation={self.activation!r}" if self.activation else ""
        return nn.InstanceNorm2d.extra_repr(self) + fused  # type: ignore[no-any-return, no-untyped-call]


class ConditionalInstanceNorm2d(nn.Module):
    """Instance normalisation with a weight and bias per style (Dumoulin et al., "A Learned
    Representation for Artistic Style", 2017), so that one net holds many styles and mixes them.

    Args:
        styles: S, how many weight/bias pairs.
        num_features: C.
        eps: added to the variance.
    """

    def __init__(self, styles: int, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(styles, num_features))
        self.bias = nn.Parameter(torch.zeros(styles, num_features))

    def forward(
        self,
        x: Tensor,
        style: Tensor,
        activation: Activation | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """`activation(normalised(x) · weight + bias + residual)` with the weights of a style.

        Args:
            x: [N, C, H, W], any supported float dtype and memory layout.
            style: [S] or [N, S] mixing weights of the S styles.
            activation: "relu", "leaky_relu" (slope 0.2), "silu" or None.
            residual: [N, C, H, W] or None.

        Returns:
            [N, C, H, W] with the dtype and the memory layout of `x`.

        Raises:
            TypeError, ValueError: a wrong dtype, shape or activation.
        """
        styles, features = self.weight.shape
        if x.ndim != 4 or x.shape[1] != features:
            raise ValueError(f"x: expected [N, {features}, H, W], got {list(x.shape)}")
        n = x.shape[0]
        if tuple(style.shape) not in ((styles,), (n, styles)):
            expected = f"[{styles}] or [N, {styles}] = [{n}, {styles}] mixing weights"
            raise ValueError(f"style: expected {expected}, got {list(style.shape)}")
        style = style.to(self.weight.dtype).unsqueeze(-2)
        with without_autocast(x):
            weight, bias = ((style @ w).squeeze(-2) for w in (self.weight, self.bias))
        return ops.instance_norm(
            x, weight, bias, self.eps, activation=activation, residual=residual
        )

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}, eps={self.eps}"


def replace_instance_norm(model: Net) -> Net:
    """Put `InstanceNorm2d` in place of every `torch.nn.InstanceNorm2d` of `model`, and return it.

    Parameters and buffers stay the same objects under the same names, so optimisers and checkpoints
    go on working; a norm that several places share stays shared. Where a norm is followed by ReLU,
    LeakyReLU(0.2) or SiLU in a `Sequential`, and is nowhere else, the activation is fused, and an
    `Identity` keeps its place. Subclasses are left alone, and so is what others have changed: norms
    and activations with hooks, with children or with a `forward` of their own.
    """
    if _plain(model, nn.InstanceNorm2d):
        return _replacement(model)  # type: ignore[return-value, arg-type]
    parents = list(model.modules())
    places = Counter(child for parent in parents for child in parent._modules.values())
    ours: dict[nn.Module, InstanceNorm2d] = {}
    for parent in parents:
        for name, child in list(parent._modules.items()):
            if isinstance(child, nn.InstanceNorm2d) and _plain(child, nn.InstanceNorm2d):
                if child not in ours:
                    ours[child] = _replacement(child)
                    places[ours[child]] = places[child]
                setattr(parent, name, ours[child])
    for parent in parents:
        if not isinstance(parent, nn.Sequential) or "forward" in vars(parent):
            continue
        if type(parent).forward is nn.Sequential.forward:
            _fuse_activations(parent, places)
    return model


def _replacement(norm: nn.InstanceNorm2d) -> InstanceNorm2d:
    ours = InstanceNorm2d(
        norm.num_features,
        norm.eps,
        norm.momentum or 0.0,
        norm.affine,
        norm.track_running_stats,
        device="meta",
    )
    ours._parameters.update(norm._parameters)
    ours._buffers.update(norm._buffers)
    ours._non_persistent_buffers_set.update(norm._non_persistent_buffers_set)
    return ours.train(norm.training)


def _fuse_activations(layers: nn.Sequential, places: Counter[nn.Module | None]) -> None:
    for i in range(len(layers) - 1):
        norm, fused = layers[i], _activation(layers[i + 1])
        if not isinstance(norm, InstanceNorm2d) or not _plain(norm, InstanceNorm2d):
            continue
        if fused is not None and norm.activation is None and places[norm] == 1:
            norm.activation, layers[i + 1] = fused, nn.Identity()


def _activation(module: nn.Module) -> Activation | None:
    if _plain(module, nn.ReLU):
        return "relu"
    if _plain(module, nn.LeakyReLU) and module.negative_slope == 0.2:
        return "leaky_relu"
    return "silu" if _plain(module, nn.SiLU) else None


def _plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether it is a `kind` and no more: no subclass, without hooks or anything put onto it."""
    hooks = (value for name, value in vars(module).items() if name.endswith("_hooks"))
    own = module._modules or "forward" in vars(module)
    return type(module) is kind and not own and not any(hooks)
