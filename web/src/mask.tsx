// Masks painted with a brush: the one of the start picture, and those of regions.
import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";

import { dataUrl } from "./jobs";
import { request, set } from "./state";
import { words } from "./words";

const UNDO = 20;

function load(address: string): Promise<HTMLImageElement> {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = reject;
    image.src = address;
  });
}

/** The mask of the start picture: white is what is repainted. */
export function MaskBrush() {
  const image = request.value.image as string | undefined;
  if (!image) return <p class="hint">{words.mask.needs}</p>;
  const write = (text: string, isUndone: boolean) => {
    if (isUndone) return set("mask", undefined); // nothing is painted any more
    // Who paints a part expects the rest to stay: it stands in the form, where it can be undone.
    const anew = request.value.mask === undefined && request.value.inpaint === undefined;
    request.value = { ...request.value, mask: text, ...(anew ? { inpaint: { paste: true } } : {}) };
  };
  return (
    <Brush
      id="mask" how={words.mask.how} label={words.mask.canvas} board={image} mask={request.value.mask as string | undefined}
      begin={() => ({ board: request.peek().image as string | undefined, mask: request.peek().mask as string | undefined })}
      size={async (board) => { const start = await load(dataUrl(board)); return [start.naturalWidth, start.naturalHeight]; }}
      onPaint={write} below={<img src={dataUrl(image)} alt={words.mask.below} />}
    />
  );
}

interface BrushProps {
  id: string; // of the canvas, with "-canvas", and of the button that undoes
  how: string;
  label: string;
  board: string; // what is painted on: another one is another canvas
  mask: string | undefined; // PNG or another format, base64
  begin: () => { board: string | undefined; mask: string | undefined }; // both as they are now
  size: (board: string) => Promise<[number, number]>; // pixels, width and height
  first?: (context: CanvasRenderingContext2D) => void; // what is white before the first stroke
  onPaint: (mask: string, isUndone: boolean) => void; // isUndone: every stroke since there was no mask
  below: ComponentChildren;
}

