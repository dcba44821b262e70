// A request written for other places: curl, Python, the command line, plain JSON.
import type { Fields, Json } from "./api";

/** JSON with seeds as numbers again, whatever their size. */
export function json(value: Json, indent = 2): string {
  return JSON.stringify(value, null, indent).replace(/"([a-z_]*seed)":(\s*)"(\d+)"/g, '"$1":$2$3');
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function python(value: Json, indent = 0): string {
  const pad = " ".repeat(indent + 4);
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) {
    return value.every((v) => v === null || typeof v !== "object")
      ? `[${value.map((v) => python(v)).join(", ")}]`
      : `[\n${value.map((v) => pad + python(v, indent + 4)).join(",\n")},\n${" ".repeat(indent)}]`;
  }
  if (typeof value === "object") {
    const lines = Object.entries(value).map(([k, v]) => `${pad}${JSON.stringify(k)}: ${/seed$/.test(k) && typeof v === "string" ? v : python(v, indent + 4)}`);
    return `{\n${lines.join(",\n")},\n${" ".repeat(indent)}}`;
  }
  return typeof value === "string" ? pythonText(value) : String(value);
}

// Python reads every escape that JSON writes, pairs of surrogates aside, which are left as they are.
function pythonText(text: string): string {
  return JSON.stringify(text);
}

const FLAGS = new Set([
  "model", "negative_prompt", "width", "height", "num_images", "seed", "num_inference_steps", "guidance_scale", "scheduler", "sigma_schedule",
]);

export function asCurl(request: Fields): string {
  return [
    `curl ${location.origin}/v1/generations`,
    "  -H 'Content-Type: application/json'",
    "  -H 'Accept: image/png'",
    `  -d ${quoted(json(request, 0))}`,
    "  -o picture.png",
  ].join(" \\\n");
}

export function asPython(request: Fields): string {
  return `import mezzotint as mz

request = mz.GenerationRequest.from_dict(${python(request)})
result = mz.generate(request)
result.images[0].save("picture.png")
`;
}

/** Flags where they say all there is; else the whole request through a file. */
export function asCommand(request: Fields): string {
  const { prompt, ...rest } = request;
  const simple = Object.entries(rest).every(([name, value]) => FLAGS.has(name) && typeof value !== "object");
  if (!simple) return `cat > request.json <<'END'\n${json(request)}\nEND\nmezzotint generate --request request.json`;
  const flags = Object.entries(rest).map(([name, value]) => `--${name.replaceAll("_", "-")} ${typeof value === "string" && !/^[\w.]+$/.test(value) ? quoted(value) : String(value)}`);
  return ["mezzotint generate", ...(prompt === undefined ? [] : [quoted(String(prompt))]), ...flags].join(" ");
}

const OPENAI = new Set(["prompt", "model", "num_images"]);

/** OpenAI's own client: what it has no name for goes along as extra_body. */
export function asOpenAI(request: Fields): string {
  const { width, height } = request;
  const hasSize = typeof width === "number" && typeof height === "number";
  const rest = Object.fromEntries(Object.entries(request).filter(([name]) => !OPENAI.has(name) && !(hasSize && (name === "width" || name === "height"))));
  const lines = [
    `    model=${python(request.model ?? "plate")},`,
    `    prompt=${python(request.prompt ?? "")},`,
    ...(request.num_images ? [`    n=${String(request.num_images)},`] : []),
    ...(hasSize ? [`    size="${width}x${height}",`] : []),
    '    response_format="b64_json",',
    ...(Object.keys(rest).length ? [`    extra_body=${python(rest, 4)},`] : []),
  ];
  return `import base64

from openai import OpenAI

client = OpenAI(base_url="${location.origin}/v1", api_key="YOUR-KEY")
result = client.images.generate(
${lines.join("\n")}
)
with open("picture.png", "wb") as file:
    file.write(base64.b64decode(result.data[0].b64_json))
`;
}

export const COPIES: Record<string, (request: Fields) => string> = {
  curl: asCurl, python: asPython, openai: asOpenAI, cli: asCommand, json: (request) => json(request),
};
