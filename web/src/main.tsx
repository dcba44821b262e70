import "./style.css";

import { render } from "preact";

import { App } from "./app";
import { acceptDrops } from "./drop";
import { watch } from "./jobs";
import { planAlong, restoreForm, room } from "./state";
import { speakAsBefore } from "./words";

await Promise.all([restoreForm(), speakAsBefore()]);
room.value = location.hash.slice(1) || "create"; // it may have changed meanwhile
render(<App />, document.getElementById("app")!);
acceptDrops();
planAlong();
void watch();
