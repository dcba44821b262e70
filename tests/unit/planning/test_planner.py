import dataclasses

import pytest

from mezzotint.errors import InvalidRequest, UnknownName
from mezzotint.models.spec import ModelSpec
from mezzotint.planning.abilities import Abilities
from mezzotint.planning.planner import plan
from mezzotint.request import (
    EnsembleMember,
    GenerationRequest,
    GuidanceSchedule,
    Hires,
    ImagePrompt,
    LatentInput,
    Region,
    Upscale,
    Variation,
    Walk,
)
from mezzotint.sampling.timesteps import inference_schedule
from mezzotint.schedulers import NATIVE
from mezzotint.types import ImageInput, Size

SD = ModelSpec(name="sd15", digest="a" * 64, family="sd", prediction_type="epsilon")
GAN = ModelSpec(
    name="dcgan", digest="b" * 64, family="gan", latent_channels=100, fixed_size=True,
    default_size=Size(64, 64), takes_prompt=False, takes_negative_prompt=False,
    takes_guidance=False, takes_image=False, has_steps=False,
)  # fmt: skip
DIT = dataclasses.replace(
    SD, name="dit", family="dit", takes_prompt=False, takes_negative_prompt=False,
    num_classes=10, takes_image=False,
)  # fmt: skip
FLOW = dataclasses.replace(
    SD, name="flux", family="flux", prediction_type="flow", default_scheduler="flow_euler",
    takes_guidance=False, takes_distilled_guidance=True, default_guidance_scale=3.5,
)  # fmt: skip
PICTURE = ImageInput(b"picture")
ALL = Abilities(techniques=frozenset({"image", "mask", "walk", "regions"}))


def ask(spec=SD, abilities=ALL, image_size=None, **fields):
    fields.setdefault("prompt", "a pear" if spec.takes_prompt else "")
    return plan(GenerationRequest(**fields), spec, abilities, image_size=image_size)


def one(spec=SD, **fields):
    return ask(spec, **fields).plans[0]


def refusal(spec=SD, **fields):
    with pytest.raises(InvalidRequest) as caught:
        ask(spec, **fields)
    return caught.value


def test_defaults_come_from_the_spec():
    p = one(seed=7)
    assert (p.size, p.num_inference_steps, p.scheduler, p.seed) == (Size(512, 512), 20, "euler", 7)
    assert p.guidance == (7.5,) * 20
    assert p.model_calls == 40


def test_width_off_the_multiple_names_the_nearest():
    assert str(refusal(width=770)) == (
        "width must be a multiple of 8 px for sd15, got 770; nearest are 768 and 776"
    )


def test_width_out_of_limits_names_them():
    error = refusal(height=4096)
    assert str(error) == "height must be 8 to 2048 px for sd15, got 4096"
    assert error.field == "height"


def test_a_fixed_size_model_draws_no_other_size():
    assert str(refusal(GAN, width=128)) == "width must be 64 px for dcgan, got 128"


def test_seed_none_is_drawn_and_images_count_up_and_wrap():
    planned = plan(GenerationRequest(prompt="x", num_images=3), SD, draw_seed=lambda: 2**64 - 2)
    assert [p.seed for p in planned.plans] == [2**64 - 2, 2**64 - 1, 0]


def test_drawn_seeds_differ():
    assert len({one().seed for _ in range(8)}) > 1


def test_image_k_equals_the_image_with_seed_plus_k_alone():
    assert ask(seed=5, num_images=3).plans[2] == one(seed=7)


def test_unknown_scheduler_suggests_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'euler'"):
        ask(scheduler="euller")


def test_unknown_sigma_schedule_is_refused():
    assert refusal(sigma_schedule="karass").field == "sigma_schedule"


def test_a_diffusion_scheduler_does_not_fit_a_flow_model():
    assert "flow_euler" in refusal(FLOW, scheduler="ddim").allowed
    assert "ddim" in refusal(SD, scheduler="flow_euler").allowed


def test_empty_prompt_is_refused_where_one_is_needed():
    assert str(refusal(prompt="  ")) == "prompt is needed for sd15, got an empty text"


def test_empty_prompt_is_fine_on_a_start_image():
    assert one(prompt="", image=PICTURE).prompt == ""


def test_a_prompt_for_a_gan_is_a_warning():
    planned = ask(GAN, prompt="a pear")
    assert planned.plans[0].prompt == ""
    assert planned.warnings == ("prompt has no effect on dcgan: it takes no text",)


def test_a_gan_takes_no_steps_and_one_model_call():
    planned = ask(GAN, num_inference_steps=30, scheduler="euler", seed=1)
    p = planned.plans[0]
    assert (p.steps, p.rows, p.scheduler, p.model_calls) == ((), (), "", 1)
    assert len(planned.warnings) == 2


