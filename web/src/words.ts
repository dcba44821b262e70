// Every text that a person reads, in the language that was chosen.
import { signal } from "@preact/signals";

import { TECHNIQUES } from "./techniques";
import { english } from "./words/en";

export type Words = typeof english;

export const LANGUAGES: Record<string, string> = { en: "English", de: "Deutsch", zh: "中文" };
const LOADERS: Record<string, () => Promise<{ words: Words }>> = {
  en: async () => ({ words: english }),
  de: () => import("./words/de"),
  zh: () => import("./words/zh"),
};
const KEPT = "mezzotint-language";

export let words: Words = english;
export const language = signal("en");

/** Speak a language from here on; the page is drawn anew. */
export async function speak(code: string, keeps = true): Promise<void> {
  const load = LOADERS[code];
  if (!load) return;
  words = (await load()).words;
  if (keeps) localStorage.setItem(KEPT, code);
  document.documentElement.lang = code;
  language.value = code;
}

/** The language that was chosen before, else the browser's, else English. */
export async function speakAsBefore(): Promise<void> {
  const wanted = localStorage.getItem(KEPT) ?? navigator.languages.map((tag) => tag.slice(0, 2)).find((code) => code in LOADERS) ?? "en";
  try {
    await speak(wanted, false);
  } catch {
    // the file of that language did not arrive: English is here
  }
}

/** What a field is called in the language that is spoken, undefined where nobody said. */
export function wordFor(field: string): string | undefined {
  return TECHNIQUES[field]?.[language.value as "en" | "de" | "zh"] ?? words.fields[field];
}

/** What a field of a request is called on the page; by its path where parts mean different things by one word. */
export function nameOf(field: string, path = field): string {
  return words.fields[path] ?? wordFor(field) ?? field.replace(/_s$/, " (s)").replaceAll("_", " ").replace(/^./, (c) => c.toUpperCase());
}
