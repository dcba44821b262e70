import json
import threading
import time
from pathlib import Path

import pytest
import torch

from mezzotint.errors import (
    CardError,
    InvalidRequest,
    ModelNotAllowed,
    UnknownName,
    WeightsError,
)
from mezzotint.models import digests
from mezzotint.models.base import Model
from mezzotint.models.cards import Card, card_to_toml, read_card
from mezzotint.models.config import ModelsConfig, PlacementConfig
from mezzotint.models.digests import DigestCache
from mezzotint.models.families.gan import GanConfig, build_generator, load_gan, write_gan
from mezzotint.models.formats.archive import pack
from mezzotint.models.formats.identify import identify
from mezzotint.models.store import loading as loading_module
from mezzotint.models.store import store as store_module
from mezzotint.models.store.direct import load_model
from mezzotint.models.store.hub import fetch, hub_cards
from mezzotint.models.store.store import ModelStore
from mezzotint.types import Size

CONFIG = GanConfig(latent_size=4, image_size=8, channels=(4,), licence="MIT")
BYTES = 4 * (4 * 4 * 16 + 4 * 4 + 4 * 3 * 16)


@pytest.fixture
def folder(tmp_path):
    return write_gan(tmp_path / "here", CONFIG, build_generator(CONFIG).state_dict())


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def open_store(home, **config):
    return ModelStore(ModelsConfig(home=str(home), **config))


def test_a_folder_is_added_found_and_loaded(home, folder):
    store = open_store(home)
    store.add("tiny", folder)
    assert store.load("tiny").spec.name == "tiny"
    assert store.load("tiny").spec.licence == "MIT"
    assert "tiny" in open_store(home).names()
    assert open_store(home).load("tiny").spec.digest == load_gan(folder).spec.digest


def test_builtin_models_are_always_there(home):
    store = open_store(home)
    assert {"plate", "plate-gan"} <= set(store.names())
    assert store.entry("plate").is_builtin


def test_a_name_like_a_known_one_is_suggested(home):
    with pytest.raises(UnknownName, match="did you mean 'plate'") as caught:
        open_store(home).load("plait")
    assert caught.value.field == "model"


def test_versions_live_beside_each_other(home, folder, tmp_path):
    other = write_gan(tmp_path / "other", CONFIG, build_generator(CONFIG).state_dict())
    store = open_store(home)
    store.add("tiny", folder, version="1.0")
    store.add("tiny", other, version="2.0")
    first, second = load_gan(folder).spec.digest, load_gan(other).spec.digest
    assert store.load("tiny").spec.digest == first
    assert store.load("tiny@2.0").spec.digest == second
    assert store.load("tiny@2.0").spec.name == "tiny@2.0"
    store.set_default("tiny", "2.0")
    assert open_store(home).load("tiny").spec.digest == second
    assert store.load("tiny").spec.name == "tiny"
    assert store.load("tiny@1.0").spec.name == "tiny@1.0"
    with pytest.raises(UnknownName, match=r"version of model tiny '3\.0'.*Known: 1\.0, 2\.0"):
        store.load("tiny@3.0")


def test_the_default_version_set_again_stays_in_memory(home, folder):
    store = open_store(home)
    store.add("tiny", folder, version="1.0")
    store.load("tiny")
    store.set_default("tiny", "1.0")
    assert store.residency.sizes() == {"tiny@1.0": BYTES}


def test_removing_leaves_files_outside_the_store_alone(home, folder):
    store = open_store(home)
    store.add("tiny", folder)
    store.load("tiny")
    assert store.residency.sizes() == {"tiny@1.0": BYTES}
    store.remove("tiny")
    assert "tiny" not in store.names()
    assert sum(store.residency.sizes().values()) == 0
    assert (folder / "config.json").is_file()
    assert not (home / "models" / "tiny").exists()
    with pytest.raises(UnknownName):
        store.remove("tiny")


def test_a_builtin_model_is_hidden_only_while_the_program_runs(home):
    store = open_store(home)
    store.remove("plate-gan")
    assert "plate-gan" not in store.names()
    assert "plate-gan" in open_store(home).names()


