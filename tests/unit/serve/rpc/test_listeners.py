"""gRPC listeners: ports, keys, limits, TLS, and what is said without the packages."""

import contextlib
import datetime
import ipaddress
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import pytest
import tritonclient.grpc as triton
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.serving import running_server

from mezzotint.errors import InvalidRequest
from mezzotint.serve.config import Limits, ServeConfig
from mezzotint.serve.front import Front
from mezzotint.serve.rpc.listeners import RpcListener, _options
from mezzotint.serve.rpc.messages import message
from mezzotint.serve.run import _rpc_listeners
from mezzotint.service.fake import FakeService

KEYS = """
generate-key-16-chars gen generate
manage-key-of-16-chars man manage
slow-key-of-16-chars-x slow generate rate=2
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grpc")
    (folder / "keys").write_text(KEYS)
    serve = {"grpc_port": 0, "grpc_management_port": 0, "api_keys": str(folder / "keys")}
    with running_server(folder, serve=serve) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with triton.InferenceServerClient(server.lines["grpc"]) as opened:
        yield opened


def status(function):
    with pytest.raises(triton.InferenceServerException) as error:
        function()
    return error.value.status().removeprefix("StatusCode."), error.value.message()


def bearer(key, scheme="Bearer"):
    return {"authorization": f"{scheme} {key}"}


def test_a_listener_stands_at_its_port_and_no_other_by_default():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "grpc" not in ServeConfig().listeners()
    assert "grpc_management" not in ServeConfig().listeners()
    assert _rpc_listeners(Front(FakeService(None), ServeConfig()), {}) == {}
    for field in ("grpc_port", "grpc_management_port"):
        name = field.removesuffix("_port")
        config = ServeConfig(**{field: port}, management_host="127.0.0.3")
        host = "127.0.0.1" if name == "grpc" else "127.0.0.3"
        assert config.listeners()[name] == (host, port)


def test_no_key_or_a_wrong_one_is_unauthenticated(client):
    assert client.is_server_live()
    assert status(lambda: client.get_model_metadata("plate")) == (
        "UNAUTHENTICATED", "an API key is needed: send Authorization: Bearer KEY",
    )  # fmt: skip
    wrong = status(lambda: client.get_model_metadata("plate", headers=bearer("x" * 16)))
    assert wrong == ("UNAUTHENTICATED", "the API key is not known here")


@pytest.mark.parametrize("scheme", ["Bearer", "Token"])
def test_a_key_opens_what_its_scopes_say(client, server, scheme):
    headers = bearer("generate-key-16-chars", scheme)
    assert client.get_model_metadata("plate", headers=headers).name == "plate"
    told = status(
        lambda: client.get_model_metadata("plate", headers=bearer("manage-key-of-16-chars"))
    )
    assert told[0] == "PERMISSION_DENIED"
    with grpc.insecure_channel(server.lines["grpc_management"]) as channel:
        call = channel.unary_unary(
            "/org.pytorch.serve.grpc.management.ManagementAPIsService/ListModels"
        )
        with pytest.raises(grpc.RpcError) as error:
            call(b"", metadata=tuple(headers.items()))
        assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
        listed = call(b"", metadata=(("x-api-key", "manage-key-of-16-chars"),))
        assert "plate" in message("torchserve.ManagementResponse").FromString(listed).msg


def test_the_rate_of_a_key_is_one_for_grpc_too(client):
    headers = bearer("slow-key-of-16-chars-x")
    for _ in range(2):
        client.get_model_metadata("plate", headers=headers)
    told = status(lambda: client.get_model_metadata("plate", headers=headers))
    assert told == ("RESOURCE_EXHAUSTED", "at most 2 requests a minute for this key")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    limits = {"body_s": 0.5, "connections": 3, "head_s": 0.5}
    serve = {"grpc_port": 0, "limits": limits}
    with running_server(tmp_path_factory.mktemp("small"), serve=serve) as running:
        yield running


INFER = "/inference.GRPCInferenceService/ModelInfer"


def test_a_message_that_does_not_come_is_given_up(small):
    over = threading.Event()

    def silent():
        over.wait(20)
        yield b""

    with grpc.insecure_channel(small.lines["grpc"]) as channel:
        with pytest.raises(grpc.RpcError) as error:
            channel.stream_unary(INFER)(silent())
        over.set()
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert error.value.details() == "the message did not arrive within 0.5 s"


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [([], "the call has no message"), ([b"\xff\xff"], "the message is no ModelInferRequest")],
)
def test_what_is_no_message_is_refused(small, sent, sentence):
    with (
        grpc.insecure_channel(small.lines["grpc"]) as channel,
        pytest.raises(grpc.RpcError) as error,
    ):
        channel.stream_unary(INFER)(iter(sent))
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.details() == sentence


def test_connections_that_say_nothing_go_and_make_room(small):
    host, _, port = small.lines["grpc"].rpartition(":")
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection((host, port))) for _ in range(8)]
        for one in silent:
            one.settimeout(20)
            while one.recv(1024):
                continue  # the settings of HTTP/2, then the end
    with triton.InferenceServerClient(small.lines["grpc"]) as client:
        assert client.is_server_live()


def test_a_message_is_bounded_as_a_body_is():
    options = dict(_options(ServeConfig(limits=Limits(body_bytes=4096, connections=7))))
    assert options["grpc.max_receive_message_length"] == 4096
    assert options["grpc.max_allowed_incoming_connections"] == 7
    most = dict(_options(ServeConfig(limits=Limits(body_bytes=1 << 32))))
    assert most["grpc.max_receive_message_length"] == (1 << 31) - 1


@pytest.mark.anyio
async def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        front = Front(FakeService(None), ServeConfig(grpc_port=port))
        with pytest.raises(InvalidRequest, match=f"grpc_port: cannot listen on 127.0.0.1:{port}"):
            RpcListener("grpc", front, None).bind()


def test_a_server_with_grpc_writes_nothing_of_its_own_to_stderr_and_stops_with_0(tmp_path):
    script = Path(__file__).parents[3] / "fake_server.py"
    given = json.dumps({"folder": str(tmp_path), "serve": {"grpc_port": 0}})
    command = [sys.executable, str(script), given]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("models"):
            break
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert (errors, process.returncode) == ("", 0)


def test_without_the_packages_it_says_which_extra_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "mezzotint.serve.rpc.listeners", None)
    front = Front(FakeService(None), ServeConfig(grpc_port=0))
    with pytest.raises(InvalidRequest, match=r"pip install 'mezzotint\[grpc\]'") as error:
        _rpc_listeners(front, {"generation": None})
    assert error.value.field == "grpc_port"


def certificate(folder):
    """Write a certificate of 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    chain, private = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return chain, private


def test_with_a_certificate_calls_are_encrypted(tmp_path):
    chain, private = certificate(tmp_path)
    serve = {"grpc_port": 0, "certificate": str(chain), "private_key": str(private)}
    with running_server(tmp_path, serve=serve) as running:
        address = running.lines["grpc"]
        options = {"ssl": True, "root_certificates": str(chain)}
        with triton.InferenceServerClient(address, **options) as client:
            assert client.is_server_live()
        with triton.InferenceServerClient(address) as client:
            assert status(client.is_server_live)[0] == "UNAVAILABLE"
