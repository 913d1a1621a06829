"""tools/distill_encoder.py: pruning finds what it can find; a broken run ends as a whole one."""

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from faststy.nn.encoder import VGG19_NAMES, VGG19_STAGES, Encoder, PerceptualEncoder

TOOL = Path(__file__).parents[2] / "tools" / "distill_encoder.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("distill_encoder", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules["distill_encoder"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["distill_encoder"]


def random_net(stages, heads=None):
    net = PerceptualEncoder(stages, heads)
    generator = torch.Generator().manual_seed(0)
    for p in net.parameters():
        scale = (2 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.1
        p.copy_(scale * torch.randn(p.shape, generator=generator))
    return net


def test_the_channels_that_explain_most_are_chosen(tool):
    """Two of five channels are copies and two are weak: one of the copies and the rest stay."""
    x = torch.randn(1000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x *= torch.tensor([3.0, 0.1, 2.0, 1.0, 0.1], dtype=torch.float64)
    x[:, 4] = x[:, 0]
    moment = x.T @ x / len(x)
    assert tool.greedy_channels(moment, torch.eye(5, dtype=torch.float64), 3) == [0, 2, 3]


def test_a_teacher_of_the_students_width_is_found_again(tool):
    """With all channels kept, pruning must give back the teacher's taps, turned into its bases."""
    stages = [[4, 4], [6, 6], [8, 8], [8]]
    teacher = random_net(stages)
    generator = torch.Generator().manual_seed(1)
    batches = [torch.rand(2, 3, 32, 32, generator=generator) for _ in range(6)]
    student, bases = tool.prune(teacher, batches, stages, [4, 6, 8, 8])
    x = torch.rand(1, 3, 32, 32, generator=generator)
    for ours, theirs, basis in zip(student(x), teacher(x), bases, strict=True):
        torch.testing.assert_close(basis.T @ basis, torch.eye(len(basis)), rtol=0, atol=1e-5)
        wanted = torch.einsum("nchw,ck->nkhw", theirs, basis)
        assert (ours - wanted).square().sum() < 1e-2 * wanted.square().sum()


def test_a_broken_run_ends_as_a_whole_one(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "HELD_OUT", 1)
    monkeypatch.setattr(tool, "SIZE", 32)
    monkeypatch.setattr(tool, "CHECK_EVERY", 2)
    monkeypatch.setattr(tool, "STEPS_PER_SCENE", 2)
    teacher = random_net(VGG19_STAGES)
    weights = {
        f"features.{n}.{kind}": getattr(teacher.stages[t][i], kind) * (255 if kind == "bias" else 1)
        for t, names in enumerate(VGG19_NAMES)
        for i, n in enumerate(names)
        for kind in ("weight", "bias")
    }
    save_file(weights, tmp_path / "vgg19.safetensors", {"input": "RGB in [0,255]"})
    rng = np.random.default_rng(0)
    for folder in ("photos", "styles"):
        (tmp_path / folder).mkdir()
        for i in range(2):
            pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")

    def distil(name, steps, *more):
        flags = ["--teacher", "vgg19.safetensors", "--photos", "photos", "--styles", "styles"]
        flags += ["--work", name, "--out", f"{name}.safetensors", "--steps", str(steps)]
        flags += ["--first-scenes", "1", "--stages", "4,4/4,4/4,4,4,4/8", "--heads", "4,4,4,8"]
        monkeypatch.setattr(sys, "argv", [str(TOOL), *flags, "--device", "cpu", *more])
        monkeypatch.chdir(tmp_path)
        tool.main()

    class Killed(BaseException):
        pass

    def killed(run, loss, rate):
        if run.step == 3:
            raise Killed
        update(run, loss, rate)

    distil("whole", 4)
    update = tool.Run.update
    monkeypatch.setattr(tool.Run, "update", killed)
    with pytest.raises(Killed):
        distil("broken", 4)
    assert tool.Run.load(tmp_path / "broken/checkpoint.safetensors", torch.device("cpu")).step == 2
    monkeypatch.setattr(tool.Run, "update", update)
    distil("broken", 4)

    whole, broken = (
        tool.Run.load(tmp_path / name / "checkpoint.safetensors", torch.device("cpu"))
        for name in ("whole", "broken")
    )
    assert whole.step == broken.step == 4
    assert whole.best == broken.best > 0
    for name, p in whole.student.named_parameters():
        assert torch.equal(p, broken.student.get_parameter(name)), name
    assert (tmp_path / "whole.safetensors").read_bytes() == (
        tmp_path / "broken.safetensors"
    ).read_bytes()
    assert Encoder(tmp_path / "whole.safetensors").channels == [4, 4, 4, 8]

    before = (tmp_path / "whole/checkpoint.safetensors").read_bytes()
    shutil.copy("vgg19.safetensors", "another.safetensors")
    for flag, value in [
        ("--stages", "8,4/4,4/4,4,4,4/8"),
        ("--heads", "4,4,4,4"),
        ("--teacher", "another.safetensors"),
        ("--photos", "styles"),  # one more folder
        ("--seed", "1"),
        ("--first-scenes", "2"),
    ]:
        with pytest.raises(
            SystemExit, match=f"error: whole: this run has {flag} .*, not .*{value}"
        ):
            distil("whole", 5, flag, value)
    assert (tmp_path / "whole/checkpoint.safetensors").read_bytes() == before
    distil("whole", 4, "--steps", "4")