def test_another_store_on_the_same_home_sees_what_is_added_and_removed(home, folder):
    ours, theirs = open_store(home), open_store(home)
    assert "tiny" not in theirs.names()  # its list holds from here for a moment
    late_s = store_module._LOOK_AGAIN_S + 0.05
    ours.add("tiny", folder)
    assert "tiny" in ours.names()  # who changes it sees it at once
    time.sleep(late_s)
    assert "tiny" in theirs.names()
    assert theirs.entry("tiny").path == ours.entry("tiny").path
    assert theirs.load("tiny").spec.digest == load_gan(folder).spec.digest

    other = write_gan(home / "other", CONFIG, build_generator(CONFIG).state_dict())
    ours.add("tiny", other, version="2.0")
    ours.set_default("tiny", "2.0")
    time.sleep(late_s)
    assert [e.is_default for e in theirs.entries() if e.name == "tiny"] == [False, True]
    assert theirs.load("tiny").spec.digest == load_gan(other).spec.digest

    ours.remove("tiny@1.0")
    ours.remove("tiny@2.0")
    assert "tiny" not in ours.names()
    time.sleep(late_s)
    assert "tiny" not in theirs.names()
    with pytest.raises(UnknownName):
        theirs.load("tiny")


def test_what_another_store_changed_is_not_answered_from_memory(home, folder, tmp_path):
    other = write_gan(tmp_path / "other", CONFIG, build_generator(CONFIG).state_dict())
    first, second = load_gan(folder).spec.digest, load_gan(other).spec.digest
    ours, theirs = open_store(home), open_store(home)
    late_s = store_module._LOOK_AGAIN_S + 0.05
    ours.add("tiny", folder, version="1.0")
    ours.add("tiny", other, version="2.0")
    assert theirs.load("tiny").spec.digest == first

    ours.set_default("tiny", "2.0")
    time.sleep(late_s)
    assert theirs.load("tiny").spec.digest == second
    assert theirs.load("tiny@1.0").spec.name == "tiny@1.0"  # the bare name means another
    assert theirs.load("tiny@1.0").spec.digest == first

    ours.remove("tiny@1.0")
    time.sleep(late_s)
    theirs.names()
    assert sum(theirs.residency.sizes().values()) == BYTES  # of 2.0


def test_an_archive_replaced_by_another_store_is_loaded_anew(home, folder, tmp_path):
    other = write_gan(tmp_path / "other", CONFIG, build_generator(CONFIG).state_dict())
    for number, source in enumerate((folder, other)):
        pack(source, tmp_path / f"{number}.mzt", name="packed", version="3", licence="MIT")
    ours, theirs = open_store(home), open_store(home)
    ours.add("packed", tmp_path / "0.mzt")
    first = theirs.load("packed")
    ours.remove("packed")  # and nobody asks the other store until it is there again
    ours.add("packed", tmp_path / "1.mzt")
    time.sleep(store_module._LOOK_AGAIN_S + 0.05)
    assert theirs.load("packed").spec.digest == load_gan(other).spec.digest
    assert theirs.load("packed").spec.digest != first.spec.digest


def test_what_nobody_changed_stays_in_memory(home, folder):
    store = open_store(home)
    store.add("tiny", folder, version="1.0")
    store.add("passing", folder, keep=False)
    first, passing, named = store.load("tiny"), store.load("passing"), store.load("plate-gan")
    time.sleep(store_module._LOOK_AGAIN_S + 0.05)
    assert store.load("tiny") is first
    assert store.load("passing") is passing
    assert store.load("plate-gan") is named


def test_an_archive_is_unpacked_into_the_store_and_goes_with_it(home, folder, tmp_path):
    pack(
        folder,
        tmp_path / "m.mzt",
        name="packed",
        version="3",
        licence="MIT",
        defaults={"min_size_px": 4},
    )
    store = open_store(home)
    entry = store.add("mine", tmp_path / "m.mzt")
    assert (entry.name, entry.version, entry.is_owned) == ("mine", "3", True)
    (tmp_path / "m.mzt").unlink()
    again = open_store(home)
    assert again.load("mine").spec.min_size_px == 4
    assert Path(again.entry("mine").path).is_relative_to(home)
    again.remove("mine")
    assert not (home / "models" / "mine").exists()


