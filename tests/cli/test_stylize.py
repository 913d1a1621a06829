"""`faststy stylize`: what is read, what is written where, and what is said when it goes wrong."""

import errno
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from faststy import pictures
from faststy.cli import main
from faststy.cli.stylize import MemorySize
from faststy.errors import UnwritableError
from faststy.model_file import Model, ModelInfo, save_model
from faststy.nn.generator import Generator, GeneratorConfig
from faststy.nn.repairer import Repairer
from faststy.pictures import read_picture
from faststy.stylization import strips, tiles
from faststy.stylization.stylizer import Stylizer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    config = GeneratorConfig(channels=8, blocks=1, styles=2)
    info = ModelInfo(["rain", "starry night"], asdict(config), {"channels": 8})
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(Model(Generator(config), Repairer(8), info), path)
    return path


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder to work in, with photos/a.png, photos/sub/b.jpg and c.gif beside them."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Path("photos/sub").mkdir(parents=True)
    Image.fromarray(noise).save("photos/a.png")
    Image.fromarray(noise[::-1]).save("photos/sub/b.jpg")
    Image.fromarray(noise[:, ::-1]).save("c.gif")
    return tmp_path


@pytest.fixture
def faststy(monkeypatch, capsysbinary):
    """Runs the command line: exit status, standard output (bytes), standard error (text)."""

    def run(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "argv", ["faststy", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsysbinary.readouterr()
        return end.value.code or 0, out, err.decode()

    return run


def files(folder="."):
    found = (path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file())
    return sorted(map(str, found))


def pixels(source):
    return np.asarray(read_picture(source).rgb)


def fails_with(result, sentence):
    status, out, err = result
    assert status == 2
    assert out == b""
    assert err.startswith("faststy: ")
    assert err.count("\n") == 1
    assert sentence in err


def test_one_picture_appears_beside_its_photo(photos, model, faststy):
    before = Path("photos/a.png").read_bytes()
    assert faststy("stylize", "photos/a.png", "-m", model) == (0, b"", "")
    assert files("photos") == ["a.png", "a_rain.png", "sub/b.jpg"]
    assert Path("photos/a.png").read_bytes() == before
    expected = np.asarray(Stylizer.load(model)("photos/a.png"))
    np.testing.assert_array_equal(pixels("photos/a_rain.png"), expected)


def test_every_dial_reaches_the_stylizer(photos, model, faststy):
    Image.fromarray(np.full((20, 30), 90, np.uint8)).save("mask.png")
    status, _, _ = faststy(
        *(
            "stylize",
            "photos/a.png",
            "-m",
            model,
            "-o",
            "out.png",
            "--style",
            "rain:1,starry night",
        ),
        *("--strength", 0.7, "--repair", 0.2, "--keep-color", "--mask", "mask.png", "--size", 16),
        *("--stroke", "2"),
    )
    assert status == 0
    expected = Stylizer.load(model)(
        "photos/a.png",
        style={"rain": 1, "starry night": 1},
        strength=0.7,
        repair=0.2,
        keep_color=True,
        mask="mask.png",
        size=16,
        stroke=2,
    )
    np.testing.assert_array_equal(pixels("out.png"), np.asarray(expected))


def test_folder_gives_a_folder_with_the_same_names(photos, model, faststy):
    (photos / "photos" / "bad.png").write_bytes(b"no picture")
    (photos / "photos" / "cut.jpg").write_bytes(Path("photos/sub/b.jpg").read_bytes()[:500])
    (photos / "photos" / "notes.txt").touch()
    status, out, err = faststy("stylize", "photos", "-m", model, "-o", "out", "--json")
    assert status == 1
    assert files("out") == ["a.png", "sub/b.jpg"]
    report = json.loads(out)
    assert out.count(b"\n") == 1
    assert [entry["output"] for entry in report["painted"]] == ["out/a.png", "out/sub/b.jpg"]
    assert report["painted"][0]["width"] == 30
    assert [entry["input"] for entry in report["skipped"]] == ["photos/bad.png", "photos/cut.jpg"]
    assert report["style"] == {"rain": 1.0}
    assert "skipped 2 of 4 pictures" in err
    assert "photos/bad.png: not a picture" in err
    assert "photos/cut.jpg: damaged or cut off" in err


def test_folder_without_output_and_mixture_of_styles(photos, model, faststy):
    status, _, _ = faststy("stylize", "photos/", "-m", model, "--style", "starry night:1,rain:3")
    assert status == 0
    assert files("photos_starry-night+rain") == ["a.png", "sub/b.jpg"]


def test_several_inputs_keep_their_names(photos, model, faststy):
    assert faststy("stylize", "c.gif", "photos", "-m", model, "-o", "out")[0] == 0
    assert files("out") == ["c.gif.png", "photos/a.png", "photos/sub/b.jpg"]
    assert faststy("stylize", "c.gif", "photos/a.png", "-m", model)[0] == 0
    assert Path("c_rain.gif.png").is_file()
    assert Path("photos/a_rain.png").is_file()


def test_a_folder_does_not_become_a_picture(photos, model, faststy):
    answer = faststy("stylize", "photos", "-m", model, "-o", "x.png")
    fails_with(answer, "x.png: names a picture, but a folder gives a folder")
    assert not Path("x.png").exists()
    Path("x.png").mkdir()
    assert faststy("stylize", "photos", "-m", model, "-o", "x.png")[0] == 0
    assert files("x.png") == ["a.png", "sub/b.jpg"]


def test_a_style_without_its_flag_is_told(photos, model, faststy):
    answer = faststy("stylize", "photos/a.png", "rain", "-m", model)
    fails_with(answer, "rain: is a style and no picture; write --style rain")
    assert not Path("photos/a_rain.png").exists()
    shutil.copy("photos/a.png", "rain")  # a file may have the name of a style
    assert faststy("stylize", "rain", "-m", model, "-o", "x.png")[0] == 0


def test_several_inputs_do_not_become_one_picture(photos, model, faststy):
    answer = faststy("stylize", "c.gif", "photos/a.png", "-m", model, "-o", "x.png")
    fails_with(answer, "x.png: names a picture, but several inputs need a folder")
    assert not Path("x.png").exists()
    Path("x.png").mkdir()
    assert faststy("stylize", "c.gif", "photos/a.png", "-m", model, "-o", "x.png")[0] == 0
    assert files("x.png") == ["a.png", "c.gif.png"]


def test_names_reach_the_terminal_without_escape_sequences(photos, model, faststy):
    Path("photos/\x1b]0;mine\x07\n.png").write_bytes(b"")
    Path("c.gif").rename("photos/\x1b[2J.gif")
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save("photos/\x1b[2J.gif", save_all=True, append_images=frames[1:])
    status, _, err = faststy("stylize", "photos", "-m", model, "-o", "painted")
    assert status == 1
    assert r"  photos/\x1b]0;mine\x07\n.png: " in err
    assert r"faststy: photos/\x1b[2J.gif: of its 2 pictures" in err
    assert "\x1b" not in err


def test_pictures_of_foreign_formats_are_listed_as_skipped(photos, model, faststy):
    Path("trip").mkdir()
    Path("photos/a.png").rename("trip/a.png")
    for name in ("b.heic", "c.CR2"):
        Path("trip", name).write_bytes(b"whatever it is")
    Path("trip/notes.txt").touch()
    status, _, err = faststy("stylize", "trip", "-m", model)
    assert status == 1
    assert "skipped 2 of 3 pictures" in err
    assert "b.heic: not a picture" in err
    assert "c.CR2: not a picture" in err
    assert files("trip_rain") == ["a.png"]


def test_a_mask_of_another_shape_is_told(photos, model, faststy):
    width, height = Image.open("photos/a.png").size
    for size, told in {
        (2 * width, 2 * height): False,
        (height, width): width != height,
        (width, 2 * height): True,
    }.items():
        Image.new("L", size, 255).save("mask.png")
        status, _, err = faststy("stylize", "photos/a.png", "-m", model, "--mask", "mask.png")
        assert status == 0
        assert ("is stretched to" in err) is told


def test_a_person_is_told_where_the_painting_is(photos, model, faststy, monkeypatch):
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda _: True, raising=False)
    assert faststy("stylize", "photos/a.png", "-m", model)[2].endswith("photos/a_rain.png\n")
    assert faststy("stylize", "photos", "-m", model, "-o", "out")[2].endswith("pictures in out\n")
    away = str(Path("photos/sub/b.jpg").absolute())  # one by its whole path, one not
    assert faststy("stylize", "photos/a.png", away, "-m", model)[2].endswith(
        "2 pictures in photos\n"
    )


def test_standard_error_may_be_closed(photos, model, faststy, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert faststy("stylize", "photos", "-m", model, "-o", "out")[0] == 0
    assert files("out") == ["a.png", "sub/b.jpg"]


def test_output_folder_of_one_picture(photos, model, faststy):
    assert faststy("stylize", "photos/a.png", "-m", model, "-o", "new")[0] == 0
    assert files("new") == ["a.png"]
    (photos / "v1.5").mkdir()
    assert faststy("stylize", "photos/a.png", "-m", model, "-o", "v1.5")[0] == 0
    assert files("v1.5") == ["a.png"]


def test_earlier_results_are_not_painted_again(photos, model, faststy):
    for _ in range(2):
        status, out, _ = faststy("stylize", ".", "-m", model, "-o", "painted", "--json")
        assert status == 0
        assert len(json.loads(out)["painted"]) == 3
    fails_with(faststy("stylize", "painted", "-m", model, "-o", "painted"), "is an input")


def test_a_name_that_is_too_long_is_skipped(photos, model, faststy):
    long = f"{'a' * 300}.jpg"
    status, _, err = faststy("stylize", long, "photos/a.png", "-m", model, "-o", "out")
    assert (status, files("out")) == (1, ["a.png"])
    assert f"{long}: cannot be read (File name too long)" in err


def test_links_in_a_circle_are_told(photos, model, faststy):
    Path("circle").symlink_to("circle")
    Path("photos/circle.png").symlink_to("circle.png")
    fails_with(faststy("stylize", "photos", "-m", model, "-o", "circle"), "circle/a.png: cannot be")
    status, out, err = faststy("stylize", "photos", "-m", model, "-o", "photos/out", "--json")
    assert (status, len(json.loads(out)["painted"])) == (1, 2)
    assert "photos/circle.png: cannot be read (Too many levels of symbolic links)" in err


def test_standard_input_to_standard_output(photos, model, faststy):
    two = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    two[0].save("phone.jpg", "MPO", save_all=True, append_images=two[1:])  # as phones store a map
    for path, format in [
        ("photos/a.png", "PNG"),
        ("photos/sub/b.jpg", "JPEG"),
        ("phone.jpg", "JPEG"),
        ("c.gif", "PNG"),
    ]:
        status, out, err = faststy("stylize", "-", "-m", model, stdin=Path(path).read_bytes())
        assert (status, err) == (0, "")
        image = Image.open(io.BytesIO(out))
        assert (image.format, image.size) == (format, (30, 20))
    assert faststy("stylize", "photos/a.png", "-o", "-", "-m", model)[1].startswith(b"\x89PNG")
    data = Path("c.gif").read_bytes()
    assert faststy("stylize", "-", "-o", "d.webp", "-m", model, stdin=data) == (0, b"", "")
    assert Image.open("d.webp").format == "WEBP"


def test_a_disk_in_memory_is_no_device(photos, model, faststy, disk_in_memory):
    shutil.copy("photos/a.png", disk_in_memory)
    assert faststy("stylize", disk_in_memory / "a.png", "-m", model)[0] == 0
    assert files(disk_in_memory) == ["a.png", "a_rain.png"]


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="there is no /dev/fd")
def test_a_pipe_by_name(photos, model, faststy):
    def piped():
        end, begin = os.pipe()
        os.write(begin, Path("photos/a.png").read_bytes())
        os.close(begin)
        return end

    end = piped()
    assert faststy("stylize", f"/dev/fd/{end}", "-m", model, "-o", "b.png") == (0, b"", "")
    os.close(end)
    assert faststy("stylize", "photos/a.png", "-m", model, "-o", "c.png")[0] == 0
    assert Path("b.png").read_bytes() == Path("c.png").read_bytes()
    end = piped()
    sentence = f"/dev/fd/{end} has no name; name the output by -o painted.png"
    fails_with(faststy("stylize", f"/dev/fd/{end}", "-m", model), sentence)
    os.close(end)


@pytest.mark.skipif(os.name != "posix", reason="shells of another kind")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("stylize - -o b.png <&-", "standard input is closed; name a picture"),
        ("stylize photos/a.png -o - >&-", "standard output is closed; name a file by -o"),
        ("video - -o b.mp4 <&-", "standard input is closed; pipe a video into it, or name a file"),
    ],
)
def test_closed_streams_are_told(photos, arguments, sentence):
    command = f"{sys.executable} -m faststy {arguments}"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, f"faststy: {sentence}\n")


