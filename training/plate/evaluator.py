"""Train the judge of the text-to-picture model: a small retrieval network of its own.

Usage: ``python evaluator.py DATA --minutes 14`` (of one core). Writes ``evaluator.safetensors`` and
``bench_captions.json`` beside this file; ``mezzotint bench plate`` reads both.

Two towers learn, contrastively, which caption belongs to which composition: a
convolutional network over pictures of 64 px and a network over words. Three heads tell
the group (nine), the number of things (1 to 3) and the background colour. It shares
nothing with the model that it judges: not the autoencoder, not the text encoder, not
the draws, and it sees pictures shifted, scaled, recoloured, blurred and noisy, which the
model never does. All nine groups are learnt, people and flags too, which `plate` is
never asked for, so that the group is a real choice.

One composition in ten, by the digest of its content, is left out of the training; the
figures on those are what the judge itself is worth. ``--check`` prints them.

Dimensions: B pictures, pixels (B, 3, 64, 64) in [0, 1], word numbers (B, L), L words,
embeddings (B, 96) of length 1.
"""

import argparse
import json
import math
import os
import re
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captions import (
    NUMBER_WORDS,
    can_count,
    colour_shares,
    describe,
    plural,
    with_article,
)
from compose import BACKGROUNDS, POSITIONS, Composition, compose
from data import GROUPS, Entry, is_depictable
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent
WEIGHTS, CAPTIONS = HERE / "evaluator.safetensors", HERE / "bench_captions.json"
SIDE_PX, WIDTH, MAX_WORDS, WORD_WIDTH = 64, 96, 24, 96
BANK_SIZE, CAPTIONS_EACH, HELD_OUT = 48_000, 3, 10
STYLES = ("fluent-3d", "fluent-flat")
COLOURS = list(BACKGROUNDS)
LEARNING_RATE, BATCH = 2e-3, 192
SEED, CAPTION_SEED, CAPTION_COUNT = 77, 500, 500


class Residual(nn.Module):
    """Two convolutions beside a way straight through."""

    def __init__(self, width: int) -> None:
        """Build the layers."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width, h, w)."""
        return x + self.layers(x)