/** A brush with undo and zoom. What is painted is handed on after each stroke. */
export function Brush({ id: name, how, label, board: drawnUpon, mask, begin, size, first, onPaint, below }: BrushProps) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const past = useRef<ImageData[]>([]);
  const written = useRef("");
  const drawnOn = useRef("");
  const unpainted = useRef(""); // the canvas before the first stroke, where there was no mask
  const loads = useRef(0);
  const isReady = useRef(false); // the canvas is the one of the board that `drawnOn` names
  const [brush, setBrush] = useState(12); // per cent of the shorter side
  const [erases, setErases] = useState(false);
  const [zoom, setZoom] = useState(1);
  const [count, setCount] = useState(0);
  const [ratio, setRatio] = useState(1); // width to height
  const id = useId();
  const text = () => canvas.current!.toDataURL("image/png").split(",", 2)[1]!;

  useEffect(() => {
    // Effects run after the frame: what stands now counts, not what stood when this was rendered.
    const now = begin();
    if (now.board === undefined) return;
    if ((now.mask ?? "") === written.current && now.board === drawnOn.current) return;
    drawnOn.current = now.board;
    written.current = now.mask ?? "";
    const turn = ++loads.current;
    isReady.current = false;
    void (async () => {
      const [width, height] = await size(now.board!);
      const painted = now.mask ? await load(dataUrl(now.mask)) : undefined;
      const board = canvas.current;
      if (!board || turn !== loads.current) return; // a later load draws
      board.width = width;
      board.height = height;
      setRatio(width / height);
      const context = board.getContext("2d", { willReadFrequently: true })!;
      context.fillStyle = "black";
      context.fillRect(0, 0, board.width, board.height);
      if (painted) context.drawImage(painted, 0, 0, board.width, board.height);
      else first?.(context);
      unpainted.current = painted ? "" : text();
      past.current = [];
      setCount(0);
      isReady.current = true;
    })();
  }, [drawnUpon, mask]);

  const context = () => canvas.current!.getContext("2d", { willReadFrequently: true })!;
  const remember = () => {
    const board = canvas.current!;
    past.current = [...past.current.slice(1 - UNDO), context().getImageData(0, 0, board.width, board.height)];
    setCount(past.current.length);
  };
  const commit = () => {
    written.current = text();
    onPaint(written.current, false);
  };
  const paint = (event: PointerEvent) => {
    event.preventDefault();
    if (!isReady.current) return; // a stroke would be lost when the board is drawn
    const board = event.currentTarget as HTMLCanvasElement;
    board.setPointerCapture(event.pointerId);
    remember();
    const pen = context();
    pen.strokeStyle = pen.fillStyle = erases ? "black" : "white";
    pen.lineCap = pen.lineJoin = "round";
    pen.lineWidth = Math.max(1, (Math.min(board.width, board.height) * brush) / 100);
    const at = (e: PointerEvent): [number, number] => {
      const frame = board.getBoundingClientRect();
      return [((e.clientX - frame.left) / frame.width) * board.width, ((e.clientY - frame.top) / frame.height) * board.height];
    };
    let last = at(event);
    pen.beginPath();
    pen.arc(...last, pen.lineWidth / 2, 0, 2 * Math.PI);
    pen.fill();
    const move = (e: PointerEvent) => {
      const next = at(e);
      pen.beginPath();
      pen.moveTo(...last);
      pen.lineTo(...next);
      pen.stroke();
      last = next;
    };
    const up = () => {
      board.removeEventListener("pointermove", move);
      board.removeEventListener("pointerup", up);
      board.removeEventListener("pointercancel", up);
      commit();
    };
    board.addEventListener("pointermove", move);
    board.addEventListener("pointerup", up);
    board.addEventListener("pointercancel", up);
  };
  const undo = () => {
    const before = past.current.pop();
    setCount(past.current.length);
    if (!before) return;
    context().putImageData(before, 0, 0);
    if (past.current.length || text() !== unpainted.current) return commit();
    written.current = "";
    onPaint(unpainted.current, true);
  };
  const whole = (make: (data: ImageData) => void) => {
    if (!isReady.current) return;
    remember();
    const board = canvas.current!;
    const data = context().getImageData(0, 0, board.width, board.height);
    make(data);
    context().putImageData(data, 0, 0);
    commit();
  };
  return (
    <div class="mask">
      <p class="hint">{how}</p>
      <div class="mask-scroll">
        <div class="mask-board" style={{ width: `${zoom * 100}%`, maxWidth: `${zoom * 68 * ratio}dvh` }}>
          {below}
          <canvas ref={canvas} id={`${name}-canvas`} aria-label={label} role="img" onPointerDown={paint} />
        </div>
      </div>
      <div class="row">
        <div class="field">
          <label for={`${id}-brush`}>{words.mask.brush}</label>
          <input id={`${id}-brush`} type="range" min={1} max={60} value={brush} onInput={(e) => setBrush(Number(e.currentTarget.value))} />
        </div>
        <div class="field">
          <label for={`${id}-zoom`}>{words.mask.zoom}</label>
          <input id={`${id}-zoom`} type="range" min={1} max={6} step={0.5} value={zoom} onInput={(e) => setZoom(Number(e.currentTarget.value))} />
        </div>
      </div>
      <div class="row">
        <button type="button" aria-pressed={erases} onClick={() => setErases(!erases)}>{words.mask.erase}</button>
        <button type="button" id={`${name}-undo`} disabled={!count} onClick={undo}>{words.mask.undo}</button>
        <button type="button" onClick={() => whole((d) => { for (let i = 0; i < d.data.length; i += 4) for (const k of [0, 1, 2]) d.data[i + k] = 255 - d.data[i + k]!; })}>{words.mask.invert}</button>
        <button type="button" onClick={() => whole((d) => { for (let i = 0; i < d.data.length; i += 4) for (const k of [0, 1, 2]) d.data[i + k] = 0; })}>{words.mask.clear}</button>
      </div>
    </div>
  );
}
