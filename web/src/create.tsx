// The form: the request's common fields, its techniques, and what it will cost.
import { useComputed } from "@preact/signals";
import { useId } from "preact/hooks";

import type { Fields, Json } from "./api";
import { Field, NumberInput } from "./fields";
import { cancelAll, generate, open, shownImage } from "./jobs";
import { MaskBrush } from "./mask";
import { RegionBoxes } from "./regions";
import { blank, brief, kindOf } from "./schema";
import {
  before, capabilities, choices, connection, DEFAULT_MODEL, limits, model, models, plan, planError, prompts, replace,
  request, schema, set, wrongField,
} from "./state";
import { duration, size } from "./text";
import { nameOf, words } from "./words";

const BASE = new Set([
  "model", "prompt", "negative_prompt", "width", "height", "num_images", "seed", "scheduler", "sigma_schedule",
  "num_inference_steps", "guidance_scale",
]);
const HIDDEN_FOR_GAN = new Set(["scheduler", "sigma_schedule", "num_inference_steps", "guidance_scale"]);
const TEXTS = new Set(["prompt", "negative_prompt"]);
const NEEDS_LIST: Record<string, string> = {
  loras: "loras", controls: "controls", image_prompts: "image_prompts", embeddings: "embeddings", gates: "gates",
};
const FOR_GAN = new Set(["latent", "walk", "gates", "upscale", "output", "reproducibility", "priority", "deadline_s"]);

function isShown(name: string): boolean {
  const about = model.value;
  if (!about) return true;
  if (TEXTS.has(name)) return about.takes_prompt && (name !== "negative_prompt" || about.takes_negative_prompt !== false);
  return about.family !== "gan" || !HIDDEN_FOR_GAN.has(name);
}

/** Techniques that the chosen model and this server can do. */
function isOffered(name: string): boolean {
  const about = model.value;
  const list = NEEDS_LIST[name];
  if (list && !((capabilities.value?.[list] as string[] | undefined) ?? []).length) return false;
  if (!about) return true;
  if (about.family === "gan") return FOR_GAN.has(name);
  if (name === "latent") return (about.class_names ?? []).length > 0;
  if (["image", "mask", "strength", "inpaint", "outpaint"].includes(name)) return about.takes_image !== false;
  if (name === "ensemble") return models.value.length > 1;
  return true;
}

export function Create() {
  return (
    <form
      class="create" aria-label={words.form.label} noValidate
      onSubmit={(e) => { e.preventDefault(); void generate(); }}
    >
      <ModelPicker />
      <Prompt name="prompt" label={words.form.prompt} rows={3} />
      <Prompt name="negative_prompt" label={words.form.negative} rows={1} />
      <Chips />
      <div class="submit">
        <button class="primary" id="make" type="submit" disabled={connection.value !== "ready"}>
          {open.value.length ? words.form.generating : words.form.generate}
        </button>
        {open.value.length > 1 ? <button type="button" onClick={() => void cancelAll()}>{words.queue.cancelAll}</button> : null}
        <button type="button" class="quiet" onClick={() => replace({})}>{words.form.clear}</button>
        {before.value ? (
          <button type="button" class="quiet" onClick={() => { const kept = before.value!; before.value = null; request.value = kept; }}>
            {words.form.undo}
          </button>
        ) : null}
      </div>
      <PlanLine />
      <SizeFields />
      <SeedField />
      <Sampling />
      <Techniques />
    </form>
  );
}

function ModelPicker() {
  const id = useId();
  const chosen = (request.value.model as string | undefined) ?? DEFAULT_MODEL;
  const names = models.value.map((m) => m.name);
  const about = model.value;
  return (
    <div class="field">
      <label for={id}>{words.form.model}</label>
      <select id={id} value={chosen} onChange={(e) => set("model", e.currentTarget.value === DEFAULT_MODEL ? undefined : e.currentTarget.value)}>
        {(names.includes(chosen) ? names : [chosen, ...names]).map((name) => <option value={name}>{name}</option>)}
      </select>
      {about?.description ? <p class="hint">{about.description}</p> : null}
      {about?.limits?.length ? <p class="hint">{words.form.limits}: {about.limits.join("; ")}.</p> : null}
    </div>
  );
}

