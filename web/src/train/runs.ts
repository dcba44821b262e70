// Training runs: what there is, looked at again every few seconds.
import { effect, signal } from "@preact/signals";

import { apiKey, ask, Refused, type Run } from "../api";
import { connection } from "../state";

const EVERY_MS = 3000;

export const runs = signal<Run[] | null>(null); // null: not known yet
export const mayStart = signal(false);
export const forbidden = signal(false);
let refused = ""; // the key that may not see runs: it is not asked with again

export async function lookAtRuns(): Promise<void> {
  if (connection.value !== "ready" || refused === `key ${apiKey.value}`) return;
  try {
    const found = await ask<{ runs: Run[]; can_start: boolean }>("/v1/runs");
    runs.value = found.runs;
    mayStart.value = found.can_start;
    forbidden.value = false;
  } catch (error) {
    if (error instanceof Refused && [401, 403].includes(error.status)) {
      refused = `key ${apiKey.value}`;
      forbidden.value = true;
    }
  }
}

/** Look again and again, until the answer is called. */
export function follow(): () => void {
  const dispose = effect(() => { if (connection.value === "ready") void lookAtRuns(); });
  const timer = setInterval(() => { if (!document.hidden) void lookAtRuns(); }, EVERY_MS);
  return () => { dispose(); clearInterval(timer); };
}
