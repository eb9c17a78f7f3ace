// Time: the slider of the current branch, and the tree of branches as lanes, with the trust of every moment in them.
import { byId, draw, make, seconds } from "./dom.js";
import { level } from "./meters.js";

const WIDE = 1000;
const TONES = 6;
const BESIDE = 3;
const NAME = /^[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}][\p{Alphabetic}\p{M}\p{Nd}\p{Pc} .,()+-]{0,39}$/u; // as in viewer/protocol.py, where \w is of any script
const REDRAW_MS = 250;

/** Events: `look` and `go` (detail: a frame of the current branch), `switch`, `rename`, `drop`, `beside` (branches). */
export class Timeline extends EventTarget {
  constructor(album) {
    super();
    Object.assign(this, { album, rows: new Map(), beside: new Set(), frame: 0 });
    this.range = byId("time");
    this.range.addEventListener("input", () => this.tell("look", +this.range.value));
    this.range.addEventListener("change", () => this.tell("go", +this.range.value));
  }

  tell(type, detail) { this.dispatchEvent(new CustomEvent(type, { detail })); }

  /** The tree as the server has it. Rows stay the same elements, so that the focus stays where it is. */
  show(state, fps) {
    Object.assign(this, { state, fps });
    this.now = state.branches.find(one => one.id === state.branch);
    for (const [id, row] of this.rows) if (!state.branches.some(one => one.id === id)) { row.root.remove(); this.rows.delete(id); this.beside.delete(id); }
    state.branches.forEach((branch, i) => {
      const row = this.rows.get(branch.id) ?? this.row(branch, i), on = branch.id === state.branch;
      row.branch = branch;
      row.root.classList.toggle("on", on);
      row.name.textContent = branch.name;
      row.switch.setAttribute("aria-current", String(on));
      row.drop.disabled = on || state.branches.length < 2;
      row.tick.disabled = on || (!row.tick.checked && this.beside.size >= BESIDE);
      row.drop.setAttribute("aria-label", `Drop ${branch.name}`);
      row.rename.setAttribute("aria-label", `Rename ${branch.name}`);
      row.tick.setAttribute("aria-label", `${branch.name} side by side`);
    });
    this.total = Math.max(...state.branches.map(one => one.frames), state.context + Math.round(3 * fps)) - 1;
    this.range.max = Math.max(1, this.now.frames - 1);
    this.range.style.setProperty("--given-share", `${100 * (state.context - 1) / this.range.max}%`);
    this.at(this.frame);
    this.lanes(true);
  }

  row(branch, place) {
    const name = make("span"), tick = make("input", { type: "checkbox" });
    const row = { branch, name, tick, tone: place % TONES, switch: make("button.switch", { type: "button" }, name), lane: draw("svg", { class: "lane", viewBox: `0 0 ${WIDE} 20`, preserveAspectRatio: "none", "aria-hidden": "true" }),
      rename: make("button", { type: "button" }, "Rename"), drop: make("button", { type: "button" }, "Drop") };
    const tools = make("div.tools", {}, make("label.check", { title: "Side by side" }, tick, make("span", {}, "Beside")), row.rename, row.drop);
    row.root = make(`li.branch.t${row.tone}`, { "data-branch": branch.id }, row.switch, row.lane, tools);
    row.switch.addEventListener("click", () => row.root.classList.contains("on") || this.tell("switch", branch.id));
    row.rename.addEventListener("click", () => this.rename(row));
    row.drop.addEventListener("click", () => this.tell("drop", branch.id));
    tick.addEventListener("change", () => {
      this.beside[tick.checked ? "add" : "delete"](branch.id);
      this.tell("beside", [...this.beside]);
      this.show(this.state, this.fps);
    });
    this.rows.set(branch.id, row);
    byId("tree").append(row.root);
    return row;
  }

