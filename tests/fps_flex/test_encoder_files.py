"""Encoders on disk: checked to the last tensor and entry, told apart by their fingerprint, and the 5B's VAE."""

import json
import shutil
from dataclasses import asdict

import av
import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.generate.command import command, resolve_settings
from eval.generate.jobs import Options
from fps_flex.wan.codecs import ByteText, PixelCodec
from fps_flex.wan.encoders import UMT5Text, WanVAE
from fps_flex.wan.fingerprint import DIGESTED, digest_held
from fps_flex.wan.tensors import read_held

CPU = torch.device("cpu")
FILES = {"vae": "diffusion_pytorch_model.safetensors", "text_encoder": "model.safetensors"}
KINDS = {"vae": WanVAE, "text_encoder": UMT5Text}
SOME = {"vae": "decoder.conv_in.weight", "text_encoder": "encoder.block.1.layer.0.SelfAttention.q.weight"}


@pytest.fixture
def copied(wan_folder, tmp_path):
    for part in ("vae", "text_encoder", "tokenizer"):
        shutil.copytree(wan_folder / part, tmp_path / "wan" / part)
    return tmp_path / "wan"


def change_tensors(folder, part, change):
    file = folder / part / FILES[part]
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def change_config(folder, part, **entries):
    file = folder / part / "config.json"
    config = json.loads(file.read_text()) | entries
    file.write_text(json.dumps({name: value for name, value in config.items() if value != "left out"}))


def change_tokenizer(folder, name="tokenizer_config.json", **entries):
    file = folder / "tokenizer" / name
    file.write_text(json.dumps((json.loads(file.read_text()) if file.is_file() else {}) | entries))


def refused(kind, folder):
    """The one line in which an encoder refuses to be loaded."""
    with pytest.raises(ValueError) as raised:
        kind(str(folder)).load()
    line = str(raised.value)
    assert "\n" not in line and len(line) < 500
    return line


def quantise(tensors, name, dtype):
    tensors[name.replace("weight", "weight_scale")] = torch.ones(1)
    tensors[name] = tensors[name].to(dtype)


@pytest.mark.parametrize("part", KINDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, name: x.pop(name), "missing {name}"),
        (lambda x, name: x.update(another=torch.zeros(3)), "unknown another"),
        (lambda x, name: x.update({name: torch.zeros(3, 5)}), "{name} of shape (3, 5), expected ("),
        (lambda x, name: quantise(x, name, torch.float8_e4m3fn), "is quantised ({name} is F8_E4M3)"),
        (lambda x, name: quantise(x, name, torch.int8), "is quantised ({name} is I8)"),
        (lambda x, name: x.update(scaled_fp8=torch.zeros(2).to(torch.float8_e4m3fn)), "(scaled_fp8 is F8_E4M3)"),
        (lambda x, name: x[name].view(-1)[3:4].fill_(torch.nan), "{name} in {part}/ of"),
        (lambda x, name: x[name].view(-1)[-1:].fill_(torch.inf), "is not finite: fetch it again"),
    ],
    ids=["missing", "unknown", "shape", "fp8", "int8", "scaled fp8", "nan", "inf"],
)
def test_weights_that_are_not_exactly_the_encoders_are_refused(copied, part, change, message):
    change_tensors(copied, part, lambda tensors: change(tensors, SOME[part]))
    assert message.format(name=SOME[part], part=part) in refused(KINDS[part], copied)


def test_the_embedding_may_be_in_the_file_under_either_of_its_names_or_both(copied):
    states = UMT5Text(str(copied))(["a red circle"], CPU)
    table = "shared.weight", "encoder.embed_tokens.weight"
    change_tensors(copied, "text_encoder", lambda x: x.update({table[1]: x[table[0]].clone()}))
    assert torch.equal(UMT5Text(str(copied))(["a red circle"], CPU), states)
    change_tensors(copied, "text_encoder", lambda x: x.pop(table[0]))
    assert torch.equal(UMT5Text(str(copied))(["a red circle"], CPU), states)
    change_tensors(copied, "text_encoder", lambda x: x.pop(table[1]))
    assert "missing shared.weight; missing encoder.embed_tokens.weight" in refused(UMT5Text, copied)


