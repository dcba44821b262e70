"""The verbs ``train`` and ``sample``: the trainer from the command line."""

import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from mezzotint.cli import flags
from mezzotint.cli.figures.sampled import write_arrays
from mezzotint.cli.outputs import Destination
from mezzotint.cli.requests import build_request
from mezzotint.cli.session import load_settings
from mezzotint.cli.terminal import escaped
from mezzotint.models.config import ModelsConfig

__all__ = ["sample", "train"]

_SPINS = "1000"  # some microseconds; none at all doubles the time on a quiet machine
_COUNT: dict[str, Any] = {"parser": flags.whole_number, "metavar": "INT"}


def train(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The run.")],
    *,
    output_dir: Annotated[
        Path | None, typer.Option(help="Run folder, in place of the file's.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="FIELD=JSON, any field of the file.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Refuse to go on from a checkpoint.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Only read and check the data.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Events as JSON lines.")] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Train on the nodes of this Ray cluster; auto: this machine's.",
        ),
    ] = None,
    processes: Annotated[int, typer.Option(help="With --ray: how many.", **_COUNT)] = 1,
    process_cpus: Annotated[int, typer.Option(help="With --ray: cores of each.", **_COUNT)] = 1,
    process_gpus: Annotated[
        int, typer.Option(help="With --ray: GPUs of each, 0 or 1.", **_COUNT)
    ] = 0,
    restarts: Annotated[
        int, typer.Option(help="With --ray: how often lost processes start again.", **_COUNT)
    ] = 3,
) -> None:
    """Train a model; the run folder is a model. Ctrl-C writes a checkpoint first.

    With --ray the processes are placed by Ray; folders have the same paths on every node. On
    machines without it torchrun does the same: see the docs.

    What the settings say of models holds: models.allow_downloads for a base or a tokenizer
    from the Hub, and models.placement.device where loop.device is auto.
    """
    _let_threads_sleep()
    from mezzotint.train.config.config import TrainConfig
    from mezzotint.train.progress import describe_event

    wanted = TrainConfig.from_toml(config)
    changes = [flags.parse_set(text) for text in set_ or ()]
    if changes or output_dir:
        plain = wanted.to_dict()
        for field, value in changes:
            flags.merge(plain, field, value)
        if output_dir:
            plain["output_dir"] = str(output_dir)
        wanted = TrainConfig.from_dict(plain)
    _keep_to(load_settings(context).settings.models, wanted.loop.device)

    def show(event: dict[str, Any]) -> None:
        print(json.dumps(event) if as_json else describe_event(event), flush=True)
        if event["event"] == "samples" and not as_json and sys.stdout.isatty():
            from mezzotint.images.codec import decode_image
            from mezzotint.train.grids import terminal_picture

            print(terminal_picture(decode_image(Path(event["path"]).read_bytes())), flush=True)

    if ray is not None and not check:
        _check_counts(processes, process_cpus, process_gpus, restarts)
        import asyncio

        from mezzotint.service.cluster.training import train_on

        asyncio.run(
            train_on(
                ray, wanted.to_dict(), processes=processes, cpus=process_cpus, gpus=process_gpus,
                restarts=restarts, fresh=fresh, on_event=show,
            )
        )  # fmt: skip
        if not as_json:
            print(wanted.output_dir)
        return
    from mezzotint.train.trainer import Trainer

    trainer = Trainer(wanted, on_event=show)
    report = trainer.check()
    if check or not as_json:
        print("\n".join(report.lines()), flush=True)
    if check:
        return
    stopped = _stop_on_interrupt(trainer)
    result = trainer.fit(resume=not fresh)
    if stopped:
        raise KeyboardInterrupt
    if not as_json:
        print(result.run_dir)
        if wanted.kind == "lora":
            run_dir, base = shlex.quote(str(result.run_dir)), shlex.quote(wanted.base)
            line = f"mezzotint generate PROMPT --model {base} --lora {run_dir}"
            print(escaped(f"draw with it: {line}"), file=sys.stderr)


def _check_counts(processes: int, cpus: int, gpus: int, restarts: int) -> None:
    """Refuse numbers of processes, cores, GPUs and restarts that cannot be."""
    for name, value, least, most in (
        ("--processes", processes, 1, 10_000),
        ("--process-cpus", cpus, 1, 1024),
        ("--process-gpus", gpus, 0, 1),
        ("--restarts", restarts, 0, 1000),
    ):
        if not least <= value <= most:
            raise flags.WrongFlag(name, f"must be {least} to {most}, got {value}")


