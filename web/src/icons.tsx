// Small drawings; fonts of the system lack some signs.

const PATHS: Record<string, string> = {
  lock: "M4.5 7V5a3.5 3.5 0 0 1 7 0v2M3.5 7h9v6.5h-9z",
  unlock: "M4.5 7V5a3.5 3.5 0 0 1 6.6-1.6M3.5 7h9v6.5h-9z",
  star: "M8 1.8l1.9 4 4.3.6-3.1 3 .8 4.3L8 11.6l-3.9 2.1.8-4.3-3.1-3 4.3-.6z",
  play: "M4.5 2.5l8 5.5-8 5.5z",
  search: "M7 2.5a4.5 4.5 0 1 0 0 9 4.5 4.5 0 0 0 0-9zM10.3 10.3l3.4 3.4",
  check: "M3 8.5l3.2 3.2L13 4.5",
  learn: "M2 12.5l3.5-4 2.5 2.5L14 4M10.5 4H14v3.5",
  picture: "M2.5 3h11v10h-11zM2.5 11l3-3 2.5 2.5 2-2 3.5 3.5M10.5 6.2v.1",
};

export function Icon({ name, full }: { name: keyof typeof PATHS; full?: boolean }) {
  return <svg class={`icon-svg ${full ? "full" : ""}`} viewBox="0 0 16 16" width={16} height={16} aria-hidden="true"><path d={PATHS[name]} /></svg>;
}
