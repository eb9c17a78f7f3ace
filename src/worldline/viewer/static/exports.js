// Branches as files: ask, wait without blocking, and download.
import { byId, choices, make } from "./dom.js";
import { toast } from "./toasts.js";

const LABELS = { mp4: "video, MP4", gif: "moving picture, GIF", "lerobot-v3.0": "LeRobot v3.0 episode", "lerobot-v2.1": "LeRobot v2.1 episode" };
const size = bytes => bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;

export class Exports {
  constructor(connection) {
    const button = byId("export-now");
    button.addEventListener("click", () => {
      const asked = connection.send("export", { branch: byId("export-branch").value, format: byId("export-format").value });
      if (!asked) toast("There is no connection: nothing was exported.", "error");
    });
    connection.addEventListener("welcome", ({ detail }) => { choices(byId("export-format"), detail.formats.map(id => [id, LABELS[id] ?? id])); this.busy(false); });
    connection.addEventListener("exporting", () => this.busy(true));
    connection.addEventListener("exported", ({ detail }) => this.done(detail));
    connection.addEventListener("refused", ({ detail }) => detail.where?.startsWith("export") && this.busy(false));
  }

  busy(on) {
    byId("export-now").disabled = on;
    byId("export-now").textContent = on ? "Writing \u2026" : "Export";
  }

  branches(all, current) {
    const select = byId("export-branch"), before = select.value;
    choices(select, all.map(one => [one.id, one.name]));
    if (this.current !== current || !all.some(one => one.id === before)) select.value = current;
    this.current = current; // another one was chosen meanwhile: that stays, until the person goes to another branch
  }

  done({ url, name, bytes }) {
    this.busy(false);
    const link = make("a", { href: url, download: name }, `${name}, ${size(bytes)}`);
    byId("exported").prepend(make("li", {}, link));
    link.click();
    toast(`${name} is written and downloads.`, "done");
  }

  /** What another session wrote is gone with it. */
  clear() { byId("exported").replaceChildren(); this.busy(false); }
}
