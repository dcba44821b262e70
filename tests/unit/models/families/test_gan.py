import json
import math
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from mezzotint.errors import CardError, InvalidRequest, ShapeError, WeightsError, WorkFailed
from mezzotint.models.base import Conditioning, Prompt
from mezzotint.models.families.gan import GanConfig, GanModel, build_generator, load_gan, write_gan
from mezzotint.models.formats.checkpoint_scan import (
    convert_gan,
    import_gan,
    read_checkpoint,
    scan_pickle,
)
from mezzotint.types import Size

SMALL = GanConfig(latent_size=5, image_size=8, channels=(6,), licence="MIT")
CLASSES = GanConfig(
    latent_size=5,
    image_size=16,
    channels=(8, 4),
    num_classes=3,
    class_names=("cat", "dog", "owl"),
    class_embedding_size=2,
)


def random_state(config, seed=0):
    """Draw weights, and batch statistics that are not those of a fresh network."""
    generator = torch.Generator().manual_seed(seed)
    state = build_generator(config).state_dict()
    return {
        key: torch.rand(value.shape, generator=generator) + 0.5
        if "running_var" in key
        else torch.randn(value.shape, generator=generator) * 0.3
        if value.is_floating_point()
        else value
        for key, value in state.items()
    }


def noise(config, rows, seed=1):
    return torch.randn(rows, config.latent_size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def folder(tmp_path):
    return write_gan(tmp_path / "gan", CLASSES, random_state(CLASSES))


def test_a_folder_that_was_written_is_loaded_to_the_same_function(folder):
    oracle = build_generator(CLASSES)
    oracle.load_state_dict(random_state(CLASSES))
    oracle.eval()
    model = load_gan(folder, name="pets")
    latents, labels = noise(CLASSES, 1), torch.tensor([2])
    with torch.no_grad():
        expected = oracle.main(
            torch.cat([latents, oracle.class_embedding(labels)], 1)[:, :, None, None]
        )
    conditioning = model.encode([Prompt(class_label=2)])[0]
    assert torch.equal(model.decode(latents, conditioning), expected)
    assert not model.networks["decoder"].module.training


def test_the_spec_says_what_a_gan_cannot_do(folder):
    spec = load_gan(folder, name="pets").spec
    assert (spec.family, spec.has_steps, spec.takes_prompt) == ("gan", False, False)
    assert (spec.default_size, spec.fixed_size) == (Size(16, 16), True)
    assert (spec.num_classes, spec.class_names) == (3, ("cat", "dog", "owl"))
    assert len(spec.digest) == 64
    assert any("no text" in limit for limit in spec.limits)


def test_equal_weights_are_written_to_equal_bytes(tmp_path, folder):
    again = write_gan(tmp_path / "again", CLASSES, random_state(CLASSES))
    assert load_gan(again).spec.digest == load_gan(folder).spec.digest


def test_truncation_scales_the_latent_towards_its_mean(folder):
    model, latents = load_gan(folder), noise(CLASSES, 1)
    half = model.encode([Prompt(class_label=0, truncation=0.5)])[0]
    full = model.encode([Prompt(class_label=0)])[0]
    assert torch.equal(model.decode(latents, half), model.decode(latents / 2, full))


def test_without_a_label_the_latent_decides_and_every_class_is_met(folder):
    model = load_gan(folder)
    latents = noise(CLASSES, 300)
    labels = model._choose_classes(latents, None)
    assert torch.equal(labels, model._choose_classes(latents, torch.full((300,), -1)))
    shares = torch.bincount(labels, minlength=3) / 300
    assert (shares - 1 / 3).abs().max() < 0.1
    given = torch.tensor([1]).expand(300)
    assert torch.equal(model._choose_classes(latents, given), given)


def test_rows_of_a_batch_are_the_rows_alone(folder):
    model = load_gan(folder)
    latents = noise(CLASSES, 11)
    prompts = [Prompt(class_label=k % 3, truncation=1 - k / 20) for k in range(11)]
    together = model.decode(latents, Conditioning.stack(model.encode(prompts)))
    for k, prompt in enumerate(prompts):
        assert torch.equal(
            together[k], model.decode(latents[k : k + 1], model.encode([prompt])[0])[0]
        )


def test_a_batch_size_that_changes_bits_is_never_used():
    calls = []

    def network(latents):
        calls.append(len(latents))
        return (latents[:, :, None, None].expand(-1, -1, 2, 2)[:, :3] * len(latents),)

    model = GanModel(GanConfig(latent_size=5, image_size=8, channels=(6,)), network, name="x")
    latents = noise(SMALL, 4)
    together = model.decode(latents)
    assert torch.equal(together, latents[:, :3, None, None].expand(-1, -1, 2, 2))


def test_every_number_of_rows_is_tried_one_call_after_the_other_and_keeps_its_bits(folder):
    model = load_gan(folder)
    alone = torch.cat([model.decode(noise(CLASSES, 13)[k : k + 1]) for k in range(13)])
    assert torch.equal(model.decode(noise(CLASSES, 13)), alone)
    calls = 0
    while model.trial_rows:
        model.try_rows()
        calls += 1
    assert 0 < calls <= sum(1 + size for size in range(2, 17))
    assert torch.equal(model.decode(noise(CLASSES, 13)), alone)
    model.use_network("decoder", model.networks["decoder"])
    assert model.trial_rows == 2  # another backend's bits have to be looked at anew


def test_labels_that_do_not_exist_are_refused_by_their_field(folder, tmp_path):
    with pytest.raises(InvalidRequest, match="0 to 2, got 3") as caught:
        load_gan(folder).encode([Prompt(class_label=3)])
    assert caught.value.field == "latent.class_label"
    plain = load_gan(write_gan(tmp_path / "plain", SMALL, random_state(SMALL)))
    with pytest.raises(InvalidRequest, match="no class label"):
        plain.encode([Prompt(class_label=0)])


def test_another_size_is_refused(folder):
    model = load_gan(folder, name="pets")
    assert model.latent_shape(Size(16, 16)) == (5,)
    with pytest.raises(ShapeError, match="16x16 px only, got 32x16"):
        model.latent_shape(Size(32, 16))


def test_grey_pictures_come_as_three_equal_channels(tmp_path):
    config = GanConfig(latent_size=5, image_size=8, image_channels=1, channels=(6,))
    model = load_gan(write_gan(tmp_path, config, random_state(config)))
    picture = model.decode(noise(config, 2))
    assert picture.shape == (2, 3, 8, 8)
    assert torch.equal(picture[:, 0], picture[:, 2])


def test_values_that_are_not_finite_are_an_error(tmp_path):
    state = random_state(SMALL)
    state["main.0.weight"][0, 0, 0, 0] = math.nan
    model = load_gan(write_gan(tmp_path, SMALL, state))
    with pytest.raises(WorkFailed, match=r"not finite in rows \[0, 1\]"):
        model.decode(noise(SMALL, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 64}, "draws 8 px, got image_size 64"),
        ({"architecture": "biggan"}, "must be one of 'dcgan', 'residual', 'mlp'"),
        ({"num_classes": 4}, "class_embedding_size belongs"),
        ({"channels": []}, "at least one"),
        ({"latent_size": 7}, "has shape"),
        ({"batch_norm": False}, "main.1.bias that config.json has no place"),
        ({"colour": 1}, "unknown field 'colour'"),
    ],
)
def test_a_configuration_that_does_not_fit_says_why(tmp_path, change, message):
    write_gan(tmp_path, SMALL, random_state(SMALL))
    plain = {**SMALL.to_plain(), **change}
    (tmp_path / "config.json").write_text(json.dumps(plain))
    with pytest.raises((CardError, WeightsError), match=message):
        load_gan(tmp_path)


