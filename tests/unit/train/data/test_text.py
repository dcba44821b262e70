import subprocess
import sys

from mezzotint.train.data.text import learn_merges, learn_tokenizer

CAPTIONS = ["a red apple", "a green apple", "two red pears", "a red, red apple"] * 3


def test_merges_are_the_most_frequent_pairs_with_ties_by_spelling():
    words = {("l", "o", "w</w>"): 5, ("l", "o", "w", "e", "r</w>"): 2, ("n", "e", "w</w>"): 5}
    # counts: lo 7, ow</w> 5, ne 5, ew</w> 5; after lo: low</w> 5
    assert learn_merges(words, count=3) == [("l", "o"), ("e", "w</w>"), ("lo", "w</w>")]


def test_frequent_words_become_one_token_and_any_text_can_be_read():
    tokenizer = learn_tokenizer(CAPTIONS, size=600, tokens=16)
    assert tokenizer.tokenize("red apple") == ["red</w>", "apple</w>"]
    text = "naïve 7 Äpfel, 猫!"
    assert (
        tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
        == "naïve 7 äpfel , 猫 !"
    )
    ids = tokenizer("a red apple", padding="max_length", max_length=16)["input_ids"]
    assert len(ids) == 16
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


def test_a_learned_tokenizer_reads_the_same_after_a_round_trip_through_files(tmp_path):
    from transformers import CLIPTokenizer

    tokenizer = learn_tokenizer(CAPTIONS, size=600, tokens=16)
    tokenizer.save_pretrained(str(tmp_path))
    again = CLIPTokenizer.from_pretrained(str(tmp_path))
    for text in ("two green pears", "an unseen word", ""):
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_every_process_learns_the_same_vocabulary():
    code = (
        "from mezzotint.train.data.text import learn_tokenizer;"
        f"t = learn_tokenizer({CAPTIONS!r}, size=560, tokens=16);"
        "print(sorted(t.get_vocab().items())[-40:])"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(found) == 1
