// Pictures of jobs. With an API key an <img> cannot ask for one itself, so it is fetched and kept.
import { useEffect, useState } from "preact/hooks";

import { apiKey, call } from "./api";

const kept = new Map<string, string>();
const MOST = 800;

async function fetched(path: string): Promise<string> {
  const known = kept.get(path);
  if (known) return known;
  const address = URL.createObjectURL(await (await call(path)).blob());
  kept.set(path, address);
  if (kept.size > MOST) {
    const [oldest, old] = kept.entries().next().value as [string, string];
    kept.delete(oldest);
    URL.revokeObjectURL(old);
  }
  return address;
}

/** The address to show a picture by, "" until it is there. */
export function useAddress(path: string): string {
  const direct = path === "" || !path.startsWith("/") || !apiKey.value;
  const [address, setAddress] = useState(direct ? path : (kept.get(path) ?? ""));
  useEffect(() => {
    if (direct) {
      setAddress(path);
      return;
    }
    let isCurrent = true;
    fetched(path).then((found) => isCurrent && setAddress(found), () => undefined);
    return () => { isCurrent = false; };
  }, [path, direct]);
  return direct ? path : address;
}

interface PictureProps { path: string; alt: string; lazy?: boolean; class?: string; id?: string; width?: number; height?: number; title?: string }

export function Picture(props: PictureProps) {
  if (apiKey.value) return <Fetched {...props} />;
  const { path, alt, lazy, ...more } = props; // without a key nothing has to be waited for
  return path ? <img src={path} alt={alt} loading={lazy ? "lazy" : "eager"} decoding="async" {...more} /> : <span class="blank" {...more} />;
}

function Fetched({ path, alt, lazy, ...more }: PictureProps) {
  const address = useAddress(path);
  return address ? <img src={address} alt={alt} loading={lazy ? "lazy" : "eager"} decoding="async" {...more} /> : <span class="blank" {...more} />;
}

/** The address of a small square of a job's picture. */
export function small(path: string): string {
  return `${path}/small`;
}

export async function bytesOf(path: string): Promise<ArrayBuffer> {
  return (await call(path)).arrayBuffer();
}

export async function pictureAsText(path: string): Promise<string> {
  const blob = await (await call(path)).blob();
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result).split(",", 2)[1] ?? "");
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** Bytes of the pixels of a picture, RGBA. */
export async function pixels(data: ArrayBuffer): Promise<ImageData> {
  const bitmap = await createImageBitmap(new Blob([data]), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true })!;
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}
