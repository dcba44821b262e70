"""The command ``mezzotint``: verbs, and how everything that goes wrong is said.

Torch-free and fast: a verb's body loads what it needs when the verb runs. Exit
codes: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted. An
error is one line on standard error that names the flag, what came and what is
allowed; nobody sees a traceback unless the log level is debug.
"""

import atexit
import dataclasses
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Annotated, Any, Final, NoReturn

import typer
from typer.exceptions import TyperException

import mezzotint
from mezzotint.cli import bench, generate, lab, pictures, serve, train
from mezzotint.cli.adapters import controls_app, loras_app
from mezzotint.cli.agents import mcp
from mezzotint.cli.config import config_app
from mezzotint.cli.figures.plot import plot
from mezzotint.cli.flags import flag_of
from mezzotint.cli.keys import keys_app
from mezzotint.cli.local.doctor import doctor
from mezzotint.cli.local.greeting import completion, greet
from mezzotint.cli.machines.cluster import cluster_app
from mezzotint.cli.models import archive_app, models_app
from mezzotint.cli.terminal import escaped, fitted
from mezzotint.errors import Cancelled, InvalidRequest, MezzotintError, nearest_name
from mezzotint.observe import log
from mezzotint.request import GenerationRequest

__all__ = ["app", "main"]

DONE: Final = 0
FAILED: Final = 1
WRONG: Final = 2
INTERRUPTED: Final = 130
_DRAWING: Final = frozenset({"generate", "sample"})  # verbs with a flag for each field
# Registries name what they hold in the singular: "gate" stands for the field gates.
_REQUEST_FIELDS: Final = frozenset(
    {
        "embedding",
        "gate",
        "image_prompt",
        "lora",
        *(f.name for f in dataclasses.fields(GenerationRequest)),
    }
)

app = typer.Typer(
    name="mezzotint",
    help="Turn words into pictures: generate, serve, train.",
    invoke_without_command=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"mezzotint {mezzotint.__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings.")] = None,
    home: Annotated[
        Path | None, typer.Option(help="Folder of models, jobs, results and caches.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting, as config show names it."),
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Hold the options that every verb shares; alone, say what to do next."""
    if context.invoked_subcommand is None:
        greet(context)


app.command("generate")(generate.generate)
app.command("replay")(pictures.replay)
app.command("verify")(pictures.verify)
app.command("inspect")(pictures.inspect)
app.add_typer(models_app, name="models")
app.add_typer(loras_app, name="loras")
app.add_typer(controls_app, name="controls")
app.add_typer(keys_app, name="keys")
app.add_typer(archive_app, name="archive")
app.command("serve")(serve.serve)
app.add_typer(cluster_app, name="cluster")
app.command("mcp")(mcp.mcp)
app.command("train")(train.train)
app.command("sample")(train.sample)
app.command("bench", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(
    bench.bench
)
app.command("lab")(lab.lab)
app.command("plot")(plot)
app.command("doctor")(doctor)
app.command("completion")(completion)
app.add_typer(config_app, name="config")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code."""
    sys.excepthook = _report_fault
    signal.signal(signal.SIGTERM, _leave)
    if arguments is not None:
        sys.exit(_run(list(arguments)))
    ended: list[int] = []
    atexit.register(_end, ended)  # the first to be registered is the last to run
    ended.append(_run(sys.argv[1:]))
    sys.exit(ended[0])


def _end(ended: Sequence[int]) -> None:
    """End a process that has torch in it, once all others have been told of the end.

    Taking a tensor library's modules apart, one object after the other, costs half a second,
    for which whoever waits for a picture would wait too.
    """
    if ended and "torch" in sys.modules:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):  # Python itself says what became of it
                return
        os._exit(ended[0])


