import pytest
import torch

from mezzotint.train.data.batches import derive
from mezzotint.train.tasks.adversarial import (
    Augmentation,
    Discriminator,
    gradient_penalty,
    relativistic_losses,
)


def pictures(rows=4, side=16):
    return torch.rand(rows, 3, side, side, generator=derive(0, "pictures")) * 2 - 1


def test_relativistic_losses_are_the_published_ones():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-1.0, 1.5])
    on_judge, on_generator = relativistic_losses(real, fake)
    difference = real - fake
    assert on_judge.item() == pytest.approx(float((-torch.sigmoid(difference).log()).mean()))
    assert on_generator.item() == pytest.approx(float((-torch.sigmoid(-difference).log()).mean()))


def test_gradient_penalty_of_a_linear_judge_is_its_squared_norm():
    weight = torch.tensor([3.0, 4.0])
    samples = torch.rand(5, 2, generator=derive(0, "x")).requires_grad_(True)
    assert gradient_penalty(samples @ weight, samples).item() == pytest.approx(25.0)


def test_the_same_draw_changes_two_batches_alike():
    change = Augmentation(4, 1.0, derive(1, "a"))
    first = change(pictures())
    assert torch.equal(first, change(pictures()))
    assert not torch.equal(first, pictures())
    assert not torch.equal(first, Augmentation(4, 1.0, derive(1, "b"))(pictures()))


def test_without_probability_nothing_changes():
    same = Augmentation(4, 0.0, derive(1, "a"))(pictures())
    torch.testing.assert_close(same, pictures(), rtol=1e-5, atol=1e-5)


def test_gradients_reach_through_the_augmentation():
    samples = pictures().requires_grad_(True)
    Augmentation(4, 1.0, derive(1, "a"))(samples).sum().backward()
    assert samples.grad.abs().sum() > 0


def test_the_judgement_depends_on_the_class():
    judge = Discriminator(3, 16, 4, num_classes=2)
    first = judge(pictures(), torch.zeros(4, dtype=torch.long))
    second = judge(pictures(), torch.ones(4, dtype=torch.long))
    assert first.shape == (4,)
    assert not torch.equal(first, second)
