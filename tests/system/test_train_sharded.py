"""A LoRA whose base is cut over two processes learns what it learns whole in one.

Tests :mod:`mezzotint.train.sharding` through ``torchrun``, on SDXL, SD3 and FLUX with tiny
networks of diffusers' own classes.
"""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests import tiny
from tests.system.test_train_processes import LOOP, distance, end, events, start, weights
from tests.unit.train.making import picture_config, save_pictures, train

from mezzotint.errors import InvalidRequest
from mezzotint.models.formats.folders import load_pipeline
from mezzotint.train.tasks.lora import LORA_FILE

STEPS = 6
BLOCKS = {"sdxl": "unet", "sd3": "transformer", "flux": "transformer"}


def lora_config(tmp_path, family, name, *, loop, **changes):
    save_pictures(tmp_path / "pictures", count=12, side=64)
    room = {
        "kind": "lora",
        "base": str(tiny.folder(family)),
        "data": {"resolution": 64, "held_out": 0.42},  # 5: three batches for two processes
        "lora": {"rank": 3, "dropout": 0.1},  # three rows over two processes: one share is shorter
        "optimizer": {"learning_rate": 0.01},
        "ema": {"decays": [0.9, 0.5]},
        "loop": {**LOOP, "batch_size": 2, "steps": STEPS, "evaluate_every": 3, **loop},
    }
    return picture_config(tmp_path, name, **{**room, **changes})


def is_the_same_run(first, second, most=1e-3):
    """Whether two runs lost the same, and learned and wrote the same LoRA."""
    for kind in ("step", "held_out"):
        ours, theirs = events(first, kind), events(second, kind)
        assert [e["step"] for e in ours] == [e["step"] for e in theirs]
        assert [e["loss"] for e in ours] == pytest.approx([e["loss"] for e in theirs], rel=1e-4)
    assert distance(weights(second), weights(first)) < most
    files = [load_file(Path(config.output_dir, LORA_FILE)) for config in (second, first)]
    assert distance(*files) < most


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_two_processes_with_half_the_base_each_are_one_with_the_whole(tmp_path, family):
    one = lora_config(tmp_path, family, "one", loop={"accumulate": 2})
    extra = {"samples": {"every": 3, "count": 1, "num_inference_steps": 1, "prompts": ["a cat"]}}
    two = lora_config(
        tmp_path, family, "two", loop={"shard": True, "gradient_checkpointing": family == "sd3"},
        **extra,
    )  # fmt: skip
    running = start(tmp_path, two, 2)
    trainer = train(one)
    code, said = end(running)
    assert code == 0, said[-3000:]
    is_the_same_run(one, two)
    whole = sum(p.numel() for p in trainer._state.task.ground.network.parameters())
    held = [int(Path(f"{two.output_dir}.{rank}.held").read_text()) for rank in range(2)]
    assert sum(held) == whole
    assert max(held) < 0.55 * whole
    drawn = load_pipeline(Path(two.output_dir))  # an ordinary model, as the other's
    assert drawn.networks["denoiser"].module is not None
    assert {path.name for path in Path(two.output_dir, "ema").iterdir()} == {"0.5"}


@pytest.mark.slow
def test_a_sharded_run_goes_on_in_one_process_and_one_of_one_process_sharded(tmp_path):
    def made(name, **loop):
        return lora_config(tmp_path, "flux", name, loop=loop)

    train(made("whole", accumulate=2))
    whole = made("whole", accumulate=2)
    for name, first, then in (
        ("falls", {"shard": True, "steps": 3}, {"shard": True, "accumulate": 1}),
        ("grows", {"accumulate": 2, "steps": 3}, {"shard": True, "accumulate": 2}),
    ):
        before, after = made(name, **first), made(name, **then)
        if name == "falls":
            code, said = end(start(tmp_path, before, 2))
            assert code == 0, said[-3000:]
            train(after)
            assert "holds the base whole" in events(after, "warning")[0]["message"]
        else:
            train(before)
            code, said = end(start(tmp_path, after, 2))
            assert code == 0, said[-3000:]
        is_the_same_run(whole, after)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "diffusion", "base": ""}, 'kind "lora" alone has, got "diffusion"'),
        ({"loop": {"shard": True, "precision": "fp16"}}, 'needs loop.precision "no" or "bf16"'),
    ],
)
def test_what_cannot_be_sharded_is_refused(tmp_path, changes, words):
    plain = {
        "output_dir": str(tmp_path / "run"), "kind": "lora", "base": "x",
        "data": {"path": "pictures"}, "loop": {"shard": True},
    }  # fmt: skip
    from mezzotint.train.config.config import TrainConfig

    with pytest.raises(InvalidRequest, match=words):
        TrainConfig.from_dict(json.loads(json.dumps({**plain, **changes})))