def test_save_map(photos, model, faststy):
    status, out, _ = faststy("stylize", "photos", "-m", model, "-o", "out", "--save-map", "--json")
    assert status == 0
    assert files("out") == ["a.png", "a_lost.png", "sub/b.jpg", "sub/b_lost.png"]
    assert json.loads(out)["painted"][0]["map"] == "out/a_lost.png"
    assert pixels("out/a_lost.png").shape == (20, 30, 3)


def test_maps_of_pictures_that_differ_by_their_suffix(photos, model, faststy):
    Image.open("photos/a.png").save("photos/a.jpg")
    assert faststy("stylize", "photos", "-m", model, "-o", "out", "--save-map")[0] == 0
    assert {"a.jpg_lost.png", "a.png_lost.png", "sub/b_lost.png"} < {*files("out")}


def test_the_file_that_standard_input_is_is_not_overwritten(photos, model):
    before = Path("photos/a.png").read_bytes()
    Path("link.png").symlink_to("photos/a.png")
    for target in ("photos/a.png", "link.png"):
        with open("photos/a.png", "rb") as source:
            command = [sys.executable, "-m", "faststy", "stylize", "-", "-m", model, "-o", target]
            done = subprocess.run(command, stdin=source, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 2
        assert f"{target}: is an input and will not be overwritten" in done.stderr
    assert Path("photos/a.png").read_bytes() == before


def test_inputs_are_never_overwritten(photos, model, faststy):
    Path("link.png").symlink_to("photos/a.png")
    before = {name: Path(name).read_bytes() for name in files()}
    for arguments in [
        ("photos/a.png", "-o", "photos/a.png"),
        ("photos/a.png", "-o", "link.png"),
        ("photos", "-o", "photos"),
        ("photos/a.png", "-o", "photos"),
        ("c.gif", "-o", "photos/a.png", "--mask", "photos/a.png"),
    ]:
        fails_with(faststy("stylize", *arguments, "-m", model), "is an input")
    assert {name: Path(name).read_bytes() for name in files()} == before


def test_what_nobody_may_read_is_skipped(photos, model, faststy, monkeypatch):
    """As of other users: root may read everything."""
    monkeypatch.setattr("os.access", lambda path, mode, **how: Path(path).name != "a.png")

    def refused(path, mode):
        if Path(path).name == "a.png":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return open(path, mode)

    monkeypatch.setattr(pictures, "open", refused, raising=False)
    status, _, err = faststy("stylize", "photos/a.png", "c.gif", "-m", model, "-o", "out")
    assert status == 1
    assert "photos/a.png: cannot be read (Permission denied)" in err
    assert files("out") == ["c.gif.png"]


def test_mistakes_are_one_sentence_and_leave_nothing(photos, model, faststy):
    Path("empty").mkdir()
    Path("zero.png").touch()
    Path("text.png").write_text("hello")
    Path("cut.safetensors").write_bytes(model.read_bytes()[:100])
    Path("file").touch()
    Path("photos/copy").mkdir()
    Image.open("photos/a.png").save("photos/copy/a.png")
    before = files()
    for arguments, sentence in [
        (("zero.png",), "zero.png: the file is empty (zero bytes)"),
        (("text.png",), "text.png: not a picture"),
        (("missing.png",), "missing.png: cannot be read (No such file"),
        (("empty",), "empty: no pictures in this folder"),
        (("photos/a.png", "-o", "out.gif"), "out.gif: '.gif' is no format"),
        (("photos/a.png", "-o", "file/out.png"), "file/out.png: cannot be written"),
        (("photos/a.png", "--style", "stary night"), "did you mean 'starry night'?"),
        (("photos/a.png", "--mask", "text.png"), "text.png: not a picture"),
        (("photos/a.png", "photos/copy/a.png", "-o", "out"), "out/a.png: both photos/a.png and"),
        (("photos", "-o", "-"), "a folder cannot go to standard output"),
        (("photos/a.png", "c.gif", "-o", "-"), "take one picture"),
        (("-", "c.gif"), "take one picture"),
        (("-", "--json"), "both want standard output"),
        (("-", "--save-map"), "--save-map needs an output file"),
        (("-",), "standard input: the file is empty"),
    ]:
        fails_with(faststy("stylize", *arguments, "-m", model), sentence)
        assert files() == before
    for bad in ("cut.safetensors", "missing", "photos", "photos/a.png"):
        fails_with(faststy("stylize", "photos/a.png", "-m", bad), f"{bad}: ")


def test_nothing_painted_is_status_2(photos, model, faststy):
    for name in ("x.png", "y.png"):
        (photos / name).touch()
    status, out, err = faststy("stylize", "x.png", "y.png", "-m", model, "--json")
    assert status == 2
    assert len(json.loads(out)["skipped"]) == 2
    assert err.splitlines()[-1] == "faststy: none of 2 pictures could be painted"


def test_terminal_is_not_filled_with_bytes(photos, model, faststy, monkeypatch, capsysbinary):
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _: True, raising=False)
    fails_with(faststy("stylize", "c.gif", "-o", "-", "-m", model), "is a terminal")


