"""Hostile inputs as a table: what is sent, which status is right, and what the answer names."""

import base64
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, PngImagePlugin

GEN, JOBS, PLAN = "/v1/generations", "/v1/jobs", "/v1/plan"
OPENAI, EDIT = "/v1/images/generations", "/v1/images/edits"
A1111, IMG2IMG, PNG_INFO = "/sdapi/v1/txt2img", "/sdapi/v1/img2img", "/sdapi/v1/png-info"
HF, TS = "/hf/plate", "/predictions/plate"
V1, V2 = "/v1/models/plate:predict", "/v2/models/plate/infer"
INSPECT = "/v1/inspect"
JSON = {"content-type": "application/json"}
DOORS = (GEN, JOBS, PLAN, OPENAI, A1111, HF, TS, V1, V2)
TORCHSERVE = (TS, V1, V2)


class Case(NamedTuple):
    """One input: ``status`` is the one right answer, ``named`` what it has to say."""

    id: str
    path: str
    body: bytes
    status: int
    named: str = ""
    headers: dict[str, str] = JSON
    method: str = "POST"
    port: str = "generation"


class Raw(str):
    """A value that JSON's writer would not write."""


def text_of(value: Any) -> str:
    """Write JSON, raw values as they are."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(k)}:{text_of(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(text_of, value)) + "]"
    return json.dumps(value)


def json_case(name: str, path: str, body: Any, status: int, named: str = "") -> Case:
    """Make a case of a JSON body; TorchServe's doors say 400 where others say 422."""
    status = 400 if status == 422 and path in TORCHSERVE else status
    return Case(
        f"{path} {name}", path, text_of(body).encode("utf-8", "surrogatepass"), status, named
    )


NO_NUMBERS: dict[str, tuple[Any, int]] = {
    "true": (True, 422), "a word": ("abc", 422), "a list": ([1], 422), "an object": ({"a": 1}, 422),
    "far below": (-1e30, 422), "NaN": (Raw("NaN"), 400), "Infinity": (Raw("Infinity"), 400),
    "1e999": (Raw("1e999"), 422), "-1e999": (Raw("-1e999"), 422),
}  # fmt: skip
NO_TEXTS: dict[str, tuple[Any, int]] = {
    "a number": (5, 422), "false": (False, 422), "a list": (["a"], 422), "an object": ({"a": 1}, 422),
    "a lone surrogate": (Raw('"\\ud800"'), 400), "NUL": ("a\0b", 422), "NaN": (Raw("NaN"), 400),
}  # fmt: skip
NUMBERS = {
    GEN: ("width", "height", "num_images", "seed", "num_inference_steps", "strength", "priority",
          "deadline_s"),
    JOBS: ("width", "seed", "num_inference_steps"),
    PLAN: ("height", "num_images", "deadline_s"),
    OPENAI: ("n", "partial_images", "seed", "num_inference_steps"),
    A1111: ("steps", "width", "cfg_scale", "n_iter"),
}  # fmt: skip
TEXTS = {GEN: ("prompt", "negative_prompt"), JOBS: ("prompt",), PLAN: ("negative_prompt",),
         OPENAI: ("prompt",), A1111: ("prompt", "negative_prompt")}  # fmt: skip


def fields() -> Iterator[Case]:
    """Every kind of wrong value in fields of numbers and of texts."""
    for path, names in NUMBERS.items():
        for name in names:
            for kind, (value, status) in NO_NUMBERS.items():
                body = {"prompt": "x", name: value}
                yield json_case(f"{name} is {kind}", path, body, status, name)
    for path, names in TEXTS.items():
        for name in names:
            for kind, (value, status) in NO_TEXTS.items():
                yield json_case(
                    f"{name} is {kind}", path, {"prompt": "x", name: value}, status, name
                )
    for kind, (value, status) in NO_NUMBERS.items():
        for name in ("width", "guidance_scale"):
            if (kind, name) != ("an object", "guidance_scale"):
                body: dict[str, Any] = {"inputs": "x", "parameters": {name: value}}
                yield json_case(f"{name} is {kind}", HF, body, status, name)
                yield json_case(f"{name} is {kind}", TS, {"prompt": "x", name: value}, status, name)
        body = {"instances": [{"prompt": "x", "width": value}]}
        yield json_case(f"width is {kind}", V1, body, status, "width")
    for kind, (value, status) in NO_TEXTS.items():
        yield json_case(
            f"inputs is {kind}",
            HF,
            {"inputs": value},
            status,
            "inputs" if kind != "NUL" else "prompt",
        )
        if kind not in ("an object", "a list"):
            yield json_case(f"prompt is {kind}", TS, {"prompt": value}, status, "prompt")
            yield json_case(
                f"prompt is {kind}", V1, {"instances": [{"prompt": value}]}, status, "prompt"
            )


