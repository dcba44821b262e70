"""A1111: ``/sdapi/v1`` as its own clients call it (WIRE, sections 5 and 9).

``sampler_name`` is our ``scheduler``, ``scheduler`` our ``sigma_schedule``; prompts
are read in the A1111 dialect. Picture i of a request has seed + i. Unknown fields
are ignored, as A1111 does; what we cannot honour is said in ``info.warnings``.
An interrupted request answers the pictures that were finished, and says so.
"""

import base64
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from mezzotint import errors
from mezzotint.errors import UnknownName
from mezzotint.request import GenerationRequest
from mezzotint.serve.dialects import a1111_extras
from mezzotint.serve.dialects.a1111_bodies import ImageToImage, TextToImage
from mezzotint.serve.dialects.a1111_controlnet import FIELD, read_units
from mezzotint.serve.dialects.a1111_extras import post
from mezzotint.serve.dialects.a1111_lists import ENDPOINTS, find_checkpoint, options
from mezzotint.serve.dialects.a1111_techniques import (
    read_hires,
    read_inpaint,
    read_seed,
    read_variation,
)
from mezzotint.serve.errors import NotFound, Problem, WrongField
from mezzotint.serve.front import Front, new_id
from mezzotint.serve.wire import Dialect, Endpoint, json_response, read_fields, read_json, visit
from mezzotint.textchunks import PARAMETERS, read_texts
from mezzotint.types import (
    MAX_SEED,
    Event,
    GenerationResult,
    ImageFinished,
    ImageOutput,
    Stepped,
)
from mezzotint.vocabulary import A1111_SAMPLERS, match_sampler, match_schedule

__all__ = ["DIALECT", "error_body", "from_images", "to_request"]

_NAMES = {
    "guidance_scale": "cfg_scale",
    "num_inference_steps": "steps",
    "scheduler": "sampler_name",
    "sigma_schedule": "scheduler",
    "num_images": "batch_size",
    "strength": "denoising_strength",
    "image": "init_images",
    "model": "sd_model_checkpoint",
    "upscale": "upscaling_resize",
    "hires": "enable_hr",
    "variation": "subseed_strength",
    "inpaint": "mask",
    "tiling": "tiling",
    "controls": FIELD,
    "loras": "prompt",
    "embeddings": "prompt",
}
_NOT_HONOURED: Mapping[str, Any] = {
    "restore_faces": False,
    "s_churn": 0,
    "refiner_checkpoint": None,
    "hr_checkpoint_name": None,
    "hr_sampler_name": None,
    "hr_scheduler": None,
}


@dataclass(slots=True)
class _Job:
    """One txt2img or img2img in progress."""

    owner: str
    id: str
    images: int
    began: float = field(default_factory=time.time)
    done: int = 0
    step: int = 0
    steps: int = 0
    preview: bytes | None = None
    interrupted: bool = False
    skipped: bool = False
    running: str = ""
    finished: list[ImageOutput] = field(default_factory=list[ImageOutput])

    @property
    def progress(self) -> float:
        part = self.step / self.steps if self.steps else 0.0
        return min(1.0, (self.done + part) / max(1, self.images))


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """What a body asks for beyond the request: rounds, and the answer's shape."""

    request: GenerationRequest
    rounds: int = 1
    send_images: bool = True
    warnings: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])


