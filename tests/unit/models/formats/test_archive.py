import io
import json
import os
import stat
import struct
import tarfile
import zipfile

import pytest
import torch
from safetensors.torch import save

from mezzotint.errors import ArchiveError, CardError, MezzotintError
from mezzotint.models.families.gan import GanConfig, build_generator, load_gan, write_gan
from mezzotint.models.formats.archive import inspect_archive, pack, unpack_archive
from mezzotint.models.formats.safe_unpacking import ArchiveLimits, open_tar, open_zip, unpack

CONFIG = GanConfig(latent_size=4, image_size=8, channels=(4,))


@pytest.fixture
def folder(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(3)
        write_gan(tmp_path / "gan", CONFIG, build_generator(CONFIG).state_dict())
    (tmp_path / "gan" / "README.md").write_text("for people")
    return tmp_path / "gan"


@pytest.fixture
def packed(tmp_path, folder):
    pack(folder, tmp_path / "m.mzt", name="tiny", licence="MIT", defaults={"default_steps": 3})
    return tmp_path / "m.mzt"


def rewrite(source, target, change):
    """Copy an archive with its entries changed: ``change`` gets and returns {name: bytes}."""
    with zipfile.ZipFile(source) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in change(entries).items():
            archive.writestr(name, data)
    return target


def manifest_of(path):
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("manifest.json"))


def left_behind(folder):
    return [p.name for p in folder.iterdir() if "partial" in p.name or p.name == "out"]


def test_a_model_survives_packing_and_unpacking(tmp_path, folder, packed):
    manifest = unpack_archive(packed, tmp_path / "out")
    assert (manifest.name, manifest.version, manifest.family) == ("tiny", "1.0", "gan")
    assert manifest.card().default_steps == 3
    assert load_gan(tmp_path / "out").spec.digest == load_gan(folder).spec.digest == manifest.digest
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "generator.safetensors"]


def test_equal_models_make_equal_bytes(tmp_path, folder, packed):
    os.utime(folder / "config.json", (0, 0))
    pack(folder, tmp_path / "again.mzt", name="tiny", licence="MIT", defaults={"default_steps": 3})
    assert (tmp_path / "again.mzt").read_bytes() == packed.read_bytes()


def test_the_manifest_is_as_the_contract_says(packed, folder):
    manifest = manifest_of(packed)
    size = (folder / "generator.safetensors").stat().st_size
    assert {"name", "version", "family", "files", "defaults", "licence"} <= set(manifest)
    assert manifest["files"]["generator.safetensors"]["size"] == size
    assert inspect_archive(packed, verify=True).files == manifest["files"]


def test_a_single_checkpoint_is_packed_too(tmp_path):
    (tmp_path / "one.safetensors").write_bytes(save({"a": torch.zeros(2)}))
    pack(tmp_path / "one.safetensors", tmp_path / "one.mzt", name="one")
    assert unpack_archive(tmp_path / "one.mzt", tmp_path / "out").layout == "single_file"


@pytest.mark.parametrize("name", ["weights.pt", "handler.py", "model.bin"])
def test_pickles_and_code_are_not_packed(tmp_path, folder, name):
    (folder / name).write_bytes(b"x")
    with pytest.raises(ArchiveError, match=name):
        pack(folder, tmp_path / "bad.mzt", name="bad")
    assert not (tmp_path / "bad.mzt").exists()


def test_defaults_that_no_card_takes_are_refused_when_packing(tmp_path, folder):
    with pytest.raises(CardError, match="steps"):
        pack(folder, tmp_path / "bad.mzt", name="bad", defaults={"steps": 3})


HOSTILE = {
    "traversal": (lambda e: {**e, "../evil.json": b"{}"}, "outside the folder"),
    "deep traversal": (lambda e: {**e, "a/../../evil.json": b"{}"}, "outside the folder"),
    "absolute": (lambda e: {**e, "/etc/evil.json": b"{}"}, "outside the folder"),
    "backslash": (lambda e: {**e, "a\\..\\evil.json": b"{}"}, "outside the folder"),
    "drive": (lambda e: {**e, "C:evil.json": b"{}"}, "outside the folder"),
    "huge name": (lambda e: {**e, "a" * 300 + ".json": b"{}"}, "308 characters|305 characters"),
    "deep": (lambda e: {**e, "a/" * 30 + "x.json": b"{}"}, "not plain"),
    "hidden": (lambda e: {**e, ".ssh/config.json": b"{}"}, "not plain"),
    "control characters": (lambda e: {**e, "a\x1b[2J.json": b"{}"}, "not plain"),
    "case": (lambda e: {**e, "CONFIG.json": b"{}"}, "differ by case"),
    "file as folder": (lambda e: {**e, "config.json/x.json": b"{}"}, "inside a file"),
    "pickle": (lambda e: {**e, "weights.pkl": b"x"}, "does not name"),
    "not in manifest": (lambda e: {**e, "more.json": b"{}"}, "does not name"),
    "missing": (
        lambda e: {k: v for k, v in e.items() if k != "config.json"},
        "lacks 'config.json'",
    ),
    "no manifest": (lambda e: {k: v for k, v in e.items() if k != "manifest.json"}, "no manifest"),
    "broken manifest": (lambda e: {**e, "manifest.json": b"{"}, "cannot be understood"),
    "odd manifest": (lambda e: {**e, "manifest.json": b"[]"}, "cannot be understood"),
    "other size": (lambda e: {**e, "config.json": b"{}"}, "should have"),
    "other content": (
        lambda e: {**e, "config.json": e["config.json"].replace(b"dcgan", b"DCGAN")},
        "corrupt: expected sha256",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_are_refused_and_leave_nothing_behind(tmp_path, packed, case):
    change, message = HOSTILE[case]
    bad = rewrite(packed, tmp_path / "bad.mzt", change)
    with pytest.raises(ArchiveError, match=message):
        unpack_archive(bad, tmp_path / "out")
    assert left_behind(tmp_path) == []
    assert not (tmp_path.parent / "evil.json").exists()


def listed(entries, name, data):
    """Add a file and name it in the manifest, as a careful attacker would."""
    import hashlib

    manifest = json.loads(entries["manifest.json"])
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    return {**entries, "manifest.json": json.dumps(manifest).encode(), name: data}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.pkl", b"cos\nsystem\n.", "not safetensors, JSON or text"),
        ("x.py", b"import os", "not safetensors, JSON or text"),
        ("x.json", b"{nonsense", "broken JSON"),
        ("x.json", b"[" * 100_000, "broken JSON"),
        ("x.safetensors", b"PK\3\4 not one", "not a safetensors file"),
    ],
)
def test_files_that_are_not_what_they_say_are_refused(tmp_path, packed, name, data, message):
    bad = rewrite(packed, tmp_path / "bad.mzt", lambda e: listed(e, name, data))
    with pytest.raises(ArchiveError, match=message):
        unpack_archive(bad, tmp_path / "out")
    assert left_behind(tmp_path) == []


