// How a picture is drawn out of noise: steps, guidance, scheduler and noise levels.
import type { Fields, Json } from "../api";
import { Fault, faulty, Field, NumberInput } from "../fields";
import { choices, limits, model, request, schema, set, wrongField } from "../state";
import { nameOf, words } from "../words";
import { isShown } from "./abilities";
import { GuidanceChart, LevelsChart } from "./charts";

const wrong = (name: string) => (wrongField.value === name ? "wrong" : "");

export function Sampling() {
  const about = model.value;
  if (!isShown("num_inference_steps")) return null;
  const own = (name: string) => about?.defaults[name];
  const guidance = request.value.guidance_scale;
  const properties = schema.value.properties ?? {};
  const curve = guidance !== null && typeof guidance === "object";
  return (
    <fieldset>
      <legend>{words.form.advanced}</legend>
      <div class="row">
        <div class={`field ${wrong("num_inference_steps")}`}>
          <label for="num_inference_steps">{nameOf("num_inference_steps")}</label>
          <NumberInput
            id="num_inference_steps" schema={{ type: "integer", minimum: 1, maximum: limits.value.num_inference_steps }}
            value={request.value.num_inference_steps} placeholder={String(own("num_inference_steps") ?? "")} onChange={(v) => set("num_inference_steps", v)}
          />
        </div>
        {curve ? null : (
          <div class={`field ${wrong("guidance_scale")}`}>
            <label for="guidance_scale">{nameOf("guidance_scale")}</label>
            <NumberInput
              id="guidance_scale" schema={{ type: "number", minimum: 0, maximum: 1000 }} value={guidance}
              placeholder={String(own("guidance_scale") ?? "")} onChange={(v) => set("guidance_scale", v)}
            />
          </div>
        )}
      </div>
      <Fault names={["num_inference_steps", "guidance_scale"]} />
      <div class="row">
        {(["scheduler", "sigma_schedule"] as const).map((name) => (
          <div class={`field ${wrong(name)}`} key={name}>
            <label for={name}>{nameOf(name)}</label>
            <Choice id={name} name={name} own={own(name)} />
          </div>
        ))}
      </div>
      <Fault names={["scheduler", "sigma_schedule"]} />
      {properties.guidance_scale ? (
        <details id="technique-guidance_scale" open={curve}>
          <summary>{words.form.curve}</summary>
          <GuidanceChart />
          <LevelsChart />
          {curve ? (
            <>
              <Field name="guidance_scale" path="guidance_scale" schema={properties.guidance_scale} value={guidance} onChange={(v) => set("guidance_scale", v)} />
              <button type="button" class="quiet" onClick={() => set("guidance_scale", ((guidance as Fields).start as Json | undefined) ?? undefined)}>{words.form.unset}</button>
            </>
          ) : null}
        </details>
      ) : null}
    </fieldset>
  );
}

function Choice({ id, name, own }: { id: string; name: string; own: Json | undefined }) {
  const known = choices(name) ?? [];
  const value = String(request.value[name] ?? "");
  const all = value && !known.includes(value) ? [value, ...known] : known;
  const plain = all.filter((n) => !/^[A-Z]/.test(n));
  const classes = all.filter((n) => /^[A-Z]/.test(n));
  return (
    <select id={id} value={value} {...faulty(name)} onChange={(e) => set(name, e.currentTarget.value || undefined)}>
      <option value="">{own ? words.form.own(own) : words.form.ownPlain}</option>
      {plain.map((n) => <option value={n}>{n}</option>)}
      {classes.length ? <optgroup label="diffusers">{classes.map((n) => <option value={n}>{n}</option>)}</optgroup> : null}
    </select>
  );
}
