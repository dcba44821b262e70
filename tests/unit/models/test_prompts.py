import json

import pytest
from tests import tiny

from mezzotint.errors import CardError, WeightsError
from mezzotint.models.formats.single_file import clip_vocabulary
from mezzotint.models.prompts import Tokens, clip_tokens, load_tokens, tokens_of

TEXTS = ["", "a red apple", "A  big RED Äpple, on the table!", "blue cats' leaf <|endoftext|> 42"]
TOKENIZERS = {
    "clip": tiny.clip_tokenizer,
    "clip_padded_with_exclamation": lambda: tiny.clip_tokenizer(pad="!"),
    "t5": tiny.t5_tokenizer,
    "bert": tiny.bert_tokenizer,
}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_mask_equal_those_of_transformers(name, text, tmp_path):
    theirs = TOKENIZERS[name]()
    theirs.save_pretrained(tmp_path)
    for ours in (load_tokens(tmp_path), tokens_of(theirs)):
        wanted = theirs(text, padding="max_length", max_length=ours.max_length, truncation=True)
        (chunk,), notes = ours.split(text)
        assert list(chunk.ids) == wanted["input_ids"]
        assert list(chunk.mask) == wanted["attention_mask"]
        assert notes == ()


def test_clip_is_read_from_vocab_and_merges_as_old_folders_have_them(tmp_path):
    import json

    theirs = tiny.clip_tokenizer()
    theirs.save_pretrained(tmp_path / "whole")
    model = json.loads((tmp_path / "whole" / "tokenizer.json").read_text())["model"]
    old = tmp_path / "old"
    old.mkdir()
    (old / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (old / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    for text in TEXTS:
        assert load_tokens(old).split(text) == load_tokens(tmp_path / "whole").split(text)


def test_bert_is_read_from_its_list_of_tokens(tmp_path):
    theirs = tiny.bert_tokenizer()
    tokens = sorted(theirs.get_vocab(), key=theirs.get_vocab().get)
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    for text in TEXTS[:3]:
        wanted = theirs(text, padding="max_length", max_length=512, truncation=True)
        assert list(load_tokens(tmp_path).split(text)[0][0].ids) == wanted["input_ids"]


def test_long_clip_prompt_is_split_after_the_last_comma_near_the_end():
    tokens = tokens_of(tiny.clip_tokenizer())
    chunks, notes = tokens.split("a red apple, " * 30)
    # 18 phrases of 4 tokens are 72; the 19th does not fit into 75 and moves on whole.
    assert [sum(chunk.mask) - 2 for chunk in chunks] == [72, 48]
    assert notes == ()


def test_long_clip_prompt_without_commas_is_split_at_75():
    chunks, _ = tokens_of(tiny.clip_tokenizer()).split("apple " * 160)
    assert [sum(chunk.mask) - 2 for chunk in chunks] == [75, 75, 10]


def test_empty_windows_fill_up_to_the_number_asked_for():
    tokens = tokens_of(tiny.clip_tokenizer())
    chunks, _ = tokens.split("a cat", num_chunks=3)
    assert len(chunks) == 3
    assert chunks[1] == chunks[2] == tokens.split("")[0][0]


def test_text_beyond_the_last_window_is_named_in_a_note():
    tokens = tokens_of(tiny.bert_tokenizer(max_length=8))
    (chunk,), notes = tokens.split("a red apple on the table , two blue cat")
    assert sum(chunk.mask) == 8
    assert notes == ("prompt cut at 8 tokens; not read: ', two blue cat'",)


def test_clip_text_of_more_than_eight_windows_is_cut_with_a_note():
    chunks, notes = tokens_of(tiny.clip_tokenizer()).split("apple " * 601 + "leaf")
    assert len(chunks) == 8
    assert notes[0].endswith("not read: 'apple leaf'")


def test_weights_follow_their_tokens():
    tokens = tokens_of(tiny.clip_tokenizer())
    (chunk,), _ = tokens.split("a (red:1.5) apple", "a1111")
    assert chunk.weights[:5] == (1.0, 1.0, 1.5, 1.0, 1.0)
    assert chunk.ids == tokens.split("a red apple")[0][0].ids
    assert chunk.is_weighted


def test_break_ends_a_window():
    chunks, _ = tokens_of(tiny.clip_tokenizer()).split("a cat BREAK a leaf", "a1111")
    assert [sum(chunk.mask) - 2 for chunk in chunks] == [2, 2]


def test_packaged_clip_vocabulary_gives_the_known_ids():
    vocab, merges = clip_vocabulary()
    assert len(vocab) == 49408
    tokens = Tokens(clip_tokens(vocab, merges), kind="clip", max_length=77)
    ids = tokens.split("a photo of a cat")[0][0].ids
    assert ids[:8] == (49406, 320, 1125, 539, 320, 2368, 49407, 49407)  # as CLIP's release


def test_missing_tokenizer_names_the_folder_and_what_it_needs(tmp_path):
    with pytest.raises(WeightsError, match=r"vocab.json with merges.txt") as caught:
        load_tokens(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_tokenizer_with_code_of_its_own_is_refused_though_a_terminal_says_yes(
    tmp_path, monkeypatch
):
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")
    mapped = {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(mapped))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: ...\n")
    (tmp_path / "spiece.model").write_bytes(b"")
    with pytest.raises(CardError, match="code inside a model folder never runs") as caught:
        load_tokens(tmp_path)
    assert "\n" not in str(caught.value)
    assert asked == []
    assert not (tmp_path / "ran").exists()


def test_broken_tokenizer_is_a_card_error(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CardError, match="not JSON"):
        load_tokens(tmp_path)
    with pytest.raises(CardError, match="tokenizers backend"):
        tokens_of(object())


class Recorded:
    """A tokenizer that writes down which of its calls are made."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer, self.calls = tokenizer, []

    def __getattr__(self, name):
        self.calls.append(name)
        return getattr(self.tokenizer, name)


def test_long_text_is_encoded_once_and_by_the_call_that_lets_other_threads_run():
    text = "very " * 6000
    tokens = Tokens(clip_tokens(*clip_vocabulary()), kind="clip", max_length=77)
    expected = tokens._tokenizer.encode(text, add_special_tokens=False).ids
    tokens._tokenizer = recorded = Recorded(tokens._tokenizer)
    assert tokens.count(text) == len(expected) == 6000
    chunks, _ = tokens.split(text)
    assert [id_ for chunk in chunks for id_ in chunk.ids[1:76]] == expected[: 8 * 75]
    assert recorded.calls == ["encode_batch"]


def test_long_texts_that_follow_each_other_are_not_mixed_up():
    tokens = Tokens(clip_tokens(*clip_vocabulary()), kind="clip", max_length=77)
    first, second = "very " * 6000, "red, " * 6000
    assert [tokens.count(text) for text in (first, second, first)] == [6000, 12000, 6000]