def test_a_missing_tensor_is_named(tmp_path):
    write_gan(tmp_path, SMALL, random_state(SMALL))
    path = tmp_path / "generator.safetensors"
    state = load_file(path)
    del state["main.3.weight"]
    save_file(state, path)
    with pytest.raises(WeightsError, match=r"lacks the tensor main\.3\.weight"):
        load_gan(tmp_path)


def test_weights_in_int8_rows_are_what_they_stand_for(tmp_path):
    state = random_state(SMALL)
    write_gan(tmp_path, SMALL, state, int8=["main.0.weight"])
    stored = load_file(tmp_path / "generator.safetensors")
    assert stored["main.0.weight"].dtype == torch.int8
    scale = stored["main.0.weight_scale"]
    assert scale.shape == (state["main.0.weight"].shape[0], 1, 1, 1)
    loaded = load_gan(tmp_path).networks["decoder"].module.state_dict()
    expected = stored["main.0.weight"].float() * scale
    assert torch.equal(loaded["main.0.weight"], expected)
    assert torch.allclose(expected, state["main.0.weight"].float(), atol=float(scale.max()) / 2)
    assert torch.equal(loaded["main.3.weight"], state["main.3.weight"].float())
    del stored["main.0.weight_scale"]
    save_file(stored, tmp_path / "generator.safetensors")
    with pytest.raises(WeightsError, match=r"main\.0\.weight is int8, and there is no"):
        load_gan(tmp_path)