def test_links_are_refused(tmp_path, packed):
    with zipfile.ZipFile(packed, "a") as archive:
        info = zipfile.ZipInfo("link.json")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ArchiveError, match="link or device"):
        unpack_archive(packed, tmp_path / "out")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicates_are_refused(tmp_path, packed):
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(ArchiveError, match="twice"):
        unpack_archive(packed, tmp_path / "out")


def test_a_bomb_is_refused_by_its_ratio_before_it_is_unpacked(tmp_path, packed):
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.json", b"0" * 300_000_000, compresslevel=9)
    with pytest.raises(ArchiveError, match="unpacks"):
        unpack_archive(packed, tmp_path / "out")
    assert left_behind(tmp_path) == []


def test_a_size_that_lies_is_found_while_unpacking(tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.json", b"0" * 1000)
    data = bytearray(stream.getvalue())
    central = data.rindex(b"PK\1\2")
    data[central + 24 : central + 28] = struct.pack("<I", 10)
    with (
        pytest.raises(ArchiveError, match=r"broken|as long as it says"),
        open_zip(io.BytesIO(bytes(data)), ArchiveLimits(), source="x") as contents,
    ):
        unpack(contents, tmp_path / "out", source="x")
    assert left_behind(tmp_path) == []


def test_limits_on_count_and_bytes_hold(tmp_path, packed):
    with pytest.raises(ArchiveError, match="at most 2"):
        inspect_archive(packed, limits=ArchiveLimits(max_files=2))
    with pytest.raises(ArchiveError, match="at most 100"):
        inspect_archive(packed, limits=ArchiveLimits(max_bytes=100))


def test_encrypted_entries_and_what_is_no_zip_are_refused(tmp_path, packed):
    data = bytearray(packed.read_bytes())
    central = data.index(b"PK\1\2")
    data[central + 8] |= 1
    (tmp_path / "locked.mzt").write_bytes(bytes(data))
    with pytest.raises(ArchiveError, match="encrypted"):
        inspect_archive(tmp_path / "locked.mzt")
    (tmp_path / "none.mzt").write_bytes(b"hello")
    with pytest.raises(ArchiveError, match="no readable zip"):
        inspect_archive(tmp_path / "none.mzt")


def test_an_archive_cut_off_anywhere_is_refused(tmp_path, packed):
    data = packed.read_bytes()
    for part in range(1, 20):
        (tmp_path / "cut.mzt").write_bytes(data[: len(data) * part // 20])
        with pytest.raises(MezzotintError):
            unpack_archive(tmp_path / "cut.mzt", tmp_path / "out")
    assert left_behind(tmp_path) == []


def test_changed_bytes_are_never_unpacked_as_they_are(tmp_path, packed):
    import random

    rng, data = random.Random(2), packed.read_bytes()
    with zipfile.ZipFile(packed) as archive:
        good = {n: archive.read(n) for n in archive.namelist() if n != "manifest.json"}
    for number in range(60):
        broken = bytearray(data)
        broken[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (tmp_path / "b.mzt").write_bytes(bytes(broken))
        out = tmp_path / f"out{number}"
        try:
            unpack_archive(tmp_path / "b.mzt", out)
        except ArchiveError:
            assert not out.exists()
        else:  # a bit that means nothing: a time stamp, a comment
            assert {n: (out / n).read_bytes() for n in good} == good


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (tarfile.SYMTYPE, "a"),
        (tarfile.LNKTYPE, "a"),
        (tarfile.FIFOTYPE, "a"),
        (tarfile.REGTYPE, "../a"),
    ],
)
def test_tars_with_links_or_climbing_names_are_refused(tmp_path, kind, name):
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with (
        pytest.raises(ArchiveError, match=r"link or device|outside"),
        open_tar(tmp_path / "x.tgz", ArchiveLimits(), source="x"),
    ):
        pass