class Evaluator(nn.Module):
    """The two towers and the heads."""

    def __init__(self, words: int) -> None:
        """Build the layers.

        Args:
            words: Size of the vocabulary; number 0 is padding, 1 an unknown word.
        """
        super().__init__()
        self.picture = nn.Sequential(
            nn.Conv2d(3, 32, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 64, 4, stride=2, padding=1),
            Residual(64),
            nn.Conv2d(64, 128, 3, stride=2, padding=1),
            Residual(128),
            nn.Conv2d(128, 144, 3, stride=2, padding=1),
            Residual(144),
            nn.GroupNorm(8, 144),
            nn.SiLU(),
        )
        self.squeeze = nn.Conv2d(144, 32, 1)  # keeps where things are
        self.features = nn.Linear(32 * 16 + 144, 256)
        self.embed_picture = nn.Linear(256, WIDTH)
        self.group = nn.Sequential(
            nn.Linear(32 * 16 + 144, 224), nn.SiLU(), nn.Dropout(0.2), nn.Linear(224, len(GROUPS))
        )
        self.count = nn.Linear(256, 3)
        self.background = nn.Linear(256, len(COLOURS))
        self.words = nn.Embedding(words, WORD_WIDTH, padding_idx=0)
        self.near = nn.ModuleList(nn.Conv1d(WORD_WIDTH, WORD_WIDTH, 3, padding=1) for _ in range(2))
        self.embed_words = nn.Sequential(
            nn.Linear(2 * WORD_WIDTH, 192), nn.SiLU(), nn.Linear(192, WIDTH)
        )
        self.log_scale = nn.Parameter(torch.tensor(math.log(14.0)))

    def see(self, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return embeddings and what the heads say of pictures."""
        raw = self.look(pixels)
        features = F.silu(self.features(raw))
        heads = {name: getattr(self, name)(features) for name in ("count", "background")}
        return F.normalize(self.embed_picture(features).float(), dim=1), {
            **heads,
            "group": self.group(raw),
            "features": features,
        }

    def look(self, pixels: Tensor) -> Tensor:
        """Return what the convolutions make of pictures. Shape (B, 656)."""
        maps = self.picture(pixels * 2 - 1)
        return torch.cat([self.squeeze(maps).flatten(1), maps.mean(dim=(2, 3))], dim=1)

    def read(self, words: Tensor) -> Tensor:
        """Return embeddings of captions."""
        there = (words > 0)[:, None].to(self.words.weight.dtype)
        x = self.words(words).transpose(1, 2)
        for layer in self.near:
            x = (x + F.silu(layer(x))) * there
        mean = x.sum(2) / there.sum(2).clamp_min(1)
        most = x.masked_fill(there == 0, -1e4).amax(2).clamp_min(-1e3)
        return F.normalize(self.embed_words(torch.cat([mean, most], dim=1)).float(), dim=1)


def split_words(caption: str) -> list[str]:
    """Return a caption's words."""
    return re.findall(r"[a-z0-9'\u00e0-\u017f-]+", caption.lower())[:MAX_WORDS]


def number_words(captions: list[str], vocabulary: dict[str, int]) -> Tensor:
    """Return word numbers, (B, MAX_WORDS), 0 after the last."""
    numbers = torch.zeros(len(captions), MAX_WORDS, dtype=torch.long)
    for row, caption in enumerate(captions):
        for place, word in enumerate(split_words(caption)):
            numbers[row, place] = vocabulary.get(word, 1)
    return numbers


def shrink(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Average over squares to 64 px. Shape (N, 64, 64, 3)."""
    count, times = len(pictures), pictures.shape[1] // SIDE_PX
    blocks = pictures.reshape(count, SIDE_PX, times, SIDE_PX, times, 3)
    return blocks.mean(axis=(2, 4)).round().astype(np.uint8)


def to_pixels(pictures: NDArray[np.uint8]) -> Tensor:
    """Return (B, 3, 64, 64) in [0, 1] of (B, 64, 64, 3) uint8."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(255)


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


def build_bank(data: Path, size: int, rng: np.random.Generator, *, held_out: bool) -> Bank:
    """Compose pictures: two fifths as `plate` is asked for, the rest evenly."""
    from dataset import weight_of

    pictures, entries = read_data(data)
    ours = [i for i, e in enumerate(entries) if e["style"] in STYLES]
    learnt = np.array([weight_of(entries[i]) * is_depictable(entries[i]) for i in ours])
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
            [describe(entry, composition, shares[index], rng) for _ in range(CAPTIONS_EACH)]
        )
        background = COLOURS.index(composition.background)
        rows.append(
            (entry["group"], composition.count - 1, background, labels[entry["code_points"]])
        )
        keys.append(zlib.crc32(f"{index} {composition}".encode()))
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


def train(data: Path, minutes: float) -> None:
    """Train for the given time and write the weights in half precision."""
    rng = np.random.default_rng(SEED)
    started = time.process_time()
    bank = build_bank(data, BANK_SIZE, rng, held_out=False)
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
        with torch.autocast("cpu", dtype=torch.bfloat16):
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
    save(model, found)
    print(f"{step * BATCH} pictures, {WEIGHTS.stat().st_size / 1e6:.2f} MB", flush=True)


def learn_group(model: Evaluator, bank: Bank, rng: np.random.Generator) -> None:
    """Train the group's head anew on what the finished convolutions see.

    A group is no look but a habit of the catalogue, and takes longer to learn than what
    else is asked; the rest stays as it is, so a pass costs seconds.
    """
    generator = torch.Generator().manual_seed(SEED + 2)
    seen, truth = [], []
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
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


def save(model: Evaluator, words: list[str]) -> None:
    """Write the weights: convolutions in 8 bits with a scale a channel, the rest in 16."""
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 4:
            scale = tensor.abs().amax(dim=(1, 2, 3), keepdim=True) / 127
            state[name] = (tensor / scale).round().to(torch.int8).contiguous()
            state[f"{name}.scale"] = scale.contiguous()
        else:
            state[name] = tensor.half().contiguous()
    part = WEIGHTS.with_suffix(".part")
    save_file(state, part, metadata={"format": "pt", "words": json.dumps(words)})
    os.replace(part, WEIGHTS)


def load(path: Path) -> tuple[Evaluator, list[str]]:
    """Read what :func:`save` wrote: the model, and its words."""
    from safetensors import safe_open

    with safe_open(path, "pt") as archive:
        words = json.loads(archive.metadata()["words"])
    state = {name: tensor.float() for name, tensor in load_file(path).items()}
    for name in [name for name in state if name.endswith(".scale")]:
        state[name.removesuffix(".scale")] *= state.pop(name)
    model = Evaluator(len(words) + 2).eval()
    model.load_state_dict(state)
    return model, words


class Judge:
    """The trained evaluator, over pictures as they come and captions as text."""

    def __init__(self, path: Path = WEIGHTS) -> None:
        """Load the weights.

        Args:
            path: What :func:`train` wrote.
        """
        self._model, found = load(path)
        self._vocabulary = {word: k + 2 for k, word in enumerate(found)}

    @torch.no_grad()
    def see(self, pictures: NDArray[np.uint8]) -> tuple[NDArray[np.float32], dict[str, NDArray]]:
        """Look at pictures (N, 128, 128, 3) or of 64 px, uint8.

        Returns:
            Embeddings (N, 96) and, by head, the class of each picture (N,).
        """
        if pictures.shape[1] != SIDE_PX:
            pictures = shrink(pictures)
        embeddings, answers = [], []
        for start in range(0, len(pictures), 256):
            embedding, said = self._model.see(to_pixels(pictures[start : start + 256]))
            embeddings.append(embedding.numpy())
            answers.append({k: v.argmax(1).numpy() for k, v in said.items() if k != "features"})
        heads = {name: np.concatenate([a[name] for a in answers]) for name in answers[0]}
        return np.concatenate(embeddings), heads

    @torch.no_grad()
    def read(self, captions: list[str]) -> NDArray[np.float32]:
        """Return the embeddings of captions, (N, 96)."""
        return self._model.read(number_words(captions, self._vocabulary)).numpy()

    def score(
        self, pictures: NDArray[np.uint8], asked: list[dict[str, Any]], *, among: Sequence[str] = ()
    ) -> dict[str, float | int]:
        """Return how well pictures show what was asked.

        Args:
            pictures: Picture k answers caption k. Shape (N, 128, 128, 3).
            asked: ``caption``, ``group``, ``background`` and ``count`` of each.
            among: Captions to choose from, the asked ones first; only those if empty.
        """
        seen, heads = self.see(pictures)
        scores = seen @ self.read(list(among) or [a["caption"] for a in asked]).T
        ranks = (scores > np.diag(scores)[:, None]).sum(axis=1)
        truth = {
            "group": np.array([GROUPS.index(a["group"]) for a in asked]),
            "count": np.array([a["count"] - 1 for a in asked]),
            "background": np.array([COLOURS.index(a["background"]) for a in asked]),
        }
        right = {name: heads[name] == truth[name] for name in truth}
        coloured = np.array([a["background"] != "white" for a in asked])
        border = border_colours(pictures) == truth["background"]
        counts = {f"count_{n + 1}": right["count"][truth["count"] == n] for n in range(3)}
        return {
            "captions": len(asked),
            "top_1": _share(ranks < 1),
            "top_10": _share(ranks < 10),
            **self.score_subjects(seen, asked),
            "group": _share(right["group"]),
            "background_asked_by_colour": _share(border[coloured]),
            "background_asked_by_colour_judged": _share(right["background"][coloured]),
            "background_all": _share(border),
            "counts_balanced": round(float(np.mean([c.mean() for c in counts.values()])), 4),
            **{name: _share(values) for name, values in counts.items()},
            "asked_by_colour": int(coloured.sum()),
            "asked_for_two_or_three": int((truth["count"] > 0).sum()),
        }

    def score_subjects(
        self, seen: NDArray[np.float32], asked: list[dict[str, Any]]
    ) -> dict[str, float | int]:
        """Return how well the things can be told apart, all else being equal.

        A caption is often the only one of its background, number and place, so that these
        alone bring it among the first ten. Here each picture chooses among the names of all
        things that occur in the captions, each put into the very words of its own.
        """
        if "label" not in asked[0]:
            return {}
        labels = sorted({a["label"] for a in asked})
        ranks = []
        for embedding, row in zip(seen, asked, strict=True):
            scores = self.read([name_plainly(row, label) for label in labels]) @ embedding
            ranks.append(int((scores > scores[labels.index(row["label"])]).sum()))
        ranks = np.array(ranks)
        return {
            "names": len(labels),
            "name_top_1": _share(ranks < 1),
            "name_top_10": _share(ranks < 10),
        }


def name_plainly(row: dict[str, Any], label: str) -> str:
    """Put a name into the composition of a row of :func:`write_captions`."""
    size = row["size"] if row["size"] != "normal" and row["count"] == 1 else ""
    style = "flat" if row["style"] == "fluent-flat" else ""
    text = " ".join(word for word in (size, style, label) if word)
    several = row["count"] > 1
    text = f"{NUMBER_WORDS[row['count']]} {plural(text)}" if several else with_article(text)
    if row["position"]:
        text = f"{text} {row['position']}"
    if row["background"] == "white":
        return text
    article = "an" if row["background"] == "orange" else "a"
    return f"{text} on {article} {row['background']} background"


def _share(right: NDArray[np.bool_]) -> float:
    return round(float(right.mean()), 4) if len(right) else float("nan")


def border_colours(pictures: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Return the background nearest to the median colour of the outermost 3 px. Shape (N,).

    This needs no judge: it is a measurement.
    """
    edge = pictures.shape[1] * 3 // 128
    rows = np.concatenate([pictures[:, :edge], pictures[:, -edge:]], axis=1)
    columns = np.concatenate([pictures[:, :, :edge], pictures[:, :, -edge:]], axis=2)
    border = np.concatenate(
        [rows.reshape(len(pictures), -1, 3), columns.reshape(len(pictures), -1, 3)], axis=1
    )
    palette = np.array(list(BACKGROUNDS.values()), dtype=np.float32)
    median = np.median(border, axis=1)[:, None]
    return ((median - palette) ** 2).sum(axis=2).argmin(axis=1)


def write_captions(data: Path) -> list[dict[str, Any]]:
    """Draw the captions of the benchmark as `plate` meets them in training, and write them.

    ``dataset.build_items``, the very code that made the training set, is run with another
    seed; items are drawn from it by their training weight and one of their captions each,
    and captions that came already are passed over.
    """
    from dataset import build_items

    _, entries = read_data(data)
    items, captions = build_items(data, seed=CAPTION_SEED)
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
            },
        )
    rows = list(drawn.values())
    lines = ",\n".join(json.dumps(row) for row in rows)
    CAPTIONS.write_text(f"[\n{lines}\n]\n", "utf-8")
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


def check(data: Path) -> dict[str, Any]:
    """Measure the judge on real pictures: the captions' own, and compositions it never saw."""
    judge = Judge()
    asked = json.loads(CAPTIONS.read_text("utf-8"))
    bank = build_bank(data, CAPTION_COUNT, np.random.default_rng(SEED + 1), held_out=True)
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
    parser.add_argument("--check", action="store_true", help="only measure what is there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.check:
        write_captions(arguments.data)
        train(arguments.data, arguments.minutes)
    print(json.dumps(check(arguments.data), indent=2))


if __name__ == "__main__":
    main()
