"""What the device thread is in the middle of, as others see it."""

from tests.unit.engine.fakes import Bench, FakeClock, make_plan

from mezzotint.engine.progress import CallProgress


def test_the_first_call_of_a_shape_teaches_nothing_and_the_slowest_later_one_is_expected():
    clock = FakeClock()
    progress = CallProgress(clock)
    seen = []
    for seconds in (90.0, 2.0, 5.0, 1.0, 1.0):
        with progress.during("step", "shape", None):
            clock.now += seconds
            seen.append(progress.describe())
    assert progress.describe() is None
    assert [(s["seconds"], s["expected_s"], s["is_first"]) for s in seen] == [
        (90.0, None, True),
        (2.0, None, False),
        (5.0, 2.0, False),
        (1.0, 5.0, False),
        (1.0, 5.0, False),
    ]
    with progress.during("decode", "shape", 7.0):
        assert progress.describe()["expected_s"] == 7.0
        assert progress.describe()["is_first"] is True


def test_the_engine_marks_its_calls_with_what_the_cost_table_knows_and_no_encoding():
    progress = CallProgress()
    seen = []
    bench = Bench()
    bench.engine._progress = progress

    def watch(name):
        real = getattr(bench.executor, name)

        def call(*given, **named):
            about = progress.describe()
            seen.append((name, about and about["kind"], about and about["expected_s"] is not None))
            return real(*given, **named)

        setattr(bench.executor, name, call)

    for name in ("encode", "step", "decode"):
        watch(name)
    bench.submit("first", make_plan(steps=3))
    while bench.engine.tick():
        pass
    assert seen == [
        ("encode", None, None),
        ("step", "step", False),
        ("step", "step", True),
        ("step", "step", True),
        ("decode", "decode", False),
    ]
