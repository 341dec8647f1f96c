"""The permission that each method requires: the table ``proto/permissions.toml``."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_TABLE: Final = Path(__file__).parents[1] / "gen" / "permissions.toml"  # copied by `generate`


def required_permissions() -> Mapping[str, str]:
    """Return the required permission by path, such as ``/listings.v1.OrderService/GetOrder``.

    A path that is not in the table must be rejected.
    """
    return tomllib.loads(_TABLE.read_text())
