"""Sample from a distribution that is known exactly: no weights, only mathematics.

python examples/mixture.py
"""

import torch

import mezzotint as mz
from mezzotint.sampling.mixtures import GaussianMixture


def main() -> None:
    data = GaussianMixture(torch.tensor([[-2.0], [1.0]]), (0.2, 0.1), (0.25, 0.75))
    noise = torch.randn(10_000, 1, generator=torch.Generator().manual_seed(0)) * 80
    for scheduler in ("euler", "heun", "dpmpp_2m", "unipc"):
        out = mz.sample(data, noise, scheduler=scheduler, num_inference_steps=20)
        left = out[out < -0.5]
        print(
            f"{scheduler:10s} left weight {len(left) / len(out):.3f} (0.25)  "
            f"mean {left.mean():+.3f} (-2)  spread {left.std():.3f} (0.2)"
        )


if __name__ == "__main__":
    main()
