"""The judge of `plate-gan`: what the judge of `plate` sees, and which of twelve classes it is.

Usage: ``python gan_judge.py DATA``. Fits a linear layer on the frozen features of ``judge.py``
to tell the classes of ``gan.py`` apart, measures real pictures the same way as drawn ones
will be, and writes ``gan_judge.safetensors``, so that ``mezzotint bench plate-gan`` needs no
DATA. It shares nothing with the generator or its discriminator but the pictures.

Dimensions: N pictures, D = 656 features, E = 96 numbers of an embedding, K classes.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import Entry
from distances import frechet, pair_distance
from gan import CLASSES, chosen, draw, variation
from judge import WEIGHTS as EYES
from judge import Judge
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F

WEIGHTS = Path(__file__).resolve().parent / "gan_judge.safetensors"
VARIATIONS, FOLDS, SEED = 6, 5, 18
Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


def real_pictures(data: Path, variations: int = 1) -> tuple[Pixels, NDArray[np.intp], list[str]]:
    """Draw every chosen picture, the first time plainly, then varied as training varies.

    Returns:
        Pictures (N, 64, 64, 3), the class of each, and its code points.
    """
    pictures = np.load(data / "pictures.npy", mmap_mode="r")
    entries: list[Entry] = json.loads((data / "pictures.json").read_text("utf-8"))
    rng = np.random.default_rng(SEED)
    drawn, classes, names = [], [], []
    for number, (name, indices) in enumerate(chosen(entries).items()):
        for again in range(variations):
            for index in indices:
                picture = np.asarray(pictures[index])
                drawn.append(variation(picture, name, again, rng) if again else draw(picture))
                classes.append(number)
                names.append(entries[index]["code_points"])
    return np.stack(drawn), np.array(classes), names


def fit(features: Floats, classes: NDArray[np.intp]) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit the linear layer: weight (K, D) and bias (K,)."""
    inputs, wanted = torch.from_numpy(features), torch.from_numpy(classes)
    mean, deviation = inputs.mean(0), inputs.std(0) + 1e-3
    inputs = (inputs - mean) / deviation
    balance = 1 / torch.bincount(wanted).float()
    weight = torch.zeros(len(CLASSES), inputs.shape[1], requires_grad=True)
    bias = torch.zeros(len(CLASSES), requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        loss = F.cross_entropy(inputs @ weight.T + bias, wanted, weight=balance)
        (loss + 0.02 * weight.square().sum() / len(CLASSES)).backward()
        optimizer.step()
    scaled = weight.detach() / deviation
    return scaled, bias.detach() - scaled @ mean


class GanJudge:
    """Names classes, and measures how pictures are spread beside real ones."""

    def __init__(self, path: Path = WEIGHTS) -> None:
        """Load what ``main`` wrote.

        Raises:
            ValueError: If it was fitted on another judge's features.
        """
        self._eyes = Judge()
        with safe_open(path, "np") as archive:
            about = archive.metadata()
            state = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
        if about["eyes"] != _digest(EYES):
            raise ValueError(f"{path.name} belongs to another {EYES.name}; run gan_judge.py again")
        self.classes: list[str] = json.loads(about["classes"])
        self.about: dict[str, Any] = json.loads(about["real"])
        self._weight, self._bias = state["weight"], state["bias"]
        self._distances = dict(zip(self.classes, state["distances"].tolist(), strict=True))
        self._mean = state["mean"].astype(np.float64)
        self._covariance = state["covariance"].astype(np.float64)

    def name(self, pictures: Pixels) -> NDArray[np.intp]:
        """Return the class of each picture, (N,)."""
        return (self._eyes.look(pictures) @ self._weight.T + self._bias).argmax(axis=1)

    def embed(self, pictures: Pixels) -> Floats:
        """Return embeddings of length 1, (N, E)."""
        return self._eyes.see(pictures)[0]

    def score(self, by_class: dict[str, Pixels]) -> dict[str, Any]:
        """Return what is right, how varied it is and how far from real pictures.

        Args:
            by_class: As many pictures of each class, (M, 64, 64, 3).
        """
        rows: dict[str, dict[str, Any]] = {}
        seen = {name: self.embed(pictures) for name, pictures in by_class.items()}
        for name, pictures in by_class.items():
            found = self.name(pictures)
            others = np.bincount(found, minlength=len(self.classes))
            right = self.classes.index(name)
            wrong = others.copy()
            wrong[right] = 0
            rows[name] = {
                "named right": round(float(others[right] / len(found)), 4),
                "most often taken for": self.classes[int(wrong.argmax())] if wrong.any() else None,
                "diversity, of real": round(pair_distance(seen[name]) / self._distances[name], 4),
            }
        everything = np.concatenate(list(seen.values()))
        diversity = [row["diversity, of real"] for row in rows.values()]
        return {
            "pictures": len(everything),
            "named right": round(float(np.mean([r["named right"] for r in rows.values()])), 4),
            "diversity, of real, median class": round(float(np.median(diversity)), 4),
            "Frechet distance": round(frechet(everything, self._mean, self._covariance), 4),
            "by class": rows,
        }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cross_check(features: Floats, classes: NDArray[np.intp], names: list[str]) -> float:
    """Return how often real pictures are named right by a fit that never saw their emoji."""
    order = {name: k for k, name in enumerate(sorted(set(names)))}
    folds = np.array([order[name] % FOLDS for name in names])
    right = np.zeros(len(classes), dtype=bool)
    for fold in range(FOLDS):
        weight, bias = fit(features[folds != fold], classes[folds != fold])
        scores = torch.from_numpy(features[folds == fold]) @ weight.T + bias
        right[folds == fold] = scores.argmax(1).numpy() == classes[folds == fold]
    return float(np.mean([right[classes == k].mean() for k in range(len(CLASSES))]))


def main() -> None:
    """Fit, measure real pictures, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with pictures.npy")
    data = parser.parse_args().data
    torch.set_num_threads(1)
    eyes = Judge()
    pictures, classes, names = real_pictures(data, VARIATIONS)
    features = eyes.look(pictures)
    weight, bias = fit(features, classes)
    held_out = cross_check(features, classes, names)
    plain, plain_classes, _ = real_pictures(data)
    embeddings = eyes.see(plain)[0]
    groups = [embeddings[plain_classes == k] for k in range(len(CLASSES))]
    # each class weighs the same, as it will among the drawn pictures
    mean = np.mean([g.mean(axis=0, dtype=np.float64) for g in groups], axis=0)
    spread = np.mean(
        [(g - mean).T.astype(np.float64) @ (g - mean) / len(g) for g in groups], axis=0
    )
    halves = [np.concatenate([g[k::2][:12] for g in groups]) for k in (0, 1)]
    real = {
        "pictures": len(plain),
        "named right, emoji never seen": round(held_out, 4),
        "Frechet distance of half of them": round(frechet(halves[0], mean, spread), 4),
    }
    state = {
        "weight": weight,
        "bias": bias,
        "distances": torch.tensor([pair_distance(g) for g in groups]),
        "mean": torch.from_numpy(mean).float(),
        "covariance": torch.from_numpy(spread).float(),
    }
    about = {
        "eyes": _digest(EYES),
        "classes": json.dumps(sorted(CLASSES)),
        "real": json.dumps(real),
    }
    save_file({k: v.contiguous() for k, v in state.items()}, WEIGHTS, metadata=about)
    print(real, dict(zip(sorted(CLASSES), state["distances"].tolist(), strict=True)))


if __name__ == "__main__":
    main()
