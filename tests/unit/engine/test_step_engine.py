from dataclasses import replace

from tests.unit.engine.fakes import Bench, make_plan

from mezzotint.engine.config import EngineConfig
from mezzotint.engine.state import (
    ImageCancelled,
    ImageDone,
    ImageFailed,
    ImageId,
    ImageStarted,
    ImageStepped,
)
from mezzotint.errors import DeadlineExceeded, NotReady, OutOfMemory
from mezzotint.planning.memory import Footprint


def test_one_image_starts_steps_and_is_done():
    bench = Bench()
    bench.submit("r", make_plan(steps=3, seed=7))
    bench.run()
    kinds = [type(e) for e in bench.events]
    assert kinds == [ImageStarted, ImageStepped, ImageStepped, ImageStepped, ImageDone]
    assert [e.step for e in bench.events[1:4]] == [1, 2, 3]
    assert bench.events[-1].picture == 7
    assert bench.events[-1].timings.model_calls == 6
    assert not bench.executor.held


def test_a_plan_without_steps_goes_straight_to_the_decoder():
    bench = Bench()
    bench.submit("gan", make_plan(steps=0))
    bench.run()
    assert [type(e) for e in bench.events] == [ImageStarted, ImageDone]
    assert bench.events[-1].timings.model_calls == 1


def test_images_of_different_lengths_share_calls_and_leave_one_by_one():
    bench = Bench(call_s=0.5, row_s=0.01)
    bench.submit("long", make_plan(steps=9))
    bench.submit("short", make_plan(steps=4))
    bench.run()
    shared = [b for b in bench.executor.calls if len(b.ids) == 2]
    assert len(shared) >= 3
    assert bench.ended_at[ImageId("short")] < bench.ended_at[ImageId("long")]


def test_a_newcomer_joins_in_the_middle():
    bench = Bench(call_s=0.5, row_s=0.01)
    bench.submit("long", make_plan(steps=6))
    for _ in range(3):
        bench.engine.tick()
    bench.submit("late", make_plan(steps=2))
    bench.run()
    assert any(set(b.ids) == {ImageId("long"), ImageId("late")} for b in bench.executor.calls)


def test_images_of_different_size_never_share_a_call():
    bench = Bench()
    bench.submit("a", make_plan(side=64))
    bench.submit("b", make_plan(side=128))
    bench.run()
    assert all(len({i.request for i in b.ids}) == 1 for b in bench.executor.calls)


def test_cancel_takes_effect_before_the_next_step_and_frees_the_tensors():
    bench = Bench()
    bench.submit("r", make_plan(steps=50))
    bench.engine.tick()
    assert bench.engine.cancel("r") == 1
    assert not bench.executor.held
    calls = len(bench.executor.calls)
    bench.run()
    assert len(bench.executor.calls) == calls
    assert isinstance(bench.events[-1], ImageCancelled)


def test_cancelling_an_unknown_request_does_nothing():
    assert Bench().engine.cancel("nobody") == 0


def test_a_deadline_that_passes_ends_the_image():
    bench = Bench(row_s=1.0)
    bench.submit("r", make_plan(steps=50), deadline_s=103.0)
    bench.run()
    error = bench.events[-1].error
    assert isinstance(error, DeadlineExceeded)
    assert len(bench.executor.calls) == 2


def test_a_call_that_raises_is_repeated_image_by_image_and_only_the_guilty_fails():
    guilty = ImageId("bad")

    def crash(what, image):
        return ValueError("bad adapter") if what == "step" and image == guilty else None

    bench = Bench(call_s=0.5, row_s=0.01, crash=crash)
    for name in ("one", "bad", "two"):
        bench.submit(name, make_plan(steps=3))
    bench.run()
    endings = {i.request: type(e[0]) for i, e in bench.endings().items()}
    assert endings == {"one": ImageDone, "bad": ImageFailed, "two": ImageDone}


def test_a_fault_inside_a_shared_call_fails_one_image_alone():
    def crash(what, image):
        return ValueError("NaN") if what == "fault" and image.request == "bad" else None

    bench = Bench(call_s=0.5, row_s=0.01, crash=crash)
    for name in ("one", "bad", "two"):
        bench.submit(name, make_plan(steps=3))
    bench.run()
    endings = {i.request: type(e[0]) for i, e in bench.endings().items()}
    assert endings == {"one": ImageDone, "bad": ImageFailed, "two": ImageDone}
    assert bench.endings()[ImageId("one")][0].timings.model_calls == 6


