"""Distil the text-to-picture model to four steps, as a LoRA of its U-Net.

Usage: ``python distill.py RUN --draw-minutes 10 --minutes 15``, then ``python distill.py
RUN --export OUT``. Reads what ``dataset.py`` and ``denoiser.py`` wrote. Stopped at any
moment, it goes on from its last checkpoint when started again with the same RUN; minutes
count time spent, over all starts. A new ``denoiser.pt`` needs a new ``distill.pt``, which
is said and refused rather than mixed up.

The teacher's whole way from noise to picture, 20 steps of DPM-Solver++ with guidance 4, is
drawn once for many captions and kept at the five places where a four-step sampler stops.
At each stop the student learns the one answer whose single DDIM step lands where the
teacher's five guided steps did: progressive distillation (Salimans and Ho 2022,
arXiv:2202.00512) with the guidance folded in (Meng et al. 2022, arXiv:2210.03142), in one
leap. Where the way is the teacher's own, a stop and its caption decide the next stop, so
nothing is averaged and a few thousand ways are enough, where consistency learning from
single noisy pictures wants hundreds of thousands.

With probability `OWN_WAY` a batch starts at a stop that the student reached itself by its
own steps from the teacher's noise, and aims at the teacher's next stop: what the student
gets wrong early it learns to mend later.

Dimensions: B images, latents (B, 8, 16, 16), caption states (B, T, 384).
"""

import argparse
import hashlib
import json
import os
import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from denoiser import (
    BETA_END,
    BETA_START,
    NUM_TIMESTEPS,
    build_denoiser,
    learning_rate_factor,
    signal_levels,
)
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from export import build_scheduler
from parallel import Clock, average_gradients, run_workers, save_checkpoint
from peft import LoraConfig, inject_adapter_in_model
from precision import fast_floats
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mezzotint.models.cards import builtin_cards
from mezzotint.models.store.derived import LORA_FILE, describe_derived

STEPS, TEACHER_STEPS, GUIDANCE = 4, 20, 4.0
STOPS = tuple(NUM_TIMESTEPS * (STEPS - k) // STEPS - 1 for k in range(STEPS))  # trailing
OWN_WAY = 0.35
EMA_DECAY = 0.995
DRAW_BATCH = 24
CHECKPOINT_EVERY_S = 60
UNET_FILE = "diffusion_pytorch_model.safetensors"
LAYERS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
    "conv1", "conv2", "conv_shortcut", "time_emb_proj", "conv", "conv_in", "conv_out",
    "linear_1", "linear_2",
)  # fmt: skip


def load_teacher(run: Path) -> tuple[UNet2DConditionModel, str]:
    """Return the averaged U-Net and a digest that names it."""
    model = build_denoiser().eval().requires_grad_(requires_grad=False)
    state = torch.load(run / "denoiser.pt", weights_only=True)["average"]
    model.load_state_dict(state)
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(state[name].float().contiguous().numpy().tobytes())
    return model, digest.hexdigest()


