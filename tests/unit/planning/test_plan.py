import json

from tests.unit.engine.fakes import make_plan

from mezzotint.planning.plan import SCHEMA, image_seed


def test_a_plan_is_hashable_and_small():
    assert len({make_plan(seed=1), make_plan(seed=1), make_plan(seed=2)}) == 2
    assert len(make_plan().__dataclass_fields__) <= 20


def test_guidance_and_seed_and_steps_stay_out_of_the_batch_key():
    keys = {
        make_plan(seed=s, steps=n, guidance=g).batch_key
        for s, n, g in [(1, 4, 5.0), (2, 9, 1.0), (3, 30, 7.5)]
    }
    assert len(keys) == 1


def test_size_is_in_the_batch_key():
    assert make_plan(side=64).batch_key != make_plan(side=72).batch_key


def test_canonical_is_json_and_describe_reads_well():
    p = make_plan(steps=3)
    assert json.loads(p.canonical)["prompt"] == "a pear"
    assert p.describe()["guidance_scale"] == 5.0
    assert p.describe()["width"] == 64


def test_a_new_meaning_of_plans_makes_new_keys(monkeypatch):
    old = make_plan().digest
    monkeypatch.setattr("mezzotint.planning.plan.SCHEMA", SCHEMA + 1)
    assert make_plan().digest != old


def test_seeds_wrap_at_two_to_the_64():
    assert image_seed(2**64 - 1, 1) == 0
