import json
import math

import pytest
import torch
from tests.unit.train.making import picture_config, points_config, save_points, train, weights

from mezzotint.errors import Cancelled, InvalidRequest, WorkFailed
from mezzotint.train import trainer as trainer_module
from mezzotint.train.config.run import OptimizerConfig
from mezzotint.train.state import learning_rate
from mezzotint.train.stepping import Stepper
from mezzotint.train.tasks.diffusion import DiffusionTask
from mezzotint.train.trainer import Trainer


def same(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def events(trainer_run_dir):
    return [
        json.loads(line) for line in (trainer_run_dir / "metrics.jsonl").read_text().splitlines()
    ]


class Killed(BaseException):
    """A stand-in for a kill inside one process."""


def test_same_configuration_and_seed_give_the_same_weights_bit_for_bit(tmp_path):
    first = weights(train(points_config(tmp_path, "a")))
    torch.randn(7)  # the global stream is nobody's business
    second = weights(train(points_config(tmp_path, "b")))
    other = weights(train(points_config(tmp_path, "c", seed=1)))
    assert same(first, second)
    assert not same(first, other)


def test_the_global_random_stream_is_left_as_it_was(tmp_path):
    before = torch.get_rng_state()
    train(points_config(tmp_path, network={"dropout": 0.2}))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("step", [1, 4, 5, 11])
def test_a_run_killed_at_any_step_goes_on_to_the_same_weights(tmp_path, step):
    changes = {
        "network": {"dropout": 0.1},
        "loop": {"accumulate": 2},
        "ema": {"decays": [0.9, 0.5]},
    }
    whole = weights(train(points_config(tmp_path, "whole", **changes)))
    config = points_config(tmp_path, "killed", **changes)

    def kill(event):
        if event["event"] == "step" and event["step"] >= step:
            raise Killed

    with pytest.raises(Killed):
        train(
            points_config(
                tmp_path, "killed", **{**changes, "loop": {"accumulate": 2, "log_every": 1}}
            ),
            on_event=kill,
        )
    assert same(weights(train(config)), whole)


def test_metrics_of_a_resumed_run_read_as_if_it_had_never_stopped(tmp_path):
    def kill(event):
        if event["event"] == "step" and event["step"] == 8:
            raise Killed

    config = points_config(tmp_path)
    with pytest.raises(Killed):
        train(config, on_event=kill)
    train(config)
    steps = [e["step"] for e in events(tmp_path / "run") if e["event"] == "step"]
    assert steps == [4, 8, 12]


def test_a_stopped_run_keeps_what_it_learned(tmp_path):
    config = points_config(tmp_path, "stopped", checkpoint={"every": 0})
    trainer = Trainer(config, on_event=lambda e: trainer.stop() if e["event"] == "step" else None)
    with pytest.raises(Cancelled, match="stopped at step 4"):
        trainer.fit()
    whole = weights(train(points_config(tmp_path, "whole")))
    assert same(weights(train(config)), whole)


def test_a_finished_run_goes_on_when_it_is_given_more_steps(tmp_path):
    train(points_config(tmp_path, "a", loop={"steps": 6}))
    longer = weights(train(points_config(tmp_path, "a", loop={"steps": 12})))
    assert same(longer, weights(train(points_config(tmp_path, "b", loop={"steps": 12}))))


def test_resume_with_another_configuration_names_the_field(tmp_path):
    train(points_config(tmp_path))
    with pytest.raises(InvalidRequest, match=r"network\.hidden was 16 and is 24"):
        Trainer(points_config(tmp_path, network={"hidden": 24})).fit()
    with pytest.raises(InvalidRequest, match="already holds a run at step 12"):
        Trainer(points_config(tmp_path)).fit(resume=False)


def test_accumulated_gradients_equal_those_of_one_large_batch(tmp_path):
    small = points_config(tmp_path, "small", loop={"batch_size": 8, "accumulate": 4, "steps": 1})
    trainer = Trainer(small)
    state = trainer._prepare(resume=True)
    plan = trainer._batch_plan()
    stepper = Stepper(small, trainer._data[0], state, plan=plan, store=None, progress=None)
    task = state.task
    grads = []
    for number in range(4):
        batch = stepper.batch(plan.batch(number), number)
        generator = trainer_module.derive(0, "noise", "denoiser", number)
        grads.append(
            torch.autograd.grad(
                task.loss("denoiser", state.networks, batch, generator)[0],
                [p for p in task.modules.parameters() if p.requires_grad],
            )
        )
    wanted = [torch.stack(g).mean(0) for g in zip(*grads, strict=True)]
    seen = []
    optimizer = state.optimizers["denoiser"]
    step = optimizer.step
    optimizer.step = lambda: (
        seen.extend(p.grad.clone() for g in optimizer.param_groups for p in g["params"]),
        step(),
    )
    trainer.fit()
    norm = math.sqrt(sum(float((g**2).sum()) for g in wanted))
    scale = min(1.0, 1.0 / (norm + 1e-6))  # clip_norm = 1
    for ours, theirs in zip(seen, wanted, strict=True):
        torch.testing.assert_close(ours, theirs * scale, rtol=1e-4, atol=1e-6)


def test_bad_steps_are_left_out_and_several_lead_back(tmp_path, monkeypatch):
    loss = DiffusionTask.loss
    calls = {"n": 0}

    def broken(self, group, networks, batch, generator):
        calls["n"] += 1
        value, more = loss(self, group, networks, batch, generator)
        bad = calls["n"] == 3 or 9 <= calls["n"] < 12
        return (value * math.nan if bad else value), more

    monkeypatch.setattr(DiffusionTask, "loss", broken)
    trainer = Trainer(points_config(tmp_path))
    result = trainer.fit()
    told = [e["event"] for e in events(tmp_path / "run")]
    assert told.count("skipped") == 4
    assert told.count("rollback") == 1
    assert (result.steps, result.rollbacks) == (12, 1)
    assert trainer._state.counters.rate_scale == 0.5
    assert all(torch.isfinite(v).all() for v in weights(trainer).values() if v.is_floating_point())
    back = next(e for e in events(tmp_path / "run") if e["event"] == "rollback")
    assert (back["step"], back["from_step"]) == (4, 7)


def test_a_run_that_never_recovers_fails_with_advice(tmp_path, monkeypatch):
    loss = DiffusionTask.loss

    def broken(self, *inputs):
        value, more = loss(self, *inputs)
        return value * math.inf, more

    monkeypatch.setattr(DiffusionTask, "loss", broken)
    with pytest.raises(WorkFailed, match=r"after 2 rollbacks; lower optimizer\.learning_rate"):
        train(points_config(tmp_path, loop={"max_rollbacks": 2}))


def test_held_out_loss_ends_a_run_that_no_longer_improves(tmp_path):
    config = points_config(
        tmp_path, data={"held_out": 0.25}, optimizer={"learning_rate": 1e-9},
        loop={"steps": 100, "evaluate_every": 2, "patience": 3}, ema={"decays": []},
    )  # fmt: skip
    result = Trainer(config).fit()
    assert result.stopped_early
    assert result.steps < 100
    losses = [e["loss"] for e in events(tmp_path / "run") if e["event"] == "held_out"]
    assert result.held_out_loss == min(losses)


def test_a_disk_that_is_full_is_told_and_training_goes_on(tmp_path, monkeypatch):
    save = trainer_module.CheckpointStore.save
    monkeypatch.setattr(
        trainer_module.CheckpointStore, "save",
        lambda self, step, *rest: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        if step == 8 else save(self, step, *rest),
    )  # fmt: skip
    result = Trainer(points_config(tmp_path)).fit()
    assert result.steps == 12
    warned = [e for e in events(tmp_path / "run") if e["event"] == "warning"]
    assert "No space left on device" in warned[0]["message"]


def test_an_export_that_fails_leaves_the_model_before(tmp_path, monkeypatch):
    train(points_config(tmp_path, loop={"steps": 4}))
    before = (tmp_path / "run" / "network" / "config.json").read_bytes()

    def full(*inputs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DiffusionTask, "export", full)
    with pytest.raises(WorkFailed, match="make room and run again"):
        train(points_config(tmp_path, loop={"steps": 8}))
    assert (tmp_path / "run" / "network" / "config.json").read_bytes() == before
    assert not list((tmp_path / "run").glob(".export*"))


def test_learning_rate_follows_its_course():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4, decay="cosine")
    assert [learning_rate(config, k, 104) for k in (0, 3)] == [0.25, 1.0]
    assert learning_rate(config, 54, 104) == pytest.approx(0.5)
    assert learning_rate(config, 104, 104) == pytest.approx(0.0)
    linear = OptimizerConfig(learning_rate=1.0, decay="linear")
    assert learning_rate(linear, 25, 100) == 0.75


