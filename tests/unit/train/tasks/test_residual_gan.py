"""The residual GAN in training: first weights, penalties on a share, gradients, resuming."""

import pytest
import torch
from safetensors.torch import load_file
from tests.unit.train.making import picture_config, save_pictures, train, weights
from torch import nn

from mezzotint.errors import InvalidRequest
from mezzotint.models.base import Prompt
from mezzotint.models.families.gan import load_gan
from mezzotint.models.families.gan_residual import ResidualStack
from mezzotint.train.config.config import TrainConfig
from mezzotint.train.data.batches import derive
from mezzotint.train.networks import seeded
from mezzotint.train.tasks.adversarial import Augmentation, _judge_pairs, relativistic_losses
from mezzotint.train.tasks.base import Batch
from mezzotint.train.tasks.residual_gan import ResidualDiscriminator, start_weights
from mezzotint.train.trainer import Trainer

OPTIONS = {
    "architecture": "residual",
    "channels": [8, 6, 4],
    "latent_size": 4,
    "mapping_layers": 2,
    "penalty_share": 0.5,
}


@pytest.fixture(autouse=True)
def one_thread():
    """Small layers wait for each other's threads longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def class_config(tmp_path, name="run", **changes):
    for label in ("owls", "cats"):
        if not (tmp_path / "classes" / label).exists():
            save_pictures(tmp_path / "classes" / label, captions=False)
    data = {"path": str(tmp_path / "classes"), "kind": "classes"}
    return picture_config(
        tmp_path, name, kind="gan", data=data, conditioning={"kind": "class"},
        adversarial=OPTIONS, **changes,
    )  # fmt: skip


def judge(classes=0):
    built = ResidualDiscriminator(3, (8, 6), classes)
    with seeded(derive(0, "weights")):
        start_weights(built)
    return built


def pictures(rows=6, seed=0):
    return torch.randn(rows, 3, 16, 16, generator=derive(seed, "pictures"))


def test_first_weights_keep_signals_in_size():
    with seeded(derive(0, "weights")):
        stack = ResidualStack(64, (128, 64, 32, 16), image_channels=3, slope=0.2)
        start_weights(stack)
        wide = ResidualDiscriminator(3, (128, 64, 32), 0)
        start_weights(wide)
    with torch.no_grad():
        drawn = stack(torch.randn(64, 64, generator=derive(0, "style")))
        deep = wide.body(torch.randn(64, 3, 32, 32, generator=derive(0, "seen")))
    assert 0.3 < float(drawn.std()) < 3
    assert 0.3 < float(deep.std()) < 3


def test_a_share_of_the_pictures_is_measured_and_all_are_judged():
    seen, real, fake = judge(2), pictures(), pictures(seed=1)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    on_real, on_fake, penalty = _judge_pairs(seen, real, fake, labels, 2)
    torch.testing.assert_close(on_real, seen(real, labels))
    torch.testing.assert_close(on_fake, seen(fake, labels))
    squares = [0.0, 0.0]
    for side, batch in enumerate((real, fake)):
        for row in range(2):
            one = batch[row : row + 1].clone().requires_grad_(True)
            seen(one, labels[row : row + 1]).sum().backward()
            squares[side] += float(one.grad.square().sum()) / 2
    assert penalty.item() == pytest.approx(sum(squares), rel=1e-4)


def test_the_penalty_of_a_linear_judge_is_the_same_on_any_share():
    weight = torch.tensor([3.0, 4.0])

    class Linear(nn.Module):
        def forward(self, samples, labels):
            return samples @ weight

    real, fake = torch.randn(8, 2, generator=derive(0, "r")), torch.zeros(8, 2)
    found = [_judge_pairs(Linear(), real, fake, None, some)[2].item() for some in (1, 4, 8)]
    assert found == pytest.approx([50.0, 50.0, 50.0])


@pytest.mark.parametrize("loss", ["dcgan", "relativistic"])
def test_the_generators_loss_moves_the_generator_alone_and_as_it_should(tmp_path, loss):
    config = class_config(tmp_path)
    plain = config.to_dict()
    plain["adversarial"]["loss"] = loss
    plain["adversarial"]["augment"] = 0.0
    trainer = Trainer(TrainConfig.from_dict(plain))
    task = trainer._prepare(resume=True).task
    batch = Batch(pictures(4), labels=(0, 1, 0, 1))
    task.loss("generator", task.modules, batch, derive(0, "noise"))[0].backward()
    assert all(p.grad is None for p in task.modules["discriminator"].parameters())
    found = {n: p.grad.clone() for n, p in task.modules["generator"].named_parameters()}
    task.modules.zero_grad()
    labels = torch.tensor([0, 1, 0, 1])
    latents = torch.randn(4, 4, generator=derive(0, "noise"))
    drawn = task.modules["generator"](latents, labels)
    on_fake = task.modules["discriminator"](drawn, labels)
    on_real = task.modules["discriminator"](batch.samples, labels).detach()
    wanted = -torch.sigmoid(on_fake).log().mean()
    if loss == "relativistic":
        wanted = relativistic_losses(on_real, on_fake)[1]
    wanted.backward()
    for name, parameter in task.modules["generator"].named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_a_residual_run_is_a_gan_folder_that_resumes_bit_for_bit(tmp_path):
    whole = weights(train(class_config(tmp_path, "whole", loop={"steps": 4})))
    train(class_config(tmp_path, "parts", loop={"steps": 2}))
    parts = weights(train(class_config(tmp_path, "parts", loop={"steps": 4})))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    model = load_gan(tmp_path / "whole")
    assert model.config.architecture == "residual"
    assert (model.config.channels, model.config.mapping_layers) == ((8, 6, 4), 2)
    assert model.spec.class_names == ("cats", "owls")
    latents = torch.randn(1, 4, generator=derive(0, "z"))
    with torch.no_grad():
        mapped = model.map_latents(latents)
        wanted = model.networks["decoder"].module.draw(mapped, torch.tensor([1]))
    drawn = model.decode(latents, model.encode([Prompt(class_label=1)])[0])
    assert torch.equal(drawn, wanted)


def test_a_residual_run_learns_to_draw_what_it_sees(tmp_path):
    """White squares on black of one place: after a few steps the middle is brighter."""
    config = picture_config(
        tmp_path, kind="gan",
        adversarial={**OPTIONS, "channels": [16, 16, 16], "augment": 0.0, "penalty": 0.1},
        optimizer={"kind": "adam", "learning_rate": 2e-3, "betas": [0.0, 0.99]},
        loop={"steps": 60, "batch_size": 8, "clip_norm": 0.0}, ema={"decays": [0.9]},
    )  # fmt: skip
    train(config)
    model = load_gan(tmp_path / "run")
    drawn = model.decode(torch.randn(16, 4, generator=derive(0, "z")))
    middle, border = drawn[:, :, 5:11, 5:11].mean(), drawn[:, :, :2].mean()
    assert float(border) < -0.6
    assert float(middle - border) > 0.3


def test_widths_that_are_not_those_of_the_levels_are_refused(tmp_path):
    config = picture_config(tmp_path, kind="gan", adversarial={**OPTIONS, "channels": [8, 4]})
    with pytest.raises(InvalidRequest, match="needs 3 widths for pictures of 16 px") as caught:
        Trainer(config).fit()
    assert caught.value.field == "adversarial.channels"
    with pytest.raises(InvalidRequest, match=r"belongs to .*residual"):
        picture_config(tmp_path, kind="gan", adversarial={"channels": [8, 4]})
    plain = {"architecture": "residual", "base_channels": 4, "latent_size": 4}
    train(picture_config(tmp_path, kind="gan", adversarial=plain, loop={"steps": 1}))
    assert load_gan(tmp_path / "run").config.channels == (16, 8, 4)


def test_a_run_starts_from_both_networks_of_another(tmp_path):
    train(class_config(tmp_path, "first", loop={"steps": 2}))
    second = class_config(tmp_path, "second", base=str(tmp_path / "first"))
    modules = Trainer(second)._prepare(resume=True).task.modules
    for name in ("generator", "discriminator"):
        written = load_file(tmp_path / "first" / f"{name}.safetensors")
        state = modules[name].state_dict()
        assert state.keys() == written.keys()
        assert all(torch.equal(state[key], written[key]) for key in state)


def test_pictures_of_one_class_are_pulled_apart_until_the_bound(tmp_path):
    plain = class_config(tmp_path).to_dict()
    plain["adversarial"] |= {"augment": 0.0, "spread_share": 0.5, "spread_bound": 0.75}
    batch, found = Batch(pictures(4), labels=(0, 1, 0, 1)), []
    for spread in (0.0, 10.0):
        plain["adversarial"]["spread"] = spread
        task = Trainer(TrainConfig.from_dict(plain))._prepare(resume=True).task
        found.append(task.loss("generator", task.modules, batch, derive(0, "noise")))
    stream = derive(0, "noise")
    latents = torch.randn(4, 4, generator=stream)
    Augmentation(4, 0.0, stream)
    others = torch.randn(2, 4, generator=stream)
    generator, labels = task.modules["generator"], torch.tensor([0, 1])
    with torch.no_grad():
        apart = (generator(latents[:2], labels) - generator(others, labels)).abs().mean((1, 2, 3))
    assert found[1][1]["apart"].item() == pytest.approx(apart.mean().item(), rel=1e-4)
    added = found[1][0].item() - found[0][0].item()
    assert added == pytest.approx(10 * (0.75 - apart).clamp(min=0).mean().item(), rel=1e-3)
    assert added > 0


def test_a_base_of_other_networks_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match=r"generator\.safetensors cannot be taken") as caught:
        Trainer(class_config(tmp_path, base=str(tmp_path / "nothing"))).fit()
    assert caught.value.field == "base"
    train(class_config(tmp_path, "first", loop={"steps": 1}))
    plain = class_config(tmp_path, "second", base=str(tmp_path / "first")).to_dict()
    plain["adversarial"]["channels"] = [10, 6, 4]
    with pytest.raises(InvalidRequest, match="with the same networks"):
        Trainer(TrainConfig.from_dict(plain)).fit()
