"""Complete requests with hostile contents: each is answered, and never with an internal error.

A failure prints the requests as Python; ``tests.support.requests.Request`` makes bytes of them.
"""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tests.support.changed import Changes
from tests.support.hostile_requests import requests
from tests.support.target import BATCH, Target, batches


@batches(short=25, full=1_000)
@given(data=st.data())
def test_hostile_values(target: Target, data: st.DataObject) -> None:
    each = requests(target.known)
    target.send("hostile", data.draw(st.lists(each, min_size=BATCH, max_size=BATCH)))


@batches(short=20, full=750)
@given(seed=st.integers(0, 2**64))
def test_changed_messages(target: Target, changes: Changes, seed: int) -> None:
    random = Random(seed)
    target.send("changed message", [changes.message(random) for _ in range(BATCH)])
