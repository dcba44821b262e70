// The form: the request's common fields, its techniques, and what it will cost.
import { useComputed } from "@preact/signals";
import type { JSX } from "preact";

import type { Fields, Json } from "./api";
import { isOffered, isShown } from "./create/abilities";
import { HAS_LIST, StrengthList } from "./create/adapters";
import { ModelPicker, SeedField, SizeFields } from "./create/basics";
import { ControlViews } from "./create/controls";
import { Prompt } from "./create/prompt";
import { Sampling } from "./create/sampling";
import { Wild } from "./create/wild";
import { Fault, Field } from "./fields";
import { cancelAll, generate, open } from "./jobs";
import { MaskBrush } from "./mask";
import { OutpaintFrame } from "./outpaint";
import { placed, RegionPanel } from "./regions";
import { blank, brief, hintOf, kindOf } from "./schema";
import {
  before, connection, plan, planError, planning, replace, request, schema, set, wrongField,
} from "./state";
import { LAST, TECHNIQUES } from "./techniques";
import { duration, size } from "./text";
import { nameOf, words } from "./words";

const BASE = new Set([
  "model", "prompt", "negative_prompt", "width", "height", "num_images", "seed", "scheduler", "sigma_schedule",
  "num_inference_steps", "guidance_scale",
]);

export function Create() {
  return (
    <form
      class="create" aria-label={words.form.label} noValidate
      onSubmit={(e) => { e.preventDefault(); void generate(); }}
    >
      <ModelPicker />
      <Prompt name="prompt" label={words.form.prompt} rows={3} />
      <Prompt name="negative_prompt" label={words.form.negative} rows={1} />
      {isShown("prompt") ? <Wild /> : null}
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
  if (!found) return <p class="plan" id="plan">{planning.value ? words.plan.wait : ""}</p>;
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
    <div class={`plan ${planning.value ? "stale" : ""}`} id="plan" aria-label={words.plan.label} role="status">
      <p>{parts.filter(Boolean).join(" · ")}</p>
      {found.warnings.map((w) => <p class="warn">{w}</p>)}
    </div>
  );
}

function Techniques() {
  const names = useComputed(() => Object.keys(schema.value.properties ?? {}).filter((n) => !BASE.has(n)));
  const shown = names.value.filter((n) => n in request.value || isOffered(n));
  return (
    <section class="techniques" aria-label={words.form.techniques}>
      {Object.entries(words.form.groups).map(([group, title]) => {
        const own = shown.filter((name) => (TECHNIQUES[name]?.group ?? LAST) === group);
        return own.length ? (
          <div key={group} class="group" role="group" aria-label={title}>
            <h2>{title}</h2>
            {own.map((name) => <Technique key={name} name={name} />)}
          </div>
        ) : null;
      })}
    </section>
  );
}

/** What stands above the fields of a technique: where it is drawn, painted or looked at. */
const PANELS: Record<string, () => JSX.Element | null> = { regions: RegionPanel, mask: MaskBrush, controls: ControlViews, outpaint: OutpaintFrame };

function Technique({ name }: { name: string }) {
  const own = schema.value.properties![name]!;
  const value = request.value[name];
  const isSet = value !== undefined;
  const kind = kindOf(own);
  const complex = kind === "object" || kind === "either";
  const Panel = PANELS[name];
  const change = (v: Json | undefined) => {
    const next = name === "regions" ? placed(v, request.value.regions) : v;
    set(name, Array.isArray(next) && !next.length ? undefined : next);
  };
  return (
    <details id={`technique-${name}`} class={`technique ${isSet ? "set" : ""} ${wrongField.value === name ? "wrong" : ""}`}>
      <summary>
        {nameOf(name)} {isSet && brief(value) ? <small>{brief(value)}</small> : null}
      </summary>
      <p class="hint">{hintOf(own)}</p>
      <Fault names={[name]} />
      {Panel ? <Panel /> : null}
      {complex && !isSet ? (
        Panel ? null : <button type="button" onClick={() => set(name, blank(own, name))}>{words.form.set}</button>
      ) : HAS_LIST.has(name) ? <StrengthList field={name} /> : <Field name={name} path={name} schema={own} value={value} onChange={change} />}
      {isSet && kind !== "picture" ? <button type="button" class="quiet" onClick={() => set(name, undefined)}>{words.form.unset}</button> : null}
    </details>
  );
}

