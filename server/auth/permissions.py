"""What each method needs of its caller: the table ``proto/permissions.toml``."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_TABLE: Final = Path(__file__).parents[1] / "gen" / "permissions.toml"  # put there with the code


def permissions() -> Mapping[str, str]:
    """Return the permission that each path needs, such as ``/listings.v1.OrderService/GetOrder``.

    Whatever has none is to be refused.
    """
    return tomllib.loads(_TABLE.read_text())
