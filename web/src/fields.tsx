// Widgets made from the schema of the request, so that every field of the API has one.
import { useId, useState } from "preact/hooks";

import type { Fields, Json, Schema } from "./api";
import { dataUrl } from "./jobs";
import { blank, hintOf, kindOf, numberIn, objectIn, options } from "./schema";
import { capabilities, choices, model, planError, wrongField } from "./state";
import { nameOf, words } from "./words";

interface FieldProps {
  name: string;
  path: string;
  schema: Schema;
  value: Json | undefined;
  onChange: (value: Json | undefined) => void;
  label?: string;
}

/** What the server says of a field, in its words, where the field stands. */
export function Fault({ names }: { names: string[] }) {
  const wrong = names.find((name) => name === wrongField.value);
  return wrong ? <p class="fault" id={`fault-${wrong}`}>{planError.value?.message}</p> : null;
}

/** What tells a screen reader that the field of the request by this name is refused. */
export function faulty(name: string) {
  return wrongField.value === name ? { "aria-invalid": true, "aria-describedby": `fault-${name}` } as const : {};
}

export function readPicture(file: Blob): Promise<string> {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result).split(",", 2)[1] ?? "");
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

export function PictureInput({ label, value, onChange }: { label: string; value: string | undefined; onChange: (v: string | undefined) => void }) {
  const id = useId();
  const take = async (files: FileList | null | undefined) => {
    const file = files?.[0];
    if (file) onChange(await readPicture(file));
  };
  return (
    <div
      class="picture-input"
      onDragOver={(e) => { e.preventDefault(); e.stopPropagation(); }}
      onDrop={(e) => { e.preventDefault(); e.stopPropagation(); void take(e.dataTransfer?.files); document.body.classList.remove("dropping"); }}
    >
      {value ? <img src={dataUrl(value)} alt={label} /> : null}
      <label class="button" for={id}>{label}: {words.form.picture}</label>
      <input id={id} class="offscreen" type="file" accept="image/*" onChange={(e) => void take(e.currentTarget.files)} />
      {value
        ? <button type="button" class="quiet" onClick={() => onChange(undefined)}>{words.form.unset}</button>
        : <span class="hint">{words.form.dropHere}</span>}
    </div>
  );
}

export function NumberInput({ id, schema, value, onChange, placeholder, step: own_step }: {
  id: string; schema: Schema; value: Json | undefined; onChange: (v: Json | undefined) => void; placeholder?: string; step?: number;
}) {
  const own = numberIn(schema) ?? {};
  const { minimum, maximum } = own;
  const whole = own.type === "integer";
  const hasSlider = minimum !== undefined && maximum !== undefined && maximum - minimum <= 20 && !whole;
  const step = own_step ?? (whole ? 1 : maximum !== undefined && maximum <= 1 ? 0.01 : "any");
  const read = (text: string) => onChange(text === "" ? undefined : Number(text));
  const input = (
    <input
      id={id} type="number" min={minimum} max={maximum} step={step} placeholder={placeholder}
      value={value === undefined || value === null ? "" : String(value)}
      onInput={(e) => read(e.currentTarget.value)} {...faulty(id)}
    />
  );
  if (!hasSlider) return input;
  return (
    <span class="with-slider">
      <input
        class={value === undefined || value === null ? "unset" : ""} type="range" min={minimum} max={maximum} step={maximum <= 1 ? 0.01 : 0.05} aria-labelledby={`${id}-label`}
        value={value === undefined || value === null ? String(minimum) : String(value)}
        onInput={(e) => onChange(Number(e.currentTarget.value))}
      />
      {input}
    </span>
  );
}

function NameInput({ id, path, value, onChange }: { id: string; path: string; value: Json | undefined; onChange: (v: Json | undefined) => void }) {
  const known = choices(path);
  const text = typeof value === "string" ? value : "";
  if (known) {
    const all = text && !known.includes(text) ? [text, ...known] : known;
    return (
      <>
        <select id={id} value={text} onChange={(e) => onChange(e.currentTarget.value || undefined)}>
          <option value="">{known.length ? "" : words.form.none}</option>
          {all.map((name) => <option value={name}>{name}</option>)}
        </select>
        {known.length ? null : <span class="hint">{words.form.noList}</span>}
      </>
    );
  }
  const long = /prompt|^to$/.test(path.split(".").at(-1) ?? "");
  if (long) {
    return <textarea id={id} rows={2} value={text} onInput={(e) => onChange(e.currentTarget.value || undefined)} />;
  }
  return <input id={id} value={text} onInput={(e) => onChange(e.currentTarget.value || undefined)} />;
}

