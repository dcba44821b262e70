import json
import zipfile

import pytest
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A real, tiny, unconditional pipeline on disk."""
    path = tmp_path_factory.mktemp("tiny") / "model"
    tiny.ddpm().save_pretrained(path)
    return path


def test_the_list_has_the_built_in_models(cli):
    done = cli("models", "list")
    assert done.code == 0
    assert "* plate " in done.out
    names = [row["name"] for row in json.loads(cli("models", "list", "--json").out)]
    assert names == ["plate", "plate-gan", "plate-quick"]


def test_a_model_is_added_shown_and_removed(cli, folder):
    assert cli("models", "add", "tiny", folder).out == f"tiny@1.0: {folder}\n"
    shown = json.loads(cli("models", "show", "tiny", "--json").out)
    assert shown["path"] == str(folder)
    assert shown["family"] == "unconditional"
    assert len(shown["digest"]) == 64
    assert set(shown) >= {"defaults", "limits", "licence"}
    assert cli("models", "remove", "tiny").out == "removed tiny@1.0\n"
    assert cli("models", "show", "tiny").code == 2
    assert (folder / "model_index.json").is_file()


def test_a_model_is_added_with_a_placement_of_its_own(cli, folder):
    assert cli("models", "add", "half", folder, "--dtype", "bfloat16", "--channels-last").code == 0
    shown = json.loads(cli("models", "show", "half", "--json").out)
    assert "placed by its card: channels_last true, dtype bfloat16" in shown["limits"]
    refused = cli("models", "add", "odd", folder, "--dtype", "int3")
    assert refused.code == 2
    assert "placement.dtype must be one of" in refused.err


def test_a_denoiser_alone_is_told_to_take_a_base_and_needs_one_that_fits(cli, folder, tmp_path):
    file = tmp_path / "flux-Q4_0.gguf"
    file.write_bytes(b"GGUF")
    alone = cli("models", "add", "small", file)
    assert alone.code != 0
    assert "mezzotint models add NAME flux-Q4_0.gguf --base FOLDER" in alone.err
    broken = cli("models", "add", "small", file, "--base", folder)
    assert "flux-Q4_0.gguf is no whole GGUF file" in broken.err
    whole = cli("models", "add", "small", folder, "--base", folder)
    assert "the source is one .gguf or .safetensors file" in whole.err


def test_show_is_readable_for_people(cli):
    done = cli("models", "show", "plate")
    assert "family: sd" in done.out
    assert "  num_inference_steps: " in done.out


def test_defaults_are_those_of_the_model(cli):
    found = json.loads(cli("models", "defaults", "plate", "--json").out)
    assert (found["width"], found["height"]) == (128, 128)
    assert set(found) >= {"num_inference_steps", "guidance_scale", "scheduler"}


def test_the_same_name_twice_is_refused(cli, folder):
    cli("models", "add", "tiny", folder)
    done = cli("models", "add", "tiny", folder)
    assert done.code == 2
    assert "exists already" in done.err


def test_an_archive_travels_from_store_to_store(cli, folder, tmp_path, monkeypatch):
    cli("models", "add", "tiny", folder)
    digest = json.loads(cli("models", "show", "tiny", "--json").out)["digest"]
    packed = cli("archive", "pack", "tiny", "-o", "tiny.mzt", "--licence", "MIT")
    assert (packed.code, packed.out) == (0, "tiny.mzt\n")
    manifest = json.loads(cli("archive", "inspect", "tiny.mzt", "--json").out)
    assert (manifest["name"], manifest["licence"]) == ("tiny", "MIT")
    assert all(len(entry["sha256"]) == 64 for entry in manifest["files"].values())
    monkeypatch.setenv("MEZZOTINT_HOME", str(tmp_path / "other"))
    assert cli("archive", "import", "tiny.mzt").code == 0
    shown = json.loads(cli("models", "show", "tiny", "--json").out)
    assert shown["path"].startswith(str(tmp_path / "other"))
    assert shown["licence"] == "MIT"
    assert len(shown["digest"]) == len(digest)


def test_a_corrupt_archive_names_the_file(cli, folder):
    cli("archive", "pack", folder, "-o", "tiny.mzt", "--name", "tiny")
    from pathlib import Path

    data = bytearray(Path("tiny.mzt").read_bytes())
    at = data.rindex(b'"sha256": "') + len('"sha256": "') if b'"sha256": "' in data else 3000
    data[at] ^= 1
    Path("tiny.mzt").write_bytes(data)
    done = cli("archive", "inspect", "tiny.mzt")
    assert done.code == 1
    assert done.err.count("\n") == 1


def test_a_pickle_is_refused_with_how_to_convert(cli, tmp_path):
    import pickle

    (tmp_path / "model.ckpt").write_bytes(pickle.dumps({"a": 1}))
    done = cli("models", "add", "bad", "model.ckpt")
    assert done.code in (1, 2)
    assert "safetensors" in done.err
    assert done.err.count("\n") == 1


def test_importing_handler_code_says_that_it_registered_code_which_will_not_run(cli, tmp_path):
    path = tmp_path / "shout.mar"
    model = {"modelName": "shout", "modelVersion": "1.0", "handler": "shout.py"}
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": model}))
        packed.writestr("shout.py", "class Shout:\n    pass\n")
    said = cli("archive", "import", path).out
    assert said.startswith("shout@1.0: registered handler code, no model: ")
    assert "it will not run: " in said
    assert "allow_handler_code" in said
    shown = json.loads(cli("archive", "import", path, "--name", "again", "--json").out)
    assert (shown["layout"], shown["runs"]) == ("handler", False)
    assert "does not run" in shown["note"]


def test_the_list_tells_family_size_and_licence(cli, folder):
    cli("models", "add", "tiny", folder)
    lines = cli("models", "list").out.splitlines()
    assert lines[0].split() == ["name", "version", "family", "size", "licence", "where"]
    assert any("plate " in x and "sd" in x and "128x128" in x and "Apache-2.0" in x for x in lines)
    row = next(r for r in json.loads(cli("models", "list", "--json").out) if r["name"] == "tiny")
    assert (row["family"], row["width"], row["height"]) == ("unconditional", 32, 32)


def test_a_model_that_is_broken_says_so_and_the_others_are_listed(cli, folder, tmp_path):
    import shutil

    own = shutil.copytree(folder, tmp_path / "own")
    cli("models", "add", "own", own)
    (own / "model_index.json").write_text("{")
    done = cli("models", "list")
    assert done.code == 0
    assert done.err.startswith("own@1.0: ")
    assert "plate" in done.out


def torchserve_archive(path, model):
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": model}))
        packed.writestr("shout.py", "class Shout:\n    pass\n")


def test_a_torchserve_archive_is_inspected_and_imported_by_its_own_name(cli, tmp_path):
    model = {"modelName": "shout", "modelVersion": "2.0", "handler": "shout.py"}
    torchserve_archive(tmp_path / "model-v2-final.mar", model)
    found = json.loads(cli("archive", "inspect", "model-v2-final.mar", "--json").out)
    assert (found["name"], found["version"], found["has_code"]) == ("shout", "2.0", True)
    assert "shout.py" in cli("archive", "inspect", "model-v2-final.mar").out
    assert cli("archive", "import", "model-v2-final.mar").out.startswith("shout@2.0: ")
    assert cli("archive", "import", "model-v2-final.mar", "--name", "mine").out.startswith("mine@")


def test_a_name_inside_that_is_none_here_leaves_the_files(cli, tmp_path):
    torchserve_archive(tmp_path / "plain.mar", {"modelName": "../up", "handler": "shout.py"})
    assert cli("archive", "import", "plain.mar").out.startswith("plain@1.0: ")
