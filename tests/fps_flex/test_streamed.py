"""Tensors in parts by their rows, as processes write them: whichever rows are asked for."""

import pytest
import torch

from fps_flex.wan.streamed import Part, Streamed, dtype_of, renamed, rows_of, shape_of


def in_parts(tensor, count):
    """As FSDP2 shares a tensor out: the first have as many rows as any, the last may have none."""
    chunks = list(tensor.chunk(count))
    chunks += [tensor[:0]] * (count - len(chunks))
    return [Part(tuple(x.shape), x.dtype, lambda start, end, x=x: x[start:end].clone()) for x in chunks]


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7])
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 8])
def test_any_rows_of_any_parts(rows, parts):
    """So what any number of processes saved, any other goes on from."""
    tensor = torch.arange(rows * 3.0).view(rows, 3)
    state = Streamed({"a": in_parts(tensor, parts)})
    assert torch.equal(state["a"], tensor) and state.shape("a") == (rows, 3)
    for start in range(rows + 1):
        for end in range(start, rows + 1):
            assert torch.equal(state.rows("a", start, end), tensor[start:end])
            assert torch.equal(rows_of({"a": tensor}, "a", start, end), tensor[start:end])


def test_nothing_is_read_that_is_not_asked_for():
    read = []

    def reader(number):
        return lambda start, end: read.append((number, start, end)) or torch.ones(end - start, 3)

    parts = [Part((2, 3), torch.float32, reader(number)) for number in range(4)]
    state = renamed(Streamed({"average.x": parts}), "average.", "model.")
    assert list(state) == ["model.x"] and shape_of(state, "model.x") == (8, 3)
    assert dtype_of(state, "model.x") == torch.float32 and not read
    assert state.rows("model.x", 3, 5).shape == (2, 3) and read == [(1, 1, 2), (2, 0, 1)]


def test_a_number_is_a_tensor_too():
    number = torch.tensor(5.0)
    state = Streamed({"step": [Part((), torch.float32, lambda start, end: number)]})
    assert state["step"] == 5 and state.shape("step") == () and len(state) == 1


@pytest.mark.parametrize("shapes", [[(2, 3), (2, 4)], [(), ()], [(2, 3), (2,)]])
def test_parts_that_make_up_no_tensor_are_refused(shapes):
    with pytest.raises(ValueError, match="a is in parts of .*, which make up no tensor"):
        Streamed({"a": [Part(shape, torch.float32, lambda *_: torch.ones(())) for shape in shapes]})
