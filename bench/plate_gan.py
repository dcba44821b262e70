"""What the built-in GAN draws of each class, by an independent judge.

    mezzotint bench plate-gan [--model plate-gan] [--each 64] [--truncation 1] [--data DATA]

64 pictures of each class, from seeds of their own, none picked. The judge is
`training/plate/gan_judge.py`: the eyes of the judge of `bench plate` with a layer that names
the twelve classes. Reported are how often it names the class that was asked for, the mean
distance between two pictures of a class beside that of two real ones, and the Frechet
distance to real pictures in the judge's embedding. With DATA (pictures) the distance of each
picture to the nearest training picture is reported too.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from bench._report import RESULTS, write

TRAINING = Path(__file__).resolve().parents[1] / "training" / "plate"
sys.path.insert(0, str(TRAINING))

NEAR_RMS = 0.02  # as in bench/plate.py


def draw(
    engine: Any, model: str, classes: list[str], each: int, truncation: float
) -> dict[str, np.ndarray]:
    """Draw so many pictures of each class; picture j of class k is from seed 1000 k + j."""
    import mezzotint as mz

    jobs = {
        name: engine.submit(
            mz.GenerationRequest(
                model=model,
                seed=1000 * label,
                num_images=each,
                latent=mz.LatentInput(class_label=label, truncation=truncation),
            )
        )
        for label, name in enumerate(classes)
    }
    return {
        name: np.stack([np.asarray(image.pixels) for image in job.result(timeout_s=7200).images])
        for name, job in jobs.items()
    }


def memorisation(judge: Any, by_class: dict[str, np.ndarray], data: Path) -> dict[str, Any]:
    """Measure how near pictures come to those that were learnt, beside real ones among others.

    The scale: each real picture beside the nearest real one of another emoji.
    """
    from bench.plate import flat, nearest, table
    from gan_judge import real_pictures

    learnt, _, names = real_pictures(data, 2)  # plainly, and once as training varies them
    real, _, own = real_pictures(data)
    pixels, seen = flat(learnt), judge.embed(learnt)
    result: dict[str, Any] = {"training pictures": len(learnt)}
    others = [np.array([a != b for b in names]) for a in own[::8]]
    to_others = [
        float(nearest(flat(picture[None]), pixels[mask])[0][0])
        for picture, mask in zip(real[::8], others, strict=True)
    ]
    scale = np.array(to_others) / np.sqrt(pixels.shape[1])
    result["real, to the nearest other emoji"] = {"pixels, rms": table(scale, (5, 50, 95))}
    drawn = np.concatenate(list(by_class.values()))
    rms = nearest(flat(drawn), pixels)[0] / np.sqrt(pixels.shape[1])
    cosine = 1 - nearest(judge.embed(drawn), seen)[0] ** 2 / 2
    result["drawn, to the nearest"] = {
        "pixels, rms": table(rms, (1, 5, 50, 95)),
        "judge, cosine": table(cosine, (5, 50, 95, 99)),
        f"nearer than {NEAR_RMS} rms": round(float((rms < NEAR_RMS).mean()), 4),
    }
    return result


def save_sheet(by_class: dict[str, np.ndarray], path: Path, columns: int = 16) -> None:
    """Save the first pictures of each class, a row each, none picked."""
    from PIL import Image

    rows = [np.concatenate(list(pictures[:columns]), axis=1) for pictures in by_class.values()]
    Image.fromarray(np.concatenate(rows)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="plate-gan", help="name or folder")
    parser.add_argument("--each", type=int, default=64, help="pictures of a class")
    parser.add_argument("--truncation", type=float, default=1.0)
    parser.add_argument("--data", type=Path, help="folder with pictures.npy")
    parser.add_argument("--sheet", type=Path, help="where to save the first 16 of each class")
    parser.add_argument("--result", default="plate-gan", help="name of the result file")
    options = parser.parse_args()

    from gan_judge import GanJudge

    import mezzotint as mz

    judge = GanJudge()
    with mz.Engine(models=[options.model]) as engine:
        drawn = list(engine.spec(options.model).class_names)
        if drawn != judge.classes:
            raise SystemExit(
                f"{options.model} draws {', '.join(drawn) or 'no classes'}; "
                f"the judge names {', '.join(judge.classes)}"
            )
        by_class = draw(engine, options.model, judge.classes, options.each, options.truncation)
    path = RESULTS / f"{options.result}.json"
    result = json.loads(path.read_text("utf-8")) if path.exists() else {}
    result.pop("machine", None)
    result["what"] = (
        f"{options.each} pictures of each class, truncation {options.truncation:g}, "
        "seed 1000 k + j for picture j of class k"
    )
    result["real pictures"] = judge.about
    result["drawn"] = judge.score(by_class)
    if options.sheet:
        save_sheet(by_class, options.sheet)
    if options.data:
        result["distance to training pictures"] = memorisation(judge, by_class, options.data)
    write(options.result, result)


if __name__ == "__main__":
    main()
