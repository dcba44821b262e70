"""Refusals: every hostile input gets the one right status, at once, and nobody else's words.

One server as an operator runs it: the real service in a worker, keys for two clients. The
victim draws first, with words that nobody else uses; then the attacker sends the table of
:mod:`tests.system.hostile_cases` and raw connections.
"""

import contextlib
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import pytest
from tests.serving import RunningServer, running_server
from tests.system import hostile_cases, hostile_doors
from tests.system.hostile_cases import Case
from tests.system.hostile_doors import ACCEPTS

from mezzotint.serve.rpc.messages import message

SECRETS = ("quetzalwort", "obsidianfern", "9876543219876")
VICTIM = {"authorization": "Bearer victim-key-0000000000000000000000"}
ATTACKER = {"authorization": "Bearer attacker-key-00000000000000000000"}
LONGEST_S = 2.0
INTERNALS = re.compile(
    r"Traceback|\.py\b.*line \d+|\b(Type|Key|OS|Attribute|Index|Unicode\w+|Recursion|Import)Error\b"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    return tmp_path_factory.mktemp("refusals")


@pytest.fixture(scope="module")
def server(folder) -> Iterator[RunningServer]:
    keys = folder / "keys"
    keys.write_text("\n".join(h["authorization"].split()[1] + f" {n}" for h, n in
                              ((ATTACKER, "attacker"), (VICTIM, "victim"))))  # fmt: skip
    (folder / "store").mkdir()
    options = {
        "models": {"home": str(folder / "home"), "backend": "torch", "placement": {"device": "cpu"}},
        "model_store": str(folder / "store"), "images": {"max_pixels": 1 << 20},
        "engine": {"buckets": [2], "calibrate_s": 0.0},
    }  # fmt: skip
    serve = {
        "api_keys": str(keys),
        "grpc_port": 0,
        "limits": {"body_bytes": 2 << 20, "body_s": 1.0, "head_s": 1.0},
    }
    worker = {"factory": "mezzotint.service.local:create_service", "options": options}
    with running_server(folder / "jobs", serve=serve, worker=worker) as running:
        draw_secrets(running)
        yield running


def draw_secrets(server: RunningServer) -> None:
    """Let the victim ask with secret words, so that caches, jobs and logs hold them."""
    body = {"width": 64, "height": 64, "num_inference_steps": 1, "seed": int(SECRETS[2])}
    for path, prompt, status in (
        ("/v1/generations", f"a {SECRETS[0]} apple", 200),
        ("/v1/plan", f"a {SECRETS[1]} leaf", 200),
        ("/v1/jobs", f"an {SECRETS[1]} apple", 202),
    ):
        made = httpx.post(
            server.url + path, json={"prompt": prompt, **body}, headers=VICTIM, timeout=120
        )
        assert made.status_code == status, made.text


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(timeout=20, headers=ATTACKER) as made:
        ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}  # reads the SDK, which takes a second
        assert made.post(server.url + "/mcp", json=ping, headers=ACCEPTS).status_code == 200
        yield made


WITHOUT_FILES = [*hostile_cases.table(), *hostile_doors.table()]
MESSAGES = list(hostile_doors.messages())


@pytest.mark.parametrize("case", WITHOUT_FILES, ids=[case.id[:90] for case in WITHOUT_FILES])
def test_a_hostile_input_has_one_right_answer(server, client, case):
    check(server, client, case)


def test_a_model_or_adapter_that_cannot_be_read_is_the_callers_mistake(server, client, folder):
    for case in hostile_cases.names(folder / "broken"):
        check(server, client, case)


def test_a_hostile_message_over_grpc_has_one_right_code(server):
    with grpc.insecure_channel(server.lines["grpc"]) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=message("inference.ModelInferRequest").SerializeToString,
            response_deserializer=message("inference.ModelInferResponse").FromString,
        )
        for name, fields, code, named in MESSAGES:
            asked = message("inference.ModelInferRequest")(**{"model_name": "plate", **fields})
            began = time.monotonic()
            with pytest.raises(grpc.RpcError) as caught:
                infer(asked, timeout=20, metadata=list(ATTACKER.items()))
            took_s = time.monotonic() - began
            said = caught.value.details()
            assert (caught.value.code().name, named in said) == (code, True), (name, said)
            assert took_s <= LONGEST_S, (name, took_s)
            assert not INTERNALS.search(said), (name, said)
            assert not any(secret in said for secret in SECRETS), name


def check(server: RunningServer, client: httpx.Client, case: Case) -> None:
    """Send a case; hold its answer to the table, to two seconds and to secrecy."""
    base = {"generation": server.url, "management": server.management}[case.port]
    began = time.monotonic()
    answer = client.request(
        case.method, base + case.path, content=case.body, headers=dict(case.headers)
    )
    took_s = time.monotonic() - began
    assert answer.status_code == case.status, (case.id, answer.text[:300])
    assert case.named in answer.text, (case.id, answer.text[:300])
    assert took_s <= LONGEST_S, (case.id, took_s)
    if case.status != 200:
        assert len(answer.content) < 20_000, case.id
        assert not INTERNALS.search(answer.text), (case.id, answer.text[:300])
    whole = answer.text + repr(answer.headers)
    assert not any(secret in whole for secret in SECRETS), case.id


