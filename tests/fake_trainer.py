"""Stands for ``mezzotint train``: ``python fake_trainer.py CONFIG --output-dir=RUN``.

It writes events as the trainer does, ends at ``steps`` or on an interrupt with a
checkpoint, and fails where ``fails`` says with what. ``environment`` names a file that is
given its variables.
"""

import json
import os
import signal
import sys
import time
import tomllib
from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n"


def main() -> int:
    config, where = Path(sys.argv[1]), Path(sys.argv[2].removeprefix("--output-dir="))
    asked = tomllib.loads(config.read_text())
    print(" ".join(sys.argv[1:]), file=sys.stderr, flush=True)
    if "environment" in asked:
        (where / asked["environment"]).write_text(json.dumps(dict(os.environ)))
    if "fails" in asked:
        print(f"mezzotint: {asked['fails']}", file=sys.stderr, flush=True)
        return 2
    stopped: list[int] = []
    signal.signal(
        signal.SIGINT, lambda number, _: None if asked.get("deaf") else stopped.append(number)
    )
    steps, at = int(asked.get("steps", 3)), 0
    (where / "samples").mkdir(exist_ok=True)
    (where / "data_report.json").write_text(json.dumps({"kind": "pictures", "count": 7}))
    (where / "samples" / "data.png").write_bytes(PNG + b"data")
    with (where / "metrics.jsonl").open("a", encoding="utf-8") as stream:

        def tell(event: str, **values: object) -> None:
            stream.write(json.dumps({"event": event, "step": at, **values}) + "\n")
            stream.flush()

        tell("started", steps=steps)
        while at < steps and not stopped:
            at += 1
            tell("step", steps=steps, loss=1 / at, eta_s=float(steps - at), steps_per_s=50.0)
            tell("held_out", loss=2 / at)
            time.sleep(0.02)
        (where / "checkpoints" / f"step-{at:08d}").mkdir(parents=True, exist_ok=True)
        tell("checkpoint")
        if stopped:
            print("mezzotint: interrupted", file=sys.stderr, flush=True)
            return 130
        tell("finished", loss=1 / max(at, 1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
