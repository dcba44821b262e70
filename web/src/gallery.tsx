// Everything made: searched, marked, selected, compared, fetched, deleted.
import { computed, signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";

import { call, type PictureEntry } from "./api";
import { openDetail } from "./detail";
import { boards, entries, filters, type Filters, found, idOf, isLoaded, isLoading, load, mark, modelsMade, NO_FILTERS, urlOf } from "./gallery/collection";
import { Compare, comparing } from "./gallery/compare";
import { folder, FolderButton, FolderView } from "./gallery/folder";
import { isHurried, VirtualGrid } from "./gallery/virtual";
import { Icon } from "./icons";
import { Picture, small } from "./image";
import { remove } from "./jobs";
import { connection, notice } from "./state";
import { words } from "./words";

const selected = signal<ReadonlySet<string>>(new Set());
const selecting = signal(false);
const packing = signal(false);
const said = signal(""); // what a key did, for who does not see it
let anchor = -1; // where a range of a selection begins

const chosen = computed(() => (selected.value.size ? found.value.filter((e) => selected.value.has(idOf(e))) : []));
const least = signal(Number(localStorage.getItem("mezzotint-tile") ?? 150));

function filter(change: Partial<Filters>): void {
  filters.value = { ...filters.value, ...change };
}

export function Gallery() {
  const isThere = connection.value === "ready";
  useEffect(() => { if (isThere || !isLoaded.value) void load(); }, [isThere]); // again when a lost server is back
  const list = found.value;
  if (folder.value) return <FolderView of={folder.value} />;
  const isFiltered = filters.value !== NO_FILTERS && JSON.stringify(filters.value) !== JSON.stringify(NO_FILTERS);
  return (
    <section class="gallery" aria-label={words.gallery.label}>
      <Search count={list.length} isFiltered={isFiltered} />
      {selecting.value ? <Selection /> : null}
      {list.length ? (
        <VirtualGrid items={list} least={least.value} keyOf={idOf} label={words.gallery.label} draw={(entry, index, isStop) => <Tile entry={entry} index={index} isStop={isStop} />} />
      ) : (
        <div class="nothing">
          <p>{isLoading.value && !isLoaded.value ? words.loading : isFiltered ? words.gallery.nothing : words.gallery.empty}</p>
          {isFiltered ? <button type="button" onClick={() => { filters.value = NO_FILTERS; }}>{words.gallery.reset}</button>
            : isLoaded.value ? <a class="button" href="#create">{words.gallery.make}</a> : null}
        </div>
      )}
      <p class="offscreen" role="status" id="said">{said.value}</p>
      {comparing.value ? <Compare pair={comparing.value} /> : null}
    </section>
  );
}

function Search({ count, isFiltered }: { count: number; isFiltered: boolean }) {
  const by = filters.value;
  return (
    <header class="search">
      <div class="row tight">
        <input
          id="search" type="search" aria-label={words.gallery.search} placeholder={words.gallery.search} value={by.words}
          onInput={(e) => filter({ words: e.currentTarget.value })}
        />
        <button type="button" aria-pressed={selecting.value} id="select" onClick={() => { selecting.value = !selecting.value; selected.value = new Set(); anchor = -1; }}>{words.gallery.select}</button>
        <FolderButton />
      </div>
      <div class="row filters">
        <button type="button" id="starred" aria-pressed={by.star} onClick={() => filter({ star: !by.star })}><Icon name="star" full={by.star} /> {words.gallery.starred}</button>
        <select aria-label={words.gallery.model} value={by.model} onChange={(e) => filter({ model: e.currentTarget.value })}>
          <option value="">{words.gallery.allModels}</option>
          {modelsMade.value.map((name) => <option value={name}>{name}</option>)}
        </select>
        <select id="board" aria-label={words.gallery.board} value={by.board} onChange={(e) => filter({ board: e.currentTarget.value })}>
          <option value="">{words.gallery.allBoards}</option>
          {boards.value.map(([name, n]) => <option value={name}>{name} ({n})</option>)}
        </select>
        <select aria-label={words.gallery.rating} value={String(by.rating)} onChange={(e) => filter({ rating: Number(e.currentTarget.value) })}>
          <option value="0">{words.gallery.anyRating}</option>
          {[1, 2, 3, 4, 5].map((n) => <option value={String(n)}>{words.gallery.atLeast(n)}</option>)}
        </select>
        <label class="date">{words.gallery.from}<input type="date" value={by.from} max={by.to || undefined} onInput={(e) => filter({ from: e.currentTarget.value })} /></label>
        <label class="date">{words.gallery.to}<input type="date" value={by.to} min={by.from || undefined} onInput={(e) => filter({ to: e.currentTarget.value })} /></label>
        <label class="date">{words.gallery.tile}<input
          type="range" min={90} max={400} step={10} value={least.value}
          onInput={(e) => { least.value = Number(e.currentTarget.value); localStorage.setItem("mezzotint-tile", String(least.value)); }}
        /></label>
        {isFiltered ? <button type="button" class="quiet" onClick={() => { filters.value = NO_FILTERS; }}>{words.gallery.reset}</button> : null}
        <span class="count" role="status" id="count">{isFiltered ? words.gallery.of(count, entries.value.length) : words.gallery.count(count)}{isLoading.value && !isLoaded.value ? " …" : ""}</span>
      </div>
    </header>
  );
}

function Selection() {
  const list = chosen.value;
  const only = list.length > 0;
  const board = (field: HTMLInputElement) => {
    const name = field.value.trim().slice(0, 60);
    if (!name || !only) return;
    void mark(list, (marks) => ({ ...marks, boards: [...new Set([...(marks.boards ?? []), name])] }));
    field.value = "";
  };
  const unboard = () => void mark(list, (marks) => ({ ...marks, boards: (marks.boards ?? []).filter((b) => b !== filters.value.board) }));
  const allStarred = only && list.every((e) => e.marks.star);
  return (
    <div class="row selection" role="toolbar" aria-label={words.gallery.select}>
      <span class="count">{words.gallery.selected(list.length)}</span>
      <button type="button" id="select-all" onClick={() => { selected.value = new Set(found.value.map(idOf)); }}>{words.gallery.selectAll}</button>
      <button type="button" disabled={!only} onClick={() => { selected.value = new Set(); }}>{words.gallery.selectNone}</button>
      <button type="button" disabled={!only} aria-pressed={allStarred} onClick={() => void mark(list, (marks) => ({ ...marks, star: !allStarred }))}><Icon name="star" full={allStarred} /> {words.gallery.star}</button>
      <input
        id="to-board" list="all-boards" disabled={!only} aria-label={words.gallery.boardName} placeholder={words.gallery.toBoard}
        onKeyDown={(e) => { if (e.key === "Enter") board(e.currentTarget); }} onChange={(e) => board(e.currentTarget)}
      />
      <datalist id="all-boards">{boards.value.map(([name]) => <option value={name} />)}</datalist>
      {filters.value.board ? <button type="button" disabled={!only} onClick={unboard}>{words.gallery.offBoard(filters.value.board)}</button> : null}
      <button
        type="button" id="compare" title={words.gallery.compareHint} disabled={list.length !== 2}
        onClick={() => { comparing.value = [list[0]!, list[1]!]; }}
      >{words.gallery.compare}</button>
      <button type="button" id="zip" disabled={!only || packing.value} onClick={() => void download(list)}>{packing.value ? words.gallery.packing : words.gallery.zip}</button>
      <button
        type="button" class="danger" disabled={!only}
        onClick={() => { remove([...new Set(list.map((e) => e.job))]); selected.value = new Set(); }}
      >{words.gallery.delete}</button>
    </div>
  );
}

const MOST_IN_ZIP = 1000;

async function download(list: PictureEntry[]): Promise<void> {
  packing.value = true;
  try {
    for (let at = 0; at < list.length; at += MOST_IN_ZIP) {
      const pictures = list.slice(at, at + MOST_IN_ZIP).map(({ job, index }) => ({ job, index }));
      const answer = await call("/v1/gallery/archive", { method: "POST", body: JSON.stringify({ pictures }), headers: { "Content-Type": "application/json" } });
      const address = URL.createObjectURL(await answer.blob());
      const link = document.createElement("a");
      link.href = address;
      link.download = list.length > MOST_IN_ZIP ? `pictures-${at / MOST_IN_ZIP + 1}.zip` : "pictures.zip";
      link.click();
      setTimeout(() => URL.revokeObjectURL(address), 60_000);
    }
  } catch (error) {
    notice("bad", (error as Error).message);
  } finally {
    packing.value = false;
  }
}

function press(event: MouseEvent, entry: PictureEntry, index: number): void {
  const id = idOf(entry);
  if (!selecting.value && !(event.ctrlKey || event.metaKey || event.shiftKey)) {
    openDetail(entry.job, entry.index);
    return;
  }
  selecting.value = true;
  const next = new Set(selected.value);
  if (event.shiftKey && anchor >= 0) {
    for (let k = Math.min(anchor, index); k <= Math.max(anchor, index); k += 1) next.add(idOf(found.value[k]!));
  } else if (!next.delete(id)) next.add(id);
  anchor = index;
  selected.value = next;
}

function Tile({ entry, index, isStop }: { entry: PictureEntry; index: number; isStop: boolean }) {
  const text = String(entry.asked.prompt ?? entry.asked.model ?? "");
  const isChosen = selected.value.has(idOf(entry));
  const { star, rating } = entry.marks;
  const alt = words.stage.alt(text, entry.seed);
  const isSeen = useRef(false);
  isSeen.current ||= !isHurried.value;
  const toggleStar = () => {
    said.value = star ? words.gallery.unstarred : words.gallery.starred;
    void mark([entry], (marks) => ({ ...marks, star: !star }));
  };
  return (
    <>
      <button
        type="button" class="tile" title={text} tabIndex={isStop ? 0 : -1} aria-pressed={selecting.value ? isChosen : undefined}
        aria-label={alt} aria-description={star ? words.gallery.starred : undefined} aria-keyshortcuts="f"
        onClick={(e) => press(e, entry, index)}
        onKeyDown={(e) => { if (e.key === "f" && !e.ctrlKey && !e.metaKey && !e.altKey) toggleStar(); }}
      >
        {entry.format === "mp4"
          ? <span class="blank film"><Icon name="play" full /></span>
          : isSeen.current ? <Picture path={entry.frames > 1 ? urlOf(entry) : small(urlOf(entry))} alt="" /> : <span class="blank" />}
      </button>
      {rating ? <span class="rating" aria-label={words.gallery.rated(rating)} role="img">{"★".repeat(rating)}</span> : null}
      <button
        type="button" class={`star ${star ? "on" : ""}`} tabIndex={-1} aria-pressed={star === true} aria-label={`${words.gallery.star}: ${alt}`}
        onClick={toggleStar}
      ><Icon name="star" full={star} /></button>
    </>
  );
}