def _let_threads_sleep() -> None:
    """Have torch's threads sleep soon when they wait for one another; called before its import.

    By default they spin for milliseconds, and beside other work each takes turns from those it
    waits for: two threads on two busy cores learn a small network in five times the time and
    more. No bit depends on it. Who runs the command may say otherwise, by this variable of
    GCC's OpenMP or by ``OMP_WAIT_POLICY``.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def _keep_to(models: ModelsConfig, asked: str) -> None:
    """Have the libraries of this process, none of them imported yet, keep to the settings.

    Args:
        models: The settings.
        asked: The run's own ``loop.device``.
    """
    if not models.allow_downloads:
        os.environ["HF_HUB_OFFLINE"] = "1"
    kind, _, index = models.placement.device.partition(":")
    if asked == "auto" and kind in ("cpu", "mps"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif asked in ("auto", "cuda") and index:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        known = len(seen) > int(index) and seen[int(index)]
        os.environ["CUDA_VISIBLE_DEVICES"] = known or index


def _stop_on_interrupt(trainer: Any) -> list[int]:
    """Let the first Ctrl-C end the run cleanly; the second is an ordinary one."""
    seen: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        print("stopping after a checkpoint; again to stop at once", file=sys.stderr)
        trainer.stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, stop)
    return seen


def sample(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run.")],
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="What to draw.")] = None,
    *,
    seed: Annotated[
        int | None, typer.Option(parser=flags.whole_number, metavar="INT", help="0 to 2^64-1.")
    ] = None,
    num_images: Annotated[
        int | None, typer.Option("--num-images", "-n", parser=flags.whole_number, metavar="INT")
    ] = None,
    num_inference_steps: Annotated[
        int | None,
        typer.Option("--num-inference-steps", "--steps", parser=flags.whole_number, metavar="INT"),
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="Solver.")] = None,
    guidance_scale: Annotated[str | None, typer.Option("--guidance-scale", "-g")] = None,
    class_label: Annotated[
        int | None, typer.Option(parser=flags.whole_number, metavar="INT", help="Class.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="FIELD=JSON, any request field.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.")] = None,
    output_dir: Annotated[Path, typer.Option(help="Folder for pictures without -o.")] = Path(
        "outputs"
    ),
) -> None:
    """Draw from a run as it stands, with the running mean of the weights.

    A run of arrays writes numbers in the units of its data, as .npy, and sound
    (data.sample_rate) as WAV. With a picture's name after -o it draws them: many points
    as one scatter, many series as curves over one another, sound as spectrograms, fields
    as maps, a column for each channel (SVG, PNG or PDF). With a moving file's name (GIF,
    APNG or MP4) many fields are a movie that turns into itself.
    """
    _let_threads_sleep()
    from mezzotint.train.trainer import Trainer

    given: dict[str, Any] = {
        "model": str(run_dir),
        "prompt": prompt,
        "seed": seed,
        "num_images": num_images,
        "num_inference_steps": num_inference_steps,
        "scheduler": scheduler,
        "guidance_scale": flags.parse_guidance(guidance_scale) if guidance_scale else None,
        "latent.class_label": class_label,
    }
    request = build_request(given, overrides=[flags.parse_set(text) for text in set_ or ()])
    if not run_dir.is_dir():
        raise flags.WrongFlag("RUN_DIR", f"{run_dir} is no folder")
    trainer = Trainer.open(run_dir)
    if trainer.draws_arrays:
        paths = write_arrays(trainer, request, output, output_dir)
        if paths:
            _print_paths(paths, as_json=as_json)
            return
    destination = Destination(output, output_dir, several=request.num_images > 1)
    result = trainer.sample(request)
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    written = (destination.write(image, request) for image in result.images)
    _print_paths([path for path in written if path is not None], as_json=as_json)


def _print_paths(paths: Sequence[Path], *, as_json: bool) -> None:
    """Print the files that were written: a path a line, or one object."""
    if as_json:
        print(json.dumps({"paths": [str(path) for path in paths]}))
        return
    for path in paths:
        print(path)
