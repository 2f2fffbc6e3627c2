"""Sizes that a model can't make, and the nearest that it can: with boxes of pixels and with both kinds of VAE."""

from types import SimpleNamespace

import pytest

from eval.generate.jobs import Clip
from eval.generate.models import TextToVideo
from eval.generate.sizes import AXES, check_size
from fps_flex import FPSAttention
from fps_flex.wan import WAN_1_3B, WAN_TINY
from fps_flex.wan.codecs import ByteText, PixelCodec
from fps_flex.wan.encoders import WanVAE

DENSE = FPSAttention("dense", tile=None)


class Vae(WanVAE):
    """Its sizes alone, without files."""

    def __init__(self, pixels):
        vars(self)["_config"] = {"scale_factor_spatial": pixels}


def model(codec, clip, attention=DENSE, config=WAN_1_3B):
    return TextToVideo(SimpleNamespace(config=config), attention, codec, ByteText(), clip, "fp32")


VAE_8, VAE_16 = model(Vae(8), Clip()), model(Vae(16), Clip(121, 704, 1280, 24.0))
BOXES = model(PixelCodec((2, 2, 2)), Clip(10, 32, 32, 8.0), config=WAN_TINY)
LONG_BOXES = model(PixelCodec((3, 4, 5)), Clip(6, 32, 40, 8.0), config=WAN_TINY)
TILED = model(Vae(8), Clip(), FPSAttention("fps"))


@pytest.mark.parametrize(
    ("made", "size", "message"),
    [
        (VAE_8, (80, 480, 832), "frames is 80, expected 4k + 1: 77 or 81"),
        (VAE_8, (2, 480, 832), "frames is 2, expected 4k + 1: 1 or 5"),
        (VAE_8, (81, 500, 832), "height is 500, expected a multiple of 16: 496 or 512"),
        (VAE_8, (81, 8, 832), "height is 8, expected a multiple of 16: 16 or 32"),
        (VAE_8, (81, 480, 840), "width is 840, expected a multiple of 16: 832 or 848"),
        (VAE_16, (121, 720, 1280), "height is 720, expected a multiple of 32: 704 or 736"),
        (VAE_16, (120, 704, 1296), "frames is 120, expected 4k + 1: 117 or 121; "
         "width is 1296, expected a multiple of 32: 1280 or 1312"),
        (BOXES, (9, 30, 32), "frames is 9, expected a multiple of 2: 8 or 10; "
         "height is 30, expected a multiple of 4: 28 or 32"),
        (LONG_BOXES, (4, 12, 12), "frames is 4, expected a multiple of 3: 3 or 6; "
         "height is 12, expected a multiple of 8: 8 or 16; width is 12, expected a multiple of 10: 10 or 20"),
        (TILED, (81, 100, 832), "height is 100, "
         "expected a multiple of 16 with room for the attention's tile: 128 or 144"),
        (TILED, (81, 130, 832), "height is 130, expected a multiple of 16: 128 or 144"),
        (TILED, (8, 480, 832), "frames is 8, expected 4k + 1 with room for the attention's tile: 21 or 25"),
    ],
)  # fmt: skip
def test_the_nearest_sizes_are_named_and_can_be_made(made, size, message):
    with pytest.raises(ValueError) as caught:
        check_size(made, size)
    assert str(caught.value) == message
    for axis, said in ((x.split(" is ")[0], x) for x in message.split("; ")):
        for length in said.rpartition(": ")[2].split(" or "):
            good = [int(length) if name == axis else own for name, own in zip(AXES, made.clip.size, strict=True)]
            check_size(made, tuple(good))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((9, 32, 48), "tile (6, 8, 8) is larger than the grid (3, 2, 3) of tokens (T, H, W): choose a smaller tile "
         "(--attention.tile), or at least 21 frames, 128 rows, 128 columns"),
        ((81, 112, 832), "or at least 81 frames, 128 rows, 832 columns"),
        ((100_001, 480, 832), "they have 39,001,560 tokens, expected at most 1,048,576"),
    ],
)  # fmt: skip
def test_what_divides_but_is_too_small_or_too_large(size, message):
    with pytest.raises(ValueError) as caught:
        check_size(TILED, size)
    assert message in str(caught.value) and f"videos of {size} (frames, rows, columns) can't be made" in str(
        caught.value
    )


@pytest.mark.parametrize("made", [VAE_8, VAE_16, BOXES, TILED])
def test_the_models_own_size_can_be_made(made):
    check_size(made, made.clip.size)


def test_a_model_of_no_size_of_its_own_says_what_the_codec_does():
    with pytest.raises(ValueError, match="clips of 80 frames, expected 4n"):
        check_size(model(Vae(8), Clip(80, 481, 833)), (80, 480, 832))


def test_a_side_that_no_video_may_have_is_told_no_nearest_one():
    with pytest.raises(ValueError, match="height is 99999999, far more than the 1,048,576 tokens") as refused:
        check_size(VAE_8, (81, 99_999_999, 832))
    assert "expected" not in str(refused.value)
