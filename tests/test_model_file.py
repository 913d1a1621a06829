import json
import math
import os
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from faststy import model_file
from faststy.errors import FaststyError
from faststy.model_file import FORMAT, KEY, Model, ModelInfo, load_info, load_model, save_model
from faststy.nn.generator import Generator, GeneratorConfig
from faststy.nn.repairer import Repairer


def model(styles=("rain", "night: 2"), repairer=True):
    torch.manual_seed(0)
    config = GeneratorConfig(channels=8, blocks=1, styles=len(styles))
    net = Repairer(8) if repairer else None
    info = ModelInfo(
        list(styles),
        asdict(config),
        net.config if net else None,
        {styles[0]: "grey, wet"},
        style_weight=2.5,
        size=64,
        steps=7,
        license="λ & co",
        version="0.1.0",
        extra={"b": 1, "a": [2.5, None]},
    )
    return Model(Generator(config), net, info)


@pytest.fixture
def path(tmp_path):
    save_model(model(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def rewrite(path, change):
    """The model file with another description."""
    tensors, values = load_file(path), asdict(load_info(path))
    values = change(values, tensors) or values
    text = values if isinstance(values, str) else json.dumps(values)
    save_file(tensors, path, {KEY: text})


@pytest.mark.parametrize("repairer", [True, False])
def test_a_round_trip_keeps_every_bit(tmp_path, repairer):
    path = tmp_path / "model.safetensors"
    before = model(repairer=repairer)
    save_model(before, path)
    after = load_model(path)
    assert after.info == before.info == load_info(path)
    assert (after.repairer is None) != repairer
    for old, new in [(before.generator, after.generator), (before.repairer, after.repairer)]:
        if old is not None:
            assert not new.training
            state = new.state_dict()
            assert state.keys() == old.state_dict().keys()
            for name, value in old.state_dict().items():
                assert torch.equal(value, state[name]), name
            assert not any(p.requires_grad for p in new.parameters())
    x = torch.rand(1, 3, 20, 30)
    assert torch.equal(before.generator.eval()(x), after.generator(x))


def test_the_same_model_gives_the_same_bytes_in_any_memory_format(tmp_path):
    first, second = model(), model()
    second.generator.to(memory_format=torch.channels_last)
    save_model(first, tmp_path / "a")
    save_model(second, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    second.info.steps += 1
    save_model(second, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()


def test_half_precision_halves_the_file_and_loads_as_float32(tmp_path, path):
    save_model(model(), tmp_path / "half", torch.float16)
    assert (tmp_path / "half").stat().st_size < 0.7 * path.stat().st_size
    for name, value in load_model(tmp_path / "half").generator.state_dict().items():
        assert value.dtype == torch.float32
        exact = model().generator.state_dict()[name]
        torch.testing.assert_close(value, exact, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_loading_neither_moves_the_random_state_nor_asks_for_the_default_dtype(path, dtype):
    torch.manual_seed(5)
    before, expected = torch.get_rng_state(), load_model(path)
    torch.set_default_dtype(dtype)
    try:
        loaded = load_model(path)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(torch.get_rng_state(), before)
    for net in (loaded.generator, loaded.repairer):
        assert {tensor.dtype for tensor in [*net.parameters(), *net.buffers()]} == {torch.float32}
    for ours, theirs in zip(loaded.generator.buffers(), expected.generator.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(
        loaded.generator.parameters(), expected.generator.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_a_model_of_inference_mode_can_be_trained_on(path):
    with torch.inference_mode():
        loaded = load_model(path)
    assert not any(weight.is_inference() for weight in loaded.generator.parameters())


def test_saving_replaces_by_rename(path):
    save_model(model(repairer=False), path)
    assert load_model(path).repairer is None
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]
    with pytest.raises(FaststyError, match="cannot be written"):
        save_model(model(), path / "model.safetensors")


def fails(path, sentence):
    for load in (load_model, load_info):
        with pytest.raises(FaststyError, match=sentence) as caught:
            load(path)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.5, 0.999])
def test_a_truncated_file(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    fails(path, "not a readable model file")


def test_files_of_other_kinds(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "photo.png")
    (tmp_path / "text").write_text("hello " * 100)
    (tmp_path / "noise").write_bytes(np.random.default_rng(0).bytes(5000))
    torch.save({"a": torch.ones(3)}, tmp_path / "pickle.pt")
    for name in ("photo.png", "text", "noise", "pickle.pt"):
        fails(tmp_path / name, "not a readable model file")


def test_nothing_there_or_a_folder(tmp_path):
    fails(tmp_path / "absent.safetensors", "no such file")
    fails(tmp_path / ("a" * 300), "no such file")
    os.mkfifo(tmp_path / "pipe")
    fails(tmp_path / "pipe", "not a regular file")
    fails(tmp_path, "is a folder; name the .safetensors file in it")


def test_somebody_elses_safetensors(tmp_path):
    path = tmp_path / "other.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"a": torch.ones(3)}, path, metadata)
        fails(path, "a safetensors file, but not a faststy model")


def test_a_file_of_a_newer_faststy(path):
    rewrite(path, lambda values, _: values.update(format=FORMAT + 1, version="9.1"))
    fails(path, r"made by a newer faststy \(9\.1\); upgrade faststy")


def test_a_file_whose_repair_was_another(path):
    rewrite(path, lambda values, _: values.update(format=1))
    with pytest.raises(FaststyError, match="with another repair; train it again"):
        load_model(path)


def test_a_newer_field_that_older_versions_can_ignore(path):
    rewrite(path, lambda values, _: values.update(mood="calm"))
    assert load_model(path).info.styles == ["rain", "night: 2"]


def test_a_description_that_is_nested_too_deeply(path):
    rewrite(path, lambda *_: '{"extra": ' + "[" * 100_000)
    fails(path, "its model description is damaged")


@pytest.mark.parametrize(
    "change",
    [
        {"generator": {"channels": 9000, "blocks": 1, "styles": 2}},
        {"generator": {"channels": 10**400, "blocks": 1, "styles": 2}},
        {"generator": {"channels": 8, "blocks": 10**7, "styles": 2}},
        {"generator": {"channels": 0, "blocks": 10**7, "styles": 2}},
        {"repairer": {"channels": 9000}},
    ],
)
def test_nets_that_are_larger_than_the_file_are_refused_before_they_are_made(
    path, change, monkeypatch
):
    rewrite(path, lambda values, _: values.update(change))
    monkeypatch.setattr(model_file, "Generator", None)
    with pytest.raises(FaststyError, match=r"do not fit the model \(the file has too few\)"):
        load_model(path)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int8])
def test_weights_that_are_no_real_numbers(path, dtype):
    key = "generator.head.bias"
    rewrite(path, lambda _, tensors: tensors.update({key: tensors[key].to(dtype)}))
    with pytest.raises(FaststyError, match="the weights do not fit the model"):
        load_model(path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(path, value):
    key = "generator.head.bias"
    rewrite(path, lambda _, tensors: tensors.update({key: tensors[key] * value}))
    with pytest.raises(FaststyError, match="its weights are not all finite; the model is broken"):
        load_model(path)


@pytest.mark.parametrize("text", ["{", "[1]", "null", "3", '"text"', "{}", '{"format": "new"}'])
def test_a_damaged_description(path, text):
    rewrite(path, lambda *_: text)
    fails(path, "its model description is damaged")


@pytest.mark.parametrize(
    "change",
    [
        {"styles": ["one"]},
        {"styles": []},
        {"styles": 2},
        {"styles": ["a", 3]},
        {"descriptions": {"rain": 3}},
        {"descriptions": ["wet"]},
        {"descriptions": None},
        {"style_size": "big"},
        {"style_size": 1},
        {"style_size": -5},
        {"style_weight": float("nan")},
        {"steps": True},
        {"license": 3},
        {"extra": [{"a": 1}, {"b": 2}]},
        {"styles": ["rain", "rain"]},
        {"generator": [8, 1, 2]},
        {"generator": {"channels": 9, "blocks": 1, "styles": 2}},
        {"generator": {"channels": "8", "blocks": 1, "styles": 2}},
        {"generator": {"channels": 8, "blocks": 1, "styles": 2, "depth": 3}},
        {"generator": {"channels": 8, "blocks": 3, "styles": 2}},
        {"repairer": {"channels": 16}},
        {"repairer": 8},
        {"repairer": {"channels": 8, "blocks": 1}},
    ],
)
def test_weights_that_do_not_fit_the_description(path, change):
    rewrite(path, lambda values, _: values.update(change))
    with pytest.raises(FaststyError) as caught:
        load_model(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("styles", [[], ["rain"]])
def test_styles_that_do_not_fit_are_refused_by_all(path, styles):
    rewrite(path, lambda values, _: {**values, "styles": styles})
    for load in (load_model, load_info):
        with pytest.raises(FaststyError, match="its style names do not match its weights"):
            load(path)


def test_missing_weights(path):
    rewrite(path, lambda values, tensors: tensors.pop("generator.head.bias") is None)
    with pytest.raises(FaststyError, match="the weights do not fit the model"):
        load_model(path)
