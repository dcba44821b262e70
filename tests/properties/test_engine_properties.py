"""Random scripts against the step engine, with a fake executor."""

import dataclasses
import typing

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.techniques import EXAMPLES
from tests.unit.engine.fakes import Bench, make_plan

from mezzotint.engine.config import EngineConfig
from mezzotint.engine.state import ImageStarted
from mezzotint.errors import OutOfMemory
from mezzotint.plain import exchange
from mezzotint.planning.memory import Footprint
from mezzotint.planning.plan import (
    Plan,
    Resolved,
    Techniques,
    WalkPosition,
)
from mezzotint.request import (
    Control,
    Embedding,
    EnsembleMember,
    GenerationRequest,
    ImagePrompt,
    Inpaint,
    Lora,
    Outpaint,
    Output,
    Region,
    Upscale,
    Variation,
    Walk,
)
from mezzotint.types import ImageInput, Size

PICTURE = ImageInput(b"a picture")

SETTINGS = settings(max_examples=120, deadline=None)

actions = st.lists(
    st.one_of(
        st.tuples(
            st.just("submit"),
            st.integers(0, 6),  # steps
            st.sampled_from([1.0, 5.0]),
            st.sampled_from([64, 128]),
            st.integers(1, 4),  # images
            st.sampled_from(["a", "b", "c"]),
            st.integers(-1, 1),  # priority
            st.sampled_from([None, 0.5, 5.0]),  # deadline
        ),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        st.tuples(st.just("tick"), st.integers(1, 8)),
        st.tuples(st.just("drain")),
    ),
    max_size=25,
)
crashes = st.dictionaries(
    st.tuples(
        st.sampled_from(["encode", "step", "fault", "decode", "release", "preview"]),
        st.integers(0, 20),
    ),
    st.sampled_from([ValueError("bad"), OutOfMemory("full"), MemoryError()]),
    max_size=4,
)


def play(script, crash, **bench):
    def crasher(what, image):
        return crash.get((what, int(image.request)))

    stage = Bench(crash=crasher, **bench)
    accepted = {}
    for action in script:
        match action:
            case ("submit", steps, guidance, side, images, client, priority, deadline):
                name = str(len(accepted))
                plan = make_plan(steps=steps, guidance=guidance, side=side)
                accepted[name] = images
                more = {"deadline_s": stage.clock.now + deadline} if deadline else {}
                stage.submit(
                    name,
                    plan,
                    images=images,
                    client=client,
                    priority=priority,
                    preview_every=1,
                    footprint=Footprint(
                        slot_bytes=side, row_bytes=side // 8, decode_bytes=side // 4
                    ),
                    **more,
                )
            case ("cancel", number):
                stage.engine.cancel(str(number))
            case ("tick", count):
                for _ in range(count):
                    stage.engine.tick()
            case ("drain",):
                stage.engine.drain()
    stage.run()
    return stage, accepted


@SETTINGS
@given(actions, crashes)
def test_every_accepted_image_ends_exactly_once(script, crash):
    stage, accepted = play(script, crash)
    endings = stage.endings()
    assert {i: len(e) for i, e in endings.items()} == {i: 1 for i in endings}, (
        "an image ended twice"
    )
    expected = {(name, k) for name, images in accepted.items() for k in range(images)}
    assert {(i.request, i.index) for i in endings} == expected
    assert not stage.executor.held
    assert stage.engine.is_idle


@SETTINGS
@given(actions, crashes, st.integers(120, 2000))
def test_the_memory_budget_is_never_exceeded(script, crash, budget):
    watched = []

    def listener(event):
        if isinstance(event, ImageStarted):
            return
        held = [i for i in stage[0].executor.held if i in stage[0].engine._footprints]
        if len(held) > 1:
            watched.append(sum(stage[0].engine._footprints[i].slot_bytes for i in held))

    stage = []
    original = Bench.__init__

    def init(self, **options):
        original(self, **options)
        stage.append(self)
        step = self.executor.step

        def checked(batch):
            prints = self.engine._footprints
            held = sum(prints[i].slot_bytes for i in self.executor.held)
            active = batch.bucket * prints[batch.ids[0]].row_bytes
            if len(self.executor.held) > 1 or len(batch.ids) > 1:
                assert held + active <= budget
            return step(batch)

        self.executor.step = checked

    Bench.__init__ = init
    try:
        play(script, crash, budget_bytes=budget, listener=listener)
    finally:
        Bench.__init__ = original
    assert all(total <= budget for total in watched)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 12), st.sampled_from([64, 128]), st.sampled_from("abcd")),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 8),
)
def test_nobody_starves_however_many_short_requests_keep_coming(mix, running):
    bench = Bench(config=EngineConfig(max_running=running))
    for k, (steps, side, client) in enumerate(mix):
        bench.submit(f"first{k}", make_plan(steps=steps, side=side), client=client)
    stream = 0
    firsts = {f"first{k}" for k in range(len(mix))}
    for _ in range(6000):
        if firsts <= {i.request for i in bench.ended_at}:
            break
        if len(bench.engine.states) < 2 * len(mix) + 4:
            bench.submit(f"stream{stream}", make_plan(steps=2), client="abcd"[stream % 4])
            stream += 1
        bench.engine.tick()
    assert firsts <= {i.request for i in bench.ended_at}


