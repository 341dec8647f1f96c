"""The messages that the service logs, as they stand in its source."""

import ast
from collections.abc import Iterator
from typing import Final

from tests.support.markdown import ROOT

_PACKAGES: Final = ("persistence", "server")
_METHODS: Final = frozenset({"critical", "debug", "error", "exception", "info", "log", "warning"})


def messages() -> set[str]:
    """Return the messages, with ``%s`` and the like for what they take.

    It finds those that are constants of the same module.
    """
    return {
        found
        for package in _PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if "gen" not in path.relative_to(ROOT).parts
        for found in _of(ast.parse(path.read_text()))
    }


def _of(module: ast.Module) -> Iterator[str]:
    texts: dict[str, list[str]] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    texts.setdefault(target.id, []).extend(_texts(node.value, {}))
    for node in ast.walk(module):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in _METHODS
            and "log" in ast.unparse(node.func.value)
        ):
            number = 1 if node.func.attr == "log" else 0
            for argument in node.args[number : number + 1]:
                yield from _texts(argument, texts)


def _texts(node: ast.expr, names: dict[str, list[str]]) -> list[str]:
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.Name(id=name):
            return names.get(name, [])
        case ast.IfExp(body=one, orelse=other):
            return _texts(one, names) + _texts(other, names)
        case _:
            return []
