// The same request along two fields, or three: a table of pictures, or one for each value of the third.
import { computed, signal } from "@preact/signals";
import { useEffect, useId } from "preact/hooks";

import { ask, type Fields, type Job, type Json, send } from "./api";
import { openDetail } from "./detail";
import { Picture } from "./image";
import { hidden, open, recent } from "./jobs";
import { keep, recall } from "./keep";
import { choices, model, notice, request, set } from "./state";
import { nameOf, words } from "./words";

interface Axis { field: string; text: string }
type Cells = (string | null)[][];
interface Sheet { x: Axis; y: Axis; z: Axis; columns: string[]; rows: string[]; layers: string[]; cells: Cells[] } // without a third field one layer, ""

const FIELDS = [
  "num_inference_steps", "guidance_scale", "scheduler", "sigma_schedule", "seed", "model", "prompt", "negative_prompt", "strength", "width", "height",
];
const NUMBERS = new Set(["num_inference_steps", "guidance_scale", "strength", "width", "height"]);
const MOST = 100;

let isLoaded = false;
const x = signal<Axis>({ field: "num_inference_steps", text: "5, 10, 20" });
const y = signal<Axis>({ field: "guidance_scale", text: "1, 4, 8" });
const z = signal<Axis>({ field: "", text: "" });
/** Set both axes; the room draws when its button is pressed. */
export function beginSheet(columns: Axis, rows: Axis): void {
  isLoaded = true; // what was kept does not come in between
  x.value = columns;
  y.value = rows;
  z.value = { field: "", text: "" };
}

const sheet = signal<Sheet | null>(null);
const jobs = signal<Record<string, Job>>({});

/** Values of an axis: prompts a line each, the rest between commas; "1-5" counts whole numbers. */
export function values(axis: Axis): string[] {
  const between = /prompt/.test(axis.field) ? /\n/ : /[,\n]/;
  const parts = axis.text.split(between).map((t) => t.trim()).filter(Boolean);
  if (!NUMBERS.has(axis.field) && axis.field !== "seed") return parts;
  return parts.flatMap((part) => {
    const range = /^(\d{1,6})\s*-\s*(\d{1,6})$/.exec(part);
    if (!range) return [part];
    const [from, to] = [Number(range[1]), Math.min(Number(range[2]), Number(range[1]) + MOST)];
    return Array.from({ length: Math.max(0, to - from + 1) }, (_, k) => String(from + k));
  });
}

const planned = computed(() => ({ columns: values(x.value), rows: values(y.value), layers: z.value.field ? values(z.value) : [""] }));

function cell(base: Fields, chosen: [Axis, string][]): Fields {
  // What is no number goes as it was typed, so that the server says what it expects.
  const put = (field: string, text: string): Json => (NUMBERS.has(field) && Number.isFinite(Number(text)) ? Number(text) : text);
  return { ...base, ...Object.fromEntries(chosen.filter(([axis]) => axis.field).map(([axis, text]) => [axis.field, put(axis.field, text)])) };
}

async function make(): Promise<void> {
  const { columns, rows, layers } = planned.value;
  const { num_images: _, ...base } = request.value;
  if (base.seed === undefined && ![x, y, z].some((axis) => axis.value.field === "seed")) {
    base.seed = String(crypto.getRandomValues(new Uint32Array(1))[0]); // one noise for the whole table
    set("seed", base.seed);
  }
  const cells: Cells[] = layers.map(() => rows.map(() => columns.map(() => null)));
  const axes = { x: x.value, y: y.value, z: z.value }; // what is typed meanwhile is of the next sheet
  sheet.value = { ...axes, cells, columns, rows, layers };
  for (const [l, layer] of layers.entries()) {
    for (const [r, row] of rows.entries()) {
      for (const [c, column] of columns.entries()) {
        try {
          const job = await send<Job>("/v1/jobs", cell(base, [[axes.z, layer], [axes.y, row], [axes.x, column]]));
          cells[l]![r]![c] = job.id;
          sheet.value = { ...sheet.value, cells: cells.map((table) => table.map((line) => [...line])) };
        } catch (error) {
          notice("bad", `${[column, row, layer].filter(Boolean).join(" / ")}: ${(error as Error).message}`);
          if (c === 0 && r === 0 && l === 0) return;
        }
      }
    }
  }
  void keep("sheet", sheet.value);
}

/** Look at the jobs of the table until all have ended. */
async function look(): Promise<void> {
  const ids = (sheet.value?.cells ?? []).flat(2).filter((id): id is string => id !== null);
  const known = new Map([...recent.value, ...open.value].map((j) => [j.id, j]));
  const next = { ...jobs.value };
  for (const id of ids) {
    if (next[id]?.finished) continue;
    const found = known.get(id) ?? (await ask<Job>(`/v1/jobs/${id}`).catch(() => undefined));
    if (found) next[id] = { ...found, request: found.request ?? {} };
  }
  jobs.value = next;
}

