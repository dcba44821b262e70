import pytest

from mezzotint.errors import InvalidRequest, UnknownName
from mezzotint.train.config.config import TrainConfig
from mezzotint.train.config.model import ObjectiveConfig

LEAST = {"output_dir": "runs/x", "data": {"path": "pictures"}}


def write(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


def test_toml_becomes_a_configuration(tmp_path):
    path = write(
        tmp_path,
        'output_dir = "runs/x"\n[data]\npath = "p"\n[network]\nchannels = [8, 16]\n'
        '[objective]\nschedule = "linear"\ntarget = "epsilon"\n[ema]\ndecays = [0.9, 0.99]\n',
    )
    config = TrainConfig.from_toml(path)
    assert config.network.channels == (8, 16)
    assert config.objective.schedule == "linear"
    assert config.ema.decays == (0.9, 0.99)
    assert config.loop.steps == 1000


def test_plain_data_and_configuration_are_inverse():
    config = TrainConfig.from_dict({**LEAST, "loop": {"steps": 7}, "ema": {"decays": []}})
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_unknown_key_names_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'learning_rate'") as caught:
        TrainConfig.from_dict({**LEAST, "optimizer": {"learning_rat": 1e-3}})
    assert caught.value.field == "optimizer.learning_rat"


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"objective": {"target": "flow"}}, "objective.target", "belong together"),
        (
            {"objective": {"target": "epsilon", "zero_terminal_snr": True}},
            "objective.zero_terminal_snr",
            "needs target",
        ),
        (
            {"objective": {"schedule": "rectified_flow", "target": "flow", "min_snr_gamma": 5}},
            "objective.min_snr_gamma",
            "not for target",
        ),
        ({"loop": {"batch_size": 0}}, "loop.batch_size", "1 to 65536, got 0"),
        ({"loop": {"patience": 3}}, "loop.patience", "evaluate_every"),
        ({"loop": {"evaluate_every": 3}}, "data.held_out", "held_out"),
        ({"data": {"path": "p", "held_out": 0.9}}, "data.held_out", "0 to 0.5"),
        ({"data": {"path": ""}}, "data.path", "must name"),
        ({"data": {"path": "p", "fit": "buckets"}}, "data.resolution", "needs data.resolution"),
        ({"data": {"path": "p", "fit": "stretch"}}, "data.fit", "'crop'"),
        ({"kind": "lora"}, "base", "starts from"),
        ({"ema": {"decays": [1.5]}}, "ema.decays", "must be"),
        ({"network": {"kind": "dit", "hidden": 10, "heads": 4}}, "network.hidden", "multiple"),
        ({"network": {"attention": [9]}}, "network.attention", "0 to 2"),
        ({"seed": -1}, "seed", "0 to"),
    ],
)
def test_impossible_values_are_named_with_what_is_allowed(change, field, says):
    with pytest.raises(InvalidRequest, match=says) as caught:
        TrainConfig.from_dict({**LEAST, **change})
    assert caught.value.field.startswith(field)


def test_missing_parts_are_named():
    with pytest.raises(InvalidRequest, match="output_dir is needed"):
        TrainConfig.from_dict({"data": {"path": "p"}})


def test_a_file_that_is_not_toml_is_named(tmp_path):
    with pytest.raises(InvalidRequest, match="not valid TOML"):
        TrainConfig.from_toml(write(tmp_path, "a = = b"))
    with pytest.raises(InvalidRequest, match="No such file"):
        TrainConfig.from_toml(tmp_path / "absent.toml")


def test_digest_depends_on_what_decides_the_weights_alone():
    base = TrainConfig.from_dict(LEAST)
    silent = {"output_dir": "elsewhere", "samples": {"every": 5}, "checkpoint": {"every": 3}}
    assert TrainConfig.from_dict({**LEAST, **silent}).digest == base.digest
    assert TrainConfig.from_dict({**LEAST, "loop": {"steps": 9}}).digest == base.digest
    assert TrainConfig.from_dict({**LEAST, "seed": 1}).digest != base.digest
    decayed = {**LEAST, "optimizer": {"decay": "cosine"}}
    longer = {**decayed, "loop": {"steps": 9}}
    assert TrainConfig.from_dict(decayed).digest != TrainConfig.from_dict(longer).digest


def test_default_objective_is_one_that_can_be_sampled():
    assert (ObjectiveConfig().schedule, ObjectiveConfig().target) == ("cosine", "v")
