"""The MCP door over HTTP, driven by the SDK's own client against a real server."""

import asyncio
import base64
import json
import time

import httpx
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from tests.serving import open_door, running_server

ASKED = {"prompt": "a red apple", "seed": 7, "width": 64, "height": 32, "num_inference_steps": 4}
KEY = {"authorization": "Bearer alice-has-a-long-key"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mcp")
    keys = folder / "keys"
    keys.write_text("alice-has-a-long-key alice\n")
    with running_server(folder, serve={"api_keys": str(keys)}, fake={"step_s": 0.02}) as running:
        yield running


def talk(server, mode, conversation):
    async def run():
        async with httpx2.AsyncClient(headers=KEY, timeout=20) as http:
            transport = streamable_http_client(f"{server.url}/mcp", http_client=http)
            async with Client(transport, mode=mode) as client:
                return await conversation(client)

    return asyncio.run(run())


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_the_sdks_client_draws_what_the_native_door_draws(server, mode):
    heard = []

    async def hear(progress, total, message):
        heard.append((progress, total))

    async def conversation(client):
        listed = await client.list_tools()
        made = await client.call_tool("generate", ASKED, progress_callback=hear)
        again = await client.call_tool("verify", {"image": made.content[0].data})
        planned = await client.call_tool("plan", ASKED)
        models = await client.call_tool("models", {})
        wrong = await client.call_tool("generate", {"promt": "a"})
        return listed, made, again, planned, models, wrong

    listed, made, again, planned, models, wrong = talk(server, mode, conversation)
    assert [tool.name for tool in listed.tools] == ["generate", "plan", "verify", "models"]
    native = httpx.post(f"{server.url}/v1/generations", json=ASKED, headers=KEY).json()
    assert made.content[0].data == native["images"][0]["b64"]
    assert "carries no recipe" in again.content[0].text  # the fake service writes none
    assert planned.structured_content["plan"]
    assert "plate" in [model["name"] for model in models.structured_content["models"]]
    assert wrong.is_error
    assert "did you mean 'prompt'" in wrong.content[0].text
    assert heard == sorted(heard)
    if mode == "auto":  # whether the older client's picture was drawn before is up to the order
        assert heard[-1] == (4, 4)


def post(server, body, **headers):
    accepts = {"accept": "application/json, text/event-stream", **KEY, **headers}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = {"content-type": "application/json"}
    return httpx.post(f"{server.url}/mcp", content=content, headers={**kind, **accepts})


LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (LIST, {"authorization": "Bearer another-key-that-is-wrong"}, 401),
        (LIST, {"origin": "http://elsewhere.example"}, 403),
        (LIST, {"host": "rebound.example"}, 403),
        (LIST, {"content-type": "text/plain"}, 415),
        (LIST, {"accept": "text/html"}, 406),
        (b'{"jsonrpc": "2.0", "id": NaN}', {}, 400),
        (b"[" * 100_000, {}, 400),
        (b"", {}, 400),
    ],
)
def test_what_is_no_message_of_a_caller_with_a_key_is_refused(server, body, headers, status):
    answer = post(server, body, **headers)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"id": 1, "method": "ping"}, "jsonrpc"),
        ({"jsonrpc": "2.0", "id": 1}, "method"),
        ({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": []}, "params.name"),
        ({**LIST, "method": "tools/call", "params": {"name": "plan", "arguments": []}},
         "params.arguments"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_message_is_named(server, body, field):
    answer = post(server, body)
    assert (answer.status_code, answer.json()["error"]["data"]["field"]) == (400, field)


def test_there_is_nothing_to_listen_to_and_no_session_to_end(server):
    assert httpx.get(f"{server.url}/mcp", headers=KEY).status_code == 405
    assert httpx.delete(f"{server.url}/mcp", headers=KEY).status_code == 405


def test_a_body_beyond_the_limit_is_too_large(tmp_path):
    with open_door(tmp_path, limits={"body_bytes": 2000}) as door:
        call = {"name": "verify", "arguments": {"image": base64.b64encode(bytes(3000)).decode()}}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
        accepts = {"accept": "application/json, text/event-stream"}
        answer = door.http.post("/mcp", json=body, headers=accepts)
        assert answer.status_code == 413


def test_a_client_that_leaves_cancels_what_it_asked_for(server):
    long = {**ASKED, "seed": 8, "num_inference_steps": 150}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    body["params"] = {"name": "generate", "arguments": long}
    for headers in ({}, {"mcp-protocol-version": "2025-06-18"}):
        with pytest.raises(httpx.ReadTimeout):
            accepts = {"accept": "application/json, text/event-stream", **KEY, **headers}
            with httpx.stream(
                "POST", f"{server.url}/mcp", json=body, headers=accepts, timeout=0.5
            ) as answer:
                answer.read()
        until = time.monotonic() + 10
        while running(server):
            assert time.monotonic() < until, "what nobody waits for is still drawn"
            time.sleep(0.05)


def running(server):
    text = httpx.get(f"{server.metrics}/metrics", headers=KEY).text
    lines = [line for line in text.splitlines() if line.startswith("mezzotint_http_running")]
    return any(float(line.rpartition(" ")[2]) for line in lines)
