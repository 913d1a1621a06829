"""`faststy live`: what it shows, and what is said when there is nothing to show."""

import fcntl
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from dataclasses import asdict

import pytest
import torch
from PIL import Image

from faststy.cli import live, main
from faststy.model_file import Model, ModelInfo, save_model
from faststy.nn.generator import Generator, GeneratorConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    config = GeneratorConfig(channels=8, blocks=1, styles=2)
    info = ModelInfo(["rain", "starry night"], asdict(config))
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(Model(Generator(config), None, info), path)
    return path


@pytest.fixture
def faststy(monkeypatch, capsys):
    """Runs the command line: exit status and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["faststy", "live", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, capsys.readouterr().err

    return run


def test_it_paints_until_ctrl_c(film, model):
    source = film("a.mp4", frames=20, size=(64, 48))
    command = [sys.executable, "-m", "faststy", "live", source, "-m", model, "--port", "0"]
    running = subprocess.Popen(
        [*map(str, command), "--size", "32", "--style", "starry night"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = running.stdout.readline()
    address = rf"http://127\.0\.0\.1:(\d+)/\?(token=\S+)  shows {source}; Ctrl-C ends it\n"
    port, token = re.fullmatch(address, line).groups()
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
    connection.request("GET", f"/frame?after=0&{token}")
    picture = Image.open(io.BytesIO(connection.getresponse().read()))
    assert picture.size == (43, 64)  # the frame above its painting
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out, err) == (0, "", "")


CAMERA = """
import sys, av
really, camera = av.open, sys.argv.pop(1)
av.open = lambda name, *_, format=None, **options: really(camera if format == "v4l2" else name)
from faststy.cli import main
main()
"""


def start_with_camera(camera, model):
    """`faststy live` with the file `camera` behind /dev/video0."""
    return subprocess.Popen(
        [sys.executable, "-c", CAMERA, str(camera), "live", "-m", str(model), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_camera_that_opens_and_gives_nothing_does_not_block_ctrl_c(tmp_path, model):
    os.mkfifo(tmp_path / "camera")
    end = os.open(tmp_path / "camera", os.O_RDWR)
    running = start_with_camera(tmp_path / "camera", model)
    try:
        os.write(end, b"some")
        wait_for(lambda: struct.unpack("i", fcntl.ioctl(end, termios.FIONREAD, b"1234")) == (0,))
        running.send_signal(signal.SIGINT)
        out, _ = running.communicate(timeout=20)
        assert (running.returncode, out) == (130, "")
    finally:
        running.kill()
        os.close(end)


def test_a_camera_that_was_lost_is_opened_again(film, model):
    running = start_with_camera(film("a.mp4", frames=3, size=(64, 48)), model)
    try:
        address = r"http://127\.0\.0\.1:(\d+)/\?(token=\S+)  shows /dev/video0;"
        port, token = re.match(address, running.stdout.readline()).groups()
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)

        seen, number = [], 0
        while seen[-2:] != [503, 200]:  # as the page asks
            connection.request("GET", f"/frame?after={number}&{token}")
            answer = connection.getresponse()
            data = answer.read()
            if answer.status == 200:
                assert int(answer.headers["X-Number"]) > number
                number = int(answer.headers["X-Number"])
            else:
                error = json.loads(data)["error"]
                assert error == "the camera gives no more frames; trying again"
                time.sleep(0.05)
            seen.append(answer.status)
            assert len(seen) < 500
        running.send_signal(signal.SIGINT)
        assert running.communicate(timeout=20) == ("", "")
        assert running.returncode == 0
    finally:
        running.kill()


def test_a_film_on_a_disk_in_memory_is_no_camera(film, disk_in_memory):
    source = shutil.copy(film("a.mp4", frames=3, size=(64, 48)), disk_in_memory)
    frames = live._frames(str(source), 24)
    assert next(frames).shape == (24, 32, 3)
    frames.close()


def wait_for(true, seconds=40):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_mistakes_are_one_sentence(faststy, model, tmp_path):
    (tmp_path / "text.txt").write_text("hello")
    for arguments, sentence in [
        (("/dev/video97",), "/dev/video97: there is no such camera; try: faststy live demo"),
        (("97",), "/dev/video97: there is no such camera; try: faststy live demo"),
        (("/dev/null",), "/dev/null: the camera cannot be read"),
        ((tmp_path / "missing.mp4",), "missing.mp4: cannot be read (No such file"),
        ((tmp_path / "text.txt",), "text.txt: not a video"),
        (("demo", "--style", "snow"), "unknown style 'snow'"),
    ]:
        status, err = faststy(*arguments, "-m", model, "--port", 0)
        assert status == 2
        assert err.startswith("faststy: ")
        assert err.count("\n") == 1
        assert sentence in err


def test_a_taken_port_is_one_sentence(faststy, model):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        status, err = faststy("demo", "-m", model, "--port", port, "--size", 32)
    assert status == 2
    assert err.startswith(f"faststy: port {port} cannot be used (Address already in use)")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(16, "Device or resource busy"), "busy: another program uses it"),
        (PermissionError(13, "Permission denied"), "may not be used"),
        (OSError(5, "Input/output error"), r"cannot be read \(Input/output error\)"),
    ],
)
def test_a_camera_that_does_not_open(monkeypatch, error, sentence):
    import av

    from faststy.errors import FaststyError
    from faststy.stylization.clips import open_camera

    def refuse(name, *_, **options):
        assert options["format"] == "v4l2"
        raise error

    monkeypatch.setattr(av, "open", refuse)
    with pytest.raises(FaststyError, match=f"/dev/video0: the camera .*{sentence}|{sentence}"):
        open_camera("/dev/video0")


def test_a_camera_that_opens(monkeypatch, film):
    import av

    from faststy.stylization.clips import open_camera

    path, really = film("a.mp4", frames=3), av.open
    monkeypatch.setattr(av, "open", lambda name, *_, **options: really(str(path)))
    camera = open_camera("/dev/video0", size=24)
    assert [frame.shape for frame in camera.frames()] == [(24, 32, 3)] * 3
    camera.close()
