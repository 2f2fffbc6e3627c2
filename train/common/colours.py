"""The colours of decoded frames: sRGB pictures of eight bits, whatever a frame's format, matrix, range and gamut are.

What a frame is tagged with counts. A YUV frame without a matrix has BT.601's below 720 stored rows, BT.709's from there
on. HLG and PQ are tone-mapped, BT.2020's and P3's gamuts are clipped to BT.709's, and alpha is laid on black.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import av
import numpy as np

from .faults import Fault

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8, UInt16

PQ, HLG = 16, 18  # transfers, as in ITU-T H.273
GAMUTS = {  # linear RGB -> linear RGB of BT.709, by H.273's number of the primaries
    9: [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],  # BT.2020, as in BT.2087
    11: [[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]],  # P3
    12: [[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]],
}
MATRICES = {1, 4, 5, 6, 7, 9}  # those that swscale knows
UNREADABLE = {8: "YCgCo", 10: "BT.2020 constant luminance", 11: "SMPTE 2085", 14: "ICtCp", 15: "IPT-C2"}
SMALL = 1 << 17  # pixels: fewer are scaled in less time than threads take to start
WHITE, PEAK = 203.0, 1000.0  # cd/m2: HDR's reference white (BT.2408), and the brightest that isn't clipped
GAMMA = 2.4  # BT.1886, of an SDR display
LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of linear BT.2020


def to_rgb(frame: av.VideoFrame, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """The stored picture, scaled. Raises Fault for colours that can't be converted."""
    if _has_alpha(frame.format.name):
        picture = _convert(frame, frame.height, frame.width).astype(np.uint16)
        alpha = frame.reformat(format="rgba").to_ndarray()[..., 3:]
        frame = av.VideoFrame.from_ndarray(((picture * alpha + 127) // 255).astype(np.uint8), format="rgb24")
    return _convert(frame, height, width)


@cache
def _has_alpha(pixel_format: str) -> bool:
    return pixel_format == "pal8" or any(part.is_alpha for part in av.VideoFormat(pixel_format).components)


def _convert(frame: av.VideoFrame, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    method = "AREA" if height < frame.height or width < frame.width else "BICUBIC"
    wide = frame.color_trc in (PQ, HLG) or frame.color_primaries in GAMUTS
    threads = 1 if height * width < SMALL else 0
    picture = frame.reformat(
        width, height, "rgb48le" if wide else "rgb24", _untagged_matrix(frame), interpolation=method, threads=threads
    ).to_ndarray()
    return _to_sdr(picture, frame.color_trc, frame.color_primaries) if wide else picture


def _untagged_matrix(frame: av.VideoFrame) -> str | None:
    """What a frame that doesn't say it is taken for."""
    matrix = frame.colorspace
    if matrix in MATRICES or frame.format.is_rgb:
        return None
    if matrix in UNREADABLE:
        raise Fault(f"its colours are {UNREADABLE[matrix]}, expected RGB, BT.601, BT.709 or BT.2020: convert it")
    return "ITU709" if frame.height >= 720 else "ITU601"


def _to_sdr(picture: UInt16[np.ndarray, "h w 3"], transfer: int, primaries: int) -> UInt8[np.ndarray, "h w 3"]:
    """BT.709 for an SDR display, whose white is HDR's reference white before the tone curve."""
    light = _light_of(transfer)[picture]
    if transfer == HLG:
        light *= (light @ LUMINANCE)[..., None] ** 0.2 * PEAK
    if transfer in (PQ, HLG):
        light *= _gains()[_roots(light.max(axis=-1) / PEAK)][..., None]
    if primaries in GAMUTS or transfer in (PQ, HLG) and primaries != 1:
        light = light @ np.array(GAMUTS.get(primaries, GAMUTS[9]), np.float32).T
    return _levels()[_roots(light / WHITE)]


ROOTS = np.linspace(0, 1, 65536)  # of light: finer steps in the dark


def _roots(light: Float[np.ndarray, "..."]) -> UInt16[np.ndarray, "..."]:
    """Where light in 0 to 1 is in ROOTS."""
    return (np.sqrt(light.clip(0, 1)) * 65535).astype(np.uint16)


@cache
def _light_of(transfer: int) -> Float[np.ndarray, " codes"]:
    """The light of each code of 16 bits: cd/m2, of HLG in 0 to 1 in the scene."""
    curve = {PQ: pq_light, HLG: hlg_scene}.get(transfer, lambda code: WHITE * code**GAMMA)
    return curve(np.linspace(0, 1, 65536)).astype(np.float32)


@cache
def _gains() -> Float[np.ndarray, " roots"]:
    light = np.maximum(PEAK * ROOTS**2, 1e-6)
    return (tone_curve(light) / light).astype(np.float32)


@cache
def _levels() -> UInt8[np.ndarray, " roots"]:
    return (ROOTS ** (2 / GAMMA) * 255 + 0.5).astype(np.uint8)


M1, M2, C1, C2, C3 = 1305 / 8192, 2523 / 32, 107 / 128, 2413 / 128, 2392 / 128  # PQ's, as in BT.2100


def pq_light(code: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """cd/m2."""
    power = code ** (1 / M2)
    return 10000 * (np.maximum(power - C1, 0) / (C2 - C3 * power)) ** (1 / M1)


def pq_code(light: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    power = (light / 10000) ** M1
    return ((C1 + C2 * power) / (1 + C3 * power)) ** M2


def hlg_scene(code: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """0 to 1; a display of 1000 cd/m2 shows 1000 times that by the scene's luminance to the power of 0.2 (BT.2100)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)


def tone_curve(light: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """cd/m2 of up to PEAK -> cd/m2 of up to WHITE: BT.2390's, which leaves what is below its knee as it is."""
    peak = float(pq_code(np.float64(PEAK)))
    most = float(pq_code(np.float64(WHITE))) / peak
    knee = 1.5 * most - 0.5
    code = np.minimum(pq_code(light) / peak, 1)
    t = np.maximum(code - knee, 0) / (1 - knee)
    bent = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    return pq_light(np.where(code < knee, code, bent) * peak)
