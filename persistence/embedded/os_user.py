"""The account that PostgreSQL's programs run under: our own, or an unprivileged one for root.

PostgreSQL refuses to run as root. Whatever is made or removed inside the account's directory is
therefore done by a program that has dropped to the account, and not by root: a symbolic link
planted there leads no further than the rights of whoever planted it.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from persistence.errors import EmbeddedPostgresError

UNPRIVILEGED = ("postgres", "nobody")
"""Names of the accounts that root drops to; the first that exists is taken."""

_REACHABLE = """
for path; do
    if test -d "$path"; then test -x "$path"; else test -r "$path"; fi || exit 1
done
"""


@dataclass(frozen=True)
class Account:
    """A user of the operating system, by number."""

    uid: int
    gid: int

    @property
    def name(self) -> str:
        """The login name, or the number where the system knows no name for it."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)

    def run(
        self, *command: str | Path, cwd: Path = Path("/"), pass_fds: Sequence[int] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` as this account and wait for its end; its exit code is for the caller.

        The command gets a session of its own, so that Ctrl-C in the terminal reaches us alone, and
        is waited for even when we are interrupted: half a start or stop is worse than a late one.

        Raises EmbeddedPostgresError when the command cannot be executed.
        """
        switch = self.uid != os.geteuid()
        # PGPORT, PGOPTIONS and their like are meant for the user's own servers.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        environment.update(LC_ALL="C", PGCONNECT_TIMEOUT="5")
        # In a thread, because an interrupt reaches the main one only; leaving the block waits.
        with ThreadPoolExecutor(max_workers=1) as pool:
            finished = pool.submit(
                subprocess.run,
                command,
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="surrogateescape",
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
        """Whether this account can enter those `paths` that are directories and read the others.

        The kernel is asked, as the account: mode bits do not tell of access lists.
        """
        return self.run("sh", "-c", _REACHABLE, "sh", *paths).returncode == 0


def account_for(directory: Path) -> Account:
    """The account to run PostgreSQL under in `directory`, which need not exist yet.

    It is our own, unless we are root: then the unprivileged account that owns the directory, and
    otherwise the first unprivileged account there is. Raises OSError and EmbeddedPostgresError.
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
