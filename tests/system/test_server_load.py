"""More work than there is room for: only 200 and 429, bounded memory, a server that recovers."""

import asyncio
import json
import os
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
from tests.serving import RunningServer, running_server

BODY = json.dumps({"prompt": "x", "width": 64, "height": 64, "num_inference_steps": 4}).encode()
REQUEST = (
    b"POST /v1/generations HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n" % len(BODY)
) + BODY


def resident(pid: int) -> int:
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


async def ask(port: int, until: float, seen: Counter[str]) -> None:
    """Send one request after another, waiting as told."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while time.monotonic() < until:
            writer.write(REQUEST)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
            await reader.readexactly(int(fields[b"content-length"]))
            status = head.split()[1].decode()
            seen[status] += 1
            if status == "429":
                assert int(fields[b"retry-after"]) >= 1
                seen["told to wait"] += 1
                await asyncio.sleep(0.2)
    finally:
        writer.close()


def overload(server: RunningServer, *, connections: int, seconds: float) -> Counter[str]:
    seen: Counter[str] = Counter()

    async def main() -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(ask(server.port, until, seen) for _ in range(connections)))

    asyncio.run(main())
    return seen


@pytest.mark.parametrize(
    ("connections", "seconds"), [(60, 5.0), pytest.param(200, 300.0, marks=pytest.mark.slow)]
)
def test_overload_answers_200_and_429_only_and_memory_stays_bounded(tmp_path, connections, seconds):
    fake = {"step_s": 0.01, "slots": 4, "max_waiting": 16}
    with running_server(tmp_path, fake=fake) as server:
        overload(server, connections=connections, seconds=2.0)
        before = resident(server.process.pid)
        seen = overload(server, connections=connections, seconds=seconds)
        assert set(seen) == {"200", "429", "told to wait"}
        assert seen["429"] == seen["told to wait"]
        assert resident(server.process.pid) - before < 32 << 20
        until = time.monotonic() + 5
        while httpx.get(f"{server.url}/health/ready").json()["queue"]:
            assert time.monotonic() < until
            time.sleep(0.1)
        assert httpx.post(f"{server.url}/v1/generations", json={"seed": 1}).status_code == 200
