// Training runs: the grid that a run refreshes in place, looked at again every few seconds.
import { signal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";

import { ask, call, Refused, type Run } from "./api";
import { connection } from "./state";
import { words } from "./words";

const EVERY_MS = 4000;
const HIDDEN_MS = 30_000;

export const runs = signal<Run[]>([]);
let refused = ""; // the key that may not see runs: it is not asked with again

export async function watchRuns(key: () => string): Promise<void> {
  if (connection.value === "ready" && refused !== `key ${key()}`) {
    try {
      runs.value = (await ask<{ runs: Run[] }>("/v1/runs")).runs;
    } catch (error) {
      if (error instanceof Refused && error.status === 403) refused = `key ${key()}`;
    }
  }
  setTimeout(() => void watchRuns(key), document.hidden ? HIDDEN_MS : EVERY_MS);
}

export function Runs() {
  return (
    <section class="runs" aria-label={words.runs.label}>
      <h2>{words.runs.label}</h2>
      <div id="run-list">{runs.value.map((run) => <RunCard key={run.name} run={run} />)}</div>
    </section>
  );
}

function RunCard({ run }: { run: Run }) {
  const [past, setPast] = useState<number | null>(null);
  const [address, setAddress] = useState("");
  useEffect(() => {
    if (!run.grid) return;
    let isCurrent = true;
    const path = run.grid + (past === null ? "" : `?step=${past}`);
    call(path, { cache: "no-cache" })
      .then((answer) => answer.blob())
      .then((blob) => {
        if (!isCurrent) return;
        const made = URL.createObjectURL(blob);
        setAddress((old) => { if (old) URL.revokeObjectURL(old); return made; });
      }, () => undefined);
    return () => { isCurrent = false; };
  }, [run, past]);
  const facts = [
    run.status, words.runs.step(run.step, run.steps ?? 0),
    run.loss === undefined ? "" : words.runs.loss(run.loss.toPrecision(3)),
    run.status === "running" && run.eta_s ? words.runs.left(Math.ceil(run.eta_s / 60)) : "",
    past === null ? "" : words.runs.shown(past),
  ];
  return (
    <div class="run" data-run={run.name}>
      <h3>{run.name}</h3>
      {address ? <img src={address} alt={words.runs.alt(run.name)} /> : null}
      <p class="facts">{facts.filter(Boolean).join(" · ")}</p>
      {run.history.length > 1 ? (
        <input
          type="range" min={0} max={run.history.length} aria-label={words.runs.slider(run.name)}
          value={past === null ? run.history.length : run.history.indexOf(past)}
          onInput={(e) => setPast(run.history[Number(e.currentTarget.value)] ?? null)}
        />
      ) : null}
    </div>
  );
}
