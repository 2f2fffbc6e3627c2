"""A tiny model's official weights, and files of them."""

import json

import pytest
from safetensors.torch import save_file


@pytest.fixture(scope="session")
def tensors(tmp_path_factory):
    """A tiny model's, by their official names; not to be changed."""
    from tests.helpers.official_wan import make_official  # once --shapes is heeded: it imports fps_flex

    return make_official(tmp_path_factory.mktemp("official") / "x")


@pytest.fixture
def save(tmp_path):
    """Puts tensors into a file, with what its heads are beside it."""

    def write(tensors, name="model.safetensors", **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "config.json").write_text(json.dumps({"num_heads": 2}))
        save_file({key: x.clone().contiguous() for key, x in tensors.items()}, path, **options)
        return path

    return write
