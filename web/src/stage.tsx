// The picture that is looked at, or made, and what waits.
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";

import type { Job, MadeImage } from "./api";
import { openDetail } from "./detail";
import { Icon } from "./icons";
import { Picture, pictureAsText, useAddress } from "./image";
import {
  cancel, cancelAll, generate, live, notifyWhenDone, pictures, queue, requestOf, shown, shownImage, shownJob, watched, watchedJob,
} from "./jobs";
import { connection, model, modelOf, notice, replace, request, set } from "./state";
import { duration } from "./text";
import { nameOf, words } from "./words";

const clock = signal(Date.now());
const EXAMPLES = ["a red apple", "a sailing boat", "a yellow star", "a cup of coffee"]; // models read English

export function Stage() {
  const job = watchedJob.value;
  const isMaking = job !== undefined && ["queued", "running"].includes(job.status);
  useEffect(() => {
    if (!isMaking) return;
    const timer = setInterval(() => { clock.value = Date.now(); }, 500);
    return () => clearInterval(timer);
  }, [isMaking]);
  return (
    <section class="stage" aria-label={words.stage.label}>
      {isMaking ? <Making job={job} /> : shownJob.value && shownImage.value ? <Shown job={shownJob.value} image={shownImage.value} /> : <Empty job={job} />}
    </section>
  );
}

function Empty({ job }: { job: Job | undefined }) {
  const ended = job?.status === "failed" ? (job.error ?? words.stage.failed) : job?.status === "cancelled" ? words.stage.cancelled : "";
  const draws = model.value?.takes_prompt !== false;
  const draw = (prompt: string) => { set("prompt", prompt); void generate(); };
  return (
    <div class="canvas">
      <div class="nothing">
        <Icon name="picture" />
        <p class={ended ? "bad" : ""}>{ended || (draws ? words.stage.empty : words.stage.emptyPlain)}</p>
        {!ended && draws && connection.value === "ready" ? (
          <div class="examples" role="group" aria-label={words.stage.examples}>
            {EXAMPLES.map((prompt) => <button type="button" key={prompt} lang="en" onClick={() => draw(prompt)}>{prompt}</button>)}
          </div>
        ) : null}
        <p class="hint">{words.stage.drop}</p>
      </div>
    </div>
  );
}

function Making({ job }: { job: Job }) {
  const now = live.value[job.id];
  const count = Number((job.request.walk as { frames?: number } | undefined)?.frames ?? job.request.num_images ?? 1);
  const step = now?.step ?? job.progress.step;
  const steps = now?.steps ?? job.progress.steps;
  // Pictures of a request are drawn side by side: what is done is the sum over them.
  const by = new Map(Object.entries(now?.done ?? {}).map(([image, at]) => [Number(image), at]));
  for (const image of job.images) by.set(image.index, steps);
  if (!by.size && step) by.set(0, step);
  const taken = [...by.values()].reduce((sum, at) => sum + at, 0);
  const done = steps ? Math.min(1, taken / (steps * count)) : 0;
  const spent = job.started ? clock.value / 1000 - job.started : 0;
  // A model that is loaded for its first picture takes its time before the first step.
  const isLoading = job.status === "running" && !taken && modelOf(job.request)?.ready === false;
  const pace = now && taken > now.first ? Math.max(0, clock.value - now.began) / 1000 / (taken - now.first) : 0;
  const left = isLoading ? 0 : pace ? pace * (steps * count - taken) : job.eta_s;
  const last = job.images.at(-1);
  const text = job.status === "queued"
    ? words.stage.queued(job.position)
    : isLoading ? words.stage.loading(duration(Math.max(0, spent)))
    : steps ? words.stage.step(job.images.length, count, count > 1 ? taken : step, count > 1 ? steps * count : steps) : words.queue.status.running!;
  return (
    <>
      <div class="canvas making">
        {now?.preview
          ? <img id="picture" class="preview" src={now.preview} alt={words.stage.preview} />
          : last ? <Picture id="picture" path={last.url} alt={words.stage.alt(String(job.request.prompt ?? ""), last.seed)} />
            : <p class="empty">{String(job.request.prompt ?? job.request.model ?? "")}</p>}
      </div>
      <div class="progress" role="progressbar" aria-label={text} aria-valuemin={0} aria-valuemax={100} aria-valuenow={Math.round(done * 100)}>
        <i id="bar" style={{ width: `${done * 100}%` }} />
      </div>
      <div class="under">
        <p id="about">{text}{left > 0.5 ? ` · ${words.stage.left(duration(left))}` : ""}</p>
        <button type="button" id="stop" onClick={() => void cancel(job.id)}>{words.queue.cancel}</button>
      </div>
    </>
  );
}

export function fileName(image: MadeImage): string {
  const ending: Record<string, string> = { jpeg: "jpg", apng: "png" };
  return `mezzotint-${image.seed}.${ending[image.format] ?? image.format}`;
}

/** Fill the form with what made a picture. */
export async function recallShown(): Promise<void> {
  const job = shownJob.value;
  const image = shownImage.value;
  if (!job || !image) return;
  try {
    replace(await requestOf(job, image.index));
  } catch (error) {
    notice("bad", (error as Error).message);
  }
}

