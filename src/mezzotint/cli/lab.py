"""The verb ``lab``: every solver against data whose best denoiser is a formula.

No weights. The data are a mixture of three Gaussians in the plane, so the exact
(guided) probability-flow path is known to many digits, and whatever differs from
it is the solver's own error. Solvers that draw noise follow no path; for them
the distance between what they draw and what the exact path draws is shown.
"""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from mezzotint.cli.figures.drawing import check_figure_path, draw_lines
from mezzotint.cli.flags import WrongFlag
from mezzotint.errors import UnknownName

__all__ = ["Trial", "lab", "run_trials"]

SIGMA_MIN, SIGMA_MAX = 0.002, 10.0
_SPREAD = 0.25
_MEANS = ((1.0, 0.0), (-0.5, 0.9), (-0.5, -0.9))
_EXACT_STEPS = 400
_SCHEDULES = {"ve": ("karras", "exponential", "beta", "linear"), "flow": ("linear",)}

Denoise = Callable[[Any, Any], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of a solver.

    Args:
        scheduler: The solver.
        sigma_schedule: Its noise levels.
        guidance_scale: 1 is off.
        steps: Steps asked for.
        calls: Calls of the denoiser.
        measure: ``path`` is the root mean square distance to the exact end points;
            ``law`` is the sliced Wasserstein distance to exact draws.
        error: The measure, in units of the data.
    """

    scheduler: str
    sigma_schedule: str
    guidance_scale: float
    steps: int
    calls: int
    measure: str
    error: float


def lab(
    *,
    scheduler: Annotated[
        list[str] | None, typer.Option(help="Solver; all if not given; repeatable.")
    ] = None,
    sigma_schedule: Annotated[
        list[str] | None, typer.Option(help="karras, exponential, beta, linear; repeatable.")
    ] = None,
    guidance: Annotated[str, typer.Option(help="Guidance scales, with commas between.")] = "1,3",
    steps: Annotated[str, typer.Option(help="Step counts, with commas.")] = "5,10,20,40,80",
    samples: Annotated[int, typer.Option(help="Points to draw.")] = 256,
    picture: Annotated[
        Path | None, typer.Option("--output", "-o", help="SVG or PNG: error against calls.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare solvers, schedules and guidance on exact denoisers; no weights needed."""
    from mezzotint.sampling.solvers import SCHEDULERS

    for name in scheduler or ():
        if name not in SCHEDULERS:
            raise UnknownName("scheduler", name, SCHEDULERS.names(), field="--scheduler")
    counts = [int(n) for n in _numbers(steps, "--steps", 1, 10_000)]
    scales = _numbers(guidance, "--guidance", 0, 100)
    if not 16 <= samples <= 100_000:
        raise WrongFlag("--samples", f"must be 16 to 100000, got {samples}")
    if picture is not None:
        check_figure_path(picture)
    names = tuple(scheduler or SCHEDULERS.names())
    trials = run_trials(names, tuple(sigma_schedule or ()), scales, counts, samples)
    if as_json:
        print(json.dumps([asdict(trial) for trial in trials]))
    else:
        _print_table(trials)
    if picture is not None:
        draw_lines(picture, _curves(trials), across="denoiser calls", up="error")
        print(picture)


def run_trials(
    schedulers: tuple[str, ...],
    schedules: tuple[str, ...],
    scales: list[float],
    steps: list[int],
    samples: int,
) -> list[Trial]:
    """Run every combination that makes sense; the same noise for all of a frame."""
    from mezzotint.sampling.solvers import SCHEDULERS

    known = sorted({name for names in _SCHEDULES.values() for name in names})
    for name in schedules:
        if name not in known:
            raise UnknownName("sigma_schedule", name, known, field="--sigma-schedule")
    trials: list[Trial] = []
    for frame in ("ve", "flow"):
        chosen = [name for name in schedulers if SCHEDULERS[name].info.frame == frame]
        curves = [s for s in _SCHEDULES[frame] if not schedules or s in schedules]
        for scale in scales if chosen and curves else []:
            bench = _Bench(frame, scale, samples)
            trials += [
                bench.run(name, curve, count)
                for name in chosen
                for curve in curves
                for count in steps
            ]
    return trials


class _Bench:
    """One frame and one guidance scale: the denoiser, the noise, the exact answer."""

    def __init__(self, frame: str, scale: float, samples: int) -> None:
        import torch

        self._frame, self._scale = frame, scale
        self._denoise = _guided(frame, scale)
        self._top = SIGMA_MAX if frame == "ve" else 1.0
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn((samples, 2), generator=generator, dtype=torch.float64)
        self._noise = noise * self._top
        self._exact = _follow(self._denoise, self._noise, frame)

    def run(self, scheduler: str, schedule: str, steps: int) -> Trial:
        """Run one solver and measure it."""
        import torch

        from mezzotint.sampling.loop import sample
        from mezzotint.sampling.sigma_curves import sigma_curve

        calls = 0

        def counted(latents: Any, sigma: Any) -> Any:
            nonlocal calls
            calls += 1
            return self._denoise(latents, sigma)

        if self._frame == "flow":
            levels = [1 - k / steps for k in range(steps)] + [0.0]
        else:
            levels = sigma_curve(schedule, steps, SIGMA_MIN, SIGMA_MAX)
        generators = [torch.Generator().manual_seed(1000 + k) for k in range(len(self._noise))]
        ends = sample(
            counted,
            self._noise.float(),
            scheduler=scheduler,
            sigmas=levels,
            generators=generators,
        ).double()
        draws = _draws_noise(scheduler, levels, self._frame)
        error = (
            _sliced_distance(ends, self._exact)
            if draws
            else math.sqrt(float((ends - self._exact).square().sum(1).mean()))
        )
        return Trial(
            scheduler=scheduler,
            sigma_schedule=schedule,
            guidance_scale=self._scale,
            steps=steps,
            calls=calls,
            measure="law" if draws else "path",
            error=error,
        )


def _guided(frame: str, scale: float) -> Denoise:
    """Return the exact guided denoiser: three tight blobs, steered away from wide ones."""
    import torch

    from mezzotint.sampling.mixtures import GaussianMixture

    means = torch.tensor(_MEANS, dtype=torch.float64)
    tight = GaussianMixture(means, (_SPREAD,) * 3, (1.0, 1.0, 1.0), frame=frame)
    wide = GaussianMixture(means, (2 * _SPREAD,) * 3, (1.0, 1.0, 1.0), frame=frame)

    def denoise(latents: Any, sigma: Any) -> Any:
        wanted = tight(latents, sigma)
        if scale == 1:
            return wanted
        without = wide(latents, sigma)
        return without + scale * (wanted - without)

    return denoise


def _follow(denoise: Denoise, noise: Any, frame: str) -> Any:
    """Follow the exact path in float64 with many steps of Heun's method."""
    import torch

    from mezzotint.sampling.sigma_curves import sigma_curve

    top = SIGMA_MAX if frame == "ve" else 1.0
    levels = sigma_curve("karras", _EXACT_STEPS, 1e-5, top)
    x = noise
    for high, low in itertools.pairwise(levels):
        slope = (x - denoise(x, torch.full((len(x),), high, dtype=torch.float64))) / high
        moved = x + (low - high) * slope
        if low > 0:
            after = (moved - denoise(moved, torch.full((len(x),), low, dtype=torch.float64))) / low
            moved = x + (low - high) * (slope + after) / 2
        x = moved
    return x


def _draws_noise(scheduler: str, levels: list[float], frame: Any) -> bool:
    """Tell whether a solver draws noise on the way."""
    from mezzotint.sampling.solvers import tabulate
    from mezzotint.sampling.timesteps import Schedule

    schedule = Schedule(
        frame=frame,
        timesteps=tuple(levels[:-1]),
        sigmas=tuple(levels),
        init_noise_sigma=levels[0],
        is_bare=True,
    )
    return any(e.draws_noise for e in tabulate(scheduler, schedule).evaluations)


def _sliced_distance(found: Any, exact: Any, directions: int = 32) -> float:
    """Return the mean Wasserstein-1 distance of two sets of points over directions."""
    import torch

    angles = torch.arange(directions, dtype=torch.float64) * math.pi / directions
    axes = torch.stack((angles.cos(), angles.sin()))
    return float(((found @ axes).sort(0).values - (exact @ axes).sort(0).values).abs().mean())


def _numbers(text: str, flag: str, low: float, high: float) -> list[float]:
    """Read numbers with commas between."""
    allowed = f"numbers {low:g} to {high:g} with commas between"
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(low <= value <= high for value in values):
        raise WrongFlag(flag, f"must be {allowed}, got {text[:60]!r}", allowed)
    return values


def _curves(trials: list[Trial]) -> dict[str, list[tuple[float, float]]]:
    """Return the points of each solver on its best schedule without guidance."""
    best: dict[str, list[tuple[float, float]]] = {}
    first = min(t.guidance_scale for t in trials)
    groups = {(t.scheduler, t.sigma_schedule) for t in trials}
    for scheduler, schedule in sorted(groups):
        mine = [
            (float(t.calls), t.error)
            for t in trials
            if (t.scheduler, t.sigma_schedule, t.guidance_scale) == (scheduler, schedule, first)
        ]
        known = best.get(scheduler)
        if known is None or mine[-1][1] < known[-1][1]:
            best[scheduler] = mine
    return best


def _print_table(trials: list[Trial]) -> None:
    """Print one line per solver, schedule and guidance; columns are step counts."""
    steps = sorted({t.steps for t in trials})
    head = "".join(f"{f'{n} steps':>12}" for n in steps)
    print(f"{'solver':17}{'schedule':13}{'guidance':>9}  {'measure':8}{head}{'order':>7}")
    rows: dict[tuple[str, str, float], dict[int, Trial]] = {}
    for t in trials:
        rows.setdefault((t.scheduler, t.sigma_schedule, t.guidance_scale), {})[t.steps] = t
    for (scheduler, schedule, scale), row in rows.items():
        measure = next(iter(row.values())).measure
        errors = "".join(f"{row[n].error:12.2e}" for n in steps)
        order = _order([row[n] for n in steps]) if measure == "path" else ""
        print(f"{scheduler:17}{schedule:13}{scale:9g}  {measure:8}{errors}{order:>7}")
    print("path: rms distance to the exact ends; law: sliced Wasserstein distance to exact draws")


def _order(row: list[Trial]) -> str:
    """Return the order of convergence between the two largest step counts."""
    if len(row) < 2 or min(row[-1].error, row[-2].error) <= 0:
        return ""
    ratio = math.log(row[-2].error / row[-1].error) / math.log(row[-1].steps / row[-2].steps)
    return f"{ratio:.1f}"
