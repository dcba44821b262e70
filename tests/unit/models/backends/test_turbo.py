"""The fast copy of a model: what it leaves in memory."""

import json
import re

import pytest
import torch
from tests import tiny

from mezzotint.models.backends import int8_trial, turbo
from mezzotint.models.backends.exporting import Exporter
from mezzotint.models.backends.openvino_backend import OpenVINONetwork, use_openvino
from mezzotint.models.backends.processor import BFLOAT16, INT8
from mezzotint.models.backends.quantized import Int8Network
from mezzotint.models.backends.step_cache import DEEP
from mezzotint.models.backends.turbo import turbo_view
from mezzotint.models.base import Prompt
from mezzotint.models.formats.folders import load_pipeline
from mezzotint.models.networks import TorchNetwork
from mezzotint.vocabulary import FULL_PRECISION


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
    monkeypatch.setattr(int8_trial, "_EDGES", (0.0,))
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


def _fast(folder, **options):
    """A turbo copy of a small network that counts as a large one, as a new process makes it."""
    model = load_pipeline(tiny.folder("sd1"))
    use_openvino(model, cache=folder)
    return turbo_view(model, cache=folder, step_cache=False, precision=INT8, **options)


def _notes(view):
    return [note for note in view.notes if note.startswith(FULL_PRECISION)]


@pytest.fixture
def calls(monkeypatch):
    """Count calls by role, of networks that count as large and come as near as can be."""
    pytest.importorskip("openvino")
    torch.set_num_threads(1)
    monkeypatch.setattr(int8_trial, "_AT_ONCE_BYTES", 0)
    monkeypatch.setattr(int8_trial, "_HOPELESS_ANSWER_DB", -99.0)
    monkeypatch.setattr(int8_trial, "_EDGES", (0.0,))
    monkeypatch.setattr(turbo, "LEAST_DB", {"turbo": -99.0})
    made: list[str] = []
    call = OpenVINONetwork.__call__

    def note(self, **inputs):
        if self.role != "text_encoder":
            made.append(f"{type(self).__name__} {self.role}")
        return call(self, **inputs)

    monkeypatch.setattr(OpenVINONetwork, "__call__", note)
    return made


def test_the_first_start_of_a_large_model_draws_at_once_and_the_second_tries_int8(tmp_path, calls):
    first = _fast(tmp_path)
    assert calls == []
    assert first.study is None
    assert _notes(first) == [
        "turbo computed in float32: whether int8 will do is found out at the next start"
    ]
    assert type(first.networks["denoiser"]) is OpenVINONetwork
    second = _fast(tmp_path)
    assert calls.count("Int8Network decoder") == 2
    assert isinstance(second.networks["denoiser"], Int8Network)
    assert not _notes(second)
    calls.clear()
    assert isinstance(_fast(tmp_path).networks["denoiser"], Int8Network)
    assert calls == []


def test_int8_that_is_far_off_is_given_up_after_one_answer_and_never_tried_again(
    tmp_path, calls, monkeypatch
):
    monkeypatch.setattr(int8_trial, "_HOPELESS_ANSWER_DB", 200.0)
    monkeypatch.setattr(turbo, "LEAST_DB", {"turbo": 199.0})
    _fast(tmp_path)
    second = _fast(tmp_path)
    # A watched network calls itself once for each row: for a prompt, and for none.
    assert calls == ["WatchedNetwork denoiser"] * 2 + ["Int8Network denoiser"]
    assert not list(tmp_path.glob("*.seal"))  # nothing in int8 is left on the disk
    (note,) = _notes(second)
    calls.clear()
    third = _fast(tmp_path)
    assert calls == []
    assert _notes(third) == [note]


def test_int8_whose_first_pictures_are_far_off_is_not_tried_with_fewer_layers(
    tmp_path, calls, monkeypatch
):
    monkeypatch.setattr(int8_trial, "_ENOUGH_DB", 200.0)
    monkeypatch.setattr(int8_trial, "_EDGES", (0.0, 0.12, 0.25))
    monkeypatch.setattr(int8_trial, "_HOPELESS_DB", 199.0)
    _fast(tmp_path)
    _fast(tmp_path)
    assert calls.count("Int8Network decoder") == 2  # two pictures, drawn once


def test_what_is_learnt_while_nobody_waits_is_what_a_start_finds_out(tmp_path, calls):
    learning = _fast(tmp_path / "learnt", learns=True)
    assert calls == []
    assert _notes(learning) == [
        "turbo computed in float32: whether int8 will do is learnt while nobody waits"
    ]
    learning.study()
    learnt = _fast(tmp_path / "learnt", learns=True)
    assert isinstance(learnt.networks["denoiser"], Int8Network)
    assert learnt.study is None
    _fast(tmp_path / "found")
    _fast(tmp_path / "found")
    (one,) = (tmp_path / "learnt").glob("*.int8.json")
    (other,) = (tmp_path / "found").glob("*.int8.json")
    assert one.read_bytes() == other.read_bytes()


def test_layers_that_the_whole_stream_flows_through_stay_in_float32(tmp_path, calls, monkeypatch):
    _fast(tmp_path)
    _fast(tmp_path)
    (path,) = tmp_path.glob("*.int8.json")
    found = json.loads(path.read_bytes())
    for role in ("denoiser", "decoder"):
        (names,) = [" ".join(found[role])]
        assert "resnets.0.conv1/" in names
        assert not [w for w in ("conv_in", "conv_out", "conv_shortcut") if w in names]
    assert "attn1.to_q/" in " ".join(found["denoiser"])
    assert "attentions.0.proj_" not in " ".join(found["denoiser"])
    monkeypatch.setattr(int8_trial, "_STREAM", re.compile("(?!)"))  # nothing is left out
    _fast(tmp_path / "all")
    _fast(tmp_path / "all")
    (path,) = (tmp_path / "all").glob("*.int8.json")
    everything = json.loads(path.read_bytes())
    assert "conv_shortcut" in " ".join(everything["denoiser"])
    assert found["decibels"] > everything["decibels"] + 1
