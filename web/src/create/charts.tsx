// Curves of a run: its noise levels, drawn; its guidance, dragged.
import { useRef, useState } from "preact/hooks";

import type { Fields, Json } from "../api";
import { model, plan, request, set } from "../state";
import { nameOf, words } from "../words";

const WIDE = 320;
const HIGH = 110;
const PAD = { left: 34, right: 8, top: 8, bottom: 18 };

interface Scale { x: (k: number) => number; y: (v: number) => number }

function scale(count: number, low: number, high: number, log = false): Scale {
  const f = log ? Math.log : (v: number) => v;
  const [from, to] = [f(low), f(high)];
  return {
    x: (k) => PAD.left + (count > 1 ? k / (count - 1) : 0.5) * (WIDE - PAD.left - PAD.right),
    y: (v) => HIGH - PAD.bottom - ((f(v) - from) / (to - from || 1)) * (HIGH - PAD.top - PAD.bottom),
  };
}

const read = (v: number) => (v >= 100 ? v.toFixed(0) : v >= 10 ? v.toFixed(1) : v.toPrecision(2));

/** The noise level before each step, on a logarithmic axis. */
export function LevelsChart() {
  const [at, setAt] = useState<number | null>(null);
  const levels = (plan.value?.levels ?? []).filter((v) => v > 0);
  if (levels.length < 2) return null;
  const low = Math.min(...levels);
  const high = Math.max(...levels);
  const to = scale(levels.length, low, high, true);
  const path = levels.map((v, k) => `${k ? "L" : "M"}${to.x(k).toFixed(1)} ${to.y(v).toFixed(1)}`).join("");
  const near = (event: PointerEvent) => {
    const box = (event.currentTarget as SVGElement).getBoundingClientRect();
    const share = (((event.clientX - box.left) / box.width) * WIDE - PAD.left) / (WIDE - PAD.left - PAD.right);
    setAt(Math.max(0, Math.min(levels.length - 1, Math.round(share * (levels.length - 1)))));
  };
  const shown = at === null || at >= levels.length ? null : at;
  return (
    <figure class="chart">
      <figcaption>
        <span>{nameOf("sigma_schedule")}</span>
        <output>{shown === null ? words.charts.levels(read(high), read(low)) : words.charts.level(shown + 1, read(levels[shown]!))}</output>
      </figcaption>
      <svg viewBox={`0 0 ${WIDE} ${HIGH}`} role="img" aria-label={words.charts.levelsAlt(levels.length, read(high), read(low))} onPointerMove={near} onPointerLeave={() => setAt(null)}>
        <Axes low={read(low)} high={read(high)} count={levels.length} />
        <path d={path} class="line" />
        {levels.map((v, k) => <circle key={k} cx={to.x(k)} cy={to.y(v)} r={k === shown ? 4 : levels.length > 40 ? 1.5 : 2.5} />)}
      </svg>
    </figure>
  );
}

function Axes({ low, high, count }: { low: string; high: string; count: number }) {
  return (
    <>
      <line x1={PAD.left} x2={WIDE - PAD.right} y1={HIGH - PAD.bottom} y2={HIGH - PAD.bottom} class="axis" />
      <text x={PAD.left - 5} y={PAD.top + 8} text-anchor="end">{high}</text>
      <text x={PAD.left - 5} y={HIGH - PAD.bottom} text-anchor="end">{low}</text>
      <text x={PAD.left} y={HIGH - 4}>1</text>
      <text x={WIDE - PAD.right} y={HIGH - 4} text-anchor="end">{count}</text>
    </>
  );
}

const SHAPES = ["constant", "linear", "cosine", "interval"] as const;

