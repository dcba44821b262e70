// Losses over steps: every measurement faint, their running mean in front of them.
import { useState } from "preact/hooks";

import { words } from "../words";

type Points = [number, number][];

const WIDE = 640;
const HIGH = 220;
const PAD = { left: 46, right: 10, top: 10, bottom: 24 };

/** A running mean over a twentieth of the curve. */
export function smooth(points: Points): Points {
  const reach = Math.max(1, Math.round(points.length / 20));
  let sum = 0;
  return points.map(([at, value], k) => {
    sum += value - (k >= reach ? points[k - reach]![1] : 0);
    return [at, sum / Math.min(k + 1, reach)];
  });
}

const read = (v: number) => (v >= 100 ? v.toFixed(0) : v.toPrecision(3));

export function Curves({ loss, heldOut, steps, at }: { loss: Points; heldOut: Points; steps: number; at: number | null }) {
  const [near, setNear] = useState<number | null>(null);
  const all = [...loss, ...heldOut];
  if (loss.length < 2) return <p class="hint">{words.train.noCurve}</p>;
  const isLog = all.every(([, v]) => v > 0);
  const f = isLog ? Math.log : (v: number) => v;
  const low = Math.min(...all.map(([, v]) => v));
  const high = Math.max(...all.map(([, v]) => v));
  const last = Math.max(steps, ...all.map(([s]) => s), 1);
  const x = (s: number) => PAD.left + (s / last) * (WIDE - PAD.left - PAD.right);
  const y = (v: number) => HIGH - PAD.bottom - ((f(v) - f(low)) / (f(high) - f(low) || 1)) * (HIGH - PAD.top - PAD.bottom);
  const line = (points: Points) => points.map(([s, v], k) => `${k ? "L" : "M"}${x(s).toFixed(1)} ${y(v).toFixed(1)}`).join("");
  const closest = (points: Points, s: number) => points.reduce((a, b) => (Math.abs(b[0] - s) < Math.abs(a[0] - s) ? b : a), points[0]!);
  const look = (event: PointerEvent) => {
    const box = (event.currentTarget as SVGElement).getBoundingClientRect();
    setNear((((event.clientX - box.left) / box.width) * WIDE - PAD.left) / (WIDE - PAD.left - PAD.right) * last);
  };
  const mean = smooth(loss);
  const [step, value] = near === null ? mean.at(-1)! : closest(mean, near);
  const held = heldOut.length ? (near === null ? heldOut.at(-1)! : closest(heldOut, near)) : null;
  return (
    <figure class="chart run-curves">
      <figcaption>
        <span><i class="swatch c1" aria-hidden="true" /> {words.train.loss} <b>{read(value)}</b></span>
        {held ? <span><i class="swatch c2" aria-hidden="true" /> {words.train.heldOut} <b>{read(held[1])}</b></span> : null}
        <output>{words.train.step(step)}</output>
      </figcaption>
      <svg viewBox={`0 0 ${WIDE} ${HIGH}`} role="img" aria-label={words.train.curvesAlt(read(mean[0]![1]), read(mean.at(-1)![1]), mean.at(-1)![0])} onPointerMove={look} onPointerLeave={() => setNear(null)}>
        <line x1={PAD.left} x2={WIDE - PAD.right} y1={HIGH - PAD.bottom} y2={HIGH - PAD.bottom} class="axis" />
        <text x={PAD.left - 6} y={PAD.top + 6} text-anchor="end">{read(high)}</text>
        <text x={PAD.left - 6} y={HIGH - PAD.bottom} text-anchor="end">{read(low)}</text>
        <text x={PAD.left} y={HIGH - 6}>0</text>
        <text x={WIDE - PAD.right} y={HIGH - 6} text-anchor="end">{last}</text>
        {at === null ? null : <line x1={x(at)} x2={x(at)} y1={PAD.top} y2={HIGH - PAD.bottom} class="off" />}
        <path d={line(loss)} class="raw" />
        <path d={line(mean)} class="line" />
        {heldOut.length ? <path d={line(heldOut)} class="line second" /> : null}
        {heldOut.map(([s, v]) => <circle key={s} cx={x(s)} cy={y(v)} r={2.5} class="second" />)}
        {near === null ? null : <circle cx={x(step)} cy={y(value)} r={4} />}
      </svg>
    </figure>
  );
}
