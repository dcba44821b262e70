"""Tables in Markdown."""

from collections.abc import Sequence

__all__ = ["Rows", "table"]

Rows = list[tuple[str, ...]]


def table(header: Sequence[str], rows: Rows) -> str:
    """Return a table; a bar inside a cell is escaped."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
