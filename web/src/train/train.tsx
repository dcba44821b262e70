// Training runs: started, watched, stopped, resumed, used.
import { signal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";

import { ask, call, type Fields, Refused, type Run, type RunDetail, send } from "../api";
import { choose } from "../create/basics";
import { Icon } from "../icons";
import { connect, go, models, notice, request, set } from "../state";
import { duration } from "../text";
import { words } from "../words";
import { Curves } from "./curves";
import { NewRun } from "./form";
import { follow, forbidden, lookAtRuns, mayStart, runs } from "./runs";

const COMMAND = "mezzotint serve --training";
const chosen = signal("");
const making = signal<{ like: string } | null>(null);

export function Train() {
  useEffect(follow, []);
  const list = runs.value;
  if (forbidden.value) return <p class="nothing">{words.train.forbidden}</p>;
  if (list === null) return <p class="empty">{words.loading}</p>;
  const shown = list.find((run) => run.name === chosen.value) ?? list[0];
  const isOpen = making.value !== null;
  return (
    <section class="train" aria-label={words.rooms.train}>
      {list.length || isOpen ? (
        <div class="run-list">
          {mayStart.value ? <button type="button" class="primary" id="new-run" onClick={() => { making.value = { like: "" }; }}>{words.train.fresh}</button> : null}
          <ul id="run-list" aria-label={words.train.runs}>
            {list.map((run) => <li key={run.name}><RunTile run={run} isShown={!isOpen && run.name === shown?.name} /></li>)}
          </ul>
          {mayStart.value ? null : <p class="hint">{words.train.watchOnly}</p>}
        </div>
      ) : null}
      {isOpen ? (
        <NewRun
          key={making.value!.like} like={making.value!.like} taken={list.map((run) => run.name)}
          onStarted={(name) => { chosen.value = name; making.value = null; }} onClose={() => { making.value = null; }}
        />
      ) : shown ? <RunRoom key={shown.name} run={shown} /> : <Nothing />}
    </section>
  );
}

function Nothing() {
  return (
    <div class="nothing">
      <Icon name="learn" />
      <h2>{words.train.empty}</h2>
      <p>{words.train.emptyHow}</p>
      {mayStart.value
        ? <button type="button" class="primary" id="new-run" onClick={() => { making.value = { like: "" }; }}>{words.train.first}</button>
        : <><p>{words.train.off}</p><pre>{COMMAND}</pre></>}
    </div>
  );
}

/** A picture of a run by its address; asked for again when the run was written. */
function useRunPicture(path: string | null, mark: number): string {
  const [address, setAddress] = useState("");
  useEffect(() => {
    if (!path) return;
    let isCurrent = true;
    call(path, { cache: "no-cache" }).then((answer) => answer.blob()).then((blob) => {
      if (!isCurrent) return;
      const made = URL.createObjectURL(blob);
      setAddress((old) => { if (old) URL.revokeObjectURL(old); return made; });
    }, () => undefined);
    return () => { isCurrent = false; };
  }, [path, mark]);
  return address;
}

function facts(run: Run, isShort = false): string {
  const first = [words.train.status[run.status] ?? run.status, words.train.steps(run.step, run.steps ?? 0)];
  return isShort ? first.join(" · ") : [
    ...first,
    run.loss === undefined ? "" : words.train.lossIs(run.loss.toPrecision(3)),
    run.status === "running" && run.steps_per_s ? words.train.rate(run.steps_per_s.toPrecision(2)) : "",
    run.status === "running" && run.eta_s ? words.stage.left(duration(run.eta_s)) : "",
  ].filter(Boolean).join(" · ");
}

const DOTS: Record<string, string> = { running: "busy", finished: "ready", failed: "bad" };

function RunTile({ run, isShown }: { run: Run; isShown: boolean }) {
  const address = useRunPicture(run.grid, run.written);
  return (
    <button type="button" class="run" data-run={run.name} data-status={run.status} aria-current={isShown ? "true" : undefined} onClick={() => { chosen.value = run.name; making.value = null; }}>
      {address ? <img src={address} alt={words.train.alt(run.name)} /> : <span class="blank sample" aria-hidden="true"><Icon name="learn" /></span>}
      <span class="about"><b>{run.name}</b><small class="facts"><i class={`dot ${DOTS[run.status] ?? ""}`} aria-hidden="true" /> {facts(run, true)}</small></span>
    </button>
  );
}

function RunRoom({ run }: { run: Run }) {
  const [about, setAbout] = useState<RunDetail | null>(null);
  const [past, setPast] = useState<number | null>(null);
  useEffect(() => {
    let isCurrent = true;
    ask<RunDetail>(`/v1/runs/${run.name}`).then((found) => isCurrent && setAbout(found), () => undefined);
    return () => { isCurrent = false; };
  }, [run.name, run.written, run.status]);
  const grid = useRunPicture(run.grid && past !== null ? `${run.grid}?step=${past}` : run.grid, run.written);
  const isRunning = run.status === "running";
  const act = async (what: string, said: string) => {
    try {
      await send(`/v1/runs/${run.name}/${what}`, {});
      await lookAtRuns();
      notice("good", said);
    } catch (error) {
      notice("bad", (error as Error).message);
    }
  };
  const remove = async () => {
    if (!confirm(words.train.removeAsk(run.name))) return;
    try {
      await call(`/v1/runs/${run.name}`, { method: "DELETE" });
      chosen.value = "";
      await lookAtRuns();
      notice("good", words.operate.removed(run.name));
    } catch (error) {
      notice("bad", (error as Error).message);
    }
  };
  const asModel = async () => {
    try {
      if (!models.value.some((m) => m.name === run.name)) {
        await send(`/v1/runs/${run.name}/use`, { as: "model" });
        await connect();
      }
      choose(run.name);
      go("create");
    } catch (error) {
      notice("bad", (error as Error).message);
    }
  };
  const wear = async (isAgain = false): Promise<void> => {
    try {
      const { name, base } = await send<{ name: string; base: string }>(`/v1/runs/${run.name}/use`, { as: "lora", replace: isAgain });
      await connect();
      if (models.value.some((m) => m.name === base)) choose(base);
      const worn = Array.isArray(request.value.loras) ? (request.value.loras as Fields[]) : [];
      if (!worn.some((one) => one.name === name)) set("loras", [...worn, { name }]);
      go("create");
      notice("good", words.train.worn(name));
    } catch (error) {
      if (error instanceof Refused && error.status === 409 && error.field === "name" && !isAgain) {
        if (confirm(words.train.exchangeAsk(run.name))) await wear(true);
      } else {
        notice("bad", (error as Error).message);
      }
    }
  };
  const at = run.history.indexOf(past ?? -1);
  return (
    <article class="run-room panel" aria-label={run.name}>
      <header class="row">
        <h2 class="grow">{run.name}</h2>
        <div class="actions">
          {!isRunning && run.can_resume ? <button type="button" class="danger" id="remove-run" onClick={() => void remove()}>{words.gallery.delete}</button> : null}
          {isRunning && run.can_resume ? <button type="button" id="stop-run" onClick={() => void act("stop", words.train.stopping(run.name))}>{words.train.stop}</button> : null}
          {!isRunning && run.can_resume && run.status !== "finished" ? <button type="button" id="resume-run" onClick={() => void act("resume", words.train.resumed(run.name))}>{words.train.resume}</button> : null}
          {mayStart.value && about?.config ? <button type="button" id="like-run" onClick={() => { making.value = { like: about.config }; }}>{words.train.like}</button> : null}
          {run.uses.includes("lora") && run.uses.includes("model") ? <button type="button" id="use-merged" title={words.train.mergedWhy} onClick={() => void asModel()}>{words.train.merged}</button> : null}
          {run.uses.length ? <button type="button" class="primary" id="use-run" onClick={() => void (run.uses[0] === "lora" ? wear() : asModel())}>{words.train.use}</button> : null}
        </div>
      </header>
      <p class="facts" id="run-facts"><i class={`dot ${DOTS[run.status] ?? ""}`} aria-hidden="true" /> {facts(run)}</p>
      {run.steps ? <div class="progress" role="progressbar" aria-label={words.train.steps(run.step, run.steps)} aria-valuemin={0} aria-valuemax={run.steps} aria-valuenow={run.step}><i style={{ width: `${(100 * run.step) / run.steps}%` }} /></div> : null}
      {run.error ? <p class="notice bad" role="alert" id="run-error">{run.error}</p> : null}
      <div class="run-sides">
        <figure class="run-samples">
          {grid ? <img id="run-grid" src={grid} alt={words.train.alt(run.name)} /> : <p class="empty">{isRunning ? words.train.noSamplesYet : words.train.noSamples}</p>}
          {run.history.length > 1 ? (
            <figcaption>
              <input
                type="range" id="run-past" min={0} max={run.history.length} aria-label={words.train.slider(run.name)}
                aria-valuetext={words.train.shown(past ?? run.history.at(-1)!)} value={past === null ? run.history.length : at}
                onInput={(e) => setPast(run.history[Number(e.currentTarget.value)] ?? null)}
              />
              <output>{past === null ? words.train.newest : words.train.shown(past)}</output>
            </figcaption>
          ) : null}
        </figure>
        <div class="run-about">
          {about ? <Curves loss={about.curves.loss} heldOut={about.curves.held_out} steps={run.steps ?? 0} at={past} /> : null}
          {about?.data ? <Data report={about.data} sheet={about.data_sheet} /> : null}
        </div>
      </div>
      {about?.log.length && run.status === "failed" ? <details class="plain"><summary>{words.train.log}</summary><pre>{about.log.join("\n")}</pre></details> : null}
      {about?.config ? <details class="plain"><summary>{words.train.config}</summary><pre>{about.config}</pre></details> : null}
    </article>
  );
}

/** What the data was: counts, sizes, classes, what is wrong with it, and some of it. */
function Data({ report, sheet }: { report: Fields; sheet: string | null }) {
  const address = useRunPicture(sheet, 0);
  const counts = (value: unknown) => Object.entries((value ?? {}) as Record<string, number>).slice(0, 8).map(([name, n]) => `${name} (${n})`).join(", ");
  const list = (value: unknown) => (Array.isArray(value) ? value.map((v) => (Array.isArray(v) ? v.join(", ") : String(v))) : []);
  const rows: [string, string][] = [
    [words.train.data.count, `${String(report.count)} ${String(report.kind)}`], [words.train.data.sizes, counts(report.sizes)],
    [words.train.data.captions, report.captions ? String(report.captions) : ""], [words.train.data.classes, counts(report.classes)],
    [words.train.data.duplicates, list(report.duplicates).slice(0, 5).join("; ")], [words.train.data.broken, list(report.broken).slice(0, 5).join("; ")],
  ];
  return (
    <section class="run-data" id="run-data-report" aria-label={words.train.data.label}>
      <h3>{words.train.data.label}</h3>
      <dl>{rows.filter(([, text]) => text).map(([name, text]) => <><dt>{name}</dt><dd>{text}</dd></>)}</dl>
      {list(report.warnings).map((text) => <p class="warn">{text}</p>)}
      {address ? <img src={address} alt={words.train.data.alt} /> : null}
    </section>
  );
}
