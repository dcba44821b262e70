"""Training on a cluster without one: what is handed to its processes, and how they end.

Tests :mod:`mezzotint.service.cluster.training`.
"""

import asyncio
import socket
import tomllib
from types import SimpleNamespace

import pytest

from mezzotint.cli import main
from mezzotint.errors import Cancelled, InvalidRequest, WorkFailed
from mezzotint.service.cluster import training
from mezzotint.service.cluster.training import _End, _failure, _Run, as_toml
from mezzotint.train.config.config import TrainConfig


def test_a_configuration_reaches_a_process_as_it_is():
    plain = {
        "output_dir": 'runs/"a" \\ b', "kind": "lora", "base": "x", "seed": 2**63,
        "data": {"path": "täglich \U0001f34e\x7f\t", "held_out": 0.25, "channel_names": ["u", "v"]},
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
        ([_End(1, "mezzotint: gloo: reset"), _End(None, "the actor died")], WorkFailed, "no restart left"),
        ([_End(0, ""), _End(-9, "")], WorkFailed, "no restart left"),
        ([_End(0, ""), _End(1, "mezzotint: the loss is not finite")], WorkFailed, "^the loss"),
        ([_End(1, "")], WorkFailed, "ended with 1"),
    ],
)  # fmt: skip
def test_a_failed_run_says_the_cause_and_not_what_followed_from_it(ends, kind, words):
    with pytest.raises(kind, match=words):
        raise _failure(ends)


def test_after_ctrl_c_who_writes_the_checkpoint_is_waited_for(monkeypatch):
    monkeypatch.setattr(training, "_CAUSE_S", 0.01)
    run = _Run({}, 2, 1, 0, lambda event: None)

    async def ended(code, seconds):
        await asyncio.sleep(seconds)
        return _End(code, "")

    async def both(first, second):
        tasks = [asyncio.create_task(ended(first, 0.3)), asyncio.create_task(ended(second, 0.0))]
        return [end.code for end in await run._ended(tasks)]

    assert asyncio.run(both(130, 130)) == [130, 130]  # the second had nothing to write
    assert asyncio.run(both(130, -9)) == [-9]  # one that is lost leaves the others waiting for it


def test_a_machine_that_goes_is_lost_though_its_neighbour_fails_first(monkeypatch):
    monkeypatch.setattr(training, "_CAUSE_S", 0.01)
    monkeypatch.setattr(training, "_ANSWER_S", 0.05)

    def actor(answers):
        async def where():
            await asyncio.sleep(0 if answers else 60)

        return SimpleNamespace(where=SimpleNamespace(remote=where))

    async def told(seconds):
        await asyncio.sleep(seconds)
        return _End(1, "mezzotint: gloo: connection reset by peer")

    async def ended(*answers):
        run = _Run({}, 1 + len(answers), 1, 0, lambda event: None)
        run._actors = [actor(True), *map(actor, answers)]
        tasks = [asyncio.create_task(told(60 * bool(k))) for k in range(1 + len(answers))]
        return [end.is_loss for end in await run._ended(tasks)]

    assert asyncio.run(ended(False, True)) == [False, True]  # so that it starts again
    assert asyncio.run(ended(True)) == [False]


def test_ctrl_c_while_the_cluster_has_no_room_ends_at_once():
    async def stopped():
        run = _Run({}, 1, 1, 0, lambda event: None)
        never = asyncio.get_running_loop().create_future()
        call = SimpleNamespace(remote=lambda: never)
        run._actors = [SimpleNamespace(where=call, stop=call)]
        asyncio.get_running_loop().call_later(0.05, run.stop)
        async with asyncio.timeout(10):
            await run._placed()

    with pytest.raises(Cancelled, match="stopped at step 0"):
        asyncio.run(stopped())


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
