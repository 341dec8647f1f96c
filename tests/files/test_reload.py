"""FileReloader: replaced files, faults, and retries."""

import os
from pathlib import Path

import pytest

from server.files.reload import FileReloader
from server.settings import SettingsError


class Reader:
    """Reads a number from the file, and records each one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.numbers: list[int] = []
        self.tries = 0

    def __call__(self) -> str:
        self.tries += 1
        try:
            number = int(self.path.read_text())
        except (OSError, ValueError) as error:
            raise SettingsError(f"no number: {type(error).__name__}") from None
        self.numbers.append(number)
        return f"the number is {number}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "number"
    path.write_text("1")
    return path


def test_an_unusable_file_is_an_error_at_first(path: Path) -> None:
    path.write_text("one")
    with pytest.raises(SettingsError, match="no number"):
        FileReloader([path], Reader(path))


def test_poll_reads_changed_files(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    read = Reader(path)
    files = FileReloader([path, path.with_name("other")], read)
    files.poll()
    assert read.tries == 1
    path.write_text("22")
    for _ in range(3):
        files.poll()
    assert (read.numbers, read.tries) == ([1, 22], 2)
    assert [record.getMessage() for record in caplog.records] == ["the number is 22"]


def test_a_replacement_of_same_size_and_time_is_a_change(path: Path) -> None:
    read = Reader(path)
    files = FileReloader([path], read)
    before = path.stat()
    copy = path.with_name("copy")
    copy.write_text("2")
    os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))
    copy.rename(path)
    files.poll()
    assert read.numbers == [1, 2]


def test_a_fault_is_logged_once_and_retried(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    read = Reader(path)
    files = FileReloader([path], read)
    path.write_text("two")
    for _ in range(3):
        files.poll()
    path.unlink()
    for _ in range(3):
        files.poll()
    assert (read.numbers, read.tries) == ([1], 7)
    files.reload()  # logs the fault again
    path.write_text("3")
    files.poll()
    files.poll()
    assert (read.numbers, read.tries) == ([1, 3], 9)
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        "no number: ValueError",
        "no number: FileNotFoundError",
        "no number: FileNotFoundError",
        "the number is 3",
    ]


def test_reload_reads_unchanged_files(path: Path) -> None:
    read = Reader(path)
    files = FileReloader([path], read)
    files.reload()
    assert read.numbers == [1, 1]
