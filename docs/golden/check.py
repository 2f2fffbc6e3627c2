"""Check a port of FPSAttention against the golden vectors in this folder. Needs numpy only.

python check.py                    recompute every rule in plain numpy (method.py) and check our own vectors with it
python check.py MINE               check yours: CASE.npz, or a folder of all of them, with our arrays, by our names
python check.py MINE --part        check what is there; without --part, what isn't counts as a failure
python check.py --list             names, shapes and rules of all arrays

Tables, scales and codes must be exact. Outputs and gradients have an error bound for each element, from the precision
in which P and the output are held: that of your array's dtype, or --precision. Yours may be in raster order of tokens,
as ours, or in slots; bfloat16 and float8 arrays as JAX saves them, e4m3 codes as numbers or as bit patterns (uint8).
"""

import argparse
import sys
import zipfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import method
import numpy as np

HERE = Path(__file__).parent
CASES = {
    "numbers": method.compute_numbers,
    "schedule": method.compute_schedule,
    "ragged": method.compute,
    "mixed": method.compute,
    "fps": method.compute,
    "deep": method.compute,
    "smooth": method.compute,
    "int8": method.compute,
    "rotated": method.compute,
}

# in the order in which one rule builds on another: (rule, its arrays less _fp32 and _pow2, what it says)
RULES = (
    ("inputs", "grid tile block windows granularity smooth_k int8 rotate q k v grad_out x amax sigma shift tiles "
     "fps_bounds sta_bounds uniform_bounds fps_extents sta_extents uniform_extents",
     "what the case starts from; yours must be ours"),
    ("schedule", "progress fps_regime sta_regime uniform_regime",
     "progress = 1 - u with sigma = s u / (1 + (s - 1) u), in float64; a bound belongs to the regime it begins"),
    ("window sizes", "fps_windows sta_windows uniform_windows",
     "max(1, round(fraction * tiles)) on each axis, ties to even"),
    ("order", "slot_of_token tile_of_slot valid coords_of_tile",
     "tiles in raster order (T, H, W), tokens in raster order inside, pads behind them up to a multiple of the block"),
    ("windows", "tile_mask density",
     "min(w, n) key tiles per axis, from clamp(c - w // 2, 0, n - min(w, n)) on"),
    ("masks", "mask",
     "a pair is kept if its tiles are and its key is a token; pads are masked as keys only"),
    ("blocks", "block_kinds partial_counts partial_blocks full_counts full_blocks",
     "full: every pair kept; partial: some, those whose keys hold pads; the rest is skipped"),
    ("rotation", "q_rotated k_rotated",
     "D = 2^n: q times Sylvester's Hadamard matrix and 2^-floor(n / 2), k the same with 2^-ceil(n / 2); sums in fp32"),
    ("mean", "k_mean",
     "of each channel of K over all tokens, after the rotation: fp32 sum / tokens by true division; pads don't count"),
    ("amax", "q_amax k_amax v_amax",
     "Q and K (less its mean, if that is taken off): one per tile and head; V: one per channel and head; without pads"),
    ("groups", "groups",
     "granularity g: tile (t, h, w) belongs to group (t // g, h // g, w // g); 0: all tiles of a head"),
    ("scales", "q_scale k_scale v_scale scale",
     "fp32 amax of the group / 448 (int8: 127) by true division, 1 for 0; pow2: rounded up to a power of two, if it "
     "isn't one"),
    ("codes", "q_bits k_bits v_bits bits q_codes k_codes v_codes codes",
     "fp32 x (K less its mean) / scale by true division, clamped to +-448 (127), to the nearest e4m3 value (whole "
     "number), ties to even"),
    ("output", "out",
     "softmax(scores of codes / sqrt(D) * Q's scale * K's scale) over the kept keys, times V's codes, times V's scale"),
    ("gradients", "dq dk dv",
     "the rounding counts as the identity, scales as constants; pad rows have no gradient"),
)  # fmt: skip
RULE_OF = {name: rule for rule, names, _ in RULES for name in names.split()}
ORDER = [rule for rule, *_ in RULES]

# unit roundoff: the largest relative error of one rounding
ROUNDOFF = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "tf32": 2.0**-11,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
    "float8": 2.0**-4,
}


class Result(NamedTuple):
    case: str
    name: str
    rule: str
    problem: str | None  # None: as it should be
    detail: str


class UsageError(Exception):
    """One line about what was given and what was expected."""


def rule_of(name):
    return RULE_OF[name.removesuffix("_fp32").removesuffix("_pow2")]


