"""Notebook: whether one is running, and the HTML that shows pictures in it.

Standard library only, since results know how they are shown. A page holds the pictures
themselves, as ``data:`` addresses, so a saved notebook keeps them.
"""

import base64
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["is_notebook", "picture_html", "pictures_html"]

_MEDIA = {"apng": "png"}
_COLUMNS = 4
_WIDEST_PX = 1024  # of a grid, before the page shrinks it


def is_notebook() -> bool:
    """Tell whether this process is the kernel of a notebook (an IPython with a kernel)."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in getattr(shell, "config", ())


def picture_html(data: bytes, format: str, *, title: str = "") -> str:
    """Return an element that shows an encoded file, a film with its controls.

    Args:
        data: The encoded file.
        format: What it is, a :data:`~mezzotint.types.FileFormat`.
        title: What is shown of it where the mouse rests; plain words without markup.
    """
    body = base64.b64encode(data).decode("ascii")
    if format == "mp4":
        return f'<video controls loop title="{title}" src="data:video/mp4;base64,{body}"></video>'
    media = _MEDIA.get(format, format)
    style = "max-width:100%;height:auto"
    source = f"data:image/{media};base64,{body}"
    return f'<img title="{title}" alt="{title}" style="{style}" src="{source}">'


def pictures_html(pictures: Sequence[str], width: int) -> str:
    """Return a grid of elements, at most four side by side.

    Args:
        pictures: What :func:`picture_html` gives.
        width: Of one picture, in pixels.
    """
    columns = max(1, min(len(pictures), _COLUMNS))
    widest = min(columns * width, max(_WIDEST_PX, width))
    style = f"display:grid;grid-template-columns:repeat({columns},1fr);gap:4px;max-width:{widest}px"
    return f'<div style="{style}">{"".join(pictures)}</div>'
