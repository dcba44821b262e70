// Two pictures over each other: a slider, a flicker, their difference, and how their requests differ.
import { signal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

import { ask, type Fields, type PictureEntry } from "../api";
import { ended } from "../dialogs";
import { Picture } from "../image";
import { notice } from "../state";
import { nameOf, words } from "../words";
import { urlOf } from "./collection";

export const comparing = signal<[PictureEntry, PictureEntry] | null>(null);

const MODES = ["slider", "flicker", "difference"] as const;
const FLICKER_MS = 500;

export function Compare({ pair }: { pair: [PictureEntry, PictureEntry] }) {
  const box = useRef<HTMLDialogElement>(null);
  const [cut, setCut] = useState(50);
  const [mode, setMode] = useState<(typeof MODES)[number]>("slider");
  const [isSecond, setSecond] = useState(false);
  const [asked, setAsked] = useState<[Fields, Fields] | null>(null);
  useLayoutEffect(() => { // before the "close" event of one that was just closed
    if (!box.current?.open) box.current?.showModal();
    setAsked(null);
    Promise.all(pair.map((e) => ask<Fields>(`/v1/jobs/${e.job}/request`).then((r) => ({ ...r, seed: String(e.seed) }))))
      .then((both) => setAsked(both as unknown as [Fields, Fields]), (error: Error) => notice("bad", error.message));
  }, [pair]);
  useEffect(() => {
    if (mode !== "flicker") return;
    const timer = setInterval(() => setSecond((s) => !s), FLICKER_MS);
    return () => clearInterval(timer);
  }, [mode]);
  const close = () => { comparing.value = null; };
  const [one, two] = pair;
  const edge = mode === "flicker" ? (isSecond ? 0 : 100) : mode === "difference" ? 100 : cut;
  const fields = asked ? [...new Set([...Object.keys(asked[0]), ...Object.keys(asked[1])])]
    .filter((name) => JSON.stringify(asked[0][name]) !== JSON.stringify(asked[1][name])) : [];
  const read = (value: unknown) => {
    const text = value === undefined ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value);
    return text.length > 400 ? `${text.slice(0, 399)}…` : text;
  };
  const alt = (e: PictureEntry) => words.stage.alt(String(e.asked.prompt ?? ""), e.seed);
  const slide = (event: PointerEvent) => {
    if (mode !== "slider" || !event.buttons) return;
    const frame = (event.currentTarget as HTMLElement).getBoundingClientRect();
    setCut(Math.round(Math.max(0, Math.min(100, ((event.clientX - frame.left) / frame.width) * 100))));
  };
  return (
    <dialog ref={box} class="detail" aria-label={words.compare.label} onClose={ended(close)}>
      <header>
        <h2>{words.compare.label}</h2>
        <button type="button" class="icon" aria-label={words.detail.close} onClick={close}>×</button>
      </header>
      <div class="sides">
        <div class="big compare" onPointerDown={slide} onPointerMove={slide}>
          <Picture path={urlOf(two)} alt={alt(two)} />
          <div class={`over ${mode === "difference" ? "difference" : ""}`} style={{ clipPath: `inset(0 ${100 - edge}% 0 0)` }}>
            <Picture path={urlOf(one)} alt={alt(one)} />
          </div>
          {mode === "slider" ? <i class="cut" style={{ left: `${cut}%` }} aria-hidden="true" /> : null}
        </div>
        <div class="facts">
          <div class="row shapes" role="group" aria-label={words.compare.how}>
            {MODES.map((name) => <button type="button" key={name} aria-pressed={mode === name} onClick={() => setMode(name)}>{words.compare.modes[name]}</button>)}
          </div>
          <input id="cut" type="range" min={0} max={100} value={cut} aria-label={words.compare.slider} disabled={mode !== "slider"} onInput={(e) => setCut(Number(e.currentTarget.value))} />
          <h3>{words.compare.differences}</h3>
          {fields.length ? (
            <table>
              <tbody>{fields.map((name) => <tr key={name}><th scope="row">{nameOf(name)}</th><td>{read(asked![0][name])}</td><td>{read(asked![1][name])}</td></tr>)}</tbody>
            </table>
          ) : <p>{asked ? words.compare.same : words.loading}</p>}
        </div>
      </div>
    </dialog>
  );
}
