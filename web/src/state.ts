// The one state of the form: the whole native request. Nothing is sent that does not stand in
// it, and what no widget shows stands as a chip.
import { computed, effect, signal } from "@preact/signals";

import { ask, Away, type Capabilities, type Fields, type Json, type Model, type Plan, Refused, send } from "./api";
import { abilitiesOf } from "./create/abilities";
import { keep, recall } from "./keep";
import { TECHNIQUES } from "./techniques";

export type Connection = "connecting" | "ready" | "away" | "warming" | "locked";

export const connection = signal<Connection>("connecting");
export const capabilities = signal<Capabilities | null>(null);
export const request = signal<Fields>({});
export const before = signal<Fields | null>(null); // what a drop replaced
export const prompts = signal<string[]>([]); // earlier ones, newest first
export const plan = signal<Plan | null>(null);
export const planError = signal<Refused | null>(null);
export const room = signal(location.hash.slice(1).split("/")[0] || "create");
/** Go to a room. The address is what counts: the room follows it. */
export function go(name: string): void {
  location.hash = name;
}

export const notices = signal<{ id: number; kind: "bad" | "warn" | "good"; text: string; lines?: string[]; undo?: () => void; undoText?: string }[]>([]);

let noticed = 0;
export function notice(kind: "bad" | "warn" | "good", text: string, more: { lines?: string[]; undo?: () => void; undoText?: string } = {}): void {
  noticed += 1;
  const id = noticed;
  notices.value = [...notices.value.slice(-3), { id, kind, text, ...more }];
  if (kind === "good") setTimeout(() => dismiss(id), 8000);
}
export function dismiss(id: number): void {
  notices.value = notices.value.filter((n) => n.id !== id);
}

export const models = computed<Model[]>(() =>
  (capabilities.value?.models ?? []).filter((m) => m.default && m.family !== "handler"),
);
export const DEFAULT_MODEL = "plate";
/** The model that the request means: its own, else the server's default, else one that takes text. */
export const model = computed<Model | undefined>(() => modelOf(request.value));
export function modelOf(wanted: Fields): Model | undefined {
  const named = wanted.model as string | undefined;
  return models.value.find((m) => m.name === (named ?? DEFAULT_MODEL));
}
export const limits = computed(() => capabilities.value?.limits ?? {});
export const schema = computed(() => capabilities.value?.request ?? { properties: {} });

/** Names that a field may hold, where the server has a list of them. */
export function choices(path: string): string[] | null {
  const about = capabilities.value;
  if (!about) return null;
  const list = (name: string) => (Array.isArray(about[name]) ? (about[name] as string[]) : null);
  const known: Record<string, () => string[] | null> = {
    model: () => models.value.map((m) => m.name),
    "ensemble.model": () => models.value.map((m) => m.name),
    scheduler: () => abilitiesOf(model.value, about)?.schedulers ?? list("schedulers"),
    sigma_schedule: () => list("sigma_schedules"),
    "controls.preprocess": () => list("preprocessors"),
    "upscale.model": () => list("upscalers"),
  };
  const [technique = "", field] = path.split(".");
  const isNamed = field !== undefined && TECHNIQUES[technique]?.names === field;
  return known[path]?.() ?? (isNamed ? list(technique) : null);
}

/** Set a field, or take it out of the request (undefined). */
export function set(name: string, value: Json | undefined): void {
  const { [name]: _, ...rest } = request.value;
  if (name === "mask" && value === undefined) delete rest.inpaint; // it is about the mask alone
  request.value = value === undefined ? rest : { ...rest, [name]: value };
}

/** Put a whole request in place of the form's; the one before can be had back. */
export function replace(wanted: Fields): void {
  before.value = request.value;
  request.value = wanted;
}

export async function restoreForm(): Promise<void> {
  const text = localStorage.getItem(KEPT);
  const kept = text ? (JSON.parse(text) as Fields) : await recall<Fields>("request");
  if (kept) request.value = kept;
  prompts.value = (await recall<string[]>("prompts")) ?? [];
  effect(() => keepRequest(request.value));
}

const KEPT = "mezzotint-request";
const MOST_TEXT = 200_000;

// At once where it is small, so that not even a reload right after a key press loses it.
function keepRequest(value: Fields): void {
  const text = JSON.stringify(value);
  try {
    if (text.length < MOST_TEXT) {
      localStorage.setItem(KEPT, text);
      return;
    }
    localStorage.removeItem(KEPT);
  } catch {
    // no room, or nothing may be kept
  }
  void keep("request", value);
}

export function rememberPrompt(text: string): void {
  if (!text.trim()) return;
  prompts.value = [text, ...prompts.value.filter((p) => p !== text)].slice(0, 50);
  void keep("prompts", prompts.value);
}

/** Ask what the server can do; sets the connection to what came of it. */
export async function connect(): Promise<boolean> {
  try {
    capabilities.value = await ask<Capabilities>("/v1/capabilities");
    connection.value = "ready";
    const names = models.value.map((m) => m.name);
    if (request.value.model === undefined && names.length && !names.includes(DEFAULT_MODEL)) {
      const ready = models.value.find((m) => m.ready && m.takes_prompt) ?? models.value[0];
      set("model", ready!.name);
    }
    return true;
  } catch (error) {
    connection.value = verdict(error);
    return false;
  }
}

export function verdict(error: unknown): Connection {
  if (error instanceof Away) return "away";
  if (error instanceof Refused) {
    if (error.status === 401) return "locked";
    if (error.status === 503) return "warming";
    return "ready";
  }
  return "away";
}

export const planning = signal(false); // whether what stands there is about an earlier request

// The plan under the button follows the request, a moment after the last change.
let waiting = 0;
let asked = 0;
export function planAlong(): void {
  effect(() => {
    const wanted = request.value;
    const ok = connection.value === "ready" && capabilities.value !== null;
    clearTimeout(waiting);
    const isBlank = model.value?.takes_prompt !== false && !String(wanted.prompt ?? "").trim() && wanted.image === undefined;
    if (!ok || isBlank) {
      asked += 1; // an answer under way is about something else
      plan.value = null;
      planError.value = null;
      planning.value = false;
      return;
    }
    planning.value = true;
    waiting = window.setTimeout(() => void askPlan(wanted), 250);
  });
}

async function askPlan(wanted: Fields): Promise<void> {
  asked += 1;
  const mine = asked;
  try {
    const found = await send<Plan>("/v1/plan", wanted);
    if (mine !== asked) return;
    plan.value = found;
    planError.value = null;
    planning.value = false;
  } catch (error) {
    if (mine !== asked) return;
    planning.value = false;
    if (error instanceof Refused) {
      planError.value = error;
      plan.value = null;
    }
  }
}

export const wrongField = computed(() => planError.value?.field.split(".")[0] ?? "");
