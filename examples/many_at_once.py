"""Submit different requests together: they share network calls and change no byte.

python examples/many_at_once.py
"""

import mezzotint as mz


def main() -> None:
    requests = [
        mz.GenerationRequest(prompt="a yellow sun", seed=1, num_inference_steps=20),
        mz.GenerationRequest(
            prompt="a house", seed=2, num_inference_steps=8, scheduler="euler_ancestral"
        ),
        mz.GenerationRequest(
            prompt="a fish",
            seed=3,
            guidance_scale={"schedule": "cosine", "start": 7.0, "end": 1.0},
        ),
    ]
    with mz.Engine(models=["plate"]) as engine:
        jobs = [engine.submit(request) for request in requests]
        together = [job.result(timeout_s=600).images[0].bytes for job in jobs]
        for request, data in zip(requests, together, strict=True):
            alone = engine.submit(request).result(timeout_s=600).images[0].bytes
            print(request.prompt, "the same bytes alone and together:", alone == data)


if __name__ == "__main__":
    main()
