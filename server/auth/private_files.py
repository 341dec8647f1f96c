"""Files that no other user may have written, or may replace: as sshd's StrictModes, by mode bits.

Access control lists are seen as far as the mode bits show them.
"""

import grp
import os
import pwd
import stat
from pathlib import Path
from typing import Final

_ADVICE: Final = "run chmod go-w on it, or name another directory"


class UnsafeFile(Exception):
    """Another user may write or read what is to be private. ``str`` says what, and what to do."""


def require_own_directory(directory: Path) -> None:
    """Require that this user and root alone can write to ``directory``, and can replace it.

    Its parents count, too: who may write to one can put another directory in its place, unless
    the parent has the sticky bit. Raises UnsafeFile, and OSError.
    """
    real = directory.resolve(strict=True)
    _require(real, real.stat(), _ADVICE)
    for parent in real.parents:
        status = parent.stat()
        if not status.st_mode & stat.S_ISVTX or not _is_trusted(status.st_uid):
            _require(parent, status, _ADVICE)


def require_own_file(path: Path, *, secret: bool = False) -> None:
    """Require that ``path``, if it exists, is a file that only this user and root can write.

    Of one that is ``secret``, they alone may read it. Call ``require_own_directory`` first. Raises
    UnsafeFile, and OSError.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeFile(f"{path} is not a regular file: remove it")
    _require(path, status, "remove it, and a new one is made")
    if secret and status.st_mode & 0o077:
        raise UnsafeFile(
            f"other users may read {path} (mode {stat.S_IMODE(status.st_mode):04o}): remove it, "
            "and a new key is made; tokens of the old one are not accepted then"
        )


def _require(path: Path, status: os.stat_result, advice: str) -> None:
    if not _is_trusted(status.st_uid):
        raise UnsafeFile(
            f"{path} belongs to the user {_user_name(status.st_uid)}, who can replace what is in "
            "it: use one of your own"
        )
    others = "all users" if status.st_mode & stat.S_IWOTH else ""
    if status.st_mode & stat.S_IWGRP and not _is_of_one_user(status.st_gid):
        others = others or f"the group {_group_name(status.st_gid)}"
    if others:
        mode = stat.S_IMODE(status.st_mode)
        raise UnsafeFile(f"{others} may write to {path} (mode {mode:04o}): {advice}")


def _is_trusted(uid: int) -> bool:
    return uid in (0, os.geteuid())


def _is_of_one_user(gid: int) -> bool:
    """Return whether the group is the one that some systems make for each user, such as Fedora.

    There the umask is 002, and directories are writable by that group.
    """
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return (user.pw_gid, user.pw_name) == (gid, group.gr_name) and set(group.gr_mem) <= {
        user.pw_name
    }


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
