import json
import subprocess
import sys
import tarfile
import types
import zipfile

import pytest
import torch
from tests import tiny

from mezzotint.errors import ArchiveError, ModelNotAllowed
from mezzotint.models.config import ModelsConfig
from mezzotint.models.families.gan import GanConfig, build_generator, load_gan, write_gan
from mezzotint.models.formats.handler_defaults import HandlerDefaults, read_defaults
from mezzotint.models.formats.torchserve_archive import inspect_mar, unpack_mar
from mezzotint.models.store.store import ModelStore

CONFIG = GanConfig(latent_size=4, image_size=8, channels=(4,))
PIPELINE_HANDLER = """
class Handler:
    def inference(self, prompts):
        return self.pipe(
            prompts, num_inference_steps=50, guidance_scale=7.5, width=768, height=768
        ).images

    def postprocess(self, pictures):
        return [numpy.array(picture).tolist() for picture in pictures]
"""
HANDLER = "def handle(data, context):\n    return ['hello']\n"


def manifest(name="picture", **model):
    return json.dumps(
        {
            "createdOn": "05/11/2026 10:00:00",
            "runtime": "python",
            "archiverVersion": "0.12.0",
            "model": {"modelName": name, "modelVersion": "1.0", "handler": "handler.py", **model},
        }
    )


def write(folder, files):
    """Lay an unpacked archive out: texts, bytes, or files to copy."""
    for name, content in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def zipped(folder, target):
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder).as_posix())
    return target


def tarred(folder, target):
    with tarfile.open(target, "w:gz") as archive:
        archive.add(folder, "picture")  # the archiver puts a leading folder into tars
    return target


@pytest.fixture
def store(tmp_path):
    return ModelStore(ModelsConfig(home=str(tmp_path / "home")))


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "netG.pth"
    torch.save({"netG": build_generator(CONFIG).state_dict(), "epoch": 3}, path)
    return path


def as_folder(folder, target):
    folder.rename(target)
    return target


@pytest.mark.parametrize(
    ("form", "name"), [(zipped, "p.mar"), (tarred, "p.tar.gz"), (tarred, "p.mar"), (as_folder, "p")]
)
def test_a_dcgan_is_converted_from_every_form_of_archive(tmp_path, store, checkpoint, form, name):
    folder = write(
        tmp_path / "files",
        {
            "MAR-INF/MANIFEST.json": manifest(serializedFile="netG.pth"),
            "handler.py": HANDLER,
            "netG.pth": checkpoint.read_bytes(),
        },
    )
    entry = store.add("dcgan", form(folder, tmp_path / name))
    model = store.load("dcgan")
    assert (entry.version, model.spec.family) == ("1.0", "gan")
    own = load_gan(
        write_gan(tmp_path / "own", CONFIG, torch.load(checkpoint, weights_only=True)["netG"])
    )
    latents = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.decode(latents), own.decode(latents))
    assert not list((tmp_path / "home").rglob("*.py"))


def test_the_fashion_example_is_imported_with_its_settings_object_left_out(
    tmp_path, store, monkeypatch
):
    """examples/dcgan_fashiongen: code in models.zip, a checkpoint with an object of that code."""
    module = types.ModuleType("models.utils.config")
    module.BaseConfig = type("BaseConfig", (), {"__module__": "models.utils.config"})
    for name in ("models", "models.utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "models.utils.config", module)
    settings = module.BaseConfig()
    settings.dimLatentVector = 4
    checkpoint = tmp_path / "DCGAN_fashionGen.pth"
    state = build_generator(CONFIG).state_dict()
    torch.save(
        {"config": settings, "netG": state, "netD": {"a.weight": torch.zeros(3)}}, checkpoint
    )
    code = zipped(
        write(tmp_path / "code", {"models/DCGAN.py": "import os"}), tmp_path / "models.zip"
    )
    folder = write(
        tmp_path / "files",
        {
            "MAR-INF/MANIFEST.json": manifest(serializedFile="DCGAN_fashionGen.pth"),
            "dcgan_fashiongen_handler.py": HANDLER,
            "models.zip": code.read_bytes(),
            "DCGAN_fashionGen.pth": checkpoint.read_bytes(),
        },
    )
    found = unpack_mar(zipped(folder, tmp_path / "f.mar"), tmp_path / "cache")
    assert found.layout == "gan"
    assert any("code was left behind" in note for note in found.notes)
    assert load_gan(found.path).config == CONFIG


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_diffusers_example_is_served_as_its_folder(tmp_path, store):
    """examples/diffusers: a diffusers folder zipped as model.zip inside the archive."""
    pipeline = tiny.folder("sd1")
    inner = zipped(pipeline, tmp_path / "model.zip")
    folder = write(
        tmp_path / "files",
        {
            "MAR-INF/MANIFEST.json": manifest("diffusion", handler="diffusion_handler.py"),
            "diffusion_handler.py": PIPELINE_HANDLER,
            "model.zip": inner.read_bytes(),
        },
    )
    store.add("diffusion", zipped(folder, tmp_path / "d.mar"))
    spec = store.spec("diffusion")
    assert spec.family == "sd"
    assert spec.takes_prompt
    assert (spec.default_steps, spec.default_guidance_scale) == (50, 7.5)
    assert spec.default_size == (768, 768)
    assert store.describe("diffusion")["predictions"] == "array"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("layout", ["default", "tgz", "no-archive"])
def test_what_the_real_archiver_packs_is_the_folder_it_was_made_from(tmp_path, store, layout):
    """``torch-model-archiver`` as examples/diffusers calls it, in each of its formats."""
    pipeline = tiny.folder("sd1")
    zipped(pipeline, tmp_path / "model.zip")
    write(tmp_path, {"diffusion_handler.py": PIPELINE_HANDLER, "requirements.txt": "diffusers\n"})
    (tmp_path / "out").mkdir()
    subprocess.run(
        [
            sys.executable, "-m", "model_archiver.model_packaging", "--model-name", "diffusion",
            "--version", "2.0", "--handler", "diffusion_handler.py", "--extra-files", "model.zip",
            "--requirements-file", "requirements.txt", "--archive-format", layout,
            "--export-path", "out",
        ],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    [made] = (tmp_path / "out").iterdir()
    store.add("diffusion", made)
    store.add("folder", pipeline)
    spec, own = store.spec("diffusion"), store.spec("folder")
    assert (spec.default_steps, spec.default_size) == (50, (768, 768))
    assert (spec.family, spec.digest) == (own.family, own.digest)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("pipe(x, num_inference_steps=steps, guidance_scale=2)", {"guidance_scale": 2.0}),
        ("pipe(x, num_inference_steps=5.5, width=0, height=True)", {}),
        ("pipe(x, num_inference_steps=30)\nwarm(num_inference_steps=1)",
         {"num_inference_steps": 30}),
        ("def postprocess(self, x):\n    return x.tolist()", {"answers_lists": True}),
        ("def inference(self, x):\n    return x.tolist()", {}),
        ("def broken(:", {}),
        ("\0", {}),
        ("(" * 3000, {}),
    ],
)  # fmt: skip
def test_what_a_handler_asks_for_is_read_and_never_run(source, said):
    assert read_defaults(source) == HandlerDefaults(**said)


