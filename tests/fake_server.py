"""The real server process on the fake service: ``python tests/fake_server.py JSON``."""

import json
import sys
from pathlib import Path

from mezzotint.serve.config import ServeConfig
from mezzotint.serve.run import run
from mezzotint.service.config import JobsConfig, WorkerConfig
from mezzotint.service.training import TrainingRuns


def main() -> int:
    given = json.loads(sys.argv[1])
    ports = {"port": 0, "management_port": 0, "metrics_port": 0}
    training = None
    if given.get("serve", {}).get("training"):
        from mezzotint.train.config.config import TrainConfig

        training = TrainingRuns(Path(given["serve"]["runs"]), TrainConfig.from_dict)
    worker = {"factory": "mezzotint.service.fake:create_fake", "backoff_s": 0.05}
    return run(
        ServeConfig(**{**ports, **given.get("serve", {})}),
        JobsConfig(folder=given["folder"], **given.get("jobs", {})),
        WorkerConfig(**{**worker, "options": given.get("fake", {}), **given.get("worker", {})}),
        version="0.1.0",
        announce=lambda line: print(line, flush=True),
        training=training,
    )


if __name__ == "__main__":
    sys.exit(main())
