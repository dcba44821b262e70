"""Foreign recipes: the library that knows other programs' formats, in a process of its own.

``sd-parsers`` reads ComfyUI, InvokeAI, Fooocus and NovelAI. It was written for pictures of
one's own: some of its patterns and its walks through graphs take time that grows with the
square of a text. Pictures come from strangers here, so it gets short texts only, and runs in
a child process with a deadline, a bound on its memory and nothing else to hurt.
"""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, cast

__all__ = ["DEADLINE_S", "Found", "main", "read_with_library"]

DEADLINE_S = 5.0
"""Seconds after which the library is stopped and the picture has no recipe."""

_MEMORY_BYTES = 1 << 30
_MAX_ANSWER_BYTES = 4 << 20
# Longest text of each key that is handed on: JSON may be long, what meets a pattern may not.
_MAX_CHARACTERS = {
    "parameters": 1_000_000,  # Fooocus; A1111's own text never comes here
    "prompt": 2_000_000,  # ComfyUI
    "workflow": 2_000_000,
    "invokeai_metadata": 1_000_000,
    "sd-metadata": 100_000,
    "Dream": 20_000,
    "Comment": 100_000,  # NovelAI
    "Description": 100_000,
    "Source": 1000,
    "Software": 1000,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the library found, as plain data.

    Args:
        generator: The program, as the library calls it.
        prompt: The whole prompt.
        negative_prompt: The whole negative prompt.
        num_samplers: How many times the recipe samples.
        sampler: Name of the first sampler.
        parameters: Its parameters.
        model: Name of its model.
        model_hash: Hash of its model.
        metadata: What else the picture says.
    """

    generator: str
    prompt: str
    negative_prompt: str
    num_samplers: int
    sampler: str | None
    parameters: Mapping[str, Any]
    model: str | None
    model_hash: str | None
    metadata: Mapping[str, Any]


def read_with_library(texts: Mapping[str, str]) -> Found | None:
    """Ask the library, in a process of its own.

    Args:
        texts: A picture's texts by keyword; those the library does not look at, and those
            that are too long for it, stay here.

    Returns:
        What it found, or None if that is nothing, or takes too long or too much memory.
    """
    short = {
        key: text
        for key, text in texts.items()
        if key in _MAX_CHARACTERS and len(text) <= _MAX_CHARACTERS[key]
    }
    if not short:
        return None
    try:
        child = subprocess.run(  # noqa: S603 - this program; texts go over standard input
            # -P: a module beside the picture must not be taken for one of ours
            [sys.executable, "-P", "-m", "mezzotint.images.foreign", str(DEADLINE_S)],
            input=json.dumps(short).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=DEADLINE_S,
            check=True,
        )
        answer = json.loads(child.stdout) if len(child.stdout) <= _MAX_ANSWER_BYTES else None
        return Found(**answer) if answer else None
    except (OSError, subprocess.SubprocessError, ValueError, RecursionError):
        return None


def main() -> None:
    """Read texts from standard input, write what the library makes of them."""
    _limit_resources(float(sys.argv[1]))
    found = _parse(json.load(sys.stdin))
    answer = json.dumps(dataclasses.asdict(found) if found else None, default=str)
    sys.stdout.write(answer)


def _limit_resources(seconds: float) -> None:
    """Bound processor time and memory of this process, where the system can."""
    try:
        import resource
    except ImportError:  # Windows: the parent's deadline has to do
        return
    whole = int(seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (whole, whole))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # elsewhere the limit is refused or not kept
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))


def _parse(texts: Mapping[str, str]) -> Found | None:
    """Try one reader after another."""
    from sd_parsers import parsers
    from sd_parsers.data import Generators
    from sd_parsers.exceptions import ParserError

    texts = _with_workflow(texts)
    broken = (ParserError, ValueError, TypeError, KeyError, AttributeError, RecursionError)
    managed: Sequence[Any] = cast("Any", parsers).MANAGED_PARSERS  # the package has no types
    for parser in managed:
        if parser.generator == Generators.AUTOMATIC1111:
            continue  # its text is read by mezzotint.infotext, with the full grammar
        try:
            return _plain(parser().parse(dict(texts)))
        except broken:
            continue  # not this program's, or a broken text; the next may know it
    return None


def _with_workflow(texts: Mapping[str, str]) -> Mapping[str, str]:
    """Add the links that the library wants where a ComfyUI graph came alone.

    Pictures that were made over ComfyUI's API hold the graph (``prompt``) without the
    page's drawing of it (``workflow``). The links stand in the graph too: an input that is
    ``[node, output]``. Only their types are not there; what a text encoder or a sampler
    is given is told by the input's name.
    """
    if "prompt" not in texts or "workflow" in texts:
        return texts
    try:
        graph = json.loads(texts["prompt"])
        links = [
            [0, *link, str(name), 0, "CLIP" if key == "clip" else key.upper()]
            for name, node in graph.items()
            for key, value in node["inputs"].items()
            if (link := _link(value)) is not None
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return texts
    return {**texts, "workflow": json.dumps({"links": links})}


def _link(value: Any) -> tuple[str, int] | None:
    """Return the node and the output that an input of a graph comes from, if from any."""
    if not isinstance(value, list):
        return None
    entries = cast("list[Any]", value)
    if len(entries) != 2 or not isinstance(entries[1], int):
        return None
    return str(entries[0]), entries[1]


def _plain(info: Any) -> Found:
    """Take from the library's answer what a request is made of."""
    samplers = sorted(info.samplers, key=lambda sampler: str(sampler.sampler_id))
    sampler = samplers[0] if samplers else None
    model = sampler.model if sampler else None
    return Found(
        generator=info.generator.value,
        prompt=info.full_prompt,
        negative_prompt=info.full_negative_prompt,
        num_samplers=len(samplers),
        sampler=sampler.name if sampler else None,
        parameters=dict(sampler.parameters) if sampler else {},
        model=model.name if model else None,
        model_hash=model.hash if model else None,
        metadata={str(key): value for key, value in info.metadata.items()},
    )


if __name__ == "__main__":
    main()