def test_a_foreign_checkpoint_is_converted_into_the_store(home, tmp_path):
    state = build_generator(CONFIG).state_dict()
    torch.save({"netG_state_dict": state}, tmp_path / "weights.tar")
    store = open_store(home)
    entry = store.import_checkpoint("faces", tmp_path / "weights.tar", licence="MIT")
    assert Path(entry.path).is_relative_to(home / "models" / "faces")
    assert open_store(home).load("faces").spec.licence == "MIT"
    (tmp_path / "bad.pt").write_bytes(b"x")
    with pytest.raises(WeightsError, match="not a torch checkpoint"):
        store.import_checkpoint("bad", tmp_path / "bad.pt")
    assert not list((home / "cache" / "archives").iterdir())


def test_a_registration_that_is_not_kept_is_gone_after_a_restart(home, folder):
    store = open_store(home)
    store.add("tiny", folder, keep=False)
    assert store.load("tiny").spec.name == "tiny"
    assert "tiny" not in open_store(home).names()


def test_names_and_versions_that_are_taken_or_no_names_are_refused(home, folder):
    store = open_store(home)
    store.add("tiny", folder)
    with pytest.raises(InvalidRequest, match="exists already"):
        store.add("tiny", folder)
    for name in ("../x", "a b", "", ".hidden", "x" * 101, "a@b", "a/b"):
        with pytest.raises(InvalidRequest, match="name must be"):
            store.add(name, folder)
    with pytest.raises(UnknownName):
        store.add("other", folder / "nothing")


def test_paths_are_names_only_where_that_is_allowed(home, folder, monkeypatch):
    assert open_store(home).load(str(folder)).spec.name == str(folder)
    monkeypatch.chdir(folder.parent)
    assert open_store(home).load("./here").spec.family == "gan"
    strict = open_store(home, allow_paths=False)
    for name in (str(folder), "./here", "owner/name", "../../etc/passwd"):
        with pytest.raises(ModelNotAllowed, match="names from its store only"):
            strict.load(name)


def test_corrupt_files_name_the_file_and_both_digests(home, folder):
    store = open_store(home)
    store.add("tiny", folder)
    card = home / "models" / "tiny" / "1.0" / "card.toml"
    digest = "0" * 64
    card.write_text(card.read_text() + f'\n[sha256]\n"generator.safetensors" = "{digest}"\n')
    with pytest.raises(WeightsError, match=f"expected sha256 {digest}, found [0-9a-f]{{64}}"):
        open_store(home).load("tiny")


def test_files_that_went_missing_are_said_to_be(home, folder):
    store = open_store(home)
    store.add("tiny", folder)
    folder.rename(folder.with_name("moved"))
    with pytest.raises(WeightsError, match="its files are missing, expected at"):
        store.load("tiny")


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin"])
def test_pickles_are_refused_with_the_way_out(home, tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"pickle.*weights_only=True"):
        open_store(home).load(str(tmp_path / name))