@pytest.mark.parametrize("part", KINDS)
def test_files_that_are_not_the_weights_are_named(copied, part):
    file = copied / part / FILES[part]
    content = file.read_bytes()
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    assert f"{file} is a Git LFS pointer" in refused(KINDS[part], copied)
    file.write_bytes(content[:-1])
    assert "can't be read as safetensors" in refused(KINDS[part], copied)
    file.rename(file.with_suffix(".bin"))
    assert f"expected {file.stem}.safetensors or its index of shards in" in refused(KINDS[part], copied)
    (copied / part / f"{file.name}.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    assert "lacks gone.safetensors" in refused(KINDS[part], copied)


@pytest.mark.parametrize(
    ("part", "entries", "message"),
    [
        ("vae", {"z_dim": "left out"}, "vae/config.json of {path} lacks z_dim, expected a whole number"),
        ("vae", {"z_dim": "16"}, "says z_dim = '16'"),
        ("vae", {"z_dim": 8}, "latents_mean = ["),
        ("vae", {"latents_mean": "left out"}, "lacks latents_mean, expected 16 numbers"),
        ("vae", {"latents_mean": [0.0] * 15}, "expected 16 numbers, one per channel"),
        ("vae", {"latents_mean": [float("nan")] * 16}, "expected 16 numbers, one per channel"),
        ("vae", {"latents_std": [0.0] * 16}, "expected 16 numbers above 0"),
        ("vae", {"latents_std": None}, "says latents_std = None"),
        ("vae", {"latents_std": [1e308] * 16}, "expected 16 numbers above 0, one per channel, from 0.0001 to 10000"),
        ("vae", {"latents_std": [1e-300] * 16}, "expected 16 numbers above 0, one per channel, from 0.0001 to 10000"),
        ("vae", {"latents_mean": [-1e308] * 16}, "expected 16 numbers, one per channel, from -10000 to 10000"),
        ("vae", {"latents_mean": [10**30] * 16}, "expected 16 numbers, one per channel, from -10000 to 10000"),
        ("vae", {"num_res_blocks": 10**6}, "says num_res_blocks = 1000000, expected a whole number from 1 to 100"),
        ("vae", {"z_dim": 10**9}, "says z_dim = 1000000000, expected a whole number from 1 to 10000000"),
        ("vae", {"dim_mult": [1] * 100}, "expected 1 to 16 whole numbers"),
        ("vae", {"scale_factor_spatial": 16}, "says scale_factor_spatial = 16, expected 8"),
        ("vae", {"scale_factor_temporal": 8}, "says scale_factor_temporal = 8, expected 4"),
        ("vae", {"temperal_downsample": [True, True, True]}, "[True, True, True], expected true twice, for 4 frames"),
        ("vae", {"dim_mult": 4}, "says dim_mult = 4"),
        ("vae", {"base_dim": "three"}, "no model is of the sizes in"),
        ("vae", {"base_dim": 6}, "is no AutoencoderKLWan of its config.json: encoder"),
        ("vae", {"_class_name": 7}, "describes a 7, expected a AutoencoderKLWan"),
        ("text_encoder", {"d_model": "left out"}, "lacks d_model"),
        ("text_encoder", {"d_model": 64}, "of shape"),
        ("text_encoder", {"num_layers": 3}, "missing encoder.block.2."),
        ("text_encoder", {"num_layers": 10**6}, "says num_layers = 1000000, expected a whole number from 1 to 1000"),
        ("text_encoder", {"vocab_size": 10**9}, "says vocab_size = 1000000000, expected a whole number from 1 to"),
        (
            "text_encoder",
            {"layer_norm_epsilon": float("nan")},
            "says layer_norm_epsilon = nan, expected a number above",
        ),
        ("text_encoder", {"layer_norm_epsilon": 0.0}, "says layer_norm_epsilon = 0.0, expected a number above 0"),
        ("text_encoder", {"layer_norm_epsilon": -1e-6}, "says layer_norm_epsilon = -1e-06, expected a number above 0"),
        ("text_encoder", {"relative_attention_max_distance": -5}, "max_distance = -5, expected a whole number from 9"),
        ("text_encoder", {"relative_attention_max_distance": 0}, "max_distance = 0, expected a whole number from 9"),
        ("text_encoder", {"relative_attention_max_distance": 8}, "max_distance = 8, expected a whole number from 9"),
        ("text_encoder", {"relative_attention_num_buckets": 3}, "num_buckets = 3, expected a whole number from 4"),
        (
            "text_encoder",
            {"relative_attention_num_buckets": "32"},
            "num_buckets = '32', expected a whole number from 4",
        ),
        ("text_encoder", {"dense_act_fn": "none such"}, "no model is of the sizes in"),
        ("text_encoder", {"architectures": None}, "describes a nameless model, expected a UMT5EncoderModel"),
        ("text_encoder", {"architectures": 7}, "is no configuration"),
    ],
)
def test_configurations_that_cannot_be_meant_are_refused(copied, part, entries, message):
    change_config(copied, part, **entries)
    assert message.format(path=copied) in refused(KINDS[part], copied)


@pytest.mark.parametrize("part", KINDS)
@pytest.mark.parametrize("text", ["", "[]", "{", "\x00", "7", "[" * 100_000], ids=lambda text: text[:2] or "empty")
def test_a_configuration_that_is_no_json_object_is_refused(copied, part, text):
    (copied / part / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json is no configuration: fetch it again"):
        KINDS[part](str(copied))


def test_a_tokenizer_that_is_missing_or_of_another_encoder_is_refused(copied):
    file = copied / "tokenizer" / "tokenizer.json"
    tokens = json.loads(file.read_text())
    tokens["model"]["vocab"] += [[f"more{i}", -9.0] for i in range(64)]
    file.write_text(json.dumps(tokens))
    assert "tokens, the text encoder knows 64: take both from one release" in refused(UMT5Text, copied)
    file.unlink()
    with pytest.raises(ValueError, match="expected tokenizer.json or spiece.model in .*tokenizer, found neither"):
        UMT5Text(str(copied))
    shutil.rmtree(copied / "tokenizer")
    with pytest.raises(ValueError, match="expected tokenizer/ with tokenizer.json or spiece.model in"):
        UMT5Text(str(copied))


@pytest.mark.parametrize("side", ["padding_side", "truncation_side"])
def test_prompts_are_padded_and_cut_at_the_end_whatever_the_tokenizer_says(wan_folder, copied, side):
    prompts = ["a red circle", "a red circle moving left over a blue square"]
    change_tokenizer(copied, **{side: "left", "model_input_names": ["input_ids"]})
    before, now = (UMT5Text(str(folder), length=16) for folder in (wan_folder, copied))
    assert torch.equal(now(prompts, CPU), before(prompts, CPU)) and now.fingerprint() == before.fingerprint()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model_max_length": "x"}, "tokenizer can't be used ('>' not supported"),
        ({"pad_token": None}, "has no token for padding"),
        ({"additional_special_tokens": [f"more{i}" for i in range(64)]}, "tokens, the text encoder knows 64"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_one_line(copied, entries, message):
    change_tokenizer(copied, **entries)
    assert message in refused(UMT5Text, copied)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_a_tokenizers_json_that_is_nested_without_end_is_one_line(copied, name):
    (copied / "tokenizer" / name).write_text("[" * 100_000)
    assert str(copied / "tokenizer") in refused(UMT5Text, copied)


def test_states_that_are_not_finite_name_the_prompt(copied):
    change_tensors(copied, "text_encoder", lambda x: x["encoder.final_layer_norm.weight"].fill_(3e38))
    with pytest.raises(ValueError, match="^text_encoder/ of .* gives states that aren't finite for 'a red circle'$"):
        UMT5Text(str(copied), dtype="float32")(["a red circle"], CPU)


def test_home_is_where_the_user_is(copied, monkeypatch):
    monkeypatch.setenv("HOME", str(copied.parent))
    assert WanVAE("~/wan").channels == 16 and UMT5Text("~/wan").dim == 32
    with pytest.raises(ValueError, match="no folder ~/nowhere"):
        WanVAE("~/nowhere")
    with pytest.raises(ValueError, match="no folder ~no-such-user/wan"):
        WanVAE("~no-such-user/wan")


def test_what_cannot_be_fetched_is_one_line(monkeypatch):
    import huggingface_hub

    def fail(*args, **options):
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ValueError, match="^vae/ of hf:nobody/nothing can't be fetched \\(ConnectionError\\)$"):
        WanVAE("hf:nobody/nothing")


@pytest.mark.parametrize("part", KINDS)
def test_a_fingerprint_is_of_settings_and_weights_wherever_they_lie(wan_folder, copied, part):
    kind = KINDS[part]
    before = kind(str(wan_folder)).fingerprint()
    assert kind(str(copied)).fingerprint() == before
    change_config(copied, part, _diffusers_version="0.1", transformers_version="0.1")
    assert kind(str(copied)).fingerprint() == before
    change_tensors(copied, part, lambda x: x[SOME[part]].view(-1)[7:8].add_(1e-3))
    weight = kind(str(copied)).fingerprint()
    assert weight.split(", ")[0] == before.split(", ")[0] and weight.split(", ")[1] != before.split(", ")[1]
    change_tensors(copied, part, lambda x: x.update({name: y.bfloat16() for name, y in x.items()}))
    assert kind(str(copied)).fingerprint() not in (before, weight)


def test_a_fingerprint_tells_other_settings(wan_folder, copied):
    before = WanVAE(str(wan_folder)).fingerprint(), UMT5Text(str(wan_folder)).fingerprint()
    mean = json.loads((copied / "vae/config.json").read_text())["latents_mean"]
    change_config(copied, "vae", latents_mean=[mean[0] + 1e-4, *mean[1:]])
    assert WanVAE(str(copied)).fingerprint() != before[0]
    assert UMT5Text(str(copied), length=256).fingerprint() != before[1]
    assert UMT5Text(str(copied), dtype="float32").fingerprint() == before[1]
    with (copied / "tokenizer/tokenizer.json").open("a") as file:
        file.write(" ")
    assert UMT5Text(str(copied)).fingerprint() != before[1]
    assert PixelCodec().fingerprint() == PixelCodec((2, 2, 2)).fingerprint() != PixelCodec((1, 2, 2)).fingerprint()
    assert ByteText().fingerprint() != ByteText(length=65).fingerprint() != PixelCodec().fingerprint()


def test_a_fingerprint_tells_what_the_settings_resolve_to(wan_folder, copied):
    before = UMT5Text(str(wan_folder)).fingerprint()
    change_config(copied, "text_encoder", feed_forward_proj="gated-gelu_new", layer_norm_epsilon="left out")
    assert UMT5Text(str(copied)).fingerprint() == before
    change_config(copied, "text_encoder", dense_act_fn="relu")
    changed = UMT5Text(str(copied)).fingerprint()
    assert changed.split(", ")[0] != before.split(", ")[0] and changed.split(", ")[1:] == before.split(", ")[1:]


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"63": {"content": "red", "special": True}}}),
        ("tokenizer_config.json", {"additional_special_tokens": ["red"]}),
        ("tokenizer_config.json", {"pad_token": "</s>"}),
        ("special_tokens_map.json", {"additional_special_tokens": ["red"]}),
        ("added_tokens.json", {"red": 63}),
    ],
)
def test_a_fingerprint_tells_other_tokens(wan_folder, copied, name, entries):
    before = UMT5Text(str(wan_folder)).fingerprint()
    change_tokenizer(copied, name_or_path="elsewhere", tokenizer_file="elsewhere/tokenizer.json")
    assert UMT5Text(str(copied)).fingerprint() == before
    change_tokenizer(copied, name, **entries)
    changed = UMT5Text(str(copied)).fingerprint()
    assert changed.split(", ")[:2] == before.split(", ")[:2] and changed != before


