"""Train as one process of ``torchrun``: ``train_process.py CONFIG.json``; 2 if it is refused."""

import json
import sys
from pathlib import Path

from mezzotint.errors import InvalidRequest
from mezzotint.train.config.config import TrainConfig
from mezzotint.train.trainer import Trainer


def main() -> int:
    config = TrainConfig.from_dict(json.loads(Path(sys.argv[1]).read_text()))
    try:
        Trainer(config).fit()
    except InvalidRequest as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
