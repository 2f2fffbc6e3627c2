"""Saved from diffusers with FPS attention, it comes back by install_trained; from_pretrained alone is dense."""

import json
import logging
import pickle
from copy import deepcopy
from unittest.mock import MagicMock

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from fps_flex import FPSAttention
from fps_flex.diffusers import install, install_trained, uninstall
from fps_flex.wan.weights import SETTINGS, open_weights, read_settings
from tests.helpers.cases import relative_error
from tests.helpers.stock_wan import OTHER, SMALL, THREE, call, t2v_pipeline, tiny_transformer


def with_attention(**options):
    transformer = tiny_transformer()
    install(transformer, THREE, **SMALL, **options)
    return transformer


def attention_of(transformer):
    return transformer._fps_flex.attention


def came_back(folder, before, expected):
    """Loaded and with install_trained it gives what was saved, without it dense attention."""
    transformer = WanTransformer3DModel.from_pretrained(folder)
    assert relative_error(call(transformer), expected) > OTHER
    install_trained(transformer, folder)
    return attention_of(transformer) == attention_of(before) and torch.equal(call(transformer), expected)


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}], ids=["whole", "shards"])
def test_saved_and_loaded_it_is_dense_until_install_trained(tmp_path, caplog, options):
    transformer = with_attention(scale_format="pow2")
    with caplog.at_level(logging.WARNING):
        transformer.save_pretrained(tmp_path, **options)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "fps_flex.wan.save_hook"]
    assert f"from_pretrained alone gives it dense attention; call install_trained(transformer, '{tmp_path}')" in line
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == bool(options)
    assert came_back(tmp_path, transformer, call(transformer))
    assert not list(tmp_path.glob(".*"))


def test_a_pipeline_saves_the_settings_beside_its_transformer(tmp_path):
    pipe = t2v_pipeline()
    install(pipe.transformer, THREE, **SMALL)
    expected = call(pipe.transformer)
    pipe.transformer = torch.compile(pipe.transformer)  # as diffusers unwraps it
    pipe.save_pretrained(tmp_path)
    assert came_back(tmp_path / "transformer", pipe.transformer, expected)
    loaded = WanPipeline.from_pretrained(tmp_path)
    install_trained(loaded.transformer, tmp_path / "transformer")
    assert torch.equal(call(loaded.transformer), expected)
    assert not list(tmp_path.glob(SETTINGS))


@pytest.mark.parametrize("copied", [deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_saves_itself(tmp_path, copied):
    first = with_attention()
    second = copied(first)
    install(first, "dense", **SMALL)
    torch.nn.init.zeros_(first.proj_out.weight)
    second.save_pretrained(tmp_path)
    assert came_back(tmp_path, second, call(second)) and call(second).any()
    uninstall(second)
    assert "save_config" not in vars(second) and "save_config" in vars(first)


def test_saved_again_it_has_the_settings_of_then(tmp_path):
    transformer = with_attention()
    transformer.save_pretrained(tmp_path)
    install(transformer, "sta", **SMALL)
    transformer.save_pretrained(tmp_path)
    assert read_settings(tmp_path)[1] == FPSAttention("sta", scale_format="pow2", **SMALL)
    uninstall(transformer)
    transformer.save_pretrained(tmp_path / "stock")
    assert not (tmp_path / "stock" / SETTINGS).exists() and "save_config" not in vars(transformer)


def test_config_alone_and_other_processes(tmp_path):
    transformer = with_attention()
    transformer.save_config(tmp_path / "config")
    assert sorted(path.name for path in (tmp_path / "config").iterdir()) == ["config.json", SETTINGS]
    transformer.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other" / SETTINGS).exists()
    (tmp_path / "file").write_text("a file")
    with pytest.raises(AssertionError, match="should be a directory, not a file"):
        transformer.save_config(tmp_path / "file")


def test_what_is_pushed_to_the_hub_has_the_settings(tmp_path, monkeypatch):
    hub, pushed = "diffusers.models.modeling_utils", []
    for name in ("create_repo", "load_or_create_model_card", "populate_model_card"):
        monkeypatch.setattr(f"{hub}.{name}", MagicMock())
    upload = lambda *_, **__: pushed.extend(path.name for path in tmp_path.iterdir())  # noqa: E731
    monkeypatch.setattr(WanTransformer3DModel, "_upload_folder", upload)
    with_attention().save_pretrained(str(tmp_path), push_to_hub=True)
    assert SETTINGS in pushed and "diffusion_pytorch_model.safetensors" in pushed


def test_what_a_fine_tune_was_made_with_goes_along(tmp_path):
    with_attention().save_pretrained(tmp_path / "first")
    settings = json.loads((tmp_path / "first" / SETTINGS).read_text())
    assert sorted(settings) == ["attention", "wan"]
    more = {"noise_levels": [0.0, 0.875], "shift": 7.0, "text_length": 64, "residual": "compute"}
    (tmp_path / "first" / SETTINGS).write_text(json.dumps({**settings, **more}))
    transformer = WanTransformer3DModel.from_pretrained(tmp_path / "first")
    install_trained(transformer, tmp_path / "first", scale_format="pow2")
    transformer.save_pretrained(tmp_path / "second")
    attention = {**settings["attention"], "scale_format": "pow2"}
    assert json.loads((tmp_path / "second" / SETTINGS).read_text()) == {**settings, **more, "attention": attention}


def test_an_expert_saved_with_its_pipeline_keeps_its_noise_levels(tmp_path):
    for name, levels in (("transformer", (0.9, 1.0)), ("transformer_2", (0.0, 0.9)), ("alone", (0.0, 1.0))):
        with_attention().save_pretrained(tmp_path / name)
        (tmp_path / "model_index.json").write_text(json.dumps({"boundary_ratio": 0.9}))
        weights = open_weights(tmp_path / name)
        assert weights.noise_levels == tuple(weights.settings["noise_levels"]) == levels


@pytest.mark.parametrize("blocks", [slice(None), slice(1)], ids=["all", "some"])
def test_layers_that_are_stock_again_are_saved_without_settings(tmp_path, caplog, blocks):
    transformer = with_attention()
    for block in transformer.blocks[blocks]:
        block.attn1.set_processor(WanAttnProcessor())
    with caplog.at_level(logging.WARNING):
        transformer.save_pretrained(tmp_path)
    assert not (tmp_path / SETTINGS).exists() and (tmp_path / "config.json").exists()
    assert f"without {SETTINGS}, since blocks {[*range(len(transformer.blocks))][blocks]} have another" in caplog.text
    copied = deepcopy(with_attention())
    copied.save_pretrained(tmp_path / "copied")
    assert (tmp_path / "copied" / SETTINGS).exists()


def test_the_transformer_inside_of_pefts_wrapper_is_what_takes_it():
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(tiny_transformer(), peft.LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(ValueError, match=r"got a PeftModel, expected .*: pass its get_base_model\(\)$"):
        install(wrapped, THREE, **SMALL)
    install(wrapped.get_base_model(), THREE, **SMALL)
    assert relative_error(call(wrapped.get_base_model()), call(with_attention())) == 0
