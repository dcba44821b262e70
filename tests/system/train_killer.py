"""Train in child processes and kill them with signal 9 at random moments.

Called as ``python train_killer.py CONFIG.json KILLS SEED``. Torch is loaded once;
every attempt is a fork, so that ten kills cost no ten imports.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from mezzotint.train.config.config import TrainConfig
from mezzotint.train.trainer import Trainer


def attempt(config, delay_s):
    """Train in a fork; kill it after a while. True if it ended by itself."""
    metrics = Path(config.output_dir) / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    child = os.fork()
    if child == 0:
        try:
            Trainer(config).fit()
            os._exit(0)
        finally:
            os._exit(1)
    deadline = time.monotonic() + 60
    while delay_s is not None and time.monotonic() < deadline:
        if metrics.exists() and metrics.stat().st_mtime_ns != before:
            time.sleep(delay_s)
            os.kill(child, signal.SIGKILL)
            break
        time.sleep(0.005)
    _, status = os.waitpid(child, 0)
    if status not in (0, signal.SIGKILL):
        sys.exit(f"a training process ended with status {status}")
    return status == 0


def main():
    """Kill as often as asked, then train to the end."""
    config = TrainConfig.from_dict(json.loads(Path(sys.argv[1]).read_text()))
    chance = random.Random(int(sys.argv[3]))
    kills = 0
    for _ in range(int(sys.argv[2])):
        kills += not attempt(config, chance.uniform(0.0, 0.15))
    attempt(config, None)
    print(json.dumps({"kills": kills}))


if __name__ == "__main__":
    main()
