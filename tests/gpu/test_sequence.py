"""A video's tokens shared among GPUs: each regime, and a batch of all, is what one GPU computes."""

import pytest
import torch

from tests.helpers import sequence_cases as cases
from tests.helpers.cases import relative_error
from tests.helpers.together import run_together

pytestmark = pytest.mark.gpu

BF16 = 2**-8


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    return run_together(cases.run_on_gpus, 2, tmp_path_factory.mktemp("gpus"))


@pytest.mark.parametrize("case", cases.GPU_CASES, ids=lambda case: "-".join(case))
def test_attention_is_that_of_one_gpu(found, case):
    """Ulysses' output through flash to the bit. Else keys are added in another order, and P is rounded to bf16 on the
    way; what each GPU has of a gradient is rounded before it is added to the other's."""
    for here in found:
        for name, got, one in zip(("out", "q", "k", "v"), *here[case], strict=True):
            assert one.abs().max() > 0
            if case[0] == "ulysses" and case[1] != "fps" and name == "out":
                assert torch.equal(got, one)
            assert relative_error(got, one) < BF16, name
