// The server's queue and gallery, as this page knows them. The list of open jobs is asked for
// again and again, which tells at once whether the server is there; events of the job that is
// looked at bring its previews.
import { batch, computed, signal } from "@preact/signals";

import { ask, Away, call, type Fields, follow, type Job, Refused, send } from "./api";
import { filled } from "./create/wild";
import { capabilities, connect, connection, modelOf, notice, rememberPrompt, request, verdict } from "./state";
import { words } from "./words";

const EVERY_MS = 1000;
const IDLE_MS = 2500;
const HIDDEN_MS = 10_000;
const NARROW_PX = 860; // as in style.css
const REPLAY_MS = 250;

export const open = signal<Job[]>([]); // newest first
export const recent = signal<Job[]>([]);
export const recentNext = signal<string | null>(null);
export const watched = signal<string | null>(null); // id of the job on the stage
export const shown = signal<{ job: string; index: number } | null>(null);
export const live = signal<Record<string, { image: number; step: number; steps: number; preview: string; began: number; first: number; done: Record<number, number> }>>({}); // done: steps by picture; first: of all, when it began
export const notifyWhenDone = signal(localStorage.getItem("mezzotint-notify") === "yes");

export const queue = computed(() => [...open.value].reverse());
export const watchedJob = computed(() =>
  open.value.find((j) => j.id === watched.value) ?? recent.value.find((j) => j.id === watched.value),
);
export const shownJob = computed(() =>
  shown.value ? [...open.value, ...recent.value].find((j) => j.id === shown.value!.job) : undefined,
);
export const shownImage = computed(() => shownJob.value?.images.find((i) => i.index === shown.value!.index));

let timer = 0;
let asking = false;

/** Ask for the open jobs now, and go on asking. */
export async function watch(): Promise<void> {
  clearTimeout(timer);
  if (asking) return;
  asking = true;
  try {
    if (connection.value !== "ready" || !capabilities.value) {
      if (!(await connect())) return;
    }
    await look();
    connection.value = "ready";
  } catch (error) {
    const found = verdict(error);
    if (found === "ready") notice("bad", (error as Error).message);
    connection.value = found;
  } finally {
    asking = false;
    const calm = open.value.length === 0 ? IDLE_MS : EVERY_MS;
    timer = window.setTimeout(() => void watch(), document.hidden ? HIDDEN_MS : calm);
  }
}

async function look(): Promise<void> {
  const found = (await ask<{ jobs: Job[] }>("/v1/gallery?which=open&limit=200")).jobs;
  const known = new Set(found.map((j) => j.id));
  const ended = open.value.filter((j) => !known.has(j.id));
  // What ended is asked for before it leaves the queue, so that no moment shows neither.
  const page = ended.length || recent.value.length === 0 ? await newest() : null;
  batch(() => {
    open.value = found;
    if (page) take(page);
    for (const job of ended) settle(job.id);
  });
  if (ended.some((j) => modelOf(j.request)?.ready === false)) void connect(); // it is loaded now
  const running = found.filter((j) => j.status === "running");
  if (watched.value === null || (!known.has(watched.value) && running.length)) {
    const oldest = running.at(-1);
    if (oldest) watched.value = oldest.id;
  }
  attend();
}

interface Page { jobs: Job[]; next: string | null }

function newest(): Promise<Page> {
  return ask<Page>("/v1/gallery?which=ended&limit=60");
}

/** Take the newest ended jobs; what was loaded below them stays. */
function take(page: Page): void {
  const fresh = new Set(page.jobs.map((j) => j.id));
  const last = page.jobs.at(-1);
  const older = last ? recent.value.filter((j) => !fresh.has(j.id) && j.created < last.created) : [];
  recent.value = [...page.jobs, ...older];
  if (older.length === 0) recentNext.value = page.next;
  if (!shown.value && !watched.value) {
    const first = page.jobs.find((j) => j.images.length);
    if (first) shown.value = { job: first.id, index: first.images[0]!.index };
  }
}

