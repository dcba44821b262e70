// What the server says and takes. The shapes are those of its OpenAPI document, as far as this
// page uses them; tests/house/test_web.py compares the two.
import { signal } from "@preact/signals";

export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };
export type Fields = Record<string, Json>;

export interface Model {
  name: string;
  version: string;
  default: boolean;
  builtin?: boolean;
  ready: boolean;
  family: string;
  description?: string;
  licence?: string;
  takes_prompt: boolean;
  takes_negative_prompt?: boolean;
  takes_image?: boolean;
  image_references?: number[];
  size_multiple?: number;
  min_size_px?: number;
  max_size_px?: number;
  fixed_size?: boolean;
  class_names?: string[];
  token_limit?: number;
  defaults: Fields;
  limits?: string[];
}

export interface Schema {
  type?: string | string[];
  anyOf?: Schema[];
  enum?: Json[];
  items?: Schema;
  properties?: Record<string, Schema>;
  additionalProperties?: boolean | Schema;
  required?: string[];
  minimum?: number;
  maximum?: number;
  minItems?: number;
  maxItems?: number;
  contentEncoding?: string;
  description?: string;
}

export interface Capabilities {
  models: Model[];
  request: Schema;
  schedulers: string[];
  sigma_schedules: string[];
  gates: string[];
  limits: Record<string, number>;
  environment?: Fields;
  [name: string]: unknown;
}

export interface Marks {
  star?: boolean;
  rating?: number;
  boards?: string[];
}

export interface PictureEntry {
  job: string;
  index: number;
  created: number;
  seed: number | string;
  format: string;
  width: number;
  height: number;
  frames: number;
  asked: Fields;
  marks: Marks;
}

export interface MadeImage {
  index: number;
  seed: number | string;
  format: string;
  width: number;
  height: number;
  frames?: number;
  recipe_digest?: string;
  warnings?: string[];
  attempts?: Fields[];
  timings?: Record<string, number>;
  url: string;
}

export interface Job {
  id: string;
  status: string;
  created: number;
  started: number | null;
  finished: number | null;
  position: number;
  eta_s: number;
  progress: { step: number; steps: number };
  request: Fields;
  images: MadeImage[];
  cache: string;
  warnings: string[];
  error?: string;
}

export interface Reading {
  tokens: number | null;
  window: number | null;
  spans: [string, number][];
}

export interface Plan {
  plan: Fields;
  texts?: Record<string, Reading>;
  levels?: number[];
  warnings: string[];
  cost?: Record<string, Json>;
  cache?: string;
}

export interface Inspected {
  parameters: string;
  recipe: Json;
  request: Fields | null;
  not_honoured: string[];
}

export interface Run {
  name: string;
  status: string;
  step: number;
  steps?: number;
  loss?: number;
  eta_s?: number;
  steps_per_s?: number;
  written: number;
  grid: string | null;
  history: number[];
  can_resume: boolean;
  uses: ("lora" | "model")[];
  error?: string;
}

export interface RunDetail extends Run {
  curves: { loss: [number, number][]; held_out: [number, number][] };
  config: string;
  data: Fields | null;
  data_sheet: string | null;
  log: string[];
}

/** An answer that says what was wrong, in the server's words. */
export class Refused extends Error {
  constructor(message: string, readonly status: number, readonly field = "") {
    super(message);
  }
}

/** The server did not answer at all. */
export class Away extends Error {}

const KEY = "mezzotint-key";
export const apiKey = signal(sessionStorage.getItem(KEY) ?? "");

export function useKey(key: string): void {
  apiKey.value = key;
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

// Seeds reach 2^64 - 1, beyond what a number of JavaScript holds: they stay text. Within a
// JSON text a quote is always escaped, so that the pattern matches names alone.
export function parse<T>(text: string): T {
  return JSON.parse(text.replace(/"([a-z_]*seed)":\s*(\d{16,})/g, '"$1":"$2"')) as T;
}

export function headers(more: Record<string, string> = {}): Record<string, string> {
  return apiKey.value ? { ...more, Authorization: `Bearer ${apiKey.value}` } : more;
}

/** Ask the server; throws Refused with its words, or Away. */
export async function call(path: string, init: RequestInit = {}): Promise<Response> {
  let answer: Response;
  try {
    answer = await fetch(path, { ...init, headers: headers((init.headers as Record<string, string>) ?? {}) });
  } catch (error) {
    if ((error as Error).name === "AbortError") throw error;
    throw new Away(String(error));
  }
  if (answer.ok) return answer;
  let detail = `${answer.status} ${answer.statusText}`;
  let field = "";
  try {
    const body = parse<{ detail?: string; field?: string }>(await answer.text());
    detail = body.detail ?? detail;
    field = body.field ?? "";
  } catch {
    // no problem document: the status has to do
  }
  throw new Refused(detail, answer.status, field);
}

export async function ask<T>(path: string, init: RequestInit = {}): Promise<T> {
  return parse<T>(await (await call(path, init)).text());
}

export function send<T>(path: string, body: unknown, init: RequestInit = {}): Promise<T> {
  const more = (init.headers as Record<string, string>) ?? {};
  return ask<T>(path, {
    method: "POST", body: JSON.stringify(body), ...init, headers: { "Content-Type": "application/json", ...more },
  });
}

export interface ServerEvent {
  id: number;
  kind: string;
  data: Fields;
}

/** Follow server-sent events until they end; EventSource could not send a key. */
export async function* follow(path: string, after: number, signal: AbortSignal): AsyncGenerator<ServerEvent> {
  const answer = await call(path, { signal, headers: after ? { "Last-Event-ID": String(after) } : {} });
  const reader = answer.body!.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    for (let end = rest.indexOf("\n\n"); end >= 0; end = rest.indexOf("\n\n")) {
      const lines = rest.slice(0, end).split("\n");
      rest = rest.slice(end + 2);
      const find = (name: string) => lines.find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
      const data = find("data");
      if (data) yield { id: Number(find("id") ?? 0), kind: find("event") ?? "", data: parse<Fields>(data) };
    }
  }
}
