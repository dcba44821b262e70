import dataclasses
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from mezzotint.errors import InvalidRequest
from mezzotint.models.spec import ModelSpec
from mezzotint.planning.abilities import Abilities
from mezzotint.planning.memory import measure
from mezzotint.planning.plan import SCHEMA, to_plain
from mezzotint.planning.planner import plan
from mezzotint.planning.templates import Templates
from mezzotint.request import GenerationRequest, Hires, LatentInput, Output, Variation
from mezzotint.types import MAX_SEED, Size

SD = ModelSpec(name="sd15", digest="a" * 64, family="sd", prediction_type="epsilon")
GAN = ModelSpec(
    name="dcgan", digest="b" * 64, family="gan", latent_channels=100, fixed_size=True,
    default_size=Size(64, 64), takes_prompt=False, takes_negative_prompt=False,
    takes_guidance=False, takes_image=False, has_steps=False, num_classes=5,
)  # fmt: skip
ALL = Abilities(techniques=frozenset({"image", "hires", "variation", "tiling"}))

seeds = st.integers(0, MAX_SEED)
words = st.sampled_from('ab 0,"\\{}<:>()é漢')
outputs = st.builds(
    Output, format=st.sampled_from(["png", "jpeg", "webp"]), quality=st.integers(1, 100)
)
common = {
    "num_images": st.integers(1, 4),
    "output": outputs,
    "reproducibility": st.sampled_from(["exact", "stable", "turbo"]),
    "priority": st.integers(-3, 3),
    "deadline_s": st.none() | st.floats(1, 9),
}
of_a_gan = st.fixed_dictionaries(
    common
    | {
        "latent": st.builds(
            LatentInput, truncation=st.floats(0, 1), class_label=st.none() | st.integers(0, 4)
        )
    }
)
of_a_text = st.fixed_dictionaries(
    common
    | {
        "prompt": st.text(words, min_size=1, max_size=20).filter(str.strip),
        "negative_prompt": st.text(words, max_size=8),
        "num_inference_steps": st.integers(4, 9),
        "guidance_scale": st.none() | st.floats(0, 20),
        "scheduler": st.none() | st.sampled_from(["euler", "ddim", "dpmpp_2m"]),
        "hires": st.none() | st.just(Hires(scale=2.0)),
        "variation": st.none()
        | st.builds(Variation, strength=st.floats(0.1, 1), seed=st.none() | seeds),
        "tiling": st.booleans(),
        "prompt_dialect": st.sampled_from(["plain", "a1111"]),
    }
)


def planned_alone(request, spec):
    planned = plan(request, spec, ALL)
    return planned, tuple(measure(one, spec) for one in planned.plans)


def outcome(work, *arguments):
    """Return what came of a call, a refusal's words included."""
    try:
        return work(*arguments)
    except InvalidRequest as error:
        return str(error)


def spelt_alone(one):
    """Spell a plan without any of its memories."""
    plain = {"schema": SCHEMA, **to_plain(one)}
    return json.dumps(plain, separators=(",", ":"), ensure_ascii=False)


@settings(max_examples=25, deadline=None)
@given(st.one_of(st.tuples(st.just(GAN), of_a_gan), st.tuples(st.just(SD), of_a_text)),
       st.lists(seeds, min_size=2, max_size=3))  # fmt: skip
def test_a_filled_in_seed_gives_what_planning_gives(kind, several):
    spec, fields = kind
    templates = Templates()
    for seed in several:
        request = GenerationRequest(model=spec.name, seed=seed, **fields)
        found, expected = (
            outcome(templates.plan, request, spec, ALL),
            outcome(planned_alone, request, spec),
        )
        assert found == expected
        if isinstance(found, str):
            continue
        planned, wanted = found[0], expected[0]
        for one, other in zip(planned.plans, wanted.plans, strict=True):
            assert one.canonical == other.canonical == spelt_alone(one)
            assert one.digest == other.digest
            assert one.describe() == other.describe()
            assert one.batch_key == other.batch_key


def ask(templates, spec=GAN, abilities=ALL, owner="", **fields):
    request = GenerationRequest(model=spec.name, **fields)
    return templates.plan(request, spec, abilities, owner=owner)[0].plans[0]


def test_what_differs_in_its_seed_is_planned_once():
    templates = Templates()
    for seed in range(5):
        assert ask(templates, seed=seed, priority=seed).seed == seed
    assert len(templates) == 1


def test_a_request_without_a_seed_gets_a_fresh_one_each_time():
    drawn = iter((11, 12))
    templates = Templates(draw_seed=lambda: next(drawn))
    assert [ask(templates).seed, ask(templates).seed] == [11, 12]


def test_a_model_that_was_exchanged_is_planned_anew():
    templates = Templates()
    ask(templates, seed=1)
    other = dataclasses.replace(GAN, digest="c" * 64)
    assert ask(templates, other, seed=2).model_digest == "c" * 64


def test_another_environment_is_planned_anew():
    templates = Templates()
    ask(templates, seed=1)
    other = dataclasses.replace(ALL, environment='{"device":"cuda"}')
    assert ask(templates, abilities=other, seed=2).environment == '{"device":"cuda"}'


def test_the_two_zeros_are_told_apart():
    templates = Templates()
    plans = [ask(templates, seed=1, latent=LatentInput(truncation=t)) for t in (0.0, -0.0)]
    assert ['"truncation":0.0' in p.canonical for p in plans] == [True, False]


def test_nobody_profits_from_what_another_client_asked():
    templates = Templates()
    ask(templates, seed=1, owner="ann")
    ask(templates, seed=1, owner="bob")
    assert len(templates) == 2


def test_only_so_many_kinds_are_remembered():
    templates = Templates(most=2)
    for label in (0, 1, 2, 3):
        ask(templates, seed=1, latent=LatentInput(class_label=label))
    assert len(templates) == 2


def test_what_is_done_to_one_description_is_in_no_other():
    templates = Templates()
    first = ask(templates, spec=SD, prompt="a", seed=1, num_inference_steps=4).describe()
    wanted = ask(templates, spec=SD, prompt="a", seed=2, num_inference_steps=4).describe()
    first["steps"].clear()
    first["techniques"].clear()
    assert ask(templates, spec=SD, prompt="a", seed=2, num_inference_steps=4).describe() == wanted
    assert wanted["steps"] and wanted["seed"] == 2
