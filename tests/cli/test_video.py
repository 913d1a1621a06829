"""`faststy video`: what is painted where, and what is said when it goes wrong."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from faststy.cli import main
from faststy.cli.video import _target
from faststy.model_file import Model, ModelInfo, save_model
from faststy.nn.generator import Generator, GeneratorConfig
from faststy.nn.repairer import Repairer
from faststy.stylization.clips import FASTEST, SLOWEST


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    config = GeneratorConfig(channels=8, blocks=1, styles=2)
    generator, repairer = Generator(config), Repairer(8)
    with torch.no_grad():
        for parameter in [*generator.parameters(), *repairer.head.parameters()]:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    info = ModelInfo(["rain", "starry night"], asdict(config), {"channels": 8})
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(Model(generator, repairer, info), path)
    return path


@pytest.fixture
def faststy(monkeypatch, capsys, tmp_path):
    """Runs the command line in a folder of its own: exit status, standard output and error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "argv", ["faststy", "video", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return run


def frames_of(path):
    with av.open(str(path)) as file:
        return list(file.decode(video=0))


def test_a_video_appears_beside_its_film(film, model, faststy):
    film("a.mp4", frames=3)
    status, out, err = faststy("a.mp4", "-m", model)
    assert (status, err) == (0, "")
    assert out.startswith("a_rain.mp4  3 frames, 64 x 48, in ")
    assert len(frames_of("a_rain.mp4")) == 3
    difference = frames_of("a.mp4")[0].to_ndarray(format="rgb24").astype(int)
    difference -= frames_of("a_rain.mp4")[0].to_ndarray(format="rgb24")
    assert np.abs(difference).mean() > 5  # it was painted, not copied


def test_one_json_object_tells_all(film, model, faststy):
    film("a.mkv", frames=20, audio="aac")
    status, out, _ = faststy(
        *("a.mkv", "-m", model, "-o", "b.mp4", "--style", "rain:1,starry night:3", "--size", 24),
        *("--start", "0:00.2", "--end", 0.6, "--json"),
    )
    assert status == 0
    assert out.count("\n") == 1
    facts = json.loads(out)
    assert facts.pop("seconds") > 0
    assert facts.pop("fps") > 0
    assert facts == {
        "input": "a.mkv",
        "output": "b.mp4",
        "style": {"rain": 0.25, "starry night": 0.75},
        "frames": 10,
        "size": [32, 24],
        "rate": 25.0,
        "encoder": "libx264",
        "audio": "copied",
        "left_out": [],
        "damage": None,
        "stopped": False,
    }


def test_dials_change_the_film(model, faststy):
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    Path("shots").mkdir()
    Image.fromarray(np.kron(noise, np.ones((4, 4, 1), np.uint8))).save("shots/0.png")
    pictures = {}
    for name, options in {
        "full": (),
        "other": ("--style", "starry night"),
        "weak": ("--strength", 0.2),
        "pure": ("--repair", 0),
        "colors": ("--keep-color",),
        "broad": ("--stroke", 2),
        "coarse": ("--crf", 50),
    }.items():
        assert faststy("shots", "-m", model, "-o", f"{name}.mp4", *options)[0] == 0
        pictures[name] = frames_of(f"{name}.mp4")[0].to_ndarray(format="rgb24").tobytes()
    assert len(set(pictures.values())) == len(pictures)


def test_names_without_o(film, model, faststy):
    for name, expected in {"a.mkv": "a_rain.mkv", "b.ts": "b_rain.mp4"}.items():
        film(name, frames=10)
        assert faststy(name, "-m", model)[0] == 0
        assert Path(expected).is_file()
    Path("link.mkv").symlink_to("a.mkv")
    assert faststy("link.mkv", "-m", model)[0] == 0
    assert Path("link_rain.mkv").is_file()
    Path("out").mkdir()
    assert faststy("a.mkv", "-m", model, "-o", "out")[0] == 0
    assert Path("out/a.mkv").is_file()
    Path("shots").mkdir()
    for i in range(3):
        Image.new("RGB", (20, 20), (70 * i, 0, 0)).save(f"shots/s_{i:03d}.png")
    assert faststy("shots/s_%03d.png", "-m", model, "--fps", 10)[0] == 0
    assert frames_of("shots/s_rain.mp4")[2].time == pytest.approx(0.2)
    assert faststy("shots", "-m", model)[0] == 0
    assert len(frames_of("shots_rain.mp4")) == 3


def test_a_disk_in_memory_is_no_device(film, model, faststy, disk_in_memory):
    source = shutil.copy(film("a.mkv", frames=3), disk_in_memory)
    assert faststy(source, "-m", model)[0] == 0
    assert len(frames_of(disk_in_memory / "a_rain.mkv")) == 3


def test_standard_input(film, model, faststy):
    data = film("a.mp4", frames=4).read_bytes()
    assert faststy("-", "-m", model, "-o", "b.mp4", stdin=data)[0] == 0
    assert len(frames_of("b.mp4")) == 4
    status, _, err = faststy("-", "-m", model, stdin=data)
    assert (status, err) == (
        2,
        "faststy: standard input has no name; name the output by -o painted.mp4\n",
    )


def test_damage_is_told_and_exit_status_1(film, model, faststy):
    whole = film("a.mkv", frames=60, audio="aac").read_bytes()
    Path("a.mkv").write_bytes(whole[: len(whole) // 2])
    status, out, err = faststy("a.mkv", "-m", model, "-o", "b.mp4", "--json")
    assert status == 1
    frames = json.loads(out)["frames"]
    assert err.startswith("faststy: a.mkv: it is cut off at ")
    assert err.endswith(f"; {frames} frames painted\n")
    assert len(frames_of("b.mp4")) == frames
    status, _, err = faststy("-", "-m", model, "-o", "c.mp4", stdin=Path("a.mkv").read_bytes())
    assert status == 1
    assert err.startswith("faststy: standard input: it is cut off at ")


def test_what_is_left_out_is_told(film, model, faststy):
    data = film("a.mkv", frames=5, audio="aac").read_bytes()
    Path("a.mkv").write_bytes(data.replace(b"A_AAC", b"A_XXX"))
    status, out, err = faststy("a.mkv", "-m", model, "-o", "b.mp4", "--json")
    left_out = "audio stream 1 (unknown codec): it cannot be decoded"
    assert (status, err) == (0, f"faststy: b.mp4: without {left_out}\n")
    assert json.loads(out)["left_out"] == [left_out]


@pytest.mark.skipif(sys.platform == "win32", reason="names hold no line breaks there")
def test_names_and_tags_of_strangers_say_nothing_to_the_terminal(film, model, faststy):
    name = "\x1b[31m\nfaststy: forged.mkv"
    data = film("a.mkv", frames=60, audio="aac").read_bytes().replace(b"A_AAC", b"A_XXX")
    Path(name).write_bytes(data[: len(data) // 2])
    status, out, err = faststy(name, "-m", model)
    assert status == 1
    shown = r"\x1b[31m\nfaststy: forged"
    assert [line.split(": ", 1)[0] for line in err.splitlines()] == ["faststy", "faststy"]
    assert err.startswith(f"faststy: {shown}.mkv: it is cut off")
    assert f"faststy: {shown}_rain.mkv: without audio stream" in err
    assert out.startswith(f"{shown}_rain.mkv  ")


def test_mistakes_are_one_sentence_and_leave_nothing(film, model, faststy):
    film("a.mp4", frames=2)
    Path("song.mp3").write_bytes(b"ID3" + bytes(2000))
    Path("circle.mp4").symlink_to("circle.mp4")
    before = sorted(os.listdir())
    for arguments, sentence in [
        (("missing.mp4",), "missing.mp4: cannot be read (No such file or directory)"),
        (("song.mp3",), "song.mp3: "),
        (("a.mp4", "-o", "a.mp4"), "a.mp4: is an input and will not be overwritten"),
        (("a.mp4", "-o", "none/b.mp4"), "the folder none does not exist"),
        (("a.mp4", "-o", "b.gif"), ".gif is no video format that faststy writes"),
        (("a.mp4", "--codec", "nonsense"), "there is no encoder for 'nonsense' here"),
        (("a.mp4", "--style", "ran"), "unknown style 'ran'"),
        (("a.mp4", "--start", "3", "--end", "2"), "there is nothing between 3 s and 2 s"),
        (("circle.mp4",), "circle.mp4: cannot be read (Too many levels of symbolic links)"),
        (("a.mp4", "--start", "9" * 15), "start and end lie within 1e+09 s; 1e+15 s does not"),
        (("a.mp4", "--end", "9" * 400), "start and end lie within 1e+09 s; inf s does not"),
        (("a.mp4", "-m", "none.safetensors"), "none.safetensors"),
    ]:
        model_option = () if "-m" in arguments else ("-m", model)
        status, out, err = faststy(*arguments, *model_option)
        assert (status, out) == (2, "")
        assert err.startswith("faststy: ")
        assert err.count("\n") == 1
        assert sentence in err
        assert sorted(os.listdir()) == before
    status, _, err = faststy("a.mp4", "--start", "soon")
    assert status == 2
    assert "'soon' is no time; write 90, 1:30 or 0:01:30.5" in err
    status, _, err = faststy("shots/%d.png", "--fps", "0.0001")
    assert status == 2
    assert f"0.0001 is not in the range {SLOWEST}<=x<={FASTEST}" in err
    status, _, err = faststy("a.mp4", "--strength", "nan")
    assert status == 2
    assert "Invalid value for '--strength': 'nan' is no finite number." in err


@pytest.mark.skipif(sys.platform != "linux", reason="names are Unicode there")
def test_a_name_that_is_no_text_is_told_all_the_same(film, model, tmp_path):
    film("a.mp4", frames=3)
    name = os.fsdecode(b"a\xff.mp4")
    os.rename(tmp_path / "a.mp4", tmp_path / name)
    command = [sys.executable, "-m", "faststy", "video", name, "-m", str(model)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}  # as in most of the locales
    for flags, told in [((), r"a\udcff_rain.mp4  3 frames"), (("--json",), "")]:
        done = subprocess.run(
            [*command, *flags], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(told)
    assert json.loads(done.stdout)["output"] == os.fsdecode(b"a\xff_rain.mp4")


def test_ctrl_c_leaves_a_film_that_plays(film, model, tmp_path):
    source = film("a.mkv", frames=1500, audio="aac")
    target = tmp_path / "b.mp4"
    command = [sys.executable, "-m", "faststy", "video", source, "-m", model, "-o", target]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".*.faststy-tmp")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    frames = len(frames_of(target))
    assert 0 < frames < 1500
    assert err == f"faststy: stopped; {target} ends after {frames} frames\n"
    assert sorted(os.listdir(tmp_path)) == ["a.mkv", "b.mp4"]


def test_ctrl_c_leaves_a_film_that_plays_when_the_input_pauses(film, model, tmp_path):
    data = film("a.mkv", frames=300).read_bytes()
    target = tmp_path / "b.mp4"
    command = [sys.executable, "-m", "faststy", "video", "-", "-m", model, "-o", target]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdin.write(data[: len(data) * 2 // 3])
        running.stdin.flush()
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".*.faststy-tmp")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1.5)  # until it waits for more
        running.send_signal(signal.SIGINT)
        try:
            assert running.wait(20) == 130
        finally:
            running.kill()
        err = running.stderr.read().decode()
    frames = len(frames_of(target))
    assert 100 < frames < 300
    assert err == f"faststy: stopped; {target} ends after {frames} frames\n"
    assert sorted(os.listdir(tmp_path)) == ["a.mkv", "b.mp4"]


def test_ctrl_c_before_the_first_frame_is_one_sentence(model, tmp_path):
    target = tmp_path / "b.mp4"
    command = [sys.executable, "-m", "faststy", "video", "-", "-m", model, "-o", target]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        # An MP4 that is waited for as a whole; more than a pipe holds, so it is being read.
        running.stdin.write(bytes(4) + b"ftyp" + bytes(1_000_000))
        running.send_signal(signal.SIGINT)
        try:
            assert running.wait(20) == 130
        finally:
            running.kill()
        err = running.stderr.read().decode()
    assert err == "faststy: standard input: stopped before there was a frame\n"
    assert os.listdir(tmp_path) == []


def test_pipes_by_name(film, model, faststy, tmp_path):
    film("a.mp4", frames=4)
    command = f"{sys.executable} -m faststy video <(cat a.mp4) -m {model}"
    done = subprocess.run(
        ["bash", "-c", f"{command} -o b.mp4"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(frames_of("b.mp4")) == 4
    status, _, err = faststy("/dev/null", "-m", model)
    assert (status, err) == (
        2,
        "faststy: /dev/null has no name; name the output by -o painted.mp4\n",
    )


def test_the_film_that_standard_input_is_is_not_overwritten(film, model):
    source = film("a.mkv")
    before = source.read_bytes()
    command = [sys.executable, "-m", "faststy", "video", "-", "-m", model, "-o", str(source)]
    with open(source, "rb") as stream:
        done = subprocess.run(command, stdin=stream, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert "is an input and will not be overwritten" in done.stderr
    assert source.read_bytes() == before


@pytest.mark.parametrize("out", [None, "out"])
def test_pictures_with_no_name_but_a_number_have_that_of_their_folder(tmp_path, out):
    (tmp_path / "walk").mkdir()
    (tmp_path / "out").mkdir()
    where = None if out is None else str(tmp_path / out)
    target = _target(str(tmp_path / "walk" / "%04d.png"), "x", where, "rain")
    beside, inside = tmp_path / "walk" / "walk_rain.mp4", tmp_path / "out" / "walk.mp4"
    assert target == (beside if out is None else inside)
