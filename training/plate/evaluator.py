"""Train the judge of the text-to-picture model: a small retrieval network of its own.

Usage: ``python evaluator.py DATA --minutes 14`` (of one core). Writes ``evaluator.safetensors`` and
``bench_captions.json`` beside this file, or into the folder ``--out`` names;
``mezzotint bench plate`` reads both. The network itself is in ``judge.py``. ``--law`` says which
picture sets it knows and what captions say of them (``laws.py``): those that the model learns.

Its towers learn, contrastively, which caption belongs to which composition. It shares
nothing with the model that it judges: not the autoencoder, not the text encoder, not
the draws, and it sees pictures shifted, scaled, recoloured, blurred and noisy, which the
model never does. All nine groups are learnt, people and flags too, which `plate` is
never asked for, so that the group is a real choice.

One composition in ten, by the digest of its content, is left out of the training; the
figures on those are what the judge itself is worth. ``--check`` prints them.
"""

import argparse
import json
import math
import os
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captions import can_count, colour_shares, describe
from compose import BACKGROUNDS, POSITIONS, Composition, compose
from data import GROUPS, Entry, is_depictable
from judge import (
    COLOURS,
    WEIGHTS,
    Evaluator,
    Judge,
    number_words,
    shrink,
    split_words,
    to_pixels,
)
from laws import LAWS, ONE, Law
from numpy.typing import NDArray
from precision import fast_floats
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent
CAPTIONS_FILE = "bench_captions.json"
CAPTIONS = HERE / CAPTIONS_FILE
BANK_SIZE, CAPTIONS_EACH, HELD_OUT = 48_000, 3, 10
LEARNING_RATE, BATCH = 2e-3, 192
SEED, CAPTION_SEED, CAPTION_COUNT = 77, 500, 500


def all_compositions() -> list[Composition]:
    """Return every composition there is."""
    found = []
    for background in BACKGROUNDS:
        found += [Composition(background=background, count=n) for n in (1, 2, 3)]
        found.append(Composition(background=background, size="big"))
        places = (None, *POSITIONS)
        found += [Composition(background=background, size="small", position=p) for p in places]
    return found


def kind_of(composition: Composition) -> str:
    """Return the kind of a composition, as the training of `plate` names it."""
    if composition.count > 1:
        return "count"
    if composition.size != "normal":
        return "place" if composition.size == "small" else "big"
    return "plain" if composition.background == "white" else "background"


def is_held_out(entry: Entry, composition: Composition) -> bool:
    """Whether the judge never learns this composition of this picture."""
    if kind_of(composition) == "plain":
        return False  # there is one of each, and `plate` is asked for it most
    content = json.dumps([entry["code_points"], entry["style"], asdict(composition)])
    return zlib.crc32(content.encode()) % HELD_OUT == 0


@dataclass(slots=True)
class Bank:
    """Compositions with their captions and what is true of them."""

    pictures: NDArray[np.uint8]
    captions: list[list[str]]
    truths: dict[str, Tensor]
    keys: Tensor


def read_data(data: Path) -> tuple[NDArray[np.uint8], list[Entry]]:
    """Return the RGBA pictures and their entries."""
    entries = json.loads((data / "pictures.json").read_text("utf-8"))
    return np.load(data / "pictures.npy", mmap_mode="r"), entries


