"""Which addresses are called, and how what is sent to them proves where it comes from."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import socket
import threading
import time

import pytest
from tests.serving import open_door

from mezzotint.serve import webhooks
from mezzotint.serve.config import ServeConfig
from mezzotint.serve.errors import WrongField
from mezzotint.serve.webhooks import check_webhook, secret_of, send, signed_headers


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("https://hooks.example/a?b=c", ("hooks.example",)),
        ("http://HOOKS.example/", ("hooks.example",)),
        ("http://hooks.example:8000/", ("hooks.example:8000",)),
        ("https://hooks.example/", ("hooks.example:443",)),
        ("http://[::1]:99/", ("[::1]:99",)),
    ],
)
def test_only_listed_hosts_may_be_called(url, hosts):
    assert check_webhook(url, ServeConfig(webhook_hosts=hosts), "webhook") == url
    with pytest.raises(WrongField, match=r"serve\.webhook_hosts"):
        check_webhook(url, ServeConfig(), "webhook")


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example:8000/",  # the host is listed without a port: the usual ones only
        "http://hooks.example.evil/",
        "http://evil/hooks.example",
        "http://hooks.example@evil/",
        "http://evil#hooks.example",
        "ftp://hooks.example/",
        "//hooks.example/",
        "http://hooks.example/ HTTP/1.1",
        "http://hooks.example/\r\nx: y",
        "http://hooks.example\\@evil/",
        "",
    ],
)
def test_no_spelling_leads_elsewhere(url):
    with pytest.raises(WrongField):
        check_webhook(url, ServeConfig(webhook_hosts=("hooks.example",)), "webhook")


def test_an_address_that_answers_a_byte_now_and_then_is_cut_off(monkeypatch):
    monkeypatch.setattr(webhooks, "_MOST_S", 0.5)
    monkeypatch.setattr(webhooks, "_TRIES", 1)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip():
            taken, _ = listener.accept()
            with taken, contextlib.suppress(OSError):
                while True:
                    taken.sendall(b"H")
                    time.sleep(0.05)

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        secret = secret_of(b"k" * 32, "alice")

        async def told():
            return await asyncio.wait_for(send(url, b"{}", secret), 20)

        assert asyncio.run(told()) is False
        thread.join(10)
        assert not thread.is_alive()


def test_each_client_has_a_secret_that_stays():
    key = b"k" * 32
    first = secret_of(key, "alice")
    assert first == secret_of(key, "alice")
    assert first != secret_of(key, "bob")
    assert first != secret_of(b"l" * 32, "alice")
    assert len(base64.b64decode(first.removeprefix("whsec_"))) == 32


def test_the_key_that_signs_is_the_databases_and_an_older_one_of_the_folder_stays(tmp_path):
    def key_in(folder):
        with open_door(folder) as door:
            return door.front.jobs.signing_key()

    first = key_in(tmp_path)
    assert (len(first), key_in(tmp_path)) == (32, first)
    (tmp_path / "webhooks.key").write_bytes(b"k" * 32)
    assert key_in(tmp_path) == b"k" * 32


def test_the_signature_is_over_id_time_and_body():
    key = b"k" * 32
    headers = signed_headers("whsec_" + base64.b64encode(key).decode(), "msg_1", b"{}")
    text = f"msg_1.{headers['webhook-timestamp']}.{{}}".encode()
    expected = base64.b64encode(hmac.digest(key, text, hashlib.sha256)).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


@pytest.mark.parametrize(
    ("answers", "tries", "taken"),
    [([200], 1, True), ([500, 429, 204], 3, True), ([302], 1, False), ([OSError()] * 4, 4, False)],
)
def test_a_message_is_sent_again_only_where_that_may_help(monkeypatch, answers, tries, taken):
    ids = []

    def post(url, body, headers):
        ids.append(headers["webhook-id"])
        answer = answers[len(ids) - 1]
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(webhooks, "_post", post)
    monkeypatch.setattr(webhooks, "_PAUSE_S", 0.001)
    secret = "whsec_" + base64.b64encode(b"k").decode()
    assert asyncio.run(send("http://hooks.example/", b"{}", secret)) is taken
    assert (len(ids), len(set(ids))) == (tries, 1)
