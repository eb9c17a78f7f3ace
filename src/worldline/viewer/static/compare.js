// Branches side by side: their pictures of one and the same frame, and playing them again together from what was kept.
import { byId, make, seconds } from "./dom.js";
import { Panel } from "./pictures.js";

export class Compare {
  /** `missing` is called with a branch and a frame that the album does not have; `at` shows a frame everywhere; `begin`
   * stops what else moves.
   */
  constructor(album, { missing, begin, at }) {
    Object.assign(this, { album, missing, begin, at, panels: new Map(), branches: [] });
    this.root = byId("compare");
    this.again = make("button", { type: "button", id: "again" }, "Play side by side");
    this.again.addEventListener("click", () => this.timer ? this.stop() : this.play());
  }

  show(branches, { context, fps, tones }) {
    Object.assign(this, { branches, context, fps });
    this.panels = new Map(branches.map(({ id, name }) => {
      const panel = this.panels.get(id) ?? new Panel(name, `t${tones.get(id)}`);
      return [id, panel];
    }));
    this.root.hidden = !branches.length;
    if (!branches.length) this.stop();
    this.root.replaceChildren(...[...this.panels.values()].map(panel => panel.root), this.again);
  }

  /** The same frame of every branch; of one that is shorter, its last. */
  paint(frame, ask = true) {
    for (const { id, name, frames } of this.branches) {
      const there = Math.min(frame, frames - 1), moment = this.album.at(id, there), blob = moment?.pictures.forecast;
      this.panels.get(id).name(name, there < frame ? `ends at ${seconds(there, this.fps)}` : seconds(there, this.fps));
      if (blob) this.panels.get(id).show(blob);
      else if (ask) this.missing(id, there);
    }
  }

  play() {
    this.begin();
    const last = Math.max(...this.branches.map(one => one.frames)) - 1;
    let frame = Math.max(0, this.context - 1);
    this.again.textContent = "Stop";
    this.timer = setInterval(() => { this.at(frame); if (frame++ >= last) this.stop(); }, 1000 / this.fps);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.again.textContent = "Play side by side";
  }
}
