"""Tables of the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], foot: Sequence[Any] | None = None, text: int = 1) -> str:
    """A plain table; the first ``text`` columns are words, the others numbers."""

    def line(cells: Sequence[Any], tag: str = "td") -> str:
        mark = [' class="text"' if i < text else "" for i in range(len(cells))]
        return (
            "<tr>"
            + "".join(f"<{tag}{m}>{escape(_shown(c))}</{tag}>" for m, c in zip(mark, cells, strict=True))
            + "</tr>"
        )

    body = "\n".join(line(row) for row in rows)
    end = f"<tfoot>{line(foot)}</tfoot>" if foot else ""
    return f'<div class="scroll"><table><thead>{line(head, "th")}</thead>\n<tbody>\n{body}\n</tbody>{end}</table></div>'


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
