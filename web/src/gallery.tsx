// Everything made: searched, selected, compared, deleted.
import { signal } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";

import { ask, type Job, type MadeImage } from "./api";
import { openDetail } from "./detail";
import { Picture } from "./image";
import { hidden, loadMore, pictures, recentNext, remove } from "./jobs";
import { notice } from "./state";
import { nameOf, words } from "./words";

interface Entry { job: Job; image: MadeImage }

const query = signal("");
const found = signal<Job[] | null>(null);
const foundNext = signal<string | null>(null);
const selected = signal<ReadonlySet<string>>(new Set());
const selecting = signal(false);
const comparing = signal<[Entry, Entry] | null>(null);

const idOf = (entry: Entry) => `${entry.job.id}/${entry.image.index}`;

async function search(more = false): Promise<void> {
  const words_ = query.value.trim();
  if (!words_) {
    found.value = null;
    return;
  }
  const after = more && foundNext.value ? `&after=${foundNext.value}` : "";
  try {
    const page = await ask<{ jobs: Job[]; next: string | null }>(`/v1/gallery?which=ended&limit=60&q=${encodeURIComponent(words_)}${after}`);
    if (words_ !== query.value.trim()) return;
    found.value = more ? [...(found.value ?? []), ...page.jobs] : page.jobs;
    foundNext.value = page.next;
  } catch (error) {
    notice("bad", (error as Error).message);
  }
}

export function Gallery() {
  const timer = useRef(0);
  const list: Entry[] = found.value
    ? found.value.filter((j) => !hidden.value.has(j.id)).flatMap((job) => job.images.map((image) => ({ job, image })))
    : pictures.value;
  const chosen = list.filter((e) => selected.value.has(idOf(e)));
  return (
    <section class="gallery" aria-label={words.gallery.label}>
      <header class="row">
        <input
          id="search" type="search" aria-label={words.gallery.search} placeholder={words.gallery.search} value={query.value}
          onInput={(e) => {
            query.value = e.currentTarget.value;
            clearTimeout(timer.current);
            timer.current = window.setTimeout(() => void search(), 120);
          }}
        />
        <span role="status">{words.gallery.count(list.length)}{(found.value ? foundNext.value : recentNext.value) ? "+" : ""}</span>
        <button type="button" aria-pressed={selecting.value} id="select" onClick={() => { selecting.value = !selecting.value; selected.value = new Set(); }}>{words.gallery.select}</button>
        {selecting.value ? (
          <>
            <button
              type="button" id="compare" title={words.gallery.compareHint} disabled={chosen.length !== 2}
              onClick={() => { comparing.value = [chosen[0]!, chosen[1]!]; }}
            >{words.gallery.compare}</button>
            <button
              type="button" class="danger" disabled={!chosen.length}
              onClick={() => { remove([...new Set(chosen.map((e) => e.job.id))]); selected.value = new Set(); }}
            >{words.gallery.delete}</button>
          </>
        ) : null}
      </header>
      {list.length ? (
        <ul class="tiles">
          {list.map((entry) => <Tile key={idOf(entry)} entry={entry} />)}
        </ul>
      ) : <p class="empty">{query.value ? words.gallery.nothing : words.gallery.empty}</p>}
      {(found.value ? foundNext.value : recentNext.value) ? <More act={() => (found.value ? search(true) : loadMore())} /> : null}
      {comparing.value ? <Compare pair={comparing.value} /> : null}
    </section>
  );
}

function Tile({ entry }: { entry: Entry }) {
  const { job, image } = entry;
  const id = idOf(entry);
  const text = String(job.request.prompt ?? job.request.model ?? "");
  const press = () => {
    if (!selecting.value) {
      openDetail(job.id, image.index);
      return;
    }
    const next = new Set(selected.value);
    if (!next.delete(id)) next.add(id);
    selected.value = next;
  };
  return (
    <li>
      <button type="button" class="tile" title={text} aria-pressed={selecting.value ? selected.value.has(id) : undefined} onClick={press}>
        <Picture path={image.url} lazy alt={words.stage.alt(text, image.seed)} />
      </button>
    </li>
  );
}

/** Loads more when it comes into sight; a button for those who do not scroll. */
function More({ act }: { act: () => Promise<void> }) {
  const box = useRef<HTMLButtonElement>(null);
  const busy = useRef(false);
  const run = async () => {
    if (busy.current) return;
    busy.current = true;
    await act().catch((error: Error) => notice("bad", error.message));
    busy.current = false;
  };
  useEffect(() => {
    const watcher = new IntersectionObserver((seen) => { if (seen.some((e) => e.isIntersecting)) void run(); }, { rootMargin: "600px" });
    watcher.observe(box.current!);
    return () => watcher.disconnect();
  });
  return <button type="button" ref={box} class="more" onClick={() => void run()}>{words.gallery.more}</button>;
}

function Compare({ pair }: { pair: [Entry, Entry] }) {
  const box = useRef<HTMLDialogElement>(null);
  const [cut, setCut] = useState(50);
  const [flicker, setFlicker] = useState(false);
  const [isSecond, setSecond] = useState(false);
  useEffect(() => { box.current?.showModal(); }, []);
  useEffect(() => {
    if (!flicker) return;
    const timer = setInterval(() => setSecond((s) => !s), 500);
    return () => clearInterval(timer);
  }, [flicker]);
  const [one, two] = pair;
  const edge = flicker ? (isSecond ? 0 : 100) : cut;
  const asked = pair.map((e) => ({ ...e.job.request, seed: String(e.image.seed) }) as Record<string, unknown>) as [Record<string, unknown>, Record<string, unknown>];
  const fields = [...new Set([...Object.keys(asked[0]), ...Object.keys(asked[1])])]
    .filter((name) => JSON.stringify(asked[0][name]) !== JSON.stringify(asked[1][name]));
  const read = (value: unknown) => (value === undefined ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value));
  return (
    <dialog ref={box} class="detail" aria-label={words.compare.label} onClose={() => { comparing.value = null; }}>
      <header>
        <h2>{words.compare.label}</h2>
        <button type="button" class="icon" aria-label={words.detail.close} onClick={() => { comparing.value = null; }}>×</button>
      </header>
      <div class="sides">
        <div class="big compare">
          <Picture path={two.image.url} alt={words.stage.alt(String(two.job.request.prompt ?? ""), two.image.seed)} />
          <div class="over" style={{ clipPath: `inset(0 ${100 - edge}% 0 0)` }}>
            <Picture path={one.image.url} alt={words.stage.alt(String(one.job.request.prompt ?? ""), one.image.seed)} />
          </div>
          {flicker ? null : <i class="cut" style={{ left: `${cut}%` }} aria-hidden="true" />}
        </div>
        <div class="facts">
          <input id="cut" type="range" min={0} max={100} value={cut} aria-label={words.compare.slider} disabled={flicker} onInput={(e) => setCut(Number(e.currentTarget.value))} />
          <label class="check"><input type="checkbox" checked={flicker} onChange={(e) => setFlicker(e.currentTarget.checked)} />{words.compare.flicker}</label>
          <h3>{words.compare.differences}</h3>
          {fields.length ? (
            <table>
              <tbody>{fields.map((name) => <tr key={name}><th scope="row">{nameOf(name)}</th><td>{read(asked[0][name])}</td><td>{read(asked[1][name])}</td></tr>)}</tbody>
            </table>
          ) : <p>{words.compare.same}</p>}
        </div>
      </div>
    </dialog>
  );
}
