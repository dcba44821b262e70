// Styles and wildcards: kept in this browser, worked into the prompt before it is sent.
import { signal } from "@preact/signals";
import { useState } from "preact/hooks";

import type { Fields } from "../api";
import { keep, recall } from "../keep";
import { model, notice, request } from "../state";
import { words } from "../words";

interface Style { name: string; prompt: string; negative: string }

const styles = signal<Style[]>([]);
const lists = signal<Record<string, string>>({}); // a wildcard's name: its lines
export const fills = signal(localStorage.getItem("mezzotint-fill") === "yes");
let isLoaded = false;

async function load(): Promise<void> {
  if (isLoaded) return;
  isLoaded = true;
  styles.value = (await recall<Style[]>("styles")) ?? [];
  lists.value = (await recall<Record<string, string>>("wildcards")) ?? {};
}
void load();

const MOST_ROUNDS = 8; // a wildcard may name another

/** Put one choice in the place of every {a|b} and __name__ of a text. */
export function fill(text: string, random: () => number = Math.random, known: Record<string, string> = lists.value): string {
  const pick = (all: string[]) => all[Math.floor(random() * all.length)] ?? "";
  let now = text;
  for (let round = 0; round < MOST_ROUNDS; round += 1) {
    const next = now
      .replace(/__([\w/ -]+?)__/g, (whole, name: string) => {
        const lines = (known[name] ?? "").split("\n").map((l) => l.trim()).filter((l) => l && !l.startsWith("#"));
        return lines.length ? pick(lines) : whole;
      })
      .replace(/\{(?:(\d+)\$\$)?([^{}]*\|[^{}]*)\}/g, (_, count: string | undefined, inner: string) => {
        const left = inner.split("|");
        const taken: string[] = [];
        for (let k = 0; k < Math.min(Number(count ?? 1), inner.split("|").length); k += 1) {
          const one = pick(left);
          left.splice(left.indexOf(one), 1);
          taken.push(one.trim());
        }
        return taken.join(", ");
      });
    if (next === now) return now;
    now = next;
  }
  return now;
}

/** The request with its wildcards filled, if that is wanted. */
export function filled(wanted: Fields): Fields {
  if (!fills.value) return wanted;
  const next = { ...wanted };
  for (const name of ["prompt", "negative_prompt"]) {
    if (typeof next[name] === "string") next[name] = fill(next[name]);
  }
  return next;
}

/** A style around a text: "{prompt}" is where the text goes, else the style follows it. */
export function styled(text: string, style: string): string {
  if (style.includes("{prompt}")) return style.replace("{prompt}", text);
  return [text.trim(), style.trim()].filter(Boolean).join(", ");
}

function apply(style: Style): void {
  const { prompt, negative_prompt } = request.value;
  const negative = styled(String(negative_prompt ?? ""), style.negative);
  const before = request.value;
  request.value = {
    ...request.value,
    prompt: styled(String(prompt ?? ""), style.prompt),
    ...(negative && model.value?.takes_negative_prompt !== false ? { negative_prompt: negative } : {}),
  };
  notice("good", words.wild.applied(style.name), { undo: () => { request.value = before; }, undoText: words.form.undo });
}

export function Wild() {
  const [name, setName] = useState("");
  const [word, setWord] = useState("");
  const saveStyle = () => {
    const made = { name: name.trim(), prompt: String(request.value.prompt ?? ""), negative: String(request.value.negative_prompt ?? "") };
    styles.value = [...styles.value.filter((s) => s.name !== made.name), made].sort((a, b) => a.name.localeCompare(b.name));
    void keep("styles", styles.value);
    setName("");
  };
  const dropStyle = (gone: string) => {
    styles.value = styles.value.filter((s) => s.name !== gone);
    void keep("styles", styles.value);
  };
  const writeList = (key: string, text: string | undefined) => {
    const { [key]: _, ...rest } = lists.value;
    lists.value = text === undefined ? rest : { ...rest, [key]: text };
    void keep("wildcards", lists.value);
  };
  const prompt = String(request.value.prompt ?? "");
  const hasWild = fill(prompt) !== prompt;
  return (
    <details class="technique" id="wild" open={undefined}>
      <summary>{words.wild.label} {fills.value ? <small>{words.wild.on}</small> : null}</summary>
      <p class="hint">{words.wild.kept}</p>
      {styles.value.length ? (
        <ul class="styles">
          {styles.value.map((style) => (
            <li key={style.name}>
              <button type="button" class="grow" title={style.prompt} onClick={() => apply(style)}>{style.name}</button>
              <button type="button" class="icon quiet" aria-label={words.form.remove(style.name)} onClick={() => dropStyle(style.name)}>×</button>
            </li>
          ))}
        </ul>
      ) : null}
      <div class="row">
        <div class="field grow">
          <label for="style-name">{words.wild.saveAs}</label>
          <input id="style-name" value={name} onInput={(e) => setName(e.currentTarget.value)} />
        </div>
        <button type="button" disabled={!name.trim() || !prompt.trim()} onClick={saveStyle}>{words.wild.save}</button>
      </div>
      <p class="hint">{words.wild.styleHow}</p>
      <label class="check">
        <input
          id="fill" type="checkbox" checked={fills.value}
          onChange={(e) => { fills.value = e.currentTarget.checked; localStorage.setItem("mezzotint-fill", fills.value ? "yes" : "no"); }}
        />
        {words.wild.fill}
      </label>
      {hasWild && fills.value ? <p class="hint">{words.wild.example}: {fill(prompt)}</p> : null}
      {Object.entries(lists.value).map(([key, text]) => (
        <div class="field" key={key}>
          <div class="label">
            <label for={`wild-${key}`}>__{key}__</label>
            <button type="button" class="quiet" aria-label={words.form.remove(key)} onClick={() => writeList(key, undefined)}>×</button>
          </div>
          <textarea id={`wild-${key}`} rows={3} value={text} onInput={(e) => writeList(key, e.currentTarget.value)} />
        </div>
      ))}
      <div class="row">
        <div class="field grow">
          <label for="wild-name">{words.wild.list}</label>
          <input id="wild-name" value={word} pattern="[\w\/ \-]+" onInput={(e) => setWord(e.currentTarget.value)} />
        </div>
        <button
          type="button" disabled={!/^[\w/ -]+$/.test(word.trim()) || word.trim() in lists.value}
          onClick={() => { writeList(word.trim(), ""); setWord(""); }}
        >{words.form.add}</button>
      </div>
    </details>
  );
}
