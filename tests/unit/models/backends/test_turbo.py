"""The fast copy of a model: what it leaves in memory."""

import pytest
import torch
from tests import tiny

from mezzotint.models.backends import turbo
from mezzotint.models.backends.exporting import Exporter
from mezzotint.models.backends.openvino_backend import use_openvino
from mezzotint.models.backends.processor import BFLOAT16, INT8
from mezzotint.models.backends.step_cache import DEEP
from mezzotint.models.backends.turbo import turbo_view
from mezzotint.models.base import Prompt
from mezzotint.models.formats.folders import load_pipeline
from mezzotint.models.networks import TorchNetwork


@pytest.mark.parametrize("precision", [BFLOAT16, INT8])
def test_a_first_start_leaves_neither_torchs_weights_nor_those_of_float32(tmp_path, precision):
    pytest.importorskip("openvino")
    torch.set_num_threads(1)
    model = load_pipeline(tiny.folder("sd1"))
    use_openvino(model, cache=tmp_path)
    view = turbo_view(model, cache=tmp_path, step_cache=True, precision=precision)
    size = model.spec.default_size
    (row,) = model.encode([Prompt(text="a cat", size=size)])
    latents = torch.zeros((1, *model.latent_shape(size)))
    sigma = torch.ones(1, dtype=torch.float64)
    view.denoiser(latents, sigma, row)
    network = view.networks["denoiser"]
    deep = network.take_deep()
    view.denoiser(latents, sigma, row.replace(**{DEEP: deep}))
    view.decode(latents, row)
    assert not model.networks["denoiser"].is_compiled
    for source in (model.networks["denoiser"].source, network.whole.source, network.outer.source):
        assert not source.is_built


def test_letting_go_of_a_network_lets_go_of_the_one_whose_module_it_calls():
    lender = TorchNetwork(lambda _: torch.nn.Identity(), lambda m, i: (m(i["x"]),))
    borrower = lender.like(lambda _: lender.module)
    borrower.lender = lender
    assert borrower.module is lender.module
    borrower.let_go()
    assert not lender.is_built
    assert torch.equal(borrower(x=torch.ones(1))[0], torch.ones(1))


def test_a_second_start_draws_the_same_bytes_from_int8_alone(tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    torch.set_num_threads(1)
    monkeypatch.setattr(turbo, "LEAST_DB", {"turbo": -99.0})
    monkeypatch.setattr(turbo, "_EDGES", (0.0,))
    traced: list[str] = []
    trace = Exporter._trace

    def note(self, *given):
        traced.append(self._role)
        return trace(self, *given)

    monkeypatch.setattr(Exporter, "_trace", note)

    def draw(cache):
        model = load_pipeline(tiny.folder("sd1"))
        use_openvino(model, cache=cache)
        view = turbo_view(model, cache=cache, step_cache=True, precision=INT8)
        size = model.spec.default_size
        (row,) = model.encode([Prompt(text="a cat", size=size)])
        latents = model.draw_latents(size, torch.Generator().manual_seed(0))
        drawn = view.denoiser(latents, torch.ones(1, dtype=torch.float64), row)
        return view.decode(drawn, row)

    first = draw(tmp_path)
    assert sorted(traced) == ["decoder", "denoiser", "text_encoder"]  # each network once
    for path in tmp_path.glob("*.xml"):  # a folder with less room keeps what is used
        if not path.with_suffix(".seal").exists():
            path.unlink()
    traced.clear()
    assert torch.equal(draw(tmp_path), first)
    assert traced == ["text_encoder"]
    assert torch.equal(draw(None), first)
