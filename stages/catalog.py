"""catalog: list the datasets, checkpoints and caches that have a name."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bevcask.catalog import KINDS, is_missing, load_catalog, user_file
from bevcask.errors import UnknownNameError
from bevcask.registry import suggest
from bevcask.verbs import CatalogConfig


def run(config: CatalogConfig) -> dict[str, Any]:
    """Return every entry, or those called `config.name`, each with `missing` where it is not there.

    Returns:
        `user_file`, and per section (`datasets`, `checkpoints`, `caches`) a mapping from name to
        the entry's fields and `missing`.

    Raises:
        UnknownNameError: no entry of that name.
    """
    catalog = load_catalog()
    sections = {
        section: {
            name: entry.model_dump() | {"missing": is_missing(entry.location)}
            for name, entry in getattr(catalog, section).items()
            if config.name in {None, name}
        }
        for section in KINDS.values()
    }
    if config.name is not None and not any(sections.values()):
        known = sorted(name for section in KINDS.values() for name in getattr(catalog, section))
        raise UnknownNameError(
            f"{config.name}: no such catalog entry.{suggest(config.name, known)} "
            f"Known: {', '.join(known)}. Add your own to {user_file()}."
        )
    return {"user_file": str(user_file()), "name": config.name, **sections}


def render(result: dict[str, Any]) -> RenderableType:
    """Show one table a section, or every field of the entries asked for."""
    if result["name"] is not None:
        return Group(*_details(result))
    return Group(
        *(_table(section, result[section]) for section in KINDS.values() if result[section]),
        f"use as catalog:NAME wherever a path goes; your own entries: {result['user_file']}",
    )


def _table(section: str, entries: dict[str, dict[str, Any]]) -> Table:
    columns = {
        "datasets": ("version", "licence", "root"),
        "checkpoints": ("detector", "world", "path"),
        "caches": ("teacher", "rows", "created", "url"),
    }[section]
    table = Table(title=section, title_justify="left")
    for column in ("name", *columns, ""):
        table.add_column(column, overflow="fold")
    for name, entry in entries.items():
        mark = Text("missing", "red") if entry["missing"] else Text("ok", "green")
        table.add_row(Text(name, "bold"), *(str(entry[column]) for column in columns), mark)
    return table


def _details(result: dict[str, Any]) -> list[Table]:
    tables = []
    for kind, section in KINDS.items():
        for name, entry in result[section].items():
            table = Table(title=f"{kind} {name}", show_header=False, title_justify="left")
            for key, value in entry.items():
                table.add_row(Text(key, "bold"), str(value))
            tables.append(table)
    return tables
