"""Goodput: mixed ``plate`` requests at Mezzotint, TorchServe, LitServe and FastAPI with a lock.

The same diffusers folder behind servers that run at once and take turns. Requests
differ in prompt, seed and number of steps and come at random moments at rates from one
to six times what diffusers alone can do. A request is good if its picture comes within three
times what it takes diffusers alone (FastAPI's latency with nobody else there). Needs
the packages ``litserve`` and ``torchserve`` (and Java 17).
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from bench._report import ratios, write
from bench._servers import Server, installed, start, stop

STEPS = (4, 8, 12)
PROMPTS = ("a red apple", "a blue boat on yellow", "two green leaves", "a brown dog")
PEERS = ("torchserve", "litserve")


async def ask(server: Server, item: dict[str, Any]) -> float:
    """Ask for one picture; return the seconds it took, infinity if there was none."""
    body = json.dumps(item).encode()
    head = (
        f"POST {server.path} HTTP/1.1\r\nhost: 127.0.0.1:{server.port}\r\n"
        f"content-type: application/json\r\naccept: image/png\r\n"
        f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 22)
    try:
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        size = int(answer.split(b"content-length:")[1].split(b"\r\n")[0])
        await reader.readexactly(size)  # TorchServe leaves the connection open
        return time.perf_counter() - began if answer[9:12] == b"200" else float("inf")
    finally:
        writer.close()


def items(count: int, first: int) -> list[dict[str, Any]]:
    """Return mixed requests, none of them twice."""
    return [
        {"prompt": PROMPTS[k % 4], "seed": first + k, "num_inference_steps": STEPS[k % 3]}
        for k in range(count)
    ]


async def storm(
    server: Server, work: list[dict[str, Any]], rate: float, seed: int
) -> list[tuple[int, float]]:
    """Send requests at random moments; return steps and seconds of each."""
    chance = random.Random(seed)

    async def one(item: dict[str, Any]) -> tuple[int, float]:
        return item["num_inference_steps"], await ask(server, item)

    tasks: list[asyncio.Task[tuple[int, float]]] = []
    for item in work:
        tasks.append(asyncio.create_task(one(item)))
        await asyncio.sleep(chance.expovariate(rate))
    return [await task for task in tasks]


def main() -> None:
    """Run and write ``bench/results/goodput.json``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 2.0, 4.0, 6.0])
    given = parser.parse_args()
    peers = installed(PEERS)
    if not peers:
        raise SystemExit("this needs the packages litserve or torchserve (with Java 17)")
    with tempfile.TemporaryDirectory() as name:
        servers: dict[str, Server] = {}
        try:
            for server in ("mezzotint", *peers, "fastapi"):
                servers[server] = start(server, "plate", Path(name))
                print(f"up: {server}", flush=True)
            report = measure(servers, given)
        finally:
            stop(servers.values())
    write("goodput", report)


def measure(servers: dict[str, Server], given: argparse.Namespace) -> dict[str, Any]:
    """Find out what diffusers takes alone, then let the servers take turns at each rate."""
    alone: dict[int, float] = {}
    lone = servers["fastapi"]
    for server in servers.values():
        for item in items(6, 1_000):  # everybody warm: every number of steps
            asyncio.run(ask(server, item))
    for steps in STEPS:
        taken = [
            asyncio.run(ask(lone, {**item, "num_inference_steps": steps}))
            for item in items(3, 2_000 + steps * 10)
        ]
        alone[steps] = statistics.median(taken)
    capacity = len(STEPS) / sum(alone.values())
    found: dict[str, Any] = {}
    best: dict[str, list[float]] = {name: [0.0] * given.rounds for name in servers}
    for rate in given.rates:
        goods: dict[str, list[float]] = {name: [] for name in servers}
        late: dict[str, list[float]] = {name: [] for name in servers}
        for round_ in range(given.rounds):
            for name, server in servers.items():
                work = items(given.requests, int(1e6 * (1 + round_)) + int(rate * 1000))
                began = time.perf_counter()
                took = asyncio.run(storm(server, work, rate * capacity, round_))
                good = sum(seconds <= 3 * alone[steps] for steps, seconds in took)
                goods[name].append(round(good / (time.perf_counter() - began), 3))
                late[name].append(round(max(s / alone[n] for n, s in took), 2))
                best[name][round_] = max(best[name][round_], goods[name][-1])
            print(f"rate {rate:g}, round {round_ + 1}: {goods}", flush=True)
        found[f"{rate:g}"] = {"good_per_s": goods, "slowest_over_alone": late}
    times = {
        name: ratios([1 / max(b, 1e-3) for b in best["mezzotint"]],
                     [1 / max(b, 1e-3) for b in best[name]])
        for name in servers if name != "mezzotint"
    }  # fmt: skip
    return {
        "command": f"mezzotint bench goodput --rounds {given.rounds} --requests {given.requests}",
        "alone_s": {str(k): round(v, 4) for k, v in alone.items()},
        "diffusers_alone_per_s": round(capacity, 3),
        "rates": found,
        "best_good_per_s": best,
        "times_best_goodput": times,
    }


if __name__ == "__main__":
    main()
