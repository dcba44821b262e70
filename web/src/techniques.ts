// The techniques of a request: where the form shows each, and what it is called in each language.
interface Shown {
  group: "begin" | "steer" | "vary" | "deliver";
  en: string;
  de: string;
  zh: string;
  names?: string; // its field that names something of the server's list of the same name
  needs?: boolean; // whether it is hidden where that list is empty
}

export const TECHNIQUES: Record<string, Shown> = {
  image: { group: "begin", en: "Start picture", de: "Startbild", zh: "起始图片" },
  strength: { group: "begin", en: "Strength", de: "Stärke", zh: "强度" },
  mask: { group: "begin", en: "Mask", de: "Maske", zh: "蒙版" },
  inpaint: { group: "begin", en: "Inpainting", de: "Inpainting", zh: "局部重绘" },
  outpaint: { group: "begin", en: "Outpainting", de: "Outpainting", zh: "向外扩展" },
  image_references: { group: "begin", en: "Pictures to change", de: "Zu ändernde Bilder", zh: "要修改的图片" },
  prompt_dialect: { group: "steer", en: "Weights in the text", de: "Gewichte im Text", zh: "文本中的权重" },
  regions: { group: "steer", en: "Regions", de: "Regionen", zh: "区域" },
  controls: { group: "steer", en: "ControlNets", de: "ControlNets", zh: "ControlNet", names: "model", needs: true },
  image_prompts: { group: "steer", en: "Reference pictures", de: "Bildvorlagen", zh: "参考图片", names: "model", needs: true },
  loras: { group: "steer", en: "LoRAs", de: "LoRAs", zh: "LoRA", names: "name" },
  embeddings: { group: "steer", en: "Learnt words", de: "Gelernte Wörter", zh: "学得的词", names: "name", needs: true },
  ensemble: { group: "steer", en: "Ensemble", de: "Ensemble", zh: "集成" },
  variation: { group: "vary", en: "Variation", de: "Variation", zh: "变化" },
  tiling: { group: "vary", en: "Tiling", de: "Kacheln", zh: "无缝平铺" },
  walk: { group: "vary", en: "Walk", de: "Gang", zh: "漫步" },
  latent: { group: "vary", en: "Latent", de: "Latent", zh: "潜变量" },
  hires: { group: "vary", en: "Second, larger pass", de: "Zweiter, größerer Durchgang", zh: "高分辨率第二遍" },
  upscale: { group: "vary", en: "Upscaling", de: "Vergrößern", zh: "放大" },
};

/** Where a field stands that has no row here. */
export const LAST = "deliver";
