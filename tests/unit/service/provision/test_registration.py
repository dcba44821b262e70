"""Models get their names from the command line and over HTTP, and nothing leaves the model store."""

import asyncio
import io
import json
import os
import zipfile

import pytest
from PIL import Image
from tests import tiny
from tests.serving import open_door

from mezzotint.errors import InvalidRequest, MezzotintError, UnknownName
from mezzotint.models.families.gan import GanConfig, build_generator, write_gan
from mezzotint.models.formats.archive import pack
from mezzotint.models.formats.torchserve_archive import inspect_mar
from mezzotint.observe import log
from mezzotint.observe.config import LogConfig
from mezzotint.request import GenerationRequest
from mezzotint.service.engine import Engine
from mezzotint.service.local import create_service
from mezzotint.service.provision.registration import own_name

CONFIG = GanConfig(latent_size=4, image_size=16, channels=(8, 4))


def write_model(folder):
    with tiny.seeded(5):
        return write_gan(folder, CONFIG, build_generator(CONFIG).state_dict())


def write_code(path, name="shout", version="2.0"):
    model = {"modelName": name, "modelVersion": version, "handler": "h.py"}
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": model}))
        packed.writestr(
            "h.py", "def handle(data, context):\n    return [b'hi'] * len(data or [])\n"
        )
    return path


@pytest.fixture
def place(tmp_path):
    """A model store with one model in it, and another model beside it."""
    (tmp_path / "store").mkdir()
    write_model(tmp_path / "store" / "inside")
    write_model(tmp_path / "outside")
    return tmp_path


def options(place, *models, model_store="store", **more):
    return {
        "models": {
            "home": str(place / "home"), "backend": "torch", "placement": {"device": "cpu"}, **more,
        },
        "engine": {"calibrate_s": 0.0}, "model_store": model_store and str(place / model_store),
        "ready": list(models),
    }  # fmt: skip


@pytest.fixture
def start(place):
    """Start a service and say what it calls the models that it was given."""
    started = []

    def begin(*models, **more):
        service = create_service(options(place, *models, **more))
        started.append(service)
        builtin = {"plate", "plate-quick", "plate-gan"}
        listed = [m for m in asyncio.run(service.models()) if m["name"] not in builtin]
        return service, {f"{m['name']}@{m['version']}" for m in listed}

    yield begin
    for service in started:
        service.shut()


