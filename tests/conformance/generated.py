"""Generates the package ``gen`` from the protos of the suite."""

import shutil
from pathlib import Path
from typing import Final

from proto.generate import generate_into

_OUTPUT: Final = Path(__file__).resolve().parent / "gen"
_PACKAGE: Final = "connectrpc/conformance/v1"
_PROTOS: Final = ("config", "server_compat", "service")


def generate(protos: Path) -> None:
    """Write the package anew; ``protos`` is the folder of the suite's protos."""
    shutil.rmtree(_OUTPUT, ignore_errors=True)
    _OUTPUT.mkdir()
    names = [f"{_PACKAGE}/{each}.proto" for each in _PROTOS]
    generate_into(_OUTPUT, f"--proto_path={protos}", *names)
