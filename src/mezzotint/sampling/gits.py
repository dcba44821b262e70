"""GITS: noise levels that follow how the paths of a diffusion model bend.

Where a path is nearly straight a step may be long: Chen et al. 2024 (arXiv:2405.11326) find
levels by dynamic programming over the curvature of paths. Those here are the authors' for
Stable Diffusion with their coefficient of 1.2, as its users know them: one row for each number
of steps, the level that 0 takes the place of included.
"""

__all__ = ["GITS"]

_LEVELS = (
    14.61464119, 7.49001646, 6.77309084, 5.85520077, 4.65472794, 3.46139455, 3.07277966,
    2.95596409, 2.84484982, 2.45070267, 2.36326075, 2.19988537, 2.12350607, 2.05039096,
    1.98035145, 1.84880662, 1.67050016, 1.61558151, 1.56271636, 1.51179266, 1.36964464,
    1.24153244, 1.20157266, 1.162866, 1.08895338, 0.95350921, 0.92192322, 0.86115354,
    0.83188516, 0.803307, 0.74807048, 0.72133851, 0.69515091, 0.64427125, 0.59516323,
    0.57119018, 0.52423614, 0.50118381, 0.4783645, 0.45573691, 0.41087446, 0.38853383,
    0.36617002, 0.34370604, 0.32104823, 0.29807833, 0.27464288, 0.25053367, 0.22545385,
    0.19894916, 0.17026083, 0.13792117, 0.09824532, 0.02916753,
)  # fmt: skip
"""Levels of the models' training that any row holds, falling."""

_PLACES = (
    "0 29 53", "0 18 36 53", "0 10 26 42 53", "0 8 21 34 47 53", "0 3 13 25 39 50 53",
    "0 3 9 21 33 45 52 53", "0 3 9 20 29 39 47 52 53", "0 3 8 17 25 34 42 49 52 53",
    "0 3 8 16 24 30 37 44 49 52 53", "0 3 7 15 21 28 34 40 46 50 52 53",
    "0 3 6 14 20 25 32 37 42 47 50 52 53", "0 2 5 10 18 24 29 34 39 43 47 50 52 53",
    "0 2 5 9 17 23 27 33 37 41 45 48 50 52 53", "0 1 4 6 12 19 24 28 33 37 41 45 48 50 52 53",
    "0 1 4 6 12 19 24 28 33 37 40 44 47 49 51 52 53",
    "0 1 4 6 12 19 24 28 33 37 40 43 46 48 50 51 52 53",
    "0 1 4 6 11 17 22 26 31 35 39 42 45 47 49 50 51 52 53",
    "0 1 4 6 11 17 21 25 30 34 38 41 44 46 48 49 50 51 52 53",
    "0 1 4 6 11 17 21 25 30 34 37 40 43 45 47 48 49 50 51 52 53",
)  # fmt: skip
"""Which of them a row holds, from two steps to twenty."""

GITS: dict[int, tuple[float, ...]] = {
    steps: tuple(_LEVELS[int(place)] for place in row.split())
    for steps, row in enumerate(_PLACES, 2)
}
"""Levels by the number of steps."""
