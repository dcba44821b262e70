"""Families on CUDA: latents stay where they are, types follow the policy, pictures agree."""

import pytest
import torch
from tests import tiny

from mezzotint.models.base import Conditioning, Prompt
from mezzotint.models.formats.folders import load_pipeline
from mezzotint.models.networks import RowLinear, use_row_linears
from mezzotint.types import Size

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
SIZE = Size(64, 64)


def answers(model, device):
    label = 3 if model.spec.family == "dit" else None
    text = "a red apple" if model.spec.takes_prompt else ""
    prompts = [Prompt(text=text, size=SIZE, class_label=label), Prompt(size=SIZE, negative=True)]
    conditioning = Conditioning.stack(model.encode(prompts)).to(device)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, *model.latent_shape(SIZE), generator=generator).to(device)
    denoised = model.denoiser(latents, torch.tensor([0.5, 0.9], device=device), conditioning)
    assert denoised.device.type == torch.device(device).type
    assert denoised.dtype == torch.float32
    return denoised, model.decode(denoised)


@pytest.mark.parametrize("name", tiny.BUILDERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("float16", 0.3)])
def test_cuda_agrees_with_the_cpu(name, dtype, tolerance):
    there = answers(load_pipeline(tiny.folder(name), device="cuda", dtype=dtype), "cuda")
    here = answers(load_pipeline(tiny.folder(name)), "cpu")
    for one, other in zip(there, here, strict=True):
        assert float((one.cpu() - other).abs().mean()) < tolerance


def test_rows_of_a_pooled_linear_do_not_depend_on_their_number_on_cuda():
    layer = use_row_linears(torch.nn.Linear(320, 1280)).cuda()
    assert isinstance(layer, RowLinear)
    rows = torch.randn(8, 320, generator=torch.Generator().manual_seed(0)).cuda()
    with torch.no_grad():
        together = layer(rows)
        assert torch.equal(together, torch.cat([layer(row[None]) for row in rows]))