def test_full_disk_ends_the_run(photos, model):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))

    result = subprocess.run(
        [sys.executable, "-m", "faststy", "stylize", "photos", "-o", "out", "-m", model],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert result.returncode == 2
    assert "out/a.png: cannot be written (File too large)" in result.stderr
    assert result.stderr.count("\n") == 1
    assert files("out") == []


def test_a_disk_that_is_full_after_some_pictures_tells_what_is_painted(
    photos, model, faststy, monkeypatch
):
    def full(data, path):
        if path.name == "b.jpg":
            raise UnwritableError(f"{path}: cannot be written (No space left on device)")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)

    monkeypatch.setattr(pictures, "write_data", full)
    Path("photos/broken.png").touch()
    shutil.copy("c.gif", "photos/z.gif")
    status, out, err = faststy("stylize", "photos", "-o", "out", "-m", model, "--json")
    assert status == 1
    values = json.loads(out)
    assert [entry["output"] for entry in values["painted"]] == ["out/a.png"]
    broken, unwritable = values["skipped"]
    assert broken["input"] == "photos/broken.png"
    reason = "out/sub/b.jpg: cannot be written (No space left on device)"
    assert unwritable == {"input": "photos/sub/b.jpg", "reason": reason}
    first, told, last = err.splitlines()
    assert first == "faststy: skipped 1 of 4 pictures:"
    assert told == f"  {broken['reason']}"
    assert last == f"faststy: {reason}; 1 of 4 pictures painted"
    assert files("out") == ["a.png"]


