"""The garbage collector of a process that serves. Tested in a process of its own: it is global."""

import subprocess
import sys

START = """
import gc
from server.process import garbage

garbage.pause_collection()
assert not gc.isenabled()
alive = [[] for _ in range(1000)]
garbage.resume_collection()
assert gc.isenabled()
assert gc.get_freeze_count() >= 1000
assert not any(each is alive for each in gc.get_objects())
"""

EXIT = """
import atexit, gc
from server.process import garbage

atexit.register(lambda: print(gc.get_freeze_count() >= 1000))
garbage.skip_collection_at_exit()
alive = [[] for _ in range(1000)]
"""


def test_what_lives_after_a_start_is_exempt_from_collections() -> None:
    subprocess.run([sys.executable, "-c", START], check=True)


def test_the_last_collection_visits_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", EXIT], check=True, capture_output=True, text=True)
    assert done.stdout == "True\n"
