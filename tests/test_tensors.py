import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from faststy.errors import FaststyError
from faststy.tensors import device_named, to_image, to_tensor


def test_every_level_survives_the_way_there_and_back():
    levels = np.arange(3 * 16 * 32, dtype=np.uint32).reshape(16, 32, 3) % 256
    image = Image.fromarray(levels.astype(np.uint8))
    x = to_tensor(image)
    assert x.shape == (1, 3, 16, 32)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    reference = np.asarray(image, dtype=np.float64).transpose(2, 0, 1)[None] / 255
    np.testing.assert_allclose(x.numpy(), reference, atol=1e-7)
    back = to_image(x[0])
    assert back.mode == "RGB"
    assert back.size == (32, 16)
    assert (np.asarray(back) == np.asarray(image)).all()


def test_values_are_rounded_and_clamped():
    x = torch.tensor([-3.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.7]).expand(3, 1, 5)
    assert np.asarray(to_image(x))[0, :, 0].tolist() == [0, 0, 1, 255, 255]


def test_half_precision_and_gradients_are_no_obstacle():
    x = torch.full((3, 2, 2), 0.5, dtype=torch.bfloat16, requires_grad=True)
    assert (np.asarray(to_image(x)) == 128).all()


def test_devices_by_name():
    assert device_named("cpu") == device_named(torch.device("cpu")) == torch.device("cpu")
    assert device_named("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "mps", "", "meta"])
def test_a_device_that_cannot_be_used_is_named(name):
    with pytest.raises(FaststyError, match=f"device '{name}' cannot be used") as caught:
        device_named(name)
    assert "\n" not in str(caught.value)
    assert ". " not in str(caught.value)  # PyTorch's advice on operators and backends


def test_memory_that_the_system_refuses_is_known_as_such():
    """Whatever computes the op, the extension or PyTorch, and however it says so."""
    if sys.platform != "linux":
        pytest.skip("the limit is of Linux")
    script = """
import resource, torch
from faststy import ops
from faststy.tensors import is_out_of_memory
x = torch.zeros(1, 16, 512, 512)
ops.upsample(x[..., :8, :8], 2)
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (100 << 20),) * 2)
try:
    ops.upsample(x, 8)
except RuntimeError as error:
    print(is_out_of_memory(error))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "True\n", run.stderr
