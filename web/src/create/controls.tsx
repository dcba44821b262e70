// What the ControlNets of the request will see: each picture after its preprocessor.
import { useEffect, useState } from "preact/hooks";

import { call, type Fields } from "../api";
import { request } from "../state";
import { words } from "../words";

export function ControlViews() {
  const list = (Array.isArray(request.value.controls) ? request.value.controls : []) as Fields[];
  const seen = list.filter((c) => typeof c.image === "string" && c.image);
  if (!seen.length) return null;
  return <div class="control-views">{seen.map((c, k) => <View key={k} image={String(c.image)} how={String(c.preprocess ?? "none")} index={k + 1} />)}</div>;
}

function View({ image, how, index }: { image: string; how: string; index: number }) {
  const [address, setAddress] = useState("");
  const [wrong, setWrong] = useState("");
  useEffect(() => {
    let made = "";
    const stop = new AbortController();
    const timer = setTimeout(() => {
      call("/v1/preprocess", {
        method: "POST", body: JSON.stringify({ image, preprocess: how || "none" }), headers: { "Content-Type": "application/json" }, signal: stop.signal,
      }).then((answer) => answer.blob()).then((blob) => {
        made = URL.createObjectURL(blob);
        setAddress(made);
        setWrong("");
      }).catch((error: Error) => { if (error.name !== "AbortError") setWrong(error.message); });
    }, 300);
    return () => { clearTimeout(timer); stop.abort(); if (made) URL.revokeObjectURL(made); };
  }, [image, how]);
  return (
    <figure>
      {address && !wrong ? <img src={address} alt={words.controls.alt(index, how)} /> : <span class="blank" />}
      <figcaption class={wrong ? "bad" : "hint"}>{wrong || words.controls.sees(index, how)}</figcaption>
    </figure>
  );
}
