// Numbers as people read them.
import { words } from "./words";

export function duration(seconds: number): string {
  if (seconds < 0.95) return words.time.seconds(seconds.toFixed(1));
  if (seconds < 120) return words.time.seconds(seconds.toFixed(0));
  return words.time.minutes(Math.ceil(seconds / 60));
}

export function size(bytes: number): string {
  if (bytes < 1 << 20) return `${Math.max(1, Math.round(bytes / 1024))} KB`;
  if (bytes < 1 << 30) return `${Math.round(bytes / (1 << 20))} MB`;
  return `${(bytes / (1 << 30)).toFixed(1)} GB`;
}

export function when(seconds: number): string {
  return new Date(seconds * 1000).toLocaleString();
}
