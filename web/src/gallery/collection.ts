// Every kept picture in short, held here: searching asks nobody, and thousands take milliseconds.
import { computed, effect, signal } from "@preact/signals";

import { ask, type Fields, type Marks, type PictureEntry, Refused, send } from "../api";
import { connection, DEFAULT_MODEL, notice } from "../state";
import { hidden, recent } from "../jobs";

export const entries = signal<PictureEntry[]>([]);
export const isLoading = signal(false);
export const isLoaded = signal(false);

export const idOf = (entry: { job: string; index: number }): string => `${entry.job}/${entry.index}`;
export const urlOf = (entry: { job: string; index: number }): string => `/v1/jobs/${entry.job}/images/${entry.index}`;
export const modelOf = (entry: PictureEntry): string => String(entry.asked.model ?? DEFAULT_MODEL);

interface Page { pictures: PictureEntry[]; next: string | null }

const PAGE = 1000;
const FRESH = 60;

// Marks set here and the moment they were (Infinity while the server has not answered): a list
// that was asked for before knows nothing of them.
const marked = new Map<string, { marks: Marks; at: number }>();

/** Ask for a page of the list; what was marked since the asking stands as it is shown. */
async function askPage(query: string): Promise<Page> {
  const asked = performance.now();
  const page = await ask<Page>(`/v1/gallery/pictures?${query}`);
  const pictures = page.pictures.map((entry) => {
    const ours = marked.get(idOf(entry));
    return ours && ours.at > asked ? { ...entry, marks: ours.marks } : entry;
  });
  return { ...page, pictures };
}

/** Load the list to its end, newest first; what is there already is shown meanwhile. */
export async function load(): Promise<void> {
  if (isLoading.value) return;
  isLoading.value = true;
  try {
    let after = "";
    const found: PictureEntry[] = [];
    for (;;) {
      const page = await askPage(`limit=${PAGE}${after && `&after=${after}`}`);
      found.push(...page.pictures);
      if (found.length > entries.value.length || !page.next) entries.value = [...found];
      if (!page.next) break;
      after = page.next;
    }
    isLoaded.value = true;
    setTimeout(() => entries.peek().forEach(textOf)); // so that the first letter of a search need not
  } catch (error) {
    if (error instanceof Refused) notice("bad", error.message);
  } finally {
    isLoading.value = false;
  }
}

/** Put what was made meanwhile on top. */
async function refresh(): Promise<void> {
  const page = await askPage(`limit=${FRESH}`).catch(() => null);
  if (!page) return;
  const jobs = new Set(page.pictures.map((p) => p.job));
  const last = page.pictures.at(-1);
  const older = page.next && last ? entries.value.filter((e) => !jobs.has(e.job) && e.created <= last.created) : [];
  entries.value = [...page.pictures, ...older];
}

let newest = "";
effect(() => {
  const first = recent.value[0]?.id ?? "";
  if (!isLoaded.peek() || first === newest) return;
  newest = first;
  void refresh();
});
effect(() => {
  if (connection.value === "locked") { // another key sees other pictures
    entries.value = [];
    isLoaded.value = false;
  }
});

// --- searching --------------------------------------------------------------------------------

export interface Filters { words: string; model: string; board: string; star: boolean; rating: number; from: string; to: string }

export const NO_FILTERS: Filters = { words: "", model: "", board: "", star: false, rating: 0, from: "", to: "" };
export const filters = signal<Filters>(NO_FILTERS);

const texts = new WeakMap<PictureEntry, string>();

function textOf(entry: PictureEntry): string {
  let text = texts.get(entry);
  if (text === undefined) {
    const { prompt, negative_prompt, scheduler, loras } = entry.asked;
    const boards = entry.marks.boards ?? [];
    text = [prompt, negative_prompt, modelOf(entry), scheduler, ...((loras as string[] | undefined) ?? []), String(entry.seed), ...boards]
      .filter(Boolean).join("\n").toLowerCase();
    texts.set(entry, text);
  }
  return text;
}

/** Entries that fit all filters, in order. */
export function sieve(all: PictureEntry[], by: Filters, gone: ReadonlySet<string>): PictureEntry[] {
  const wanted = by.words.toLowerCase().split(/\s+/).filter(Boolean);
  const from = by.from ? new Date(`${by.from}T00:00:00`).getTime() / 1000 : -Infinity;
  const to = by.to ? new Date(`${by.to}T23:59:59.999`).getTime() / 1000 : Infinity;
  return all.filter((entry) =>
    !gone.has(entry.job)
    && (!by.model || modelOf(entry) === by.model)
    && (!by.star || entry.marks.star === true)
    && (!by.rating || (entry.marks.rating ?? 0) >= by.rating)
    && (!by.board || (entry.marks.boards ?? []).includes(by.board))
    && entry.created >= from && entry.created <= to
    && wanted.every((word) => textOf(entry).includes(word)));
}

export const found = computed(() => sieve(entries.value, filters.value, hidden.value));
export const boards = computed(() => {
  const count = new Map<string, number>();
  for (const entry of entries.value) for (const board of entry.marks.boards ?? []) count.set(board, (count.get(board) ?? 0) + 1);
  return [...count].sort(([a], [b]) => a.localeCompare(b));
});
export const modelsMade = computed(() => [...new Set(entries.value.map(modelOf))].sort());

// --- marks ------------------------------------------------------------------------------------

export function entryOf(job: string, index: number): PictureEntry | undefined {
  return entries.value.find((e) => e.job === job && e.index === index);
}

/** Change the marks of pictures: shown at once, put back where the server refuses. */
export async function mark(chosen: PictureEntry[], change: (marks: Marks) => Marks): Promise<void> {
  const before = new Map(chosen.map((entry) => [idOf(entry), entry.marks]));
  const put = (marks: Map<string, Marks>) => {
    entries.value = entries.value.map((entry) => {
      const next = marks.get(idOf(entry));
      return next ? { ...entry, marks: next } : entry;
    });
  };
  const after = new Map(chosen.map((entry) => [idOf(entry), change(entry.marks)]));
  for (const [id, marks] of after) marked.set(id, { marks, at: Infinity });
  put(after);
  const refused = new Map<string, Marks>();
  for (const entry of chosen) {
    const id = idOf(entry);
    try {
      await send(`${urlOf(entry)}/marks`, after.get(id) as unknown as Fields, { method: "PUT" });
    } catch (error) {
      refused.set(id, before.get(id)!);
      if (refused.size === 1) notice("bad", (error as Error).message);
    }
    if (marked.get(id)?.marks === after.get(id)) marked.set(id, { marks: refused.get(id) ?? after.get(id)!, at: performance.now() });
  }
  if (refused.size) put(refused);
}
