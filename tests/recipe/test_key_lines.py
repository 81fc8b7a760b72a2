"""The line of every key is found, or none is."""

from __future__ import annotations

from typing import Any

import pytest
import tomli

from torchrl_ckpt.recipe.toml_lines import key_lines

# In each document, the value of a key outside arrays is the number of its line, a string that ends
# in that number, or an array with the number as its first element.
DOCUMENTS = {
    "nothing": "",
    "only comments": "# a = 1\n\n  # b\n",
    "plain": "a = 1\nb = 2\n",
    "no newline at the end": "a = 1",
    "blank lines": "\n\na = 3\n\n\nb = 6",
    "windows newlines": "a = 1\r\n\r\nb = 3\r\n[t]\r\nc = 5\r\n",
    "comments behind": "a = 1 # [b]\nb = 2 # c = 9\n",
    "table": "[t]\na = 2\n[u]\nb = 4\n",
    "spaced table": "[ t . u ]  # c\na = 2\n",
    "nested table": "[t]\na = 2\n[t.u]\nb = 4\n[t.u.v]\nc = 6\n",
    "table after its child": "[t.u]\na = 2\n[t]\nb = 4\n",
    "indented": "[t]\n  a = 2\n\tb = 3\n",
    "dotted": "a.b.c = 1\na.b.d = 2\na . e = 3\n",
    "dotted in a table": "[t]\na.b = 2\na.c = 3\n",
    "quoted": '"a b" = 1\n\'c.d\' = 2\n"" = 3\n',
    "quoted and dotted": 'a."b.c".d = 1\n\'x\'."y" = 2\n',
    "quoted table": "[t.\"u.v\".'w']\na = 2\n",
    "escapes in keys": '"\\u00e9" = 1\n"a\\"b" = 2\n"é]" = 3\n"c\\\\" = 4\n',
    "unicode before": '"ééé" = 1\nb = "ü 2"\nc = 3\n',
    "numeric keys": "1 = 1\n3.14 = 2\n-1- = 3\n",
    "keys like values": "true = 1\nnan = 2\n2020-01-01 = 3\n",
    "include": '"@" = "x 1"\n[t]\n"@" = "y 3"\n',
    "strings": "a = \"b = 'x' 1\"\nc = 'd = \"y\" 2'\n",
    "brackets in strings": 'a = "[t] 1"\nb = "# 2"\nc = "} 3"\n',
    "escaped quotes": 'a = "\\" # = [\\\\ 1"\nb = 2\n',
    "backslash in a literal": "a = 'x\\ 1'\nb = 2\n",
    "long string": 'a = """\nb = 9\n[x]\n""\n 1"""\nc = 6\n',
    "long literal": "a = '''\nb = 9\n''\n\\ 1'''\nc = 5\n",
    "long string, quotes at the end": 'a = """1"""""\nb = """"x" 2"""\nc = 3\n',
    "long literal, quotes at the end": "a = '''1'''''\nb = 2\n",
    "long string, escapes": 'a = """x \\""" \\\\ 1"""\nb = """\\\n  2"""\nc = 4\n',
    "empty strings": "a = 1\ne = \"2\"\nb = '3'\n",
    "array": "a = [1, 2, 3]\nb = [2]\n",
    "long array": "a = [\n  1, # ] x\n  2,\n]\nb = [ 5,\n 6 ]\nc = 7\n",
    "array of strings": 'a = ["1", "]", \'[\']\nb = 2\n',
    "nested arrays": "a = [[1, 2], [\n3]]\nb = 3\n",
    "array of inline tables": "a = [{x = 9}, {x = 9, y = [9]}]\nb = 2\n",
    "inline table": "a = {b = 1, c = {d = 1}, e.f = 1}\ng = 2\n",
    "inline table with traps": 'a = {b = "} 1", "c=" = \'{ 1\', d = [1, {x = 9}]}\ng = 2\n',
    "inline table in a table": "[t]\na = { b = 2 }\nc = 3\n",
    "array of tables": "[[t]]\na = 9\n[[t]]\na = 9\n[u]\nb = 6\n",
    "below an array of tables": "[[t]]\na = 9\n[t.u]\nb = 9\n[[t.v]]\nc = 9\n[w]\nd = 8\n",
    "array of tables in a table": "[t]\na = 2\n[[t.u]]\nb = 9\n[t.v]\nc = 6\n",
    "numbers": "a = +1\nb = 2.0\nc = 0x3\nd = 4e0\ne = 0b101\n",
    "tight": "a=1\n[t]\nb={c=3,d=3}\n",
    "values with spaces behind": "a = 1   \nb = 2\t# x\n",
}


def first(value: Any) -> Any:
    while isinstance(value, list):
        value = value[0]
    return value


def written_lines(document: dict[str, Any], above: tuple[str, ...] = ()) -> dict[Any, int]:
    """The line that is written in the value of each key; tables and arrays of tables have none."""
    found = {}
    for name, value in document.items():
        if isinstance(value, dict):
            found |= written_lines(value, (*above, name))
        elif not isinstance(first(value), dict):
            number = first(value)
            found[(*above, name)] = int(
                number.split()[-1].strip("\"'") if isinstance(number, str) else number
            )
    return found


@pytest.mark.parametrize("text", DOCUMENTS.values(), ids=DOCUMENTS)
def test_every_key_is_found_on_its_line(text: str) -> None:
    document = tomli.loads(text)
    lines = key_lines(text, document)
    expected = written_lines(document)
    assert {key: lines[key] for key in expected} == expected
    assert bool(lines) == bool(document)


def test_a_table_is_on_the_line_where_it_is_first_mentioned() -> None:
    text = "a.b = 1\n[t.u]\nc = 3\n[t]\n[[v]]\n[[v]]\n"
    assert key_lines(text, tomli.loads(text)) == {
        ("a",): 1,
        ("a", "b"): 1,
        ("t",): 2,
        ("t", "u"): 2,
        ("t", "u", "c"): 3,
        ("v",): 5,
    }


def test_no_line_is_given_where_the_scanner_and_tomli_disagree() -> None:
    assert key_lines("a = 1\n", {"a": 1, "b": 2}) == {}
    assert key_lines("a = 1\nb = 2\n", {"a": 1}) == {}
    assert key_lines("= broken", {"a": 1}) == {}
    assert key_lines("a = {b = 1 c", {"a": {"b": 1}}) == {}
