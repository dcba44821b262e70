// The same request along two fields: a table of pictures.
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
interface Sheet { x: Axis; y: Axis; cells: (string | null)[][]; columns: string[]; rows: string[] }

const FIELDS = [
  "num_inference_steps", "guidance_scale", "scheduler", "sigma_schedule", "seed", "model", "prompt", "negative_prompt", "strength", "width", "height",
];
const NUMBERS = new Set(["num_inference_steps", "guidance_scale", "strength", "width", "height"]);
const MOST = 100;

let isLoaded = false;
const x = signal<Axis>({ field: "num_inference_steps", text: "5, 10, 20" });
const y = signal<Axis>({ field: "guidance_scale", text: "1, 4, 8" });
/** Set both axes; the room draws when its button is pressed. */
export function beginSheet(columns: Axis, rows: Axis): void {
  isLoaded = true; // what was kept does not come in between
  x.value = columns;
  y.value = rows;
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

const planned = computed(() => ({ columns: values(x.value), rows: values(y.value) }));

function cell(base: Fields, column: string, row: string): Fields {
  // What is no number goes as it was typed, so that the server says what it expects.
  const put = (field: string, text: string): Json => (NUMBERS.has(field) && Number.isFinite(Number(text)) ? Number(text) : text);
  return { ...base, [y.value.field]: put(y.value.field, row), [x.value.field]: put(x.value.field, column) };
}

async function make(): Promise<void> {
  const { columns, rows } = planned.value;
  const { num_images: _, ...base } = request.value;
  if (base.seed === undefined && x.value.field !== "seed" && y.value.field !== "seed") {
    base.seed = String(crypto.getRandomValues(new Uint32Array(1))[0]); // one noise for the whole table
    set("seed", base.seed);
  }
  const cells: (string | null)[][] = rows.map(() => columns.map(() => null));
  sheet.value = { x: x.value, y: y.value, cells, columns, rows };
  for (const [r, row] of rows.entries()) {
    for (const [c, column] of columns.entries()) {
      try {
        const job = await send<Job>("/v1/jobs", cell(base, column, row));
        cells[r]![c] = job.id;
        sheet.value = { ...sheet.value, cells: cells.map((line) => [...line]) };
      } catch (error) {
        notice("bad", `${column} / ${row}: ${(error as Error).message}`);
        if (c === 0 && r === 0) return;
      }
    }
  }
  void keep("sheet", sheet.value);
}

/** Look at the jobs of the table until all have ended. */
async function look(): Promise<void> {
  const ids = (sheet.value?.cells ?? []).flat().filter((id): id is string => id !== null);
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
        if (!kept || sheet.value) return;
        x.value = kept.x;
        y.value = kept.y;
        sheet.value = kept;
      });
    }
    const timer = setInterval(() => void look(), 1000);
    return () => clearInterval(timer);
  }, []);
  const { columns, rows } = planned.value;
  const count = columns.length * rows.length;
  return (
    <section class="sheet" aria-label={words.sheet.label}>
      <form class="axes" onSubmit={(e) => { e.preventDefault(); void make(); }}>
        <p class="hint">{words.sheet.how}</p>
        <p class="base">{String(request.value.prompt ?? "") || model.value?.name}</p>
        <AxisFields label={words.sheet.x} axis={x.value} onChange={(axis) => { x.value = axis; }} />
        <AxisFields label={words.sheet.y} axis={y.value} onChange={(axis) => { y.value = axis; }} />
        <button class="primary" id="make-sheet" type="submit" disabled={count === 0 || count > MOST || x.value.field === y.value.field}>
          {count > MOST ? words.sheet.tooMany(count, MOST) : words.sheet.make(count)}
        </button>
      </form>
      {sheet.value ? <Table made={sheet.value} /> : count && count <= MOST ? <Table made={{ x: x.value, y: y.value, columns, rows, cells: [] }} /> : null}
    </section>
  );
}

function AxisFields({ label, axis, onChange }: { label: string; axis: Axis; onChange: (axis: Axis) => void }) {
  const id = useId();
  const known = choices(axis.field);
  return (
    <fieldset>
      <legend>{label}</legend>
      <div class="row">
        <div class="field">
          <label for={`${id}-field`}>{words.sheet.field}</label>
          <select id={`${id}-field`} value={axis.field} onChange={(e) => onChange({ field: e.currentTarget.value, text: "" })}>
            {FIELDS.map((name) => <option value={name}>{nameOf(name)}</option>)}
          </select>
        </div>
        <div class="field grow">
          <label for={`${id}-values`}>{/prompt/.test(axis.field) ? words.sheet.lines : words.sheet.values}</label>
          <textarea id={`${id}-values`} rows={/prompt/.test(axis.field) ? 3 : 1} value={axis.text} onInput={(e) => onChange({ ...axis, text: e.currentTarget.value })} />
        </div>
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

function Table({ made }: { made: Sheet }) {
  return (
    <div class="table-scroll">
      <table class="xy">
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
              {made.columns.map((column, c) => <td key={column}><Cell id={made.cells[r]?.[c] ?? null} text={`${column}, ${row}`} /></td>)}
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
