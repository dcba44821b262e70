"""A model with a placement of its own: recipes say so, and its neighbours are not touched."""

import dataclasses
import json

import pytest
from tests import tiny
from tests.unit.planning.test_tiers import SPEC

import mezzotint as mz
from mezzotint.models.config import ModelsConfig
from mezzotint.models.families.gan import GanConfig, build_generator, write_gan
from mezzotint.models.store.store import ModelStore
from mezzotint.planning.abilities import Abilities
from mezzotint.planning.planner import plan


@pytest.mark.parametrize(
    ("common", "expected"),
    [
        ("", {"dtype": "bfloat16", "placement": {"channels_last": True}}),
        (
            '{"cpu": "AVX2", "dtype": "float32", "placement": {"vae_slicing": true}}',
            {
                "cpu": "AVX2",
                "dtype": "bfloat16",
                "placement": {"channels_last": True, "vae_slicing": True},
            },
        ),
    ],
)
def test_a_plan_depends_on_the_models_own_placement(common, expected):

    own = dataclasses.replace(SPEC, placement={"dtype": "bfloat16", "channels_last": True})
    request = mz.GenerationRequest(model="m", prompt="a", seed=1)
    planned = plan(request, own, Abilities(environment=common)).plans[0]
    assert json.loads(planned.environment) == expected
    assert plan(request, SPEC, Abilities(environment=common)).plans[0].environment == common


def test_recipes_name_the_placement_of_their_model(tmp_path):
    config = GanConfig(latent_size=25, image_size=16, channels=(16, 8), licence="MIT")
    with tiny.seeded(5):
        start = build_generator(config).state_dict()
    # as they begin the pictures are all but grey, and no rounding shows
    weights = {n: w * 6 if w.ndim > 1 else w for n, w in start.items()}
    folder = write_gan(tmp_path / "gan", config, weights)
    store = ModelStore(ModelsConfig(home=str(tmp_path)))
    store.add("plain", folder)
    store.add("half", folder, placement={"dtype": "bfloat16", "channels_last": True})
    with mz.Engine(device="cpu", home=tmp_path, backend="torch") as engine:
        drawn = {
            name: engine.generate(mz.GenerationRequest(model=name, seed=3)).images[0]
            for name in ("plain", "half")
        }
    plain, half = (drawn[name].recipe["environment"] for name in ("plain", "half"))
    assert (plain["dtype"], half["dtype"]) == ("float32", "bfloat16")
    assert half["placement"] == {"channels_last": True}
    assert "placement" not in plain
    assert plain["model_digest"] != half["model_digest"]
    apart = abs(drawn["plain"].pixels.astype(int) - drawn["half"].pixels)
    assert 0 < apart.max() <= 16  # eight bits of mantissa, and no more
