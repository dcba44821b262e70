"""Configuration of what is observed: logs. Torch-free."""

from dataclasses import dataclass
from typing import Literal

from mezzotint.plain import Checked

__all__ = ["LogConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig(Checked):
    """What is written to the log and how.

    Args:
        level: Least important message that is written.
        format: ``json`` is one object a line, ``text`` is for people.
        prompts: Whether prompts and negative prompts may appear in the log.
    """

    level: Literal["debug", "info", "warning", "error"] = "warning"
    format: Literal["json", "text"] = "text"
    prompts: bool = False