PARTS: dict[str, tuple[Any, str]] = {
    "guidance without a schedule": ({"guidance_scale": {}}, "guidance_scale"),
    "guidance of a rescale alone": ({"guidance_scale": {"rescale": 0.5}}, "guidance_scale"),
    "guidance list of nothing": ({"guidance_scale": {"schedule": "list"}}, "guidance_scale"),
    "regions without a place": ({"regions": [{"prompt": "a"}]}, "regions"),
    "box of three": ({"regions": [{"prompt": "a", "box": [0, 0, 1]}]}, "regions"),
    "NUL in a region": ({"regions": [{"prompt": "\0", "box": [0, 0, 1, 1]}]}, "regions"),
    "NUL in a walk": ({"walk": {"to": "\0", "frames": 2}}, "walk"),
    "walk to nowhere": ({"walk": {"frames": 2}}, "walk"),
    "two thousand regions": ({"regions": [{"prompt": "a", "box": [0, 0, 1, 1]}] * 2000}, "regions"),
    "hires of a million": ({"hires": {"scale": 1e6}}, "hires"),
    "mask alone": ({"mask": "AAAA"}, "mask"),
    "truncation below zero": ({"latent": {"truncation": -1}}, "latent"),
    "an unknown gate": ({"gates": {"nothing": {}}}, "gate"),
    "an unknown scheduler": ({"scheduler": "os.system"}, "scheduler"),
    "a scheduler of 10,000 letters": ({"scheduler": "x" * 10_000}, "scheduler"),
    "an unknown sigma schedule": ({"sigma_schedule": "__class__"}, "sigma_schedule"),
    "an unknown dialect": ({"prompt_dialect": "sql"}, "prompt_dialect"),
    "an unknown format": ({"output": {"format": "exe"}}, "output.format"),
    "a quality of 1000": ({"output": {"quality": 1000}}, "output.quality"),
    "an unknown upscaler": ({"upscale": {"model": "../../x"}}, "upscale"),
    "an unknown field": ({"__proto__": {}}, "__proto__"),
    "a LoRA of no name": ({"loras": [{"name": "nobody"}]}, "loras"),
    "a LoRA of 10,000 letters": ({"loras": [{"name": "x" * 10_000}]}, "loras"),
    "a LoRA of NUL": ({"loras": [{"name": "a\0"}]}, "loras"),
    "a LoRA that climbs": ({"loras": [{"name": "../../etc/passwd"}]}, "loras"),
    "a LoRA of seven hundred kinds": ({"loras": [{"name": f"l{k}"} for k in range(700)]}, "loras"),
    "an embedding of 10,000 letters": ({"embeddings": [{"name": "x" * 10_000}]}, "embeddings"),
    "a member of no name": ({"ensemble": [{"model": ""}, {"model": "plate"}]}, "model"),
    "weights that are texts": ({"ensemble": [{"model": "plate", "weights": ["a"]}]}, "weights"),
}  # fmt: skip


def parts() -> Iterator[Case]:
    """Techniques that are wrong in themselves, at the doors that take native fields."""
    for name, (body, named) in PARTS.items():
        for path in (GEN, JOBS, PLAN):
            if path == JOBS and "LoRA of" not in name and "guidance" not in name:
                continue
            if path == JOBS and named in ("loras",) and "seven" not in name:
                continue  # what only the models can tell a job says when it runs
            yield json_case(name, path, {"prompt": "x", "seed": 1, **body}, 422, named)


