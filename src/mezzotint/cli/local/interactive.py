"""Interactive: a prompt that is refined in place, each line a new picture.

The seed stays, so that what changes in the picture is what was changed in the words; the
model stays in memory, so that a line costs its steps and nothing else.
"""

import contextlib
import dataclasses
import importlib
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mezzotint.cli import flags, session
from mezzotint.cli.delivery import Delivery, deliver
from mezzotint.cli.outputs import Destination
from mezzotint.cli.session import run
from mezzotint.cli.terminal import escaped, fitted
from mezzotint.errors import MezzotintError
from mezzotint.request import GenerationRequest
from mezzotint.settings import Settings

__all__ = ["converse"]

HELP = """\
WORDS              a new prompt, and a picture of it with the same seed
+WORDS             these words after the prompt
(nothing)          the same again, with the next seed
:seed N | random   :steps N   :guidance NUMBER or CURVE   :size WxH   :negative WORDS
:model NAME        :scheduler NAME   :set FIELD=JSON, any field of a request
:show  the request :plan  its cost   :undo  the request before   :help   :quit\
"""
_GREETING = "Words draw a picture; :help lists what else there is; Ctrl-D leaves."


def converse(
    settings: Settings,
    request: GenerationRequest,
    folder: Path,
    *,
    pictures_as: str | None,
    quiet: bool,
    read: Callable[[str], str] | None = None,
) -> None:
    """Read lines until the end, and draw what they ask for.

    Args:
        settings: For the service.
        request: Where it begins; drawn at once if it has a prompt.
        folder: Where pictures go.
        pictures_as: How this terminal shows pictures, None not to show any.
        quiet: Show no progress.
        read: Asks for a line with a prompt before it; input if None.
    """
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            importlib.import_module(
                "readline"
            )  # lines can be edited and called back once it is there
        print(_GREETING, file=sys.stderr)
    if request.seed is None:
        request = dataclasses.replace(request, seed=secrets.randbits(32))
    talk = _Talk(settings, request, folder, pictures_as=pictures_as, quiet=quiet)
    try:
        if request.prompt:
            talk.draw(request)
        while True:
            try:
                line = (read or input)("> " if sys.stdin.isatty() else "")
            except EOFError:
                return
            if talk.hear(line.strip()):
                return
    finally:
        talk.close()


