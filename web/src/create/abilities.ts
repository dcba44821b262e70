// What the chosen model can do, as the server says it; what it cannot do is not shown.
import type { Capabilities, Model } from "../api";
import { capabilities, model, models } from "../state";
import { TECHNIQUES } from "../techniques";

const HIDDEN_FOR_GAN = new Set(["scheduler", "sigma_schedule", "num_inference_steps", "guidance_scale"]);
const FOR_GAN = new Set(["latent", "walk", "gates", "upscale", "output", "reproducibility", "priority", "deadline_s"]);
const TEXTS = new Set(["prompt", "negative_prompt"]);

interface Abilities { schedulers: string[]; fields: string[]; techniques: string[] }

/** What the server says of a model; undefined where it says nothing. */
export function abilitiesOf(about: Model | undefined, server: Capabilities | null): Abilities | undefined {
  const all = server?.by_model as Record<string, Abilities> | undefined;
  return about ? all?.[`${about.name}@${about.version}`] : undefined;
}

/** Whether a common field means something to the chosen model. */
export function isShown(name: string): boolean {
  const about = model.value;
  if (!about) return true;
  const can = abilitiesOf(about, capabilities.value);
  if (can) return can.fields.includes(name);
  if (TEXTS.has(name)) return about.takes_prompt && (name !== "negative_prompt" || about.takes_negative_prompt !== false);
  return about.family !== "gan" || !HIDDEN_FOR_GAN.has(name);
}

/** Techniques that the chosen model and this server can do. */
export function isOffered(name: string): boolean {
  const about = model.value;
  const list = name === "gates" || TECHNIQUES[name]?.needs ? name : "";
  if (list && !((capabilities.value?.[list] as string[] | undefined) ?? []).length) return false;
  if (!about) return true;
  const can = abilitiesOf(about, capabilities.value);
  if (name === "latent") return about.family === "gan" || (about.class_names ?? []).length > 0;
  if (name === "ensemble" && models.value.length < 2) return false;
  if (can) return can.fields.includes(name);
  if (name === "image_references") return (about.image_references?.[1] ?? 0) > 0;
  if (about.family === "gan") return FOR_GAN.has(name);
  if (["image", "mask", "strength", "inpaint", "outpaint"].includes(name)) return about.takes_image !== false;
  return true;
}
