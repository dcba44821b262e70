"""Regions against exact Gaussian-mixture posteriors: where, when, how much and away from what.

Each prompt is a mixture of its own with an exact denoiser, so the estimate that regions should
give is a formula over those posteriors, written out here per pixel in float64.

Tests mezzotint.engine.execution.operators.
"""

import numpy as np
import pytest
import torch

from mezzotint.engine.execution.operators import ClassifierFree, Region, Regions
from mezzotint.models.base import Conditioning
from mezzotint.sampling.mixtures import GaussianMixture

SHAPE = (2, 4, 6)
NAMES = ("base", "left", "right", "negative", "own negative")


def mixture(seed):
    means = torch.randn((3, *SHAPE), generator=torch.Generator().manual_seed(seed))
    return GaussianMixture(means, (0.3, 0.5, 0.2), (1.0, 2.0, 0.5))


MIXTURES = {name: mixture(seed) for seed, name in enumerate(NAMES)}


def words(name):
    return Conditioning({"name": torch.tensor([NAMES.index(name)])})


def mask(columns, level=1.0):
    found = torch.zeros((1, *SHAPE[1:]))
    found[..., columns] = level
    return found


def regions(*, scale=1.0, weight=1.0, start=0.0, end=1.0, own=False, steps=5):
    base = ClassifierFree(
        positive=words("base"),
        negative=words("negative") if scale != 1 else None,
        scales=(scale,) * steps,
    )
    left = Region(
        positive=words("left"), negative=0 if own else None, mask=mask(slice(0, 3)),
        weight=weight, start=start, end=end,
    )  # fmt: skip
    right = Region(
        positive=words("right"), negative=None, mask=mask(slice(2, 5), 0.5), weight=1.0,
        start=0.0, end=1.0,
    )  # fmt: skip
    return Regions(base, (left, right), (words("own negative"),))


def answer(operator, step, latents, sigma):
    """What the engine computes: its rows, each with its own exact denoiser, combined."""
    names = [NAMES[int(row.conditioning["name"])] for row in operator.rows(step)]
    level = torch.tensor([sigma], dtype=torch.float64)
    denoised = torch.cat([MIXTURES[name](latents, level) for name in names])
    return names, operator.combine(step, denoised, latents, sigma)


def expected(latents, sigma, *, scale=1.0, weight=1.0, acts=True, own=False):
    """The posteriors mixed pixel by pixel, in plain numpy."""
    level = torch.tensor([sigma], dtype=torch.float64)
    posterior = {n: m(latents, level)[0].double().numpy() for n, m in MIXTURES.items()}
    left = mask(slice(0, 3)).double().numpy() * float(acts)
    right = mask(slice(2, 5), 0.5).double().numpy()
    covered = np.minimum(left + right, 1.0)
    total = weight * left + right
    share = np.divide(covered, total, out=np.zeros_like(total), where=total > 0)
    shares = (1 - covered, weight * left * share, right * share)

    def mixed(base, in_left, in_right):
        parts = zip(shares, (base, in_left, in_right), strict=True)
        return sum(s * posterior[name] for s, name in parts)

    positive = mixed("base", "left", "right")
    if scale == 1:
        return positive
    negative = mixed("negative", "own negative" if own else "negative", "negative")
    return negative + scale * (positive - negative)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("weight", [0.25, 1.0, 4.0])
@pytest.mark.parametrize(("scale", "own"), [(1.0, False), (5.0, False), (5.0, True)])
def test_the_estimate_is_the_posteriors_mixed_per_pixel(sigma, weight, scale, own):
    latents = sigma * torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(9))
    operator = regions(scale=scale, weight=weight, own=own)
    _, found = answer(operator, 2, latents, sigma)
    exact = expected(latents, sigma, scale=scale, weight=weight, own=own)
    np.testing.assert_allclose(found[0].numpy(), exact, atol=2e-5)


@pytest.mark.parametrize(
    ("step", "acts"), [(1, False), (2, True), (3, True), (4, True), (5, False)]
)
def test_a_region_acts_in_its_part_of_the_run_alone(step, acts):
    """Five steps stand at 0, 0.25, 0.5, 0.75 and 1; the region acts from 0.25 to 0.75."""
    latents = torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(3))
    operator = regions(scale=4.0, start=0.25, end=0.75, own=True)
    names, found = answer(operator, step, latents, 1.0)
    exact = expected(latents, 1.0, scale=4.0, acts=acts, own=acts)
    np.testing.assert_allclose(found[0].numpy(), exact, atol=2e-5)
    assert ("left" in names, "own negative" in names) == (acts, acts)
    assert len(names) == (5 if acts else 3)  # N + 1 rows, one unconditional, one of its own


def test_the_rows_are_those_that_the_planner_counts():
    from mezzotint.planning.plan import Resolved, Techniques
    from mezzotint.planning.steps import count_rows
    from mezzotint.request import Region

    planned = tuple(
        Resolved(part=Region(prompt=p, negative_prompt=n, box=(0, 0, 1, 1), start=s, end=e))
        for p, n, s, e in (("left", "own negative", 0.25, 0.75), ("right", "", 0.0, 1.0))
    )  # fmt: skip
    operator = regions(scale=4.0, start=0.25, end=0.75, own=True)
    counted = count_rows((1, 2, 3, 4, 5), (4.0,) * 5, Techniques(regions=planned))
    assert counted == tuple(len(operator.rows(step)) for step in (1, 2, 3, 4, 5))
