// Messages that do not block: they are read out, leave by themselves, and the same one is not shown twice.
import { byId, make } from "./dom.js";

const SHOWN_MS = { error: 12000, done: 6000, note: 6000 };
const MOST = 4;

export function toast(text, kind = "note") {
  const list = byId("toasts");
  const same = [...list.children].find(one => one.querySelector("p").textContent === text);
  same?.remove();
  while (list.children.length >= MOST) list.firstElementChild.remove();
  const close = make("button", { type: "button", "aria-label": "Close this message" }, "×");
  const shown = make(`div.toast.${kind}`, {}, make("p", {}, text), close);
  close.addEventListener("click", () => shown.remove());
  list.append(shown);
  setTimeout(() => shown.remove(), SHOWN_MS[kind]);
}
