"""Tenants: what nine of them wait for, with and without a tenth who is hostile.

Starts ``mezzotint serve`` with a keys file of ten. Nine ask for pictures of ``plate`` at
random moments, together for a third of what the server can draw. Blocks in which they are
alone and blocks in which the tenth does what it can take turns, so that a slow minute of the
machine is slow for both. The tenth floods generations and jobs, asks for huge plans, uploads
bombs, opens event streams and connections, and sends what is no request. It is a process of
its own at the lowest priority: what it does to the server counts, not what it costs to do it,
which would be done on another machine.

The promise: the nine's p95 beside the tenth is within 1.3 times of theirs alone, and each of
their requests is answered with a picture.
"""

import argparse
import asyncio
import contextlib
import io
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
from bench._report import write
from bench._servers import free_ports, wait_for
from PIL import Image, PngImagePlugin

NINE = [f"tenant-{k}" for k in range(9)]
HOSTILE = "hostile"
SHARE = 0.33
"""Part of the device that the nine ask for together."""


def key_of(name: str) -> str:
    """Return a tenant's key."""
    return f"mz-{name}-00000000000000000000"


def start(folder: Path, home: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start the server for ten tenants."""
    keys = folder / "keys"
    keys.write_text("".join(f"{key_of(name)} {name} generate\n" for name in (*NINE, HOSTILE)))
    ports = free_ports(3)
    names = ("--port", "--management-port", "--metrics-port")
    flags = [text for pair in zip(names, map(str, ports), strict=True) for text in pair]
    command = [str(Path(sys.executable).with_name("mezzotint")), "serve", *flags]
    with (folder / "mezzotint.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--models", "plate", "--api-keys", str(keys)],
            stdout=log, stderr=log, start_new_session=True,
            env={
                **os.environ, "MEZZOTINT_HOME": str(home), "MEZZOTINT_LOG__LEVEL": "warning",
                "MEZZOTINT_ENGINE__CACHE_DISK_BYTES": "0", "MEZZOTINT_JOBS__FOLDER": str(folder),
            },
        )  # fmt: skip
    wait_for(f"http://127.0.0.1:{ports[0]}/health/ready", '"ready":true', process)
    return process, ports[0]


def client(port: int, name: str) -> httpx.AsyncClient:
    """Return a tenant's client."""
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}",
        headers={"authorization": f"Bearer {key_of(name)}"},
        timeout=120,
        limits=httpx.Limits(max_connections=1000),
    )


# The nine


class Nine:
    """Nine tenants who ask for a picture, wait for it, and think.

    Args:
        port: Where the server listens.
        size: Steps and pixels of a side of a picture.

    Attributes:
        think_s: Mean seconds between an answer and the next request.
    """

    def __init__(self, port: int, size: tuple[int, int]) -> None:
        self._port = port
        self.think_s = 1.0
        self._steps, self._side = size
        self._seed = 0
        self.statuses: Counter[str] = Counter()

    async def ask(self, http: httpx.AsyncClient) -> float:
        """Ask for a picture that nobody asked for before; return the seconds it took."""
        self._seed += 1
        body = {
            "prompt": "a red apple", "seed": self._seed, "num_inference_steps": self._steps,
            "width": self._side, "height": self._side,
        }  # fmt: skip
        began = time.monotonic()
        try:
            answer = await http.post("/v1/generations", json=body, headers={"accept": "image/png"})
            self.statuses[str(answer.status_code)] += 1
        except httpx.HTTPError as error:
            self.statuses[type(error).__name__] += 1
        return time.monotonic() - began

    async def block(self, seconds: float, seed: int) -> list[float]:
        """Let all nine ask for a while; return the seconds of every answer."""
        took: list[float] = []
        until = time.monotonic() + seconds

        async def tenant(name: str) -> None:
            chance = random.Random(f"{seed} {name}")
            async with client(self._port, name) as http:
                while True:
                    pause = chance.expovariate(1 / self.think_s)
                    if time.monotonic() + pause >= until:
                        return
                    await asyncio.sleep(pause)
                    took.append(await self.ask(http))

        await asyncio.gather(*map(tenant, NINE))
        return took


# The tenth