def test_truncation_reaches_a_gan_only():
    latent = LatentInput(truncation=0.7)
    assert one(GAN, latent=latent).techniques.truncation == 0.7
    assert ask(latent=latent).warnings == (
        "latent.truncation has no effect on sd15: it is for GANs",
    )


def test_negative_prompt_without_guidance_is_a_warning():
    planned = ask(negative_prompt="blurry", guidance_scale=1)
    assert planned.plans[0].negative_prompt == ""
    assert planned.warnings == (
        "negative_prompt has no effect while guidance is off (guidance_scale 1)",
    )


def test_guidance_off_computes_one_row_a_step():
    assert one(guidance_scale=1, num_inference_steps=4).rows == (1, 1, 1, 1)


def test_an_interval_computes_unconditional_rows_only_inside():
    schedule = GuidanceSchedule(schedule="interval", start=6, from_=0.25, until=0.5)
    p = one(guidance_scale=schedule, num_inference_steps=5)
    # sigma is 157 (counted as 100), 17.3, 3.43, 0.95, 0.01: progress 0, .19, .37, .51, 1
    assert p.guidance == (1.0, 1.0, 6.0, 1.0, 1.0)
    assert p.rows == (1, 1, 2, 1, 1)


def test_an_interval_means_the_same_noise_levels_at_any_step_count_and_spacing():
    schedule = GuidanceSchedule(schedule="interval", start=6, from_=0.25, until=0.75)
    for scheduler, curve in (("euler", None), ("heun", None), ("euler", "karras")):
        shares = []
        for steps in (25, 100):
            p = one(
                guidance_scale=schedule, num_inference_steps=steps,
                scheduler=scheduler, sigma_schedule=curve,
            )  # fmt: skip
            levels = inference_schedule(NATIVE[scheduler], {}, steps, curve).sigmas
            guided = [s for s, scale in zip(levels, p.guidance, strict=False) if scale != 1]
            shares.append((guided[0], guided[-1]))
        # a quarter and three quarters of the way from 100 to 0.01, in the logarithm
        for noisiest, cleanest in shares:
            assert 6 < noisiest <= 10.1
            assert 0.099 <= cleanest < 0.3  # 25 steps are coarse there


def test_heun_calls_the_network_twice_a_step_but_the_last():
    p = one(scheduler="heun", num_inference_steps=30)
    assert len(p.rows) == 59
    assert p.model_calls == 118


def test_class_label_is_needed_and_checked():
    assert str(refusal(DIT)) == "latent.class_label is needed for dit: 0 to 9"
    error = refusal(DIT, latent=LatentInput(class_label=10))
    assert str(error) == "latent.class_label must be 0 to 9 for dit, got 10"
    assert one(DIT, latent=LatentInput(class_label=9)).techniques.class_label == 9


def test_class_label_without_classes_is_refused():
    assert refusal(latent=LatentInput(class_label=1)).field == "latent.class_label"


def test_strength_runs_the_last_part_of_the_steps():
    p = one(image=PICTURE, strength=0.5, num_inference_steps=10)
    assert (p.num_steps, p.skipped_steps, p.steps) == (5, 5, (1, 2, 3, 4, 5))
    assert p.techniques.image == PICTURE.digest


def test_strength_that_runs_no_step_is_refused():
    error = refusal(image=PICTURE, strength=0.04, num_inference_steps=20)
    assert str(error) == "strength must be at least 0.05 for 20 steps, got 0.04"


def test_strength_without_image_is_a_warning():
    assert ask(strength=0.3).warnings == ("strength has no effect without image",)


def test_a_start_image_gives_its_size_rounded_with_a_warning():
    planned = ask(image=PICTURE, image_size=Size(515, 300))
    assert planned.plans[0].size == Size(512, 304)
    assert planned.warnings == ("the picture of 515x300 px was resized to 512x304 px",)


def test_a_model_without_encoder_takes_no_image():
    assert refusal(DIT, image=PICTURE, latent=LatentInput(class_label=1)).field == "image"


def test_a_technique_without_operator_is_refused():
    with pytest.raises(InvalidRequest, match="regions cannot be honoured by this engine"):
        plan(
            GenerationRequest(prompt="x", regions=(Region(prompt="y", box=(0, 0, 1, 1)),)),
            SD,
            Abilities(techniques=frozenset({"image"})),
        )


def test_a_walk_makes_one_plan_per_frame():
    plans = ask(walk=Walk(to="a plum", frames=4), seed=3).plans
    assert [p.techniques.walk.frame for p in plans] == [0, 1, 2, 3]
    assert {p.seed for p in plans} == {3}