def test_a_painting_that_cannot_be_written_is_skipped(photos, model, faststy):
    Path("out/a.png").mkdir(parents=True)
    status, out, err = faststy("stylize", "photos", "-o", "out", "-m", model, "--json")
    reason = "out/a.png: is a folder; name a file in it"
    assert status == 1
    assert json.loads(out)["skipped"] == [{"input": "photos/a.png", "reason": reason}]
    assert f"skipped 1 of 2 pictures:\n  {reason}\n" in err
    assert files("out") == ["sub/b.jpg"]


def test_a_folder_that_cannot_be_made_ends_the_run(photos, model, faststy, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    fails_with(
        faststy("stylize", "photos", "-o", "out", "-m", model), "out/a.png: cannot be written"
    )


def test_without_a_model_the_bundled_styles_paint(photos, faststy):
    status, out, _ = faststy("stylize", "photos/a.png", "--style", "ink", "-o", "ink.png", "--json")
    assert status == 0
    assert json.loads(out)["style"] == {"ink": 1.0}
    expected = np.asarray(Stylizer.load()("photos/a.png", style="ink"))
    assert (np.asarray(Image.open("ink.png")) == expected).all()


def test_little_memory_paints_in_tiles(photos, model, faststy):
    large = np.random.default_rng(0).integers(0, 256, (530, 540, 3), np.uint8)
    Image.fromarray(large).save("large.png")
    status, _, err = faststy("stylize", "large.png", "-m", model, "-o", "o.png", "--memory", "1M")
    assert status == 0, err
    expected = Stylizer.load(model).paint(large, memory=1).picture.rgb
    np.testing.assert_array_equal(pixels("o.png"), np.asarray(expected))


def test_a_painting_in_tiles_is_written_without_its_map(photos, model, faststy):
    large = np.random.default_rng(0).integers(0, 256, (530, 540, 3), np.uint8)
    Image.fromarray(large).save("photos/large.png")
    enough = 520 << 20  # for the others as a whole, and for tiles of this one
    flags = ("-m", model, "-o", "out", "--memory", enough, "--save-map", "--json")
    status, out, err = faststy("stylize", "photos", *flags)
    assert status == 0
    assert files("out") == ["a.png", "a_lost.png", "large.png", "sub/b.jpg", "sub/b_lost.png"]
    told = "photos/large.png: painted in tiles, there is no map to save; give more --memory"
    assert err == f"faststy: {told}\n"
    assert [entry.get("map") for entry in json.loads(out)["painted"]] == [
        "out/a_lost.png",
        None,
        "out/sub/b_lost.png",
    ]


def least(model, width, height):
    """MiB of memory: for 450 MiB, 8 bytes a pixel, and 200 for each that a tile sees."""
    seen = 512 + 2 * Stylizer.load(model).halo((width, height))
    whole = (450 << 20) + 8 * width * height + 200 * min(seen, width) * min(seen, height)
    return -(-whole // (1 << 20))


def test_a_limit_that_cannot_be_kept_is_told(photos, model, faststy):
    noise = np.random.default_rng(0).integers(0, 256, (530, 540), np.uint8)
    Image.fromarray(noise).save("grey.png")
    Image.fromarray(noise[..., None].repeat(3, 2)).save("rgb.png")
    needed = least(model, 540, 530)
    says = "takes about {}M of memory, more than --memory {}M; it is painted all the same\n".format
    limits = ("-m", model, "-o", "o.png", "--memory")
    status, _, err = faststy("stylize", "grey.png", *limits, "500M")
    assert (status, err) == (0, f"faststy: grey.png {says(needed, 500)}")
    assert faststy("stylize", "grey.png", *limits, f"{needed}M")[2] == ""
    data = Path("grey.png").read_bytes()
    status, _, err = faststy("stylize", "-", *limits, "500M", stdin=data)
    assert (status, err) == (0, f"faststy: standard input {says(needed, 500)}")
    # What is scaled down is held at its full size, too.
    scaled = -(-(least(model, 306, 300) * (1 << 20) + 4 * 540 * 530) // (1 << 20))
    assert "about" in faststy("stylize", "rgb.png", *limits, "400M", "--size", "300")[2]
    assert faststy("stylize", "rgb.png", *limits, f"{scaled}M", "--size", "300")[2] == ""


def test_what_is_free_may_be_too_little(photos, model, faststy, monkeypatch):
    monkeypatch.setattr(tiles, "available_memory", lambda: 100 << 20)
    status, _, err = faststy("stylize", "c.gif", "-m", model, "-o", "o.png")
    assert status == 0
    needed = least(model, 30, 20)
    assert err == (
        f"faststy: c.gif takes about {needed}M of memory, more than what is free to take, 100M; "
        "it is painted all the same\n"
    )


@pytest.mark.skipif(not strips.is_available(), reason="libvips is not installed")
def test_strips_that_are_too_wide_for_the_limit_are_told(photos, model, faststy):
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1100, 3), np.uint8)
    Image.fromarray(noise).save("large.png")
    halo = Stylizer.load(model).halo((1100, 1024))
    needed = -(-strips.least_memory(halo, 1100) // (1 << 20))
    limits = ("-m", model, "-o", "o.png", "--memory")
    status, _, err = faststy("stylize", "large.png", *limits, "500M")
    assert (status, err) == (
        0,
        f"faststy: large.png takes about {needed}M of memory, more than --memory 500M; "
        "it is painted all the same\n",
    )
    assert faststy("stylize", "large.png", *limits, f"{needed}M")[2] == ""


@pytest.mark.skipif(not strips.is_available(), reason="libvips is not installed")
def test_a_disk_that_is_full_ends_strips_of_several_pictures_at_the_first(
    photos, model, faststy, monkeypatch
):
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1100, 3), np.uint8)
    for name in ("large1.png", "large2.png"):
        Image.fromarray(noise).save(name)
    tried = []

    def full(raw, picture, format, descriptor):
        tried.append(picture.path.name)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(strips, "_encode", full)
    pair = ("large1.png", "large2.png", "-o", "o", "-m", model, "--memory", "500M")
    status, _, err = faststy("stylize", *pair)
    assert status == 2
    assert err.endswith("large1.png: cannot be written (No space left on device)\n")
    assert tried == ["large1.png"]
    assert list(Path("o").iterdir()) == []


