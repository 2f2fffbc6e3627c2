"""Encoders with a fault, to be named by their path."""

import time

from fps_flex.wan.codecs import ByteText, PixelCodec


class Slow(ByteText):
    def __call__(self, prompts, device):
        time.sleep(60)


class Broken(ByteText):
    def load(self):
        raise ValueError("text_encoder can't be loaded: fetch it again")


class Unsound(PixelCodec):
    def encode(self, video):
        return super().encode(video).masked_fill((video.mean() * 1e6).long() % 2 == 0, float("nan"))
