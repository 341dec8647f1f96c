"""The account that PostgreSQL's programs run under: that of this process, or another one for root.

PostgreSQL refuses to run as root. Files inside the account's directory are created and removed by
programs that run as the account, and not as root: a symbolic link that the account has placed there
reaches nothing that the account itself cannot reach.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from persistence.errors import EmbeddedPostgresError

UNPRIVILEGED = ("postgres", "nobody")
"""Names of the accounts that root uses: the first one that exists."""

_INHERITED = ("PATH", "TZ")
"""The variables of this process that the programs get.

``PATH`` finds ``sh`` and the like, and ``TZ`` is for the times in the log. All processes of the
account can read the environment of the server, so that secrets of root must not be in it; and
PGPORT, PGOPTIONS and the like are for other servers of the user. The libraries of the wheel are
found from its programs (RUNPATH), without LD_LIBRARY_PATH.
"""

_REACHABLE = """
for path; do
    if test -d "$path"; then test -x "$path"; else test -r "$path"; fi || exit 1
done
"""


@dataclass(frozen=True)
class Account:
    """A user and a group of the operating system, by number."""

    uid: int
    gid: int

    @property
    def name(self) -> str:
        """The login name, or the number of a user without a name."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)

    def run(
        self, *command: str | Path, cwd: Path = Path("/"), pass_fds: Sequence[int] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run ``command`` as this account in ``cwd``, and return its result, with any exit code.

        The command has a session of its own, which Ctrl-C in the terminal does not reach. An
        interrupt of this process does not end the wait either: an incomplete start or stop is worse
        than a late one.

        Raises EmbeddedPostgresError when the command cannot be executed.
        """
        switch = self.uid != os.geteuid()
        # In a thread, because an interrupt is raised in the main one; leaving the block waits.
        with ThreadPoolExecutor(max_workers=1) as pool:
            finished = pool.submit(
                subprocess.run,
                command,
                cwd=cwd,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                # As os.fsdecode: there are paths in it.
                encoding=sys.getfilesystemencoding(),
                errors=sys.getfilesystemencodeerrors(),
                start_new_session=True,
                pass_fds=pass_fds,
                user=self.uid if switch else None,
                group=self.gid if switch else None,
                extra_groups=[] if switch else None,
            )
            try:
                return finished.result()
            except (OSError, subprocess.SubprocessError) as error:
                raise EmbeddedPostgresError(
                    f"cannot run {command[0]} in {cwd} as the account {self.name}: {error}"
                ) from error

    def can_reach(self, *paths: Path) -> bool:
        """Return whether this account can use ``paths``: enter directories, and read other files.

        The kernel decides, for the account: the mode bits do not include access lists.
        """
        return self.run("sh", "-c", _REACHABLE, "sh", *paths).returncode == 0


def _environment() -> dict[str, str]:
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {**inherited, "LC_ALL": "C", "PGCONNECT_TIMEOUT": "5"}


def account_for(directory: Path) -> Account:
    """Return the account to run PostgreSQL under in ``directory``, which need not exist.

    It is that of this process. For root, it is the one of ``UNPRIVILEGED`` that owns the directory,
    or else the first one that exists. Raises OSError and EmbeddedPostgresError.
    """
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid())
    accounts = []
    for name in UNPRIVILEGED:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        accounts.append(Account(entry.pw_uid, entry.pw_gid))
    if not accounts:
        raise EmbeddedPostgresError(
            f"PostgreSQL does not run as root, and no account {' or '.join(UNPRIVILEGED)} exists: "
            "start the program as an ordinary user, or set LISTINGS_DATABASE_URL to a server"
        )
    owner = directory.stat().st_uid if directory.exists() else None
    return next((account for account in accounts if account.uid == owner), accounts[0])
