// Pictures of a folder of this machine, read by the browser: they stay where they are.
import { signal } from "@preact/signals";
import { useEffect, useId, useLayoutEffect, useRef, useState } from "preact/hooks";

import { ask, type Fields, type Inspected } from "../api";
import { Copy, Verify } from "../detail";
import { ended } from "../dialogs";
import { useSettings } from "../drop";
import { readPicture } from "../fields";
import { go, notice, request } from "../state";
import { size, when } from "../text";
import { nameOf, words } from "../words";
import { VirtualGrid } from "./virtual";

interface Folder { name: string; files: File[] }

export const folder = signal<Folder | null>(null);
const opened = signal<File | null>(null);
const addresses = new Map<File, string>();

function addressOf(file: File): string {
  let address = addresses.get(file);
  if (!address) addresses.set(file, (address = URL.createObjectURL(file)));
  return address;
}

function leave(): void {
  for (const address of addresses.values()) URL.revokeObjectURL(address);
  addresses.clear();
  opened.value = null;
  folder.value = null;
}

/** Take the pictures of a chosen folder and those below it, newest first. */
function take(files: FileList | null): void {
  if (!files?.length) return;
  leave();
  const found = [...files].filter((f) => /^image\/(png|jpeg|webp|gif|apng)$/.test(f.type)).sort((a, b) => b.lastModified - a.lastModified);
  folder.value = { name: files[0]!.webkitRelativePath.split("/")[0] || words.gallery.folder, files: found };
}

export function FolderButton() {
  const id = useId();
  return (
    <>
      <input id={id} class="offscreen" data-folder="" type="file" multiple {...{ webkitdirectory: "" }} onChange={(e) => { take(e.currentTarget.files); e.currentTarget.value = ""; }} />
      <label class="button" for={id} title={words.gallery.folderHint}>{words.gallery.folder}</label>
    </>
  );
}

export function FolderView({ of: { name, files } }: { of: Folder }) {
  const [typed, type] = useState("");
  const wanted = typed.toLowerCase().split(/\s+/).filter(Boolean);
  const found = files.filter((f) => wanted.every((word) => pathOf(f).toLowerCase().includes(word)));
  useEffect(() => leave, []); // with the room the pictures go
  return (
    <section class="gallery" aria-label={words.gallery.folderOf(name)}>
      <header class="search">
        <div class="row tight">
          <button type="button" id="leave-folder" onClick={leave}>← {words.gallery.label}</button>
          <input id="search" type="search" aria-label={words.gallery.folderSearch} placeholder={words.gallery.folderSearch} value={typed} onInput={(e) => type(e.currentTarget.value)} />
        </div>
        <div class="row filters">
          <h2>{words.gallery.folderOf(name)}</h2>
          <span class="count" role="status" id="count">{found.length < files.length ? words.gallery.of(found.length, files.length) : words.gallery.count(files.length)}</span>
        </div>
        <p class="hint">{words.gallery.folderHint}</p>
      </header>
      {found.length ? (
        <VirtualGrid
          items={found} least={150} keyOf={pathOf} label={words.gallery.folderOf(name)}
          draw={(file, _, isStop) => (
            <button type="button" class="tile" title={file.name} aria-label={file.name} tabIndex={isStop ? 0 : -1} onClick={() => { opened.value = file; }}>
              <img src={addressOf(file)} alt="" loading="lazy" decoding="async" />
            </button>
          )}
        />
      ) : <div class="nothing"><p>{files.length ? words.gallery.nothing : words.gallery.folderEmpty}</p></div>}
      {opened.value ? <Opened key={pathOf(opened.value)} file={opened.value} list={found} /> : null}
    </section>
  );
}

function pathOf(file: File): string {
  return file.webkitRelativePath || file.name;
}

/** One picture of the folder, with what the server reads in it. */
function Opened({ file, list }: { file: File; list: File[] }) {
  const box = useRef<HTMLDialogElement>(null);
  const [found, setFound] = useState<Inspected | null>(null);
  useLayoutEffect(() => { if (!box.current?.open) box.current?.showModal(); }, []);
  useEffect(() => {
    ask<Inspected>("/v1/inspect", { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } })
      .then(setFound, (error: Error) => notice("bad", error.message));
  }, [file]);
  const asked = (found?.request ?? null) as Fields | null;
  // a "close" event that comes late is of this picture, not of the one that was opened since
  const close = () => { if (opened.value === file) opened.value = null; };
  const go_on = (by: number) => { opened.value = list[list.indexOf(file) + by] ?? file; };
  const press = (event: KeyboardEvent) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by === undefined || (event.target as HTMLElement).matches("input, textarea, select")) return;
    event.preventDefault();
    event.stopPropagation();
    go_on(by);
  };
  const begin = async () => {
    request.value = { ...request.value, image: await readPicture(file) };
    close();
    go("create");
  };
  return (
    <dialog ref={box} class="detail" aria-label={words.detail.label} onClose={ended(close)} onKeyDown={press}>
      <header>
        <button type="button" class="icon" aria-label={words.detail.previous} onClick={() => go_on(-1)}>←</button>
        <button type="button" class="icon" aria-label={words.detail.next} onClick={() => go_on(1)}>→</button>
        <h2>{String(asked?.prompt ?? file.name)}</h2>
        <button type="button" class="icon" aria-label={words.detail.close} onClick={close}>×</button>
      </header>
      <div class="sides">
        <div class="big"><img src={addressOf(file)} alt={file.name} /></div>
        <div class="facts">
          <div class="actions">
            <button type="button" class="primary" id="use-file" disabled={!asked} onClick={() => { useSettings(found!, file.name); close(); go("create"); }}>{words.stage.recall}</button>
            <button type="button" onClick={() => void begin()}>{words.stage.begin}</button>
          </div>
          {found && !asked ? <p class="notice warn">{words.gallery.folderPlain}</p> : null}
          {asked ? <Verify bytes={() => file.arrayBuffer()} at={0} asked={asked} /> : null}
          {asked ? <Copy asked={asked} /> : null}
          <dl>
            <dt>{words.gallery.file}</dt><dd>{pathOf(file)}</dd>
            <dt>{words.form.size}</dt><dd>{size(file.size)}</dd>
            <dt>{words.detail.made}</dt><dd>{when(file.lastModified / 1000)}</dd>
          </dl>
          {found?.not_honoured.length ? (
            <div class="notice warn"><p>{words.drop.lost}</p><ul>{found.not_honoured.map((line) => <li key={line}>{line}</li>)}</ul></div>
          ) : null}
          {asked ? (
            <details open>
              <summary>{words.detail.request}</summary>
              <table><tbody>
                {Object.entries(asked).map(([name, value]) => (
                  <tr key={name}><th scope="row">{nameOf(name)}</th><td>{typeof value === "object" ? JSON.stringify(value).slice(0, 400) : String(value).slice(0, 400)}</td></tr>
                ))}
              </tbody></table>
            </details>
          ) : null}
        </div>
      </div>
    </dialog>
  );
}
