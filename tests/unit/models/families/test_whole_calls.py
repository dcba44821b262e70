import inspect
from pathlib import Path

import diffusers
import pytest
from diffusers import DiffusionPipeline

from mezzotint.models.families.whole_calls import read_call, why_refused
from mezzotint.models.formats.folders import FAMILIES

TABLE = Path(__file__).parent / "pipelines.txt"


def read_table():
    """Return what the table says of each pipeline: native, whole, or why it is refused."""
    verdict, found = "", {}
    for line in TABLE.read_text("utf-8").splitlines():
        if line.startswith("# "):
            verdict = line[2:]
        elif line:
            found[line] = verdict
    return found


def exported():
    for name in dir(diffusers):
        cls = getattr(diffusers, name)
        is_pipeline = inspect.isclass(cls) and issubclass(cls, DiffusionPipeline)
        if is_pipeline and cls is not DiffusionPipeline:
            yield name, cls


def judge(name, cls):
    return "native" if name in FAMILIES else (why_refused(cls) or "whole")


@pytest.mark.slow
def test_every_pipeline_that_diffusers_exports_stands_in_the_table():
    assert {name: judge(name, cls) for name, cls in exported()} == read_table()


@pytest.mark.parametrize(
    "name",
    ["AudioLDM2Pipeline", "WanPipeline", "ShapEPipeline", "StableDiffusionLDM3DPipeline",
     "RePaintPipeline", "StableDiffusionUpscalePipeline"],
)  # fmt: skip
def test_what_draws_no_picture_of_a_text_is_refused_by_the_reason_of_the_table(name):
    assert why_refused(getattr(diffusers, name)) == read_table()[name]


@pytest.mark.parametrize(
    ("name", "guidance", "scale", "takes_negative", "tells"),
    [
        ("QwenImagePipeline", "true_cfg_scale", 4.0, True, "callback_on_step_end"),
        ("FluxKontextPipeline", "guidance_scale", 3.5, False, "callback_on_step_end"),
        ("HunyuanImagePipeline", "distilled_guidance_scale", 3.25, True, "callback_on_step_end"),
        ("Ideogram4Pipeline", "guidance_scale", 7.0, False, "callback_on_step_end"),
        ("PixArtSigmaPipeline", "guidance_scale", 4.5, True, "callback"),
        ("LongCatImagePipeline", "guidance_scale", 4.5, True, None),
        ("ConsistencyModelPipeline", None, 1.0, False, "callback"),
    ],
)
def test_guidance_has_the_name_and_default_of_the_pipeline(
    name, guidance, scale, takes_negative, tells
):
    call = read_call(getattr(diffusers, name))
    assert (call.guidance, call.guidance_scale) == (guidance, scale)
    assert (call.takes_negative, call.tells_steps) == (takes_negative, tells)


@pytest.mark.parametrize(
    ("name", "start", "references", "parameter"),
    [
        ("FluxKontextPipeline", None, (0, 1), "image"),
        ("QwenImageEditPlusPipeline", None, (1, 16), "image"),
        ("OmniGenPipeline", None, (0, 16), "input_images"),
        ("FluxFillPipeline", "masked", (0, 0), None),
        ("StableDiffusionXLImg2ImgPipeline", "image", (0, 0), None),
        ("AuraFlowPipeline", None, (0, 0), None),
    ],
)
def test_a_call_tells_which_pictures_it_takes(name, start, references, parameter):
    call = read_call(getattr(diffusers, name))
    assert (call.start, call.references, call.reference_name) == (start, references, parameter)
    assert read_table()[name] == "whole"
