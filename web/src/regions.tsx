// Regions drawn as boxes or painted. A box can be moved with the arrow keys too, and sized with Shift.
import { useRef, useState } from "preact/hooks";

import type { Fields, Json } from "./api";
import { Picture } from "./image";
import { dataUrl, shownImage } from "./jobs";
import { Brush } from "./mask";
import { model, request, set } from "./state";
import { words } from "./words";

type Box = [number, number, number, number];

const LEAST = 0.02;
const WHOLE: Box = [0, 0, 1, 1];
const LONGEST = 512; // pixels of the longer side of a painted region

function clean(box: Box): Box {
  const at = (v: number) => Math.round(Math.min(1, Math.max(0, v)) * 1000) / 1000;
  const [x0, y0, x1, y1] = box.map(at) as Box;
  return [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
}

function moved(box: Box, dx: number, dy: number): Box {
  const [x0, y0, x1, y1] = box;
  const right = Math.max(-x0, Math.min(dx, 1 - x1));
  const down = Math.max(-y0, Math.min(dy, 1 - y1));
  return [x0 + right, y0 + down, x1 + right, y1 + down];
}

const listed = (value: Json | undefined) => (Array.isArray(value) ? value : []) as Fields[];

/** The regions as boxes, or one of them under the brush. */
export function RegionPanel() {
  const [painted, paint] = useState<number | null>(null);
  const regions = listed(request.value.regions);
  if (painted !== null) return <Painted key={painted} index={painted} onDone={() => paint(null)} />;
  return (
    <>
      <RegionBoxes />
      <div class="row" role="group" aria-label={words.regions.brush}>
        {regions.map((region, index) => (
          <button type="button" key={index} onClick={() => paint(index)}>{words.regions.paint(index + 1, String(region.prompt ?? ""))}</button>
        ))}
        <button type="button" id="region-new" onClick={() => paint(regions.length)}>{words.regions.paintNew}</button>
      </div>
    </>
  );
}

/** A region as a share of the picture: left, top, width and height. */
function shares([x0, y0, x1, y1]: Box) {
  return { left: `${x0 * 100}%`, top: `${y0 * 100}%`, width: `${(x1 - x0) * 100}%`, height: `${(y1 - y0) * 100}%` };
}

/** A region that is looked at while another one is painted. */
function Still({ region, number }: { region: Fields; number: number }) {
  const text = String(region.prompt ?? "");
  if (typeof region.mask === "string") return <img class="area" src={dataUrl(region.mask)} alt={words.regions.box(number, text)} />;
  if (!Array.isArray(region.box)) return null;
  return <div class="box still" style={shares(region.box as Box)}><span>{number} {text}</span></div>;
}

/** Regions with one place each: what was given last, box or mask, takes the place of the other. */
export function placed(next: Json | undefined, before: Json | undefined): Json | undefined {
  if (!Array.isArray(next) || !next.length) return undefined;
  const old = listed(before);
  return listed(next).map((region, k) => {
    const { box, mask, ...rest } = region;
    if (box && mask) return old[k]?.mask === mask ? { ...rest, box } : { ...rest, mask };
    return !box && !mask && old[k]?.mask ? { ...rest, box: WHOLE } : region;
  }) as Json;
}

function frame(): [number, number] {
  const own = model.value?.defaults ?? {};
  return [Number(request.value.width ?? own.width ?? 1), Number(request.value.height ?? own.height ?? 1)];
}

/** One region under the brush. Its box is white at first; the first stroke puts a mask in its place. */
function Painted({ index, onDone }: { index: number; onDone: () => void }) {
  const regions = listed(request.value.regions);
  const box = useRef<Box | undefined>(undefined);
  const region = regions[index];
  if (!region || region.box) box.current = region?.box as Box | undefined; // with a mask: the one before it
  const [width, height] = frame();
  const mask = (of: Json | undefined) => listed(of)[index]?.mask as string | undefined;
  const board = `${width} x ${height}`;
  const write = (text: string, isUndone: boolean) => {
    const now = listed(request.value.regions);
    const { box: _, mask: __, ...rest } = now[index] ?? { prompt: "" };
    const isEmpty = Object.values(rest).every((value) => value === "");
    if (isUndone && !box.current && isEmpty) {
      const left = now.filter((___, i) => i !== index);
      return set("regions", left.length ? (left as Json) : undefined);
    }
    const next: Fields = isUndone && box.current ? { ...rest, box: box.current } : { ...rest, mask: text };
    set("regions", (index < now.length ? now.map((r, i) => (i === index ? next : r)) : [...now, next]) as Json);
  };
  return (
    <div class="painted">
      <Brush
        id="region" how={words.regions.howPaint} label={words.regions.box(index + 1, String(region?.prompt ?? ""))}
        board={board} mask={mask(request.value.regions)} begin={() => ({ board, mask: mask(request.peek().regions) })}
        size={async () => [width, height].map((side) => Math.max(1, Math.round((side * LONGEST) / Math.max(width, height)))) as [number, number]}
        first={(context) => {
          if (!box.current) return;
          const { width: across, height: down } = context.canvas;
          const [x0, y0, x1, y1] = box.current;
          context.fillStyle = "white";
          context.fillRect(x0 * across, y0 * down, (x1 - x0) * across, (y1 - y0) * down);
        }}
        onPaint={write}
        below={(
          <div class="boxes" style={{ aspectRatio: `${width} / ${height}` }}>
            {shownImage.value ? <Picture path={shownImage.value.url} alt="" /> : null}
            {regions.map((other, k) => (k === index ? null : <Still key={k} region={other} number={k + 1} />))}
          </div>
        )}
      />
      <button type="button" id="region-done" onClick={onDone}>{words.regions.done}</button>
    </div>
  );
}

function RegionBoxes() {
  const area = useRef<HTMLDivElement>(null);
  const [drawn, draw] = useState<Box | null>(null);
  const regions = listed(request.value.regions);
  const [width, height] = frame();
  const change = (index: number, box: Box) =>
    set("regions", regions.map((r, i) => (i === index ? { ...r, box: clean(box) } : r)) as Json);
  const place = (event: PointerEvent): [number, number] => {
    const frame = area.current!.getBoundingClientRect();
    return [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height];
  };
  /** Follow the pointer until it is lifted. */
  const follow = (event: PointerEvent, along: (x: number, y: number) => void, end: () => void = () => undefined) => {
    event.preventDefault();
    const target = event.currentTarget as HTMLElement;
    target.setPointerCapture(event.pointerId);
    const move = (e: PointerEvent) => along(...place(e));
    const up = () => {
      target.removeEventListener("pointermove", move);
      target.removeEventListener("pointerup", up);
      target.removeEventListener("pointercancel", up);
      end();
    };
    target.addEventListener("pointermove", move);
    target.addEventListener("pointerup", up);
    target.addEventListener("pointercancel", up);
  };
  const begin = (event: PointerEvent) => {
    if (event.target !== event.currentTarget && !(event.target as HTMLElement).matches("img")) return;
    const [x, y] = place(event);
    let box: Box = [x, y, x, y];
    follow(event, (x1, y1) => { box = [x, y, x1, y1]; draw(clean(box)); }, () => {
      const made = clean(box);
      draw(null);
      if (made[2] - made[0] < LEAST || made[3] - made[1] < LEAST) return;
      set("regions", [...regions, { prompt: "", box: made }]);
    });
  };
  const press = (event: KeyboardEvent, index: number, box: Box) => {
    const by: Record<string, [number, number]> = { ArrowLeft: [-0.01, 0], ArrowRight: [0.01, 0], ArrowUp: [0, -0.01], ArrowDown: [0, 0.01] };
    const step = by[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    change(index, event.shiftKey
      ? [box[0], box[1], Math.max(box[0] + LEAST, box[2] + step[0]), Math.max(box[1] + LEAST, box[3] + step[1])]
      : moved(box, ...step));
  };
  return (
    <div class="boxes-frame">
      <p class="hint">{words.regions.how}</p>
      <div ref={area} class="boxes" id="boxes" style={{ aspectRatio: `${width} / ${height}` }} onPointerDown={begin}>
        {shownImage.value ? <Picture path={shownImage.value.url} alt="" /> : null}
        {regions.map((region, index) => {
          const box = region.box as Box | undefined;
          if (typeof region.mask === "string") {
            return <img key={index} class="area" src={dataUrl(region.mask)} alt={words.regions.box(index + 1, String(region.prompt ?? ""))} />;
          }
          if (!box) return null;
          return (
            <div
              key={index} class="box" tabIndex={0} role="group" aria-label={words.regions.box(index + 1, String(region.prompt ?? ""))}
              style={shares(box)}
              onKeyDown={(e) => press(e, index, box)}
              onPointerDown={(event) => {
                event.stopPropagation();
                const [x, y] = place(event);
                follow(event, (x1, y1) => change(index, moved(box, x1 - x, y1 - y)));
              }}
            >
              <span>{index + 1} {String(region.prompt ?? "")}</span>
              <i
                class="corner" aria-hidden="true"
                onPointerDown={(event) => {
                  event.stopPropagation();
                  follow(event, (x1, y1) => change(index, [box[0], box[1], Math.max(box[0] + LEAST, x1), Math.max(box[1] + LEAST, y1)]));
                }}
              />
            </div>
          );
        })}
        {drawn ? (
          <div class="box new" style={shares(drawn)} />
        ) : null}
      </div>
    </div>
  );
}
