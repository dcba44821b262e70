// What the server is and has: its health, its models, where it computes.
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";

import { ask, type Fields, type Model, Refused } from "./api";
import { capabilities, DEFAULT_MODEL, go, models, set } from "./state";
import { nameOf, words } from "./words";

const health = signal<Fields>({});
const EVERY_MS = 2000;
const HEALTH = ["queue", "backlog_s", "device", "restarts", "ready", "draining"];

async function look(): Promise<void> {
  try {
    health.value = await ask<Fields>("/health/ready");
  } catch (error) {
    health.value = { ready: false, reason: error instanceof Refused ? error.message : words.state.away };
  }
}

export function Operate() {
  useEffect(() => {
    void look();
    const timer = setInterval(() => void look(), EVERY_MS);
    return () => clearInterval(timer);
  }, []);
  const read = (value: unknown) => (typeof value === "number" && !Number.isInteger(value) ? value.toFixed(1) : String(value));
  return (
    <section class="operate" aria-label={words.rooms.operate}>
      <h2>{words.operate.health}</h2>
      <dl class="figures" id="health">
        {Object.entries(health.value).filter(([name]) => HEALTH.includes(name) || name === "reason").map(([name, value]) => (
          <div key={name}><dt>{nameOf(name)}</dt><dd>{read(value)}</dd></div>
        ))}
      </dl>
      <h2>{words.operate.models}</h2>
      <ul class="models">{models.value.map((m) => <Card key={m.name} about={m} />)}</ul>
      <details>
        <summary>{words.operate.environment}</summary>
        <table><tbody>
          {Object.entries(capabilities.value?.environment ?? {}).map(([name, value]) => (
            <tr key={name}><th scope="row">{name}</th><td>{String(value)}</td></tr>
          ))}
        </tbody></table>
      </details>
    </section>
  );
}

function Card({ about }: { about: Model }) {
  const own = about.defaults;
  const use = () => {
    set("model", about.name === DEFAULT_MODEL ? undefined : about.name);
    go("create");
  };
  const facts = [
    about.family, about.licence, `${String(own.width)} × ${String(own.height)}`,
    Number(own.num_inference_steps) ? words.operate.steps(Number(own.num_inference_steps)) : "",
    about.token_limit ? words.operate.tokens(about.token_limit) : "",
  ];
  return (
    <li class="model" data-model={about.name}>
      <h3>{about.name} <small>{about.version}</small></h3>
      <p>{about.description ?? ""}</p>
      <p class="hint">{facts.filter(Boolean).join(" · ")}</p>
      {about.limits?.length ? <p class="hint">{about.limits.join("; ")}</p> : null}
      <p class="row">
        <span class={`dot ${about.ready ? "ready" : ""}`} aria-hidden="true" />
        <span class="grow">{about.ready ? words.operate.loaded : words.operate.unloaded}</span>
        <button type="button" onClick={use}>{words.operate.use}</button>
      </p>
    </li>
  );
}
