"""The steps of docs/operations.md that need two servers, run as they stand, with other URLs."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.cluster import Cluster
from tests.support.markdown import blocks, page

_OLD: Final = "postgresql://owner:secret@old.example:5432/shop"
_NEW: Final = "postgresql://owner:secret@new.example:5432/shop"


@dataclass(frozen=True)
class Runbook:
    """Runs steps on two servers, of which ``new`` is the later version."""

    old: Cluster
    new: Cluster
    directory: Path

    def run(self, command: str) -> str:
        """Run the only block that has ``command``, by bash, and return what it prints."""
        (text,) = (
            block.text
            for block in blocks(page("operations.md"))
            if command in block.text and (_OLD in block.text or _NEW in block.text)
        )
        listings = str(Path(sys.executable).with_name("listings"))
        for documented, own in (
            (_OLD, self.old.url),
            (_NEW, self.new.url),
            (".venv/bin/listings", listings),
        ):
            text = text.replace(documented, own)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("LISTINGS_")}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.directory,
            env=inherited | {"PATH": f"{self.new.place.programs}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
