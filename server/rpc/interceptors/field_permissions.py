"""Permissions that a request needs for setting a field, besides that of its method."""

from collections.abc import Callable, Mapping
from typing import Any

from protobuf import DescService, Message

from server.auth.principal import current_principal
from server.rpc.errors import permission_denied


def field_permissions(
    permissions: Mapping[str, str], service: DescService
) -> Callable[[Message[Any]], None]:
    """Return a hook for the requests of ``service`` that checks the permissions of their fields.

    ``permissions`` has them under the path of the method, "#" and the field. The hook raises
    ConnectError, PERMISSION_DENIED. A caller without a token, where none is needed, may set them.
    """
    needed: dict[str, dict[str, tuple[str, str]]] = {}
    for method in service.methods:
        path = f"/{service.type_name}/{method.name}"
        for key, permission in permissions.items():
            if key.startswith(f"{path}#"):
                field = key.partition("#")[2]
                needed.setdefault(method.input.type_name, {})[field] = (key, permission)

    def check(request: Message[Any]) -> None:
        fields = needed.get(type(request).desc().type_name)
        caller = current_principal.get()
        if not fields or caller is None:
            return
        for field, (key, permission) in fields.items():
            if request.has_field(field) and permission not in caller.permissions:
                text = f"{key} needs the permission {permission}, which the token does not have"
                raise permission_denied(text, path=key, permission=permission)

    return check
