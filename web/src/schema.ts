// Reading the JSON Schema of a request: what kind of widget a field wants.
import type { Fields, Json, Schema } from "./api";

export type Kind = "boolean" | "choice" | "number" | "seed" | "picture" | "text" | "object" | "list" | "either" | "unknown";

/** Options of a schema without null. */
export function options(schema: Schema): Schema[] {
  return (schema.anyOf ?? [schema]).filter((o) => o.type !== "null");
}

export function kindOf(schema: Schema): Kind {
  const found = options(schema);
  const first = found[0];
  if (!first) return "unknown";
  if (found.length > 1) {
    const types = found.map((o) => o.type);
    if (types.includes("object")) return "either";
    return types.includes("integer") && types.includes("string") ? "seed" : kindOf(first);
  }
  if (first.enum) return "choice";
  if (first.contentEncoding) return "picture";
  if (first.properties) return "object";
  switch (first.type) {
    case "boolean": return "boolean";
    case "integer": case "number": return "number";
    case "string": return "text";
    case "array": return "list";
    default: return "unknown";
  }
}

/** The option that holds fields of its own. */
export function objectIn(schema: Schema): Schema | undefined {
  return options(schema).find((o) => o.properties);
}

export function numberIn(schema: Schema): Schema | undefined {
  return options(schema).find((o) => o.type === "number" || o.type === "integer");
}

/** What a new element or object begins as: only what it cannot do without. */
export function blank(schema: Schema, path: string): Json {
  const found = options(schema)[0] ?? {};
  if (found.enum) return found.enum[0] ?? null;
  if (found.properties) {
    const needed = found.required ?? [];
    const made: Fields = {};
    for (const name of needed) made[name] = blank(found.properties[name] ?? {}, `${path}.${name}`);
    if (path === "regions") made.box = [0.1, 0.1, 0.5, 0.6];
    if (path === "walk") made.to = "";
    return made;
  }
  if (found.type === "array") return [];
  if (found.type === "boolean") return true;
  if (found.type === "number" || found.type === "integer") return found.minimum ?? 0;
  return "";
}

/** How a value reads on a chip. */
export function brief(value: Json): string {
  if (typeof value === "string") return value.length > 100 ? "" : value.length > 28 ? `${value.slice(0, 27)}…` : value;
  if (Array.isArray(value)) return value.length === 1 ? briefly(value[0]!) : `${value.length}`;
  if (value && typeof value === "object") return briefly(value);
  return String(value);
}

function briefly(value: Json): string {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return brief(value);
  const parts = Object.entries(value)
    .filter(([, inner]) => typeof inner !== "object" && !(typeof inner === "string" && inner.length > 28))
    .slice(0, 3);
  return parts.map(([name, inner]) => `${name} ${String(inner)}`).join(", ");
}

/** What a field is for, as the form says it: a field that is not given is empty there. */
export function hintOf(schema: Schema): string {
  return (schema.description ?? "").replaceAll("``", "").replace(/(^|[.] )None\b/g, "$1Empty").replace(/\bNone\b/g, "empty");
}
