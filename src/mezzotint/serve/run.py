"""Run: the listeners, the worker processes, one durable queue, until SIGTERM.

On SIGTERM or SIGINT nothing new is taken, what runs is finished within
``drain_s``, the rest stays on the durable queue, and the exit code is 0.
"""

import asyncio
import contextlib
import datetime
import functools
import os
import signal
import socket
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import uvicorn

from mezzotint.errors import InvalidRequest, MezzotintError, NotReady
from mezzotint.observe import garbage, log
from mezzotint.observe.config import LogConfig
from mezzotint.serve.app import Doorway, create_app
from mezzotint.serve.auth import KeyRing
from mezzotint.serve.config import ServeConfig
from mezzotint.serve.connections import Crowd, Protocol, Socket, raise_file_limit
from mezzotint.serve.dialects.native_webhooks import deliver
from mezzotint.serve.front import Front
from mezzotint.serve.metrics import ServerMetrics
from mezzotint.serve.queueing import may_run
from mezzotint.serve.site.uploads import sweep_store
from mezzotint.serve.wire import Listener
from mezzotint.service.base import AdapterKeeper, Service
from mezzotint.service.config import JobsConfig, WorkerConfig
from mezzotint.service.jobs.jobs import Jobs
from mezzotint.service.jobs.ownership import FolderOwner
from mezzotint.service.training import TrainingRuns
from mezzotint.service.workers import event_loop
from mezzotint.service.workers.local_pool import create_workers

__all__ = ["run", "serve"]

_NAMES: tuple[Listener, ...] = ("generation", "management", "metrics")
_TELL_EVERY_S = 1.0  # while models load


def run(
    config: ServeConfig,
    jobs: JobsConfig,
    worker: WorkerConfig,
    *,
    home: Path | None = None,
    adapters: AdapterKeeper | None = None,
    log_config: LogConfig | None = None,
    version: str = "",
    announce: Callable[[str], None] = print,
    training: TrainingRuns | None = None,
    model_store: Path | None = None,
) -> int:
    """Serve until a signal; the body of ``mezzotint serve``.

    Args:
        config: Listeners, keys, limits.
        jobs: The durable queue.
        worker: The engine's process.
        home: Folder of the installation, for this server alone; None where there is none.
        adapters: Keeps the LoRAs that clients bring along; None takes none.
        log_config: How both processes log.
        version: Mezzotint's version, for whoever asks.
        announce: Told one line at a time what is ready.
        training: Who starts training runs, or None where nobody may.
        model_store: Folder whose models can be registered by name, or None.

    Returns:
        0 after a signal.

    Raises:
        InvalidRequest: If an address cannot be used or the keys file is wrong.
        FolderTaken: If another server has this home.
        MezzotintError: If the engine cannot start.
    """
    log_config = log_config or LogConfig()
    log.configure(log_config)
    garbage.own_process()

    async def main() -> None:
        service = create_workers(worker, log_config)
        await serve(
            config,
            jobs,
            service,
            adapters=adapters,
            version=version,
            announce=announce,
            tell=tell,
            training=training,
            model_store=model_store,
        )

    with _held(home) as tell:
        event_loop.run(main())
    return 0


@contextlib.contextmanager
def _held(home: Path | None) -> Generator[Callable[[str], None]]:
    """Have a home for this server alone as long as the block runs; yields what hears its address.

    Raises:
        FolderTaken: If another server has it; the message names that one.
        NotReady: If it cannot be written.
    """
    if home is None:
        yield lambda url: None
        return
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        owner = FolderOwner(home, "home")
    except OSError as error:
        raise NotReady(f"the home {home} cannot be used: {error.strerror or error}") from None
    try:
        yield owner.tell
    finally:
        owner.release()


