import "./style.css";

import { render } from "preact";

import { App } from "./app";
import { acceptDrops } from "./drop";
import { watch } from "./jobs";
import { planAlong, restoreForm, room } from "./state";
import { speakAsBefore } from "./words";

const follow = () => { room.value = location.hash.slice(1) || "create"; };
addEventListener("hashchange", follow); // from the first moment on: nothing else follows the address
await Promise.all([restoreForm(), speakAsBefore()]);
follow();
render(<App />, document.getElementById("app")!);
acceptDrops();
planAlong();
void watch();