@pytest.mark.skipif(not strips.is_available(), reason="libvips is not installed")
@pytest.mark.skipif(os.name != "posix", reason="there is no such signal")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_half_written(photos, model, number):
    noise = np.random.default_rng(0).integers(0, 256, (3000, 3000, 3), np.uint8)
    Image.fromarray(noise).save("large.png", compress_level=0)
    Path("out").mkdir()
    command = [sys.executable, "-m", "faststy", "stylize", "large.png", "-m", str(model)]
    before = signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP is ignored
    running = subprocess.Popen([*command, "-o", "out/large.png", "--memory", "500M"])
    signal.signal(number, before)
    deadline = time.monotonic() + 60
    while not (found := os.listdir("out")) and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(number)
    assert running.wait(60) == 128 + number
    assert found  # what was being written
    assert os.listdir("out") == []


def test_interrupted_it_tells_what_is_painted(photos, model, faststy, monkeypatch):
    painted = []

    def interrupted(self, photo, **dials):
        if painted:
            raise KeyboardInterrupt
        painted.append(photo.name)
        return real(self, photo, **dials)

    real = Stylizer.paint
    monkeypatch.setattr(Stylizer, "paint", interrupted)
    status, out, err = faststy("stylize", ".", "-o", "o", "-m", model, "--json")
    assert status == 130
    assert [entry["input"] for entry in json.loads(out)["painted"]] == painted
    assert len([path for path in Path("o").rglob("*") if path.is_file()]) == 1
    assert "faststy: stopped; 1 of " in err


