"""What tests build from sources, once for all processes of a run, and again when these change."""

import fcntl
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path


def build_once(
    directory: Path, sources: Iterable[Path], build: Callable[[], None], *, texts: str = ""
) -> None:
    """Call ``build``, unless it has succeeded for the present ``sources`` and ``texts``.

    ``directory`` gets a lock, so that no two processes build at a time, and the digest of what was
    built from.
    """
    digest = hashlib.sha256(f"{len(texts)} {texts}".encode())
    for source in sources:
        content = source.read_bytes()
        digest.update(f"{source.name} {len(content)}\n".encode() + content)
    built = directory / ".built"
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists() or built.read_text() != digest.hexdigest():
            built.unlink(missing_ok=True)
            build()
            built.write_text(digest.hexdigest())