/** One field with its label; objects and lists hold further fields. */
export function Field({ name, path, schema, value, onChange, label }: FieldProps) {
  const id = useId();
  const kind = kindOf(schema);
  const text = label ?? nameOf(name, path);
  if (kind === "object" || kind === "either") {
    return <Either name={name} path={path} schema={schema} value={value} onChange={onChange} label={text} />;
  }
  if (kind === "list") return <ListField name={name} path={path} schema={schema} value={value} onChange={onChange} label={text} />;
  if (kind === "picture") {
    return <PictureInput label={text} value={typeof value === "string" ? value : undefined} onChange={onChange} />;
  }
  if (kind === "boolean") {
    return (
      <label class="check" title={hintOf(schema)}>
        <input type="checkbox" checked={value === true} onChange={(e) => onChange(e.currentTarget.checked)} />
        {text}
      </label>
    );
  }
  return (
    <div class="field" title={hintOf(schema)}>
      <label id={`${id}-label`} for={id}>{text}</label>
      {kind === "choice" ? (
        <select id={id} value={value === undefined ? "" : String(value)} onChange={(e) => onChange(e.currentTarget.value || undefined)}>
          <option value="">{words.form.ownPlain}</option>
          {(options(schema)[0]?.enum ?? []).map((option) => <option value={String(option)}>{String(option)}</option>)}
        </select>
      ) : path === "latent.class_label" && model.value?.class_names?.length ? (
        <select id={id} value={value === undefined || value === null ? "" : String(value)} onChange={(e) => onChange(e.currentTarget.value ? Number(e.currentTarget.value) : undefined)}>
          <option value="">{words.form.seedChooses}</option>
          {model.value.class_names.map((className, index) => <option value={String(index)}>{className}</option>)}
        </select>
      ) : kind === "number" ? (
        <NumberInput id={id} schema={schema} value={value} onChange={onChange} />
      ) : kind === "seed" ? (
        <input
          id={id} inputMode="numeric" pattern="[0-9]*" value={value === undefined || value === null ? "" : String(value)}
          onInput={(e) => onChange(e.currentTarget.value.trim() || undefined)}
        />
      ) : (
        <NameInput id={id} path={path} value={value} onChange={onChange} />
      )}
    </div>
  );
}

function Either({ name, path, schema, value, onChange, label }: FieldProps) {
  const inner = objectIn(schema)!;
  const fields = (value && typeof value === "object" && !Array.isArray(value) ? value : {}) as Fields;
  const change = (key: string, next: Json | undefined) => {
    const { [key]: _, ...rest } = fields;
    onChange(next === undefined ? rest : { ...rest, [key]: next });
  };
  return (
    <fieldset>
      <legend>{label ?? nameOf(name)}</legend>
      {Object.entries(inner.properties ?? {}).map(([key, own]) => (
        <Field key={key} name={key} path={`${path}.${key}`} schema={own} value={fields[key]} onChange={(v) => change(key, v)} />
      ))}
      {typeof inner.additionalProperties === "object"
        ? <Named path={path} inner={inner.additionalProperties} fields={fields} change={change} />
        : null}
    </fieldset>
  );
}

/** Objects by name beside the common fields: the gates. */
function Named({ path, inner, fields, change }: {
  path: string; inner: Schema; fields: Fields; change: (key: string, next: Json | undefined) => void;
}) {
  const known = (capabilities.value?.[path] as string[] | undefined) ?? [];
  return (
    <>
      {known.map((gate) => (
        <div key={gate} class="named">
          <label class="check">
            <input type="checkbox" checked={gate in fields} onChange={(e) => change(gate, e.currentTarget.checked ? {} : undefined)} />
            {gate}
          </label>
          {gate in fields
            ? <Field name={gate} path={`${path}.${gate}`} schema={inner} value={fields[gate]} onChange={(v) => change(gate, v ?? {})} />
            : null}
        </div>
      ))}
    </>
  );
}

function ListField({ name, path, schema, value, onChange, label }: FieldProps) {
  const own = options(schema)[0]!;
  const items = own.items ?? {};
  const list = Array.isArray(value) ? value : [];
  const kind = kindOf(items);
  const at = (index: number, next: Json | undefined) =>
    onChange(next === undefined ? list.filter((_, i) => i !== index) : list.map((old, i) => (i === index ? next : old)));
  if (kind === "number") return <Numbers name={name} label={label} list={list as number[]} onChange={onChange} hint={hintOf(schema)} />;
  const single = words.form.single(label ?? nameOf(name));
  return (
    <fieldset>
      <legend>{label ?? nameOf(name)}</legend>
      {list.map((item, index) => (
        <div class="item" key={index}>
          <Field name={name} path={path} schema={items} value={item} label={`${single} ${index + 1}`} onChange={(v) => at(index, v)} />
          {kind === "picture" ? null : (
            <button type="button" class="quiet" onClick={() => at(index, undefined)}>
              {words.form.remove(`${single} ${index + 1}`)}
            </button>
          )}
        </div>
      ))}
      {kind === "picture" ? (
        <PictureInput label={single} value={undefined} onChange={(v) => v && onChange([...list, v])} />
      ) : (
        <button type="button" onClick={() => onChange([...list, blank(items, path)])}>{words.form.add}: {single}</button>
      )}
    </fieldset>
  );
}

/** Numbers as text with commas; what is typed stays until it reads as numbers. */
function Numbers({ name, label, list, onChange, hint }: {
  name: string; label?: string; list: number[]; onChange: (v: Json | undefined) => void; hint: string;
}) {
  const id = useId();
  const [typed, type] = useState<string | null>(null);
  const read = (text: string) => {
    type(text);
    const numbers = text.split(/[\s,;]+/).filter(Boolean).map(Number);
    if (numbers.every(Number.isFinite)) onChange(numbers.length ? numbers : undefined);
  };
  return (
    <div class="field" title={hint}>
      <label for={id}>{label ?? nameOf(name)}</label>
      <input id={id} value={typed ?? list.join(", ")} onInput={(e) => read(e.currentTarget.value)} onBlur={() => type(null)} />
    </div>
  );
}
