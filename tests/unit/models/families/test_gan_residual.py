"""The residual generator: a GAN folder like any other, without a checkerboard."""

from dataclasses import replace

import pytest
import torch

from mezzotint.errors import InvalidRequest, WeightsError
from mezzotint.models.backends.openvino_backend import use_openvino
from mezzotint.models.base import Conditioning, Prompt
from mezzotint.models.families.gan import GanConfig, build_generator, load_gan, write_gan
from mezzotint.models.families.gan_residual import ResidualLevel, ResidualStack, residual_side

CONFIG = GanConfig(
    architecture="residual",
    latent_size=6,
    image_size=16,
    channels=(8, 6, 4),
    num_classes=3,
    class_names=("cat", "dog", "owl"),
    class_embedding_size=5,
    mapping_layers=2,
    batch_norm=False,
    bias=True,
    activation="leaky_relu",
)


def random_state(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator) * 0.3
        for name, value in build_generator(CONFIG).state_dict().items()
    }


def noise(rows, seed=1):
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def folder(tmp_path):
    return write_gan(tmp_path / "gan", CONFIG, random_state())


def asked(model, **prompt):
    return model.encode([Prompt(**prompt)])[0]


def test_a_folder_is_loaded_to_the_same_function_cut_to_the_range(folder):
    oracle = build_generator(CONFIG)
    oracle.load_state_dict(random_state())
    model, latents = load_gan(folder), noise(1)
    with torch.no_grad():
        drawn = oracle(latents, torch.tensor([2]))
    assert drawn.shape == (1, 3, 16, 16)
    assert drawn.abs().max() > 1, "the weights are drawn such that something is cut"
    assert torch.equal(model.decode(latents, asked(model, class_label=2)), drawn.clamp(-1, 1))


def test_truncation_pulls_w_towards_its_mean(folder):
    model, latents = load_gan(folder), noise(1)
    w = model.map_latents(latents)
    half = model._mean() + 0.5 * (w - model._mean())
    with torch.no_grad():
        wanted = model.networks["decoder"].module.draw(half, torch.tensor([1]))
    drawn = model.decode(latents, asked(model, class_label=1, truncation=0.5))
    torch.testing.assert_close(drawn, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.equal(drawn, model.decode(latents, asked(model, class_label=1)))


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_rows_of_a_batch_are_the_rows_alone(folder, backend):
    model = load_gan(folder)
    if backend == "openvino":
        use_openvino(model, cache=None, num_threads=1)
    prompts = [Prompt(class_label=k % 3, truncation=1 - k / 20) for k in range(11)]
    latents = noise(11)
    together = model.decode(latents, Conditioning.stack(model.encode(prompts)))
    for k, prompt in enumerate(prompts):
        alone = model.decode(latents[k : k + 1], model.encode([prompt])[0])
        assert torch.equal(together[k], alone[0])


def test_openvino_draws_what_torch_draws(folder):
    model, other, latents = load_gan(folder), load_gan(folder), noise(3)
    use_openvino(other, cache=None, num_threads=1)
    rows = Conditioning.stack(model.encode([Prompt(class_label=k) for k in range(3)]))
    torch.testing.assert_close(
        other.decode(latents, rows), model.decode(latents, rows), rtol=1e-4, atol=1e-4
    )


def test_doubling_writes_no_pattern_of_its_own():
    """A ramp stays a ramp: what a transposed convolution turns into a checkerboard."""
    level = ResidualLevel(2, 1, 1, doubles=True, slope=0.2)
    torch.nn.init.zeros_(level.second.weight)
    torch.nn.init.zeros_(level.second.bias)
    ramp = torch.arange(8.0).reshape(1, 1, 1, 8).expand(1, 1, 8, 8)
    with torch.no_grad():
        doubled = level(ramp, torch.zeros(1, 2, 1, 1))
    assert doubled.shape == (1, 1, 16, 16)
    assert torch.equal(doubled[0, 0, 0], doubled[0, 0, 9])
    steps = doubled[0, 0, 5].diff()[1:-1]  # the border is held
    assert torch.equal(steps, torch.full_like(steps, 0.5))


def test_there_is_no_normalisation_and_no_transposed_convolution():
    stack = ResidualStack(4, (8, 4), image_channels=3, slope=0.2)
    kinds = {type(part).__name__ for part in stack.modules()} - {"ModuleList", "Identity"}
    assert kinds == {"ResidualStack", "ResidualLevel", "Conv2d"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 32}, "3 levels draws 16 px, got image_size 32"),
        ({"batch_norm": True}, "batch_norm of a residual generator must be false, got true"),
        ({"bias": False}, "bias of a residual generator must be true, got false"),
        ({"activation": "relu"}, 'must be "leaky_relu", got "relu"'),
    ],
)
def test_a_configuration_that_does_not_fit_says_why(change, message):
    with pytest.raises(InvalidRequest, match=message) as caught:
        replace(CONFIG, **change)
    assert caught.value.field == next(iter(change))


def test_the_side_is_four_pixels_doubled_by_every_further_level():
    assert [residual_side(levels) for levels in (1, 2, 5)] == [4, 8, 64]


def test_weights_of_another_width_are_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"main\.levels\.0"):
        write_gan(tmp_path, replace(CONFIG, channels=(10, 6, 4)), random_state())


class Counted:
    """A mapping whose rows do not know each other, and how often it is called."""

    digest, num_bytes = "", 0

    def __init__(self):
        self.rows = []

    def __call__(self, latents):
        self.rows.append(len(latents))
        return (latents * 2,)


def test_rows_of_a_batch_are_mapped_in_one_call(folder):
    model = load_gan(folder)
    mapping = Counted()
    model.use_network("mapping", mapping)
    assert torch.equal(model.map_latents(noise(7)), noise(7) * 2)
    mapping.rows.clear()
    model.map_latents(noise(7))
    assert mapping.rows == [4, 2, 1]  # what lies between is tried while nobody waits
    while model.trial_rows:
        model.try_rows()
    mapping.rows.clear()
    model.map_latents(noise(7))
    assert mapping.rows == [7]