  rename(row) {
    const box = make("input", { type: "text", maxlength: 40, "aria-label": `New name of ${row.branch.name}` });
    box.value = row.branch.name;
    let over = false; // to take the box away makes it lose the focus, which ends it too
    const done = keep => {
      if (over) return;
      over = true;
      const name = box.value.trim();
      box.replaceWith(row.switch);
      row.rename.focus();
      if (keep && name !== row.branch.name) NAME.test(name) ? this.tell("rename", { branch: row.branch.id, name }) : this.tell("misnamed", name);
    };
    row.switch.replaceWith(box);
    box.addEventListener("keydown", event => {
      if (event.key !== "Enter" && event.key !== "Escape") return;
      event.preventDefault(); // the button that has the focus next shall not be pressed by the same key
      done(event.key === "Enter");
    });
    box.addEventListener("blur", () => done(true));
    box.focus();
    box.select();
  }

  clear() {
    this.state = null;
    for (const row of this.rows.values()) row.root.remove();
    this.rows.clear();
    this.beside.clear();
  }

  /** Branches to stand side by side: the current one first. */
  get compared() { return this.beside.size ? [this.now.id, ...[...this.beside].filter(id => id !== this.now.id)] : []; }

  at(frame) {
    this.frame = frame;
    if (!this.state) return;
    const { context } = this.state, last = this.now.frames - 1;
    if (last > +this.range.max) this.range.max = last;
    if (document.activeElement !== this.range || +this.range.value !== frame) this.range.value = frame;
    const made = frame >= context, when = seconds(frame, this.fps), text = byId("when");
    text.classList.toggle("predicted", made);
    text.replaceChildren(make("b", {}, when), make("span", {}, made ? ` forecast, ${seconds(frame - context + 1, this.fps)} ahead` : " real"));
    this.range.setAttribute("aria-valuetext", `${when}, ${made ? "forecast" : "real"}`);
    this.lanes();
  }

  /** A frame came: the branch is at least so long, and ends with it if it was made just now. */
  grown(branch, frame, made) {
    if (!this.state) return;
    const one = this.state.branches.find(one => one.id === branch);
    if (one && (made || one.frames <= frame)) one.frames = frame + 1;
    if (frame > this.total) this.total = frame + Math.round(2 * this.fps);
    if (one === this.now) this.range.max = Math.max(1, this.now.frames - 1);
    this.range.style.setProperty("--given-share", `${100 * (this.state.context - 1) / this.range.max}%`);
  }

  lanes(now = false) {
    const at = performance.now();
    if (!now && at - (this.drawn ?? 0) < REDRAW_MS) return;
    this.drawn = at;
    const x = frame => (WIDE * frame / this.total).toFixed(1), line = (kind, from, to, y = 10) => draw("line", { class: kind, x1: x(from), x2: x(to), y1: y, y2: y });
    for (const row of this.rows.values()) {
      const { branch, lane } = row, first = branch.parent === null ? 0 : branch.at, parts = [];
      if (branch.parent !== null) parts.push(line("from", 0, first));
      parts.push(line("kept", first, branch.frames - 1));
      if (branch.parent === null) parts.push(line("given", 0, this.state.context - 1));
      for (const { word, from, to } of this.runs(branch.id, first)) parts.push(line(word, from, to));
      if (branch.id === this.now.id) parts.push(draw("line", { class: "now", x1: x(this.frame), x2: x(this.frame), y1: 0, y2: 20 }));
      lane.replaceChildren(...parts);
    }
  }

  /** Stretches of a branch that are not like the data. */
  runs(id, first) {
    const found = [];
    for (const frame of [...this.album.of(id).keys()].filter(frame => frame >= first).sort((a, b) => a - b)) {
      const word = level(this.album.at(id, frame).trust), last = found.at(-1);
      if (word !== "unsure" && word !== "bad") continue;
      if (last?.word === word && last.to >= frame - 1) last.to = frame;
      else found.push({ word, from: Math.max(first, frame - 1), to: frame });
    }
    return found;
  }
}
