"""Train as one process of ``torchrun``: ``train_process.py CONFIG.json``; 2 if it is refused.

Beside the run folder each process leaves ``NAME.RANK.held``: the numbers in the weights of the
network that it holds itself.
"""

import json
import os
import sys
from pathlib import Path

from mezzotint.errors import InvalidRequest
from mezzotint.train.config.config import TrainConfig
from mezzotint.train.sharding import local
from mezzotint.train.trainer import Trainer


def main() -> int:
    config = TrainConfig.from_dict(json.loads(Path(sys.argv[1]).read_text()))
    trainer = Trainer(config)
    try:
        trainer.fit()
    except InvalidRequest as error:
        print(error, file=sys.stderr)
        return 2
    ground = getattr(trainer._state.task, "ground", None)
    if ground is not None:
        held = sum(local(p).numel() for p in ground.network.parameters())
        Path(f"{config.output_dir}.{os.environ['RANK']}.held").write_text(str(held))
    return 0


if __name__ == "__main__":
    sys.exit(main())