def _run(arguments: list[str]) -> int:
    """Run one verb and turn every expected error into a line and a code."""
    command = typer.main.get_command(app)
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    try:
        answer = command.main(args=arguments, prog_name="mezzotint", standalone_mode=False)
        sys.stdout.flush()
        if answer == INTERRUPTED:  # typer's word for Ctrl-C
            return _say("interrupted", INTERRUPTED)
        return answer if isinstance(answer, int) else DONE
    except TyperException as error:
        code = getattr(error, "exit_code", WRONG)
        return _say(_typer_message(error, arguments), code)
    except (KeyboardInterrupt, Cancelled, typer.Abort):
        return _say("interrupted", INTERRUPTED)
    except InvalidRequest as error:
        return _say(_request_message(error, arguments), WRONG)
    except MezzotintError as error:
        return _say(str(error), FAILED)
    except BrokenPipeError as error:  # the reader of our output left, e.g. `| head`
        log.debug("broken_pipe", exception=error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"{where}{error.strerror or error}", FAILED)


def _say(message: str, code: int) -> int:
    """Print one line on standard error, if there is anything to say."""
    if not message:
        return code
    line = f"mezzotint: {escaped(' '.join(message.split()))}"
    print(fitted(line, sys.stderr), file=sys.stderr, flush=True)
    return code


def _request_message(error: InvalidRequest, arguments: Sequence[str]) -> str:
    """Name the flag in front of what is wrong with the request."""
    message, field = str(error), error.field or ""
    if field.startswith("-") or field.isupper():
        flag = field
    elif _DRAWING & set(arguments) and re.split(r"[.[]", field)[0] in _REQUEST_FIELDS:
        flag = _as_typed(flag_of(field), arguments)
    else:
        return message
    return message if message.startswith(flag) else f"{flag}: {message}"


def _as_typed(flag: str, arguments: Sequence[str]) -> str:
    """Return a flag of ``generate`` by the one of its names that was typed, if one was."""
    typed = {argument.partition("=")[0] for argument in arguments}
    verbs: Any = typer.main.get_command(app)
    for option in verbs.commands["generate"].params:
        names = [*option.opts, *option.secondary_opts]
        if flag in names and flag not in typed:
            return next((name for name in names if name[:2] == "--" and name in typed), flag)
    return flag


def _plain(flag: str) -> str:
    """Return a flag as a field is written."""
    return flag.lstrip("-").replace("-", "_")


def _typer_message(error: TyperException, arguments: Sequence[str]) -> str:
    """Return typer's message as one line, with what to do instead where that is plain."""
    text = getattr(error, "format_message", lambda: str(error))()
    named = re.fullmatch(r"Invalid value for (.+?): (.*)", text, re.DOTALL)
    if named:
        names = re.findall(r"'([^']+)'", named[1])
        return f"{_as_typed(max(names, key=len, default=named[1]), arguments)}: {named[2]}"
    context: Any = getattr(error, "ctx", None)
    verb = context.command_path.removeprefix("mezzotint").strip() if context else ""
    unknown = re.match(r"No such command '(.*?)'\.", text, re.DOTALL)
    if unknown and context:  # typer's own guesses go far off
        near = nearest_name(unknown[1], context.command.commands)
        rest = (
            f"Did you mean {near!r}?"
            if near
            else "There are: " + ", ".join(context.command.commands) + "."
        )
        text = f"{unknown[0]} {rest}"
    unknown = re.match(r"No such option: (--\S+)", text)
    if unknown and context:
        flags = {_plain(name): name for p in context.command.params for name in p.opts}
        near = nearest_name(_plain(unknown[1]), flags)
        help_ = " ".join(filter(None, ("mezzotint", verb, "--help")))
        rest = f"Did you mean {flags[near]}?" if near else f"See {help_}."
        text = f"{unknown[0]}. {rest}"
    if text.startswith("Got unexpected extra argument") and verb == "generate":
        text += '; words of a prompt stand in quotes: mezzotint generate "a red apple"'
    return f"{verb}: {text}" if verb and text else text


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Leave through every ``finally`` when asked to terminate."""
    raise SystemExit(128 + number)


def _report_fault(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Say in one line that we are at fault; the traceback is for debug logs."""
    log.debug("fault", exception=error.with_traceback(trace))
    told = " ".join(str(error).split())[:500]
    _say(f"internal error: {kind.__name__}: {told} (--log-level debug shows where)", FAILED)
