"""What each family may be asked for, and what a bare folder of it means where nothing is said."""

import pytest
from tests import tiny, tiny_flows

from mezzotint.models.formats.folders import load_pipeline
from mezzotint.planning.abilities import Abilities
from mezzotint.planning.model_abilities import ALL_TECHNIQUES, describe_abilities
from mezzotint.planning.planner import plan
from mezzotint.request import GenerationRequest

PROMPTED = ("sd1", "sdxl", "sd3", "flux", *tiny_flows.BUILDERS)
WORN = {
    "controls": {"sd1", "sdxl", "sd3", "flux", "qwen_image"},
    "image_prompts": {"sd1", "sdxl", "sd3", "flux"},
    "embeddings": {"sd1", "sdxl"},
    "loras": set(PROMPTED),
}
"""Families that wear each kind of adapter."""
EDITS = ("flux2_dev", "flux2_klein", "qwen_image_21")
DRAWS = {
    # steps, guidance, scheduler: of the family's pipeline or its authors' model card
    "sd1": (30, 7.5, "plms"),
    "sdxl": (30, 5.0, "euler"),
    "sd3": (28, 7.0, "flow_euler"),
    "flux": (28, 3.5, "flow_euler"),
    "chroma": (40, 3.0, "flow_euler"),
    "flux2_dev": (50, 4.0, "flow_euler"),
    "flux2_klein": (50, 4.0, "flow_euler"),
    "qwen_image": (50, 4.0, "flow_euler"),
    "qwen_image_21": (40, 1.0, "flow_euler"),
    "z_image": (50, 5.0, "flow_euler"),
}


@pytest.mark.parametrize("name", PROMPTED)
def test_a_model_tells_which_adapters_schedulers_and_fields_it_takes(name):
    spec = load_pipeline(tiny.folder(name)).spec
    told, is_flow = describe_abilities(spec, ALL_TECHNIQUES), spec.prediction_type == "flow"
    worn = {kind for kind, families in WORN.items() if name in families}
    assert worn == WORN.keys() & set(told["techniques"])
    assert worn == WORN.keys() & set(told["fields"])
    assert ("flow_euler" in told["schedulers"]) == is_flow
    assert ("dpmpp_2m" in told["schedulers"]) != is_flow
    assert ("image_references" in told["fields"]) == (name in EDITS)
    assert {"prompt", "seed", "image", "mask", "regions", "guidance_scale"} <= set(told["fields"])


@pytest.mark.parametrize("name", DRAWS)
def test_a_bare_folder_of_each_family_draws_as_its_authors_do(name):
    spec = load_pipeline(tiny.folder(name), name="mine").spec
    request = GenerationRequest(model="mine", prompt="a red apple", seed=1)
    (made,) = plan(request, spec, Abilities(techniques=ALL_TECHNIQUES)).plans
    guidance = made.techniques.distilled_guidance or made.guidance[0]
    assert (made.num_steps, guidance, made.scheduler) == DRAWS[name]
    assert made.size == spec.default_size
