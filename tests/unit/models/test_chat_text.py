import json

from tests import tiny_flows

from mezzotint.models.chat_text import CHAT_FORMATS, ChatFormat, chat_ids
from mezzotint.models.prompts import load_tokens, tokens_of


def test_a_framed_prompt_is_what_the_tokenizer_makes_of_its_chat_template():
    tokenizer = tiny_flows.qwen_tokenizer()
    messages = [{"role": "user", "content": "a red apple\n on it"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    found = chat_ids(tokens_of(tokenizer), CHAT_FORMATS["z-image"], "a red apple\n on it")
    assert list(found.ids) == tokenizer(text).input_ids


def test_what_is_cut_and_what_has_no_effect_is_told():
    tokens = tokens_of(tiny_flows.qwen_tokenizer())
    chat = ChatFormat(before="a ", after=" big", max_tokens=5)
    found = chat_ids(tokens, chat, "(red:1.3) apple leaf", "a1111")
    assert found.cuts == ("prompt cut at 5 tokens; not read: 'leaf'",)
    assert "weights of words have no effect" in found.unheard[0]
    whole = chat_ids(tokens, chat, "red")
    assert (whole.cuts, whole.unheard) == ((), ())


def test_a_folder_of_qwens_older_layout_has_the_same_tokens(tmp_path):
    tokenizer = tiny_flows.qwen_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    vocabulary = tokenizer.get_vocab()
    marks = {token: k for token, k in vocabulary.items() if token.startswith("<|")}
    (tmp_path / "tokenizer.json").unlink()
    model = {token: k for token, k in vocabulary.items() if token not in marks}
    (tmp_path / "vocab.json").write_text(json.dumps(model))
    (tmp_path / "added_tokens.json").write_text(json.dumps(marks))
    (tmp_path / "merges.txt").write_text("\n".join(map(" ".join, tiny_flows.merges())))
    text = "<|im_start|>user\na red apple<|im_end|>"
    found = [token for token, _ in load_tokens(tmp_path).encode_whole(text)]
    assert found == tokenizer(text).input_ids


def test_of_qwen_image_2_the_network_sees_what_stands_behind_the_system_message():
    processor = tiny_flows.qwen_image_21().processor
    tokens, chat = tokens_of(processor.tokenizer), CHAT_FORMATS["qwen-image-2"]
    message = [{"type": "text", "text": "Comprehend and analyze the provided prompt."}]
    system = processor.apply_chat_template(
        [{"role": "system", "content": message}], tokenize=True, return_dict=False
    )[0]
    found = chat_ids(tokens, chat, "a red apple", pictures=2)
    assert found.hidden == (0, len(system))
    seen = (
        "<|im_start|>user\n<image1><|vision_start|><|image_pad|><|vision_end|> "
        "<image2><|vision_start|><|image_pad|><|vision_end|>a red apple<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert list(found.ids) == [*system, *processor.tokenizer(seen).input_ids]
    assert chat_ids(tokens, chat, "").ids == chat_ids(tokens, chat, " ").ids
    endless = chat_ids(tokens, chat, "big " * 2100)
    assert endless.num_seen == chat.window == 2048
    assert "prompt cut at 2048 tokens" in endless.cuts[0]
    marked = chat_ids(tokens, chat, "a <|image_pad|>red apple")
    assert marked.ids == chat_ids(tokens, chat, "a red apple").ids


def test_of_sanas_instruction_the_network_sees_the_first_token_and_what_the_last_became():
    tokenizer = tiny_flows.gemma_tokenizer()
    tokens, chat = tokens_of(tokenizer), CHAT_FORMATS["sana"]
    whole = tokenizer(chat.before + "a red apple").input_ids
    found = chat_ids(tokens, chat, " A Red APPLE ")
    assert list(found.ids) == whole
    assert found.hidden == (1, len(tokenizer(chat.before).input_ids) - 1)
    endless = chat_ids(tokens, chat, "big " * 400)
    assert endless.num_seen == chat.window == 300
    assert "prompt cut at 300 tokens" in endless.cuts[0]
    plain = chat_ids(tokens, chat, "Blue", negative=True)
    assert (list(plain.ids), plain.hidden) == (tokenizer("blue").input_ids, (0, 0))
