"""``listings dev-token`` makes and reads keys only where no other user may write."""

import os
import stat
from pathlib import Path

import pytest

from server.auth import dev_tokens, private_files
from server.auth.dev_tokens import Bearer
from server.auth.private_files import UnsafeFile
from server.settings import Settings
from tests.support.command_line import listings

OTHER = 54321
"""A user and a group without a name."""


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A directory with a key, below another one."""
    directory = tmp_path / "above" / "keys"
    directory.parent.mkdir()
    make(directory)
    return directory


def make(directory: Path) -> None:
    dev_tokens.make_token(Settings(), directory, Bearer("me", ["health"], []), 1)


# What is changed, by its path from the directory of the keys: its mode, and its owner and group.
SPOILT = {
    "all may write": (".", 0o707, None, "all users may write to {keys} (mode 0707)"),
    "sticky": (".", 0o1777, None, "all users may write to {keys} (mode 1777)"),
    "all may write above": ("..", 0o757, None, "all users may write to {above}"),
    "a key that others read": (
        *("private-key.pem", 0o640, None),
        "other users may read {keys}/private-key.pem (mode 0640): remove it",
    ),
    "a key that others write": (
        *("private-key.pem", 0o602, None),
        "all users may write to {keys}/private-key.pem",
    ),
    "a set that others write": (
        *("jwks.json", 0o646, None),
        "all users may write to {keys}/jwks.json (mode 0646): remove it",
    ),
    "a group may write": (
        *(".", 0o770, (0, OTHER)),
        f"the group {OTHER} may write to {{keys}} (mode 0770): run chmod go-w on it",
    ),
    "another's": (".", 0o700, (OTHER, 0), f"{{keys}} belongs to the user {OTHER}"),
    "another's above": ("..", 0o1755, (OTHER, 0), f"{{above}} belongs to the user {OTHER}"),
    "another's key": (
        *("private-key.pem", 0o600, (OTHER, 0)),
        f"{{keys}}/private-key.pem belongs to the user {OTHER}",
    ),
    "another's set": (
        *("jwks.json", 0o644, (OTHER, 0)),
        f"{{keys}}/jwks.json belongs to the user {OTHER}",
    ),
}


@pytest.mark.parametrize(("name", "mode", "owner", "words"), SPOILT.values(), ids=SPOILT)
def test_what_others_may_write_is_refused_and_left_unchanged(
    keys: Path, name: str, mode: int, owner: tuple[int, int] | None, words: str
) -> None:
    if owner is not None:
        if os.geteuid() != 0:
            pytest.skip("only root may change an owner")
        os.chown(keys / name, *owner)
    (keys / name).chmod(mode)
    before = files(keys)
    with pytest.raises(UnsafeFile) as error:
        make(keys)
    assert words.format(keys=keys, above=keys.parent) in str(error.value)
    assert files(keys) == before


def files(directory: Path) -> dict[Path, os.stat_result]:
    return {path: path.lstat() for path in directory.iterdir()}


def test_a_link_in_place_of_the_set_is_refused(keys: Path) -> None:
    (keys / "jwks.json").rename(keys / "elsewhere")
    (keys / "jwks.json").symlink_to("elsewhere")
    with pytest.raises(UnsafeFile, match="is not a regular file: remove it"):
        make(keys)


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o1777])
def test_others_may_read_and_a_sticky_parent_is_fine(tmp_path: Path, mode: int) -> None:
    above = tmp_path / "above"
    above.mkdir()
    above.chmod(mode)
    for _ in range(2):
        make(above / "keys")


def test_a_group_of_one_user_may_write(tmp_path: Path) -> None:
    """As after ``mkdir`` with the umask 002, where each user has such a group."""
    if not private_files._is_of_one_user(os.getegid()):
        pytest.skip("this user has no group of its own")
    tmp_path.chmod(0o770)
    make(tmp_path / "keys")


def test_files_are_private_whatever_the_umask_is(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make(tmp_path / "keys")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "keys").iterdir()}
    assert modes == {"private-key.pem": 0o600, "jwks.json": 0o644}


def test_the_command_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys").chmod(0o777)
    done = listings("dev-token", "--directory", str(tmp_path / "keys"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"Error: all users may write to {tmp_path}/keys (mode 0777): run chmod go-w on it, or name "
        "another directory\n"
    )
    assert not list((tmp_path / "keys").iterdir())