def test_running_out_of_memory_in_a_shared_call_lowers_the_ceiling():
    bench = Bench(call_s=0.5, row_s=0.01)
    step = bench.executor.step

    def narrow(batch):
        if batch.bucket > 4:
            raise OutOfMemory("too wide")
        return step(batch)

    bench.executor.step = narrow
    for name in "abcdefgh":
        bench.submit(name, make_plan(steps=4))
    bench.run()
    assert all(isinstance(e[0], ImageDone) for e in bench.endings().values())
    assert max(b.bucket for b in bench.executor.calls) == 4


def test_a_raising_listener_fails_that_image_alone():
    def listener(event):
        if isinstance(event, ImageStepped) and event.id.request == "bad":
            raise RuntimeError("callback")

    bench = Bench(listener=listener)
    bench.submit("bad")
    bench.submit("good")
    bench.run()
    endings = {i.request: type(e[0]) for i, e in bench.endings().items()}
    assert endings == {"bad": ImageFailed, "good": ImageDone}


def test_the_only_image_may_fail_in_its_encoder():
    bench = Bench(crash=lambda what, image: ValueError("torn") if what == "encode" else None)
    bench.submit("r")
    bench.run()
    bench.submit("again")
    bench.run()
    assert [type(e) for e in bench.events] == [ImageStarted, ImageFailed] * 2


def test_a_deadline_of_a_cancelled_image_does_not_meet_another_of_its_name():
    bench = Bench(row_s=1.0)
    bench.submit("r", make_plan(steps=50), deadline_s=130.0)
    bench.engine.tick()
    bench.engine.cancel("r")
    bench.submit("r", make_plan(steps=50))
    bench.run()
    assert [type(e) for e in bench.endings()[ImageId("r")]] == [ImageCancelled, ImageDone]


def test_a_failing_encoder_fails_the_image_alone():
    def crash(what, image):
        return ValueError("no such LoRA") if (what, image.request) == ("encode", "bad") else None

    bench = Bench(crash=crash)
    bench.submit("bad")
    bench.submit("good")
    bench.run()
    assert isinstance(bench.endings()[ImageId("bad")][0], ImageFailed)
    assert isinstance(bench.endings()[ImageId("good")][0], ImageDone)


def test_draining_finishes_what_runs_and_refuses_what_waits():
    bench = Bench(config=EngineConfig(max_running=1))
    bench.submit("running")
    bench.engine.tick()
    bench.submit("waiting")
    bench.engine.drain()
    bench.submit("late")
    bench.run()
    endings = bench.endings()
    assert isinstance(endings[ImageId("running")][0], ImageDone)
    assert isinstance(endings[ImageId("waiting")][0].error, NotReady)
    assert isinstance(endings[ImageId("late")][0].error, NotReady)


def test_aborting_ends_everything_once():
    bench = Bench()
    bench.submit("a", images=3)
    bench.engine.tick()
    bench.engine.abort(RuntimeError("device lost"))
    assert len(bench.endings()) == 3
    assert bench.engine.is_idle
    assert not bench.executor.held


def test_memory_lets_only_as_many_images_run_as_fit():
    footprint = Footprint(slot_bytes=100, row_bytes=10, decode_bytes=10)
    bench = Bench(budget_bytes=330)
    bench.submit("r", make_plan(steps=2), images=6, footprint=footprint)
    most = 0
    while bench.engine.tick():
        most = max(most, len(bench.executor.held))
    assert most == 3
    assert len(bench.endings()) == 6


def test_previews_come_every_so_many_steps_but_not_at_the_end():
    bench = Bench()
    bench.submit("r", make_plan(steps=6), preview_every=2)
    bench.run()
    previews = [e.step for e in bench.events if isinstance(e, ImageStepped) and e.preview]
    assert previews == [2, 4]


def test_heun_counts_user_steps_not_network_calls():
    plan = replace(make_plan(steps=3), steps=(1, 1, 2, 2, 3), rows=(2,) * 5)
    bench = Bench()
    bench.submit("r", plan)
    bench.run()
    assert [e.step for e in bench.events if isinstance(e, ImageStepped)] == [1, 2, 3]
    assert bench.events[-1].timings.model_calls == 10