async function beginFrom(path: string): Promise<void> {
  try {
    request.value = { ...request.value, image: await pictureAsText(path) };
  } catch (error) {
    notice("bad", (error as Error).message);
  }
}

function Shown({ job, image }: { job: Job; image: MadeImage }) {
  const prompt = String(job.request.prompt ?? "");
  const address = useAddress(image.url);
  const took = job.cache === "hit" ? words.stage.cached
    : job.finished && job.started ? words.stage.took(duration(job.finished - job.started)) : "";
  return (
    <>
      <div class="canvas">
        <button type="button" class="bare" aria-label={`${words.stage.details}: ${words.stage.alt(prompt, image.seed)}`} onClick={() => openDetail(job.id, image.index)}>
          <Picture id="picture" path={image.url} alt={words.stage.alt(prompt, image.seed)} />
        </button>
      </div>
      <div class="under">
        <p id="about">{image.width} × {image.height} · {nameOf("seed")} {String(image.seed)}{took ? ` · ${took}` : ""}</p>
        <div class="actions">
          <button type="button" id="recall" onClick={() => void recallShown()}>{words.stage.recall}</button>
          <button type="button" onClick={() => set("seed", String(image.seed))}>{words.stage.seed}</button>
          <button type="button" id="vary" onClick={() => void beginFrom(image.url)}>{words.stage.begin}</button>
          <a class="button" id="save" href={address} download={fileName(image)}>{words.stage.save}</a>
          <button type="button" id="details" onClick={() => openDetail(job.id, image.index)}>{words.stage.details}</button>
        </div>
      </div>
      {[...job.warnings, ...(image.warnings ?? [])].length ? (
        <p class="notice warn">{[...new Set([...job.warnings, ...(image.warnings ?? [])])].join(" · ")}</p>
      ) : null}
    </>
  );
}

export function Queue() {
  const jobs = queue.value;
  if (!jobs.length) return null;
  const askToNotify = async () => {
    const wants = !notifyWhenDone.value && (await Notification.requestPermission()) === "granted";
    notifyWhenDone.value = wants;
    localStorage.setItem("mezzotint-notify", wants ? "yes" : "no");
  };
  return (
    <section class="queue" aria-label={words.queue.label}>
      <header>
        <h2>{words.queue.label} ({jobs.length})</h2>
        {"Notification" in window ? (
          <label class="check"><input type="checkbox" checked={notifyWhenDone.value} onChange={() => void askToNotify()} />{words.queue.notify}</label>
        ) : null}
        <button type="button" id="cancel-all" onClick={() => void cancelAll()}>{words.queue.cancelAll}</button>
      </header>
      <ol>
        {jobs.map((job) => (
          <li key={job.id} data-job={job.id} data-status={job.status} class={watched.value === job.id ? "current" : ""}>
            <QueuePreview job={job} />
            <button type="button" class="bare grow" onClick={() => { watched.value = job.id; }}>
              <b>{String(job.request.prompt ?? job.request.model ?? nameOf("model"))}</b>
              <small>
                {job.status === "running"
                  ? stepOf(job) || words.queue.status.running
                  : `${words.stage.queued(job.position)}${job.eta_s > 0.5 ? `, ${words.stage.left(duration(job.eta_s))}` : ""}`}
              </small>
            </button>
            <button type="button" class="quiet" aria-label={`${words.queue.cancel}: ${String(job.request.prompt ?? job.id)}`} onClick={() => void cancel(job.id)}>×</button>
          </li>
        ))}
      </ol>
    </section>
  );
}

function stepOf(job: Job): string {
  const at = live.value[job.id] ?? job.progress;
  return at.steps ? `${at.step} / ${at.steps}` : "";
}

/** How far a picture of the queue has come, small. */
function QueuePreview({ job }: { job: Job }) {
  const preview = live.value[job.id]?.preview;
  return preview ? <img class="mini" src={preview} alt="" /> : <span class="blank mini" />;
}

/** The newest pictures: one stop of Tab, within it the arrows go on. */
export function Strip() {
  const list = pictures.value.slice(0, 40);
  if (!list.length) return null;
  const at = Math.max(0, list.findIndex(({ job, image }) => shown.value?.job === job.id && shown.value.index === image.index));
  const press = (event: KeyboardEvent) => {
    const all = [...(event.currentTarget as HTMLElement).querySelectorAll("button")];
    const now = all.indexOf(event.target as HTMLButtonElement);
    const next = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: all.length - 1 }[event.key];
    if (next === undefined || !all[next]) return;
    event.preventDefault();
    event.stopPropagation();
    all[next].focus();
    all[next].click();
  };
  return (
    <section class="strip" id="gallery" aria-label={words.queue.recent} onKeyDown={press}>
      {list.map(({ job, image }, k) => (
        <button
          type="button" key={`${job.id}-${image.index}`} title={String(job.request.prompt ?? "")} tabIndex={k === at ? 0 : -1}
          aria-pressed={shown.value?.job === job.id && shown.value.index === image.index && watched.value === null}
          onClick={() => { watched.value = null; shown.value = { job: job.id, index: image.index }; }}
        >
          <Picture path={image.url} lazy alt={words.stage.alt(String(job.request.prompt ?? ""), image.seed)} />
        </button>
      ))}
    </section>
  );
}