def test_devices_and_precisions_that_are_not_there_are_named(tmp_path):
    if not torch.cuda.is_available():
        with pytest.raises(InvalidRequest, match="no CUDA device"):
            Trainer(points_config(tmp_path, loop={"device": "cuda"})).fit()
    with pytest.raises(InvalidRequest, match='"fp16" needs CUDA'):
        Trainer(points_config(tmp_path, loop={"precision": "fp16"})).fit()


def test_half_precision_and_float32_runs_live_in_one_process(tmp_path):
    train(points_config(tmp_path, "bf16", loop={"precision": "bf16", "steps": 2}))
    train(points_config(tmp_path, "f32", loop={"steps": 2}))
    found = weights(train(points_config(tmp_path, "again", loop={"precision": "bf16", "steps": 2})))
    assert all(v.dtype == torch.float32 for v in found.values())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"network": {"kind": "mlp"}}, "for pixels must be one of unet2d"),
        ({"network": {"kind": "unet2d_condition"}}, "belong together"),
        ({"network": {"channels": [8] * 6}}, "must be a multiple of 32 for this network, got 16"),
        ({"network": {"vae": "absent"}}, "holds no autoencoder"),
        ({"kind": "lora", "base": "/absent"}, "absent"),
        ({"kind": "gan", "data": {"resolution": 12, "fit": "crop"}}, "power of two"),
    ],
)
def test_networks_that_do_not_fit_are_named_before_training(tmp_path, changes, says):
    config = picture_config(tmp_path, **changes)
    with pytest.raises(Exception, match=says) as caught:
        Trainer(config).fit()
    assert isinstance(caught.value, ValueError)
    assert not (tmp_path / "run").exists()


def test_the_report_is_told_and_kept(tmp_path):
    save_points(tmp_path)
    trainer = Trainer(points_config(tmp_path))
    assert trainer.check().lines() == ["data: 256 points (256 of 2)"]
    assert not (tmp_path / "run").exists()
    trainer.fit()
    assert json.loads((tmp_path / "run" / "data_report.json").read_text())["count"] == 256


def test_a_run_folder_opens_again_wherever_it_was_moved(tmp_path):
    first = train(points_config(tmp_path))
    (tmp_path / "run").rename(tmp_path / "moved")
    second = Trainer.open(tmp_path / "moved")
    second.fit()
    assert same(weights(first), weights(second))
    with pytest.raises(InvalidRequest, match="is no run folder"):
        Trainer.open(tmp_path)
