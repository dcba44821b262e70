"""The verb ``cluster``: Ray on this machine, deployments on it, and how they are.

Ray listens on the machine's own address, whatever it is told: the network between the nodes
has to be a private one, and ``up`` makes Ray ask for a token.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from mezzotint.cli import flags
from mezzotint.cli.flags import WrongFlag
from mezzotint.cli.session import load_settings
from mezzotint.errors import InvalidRequest, MezzotintError, NotReady, WorkFailed

__all__ = ["cluster_app"]

cluster_app = typer.Typer(
    help="Several machines: Ray, deployments on it, and how they are.", no_args_is_help=True
)

_PORT: dict[str, Any] = {"parser": flags.whole_number, "metavar": "PORT"}
_START_S = 120.0
_Address = Annotated[
    str, typer.Option("--address", help="HOST:PORT of the head, or auto for this machine's.")
]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@cluster_app.command("up")
def up(
    *,
    join: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Join the cluster of this head.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="This machine's address in the private network.")
    ] = None,
    port: Annotated[int, typer.Option(help="Of the head.", **_PORT)] = 6379,
    cpus: Annotated[int | None, typer.Option(help="CPU cores to offer; all if not given.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs to offer; all if not given.")] = None,
    token: Annotated[
        Path | None,
        typer.Option(help="File with the cluster's token; made by the head if it is missing."),
    ] = None,
    as_json: _AsJson = False,
) -> None:
    """Start Ray on this machine, as a head or as one more node."""
    from mezzotint.service.cluster import ray_link

    ray_link.ray_module()
    if join is not None:
        ray_link.find_head(join)
    token = (token or Path("~/.ray/auth_token")).expanduser()
    _ready_token(token, is_head=join is None)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--disable-usage-stats"]
    if join is None:
        command += ["--head", "--port", str(port), "--include-dashboard", "false"]
    else:
        command += ["--address", join]
    for flag, value in (("--node-ip-address", host), ("--num-cpus", cpus), ("--num-gpus", gpus)):
        if value is not None:
            command += [flag, str(value)]
    done = _ray(command, token)
    if done.returncode:
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise WorkFailed(f"Ray did not start: {said[-1] if said else 'it said nothing'}")
    if join is not None:
        _check_joined(join, token)
    where = join or f"{host or _own_address()}:{port}"
    if as_json:
        print(json.dumps({"head": where, "token": str(token), "joined": join is not None}))
        return
    print(f"head        {where}")
    print(f"token       {token}")
    if join is None:
        print(f"join        mezzotint cluster up --join {where}   (with the same token file)")
    print(f"serve       mezzotint --set worker.ray={where} serve")


@cluster_app.command("deploy")
def deploy(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the deployment.")] = "default",
    *,
    models: Annotated[
        list[str] | None,
        typer.Option(help="Models that only this deployment serves, with commas."),
    ] = None,
    least: Annotated[
        int | None, typer.Option("--min", help="Replicas at least; 0 sleeps when nobody asks.")
    ] = None,
    most: Annotated[int | None, typer.Option("--max", help="Replicas at most.")] = None,
    cpus: Annotated[int | None, typer.Option(help="CPU cores of a replica.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of a replica, 0 or 1.")] = None,
    address: _Address = "auto",
    as_json: _AsJson = False,
) -> None:
    """Make a deployment, or replace one, from the settings and these flags."""
    import msgspec

    from mezzotint.cli.serve import worker_of
    from mezzotint.plain import write
    from mezzotint.service.cluster import calls
    from mezzotint.service.cluster.deployments import spec_of

    wanted = [m.strip() for text in models or [] for m in text.split(",") if m.strip()]
    settings = load_settings(
        context,
        worker__ray=address,
        worker__cluster__deployment=name,
        worker__cluster__min_replicas=least,
        worker__cluster__max_replicas=most if most is not None else least or None,
        worker__cluster__cpus=cpus,
        worker__cluster__gpus=gpus,
    ).settings
    spec = spec_of(worker_of(settings, wanted), write(settings.log))
    calls.deploy(address, msgspec.structs.replace(spec, models=wanted))
    if as_json:
        print(json.dumps({"deployed": name, "models": wanted}))
        return
    print(f"deployed    {name}: {', '.join(wanted) or 'every model that no other serves'}")


@cluster_app.command("status")
def status(
    *,
    address: _Address = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, once.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again every second.")] = False,
) -> None:
    """Show nodes, deployments and replicas."""
    from mezzotint.service.cluster import calls

    told = calls.status(address)
    if as_json:
        print(json.dumps(told, indent=2))
        return
    from rich.console import Console, Group
    from rich.live import Live

    from mezzotint.cli.machines.cluster_tables import tables

    console = Console()
    if not watch:
        console.print(Group(*tables(told)))
        return
    with Live(Group(*tables(told)), console=console, auto_refresh=False) as live:
        signal.signal(signal.SIGTERM, _leave)
        while True:
            time.sleep(1.0)
            live.update(Group(*tables(calls.status(address))), refresh=True)


@cluster_app.command("down")
def down(
    name: Annotated[str | None, typer.Argument(help="Deployment to end; all if not given.")] = None,
    *,
    address: _Address = "auto",
    ray: Annotated[
        bool, typer.Option("--ray", help="Stop every Ray process of this machine, too.")
    ] = False,
    as_json: _AsJson = False,
) -> None:
    """End a deployment, or all; what its replicas are drawing is finished first."""
    if name is not None and ray:
        raise WrongFlag("--ray", "stops all of Ray here: give no deployment beside it")
    from mezzotint.service.cluster import calls

    told: dict[str, Any] = {"ended": None, "ray_stopped": False}
    try:
        calls.remove(address, name or "")
        told["ended"] = name or "all"
        if not as_json:
            print(f"ended       {name or 'all deployments'}")
    except MezzotintError as error:
        if not ray:
            raise
        print(f"mezzotint: {' '.join(str(error).split())}", file=sys.stderr)
    if ray:
        done = _ray([sys.executable, "-m", "ray.scripts.scripts", "stop"], None)
        if done.returncode:
            raise WorkFailed("Ray did not stop: see `ray stop --force`")
        told["ray_stopped"] = True
        if not as_json:
            print("stopped     Ray on this machine")
    if as_json:
        print(json.dumps(told))


def _ready_token(token: Path, *, is_head: bool) -> None:
    """Make sure that there is a token, readable by its owner alone.

    Raises:
        InvalidRequest: If a node that joins has none.
    """
    if token.is_file():
        return
    if not is_head:
        raise InvalidRequest(
            f"there is no token at {token}: copy the head's file there", field="--token"
        )
    token.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(file, "w") as stream:
        stream.write(secrets.token_hex(32))


def _check_joined(head: str, token: Path) -> None:
    """Ask the head for its state with the token in force, as a server here will.

    Raises:
        NotReady: If this node and the head cannot work together, and why.
    """
    program = "from mezzotint.cli.main import main; main()"
    command = [sys.executable, "-c", program, "cluster", "status", "--json", "--address", head]
    done = _ray(command, token)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        why = said[-1].removeprefix("mezzotint: ") if said else "it did not say why"
        raise NotReady(f"{why}; this node has joined: `mezzotint cluster down --ray` ends it")


def _ray(command: list[str], token: Path | None) -> subprocess.CompletedProcess[str]:
    """Run a command of Ray's own, with the token in force."""
    from mezzotint.service.cluster.ray_link import token_variables

    variables = token_variables(token) if token is not None else {}
    try:
        return subprocess.run(  # noqa: S603 - our own interpreter, our own words
            command, capture_output=True, text=True, timeout=_START_S, check=False,
            env={**os.environ, **variables},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise WorkFailed(f"Ray gave no answer within {_START_S:g} s") from None


def _own_address() -> str:
    from mezzotint.service.cluster.ray_link import ray_module

    return str(ray_module().util.get_node_ip_address())


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Leave with 0: watching has no other end."""
    raise SystemExit(0)
