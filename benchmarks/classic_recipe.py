"""The classic recipe: Johnson et al. 2016 with the losses of VGG-19, as people train it.

    python benchmarks/classic_recipe.py STYLE.jpg PHOTOS/ --vgg19 FILE --seconds 180 --out out.png

The net of 1.7 M parameters, instance norm, nearest upsampling; content at relu3_1 and Gram matrices
at relu1_1, 2_1, 3_1 and 4_1, both in mean squares relative to those of their targets, so that
weights need no tuning; Adam at 1e-3; batch 4 of 256²; eager, NCHW, float32. The suite `training`
times its steps, with random weights of VGG-19: they take as long.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from stylization import ClassicNet
from torch import Tensor, nn

from faststy.errors import told
from faststy.nn.encoder import VGG19_STAGES, PerceptualEncoder, VGG19Encoder
from faststy.pictures import list_pictures, read_picture
from faststy.tensors import to_image, to_tensor
from faststy.training.dataset import Pictures, generator, random_crops

CONTENT_WEIGHT, STYLE_WEIGHT = 1.0, 5.0  # balanced so that both are felt


def vgg19(file: Path | None) -> nn.Module:
    if file is not None:
        return VGG19Encoder(file)
    encoder, rng = PerceptualEncoder(VGG19_STAGES), torch.Generator().manual_seed(0)
    for p in encoder.parameters():  # biases 0, kernels that keep the variance
        spread = (2 / p[0].numel()) ** 0.5 if p.ndim == 4 else 0.0
        p.data = spread * torch.randn(p.shape, generator=rng)
    return encoder


def gram(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    flat = x.reshape(n, c, h * w)
    return flat @ flat.transpose(1, 2) / (c * h * w)


class ClassicRecipe:
    """A call takes one training step on photos [N, 3, H, W] in 0...1 and gives the loss.

    `style` is [1, 3, H, W] in 0...1.
    """

    def __init__(self, style: Tensor, device: torch.device, file: Path | None = None) -> None:
        torch.manual_seed(0)
        self.device = device
        self.net, self.encoder = ClassicNet().to(device), vgg19(file).to(device)
        self.optimiser = torch.optim.Adam(self.net.parameters(), 1e-3)
        with torch.no_grad():
            self.targets = [gram(tap) for tap in self.encoder(style.to(device))]

    def __call__(self, photo: Tensor) -> Tensor:
        photo = photo.to(self.device).contiguous()
        found = self.encoder(self.net(photo))
        with torch.no_grad():
            kept = self.encoder(photo)[2]
        loss = CONTENT_WEIGHT * F.mse_loss(found[2], kept) / kept.square().mean()
        for tap, target in zip(found, self.targets, strict=True):
            distance = F.mse_loss(gram(tap), target.expand(len(tap), -1, -1))
            loss = loss + STYLE_WEIGHT * distance / target.square().mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return loss.detach()


def classic_step(size: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A step to be timed: random weights of VGG-19, and a random style of `size`."""
    return ClassicRecipe(torch.rand(1, 3, size, size), device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("style", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--vgg19", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("classic.png"))
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    style = to_tensor(read_picture(given.style).rgb)
    photos = Pictures(list_pictures(given.photos), 2 * given.size)
    step = ClassicRecipe(style, device, given.vgg19)
    steps, began = 0, time.monotonic()
    while time.monotonic() - began < given.seconds:
        photo = random_crops(photos, given.batch, given.size, (1.0, 2.0), generator(0, steps))
        loss = step(photo)
        steps += 1
    seconds = time.monotonic() - began
    speed = steps * given.batch / seconds
    print(f"{steps} steps in {seconds:.0f} s, {speed:.2f} images/s, loss {float(loss):.3f}")
    with torch.inference_mode():
        first = to_tensor(read_picture(photos.paths[0]).rgb).to(device)
        to_image(step.net(first)[0]).save(given.out)


if __name__ == "__main__":
    with told():
        main()
