"""How far pictures are from real ones, and from one another, in a judge's embedding.

``python distances.py DATA`` looks at real pictures and writes ``distances.safetensors``, so
that ``mezzotint bench plate`` does without DATA: the embeddings of the real pictures of a
thousand captions that the benchmark has not, drawn as its own were; and for some of the
benchmark's captions how far the pictures of the asked thing are from one another, one for each
of the four sets that have it, all composed as the caption says. Under ``--law several``
(``laws.py``) these are captions that name no set, and the figure is what two pictures drawn
as the training draws them are apart in the mean. ``--out`` names the folder of that law's judge.

Dimensions: N and M pictures, E = 96 numbers of an embedding of length 1.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from laws import LAWS, Law
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

if TYPE_CHECKING:
    from judge import Judge

WEIGHTS = Path(__file__).resolve().parent / "distances.safetensors"
REFERENCE_COUNT, REFERENCE_SEED = 1000, 501
VARIED_CAPTIONS, SEEDS_EACH = 32, 8
Floats = NDArray[np.float32]


def pair_distance(embeddings: Floats) -> float:
    """Return the mean of 1 - cosine over all pairs of embeddings of length 1, (N, E)."""
    count = len(embeddings)
    together = np.square(embeddings.sum(axis=0, dtype=np.float64)).sum()
    return float(1 - (together - count) / (count * (count - 1)))


def drawn_distance(embeddings: Floats, shares: Floats) -> float:
    """Return the mean of 1 - cosine between two independent draws.

    Args:
        embeddings: Of length 1. Shape (N, E).
        shares: How often each is drawn. Shape (N,), sums to 1.
    """
    mean = shares.astype(np.float64) @ embeddings.astype(np.float64)
    return float(1 - mean @ mean)


def frechet(ours: Floats, mean: NDArray[np.float64], covariance: NDArray[np.float64]) -> float:
    """Return the Frechet distance between embeddings (N, E) and a Gaussian.

    Source: Heusel et al. 2017 (arXiv:1706.08500), equation 6.
    """
    own_mean, own = ours.mean(axis=0, dtype=np.float64), np.cov(ours.astype(np.float64).T)
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ own @ root).clip(0)).sum()
    gap = np.square(own_mean - mean).sum()
    return float(gap + np.trace(own) + np.trace(covariance) - 2 * cross)


def kernel_distance(ours: Floats, theirs: Floats) -> float:
    """Return the squared maximum mean discrepancy under the kernel (1 + cosine)^3.

    Unbiased: it is 0 in the mean, and so may be below 0, where both are drawn from one law.

    Args:
        ours: Shape (N, E).
        theirs: Shape (M, E).

    Source: Binkowski et al. 2018 (arXiv:1801.01401), equation 4, the kernel of section 4
    for vectors of length 1.
    """

    def within(rows: Floats) -> float:
        kernel = (1 + rows.astype(np.float64) @ rows.T.astype(np.float64)) ** 3
        count = len(rows)
        return float((kernel.sum() - np.trace(kernel)) / (count * (count - 1)))

    between = (1 + ours.astype(np.float64) @ theirs.T.astype(np.float64)) ** 3
    return within(ours) + within(theirs) - 2 * float(between.mean())


class Reference:
    """What real pictures are like, as ``main`` measured it."""

    def __init__(self, path: Path = WEIGHTS) -> None:
        """Load it.

        Args:
            path: What ``main`` wrote, beside the judge that it belongs to.

        Raises:
            ValueError: If it was measured by another judge.
        """
        from judge import WEIGHTS as EYES

        eyes = path.with_name(EYES.name)
        with safe_open(path, "np") as archive:
            about = archive.metadata()
            self._seen = archive.get_tensor("seen").astype(np.float32)
        if about["eyes"] != hashlib.sha256(eyes.read_bytes()).hexdigest():
            raise ValueError(f"{path.name} belongs to another {eyes.name}; run distances.py again")
        self.varied: dict[str, float] = json.loads(about["varied"])
        """Captions, and how far real pictures of each are from one another."""

    def score(self, seen: Floats) -> dict[str, float]:
        """Return how far embeddings (N, E) as a whole are from real ones."""
        reference = self._seen.astype(np.float64)
        mean, covariance = reference.mean(axis=0), np.cov(reference.T)
        return {
            "compared with real pictures": len(reference),
            "Frechet distance": round(frechet(seen, mean, covariance), 4),
            "kernel distance": round(kernel_distance(seen, self._seen), 4),
        }

    def spread(self, by_caption: dict[str, Floats]) -> dict[str, Any]:
        """Return how far pictures of one caption are from one another, beside real ones.

        Args:
            by_caption: Embeddings of pictures from several seeds, (N, E), by caption.
        """
        drawn = {caption: pair_distance(seen) for caption, seen in by_caption.items()}
        shares = [distance / self.varied[caption] for caption, distance in drawn.items()]
        return {
            "captions": len(drawn),
            "seeds of each": len(next(iter(by_caption.values()))),
            "distance between seeds": round(float(np.mean(list(drawn.values()))), 4),
            "distance between real pictures": round(
                float(np.mean([self.varied[caption] for caption in drawn])), 4
            ),
            "diversity, of real, median caption": round(float(np.median(shares)), 4),
        }


def real_pictures(data: Path, asked: list[dict[str, Any]], law: Law) -> NDArray[np.uint8]:
    """Compose the pictures of captions that are not asked. Shape (N, 128, 128, 3)."""
    from compose import Composition, compose
    from dataset import build_items
    from evaluator import read_data

    sources, _ = read_data(data)
    seen = {row["caption"] for row in asked}
    items, captions = build_items(data, seed=REFERENCE_SEED, law=law)
    weights = np.array([item["weight"] for item in items])
    rng = np.random.default_rng(REFERENCE_SEED)
    drawn: list[NDArray[np.uint8]] = []
    while len(drawn) < REFERENCE_COUNT:
        item = items[int(rng.choice(len(items), p=weights / weights.sum()))]
        caption = captions[int(rng.choice(item["captions"]))]
        if caption not in seen:
            seen.add(caption)
            composition = Composition(**item["composition"])
            drawn.append(compose(np.asarray(sources[item["picture"]]), composition))
    return np.stack(drawn)


def measure_varied(
    data: Path, judge: "Judge", asked: list[dict[str, Any]], law: Law
) -> dict[str, float]:
    """Return how far real pictures of each of the first captions that mean several are apart."""
    from compose import Composition, compose
    from data import STYLES
    from evaluator import read_data

    sources, entries = read_data(data)
    numbers = {(e["label"], e["style"]): k for k, e in enumerate(entries)}
    shares = law.unsaid()
    sets = list(shares) if law.together else STYLES
    varied: dict[str, float] = {}
    for row in asked:
        found = [numbers[row["label"], name] for name in sets if (row["label"], name) in numbers]
        named = row["said"] if law.together else row["style"] != "fluent-3d"
        if named or len(found) < len(sets):
            continue
        composition = Composition(
            **{key: row[key] for key in ("background", "count", "size", "position")}
        )
        some = np.stack([compose(np.asarray(sources[k]), composition) for k in found])
        seen = judge.see(some)[0]
        apart = (
            drawn_distance(seen, np.array(list(shares.values())))
            if law.together
            else pair_distance(seen)
        )
        varied[row["caption"]] = round(apart, 5)
        if len(varied) == VARIED_CAPTIONS:
            break
    return varied


def main() -> None:
    """Look at real pictures and write."""
    from evaluator import CAPTIONS_FILE
    from judge import WEIGHTS as EYES
    from judge import Judge

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with pictures.npy")
    parser.add_argument("--law", choices=LAWS, default="one", help="how real pictures are drawn")
    parser.add_argument("--out", type=Path, default=WEIGHTS.parent, help="the judge's folder")
    arguments = parser.parse_args()
    law, eyes = LAWS[arguments.law], arguments.out / EYES.name
    judge = Judge(eyes)
    asked = json.loads((arguments.out / CAPTIONS_FILE).read_text("utf-8"))
    seen = judge.see(real_pictures(arguments.data, asked, law))[0]
    varied = measure_varied(arguments.data, judge, asked, law)
    about = {
        "eyes": hashlib.sha256(eyes.read_bytes()).hexdigest(),
        "varied": json.dumps(varied),
    }
    save_file({"seen": seen.astype(np.float16)}, arguments.out / WEIGHTS.name, metadata=about)
    print(len(seen), np.mean(list(varied.values())))


if __name__ == "__main__":
    main()
