// Model, size, seed: what every request has.
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";

import type { Fields, Model } from "../api";
import { closed, show } from "../dialogs";
import { Fault, faulty, NumberInput } from "../fields";
import { Icon } from "../icons";
import { Picture, small } from "../image";
import { pictures, shownImage } from "../jobs";
import { DEFAULT_MODEL, limits, model, models, request, set, wrongField } from "../state";
import { nameOf, words } from "../words";
import { isShown } from "./abilities";

const picking = signal(false);

/** Take a model for the form; what it cannot do stays in the form, as a chip that says so. */
export function choose(name: string): void {
  set("model", name === DEFAULT_MODEL ? undefined : name);
}

export function ModelPicker() {
  const chosen = (request.value.model as string | undefined) ?? DEFAULT_MODEL;
  const names = models.value.map((m) => m.name);
  const about = model.value;
  return (
    <div class={`model-now ${wrongField.value === "model" ? "wrong" : ""}`}>
      <button type="button" class="bare" id="models" aria-label={words.form.browse} title={words.form.browse} onClick={() => show(picking, "model-picker")}>
        <Sample about={about} name={chosen} />
      </button>
      <div class="field">
        <label for="model">{words.form.model}</label>
        <select id="model" value={chosen} {...faulty("model")} onChange={(e) => choose(e.currentTarget.value)}>
          {(names.includes(chosen) ? names : [chosen, ...names]).map((name) => <option value={name}>{name}</option>)}
        </select>
        {about ? <p class="hint" title={about.description}>{factsOf(about).join(" · ")}</p> : null}
        <Fault names={["model"]} />
      </div>
      {about?.limits?.length ? <p class="hint limits">{words.form.limits}: {about.limits.join("; ")}.</p> : null}
      {picking.value ? <Models /> : null}
    </div>
  );
}

/** The newest picture that a model made here. */
export function sampleOf(name: string): string | undefined {
  return pictures.value.find((p) => (p.job.request.model ?? DEFAULT_MODEL) === name && p.image.format !== "mp4")?.image.url;
}

/** What the model drew last, here; else the picture that it comes with; else its letter. */
export function Sample({ about, name }: { about: Model | undefined; name: string }) {
  const made = sampleOf(name);
  if (made) return <Picture path={small(made)} alt="" lazy class="sample" />;
  if (about?.builtin) return <img class="sample" src={`/web/model-${name}.webp`} alt="" width={88} height={88} loading="lazy" />;
  return <span class="blank sample" aria-hidden="true">{name.slice(0, 1).toUpperCase()}</span>;
}

/** What a model is, in a few words. */
export function factsOf(about: Model): string[] {
  const own = about.defaults;
  return [
    about.family, own.width ? `${String(own.width)} × ${String(own.height)}` : "",
    Number(own.num_inference_steps) ? words.operate.steps(Number(own.num_inference_steps)) : "",
    about.token_limit ? words.operate.tokens(about.token_limit) : "", about.licence ?? "",
  ].filter(Boolean);
}

function Models() {
  useEffect(() => show(picking, "model-picker"), []);
  const close = () => { picking.value = false; };
  const take = (name: string) => { choose(name); close(); };
  return (
    <dialog id="model-picker" class="picker" aria-label={words.form.model} onClose={closed(picking)}>
      <header class="row">
        <h2 class="grow">{words.form.model}</h2>
        <button type="button" class="icon" aria-label={words.detail.close} onClick={close}>×</button>
      </header>
      <ul class="models">{models.value.map((m) => <li key={m.name}><ModelCard about={m} onTake={() => take(m.name)} /></li>)}</ul>
    </dialog>
  );
}

export function ModelCard({ about, onTake }: { about: Model; onTake: () => void }) {
  return (
    <button type="button" class="model" data-model={about.name} aria-current={model.value?.name === about.name ? "true" : undefined} onClick={onTake}>
      <Sample about={about} name={about.name} />
      <span class="about">
        <b>{about.name} <small>{about.version}</small></b>
        <span>{about.description ?? ""}</span>
        <small>{factsOf(about).join(" · ")}</small>
        <small class="ready"><i class={`dot ${about.ready ? "ready" : ""}`} aria-hidden="true" />{about.ready ? words.operate.loaded : words.operate.unloaded}</small>
      </span>
    </button>
  );
}

export const RATIOS: [string, number][] = [["1:1", 1], ["4:3", 4 / 3], ["3:4", 3 / 4], ["16:9", 16 / 9], ["9:16", 9 / 16]];
const locked = signal(localStorage.getItem("mezzotint-lock") === "yes");

