"""Routing: who gets a request, from books kept by hand."""

import pytest

from mezzotint.request import GenerationRequest
from mezzotint.service.workers.routing import Estimates, Need, Place, Router, need_of
from mezzotint.techniques.parts import EnsembleMember, Lora
from mezzotint.types import GenerationResult, ImageOutput, StageTimings


def router(*places: Place) -> Router:
    made = Router()
    for place in places:
        made.join(place)
    return made


def need(**fields) -> Need:
    return Need(**{"models": frozenset({"m"}), **fields})


def test_the_least_backlog_goes_first_and_equals_take_turns():
    made = router(*(Place(name=n, warm={"m"}) for n in "abc"))
    first = [made.choose(need()) for _ in range(6)]
    assert sorted(first) == ["a", "a", "b", "b", "c", "c"]
    made.book("a", need(seconds=5.0))
    made.book("b", need(seconds=1.0))
    made.places["c"].others_s = 2.0  # another front gave it that
    assert made.choose(need()) == "b"


def test_a_cold_worker_is_worth_four_requests_and_cold_adapters_one():
    made = router(Place(name="warm", warm={"m"}), Place(name="cold"))
    given = []
    for _ in range(7):
        name = made.choose(need(seconds=10.0))
        made.book(name, need(seconds=10.0))
        given.append(name)
    assert given[:4] == ["warm"] * 4
    assert set(given[4:]) == {"warm", "cold"}
    made = router(Place(name="bare", warm={"m"}), Place(name="ink", warm={"m"}, adapters={"x"}))
    with_lora = need(adapters=frozenset({"x"}), seconds=3.0)
    assert made.choose(with_lora) == "ink"
    made.book("ink", need(seconds=3.5))
    assert made.choose(with_lora) == "bare"


def test_an_equal_plan_under_way_draws_its_like_to_it():
    made = router(Place(name="a", warm={"m"}), Place(name="b", warm={"m"}))
    shared = need(plan="p", seconds=9.0)
    where = made.choose(shared)
    made.book(where, shared)
    assert [made.choose(shared) for _ in range(4)] == [where] * 4
    made.book(where, shared)
    made.settle(where, shared)
    assert made.choose(shared) == where  # one of two is still there
    made.settle(where, shared, is_done=True)
    assert {made.choose(shared) for _ in range(4)} == {"a", "b"}


def test_an_exact_request_that_has_begun_goes_only_where_arithmetic_is_equal():
    made = router(
        Place(name="a", environment="x", warm={"m"}), Place(name="b", environment="y", warm={"m"})
    )
    begun = need(environment="x")
    made.book("a", need(seconds=100.0))
    assert made.choose(begun) == "a"
    made.places["a"].is_ready = False
    assert made.choose(begun) is None
    assert made.choose(need(environment="x", is_exact=False)) == "b"
    assert made.choose(need()) == "b"


def test_a_flight_in_another_environment_is_not_shared():
    made = router(
        Place(name="a", environment="x", warm={"m"}), Place(name="b", environment="y", warm={"m"})
    )
    made.book("b", need(plan="p"))
    assert made.choose(need(plan="p", environment="x")) == "a"


def test_groups_are_apart_and_who_left_gets_nothing():
    made = router(Place(name="a", group="small"), Place(name="b", group="large"))
    assert made.choose(need(group="large")) == "b"
    made.leave("b")
    made.leave("b")
    assert made.choose(need(group="large")) is None
    assert made.choose(need(group="small")) == "a"
    made.settle("b", need())  # what it had is over


def test_an_idle_worker_relieves_a_busy_one_of_what_has_not_begun():
    made = router(Place(name="busy", warm={"m"}), Place(name="idle", warm={"m"}))
    held = [need(seconds=2.0) for _ in range(10)]
    for one in held:
        made.book("busy", one)
    moved = made.relieve(least_s=1.0, waiting=lambda _: reversed(held))
    assert {name for name, _ in moved} == {"busy"}
    for name, one in moved:
        made.settle(name, one)
        made.book("idle", one)
    assert abs(made.places["busy"].booked_s - made.places["idle"].booked_s) <= 4.0
    assert made.relieve(least_s=5.0, waiting=lambda _: held) == []


@pytest.mark.parametrize(("there", "moves"), [({"m"}, True), (set(), False)])
def test_what_waits_for_a_model_to_load_goes_where_it_is_in_memory(there, moves):
    loading, free = Place(name="loading", warm=set()), Place(name="free", warm=there)
    made = router(loading, free)
    held = [need(seconds=0.5)]
    made.book("loading", held[0])
    moved = made.relieve(least_s=1.0, waiting=lambda name: held if name == "loading" else [])
    assert moved == ([("loading", held[0])] if moves else [])
    if moves:
        made.settle("loading", held[0])
        assert made.choose(held[0]) == "free"


def test_what_a_request_needs_is_read_from_it():
    request = GenerationRequest(
        model="plate", seed=1, loras=(Lora(name="ink"),), reproducibility="stable",
        ensemble=(EnsembleMember(model="other"), EnsembleMember(model="plate")),
    )  # fmt: skip
    found = need_of(request, seconds=2.0, owner="alice")
    assert found.models == {"plate", "other"}
    assert found.adapters == {"lora ink"}
    assert found.plan == f"alice {request.digest}"
    assert not found.is_exact
    assert need_of(request, seconds=2.0, owner=None).plan == ""


def answered(seconds: float, **fields) -> GenerationResult:
    timings = StageTimings(denoise_s=seconds, model_calls=1)
    image = ImageOutput(index=0, seed=0, data=b"", format="png", width=8, height=8, timings=timings)
    return GenerationResult(id="r", images=(image,), **fields)


def test_estimates_learn_a_kind_and_guess_its_neighbours():
    estimates = Estimates()
    known = GenerationRequest(num_inference_steps=10, width=64, height=64)
    assert estimates.seconds(known) == 1.0
    estimates.learn(known, answered(4.0))
    assert estimates.seconds(known) == pytest.approx(4.0)
    more = GenerationRequest(num_inference_steps=20, width=64, height=64, num_images=3)
    assert estimates.seconds(more) == pytest.approx(3 * 8.0)
    other = GenerationRequest(model="new", num_inference_steps=5, width=64, height=64)
    assert estimates.seconds(other) == pytest.approx(2.0)
    estimates.learn(known, answered(14.0))
    assert estimates.seconds(known) == pytest.approx(7.0)  # 4 + 0.3 * (14 - 4)
    estimates.learn(known, answered(1000.0, cache="hit"))
    assert estimates.seconds(known) == pytest.approx(7.0)