async def serve(
    config: ServeConfig,
    jobs_config: JobsConfig,
    service: Service,
    *,
    adapters: AdapterKeeper | None = None,
    version: str = "",
    announce: Callable[[str], None] = print,
    stop: asyncio.Event | None = None,
    tell: Callable[[str], None] | None = None,
    training: TrainingRuns | None = None,
    model_store: Path | None = None,
) -> None:
    """Serve a service until ``stop`` is set or a signal comes.

    ``tell`` hears the address of the first listener once it answers; ``adapters`` keeps
    what clients bring along; ``training`` starts runs, and ends with the server those that
    it started.

    A service with ``start`` is started after the listeners, so that
    ``/health/ready`` answers 503 while models load.

    Raises:
        InvalidRequest: If an address cannot be used or the keys file is wrong.
        MezzotintError: If the service cannot start.
    """
    keys = KeyRing(Path(config.api_keys) if config.api_keys else None, config.limits)
    stop = stop or asyncio.Event()
    jobs = Jobs(service, jobs_config, check=may_run(adapters) if adapters is not None else None)
    front = Front(service, config, jobs=jobs, adapters=adapters)
    now = datetime.datetime.now(datetime.UTC)
    front.memory |= {"version": version, "started": now.isoformat(timespec="milliseconds")}
    front.memory |= {"training": training, "model_store": model_store}
    await asyncio.to_thread(_sweep, adapters, model_store)
    raise_file_limit(len(config.listeners()) * config.limits.connections)
    counted = ServerMetrics()
    apps: dict[Listener, Doorway] = {
        name: create_app(front, keys, listener=name, metrics=counted) for name in _NAMES
    }
    rpc = _rpc_listeners(front, apps)
    rpc_addresses = {name: listener.bind() for name, listener in rpc.items()}
    sockets = _bind(config)
    servers: dict[Listener, uvicorn.Server] = {name: _server(config, apps[name]) for name in _NAMES}
    with _signals(stop):
        try:
            await jobs.start()
        except BaseException:  # nobody else closes them; it goes on
            for bound in sockets.values():
                bound.close()
            raise
        delivering = asyncio.create_task(deliver(front))
        tasks = [
            asyncio.create_task(servers[name].serve(sockets=[sockets[name]])) for name in _NAMES
        ]
        for listener in rpc.values():
            await listener.start()
        url = _announce_listeners(config, sockets, jobs_config, announce, rpc_addresses)
        if tell is not None:
            tell(url)
        try:
            await _start(service, stop, announce)
            garbage.settle()
            await stop.wait()
        finally:
            delivering.cancel()
            await asyncio.gather(delivering, return_exceptions=True)
            ending = asyncio.create_task(_end_training(training, config.drain_s, announce))
            await _drain(front, jobs, service, announce)
            await ending
            for server in servers.values():
                server.should_exit = True
            await asyncio.gather(*tasks, *(listener.stop() for listener in rpc.values()))


def _sweep(adapters: AdapterKeeper | None, model_store: Path | None) -> None:
    """Remove unfinished uploads that a server which was killed left."""
    if adapters is not None:
        adapters.sweep()
    if model_store is not None:
        sweep_store(model_store)


def _rpc_listeners(front: Front, apps: Mapping[Listener, Doorway]) -> dict[str, Any]:
    """Make the gRPC listeners that are switched on.

    Raises:
        InvalidRequest: If the packages that they need are not installed.
    """
    behind: dict[str, Listener] = {"grpc": "generation", "grpc_management": "management"}
    wanted = [name for name in behind if name in front.config.listeners()]
    if not wanted:
        return {}
    # read when gRPC is imported: workers are programs of their own, so nothing of it is forked
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    os.environ.setdefault("GRPC_VERBOSITY", "error")
    try:
        from mezzotint.serve.rpc.listeners import RpcListener
    except ImportError as error:
        raise InvalidRequest(
            f"{wanted[0]}_port: gRPC needs more packages ({error}); "
            "install them with: pip install 'mezzotint[grpc]'",
            field=f"{wanted[0]}_port",
        ) from None
    return {name: RpcListener(name, front, apps[behind[name]]) for name in wanted}


async def _start(service: Service, stop: asyncio.Event, announce: Callable[[str], None]) -> None:
    """Start the service, unless a signal comes first."""
    start = getattr(service, "start", None)
    if start is not None:
        starting = asyncio.ensure_future(start())
        stopping = asyncio.ensure_future(stop.wait())
        await _wait_for_start(service, {starting, stopping}, announce)
        stopping.cancel()
        if not starting.done():
            starting.cancel()
            return
        starting.result()
    if stop.is_set():
        return
    models = await service.models()
    ready = [m["name"] for m in models if m["ready"]]
    later = [m["name"] for m in models if not m["ready"]]
    text = f"{', '.join(ready)} ready" if ready else ""
    if later:
        text += f"{'; ' if ready else ''}{', '.join(later)} when first asked for"
    announce(f"models      {text or 'none: add one with `mezzotint models add`'}")


