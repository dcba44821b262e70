"""Rules that no class of diffusers has, against k-diffusion's own loops, step by step.

k-diffusion's package imports torchvision, so its file of samplers is loaded alone, with empty
stand-ins for what these loops never call.
"""

import importlib.metadata
import importlib.util
import math
import sys
import types

import pytest
import torch

from mezzotint.sampling.loop import sample
from mezzotint.sampling.mixtures import GaussianMixture

SHAPE = (2, 3)
DATA = GaussianMixture(
    torch.randn((3, *SHAPE), generator=torch.Generator().manual_seed(5)), (0.3, 0.1, 0.6), (1, 2, 1)
)
LEVELS = [14.6, 6.0, 2.5, 2.1, 0.9, 0.3, 0.05, 0.0]


@pytest.fixture(scope="module")
def samplers():
    package = importlib.metadata.distribution("k-diffusion")
    path = package.locate_file("k_diffusion/sampling.py")
    standins = {
        "k_diffusion": {},
        "k_diffusion.utils": {"append_dims": lambda x, n: x[(...,) + (None,) * (n - x.ndim)]},
        "torchdiffeq": {"odeint": None},
        "torchsde": {},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, contents in standins.items():
            module = types.ModuleType(name)
            vars(module).update(contents, __path__=[])
            patch.setitem(sys.modules, name, module)
        sys.modules["k_diffusion"].utils = sys.modules["k_diffusion.utils"]
        spec = importlib.util.spec_from_file_location("k_diffusion.sampling", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


class BrownianPath:
    """Noise of an interval of sigma, of one path whose pieces are drawn as they are reached.

    A look halfway has the first piece alone; the whole step has both.
    """

    def __init__(self, generator):
        self.generator, self.pieces, self.start = generator, [], None

    def __call__(self, here, there):
        here, there = float(here), float(there)
        if here != self.start:
            self.pieces, self.start = [], here
        reached = self.pieces[-1][0] if self.pieces else here
        piece = torch.randn((1, *SHAPE), generator=self.generator)
        self.pieces.append((there, piece * (reached - there) ** 0.5))
        return sum(p for _, p in self.pieces) / (here - there) ** 0.5


def run_both(samplers, theirs, ours, **options):
    noise = torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(1)) * LEVELS[0]
    states = []
    found = sample(
        DATA, noise, scheduler=ours, sigmas=LEVELS,
        generators=[torch.Generator().manual_seed(9)],
        callback=lambda k, latents, denoised: states.append(latents),
    )  # fmt: skip
    before = []
    loop = getattr(samplers, theirs)
    expected = loop(
        lambda x, sigma: DATA(x, sigma), noise.double(), torch.tensor(LEVELS, dtype=torch.float64),
        disable=True, callback=lambda told: before.append(told["x"].float()), **options,
    )  # fmt: skip
    return found, expected.float(), states, before


@pytest.mark.parametrize(
    ("theirs", "ours", "draws"),
    [
        ("sample_dpm_2", "dpm2", False),
        ("sample_dpm_2_ancestral", "dpm2_ancestral", True),
        ("sample_dpmpp_2s_ancestral", "dpmpp_2s_ancestral", True),
        ("sample_dpmpp_sde", "dpmpp_2s_sde", True),
        ("sample_dpmpp_2m_sde", "dpmpp_2m_sde", True),
        ("sample_dpmpp_3m_sde", "dpmpp_3m_sde", True),
        ("sample_lms", "lms", False),
    ],
)
def test_a_run_equals_k_diffusions(samplers, theirs, ours, draws):
    options = {"noise_sampler": BrownianPath(torch.Generator().manual_seed(9))} if draws else {}
    found, expected, states, before = run_both(samplers, theirs, ours, **options)
    assert torch.allclose(found, expected, atol=1e-5)
    # the state before each step, where theirs tells it: ours after the step before
    ends = (
        states[1::2]
        if ours in ("dpm2", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_2s_sde")
        else states
    )
    assert len(before) == len(LEVELS) - 1
    for ours_after, theirs_before in zip(ends, before[1:], strict=False):
        assert torch.allclose(ours_after, theirs_before, atol=1e-5 * LEVELS[0])


def test_res_multistep_integrates_the_line_through_two_estimates():
    # the definition, by quadrature: x' = e^-h x + integral of e^-(h-t) D(t) over the step
    from scipy.integrate import quad

    noise = torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(1)) * LEVELS[0]
    found = sample(DATA, noise, scheduler="res_multistep", sigmas=LEVELS)
    x, old, before = noise.double(), None, 0.0
    logs = torch.tensor(LEVELS[:-1], dtype=torch.float64).log().neg().tolist()
    for k, sigma in enumerate(LEVELS[:-1]):
        said = DATA(x, torch.tensor([sigma], dtype=torch.float64))
        if k == len(LEVELS) - 2:
            x = said
            break
        reach = logs[k + 1] - logs[k]
        flat = quad(lambda t, end: math.exp(t - end), 0, reach, args=(reach,))[0]
        slope = quad(lambda t, end: t * math.exp(t - end), 0, reach, args=(reach,))[0]
        line = 0.0 if old is None else (said - old) / before
        x = math.exp(-reach) * x + flat * said + slope * line
        old, before = said, reach
    assert torch.allclose(found, x.float(), atol=1e-4)


@pytest.mark.parametrize("steps", [3, 4, 9])
def test_ipndm_is_adams_bashforth_of_equal_steps(steps):
    # on equal steps it is exact where the slope is a cubic; then levels are all that is left
    levels = [float(k) for k in range(steps, 0, -1)] + [0.0]

    def denoiser(x, sigma):  # slope d = sigma ** 3, whatever x is
        return x - sigma.reshape(-1, 1) ** 4

    states = []
    sample(
        denoiser, torch.full((1, 2), 1000.0), scheduler="ipndm", sigmas=levels,
        callback=lambda k, latents, denoised: states.append(float(latents[0, 0])),
    )  # fmt: skip
    # from the fourth step on the rule is exact: x falls by the integral of sigma^3
    for k in range(3, steps - 1):
        exact = (levels[k] ** 4 - levels[k + 1] ** 4) / 4
        assert states[k - 1] - states[k] == pytest.approx(exact, rel=1e-4)
