import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--shapes", action="store_true", help="check the types and shapes in fps_flex's annotations")


def pytest_configure(config):
    if config.getoption("--shapes"):
        from tests.helpers.shapes import check_shapes

        check_shapes()


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """What is kept of clips between starts, apart from that of the user."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def pipeline():
    """A tiny stock WanPipeline of random weights; not to be changed."""
    from tests.helpers.tiny_wan import tiny_pipeline

    return tiny_pipeline()


@pytest.fixture(scope="session")
def wan_folder(pipeline, tmp_path_factory):
    """The same pipeline on disk, in the diffusers layout; not to be changed."""
    folder = tmp_path_factory.mktemp("wan")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def suite(tmp_path_factory):
    """VBench's suite in small; not to be changed."""
    from tests.helpers.vbench_suite import write_suite

    return write_suite(tmp_path_factory.mktemp("suite") / "VBench_full_info.json")