def load(path):
    """The arrays of an .npz. Raises UsageError for anything else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, AttributeError, EOFError) as error:
        raise UsageError(f"{path} can't be read as .npz ({error}): save it with numpy.savez") from None


def compare(case, expected, got, precision=None):
    """A Result for each array of `got`, in the order of the rules; `expected`: the golden arrays of that case."""
    bounds = cache(lambda form, precision: error_bounds(expected, form, precision))
    results = []
    for name in sorted(got, key=lambda name: ORDER.index(rule_of(name))):
        problem, detail = _compare_one(name, expected, got[name], precision, bounds)
        results.append(Result(case, name, rule_of(name), problem, detail))
    return results


def _compare_one(name, golden, got, precision, bounds):
    rule, expected = rule_of(name), golden[name]
    got, dtype = widen(got, name)
    got = in_raster_order(got, expected, golden)
    if got.shape != expected.shape:
        return f"shape {got.shape}, expected {expected.shape}", ""
    if rule in ("output", "gradients"):
        form = name.rsplit("_", 1)[-1]
        if precision is None:
            precision = "bfloat16" if dtype == "float32" and exact_in_bfloat16(got) else dtype
        return within(got, expected, bounds(form, precision)[name], precision)
    if rule in ("schedule", "windows") and expected.dtype.kind == "f":
        return within(got, expected, np.full(expected.shape, 1e-6), "1e-6")
    if rule == "scales" and name.startswith("scale"):
        expected = where_flushed(got, expected, scale_of_amax(golden))
    if "bits" in name:
        got, expected = method.decode(got), method.decode(expected)  # so that -0 equals 0
    return exact(got, expected)


def scale_of_amax(golden):
    """amax / 448 of the single numbers, in float64."""
    return np.float64(golden["amax"]) / 448


def where_flushed(got, expected, exact_scale):
    """1 passes where amax / 448 is subnormal: hardware and compilers that flush it to 0 have 1 there by the rule."""
    return np.where((got == 1) & (exact_scale < np.finfo(np.float32).tiny), np.float32(1), expected)


def widen(x, name):
    """(what numpy can compute with, dtype's name). JAX's bfloat16 and float8 are 'V2' and 'V1' to plain numpy."""
    if x.dtype.kind == "V" and x.dtype.itemsize == 2:
        return (x.view(np.uint16).astype(np.uint32) << 16).view(np.float32), "bfloat16"
    if x.dtype.kind == "V" and x.dtype.itemsize == 1:
        x = x.view(np.uint8)
    if x.dtype.kind not in "biuf":
        raise UsageError(f"{name} has dtype {x.dtype}, expected numbers")
    if x.dtype == np.uint8 and "codes" in name:
        return method.decode(x), "float8"
    return x, x.dtype.name


def in_raster_order(x, expected, golden):
    """[B, H, slots, ...] -> [B, H, tokens, ...]; anything else as it is."""
    if x.ndim == 4 == expected.ndim and "valid" in golden and x.shape[2] == len(golden["valid"]) != expected.shape[2]:
        return x[:, :, golden["slot_of_token"]]
    return x


def exact_in_bfloat16(x):
    return not (np.ascontiguousarray(x, np.float32).view(np.uint32) & 0xFFFF).any()


def exact(got, expected):
    wrong = ~np.equal(got, expected)
    if not wrong.any():
        return None, "exact"
    where = tuple(np.argwhere(wrong)[0].tolist())
    share = f"{wrong.sum()} of {wrong.size} differ"
    return f"{share}, first at {list(where)}: {got[where]}, expected {expected[where]}", ""


def within(got, expected, bound, precision):
    with np.errstate(invalid="ignore", divide="ignore"):
        excess = np.abs(got.astype(np.float64) - expected) / np.maximum(bound, np.finfo(np.float32).tiny)
    excess = np.where(np.isfinite(got), excess, np.inf)
    worst = np.unravel_index(excess.argmax(), excess.shape) if excess.size else ()
    largest = f"largest error {excess[worst]:.2g} of the bound for {precision}"
    if excess[worst] <= 1:
        return None, largest
    where = f"at {[int(i) for i in worst]}: {got[worst]:.6g}, expected {expected[worst]:.6g}"
    return f"{(excess > 1).sum()} of {excess.size} beyond their bounds; {largest}, {where}", ""


def error_bounds(golden, form, precision):
    """How far each element of out, dq, dk, dv may be from exact, by the precision of P, of dP and of the result.

    The first-order error of the formula, with absolute values in place of the numbers: u for each time that P, the
    output or a gradient is rounded, and in fp32 the error of scores (a product of D terms) through exp and of sums.
    """
    layout = method.order(tuple(golden["grid"]), tuple(golden["tile"]), int(golden["block"]))
    parts = method.quantized(golden, layout, golden["groups"], form)
    q, k, v = (codes.astype(np.float64) for *_, codes in parts.values())
    q_scale, k_scale, v_scale = (at_slots.astype(np.float64) for _, _, at_slots, _ in parts.values())
    seen, root = golden["mask"][:, None], np.sqrt(q.shape[-1])
    weights = method.softmax_weights(q, k, q_scale, k_scale, seen)
    q_size, k_size, v_size = (np.abs(x) for x in (q * q_scale[..., None], k * k_scale[..., None], v * v_scale))
    grad_size = np.abs(method.grad_of_slots(golden, layout))

    u, single = max(ROUNDOFF[precision], ROUNDOFF["float32"]), ROUNDOFF["float32"]
    scores = np.where(seen, q_size @ k_size.swapaxes(-1, -2) / root, 0).max(-1, keepdims=True)
    in_fp32 = single * (2 * (q.shape[-1] + 4) * scores + seen.sum(-1, keepdims=True) + 8)
    lost = 2.0**-10 if precision == "float8" else 0.0  # what e4m3 can't hold of an unscaled P

    grad_weights = grad_size @ v_size.swapaxes(-1, -2)
    grad_scores = weights * (grad_weights + (weights * grad_weights).sum(-1, keepdims=True)) / root
    bounds = {
        "out": (2 * u + in_fp32) * (weights @ v_size) + lost * (seen @ v_size),
        "dq": (4 * u + 4 * in_fp32) * (grad_scores @ k_size),
        "dk": 4 * u * (grad_scores.swapaxes(-1, -2) @ q_size) + 4 * (grad_scores * in_fp32).swapaxes(-1, -2) @ q_size,
        "dv": 4 * u * (weights.swapaxes(-1, -2) @ grad_size) + 4 * (weights * in_fp32).swapaxes(-1, -2) @ grad_size,
    }
    if method.has(golden, "rotate"):  # each element is a sum of all channels' errors, and rounded once more
        for name in "qk":
            entry = np.abs(method.times_hadamard(np.eye(q.shape[-1]), name)[0, 0])
            bounds[f"d{name}"] = bounds[f"d{name}"].sum(-1, keepdims=True) * entry * (1 + u) + 0 * bounds[f"d{name}"]
    return {f"{name}_{form}": method.to_tokens(x, layout) for name, x in bounds.items()}


def check_ours(folder=HERE):
    """Recompute every case from its inputs, and compare our vectors with that."""
    for case, compute in CASES.items():
        golden = load(folder / f"{case}.npz")
        recomputed = compute(golden)
        yield from compare(case, {**golden, **recomputed}, {name: golden[name] for name in recomputed}, "float32")


def check_theirs(mine, precision, part=False):
    """Compare a folder of CASE.npz, or one such file, with our vectors; part: what isn't there is not asked for.

    Raises UsageError for what doesn't fit.
    """
    files = sorted(mine.glob("*.npz")) if mine.is_dir() else [mine]
    if not files:
        raise UsageError(f"{mine} holds no .npz: expected any of {', '.join(f'{case}.npz' for case in CASES)}")
    for path in files:
        if path.stem not in CASES:
            raise UsageError(f"{path} is no case: expected any of {', '.join(f'{case}.npz' for case in CASES)}")
    for path in files:
        golden, got = load(HERE / f"{path.stem}.npz"), load(path)
        unknown = sorted(set(got) - set(golden))
        if unknown or not got:
            given = f"holds {', '.join(unknown)}" if got else "is empty"
            raise UsageError(f"{path} {given}: expected arrays of ours, by our names (--list)")
        yield from compare(path.stem, golden, got, precision)
        yield from () if part else list_missing(path.stem, golden, got)
    for case in CASES if mine.is_dir() and not part else ():
        if not (mine / f"{case}.npz").is_file():
            yield from list_missing(case, load(HERE / f"{case}.npz"), {})


def list_missing(case, golden, got):
    """A Result for each rule of which arrays weren't handed in. Inputs needn't be."""
    missing = {}
    for name in golden.keys() - got.keys():
        missing.setdefault(rule_of(name), []).append(name)
    for rule in sorted(missing.keys() - {"inputs"}, key=ORDER.index):
        yield Result(case, "-", rule, f"not handed in: {' '.join(sorted(missing[rule]))}", "")


def report(results):
    """Print each result and, of what failed, the first rule; returns whether all passed."""
    results = list(results)
    for result in results:
        mark = "FAIL" if result.problem else "ok  "
        print(f"{mark} {result.case}/{result.name:<16} {result.rule:<12} {result.problem or result.detail}")
    compared = [result for result in results if result.name != "-"]
    failed = [result for result in compared if result.problem]
    print(f"{len(compared) - len(failed)} of {len(compared)} arrays as they should be")
    if failed:
        first = min((result.rule for result in failed), key=ORDER.index)
        print(f"look here first: {first} ({RULES[ORDER.index(first)][2]}); see docs/porting.md")
    if len(compared) < len(results):
        print("not all arrays were handed in: --part checks those that were")
    return not failed and len(compared) == len(results)


def list_arrays():
    for case in CASES:
        for name, x in load(HERE / f"{case}.npz").items():
            print(f"{case}/{name:<16} {str(x.dtype):<8} {str(x.shape):<18} {rule_of(name)}")


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("mine", nargs="?", type=Path, help="your CASE.npz, or a folder of them")
    parser.add_argument("--precision", choices=ROUNDOFF, help="of P and of the output in your kernel")
    parser.add_argument("--part", action="store_true", help="yours are a part of the arrays: pass without the others")
    parser.add_argument("--list", action="store_true", help="names, shapes and rules of all arrays")
    options = parser.parse_args(arguments)
    if options.list:
        list_arrays()
        return 0
    try:
        theirs = options.mine and check_theirs(options.mine, options.precision, options.part)
        return 0 if report(theirs or check_ours()) else 1
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