def to_request(
    body: Mapping[str, Any], model: str | None = None, *, is_img2img: bool = False
) -> Translation:
    """Translate a txt2img or img2img body.

    Args:
        body: What came.
        model: The model to use; the default one if None.
        is_img2img: Whether ``init_images`` is needed.

    Raises:
        InvalidRequest: If a field is wrong; named in A1111's words.
    """
    given = {k: v for k, v in body.items() if not (k == "mask" and v == "")}
    fields, _ = read_fields(ImageToImage if is_img2img else TextToImage, given)
    warnings = [
        f"{name} is not offered here and was left out"
        for name, off in _NOT_HONOURED.items()
        if body.get(name) not in (off, None, "", False, 0)
    ]
    native: dict[str, Any] = {
        "prompt": fields.prompt,
        "negative_prompt": fields.negative_prompt,
        "prompt_dialect": "a1111",
        "num_images": fields.batch_size,
        "seed": read_seed(fields.seed),
        "num_inference_steps": fields.steps,
        "guidance_scale": fields.cfg_scale,
        "width": fields.width or None,
        "height": fields.height or None,
        "model": model,
        "tiling": fields.tiling,
        "variation": read_variation(fields),
    }
    native |= _sampler(fields, warnings)
    if is_img2img:
        native |= _init(fields, warnings)
    else:
        native["hires"] = read_hires(fields, warnings)
    start = body["init_images"][0] if is_img2img else None
    native["controls"] = read_units(body.get("alwayson_scripts"), warnings, start_image=start)
    if body.get("script_name"):
        warnings.append(f"script {str(body['script_name'])[:80]!r} is not offered here")
    native = {k: v for k, v in native.items() if v is not None and v != []}
    return Translation(
        request=GenerationRequest.from_dict(native),
        rounds=fields.n_iter,
        send_images=fields.send_images,
        warnings=tuple(warnings),
        parameters=_parameters(body, fields),
    )


def _parameters(body: Mapping[str, Any], fields: TextToImage) -> dict[str, Any]:
    """Return what the answer repeats of a body: its pictures only where it says so."""
    if isinstance(fields, ImageToImage) and fields.include_init_images:
        return dict(body)
    return {k: None if k in ("init_images", "mask") else v for k, v in body.items()}


def _sampler(fields: TextToImage, warnings: list[str]) -> dict[str, Any]:
    """Read sampler and schedule type by A1111's names, other tools' or ours."""
    native: dict[str, Any] = {}
    name = fields.sampler_name or fields.sampler_index
    if name:
        match = match_sampler(name)
        if match is None:
            raise UnknownName("sampler", name[:80], A1111_SAMPLERS, field="sampler_name")
        if not match.exact:
            warnings.append(f"sampler {name!r} is not offered here; {match.scheduler} was used")
        native |= {"scheduler": match.scheduler, "sigma_schedule": match.sigma_schedule}
    schedule = fields.scheduler
    if schedule and schedule.lower() != "automatic":
        found = match_schedule(schedule)
        if found is None:
            raise WrongField(
                f"scheduler {schedule[:80]!r} is no schedule type; see /sdapi/v1/schedulers",
                field="scheduler",
                value=schedule[:80],
            )
        if not found[1]:
            warnings.append(f"schedule type {schedule!r} is not offered here; {found[0]} was used")
        native["sigma_schedule"] = found[0]
    return native


def _init(fields: ImageToImage, warnings: list[str]) -> dict[str, Any]:
    """Read the pictures of img2img."""
    if not fields.init_images:
        raise NotFound("Init image not found")
    first, *others = fields.init_images
    if others:
        warnings.append(f"only the first of {len(others) + 1} init_images was used")
    native: dict[str, Any] = {"image": first, "strength": fields.denoising_strength}
    if fields.mask is not None:
        native |= {"mask": fields.mask, "inpaint": read_inpaint(fields)}
    return native


