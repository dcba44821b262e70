"""Prepare the frozen text encoder and embed captions with it.

Usage: ``python text.py DATA RUN``. Writes ``RUN/text_encoder`` and
``RUN/tokenizer``: MiniLM (a six-layer BERT) with its weights untouched, minus
what English never reaches: ``[unused]`` tokens, tokens with letters of other
scripts, and positions beyond 64. WordPiece spells a word with tokens made of the
word's own characters only, so leaving the others out cannot change how English
is cut; token numbers change, pieces do not.

Embeddings are the last hidden states of all `MAX_TOKENS` positions, padding
included: that is what a Stable Diffusion pipeline hands to its U-Net when the
encoder's configuration says ``use_attention_mask``.
"""

import argparse
import json
import re
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from precision import fast_floats
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import BertModel

MAX_TOKENS = 32
MAX_POSITIONS = 64
SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def is_kept(token: str) -> bool:
    """Whether English text can reach the token."""
    if token in SPECIAL_TOKENS.values():
        return True
    if token.startswith("[unused"):
        return False
    letters = [c for c in token if unicodedata.category(c).startswith("L")]
    return all("LATIN" in unicodedata.name(c, "") for c in letters)


def replaced_ids(tree: Any, ids: dict[str, int]) -> Any:
    """Renumber the special tokens wherever a tokenizer's description names them."""
    if isinstance(tree, list):
        return [replaced_ids(item, ids) for item in tree]
    if not isinstance(tree, dict):
        return tree
    tree = {key: replaced_ids(value, ids) for key, value in tree.items() if key != "vocab"}
    token = tree.get("content", tree.get("id"))
    if isinstance(tree.get("id"), int):
        tree["id"] = ids[token]
    if isinstance(tree.get("ids"), list):
        tree["ids"] = [ids[t] for t in tree["tokens"]]
    return tree


def prune(source: Path, run: Path) -> None:
    """Write the pruned tokenizer and the pruned encoder."""
    description = json.loads((source / "tokenizer.json").read_text("utf-8"))
    old = description["model"]["vocab"]
    kept = [token for token in sorted(old, key=old.__getitem__) if is_kept(token)]
    vocabulary = {token: i for i, token in enumerate(kept)}
    description = replaced_ids(description, vocabulary)
    description["model"]["vocab"] = vocabulary
    for processor in (description.get("post_processor") or {},):
        for key in ("sep", "cls"):
            if isinstance(processor.get(key), list):
                processor[key][1] = vocabulary[processor[key][0]]
    description["padding"], description["truncation"] = None, None
    write_tokenizer(description, kept, run / "tokenizer")

    weights = load_file(source / "model.safetensors")
    weights.pop("embeddings.position_ids", None)
    rows = torch.tensor([old[token] for token in kept])
    words = "embeddings.word_embeddings.weight"
    places = "embeddings.position_embeddings.weight"
    weights[words] = weights[words][rows]
    weights[places] = weights[places][:MAX_POSITIONS]
    config = json.loads((source / "config.json").read_text("utf-8"))
    for key in ("_name_or_path", "transformers_version", "torch_dtype"):
        config.pop(key, None)
    config |= {
        "architectures": ["BertModel"],
        "dtype": "float32",
        "max_position_embeddings": MAX_POSITIONS,
        "pad_token_id": vocabulary["[PAD]"],
        "use_attention_mask": True,
        "vocab_size": len(kept),
    }
    folder = run / "text_encoder"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    half = {name: tensor.half().contiguous() for name, tensor in weights.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    print(f"{len(kept)} of {len(old)} tokens kept")


def write_tokenizer(description: dict[str, Any], kept: list[str], folder: Path) -> None:
    """Write the tokenizer in the forms that libraries look for."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = {
        **SPECIAL_TOKENS,
        "clean_up_tokenization_spaces": False,
        "do_lower_case": True,
        "model_max_length": MAX_TOKENS,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "tokenizer_class": "BertTokenizer",
    }
    (folder / "tokenizer.json").write_text(json.dumps(description, ensure_ascii=False), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    (folder / "special_tokens_map.json").write_text(
        json.dumps(SPECIAL_TOKENS, indent=2) + "\n", "utf-8"
    )
    (folder / "vocab.txt").write_text("\n".join(kept) + "\n", "utf-8")


def check(source: Path, run: Path, texts: list[str]) -> None:
    """Check that pieces and states equal the original's on the given texts."""
    before = Tokenizer.from_file(str(source / "tokenizer.json"))
    after = Tokenizer.from_file(str(run / "tokenizer" / "tokenizer.json"))
    before.no_padding(), before.no_truncation()
    original, ours = (
        BertModel.from_pretrained(source),
        BertModel.from_pretrained(run / "text_encoder"),
    )
    for text in texts:
        old, new = before.encode(text), after.encode(text)
        if old.tokens != new.tokens:
            raise ValueError(f"pieces of {text!r} changed: {old.tokens} became {new.tokens}")
        with torch.no_grad():
            states = [
                model(torch.tensor([encoding.ids])).last_hidden_state
                for model, encoding in ((original, old), (ours, new))
            ]
        print(f"{len(new.ids)} tokens, states differ by {(states[0] - states[1]).abs().max():.1e}")


@torch.no_grad()
def embed(run: Path, captions: list[str], out: Path, *, batch_size: int = 128) -> None:
    """Write the captions' states, (N, MAX_TOKENS, 384) float16, to a ``.npy`` file."""
    tokenizer = Tokenizer.from_file(str(run / "tokenizer" / "tokenizer.json"))
    pad = tokenizer.token_to_id("[PAD]")
    tokenizer.enable_padding(pad_id=pad, pad_token="[PAD]", length=MAX_TOKENS)
    tokenizer.enable_truncation(MAX_TOKENS)
    encoder = BertModel.from_pretrained(run / "text_encoder").eval()
    shape = (len(captions), MAX_TOKENS, encoder.config.hidden_size)
    states: NDArray[np.float16] = np.lib.format.open_memmap(
        out, mode="w+", dtype=np.float16, shape=shape
    )
    for start in range(0, len(captions), batch_size):
        encodings = tokenizer.encode_batch(captions[start : start + batch_size])
        ids = torch.tensor([e.ids for e in encodings])
        mask = torch.tensor([e.attention_mask for e in encodings])
        with fast_floats():
            hidden = encoder(ids, attention_mask=mask).last_hidden_state
        states[start : start + len(ids)] = hidden.float().numpy()
    states.flush()


def main() -> None:
    """Prune and check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder that fetch.py filled")
    parser.add_argument("run", type=Path, help="folder for the encoder and the tokenizer")
    arguments = parser.parse_args()
    source = arguments.data / "minilm"
    prune(source, arguments.run)
    labels = json.loads((arguments.data / "captions" / "en" / "data.json").read_text("utf-8"))
    texts = ["a red apple with a green leaf", "", "Déjà vu: 3 cafés & 20% naïve résumés!"]
    texts += [re.sub(r"[^\x00-\x7f]", "", entry["label"]) for entry in labels[::200]]
    check(source, arguments.run, texts)


if __name__ == "__main__":
    main()