def test_an_archive_of_handler_code_is_recorded_and_does_not_run(tmp_path, store):
    folder = write(tmp_path / "files", {"MAR-INF/MANIFEST.json": manifest(), "handler.py": HANDLER})
    mar = zipped(folder, tmp_path / "h.mar")
    store.add("custom", mar)
    digest = inspect_mar(mar).digest
    with pytest.raises(ModelNotAllowed, match=f"allow_handler_code and allows its sha256 {digest}"):
        store.load("custom")
    assert store.describe("custom")["family"] == "handler"
    again = ModelStore(
        ModelsConfig(
            home=str(tmp_path / "home"), allow_handler_code=True, allowed_handlers=(digest,)
        )
    )
    with pytest.raises(ModelNotAllowed, match="TorchServe door only"):
        again.load("custom")


class Evil:
    def __reduce__(self):
        import os

        return (os.system, ("true",))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, store):
    torch.save({"netG": {"a.weight": torch.zeros(1)}, "x": Evil()}, tmp_path / "netG.pth")
    folder = write(
        tmp_path / "files",
        {
            "MAR-INF/MANIFEST.json": manifest(),
            "handler.py": HANDLER,
            "netG.pth": (tmp_path / "netG.pth").read_bytes(),
        },
    )
    with pytest.raises(ArchiveError, match="unsafe"):
        store.add("evil", zipped(folder, tmp_path / "e.mar"))
    assert "evil" not in store.names()
    assert not list((tmp_path / "home").rglob("*.partial"))


def test_a_bomb_or_a_climbing_name_inside_the_inner_zip_is_refused(tmp_path, store):
    for number, (name, data) in enumerate({"a.bin": b"0" * 300_000_000, "../x.bin": b"x"}.items()):
        inner = tmp_path / "model.zip"
        with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, data)
        folder = write(
            tmp_path / f"files{number}",
            {"MAR-INF/MANIFEST.json": manifest(), "model.zip": inner.read_bytes()},
        )
        with pytest.raises(ArchiveError, match=r"unpacks|outside the folder"):
            store.add("bomb", zipped(folder, tmp_path / f"b{number}.mar"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"handler.py": HANDLER}, "no MAR-INF"),
        ({"MAR-INF/MANIFEST.json": "{"}, "cannot be understood"),
        ({"MAR-INF/MANIFEST.json": "{}"}, "cannot be understood"),
        ({"MAR-INF/MANIFEST.json": manifest(), "notes.txt": "x"}, "neither a model"),
    ],
)
def test_what_is_no_torchserve_archive_says_what_is_missing(tmp_path, store, files, message):
    with pytest.raises(ArchiveError, match=message):
        store.add("x", zipped(write(tmp_path / "files", files), tmp_path / "x.mar"))


def test_links_in_an_archive_folder_are_refused(tmp_path, store):
    folder = write(tmp_path / "p", {"MAR-INF/MANIFEST.json": manifest()})
    (folder / "link.json").symlink_to("/etc/passwd")
    with pytest.raises(ArchiveError, match="link"):
        store.add("x", folder)
