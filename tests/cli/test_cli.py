"""The frame of the command line: what all commands share."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

import faststy.cli
from faststy.cli import group, main
from faststy.errors import FaststyError

FILES = {
    path.stem for path in Path(faststy.cli.__file__).parent.glob("*.py") if path.stem[0] != "_"
}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "faststy", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
    )


@pytest.fixture
def call(monkeypatch, capsys):
    """Calls main() in this process: the exit status, standard output and standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["faststy", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        return (stop.value.code, *capsys.readouterr())

    return call


def commands() -> list[tuple[str, click.Command]]:
    ctx = click.Context(group)
    return [(name, group.get_command(ctx, name)) for name in group.list_commands(ctx)]


def test_each_file_is_a_command():
    assert {name for name, _ in commands()} == FILES


def test_help_is_quick_and_lists_every_command():
    seconds = []
    for _ in range(5):
        before = os.times()
        done = run("--help")
        after = os.times()  # processor time: other tests may keep the machine busy
        seconds.append(sum(after[2:4]) - sum(before[2:4]))
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {name} " in done.stdout for name in FILES)
    assert min(seconds) < 0.3


def test_help_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['faststy', '--help']\n"
        "import faststy.cli; faststy.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("name", "command"), commands())
def test_a_command_and_all_its_options_are_explained(name, command):
    assert command.help
    assert not command.get_short_help_str(limit=62).endswith("..."), "first line is too long"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]}"


@pytest.fixture
def failing(monkeypatch):
    """Lets `faststy info` raise the given error."""

    def let_it_raise(error: Exception) -> None:
        def fail(**_: object) -> None:
            raise error

        monkeypatch.setattr(dict(commands())["info"], "callback", fail)

    return let_it_raise


def test_an_error_of_the_users_is_one_sentence_and_exit_status_2(failing, call):
    failing(FaststyError("photo.jpg: not a picture;\nname another file"))
    sentence = "faststy: photo.jpg: not a picture; name another file\n"
    assert call("info") == (2, "", sentence)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(13, "Permission denied", "out/a.png"), "out/a.png: Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_a_system_error_is_one_sentence_too(failing, call, error, sentence):
    failing(error)
    assert call("info") == (2, "", f"faststy: {sentence}\n")


def test_the_debug_variable_brings_the_traceback(failing, call, monkeypatch):
    monkeypatch.setenv("FASTSTY_DEBUG", "1")
    failing(FaststyError("photo.jpg: not a picture"))
    status, _, err = call("info")
    assert status == 2
    assert "Traceback (most recent call last)" in err


def test_a_mistake_in_our_code_is_not_hidden(failing, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["faststy", "info"])
    failing(KeyError("bug"))
    with pytest.raises(KeyError):
        main()


def test_text_that_standard_output_cannot_hold_is_escaped():
    done = run("transfer", "--help", PYTHONIOENCODING="latin-1")
    assert done.returncode == 0, done.stderr
    assert "\\u03bb, how strong" in done.stdout


def test_an_unknown_command_is_a_usage_error():
    done = run("nonsense")
    assert done.returncode == 2
    assert "No such command 'nonsense'" in done.stderr


