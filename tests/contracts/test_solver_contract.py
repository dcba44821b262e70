"""What every solver promises, whoever wrote it: one class, run on all of them."""

import itertools
import math

import pytest
import torch

from mezzotint.sampling.mixtures import GaussianMixture
from mezzotint.sampling.solvers import (
    REGISTERS,
    SCHEDULERS,
    advance,
    clip_denoised,
    plan_table,
)

VE = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
    "clip_sample": False, "timestep_spacing": "trailing",
}  # fmt: skip
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
SHAPE = (2, 3, 5)


def table_of(name, steps=6, first=0):
    config = FLOW if SCHEDULERS[name].info.frame == "flow" else VE
    return plan_table(name, config, steps, first=first)


def noise(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=SCHEDULERS.names())
def name(request):
    return request.param


class TestSolverContract:
    def test_the_last_call_leads_to_noise_free_latents(self, name):
        # where the network always says the same, every solver ends in just that
        table, clean = table_of(name, steps=20), noise((1, *SHAPE), 1)
        registers = torch.zeros((1, REGISTERS, *SHAPE))
        registers[:, 0] = noise((1, *SHAPE)) * table.init_noise_sigma
        for k, evaluation in enumerate(table.evaluations):
            drawn = noise((1, *SHAPE), 10 + k) if evaluation.draws_noise else None
            registers = advance(registers, clean, evaluation.tensor()[None], noise=drawn)
        # pictures of TCD and PLMS are their state at timestep 0, which is not quite clean
        # (diffusers' PNDMScheduler is 0.0742 away too)
        least = {"tcd": 0.15, "plms": 0.08}.get(name, 5e-3)
        assert torch.allclose(registers[:, 0], clean, atol=least)

    def test_shape_and_type_stay_what_they_were(self, name):
        evaluation = table_of(name).evaluations[1]
        for shape in ((2, 3), (1, 4, 2, 2), (3, 2, 1, 2, 2)):
            registers = noise((shape[0], REGISTERS, *shape[1:]))
            moved = advance(
                registers, noise(shape, 1),
                evaluation.tensor().repeat(shape[0], 1, 1), noise=noise(shape, 2),
            )  # fmt: skip
            assert (moved.shape, moved.dtype) == (registers.shape, torch.float32)

    def test_inputs_are_not_changed(self, name):
        for evaluation in table_of(name).evaluations:
            inputs = [noise((2, REGISTERS, *SHAPE)), noise((2, *SHAPE), 1), noise((2, *SHAPE), 2)]
            copies = [x.clone() for x in inputs]
            coefficients = evaluation.tensor().repeat(2, 1, 1)
            advance(inputs[0], inputs[1], coefficients, noise=inputs[2])
            assert all(torch.equal(x, y) for x, y in zip(inputs, copies, strict=True))
            assert torch.equal(coefficients, evaluation.tensor().repeat(2, 1, 1))

    def test_an_image_moves_the_same_beside_any_other_solver_and_step(self, name):
        mine = table_of(name).evaluations[2]
        registers, denoised, drawn = noise((1, REGISTERS, *SHAPE)), noise((1, *SHAPE), 1), None
        if mine.draws_noise:
            drawn = noise((1, *SHAPE), 2)
        alone = advance(registers, denoised, mine.tensor()[None], noise=drawn)
        for other in SCHEDULERS.names():
            neighbour = table_of(other, steps=9).evaluations[4]
            # a neighbour that broke must not matter either
            for bad in (1.0, math.nan, math.inf):
                together = advance(
                    torch.cat([noise((1, REGISTERS, *SHAPE), 7) * bad, registers]),
                    torch.cat([noise((1, *SHAPE), 8) * bad, denoised]),
                    torch.stack([neighbour.tensor(), mine.tensor()]),
                    noise=torch.cat([noise((1, *SHAPE), 9), torch.zeros_like(denoised) if drawn is None else drawn]),
                )  # fmt: skip
                assert torch.equal(together[1:], alone)

    def test_noise_levels_fall_and_every_step_calls_the_network(self, name):
        table = table_of(name, steps=12)
        # a step's first call; an ancestral look halfway may lie below the next step's level
        levels = [
            after.sigma
            for before, after in itertools.pairwise((None, *table.evaluations))
            if before is None or before.step != after.step
        ]
        assert all(a >= b > 0 for a, b in itertools.pairwise(levels))
        assert sorted({evaluation.step for evaluation in table.evaluations}) == list(range(1, 13))

    def test_a_late_start_is_the_tail_of_the_run(self, name):
        whole, tail = table_of(name, steps=8), table_of(name, steps=8, first=3)
        kept = [e for e in whole.evaluations if e.step > 3]
        if name == "plms":  # diffusers cuts its list of evaluations, and begins anew there
            assert [e.sigma for e in tail.evaluations] == [e.sigma for e in whole.evaluations[3:]]
            assert [e.step for e in tail.evaluations] == [1, 1, 2, 3, 4, 5]
            return
        # Heun's look-ahead at step 4 belongs to the third step; the tail begins with step 4's own
        kept = kept[len(kept) - len(tail.evaluations) :]
        assert [e.sigma for e in tail.evaluations] == [e.sigma for e in kept]
        assert [e.step for e in tail.evaluations] == [e.step - 3 for e in kept]

    @pytest.mark.parametrize("steps", [1, 2, 3])
    def test_few_steps_give_finite_numbers(self, name, steps):
        table = table_of(name, steps=steps)
        frame = SCHEDULERS[name].info.frame
        data = GaussianMixture(torch.zeros((1, *SHAPE)), (0.5,), (1.0,), frame=frame)
        registers = torch.zeros((2, REGISTERS, *SHAPE))
        registers[:, 0] = noise((2, *SHAPE)) * table.init_noise_sigma
        for k, evaluation in enumerate(table.evaluations):
            sigma = torch.full((2,), evaluation.sigma, dtype=torch.float64)
            raw = data(registers[:, 0], sigma)
            registers = advance(
                registers, clip_denoised(raw, table.clip),
                evaluation.tensor().repeat(2, 1, 1), raw=raw, noise=noise((2, *SHAPE), k),
            )  # fmt: skip
        assert bool(registers[:, 0].isfinite().all())
        assert float(registers[:, 0].abs().max()) < 10