export async function loadMore(): Promise<void> {
  if (!recentNext.value) return;
  const page = await ask<{ jobs: Job[]; next: string | null }>(`/v1/gallery?which=ended&limit=60&after=${recentNext.value}`);
  const known = new Set(recent.value.map((j) => j.id));
  recent.value = [...recent.value, ...page.jobs.filter((j) => !known.has(j.id))];
  recentNext.value = page.next;
}

const mine = new Set<string>(); // made from this tab: told when they end

function settle(id: string): void {
  const { [id]: _, ...rest } = live.value;
  live.value = rest;
  const job = recent.value.find((j) => j.id === id);
  if (!job) return;
  if (watched.value === id) {
    const first = job.images[0];
    if (first && shown.value?.job !== id) shown.value = { job: id, index: first.index };
    if (open.value.every((j) => j.status !== "running")) watched.value = first ? null : id;
  }
  if (mine.delete(id)) {
    if (job.status === "failed") notice("bad", job.error ?? words.queue.status.failed!);
    if (job.warnings.length) notice("warn", words.detail.warnings, { lines: job.warnings });
    if (notifyWhenDone.value && document.hidden && "Notification" in window && Notification.permission === "granted") {
      new Notification(words.queue.done, { body: String(job.request.prompt ?? "") });
    }
  }
}

const AT_ONCE = 3; // streams: a browser opens six connections to a host
const attended = new Map<string, AbortController>(); // by job
const seen = new Map<string, number>(); // last event of each job, to resume after

/** Hold the streams of the job on the stage and of the oldest others that run. */
function attend(): void {
  const running = queue.value.filter((j) => j.status === "running").map((j) => j.id);
  const first = open.value.filter((j) => j.id === watched.value).map((j) => j.id);
  const wanted = [...new Set([...first, ...running])].slice(0, AT_ONCE);
  for (const [id, stop] of attended) {
    if (wanted.includes(id)) continue;
    stop.abort();
    attended.delete(id);
  }
  for (const id of wanted) {
    if (attended.has(id)) continue;
    const stop = new AbortController();
    attended.set(id, stop);
    void listen(id, stop.signal).finally(() => { if (attended.get(id) === stop) attended.delete(id); });
  }
}

async function listen(id: string, signal: AbortSignal): Promise<void> {
  try {
    for await (const event of follow(`/v1/jobs/${id}/events`, seen.get(id) ?? 0, signal)) {
      seen.set(id, event.id);
      if (event.kind === "step") {
        const data = event.data as { image: number; step: number; steps: number; preview: string | null };
        const past = live.value[id];
        const preview = data.preview ? dataUrl(data.preview) : (past?.preview ?? "");
        const began = past?.began ?? Date.now();
        const done = { ...past?.done, [data.image]: data.step };
        // events of the past come at once after a reload: none of them is a step that was waited for
        const first = past && Date.now() - began > REPLAY_MS ? past.first : Object.values(done).reduce((sum, at) => sum + at, 0);
        live.value = { ...live.value, [id]: { ...data, preview, began, first, done } };
      } else if (["image", "finished", "failed", "cancelled"].includes(event.kind)) {
        await sooner();
      }
    }
  } catch (error) {
    if (!signal.aborted && !(error instanceof Away)) void sooner();
  }
}

async function sooner(): Promise<void> {
  while (asking) await new Promise((resolve) => setTimeout(resolve, 20));
  await watch();
}

/** Write base64 text of a picture as an address. */
export function dataUrl(b64: string): string {
  if (b64.startsWith("data:")) return b64;
  const kind = b64.startsWith("/9j/") ? "jpeg" : b64.startsWith("UklGR") ? "webp" : "png";
  return `data:image/${kind};base64,${b64}`;
}

function fresh(): string {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((n) => n.toString(16).padStart(2, "0")).join("");
}

export const sending = signal(0); // requests on their way to the queue

/** Queue the request of the form. The key makes a second try after a lost answer the same job. */
export async function generate(wanted: Fields = request.value): Promise<void> {
  sending.value += 1;
  if (innerWidth <= NARROW_PX) scrollTo({ top: 0 }); // there the picture stands above the form
  try {
    await submit(filled(wanted));
  } finally {
    sending.value -= 1;
  }
}

