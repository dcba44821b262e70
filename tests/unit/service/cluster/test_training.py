"""Training on a cluster without one: what is handed to its processes, and how they end.

Tests :mod:`mezzotint.service.cluster.training`.
"""

import socket
import tomllib

import pytest

from mezzotint.cli import main
from mezzotint.errors import InvalidRequest, WorkFailed
from mezzotint.service.cluster.training import _End, _failure, as_toml
from mezzotint.train.config.config import TrainConfig


def test_a_configuration_reaches_a_process_as_it_is():
    plain = {
        "output_dir": 'runs/"a" \\ b', "kind": "lora", "base": "x", "seed": 2**63,
        "data": {"path": "täglich", "held_out": 0.25, "channel_names": ["u", "v"]},
        "optimizer": {"learning_rate": 1e-9, "betas": [0.5, 0.9]},
        "ema": {"decays": []}, "loop": {"shard": True, "steps": 3},
    }  # fmt: skip
    config = TrainConfig.from_dict(plain)
    read = tomllib.loads(as_toml(config.to_dict()))
    assert TrainConfig.from_dict(read) == config


@pytest.mark.parametrize(
    ("ends", "kind", "words"),
    [
        ([_End(1, "mezzotint: gloo: reset"), _End(2, "mezzotint: steps must be")],
         InvalidRequest, "^steps must be"),
        ([_End(1, "mezzotint: gloo: reset"), _End(None, "the actor died")], WorkFailed, "lost again"),
        ([_End(0, ""), _End(-9, "")], WorkFailed, "lost again"),
        ([_End(0, ""), _End(1, "mezzotint: the loss is not finite")], WorkFailed, "^the loss"),
        ([_End(1, "")], WorkFailed, "ended with 1"),
    ],
)  # fmt: skip
def test_a_failed_run_says_the_cause_and_not_what_followed_from_it(ends, kind, words):
    with pytest.raises(kind, match=words):
        raise _failure(ends)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--processes", "0"], "--processes: must be 1 to 10000, got 0"),
        (["--process-gpus", "2"], "--process-gpus: must be 0 to 1, got 2"),
        (["--processes", "2x"], "--processes"),
    ],
)
def test_numbers_of_processes_are_checked_first(tmp_path, capsys, flags, said):
    file = tmp_path / "run.toml"
    file.write_text('output_dir = "run"\ndata = { path = "points.npy" }\n')
    assert main._run(["train", str(file), "--ray", "127.0.0.1:1", *flags]) == 2
    assert said in capsys.readouterr().err


def test_a_head_that_does_not_answer_is_one_sentence_and_1(tmp_path, capsys):
    pytest.importorskip("ray")
    file = tmp_path / "run.toml"
    file.write_text('output_dir = "run"\ndata = { path = "points.npy" }\n')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        assert main._run(["train", str(file), "--ray", address]) == 1
    assert capsys.readouterr().err.startswith(f"mezzotint: no Ray head answers at {address} (")
