import "./style.css";

import { render } from "preact";

import { apiKey } from "./api";
import { App } from "./app";
import { acceptDrops } from "./drop";
import { watch } from "./jobs";
import { watchRuns } from "./runs";
import { planAlong, restoreForm, room } from "./state";
import { speakAsBefore } from "./words";

await Promise.all([restoreForm(), speakAsBefore()]);
room.value = location.hash.slice(1) || "create"; // it may have changed meanwhile
render(<App />, document.getElementById("app")!);
acceptDrops();
planAlong();
void watch();
void watchRuns(() => apiKey.value);
