// The prompt: its tokens, its weights as the model will read them, earlier ones, styles, wildcards.
import { useRef } from "preact/hooks";

import type { Reading } from "../api";
import { Fault } from "../fields";
import { plan, prompts, request, set, wrongField } from "../state";
import { words } from "../words";
import { isShown } from "./abilities";

export function Prompt({ name, label, rows }: { name: "prompt" | "negative_prompt"; label: string; rows: number }) {
  const area = useRef<HTMLTextAreaElement>(null);
  if (!isShown(name)) return null;
  const text = String(request.value[name] ?? "");
  const reading = plan.value?.texts?.[name];
  return (
    <div class={`field ${wrongField.value === name ? "wrong" : ""}`}>
      <div class="label">
        <label for={name}>{label}</label>
        <Tokens reading={reading} text={text} />
      </div>
      <textarea
        ref={area} id={name} rows={rows} value={text} title={words.form.weight} aria-invalid={wrongField.value === name || undefined} aria-describedby={`${name}-read`}
        onInput={(e) => set(name, e.currentTarget.value || undefined)}
        onKeyDown={(e) => weigh(e, name)}
      />
      <div id={`${name}-read`}><Fault names={[name]} /><Weights reading={reading} text={text} /></div>
      {name === "prompt" && prompts.value.length ? (
        <select
          class="earlier" aria-label={words.form.history} value=""
          onChange={(e) => { if (e.currentTarget.value) set("prompt", e.currentTarget.value); e.currentTarget.value = ""; }}
        >
          <option value="">{words.form.history}</option>
          {prompts.value.map((p) => <option value={p}>{p.length > 80 ? `${p.slice(0, 79)}…` : p}</option>)}
        </select>
      ) : null}
    </div>
  );
}

function Tokens({ reading, text }: { reading?: Reading; text: string }) {
  if (!text.trim() || reading?.tokens == null || !reading.window) return null;
  const isOver = reading.tokens > reading.window;
  return <small class={`tokens ${isOver ? "over" : ""}`} title={words.prompt.tokensHint}>{words.prompt.tokens(reading.tokens, reading.window)}</small>;
}

/** What weighs more or less than the rest; or that brackets mean nothing as the text is read now. */
function Weights({ reading, text }: { reading?: Reading; text: string }) {
  const dialect = String(request.value.prompt_dialect ?? "plain");
  if (dialect === "plain") {
    if (!/\([^()]+:\d+(\.\d+)?\)|\(\([^()]+\)\)|\[[^[\]]+\]/.test(text)) return null;
    return (
      <p class="hint">
        {words.prompt.plain}{" "}
        <button type="button" class="quiet" onClick={() => set("prompt_dialect", "a1111")}>{words.prompt.read}</button>
      </p>
    );
  }
  const spans = reading?.spans ?? [];
  if (!spans.some(([, weight]) => weight !== 1)) return null;
  return (
    <p class="weights" aria-label={words.prompt.weights}>
      {spans.map(([piece, weight], k) => {
        if (weight === 1) return <span key={k}>{piece}</span>;
        const strength = Math.min(5, Math.ceil(Math.abs(Math.log(weight)) * 8));
        return <mark key={k} data-strength={strength} data-way={weight > 1 ? "up" : "down"}>{piece}<sub>{Number(weight.toFixed(2))}</sub></mark>;
      })}
    </p>
  );
}

/** Ctrl+Up and Ctrl+Down give the selected words, or the word at the cursor, a weight. */
function weigh(event: KeyboardEvent, name: string): void {
  if (!(event.ctrlKey || event.metaKey) || !["ArrowUp", "ArrowDown"].includes(event.key)) return;
  const area = event.currentTarget as HTMLTextAreaElement;
  const { value } = area;
  let { selectionStart: from, selectionEnd: to } = area;
  if (from === to) [from, to] = wordAt(value, from);
  if (from === to) return;
  event.preventDefault();
  const by = event.key === "ArrowUp" ? 0.1 : -0.1;
  const picked = value.slice(from, to);
  const weighted = /^\((.*):(\d+(?:\.\d+)?)\)$/s.exec(picked);
  const weight = Math.round(((weighted ? Number(weighted[2]) : 1) + by) * 10) / 10;
  const inner = weighted ? weighted[1]! : picked;
  const next = weight === 1 ? inner : `(${inner}:${Math.max(0, weight)})`;
  request.value = {
    ...request.value,
    [name]: value.slice(0, from) + next + value.slice(to),
    prompt_dialect: request.value.prompt_dialect ?? "a1111",
  };
  requestAnimationFrame(() => area.setSelectionRange(from, from + next.length));
}

/** The word that the cursor stands in, with its weight if it has one. */
function wordAt(text: string, at: number): [number, number] {
  for (const found of text.matchAll(/\([^()]*:\d+(?:\.\d+)?\)|[^\s,()]+/g)) {
    const end = found.index + found[0].length;
    if (found.index <= at && at <= end) return [found.index, end];
  }
  return [at, at];
}