NO_JSON = {
    "nothing": b"", "half": b'{"prompt": ', "a list": b"[]", "a number": b"5", "null": b"null",
    "a comma too many": b'{"prompt": "x",}', "a comment": b'{"prompt": "x" /* y */}',
    "deep lists": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "not UTF-8": b'{"prompt": "\xff\xfe"}', "overlong": b'{"prompt": "\xc0\xaf"}',
    "a surrogate in UTF-8": b'{"prompt": "\xed\xa0\x80"}', "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a control character": b'{"prompt": "\x01"}', "a pickle": b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x02os.",
    "a bomb": zlib.compress(b"0" * (8 << 20)), "two objects": b"{}{}", "single quotes": b"{'prompt': 'x'}",
}  # fmt: skip


def bodies() -> Iterator[Case]:
    """Bodies that are no JSON object, or say that they are something else, or nothing."""
    for path in DOORS:
        for name, body in NO_JSON.items():
            if path == TS and name in ("a list", "a number", "null"):
                continue  # a list of one and a text are predictions
            yield Case(f"{path} {name}", path, body, 400)
    for path in (GEN, JOBS, PLAN, OPENAI, EDIT, A1111, IMG2IMG, PNG_INFO, HF, INSPECT):
        for kind in ("", "text/csv", "application/xml", "application/x-www-form-urlencoded"):
            headers = {"content-type": kind} if kind else {}
            yield Case(f"{path} typed {kind!r}", path, b'{"prompt": "x"}', 415, headers=headers)
    for path in (GEN, OPENAI, A1111, TS, HF, V2):
        yield Case(f"{path} too long", path, b'{"prompt": "' + b"x" * (3 << 20) + b'"}', 413)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, data: bytes, *more: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = (*more, chunk(b"IDAT", zlib.compress(data, 9)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(body)


NO_PICTURES = {
    "a header of four billion pixels": png(65535, 65535, b"\0" * 1000),
    "a bomb of zeros": png(30_000, 30_000, b"\0" * (4 << 20)),
    "no side": png(0, 0, b""),
    "half a PNG": png(64, 64, b"\0" * 20_000)[:60],
    "a signature alone": b"\x89PNG\r\n\x1a\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "PDF": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) run\n",
    "a zip": b"PK\x03\x04" + b"\0" * 100,
    "HTML": b"<html><script>alert(1)</script></html>",
    "a JPEG that ends": b"\xff\xd8\xff\xe0" + b"\0" * 30,
    "a WebP of no length": b"RIFF\xff\xff\xff\xffWEBPVP8 ",
    "one byte": b"\0",
}  # fmt: skip
URLS = ("http://127.0.0.1:1/", "http://169.254.169.254/latest/", "file:///etc/passwd", "/etc/passwd",
        "data:text/html,<script>", "data:image/png;base64,%00", "gopher://127.0.0.1/", "%%%")  # fmt: skip


def pictures() -> Iterator[Case]:
    """Pictures that are none, and addresses in their place."""
    for name, data in NO_PICTURES.items():
        text = base64.b64encode(data).decode()
        yield from _pictured(name, text)
        headers = {"content-type": "image/png"}
        status = 413 if name in ("a header of four billion pixels", "a bomb of zeros") else 422
        yield Case(f"{INSPECT} {name}", INSPECT, data, status, "", headers)
        yield Case(f"{HF} {name}", HF, data, status, "image", headers)
    for url in URLS:
        yield from _pictured(url, url)


def _pictured(name: str, text: str) -> Iterator[Case]:
    status = 413 if name in ("a header of four billion pixels", "a bomb of zeros") else 422
    for path, body, named in (
        (GEN, {"prompt": "x", "image": text}, "image"),
        (PLAN, {"prompt": "x", "image": text}, "image"),
        (EDIT, {"prompt": "x", "image": text}, "image"),
        (IMG2IMG, {"prompt": "x", "init_images": [text]}, "image"),
        (PNG_INFO, {"image": text}, "image"),
        (TS, {"prompt": "x", "image": text}, "image"),
    ):
        yield json_case(name, path, body, status, named)


def _in_picture(**texts: str) -> bytes:
    stream, said = io.BytesIO(), PngImagePlugin.PngInfo()
    for key, text in texts.items():
        said.add_text(key, text, zip=True)
    Image.new("RGB", (8, 8)).save(stream, "PNG", pnginfo=said)
    return stream.getvalue()


RECIPES = {
    "LoRA tags without end": _in_picture(parameters="<lora:a" * 100_000),
    "resolutions without end": _in_picture(parameters="x\nSize: " + "1x" * 100_000),
    "a graph that is a list": _in_picture(prompt="[" * 5000),
    "a graph in a circle": _in_picture(
        prompt=json.dumps({"1": {"class_type": "KSampler", "inputs": {"model": ["1", 0]}}})
    ),
    "an InvokeAI of numbers": _in_picture(invokeai_metadata='{"seed": 1e999}'),
    "ours of nothing": _in_picture(mezzotint="{}"),
    "ours of NaN": _in_picture(mezzotint='{"request": {"width": NaN}}'),
    "ours with code": _in_picture(mezzotint='{"request": {"model": "../../etc/passwd"}}'),
}


def names(folder: Path) -> Iterator[Case]:
    """Models and LoRAs that a request names and nobody can read."""
    for name, where in broken_models(folder).items():
        unknown = name.startswith("no ")
        for path, body in (
            (GEN, {"model": where}),
            (PLAN, {"model": where}),
            (OPENAI, {"model": where}),
            (A1111, {"override_settings": {"sd_model_checkpoint": where}}),
        ):
            status = 404 if unknown or path == A1111 else 422  # where checkpoints are titles
            named = "" if path == A1111 else "model"
            yield json_case(name, path, {"prompt": "x", **body}, status, named)
    for name, where in broken_loras(folder).items():
        for path in (GEN, PLAN) if name != "odd.safetensors" else (GEN,):  # its header is well
            body = {"prompt": "x", "loras": [{"name": where}]}
            yield json_case(f"LoRA {name}", path, body, 422, "loras")


def broken_models(folder: Path) -> dict[str, str]:
    """Write what looks like models and is none; return where each is."""

    def write(name: str, files: dict[str, Any]) -> None:
        for file, content in files.items():
            path = folder / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(
                content if isinstance(content, bytes) else json.dumps(content).encode()
            )

    pipeline = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.30.0"}
    write(
        "remote",
        {"model_index.json": {**pipeline, "_class_name": "Mine", "unet": ["my_code", "Net"]}},
    )
    write(
        "code",
        {
            "model_index.json": {**pipeline, "unet": ["my_code", "Net"]},
            "unet/config.json": {"auto_map": {"A": "b.C"}},
        },
    )
    write("list", {"model_index.json": []})
    write("numbers", {"model_index.json": {**pipeline, "unet": 5, "vae": [1, 2]}})
    write("no_json", {"model_index.json": b"\xff\xfe{"})
    write("deep", {"model_index.json": b"[" * 200_000})
    write("run", {"mezzotint_run.json": {}})
    write("gan", {"config.json": {"architecture": 5}, "generator.safetensors": b""})
    write("empty", {"readme.txt": b""})
    write("files", {
        "short.safetensors": b"\x10", "long.safetensors": b"\xff" * 16,
        "types.safetensors": (16).to_bytes(8, "little") + b'{"a":1}         ',
        "none.mzt": b"PK\x03\x04" + b"\0" * 40, "none.mar": b"no zip", "pickle.ckpt": b"\x80\x04.",
    })  # fmt: skip
    with zipfile.ZipFile(folder / "files" / "climbing.mzt", "w") as packed:
        packed.writestr("../../x.safetensors", b"x")
        packed.writestr("manifest.json", "{}")
    made = {
        path.name: str(path)
        for path in sorted(folder.iterdir())
        if path.is_dir() and path.name != "files"
    }
    made |= {path.name: str(path) for path in sorted((folder / "files").iterdir())}
    return made | {
        "passwd": "/etc/passwd", "no such path": str(folder / "none"), "no file: 10,000": "x" * 10_000,
        "no path: 10,000": "/" + "x" * 10_000, "no NUL": "a\0b", "no user": "~nobody-here/x",
    }  # fmt: skip


def broken_loras(folder: Path) -> dict[str, str]:
    """Return files that are no LoRA; :func:`broken_models` wrote them."""
    header = json.dumps(
        {"a.lora_up.weight": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}
    ).encode()
    (folder / "files" / "odd.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + b"\0" * 4
    )
    found = {path.name: str(path) for path in sorted((folder / "files").iterdir())}
    return found | {
        "passwd": "/etc/passwd",
        "10,000": "y" * 10_000,
        "folder": str(folder / "empty"),
    }


KEYS = ("", "Bearer", "Bearer wrong", "Basic QTpC", "Bearer " + "x" * 5000, "Token x")
CLIMBING = ("/v1/jobs/..%2f..%2fetc%2fpasswd", "/v1/jobs/%00", "/v1/jobs/" + "a" * 5000, "/v1/jobs/x'%20OR%20'1'='1",
            "/v1/jobs/x/images/99999999999999999999", "/v1/images/files/..%2f..%2fjobs.sqlite3", "/.env", "/web/..%2fapp.py",
            "/v2/models/..%2fplate", "/v1/jobs?after=%00", "/hf/..%2fx", "/v1/models/..%2f..%2fx")  # fmt: skip


def exchanges() -> Iterator[Case]:
    """Keys, origins and paths that nobody may use."""
    for key in KEYS:
        for path in (GEN, OPENAI, A1111, TS, HF):
            status = 400 if path == TS else 401  # as TorchServe answers a wrong token
            headers = {**JSON, "authorization": key}
            yield Case(f"{path} key {key[:20]!r}", path, b"{}", status, headers=headers)
    for name, headers in {
        "cross-site": {"sec-fetch-site": "cross-site"}, "a foreign origin": {"origin": "https://evil.example"},
        "no origin": {"origin": "null"}, "a foreign host": {"host": "evil.example"},
    }.items():  # fmt: skip
        for path in (GEN, TS, A1111, HF, OPENAI):
            yield Case(
                f"{path} of {name}", path, b'{"prompt": "x"}', 403, headers={**JSON, **headers}
            )
    for path in CLIMBING:
        yield Case(f"GET {path}", path, b"", 404, headers={}, method="GET")
    for query in ("limit=-1", "limit=x", "limit=99999999999999999999", "status=queued'--"):
        yield Case(
            f"GET jobs {query}", f"/v1/jobs?{query}", b"", 422, query.partition("=")[0], {}, "GET"
        )
    for path in (GEN, JOBS, PLAN, OPENAI, A1111):
        yield Case(f"PATCH {path}", path, b"", 405, headers={}, method="PATCH")
    for url, status in {
        "http://127.0.0.1:1/x.mar": 400, "s3://b/x.mar": 404, "../x.mar": 404, "missing.mar": 404,
        "x" * 5000: 404, "/etc/passwd": 403, "%00": 404, "": 404,
    }.items():  # fmt: skip
        path = f"/models?url={url}"
        yield Case(f"register {url[:30]}", path, b"", status, headers={}, port="management")


def table() -> list[Case]:
    """Return every case that needs no files at the server; :func:`names` has the others."""
    made = [*fields(), *parts(), *bodies(), *pictures(), *exchanges()]
    for name, data in RECIPES.items():
        status = 422 if name.startswith("ours") else 200  # what others wrote is shown as it is
        headers = {"content-type": "image/png"}
        made.append(Case(f"{INSPECT} {name}", INSPECT, data, status, headers=headers))
        body = json.dumps({"image": base64.b64encode(data).decode()}).encode()
        made.append(Case(f"{PNG_INFO} {name}", PNG_INFO, body, status))
    return made