def bombs() -> list[bytes]:
    """Return uploads that are small to send and dear to read."""
    flat = io.BytesIO()
    Image.new("L", (6000, 6000)).save(flat, "PNG")
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", "<lora:a" * 140_000, zip=True)
    loras = io.BytesIO()
    Image.new("L", (8, 8)).save(loras, "PNG", pnginfo=texts)
    return [flat.getvalue(), loras.getvalue(), zlib.compress(bytes(30 << 20)), b"\x89PNG\r\n\x1a\n"]


class Tenth:
    """A tenant who does what it can to be in the way, until its standard input ends.

    Args:
        port: Where the server listens.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._bombs = bombs()
        self._seed = 0
        self.statuses: Counter[str] = Counter()

    async def attack(self) -> None:
        """Do everything at once until told to stop; then take the jobs back."""
        jobs: list[str] = []
        stop = asyncio.Event()
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stop.set)
        async with client(self._port, HOSTILE) as http:
            kinds: list[Callable[[httpx.AsyncClient, list[str]], Awaitable[int]]] = [
                *[self._flood] * 12, *[self._plan] * 4, *[self._upload] * 4, *[self._job] * 2,
                *[self._listen] * 40, *[self._lie] * 4, *[self._hold] * 100,
            ]  # fmt: skip
            tasks = [asyncio.create_task(self._repeat(kind, http, jobs)) for kind in kinds]
            await stop.wait()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        async with client(self._port, HOSTILE) as http:
            for id_ in jobs:
                await http.delete(f"/v1/jobs/{id_}")

    async def _repeat(
        self,
        kind: Callable[[httpx.AsyncClient, list[str]], Awaitable[int]],
        http: httpx.AsyncClient,
        jobs: list[str],
    ) -> None:
        while True:
            try:
                status = await kind(http, jobs)
            except (httpx.HTTPError, OSError) as error:
                self.statuses[f"{kind.__name__[1:]} {type(error).__name__}"] += 1
                status = 0
            else:
                self.statuses[f"{kind.__name__[1:]} {status}"] += 1
            await asyncio.sleep(0.05 if status == 200 else 0.2)

    def _body(self, **fields: Any) -> dict[str, Any]:
        self._seed += 1
        return {"prompt": "more", "seed": 10**9 + self._seed, **fields}

    async def _flood(self, http: httpx.AsyncClient, _: list[str]) -> int:
        body = self._body(num_inference_steps=50, num_images=4)
        return (await http.post("/v1/generations", json=body)).status_code

    async def _plan(self, http: httpx.AsyncClient, _: list[str]) -> int:
        body = self._body(num_inference_steps=150, num_images=64, prompt="very " * 6000)
        return (await http.post("/v1/plan", json=body)).status_code

    async def _upload(self, http: httpx.AsyncClient, _: list[str]) -> int:
        bomb = random.choice(self._bombs)
        told = {"content-type": "image/png"}
        return (await http.post("/v1/inspect", content=bomb, headers=told)).status_code

    async def _job(self, http: httpx.AsyncClient, jobs: list[str]) -> int:
        answer = await http.post("/v1/jobs", json=self._body(num_inference_steps=100))
        if answer.status_code == 202:
            jobs.append(answer.json()["id"])
        return answer.status_code

    async def _listen(self, http: httpx.AsyncClient, jobs: list[str]) -> int:
        if not jobs:
            return 404
        async with http.stream("GET", f"/v1/jobs/{random.choice(jobs)}/events") as answer:
            async for _ in answer.aiter_bytes():
                pass
        return answer.status_code

    async def _lie(self, http: httpx.AsyncClient, _: list[str]) -> int:
        told = {"content-type": "application/json"}
        torn = b'{"prompt": ' + b"[" * 5000
        return (await http.post("/v1/generations", content=torn, headers=told)).status_code

    async def _hold(self, http: httpx.AsyncClient, _: list[str]) -> int:
        """Open a connection and never finish what is sent over it."""
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(b"POST /v1/generations HTTP/1.1\r\nhost: 127.0.0.1\r\n")
            await asyncio.sleep(5)
        finally:
            writer.close()
        return 0


class Attack:
    """The tenth at work, in a process of its own, while the block lasts.

    Args:
        port: Where the server listens.
        statuses: Counts of what it was answered, added to at the end.
    """

    def __init__(self, port: int, statuses: Counter[str]) -> None:
        self._port = port
        self._statuses = statuses

    async def __aenter__(self) -> None:
        """Begin, and wait until it is in the way."""
        self._process = await asyncio.create_subprocess_exec(
            "nice", "-n", "19", sys.executable, "-m", "bench.tenants", "--attack", str(self._port),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout
        await self._process.stdout.readline()
        await asyncio.sleep(2)

    async def __aexit__(self, *_: object) -> None:
        """End it, and add up what it was answered."""
        told, _ = await self._process.communicate(b"")  # its standard input ends
        self._statuses.update(json.loads(told))


# The comparison


def p95(seconds: list[float]) -> float:
    """Return the 95th percentile."""
    return statistics.quantiles(seconds, n=20, method="inclusive")[18]


def resampled(alone: list[float], beside: list[float], times: int = 2000) -> tuple[float, float]:
    """Return the middle 90% of the ratio of two p95, each drawn again from its own sample."""
    chance = random.Random(0)
    found = sorted(
        p95(chance.choices(beside, k=len(beside))) / p95(chance.choices(alone, k=len(alone)))
        for _ in range(times)
    )
    return found[times // 20], found[-times // 20]


async def compare(port: int, given: argparse.Namespace) -> dict[str, Any]:
    """Let blocks with and without the tenth take turns."""
    size = (given.steps, given.side)
    nine, answered = Nine(port, size), Counter[str]()
    lone_s: list[float] = []
    async with client(port, NINE[0]) as http:
        took: dict[str, list[list[float]]] = {"alone": [], "beside": []}
        for pair in range(given.pairs):
            # anew for each pair: a machine that others slow down takes longer for a picture,
            # and would be asked for more than a third of what it can
            lone_s.append(statistics.median([await nine.ask(http) for _ in range(7)][2:]))
            nine.think_s = len(NINE) * lone_s[-1] / SHARE
            for kind in ("alone", "beside"):
                if kind == "alone":
                    took[kind].append(await nine.block(given.block_s, pair))
                    continue
                async with Attack(port, answered):
                    took[kind].append(await nine.block(given.block_s, pair))
                while (await http.get("/health/ready")).json()["queue"]:
                    await asyncio.sleep(0.2)
            print(
                f"pair {pair + 1} of {given.pairs}: "
                + ", ".join(f"{k} {[round(s, 2) for s in v[-1]]}" for k, v in took.items()),
                flush=True,
            )
        health = (await http.get("/health/ready")).json()
    alone, beside = ([s for block in took[kind] for s in block] for kind in ("alone", "beside"))
    low, high = resampled(alone, beside)
    return {
        "one_alone_s": [round(seconds, 3) for seconds in lone_s],
        "pictures": {"alone": len(alone), "beside": len(beside)},
        "p95_s": {"alone": round(p95(alone), 3), "beside": round(p95(beside), 3)},
        "p95_ratio": {
            "value": round(p95(beside) / p95(alone), 3),
            "90% of resamples": [round(low, 3), round(high, 3)],
        },
        "median_ratio": round(statistics.median(beside) / statistics.median(alone), 3),
        "median_ratio_by_pair": [
            round(statistics.median(b) / statistics.median(a), 2)
            for a, b in zip(took["alone"], took["beside"], strict=True)
            if a and b
        ],
        "statuses_of_the_nine": dict(nine.statuses),
        "statuses_of_the_tenth": dict(sorted(answered.items())),
        "restarts": health.get("restarts"),
    }


def main() -> None:
    """Run and write ``bench/results/tenants.json``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--block-s", type=float, default=15.0)
    parser.add_argument("--steps", type=int, default=6, help="of the nine's pictures")
    parser.add_argument("--side", type=int, default=128, help="of the nine's pictures, pixels")
    parser.add_argument("--home", type=Path, help="where plate is exported already")
    parser.add_argument("--attack", type=int, metavar="PORT", help="be the tenth; internal")
    given = parser.parse_args()
    if given.attack:
        tenth = Tenth(given.attack)
        print("ready", flush=True)
        asyncio.run(tenth.attack())
        print(json.dumps(tenth.statuses))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process, port = start(folder, given.home or folder / "home")
        try:
            report = asyncio.run(compare(port, given))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(300)
    write("tenants", report)


if __name__ == "__main__":
    main()