class _Talk:
    """One conversation: the request as it stands, what it was, and the service that draws."""

    def __init__(
        self,
        settings: Settings,
        request: GenerationRequest,
        folder: Path,
        *,
        pictures_as: str | None,
        quiet: bool,
    ) -> None:
        self.request = request
        self._settings = settings
        self._folder = folder
        self._pictures_as = pictures_as
        self._quiet = quiet
        self._before: list[GenerationRequest] = []
        self._service = session.make_service(settings)

    def close(self) -> None:
        """Close the service."""
        run(self._service.close())

    def hear(self, line: str) -> bool:
        """Do what a line asks for; True ends the conversation."""
        try:
            return self._do(line)
        except MezzotintError as error:
            field = getattr(error, "field", None) or ""
            told = f"{field}: {error}" if field.startswith((":", "-")) else str(error)
            line = f"mezzotint: {escaped(' '.join(told.split()))}"
            print(fitted(line, sys.stderr), file=sys.stderr)
        except KeyboardInterrupt:
            print("mezzotint: cancelled", file=sys.stderr)
        return False

    def _do(self, line: str) -> bool:
        verb, _, rest = line.removeprefix(":").partition(" ")
        rest = rest.strip()
        if not line.startswith(":"):
            self._words(line)
        elif verb in ("quit", "q", "exit"):
            return True
        elif verb == "help":
            print(HELP, file=sys.stderr)
        elif verb == "show":
            for name, value in self.request.to_dict().items():
                print(escaped(f"{name}: {value}"), file=sys.stderr)
        elif verb == "plan":
            self._plan()
        elif verb == "undo":
            if not self._before:
                raise flags.WrongFlag(":undo", "there is nothing before this")
            self.request = self._before.pop()
            self._say_where()
        else:
            self._change(verb, rest)
        return False

    def _words(self, line: str) -> None:
        """Draw a new prompt, a longer one, or the same with the next seed."""
        if line.startswith("+"):
            words = ", ".join(filter(None, (self.request.prompt, line[1:].strip())))
            self.draw(dataclasses.replace(self.request, prompt=words))
        elif line:
            self.draw(dataclasses.replace(self.request, prompt=line))
        elif self.request.prompt:
            seed = ((self.request.seed or 0) + 1) % (1 << 64)
            self.draw(dataclasses.replace(self.request, seed=seed))

    def _change(self, verb: str, rest: str) -> None:
        """Change one field, and draw again where there is a prompt."""
        plain = self.request.to_dict()
        for field, value in _read_change(verb, rest):
            flags.merge(plain, field, value)
        changed = GenerationRequest.from_dict(plain)
        if changed.prompt:
            self.draw(changed)
        else:
            self._before.append(self.request)
            self.request = changed
            self._say_where()

    def draw(self, request: GenerationRequest) -> None:
        """Draw a request; what fails or is refused leaves the one before in its place."""
        delivery = Delivery(
            destination=Destination(None, self._folder, several=request.num_files > 1),
            quiet=self._quiet,
            pictures_as=self._pictures_as,
        )
        result = run(deliver(self._settings, request, delivery, service=self._service))
        warnings = (*result.warnings, *(w for i in result.images for w in i.warnings))
        for warning in dict.fromkeys(warnings):
            print(f"warning: {escaped(warning)}", file=sys.stderr)
        if request != self.request:
            self._before.append(self.request)
            self.request = request

    def _plan(self) -> None:
        cost = {"measured": True, **run(self._service.plan(self.request))["cost"]}
        told = f"{cost['seconds']:.1f} s"
        if "model_calls" in cost:
            told += f", {cost['model_calls']} model calls"
        print(told if cost["measured"] else f"{told} (a guess: not measured yet)", file=sys.stderr)

    def _say_where(self) -> None:
        about = f"{self.request.prompt!r}, seed {self.request.seed}"
        print(escaped(about), file=sys.stderr)


def _read_change(verb: str, rest: str) -> list[tuple[str, Any]]:
    """Read ``:VERB REST`` as fields of a request.

    Raises:
        WrongFlag: If there is no such verb, or it lacks a value.
    """
    names = {
        "seed": "seed",
        "steps": "num_inference_steps",
        "guidance": "guidance_scale",
        "size": "width",
        "negative": "negative_prompt",
        "model": "model",
        "scheduler": "scheduler",
        "set": "",
    }
    if verb not in names:
        known = ", ".join(f":{name}" for name in (*names, "show", "plan", "undo", "help", "quit"))
        raise flags.WrongFlag(f":{verb}", f"there is no such command; there are {known}")
    if not rest and verb != "negative":
        raise flags.WrongFlag(f":{verb}", "needs a value; :help shows which")
    if verb == "set":
        return [flags.parse_set(rest)]
    if verb == "guidance":
        try:
            return [("guidance_scale", flags.parse_guidance(rest))]
        except flags.WrongFlag as error:  # it speaks of the flag
            raise flags.WrongFlag(":guidance", str(error)) from None
    if verb == "seed":
        chosen = secrets.randbits(32) if rest == "random" else _whole(":seed", rest)
        return [("seed", chosen)]
    if verb == "steps":
        return [("num_inference_steps", _whole(":steps", rest))]
    if verb == "size":
        width, cross, height = rest.lower().partition("x")
        if not cross:
            raise flags.WrongFlag(":size", f"must look like WIDTHxHEIGHT, got {rest[:60]!r}")
        return [("width", _whole(":size", width)), ("height", _whole(":size", height))]
    return [(names[verb], rest)]


def _whole(verb: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise flags.WrongFlag(verb, f"must be a whole number, got {text[:60]!r}") from None
