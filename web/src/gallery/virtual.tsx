// A grid of any length: only the rows in sight are in the document.
import { signal } from "@preact/signals";
import type { ComponentChild } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

const GAP = 8;
const MORE_ROWS = 2; // above and below the window
const HURRY = 0.75; // of the window's height from one frame to the next
const STILL_MS = 100;

/** Whether rows fly past: what only comes into sight on the way need not be fetched. */
export const isHurried = signal(false);

interface Props<T> {
  items: readonly T[];
  least: number; // px of a tile, at least
  keyOf: (item: T) => string;
  label: string;
  /** `isStop`: whether Tab comes to this item; the arrows go on from it. */
  draw: (item: T, index: number, isStop: boolean) => ComponentChild;
}

function placeOf(inside: EventTarget | null): number | null {
  const at = (inside as HTMLElement | null)?.closest<HTMLElement>("[data-at]")?.dataset.at;
  return at === undefined ? null : Number(at);
}

/** A list that is one stop of Tab: it comes to the item that had the focus last, or the first in sight. */
export function VirtualGrid<T>({ items, least, keyOf, label, draw }: Props<T>) {
  const box = useRef<HTMLUListElement>(null);
  const [wide, setWide] = useState(0);
  const [seen, setSeen] = useState<[number, number]>([0, 12]);
  const [latest, setLatest] = useState(0); // the item that had the focus last
  const columns = Math.max(1, Math.floor((wide + GAP) / (least + GAP)));
  const side = wide ? (wide - GAP * (columns - 1)) / columns : least;
  const rows = Math.ceil(items.length / columns);
  const pitch = side + GAP;

  useLayoutEffect(() => {
    const measure = () => setWide(box.current?.clientWidth ?? 0);
    const watcher = new ResizeObserver(measure);
    watcher.observe(box.current!);
    measure();
    return () => watcher.disconnect();
  }, []);

  useEffect(() => {
    let asked = 0;
    let still = 0;
    let before = box.current?.getBoundingClientRect().top ?? 0;
    const look = () => {
      asked = 0;
      const top = box.current?.getBoundingClientRect().top ?? 0;
      if (Math.abs(top - before) > HURRY * innerHeight) {
        isHurried.value = true;
        clearTimeout(still);
        still = setTimeout(() => { isHurried.value = false; }, STILL_MS);
      }
      before = top;
      const first = Math.max(0, Math.floor(-top / pitch) - MORE_ROWS);
      const last = Math.min(rows, Math.ceil((innerHeight - top) / pitch) + MORE_ROWS);
      setSeen((was) => (was[0] === first && was[1] === last ? was : [first, last]));
    };
    const soon = () => { asked ||= requestAnimationFrame(look); };
    look();
    addEventListener("scroll", soon, { passive: true });
    addEventListener("resize", soon);
    return () => {
      cancelAnimationFrame(asked);
      clearTimeout(still);
      isHurried.value = false;
      removeEventListener("scroll", soon);
      removeEventListener("resize", soon);
    };
  }, [pitch, rows]);

  /** The arrows go from tile to tile, also to those that are not there yet. */
  const press = (event: KeyboardEvent) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -Infinity, End: Infinity }[event.key];
    const at = placeOf(event.target);
    if (by === undefined || at === null || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    const next = Math.max(0, Math.min(items.length - 1, at + by));
    const y = (box.current?.getBoundingClientRect().top ?? 0) + scrollY + Math.floor(next / columns) * pitch;
    if (y < scrollY + 80 || y + side > scrollY + innerHeight) scrollTo({ top: Math.max(0, y - innerHeight / 2 + side / 2) });
    const focus = (tries: number) => {
      const found = box.current?.querySelector<HTMLElement>(`[data-at="${next}"] .tile`);
      if (found) found.focus({ preventScroll: true });
      else if (tries) requestAnimationFrame(() => focus(tries - 1));
    };
    focus(10);
  };

  const from = seen[0] * columns;
  const shown = items.slice(from, seen[1] * columns);
  const inSight = Math.min(from + (seen[0] ? MORE_ROWS * columns : 0), items.length - 1);
  const stop = latest >= from && latest < from + shown.length ? latest : inSight;
  return (
    <ul
      ref={box} class="tiles virtual" aria-label={label} style={{ height: `${Math.max(0, rows * pitch - GAP)}px` }} onKeyDown={press}
      onFocusIn={(e) => setLatest(placeOf(e.target) ?? latest)}
    >
      {wide ? shown.map((item, k) => {
        const index = from + k;
        const [row, column] = [Math.floor(index / columns), index % columns];
        return (
          <li
            key={keyOf(item)} data-at={index} aria-setsize={items.length} aria-posinset={index + 1}
            style={{ width: `${side}px`, height: `${side}px`, transform: `translate(${column * pitch}px, ${row * pitch}px)` }}
          >{draw(item, index, index === stop)}</li>
        );
      }) : null}
    </ul>
  );
}