def test_interrupted_elsewhere_it_says_so(photos, model, faststy, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Stylizer, "load", interrupted)
    assert faststy("stylize", "c.gif", "-m", model) == (130, b"", "faststy: stopped\n")


def test_what_is_left_of_an_animation_is_told(photos, model, faststy):
    frames = [Image.new("RGB", (20, 20), (i, 99, 9 * i)) for i in range(6)]
    for name in ("a.gif", "a.tif"):
        frames[0].save(name, save_all=True, append_images=frames[1:])
    status, _, err = faststy("stylize", "a.gif", "a.tif", "-o", "o", "-m", model)
    assert status == 0
    assert "a.gif: of its 6 pictures the first is painted; faststy video paints all\n" in err
    assert "a.tif: of its 6 pictures the first is painted\n" in err
    assert faststy("stylize", "c.gif", "-o", "c.png", "-m", model)[2] == ""


@pytest.mark.skipif(not strips.is_available(), reason="libvips is not installed")
def test_pages_that_are_left_out_are_told_in_strips_too(photos, model, faststy):
    page = Image.new("RGB", (1100, 1024), "red")
    page.save("a.tif", save_all=True, append_images=[page])
    status, _, err = faststy("stylize", "a.tif", "-o", "o.png", "-m", model, "--memory", "500M")
    assert status == 0
    assert "a.tif: of its 2 pictures the first is painted\n" in err


@pytest.mark.parametrize("option", ["--strength", "--repair"])
def test_a_dial_that_is_no_number(photos, model, faststy, option):
    status, _, err = faststy("stylize", "c.gif", "-m", model, "-o", "o.png", option, "nan")
    assert status == 2
    assert f"Invalid value for '{option}': 'nan' is no finite number." in err


@pytest.mark.parametrize("size", ["0", "0.5", "9" * 400, "much", "-2G", "1.2.3G"])
def test_memory_that_is_no_size(photos, model, faststy, size):
    status, _, err = faststy("stylize", "c.gif", "-m", model, "-o", "o.png", "--memory", size)
    assert status == 2
    assert "is no size; write 500M or 2G" in err


@pytest.mark.parametrize(
    ("text", "size"), [("500M", 500 << 20), ("2G", 2 << 30), ("1.5GiB", 3 << 29), ("1000", 1000)]
)
def test_memory_sizes(text, size):
    assert MemorySize().convert(text, None, None) == size
