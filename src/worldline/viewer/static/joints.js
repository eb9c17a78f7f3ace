// The robot's joints: a slider each, grouped by limb. Targets are what the person wants; the mark on a slider is where
// the robot is now. Whatever moves a target (slider, number, key, gamepad) comes through `Joints.set` or `nudge`.
import { byId, make, number, titled } from "./dom.js";

const SEND_MS = 33;
const HANDS_OFF_MS = 500;
export const PAIRS = [["KeyR", "KeyF"], ["KeyT", "KeyG"], ["KeyY", "KeyH"], ["KeyU", "KeyJ"], ["KeyI", "KeyK"], ["KeyO", "KeyL"], ["KeyP", "Semicolon"]];
/** Physical keys that raise and lower joint 1, 2, ... of the selected limb: the upper row and the row below it. */

export class Joints extends EventTarget {
  constructor() {
    super();
    this.rows = new Map();
    this.limbs = [];
    this.pending = {};
    this.lastSent = 0;
    byId("find").addEventListener("input", event => this.filter(event.target.value));
    byId("reset").addEventListener("click", () => this.reset());
  }

  /** Build the sliders: `joints` of the welcome, in the order of the data's states. */
  show(joints) {
    this.order = joints.map(joint => joint.name);
    this.rows = new Map();
    const groups = Map.groupBy?.(joints, joint => joint.limb) ?? grouped(joints);
    this.limbs = [...groups].map(([name, members]) => this.group(name, members));
    byId("limbs").replaceChildren(...this.limbs.map(limb => limb.root));
    this.base = this.baseOf(joints);
    this.hands = { left: this.handOf("left"), right: this.handOf("right") };
    this.choose(this.limbs.findIndex(limb => limb.members.length > 2) === -1 ? 0 : this.best());
  }

  best() {
    const arm = this.limbs.findIndex(limb => /right.*arm/i.test(limb.name)), any = this.limbs.findIndex(limb => /arm/i.test(limb.name));
    return arm >= 0 ? arm : any >= 0 ? any : this.limbs.findIndex(limb => limb.members.length > 2);
  }

  group(name, members) {
    const place = this.limbs.length, id = `limb-${name.replace(/\W+/g, "-")}`;
    const open = make("button.open", { type: "button", "aria-expanded": "false", "aria-controls": id }, make("span", {}, titled(name)), make("small", {}, String(members.length)));
    const choose = make("button.choose", { type: "button", "aria-pressed": "false", title: "Keyboard and gamepad move the selected limb", "aria-label": `Select ${name}` }, "Select");
    const list = make("div.joints", { id, role: "group", "aria-label": titled(name), hidden: true }, ...members.map(joint => this.row(joint)));
    const limb = { name, members, open, chooser: choose, list, place };
    limb.root = make("div.limb", { "data-limb": name }, make("div.head", {}, open, choose), list);
    open.addEventListener("click", () => this.expand(limb, list.hidden));
    choose.addEventListener("click", () => this.choose(this.limbs.indexOf(limb)));
    return limb;
  }

  row(joint) {
    const id = `joint-${this.order.indexOf(joint.name)}`, range = joint.high - joint.low, step = nice(range / 400);
    const slider = make("input", { type: "range", id, min: joint.low, max: joint.high, step: "any", "data-joint": joint.name });
    const box = make("input", { type: "number", min: joint.low, max: joint.high, step, "aria-label": `${joint.label}, ${joint.unit || "value"}`, inputmode: "decimal" });
    const keys = make("kbd", { hidden: true });
    const actual = make("span.actual", { "aria-hidden": "true" });
    const root = make("div.joint", { "data-joint": joint.name }, make("label", { for: id, title: joint.name }, short(joint), keys), make("span.low", {}, number(joint.low, range)),
      make("div.track", {}, slider, actual), make("span.high", {}, number(joint.high, range)), box, make("span.unit", {}, joint.unit || ""));
    const row = { ...joint, range, step, target: joint.value, now: joint.value, root, slider, box, actual, keys };
    this.rows.set(joint.name, row);
    slider.addEventListener("input", () => this.set(joint.name, +slider.value, "slider"));
    if (joint.returns) for (const end of ["pointerup", "pointercancel"]) slider.addEventListener(end, () => this.set(joint.name, 0));
    slider.addEventListener("keydown", event => this.sliderKey(event, row));
    box.addEventListener("change", () => { this.set(joint.name, box.valueAsNumber); this.paint(row, true); });
    this.paint(row);
    this.mark(row);
    return root;
  }

