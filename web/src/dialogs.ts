// Modal dialogs that a signal keeps drawn.
import type { Signal } from "@preact/signals";

/** Open a dialog; also one that was just closed and whose "close" event is still on its way. */
export function show(wanted: Signal<boolean>, id: string): void {
  wanted.value = true;
  const box = document.getElementById(id) as HTMLDialogElement | null;
  if (box && !box.open) box.showModal();
}

/** Answer a dialog's "close" event; one that was opened again meanwhile stays. */
export const closed = (wanted: Signal<boolean>) => ended(() => { wanted.value = false; });

/** The same for a dialog that something else keeps drawn: `end` lets go of it. */
export const ended = (end: () => void) => (event: Event): void => {
  if (!(event.currentTarget as HTMLDialogElement).open) end();
};
