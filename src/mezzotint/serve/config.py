"""Configuration of the server: listeners, limits, keys. Torch-free."""

import functools
import ipaddress
from dataclasses import dataclass
from typing import Annotated, ClassVar

from mezzotint.bounds import Range
from mezzotint.errors import InvalidRequest
from mezzotint.plain import Checked
from mezzotint.types import MAX_IMAGES, MAX_STEPS

__all__ = ["Limits", "ServeConfig", "is_loopback"]

_Port = Annotated[int, Range(0, 65535)]


@functools.lru_cache(maxsize=1024)
def is_loopback(host: str) -> bool:
    """Tell whether a listener on ``host`` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits(Checked):
    """What one request may ask for; everything is refused before any work.

    Args:
        body_bytes: Bytes of a request body.
        body_s: Seconds a client may take to send its body.
        adapter_bytes: Bytes of a LoRA that a client uploads.
        model_bytes: Bytes of a model's file that a client with the scope ``manage`` may put
            into the model store; 0 takes none.
        adapters: LoRAs of one key that it uploaded for itself; 0 is any number.
        pixels: Pixels of one picture, after upscaling.
        steps: ``num_inference_steps``.
        images: Pictures of one request, frames of a walk included.
        wait_s: Seconds a synchronous client waits at most.
        requests_per_minute: Requests of one key (or address); 0 is no limit.
        concurrency: Generations, enlargements and calls of handler code of one key (or
            address) at once; 0 is no limit.
        streams: Event streams of one key (or address) at once; 0 is no limit.
        connections: Connections to one listener at once.
        client_share: Share of the connections that requests of one key (or address) may
            hold; the rest stays free for others.
        head_s: Seconds in which the head of a request must arrive.
    """

    where: ClassVar[str] = "limits"
    body_bytes: Annotated[int, Range(1024, 1 << 32)] = 32 << 20
    body_s: Annotated[float, Range(0.1, 86400, "s")] = 30.0
    adapter_bytes: Annotated[int, Range(1024, 1 << 40)] = 1 << 30
    model_bytes: Annotated[int, Range(0, 1 << 44)] = 0
    adapters: Annotated[int, Range(0, 1 << 20)] = 16
    pixels: Annotated[int, Range(64, 1 << 32)] = 2048 * 2048
    steps: Annotated[int, Range(1, MAX_STEPS)] = 150
    images: Annotated[int, Range(1, MAX_IMAGES)] = 64
    wait_s: Annotated[float, Range(0.1, 7 * 86400, "s")] = 3600.0
    requests_per_minute: Annotated[int, Range(0, 1 << 31)] = 0
    concurrency: Annotated[int, Range(0, 1 << 31)] = 0
    streams: Annotated[int, Range(0, 1 << 31)] = 64
    connections: Annotated[int, Range(1, 1 << 20)] = 1024
    client_share: Annotated[float, Range(0.01, 1)] = 0.75
    head_s: Annotated[float, Range(0.1, 3600, "s")] = 1.5

    @property
    def side(self) -> int:
        """Pixels of one side: the other has eight at least."""
        return max(1, self.pixels // 8)

    @property
    def ends(self) -> dict[str, int]:
        """Upper ends of request fields, by the name that their bounds know them by."""
        return {"images": self.images, "steps": self.steps, "side": self.side}

    @property
    def visits(self) -> int:
        """Requests of one caller that may be open at once, at least one."""
        return max(1, int(self.connections * self.client_share))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig(Checked):
    """How the server listens and whom it serves.

    Args:
        host: Address of the generation listener.
        port: Its port; 0 takes a free one.
        management_host: Address of the management listener; ``host`` if empty.
        management_port: Its port.
        metrics_host: Address of the metrics listener; ``host`` if empty.
        metrics_port: Its port.
        grpc_port: Port of the gRPC listener on ``host``; none by default. Needs the extra
            ``mezzotint[grpc]``.
        grpc_management_port: Port of TorchServe's management over gRPC on
            ``management_host``; none by default.
        api_keys: Path of the keys file, "" for none.
        certificate: Path of a TLS certificate chain (PEM), "" for none.
        private_key: Path of its private key (PEM).
        cors_origins: Origins whose pages may call the server; none by default.
        trusted_hosts: Names under which a loopback listener may be asked for beside
            ``localhost``, e.g. behind a reverse proxy on the same machine.
        model_api: Whether models can be registered and removed at run time.
        adapter_api: Whether keys can upload LoRAs and drop their own at run time.
        register_paths: Whether a model can be registered over HTTP by a path or a Hub id;
            by its name in the model store it always can.
        runs: Folder whose training runs the web page shows; needs the scope ``manage``.
            ``runs`` in the home if empty and runs may be started, else none.
        training: Whether training runs may be started over HTTP, with the scope
            ``manage``: they read whatever data and base their configuration names.
        webhook_hosts: ``host`` or ``host:port`` that clients may have called when a
            prediction changes; none by default. The operator answers for what stands there.
        drain_s: Seconds that running work may take after SIGTERM.
        limits: What one request may ask for.
    """

    host: str = "127.0.0.1"
    port: _Port = 8080
    management_host: str = ""
    management_port: _Port = 8081
    metrics_host: str = ""
    metrics_port: _Port = 8082
    grpc_port: _Port | None = None
    grpc_management_port: _Port | None = None
    api_keys: str = ""
    certificate: str = ""
    private_key: str = ""
    cors_origins: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    model_api: bool = True
    adapter_api: bool = True
    register_paths: bool = False
    runs: str = ""
    training: bool = False
    webhook_hosts: tuple[str, ...] = ()
    drain_s: Annotated[float, Range(0, 3600, "s")] = 30.0
    limits: Limits = Limits()

    def _validate(self) -> None:
        if bool(self.certificate) != bool(self.private_key):
            raise InvalidRequest(
                "certificate and private_key belong together, got only one of them",
                field="certificate",
            )
        for name, address in self.listeners().items():
            if not is_loopback(address[0]) and not self.api_keys:
                raise InvalidRequest(
                    f"the {name} listener on {address[0]} could be reached from other machines, "
                    "and there are no API keys. Run `mezzotint keys new`, put the line it prints "
                    "into a file and start with --api-keys FILE; or listen on 127.0.0.1",
                    field="api_keys",
                    allowed="a loopback address, or a keys file",
                )

    def listeners(self) -> dict[str, tuple[str, int]]:
        """Return address and port of each listener by its name; those of gRPC if they are on."""
        management_host = self.management_host or self.host
        addresses = {
            "generation": (self.host, self.port),
            "management": (management_host, self.management_port),
            "metrics": (self.metrics_host or self.host, self.metrics_port),
        }
        if self.grpc_port is not None:
            addresses["grpc"] = (self.host, self.grpc_port)
        if self.grpc_management_port is not None:
            addresses["grpc_management"] = (management_host, self.grpc_management_port)
        return addresses
