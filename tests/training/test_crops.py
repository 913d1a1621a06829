import pytest
import torch

from faststy.training.crops import CPU, crops_of, cut, together
from faststy.training.dataset import square_of


def picture(seed=0, height=70, width=90):
    """Noise that is smooth in places, as it lies in memory when decoded."""
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), generator=rng, dtype=torch.uint8)
    pixels[:, 50:] = pixels[:, 50:51]
    return pixels.permute(2, 0, 1)


def squares(sides, flips=(False, True)):
    return [
        square_of(picture(i), (3 + i, 5, side), flips[i % len(flips)])
        for i, side in enumerate(sides)
    ]


def test_cutting_takes_the_box_and_flips_it():
    whole = picture()
    plain = cut(square_of(whole, (5, 9, 32), flip=False), 32)
    torch.testing.assert_close(plain.double(), whole[:, 5:37, 9:41].double() / 255)
    assert torch.equal(cut(square_of(whole, (5, 9, 32), flip=True), 32), plain.flip(-1))
    shrunk = cut(square_of(whole, (0, 0, 64), flip=False), 32)
    assert shrunk.shape == (3, 32, 32)
    assert abs(shrunk.mean() - whole[:, :64, :64].float().mean() / 255) < 0.01


# shrunk by much and by little, as they are, enlarged; 1 px; all the same
@pytest.mark.parametrize("sides", [(64, 47, 33, 32, 31, 20, 1), (48, 48), (32,)])
def test_together_they_are_the_same(sides):
    cuts = squares(sides)
    found, expected = together(cuts, 32, CPU), crops_of(cuts, 32)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [32, 192])
def test_on_a_gpu_they_are_the_same_to_half_a_level(size):
    cuts = squares((64, 47, 33, 32, 31, 20))
    found = crops_of(cuts, size, torch.device("cuda"))
    torch.testing.assert_close(found.cpu(), crops_of(cuts, size), atol=0.5 / 255, rtol=0)
    assert found.is_contiguous(memory_format=torch.channels_last)