function Prompt({ name, label, rows }: { name: string; label: string; rows: number }) {
  const id = name;
  if (!isShown(name)) return null;
  const text = String(request.value[name] ?? "");
  return (
    <div class={`field ${wrongField.value === name ? "wrong" : ""}`}>
      <label for={id}>{label}</label>
      <textarea
        id={id} rows={rows} value={text} title={words.form.weight}
        onInput={(e) => set(name, e.currentTarget.value || undefined)}
        onKeyDown={(e) => weigh(e, name)}
      />
      {name === "prompt" && prompts.value.length ? (
        <select
          class="earlier" aria-label={words.form.history} value=""
          onChange={(e) => { if (e.currentTarget.value) set("prompt", e.currentTarget.value); e.currentTarget.value = ""; }}
        >
          <option value="">{words.form.history}</option>
          {prompts.value.map((p) => <option value={p}>{p.length > 80 ? `${p.slice(0, 79)}…` : p}</option>)}
        </select>
      ) : null}
    </div>
  );
}

/** Ctrl+Up and Ctrl+Down give the selected words a weight, as "(words:1.1)". */
function weigh(event: KeyboardEvent, name: string): void {
  if (!(event.ctrlKey || event.metaKey) || !["ArrowUp", "ArrowDown"].includes(event.key)) return;
  const area = event.currentTarget as HTMLTextAreaElement;
  const { selectionStart: from, selectionEnd: to, value } = area;
  if (from === to) return;
  event.preventDefault();
  const by = event.key === "ArrowUp" ? 0.1 : -0.1;
  const picked = value.slice(from, to);
  const weighted = /^\((.*):(\d+(?:\.\d+)?)\)$/s.exec(picked);
  const weight = Math.round(((weighted ? Number(weighted[2]) : 1) + by) * 10) / 10;
  const inner = weighted ? weighted[1]! : picked;
  const next = weight === 1 ? inner : `(${inner}:${Math.max(0, weight)})`;
  request.value = {
    ...request.value,
    [name]: value.slice(0, from) + next + value.slice(to),
    prompt_dialect: request.value.prompt_dialect ?? "a1111",
  };
  requestAnimationFrame(() => area.setSelectionRange(from, from + next.length));
}

function Chips() {
  const shown = Object.entries(request.value).filter(([name, value]) => !(BASE.has(name) && isShown(name) && isPlain(name, value)));
  if (!shown.length) return null;
  return (
    <div class="chips" role="group" aria-label={words.form.inUse}>
      {shown.map(([name, value]) => (
        <span class="chip" key={name} data-field={name}>
          <button type="button" title={words.form.open(nameOf(name))} onClick={() => reveal(name)}>
            {nameOf(name)}{brief(value) ? `: ${brief(value)}` : ""}
          </button>
          <button type="button" class="x" aria-label={words.form.remove(nameOf(name))} onClick={() => set(name, undefined)}>×</button>
        </span>
      ))}
    </div>
  );
}

/** Whether the common widget shows all there is of a value. */
function isPlain(name: string, value: Json): boolean {
  return name !== "guidance_scale" || typeof value === "number";
}

function reveal(name: string): void {
  const panel = document.getElementById(`technique-${name}`) as HTMLDetailsElement | null;
  if (!panel) return;
  panel.open = true;
  panel.scrollIntoView({ block: "nearest" });
  panel.querySelector<HTMLElement>("summary")?.focus();
}

function PlanLine() {
  const wrong = planError.value;
  if (wrong) return <p class="plan bad" role="alert" id="plan">{wrong.message}</p>;
  const found = plan.value;
  if (!found) return <p class="plan" id="plan">{request.value.prompt ? words.plan.wait : ""}</p>;
  const cost = found.cost ?? {};
  const side = found.plan.size as [number, number] | undefined;
  const width = side?.[0] ?? (found.plan.width as number | undefined);
  const height = side?.[1] ?? (found.plan.height as number | undefined);
  const walk = request.value.walk as Fields | undefined;
  const count = Number(walk?.frames ?? (walk ? 8 : (request.value.num_images ?? 1)));
  const parts = [
    words.plan.pictures(count),
    width && height ? words.plan.size(width, height) : "",
    typeof cost.seconds === "number" ? words.plan.seconds(duration(cost.seconds)) : "",
    typeof cost.model_calls === "number" ? words.plan.calls(cost.model_calls) : "",
    typeof cost.bytes === "number" && cost.bytes > 0 ? words.plan.memory(size(cost.bytes)) : "",
    found.cache === "it is kept" ? words.plan.kept : "",
  ];
  return (
    <div class="plan" id="plan" aria-label={words.plan.label} role="status">
      <p>{parts.filter(Boolean).join(" · ")}</p>
      {found.warnings.map((w) => <p class="warn">{w}</p>)}
    </div>
  );
}

