"""`faststy live`: what it shows, and what is said when there is nothing to show."""

import http.client
import io
import re
import signal
import socket
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from PIL import Image

from faststy.cli import main
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
    port = re.fullmatch(rf"http://127\.0\.0\.1:(\d+)/  shows {source}; Ctrl-C ends it\n", line)[1]
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
    connection.request("GET", "/frame?after=0")
    picture = Image.open(io.BytesIO(connection.getresponse().read()))
    assert picture.size == (43, 32)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out, err) == (0, "", "")


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
