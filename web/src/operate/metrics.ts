// The server's measurements, read from Prometheus' text, kept for some minutes.
import { signal } from "@preact/signals";

import { call, Refused } from "../api";

export interface Sample { at: number; values: Record<string, number> } // sums over labels, and some by label

const KEPT = 150;
export const EVERY_MS = 2000;

export const samples = signal<Sample[]>([]);
export const memory = signal<{ name: string; bytes: number }[]>([]);
export const budget = signal<Record<string, number>>({});
export const mayOperate = signal(true);

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? ([-+.\deEinfNa]+)$/;

/** Read samples: the sum of each name over its labels, and each name with its labels. */
export function parseMetrics(text: string): { sums: Record<string, number>; each: [string, Record<string, string>, number][] } {
  const sums: Record<string, number> = {};
  const each: [string, Record<string, string>, number][] = [];
  for (const line of text.split("\n")) {
    const found = LINE.exec(line);
    if (!found) continue;
    const [, name, labels, number] = found as unknown as [string, string, string | undefined, string];
    const value = Number(number);
    if (!Number.isFinite(value)) continue;
    sums[name] = (sums[name] ?? 0) + value;
    const named = Object.fromEntries([...(labels ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map((m) => [m[1], m[2]]));
    each.push([name, named, value]);
  }
  return { sums, each };
}

export async function look(): Promise<void> {
  try {
    const { sums, each } = parseMetrics(await (await call("/v1/operations/metrics")).text());
    const hits = each.filter(([n, l]) => n === "mezzotint_cache_lookups_total" && l.answer === "hit").reduce((a, [, , v]) => a + v, 0);
    samples.value = [...samples.value.slice(1 - KEPT), { at: Date.now(), values: { ...sums, hits } }];
    memory.value = each.filter(([n, , bytes]) => n === "mezzotint_memory_bytes" && bytes > 0).map(([, labels, bytes]) => ({ name: labels.model || (labels.kind ?? ""), bytes }));
    budget.value = Object.fromEntries(each.filter(([n]) => n === "mezzotint_memory_budget_bytes").map(([, labels, bytes]) => [labels.kind ?? "", bytes]));
    mayOperate.value = true;
  } catch (error) {
    if (error instanceof Refused && [401, 403].includes(error.status)) mayOperate.value = false;
  }
}

/** Differences between neighbours, a second: negative ones are a restart, and count as 0. */
export function rate(name: string): number[] {
  return pairs((a, b, seconds) => Math.max(0, (b[name] ?? 0) - (a[name] ?? 0)) / seconds);
}

/** What one event took or held on average, between neighbours. */
export function mean(sum: string, count: string): number[] {
  return pairs((a, b) => {
    const n = (b[count] ?? 0) - (a[count] ?? 0);
    return n > 0 ? ((b[sum] ?? 0) - (a[sum] ?? 0)) / n : 0;
  });
}

export function level(name: string): number[] {
  return samples.value.map((s) => s.values[name] ?? 0);
}

function pairs(read: (a: Record<string, number>, b: Record<string, number>, seconds: number) => number): number[] {
  const list = samples.value;
  return list.slice(1).map((s, k) => read(list[k]!.values, s.values, Math.max(0.1, (s.at - list[k]!.at) / 1000)));
}
