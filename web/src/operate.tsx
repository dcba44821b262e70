// What the server is and has: health, measurements, models, clients, answers.
import { signal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";

import { ask, call, type Fields, type Model, Refused, send } from "./api";
import { choose, factsOf, Sample } from "./create/basics";
import { budget, EVERY_MS, level, look as measure, mayOperate, mean, memory, rate } from "./operate/metrics";
import { capabilities, connect, go, models, notice } from "./state";
import { duration, size, when } from "./text";
import { nameOf, wordFor, words } from "./words";

const health = signal<Fields>({});
const HEALTH = ["ready", "draining", "reason", "queue", "backlog_s", "restarts", "device"]; // in this order

async function look(): Promise<void> {
  try {
    health.value = await ask<Fields>("/health/ready");
  } catch (error) {
    health.value = { ready: false, reason: error instanceof Refused ? error.message : words.state.away };
  }
  if (mayOperate.value) await measure();
}

export function Operate() {
  useEffect(() => {
    mayOperate.value = true;
    void look();
    void connect(); // which models are loaded may have changed
    const timer = setInterval(() => { if (!document.hidden) void look(); }, EVERY_MS);
    return () => clearInterval(timer);
  }, []);
  const read = (value: unknown) => (typeof value === "number" && !Number.isInteger(value) ? value.toFixed(1)
    : typeof value === "boolean" ? (value ? words.yes : words.no) : String(value));
  return (
    <section class="operate" aria-label={words.rooms.operate}>
      <h2>{words.operate.health}</h2>
      <dl class="figures" id="health">
        {HEALTH.filter((name) => name in health.value).map((name) => (
          <div key={name}><dt>{nameOf(name)}</dt><dd>{read(health.value[name])}</dd></div>
        ))}
      </dl>
      {mayOperate.value ? <Charts /> : <p class="hint">{words.operate.forbidden}</p>}
      <h2>{words.operate.models}</h2>
      <ul class="models">{(capabilities.value?.models ?? []).map((m) => <Card key={`${m.name}@${m.version}`} about={m} />)}</ul>
      {mayOperate.value ? <><AddModel /><Nodes /><Clients /><Answers /></> : null}
      <details>
        <summary>{words.operate.environment}</summary>
        <table><tbody>
          {Object.entries(capabilities.value?.environment ?? {}).map(([name, value]) => (
            <tr key={name}><th scope="row">{name}</th><td>{String(value)}</td></tr>
          ))}
        </tbody></table>
      </details>
    </section>
  );
}

// --- charts -----------------------------------------------------------------------------------

function Charts() {
  const per = (n: number) => (n >= 10 ? n.toFixed(0) : n.toFixed(1));
  const hits = rate("hits");
  const lookups = rate("mezzotint_cache_lookups_total");
  const jobs = level("mezzotint_running_images").map((v, k) => v + (level("mezzotint_queue_images")[k] ?? 0));
  return (
    <>
      <h2>{words.operate.live}</h2>
      <div class="sparks">
        <Spark name={words.operate.pictures} values={rate("mezzotint_images_total").map((v) => v * 60)} read={per} />
        <Spark name={words.operate.stepRate} values={rate("mezzotint_steps_total")} read={per} />
        <Spark name={words.operate.rows} values={mean("mezzotint_batch_rows_sum", "mezzotint_batch_rows_count")} read={per} />
        <Spark name={words.operate.waiting} values={jobs} read={(n) => n.toFixed(0)} />
        <Spark name={words.operate.latency} values={mean("mezzotint_http_seconds_sum", "mezzotint_http_seconds_count")} read={(n) => `${(n * 1000).toFixed(0)} ms`} />
        <Spark name={words.operate.cache} values={hits.map((h, k) => (lookups[k] ? (100 * h) / lookups[k] : 0))} read={(n) => `${n.toFixed(0)} %`} />
        <Spark name={words.operate.memory} values={level("mezzotint_resident_bytes")} read={size} />
      </div>
      {memory.value.length ? <MemoryMap /> : null}
    </>
  );
}

const W = 200;
const H = 44;

function Spark({ name, values, read }: { name: string; values: number[]; read: (n: number) => string }) {
  const top = Math.max(...values, 1e-9);
  const x = (k: number) => W - (values.length - 1 - k) * (W / 149);
  const y = (v: number) => H - 2 - (v / top) * (H - 6);
  const last = values.at(-1) ?? 0;
  const path = values.map((v, k) => `${k ? "L" : "M"}${x(k).toFixed(1)} ${y(v).toFixed(1)}`).join("");
  return (
    <figure class="spark">
      <figcaption><span>{name}</span><b>{read(last)}</b></figcaption>
      <svg viewBox={`0 0 ${W} ${H}`} preserveAspectRatio="none" role="img" aria-label={words.operate.sparkAlt(name, read(last), read(top === 1e-9 ? 0 : top))}>
        {values.length > 1 ? <><path class="area" d={`${path}L${W} ${H}L${x(0).toFixed(1)} ${H}Z`} /><path class="line" d={path} /></> : null}
      </svg>
    </figure>
  );
}

function MemoryMap() {
  const all = memory.value.reduce((sum, m) => sum + m.bytes, 0);
  if (!all) return null;
  const bound = budget.value.weights ? budget.value.weights + (budget.value.pictures ?? 0) : 0;
  return (
    <figure class="timings" id="memory">
      <figcaption>{words.operate.memoryMap}: {size(all)}{bound ? ` / ${size(bound)}` : ""}</figcaption>
      <div class="bar" aria-hidden="true">{memory.value.map((m, k) => <i key={m.name} data-k={k % 5} style={{ width: `${(100 * m.bytes) / Math.max(all, bound)}%` }} title={m.name} />)}</div>
      <p>{[...memory.value.map((m) => `${wordFor(m.name) ?? m.name} ${size(m.bytes)}`), bound > all ? words.operate.free(size(bound - all)) : ""].filter(Boolean).join(" · ")}</p>
    </figure>
  );
}

// --- models -----------------------------------------------------------------------------------

/** How much memory a loaded model takes, and where and in which type it computes. */
function placement(about: Model): string[] {
  const held = memory.value.find((m) => m.name === about.name || m.name === `${about.name}@${about.version}`);
  const { device, dtype, backend, placement: options } = capabilities.value?.environment ?? {};
  const rest = Object.entries((options ?? {}) as Fields).map(([name, value]) => `${name} ${String(value)}`);
  return [held ? size(held.bytes) : "", ...[device, dtype, backend].map((part) => String(part ?? "")), ...rest].filter(Boolean);
}

function Card({ about }: { about: Model }) {
  const use = () => {
    choose(about.default ? about.name : `${about.name}@${about.version}`);
    go("create");
  };
  const change = async (how: () => Promise<unknown>, said: string) => {
    try {
      await how();
      await connect();
      notice("good", said);
    } catch (error) {
      notice("bad", (error as Error).message);
    }
  };
  const path = `/v1/operations/models/${encodeURIComponent(about.name)}/${encodeURIComponent(about.version)}`;
  const [isBusy, setBusy] = useState(false);
  const move = async () => { // into memory or out of it
    setBusy(true);
    const [verb, said] = about.ready ? ["unload", words.operate.isUnloaded] : ["load", words.operate.isLoaded];
    const full = encodeURIComponent(`${about.name}@${about.version}`);
    await change(() => call(`/v1/operations/models/${full}/${verb}`, { method: "POST" }), said(about.name));
    setBusy(false);
  };
  return (
    <li class="model" data-model={about.name}>
      <Sample about={about} name={about.name} />
      <div class="about">
        <h3>{about.name} <small>{about.version}{about.default && models.value.length ? "" : ` · ${words.operate.notDefault}`}</small></h3>
        {about.description ? <p>{about.description}</p> : null}
        <p class="hint">{factsOf(about).join(" · ")}</p>
        {about.limits?.length ? <p class="hint">{about.limits.join("; ")}</p> : null}
        <p class="ready"><span class={`dot ${about.ready ? "ready" : ""}`} aria-hidden="true" />{about.ready ? [words.operate.loaded, ...placement(about)].join(" · ") : words.operate.unloaded}</p>
        <div class="actions">
          {about.family === "handler" ? null : <button type="button" aria-label={`${words.operate.use}: ${about.name}`} onClick={use}>{words.operate.use}</button>}
          {mayOperate.value && about.family !== "handler" ? (
            <button type="button" data-memory={about.ready ? "unload" : "load"} disabled={isBusy} title={about.ready ? words.operate.unloadHint : words.operate.loadHint} onClick={() => void move()}>
              {about.ready ? words.operate.unload : isBusy ? words.loading : words.operate.load}
            </button>
          ) : null}
          {mayOperate.value && !about.default ? (
            <button type="button" onClick={() => void change(() => call(`${path}/default`, { method: "PUT" }), words.operate.madeDefault(about.name, about.version))}>{words.operate.makeDefault}</button>
          ) : null}
          {mayOperate.value && !about.builtin ? (
            <button
              type="button" class="danger" aria-label={`${words.operate.remove}: ${about.name}`}
              onClick={() => { if (confirm(words.operate.removeAsk(about.name))) void change(() => call(path, { method: "DELETE" }), words.operate.removed(about.name)); }}
            >{words.operate.remove}</button>
          ) : null}
        </div>
      </div>
    </li>
  );
}

function AddModel() {
  const [source, setSource] = useState("");
  const [name, setName] = useState("");
  const [wrong, setWrong] = useState<{ field: string; text: string } | null>(null);
  const [isBusy, setBusy] = useState(false);
  const [store, setStore] = useState<{ files: string[]; limit: number }>({ files: [], limit: 0 });
  const lookIn = () => ask<{ files: string[]; limit: number }>("/v1/operations/files").then(setStore, () => undefined);
  useEffect(() => { void lookIn(); }, []);
  const upload = async (file: File | undefined) => {
    if (!file) return;
    setBusy(true);
    setWrong(null);
    try {
      const path = `/v1/operations/files/${encodeURIComponent(file.name)}`;
      await call(path, { method: "PUT", body: file, headers: { "Content-Type": "application/octet-stream" } });
      setSource(file.name);
      await lookIn();
    } catch (error) {
      setWrong({ field: "source", text: (error as Error).message });
    } finally {
      setBusy(false);
    }
  };
  const add = async () => {
    setBusy(true);
    setWrong(null);
    try {
      const made = await send<Model>("/v1/operations/models", { source: source.trim(), ...(name.trim() ? { name: name.trim() } : {}) });
      await connect();
      notice("good", words.operate.added(made.name));
      setSource("");
      setName("");
    } catch (error) {
      setWrong({ field: error instanceof Refused ? error.field : "", text: (error as Error).message });
    } finally {
      setBusy(false);
    }
  };
  return (
    <form class="add-model" onSubmit={(e) => { e.preventDefault(); void add(); }}>
      <h2>{words.operate.add}</h2>
      <div class="row">
        <div class={`field grow ${wrong && wrong.field !== "name" ? "wrong" : ""}`}>
          <label for="model-source">{words.operate.source}</label>
          <input id="model-source" list="store-files" value={source} onInput={(e) => setSource(e.currentTarget.value)} />
        </div>
        <div class={`field ${wrong?.field === "name" ? "wrong" : ""}`}>
          <label for="model-name">{words.operate.name}</label>
          <input id="model-name" value={name} onInput={(e) => setName(e.currentTarget.value)} />
        </div>
        <datalist id="store-files">{store.files.map((file) => <option value={file} />)}</datalist>
        {store.limit ? (
          <>
            <label class="button" for="model-file">{words.operate.upload(size(store.limit))}</label>
            <input id="model-file" class="offscreen" type="file" accept=".safetensors,.gguf,.mzt,.mar,.gz,.tgz" disabled={isBusy} onChange={(e) => void upload(e.currentTarget.files?.[0])} />
          </>
        ) : null}
        <button type="submit" id="add-model" disabled={!source.trim() || isBusy}>{isBusy ? words.loading : words.form.add}</button>
      </div>
      {wrong ? <p class="plan bad" role="alert">{wrong.text}</p> : <p class="hint">{words.operate.sourceHint}</p>}
    </form>
  );
}

// --- clients and answers ----------------------------------------------------------------------

interface Client { name: string; scopes: string[]; requests_per_minute: number; concurrency: number; holds: Record<string, number> }

function usePolled<T>(path: string, every: number): T | null {
  const [value, setValue] = useState<T | null>(null);
  useEffect(() => {
    let isCurrent = true;
    const get = () => { if (!document.hidden) ask<T>(path).then((found) => isCurrent && setValue(found), () => undefined); };
    get();
    const timer = setInterval(get, every);
    return () => { isCurrent = false; clearInterval(timer); };
  }, [path, every]);
  return value;
}

function Clients() {
  const found = usePolled<{ secured: boolean; clients: Client[] }>("/v1/operations/clients", 5000);
  if (!found) return null;
  const limit = (n: number) => (n ? String(n) : words.operate.unlimited);
  return (
    <details id="clients">
      <summary>{words.operate.clients} ({found.clients.length})</summary>
      <p class="hint">{found.secured ? words.operate.keys : words.operate.noKeys}</p>
      <div class="table-scroll" tabIndex={0} role="region" aria-label={words.operate.clients}>
        <table>
          <thead><tr>{words.operate.clientHeads.map((head) => <th scope="col" key={head}>{head}</th>)}</tr></thead>
          <tbody>
            {found.clients.map((c) => (
              <tr key={c.name}>
                <th scope="row">{c.name}</th><td>{c.scopes.join(", ")}</td><td>{limit(c.requests_per_minute)}</td><td>{limit(c.concurrency)}</td>
                <td>{Object.entries(c.holds).map(([what, n]) => `${n} ${what}`).join(", ") || "–"}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </details>
  );
}

interface Replica { name: string; node: string; host: string; status: string; device: string; pid: number; backlog_s: number; fault?: string }
interface Machines {
  servers: { host: string; version: string; silent_s: number; is_this: boolean }[];
  nodes: { node: string; host: string; live: boolean; is_head: boolean }[];
  replicas: Replica[];
}

// What draws for this server, and who shares its queue.
function Nodes() {
  const found = usePolled<Machines>("/v1/operations/nodes", 3000);
  if (!found) return null;
  const state = (ready: boolean, text: string) => <><span class={`dot ${ready ? "ready" : ""}`} aria-hidden="true" /> {text}</>;
  const of = (node: string) => found.replicas.filter((r) => r.node === node);
  const rows = found.nodes.flatMap((n) => (of(n.node).length ? of(n.node) : [null]).map((r) => ({ n, r })));
  return (
    <details id="nodes">
      <summary>{words.operate.nodes} ({found.nodes.filter((n) => n.live).length})</summary>
      <div class="table-scroll" tabIndex={0} role="region" aria-label={words.operate.nodes}>
        <table>
          <thead><tr>{words.operate.nodeHeads.map((head) => <th scope="col" key={head}>{head}</th>)}</tr></thead>
          <tbody>
            {rows.map(({ n, r }) => (
              <tr key={`${n.node}/${r?.name ?? ""}`}>
                <th scope="row">{n.host}{n.is_head && found.nodes.length > 1 ? ` (${words.operate.head})` : ""}</th>
                <td>{state(n.live && r?.status === "ready", n.live ? r?.status ?? words.operate.idle : words.operate.gone)}</td>
                <td>{r ? r.name.replace("mezzotint-replica-", "") : "–"}</td><td>{r?.device || "–"}</td>
                <td>{r ? duration(r.backlog_s) : "–"}</td><td>{r?.fault ?? ""}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {found.servers.length > 1 ? (
        <p class="hint">{words.operate.servers}: {found.servers.map((s) => `${s.host} ${s.version}${s.is_this ? ` (${words.operate.thisOne})` : ""}`).join(", ")}</p>
      ) : null}
    </details>
  );
}

interface Answer { id: string; time: number; method: string; path: string; status: number; seconds: number; dialect: string; client: string; model: string; cache: string }

function Answers() {
  const [word, setWord] = useState("");
  const found = usePolled<{ answers: Answer[] }>(`/v1/operations/answers?q=${encodeURIComponent(word)}`, 3000);
  return (
    <details id="answers">
      <summary>{words.operate.answers}</summary>
      <input type="search" id="answers-search" aria-label={words.operate.answersSearch} placeholder={words.operate.answersSearch} value={word} onInput={(e) => setWord(e.currentTarget.value)} />
      <div class="table-scroll" tabIndex={0} role="region" aria-label={words.operate.answers}>
        <table class="answers">
          <thead><tr>{words.operate.answerHeads.map((head) => <th scope="col" key={head}>{head}</th>)}</tr></thead>
          <tbody>
            {(found?.answers ?? []).slice(0, 100).map((a, k) => (
              <tr key={`${a.id}/${k}`} class={a.status >= 500 ? "bad" : a.status >= 400 ? "warn" : ""}>
                <td>{when(a.time)}</td><td>{a.status}</td><td>{a.method}</td><td><code>{a.path}</code></td><td>{a.seconds < 0.95 ? `${Math.round(1000 * a.seconds)} ms` : duration(a.seconds)}</td>
                <td>{a.client}</td><td>{a.model}</td><td><code>{a.id}</code></td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </details>
  );
}