def build_bank(
    data: Path, size: int, rng: np.random.Generator, *, held_out: bool, law: Law = ONE
) -> Bank:
    """Compose pictures: two fifths as `plate` is asked for, the rest evenly."""
    from dataset import weight_of

    pictures, entries = read_data(data)
    ours = [i for i, e in enumerate(entries) if e["style"] in law.sets]
    learnt = np.array([weight_of(entries[i], law) * is_depictable(entries[i]) for i in ours])
    evenly = np.ones(len(ours)) + 2 * (learnt > 0)
    odds = learnt / learnt.sum() if held_out else 0.4 * learnt / learnt.sum()
    if not held_out:
        odds = odds + 0.6 * evenly / evenly.sum()
    by_kind: dict[str, list[Composition]] = {}
    for composition in all_compositions():
        by_kind.setdefault(kind_of(composition), []).append(composition)
    kinds = {"plain": 0.3, "background": 0.3, "place": 0.15, "count": 0.2, "big": 0.05}
    if held_out:
        del kinds["plain"]
    shares: dict[int, dict[str, float]] = {}
    labels = {code: k for k, code in enumerate(sorted({e["code_points"] for e in entries}))}
    drawn, captions, rows, keys = [], [], [], []
    while len(drawn) < size:
        index = ours[int(rng.choice(len(ours), p=odds))]
        entry = entries[index]
        kind = str(rng.choice(list(kinds), p=np.array(list(kinds.values())) / sum(kinds.values())))
        composition = by_kind[kind][int(rng.integers(len(by_kind[kind])))]
        if kind == "count" and not can_count(entry):
            continue
        if is_held_out(entry, composition) != held_out:
            continue
        if index not in shares:
            shares[index] = colour_shares(np.asarray(pictures[index]))
        drawn.append(shrink(compose(np.asarray(pictures[index]), composition)[None])[0])
        captions.append(
            [
                describe(entry, composition, shares[index], rng, law=law)
                for _ in range(CAPTIONS_EACH)
            ]
        )
        background = COLOURS.index(composition.background)
        rows.append(
            (entry["group"], composition.count - 1, background, labels[entry["code_points"]])
        )
        thing = entry["code_points"] if law.together else index
        keys.append(zlib.crc32(f"{thing} {composition}".encode()))
    table = torch.tensor(rows)
    names = ("group", "count", "background", "label")
    truths = {name: table[:, k] for k, name in enumerate(names)}
    return Bank(np.stack(drawn), captions, truths, torch.tensor(keys))


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Shift, scale, recolour, blur and disturb pictures, each in its own way."""
    rows = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(rows, *shape, generator=generator)

    scale, shift = uniform(0.92, 1.12), uniform(-0.09, 0.09, 2)
    matrix = torch.zeros(rows, 2, 3)
    matrix[:, 0, 0], matrix[:, 1, 1] = scale * uniform(0.96, 1.04), scale * uniform(0.96, 1.04)
    matrix[:, :, 2] = shift
    grid = F.affine_grid(matrix, list(pixels.shape), align_corners=False)
    pixels = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    coarse = F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2, mode="bilinear")
    kind = torch.rand(rows, 1, 1, 1, generator=generator)
    pixels = torch.where(kind < 0.3, blurred, torch.where(kind < 0.5, coarse, pixels))
    pixels = pixels * uniform(0.9, 1.1, 3, 1, 1) + uniform(-0.06, 0.06, 1, 1, 1)
    noise = torch.randn(pixels.shape, generator=generator)
    return (pixels + uniform(0, 0.05, 1, 1, 1) * noise).clamp(0, 1)


def contrast(ours: Tensor, theirs: Tensor, keys: Tensor, scale: Tensor) -> Tensor:
    """Return the loss of telling pairs apart; equal compositions are no opponents."""
    scores = scale * ours @ theirs.T
    same = (keys[:, None] == keys[None]) & ~torch.eye(len(keys), dtype=torch.bool)
    scores = scores.masked_fill(same, -1e4)
    target = torch.arange(len(keys))
    return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2


def train(data: Path, minutes: float, out: Path, law: Law) -> None:
    """Train for the given time and write the weights in half precision to a file."""
    rng = np.random.default_rng(SEED)
    started = time.process_time()
    bank = build_bank(data, BANK_SIZE, rng, held_out=False, law=law)
    print(f"{len(bank.keys)} compositions in {time.process_time() - started:.0f} s", flush=True)
    found = sorted(
        {word for texts in bank.captions for text in texts for word in split_words(text)}
    )
    vocabulary = {word: k + 2 for k, word in enumerate(found)}
    numbers = torch.stack(
        [number_words([texts[k] for texts in bank.captions], vocabulary) for k in range(3)], dim=1
    )
    torch.manual_seed(SEED)  # noqa: TID251 - the layers take their first weights from it
    model = Evaluator(len(vocabulary) + 2).to(memory_format=torch.channels_last)
    label_head = nn.Linear(256, int(bank.truths["label"].max()) + 1)  # helps learning only
    parameters = [*model.parameters(), *label_head.parameters()]
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.05, fused=True)
    average = [p.detach().clone() for p in model.parameters()]
    generator = torch.Generator().manual_seed(SEED)
    step, seconds, started, losses = 0, 60 * minutes, time.process_time(), []
    while (spent := time.process_time() - started) < seconds:
        factor = min(1, step / 200) * max(0.01, 0.5 + 0.5 * math.cos(math.pi * spent / seconds))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * factor
        rows = np.sort(rng.choice(len(bank.keys), size=BATCH, replace=False))
        pixels = augment(to_pixels(bank.pictures[rows]), generator)
        words = numbers[rows, rng.integers(CAPTIONS_EACH, size=BATCH)]
        forget = torch.rand(words.shape, generator=generator) < 0.04
        words = torch.where(forget & (words > 0), 1, words)
        with fast_floats():
            seen, said = model.see(pixels.to(memory_format=torch.channels_last))
            read = model.read(words)
            labels = label_head(said["features"])
        scale = model.log_scale.exp().clamp(max=60)
        loss = contrast(seen, read, bank.keys[rows], scale)
        for name, weight in (("group", 0.3), ("count", 0.3), ("background", 0.3)):
            loss = loss + weight * F.cross_entropy(said[name].float(), bank.truths[name][rows])
        loss = loss + 0.5 * F.cross_entropy(labels.float(), bank.truths["label"][rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        decay = min(0.998, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, [p.detach() for p in model.parameters()], 1 - decay)
        losses.append(loss.item())
        if step % 50 == 0:
            speed = step * BATCH / (time.process_time() - started)
            print(f"step {step} at {spent / 60:.1f} min loss {np.mean(losses):.3f} "
                  f"{speed:.0f} pictures/s", flush=True)  # fmt: skip
            losses.clear()
    with torch.no_grad():
        for ours, mean in zip(model.parameters(), average, strict=True):
            ours.copy_(mean)
    learn_group(model, bank, rng)
    save(model, found, out)
    print(f"{step * BATCH} pictures, {out.stat().st_size / 1e6:.2f} MB", flush=True)


def learn_group(model: Evaluator, bank: Bank, rng: np.random.Generator) -> None:
    """Train the group's head anew on what the finished convolutions see.

    A group is no look but a habit of the catalogue, and takes longer to learn than what
    else is asked; the rest stays as it is, so a pass costs seconds.
    """
    generator = torch.Generator().manual_seed(SEED + 2)
    seen, truth = [], []
    with torch.no_grad(), fast_floats():
        for rows in np.array_split(rng.permutation(len(bank.keys)), len(bank.keys) // 256):
            pixels = augment(to_pixels(bank.pictures[rows]), generator)
            pixels = pixels.to(memory_format=torch.channels_last)
            seen.append(model.look(pixels).float())
            truth.append(bank.truths["group"][rows])
    inputs, wanted = torch.cat(seen), torch.cat(truth)
    optimizer = torch.optim.AdamW(model.group.parameters(), lr=3e-3, weight_decay=0.02, fused=True)
    passes, size = 40, 512
    steps = passes * len(wanted) // size
    model.group.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        rows = torch.randint(len(wanted), (size,), generator=generator)
        loss = F.cross_entropy(model.group(inputs[rows]), wanted[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.group.eval()
    print(f"group loss {loss.item():.3f}", flush=True)


def save(model: Evaluator, words: list[str], out: Path) -> None:
    """Write the weights: convolutions in 8 bits with a scale a channel, the rest in 16."""
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 4:
            scale = tensor.abs().amax(dim=(1, 2, 3), keepdim=True) / 127
            state[name] = (tensor / scale).round().to(torch.int8).contiguous()
            state[f"{name}.scale"] = scale.contiguous()
        else:
            state[name] = tensor.half().contiguous()
    part = out.with_suffix(".part")
    save_file(state, part, metadata={"format": "pt", "words": json.dumps(words)})
    os.replace(part, out)


def write_captions(data: Path, out: Path, law: Law) -> list[dict[str, Any]]:
    """Draw the captions of the benchmark as `plate` meets them in training, and write them.

    ``dataset.build_items``, the very code that made the training set, is run with another
    seed; items are drawn from it by their training weight and one of their captions each,
    and captions that came already are passed over.
    """
    from dataset import build_items

    _, entries = read_data(data)
    items, captions = build_items(data, seed=CAPTION_SEED, law=law)
    rng = np.random.default_rng(CAPTION_SEED)
    weights = np.array([item["weight"] for item in items])
    drawn: dict[str, dict[str, Any]] = {}
    while len(drawn) < CAPTION_COUNT:
        item = items[int(rng.choice(len(items), p=weights / weights.sum()))]
        caption = captions[int(rng.choice(item["captions"]))]
        entry = entries[item["picture"]]
        drawn.setdefault(
            caption,
            {
                "caption": caption,
                "label": entry["label"],
                "group": GROUPS[entry["group"]],
                "style": entry["style"],
                **item["composition"],
                **({"said": law.named_in(caption, entry["label"])} if law.together else {}),
            },
        )
    rows = list(drawn.values())
    lines = ",\n".join(json.dumps(row) for row in rows)
    out.write_text(f"[\n{lines}\n]\n", "utf-8")
    return rows


def real_pictures(data: Path, asked: list[dict[str, Any]]) -> NDArray[np.uint8]:
    """Compose the real picture of each row of :func:`write_captions`. Shape (N, 128, 128, 3)."""
    pictures, entries = read_data(data)
    numbers = {(e["label"], e["style"]): i for i, e in enumerate(entries)}
    drawn = []
    for row in asked:
        composition = Composition(**{k: row[k] for k in asdict(Composition())})
        drawn.append(
            compose(np.asarray(pictures[numbers[row["label"], row["style"]]]), composition)
        )
    return np.stack(drawn)


def check(data: Path, folder: Path = HERE, law: Law = ONE) -> dict[str, Any]:
    """Measure the judge on real pictures: the captions' own, and compositions it never saw."""
    judge = Judge(folder / WEIGHTS.name)
    asked = json.loads((folder / CAPTIONS_FILE).read_text("utf-8"))
    bank = build_bank(data, CAPTION_COUNT, np.random.default_rng(SEED + 1), held_out=True, law=law)
    rows = [
        {
            "caption": texts[0],
            "group": GROUPS[int(bank.truths["group"][k])],
            "background": COLOURS[int(bank.truths["background"][k])],
            "count": int(bank.truths["count"][k]) + 1,
        }
        for k, texts in enumerate(bank.captions)
    ]
    return {
        "real pictures of the captions": judge.score(real_pictures(data, asked), asked),
        "real compositions it never saw": judge.score(bank.pictures, rows),
    }


def main() -> None:
    """Train, write the captions, check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with pictures.npy")
    parser.add_argument("--minutes", type=float, default=14, help="of one core")
    parser.add_argument("--law", choices=LAWS, default="one", help="which sets it knows")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for what is written")
    parser.add_argument("--check", action="store_true", help="only measure what is there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    law, out = LAWS[arguments.law], arguments.out
    if not arguments.check:
        write_captions(arguments.data, out / CAPTIONS_FILE, law)
        train(arguments.data, arguments.minutes, out / WEIGHTS.name, law)
    print(json.dumps(check(arguments.data, out, law), indent=2))


if __name__ == "__main__":
    main()
