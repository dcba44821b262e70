import dataclasses
import json

import pytest

from mezzotint.images.metadata import build_recipe, canonical_json, digest_recipe, make_infotext
from mezzotint.models.spec import ModelSpec
from mezzotint.planning.abilities import Abilities
from mezzotint.planning.planner import plan
from mezzotint.request import GenerationRequest, LatentInput, Output
from mezzotint.service.finishing.recipes import Recipes
from mezzotint.service.requests import standalone
from mezzotint.types import Size

GAN = ModelSpec(
    name="dcgan", digest="b" * 64, family="gan", latent_channels=100, fixed_size=True,
    default_size=Size(64, 64), takes_prompt=False, takes_negative_prompt=False,
    takes_guidance=False, takes_image=False, has_steps=False, num_classes=5,
)  # fmt: skip
SD = ModelSpec(name="sd15", digest="a" * 64, family="sd", prediction_type="epsilon")
HERE = {"device": "cpu", "versions": {"torch": "2"}}
ABILITIES = Abilities(environment='{"device":"cpu","dtype":"float32"}')


def written_alone(request, one):
    """Write a recipe from the request, as if no other had been written before."""
    environment = {**HERE, "dtype": "float32", "model_digest": one.model_digest}
    recipe = build_recipe(
        standalone(request, one).to_dict(),
        resolved={"model": one.model, "width": one.size.width, "height": one.size.height},
        environment=environment,
    )
    infotext = make_infotext(recipe, has_steps=bool(one.steps), version="mezzotint 1")
    return recipe, infotext, canonical_json(recipe)


@pytest.mark.parametrize("spec", [GAN, SD])
@pytest.mark.parametrize("latent", [LatentInput(), LatentInput(truncation=0.7)])
def test_a_filled_in_seed_gives_the_recipe_that_writing_gives(spec, latent):
    recipes = Recipes(HERE, "mezzotint 1")
    for seed in (0, 7, 2**31, 2**53, 2**53 + 1, 2**64 - 1):
        request = GenerationRequest(
            model=spec.name, seed=seed, latent=latent, output=Output(format="jpeg", quality=95),
            prompt="a pear" if spec is SD else "",
        )  # fmt: skip
        one = plan(request, spec, ABILITIES).plans[0]
        spelt = recipes.write(request, one)
        assert (spelt.recipe, spelt.infotext, spelt.text) == written_alone(request, one)
        assert json.loads(spelt.text)["digest"] == digest_recipe(spelt.recipe["request"])


def test_a_recipe_that_somebody_changes_changes_no_other():
    recipes = Recipes(HERE, "mezzotint 1")
    request = GenerationRequest(model="dcgan", seed=1)
    one = plan(request, GAN, ABILITIES).plans[0]
    first = recipes.write(request, one)
    first.recipe["request"]["model"] = "mine"
    first.recipe["environment"]["device"] = "abacus"
    again = recipes.write(request, one)
    assert again.recipe["request"]["model"] == "dcgan"
    assert again.recipe["environment"]["device"] == "cpu"
    assert again.text == first.text


def test_environments_of_two_models_are_their_own():
    recipes = Recipes(HERE, "mezzotint 1")
    request = GenerationRequest(model="dcgan", seed=1)
    plans = [
        plan(request, dataclasses.replace(GAN, digest=letter * 64), ABILITIES).plans[0]
        for letter in "bc"
    ]
    digests = [recipes.write(request, p).recipe["environment"]["model_digest"] for p in plans]
    assert digests == ["b" * 64, "c" * 64]
