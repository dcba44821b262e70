"""Words of textual inversions among the tokens of a prompt, and their files."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests import adapters_tiny, tiny

from mezzotint.errors import InvalidRequest, WeightsError
from mezzotint.models.adapters.textual_inversion import read_embedding, with_embeddings
from mezzotint.models.base import Prompt
from mezzotint.models.formats.components import from_pipeline
from mezzotint.models.prompts import tokens_of


@pytest.fixture(scope="module")
def tokens():
    return tokens_of(tiny.clip_tokenizer(max_length=12))


def ids(tokens, text, dialect="plain"):
    chunks, _ = tokens.split(text, dialect)
    outer = {*tokens.start, *tokens.end}
    return [[i for i, m in zip(c.ids, c.mask, strict=True) if m and i not in outer] for c in chunks]


def test_a_word_becomes_its_ids_and_leaves_the_rest_alone(tokens):
    words = tokens.with_words({"<ink>": 2, "blot": 1})
    first = tokens.first_word
    plain = ids(tokens, "a red cat")[0]
    assert ids(words, "a red cat") == [plain]
    assert ids(words, "a <INK> red Blot, cat<ink>")[0][:4] == [plain[0], first, first + 1, plain[1]]
    assert first + 2 in ids(words, "a Blot")[0]
    assert words.count("a <ink> cat") == 4
    assert [words.spell(first + k) for k in range(3)] == ["<ink>#1", "<ink>#2", "blot"]


def test_a_word_is_not_found_inside_another_and_the_longest_wins(tokens):
    words = tokens.with_words({"ink": 1, "ink wash": 3})
    first = tokens.first_word
    assert all(i < first for i in ids(words, "pink inks")[0])
    assert ids(words, "ink wash")[0] == [first + 1, first + 2, first + 3]
    assert ids(words, "ink, wash")[0][0] == first


def test_a_word_of_several_vectors_is_not_torn_by_a_window(tokens):
    words = tokens.with_words({"<ink>": 4})
    first = tokens.first_word
    chunks = ids(words, "a red cat on the table a big <ink> leaf")
    assert chunks[1][:4] == [first, first + 1, first + 2, first + 3]
    assert len(chunks[0]) == 8


def test_weights_reach_a_word(tokens):
    words = tokens.with_words({"<ink>": 2})
    (chunk, *_), _ = words.split("a (<ink>:1.5)", "a1111")
    marked = [w for i, w in zip(chunk.ids, chunk.weights, strict=True) if i >= tokens.first_word]
    assert marked == [1.5, 1.5]


def test_files_of_every_layout_are_read(tmp_path):
    vectors = torch.randn(2, 8)
    save_file({"<ink>": vectors}, tmp_path / "a.safetensors")
    save_file({"emb_params": vectors}, tmp_path / "b.safetensors")
    save_file({"clip_l": vectors, "clip_g": torch.randn(2, 12)}, tmp_path / "c.safetensors")
    torch.save({"<blot>": vectors[0]}, tmp_path / "d.bin")
    torch.save({"string_to_param": {"*": vectors}, "name": "wash"}, tmp_path / "e.pt")
    read = {p.stem: read_embedding(p) for p in sorted(tmp_path.iterdir())}
    assert [read[k].token for k in "abcde"] == ["<ink>", None, None, "<blot>", "wash"]
    assert torch.equal(read["e"].vectors["text_encoder"], vectors)
    assert read["d"].vectors["text_encoder"].shape == (1, 8)
    assert read["c"].vectors["text_encoder_2"].shape == (2, 12)


class _Evil:
    def __reduce__(self):
        return (print, ("ran",))


def test_an_unsafe_pickle_is_refused_and_does_not_run(tmp_path, capsys):
    torch.save({"<x>": _Evil()}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="unsafe"):
        read_embedding(tmp_path / "x.pt")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"a": torch.zeros(2, 3), "b": torch.zeros(2, 3)}, "expected one tensor"),
        ({"a": torch.zeros(2, 3, 4)}, "shape"),
        ({"a": torch.full((1, 3), torch.nan)}, "finite"),
        ({"clip_l": torch.zeros(1, 3), "clip_g": torch.zeros(2, 3)}, "equally many"),
    ],
)
def test_what_is_no_embedding_is_refused(tmp_path, state, words):
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=words):
        read_embedding(tmp_path / "x.safetensors")


def test_a_view_knows_the_word_and_the_model_does_not(tmp_path):
    model = from_pipeline(tiny.build("sd1"), name="sd")
    weights = read_embedding(adapters_tiny.embedding(tmp_path / "ink.safetensors"))
    prompt = Prompt(text="a red <ink> cat")
    before = model.encode([prompt])[0]["encoder_hidden_states"]
    view = with_embeddings(model, [weights], ["<ink>"])
    known = view.encode([prompt])[0]["encoder_hidden_states"]
    after = model.encode([prompt])[0]["encoder_hidden_states"]
    assert torch.equal(before, after)
    assert np.abs((known - before).numpy()).max() > 0.1
    assert view.spec.digest != model.spec.digest
    with pytest.raises(InvalidRequest, match="families sd and sdxl"):
        with_embeddings(from_pipeline(tiny.build("dit"), name="dit"), [weights], ["<ink>"])