async def _wait_for_start(
    service: Service, tasks: set[asyncio.Future[Any]], announce: Callable[[str], None]
) -> None:
    """Wait until one of the tasks is done; say meanwhile what the service is at."""
    told: dict[str, str] = {}
    while not (await asyncio.wait(tasks, timeout=_TELL_EVERY_S, return_when="FIRST_COMPLETED"))[0]:
        waiting = dict((await service.health()).get("waiting_for") or {})
        for name, why in waiting.items():
            if told.get(name) != why:
                announce(f"loading     {name} {why}")
        told = waiting


def _announce_listeners(
    config: ServeConfig,
    sockets: dict[Listener, socket.socket],
    jobs: JobsConfig,
    announce: Callable[[str], None],
    rpc: Mapping[str, str],
) -> str:
    """Tell where everything listens; return the address of the first listener."""
    scheme = "https" if config.certificate else "http"
    urls: dict[Listener, str] = {}
    for name in _NAMES:
        host, port = sockets[name].getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        note = "  (web page at /)" if name == "generation" else ""
        urls[name] = f"{scheme}://{host}:{port}"
        announce(f"{name:<11} {urls[name]}{note}")
    for name, address in rpc.items():
        announce(f"{name:<11} {address}")
    announce(f"keys        {config.api_keys or 'none: loopback only'}")
    announce(f"jobs        {_place(jobs)}")
    return urls["generation"]


def _place(jobs: JobsConfig) -> str:
    """Return where jobs are kept, for people: nothing that opens the database is in it."""
    if not jobs.url:
        return str(Path(jobs.folder).absolute())
    return jobs.url.rpartition("@")[2].partition("?")[0]


def _bind(config: ServeConfig) -> dict[Listener, socket.socket]:
    """Bind every address of HTTP, or none."""
    sockets: dict[Listener, socket.socket] = {}
    for name in _NAMES:
        host, port = config.listeners()[name]
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            bound = socket.socket(family, kind, protocol)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.set_inheritable(False)
        except OSError as error:
            for other in sockets.values():
                other.close()
            field = "port" if name == "generation" else f"{name}_port"
            raise InvalidRequest(
                f"{field}: cannot listen on {host}:{port} for {name}: {error.strerror or error}",
                field=field,
                value=port,
            ) from None
        sockets[name] = bound
    return sockets


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Do nothing: signals belong to :func:`serve`."""
        yield


def _server(config: ServeConfig, app: Any) -> uvicorn.Server:
    crowd = Crowd(config.limits.connections, config.limits.head_s)
    return _Server(
        uvicorn.Config(
            app,
            http=functools.partial(Protocol, crowd=crowd),  # type: ignore[arg-type]
            ws=Socket,
            ws_max_size=1 << 16,  # what a client says means nothing here
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=None,  # the crowd and the doorway see to it
            timeout_keep_alive=30,
            timeout_graceful_shutdown=5,
            ssl_certfile=config.certificate or None,
            ssl_keyfile=config.private_key or None,
        )
    )


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Any:
    """Set ``stop`` on SIGTERM and SIGINT, where this thread may listen to signals."""
    loop = asyncio.get_running_loop()
    heard: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ValueError, RuntimeError):  # no signals here
            loop.add_signal_handler(number, stop.set)
            heard.append(number)
    try:
        yield
    finally:
        for number in heard:
            loop.remove_signal_handler(number)


async def _end_training(
    training: TrainingRuns | None, most_s: float, announce: Callable[[str], None]
) -> None:
    """Let the training runs of this server write a checkpoint and end."""
    if training is not None:
        ended = await asyncio.to_thread(training.stop_all, most_s)
        if ended:
            announce(f"training    {ended} stopped at a checkpoint; they go on when resumed")


async def _drain(
    front: Front, jobs: Jobs, service: Service, announce: Callable[[str], None]
) -> None:
    """Finish what runs within ``drain_s``; leave the rest on the queue."""
    front.draining = True
    until = time.monotonic() + front.config.drain_s
    counts: dict[str, int] = {}
    with contextlib.suppress(MezzotintError):  # a store that cannot be read is no reason to stay
        counts = await jobs.counts()
    if front.running or counts.get("running"):
        announce(
            f"stopping    {front.running + counts.get('running', 0)} running, "
            f"{counts.get('queued', 0)} stay queued"
        )
    await jobs.stop(front.config.drain_s)
    while front.running and time.monotonic() < until:
        await asyncio.sleep(0.05)
    with contextlib.suppress(MezzotintError):
        await service.close()