def from_images(
    images: list[ImageOutput],
    translation: Translation,
    model: Mapping[str, Any],
    *,
    interrupted: bool,
) -> dict[str, Any]:
    """Write the answer: pictures, parameters, and ``info`` as a JSON text."""
    request = translation.request
    first = images[0] if images else None
    seeds = [i.seed for i in images]
    subseeds = _subseeds(translation, seeds)
    texts = [read_texts(i.data).get(PARAMETERS, "") for i in images]
    warnings = [*translation.warnings, *(w for i in images for w in i.warnings)]
    info = {
        "prompt": request.prompt,
        "all_prompts": [request.prompt] * len(images),
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt] * len(images),
        "seed": first.seed if first else request.seed,
        "all_seeds": seeds,
        "subseed": subseeds[0] if subseeds else request.seed,
        "all_subseeds": subseeds,
        "subseed_strength": request.variation.strength if request.variation else 0,
        "width": first.width if first else request.width,
        "height": first.height if first else request.height,
        "sampler_name": str(translation.parameters.get("sampler_name") or request.scheduler or ""),
        "cfg_scale": request.guidance_scale,
        "steps": request.num_inference_steps,
        "batch_size": request.num_images,
        "restore_faces": False,
        "sd_model_name": model.get("name", request.model),
        "sd_model_hash": str(model.get("digest", ""))[:10],
        "denoising_strength": request.strength if request.image is not None else None,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": texts,
        "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "interrupted": interrupted,
        "warnings": list(dict.fromkeys(warnings)),
    }
    return {
        "images": [_b64(i.data) for i in images] if translation.send_images else [],
        "parameters": dict(translation.parameters),
        "info": orjson.dumps(info).decode(),
    }


def _subseeds(translation: Translation, seeds: list[int]) -> list[int]:
    """Return the other seed of each picture; the pictures' own where there is none."""
    variation = translation.request.variation
    if variation is None or variation.seed is None:
        return seeds
    return [(variation.seed + k) % (MAX_SEED + 1) for k in range(len(seeds))]


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def error_body(problem: Problem) -> dict[str, Any]:
    """Write an error: a list of places for a wrong field, a sentence otherwise."""
    theirs = problem.renamed(_NAMES)
    if problem.status == 422 and theirs.field is not None:
        place = {"type": problem.code, "loc": ["body", theirs.field], "msg": theirs.detail}
        return {"detail": [{**place, "input": theirs.value}]}
    return {"error": problem.cause, "detail": theirs.detail, "body": "", "errors": theirs.detail}


def _render(problem: Problem, request_id: str) -> Response:
    return json_response(error_body(problem), problem.status)


def _jobs(front: Front) -> dict[str, _Job]:
    return front.memory.setdefault("a1111_jobs", {})


def _mine(front: Front, http: Request) -> list[_Job]:
    """Return the caller's jobs, oldest first."""
    name = visit(http).caller.name
    return [job for job in _jobs(front).values() if job.owner == name]


async def _model(front: Front, http: Request, body: Mapping[str, Any]) -> str | None:
    """Return the model that the body's settings or the options name."""
    settings = body.get("override_settings")
    title = settings.get("sd_model_checkpoint") if isinstance(settings, Mapping) else None
    title = title or options(front, http).get("sd_model_checkpoint")
    return await find_checkpoint(front, str(title)) if title else None


async def txt2img(front: Front, http: Request) -> Response:
    """Make pictures from a prompt."""
    return await _make(front, http, is_img2img=False)


async def img2img(front: Front, http: Request) -> Response:
    """Make pictures from pictures."""
    return await _make(front, http, is_img2img=True)


async def _make(front: Front, http: Request, *, is_img2img: bool) -> Response:
    body = await read_json(http)
    translation = to_request(body, await _model(front, http, body), is_img2img=is_img2img)
    total = translation.request.num_images * translation.rounds
    caller = visit(http).caller
    front.admit(replace(translation.request, num_images=min(total, 1024)), caller)
    job = _Job(caller.name, new_id("a1111"), total)
    _jobs(front)[job.id] = job
    try:
        await _rounds(front, http, translation, job)
    finally:
        del _jobs(front)[job.id]
    name = translation.request.model
    models = {m["name"]: m for m in await front.recent_models()}
    model = models.get(name.partition("@")[0], {})
    stopped = job.interrupted or job.skipped
    return json_response(from_images(job.finished, translation, model, interrupted=stopped))


