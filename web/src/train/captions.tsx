// The pictures of a data set with the caption of each: chosen just now, or kept on the server.
import { useEffect, useState } from "preact/hooks";

import { ask, call } from "../api";
import { Picture } from "../image";
import { notice } from "../state";
import { words } from "../words";

/** A picture that was chosen, and what is to be learnt about it; "" takes the common caption. */
export interface Chosen { file: File; caption: string }

const stem = (name: string) => name.replace(/\.[^.]*$/, "");
const end = (name: string) => name.slice(name.lastIndexOf(".") + 1).toLowerCase();

/** Add files to those that were chosen; a text gives its caption to the pictures of its name. */
export async function choose(before: Chosen[], files: File[]): Promise<Chosen[]> {
  const texts = new Map<string, string>();
  for (const file of files.filter((f) => end(f.name) === "txt")) texts.set(stem(file.name), (await file.text()).trim());
  const added = files.filter((f) => end(f.name) !== "txt").map((file) => ({ file, caption: "" }));
  return [...before, ...added].map((one) => ({ ...one, caption: texts.get(stem(one.file.name)) ?? one.caption }));
}

const AT_ONCE = 4;

/** Send chosen pictures into a data set, the caption of each beside it. */
export async function upload(set: string, chosen: Chosen[], common: string, told: (done: number) => void): Promise<void> {
  const parts: [string, Blob][] = chosen.flatMap(({ file, caption }, k) => {
    const number = String(k + 1).padStart(4, "0");
    const text = caption.trim() || common.trim();
    return [[`${number}.${end(file.name)}`, file], ...(text ? [[`${number}.txt`, new Blob([text])]] : [])] as [string, Blob][];
  });
  const all = parts.length;
  let done = 0;
  const next = async (): Promise<void> => {
    for (let part = parts.pop(); part; part = parts.pop()) {
      await put(set, ...part);
      done += 1;
      told(done);
    }
  };
  await Promise.all(Array.from({ length: Math.min(AT_ONCE, all) }, next));
}

const at = (set: string, file: string) => `/v1/datasets/${encodeURIComponent(set)}/${encodeURIComponent(file)}`;

async function put(set: string, file: string, body: Blob): Promise<void> {
  await call(at(set, file), { method: "PUT", body, headers: { "Content-Type": "application/octet-stream" } });
}

/** The chosen pictures; with captions where what is trained reads them. */
export function ChosenPictures({ chosen, isCaptioned, common, onChange }: { chosen: Chosen[]; isCaptioned: boolean; common: string; onChange: (next: Chosen[]) => void }) {
  return (
    <ul class="captions" aria-label={words.train.fields.data}>
      {chosen.map((one, k) => (
        <li key={`${one.file.name}/${one.file.lastModified}/${k}`}>
          <Local file={one.file} />
          {isCaptioned ? (
            <textarea
              rows={2} aria-label={words.train.captionOf(one.file.name)} placeholder={common || words.train.captionHint} value={one.caption}
              onInput={(e) => onChange(chosen.map((other) => (other === one ? { ...one, caption: e.currentTarget.value } : other)))}
            />
          ) : <span class="grow hint">{one.file.name}</span>}
          <button type="button" class="icon" aria-label={words.train.leaveOut(one.file.name)} title={words.train.leaveOut(one.file.name)} onClick={() => onChange(chosen.filter((other) => other !== one))}>×</button>
        </li>
      ))}
    </ul>
  );
}

function Local({ file }: { file: File }) {
  const [address, setAddress] = useState("");
  useEffect(() => {
    const made = URL.createObjectURL(file);
    setAddress(made);
    return () => URL.revokeObjectURL(made);
  }, [file]);
  return address ? <img src={address} alt="" loading="lazy" decoding="async" /> : <span class="blank" />;
}

interface Kept { file: string; caption: string }

/** The pictures of a data set that is on the server; a caption is kept when its field is left. */
export function KeptPictures({ set }: { set: string }) {
  const [kept, setKept] = useState<Kept[]>([]);
  useEffect(() => {
    let isCurrent = true;
    setKept([]);
    ask<{ pictures: Kept[] }>(`/v1/datasets/${encodeURIComponent(set)}`).then((found) => isCurrent && setKept(found.pictures), () => undefined);
    return () => { isCurrent = false; };
  }, [set]);
  const keep = async (one: Kept, text: string) => {
    const caption = text.trim();
    if (caption === one.caption) return;
    const file = `${stem(one.file)}.txt`;
    try {
      if (caption) await put(set, file, new Blob([caption]));
      else await call(at(set, file), { method: "DELETE" });
      setKept((old) => old.map((other) => (other.file === one.file ? { ...one, caption } : other)));
    } catch (error) {
      notice("bad", (error as Error).message);
    }
  };
  const remove = async (one: Kept) => {
    if (!confirm(words.train.removePicture(one.file))) return;
    try {
      await call(at(set, one.file), { method: "DELETE" });
      setKept((old) => old.filter((other) => other.file !== one.file));
    } catch (error) {
      notice("bad", (error as Error).message);
    }
  };
  if (!kept.length) return null;
  const without = kept.filter((one) => !one.caption).length;
  return (
    <details class="plain" id="kept-pictures">
      <summary>{words.train.captionsOf(kept.length, without)}</summary>
      <ul class="captions" aria-label={words.train.fields.data}>
        {kept.map((one) => (
          <li key={one.file}>
            <Picture path={`${at(set, one.file)}/small`} alt="" lazy />
            <textarea rows={2} aria-label={words.train.captionOf(one.file)} defaultValue={one.caption} onChange={(e) => void keep(one, e.currentTarget.value)} />
            <button type="button" class="icon" aria-label={words.train.leaveOut(one.file)} title={words.train.leaveOut(one.file)} onClick={() => void remove(one)}>×</button>
          </li>
        ))}
      </ul>
    </details>
  );
}
