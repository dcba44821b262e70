// A new run: a form for the usual ones, the trainer's own text for the rest.
import { useEffect, useState } from "preact/hooks";

import { ask, Refused, type Run, send } from "../api";
import { models } from "../state";
import { words } from "../words";
import { choose as addTo, type Chosen, ChosenPictures, KeptPictures, upload } from "./captions";
import { lookAtRuns } from "./runs";
import { asToml, type Form, fresh, type Kind, KINDS } from "./toml";

interface DataSet { name: string; path: string; pictures: number; captions: number }
interface DataSets { folder: string; datasets: DataSet[] }

const OWN_PATH = "/"; // in the list: a path that is typed

/** Names that are free: lora-1, lora-2 ... */
export function freeName(kind: Kind, taken: string[]): string {
  for (let n = 1; ; n += 1) {
    const name = `${kind === "text" ? "run" : kind}-${n}`;
    if (!taken.includes(name)) return name;
  }
}

export function NewRun({ taken, like, onStarted, onClose }: { taken: string[]; like: string; onStarted: (name: string) => void; onClose: () => void }) {
  const [form, setForm] = useState<Form>(() => (like
    ? { ...fresh("diffusion", freeName("text", taken)), kind: "text", text: like }
    : fresh("lora", freeName("lora", taken), Number(models.value.find((m) => m.name === "plate")?.defaults.width) || undefined)));
  const [sets, setSets] = useState<DataSets>({ folder: "", datasets: [] });
  const [files, setFiles] = useState<Chosen[]>([]);
  const [path, setPath] = useState("");
  const [busy, setBusy] = useState("");
  const [wrong, setWrong] = useState<{ field: string; text: string } | null>(null);
  const [beside, setBeside] = useState(false);
  useEffect(() => { ask<DataSets>("/v1/datasets").then(setSets, () => undefined); }, []);

  const put = (change: Partial<Form>) => { setForm((old) => ({ ...old, ...change })); setWrong(null); };
  const where = form.data === OWN_PATH ? path : form.data || `${sets.folder}/${form.name}`;
  const toml = asToml(form, where);
  const isText = form.kind === "text";
  const kept = sets.datasets.find((s) => s.path === form.data);
  const needsFiles = !isText && form.data === "" && files.length === 0;
  const take = (list: FileList | null | undefined) => {
    const wanted = [...(list ?? [])].filter((f) => /\.(png|jpe?g|webp|bmp|txt)$/i.test(f.name));
    if (wanted.length) { void addTo(files, wanted).then(setFiles); put({ data: "" }); }
  };
  const choose = (kind: Kind) => {
    const named = taken.includes(form.name) || /^(lora|diffusion|gan|run)-\d+$/.test(form.name) ? freeName(kind, taken) : form.name;
    if (kind === "text") put({ kind, name: named, text: toml });
    else put({ ...fresh(kind, named, Number(models.value.find((m) => m.name === form.base)?.defaults.width) || undefined), data: form.data, caption: form.caption, prompts: form.prompts });
  };
  const start = async () => {
    setBusy(words.train.starting);
    setWrong(null);
    try {
      if (!isText && form.data === "") {
        await upload(form.name, files, form.kind === "lora" ? form.caption : "", (n) => setBusy(words.train.sent(n)));
      }
      const run = await send<Run>("/v1/runs", { name: form.name.trim(), config: toml, ...(beside ? { beside } : {}) });
      await lookAtRuns();
      onStarted(run.name);
    } catch (error) {
      setWrong({ field: error instanceof Refused ? error.field : "", text: (error as Error).message });
    } finally {
      setBusy("");
    }
  };
  const number = (name: "resolution" | "steps" | "batch" | "rate" | "every", step: number | "any", min: number) => (
    <div class="field">
      <label for={`run-${name}`}>{words.train.fields[name]}</label>
      <input id={`run-${name}`} type="number" min={min} step={step} value={form[name]} onInput={(e) => put({ [name]: Number(e.currentTarget.value) })} />
    </div>
  );
  return (
    <form class="new-run panel" aria-label={words.train.fresh} onSubmit={(e) => { e.preventDefault(); void start(); }}>
      <header class="row">
        <h2 class="grow">{words.train.fresh}</h2>
        <button type="button" class="icon" aria-label={words.detail.close} onClick={onClose}>×</button>
      </header>
      <div class="kinds" role="radiogroup" aria-label={words.train.kind}>
        {KINDS.map((kind) => (
          <button type="button" key={kind} role="radio" aria-checked={form.kind === kind} data-kind={kind} onClick={() => choose(kind)}>
            <b>{words.train.kinds[kind]![0]}</b><small>{words.train.kinds[kind]![1]}</small>
          </button>
        ))}
      </div>
      <div class="row">
        <div class={`field grow ${wrong?.field === "name" ? "wrong" : ""}`}>
          <label for="run-name">{words.train.fields.name}</label>
          <input id="run-name" value={form.name} pattern="[A-Za-z0-9][A-Za-z0-9._\-]*" required onInput={(e) => put({ name: e.currentTarget.value })} />
        </div>
        {form.kind === "lora" ? (
          <div class={`field grow ${wrong?.field === "base" ? "wrong" : ""}`}>
            <label for="run-base">{words.train.fields.base}</label>
            <select id="run-base" value={form.base} onChange={(e) => put({ base: e.currentTarget.value, resolution: Number(models.value.find((m) => m.name === e.currentTarget.value)?.defaults.width) || form.resolution })}>
              {models.value.filter((m) => m.takes_prompt).map((m) => <option value={m.name}>{m.name}</option>)}
            </select>
          </div>
        ) : null}
      </div>
      {isText ? null : (
        <>
          <div class={`field ${wrong?.field.startsWith("data") ? "wrong" : ""}`}>
            <label for="run-data">{words.train.fields.data}</label>
            <select id="run-data" value={form.data} onChange={(e) => put({ data: e.currentTarget.value })}>
              <option value="">{files.length ? words.train.chosen(files.length) : words.train.choose}</option>
              {sets.datasets.map((s) => <option value={s.path}>{words.train.dataset(s.name, s.pictures)}</option>)}
              <option value={OWN_PATH}>{words.train.path}</option>
            </select>
          </div>
          {form.data === OWN_PATH ? (
            <div class="field"><label for="run-path">{words.train.path}</label><input id="run-path" value={path} onInput={(e) => setPath(e.currentTarget.value)} /></div>
          ) : form.data === "" ? (
            <div
              class="picture-input many"
              onDragOver={(e) => { e.preventDefault(); e.stopPropagation(); }}
              onDrop={(e) => { e.preventDefault(); e.stopPropagation(); document.body.classList.remove("dropping"); take(e.dataTransfer?.files); }}
            >
              {files.length ? <ChosenPictures chosen={files} isCaptioned={form.kind === "lora"} common={form.caption} onChange={setFiles} /> : null}
              <label class="button" for="run-files">{words.train.choose}</label>
              <input id="run-files" class="offscreen" type="file" multiple accept="image/*,.txt" onChange={(e) => take(e.currentTarget.files)} />
              {files.length ? <button type="button" class="quiet" onClick={() => setFiles([])}>{words.form.unset}</button> : <span class="hint">{words.train.dropHere}</span>}
            </div>
          ) : null}
          {form.kind === "lora" && kept ? <KeptPictures set={kept.name} /> : null}
          {form.kind === "lora" && form.data === "" ? (
            <div class="field">
              <label for="run-caption">{words.train.fields.caption}</label>
              <input id="run-caption" value={form.caption} placeholder={words.train.captionHint} onInput={(e) => put({ caption: e.currentTarget.value })} />
            </div>
          ) : null}
          <div class="row">{number("resolution", 8, 8)}{number("steps", 1, 1)}{number("batch", 1, 1)}{number("rate", "any", 0)}{number("every", 1, 0)}</div>
          {form.kind === "lora" ? (
            <div class="field">
              <label for="run-prompts">{words.train.fields.prompts}</label>
              <textarea id="run-prompts" rows={2} value={form.prompts} onInput={(e) => put({ prompts: e.currentTarget.value })} />
            </div>
          ) : null}
          <label class="check"><input type="checkbox" checked={form.flip} onChange={(e) => put({ flip: e.currentTarget.checked })} />{words.train.fields.flip}</label>
        </>
      )}
      {isText ? (
        <div class={`field ${wrong ? "wrong" : ""}`}>
          <label for="run-text">{words.train.fields.text}</label>
          <textarea id="run-text" class="code" rows={18} spellcheck={false} value={form.text} onInput={(e) => put({ text: e.currentTarget.value })} />
        </div>
      ) : (
        <details class="plain"><summary>{words.train.asText}</summary><pre>{toml}</pre></details>
      )}
      {wrong ? <p class="plan bad" role="alert" id="run-wrong">{wrong.text}</p> : null}
      {wrong?.field === "beside" ? <label class="check"><input type="checkbox" checked={beside} onChange={(e) => setBeside(e.currentTarget.checked)} />{words.train.beside}</label> : null}
      <div class="submit">
        <button class="primary" id="start-run" type="submit" disabled={Boolean(busy) || needsFiles || (isText && !form.text.trim())}>{busy || words.train.start}</button>
      </div>
    </form>
  );
}
