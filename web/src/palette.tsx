// The command palette: everything the page does, by name.
import { signal } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";

import { choose, drawSeed } from "./create/basics";
import { isOffered } from "./create/abilities";
import { openDetail } from "./detail";
import { closed, show } from "./dialogs";
import { cancelAll, generate, open, shown } from "./jobs";
import { recallShown } from "./stage";
import { go, models, replace, schema, set } from "./state";
import { LANGUAGES, nameOf, speak, wordFor, words } from "./words";

export const commanding = signal(false);

interface Command { name: string; hint?: string; run: () => void }

/** Show a technique's panel, once its room is there. */
export function showTechnique(name: string): void {
  go("create");
  setTimeout(() => {
    const panel = document.getElementById(`technique-${name}`) as HTMLDetailsElement | null;
    if (!panel) return;
    panel.open = true;
    panel.scrollIntoView({ block: "center" });
    panel.querySelector<HTMLElement>("summary")?.focus();
  }, 60);
}

function commands(more: Command[]): Command[] {
  const at = shown.value;
  return [
    { name: words.form.generate, hint: "Ctrl + Enter", run: () => void generate() },
    ...Object.entries(words.rooms).map(([name, label]) => ({ name: words.palette.room(label), run: () => go(name) })),
    ...(open.value.length ? [{ name: words.queue.cancelAll, run: () => void cancelAll() }] : []),
    { name: words.form.dice, run: () => set("seed", drawSeed()) },
    { name: words.form.anew, run: () => set("seed", undefined) },
    ...(at ? [
      { name: words.stage.recall, hint: "r", run: () => void recallShown() },
      { name: words.stage.details, run: () => openDetail(at.job, at.index) },
    ] : []),
    { name: words.form.clear, run: () => replace({}) },
    ...models.value.map((m) => ({ name: words.palette.model(m.name), hint: m.description, run: () => { choose(m.name); go("create"); } })),
    ...Object.keys(schema.value.properties ?? {}).filter((n) => wordFor(n) !== undefined && isOffered(n))
      .map((n) => ({ name: words.palette.technique(nameOf(n)), run: () => showTechnique(n) })),
    ...more,
    ...Object.entries(LANGUAGES).map(([code, name]) => ({ name: words.palette.language(name), run: () => void speak(code) })),
  ];
}

/** Whether the letters of a search come in this order, each word of it on its own. */
export function fits(text: string, wanted: string): boolean {
  const low = text.toLowerCase();
  return wanted.toLowerCase().split(/\s+/).filter(Boolean).every((word) => {
    let at = 0;
    for (const letter of word) {
      at = low.indexOf(letter, at) + 1;
      if (!at) return low.includes(word);
    }
    return true;
  });
}

export function Palette({ more }: { more: Command[] }) {
  const box = useRef<HTMLDialogElement>(null);
  const [word, setWord] = useState("");
  const [at, setAt] = useState(0);
  useEffect(() => {
    setWord("");
    setAt(0);
    if (commanding.value) show(commanding, "palette");
  }, [commanding.value]);
  if (!commanding.value) return null;
  const all = commands(more);
  // those that hold the words as they are before those that only hold their letters
  const exact = all.filter((c) => c.name.toLowerCase().includes(word.toLowerCase()));
  const list = [...exact, ...all.filter((c) => !exact.includes(c) && fits(c.name, word))];
  const now = Math.min(at, list.length - 1);
  const run = (command: Command | undefined) => {
    if (!command) return;
    box.current?.close();
    setWord(""); // it may be opened again before its "close" event
    setAt(0);
    command.run();
  };
  const press = (event: KeyboardEvent) => {
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8 }[event.key];
    if (by !== undefined) {
      event.preventDefault();
      const next = Math.max(0, Math.min(list.length - 1, now + by));
      setAt(next);
      document.getElementById(`command-${next}`)?.scrollIntoView({ block: "nearest" });
    } else if (event.key === "Enter") {
      event.preventDefault();
      event.stopPropagation();
      run(list[now]);
    }
  };
  return (
    <dialog ref={box} class="palette" id="palette" aria-label={words.palette.label} onClose={closed(commanding)}>
      <input
        id="command" role="combobox" aria-expanded="true" aria-controls="commands" aria-activedescendant={list.length ? `command-${now}` : undefined}
        aria-label={words.palette.search} placeholder={words.palette.search} autoComplete="off" value={word}
        onInput={(e) => { setWord(e.currentTarget.value); setAt(0); }} onKeyDown={press}
      />
      <ul id="commands" role="listbox" aria-label={words.palette.label}>
        {list.map((command, k) => (
          <li key={command.name} id={`command-${k}`} role="option" aria-selected={k === now} onClick={() => run(command)} onPointerMove={() => setAt(k)}>
            <span>{command.name}</span>{command.hint ? <small>{command.hint}</small> : null}
          </li>
        ))}
      </ul>
      {list.length ? null : <p class="empty">{words.palette.nothing}</p>}
    </dialog>
  );
}