export function SizeFields() {
  const about = model.value;
  const base = Number(about?.defaults.width ?? 512);
  const tall = Number(about?.defaults.height ?? base);
  const multiple = about?.size_multiple ?? 8;
  const width = request.value.width as number | undefined;
  const height = request.value.height as number | undefined;
  if (about?.fixed_size && width === undefined && height === undefined) return null;
  const fit = (value: number) => Math.min(about?.max_size_px ?? Infinity, Math.max(about?.min_size_px ?? 8, Math.round(value / multiple) * multiple));
  const preset = (ratio: number) => {
    const area = (width ?? base) * (height ?? tall);
    request.value = { ...request.value, width: fit(Math.sqrt(area * ratio)), height: fit(Math.sqrt(area / ratio)) };
  };
  const grow = (factor: number) => {
    request.value = { ...request.value, width: fit((width ?? base) * factor), height: fit((height ?? tall) * factor) };
  };
  const change = (side: "width" | "height", value: Fields[string] | undefined) => {
    const [w, h] = [width ?? base, height ?? tall];
    if (!locked.value || typeof value !== "number" || !w || !h) {
      set(side, value);
      return;
    }
    const other = side === "width" ? fit((value * h) / w) : fit((value * w) / h);
    request.value = { ...request.value, [side]: value, [side === "width" ? "height" : "width"]: other };
  };
  const bounds = { type: "integer", minimum: about?.min_size_px, maximum: about?.max_size_px };
  const ratio = (width ?? base) / (height ?? tall);
  return (
    <fieldset>
      <legend>{words.form.size}</legend>
      <div class="row">
        {(["width", "height"] as const).map((side) => (
          <div class={`field ${wrongField.value === side ? "wrong" : ""}`} key={side}>
            <label for={side}>{nameOf(side)}</label>
            <NumberInput id={side} schema={bounds} step={multiple} value={request.value[side]} placeholder={String(about?.defaults[side] ?? "")} onChange={(v) => change(side, v)} />
          </div>
        ))}
        <button
          type="button" class="icon" id="lock" aria-pressed={locked.value} aria-label={words.form.lock} title={words.form.lock}
          onClick={() => { locked.value = !locked.value; localStorage.setItem("mezzotint-lock", locked.value ? "yes" : "no"); }}
        ><Icon name={locked.value ? "lock" : "unlock"} /></button>
        <button
          type="button" class="icon" aria-label={words.form.swap} title={words.form.swap}
          onClick={() => { request.value = { ...request.value, width: height ?? tall, height: width ?? base }; }}
        >⇄</button>
      </div>
      <Fault names={["width", "height"]} />
      <div class="row presets">
        {RATIOS.map(([name, wanted]) => (
          <button type="button" key={name} title={words.form.ratios[name]} aria-pressed={Math.abs(ratio / wanted - 1) < 0.06} onClick={() => preset(wanted)}>
            <i class="shape" data-ratio={name} aria-hidden="true" /> {name}
          </button>
        ))}
        <button type="button" title={words.form.smaller} aria-label={words.form.smaller} onClick={() => grow(0.75)}>−</button>
        <button type="button" title={words.form.larger} aria-label={words.form.larger} onClick={() => grow(4 / 3)}>+</button>
      </div>
    </fieldset>
  );
}

export function drawSeed(): string {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2)) as unknown as [number, number];
  return String((BigInt(high & 0x1fffff) << 32n) | BigInt(low));
}

export function SeedField() {
  const seed = request.value.seed;
  const { strength, ...others } = (request.value.variation ?? {}) as Fields;
  const amount = Number(strength ?? 0);
  // at 0 its other fields stay: the size of the noise holds without another seed
  const vary = (value: number) => {
    const next = value > 0 ? { ...others, strength: value } : others;
    set("variation", Object.keys(next).length ? next : undefined);
  };
  return (
    <>
      <div class="row">
        <div class={`field grow ${wrongField.value === "seed" ? "wrong" : ""}`}>
          <label for="seed">{words.form.seed}</label>
          <input
            id="seed" inputMode="numeric" placeholder={words.form.seedDrawn} value={seed === undefined || seed === null ? "" : String(seed)}
            onInput={(e) => set("seed", e.currentTarget.value.trim() || undefined)} {...faulty("seed")}
          />
        </div>
        <button type="button" class="icon" id="dice" title={words.form.dice} aria-label={words.form.dice} onClick={() => set("seed", drawSeed())}>⚄</button>
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
      <Fault names={["seed", "num_images"]} />
      {isShown("variation") && seed !== undefined ? (
        <div class="field vary">
          <div class="label"><label for="variation">{words.form.variationStrength}</label><output>{amount.toFixed(2)}</output></div>
          <input id="variation" type="range" min={0} max={1} step={0.01} value={amount} title={words.form.variation} onInput={(e) => vary(Number(e.currentTarget.value))} />
        </div>
      ) : null}
    </>
  );
}
