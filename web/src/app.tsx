// The frame: rooms, connection, key, theme, notices, shortcuts.
import { signal } from "@preact/signals";
import type { FunctionComponent } from "preact";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";

import { apiKey, useKey } from "./api";
import { Create } from "./create";
import { detail, Detail, stepDetail } from "./detail";
import { closed, ended, show } from "./dialogs";
import { Gallery } from "./gallery";
import { cancel, generate, open, sending, step, watch, watchedJob } from "./jobs";
import { Operate } from "./operate";
import { commanding, Palette } from "./palette";
import { connection, dismiss, go, notices, room } from "./state";
import { SheetRoom } from "./sheet";
import { Queue, recallShown, Stage, Strip } from "./stage";
import { language, LANGUAGES, speak, words } from "./words";

const helping = signal(false);
const keying = signal(false);
const THEMES = ["auto", "light", "dark"];
const theme = signal(localStorage.getItem("mezzotint-theme") ?? "auto");

function wear(next: string): void {
  theme.value = next;
  localStorage.setItem("mezzotint-theme", next);
  if (next === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
}

const LATER: Record<string, () => Promise<FunctionComponent>> = { // rooms that come when they are first wanted
  lab: async () => (await import("./lab/room")).Lab,
  train: async () => (await import("./train/train")).Train,
};
const arrived = signal<Record<string, FunctionComponent>>({});

function LaterRoom({ name }: { name: string }) {
  useEffect(() => {
    if (!arrived.value[name]) void LATER[name]!().then((found) => { arrived.value = { ...arrived.value, [name]: found }; }, () => undefined);
  }, [name, connection.value]);
  const Room = arrived.value[name];
  return Room ? <Room /> : <p class="empty">{words.loading}</p>;
}

export function App() {
  useEffect(() => {
    wear(theme.value);
    addEventListener("online", () => void watch());
    document.addEventListener("visibilitychange", () => { if (!document.hidden) void watch(); });
    document.addEventListener("keydown", press);
  }, []);
  const now = room.value in words.rooms ? room.value : "create";
  useLayoutEffect(() => { scrollTo(0, 0); }, [now]); // a room begins at its top
  useEffect(() => { document.title = now === "create" ? words.title : `${words.rooms[now]} · ${words.title}`; }, [now, language.value]);
  return (
    <div class="app" key={language.value}>
      <a class="skip" href="#main" onClick={(e) => { e.preventDefault(); document.getElementById("main")?.focus(); }}>{words.skip}</a>
      <Top now={now} />
      <Notices />
      <main id="main" tabIndex={-1} class={now}>
        {now === "create" ? (
          <>
            <h1 class="offscreen">{words.title}</h1>
            <Create />
            <div class="view"><Stage /><Queue /><Strip /></div>
          </>
        ) : (
          <>
            <h1 class="offscreen">{words.rooms[now]}</h1>
            {now === "sheet" ? <SheetRoom /> : now === "operate" ? <Operate /> : now in LATER ? <LaterRoom name={now} /> : <Gallery />}
          </>
        )}
      </main>
      <Detail />
      <Help />
      <KeyBox />
      <Palette
        more={[
          ...THEMES.map((name) => ({ name: words.palette.theme(words.theme[name]!), run: () => wear(name) })),
          { name: words.help.label, hint: "?", run: () => show(helping, "help-box") },
          { name: words.key.change, run: () => show(keying, "key-box") },
        ]}
      />
      <div class="drop-here" aria-hidden="true">{words.drop.here}</div>
    </div>
  );
}

function Top({ now }: { now: string }) {
  const state = connection.value;
  const running = open.value.length + sending.value;
  const kind = state === "ready" ? (running ? "busy" : "ready") : state === "connecting" ? "" : state === "warming" ? "busy" : "bad";
  const text = state === "ready" && running ? words.state.working(running) : words.state[state];
  return (
    <header class="top">
      <b class="brand"><img src="/favicon.svg" alt="" width={24} height={24} /> {words.title}</b>
      <nav aria-label={words.title}>
        {Object.entries(words.rooms).map(([name, label]) => (
          <a key={name} href={`#${name}`} aria-current={now === name ? "page" : undefined}>{label}</a>
        ))}
      </nav>
      <span class="state" role="status"><i id="dot" class={`dot ${kind}`} aria-hidden="true" /><span id="state">{text}</span></span>
      {apiKey.value || state === "locked" ? (
        <button type="button" class="quiet" onClick={() => show(keying, "key-box")}>{words.key.change}</button>
      ) : null}
      <button
        type="button" class="icon" id="theme" title={words.theme[theme.value]} aria-label={words.theme[theme.value]}
        onClick={() => wear(THEMES[(THEMES.indexOf(theme.value) + 1) % THEMES.length]!)}
      >{theme.value === "dark" ? "☾" : theme.value === "light" ? "☀" : "◐"}</button>
      <button type="button" class="icon" id="help" title={words.help.label} aria-label={words.help.label} onClick={() => show(helping, "help-box")}>?</button>
    </header>
  );
}

function Notices() {
  return (
    <div class="notices" aria-live="polite">
      {notices.value.map((n) => (
        <div key={n.id} class={`notice ${n.kind}`} role={n.kind === "bad" ? "alert" : undefined}>
          <div>
            <p>{n.text}</p>
            {n.lines?.length ? <ul>{n.lines.map((line) => <li>{line}</li>)}</ul> : null}
          </div>
          {n.undo ? <button type="button" onClick={() => { n.undo!(); dismiss(n.id); }}>{n.undoText}</button> : null}
          <button type="button" class="icon" aria-label={words.dismiss} onClick={() => dismiss(n.id)}>×</button>
        </div>
      ))}
    </div>
  );
}

function Help() {
  useLayoutEffect(() => { // with the drawing: a new language draws it anew, open
    if (helping.value) show(helping, "help-box");
  }, [helping.value]);
  return (
    <dialog id="help-box" class="small" aria-label={words.help.label} onClose={closed(helping)}>
      <h2>{words.help.label}</h2>
      <table>
        <tbody>{words.help.keys.map(([key, does]) => <tr key={key}><th scope="row"><kbd>{key}</kbd></th><td>{does}</td></tr>)}</tbody>
      </table>
      <div class="field">
        <label for="language">{words.languages}</label>
        <select id="language" value={language.value} onChange={(e) => void speak(e.currentTarget.value)}>
          {Object.entries(LANGUAGES).map(([code, name]) => <option value={code} lang={code}>{name}</option>)}
        </select>
      </div>
      <div class="field">
        <label for="theme-choice">{words.themes}</label>
        <select id="theme-choice" value={theme.value} onChange={(e) => wear(e.currentTarget.value)}>
          {THEMES.map((name) => <option value={name}>{words.theme[name]}</option>)}
        </select>
      </div>
      <form method="dialog"><button>{words.detail.close}</button></form>
    </dialog>
  );
}

/** Asks for the key once where one is needed, and says when the server does not know it. */
function KeyBox() {
  const box = useRef<HTMLDialogElement>(null);
  const field = useRef<HTMLInputElement>(null);
  const isLocked = connection.value === "locked";
  const wants = keying.value || isLocked;
  useEffect(() => {
    if (wants && !box.current?.open) box.current?.showModal();
    if (!wants && box.current?.open) box.current.close();
  }, [wants]);
  const leave = () => {
    keying.value = false;
    if (isLocked) box.current?.showModal(); // browsers let a second Escape close it
  };
  const use = (key: string) => {
    useKey(key.trim());
    keying.value = false;
    connection.value = "connecting";
    void watch();
  };
  return (
    <dialog ref={box} class="small" id="key-box" aria-label={words.key.title} onCancel={(e) => { if (isLocked) e.preventDefault(); }} onClose={ended(leave)}>
      <form onSubmit={(e) => { e.preventDefault(); use(field.current!.value); }}>
        <h2>{words.key.title}</h2>
        <p class={isLocked && apiKey.value ? "notice bad" : ""} id="key-state">{isLocked && apiKey.value ? words.key.wrong : words.key.needed}</p>
        <div class="field">
          <label for="key">{words.key.title}</label>
          <input id="key" ref={field} type="password" autoComplete="off" />
        </div>
        <p class="hint">{words.key.kept}</p>
        <div class="row">
          <button class="primary" type="submit">{words.key.use}</button>
          {apiKey.value ? <button type="button" onClick={() => use("")}>{words.key.forget}</button> : null}
          {isLocked ? null : <button type="button" onClick={() => box.current?.close()}>{words.detail.close}</button>}
        </div>
      </form>
    </dialog>
  );
}

function press(event: KeyboardEvent): void {
  const target = event.target as HTMLElement;
  const isTyping = /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName);
  const inDialog = document.querySelector("dialog[open]") !== null;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !inDialog) {
    event.preventDefault();
    void generate();
  } else if (event.key === "k" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (!inDialog) show(commanding, "palette");
  } else if (event.key === "Escape" && !inDialog && watchedJob.value && ["queued", "running"].includes(watchedJob.value.status)) {
    event.preventDefault();
    void cancel(watchedJob.value.id);
  } else if (isTyping || event.ctrlKey || event.metaKey || event.altKey) {
    return;
  } else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
    const by = event.key === "ArrowRight" ? 1 : -1;
    if (detail.value) stepDetail(by);
    else if (!inDialog && room.value === "create") step(by);
  } else if (inDialog) {
    return;
  } else if (event.key === "?") {
    show(helping, "help-box");
  } else if (event.key === "c") {
    go("create");
  } else if (event.key === "g") {
    go("gallery");
  } else if (event.key === "x") {
    go("sheet");
  } else if (event.key === "l") {
    go("lab");
  } else if (event.key === "t") {
    go("train");
  } else if (event.key === "o") {
    go("operate");
  } else if (event.key === "/") {
    event.preventDefault();
    go("gallery");
    setTimeout(() => document.getElementById("search")?.focus(), 50); // once the room is there
  } else if (event.key === "r") {
    void recallShown();
  } else if (event.key === "s") {
    document.getElementById("save")?.click();
  }
}
