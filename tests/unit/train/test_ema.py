import torch
from torch import nn

from mezzotint.train.ema import Ema, effective_decay


def test_means_follow_the_formula_with_and_without_warmup():
    for warmup in (False, True):
        module = nn.Linear(1, 1, bias=False)
        nn.init.constant_(module.weight, 2.0)
        ema = Ema(module, (0.9, 0.5), warmup=warmup)
        wanted = [2.0, 2.0]
        for step, value in enumerate((4.0, -1.0, 3.0), start=1):
            nn.init.constant_(module.weight, value)
            ema.update(module)
            for k, decay in enumerate((0.9, 0.5)):
                used = min(decay, (1 + step) / (10 + step)) if warmup else decay
                wanted[k] = used * wanted[k] + (1 - used) * value
        found = [mean["weight"].item() for mean in ema.means]
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_decay_rises_to_the_configured_one():
    assert effective_decay(0.999, 1, warmup=True) == 2 / 11
    assert effective_decay(0.999, 100_000, warmup=True) == 0.999
    assert effective_decay(0.999, 1, warmup=False) == 0.999


def test_counters_are_copied_not_averaged():
    module = nn.BatchNorm1d(2)
    ema = Ema(module, (0.9,), warmup=False)
    module(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)))
    ema.update(module)
    assert ema.means[0]["num_batches_tracked"].item() == 1


def test_applied_puts_the_mean_in_and_the_weights_back():
    module = nn.Linear(1, 1)
    ema = Ema(module, (0.5,), warmup=False)
    before = ema.means[0]["weight"].clone()
    nn.init.constant_(module.weight, 9.0)
    with ema.applied(module):
        assert torch.equal(module.weight, before)
    assert module.weight.item() == 9.0


def test_state_comes_back():
    module = nn.Linear(2, 2)
    ema = Ema(module, (0.5,), warmup=True)
    nn.init.constant_(module.weight, 1.0)
    ema.update(module)
    other = Ema(module, (0.5,), warmup=True)
    other.load_state_dict(ema.state_dict())
    assert other.step == 1
    assert torch.equal(other.means[0]["weight"], ema.means[0]["weight"])
