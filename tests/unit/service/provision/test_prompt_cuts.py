from tests import tiny

from mezzotint.models.spec import ModelSpec
from mezzotint.models.store.store import ModelStore
from mezzotint.request import GenerationRequest
from mezzotint.service.provision.prompt_cuts import cut_notes


def test_texts_that_no_window_has_room_for_are_named():
    spec = ModelStore().spec("plate")
    request = GenerationRequest(prompt="leaf " * 31, negative_prompt="leaf " * 31)
    notes = cut_notes(request, spec)
    assert [note.partition(":")[0] for note in notes] == [
        "prompt has 31 tokens for tokenizer", "negative_prompt has 31 tokens for tokenizer",
    ]  # fmt: skip
    assert notes[0].endswith("not read: 'leaf'")
    assert cut_notes(GenerationRequest(prompt="leaf " * 30), spec) == ()


def test_models_without_a_folder_of_tokenizers_have_no_notes(tmp_path):
    request = GenerationRequest(prompt="leaf " * 31)
    for path in ("", str(tmp_path), str(tmp_path / "gone.safetensors")):
        spec = ModelSpec(name="m", digest="0" * 64, family="sd", path=path)
        assert cut_notes(request, spec) == ()


def test_capitals_are_counted_as_the_family_reads_them(tmp_path):
    tiny.t5_tokenizer().save_pretrained(tmp_path / "tokenizer")  # spells capitals one by one
    spec = ModelSpec(
        name="m", digest="0" * 64, family="pixart", path=str(tmp_path), token_limit=120
    )
    assert cut_notes(GenerationRequest(prompt="LEAF " * 31), spec) == ()
    found, wanted = (
        cut_notes(GenerationRequest(prompt=text * 130), spec)[0].partition(":")[0]
        for text in ("LEAF ", "leaf ")
    )
    assert found == wanted