def test_a_digest_doesnt_depend_on_shards(tmp_path):
    tensors = {name: torch.randn(100, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("abc")}
    save_file(tensors, tmp_path / "whole.safetensors")
    for i, name in enumerate("cab"):
        save_file({name: tensors[name]}, tmp_path / f"{i}.safetensors")
    where = {name: f"{i}.safetensors" for i, name in enumerate("cab")}
    (tmp_path / "parts.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert digest_held(read_held(tmp_path, "whole")) == digest_held(read_held(tmp_path, "parts"))


def test_a_digest_of_large_weights_reads_a_part_of_each_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr("fps_flex.wan.fingerprint.DIGESTED", 4096)
    tensors = {"large": torch.randn(10_000), "small": torch.randn(8)}
    save_file(tensors, tmp_path / "x.safetensors")
    before = digest_held(read_held(tmp_path, "x"))
    for name, where in (("large", slice(0, 1)), ("large", slice(-1, None)), ("small", slice(3, 4))):
        changed = {key: tensor.clone() for key, tensor in tensors.items()}
        changed[name][where] += 1
        save_file(changed, tmp_path / "x.safetensors")
        assert digest_held(read_held(tmp_path, "x")) != before
    save_file(tensors | {"large": tensors["large"] + 1e-3 * torch.randn(10_000)}, tmp_path / "x.safetensors")
    assert digest_held(read_held(tmp_path, "x")) != before
    assert DIGESTED < 100e6


@pytest.fixture(scope="module")
def vae_of_5b(tmp_path_factory):
    """A VAE of random weights with what makes that of Wan2.2's 5B: 16x16 pixels in patches of 2, residual blocks."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=4, decoder_base_dim=6, z_dim=48, dim_mult=[1, 2, 4, 4], num_res_blocks=1, is_residual=True,
        in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=16,
        latents_mean=torch.randn(48).tolist(), latents_std=(torch.rand(48) + 0.5).tolist(),
    ).eval()  # fmt: skip
    folder = tmp_path_factory.mktemp("5b")
    vae.save_pretrained(folder / "vae")
    change_config(folder, "vae", clip_output=False)  # which the released one says, and diffusers doesn't know
    return vae, folder


@pytest.mark.parametrize(("size", "tiled"), [((9, 64, 96), False), ((1, 32, 32), False), ((5, 64, 544), True)])
def test_the_5b_codes_the_size_that_is_asked_as_in_diffusers(vae_of_5b, monkeypatch, size, tiled):
    monkeypatch.setattr("fps_flex.wan.encoders.UNTILED_PIXELS", 64 * 96)
    vae, folder = vae_of_5b
    codec = WanVAE(str(folder))
    video = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = codec.encode(video)
    frames, rows, columns = size
    assert latents.shape == (1, 48, *codec.latent_size(size)) == (1, 48, (frames + 3) // 4, rows // 16, columns // 16)
    mean, std = (torch.tensor(x).view(48, 1, 1, 1) for x in (vae.config.latents_mean, vae.config.latents_std))
    vae.use_tiling = tiled
    with torch.no_grad():
        torch.testing.assert_close(latents * std + mean, vae.encode(video).latent_dist.mean)
        expected = vae.decode(latents * std + mean).sample
    vae.use_tiling = False
    assert expected.shape == video.shape
    torch.testing.assert_close(codec.decode(latents), expected)


def test_a_release_of_the_5b_makes_videos_of_its_size_and_of_the_size_that_is_asked(vae_of_5b, wan_folder, tmp_path):
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=48, out_channels=48, text_dim=32, freq_dim=64,
        ffn_dim=96, num_layers=1,
    )  # fmt: skip
    transformer.save_pretrained(tmp_path / "5b/transformer")
    for part, source in (("vae", vae_of_5b[1]), ("text_encoder", wan_folder), ("tokenizer", wan_folder)):
        shutil.copytree(source / part, tmp_path / "5b" / part)
    model, settings = resolve_settings(Options(str(tmp_path / "5b"), steps=1))
    assert asdict(settings.clip) == {"frames": 121, "height": 704, "width": 1280, "fps": 24.0}
    assert settings.shift == 5.0 and model.weights.config.grid(model.codec.latent_size(settings.clip.size)) == (
        31, 22, 40,
    )  # fmt: skip
    shared = [f"--checkpoint={tmp_path / '5b'}", "--prompt=a", f"--out={tmp_path / 'out'}", "--steps=1", "--frames=5"]
    command([*shared, "--height=64", "--width=96"])
    with av.open(str(next((tmp_path / "out").glob("*.mp4")))) as container:
        frames = list(container.decode(video=0))
        assert len(frames) == 5 and (frames[0].height, frames[0].width) == (64, 96)
        assert container.streams.video[0].average_rate == 24
    with pytest.raises(ValueError, match="height is 720, expected a multiple of 32: 704 or 736"):
        resolve_settings(Options(str(tmp_path / "5b"), height=720, width=1280))
    with pytest.raises(ValueError, match="the encoders give 16 channels, .*5b was made for 48"):
        resolve_settings(Options(str(tmp_path / "5b"), encoders=str(wan_folder)))


def test_sizes_of_the_5b(vae_of_5b):
    codec = WanVAE(str(vae_of_5b[1]))
    assert codec.channels == 48 and codec.latent_size((121, 704, 1280)) == (31, 44, 80)
    with pytest.raises(ValueError, match="frames of 720x1288, expected multiples of 16 rows and columns"):
        codec.latent_size((121, 720, 1288))
