"""The lines of the values of a TOML document."""

import tomllib
from collections.abc import Iterator

import pytest

from persistence import toml_lines

# Each integer is the line that it stands in.
DOCUMENTS = {
    "tables": r"""a = 1
[b]

c = 4
[b.d] # [not.this]
e.f = 6
"g.h" . 'i\j' . "\u006b"=7
[ l . "m" ]
n = 9
""",
    "arrays": """a = [1, 1]
b = [ # ]
  3,
  4, [4,
  5, [ ], [[5]]
  ], 6, # 7
]
c = 8
""",
    "inline tables": """a = {b = 1, c.d = 1, e = [1, {f = 1}], g = {}}
h = [{i = 2},
{j = 3 }, 3]
k = {}
l = 5
""",
    "literal strings": r"""a = '"]'
b = 2
c = '''
[x] '' \'''
d = 5
e = '''x'''''
f = ''''''
g = ''
h = 9 # '''
""",
    "strings": r'''a = "\"[x]\\"
b = """
[x] "" \""" y = ["""
c = 4
d = """"quoted"""""
e = """"""
f = ""
g = 8
''',
    "arrays of tables": """[[a]]
b = 2
[a.c]
d = 4
[[ a ]] # [
[[a]]
b = 7
[a.c]
d = 9
[[a.e.f]]
b = 11
[[a.e.f]]
[g]
a.b = 14
[[a]]
b = 16
[[a.e.f]]
b = 18
""",
    "other values": """a = 1979-05-27 07:32:00
b = [1979-05-27 07:32:00, 2, 1e3, true, -inf, 07:32:00.5]
c = 3
d = 4 # e = 0
""",
    "line ends": "a = 1\r\nb = [\r\n3]\r\n\r\nc = 5",
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_each_value_has_its_line(name: str) -> None:
    document = DOCUMENTS[name]
    lines = toml_lines.lines(document)
    values = dict(_values((), tomllib.loads(document)))
    integers = {at: value for at, value in values.items() if type(value) is int}
    assert len(integers) > 1
    assert integers == {at: lines[at] for at in integers}
    assert values.keys() <= lines.keys()


def test_a_table_has_the_line_that_first_mentions_it() -> None:
    lines = toml_lines.lines("\n[a.b]\nc = 1\n\n[a.d]\n[[e]]\n[[e]]\n")
    tables = {("e",): 6, ("e", 0): 6, ("e", 1): 7}
    assert lines == {("a",): 2, ("a", "b"): 2, ("a", "b", "c"): 3, ("a", "d"): 5, **tables}


def _values(at: toml_lines.Path, value: object) -> Iterator[tuple[toml_lines.Path, object]]:
    """Yield the path and the value of each that is no table and no array."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _values((*at, name), each)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _values((*at, index), each)
    else:
        yield at, value