async function submit(wanted: Fields): Promise<void> {
  const key = fresh();
  rememberPrompt(String(wanted.prompt ?? ""));
  for (let attempt = 0; ; attempt += 1) {
    try {
      const job = await send<{ id: string }>("/v1/jobs", wanted, { headers: { "Idempotency-Key": key } });
      mine.add(job.id);
      if (!open.value.some((j) => j.status === "running")) watched.value = job.id;
      await sooner();
      if (!open.value.some((j) => j.id === job.id)) {
        const page = await newest(); // it has ended already
        batch(() => {
          take(page);
          settle(job.id);
        });
      }
      return;
    } catch (error) {
      if (error instanceof Away && attempt < 4) {
        await new Promise((resolve) => setTimeout(resolve, 800));
        continue;
      }
      connection.value = verdict(error);
      notice("bad", error instanceof Refused ? error.message : words.state.away);
      return;
    }
  }
}

export async function cancel(id: string): Promise<void> {
  try {
    await call(`/v1/jobs/${id}`, { method: "DELETE" });
  } catch (error) {
    notice("bad", (error as Error).message);
  }
  await sooner();
}

export async function cancelAll(): Promise<void> {
  const ids = queue.value.map((j) => j.id).reverse(); // the last first, so that none begins meanwhile
  await Promise.all(ids.map((id) => call(`/v1/jobs/${id}`, { method: "DELETE" }).catch(() => null)));
  await sooner();
}

const leaving = new Map<string, number>();
export const hidden = signal<ReadonlySet<string>>(new Set());

/** Take jobs out of the gallery; they are deleted when the time to undo is over. */
export function remove(ids: string[]): void {
  hidden.value = new Set([...hidden.value, ...ids]);
  if (shown.value && ids.includes(shown.value.job)) shown.value = null;
  const undo = () => {
    for (const id of ids) clearTimeout(leaving.get(id));
    hidden.value = new Set([...hidden.value].filter((id) => !ids.includes(id)));
  };
  for (const id of ids) leaving.set(id, window.setTimeout(() => void deleteNow(id), 8000));
  notice("good", words.gallery.deleted(ids.length), { undo, undoText: words.gallery.undo });
}

async function deleteNow(id: string): Promise<void> {
  try {
    await call(`/v1/gallery/${id}`, { method: "DELETE", keepalive: true });
    recent.value = recent.value.filter((j) => j.id !== id);
  } catch (error) {
    notice("bad", (error as Error).message);
  }
  hidden.value = new Set([...hidden.value].filter((other) => other !== id));
  leaving.delete(id);
}

addEventListener("pagehide", () => {
  for (const [id, waiting] of leaving) {
    clearTimeout(waiting);
    void deleteNow(id);
  }
});

/** Every picture of the gallery in order, newest first. */
export const pictures = computed(() =>
  recent.value
    .filter((j) => !hidden.value.has(j.id))
    .flatMap((job) => job.images.map((image) => ({ job, image }))),
);

export function step(by: number): void {
  const list = pictures.value;
  if (!list.length) return;
  const at = list.findIndex((p) => p.job.id === shown.value?.job && p.image.index === shown.value?.index);
  const next = list[Math.max(0, Math.min(list.length - 1, (at < 0 ? -by : at) + by))];
  if (next) {
    watched.value = null;
    shown.value = { job: next.job.id, index: next.image.index };
  }
}

/** The whole request of a job for one of its pictures: that picture's seed, one picture. */
export async function requestOf(job: Job, index: number): Promise<Fields> {
  const whole = await ask<Fields>(`/v1/jobs/${job.id}/request`);
  const image = job.images.find((i) => i.index === index);
  if (!image || whole.walk) return whole;
  const { num_images: _, ...rest } = whole;
  const variation = rest.variation as Fields | undefined;
  if (variation?.seed !== undefined && variation.seed !== null) {
    const seed = BigInt.asUintN(64, BigInt(String(variation.seed)) + BigInt(index));
    rest.variation = { ...variation, seed: String(seed) };
  }
  return { ...rest, seed: String(image.seed) };
}