const RATIOS: [string, number][] = [["1:1", 1], ["4:3", 4 / 3], ["3:4", 3 / 4], ["16:9", 16 / 9], ["9:16", 9 / 16]];

function SizeFields() {
  const about = model.value;
  const base = Number(about?.defaults.width ?? 512);
  const tall = Number(about?.defaults.height ?? base);
  const multiple = about?.size_multiple ?? 8;
  const width = request.value.width as number | undefined;
  const height = request.value.height as number | undefined;
  if (about?.fixed_size && width === undefined && height === undefined) return null;
  const fit = (value: number) => Math.max(about?.min_size_px ?? 8, Math.round(value / multiple) * multiple);
  const preset = (ratio: number) => {
    const area = base * tall;
    request.value = { ...request.value, width: fit(Math.sqrt(area * ratio)), height: fit(Math.sqrt(area / ratio)) };
  };
  const bounds = { type: "integer", minimum: about?.min_size_px, maximum: about?.max_size_px };
  return (
    <fieldset class={wrongField.value === "width" || wrongField.value === "height" ? "wrong" : ""}>
      <legend>{words.form.size}</legend>
      <div class="row">
        {(["width", "height"] as const).map((side) => (
          <div class="field" key={side}>
            <label for={side}>{nameOf(side)}</label>
            <NumberInput id={side} schema={bounds} value={request.value[side]} placeholder={String(about?.defaults[side] ?? "")} onChange={(v) => set(side, v)} />
          </div>
        ))}
        <button
          type="button" class="icon" aria-label={words.form.swap} title={words.form.swap}
          onClick={() => { request.value = { ...request.value, width: height ?? tall, height: width ?? base }; }}
        >⇄</button>
      </div>
      <div class="row presets">
        {RATIOS.map(([name, ratio]) => (
          <button type="button" key={name} title={words.form.ratios[name]} onClick={() => preset(ratio)}>
            <i class="shape" data-ratio={name} aria-hidden="true" /> {name}
          </button>
        ))}
      </div>
    </fieldset>
  );
}

function SeedField() {
  const seed = request.value.seed;
  const draw = () => {
    const [high, low] = crypto.getRandomValues(new Uint32Array(2)) as unknown as [number, number];
    set("seed", String((BigInt(high & 0x1fffff) << 32n) | BigInt(low)));
  };
  return (
    <div class="row">
      <div class={`field grow ${wrongField.value === "seed" ? "wrong" : ""}`}>
        <label for="seed">{words.form.seed}</label>
        <input
          id="seed" inputMode="numeric" placeholder={words.form.seedDrawn} value={seed === undefined || seed === null ? "" : String(seed)}
          onInput={(e) => set("seed", e.currentTarget.value.trim() || undefined)}
        />
      </div>
      <button type="button" class="icon" id="dice" title={words.form.dice} aria-label={words.form.dice} onClick={draw}>⚄</button>
      <button type="button" class="icon" title={words.form.anew} aria-label={words.form.anew} disabled={seed === undefined} onClick={() => set("seed", undefined)}>∅</button>
      <button
        type="button" class="icon" id="reuse" title={words.form.reuse} aria-label={words.form.reuse} disabled={!shownImage.value}
        onClick={() => shownImage.value && set("seed", String(shownImage.value.seed))}
      >↺</button>
      <div class="field narrow">
        <label for="num_images">{nameOf("num_images")}</label>
        <NumberInput
          id="num_images" schema={{ type: "integer", minimum: 1, maximum: limits.value.num_images ?? 64 }} value={request.value.num_images}
          placeholder="1" onChange={(v) => set("num_images", v)}
        />
      </div>
    </div>
  );
}