def test_corrupt_weights_name_file_and_digests(tmp_path):
    write_gan(tmp_path, SMALL, random_state(SMALL))
    with pytest.raises(WeightsError, match="expected sha256 0000"):
        load_gan(tmp_path, expected={"generator.safetensors": "0" * 64})
    path = tmp_path / "generator.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(WeightsError, match="corrupt"):
        load_gan(tmp_path)


def foreign(prefix="", config=SMALL):
    """The state of a DCGAN under another author's names."""
    names = {"main.0": "start", "main.1": "startNorm", "main.3": "last"}
    state = random_state(config)
    return {
        prefix + names[k.rpartition(".")[0]] + "." + k.rpartition(".")[2]: v
        for k, v in state.items()
    }


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"epoch": 3, "generator": s, "optG_state_dict": {"lr": 1.0}},
        lambda s: {
            "netG": {f"module.{k}": v for k, v in s.items()},
            "netD": {"a.weight": torch.zeros(1)},
        },
    ],
)
def test_foreign_checkpoints_of_both_kinds_are_converted(tmp_path, wrap, legacy):
    path = tmp_path / "foreign.pth"
    torch.save(wrap(foreign()), path, _use_new_zipfile_serialization=not legacy)
    model = load_gan(import_gan(path, tmp_path / "out", licence="MIT"))
    assert model.config == SMALL
    own = load_gan(write_gan(tmp_path / "own", SMALL, random_state(SMALL)))
    assert torch.equal(model.decode(noise(SMALL, 3)), own.decode(noise(SMALL, 3)))


class Planter:
    """A pickle that would make a file when it is read."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        import os

        return (os.system, (f"touch {self.target}",))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_checkpoint_that_would_run_code_is_refused_and_named(tmp_path, protocol):
    path, planted = tmp_path / "evil.pth", tmp_path / "planted"
    evil = Planter(planted)
    torch.save({"a.weight": torch.zeros(2), "x": evil}, path, pickle_protocol=max(protocol, 2))
    with pytest.raises(WeightsError, match="unsafe"):
        read_checkpoint(path)
    with pytest.raises(WeightsError, match="unsafe"):
        scan_pickle(pickle.dumps(evil, protocol), source="x")
    assert not planted.exists()
    pickle.loads(pickle.dumps(evil, protocol))
    assert planted.exists()  # read as a pickle it would have


def test_what_is_no_checkpoint_is_refused(tmp_path):
    for name, data in {
        "a.pth": b"hello",
        "b.pth": b"PK\3\4broken",
        "c.pt": pickle.dumps([1]),
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(WeightsError):
            read_checkpoint(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="mapping of tensors, got list"):
        read_checkpoint(tmp_path / "list.pt")


def test_a_compressed_checkpoint_is_refused_as_a_bomb(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b/data.pkl", b"\0" * 10_000_000)
    with pytest.raises(WeightsError, match="compressed"):
        read_checkpoint(tmp_path / "b.pth")


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ({"a.weight": torch.zeros(3, 3, 5, 5), "b.weight": torch.zeros(3, 3, 5, 5)}, "4x4"),
        ({"a.weight": torch.zeros(64, 3, 4, 4), "b.weight": torch.zeros(128, 64, 4, 4)}, "chain"),
        ({"a.weight": torch.zeros(3)}, "neither"),
        ({"one": {"a.weight": torch.zeros(1)}, "two": {"a.weight": torch.zeros(1)}}, "one, two"),
        ({"a.weight": torch.zeros(4, 2), "b.weight": torch.zeros(7, 4)}, "no square"),
    ],
)
def test_what_is_no_generator_says_what_was_found(checkpoint, message):
    with pytest.raises(WeightsError, match=message):
        convert_gan(checkpoint)


def test_loading_does_not_load_torchs_compiler():
    """Drawing weights that are thrown away pulled in torch._dynamo and sympy: seconds."""
    code = (
        "import sys; from pathlib import Path; import mezzotint.models; "
        "from mezzotint.models.families.gan import load_gan; "
        "folder = Path(mezzotint.models.__path__[0]) / 'builtin' / 'plate-gan'; "
        "before = 'torch._dynamo' in sys.modules; "
        "load_gan(folder); print(before, 'torch._dynamo' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "False"]


def test_classes_are_those_of_torch_also_at_the_border_of_two(folder, monkeypatch):
    model = load_gan(folder)
    latents = torch.cat([noise(CLASSES, 200), torch.full((1, CLASSES.latent_size), 100.0)])
    labels = torch.arange(201) % 4 - 1
    found = model._choose_classes(latents, labels)
    assert found[-1] == 2 and model._choose_at_once(latents[-1:], None) is None
    assert model._choose_at_once(torch.full_like(latents[:1], math.nan), None) is None
    monkeypatch.setattr(model, "_choose_at_once", lambda *_: None)
    assert torch.equal(found, model._choose_classes(latents, labels))
