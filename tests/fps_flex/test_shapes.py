"""What `pytest --shapes` finds: planted wrong annotations, and what it leaves to the function itself."""

import ast

import pytest
import torch

pytest.importorskip("beartype")

from jaxtyping import Float, TypeCheckError  # noqa: E402
from torch import Tensor  # noqa: E402

from tests.helpers import shapes  # noqa: E402

SOURCE = """
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float

def transpose(x: Float[Tensor, "a b"], count: int) -> Float[Tensor, "{returned}"]:
    if x.ndim != 2:
        raise ValueError("expected [A, B]")
    return x.T
"""


def transpose_of(returned):
    tree = ast.fix_missing_locations(shapes._Checked().visit(ast.parse(SOURCE.format(returned=returned))))
    module = {"Tensor": Tensor, "_checked": shapes.checked}
    exec(compile(tree, "source", "exec"), module)
    return module["transpose"]


def test_a_wrong_shape_is_found_and_a_right_one_passes():
    x = torch.ones(2, 3)
    assert torch.equal(transpose_of("b a")(x, "types are not looked at"), x.T)
    with pytest.raises(TypeCheckError):
        transpose_of("a b")(x, 1)
    with pytest.raises(TypeCheckError):
        transpose_of("b a")(x.int(), 1)


def test_what_the_function_refuses_is_its_own_error():
    with pytest.raises(ValueError, match=r"expected \[A, B\]"):
        transpose_of("b a")(torch.ones(2), 1)


def test_a_dataclass_of_tensors_that_do_not_fit_each_other_is_found():
    from dataclasses import dataclass

    @shapes.checked
    @dataclass(frozen=True)
    class Pair:
        q: Float[Tensor, "b s"]
        scale: Float[Tensor, "b 1"]

    assert Pair(torch.ones(2, 3), torch.ones(2, 1)).q.shape == (2, 3)
    with pytest.raises(TypeCheckError):
        Pair(torch.ones(2, 3), torch.ones(3, 1))


def test_fps_flex_itself_is_checked_where_it_is_asked_for(request):
    from fps_flex.masks import tile_mask
    from fps_flex.tiles import TileLayout

    layout, windows = TileLayout((4, 4, 4), (2, 2, 2), 8), torch.ones(2, 3, dtype=torch.int32)
    assert tile_mask(layout, windows).shape == (2, 8, 8)
    if request.config.getoption("--shapes"):
        with pytest.raises(TypeCheckError):
            tile_mask(layout, windows.float())
