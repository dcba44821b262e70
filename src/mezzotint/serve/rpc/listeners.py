"""gRPC listeners: which services stand at which port, and what a message may weigh."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from starlette.types import ASGIApp

from mezzotint.errors import InvalidRequest, MezzotintError
from mezzotint.observe import log
from mezzotint.serve.config import ServeConfig
from mezzotint.serve.errors import BodyTooSlow, Malformed, describe
from mezzotint.serve.front import Front
from mezzotint.serve.rpc import inference, torchserve
from mezzotint.serve.rpc.exchange import Call, Refusal
from mezzotint.serve.rpc.messages import message

__all__ = ["SERVICES", "RpcListener"]

Methods = Mapping[str, tuple[Any, str, str]]
SERVICES: Mapping[str, tuple[str, ...]] = {
    "grpc": (
        "inference.GRPCInferenceService",
        "org.pytorch.serve.grpc.openinference.GRPCInferenceService",
        "org.pytorch.serve.grpc.inference.InferenceAPIsService",
    ),
    "grpc_management": ("org.pytorch.serve.grpc.management.ManagementAPIsService",),
}
"""Listener -> its services; the second is what TorchServe calls the first."""
_MOST_BYTES = (1 << 31) - 1  # what the option can say
_IDLE_MS = 300_000
_IDENTITY_ONLY = 1  # the bit of messages that are not compressed: others can grow without bound
_STOP_S = 5.0


class RpcListener:
    """One port with gRPC services.

    Args:
        name: ``grpc`` or ``grpc_management``.
        front: What stands between the doors and the service.
        app: The HTTP application behind it, of the same listener.
    """

    def __init__(self, name: str, front: Front, app: ASGIApp) -> None:
        self._name = name
        self._config = front.config
        self._app = app
        self._server = grpc.aio.server(
            options=_options(front.config),
            maximum_concurrent_rpcs=front.config.limits.connections,
        )
        for service in SERVICES[name]:
            methods = _methods(service, front)
            made = {name: self._method(name, *parts) for name, parts in methods.items()}
            handler = grpc.method_handlers_generic_handler(service, made)
            self._server.add_generic_rpc_handlers((handler,))

    def bind(self) -> str:
        """Take the address.

        Returns:
            Host and port.

        Raises:
            InvalidRequest: If it cannot be used.
        """
        host, port = self._config.listeners()[self._name]
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        field = f"{self._name}_port"
        try:
            if self._config.certificate:
                bound = self._server.add_secure_port(f"{host}:{port}", _credentials(self._config))
            else:
                bound = self._server.add_insecure_port(f"{host}:{port}")
        except (RuntimeError, OSError) as error:
            raise InvalidRequest(
                f"{field}: cannot listen on {host}:{port} for gRPC: {error}",
                field=field,
                value=port,
            ) from None
        return f"{host}:{bound}"

    async def start(self) -> None:
        """Take calls."""
        await self._server.start()

    async def stop(self) -> None:
        """Take no more calls; those that run may end within five seconds."""
        await self._server.stop(_STOP_S)

    def _method(self, name: str, function: Any, request: str, response: str) -> Any:
        """Return the handler of one method."""

        async def answer(sent: AsyncIterator[bytes], context: Any) -> Any:
            call = Call(self._app, context.invocation_metadata() or (), context.peer())
            try:
                return await function(call, await self._received(sent, request))
            except Refusal as error:
                refusal = error
            except MezzotintError as error:
                refusal = Refusal.of(describe(error))
            except Exception as error:  # the border to the client: a status, whatever it was
                log.error("grpc.failed", exception=error, method=name)
                refusal = Refusal.of(describe(error))
            more = (("retry-after", refusal.retry_after),) if refusal.retry_after else ()
            return await context.abort(refusal.status, refusal.sentence, more)

        async def stream(sent: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
            yield await answer(sent, context)

        writes = message(response).SerializeToString
        handlers = cast("Any", grpc)  # typed for calls that read what they get
        if name.startswith("Stream"):
            return handlers.stream_stream_rpc_method_handler(stream, None, writes)
        return handlers.stream_unary_rpc_method_handler(answer, None, writes)

    async def _received(self, sent: AsyncIterator[bytes], name: str) -> Any:
        """Return the one message of a call.

        Calls are taken as if they had several, which is the same on the wire, so that one
        that does not come can be given up.

        Raises:
            BodyTooSlow: If the client takes too long to send it.
            Malformed: If it sends none, or something else.
        """
        seconds = self._config.limits.body_s
        try:
            data = await asyncio.wait_for(anext(aiter(sent)), seconds)
        except TimeoutError:
            raise BodyTooSlow(f"the message did not arrive within {seconds:g} s") from None
        except StopAsyncIteration:
            raise Malformed("the call has no message") from None
        try:
            return message(name).FromString(data)
        except DecodeError:
            raise Malformed(f"the message is no {name.partition('.')[2]}") from None


def _methods(service: str, front: Front) -> Methods:
    if service.endswith("ManagementAPIsService"):
        return torchserve.MANAGEMENT
    if service.endswith("InferenceAPIsService"):
        return torchserve.Inference(front).methods
    return inference.METHODS


def _options(config: ServeConfig) -> list[tuple[str, Any]]:
    limits = config.limits
    return [
        ("grpc.max_receive_message_length", min(limits.body_bytes, _MOST_BYTES)),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.server_handshake_timeout_ms", round(limits.head_s * 1000)),
        ("grpc.max_connection_idle_ms", _IDLE_MS),
        ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ONLY),
        ("grpc.so_reuseport", 0),
    ]


def _credentials(config: ServeConfig) -> Any:
    pair = (Path(config.private_key).read_bytes(), Path(config.certificate).read_bytes())
    return grpc.ssl_server_credentials([pair])
