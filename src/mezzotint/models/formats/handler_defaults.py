"""Handler defaults: what the Python handler of an archive asks its pipeline for.

The handler of TorchServe's diffusers example calls ``self.pipe(inputs, guidance_scale=7.5,
num_inference_steps=50, height=768, width=768)`` and answers ``np.array(image).tolist()``.
Its clients count on both. The file is read as text: its syntax tree is looked at, nothing
of it is run.
"""

import ast
from dataclasses import dataclass
from typing import Any

__all__ = ["HandlerDefaults", "read_defaults"]

_RANGES = {
    "num_inference_steps": (1, 1000),
    "guidance_scale": (0, 1000),
    "height": (1, 16_384),
    "width": (1, 16_384),
}
_MAX_CHARS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerDefaults:
    """What a handler asks for in every request; None where it says nothing.

    Args:
        num_inference_steps: Steps.
        guidance_scale: Guidance.
        height: Pixels.
        width: Pixels.
        answers_lists: Whether it answers nested lists of numbers and no file.
    """

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    answers_lists: bool = False


def read_defaults(source: str) -> HandlerDefaults:
    """Read a handler's text; one that is no Python says nothing.

    Args:
        source: The text of its file.

    Example:
        >>> read_defaults("self.pipe(x, num_inference_steps=50)").num_inference_steps
        50
    """
    try:
        tree = ast.parse(source[:_MAX_CHARS])
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return HandlerDefaults()
    said: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            given = {k.arg: k.value for k in node.keywords if k.arg in _RANGES}
            found = {name: _number(name, value) for name, value in given.items()}
            said = {**{k: v for k, v in found.items() if v is not None}, **said}
    return HandlerDefaults(**said, answers_lists=_answers_lists(tree))


def _number(name: str | None, value: ast.expr) -> int | float | None:
    """Return a number that stands in the text, if the field may be it."""
    number = value.value if isinstance(value, ast.Constant) else None
    if isinstance(number, bool) or not isinstance(number, int | float):
        return None
    least, most = _RANGES[str(name)]
    if not least <= number <= most:
        return None
    if name == "guidance_scale":
        return float(number)
    return number if isinstance(number, int) else None


def _answers_lists(tree: ast.AST) -> bool:
    """Whether ``postprocess`` makes lists of arrays."""
    return any(
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "tolist"
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and function.name == "postprocess"
        for call in ast.walk(function)
    )
