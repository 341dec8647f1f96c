"""Changed bytes of requests: the service answers or ends the connection."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tests.support.changed import Changes
from tests.support.target import BATCH, Target, batches


@batches(short=20, full=500)
@given(seed=st.integers(0, 2**64))
def test_http1(target: Target, changes: Changes, seed: int) -> None:
    random = Random(seed)
    target.throw("changed bytes", "http1", [changes.http1(random) for _ in range(BATCH)])


@batches(short=20, full=500)
@given(seed=st.integers(0, 2**64))
def test_http2(target: Target, changes: Changes, seed: int) -> None:
    random = Random(seed)
    target.throw("changed bytes", "http2", [changes.http2(random) for _ in range(BATCH)])
