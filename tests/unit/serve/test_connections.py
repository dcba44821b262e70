"""Probes are answered whatever others hold open, and half-open connections are cut."""

import contextlib
import os
import resource
import signal
import socket
import time

import httpx
import pytest
from tests.serving import RunningServer, running_server

from mezzotint.serve.connections import raise_file_limit

PROBES = ("/health/live", "/ping", "/v2/health/live")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    limits = {"connections": 40, "streams": 0, "client_share": 0.75}
    folder = tmp_path_factory.mktemp("connections")
    with running_server(folder, serve={"limits": limits}, fake={"step_s": 0.05}) as running:
        yield running


@contextlib.contextmanager
def connected(server: RunningServer, count: int, data: bytes = b""):
    """Open connections that send ``data`` and keep quiet."""
    with contextlib.ExitStack() as stack:
        raws = []
        for _ in range(count):
            raw = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            if data:
                raw.sendall(data)
            raws.append(raw)
        yield raws


def is_closed(raw: socket.socket, seconds: float) -> bool:
    """Tell whether the other side closes a connection within some time."""
    raw.settimeout(seconds)
    try:
        while raw.recv(65536):
            continue
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


@pytest.mark.parametrize("data", [b"", b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\nx: "])
def test_probes_are_answered_beside_any_number_of_half_open_connections(server, data):
    with connected(server, 300, data):
        for path in PROBES:
            assert httpx.get(server.url + path, timeout=2).status_code == 200


def test_probes_are_answered_beside_connections_that_are_kept_alive(server):
    request = b"GET /ping HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
    with connected(server, 40, request) as raws:
        for raw in raws:
            assert raw.recv(65536).startswith(b"HTTP/1.1 200")
        for path in PROBES:
            assert httpx.get(server.url + path, timeout=2).status_code == 200
        assert is_closed(raws[0], 1.0)  # the one idle longest made room


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="a process cannot be stopped here")
def test_a_head_that_came_while_the_server_stood_still_is_answered(server):
    """Its time is over when the server goes on, and the head lies there unread."""
    with connected(server, 1) as (raw,):
        raw.settimeout(20)
        time.sleep(0.3)  # until it is accepted, and its time runs
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            raw.sendall(b"GET /ping HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            time.sleep(1.6)
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        assert raw.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_thousand_and_thirty_idle_connections_leave_the_default_server_alive(tmp_path):
    with running_server(tmp_path) as server, connected(server, 1030):
        assert httpx.get(f"{server.url}/health/live", timeout=2).status_code == 200


@pytest.mark.parametrize("data", [b"", b"POST /v1/generations HTTP/1.1\r\nhost: 127.0.0.1\r\n"])
def test_half_open_connections_are_cut_within_two_seconds(server, data):
    began = time.monotonic()
    with connected(server, 20, data) as raws:
        for _ in range(3):  # a line now and then gains nothing
            time.sleep(0.5)
            for raw in raws if data else []:
                raw.sendall(b"x: y\r\n")
        assert all(is_closed(raw, max(0.1, 4.0 - (time.monotonic() - began))) for raw in raws)
    assert 1.5 < time.monotonic() - began < 4.0


def test_one_caller_leaves_room_for_others_and_for_probes(server):
    body = b'{"num_inference_steps": 100}'
    head = (
        b"POST /v1/generations HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: text/event-stream\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    )
    with connected(server, 36, head + body) as raws:
        answers = sorted(raw.recv(65536).split()[1] for raw in raws)
        assert answers.count(b"200") == 30  # three quarters of forty
        assert answers.count(b"429") == 6
        assert httpx.get(f"{server.url}/health/live", timeout=2).status_code == 200
        full = httpx.get(f"{server.url}/v1/capabilities", timeout=2)
        assert (full.status_code, full.headers["retry-after"]) == (429, "1")
    until = time.monotonic() + 10
    while httpx.get(f"{server.url}/v1/capabilities").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_the_limit_on_open_files_is_raised_as_far_as_it_may():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (600, hard))
        raise_file_limit(200)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (712, hard)
        raise_file_limit(10)  # never lowered
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (712, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    "head",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0",
        b"GET / HTTP/1.1\r\nx: a\0",
        b"\x04\x01\0\x50",
    ],
    ids=["TLS", "NUL", "NUL in a line", "SOCKS"],
)
def test_a_head_that_cannot_become_one_is_refused_at_its_first_wrong_byte(server, head):
    with connected(server, 1, head) as [raw]:
        raw.settimeout(1.0)
        began = time.monotonic()
        answer = raw.recv(4096)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"connection: close" in answer
        assert is_closed(raw, 1.0)
        assert time.monotonic() - began < 1.0


@pytest.mark.parametrize("version", ["9.9", "2.0", "0.9", "1.10", "x"])
def test_another_version_of_http_is_refused(server, version):
    head = f"GET /health/live HTTP/{version}\r\nhost: 127.0.0.1\r\n\r\n".encode()
    with connected(server, 1, head) as [raw]:
        raw.settimeout(2.0)
        assert raw.recv(4096).startswith(b"HTTP/1.1 400 ")
    with connected(server, 1, head.replace(version.encode(), b"1.0")) as [raw]:
        raw.settimeout(2.0)
        assert raw.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_head_of_many_lines_is_refused_and_one_of_two_hundred_is_not(server):
    lines = b"x: y\r\n"
    for count, status in ((200, b"200"), (300, b"431"), (20_000, b"431")):
        head = b"GET /health/live HTTP/1.1\r\nhost: 127.0.0.1\r\n" + lines * count + b"\r\n"
        with connected(server, 1, head) as [raw]:
            raw.settimeout(2.0)
            assert raw.recv(4096).startswith(b"HTTP/1.1 " + status)


def sent_and_answered(server: RunningServer, head: bytes, body: bytes) -> tuple[int, bytes]:
    """Send all of a request before reading, as http.client does; return status and body."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(head)
        time.sleep(0.2)  # the answer is there before the body begins
        for start in range(0, len(body), 1 << 20):
            raw.sendall(body[start : start + (1 << 20)])
        received = b""
        while piece := raw.recv(65536):
            received += piece
    lines, _, text = received.partition(b"\r\n\r\n")
    return int(lines.split()[1]), text


@pytest.mark.parametrize(
    ("path", "host", "more", "status", "word"),
    [
        ("/v1/generations", "x:8080", "", 403, b'"title":"forbidden"'),
        ("/v1/images/edits", "x", "", 403, b'"type":"permission_error"'),
        ("/predictions/plate", "x", "", 403, b'"type": "IllegalArgumentException"'),
        ("/v1/generations", "127.0.0.1", "content-encoding: gzip\r\n", 415, b"Content-Encoding"),
        ("/nowhere", "127.0.0.1", "", 404, b"ResourceNotFoundException"),
        ("/v1/generations", "127.0.0.1", "bad name: 1\r\n", 400, b"Invalid HTTP request"),
    ],
)
def test_who_is_refused_can_send_the_whole_body_and_read_why(
    server, path, host, more, status, word
):
    body = b"x" * (8 << 20)
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n{more}"
    head += f"content-length: {len(body)}\r\n\r\n"
    found, text = sent_and_answered(server, head.encode(), body)
    assert (found, word in text) == (status, True), text


def test_a_head_that_is_too_long_is_answered(server):
    head = b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nx: " + b"y" * (4 << 20)
    assert sent_and_answered(server, head, b"")[0] == 431  # RFC 6585, section 5


def test_options_of_the_server_as_a_whole_are_answered(server):
    head = b"OPTIONS * HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"
    assert sent_and_answered(server, head, b"") == (204, b"")  # RFC 9110, section 9.3.7


def test_a_body_that_never_ends_is_not_read_for_ever(server):
    began = time.monotonic()
    head = b"POST /v1/generations HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n"
    assert sent_and_answered(server, head, b"")[0] == 403
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("path", "host", "status", "word"),
    [
        ("/ws", "x:8080", 403, b"loopback names only"),
        ("/nowhere", "127.0.0.1", 404, b"ResourceNotFoundException"),
    ],
)
def test_a_web_socket_is_refused_in_the_words_of_its_dialect(server, path, host, status, word):
    head = (
        f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
        "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    found, text = sent_and_answered(server, head.encode(), b"")
    assert (found, word in text) == (status, True), text


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://127.0.0.1/health/live", "127.0.0.1", 200),
        ("http://localhost/v1/models", "x", 200),  # RFC 9112: the target's host counts
        ("http://x/health/live", "127.0.0.1", 403),
    ],
)
def test_a_target_in_absolute_form_is_its_path(server, target, host, status):
    head = f"GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
    assert sent_and_answered(server, head.encode(), b"")[0] == status