def other(value, hint, name):
    """Return a different value of the same kind for a field of that name."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case Size():
            return Size(value.width + 8, value.height)
        case None | ():
            samples = SAMPLES if value is None else TUPLES
            known = (sample for kind, sample in samples.items() if kind in str(hint))
            return next(known, None) or example_of(name, hint)
        case tuple():
            return (other(value[0], hint, name), *value[1:])
    raise AssertionError(f"no other value for {value!r}")


def example_of(name, hint):
    """Return a technique as a plan holds it, of one that has no sample below."""
    asked = getattr(GenerationRequest.from_dict(EXAMPLES[name].fields), name)
    if "Resolved" not in str(hint):
        return asked
    several = asked if isinstance(asked, tuple) else (asked,)
    held = tuple(Resolved(part=part, digest="d", pictures=("i",)) for part in several)
    return held if isinstance(asked, tuple) else held[0]


SAMPLES = {
    "Inpaint": Inpaint(blur=2.0),
    "Variation": Variation(seed=3, strength=0.5, noise_width=64, noise_height=64),
    "Upscale": Resolved(part=Upscale(factor=3.0), digest="d"),
    "Outpaint": Outpaint(left=8),
    "Plan |": make_plan(),
    "Optional[mezzotint.planning.plan.Plan]": make_plan(),
    "WalkPosition": WalkPosition(frame=0, walk=Walk(frames=2, mode="seed", to_seed=1)),
    "tuple[float": (2.0, None),
    "float": 0.5,
    "int": 1,
    "str": "x",
}
TUPLES = {
    "[mezzotint.techniques.parts.Lora]": (Resolved(part=Lora(name="ink"), digest="d"),),
    "[mezzotint.techniques.parts.Control]": (
        Resolved(part=Control(model="canny", image=PICTURE), digest="d", pictures=("i",)),
    ),
    "[mezzotint.techniques.parts.ImagePrompt]": (
        Resolved(part=ImagePrompt(model="style", images=(PICTURE,)), digest="d", pictures=("i",)),
    ),
    "[mezzotint.techniques.parts.Embedding]": (
        Resolved(part=Embedding(name="ink", token="t"), digest="d"),
    ),
    "[mezzotint.techniques.parts.Region]": (
        Resolved(part=Region(prompt="p", mask=PICTURE), pictures=("i",)),
    ),
    "[mezzotint.techniques.parts.EnsembleMember]": (
        Resolved(part=EnsembleMember(model="m", weights=(1.0,)), digest="d"),
    ),
    "tuple[bool": (True,),
    "tuple[str": ("x",),
}


BESIDE = {
    (EnsembleMember, "weight"),  # resolved: its weights are one a step
    (Output, "animation"),  # frames are pictures like any other
}


def mutations(value, rebuild):
    """Yield a changed whole for every field of every dataclass inside."""
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        now = getattr(value, field.name)
        if (type(value), field.name) in BESIDE or "ImageInput" in str(hints[field.name]):
            continue  # pictures stand in a plan by their digests
        if field.name == "pictures" and not now:
            continue  # a part without pictures
        if dataclasses.is_dataclass(now):
            inner = lambda v, f=field.name: rebuild(exchange(value, **{f: v}))  # noqa: E731
            yield from mutations(now, inner)
            continue
        if isinstance(now, tuple) and now and dataclasses.is_dataclass(now[0]):
            inner = lambda v, f=field.name: rebuild(exchange(value, **{f: (v,)}))  # noqa: E731
            yield from mutations(now[0], inner)
            continue
        changed = other(now, hints[field.name], field.name)
        yield field.name, rebuild(exchange(value, **{field.name: changed}))


def full():
    """Return a plan in which every technique with a part of a request stands, in two passes."""
    hints = typing.get_type_hints(Techniques)
    empty = {f.name: f.default for f in dataclasses.fields(Techniques) if f.default in (None, ())}
    held = {name: other(value, hints[name], name) for name, value in empty.items()}
    parts = {n: v for n, v in held.items() if "mezzotint" in str(hints[n])}
    return dataclasses.replace(make_plan(), techniques=Techniques(**parts), second=make_plan())


FULL = full()


def test_the_cache_key_changes_when_any_field_of_the_plan_changes():
    for whole in (make_plan(), FULL):
        seen = {whole.digest}
        names = []
        for name, changed in mutations(whole, lambda v: v):
            assert isinstance(changed, Plan)
            assert changed != whole, name
            assert changed.digest not in seen, name
            seen.add(changed.digest)
            names.append(name)
        assert len(names) >= 29
