// Pictures dropped anywhere: their settings come into the form, all of them.
import { type Fields, type Inspected, ask } from "./api";
import { readPicture } from "./fields";
import { before, notice, replace, request } from "./state";
import { words } from "./words";

/** Read the settings in a picture and put them into the form. */
export async function inspect(file: File): Promise<void> {
  let found: Inspected;
  try {
    found = await ask<Inspected>("/v1/inspect", { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
  } catch (error) {
    notice("bad", (error as Error).message);
    return;
  }
  if (!found.request) {
    notice("warn", words.drop.without(file.name), {
      undo: () => void readPicture(file).then((image) => { request.value = { ...request.value, image }; }),
      undoText: words.drop.begin,
    });
    return;
  }
  useSettings(found, file.name);
}

/** Put the settings that were read in a picture into the form, and say what was lost. */
export function useSettings(found: Inspected, name: string): void {
  replace(found.request as Fields);
  const lost = found.not_honoured;
  notice(lost.length ? "warn" : "good", words.drop.restored(name), {
    lines: lost.length ? [words.drop.lost, ...lost] : [],
    undo: () => { if (before.value) request.value = before.value; before.value = null; },
    undoText: words.drop.undo,
  });
}

let depth = 0;

/** Whether files are dragged; text that is dragged within a field is the browser's own affair. */
function hasFiles(event: DragEvent): boolean {
  return event.dataTransfer?.types.includes("Files") ?? false;
}

export function acceptDrops(): void {
  document.addEventListener("dragenter", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth += 1;
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (!hasFiles(event)) return;
    depth -= 1;
    if (depth <= 0) document.body.classList.remove("dropping");
  });
  document.addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth = 0;
    document.body.classList.remove("dropping");
    const files = [...(event.dataTransfer?.files ?? [])];
    const file = files.find((f) => f.type.startsWith("image/"));
    if (file) void inspect(file);
    else if (files[0]) notice("warn", words.drop.other(files[0].name));
  });
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((f) => f.type.startsWith("image/"));
    if (file) void inspect(file);
  });
}
