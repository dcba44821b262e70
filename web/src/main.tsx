import "./style.css";

import { render } from "preact";

import { apiKey } from "./api";
import { App } from "./app";
import { acceptDrops } from "./drop";
import { watch } from "./jobs";
import { watchRuns } from "./runs";
import { planAlong, restoreForm } from "./state";

await restoreForm();
render(<App />, document.getElementById("app")!);
acceptDrops();
planAlong();
void watch();
void watchRuns(() => apiKey.value);
