"""The judge of the text-to-picture model: a small retrieval network, and what it says.

``evaluator.py`` trains it and writes ``evaluator.safetensors``; ``mezzotint bench plate``
asks it. Two towers tell which caption belongs to which picture: a convolutional network
over pictures of 64 px and a network over words. Three heads tell the group (nine), the
number of things (1 to 3) and the background colour.

Dimensions: B pictures, pixels (B, 3, 64, 64) in [0, 1], word numbers (B, L), L words,
embeddings (B, 96) of length 1.
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captions import NUMBER_WORDS, plural, with_article
from compose import BACKGROUNDS
from data import GROUPS
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHTS = Path(__file__).resolve().parent / "evaluator.safetensors"
SIDE_PX, WIDTH, MAX_WORDS, WORD_WIDTH = 64, 96, 24, 96
COLOURS = list(BACKGROUNDS)


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


def load(path: Path) -> tuple[Evaluator, list[str]]:
    """Read what ``evaluator.save`` wrote: the model, and its words."""
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
            path: What ``evaluator.train`` wrote.
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
    def look(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return what the convolutions make of pictures, before any head. Shape (N, 656)."""
        if pictures.shape[1] != SIDE_PX:
            pictures = shrink(pictures)
        parts = np.split(pictures, range(256, len(pictures), 256))
        return np.concatenate([self._model.look(to_pixels(part)).numpy() for part in parts])

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
    """Put a name into the composition of a row of ``evaluator.write_captions``."""
    size = row["size"] if row["size"] != "normal" and row["count"] == 1 else ""
    style = row.get("said", "flat" if row["style"] == "fluent-flat" else "")
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
