// The frame of an outpainting: its edges are dragged away from the start picture.
import { useRef, useState } from "preact/hooks";

import type { Fields, Json } from "./api";
import { RATIOS } from "./create/basics";
import { dataUrl } from "./jobs";
import { model, request, set } from "./state";
import { words } from "./words";

const SIDES = ["left", "top", "right", "bottom"] as const;
type Side = (typeof SIDES)[number];
type Margins = Record<Side, number>;

const MOST = 8192; // px on a side, as the server has it
const ROOM = 0.5; // of the picture's side, free on each side of it at least
const OUTWARDS: Record<Side, string> = { left: "ArrowLeft", top: "ArrowUp", right: "ArrowRight", bottom: "ArrowDown" };
const INWARDS: Record<Side, string> = { left: "ArrowRight", top: "ArrowDown", right: "ArrowLeft", bottom: "ArrowUp" };

export function OutpaintFrame() {
  const image = request.value.image as string | undefined;
  if (!image) return <p class="hint">{words.outpaint.needs}</p>;
  return <Frame key={image} image={image} />;
}

function marginsOf(value: Json | undefined): Margins {
  const given = (value && typeof value === "object" && !Array.isArray(value) ? value : {}) as Fields;
  return Object.fromEntries(SIDES.map((side) => [side, Math.max(0, Number(given[side] ?? 0) || 0)])) as Margins;
}

/** Put margins into the form; none at all take the field out of it. */
function write(next: Margins): void {
  const given = Object.fromEntries(SIDES.filter((side) => next[side] > 0).map((side) => [side, next[side]]));
  set("outpaint", Object.keys(given).length ? given : undefined);
}

function Frame({ image }: { image: string }) {
  const board = useRef<HTMLDivElement>(null);
  const room = useRef<[number, number]>([0, 0]); // px beside and above the picture; stands still under a drag
  const isHeld = useRef(false);
  const [[wide, high], measure] = useState<[number, number]>([0, 0]);
  const margins = marginsOf(request.value.outpaint);
  const step = model.value?.size_multiple ?? 8;
  const fit = (px: number) => Math.min(MOST, Math.max(0, Math.round(px / step) * step));
  if (!isHeld.current) {
    room.current = [
      Math.max(ROOM * wide, 1.2 * Math.max(margins.left, margins.right)), Math.max(ROOM * high, 1.2 * Math.max(margins.top, margins.bottom)),
    ];
  }
  const [beside, above] = room.current;
  const all = [wide + 2 * beside, high + 2 * above] as const;
  const across = (px: number) => `${(100 * px) / (all[0] || 1)}%`;
  const down = (px: number) => `${(100 * px) / (all[1] || 1)}%`;
  const drag = (event: PointerEvent, side: Side) => {
    event.preventDefault();
    const handle = event.currentTarget as HTMLElement;
    handle.focus();
    handle.setPointerCapture(event.pointerId);
    isHeld.current = true;
    const px = all[0] / board.current!.getBoundingClientRect().width; // of the picture, for one of the screen
    const [x0, y0] = [event.clientX, event.clientY];
    const begun = margins[side];
    const move = (e: PointerEvent) => {
      const by = { left: x0 - e.clientX, right: e.clientX - x0, top: y0 - e.clientY, bottom: e.clientY - y0 }[side];
      write({ ...marginsOf(request.peek().outpaint), [side]: fit(begun + by * px) });
    };
    const up = () => {
      isHeld.current = false;
      for (const kind of ["pointerup", "pointercancel"]) handle.removeEventListener(kind, up);
      handle.removeEventListener("pointermove", move);
      request.value = { ...request.value }; // the room is measured anew
    };
    handle.addEventListener("pointermove", move);
    for (const kind of ["pointerup", "pointercancel"]) handle.addEventListener(kind, up);
  };
  const press = (event: KeyboardEvent, side: Side) => {
    const by = event.key === OUTWARDS[side] || event.key === "PageUp" ? 1 : event.key === INWARDS[side] || event.key === "PageDown" ? -1 : 0;
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    write({ ...margins, [side]: fit(margins[side] + by * step * (event.key.startsWith("Page") ? 8 : 1)) });
  };
  /** The least frame of a ratio around the picture, with it in the middle. */
  const around = (ratio: number) => {
    const [x, y] = [fit((Math.max(wide, high * ratio) - wide) / 2), fit((Math.max(high, wide / ratio) - high) / 2)];
    write({ left: x, right: x, top: y, bottom: y });
  };
  const whole = [wide + margins.left + margins.right, high + margins.top + margins.bottom] as const;
  const place: Record<Side, [number, number]> = {
    left: [beside - margins.left, above - margins.top + whole[1] / 2], right: [beside + wide + margins.right, above - margins.top + whole[1] / 2],
    top: [beside - margins.left + whole[0] / 2, above - margins.top], bottom: [beside - margins.left + whole[0] / 2, above + high + margins.bottom],
  };
  return (
    <div class="outpaint">
      <p class="hint">{words.outpaint.how}</p>
      <div ref={board} class="outpaint-board" id="outpaint" style={wide ? { aspectRatio: `${all[0]} / ${all[1]}`, maxWidth: `${(52 * all[0]) / all[1]}dvh` } : {}}>
        <div class="added" style={{ left: across(place.left[0]), top: down(place.top[1]), width: across(whole[0]), height: down(whole[1]) }} />
        <img
          src={dataUrl(image)} alt={words.mask.below} style={{ left: across(beside), top: down(above), width: across(wide), height: down(high) }}
          onLoad={(e) => measure([e.currentTarget.naturalWidth, e.currentTarget.naturalHeight])}
        />
        {wide ? SIDES.map((side) => (
          <div
            key={side} class="edge" data-side={side} role="slider" tabIndex={0} aria-label={words.outpaint.sides[side]} aria-valuemin={0} aria-valuemax={MOST}
            aria-valuenow={margins[side]} aria-valuetext={`${margins[side]} px`} aria-orientation={side === "left" || side === "right" ? "horizontal" : "vertical"}
            style={{ left: across(place[side][0]), top: down(place[side][1]) }}
            onPointerDown={(e) => drag(e, side)} onKeyDown={(e) => press(e, side)}
          />
        )) : null}
      </div>
      <p class="hint" id="outpaint-size">{wide ? words.outpaint.size(`${wide} × ${high}`, `${whole[0]} × ${whole[1]}`) : ""}</p>
      <div class="row presets" role="group" aria-label={words.outpaint.ratio}>
        {RATIOS.map(([name, ratio]) => (
          <button type="button" key={name} title={words.form.ratios[name]} onClick={() => around(ratio)}><i class="shape" data-ratio={name} aria-hidden="true" /> {name}</button>
        ))}
      </div>
    </div>
  );
}
