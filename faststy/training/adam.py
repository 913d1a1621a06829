"""Adam by PyTorch's fused kernel, with clipping and skipping inside: no pass over the gradients of
its own, and the host never waits to know the norm.

`torch.optim` would do, but imports the compiler with it: seconds at the start of each run.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPS = 1e-8


class Adam:
    """Kingma & Ba 2015, on a CPU or a CUDA device.

    Args:
        net: whose parameters are moved.
        full_rate: the learning rate; `rate` is that of the next step.
        betas: decays of the means of gradients and of their squares.
    """

    def __init__(self, net: nn.Module, full_rate: float, betas: tuple[float, float]) -> None:
        self.betas = betas
        self.weights: list[Tensor] = list(net.parameters())
        device = self.weights[0].device
        # On the device, where a recorded step finds it; CUDA's kernel knows no other than float32.
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        self._rate = torch.empty((), dtype=dtype, device=device)
        self.full_rate = self.rate = full_rate
        self.means = [torch.zeros_like(weight) for weight in self.weights]
        self.squares = [torch.zeros_like(weight) for weight in self.weights]
        self.count = torch.zeros((), device=device)  # of steps

    @property
    def rate(self) -> float:
        return self._told_rate

    @rate.setter
    def rate(self, rate: float) -> None:
        self._told_rate = rate
        self._rate.fill_(rate)  # the number travels with the kernel: nobody waits

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, but for the weights; not copied."""
        state = {"count": self.count}
        for i, (mean, square) in enumerate(zip(self.means, self.squares, strict=True)):
            state |= {f"{i}.mean": mean, f"{i}.square": square}
        return state

    def zero_grad(self) -> None:
        for weight in self.weights:
            weight.grad = None

    @torch.no_grad()
    def step(self, loss: Tensor, max_norm: float) -> Tensor:
        """Move along the gradients that `loss` left, clipped to the norm `max_norm`.

        Where loss or gradients are not finite nothing changes. Returns 1 then, else 0, as a tensor.
        """
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        if len(gradients) < len(self.weights):
            raise ValueError("loss: expected to depend on every parameter of the net")
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        skip = (~torch.isfinite(loss.detach() + norm)).float()
        self.count += 1 - skip
        self._move(self.weights, gradients, (norm / max_norm).clamp_min(1.0), skip)
        return skip

    def _move(
        self, weights: list[Tensor], gradients: list[Tensor], scale: Tensor, skip: Tensor
    ) -> None:
        """Move `weights`, which have means and squares, by `gradients` / `scale` unless `skip`."""
        torch._fused_adam_(
            weights, gradients, self.means, self.squares, [], [self.count] * len(weights),
            lr=self._rate, beta1=self.betas[0], beta2=self.betas[1], weight_decay=0.0, eps=EPS,
            amsgrad=False, maximize=False, found_inf=skip, grad_scale=scale,
        )  # fmt: skip
