"""The garbage collector of a serving process, tested in subprocesses because it is global."""

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


def test_objects_alive_after_the_start_are_frozen() -> None:
    subprocess.run([sys.executable, "-c", START], check=True)


def test_objects_are_frozen_at_exit() -> None:
    done = subprocess.run([sys.executable, "-c", EXIT], check=True, capture_output=True, text=True)
    assert done.stdout == "True\n"