@torch.no_grad()
def draw_ways(
    model: UNet2DConditionModel, noise: Tensor, states: Tensor, nothing: Tensor
) -> Tensor:
    """Draw pictures and keep where they were at the stops.

    Args:
        model: The teacher.
        noise: Where each way begins. Shape (B, 8, 16, 16).
        states: Caption states. Shape (B, T, 384).
        nothing: States of the empty caption. Shape (1, T, 384).

    Returns:
        Latents at the stops, and last the finished ones. Shape (B, STEPS + 1, 8, 16, 16).
    """
    solver: DPMSolverMultistepScheduler = build_scheduler()
    solver.set_timesteps(TEACHER_STEPS)
    both = torch.cat([states, nothing.expand_as(states)])
    x, kept = noise, []
    for k, time in enumerate(solver.timesteps):
        if k % (TEACHER_STEPS // STEPS) == 0:
            kept.append(x)
        with fast_floats():
            twice = torch.cat([x, x])
            said = model(twice, time, encoder_hidden_states=both).sample.float()
        asked, free = said.chunk(2)
        x = solver.step(free + GUIDANCE * (asked - free), time, x).prev_sample
    return torch.stack([*kept, x], dim=1)


def draw(rank: int, workers: int, run: Path, options: dict[str, float]) -> None:
    """Draw ways for the given time; each batch is a file, so nothing is ever lost."""
    model, digest = load_teacher(run)
    folder = run / "ways" / digest[:12]
    folder.mkdir(parents=True, exist_ok=True)
    states = np.load(run / "embeddings.npy", mmap_mode="r")
    nothing = torch.from_numpy(np.array(states[:1])).float()
    items = json.loads((run / "items.json").read_text("utf-8"))
    weights = np.array([item["weight"] for item in items])
    clock, number = Clock(), rank
    while clock.read() < 60 * options["draw_minutes"]:
        path = folder / f"{number:05d}.npz"
        if not path.exists():
            rng = np.random.default_rng(10_000 + number)
            drawn = rng.choice(len(items), size=DRAW_BATCH, p=weights / weights.sum())
            captions = np.array([rng.choice(items[i]["captions"]) for i in drawn])
            generator = torch.Generator().manual_seed(10_000 + number)
            noise = torch.randn(DRAW_BATCH, 8, 16, 16, generator=generator)
            told = torch.from_numpy(np.array(states[captions])).float()
            ways = draw_ways(model, noise, told, nothing)
            part = path.with_suffix(".part")
            with part.open("wb") as file:
                np.savez(file, captions=captions, ways=ways.half().numpy())
            os.replace(part, path)
            if rank == 0:
                print(f"{(number + workers) * DRAW_BATCH} ways", flush=True)
        number += workers


class Ways:
    """The drawn ways of one teacher, some kept out of the training."""

    def __init__(self, run: Path, digest: str) -> None:
        """Read them all: 20 KB a way.

        Raises:
            FileNotFoundError: If none were drawn with this teacher.
        """
        paths = sorted((run / "ways" / digest[:12]).glob("*.npz"))
        if len(paths) < 2:
            raise FileNotFoundError(
                f"no ways of teacher {digest[:12]} in {run}/ways; draw some: --draw-minutes 10"
            )
        parts = [np.load(path) for path in paths]
        self._captions = np.concatenate([part["captions"] for part in parts])
        self._ways = np.concatenate([part["ways"] for part in parts])
        self._states = np.load(run / "embeddings.npy", mmap_mode="r")
        self._held_out = min(96, len(self._captions) // 8)

    def __len__(self) -> int:
        """Return how many are learnt from."""
        return len(self._captions) - self._held_out

    def get(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return ways (B, STEPS + 1, 8, 16, 16) and caption states (B, T, 384)."""
        states = torch.from_numpy(np.array(self._states[self._captions[rows]])).float()
        return torch.from_numpy(self._ways[rows]).float(), states

    def held_out(self) -> tuple[Tensor, Tensor]:
        """Return the ways that are not learnt."""
        return self.get(np.arange(len(self), len(self._captions)))


def levels() -> tuple[Tensor, Tensor]:
    """Return signal and noise at the stops, the finished picture last. Shapes (STEPS + 1,)."""
    signal, noise = signal_levels()
    ends = torch.tensor([1.0]), torch.tensor([0.0])
    return torch.cat([signal[list(STOPS)], ends[0]]), torch.cat([noise[list(STOPS)], ends[1]])


def wanted_v(here: Tensor, there: Tensor, stop: Tensor) -> Tensor:
    """Return the v whose one DDIM step leads from here to there, the next stop. As `here`."""
    a, b = (part.view(-1, 1, 1, 1) for part in (levels()[0][stop], levels()[1][stop]))
    a2, b2 = (part.view(-1, 1, 1, 1) for part in (levels()[0][stop + 1], levels()[1][stop + 1]))
    clean = (there - b2 / b * here) / (a2 - b2 * a / b)
    return (a * here - clean) / b


def step_on(here: Tensor, v: Tensor, stop: Tensor) -> Tensor:
    """Take the DDIM step to the next stop."""
    a, b = (part.view(-1, 1, 1, 1) for part in (levels()[0][stop], levels()[1][stop]))
    a2, b2 = (part.view(-1, 1, 1, 1) for part in (levels()[0][stop + 1], levels()[1][stop + 1]))
    return a2 * (a * here - b * v) + b2 * (b * here + a * v)


def answer(model: nn.Module, here: Tensor, stop: Tensor, states: Tensor) -> Tensor:
    """Return what the student says at its stops."""
    times = torch.tensor(STOPS)[stop]
    with fast_floats():
        x = here.to(memory_format=torch.channels_last)
        return model(x, times, encoder_hidden_states=states).sample.float()


@torch.no_grad()
def distance(model: nn.Module, ways: Tensor, states: Tensor) -> float:
    """Return the root mean square distance of four-step pictures to the teacher's."""
    x = ways[:, 0]
    for k in range(STEPS):
        stop = torch.full((len(x),), k)
        x = step_on(x, answer(model, x, stop, states), stop)
    return ((x - ways[:, -1]) ** 2).mean().sqrt().item()


def with_lora(model: UNet2DConditionModel, rank: int) -> UNet2DConditionModel:
    """Put a low-rank change beside every layer, the only weights that learn."""
    model.requires_grad_(requires_grad=False)
    options = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LAYERS))
    inject_adapter_in_model(options, model)
    return model


def learn(rank: int, workers: int, run: Path, options: dict[str, float]) -> None:
    """Train one process's share until the given time is spent."""
    teacher, digest = load_teacher(run)
    ways = Ways(run, digest)
    torch.manual_seed(0)  # noqa: TID251 - the change must start equal in all processes
    model = with_lora(teacher, int(options["rank"])).to(memory_format=torch.channels_last)
    theirs = {n: p for n, p in model.named_parameters() if p.requires_grad}
    average = {name: p.detach().clone() for name, p in theirs.items()}
    optimizer = torch.optim.AdamW(
        theirs.values(), lr=options["learning_rate"], betas=(0.9, 0.98), fused=True
    )
    step, spent_s, path = 0, 0.0, run / "distill.pt"
    if path.exists():
        state = torch.load(path, weights_only=True)
        if state["teacher"] != digest or state["rank"] != int(options["rank"]):
            raise ValueError(
                f"{path} belongs to teacher {state['teacher'][:12]} and rank {state['rank']}, "
                f"this is {digest[:12]} and {int(options['rank'])}; move it away"
            )
        model.load_state_dict(state["model"], strict=False)
        average = state["average"]
        optimizer.load_state_dict(state["optimizer"])
        step, spent_s = state["step"], state["spent_s"]
    rng = np.random.default_rng(step * workers + rank)
    buffer = torch.empty(sum(p.numel() for p in theirs.values()))
    size, seconds = int(options["batch_size"]) // workers, 60 * options["minutes"]
    if rank == 0:
        print(f"{len(ways)} ways, {buffer.numel()} parameters, distance at first "
              f"{_distance_with(model, theirs, average, ways):.4f}", flush=True)  # fmt: skip
    losses: list[float] = []
    clock = Clock(spent_s)
    saved_s = spent_s
    while spent_s < seconds:
        rate = options["learning_rate"] * learning_rate_factor(spent_s / seconds, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        drawn, states = ways.get(rng.integers(len(ways), size=size))
        every = torch.arange(size)
        stop = torch.from_numpy(rng.integers(STEPS, size=size))
        here = drawn[every, stop]
        if rng.random() < OWN_WAY:
            stop = torch.full((size,), int(rng.integers(1, STEPS)))
            before = stop - 1
            with torch.no_grad():
                said = answer(model, drawn[every, before], before, states)
                here = step_on(drawn[every, before], said, before)
        target = wanted_v(here, drawn[every, stop + 1], stop)
        error = answer(model, here, stop, states) - target
        loss = ((error**2).mean(dim=(1, 2, 3)) + 1e-6).sqrt().mean()
        optimizer.zero_grad()
        loss.backward()
        average_gradients(list(theirs.values()), buffer)
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        optimizer.step()
        step += 1
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            list(average.values()), [p.detach() for p in theirs.values()], 1 - decay
        )
        losses.append(loss.item())
        spent_s = clock.read()
        if rank == 0 and step % 50 == 0:
            print(f"step {step} at {spent_s / 60:.1f} min loss {np.mean(losses):.4f} "
                  f"rate {rate:.1e}", flush=True)  # fmt: skip
            losses.clear()
        if rank == 0 and (spent_s - saved_s > CHECKPOINT_EVERY_S or spent_s >= seconds):
            saved_s = spent_s
            state = {
                "model": {name: p.detach() for name, p in theirs.items()},
                "average": average,
                "optimizer": optimizer.state_dict(),
                "step": step,
                "spent_s": spent_s,
                "teacher": digest,
                "rank": int(options["rank"]),
            }
            save_checkpoint(path, state)
            print(f"distance {_distance_with(model, theirs, average, ways):.4f}", flush=True)


def _distance_with(
    model: nn.Module, theirs: dict[str, nn.Parameter], average: dict[str, Tensor], ways: Ways
) -> float:
    """Measure the averaged student on held-out ways."""
    kept = deepcopy({name: p.detach() for name, p in theirs.items()})
    with torch.no_grad():
        for name, p in theirs.items():
            p.copy_(average[name])
        found = distance(model, *ways.held_out())
        for name, p in theirs.items():
            p.copy_(kept[name])
    return found


def export(run: Path, out: Path) -> None:
    """Write the averaged change as a model derived from ``plate``.

    The folder holds the LoRA in half precision in peft's naming, which diffusers loads onto
    ``plate`` too, the solver, and the digest of the weights it belongs to: those that
    ``export.py`` wrote and that are installed as ``plate`` now.

    Raises:
        ValueError: If ``denoiser.pt`` is not what was distilled, or ``plate`` is older.
    """
    state = torch.load(run / "distill.pt", weights_only=True)
    teacher, digest = load_teacher(run)
    if state["teacher"] != digest:
        raise ValueError(f"{run}/distill.pt is of another denoiser.pt; distil this one first")
    installed = Path(builtin_cards()["plate"].path) / "unet" / UNET_FILE
    theirs = load_file(installed)
    if any(not torch.equal(theirs[n], p.half()) for n, p in teacher.state_dict().items()):
        raise ValueError(f"{installed} is of another denoiser.pt; install the export of this one")
    tensors = {
        f"unet.{name.replace('.default', '')}": value.half().contiguous()
        for name, value in state["average"].items()
    }
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    save_file(tensors, out / LORA_FILE, metadata={"format": "pt"})
    solver = DDIMScheduler(
        num_train_timesteps=NUM_TIMESTEPS,
        beta_start=BETA_START,
        beta_end=BETA_END,
        beta_schedule="linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )
    solver.save_pretrained(out / "scheduler")
    about = describe_derived("plate", steps=STEPS, guidance_scale=1.0)
    (out / "config.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    shutil.copy(Path(__file__).parent / "plate_quick_card.md", out / "model_card.md")
    size = (out / LORA_FILE).stat().st_size
    print(f"{state['step']} steps, {state['spent_s'] / 60:.1f} min, {size / 1e6:.2f} MB")


def main() -> None:
    """Draw, learn or export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder with the trained parts")
    parser.add_argument("--draw-minutes", type=float, default=0, help="draw ways for so long")
    parser.add_argument("--minutes", type=float, default=0, help="learn until so long is spent")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--export", type=Path, help="folder to write the LoRA into")
    arguments = parser.parse_args()
    names = ("draw_minutes", "minutes", "batch_size", "learning_rate", "rank")
    options = {name: getattr(arguments, name) for name in names}
    if arguments.draw_minutes:
        run_workers(draw, arguments.workers, arguments.run, options)
    if arguments.minutes:
        run_workers(learn, arguments.workers, arguments.run, options)
    if arguments.export:
        export(arguments.run, arguments.export)


if __name__ == "__main__":
    main()
