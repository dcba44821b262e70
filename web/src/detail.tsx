// One picture with everything known of it, and what can be done with it.
import { signal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

import { ask, call, type Fields, type Job, type MadeImage } from "./api";
import { COPIES } from "./copies";
import { ended } from "./dialogs";
import { boards, entries, entryOf, found, load, mark } from "./gallery/collection";
import { Icon } from "./icons";
import { bytesOf, Picture, pixels, useAddress } from "./image";
import { open, pictures, recent, remove, requestOf, shown, watched } from "./jobs";
import { go, notice, replace, room } from "./state";
import { fileName } from "./stage";
import { when } from "./text";
import { nameOf, words } from "./words";

export const detail = signal<{ job: string; index: number } | null>(null);

const beside = signal<Job | undefined>(undefined); // one that is in no list of this page yet

export function openDetail(job: string, index: number): void {
  detail.value = { job, index };
  beside.value = undefined;
  if ([...recent.value, ...open.value].some((j) => j.id === job)) return;
  void Promise.all([ask<Job>(`/v1/jobs/${job}`), ask<Fields>(`/v1/jobs/${job}/request`)]).then(
    ([found, asked]) => { beside.value = { ...found, request: asked }; },
    (error: Error) => notice("bad", error.message),
  );
}

export function Detail() {
  const box = useRef<HTMLDialogElement>(null);
  const at = detail.value;
  const job = at ? [...recent.value, ...open.value].find((j) => j.id === at.job) ?? beside.value : undefined;
  const image = job?.images.find((i) => i.index === at?.index);
  useLayoutEffect(() => { // before the "close" event of one that was just closed
    if (image && !box.current?.open) box.current?.showModal();
    if (!image && box.current?.open) box.current.close();
  }, [at, image !== undefined]); // not with each new list of jobs: that would open one that was just closed
  return (
    <dialog ref={box} class="detail" aria-label={words.detail.label} onClose={ended(() => { detail.value = null; })}>
      {job && image ? <Inside key={`${job.id}/${image.index}`} job={job} image={image} /> : null}
    </dialog>
  );
}

/** Go to the picture beside: in the gallery the one found next, elsewhere the one made next. */
export function stepDetail(by: number): void {
  const at = detail.value;
  const list = room.value === "gallery" ? found.value : pictures.value.map((p) => ({ job: p.job.id, index: p.image.index }));
  const place = list.findIndex((p) => p.job === at?.job && p.index === at?.index);
  const next = list[place + by];
  if (at && place >= 0 && next) openDetail(next.job, next.index);
}

function Inside({ job, image }: { job: Job; image: MadeImage }) {
  const [asked, setAsked] = useState<Fields | null>(null);
  const address = useAddress(image.url);
  useEffect(() => { requestOf(job, image.index).then(setAsked, () => undefined); }, [job.id, image.index]);
  const use = async () => {
    try {
      replace(asked ?? (await requestOf(job, image.index)));
    } catch (error) {
      notice("bad", (error as Error).message);
      return;
    }
    shown.value = { job: job.id, index: image.index };
    watched.value = null;
    go("create");
    detail.value = null;
  };
  return (
    <>
      <header>
        <button type="button" class="icon" aria-label={words.detail.previous} onClick={() => stepDetail(-1)}>←</button>
        <button type="button" class="icon" aria-label={words.detail.next} onClick={() => stepDetail(1)}>→</button>
        <h2>{String(job.request.prompt ?? job.request.model ?? "")}</h2>
        <button type="button" class="icon" id="close-detail" aria-label={words.detail.close} onClick={() => { detail.value = null; }}>×</button>
      </header>
      <div class="sides">
        <div class="big">
          {job.request.walk && job.images.length > 1
            ? <Walk job={job} />
            : image.format === "mp4"
              ? <video src={address} controls loop muted />
              : <Picture path={image.url} alt={words.stage.alt(String(job.request.prompt ?? ""), image.seed)} />}
        </div>
        <div class="facts">
          <div class="actions">
            <button type="button" class="primary" id="use" onClick={() => void use()}>{words.stage.recall}</button>
            <a class="button" href={address} download={fileName(image)}>{words.stage.save}</a>
            <button type="button" class="danger" id="delete" onClick={() => { detail.value = null; remove([job.id]); }}>{words.gallery.delete}</button>
          </div>
          <Opinion job={job.id} index={image.index} />
          <Verify bytes={() => bytesOf(image.url)} at={asked?.walk ? image.index : 0} asked={asked} />
          <Copy asked={asked} />
          <dl>
            <dt>{words.detail.model}</dt><dd>{String(job.request.model ?? "plate")}</dd>
            <dt>{words.detail.seed}</dt><dd>{String(image.seed)}</dd>
            <dt>{words.form.size}</dt><dd>{image.width} × {image.height}</dd>
            <dt>{words.detail.made}</dt><dd>{when(job.created)}</dd>
            {image.recipe_digest ? <><dt>{words.detail.digest}</dt><dd><code>{image.recipe_digest.slice(0, 16)}</code></dd></> : null}
          </dl>
          <Timings timings={image.timings ?? {}} />
          {image.attempts?.length ? (
            <Attempts attempts={image.attempts} />
          ) : null}
          {job.warnings.length ? <p class="notice warn">{job.warnings.join(" · ")}</p> : null}
          <details open>
            <summary>{words.detail.request}</summary>
            <table><tbody>
              {Object.entries(job.request).map(([name, value]) => (
                <tr key={name}><th scope="row">{nameOf(name)}</th><td>{typeof value === "object" ? JSON.stringify(value) : String(value)}</td></tr>
              ))}
            </tbody></table>
          </details>
        </div>
      </div>
    </>
  );
}

/** Star, rating and boards of a picture. */
function Opinion({ job, index }: { job: string; index: number }) {
  useEffect(() => { if (!entries.value.length) void load(); }, []);
  const entry = entryOf(job, index);
  if (!entry) return null;
  const { star, rating = 0, boards: on = [] } = entry.marks;
  const add = (name: string) => {
    const board = name.trim().slice(0, 60);
    if (board) void mark([entry], (marks) => ({ ...marks, boards: [...new Set([...(marks.boards ?? []), board])] }));
  };
  return (
    <div class="opinion">
      <button type="button" class={`icon ${star ? "on" : ""}`} id="star" aria-pressed={star === true} aria-label={words.gallery.star} onClick={() => void mark([entry], (marks) => ({ ...marks, star: !star }))}><Icon name="star" full={star} /></button>
      <span class="stars" role="radiogroup" aria-label={words.gallery.rating}>
        {[1, 2, 3, 4, 5].map((n) => (
          <button
            type="button" key={n} role="radio" aria-checked={rating === n} aria-label={words.gallery.rated(n)}
            onClick={() => void mark([entry], (marks) => ({ ...marks, rating: rating === n ? 0 : n }))}
          >{n <= rating ? "★" : "☆"}</button>
        ))}
      </span>
      {on.map((board) => (
        <span class="chip" key={board}>
          <span class="name">{board}</span>
          <button type="button" class="x" aria-label={words.gallery.offBoard(board)} onClick={() => void mark([entry], (marks) => ({ ...marks, boards: (marks.boards ?? []).filter((b) => b !== board) }))}>×</button>
        </span>
      ))}
      <input
        class="board" list="boards" aria-label={words.gallery.boardName} placeholder={words.gallery.toBoard}
        onKeyDown={(e) => { if (e.key === "Enter") { add(e.currentTarget.value); e.currentTarget.value = ""; } }}
        onChange={(e) => { if (boards.value.some(([name]) => name === e.currentTarget.value)) { add(e.currentTarget.value); e.currentTarget.value = ""; } }}
      />
      <datalist id="boards">{boards.value.map(([name]) => <option value={name} />)}</datalist>
    </div>
  );
}

/** What the gates said of each attempt. */
function Attempts({ attempts }: { attempts: Fields[] }) {
  const verdicts = (attempt: Fields) => (Array.isArray(attempt.verdicts) ? (attempt.verdicts as Fields[]) : []);
  const score = (value: unknown) => (typeof value === "number" ? Number(value.toPrecision(3)) : String(value ?? "–"));
  return (
    <details open>
      <summary>{words.detail.attempts} ({attempts.length})</summary>
      <table class="attempts">
        <thead><tr>{words.detail.attemptHeads.map((head) => <th scope="col" key={head}>{head}</th>)}</tr></thead>
        <tbody>
          {attempts.map((attempt, k) => (
            <tr key={k}>
              <th scope="row">{k + 1}</th><td>{String(attempt.seed ?? "")}</td>
              <td>{verdicts(attempt).map((v) => <div class={v.passed ? "good" : "bad"}>{String(v.gate ?? v.name ?? "")} {score(v.score)} {v.passed ? "✓" : "✗"}</div>)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </details>
  );
}

/** The pictures of a walk, one after the other. */
function Walk({ job }: { job: Job }) {
  const [at, setAt] = useState(0);
  const [plays, setPlays] = useState(!matchMedia("(prefers-reduced-motion: reduce)").matches);
  const [speed, setSpeed] = useState(8);
  const count = job.images.length;
  useEffect(() => {
    if (!plays) return;
    const timer = setInterval(() => setAt((n) => (n + 1) % count), 1000 / speed);
    return () => clearInterval(timer);
  }, [plays, speed, count]);
  return (
    <figure class="walk">
      {job.images.map((image, index) => (
        <div key={image.index} hidden={index !== at}><Picture path={image.url} alt={`${words.detail.frame} ${index + 1}`} /></div>
      ))}
      <figcaption class="row">
        <button type="button" id="play" onClick={() => setPlays(!plays)}>{plays ? words.detail.pause : words.detail.walk}</button>
        <input type="range" min={0} max={count - 1} value={at} aria-label={words.detail.frame} onInput={(e) => { setPlays(false); setAt(Number(e.currentTarget.value)); }} />
        <label>{words.detail.speed} <input type="number" min={1} max={60} value={speed} onInput={(e) => setSpeed(Math.max(1, Number(e.currentTarget.value) || 1))} /></label>
      </figcaption>
    </figure>
  );
}

function Timings({ timings }: { timings: Record<string, number> }) {
  const parts = Object.entries(timings).filter(([name, seconds]) => name.endsWith("_s") && seconds > 0);
  const all = parts.reduce((sum, [, seconds]) => sum + seconds, 0);
  if (!all) return null;
  const key = (name: string) => name.replace(/_s$/, "");
  const read = (name: string) => words.detail.stages[key(name)] ?? key(name);
  return (
    <figure class="timings">
      <figcaption>{words.detail.timings}</figcaption>
      <div class="bar" aria-hidden="true">
        {parts.map(([name, seconds]) => <i key={name} data-stage={key(name)} style={{ width: `${(100 * seconds) / all}%` }} title={read(name)} />)}
      </div>
      <p>{parts.map(([name, seconds]) => `${read(name)} ${seconds < 1 ? `${(1000 * seconds).toFixed(0)} ms` : words.time.seconds(seconds.toFixed(1))}`).join(" · ")}</p>
    </figure>
  );
}

/** Draw a picture again, without the cache, and compare bytes and pixels. `at`: its index among those of the request. */
export function Verify({ bytes, at, asked }: { bytes: () => Promise<ArrayBuffer>; at: number; asked: Fields | null }) {
  const [said, say] = useState<Verdict | null>(null);
  const verify = async () => {
    say({ kind: "", text: words.detail.verifying });
    try {
      const answer = await call("/v1/generations", {
        method: "POST", body: JSON.stringify(asked), headers: { "Content-Type": "application/json", "Cache-Control": "no-cache" },
      });
      const result = (await answer.json()) as { images: { index: number; b64: string }[] };
      const drawn = result.images.find((i) => i.index === at)!;
      const fresh = Uint8Array.from(atob(drawn.b64), (c) => c.charCodeAt(0)).buffer;
      say(await compare(await bytes(), fresh));
    } catch (error) {
      say({ kind: "bad", text: (error as Error).message });
    }
  };
  return (
    <p class="verify">
      <button type="button" id="verify" disabled={!asked || said?.kind === ""} onClick={() => void verify()}>{words.detail.verify}</button>
      {said ? <output id="verdict" class={said.kind}>{said.text}</output> : null}
      {said?.difference ? <Difference data={said.difference} /> : null}
    </p>
  );
}

interface Verdict { kind: string; text: string; difference?: ImageData }

/** Where two pictures differ, made eight times as strong so that one sees it. */
function Difference({ data }: { data: ImageData }) {
  const board = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    board.current!.width = data.width;
    board.current!.height = data.height;
    board.current!.getContext("2d")!.putImageData(data, 0, 0);
  }, [data]);
  return <canvas ref={board} class="difference-map" id="difference" role="img" aria-label={words.detail.differenceAlt} />;
}

const STRONGER = 8;

async function compare(first: ArrayBuffer, second: ArrayBuffer): Promise<Verdict> {
  const a = new Uint8Array(first);
  const b = new Uint8Array(second);
  if (a.length === b.length && a.every((value, i) => value === b[i])) return { kind: "good", text: words.detail.identical };
  const [one, two] = [await pixels(first), await pixels(second)];
  if (one.width !== two.width || one.height !== two.height) return { kind: "bad", text: words.detail.otherSize };
  let differ = 0;
  let most = 0;
  const difference = new ImageData(one.width, one.height);
  for (let i = 0; i < one.data.length; i += 4) {
    let largest = 0;
    for (let k = 0; k < 4; k += 1) {
      const gap = Math.abs(one.data[i + k]! - two.data[i + k]!);
      largest = Math.max(largest, gap);
      difference.data[i + k] = k === 3 ? 255 : gap * STRONGER;
    }
    if (largest) differ += 1;
    most = Math.max(most, largest);
  }
  const all = one.width * one.height;
  return differ ? { kind: "bad", text: words.detail.differ(differ, all, most), difference } : { kind: "good", text: words.detail.samePixels };
}

export function Copy({ asked }: { asked: Fields | null }) {
  const [text, setText] = useState("");
  const [told, tell] = useState("");
  const copy = async (kind: string) => {
    const made = COPIES[kind]!(asked!);
    setText(made);
    try {
      await navigator.clipboard.writeText(made);
      tell(words.detail.copied);
    } catch {
      tell(""); // no clipboard without a secure context: the text stands below
    }
  };
  return (
    <div class="copy">
      <span>{words.detail.copy}</span>
      {Object.keys(COPIES).map((kind) => (
        <button type="button" key={kind} data-copy={kind} disabled={!asked} onClick={() => void copy(kind)}>{words.detail.kinds[kind]}</button>
      ))}
      <span role="status">{told}</span>
      {text ? <pre id="copied">{text.length > 20_000 ? `${text.slice(0, 20_000)}…` : text}</pre> : null}
    </div>
  );
}


