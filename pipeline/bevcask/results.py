"""A verb's result for people: numbers rounded, with units; what is nested in rows of its own.

What nobody asked about (None, nothing in a list) is left out; `--json` has everything.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

_EMPTY: tuple[Any, ...] = (None, "", [], {}, ())


def show(result: Mapping[str, Any]) -> Group:
    """Return a result as two columns; mappings of mappings and lists of them as tables below."""
    plain = Table(show_header=False, box=None)
    plain.add_column()
    plain.add_column(overflow="fold")
    tables: list[Table] = []
    for key, value in result.items():
        if rows := _rows_of(value):
            tables.append(_table(key, rows, named=isinstance(value, dict)))
        else:
            for name, words in _lines(key, value):
                plain.add_row(Text(name, style="bold"), words)
    return Group(plain, *tables)


def one_line(result: Mapping[str, Any]) -> str:
    """Return a result as one line of a log.

    >>> one_line({"student": "bevdepth", "parameters": 906_882, "teacher": None})
    'student bevdepth, parameters 906,882'
    """
    lines = (line for key, value in result.items() for line in _lines(key, value))
    return ", ".join(f"{name.strip()} {words}".strip() for name, words in lines)


def _rows_of(value: Any) -> dict[Any, dict[str, Any]]:
    """Return the rows of what is a table; nothing where it is none."""
    rows = dict(enumerate(value)) if isinstance(value, list) else value
    if isinstance(rows, dict) and all(isinstance(row, dict) for row in rows.values()):
        return {name: row for name, row in rows.items() if row}
    return {}


def _lines(key: str, value: Any, under: str = "", indent: str = "") -> Iterator[tuple[str, str]]:
    """Yield (name, words): one pair of a plain value, of a mapping one each below its name."""
    if value in _EMPTY:
        return
    name = indent + key.removesuffix("_gb").replace("_", " ")
    if not isinstance(value, dict):
        yield name, _words(f"{under} {key}", value)
        return
    below = [
        line
        for own, entry in value.items()
        for line in _lines(str(own), entry, f"{under} {key}", f"{indent}  ")
    ]
    if below:
        yield name, ""
        yield from below


def _table(title: str, rows: Mapping[Any, Mapping[str, Any]], named: bool) -> Table:
    """Return a table of mappings: one row each, its name in front where it has one."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    columns = [c for c in columns if any(row.get(c) not in _EMPTY for row in rows.values())]
    table = Table(title=title.replace("_", " "))
    for column in (*([""] if named else []), *columns):
        numbers = all(isinstance(row.get(column), int | float) for row in rows.values())
        heading = column.removesuffix("_gb").replace("_", " ")
        table.add_column(heading, justify="right" if numbers else "left", overflow="fold")
    for name, row in rows.items():
        cells = [_words(column, row.get(column)) for column in columns]
        table.add_row(*([str(name)] if named else []), *cells)
    return table


def _words(key: str, value: Any) -> str:
    """Return a value in words; the key, and those it is under, tell its unit."""
    if value in _EMPTY:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(key, value)
    if isinstance(value, list | tuple):
        return ", ".join(_words(key, entry) for entry in value)
    if isinstance(value, dict):
        return one_line(value) or "-"
    return str(value)


def _number(key: str, value: float) -> str:
    if "bytes" in key:
        return decimal(round(value))
    if isinstance(value, int):
        return f"{value:,}"
    if key.endswith("_gb"):
        return f"{value:.3g} GB"
    if "seconds" in key:
        return f"{value:.3g} s" if value < 100 else f"{value:,.0f} s"
    if "share" in key:
        return f"{100 * value:.0f} %"
    return f"{value:.4g}"
