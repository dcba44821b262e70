"""One update of a mixed batch against the same sums in numpy, image by image."""

import numpy as np
import pytest
import torch

from mezzotint.sampling.solvers import REGISTERS, advance


def by_hand(registers, denoised, raw, noise, coefficients):
    """Sum what has a coefficient, in the order of the columns. Shape (R, ...)."""
    gaps = [denoised, registers[0] - denoised, registers[0] - raw]
    found = []
    for row in coefficients:
        total = np.zeros_like(denoised)
        for weight, value in zip(row, [*registers, *gaps, noise], strict=True):
            if weight != 0:
                total += value * weight
        found.append(total)
    return np.stack(found)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_each_image_of_a_batch_moves_by_its_own_coefficients(share):
    """Coefficients that all images have, some have and none has; what has none may be infinite."""
    random = np.random.default_rng(int(share * 10))

    def normal(*shape):
        return random.standard_normal(shape, dtype=np.float32)

    registers, noise = normal(3, REGISTERS, 2, 4, 4), normal(3, 2, 4, 4)
    denoised, raw = normal(3, 2, 4, 4), normal(3, 2, 4, 4)
    coefficients = normal(3, REGISTERS, REGISTERS + 4)
    coefficients *= random.random(coefficients.shape) < share
    coefficients[0, :, 1] = 0
    registers[0, 1] = np.inf
    moved = advance(
        torch.as_tensor(registers), torch.as_tensor(denoised), torch.as_tensor(coefficients),
        raw=torch.as_tensor(raw), noise=torch.as_tensor(noise),
    ).numpy()  # fmt: skip
    for k in range(3):
        expected = by_hand(registers[k], denoised[k], raw[k], noise[k], coefficients[k])
        assert np.array_equal(moved[k], expected)
