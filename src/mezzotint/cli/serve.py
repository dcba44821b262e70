"""The verb ``serve``: the server, from flags and settings."""

import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

import mezzotint
from mezzotint.cli import flags
from mezzotint.cli.flags import WrongFlag
from mezzotint.cli.session import load_settings
from mezzotint.service.config import WorkerConfig
from mezzotint.service.training import TrainingRuns
from mezzotint.settings import Settings, as_variables

__all__ = ["parse_models", "serve", "worker_of"]

_ARCHIVES = (".mar", ".mzt", ".tar.gz", ".tgz")
_OF_RUNS = ("home", "models.allow_downloads", "models.placement.device")
"""Settings that hold for training runs as well."""
_PORT: dict[str, Any] = {"parser": flags.whole_number, "metavar": "PORT"}


def serve(
    context: typer.Context,
    *,
    host: Annotated[str | None, typer.Option(help="Address of the listeners.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Generation; 0 takes a free one.", **_PORT)
    ] = None,
    management_port: Annotated[int | None, typer.Option(help="Management.", **_PORT)] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Metrics.", **_PORT)] = None,
    model_store: Annotated[
        Path | None, typer.Option(help="Folder whose models can be registered by name.")
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME, NAME=PATH, FILE.mar, or all for the whole model store; several with "
            "commas: loaded before it is ready. A PATH may lie in the model store."
        ),
    ] = None,
    runs: Annotated[
        Path | None, typer.Option(help="Folder whose training runs the page shows.")
    ] = None,
    training: Annotated[
        bool, typer.Option("--training", help="Let the page start training runs.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings.")] = None,
    api_keys: Annotated[Path | None, typer.Option(help="Keys file, see `keys new`.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Say what is ready as JSON, an object a line.")
    ] = False,
) -> int:
    """Serve over HTTP on loopback until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, _leave)  # until the server listens to it itself
    loaded = load_settings(
        context,
        config=config,
        serve__host=host,
        serve__port=port,
        serve__management_port=management_port,
        serve__metrics_port=metrics_port,
        serve__api_keys=str(api_keys) if api_keys else None,
        serve__runs=str(runs) if runs else None,
        serve__training=training or None,
        models__placement__device=device,
    )
    settings = loaded.settings
    if model_store is not None and not model_store.is_dir():
        raise WrongFlag("--model-store", f"the folder {model_store} does not exist")
    if runs is not None and not runs.is_dir():
        raise WrongFlag("--runs", f"the folder {runs} does not exist")
    wanted = parse_models(models or [], model_store)
    from mezzotint.serve.run import run
    from mezzotint.service.provision.own_adapters import OwnAdapters

    settings = _with_runs(settings)
    worker = worker_of(settings, wanted, model_store)
    return run(
        settings.serve,
        settings.jobs,
        worker,
        home=settings.home_path,
        adapters=OwnAdapters(settings.home_path, allow_downloads=settings.models.allow_downloads),
        log_config=settings.log,
        version=mezzotint.__version__,
        announce=_announce_json if as_json else _announce,
        training=_training_of(settings),
        model_store=model_store.absolute() if model_store else None,
    )


def _with_runs(settings: Settings) -> Settings:
    """Return settings whose folder of runs stands, where runs may be started."""
    if not settings.serve.training or settings.serve.runs:
        return settings
    folder = str(settings.home_path / "runs")
    return replace(settings, serve=replace(settings.serve, runs=folder))


def _training_of(settings: Settings) -> TrainingRuns | None:
    """Return who starts training runs, or None where the operator wants nobody to.

    Raises:
        WrongFlag: On a system without locks on files.
    """
    if not settings.serve.training:
        return None
    if sys.platform == "win32":
        raise WrongFlag(
            "--training",
            "needs locks on files that a process hands to another, which Windows has not: run "
            "`mezzotint train` beside the server and show its runs with --runs",
        )
    from mezzotint.train.config.config import TrainConfig

    return TrainingRuns(
        Path(settings.serve.runs),
        TrainConfig.from_dict,
        environment=as_variables(settings, _OF_RUNS),
    )


def worker_of(
    settings: Settings, wanted: Sequence[str], model_store: Path | None = None
) -> WorkerConfig:
    """Return what the settings make of a worker, its options included.

    Args:
        settings: The tree.
        wanted: Models to have ready, as :func:`parse_models` returns them.
        model_store: Folder whose models can be registered by name.
    """
    worker = settings.worker
    if worker.factory != WorkerConfig().factory:  # another factory has options of its own
        return worker
    made_of = settings.service_config(ready=wanted, model_store=model_store or "")
    most = min(settings.images.most_output_pixels, settings.serve.limits.pixels)
    made_of = replace(
        made_of,
        register_paths=settings.serve.register_paths,
        runs=settings.serve.runs,
        images=replace(settings.images, max_output_pixels=most),
    )
    return replace(worker, options=made_of.options(worker.options))


def parse_models(texts: list[str], store: Path | None = None) -> list[str]:
    """Read ``--models a,b=PATH,c.mar``.

    Args:
        texts: What was given.
        store: Folder of ``--model-store``, where a path is looked for first.

    Returns:
        What :attr:`~mezzotint.service.composition.ServiceConfig.ready` takes, each once:
        ``name``, ``name=path``, ``=path`` for an archive that names itself, or ``all``.

    Raises:
        WrongFlag: If an entry cannot be understood, or there is no file at its path.
    """
    found: dict[str, None] = {}
    for item in (piece.strip() for text in texts for piece in text.split(",")):
        name, equals, path = item.partition("=")
        if not name or (equals and not path):
            raise WrongFlag(
                "--models", f"must look like NAME, NAME=PATH, FILE.mar or all, got {item!r}"
            )
        if not equals and item.lower() == "all" and store is None:
            raise WrongFlag("--models", "all means everything in --model-store: give that too")
        if not equals and item.lower().endswith(_ARCHIVES):
            name, path = "", item
        if path and store is not None and (store / path).exists():
            path = str((store / path).absolute())
        is_archive = not name
        if path and not Path(path).expanduser().exists() and (is_archive or "/" not in path):
            raise WrongFlag("--models", f"{name or item}: there is nothing at {path}")
        found[f"{name}={path}" if path else name] = None
    return list(found)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Leave with 0: nothing has begun yet."""
    raise SystemExit(0)


def _announce(line: str) -> None:
    print(line, flush=True)


def _announce_json(line: str) -> None:
    """Print a line of the announcement as JSON: its first word names the rest, without notes."""
    name, _, rest = line.partition(" ")
    print(json.dumps({name: rest.strip().partition("  (")[0]}), flush=True)