HOST = b"host: 127.0.0.1\r\n"
POST = b"POST /v1/plan HTTP/1.1\r\n" + HOST
RAW = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 60,
    "SOCKS": b"\x05\x01\x00", "SSH": b"SSH-2.0-x\r\n\r\n", "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a NUL": b"\0", "NUL in a header": b"GET / HTTP/1.1\r\n" + HOST + b"x: a\0b\r\n\r\n",
    "an unknown version": b"GET / HTTP/9.9\r\n" + HOST + b"\r\n",
    "no version": b"GET /\r\n\r\n", "words": b"hello world\r\n\r\n",
    "no host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /v1/models HTTP/1.1\r\n" + HOST + b"host: evil.example\r\n\r\n",
    "a foreign target": b"GET http://evil.example/ HTTP/1.1\r\nhost: evil.example\r\n\r\n",
    "a negative length": POST + b"content-length: -5\r\n\r\n",
    "a hex length": POST + b"content-length: 0x2\r\n\r\n{}",
    "two lengths": POST + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}x",
    "length and chunks": POST + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a length of letters": POST + b"content-length: two\r\n\r\n{}",
    "a length of a hundred gigabytes": POST + b"content-length: 99999999999\r\n\r\n",
    "a bad chunk": POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    "a chunk beyond numbers": POST + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    "an unknown coding": POST + b"transfer-encoding: xchunked\r\n\r\n{}",
    "a folded header": b"GET / HTTP/1.1\r\n" + HOST + b"x: a\r\n transfer-encoding: chunked\r\n\r\n",
    "a space before the colon": POST + b"content-length : 2\r\n\r\n{}",
    "a long path": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "a long header": b"GET / HTTP/1.1\r\n" + HOST + b"x: " + b"y" * 200_000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + HOST + b"x: y\r\n" * 20_000 + b"\r\n",
    "a head without end": b"GET / HTTP/1.1\r\n" + HOST, "a line without end": b"GET /v1/models HTT",
    "nothing": b"", "a line end": b"\r\n", "a body that stops": POST + b"content-length: 9\r\n\r\n{",
}  # fmt: skip

WELL = ("a folded header",)  # odd, and harmless


def test_raw_connections_are_refused_or_cut_within_two_seconds(server):
    """All at once: each is answered with a 4xx, or closed, and none is served."""
    with ThreadPoolExecutor(len(RAW)) as threads:
        answers = threads.map(lambda data: answered(server, data), RAW.values())
        for name, (answer, took_s) in zip(RAW, answers, strict=True):
            found = [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]
            right = (200,) if name in WELL else range(400, 500)
            assert all(status in right for status in found), (name, answer[:200])
            assert not any(secret.encode() in answer for secret in SECRETS), name
            assert took_s <= LONGEST_S, (name, took_s)


def answered(server: RunningServer, data: bytes) -> tuple[bytes, float]:
    """Send bytes as they are; return the answer, if any, and the seconds until it or the end."""
    began, answer = time.monotonic(), b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        with contextlib.suppress(OSError):
            raw.sendall(data)
        with contextlib.suppress(ConnectionError):
            answer = raw.recv(1 << 16)
    return answer, time.monotonic() - began


def test_a_job_that_names_an_unreadable_model_says_so(server, client, folder):
    where = hostile_cases.broken_models(folder / "broken_jobs")["numbers"]
    answer = client.post(server.url + "/v1/jobs", json={"prompt": "x", "model": where})
    assert answer.status_code in (202, 422)
    job = answer.json()
    until = time.monotonic() + 20
    while answer.status_code == 202 and job["status"] in ("queued", "running"):
        assert time.monotonic() < until
        time.sleep(0.05)
        job = client.get(f"{server.url}/v1/jobs/{job['id']}").json()
    assert "is not a whole pipeline: model_index.json names no scheduler" in str(job)
    assert not INTERNALS.search(str(job))


def test_after_all_this_nothing_restarted_nothing_failed_and_the_victim_is_served(server):
    health = httpx.get(f"{server.url}/health/ready").json()
    assert (health["ready"], health["restarts"]) == (True, 0)
    text = httpx.get(f"{server.metrics}/metrics", headers=VICTIM).text
    assert not re.search(r'status="5\d\d"', text)
    body = {"prompt": "still here", "width": 64, "height": 64, "num_inference_steps": 1, "seed": 1}
    made = httpx.post(server.url + "/v1/generations", json=body, headers=VICTIM, timeout=60)
    assert made.status_code == 200


def test_there_are_six_hundred_inputs_and_no_two_alike(tmp_path):
    cases = [*WITHOUT_FILES, *hostile_cases.names(tmp_path / "broken")]
    assert len({case.id for case in cases}) == len(cases)
    assert len(cases) + len(RAW) + len(MESSAGES) >= 1300
    assert not [case.id for case in cases if case.status != 200 and not 400 <= case.status < 500]
