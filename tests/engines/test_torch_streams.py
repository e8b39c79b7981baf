"""PyTorch on the CPU takes several batches at once: tiny models, as real ones are not built everywhere."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serve_app.engines.base import Engine, TokenIds
from tests.engines.conftest import MakeModel


@pytest.fixture(params=["fp32", "int8-dynamic"])
def engine(request: pytest.FixtureRequest, make_model: MakeModel) -> Engine:
    from serve_app.engines.torch_engine import TorchEngine
    from serve_app.engines.torch_int8_engine import round_linears

    found = TorchEngine(make_model("Bert"), pooling="mean", pad_id=0, device="cpu")
    if request.param == "int8-dynamic":
        round_linears(found.module)
    return found


def test_batches_side_by_side_get_the_vectors_of_batches_alone(
    engine: Engine, mixed_texts: list[TokenIds]
) -> None:
    """Bit for bit, in FP32 and rounded to INT8 as a batch comes in."""
    batches = [mixed_texts[:size] for size in range(1, len(mixed_texts) + 1)] * 5
    alone = [engine.embed(batch) for batch in batches]
    with ThreadPoolExecutor(2) as threads:
        for expected, found in zip(alone, threads.map(engine.embed, batches), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_threads_are_set_for_every_thread_that_computes() -> None:
    """A stream's thread, which comes later, computes with as many as the engine was opened with."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with ThreadPoolExecutor(1) as other:
                assert other.submit(torch.get_num_threads).result() == threads
    finally:
        torch.set_num_threads(before)
