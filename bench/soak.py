"""Soak: 200 connections at 1.2 times what the server can do, for minutes.

Starts ``mezzotint serve``, measures what it draws with its queue full, then sends 1.2
times that rate over 200 connections. Every answer must be 200 or 429 with Retry-After,
memory and open files must stay bounded, and the ETA that a request was given when it
was admitted must hold: p95 of (time taken / ETA) at most 1.5.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from bench._report import write
from bench._servers import free_ports, wait_for

BODY = {"model": "plate", "prompt": "a red apple", "width": 64, "height": 64}
STEPS = (2, 3, 4, 6)


@dataclass
class Seen:
    """What the clients were told."""

    statuses: Counter[str] = field(default_factory=Counter)
    took: list[tuple[float, float]] = field(default_factory=list)  # seconds, seconds promised
    faults: list[str] = field(default_factory=list)


def start(folder: Path, waiting: int) -> tuple[subprocess.Popen[bytes], int]:
    """Start the server with a queue of ``waiting`` pictures."""
    ports = free_ports(3)
    names = ("--port", "--management-port", "--metrics-port")
    flags = [text for pair in zip(names, map(str, ports), strict=True) for text in pair]
    command = [str(Path(sys.executable).with_name("mezzotint")), "serve", *flags]
    with (folder / "mezzotint.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--models", "plate"], stdout=log, stderr=log, start_new_session=True,
            env={
                **os.environ, "MEZZOTINT_HOME": str(folder / "home"),
                "MEZZOTINT_ENGINE__MAX_WAITING": str(waiting), "MEZZOTINT_LOG__LEVEL": "warning",
            },
        )  # fmt: skip
    wait_for(f"http://127.0.0.1:{ports[0]}/health/ready", '"ready":true', process)
    return process, ports[0]


async def ask(port: int, seed: int, seen: Seen) -> float:
    """Send one request and follow its events; return the seconds it wants us to wait."""
    body = json.dumps({**BODY, "seed": seed, "num_inference_steps": STEPS[seed % 4]}).encode()
    head = (
        f"POST /v1/generations HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
        "content-type: application/json\r\naccept: text/event-stream\r\nconnection: close\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    try:
        began = time.perf_counter()
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        status = answer.split()[1]
        seen.statuses[status] += 1
        if status != "200":
            after = answer.partition("retry-after: ")[2].partition("\r\n")[0]
            if status != "429" or not after.isdecimal():
                seen.faults.append(answer[:300])
            return float(after or 1)
        promised, ended = None, False
        while line := await reader.readline():
            if line.startswith(b"event: finished"):
                ended = True
            if line.startswith(b"data: ") and promised is None:
                promised = json.loads(line[6:])["eta_s"]
            if ended:
                break
        if not ended:
            seen.faults.append("the stream ended without an ending")
        seen.took.append((time.perf_counter() - began, float(promised or 0.0)))
        return 0.0
    finally:
        writer.close()


async def closed(port: int, connections: int, seconds: float, first: int) -> float:
    """Keep ``connections`` requests under way; return pictures per second."""
    seen, until, seeds = Seen(), time.perf_counter() + seconds, iter(range(first, 1 << 60))

    async def client() -> None:
        while time.perf_counter() < until:
            wait = await ask(port, next(seeds), seen)
            await asyncio.sleep(min(wait, 1.0))

    await asyncio.gather(*(client() for _ in range(connections)))
    return len(seen.took) / (time.perf_counter() - until + seconds)


async def overload(
    port: int, rate: float, given: argparse.Namespace, first: int, watch: Any
) -> Seen:
    """Send requests at ``rate`` a second, as many at once as there are connections."""
    seen, free, seconds = Seen(), asyncio.Semaphore(given.connections), given.seconds
    chance, seed, tasks = random.Random(5), first, set[asyncio.Task[None]]()
    began = time.perf_counter()
    due, told = began, began

    async def one(number: int) -> None:
        try:
            wait = await ask(port, number, seen)
            await asyncio.sleep(min(wait, 5.0))  # a polite client does as it is told
        except (OSError, asyncio.IncompleteReadError) as error:
            seen.faults.append(repr(error))
        finally:
            free.release()

    while (now := time.perf_counter()) < began + seconds:
        if now > told:
            told = now + 5
            watch()
        due += chance.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await free.acquire()
        seed += 1
        task = asyncio.create_task(one(seed))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return seen


def main() -> int:
    """Run and write ``bench/results/soak.json``; 1 if a promise was broken."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--waiting", type=int, default=96)
    parser.add_argument("--calibrate", type=float, default=30.0)
    parser.add_argument("--no-write", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        process, port = start(Path(name), given.waiting)
        try:
            report = soak(process.pid, port, given)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            code = process.wait(90)
    report["exit_code_after_sigterm"] = code
    print(json.dumps(report, indent=2))
    if not given.no_write:
        write("soak", report)
    return 0 if report["kept"] and code == 0 else 1


def soak(pid: int, port: int, given: argparse.Namespace) -> dict[str, Any]:
    """Measure the capacity, then ask for 1.2 times as much."""
    asyncio.run(closed(port, 16, given.calibrate / 3, 1_000_000))
    capacity = asyncio.run(closed(port, given.waiting, given.calibrate, 2_000_000))
    server = psutil.Process(pid)
    everyone = [server, *server.children(recursive=True)]
    samples: list[tuple[list[int], list[int]]] = []

    def watch() -> None:
        samples.append(
            ([p.memory_info().rss >> 20 for p in everyone], [p.num_fds() for p in everyone])
        )

    rate = 1.2 * capacity
    seen = asyncio.run(overload(port, rate, given, 3_000_000, watch))
    time.sleep(2.0)
    watch()
    health = httpx.get(f"http://127.0.0.1:{port}/health/ready").json()
    ratios = sorted(took / max(promised, 1e-3) for took, promised in seen.took)
    early = [sum(memory) for memory, _ in samples[: max(len(samples) // 5, 1)]]
    late = [sum(memory) for memory, _ in samples[-max(len(samples) // 5, 1) :]]
    p95 = ratios[int(len(ratios) * 0.95)]
    kept = {
        "only 200 and 429": set(seen.statuses) <= {"200", "429"} and not seen.faults,
        "p95 within 1.5 of the ETA": p95 <= 1.5,
        "memory bounded": statistics.median(late) < 1.15 * statistics.median(early) + 32,
        "files closed": max(sum(f) for _, f in samples[-1:]) <= sum(samples[0][1]) + 8,
        "nothing restarted": health["restarts"] == 0 and health["queue"] == 0,
    }
    return {
        "command": f"mezzotint bench soak --seconds {given.seconds:g}",
        "capacity_per_s": round(capacity, 2),
        "asked_per_s": round(rate, 2),
        "answered_per_s": round(seen.statuses["200"] / given.seconds, 2),
        "statuses": dict(seen.statuses),
        "faults": seen.faults[:5],
        "took_over_eta": {
            "p05": round(ratios[int(len(ratios) * 0.05)], 3),
            "median": round(statistics.median(ratios), 3),
            "p95": round(p95, 3),
        },
        "took_s": {
            "median": round(statistics.median(t for t, _ in seen.took), 3),
            "p95": round(sorted(t for t, _ in seen.took)[int(len(seen.took) * 0.95)], 3),
        },
        "memory_mib": {"first": samples[0][0], "last": samples[-1][0]},
        "open_files": {"first": samples[0][1], "last": samples[-1][1]},
        "promises": kept,
        "kept": all(kept.values()),
    }


if __name__ == "__main__":
    sys.exit(main())