def test_what_is_no_model_says_what_is_expected(tmp_path):
    with pytest.raises(WeightsError, match=r"model_index\.json"):
        identify(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(WeightsError, match="one part of a model"):
        identify(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(WeightsError, match="no model file"):
        identify(tmp_path / "notes.txt")


class Slow(Model):
    """A model that takes its time to load and says how large it is."""

    denoiser = None
    made = 0

    def __init__(self, spec, num_bytes):
        self.spec, self.networks, self._num_bytes = spec, {}, num_bytes
        Slow.made += 1

    num_bytes = property(lambda self: self._num_bytes)

    def latent_shape(self, size):
        return (1,)

    def encode(self, prompts):
        return []

    def decode(self, latents, conditioning=None, *, report=None):
        return latents


@pytest.fixture
def counted(home, folder, monkeypatch):
    """A store of three models of 100 bytes each, whose loads are counted."""
    spec = load_gan(folder).spec
    Slow.made = 0

    def load(path, *, name, **_):
        time.sleep(0.05)
        from dataclasses import replace

        return Slow(replace(spec, name=name), 100)

    monkeypatch.setattr(loading_module, "load_path", load)
    store = open_store(home, max_bytes=250)
    for name in ("a", "b", "c"):
        store.add(name, folder)
    return store


def test_however_many_ask_a_model_is_loaded_once(counted):
    models = []
    threads = [threading.Thread(target=lambda: models.append(counted.load("a"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Slow.made == 1
    assert len({id(model) for model in models}) == 1


def test_the_least_recently_used_model_goes_first(counted):
    for name in ("a", "b", "a", "c"):
        counted.load(name)
    assert [counted.is_loaded(name) for name in "abc"] == [True, False, True]
    assert sum(counted.residency.sizes().values()) == 200


def test_weights_have_the_datatype_of_the_placement(home, folder):
    placement = PlacementConfig(device="cpu", dtype="bfloat16")
    store = open_store(home, backend="torch", placement=placement)
    (network,) = store.load(str(folder)).networks.values()
    assert network.dtype == torch.bfloat16


def test_a_model_in_use_stays_even_beyond_the_bound(counted):
    with counted.use("a") as first, counted.use("b"), counted.use("c"):
        assert sum(counted.residency.sizes().values()) == 300
        assert counted.load("a") is first
    assert sum(counted.residency.sizes().values()) <= 250


def test_a_model_that_changes_while_it_is_loaded_is_loaded_anew(counted, monkeypatch, folder):
    works, begun, go_on = loading_module.load_path, threading.Event(), threading.Event()

    def load(path, **named):
        begun.set()
        assert go_on.wait(10)
        return works(path, **named)

    monkeypatch.setattr(loading_module, "load_path", load)
    thread = threading.Thread(target=lambda: counted.load("a"))
    thread.start()
    assert begun.wait(10)
    counted.add("a", folder, version="2.0")
    counted.set_default("a", "2.0")
    go_on.set()
    thread.join()
    assert counted.load("a@1.0").spec.name == "a@1.0"  # "a" means 2.0 now
    assert counted.load("a").spec.name == "a"
    assert counted.load("a@2.0") is counted.load("a")


def test_a_load_that_fails_is_tried_again_by_the_next(counted, monkeypatch):
    works = loading_module.load_path
    monkeypatch.setattr(loading_module, "load_path", lambda *_, **__: 1 / 0)
    with pytest.raises(WeightsError, match=r"model a@1\.0 cannot be read"):
        counted.load("a")
    monkeypatch.setattr(loading_module, "load_path", works)
    assert counted.load("a").spec.name == "a"


def test_another_placement_is_another_model_in_memory(counted):
    counted.load("a")
    counted.load("a", PlacementConfig(dtype="bfloat16"))
    assert Slow.made == 2


def test_a_description_is_plain_data_for_lists(home, folder):
    store = open_store(home)
    store.add("tiny", folder)
    described = store.describe("tiny")
    assert json.loads(json.dumps(described)) == described
    assert described["defaults"]["width"] == 8
    assert described["version"] == "1.0"
    assert described["default"] is True
    assert described["ready"] is False
    assert store.describe("tiny")["ready"] is True


def test_bytes_of_a_gan_are_those_of_its_weights(folder):
    assert load_gan(folder).num_bytes == BYTES


def test_load_model_takes_names_paths_and_options(home, folder):
    assert Model.load(folder, home=home).spec.family == "gan"
    assert load_model(str(folder), home=home, device="cpu").spec.default_size == Size(8, 8)
    with pytest.raises(UnknownName, match="option 'colour'"):
        load_model(folder, home=home, colour=1)
    with pytest.raises(InvalidRequest, match="device must be"):
        load_model(folder, home=home, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(WeightsError, match="cuda is not there"):
            load_model(folder, home=home, device="cuda")


def test_cards_survive_toml_and_name_what_is_wrong(tmp_path):
    card = Card(
        name="x",
        repo="o/n",
        default_size=(64, 32),
        limits=('a "b"\nc',),
        sha256={"a/b.json": "0" * 64},
    )
    path = tmp_path / "card.toml"
    path.write_text(card_to_toml(card))
    assert read_card(path) == card
    for text, message in [
        ("name = ", "is not TOML"),
        ('version = "1"', "name is needed"),
        ('name = "x"\ncolour = 1', "unknown key 'colour'"),
        ('name = "x"\ndefault_steps = 0', "default_steps must be 1 to 1000"),
        ('name = "x"\ndefault_size = [64]', r"\[width, height\]"),
        ("name = 3", "name must be a text"),
    ]:
        path.write_text(text)
        with pytest.raises(CardError, match=message):
            read_card(path)
    with pytest.raises(CardError, match="cannot read"):
        read_card(tmp_path / "none.toml")


def test_a_broken_card_does_not_hide_the_other_models(home, folder):
    store = open_store(home)
    store.add("tiny", folder)
    broken = home / "models" / "broken" / "1.0" / "card.toml"
    broken.parent.mkdir(parents=True)
    broken.write_text("name = ")
    assert "tiny" in open_store(home).names()


def test_digests_are_computed_once_until_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "_SETTLED_NS", -1)  # as if the file were a second old
    path, kept = tmp_path / "x", tmp_path / "cache" / "digests.json"
    path.write_bytes(b"a" * (2 << 20))
    cache = DigestCache(kept)
    first = cache.digest(path)
    kept.write_text(kept.read_text().replace(first, "f" * 64))
    assert DigestCache(kept).digest(path) == "f" * 64
    assert cache.digest(path) == first
    path.write_bytes(b"b" * (2 << 20))
    assert DigestCache(kept).digest(path) not in (first, "f" * 64)


def test_a_model_keeps_a_placement_of_its_own(home, folder):
    own = {"dtype": "bfloat16", "channels_last": True}
    open_store(home).add("plain", folder)
    open_store(home).add("half", folder, placement=own)
    store = open_store(home)  # from the cards
    plain, half = store.load("plain"), store.load("half")
    assert plain.networks["decoder"].dtype == torch.float32
    assert half.networks["decoder"].dtype == torch.bfloat16
    assert half.networks["decoder"].changes == ("channels_last",)
    assert half.spec.placement == own
    assert half.spec.digest != plain.spec.digest
    limits = store.describe("half")["limits"]
    assert "placed by its card: channels_last true, dtype bfloat16" in limits


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        ({"device": "cpu"}, r"must be of dtype, offload, .*, got 'device'"),
        ({"dtype": "int3"}, r"placement\.dtype must be one of 'float32', 'float16', 'bfloat16'"),
        ({"vae_tiling": 1}, r"placement\.vae_tiling must be true or false"),
    ],
)
def test_a_placement_that_cannot_be_is_refused_when_it_is_added(home, folder, placement, message):
    with pytest.raises(InvalidRequest, match=message):
        open_store(home).add("odd", folder, placement=placement)
    assert "odd" not in open_store(home).names()


def test_offloading_a_model_from_the_cpu_is_refused_before_it_is_read(home, folder):
    store = open_store(home)
    store.add("off", folder, placement={"offload": "model"})
    with pytest.raises(InvalidRequest, match="offload model needs a device that is not the CPU"):
        store.load("off")


def test_hub_cards_are_whole_and_know_their_licences():
    cards = hub_cards()
    assert len(cards) >= 10
    assert all(card.repo and card.licence and card.default_steps for card in cards.values())


def test_without_a_network_a_hub_id_says_what_to_do(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="hf download owner/name"):
        fetch("owner/name", "main")
    with pytest.raises(ModelNotAllowed, match="not allowed"):
        fetch("owner/name", allow=False)


def test_a_hub_model_on_disk_is_used_at_its_commit(tmp_path, home, folder, monkeypatch):
    import shutil

    from huggingface_hub import constants

    commit = "a" * 40
    repo = tmp_path / "hub" / "models--owner--name"
    shutil.copytree(folder, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(
        "huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub")
    )
    assert fetch("owner/name") == (repo / "snapshots" / commit, commit)
    store = open_store(home)
    store.add("hubbed", "owner/name")
    assert store.entry("hubbed").card.revision == commit
    assert open_store(home).load("hubbed").spec.digest == load_gan(folder).spec.digest
    assert open_store(home).load("owner/name").spec.name == "owner/name"
