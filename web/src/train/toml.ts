// The form of a run, and the text that the trainer reads.

export type Kind = "lora" | "diffusion" | "gan" | "text";

export interface Form {
  kind: Kind;
  name: string;
  base: string;
  data: string; // a data set, a path, or "" for the pictures that were chosen
  caption: string;
  resolution: number;
  steps: number;
  batch: number;
  rate: number;
  every: number;
  prompts: string;
  flip: boolean;
  text: string; // of kind "text"
}

export const KINDS: Kind[] = ["lora", "diffusion", "gan", "text"];

const OWN: Record<Exclude<Kind, "text">, Partial<Form>> = {
  lora: { resolution: 128, steps: 400, batch: 2, rate: 5e-4, every: 50, flip: true },
  diffusion: { resolution: 32, steps: 3000, batch: 16, rate: 1e-3, every: 250, flip: true },
  gan: { resolution: 32, steps: 5000, batch: 16, rate: 2e-4, every: 250, flip: true },
};

export function fresh(kind: Exclude<Kind, "text">, name: string, side?: number): Form {
  const own = OWN[kind];
  return {
    kind, name, base: "plate", data: "", caption: "", prompts: "", text: "",
    resolution: kind === "lora" && side ? side : own.resolution!, steps: own.steps!, batch: own.batch!,
    rate: own.rate!, every: own.every!, flip: own.flip!,
  };
}

const text = (value: string) => JSON.stringify(value); // a JSON string is one of TOML
const list = (lines: string) => lines.split("\n").map((line) => line.trim()).filter(Boolean).map(text).join(", ");

/** The configuration of a run, as `mezzotint train` reads it. */
export function asToml(form: Form, path: string): string {
  if (form.kind === "text") return form.text;
  const lora = form.kind === "lora";
  const rows = [
    `kind = ${text(form.kind)}`, ...(lora ? [`base = ${text(form.base)}`] : []), "",
    "[data]", `path = ${text(path)}`, `resolution = ${form.resolution}`, 'fit = "crop"', `flip = ${form.flip}`, "",
    ...(lora ? ["[lora]", "rank = 8", ""] : []),
    ...(form.kind === "diffusion" ? ["[network]", "channels = [32, 64, 128]", "layers = 1", "", "[objective]", 'schedule = "cosine"', 'target = "v"', ""] : []),
    ...(form.kind === "gan" ? ["[adversarial]", 'architecture = "residual"', "base_channels = 16", "mapping_layers = 3", "penalty_share = 0.25", ""] : []),
    "[optimizer]", `learning_rate = ${form.rate}`, ...(form.kind === "gan" ? ["betas = [0.0, 0.99]"] : []), "",
    "[ema]", `decays = [${lora ? 0.99 : 0.999}]`, "",
    "[loop]", `steps = ${form.steps}`, `batch_size = ${form.batch}`, ...(form.kind === "gan" ? ["clip_norm = 0.0"] : []),
    `log_every = ${Math.max(1, Math.min(50, Math.round(form.steps / 100)))}`, "",
    "[checkpoint]", `every = ${Math.max(50, form.every)}`, "",
    "[samples]", `every = ${form.every}`,
    ...(lora && list(form.prompts) ? [`prompts = [${list(form.prompts)}]`] : [`count = ${lora ? 4 : 16}`]),
    ...(form.kind === "diffusion" ? ["num_inference_steps = 25"] : []),
  ];
  return `${rows.join("\n")}\n`;
}
