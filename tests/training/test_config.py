import inspect
import re
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from faststy.errors import FaststyError
from faststy.training.config import (
    ADVERSARIAL,
    DEFAULT_SECONDS,
    MODELS,
    STAGES,
    TrainConfig,
    read_config,
)
from faststy.training.log import Progress
from faststy.training.loop import TrainResult

DEFAULT = {field.name: field.default for field in fields(TrainConfig)}


def toml(tmp_path, text):
    path = tmp_path / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = toml(tmp_path, 'style = ["a.jpg"]\nbatch = 11\nsize = 72\n')
    config = read_config(path, batch=13, model=None)
    assert config.style == ("a.jpg",)
    assert (config.batch, config.size) == (13, 72)
    others = set(DEFAULT) - {"style", "batch", "size"}
    assert {name: getattr(config, name) for name in others} == {n: DEFAULT[n] for n in others}


def test_without_a_file_the_flags_are_enough():
    assert read_config(None, style=("a.jpg",)) == TrainConfig(style=("a.jpg",))


def test_the_way_to_toml_and_back_keeps_everything(tmp_path):
    config = TrainConfig(
        style=('a "b".jpg', "λ\\x"), seconds=12.5, stages=STAGES[:2], pairs="p", seed=2**40
    )
    config.write(tmp_path / "config.toml")
    assert read_config(tmp_path / "config.toml") == config
    config = TrainConfig(style=("a",), style_share=0.5, tensorboard=True)
    config.write(tmp_path / "config.toml")
    assert read_config(tmp_path / "config.toml") == config
    plain = TrainConfig(style=("a",))
    plain.write(tmp_path / "config.toml")
    assert read_config(tmp_path / "config.toml") == plain


def test_toml_may_spell_names_as_flags_and_numbers_as_they_come(tmp_path):
    path = toml(tmp_path, 'style = "a.jpg"\nstyle-weight = 3\nseconds = 20\n')
    config = read_config(path)
    assert config.style == ("a.jpg",)
    assert config.style_weight == 3.0
    assert isinstance(config.style_weight, float)
    assert config.seconds_budget == 20.0


def test_a_length_on_the_command_line_replaces_the_files(tmp_path):
    path = toml(tmp_path, 'style = "a.jpg"\nsteps = 500\n')
    assert read_config(path).seconds_budget is None
    config = read_config(path, seconds=9.0)
    assert (config.steps, config.seconds_budget) == (None, 9.0)
    config = read_config(toml(tmp_path, 'style = "a.jpg"\nseconds = 5\n'), steps=7)
    assert (config.steps, config.seconds, config.seconds_budget) == (7, None, None)


def test_the_default_length_is_in_seconds():
    assert TrainConfig(style=("a",)).seconds_budget == DEFAULT_SECONDS


def test_no_style_is_said():
    with pytest.raises(FaststyError, match="style is ''; it must be at least one picture"):
        read_config(None)


@pytest.mark.parametrize("text", ["", "style = []\n", "steps = 5\n"])
def test_a_file_without_a_style_is_named(tmp_path, text):
    with pytest.raises(FaststyError, match=r's\.toml: names no style; add style = "painting.jpg"'):
        read_config(toml(tmp_path, text))
    assert read_config(toml(tmp_path, text), style="a.jpg").style == ("a.jpg",)


def test_an_unknown_setting_is_named_with_the_known_ones(tmp_path):
    path = toml(tmp_path, 'style = "a"\nlerning_rate = 1\n')
    with pytest.raises(FaststyError, match="unknown setting 'lerning_rate'; known are style, "):
        read_config(path)


@pytest.mark.parametrize(
    ("line", "name", "kind"),
    [
        ('batch = "4"', "batch", "int"),
        ("batch = 4.0", "batch", "int"),
        ("batch = true", "batch", "int"),
        ("style_weight = true", "style_weight", "float"),
        ('seconds = "60"', "seconds", "float"),
        ("steps = 1.5", "steps", "int"),
        ("model = 3", "model", "str"),
        ("style = [1, 2]", "style[0]", "str"),
        ("stages = 1", "stages", "tuple[str, ...]"),
        ("content = ['a']", "content", "str"),
        ("tensorboard = 1", "tensorboard", "bool"),
        ("style_share = false", "style_share", "float"),
    ],
)
def test_a_value_of_the_wrong_type_names_setting_and_type(tmp_path, line, name, kind):
    path = toml(tmp_path, line)
    said = f"^{re.escape(f'{path}: {name}')} is .* which is not of type {re.escape(kind)}$"
    with pytest.raises(FaststyError, match=said):
        read_config(path, style=("a",))


def test_python_may_spell_paths_and_tuples_as_they_come(tmp_path):
    plain = TrainConfig(style=("a.jpg",), content="photos", out="run", stages=("perceptual",))
    for style in ("a.jpg", Path("a.jpg"), ["a.jpg"], [Path("a.jpg")]):
        config = TrainConfig(
            style=style, content=Path("photos"), out=Path("run"), stages=["perceptual"]
        )
        assert config == plain
    numbers = TrainConfig(style="a", seed=np.int64(3), learning_rate=np.float32(0.5))
    assert (type(numbers.seed), type(numbers.learning_rate)) == (int, float)
    config = TrainConfig(style="a.jpg", seconds=3)
    assert isinstance(config.seconds, float)
    config.write(tmp_path / "config.toml")
    assert read_config(tmp_path / "config.toml") == config