async def _rounds(front: Front, http: Request, translation: Translation, job: _Job) -> None:
    """Run ``n_iter`` rounds; skip ends one of them, interrupt all."""
    request = translation.request
    for number in range(translation.rounds):
        if job.interrupted:
            return
        if request.seed is not None and number:
            result = await _round(front, http, _of_round(request, number), job)
        else:
            result = await _round(front, http, request, job)
        if result is None:
            continue
        if number == 0 and request.seed is None:
            request = replace(request, seed=result.images[0].seed)
        job.finished.extend(result.images)


def _of_round(request: GenerationRequest, number: int) -> GenerationRequest:
    """Return the request of a later round: both seeds count on."""
    ahead = number * request.num_images
    changes: dict[str, Any] = {"seed": ((request.seed or 0) + ahead) % (MAX_SEED + 1)}
    variation = request.variation
    if variation is not None and variation.seed is not None:
        other = (variation.seed + ahead) % (MAX_SEED + 1)
        changes["variation"] = replace(variation, seed=other)
    return replace(request, **changes)


async def _round(
    front: Front, http: Request, request: GenerationRequest, job: _Job
) -> GenerationResult | None:
    """Run one request; None if it was skipped or interrupted."""

    def observe(event: Event) -> None:
        job.running = event.id
        if isinstance(event, Stepped):
            job.step, job.steps = event.step, event.steps
            job.preview = event.preview or job.preview
        elif isinstance(event, ImageFinished):
            job.done, job.step = job.done + 1, 0

    try:
        return await front.generate(http, request, observe)
    except errors.Cancelled:
        if job.interrupted or job.skipped:
            return None
        raise


async def progress(front: Front, http: Request) -> Response:
    """Show how far the caller's oldest request is."""
    jobs = _mine(front, http)
    job = jobs[0] if jobs else None
    wants_image = http.query_params.get("skip_current_image", "false").lower() != "true"
    preview = job.preview if job is not None and wants_image else None
    done = job.progress if job is not None else 0.0
    spent = time.time() - job.began if job is not None else 0.0
    state = {
        "skipped": job.skipped if job else False,
        "interrupted": job.interrupted if job else False,
        "stopping_generation": False,
        "job": job.id if job else "",
        "job_count": sum(j.images - j.done for j in jobs),
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(job.began)) if job else "0",
        "job_no": job.done if job else 0,
        "sampling_step": job.step if job else 0,
        "sampling_steps": job.steps if job else 0,
    }
    return json_response(
        {
            "progress": round(done, 4),
            "eta_relative": round(spent / done - spent, 3) if done else 0.0,
            "state": state,
            "current_image": _b64(preview) if preview is not None else None,
            "textinfo": None,
            "current_task": job.id if job else None,
        }
    )


async def interrupt(front: Front, http: Request) -> Response:
    """End the caller's requests; what is finished is answered."""
    for job in _mine(front, http):
        job.interrupted = True
        await front.service.cancel(job.running)
    return json_response({})


async def skip(front: Front, http: Request) -> Response:
    """End the round the caller's oldest request is in, and go on with the next."""
    for job in _mine(front, http)[:1]:
        job.skipped = True
        await front.service.cancel(job.running)
    return json_response(None)


DIALECT = Dialect(
    name="a1111",
    pattern=re.compile(r"^/(sdapi|controlnet)(/|$)"),
    endpoints=(
        post("txt2img", txt2img, "make pictures from a prompt"),
        post("img2img", img2img, "make pictures from pictures"),
        post("interrupt", interrupt, "end the caller's requests", body=False),
        post("skip", skip, "end the caller's round", body=False),
        Endpoint(
            method="GET",
            path="/sdapi/v1/progress",
            handler=progress,
            summary="A1111: how far it is",
        ),
        *a1111_extras.ENDPOINTS,
        *ENDPOINTS,
    ),
    render=_render,
)
