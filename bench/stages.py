"""Where a picture's time goes, stage by stage, beside the usual claim.

    mezzotint bench stages [--rounds 3]

The claim often read is 85-90 % denoiser, 5-10 % decoder, 1-2 % text encoder. Shares are of
the time the engine works on one picture alone; the text is a new one each time, so the
encoder really runs.
"""

import argparse
import os
import statistics

from bench._report import NO_CACHE, write

CLAIM = {"encode": "1-2 %", "denoise": "85-90 %", "decode": "5-10 %"}
STAGES = ("encode", "denoise", "decode", "write")
CASES = {
    "plate, 4 steps": {"num_inference_steps": 4},
    "plate, 20 steps": {"num_inference_steps": 20},
    "plate, 50 steps": {"num_inference_steps": 50},
    "plate, 20 steps, no guidance": {"num_inference_steps": 20, "guidance_scale": 1.0},
    "plate, 20 steps, turbo": {"num_inference_steps": 20, "reproducibility": "turbo"},
    "plate-gan": {"model": "plate-gan"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    import mezzotint as mz

    words = ("red", "green", "blue", "yellow", "black", "white", "pink", "grey")
    shares: dict[str, dict[str, list[float]]] = {c: {s: [] for s in STAGES} for c in CASES}
    errors: dict[str, list[float]] = {case: [] for case in CASES}
    with mz.Engine(models=["plate", "plate-gan"], engine=NO_CACHE) as engine:
        for turn in range(options.rounds + 1):  # the first round warms up
            for number, (case, fields) in enumerate(CASES.items()):
                is_gan = fields.get("model") == "plate-gan"
                text = f"a {words[turn % 8]} house and {turn} {words[number]} trees"
                request = mz.GenerationRequest(
                    prompt="" if is_gan else text, seed=1000 * turn + number, **fields
                )
                predicted = engine.plan(request)["cost"]["seconds"]
                timings = engine.generate(request).images[0].timings
                spent = {s: getattr(timings, f"{s}_s") for s in STAGES}
                if turn:
                    total = sum(spent.values())
                    for stage in STAGES:
                        shares[case][stage].append(spent[stage] / total)
                    work = total - spent["write"]
                    errors[case].append(abs(predicted / work - 1))
    result = {
        case: {
            **{s: f"{100 * statistics.median(v):.1f} %" for s, v in of.items()},
            "predicted seconds off by": f"{100 * statistics.median(errors[case]):.0f} %",
        }
        for case, of in shares.items()
    }
    write(
        "stages",
        {
            "what": "median share of a picture's time; the device is this CPU",
            "command": f"mezzotint bench stages --rounds {options.rounds}",
            "claim": CLAIM,
            "load of the machine": os.getloadavg()[1],
            **result,
        },
    )


if __name__ == "__main__":
    main()