@pytest.mark.parametrize("setting", ["style", "content", "cache", "out", "pairs"])
def test_an_empty_name_is_not_the_folder_of_now(setting):
    with pytest.raises(FaststyError, match=f"^{setting} is ''; it must be no empty name"):
        TrainConfig(**{"style": "a", setting: ""})


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("style", 3, "style is 3, which is not of type tuple[str, ...]"),
        ("style", ("a", 3), "style[1] is 3, which is not of type str"),
        ("style", None, "style is None, which is not of type tuple[str, ...]"),
        ("device", b"cpu", "device is b'cpu', which is not of type str"),
        ("out", None, "out is None, which is not of type str"),
        ("steps", 2.5, "steps is 2.5, which is not of type int"),
        ("size", 192.0, "size is 192.0, which is not of type int"),
        ("batch", 2.5, "batch is 2.5, which is not of type int"),
        ("seed", True, "seed is True, which is not of type int"),
        ("seconds", "3", "seconds is '3', which is not of type float"),
        ("style_weight", "5", "style-weight is '5', which is not of type float"),
        ("tensorboard", 1, "tensorboard is 1, which is not of type bool"),
    ],
)
def test_python_values_of_the_wrong_type_are_named_at_once(name, value, sentence):
    with pytest.raises(FaststyError) as caught:
        TrainConfig(**{"style": "a", name: value})
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("seconds", -1.0),
        ("seconds", float("nan")),
        ("size", 32),
        ("size", 100),
        ("size", 4096),
        ("style_size", 8),
        ("batch", 0),
        ("batch", 65_537),
        ("model", "huge"),
        ("seed", -1),
        ("seed", 2**63),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("style_weight", 0.0),
        ("style_weight", float("nan")),
        ("style_weight_start", 0.0),
        ("style_share", 0.0),
        ("style_share", 1.0),
        ("style_share", float("nan")),
        ("style_weight_start", 1.5),
        ("content_weight", -1.0),
        ("content_weight", float("nan")),
        ("paired_weight", -0.1),
        ("adversarial", "wgan"),
        ("stages", ()),
        ("stages", ("adversarial",)),
        ("stages", ("perceptual", "perceptual")),
        ("stages", ("perceptual", "repair", "adversarial")),
        ("stages", ("perceptual", "polish")),
    ],
)
def test_a_value_out_of_range_names_the_setting_and_what_it_can_be(name, value):
    with pytest.raises(FaststyError, match=f"^{name.replace('_', '-')} is .*; it must be ."):
        TrainConfig(**{"style": ("a",), name: value})


def test_steps_and_seconds_exclude_each_other():
    with pytest.raises(FaststyError, match="steps is 5; it must be absent when seconds is given"):
        TrainConfig(style=("a",), steps=5, seconds=5.0)


@pytest.mark.parametrize("stages", [STAGES[:1], STAGES[:2], STAGES, ("perceptual", "repair")])
def test_stages_in_order(stages):
    assert TrainConfig(style=("a",), stages=stages).stages == stages


def test_a_whole_number_that_no_float_can_hold(tmp_path):
    toml(tmp_path, f"style = 'a'\nseconds = 1{'0' * 400}")
    with pytest.raises(FaststyError, match="seconds is inf; it must be finite"):
        read_config(tmp_path / "settings.toml")


def test_files_that_are_no_toml(tmp_path):
    (tmp_path / "bytes.toml").write_bytes(b"style = '\xff'")
    toml(tmp_path, "style = ")
    for name in ("settings.toml", "bytes.toml", "absent.toml", "."):
        path = tmp_path / name
        with pytest.raises(FaststyError, match="cannot be read as TOML settings") as caught:
            read_config(path)
        assert str(caught.value).startswith(str(path))


def test_models_and_forms_are_those_of_the_generator_and_of_the_loss():
    from faststy.nn.generator import SIZES
    from faststy.ops.combined_loss import FORMS

    assert tuple(SIZES) == MODELS
    assert FORMS == ADVERSARIAL


@pytest.mark.parametrize("each", [TrainConfig, TrainResult, Progress])
def test_every_field_is_documented_in_their_order(each):
    *_, attributes = inspect.getdoc(each).partition("Attributes:\n")
    named = re.findall(r"^ {4}(\w[\w, ]*):", attributes, re.MULTILINE)
    assert ", ".join(named).split(", ") == [field.name for field in fields(each)]


def test_config_needs_no_torch():
    import subprocess

    program = "import sys, faststy.training.config; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root).returncode == 0


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "a.toml"
    path.write_bytes(b'\xef\xbb\xbfstyle = "a.jpg"\nsteps = 3\n')
    assert read_config(path).steps == 3


def test_names_with_a_zero_byte_are_refused():
    with pytest.raises(
        FaststyError, match=r"^cache is 'a\\x00b'; it must be a name without a zero"
    ):
        TrainConfig(style=("a",), cache="a\0b")