/** The guidance of each step; a drag, or the arrow keys, make it a list of values. */
export function GuidanceChart() {
  const board = useRef<SVGSVGElement>(null);
  const [at, setAt] = useState(0);
  const [draft, setDraft] = useState<number[] | null>(null); // while the pointer is down
  const top = useRef(10); // of the axis, which stands still under a drag
  const planned = (plan.value?.plan.guidance as number[] | undefined) ?? [];
  const given = request.value.guidance_scale;
  const curve = given !== null && typeof given === "object" && !Array.isArray(given) ? (given as Fields) : null;
  const values = draft ?? (Array.isArray(curve?.values) && curve.values.length === planned.length ? (curve.values as number[]) : planned);
  if (!values.length) return null;
  const own = Number(model.value?.defaults.guidance_scale ?? 4);
  if (!draft) top.current = Math.max(10, Math.ceil(Math.max(...values) * 1.25));
  const most = top.current;
  const to = scale(values.length, 0, most);
  const step = Math.min(at, values.length - 1);
  const rest = { rescale: curve?.rescale };
  const write = (next: number[]) => {
    const { rescale } = rest;
    set("guidance_scale", { schedule: "list", values: next, ...(rescale === undefined ? {} : { rescale }) } as Json);
  };
  const place = (event: PointerEvent): [number, number] => {
    const box = board.current!.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * WIDE;
    const y = ((event.clientY - box.top) / box.height) * HIGH;
    const k = Math.round(((x - PAD.left) / (WIDE - PAD.left - PAD.right)) * (values.length - 1));
    const v = ((HIGH - PAD.bottom - y) / (HIGH - PAD.top - PAD.bottom)) * most;
    return [Math.max(0, Math.min(values.length - 1, k)), Math.round(Math.max(0, Math.min(most, v)) * 10) / 10];
  };
  const drag = (event: PointerEvent) => {
    event.preventDefault();
    board.current!.focus();
    const target = board.current!;
    target.setPointerCapture(event.pointerId);
    let now = [...values];
    let last = place(event);
    const put = (e: PointerEvent) => {
      const [k, v] = place(e);
      // steps that the pointer jumped over follow the line it drew
      const [k0, v0] = last;
      for (let i = Math.min(k, k0); i <= Math.max(k, k0); i += 1) {
        now[i] = k === k0 ? v : Math.round((v0 + ((v - v0) * (i - k0)) / (k - k0)) * 10) / 10;
      }
      last = [k, v];
      now = [...now];
      setAt(k);
      setDraft(now);
    };
    const up = () => {
      target.removeEventListener("pointermove", put);
      target.removeEventListener("pointerup", up);
      target.removeEventListener("pointercancel", up);
      write(now);
      setDraft(null);
    };
    put(event);
    target.addEventListener("pointermove", put);
    target.addEventListener("pointerup", up);
    target.addEventListener("pointercancel", up);
  };
  const press = (event: KeyboardEvent) => {
    const along = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const by = { ArrowUp: 0.5, ArrowDown: -0.5, PageUp: 2, PageDown: -2 }[event.key];
    if (along === undefined && by === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    if (along !== undefined) setAt(Math.max(0, Math.min(values.length - 1, step + along)));
    else write(values.map((v, k) => (k === step ? Math.round(Math.max(0, v + by!) * 10) / 10 : v)));
  };
  const shape = (name: (typeof SHAPES)[number]) => {
    const start = values[0]! > 1 ? values[0]! : own;
    const { rescale } = rest;
    const kept = rescale === undefined ? {} : { rescale };
    if (name === "constant") set("guidance_scale", rescale === undefined ? start : { schedule: "constant", start, ...kept } as Json);
    else if (name === "interval") set("guidance_scale", { schedule: "interval", start, from: 0.2, until: 0.8, ...kept } as Json);
    else set("guidance_scale", { schedule: name, start, end: 1, ...kept } as Json);
  };
  const now = curve?.schedule ?? (curve ? "constant" : "constant");
  const path = values.map((v, k) => `${k ? "L" : "M"}${to.x(k).toFixed(1)} ${to.y(v).toFixed(1)}`).join("");
  return (
    <figure class="chart drag" id="guidance-chart">
      <figcaption>
        <span>{nameOf("guidance_scale")}</span>
        <output>{words.charts.guidanceAt(step + 1, values.length, read(values[step]!))}</output>
      </figcaption>
      <svg
        ref={board} viewBox={`0 0 ${WIDE} ${HIGH}`} tabindex={0} role="slider" aria-orientation="vertical" aria-label={words.charts.guidance}
        aria-valuemin={0} aria-valuemax={most} aria-valuenow={values[step]} aria-valuetext={words.charts.guidanceAt(step + 1, values.length, read(values[step]!))}
        onPointerDown={drag} onKeyDown={press}
      >
        <Axes low="0" high={String(most)} count={values.length} />
        <line x1={PAD.left} x2={WIDE - PAD.right} y1={to.y(1)} y2={to.y(1)} class="off" />
        <path d={path} class="line" />
        {values.map((v, k) => <circle key={k} cx={to.x(k)} cy={to.y(v)} r={k === step ? 4.5 : values.length > 40 ? 1.5 : 3} class={k === step ? "at" : ""} />)}
      </svg>
      <div class="row shapes">
        {SHAPES.map((name) => <button type="button" key={name} aria-pressed={now === name} onClick={() => shape(name)}>{words.charts.shapes[name]}</button>)}
      </div>
    </figure>
  );
}