@pytest.mark.parametrize(
    "arguments", [("stylize", ""), ("train", "a.jpg", "--out", ""), ("styles", "--sheet", "")]
)
def test_an_empty_argument_is_not_this_folder(call, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert "an argument is empty; is it a variable that is not set?" in err
    assert list(tmp_path.iterdir()) == []


def test_version():
    done = run("--version")
    assert done.stdout == f"faststy, version {faststy.__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell):
    done = run("completion", shell)
    assert done.returncode == 0, done.stderr
    assert f"_FASTSTY_COMPLETE={shell}_complete" in done.stdout


def test_completion_of_zsh_loads_what_it_needs(call):
    status, out, _ = call("completion", "zsh")
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == "#compdef faststy"
    assert lines[1].startswith("(( $+functions[compdef] )) || {")
    assert out.index("compinit }") < out.index("    compdef ")


def test_no_path_is_judged_before_what_reads_it():
    """Else one that cannot be read ends a run over many, and not in our words."""
    import click

    for name, command in commands():
        for parameter in command.params:
            if isinstance(parameter.type, click.Path):
                assert not parameter.type.readable, (name, parameter.name)


def test_completion_completes():
    done = run(_FASTSTY_COMPLETE="bash_complete", COMP_WORDS="faststy comple", COMP_CWORD="1")
    assert done.stdout.splitlines() == ["plain,completion"]


def test_info_tells_what_computes_each_op():
    done = run("info", "--json", FASTSTY_IMPL="reference")
    facts = json.loads(done.stdout)
    assert facts["faststy"] == faststy.__version__
    assert facts["devices"][0].startswith("cpu")
    rows = {row["op"]: row for row in facts["ops"]}
    assert {"gram", "instance_norm"} <= rows.keys()
    assert rows["gram"]["name"] == "reference"
    assert rows["gram"]["why"] == "FASTSTY_IMPL=reference"


def test_info_as_text_has_the_same_facts(call):
    status, out, _ = call("info")
    assert status == 0
    assert out.splitlines()[0].split() == ["faststy", faststy.__version__]
    _, as_json, _ = call("info", "--json")
    for row in json.loads(as_json)["ops"]:
        assert any(all(str(v) in line for v in row.values()) for line in out.splitlines())


def test_info_of_a_model(call, tmp_path):
    from faststy.model_file import Model, ModelInfo, save_model
    from faststy.nn.generator import Generator, GeneratorConfig

    shape = {"channels": 8, "blocks": 1, "styles": 2}
    info = ModelInfo(["waves", "ink"], shape, style_weight=0.7, license="CC0-1.0")
    info.descriptions = {"ink": "lines on paper"}
    path = tmp_path / "model.safetensors"
    save_model(Model(Generator(GeneratorConfig(**shape)), None, info), path)

    _, out, _ = call("info", str(path), "--json")
    facts = json.loads(out)
    assert facts["styles"] == ["waves", "ink"]
    assert facts["generator"] == shape
    assert facts["style_weight"] == 0.7
    assert facts["bytes"] == path.stat().st_size
    status, out, _ = call("info", str(path))
    assert status == 0
    lines = {line[:14].strip(): line[14:] for line in out.splitlines()}
    assert lines["license"] == "CC0-1.0"
    assert lines["styles"].split() == ["waves"]
    assert "descriptions" not in lines
    assert "ink    lines on paper" in out
    assert lines["style weight"] == "0.7"
    assert not {"size", "style size", "steps"} & {*lines}  # they are not known
    assert sorted(lines["generator"].split(", ")) == ["blocks 1", "channels 8", "styles 2"]


@pytest.mark.parametrize("content", [b"", b"not a model", b"\xff" * 100])
def test_info_of_a_damaged_model_is_one_sentence(call, tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    status, out, err = call("info", str(path))
    assert (status, out) == (2, "")
    assert err.startswith(f"faststy: {path}: ")
    assert err.count("\n") == 1
    assert call("info", "absent")[2] == "faststy: absent: no such file\n"


@pytest.mark.parametrize(
    "line",
    [
        ("stylize",),
        ("video",),
        ("live",),
        ("train",),
        ("train", "a.png", "--content"),
        ("train", "a.png", "--out"),
        ("train", "a.png", "--pairs"),
        ("train", "a.png", "--base"),
        ("train", "a.png", "--cache"),
        ("sweep",),
        ("sweep", "a.png", "--content"),
        ("sweep", "a.png", "--out"),
    ],
)
def test_the_shell_completes_files(line):
    from click.shell_completion import BashComplete

    from faststy.cli import group

    completion = BashComplete(group, {}, "faststy", "_FASTSTY_COMPLETE")
    assert [item.type for item in completion.get_completions([*line], "pi")] == ["file"]
