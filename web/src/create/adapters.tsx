// Lists of things with a strength: LoRAs, and the members of an ensemble.
import { useId, useState } from "preact/hooks";

import { call, type Fields, type Json } from "../api";
import { Field } from "../fields";
import { Picture, small } from "../image";
import { pictures } from "../jobs";
import { objectIn, options } from "../schema";
import { choices, connect, model, models, notice, request, schema, set } from "../state";
import { nameOf, words } from "../words";
import { Sample } from "./basics";

interface Kind { field: "loras" | "ensemble"; name: "name" | "model"; strength: "scale" | "weight"; from: number; to: number }

const KINDS: Record<string, Kind> = {
  loras: { field: "loras", name: "name", strength: "scale", from: -2, to: 2 },
  ensemble: { field: "ensemble", name: "model", strength: "weight", from: 0, to: 2 },
};

export const HAS_LIST = new Set(Object.keys(KINDS));

/** Names with a slider each, and under each the further fields that the schema has. */
export function StrengthList({ field }: { field: string }) {
  const kind = KINDS[field]!;
  const list = (Array.isArray(request.value[field]) ? request.value[field] : []) as Fields[];
  const known = choices(`${field}.${kind.name}`) ?? [];
  const write = (next: Fields[]) => set(field, next.length ? (next as Json) : undefined);
  const change = (index: number, part: Fields) => write(list.map((old, k) => (k === index ? given({ ...old, ...part }) : old)));
  const add = (name: string) => write(
    // an ensemble of one is nothing: the model of the request is its first member
    field === "ensemble" && !list.length && model.value && name !== model.value.name
      ? [{ model: model.value.name }, { model: name }]
      : [...list, { [kind.name]: name }],
  );
  const left = known.filter((name) => field === "ensemble" || !list.some((entry) => entry[kind.name] === name));
  const sum = list.reduce((all, entry) => all + Number(entry[kind.strength] ?? 1), 0);
  return (
    <div class="strengths">
      {list.map((entry, index) => (
        <Strength
          key={index} kind={kind} entry={entry} known={known}
          share={field === "ensemble" && sum > 0 ? Number(entry[kind.strength] ?? 1) / sum : null}
          onChange={(part) => change(index, part)} onRemove={() => write(list.filter((_, k) => k !== index))}
        />
      ))}
      <div class="row presets" role="group" aria-label={words.form.add}>
        {left.map((name) => <button type="button" key={name} onClick={() => add(name)}><Preview kind={kind} name={name} />+ {name}</button>)}
      </div>
      {field === "loras" ? <Bring onKept={add} /> : null}
    </div>
  );
}

/** The fields that are given. */
function given(entry: Fields): Fields {
  return Object.fromEntries(Object.entries(entry).filter(([, value]) => value !== undefined));
}

/** A LoRA from one's own disk, kept by the server. */
function Bring({ onKept }: { onKept: (name: string) => void }) {
  const id = useId();
  const [isBusy, setBusy] = useState(false);
  const take = async (file: File | undefined) => {
    if (!file) return;
    setBusy(true);
    try {
      const name = file.name.replace(/\.safetensors$/i, "").replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "").slice(0, 60) || "lora";
      await call(`/v1/adapters/loras/${encodeURIComponent(name)}`, { method: "PUT", body: file, headers: { "Content-Type": "application/octet-stream" } });
      await connect();
      onKept(name);
    } catch (error) {
      notice("bad", (error as Error).message);
    } finally {
      setBusy(false);
    }
  };
  return (
    <div class="row tight">
      <label class="button" for={id}>{isBusy ? words.loading : words.form.bring}</label>
      <input id={id} class="offscreen" data-bring="lora" type="file" accept=".safetensors" disabled={isBusy} onChange={(e) => void take(e.currentTarget.files?.[0])} />
    </div>
  );
}

/** The newest picture that was drawn here with it; a model shows its own until then. */
function Preview({ kind, name }: { kind: Kind; name: string }) {
  if (kind.field === "ensemble") return <Sample about={models.value.find((m) => m.name === name)} name={name} />;
  const wears = (asked: Fields) => Array.isArray(asked.loras) && (asked.loras as Fields[]).some((lora) => lora.name === name);
  const made = pictures.value.find(({ job, image }) => image.format !== "mp4" && wears(job.request));
  if (made) return <Picture path={small(made.image.url)} alt="" lazy class="sample" />;
  return <span class="blank sample" aria-hidden="true">{name.slice(0, 1).toUpperCase()}</span>;
}

/** The fields of an entry that have no widget of their own here. */
function More({ kind, entry, onChange }: { kind: Kind; entry: Fields; onChange: (part: Fields) => void }) {
  const list = options(schema.value.properties?.[kind.field] ?? {}).find((option) => option.items);
  const all = Object.entries(objectIn(list?.items ?? {})?.properties ?? {});
  const further = all.filter(([key]) => key !== kind.name && key !== kind.strength);
  if (!further.length) return null;
  return (
    <details class="more" open={further.some(([key]) => key in entry)}>
      <summary>{words.form.more}</summary>
      {further.map(([key, own]) => (
        <Field key={key} name={key} path={`${kind.field}.${key}`} schema={own} value={entry[key]} onChange={(value) => onChange({ [key]: value } as Fields)} />
      ))}
    </details>
  );
}

function Strength({ kind, entry, known, share, onChange, onRemove }: {
  kind: Kind; entry: Fields; known: string[]; share: number | null; onChange: (part: Fields) => void; onRemove: () => void;
}) {
  const id = useId();
  const name = String(entry[kind.name] ?? "");
  const value = Number(entry[kind.strength] ?? 1);
  const names = known.includes(name) ? known : [name, ...known];
  return (
    <div class="strength">
      <Preview kind={kind} name={name} />
      <select aria-label={nameOf(kind.name)} value={name} onChange={(e) => onChange({ [kind.name]: e.currentTarget.value })}>
        {names.map((n) => <option value={n}>{n}</option>)}
      </select>
      <button type="button" class="icon quiet" aria-label={words.form.remove(name)} onClick={onRemove}>×</button>
      <input
        type="range" aria-label={`${nameOf(kind.strength)}: ${name}`} min={Math.min(kind.from, value)} max={Math.max(kind.to, value)} step={0.05} value={value}
        onInput={(e) => onChange({ [kind.strength]: Number(e.currentTarget.value) })}
      />
      <input
        id={id} type="number" aria-label={`${nameOf(kind.strength)}: ${name}`} step={0.05} value={value}
        onInput={(e) => { if (e.currentTarget.value !== "") onChange({ [kind.strength]: Number(e.currentTarget.value) }); }}
      />
      <More kind={kind} entry={entry} onChange={onChange} />
      {share === null ? null : <i class="share" style={{ width: `${share * 100}%` }} title={`${Math.round(share * 100)} %`} />}
    </div>
  );
}
