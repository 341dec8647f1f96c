"""Released migrations import no application code, which may change later."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import persistence
from persistence import migration_support
from persistence.schema import migration_ids, migrations_directory

MIGRATIONS = sorted(migrations_directory().glob("*.py"))


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            assert node.module
            yield node.module
            if node.module == "persistence":
                yield from (f"persistence.{alias.name}" for alias in node.names)


def third_party(path: Path) -> set[str]:
    return {
        name for name in imported_modules(path) if name.split(".")[0] not in sys.stdlib_module_names
    }


def test_every_migration_in_python_is_checked() -> None:
    assert {path.stem for path in MIGRATIONS} == {
        name for name in migration_ids() if not (migrations_directory() / f"{name}.sql").exists()
    }
    assert len(MIGRATIONS) >= 4


@pytest.mark.parametrize("path", MIGRATIONS, ids=lambda path: path.stem)
def test_a_migration_imports_its_support_module_alone(path: Path) -> None:
    assert third_party(path) <= {"psycopg", "yoyo", migration_support.__name__}


def test_the_support_module_imports_nothing_of_the_application() -> None:
    assert third_party(Path(migration_support.__file__)) == {"psycopg"}
    assert third_party(Path(persistence.__file__)) == set()


def test_the_names_that_released_migrations_use() -> None:
    """They are never removed or renamed."""
    names = {
        "MigrationAborted",
        "change_table",
        "commit_without_wait",
        "create_indexes",
        "drop_indexes",
        "set_lock_timeout",
    }
    assert names <= vars(migration_support).keys()
