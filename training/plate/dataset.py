"""Turn composed pictures and their captions into arrays that training only reads.

Usage: ``python dataset.py DATA RUN captions``, then, once the autoencoder is
trained, ``python dataset.py DATA RUN latents``. The first writes ``items.json``
(picture, composition, caption numbers, weight), ``captions.json`` and
``embeddings.npy``; the second ``latents.npy``. Caption 0 is the empty one.

Each picture appears once as it is, a few times on coloured backgrounds, small in
some places, and two or three times over; an item's weight says how often it is
drawn, and the common subjects of `CORE_SUBGROUPS` are drawn most. ``--richness 2`` makes
twice as many compositions of each picture, as far as there are backgrounds and places.
``--law several`` has three picture sets answer one caption (``laws.py``).
"""

import argparse
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from autoencoder import build_autoencoder, to_pixels
from captions import ALIASES, RICH_CAPTIONS, can_count, colour_shares, describe
from compose import COLOURS, POSITIONS, Composition, compose
from data import Entry, is_depictable
from laws import LAWS, ONE, Law
from precision import fast_floats
from text import embed

MOST = {"background": len(COLOURS), "place": len(POSITIONS), "count": 8, "big": 8}
# Each kind's share of a picture's weight.
KIND_SHARES = {"plain": 0.36, "background": 0.33, "place": 0.12, "count": 0.16, "big": 0.03}
# Mammals, birds, sea animals, flowers, plants, fruit, vegetables, dishes, sweets, hearts,
# sky and simple faces are asked for most; little else is learnt in an hour on two cores.
CORE_SUBGROUPS = {0, 12, 14, 34, 35, 38, 40, 41, 42, 43, 44, 46}
OTHERS_WEIGHT = 0.12
PLAIN_CAPTIONS = 9
ENCODED_AT_ONCE = 8  # what fits the cache: 20 ms a picture on one thread, 31 in batches of 64


def compositions(kind: str, count: int, rng: np.random.Generator) -> Iterator[Composition]:
    """Yield compositions of one kind, without repeating its main property."""
    backgrounds = rng.choice(COLOURS, size=count, replace=False)
    places = min(count, len(POSITIONS))
    positions = rng.choice(list(POSITIONS), size=places, replace=False)
    for i in range(count):
        background = str(backgrounds[i]) if rng.random() < 0.4 else "white"
        if kind == "plain":
            yield Composition()
        elif kind == "background":
            yield Composition(background=str(backgrounds[i]))
        elif kind == "place":
            position = None if rng.random() < 0.15 else str(positions[i])
            yield Composition(background=background, size="small", position=position)
        elif kind == "count":
            yield Composition(background=background, count=2 + i % 2)
        else:
            yield Composition(background=background, size="big")


def weight_of(entry: Entry, law: Law = ONE) -> float:
    """Return how often a picture is drawn, relative to others."""
    weight = law.sets[entry["style"]].weight
    if entry["label"] in RICH_CAPTIONS:
        return 3 * weight
    if entry["label"] in ALIASES or entry["subgroup"] in CORE_SUBGROUPS:
        return weight
    return OTHERS_WEIGHT * weight


def build_items(
    data: Path, *, seed: int = 1, richness: int = 1, law: Law = ONE
) -> tuple[list[dict[str, Any]], list[str]]:
    """Choose compositions and captions of every learnt picture.

    Args:
        data: Folder with the pictures.
        seed: Seed of the draws.
        richness: Times as many compositions.
        law: Which sets are learnt.

    Returns:
        Items (picture, composition, caption numbers, weight, label), and the captions.
    """
    pictures = np.load(data / "pictures.npy", mmap_mode="r")
    entries: list[Entry] = json.loads((data / "pictures.json").read_text("utf-8"))
    rng = np.random.default_rng(seed)
    numbers = {"": 0}
    items = []
    for index, entry in enumerate(entries):
        if entry["style"] not in law.sets or not is_depictable(entry):
            continue
        shares = colour_shares(np.asarray(pictures[index]))
        chooser = rng
        if law.together:
            chooser = np.random.default_rng([seed, zlib.crc32(entry["code_points"].encode())])
        for kind, few in law.sets[entry["style"]].compositions.items():
            count = few if kind == "plain" else min(few * richness, MOST[kind])
            if kind == "count" and not can_count(entry):
                continue
            for composition in compositions(kind, count, chooser):
                draws = PLAIN_CAPTIONS if kind == "plain" else 1
                texts = {describe(entry, composition, shares, rng, law=law) for _ in range(draws)}
                if kind == "plain" and entry["style"] == "fluent-3d":
                    texts |= set(RICH_CAPTIONS.get(entry["label"], []))
                items.append(
                    {
                        "picture": index,
                        "composition": asdict(composition),
                        "captions": [numbers.setdefault(t, len(numbers)) for t in sorted(texts)],
                        "weight": weight_of(entry, law) * KIND_SHARES[kind] / count,
                        "label": entry["label"],
                    }
                )
    return items, list(numbers)


@torch.no_grad()
def encode(data: Path, run: Path) -> None:
    """Write the latents of every item, (N, 8, 16, 16) float16."""
    items = json.loads((run / "items.json").read_text("utf-8"))
    pictures = np.load(data / "pictures.npy", mmap_mode="r")
    model = build_autoencoder().to(memory_format=torch.channels_last)
    model.load_state_dict(torch.load(run / "autoencoder.pt", weights_only=True))
    latents = np.lib.format.open_memmap(
        run / "latents.npy.part", mode="w+", dtype=np.float16, shape=(len(items), 8, 16, 16)
    )
    for start in range(0, len(items), ENCODED_AT_ONCE):
        drawn = [
            compose(np.asarray(pictures[item["picture"]]), Composition(**item["composition"]))
            for item in items[start : start + ENCODED_AT_ONCE]
        ]
        pixels = to_pixels(np.stack(drawn)).to(memory_format=torch.channels_last)
        with fast_floats():
            mean = model.encode(pixels).latent_dist.mean
        latents[start : start + len(drawn)] = mean.float().numpy()
    latents.flush()
    os.replace(run / "latents.npy.part", run / "latents.npy")
    some = latents[::50].astype(np.float32)  # half precision has no room for the sum
    print(f"{len(items)} latents, mean {some.mean():.3f} std {some.std():.3f}")


def main() -> None:
    """Do one of the two steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with pictures.npy")
    parser.add_argument("run", type=Path, help="folder with text_encoder, tokenizer, autoencoder")
    parser.add_argument("step", choices=("captions", "latents"))
    parser.add_argument("--richness", type=int, default=1, help="times as many compositions")
    parser.add_argument("--law", choices=LAWS, default="one", help="which sets are learnt")
    arguments = parser.parse_args()
    if arguments.step == "latents":
        encode(arguments.data, arguments.run)
        return
    law = LAWS[arguments.law]
    items, captions = build_items(arguments.data, richness=arguments.richness, law=law)
    print(f"{len(items)} items, {len(captions)} captions", flush=True)
    (arguments.run / "items.json").write_text(json.dumps(items), "utf-8")
    path = arguments.run / "captions.json"
    if path.exists() and json.loads(path.read_text("utf-8")) == captions:
        return  # their embeddings are there
    (arguments.run / "captions.json").write_text(json.dumps(captions), "utf-8")
    embed(arguments.run, captions, arguments.run / "embeddings.npy")


if __name__ == "__main__":
    main()
