"""Tables that a notebook shows; in a terminal there is `repr`."""

from collections.abc import Iterable, Sequence
from html import escape


def html_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], note: str = ""
) -> str:
    """Return an HTML table; everything in it is text, whatever it holds.

    Numbers are aligned to the right. Colours are those of the notebook, light or dark.

    Args:
        title: above it.
        columns: headings; none leaves the line of headings out.
        rows: one value a column.
        note: below it.
    """
    head = "".join(f'<th style="text-align:left">{escape(str(name))}</th>' for name in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f'<table><caption style="text-align:left;font-weight:bold">{escape(title)}</caption>'
        f"{f'<thead><tr>{head}</tr></thead>' if columns else ''}<tbody>{body}</tbody></table>"
        f"{f'<p>{escape(note)}</p>' if note else ''}"
    )


def _cell(value: object) -> str:
    side = "right" if isinstance(value, (int, float)) else "left"
    shown = _rounded(value) if isinstance(value, float) else str(value)
    return f'<td style="text-align:{side}">{escape(shown)}</td>'


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
