import os
import threading
from dataclasses import replace

from tests.unit.engine.fakes import make_plan

from mezzotint.engine import cache as caches
from mezzotint.engine.cache import ByteCache, ResultCache
from mezzotint.types import Attempt, ImageOutput, StageTimings


def image(plan, data=b"picture"):
    return ImageOutput(
        index=0,
        seed=plan.seed,
        data=data,
        format="png",
        width=64,
        height=64,
        recipe={"digest": "d"},
    )


def test_the_same_plan_is_found_and_another_seed_is_not():
    cache = ResultCache(memory_bytes=10_000)
    cache.put(make_plan(seed=1), image(make_plan(seed=1)))
    assert cache.get(make_plan(seed=1)).data == b"picture"
    assert cache.get(make_plan(seed=2)) is None


def test_a_digest_with_another_canonical_text_is_no_hit(monkeypatch):
    monkeypatch.setattr(caches, "_key", lambda plan, owner: "the same")
    cache = ResultCache(memory_bytes=10_000)
    cache.put(make_plan(seed=2), image(make_plan(seed=2)))
    assert cache.get(make_plan(seed=1)) is None


def test_memory_is_bounded_by_bytes_and_forgets_the_least_recently_used():
    plan = make_plan(seed=0)
    size = len(image(plan).data) + 2 * len(plan.canonical) + 512
    cache = ResultCache(memory_bytes=2 * size + 100)
    for seed in (0, 1):
        cache.put(make_plan(seed=seed), image(make_plan(seed=seed)))
    cache.get(make_plan(seed=0))
    cache.put(make_plan(seed=2), image(make_plan(seed=2)))
    assert cache.get(make_plan(seed=0)) is not None
    assert cache.get(make_plan(seed=1)) is None


def test_pictures_survive_a_restart_on_disk(tmp_path):
    plan = make_plan(seed=3)
    ResultCache(memory_bytes=0, disk_bytes=10_000, folder=tmp_path).put(plan, image(plan))
    found = ResultCache(memory_bytes=0, disk_bytes=10_000, folder=tmp_path).get(plan)
    assert found == image(plan)


def test_disk_is_bounded_by_bytes(tmp_path):
    cache = ResultCache(memory_bytes=0, disk_bytes=5_000, folder=tmp_path)
    for seed in range(8):
        cache.put(make_plan(seed=seed), image(make_plan(seed=seed), b"x" * 1000))
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 5_000
    assert cache.get(make_plan(seed=7)) is not None
    assert cache.get(make_plan(seed=0)) is None


def test_a_broken_file_is_a_miss_and_is_removed(tmp_path):
    plan = make_plan()
    ResultCache(memory_bytes=0, disk_bytes=10_000, folder=tmp_path).put(plan, image(plan))
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"\0\0")
    cache = ResultCache(memory_bytes=0, disk_bytes=10_000, folder=tmp_path)
    assert cache.get(plan) is None
    assert not list(tmp_path.iterdir())


def test_a_file_that_a_power_cut_left_half_written_is_a_miss_and_is_removed(tmp_path):
    plan = make_plan()
    ResultCache(memory_bytes=0, disk_bytes=10_000, folder=tmp_path).put(plan, image(plan))
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for torn in (whole[:-3], whole[:-3] + b"\0\0\0"):
        file.write_bytes(torn)
        cache = ResultCache(memory_bytes=0, disk_bytes=10_000, folder=tmp_path)
        assert cache.get(plan) is None
        assert not list(tmp_path.iterdir())


def test_what_is_drawn_at_once_is_kept_in_memory_only(tmp_path):
    cache = ResultCache(memory_bytes=10_000, disk_bytes=10_000, folder=tmp_path)
    cache.put(make_plan(seed=1), image(make_plan(seed=1)), drawn_s=0.002)
    cache.put(make_plan(seed=2), image(make_plan(seed=2)), drawn_s=0.2)
    assert len(list(tmp_path.iterdir())) == 1
    assert cache.get(make_plan(seed=1)).data == b"picture"
    later = ResultCache(memory_bytes=0, disk_bytes=10_000, folder=tmp_path)
    assert later.get(make_plan(seed=1)) is None
    assert later.get(make_plan(seed=2)).data == b"picture"


def test_a_miss_is_explained_by_the_field_that_differs():
    cache = ResultCache(memory_bytes=10_000)
    plan = make_plan(seed=1)
    assert cache.why_miss(plan) == "nothing is kept yet"
    cache.put(plan, image(plan))
    other = replace(plan, scheduler="ddim")
    assert cache.why_miss(other) == (
        "the most similar kept picture differs in scheduler 'euler' -> 'ddim'"
    )


def test_a_miss_is_explained_while_pictures_are_kept():
    cache = ResultCache(memory_bytes=10_000)
    plans = [make_plan(seed=seed) for seed in range(600)]
    done = threading.Event()

    def keep():
        while not done.is_set():
            for plan in plans:
                cache.put(plan, image(plan))

    other = threading.Thread(target=keep)
    other.start()
    try:
        told = {cache.why_miss(make_plan(seed=9000)) for _ in range(10)}
    finally:
        done.set()
        other.join()
    assert all(
        said.startswith("the most similar kept picture differs in seed")
        or said == "nothing is kept yet"
        for said in told
    )


def test_a_value_larger_than_the_cache_is_not_kept():
    cache = ByteCache(10, len)
    cache.put("a", b"x" * 11)
    cache.put("b", b"x" * 6)
    cache.put("c", b"x" * 6)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (None, None, b"x" * 6)
    assert cache.num_bytes == 6


def test_pictures_on_disk_are_their_owners_alone(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir(mode=0o755)
    plan = make_plan(seed=1)
    ResultCache(memory_bytes=0, disk_bytes=10_000, folder=folder).put(plan, image(plan))
    assert os.name == "nt" or folder.stat().st_mode & 0o777 == 0o700


def test_how_a_picture_was_drawn_is_not_kept():
    plan, cache = make_plan(seed=1), ResultCache(memory_bytes=10_000)
    attempt = Attempt(number=0, seed=1)
    drawn = replace(
        image(plan), pixels=bytes(9), timings=StageTimings(write_s=1.0), attempts=(attempt,)
    )
    cache.put(plan, drawn)
    assert cache.get(plan) == image(plan)
    assert cache.get(plan).pixels is None