function Sampling() {
  const about = model.value;
  if (about?.family === "gan") return null;
  const own = (name: string) => about?.defaults[name];
  const guidance = request.value.guidance_scale;
  const properties = schema.value.properties ?? {};
  const curve = guidance !== null && typeof guidance === "object";
  return (
    <fieldset>
      <legend>{words.form.advanced}</legend>
      <div class="row">
        <div class={`field ${wrongField.value === "num_inference_steps" ? "wrong" : ""}`}>
          <label for="num_inference_steps">{nameOf("num_inference_steps")}</label>
          <NumberInput
            id="num_inference_steps" schema={{ type: "integer", minimum: 1, maximum: limits.value.num_inference_steps }}
            value={request.value.num_inference_steps} placeholder={String(own("num_inference_steps") ?? "")} onChange={(v) => set("num_inference_steps", v)}
          />
        </div>
        {curve ? null : (
          <div class={`field ${wrongField.value === "guidance_scale" ? "wrong" : ""}`}>
            <label for="guidance_scale">{nameOf("guidance_scale")}</label>
            <NumberInput
              id="guidance_scale" schema={{ type: "number", minimum: 0, maximum: 1000 }} value={guidance}
              placeholder={String(own("guidance_scale") ?? "")} onChange={(v) => set("guidance_scale", v)}
            />
          </div>
        )}
      </div>
      <div class="row">
        {(["scheduler", "sigma_schedule"] as const).map((name) => (
          <div class={`field ${wrongField.value === name ? "wrong" : ""}`} key={name}>
            <label for={name}>{nameOf(name)}</label>
            <Choice id={name} name={name} own={own(name)} />
          </div>
        ))}
      </div>
      {properties.guidance_scale ? (
        <details id="technique-guidance_scale" open={curve}>
          <summary>{words.form.curve}</summary>
          {curve ? (
            <>
              <Field name="guidance_scale" path="guidance_scale" schema={properties.guidance_scale} value={guidance} onChange={(v) => set("guidance_scale", v)} />
              <button type="button" class="quiet" onClick={() => set("guidance_scale", (guidance as Fields).start ?? undefined)}>{words.form.unset}</button>
            </>
          ) : (
            <button
              type="button"
              onClick={() => set("guidance_scale", { schedule: "linear", start: Number(guidance ?? own("guidance_scale") ?? 4), end: 1 })}
            >{words.form.set}</button>
          )}
        </details>
      ) : null}
    </fieldset>
  );
}

function Choice({ id, name, own }: { id: string; name: string; own: Json | undefined }) {
  const known = choices(name) ?? [];
  const value = String(request.value[name] ?? "");
  const all = value && !known.includes(value) ? [value, ...known] : known;
  const plain = all.filter((n) => !/^[A-Z]/.test(n));
  const classes = all.filter((n) => /^[A-Z]/.test(n));
  return (
    <select id={id} value={value} onChange={(e) => set(name, e.currentTarget.value || undefined)}>
      <option value="">{own ? words.form.own(own) : words.form.ownPlain}</option>
      {plain.map((n) => <option value={n}>{n}</option>)}
      {classes.length ? <optgroup label="diffusers">{classes.map((n) => <option value={n}>{n}</option>)}</optgroup> : null}
    </select>
  );
}

function Techniques() {
  const names = useComputed(() => Object.keys(schema.value.properties ?? {}).filter((n) => !BASE.has(n)));
  return (
    <section class="techniques" aria-label={words.form.techniques}>
      <h2>{words.form.techniques}</h2>
      {names.value.filter((n) => n in request.value || isOffered(n)).map((name) => <Technique key={name} name={name} />)}
    </section>
  );
}

function Technique({ name }: { name: string }) {
  const own = schema.value.properties![name]!;
  const value = request.value[name];
  const isSet = value !== undefined;
  const kind = kindOf(own);
  const complex = kind === "object" || kind === "either";
  return (
    <details id={`technique-${name}`} class={`technique ${isSet ? "set" : ""} ${wrongField.value === name ? "wrong" : ""}`}>
      <summary>
        {nameOf(name)} {isSet && brief(value) ? <small>{brief(value)}</small> : null}
      </summary>
      <p class="hint">{(own.description ?? "").replaceAll("``", "")}</p>
      {complex && !isSet ? (
        <button type="button" onClick={() => set(name, blank(own, name))}>{words.form.set}</button>
      ) : (
        <>
        {name === "regions" ? <RegionBoxes /> : name === "mask" ? <MaskBrush /> : null}
        <Field name={name} path={name} schema={own} value={value} onChange={(v) => set(name, Array.isArray(v) && !v.length ? undefined : v)} />
        </>
      )}
      {isSet && kind !== "picture" ? <button type="button" class="quiet" onClick={() => set(name, undefined)}>{words.form.unset}</button> : null}
    </details>
  );
}