  /** Arrow keys on a slider of any step move it by a hundredth of its range. */
  sliderKey(event, row) {
    const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageUp: 10, PageDown: -10 }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    this.nudge(row.name, by * row.range / 100);
  }

  /** Want a value, kept within the limits, and tell the server soon: the newest only, 30 times a second at most. */
  set(name, value) {
    const row = this.rows.get(name);
    if (!row || !Number.isFinite(value)) return;
    row.target = Math.min(row.high, Math.max(row.low, value));
    this.paint(row);
    this.pending[name] = row.target;
    this.touched = performance.now();
    if (this.timer) return;
    this.timer = setTimeout(() => this.flush(), Math.max(0, this.lastSent + SEND_MS - performance.now()));
  }

  nudge(name, by) { const row = this.rows.get(name); if (row) this.set(name, row.target + by); }

  flush() {
    clearTimeout(this.timer);
    this.timer = null;
    if (!Object.keys(this.pending).length) return;
    this.lastSent = performance.now();
    const states = this.pending;
    this.pending = {};
    this.dispatchEvent(new CustomEvent("drive", { detail: states }));
  }

  /** Where the robot is, as the newest frame says. While nothing is held back, `follow` moves the sliders along. */
  now(states, follow = false) {
    this.order?.forEach((name, i) => {
      const row = this.rows.get(name), value = Array.isArray(states) ? states[i] : states[name];
      if (value === undefined) return;
      row.now = value;
      this.mark(row);
      if (follow) { row.target = value; this.paint(row); }
    });
  }

  /** Targets as the server has them, unless the person moves them at this moment. */
  targets(states) {
    if (performance.now() - (this.touched ?? -HANDS_OFF_MS) < HANDS_OFF_MS) return;
    this.order?.forEach((name, i) => {
      const row = this.rows.get(name), value = Array.isArray(states) ? states[i] : states[name];
      if (value === undefined || name in this.pending) return;
      row.target = value;
      this.paint(row);
    });
  }

  /** Want what is: every joint stays where it is now, and velocities go to 0. */
  reset() {
    this.pending = {};
    for (const row of this.rows.values()) { row.target = row.returns ? 0 : row.now; this.paint(row); }
    this.dispatchEvent(new Event("halt"));
  }

  paint(row, typed = false) {
    row.slider.value = row.target;
    row.slider.setAttribute("aria-valuetext", `${number(row.target, row.range)} ${row.unit || ""}`.trim());
    if (typed || document.activeElement !== row.box) row.box.value = String(+row.target.toFixed(row.range >= 20 ? 1 : 3));
  }

  mark(row) {
    const share = row.range ? (row.now - row.low) / row.range : 0.5;
    row.actual.style.setProperty("--at", Math.min(1, Math.max(0, share)));
    row.root.classList.toggle("outside", row.now < row.low - 1e-6 || row.now > row.high + 1e-6);
  }

  // --- limbs ---

  expand(limb, open) {
    limb.list.hidden = !open;
    limb.open.setAttribute("aria-expanded", String(open));
  }

  /** The limb that keys and the gamepad's right stick move. */
  choose(place) {
    const chosen = this.limbs[place];
    if (!chosen) return;
    this.chosen = place;
    for (const limb of this.limbs) {
      const on = limb === chosen;
      limb.root.classList.toggle("chosen", on);
      limb.chooser.setAttribute("aria-pressed", String(on));
      limb.chooser.textContent = on ? "Selected" : "Select";
      limb.members.forEach((joint, i) => {
        const row = this.rows.get(joint.name);
        row.keys.hidden = !on || i >= PAIRS.length;
        row.keys.textContent = i < PAIRS.length ? PAIRS[i].map(letter).join(" ") : "";
      });
    }
    this.expand(chosen, true);
    this.dispatchEvent(new Event("limb"));
  }

  get limb() { return this.limbs[this.chosen]; }

  filter(text) {
    const wanted = text.trim().toLowerCase().split(/\s+/).filter(Boolean);
    let any = false;
    for (const limb of this.limbs) {
      let found = 0;
      for (const joint of limb.members) {
        const said = `${joint.label} ${joint.name} ${limb.name}`.toLowerCase(), fits = wanted.every(word => said.includes(word));
        this.rows.get(joint.name).root.hidden = !fits;
        found += fits;
      }
      limb.root.hidden = !found;
      any ||= found > 0;
      if (wanted.length) { limb.found ??= !limb.list.hidden; this.expand(limb, found > 0); }
      else if (limb.found !== undefined) { this.expand(limb, limb.found); delete limb.found; }
    }
    byId("none-found").hidden = any || !this.limbs.length;
  }

  // --- base and hands ---

  /** Names of the joint that drives and of the one that turns, either of which may be missing. */
  baseOf(joints) {
    const base = joints.filter(joint => joint.returns || /base/i.test(joint.limb));
    const drives = base.find(joint => /m\/s/.test(joint.unit) && !/rad/.test(joint.unit)) ?? base.find(joint => /forward|linear|\bx\b|vx/i.test(joint.name));
    const turns = base.find(joint => /rad\/s|deg\/s/.test(joint.unit)) ?? base.find(joint => joint !== drives && /turn|ang|yaw|theta/i.test(joint.name));
    return { drives: drives?.name, turns: turns?.name };
  }

  handOf(side) {
    return [...this.rows.values()].filter(row => new RegExp(side, "i").test(`${row.limb} ${row.name} ${row.label}`) && /hand|grip|finger|thumb/i.test(`${row.limb} ${row.name} ${row.label}`)).map(row => row.name);
  }

  /** Move a velocity to a share (-1 to 1) of its limit on that side; 0 stops. */
  velocity(name, share) {
    const row = this.rows.get(name);
    if (row) this.set(name, share >= 0 ? share * Math.max(0, row.high) : -share * Math.min(0, row.low));
  }

  /** Close a hand to a share from 0 (open) to 1 (closed), all its joints together. */
  hand(side, share) {
    for (const name of this.hands[side]) { const row = this.rows.get(name); this.set(name, row.low + share * row.range); }
  }

  nudgeHand(side, share) { for (const name of this.hands[side]) this.nudge(name, share * this.rows.get(name).range); }
}

function grouped(joints) {
  const groups = new Map();
  for (const joint of joints) groups.set(joint.limb, [...(groups.get(joint.limb) ?? []), joint]);
  return groups;
}

/** A label below its limb's heading: without the side that the heading says already. */
function short({ label, limb }) {
  const side = /^(left|right)\b/i.exec(limb)?.[0], words = side ? label.split(" ").filter(word => word.toLowerCase() !== side.toLowerCase()) : [];
  return words.length ? titled(words.join(" ")) : titled(label);
}

export const letter = code => code === "Semicolon" ? ";" : code.replace(/^(Key|Digit)/, "");

/** The nearest 1, 2 or 5 times a power of ten below. */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value || 1)), lead = value / power;
  return +((lead >= 5 ? 5 : lead >= 2 ? 2 : 1) * power).toPrecision(2);
}