export function SheetRoom() {
  useEffect(() => {
    if (!isLoaded) {
      isLoaded = true;
      void recall<Sheet>("sheet").then((kept) => {
        if (!kept?.layers || sheet.value) return; // an older page kept another form
        x.value = kept.x;
        y.value = kept.y;
        z.value = kept.z;
        sheet.value = kept;
      });
    }
    const timer = setInterval(() => void look(), 1000);
    return () => clearInterval(timer);
  }, []);
  const { columns, rows, layers } = planned.value;
  const count = columns.length * rows.length * layers.length;
  const fields = [x, y, z].map((axis) => axis.value.field).filter(Boolean);
  return (
    <section class="sheet" aria-label={words.sheet.label}>
      <form class="axes" onSubmit={(e) => { e.preventDefault(); void make(); }}>
        <p class="hint">{words.sheet.how}</p>
        <p class="base">{String(request.value.prompt ?? "") || model.value?.name}</p>
        <AxisFields label={words.sheet.x} axis={x.value} onChange={(axis) => { x.value = axis; }} />
        <AxisFields label={words.sheet.y} axis={y.value} onChange={(axis) => { y.value = axis; }} />
        <AxisFields label={words.sheet.z} axis={z.value} onChange={(axis) => { z.value = axis; }} mayLack />
        <button class="primary" id="make-sheet" type="submit" disabled={count === 0 || count > MOST || new Set(fields).size < fields.length}>
          {count > MOST ? words.sheet.tooMany(count, MOST) : words.sheet.make(count)}
        </button>
      </form>
      {sheet.value ? <Tables made={sheet.value} />
        : count && count <= MOST ? <Tables made={{ x: x.value, y: y.value, z: z.value, columns, rows, layers, cells: [] }} /> : null}
    </section>
  );
}

function AxisFields({ label, axis, onChange, mayLack }: { label: string; axis: Axis; onChange: (axis: Axis) => void; mayLack?: boolean }) {
  const id = useId();
  const known = choices(axis.field);
  return (
    <fieldset>
      <legend>{label}</legend>
      <div class="row">
        <div class="field">
          <label for={`${id}-field`}>{words.sheet.field}</label>
          <select id={`${id}-field`} value={axis.field} onChange={(e) => onChange({ field: e.currentTarget.value, text: "" })}>
            {mayLack ? <option value="">{words.form.none}</option> : null}
            {FIELDS.map((name) => <option value={name}>{nameOf(name)}</option>)}
          </select>
        </div>
        {axis.field ? (
          <div class="field grow">
            <label for={`${id}-values`}>{/prompt/.test(axis.field) ? words.sheet.lines : words.sheet.values}</label>
            <textarea id={`${id}-values`} rows={/prompt/.test(axis.field) ? 3 : 1} value={axis.text} onInput={(e) => onChange({ ...axis, text: e.currentTarget.value })} />
          </div>
        ) : null}
      </div>
      {known?.length ? (
        <div class="chips">
          {known.filter((n) => !/^[A-Z]/.test(n)).map((name) => (
            <button type="button" key={name} onClick={() => onChange({ ...axis, text: axis.text ? `${axis.text}, ${name}` : name })}>{name}</button>
          ))}
        </div>
      ) : null}
    </fieldset>
  );
}

function Tables({ made }: { made: Sheet }) {
  return (
    <div class="layers">
      {made.layers.map((layer, l) => <Table key={layer} made={made} cells={made.cells[l] ?? []} layer={layer} />)}
    </div>
  );
}

function Table({ made, cells, layer }: { made: Sheet; cells: Cells; layer: string }) {
  return (
    <div class="table-scroll">
      <table class="xy">
        {layer ? <caption>{nameOf(made.z.field)}: {layer}</caption> : null}
        <thead>
          <tr>
            <td>{nameOf(made.x.field)} →<br />{nameOf(made.y.field)} ↓</td>
            {made.columns.map((column) => <th scope="col" key={column}>{column}</th>)}
          </tr>
        </thead>
        <tbody>
          {made.rows.map((row, r) => (
            <tr key={row}>
              <th scope="row">{row}</th>
              {made.columns.map((column, c) => <td key={column}><Cell id={cells[r]?.[c] ?? null} text={[column, row, layer].filter(Boolean).join(", ")} /></td>)}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Cell({ id, text }: { id: string | null; text: string }) {
  const job = id ? jobs.value[id] : undefined;
  const image = job?.images[0];
  if (!id || hidden.value.has(id)) return <span class="blank tile" />;
  if (!image) return <span class="blank tile"><span class="hint">{job ? words.queue.status[job.status] : "…"}</span></span>;
  return (
    <button type="button" class="tile" onClick={() => openDetail(id, image.index)}>
      <Picture path={image.url} alt={text} lazy />
    </button>
  );
}
