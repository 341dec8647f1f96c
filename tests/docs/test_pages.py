"""Links, files and commands that the pages name exist."""

import json
import re
from pathlib import Path
from typing import Final

import pytest

from tests.support.markdown import PAGES, ROOT, anchors, blocks, code, links, prose

LANGUAGES: Final = {"sh", "python", "json", "go", "java", "ts", "text", "toml", "sql", "proto"} | {
    "nginx",
    "haproxy",
}

FILE: Final = re.compile(
    r"(server|persistence|proto|tests|yoyo|benchmarks|docs|requirements)/[\w./-]*"
)

GENERATED: Final = "server/gen"

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@each_page
def test_links(page: Path) -> None:
    broken = []
    for link in links(page):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@each_page
def test_named_files_exist(page: Path) -> None:
    named = [name for name in code(prose(page)) if FILE.fullmatch(name)]
    missing = [name for name in named if name != GENERATED and not (ROOT / name).exists()]
    assert not missing


@each_page
def test_named_recipes_exist(page: Path) -> None:
    recipes = set(re.findall(r"^([a-z]+)(?: \*args)?:", (ROOT / "justfile").read_text(), re.M))
    assert set(re.findall(r"\./justw ([a-z]+)\b", prose(page))) <= recipes


@each_page
def test_blocks_that_are_not_run_parse(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block}: what is {block.language!r}?"
        if block.language == "python":
            compile(block.text, str(block), "exec")
        elif block.language == "json":
            json.loads(block.text)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {link.partition("#")[0] for link in links(ROOT / "README.md")}
    pages = {each.relative_to(ROOT).as_posix() for each in PAGES} - {"README.md"}
    assert pages <= linked