@pytest.fixture
def told():
    """The lines of the log."""
    stream = io.StringIO()
    log.configure(LogConfig(level="info", format="json"), stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    log.configure(LogConfig(), io.StringIO())


def size_of(result):
    return Image.open(io.BytesIO(result.images[0].data)).size


def draw(service, name):
    request = GenerationRequest(model=name, seed=3)
    return asyncio.run(service.generate(request, request_id=f"draw {name}"))


class TestAtTheStart:
    def test_a_name_with_a_path_is_registered_once_and_draws(self, start, place):
        service, names = start(f"tiny={place / 'outside'}")
        assert names == {"tiny@1.0"}
        assert size_of(draw(service, "tiny")) == (16, 16)

    def test_an_engine_takes_names_with_paths_and_bare_paths(self, place):
        path = str(place / "outside")
        with Engine([f"tiny={path}", path], device="cpu", home=place, backend="torch") as engine:
            pictures = [
                engine.generate(GenerationRequest(model=name, seed=3)) for name in ("tiny", path)
            ]
        assert pictures[0].images[0].pixels.tobytes() == pictures[1].images[0].pixels.tobytes()

    def test_a_path_may_hold_an_equals_sign(self, place):
        path = str(write_model(place / "a=b"))
        with Engine([path], device="cpu", home=place, backend="torch") as engine:
            assert size_of(engine.generate(GenerationRequest(model=path, seed=3))) == (16, 16)

    def test_the_operator_names_any_path_whatever_others_may(self, start, place):
        os.symlink(place / "outside", place / "store" / "linked")
        _, names = start(f"a={place / 'outside'}", "b=inside", "c=linked", allow_paths=False)
        assert names == {"a@1.0", "b@1.0", "c@1.0"}

    def test_what_lies_in_the_model_store_needs_no_name(self, start, place):
        pack(place / "outside", place / "store" / "file.mzt", name="packed", version="3")
        write_code(place / "store" / "file.mar")
        _, names = start("inside", "file.mzt", "file.mar", allow_paths=False)
        assert names == {"inside@1.0", "packed@3", "shout@2.0"}

    def test_a_path_without_a_name_keeps_the_archives_own(self, start, place):
        _, names = start(f"={write_code(place / 'elsewhere.mar', name='own')}")
        assert names == {"own@2.0"}

    def test_all_is_everything_in_the_model_store(self, start, place, told):
        write_code(place / "store" / "file.mar")
        (place / "store" / "notes.txt").write_text("nothing for us")
        (place / "store" / ".hidden.mar").write_text("nor this")
        (place / "store" / "broken.mar").write_text("no archive")
        _, names = start("ALL")
        assert names == {"inside@1.0", "shout@2.0"}
        skipped = {t["source"] for t in told() if t["event"] == "model.skipped"}
        assert skipped == {"notes.txt", "broken.mar"}

    def test_all_skips_weights_that_are_broken(self, start, place, told):
        broken = write_model(place / "store" / "broken")
        (broken / "generator.safetensors").write_bytes(b"\0" * 100)
        _, names = start("all")
        assert names == {"inside@1.0"}
        assert [t["source"] for t in told() if t["event"] == "model.skipped"] == ["broken"]

    def test_all_needs_a_model_store(self, start):
        with pytest.raises(InvalidRequest, match="no model store"):
            start("all", model_store="")

    @pytest.mark.parametrize("wanted", ["nobody", "tiny=nowhere.mar"])
    def test_what_is_not_there_stops_the_start(self, start, wanted):
        with pytest.raises(MezzotintError):
            start(wanted)

    def test_a_name_that_is_taken_stops_the_start(self, start, place):
        with pytest.raises(InvalidRequest, match="exists already"):
            start(f"plate={place / 'outside'}")

    def test_handler_code_is_registered_and_not_warmed_up(self, start, place, told):
        mar = write_code(place / "store" / "shout.mar")
        service, names = start("loud=shout.mar", f"tiny={place / 'outside'}")
        assert names == {"loud@2.0", "tiny@1.0"}
        assert "loud" not in asyncio.run(service.health())["waiting_for"]
        (line,) = [t for t in told() if t["event"] == "model.code_not_allowed"]
        assert (line["model"], line["sha256"]) == ("loud", inspect_mar(mar).digest)
        allowed = {"allow_handler_code": True, "allowed_handlers": [line["sha256"]]}
        service, _ = start("loud=shout.mar", **allowed)

        async def call():
            try:
                return await service.handle("loud", [{"body": b""}])
            finally:
                await service.close()

        assert [answer.data for answer in asyncio.run(call())] == [b"hi"]


class TestOverHttp:
    @pytest.fixture
    def doors(self, start):
        def begin(**more):
            return open_door(service=start(**more)[0], register_paths=True)

        return begin

    def register(self, door, url, **more):
        answer = door.management.post("/models", params={"url": url, **more})
        listed = door.management.get("/models").json()["models"]
        return answer.status_code, sorted(m["modelName"] for m in listed if "plate" not in str(m))

    @pytest.mark.parametrize("allowed", [False, True])
    def test_a_name_in_the_model_store_is_always_allowed(self, doors, place, allowed):
        with doors(allow_paths=allowed) as door:
            assert self.register(door, "inside") == (200, ["inside"])
            full = str(place / "store" / "inside")
            assert self.register(door, full, model_name="b") == (200, ["b", "inside"])

    @pytest.mark.parametrize(
        "source",
        ["{place}/outside", "file://{place}/outside", "../outside", "linked", "inside/up", "{place}",
         "store/../outside", "~/outside", "some/hub-id", "{place}/store", "{place}/nothing"],
    )  # fmt: skip
    def test_nothing_else_is_where_paths_are_not_allowed(self, doors, place, source, monkeypatch):
        monkeypatch.chdir(place)
        monkeypatch.setenv("HOME", str(place))
        os.symlink(place / "outside", place / "store" / "linked")
        os.symlink(place / "outside", place / "store" / "inside" / "up")
        with doors(allow_paths=False) as door:
            assert self.register(door, source.format(place=place), model_name="x") == (404, [])

    def test_paths_and_links_are_where_they_are_allowed(self, doors, place):
        os.symlink(place / "outside", place / "store" / "linked")
        with doors(allow_paths=True) as door:
            assert self.register(door, str(place / "outside"), model_name="x") == (200, ["x"])
            assert self.register(door, "linked") == (200, ["linked", "x"])

    def test_the_answer_does_not_tell_what_exists(self, doors, place):
        with doors(allow_paths=False) as door:
            texts = [
                door.management.post("/models", params={"url": url}).json()["message"]
                for url in ("/etc/passwd", "/etc/nothing-of-that-name")
            ]
        assert texts[0].replace("/etc/passwd", "X") == texts[1].replace(
            "/etc/nothing-of-that-name", "X"
        )

    def test_an_archive_keeps_the_name_of_its_manifest(self, doors, place):
        write_code(place / "store" / "file.mar")
        with doors() as door:
            assert self.register(door, "file.mar") == (200, ["shout"])


def test_own_names(tmp_path):
    folder = write_model(tmp_path / "v1.5")
    assert own_name(str(folder)) == "v1.5"
    assert own_name("maker/model-x") == "model-x"
    with pytest.raises(MezzotintError):
        own_name(str(tmp_path))


def test_what_is_unknown_names_what_is_there(start):
    service, _ = start(allow_paths=False)
    with pytest.raises(UnknownName, match="inside"):
        asyncio.run(service.register("insid"))


@pytest.mark.parametrize("source", ["missing.mar", "x" * 5000, "a\0b"])
def test_what_is_neither_there_nor_a_hub_id_has_no_name_of_its_own(source):
    with pytest.raises(UnknownName, match="model source"):
        own_name(source)
    assert own_name("org/model-of-a-hub") == "model-of-a-hub"
