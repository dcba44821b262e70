// The laboratory: solvers, noise levels and guidance against denoisers that are known exactly.
import { computed, signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";

import { go, request } from "../state";
import { beginSheet } from "../sheet";
import { nameOf, words } from "../words";
import { COUNTS, CURVES, type Curve, distance, errorCurve, exactPaths, levels, MEANS, type Point, runAll, SOLVERS, SPREAD } from "./math";

const POINTS = 48; // that are measured
const DRAWN = 24; // of which paths are drawn
const COLOURS: Record<string, string> = { euler: "var(--c1)", heun: "var(--c2)", dpmpp_2m: "var(--c3)", euler_ancestral: "var(--c4)", dpmpp_sde: "var(--c5)" };

const chosen = signal<string[]>(["euler", "dpmpp_2m"]);
const steps = signal(10);
const curve = signal<Curve>("karras");
const rho = signal(7);
const scale = signal(1);

const sigmas = computed(() => levels(curve.value, steps.value, rho.value));
const truth = computed(() => exactPaths(scale.value, POINTS));
const runs = computed(() => chosen.value.map((name) => ({ name, runs: runAll(name, scale.value, sigmas.value, POINTS) })));
const curves = computed(() => chosen.value.filter((name) => !SOLVERS[name]!.draws).map((name) => ({ name, points: errorCurve(name, scale.value, curve.value, rho.value, POINTS) })));

export function Lab() {
  return (
    <section class="lab" aria-label={words.rooms.lab}>
      <p class="intro">{words.lab.intro}</p>
      <Controls />
      <div class="boards">
        <Plane />
        <div class="side">
          <Errors />
          <Levels />
          <Numbers />
        </div>
      </div>
    </section>
  );
}

function Controls() {
  const toggle = (name: string) => {
    chosen.value = chosen.value.includes(name) ? chosen.value.filter((n) => n !== name) : Object.keys(SOLVERS).filter((n) => n === name || chosen.value.includes(n));
  };
  const compare = () => {
    beginSheet({ field: "num_inference_steps", text: [...new Set([Math.max(1, Math.round(steps.value / 2)), steps.value, steps.value * 2])].join(", ") }, { field: "scheduler", text: chosen.value.join(", ") });
    go("sheet");
  };
  return (
    <form class="lab-controls" onSubmit={(e) => e.preventDefault()}>
      <div class="row shapes" role="group" aria-label={nameOf("scheduler")}>
        {Object.keys(SOLVERS).map((name) => (
          <button type="button" key={name} data-solver={name} aria-pressed={chosen.value.includes(name)} onClick={() => toggle(name)}>
            <i class="swatch" style={{ background: COLOURS[name] }} aria-hidden="true" /> {name}
          </button>
        ))}
      </div>
      <div class="sliders">
        <Slider id="lab-steps" label={nameOf("num_inference_steps")} min={2} max={60} step={1} value={steps.value} onChange={(v) => { steps.value = v; }} />
        <Slider id="lab-guidance" label={nameOf("guidance_scale")} min={0} max={6} step={0.1} value={scale.value} onChange={(v) => { scale.value = v; }} />
        <div class="field">
          <label for="lab-curve">{nameOf("sigma_schedule")}</label>
          <select id="lab-curve" value={curve.value} onChange={(e) => { curve.value = e.currentTarget.value as Curve; }}>
            {CURVES.map((name) => <option value={name}>{name}</option>)}
          </select>
        </div>
        <Slider id="lab-rho" label="ρ" min={1} max={15} step={0.5} value={rho.value} disabled={curve.value !== "karras"} onChange={(v) => { rho.value = v; }} />
      </div>
      <button type="button" class="quiet" id="side-by-side" disabled={!chosen.value.length || !String(request.value.prompt ?? "").trim()} title={words.lab.sideHint} onClick={compare}>{words.lab.side}</button>
    </form>
  );
}

function Slider({ id, label, min, max, step, value, disabled, onChange }: {
  id: string; label: string; min: number; max: number; step: number; value: number; disabled?: boolean; onChange: (value: number) => void;
}) {
  return (
    <div class="field">
      <div class="label"><label for={id}>{label}</label><output for={id}>{value}</output></div>
      <input id={id} type="range" min={min} max={max} step={step} value={value} disabled={disabled} onInput={(e) => onChange(Number(e.currentTarget.value))} />
    </div>
  );
}

const SIDE = 640;
const REACH = 2.9; // of the plane, from the middle

/** Where a point of noise level sigma is drawn: noise of any level fits into the same square. */
function place([x, y]: Point, sigma: number): Point {
  const shrink = Math.sqrt(1 + SPREAD ** 2) / Math.sqrt(1 + sigma * sigma);
  return [SIDE / 2 + ((x * shrink) / REACH) * (SIDE / 2), SIDE / 2 - ((y * shrink) / REACH) * (SIDE / 2)];
}

/** Paths from noise to data, on the density of the data. */
function Plane() {
  const board = useRef<HTMLCanvasElement>(null);
  const back = useRef<ImageData | null>(null);
  const ink = getComputedStyle(document.documentElement).getPropertyValue("--ink");
  useEffect(() => {
    const canvas = board.current!;
    const context = canvas.getContext("2d")!;
    const style = getComputedStyle(canvas);
    const colour = (name: string) => style.getPropertyValue(name.replace(/^var\((.*)\)$/, "$1")).trim();
    back.current = density(context, colour("--accent"));
    context.clearRect(0, 0, SIDE, SIDE);
    context.putImageData(back.current, 0, 0);
    context.lineJoin = "round";
    const line = (path: Point[], levelsOf: number[], stroke: string, width: number, dots: boolean, alpha = 1) => {
      context.strokeStyle = context.fillStyle = stroke;
      context.lineWidth = width;
      context.globalAlpha = alpha;
      context.beginPath();
      path.forEach((p, k) => context.lineTo(...place(p, levelsOf[k]!)));
      context.stroke();
      if (dots) {
        for (const [k, p] of path.entries()) {
          context.beginPath();
          context.arc(...place(p, levelsOf[k]!), k === path.length - 1 ? 4 : 1.8, 0, 2 * Math.PI);
          context.fill();
        }
      }
      context.globalAlpha = 1;
    };
    const fine = levels("karras", 400);
    const some = <T,>(list: T[]) => list.filter((_, k) => k % (POINTS / DRAWN) === 0); // near and far
    for (const run of some(truth.value)) line(run.path, fine, colour("--soft"), 1.2, false, 0.75);
    for (const { name, runs: all } of runs.value) {
      for (const run of some(all)) line(run.path, sigmas.value, colour(COLOURS[name]!), 1.6, true, 0.9);
    }
    context.strokeStyle = colour("--ink");
    context.lineWidth = 1.2;
    for (const run of some(truth.value)) {
      context.beginPath();
      context.arc(...place(run.path.at(-1)!, 0), 5.5, 0, 2 * Math.PI);
      context.stroke();
    }
  }, [runs.value, truth.value, ink]);
  return (
    <figure class="plane">
      <canvas ref={board} width={SIDE} height={SIDE} role="img" aria-label={words.lab.planeAlt(chosen.value.join(", ") || words.form.none, steps.value)} />
      <figcaption class="hint">{words.lab.plane}</figcaption>
    </figure>
  );
}

/** How likely a clean point is, as a tint; computed coarsely, since it only lies behind. */
function density(context: CanvasRenderingContext2D, tint: string): ImageData {
  const probe = document.createElement("canvas").getContext("2d")!;
  probe.fillStyle = tint;
  probe.fillRect(0, 0, 1, 1);
  const [r, g, b] = probe.getImageData(0, 0, 1, 1).data as unknown as [number, number, number];
  const data = context.createImageData(SIDE, SIDE);
  const cell = 4;
  for (let y = 0; y < SIDE; y += cell) {
    for (let x = 0; x < SIDE; x += cell) {
      const p: Point = [((x - SIDE / 2) / (SIDE / 2)) * REACH, (-(y - SIDE / 2) / (SIDE / 2)) * REACH];
      const here = MEANS.reduce((sum, m) => sum + Math.exp(-((p[0] - m[0]) ** 2 + (p[1] - m[1]) ** 2) / (2 * SPREAD ** 2)), 0);
      const alpha = Math.round(70 * Math.min(1, here));
      for (let dy = 0; dy < cell; dy += 1) {
        for (let dx = 0; dx < cell; dx += 1) data.data.set([r, g, b, alpha], ((y + dy) * SIDE + x + dx) * 4);
      }
    }
  }
  return data;
}

const W = 360;
const H = 210;
const P = { left: 44, right: 10, top: 10, bottom: 30 };

/** Error against calls of the denoiser, both logarithmic. */
function Errors() {
  const all = curves.value;
  const values = all.flatMap((c) => c.points.map((p) => p.error)).filter((e) => e > 0);
  const low = Math.floor(Math.log10(Math.max(1e-7, Math.min(...values, 0.1))));
  const high = Math.ceil(Math.log10(Math.max(...values, 0.11)));
  const [from, to] = [Math.log(COUNTS[0]!), Math.log(COUNTS.at(-1)! * 2)];
  const x = (calls: number) => P.left + ((Math.log(calls) - from) / (to - from)) * (W - P.left - P.right);
  const y = (error: number) => P.top + ((high - Math.log10(Math.max(error, 1e-9))) / (high - low)) * (H - P.top - P.bottom);
  const now = runs.value.filter((r) => !SOLVERS[r.name]!.draws);
  return (
    <figure class="chart">
      <figcaption><span>{words.lab.errors}</span></figcaption>
      <svg viewBox={`0 0 ${W} ${H}`} role="img" aria-label={words.lab.errorsAlt}>
        {Array.from({ length: high - low + 1 }, (_, k) => (
          <g key={k}>
            <line x1={P.left} x2={W - P.right} y1={y(10 ** (low + k))} y2={y(10 ** (low + k))} class="axis" />
            <text x={P.left - 6} y={y(10 ** (low + k)) + 3} text-anchor="end">10<tspan dy={-4} style={{ fontSize: "7px" }}>{low + k}</tspan></text>
          </g>
        ))}
        {[3, 10, 30, 100].map((n) => <text key={n} x={x(n)} y={H - P.bottom + 14} text-anchor="middle">{n}</text>)}
        <text x={(W + P.left) / 2} y={H - 4} text-anchor="middle">{words.lab.calls}</text>
        {all.map(({ name, points }) => (
          <path key={name} d={points.map((p, k) => `${k ? "L" : "M"}${x(p.calls).toFixed(1)} ${y(p.error).toFixed(1)}`).join("")} fill="none" style={{ stroke: COLOURS[name] }} stroke-width={2} />
        ))}
        {now.map(({ name, runs: made }) => <circle key={name} cx={x(made[0]!.calls)} cy={y(distance(made, truth.value))} r={5} style={{ fill: COLOURS[name] }} />)}
      </svg>
    </figure>
  );
}

function Levels() {
  const list = sigmas.value.slice(0, -1);
  const x = (k: number) => P.left + (list.length > 1 ? k / (list.length - 1) : 0) * (W - P.left - P.right);
  const high = 110;
  const y = (v: number) => 8 + ((Math.log(10) - Math.log(v)) / (Math.log(10) - Math.log(0.002))) * (high - 16);
  return (
    <figure class="chart">
      <figcaption><span>{nameOf("sigma_schedule")}</span><output>σ 10 → 0.002</output></figcaption>
      <svg viewBox={`0 0 ${W} ${high}`} role="img" aria-label={words.charts.levelsAlt(list.length, "10", "0.002")}>
        <path class="line" d={list.map((v, k) => `${k ? "L" : "M"}${x(k).toFixed(1)} ${y(v).toFixed(1)}`).join("")} />
        {list.map((v, k) => <circle key={k} cx={x(k)} cy={y(v)} r={2.5} />)}
      </svg>
    </figure>
  );
}

function Numbers() {
  return (
    <table class="numbers" id="lab-numbers">
      <thead><tr><th scope="col">{nameOf("scheduler")}</th><th scope="col">{words.lab.calls}</th><th scope="col">{words.lab.error}</th></tr></thead>
      <tbody>
        {runs.value.map(({ name, runs: made }) => (
          <tr key={name} data-row={name}>
            <th scope="row"><i class="swatch" style={{ background: COLOURS[name] }} aria-hidden="true" /> {name}</th>
            <td>{made[0]!.calls}</td>
            <td>{SOLVERS[name]!.draws ? <span class="hint">{words.lab.draws}</span> : distance(made, truth.value).toExponential(3)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
