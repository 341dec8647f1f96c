"""The service under fuzzing, and the summary of requests and responses."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import psutil
import pytest

from tests.support import service
from tests.support.changed import Changes
from tests.support.hostile_tokens import hostile_tokens
from tests.support.requests import Header
from tests.support.target import Tally, Target, targeted
from tests.support.tokens import READ, WRITE, Issuer

MEBIBYTE = 2**20

# Of the process. Caches of SQL and series of metrics take 12 MiB at most; the limit is 340 bytes
# for each of 100,000 requests.
MOST_GROWTH = 32 * MEBIBYTE

_tally = pytest.StashKey[Tally]()
_growth = pytest.StashKey[int]()


@pytest.fixture(scope="session")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    """The issuer whose tokens the service accepts."""
    return Issuer(tmp_path_factory.mktemp("issuer") / "jwks.json")


@pytest.fixture(scope="session")
def credentials(issuer: Issuer) -> Sequence[tuple[Header, ...]]:
    """Authorization headers, most of them valid."""
    everything = (WRITE, READ, "health", "reflection")
    _, shortest, _ = issuer.keys  # the shortest token, so that most changes affect other bytes
    good = issuer.token(*everything, key=shortest, exp=int(time.time()) + 7_200)
    others = [each.encode() for each in hostile_tokens(issuer, good)]
    right = [(b"authorization", b"Bearer " + good.encode())]
    wrong = [[(b"authorization", b"Bearer " + each)] for each in others]
    wrong += [[], right * 2, [(b"authorization", b"Basic YTpi")], [(b"authorization", b"\xff")]]
    return [tuple(each) for each in [right] * 2 * len(wrong) + wrong]


@pytest.fixture(scope="session")
def target(
    tmp_path_factory: pytest.TempPathFactory,
    pytestconfig: pytest.Config,
    issuer: Issuer,
    credentials: Sequence[tuple[Header, ...]],
) -> Iterator[Target]:
    """The service on a database of its own. It exits cleanly, and grows by less than the limit."""
    tally = pytestconfig.stash[_tally] = Counter()
    log = tmp_path_factory.mktemp("fuzz") / "log"
    with (
        service.on_own_database(log, public="metrics", **issuer.settings()) as running,
        targeted(running, tally, credentials) as target,
    ):
        process = psutil.Process(running.process.pid)
        before = process.memory_info().rss
        yield target
        growth = pytestconfig.stash[_growth] = process.memory_info().rss - before
    assert growth < MOST_GROWTH


@pytest.fixture(scope="session")
def changes(target: Target) -> Changes:
    """Changes of valid requests."""
    return Changes(target.known)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the table."""
    tally = config.stash.get(_tally, Counter())
    if tally:
        terminalreporter.section("what was sent, and how it was answered")
        for line in _table(tally):
            terminalreporter.line(line)
        grown = config.stash.get(_growth, 0) / MEBIBYTE
        terminalreporter.line(f"{tally.total():,} requests; the process grew by {grown:.0f} MiB")


def _table(tally: Tally) -> Iterable[str]:
    for title, columns in (("protocol", [0, 1]), ("method", [2])):
        sent: dict[str, Counter[str]] = {}
        for key, count in tally.items():
            row = sent.setdefault(" ".join(key[column] for column in columns), Counter())
            row[key[3]] += count
        width = max(map(len, sent))
        yield f"{title:{width}}  requests  answers"
        for name, codes in sorted(sent.items()):
            answers = ", ".join(f"{code} {count:,}" for code, count in codes.most_common())
            yield f"{name:{width}}  {codes.total():>8,}  {answers}"
        yield ""