def test_walk_and_num_images_exclude_each_other():
    assert refusal(walk=Walk(to="a plum"), num_images=2).field == "num_images"


def test_regions_cost_one_row_each_and_share_the_unconditional_one():
    regions = (Region(prompt="a", box=(0, 0, 0.5, 1)), Region(prompt="b", box=(0.5, 0, 1, 1)))
    assert one(regions=regions, num_inference_steps=2).rows == (4, 4)


@pytest.mark.parametrize(
    "ensemble",
    [
        (EnsembleMember(model="sd", box=(0, 0, 0.5, 1)),),
        (EnsembleMember(model="sd", weights=(1, 0)), EnsembleMember(model="b", box=(0, 0, 1, 1))),
    ],
)
def test_an_ensemble_that_leaves_places_without_an_answer_is_refused(ensemble):
    with pytest.raises(InvalidRequest, match="without mask and box") as caught:
        plan(
            GenerationRequest(prompt="x", ensemble=ensemble, num_inference_steps=2),
            SD,
            Abilities(techniques=frozenset({"ensemble"})),
        )
    assert caught.value.field == "ensemble"


def test_edits_of_a_second_pass_count_on_from_the_first():
    p = plan(
        GenerationRequest(prompt="x", hires=Hires(scale=1.5), num_inference_steps=12),
        SD,
        Abilities(techniques=frozenset({"hires"})),
    ).plans[0]
    assert (p.techniques.first_steps, p.second.techniques.first_steps) == (0, 12)


def test_distilled_guidance_is_an_input_and_costs_no_row():
    p = one(FLOW, guidance_scale=4)
    assert p.techniques.distilled_guidance == 4.0
    assert set(p.rows) == {1}


def test_too_many_pixels_in_one_request_are_refused():
    with pytest.raises(InvalidRequest, match="num_images must keep a request"):
        plan(
            GenerationRequest(prompt="x", num_images=1000, width=2048, height=2048),
            SD,
            Abilities(max_request_pixels=10**8),
        )


def test_list_guidance_needs_one_value_per_step():
    schedule = GuidanceSchedule(schedule="list", values=(3.0, 4.0))
    assert refusal(guidance_scale=schedule, num_inference_steps=3).field == "guidance_scale.values"


def test_equal_requests_in_other_words_have_equal_plans():
    assert one(seed=1, guidance_scale=7.5) == one(seed=1, width=512, num_inference_steps=20)
    assert one(seed=1, guidance_scale=7).digest == one(seed=1, guidance_scale=7.0).digest


WIDE = Abilities(
    techniques=frozenset({"hires", "upscale", "variation", "tiling", "image_prompts", "loras",
                          "embeddings"}),
    adapter_digest=lambda kind, name: f"{kind} {name}",
    embedding_names=lambda: ("ink", "fog", "rust"),
)  # fmt: skip


def refused(**fields):
    with pytest.raises(InvalidRequest) as caught:
        ask(abilities=WIDE, **fields)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"width": 2048, "height": 2048, "upscale": Upscale(factor=8)}, "upscale.factor"),
        ({"upscale": Upscale(factor=7), "hires": Hires(scale=2)}, "upscale.factor"),
        ({"variation": Variation(noise_width=16384, noise_height=16384)}, "variation.noise_width"),
        (
            {"tiling": True, "image_prompts": (ImagePrompt(model="ip", images=(PICTURE,)),)},
            "tiling",
        ),
    ],
)
def test_what_no_machine_should_hold_or_nothing_would_honour_is_refused(fields, field):
    assert refused(**fields).field == field


def test_an_enlargement_says_which_factor_would_do():
    error = refused(width=2048, height=2048, upscale=Upscale(factor=8))
    assert error.allowed == "at most 3.08 for 2048x2048 px"
    ask(abilities=WIDE, width=2048, height=2048, upscale=Upscale(factor=3.08))


def test_a1111s_tags_are_read_in_every_prompt_of_a_request():
    planned = one(
        abilities=WIDE,
        prompt_dialect="a1111",
        prompt="a pear <lora:line:0.5>",
        hires=Hires(prompt="a pear in fog <lora:line:0.5>", negative_prompt="rust"),
    )
    assert [lora.part.name for lora in planned.techniques.loras] == ["line"]
    assert planned.second.prompt == "a pear in fog "
    assert [e.part.name for e in planned.second.techniques.embeddings] == ["fog", "rust"]


def test_a_lora_of_the_second_pass_alone_is_refused():
    hires = Hires(prompt="a pear <lora:ink:1>")
    assert refused(prompt_dialect="a1111", hires=hires).field == "hires.prompt"
