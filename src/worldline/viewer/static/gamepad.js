// Gamepad (standard mapping): left stick the base, triggers the hands, right stick two joints of the selected limb.
import { make } from "./dom.js";

const DEAD = 0.14;
const SHARE_PER_SECOND = 0.6;
const BUTTONS = { 0: "play", 1: "branch", 2: "step", 3: "reset", 4: "rewind" };
const [LEFT_TRIGGER, RIGHT_TRIGGER, UP, DOWN, LEFT, RIGHT] = [6, 7, 12, 13, 14, 15];

/** A stick's value without the middle in which it never rests. */
const live = value => Math.abs(value) < DEAD ? 0 : Math.sign(value) * (Math.abs(value) - DEAD) / (1 - DEAD);

export class Gamepads {
  /** `changed` is called when a pad comes or goes and when it points at other joints. */
  constructor(joints, actions, changed) {
    Object.assign(this, { joints, actions, changed, pair: 0, before: [], driving: new Set(), held: {} });
    addEventListener("gamepadconnected", event => { this.pad = event.gamepad.index; this.name = event.gamepad.id; this.before = []; changed(); this.run(); });
    addEventListener("gamepaddisconnected", event => { if (event.gamepad.index !== this.pad) return; this.stop(); this.pad = undefined; changed(); });
    document.addEventListener("visibilitychange", () => document.hidden && this.stop()); // nobody sees where it drives
    joints.addEventListener("limb", () => { this.pair = 0; });
  }

  run() {
    if (this.running) return;
    this.running = true;
    let at = performance.now();
    const tick = now => {
      const pad = this.pad === undefined ? null : navigator.getGamepads()[this.pad];
      if (!pad) { this.running = false; return; }
      this.read(pad, Math.min(0.1, Math.max(0, now - at) / 1000));
      at = now;
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  read(pad, passed) {
    const { joints } = this, [x, y, x2, y2] = [0, 1, 2, 3].map(i => live(pad.axes[i] ?? 0));
    this.base(joints.base?.drives, -y);
    this.base(joints.base?.turns, -x);
    this.trigger("left", pad.buttons[LEFT_TRIGGER]?.value ?? 0);
    this.trigger("right", pad.buttons[RIGHT_TRIGGER]?.value ?? 0);
    const [first, second] = this.pointed();
    if (first && y2) joints.nudge(first.name, -y2 * SHARE_PER_SECOND * passed * joints.rows.get(first.name).range);
    if (second && x2) joints.nudge(second.name, x2 * SHARE_PER_SECOND * passed * joints.rows.get(second.name).range);
    pad.buttons.forEach((button, i) => { if (button.pressed && !this.before[i]) this.press(i); });
    this.before = pad.buttons.map(button => button.pressed);
  }

  /** A stick at rest stops the base once, and then leaves it to the sliders. */
  base(name, share) {
    if (!name || (!share && !this.driving.has(name))) return;
    share ? this.driving.add(name) : this.driving.delete(name);
    this.joints.velocity(name, share);
  }

  trigger(side, value) {
    if (Math.abs((this.held[side] ?? 0) - value) < 0.02) return;
    this.held[side] = value;
    this.joints.hand(side, value);
  }

  press(i) {
    const { joints } = this, limbs = joints.limbs.length, pairs = Math.max(1, Math.ceil((joints.limb?.members.length ?? 1) / 2));
    if (i in BUTTONS) this.actions[BUTTONS[i]]?.();
    else if (i === UP || i === DOWN) joints.choose((joints.chosen + (i === UP ? limbs - 1 : 1)) % limbs);
    else if (i === LEFT || i === RIGHT) { this.pair = (this.pair + (i === LEFT ? pairs - 1 : 1)) % pairs; this.changed(); }
  }

  pointed() { return this.joints.limb?.members.slice(2 * this.pair, 2 * this.pair + 2) ?? []; }
  stop() { for (const name of this.driving) this.joints.velocity(name, 0); this.driving.clear(); }

  legend() {
    if (this.pad === undefined) return [make("h3", {}, "Gamepad"), make("p.note", {}, "None is seen. Connect one and press any of its buttons.")];
    const { base, hands } = this.joints, [first, second] = this.pointed();
    const lines = [
      base?.drives && ["left stick \u2195", "base forward, backward"], base?.turns && ["left stick \u2194", "base left, right"],
      hands.left.length && ["left trigger", "left hand"], hands.right.length && ["right trigger", "right hand"],
      first && ["right stick \u2195", first.label], second && ["right stick \u2194", second.label],
      ["pad \u2194", "the next two joints"], ["pad \u2195", "another limb"],
      ["A / cross", "play, pause"], ["B / circle", "branch here"], ["X / square", "one step"], ["Y / triangle", "reset to current"], ["left shoulder", "back one second"],
    ].filter(Boolean);
    return [make("h3", {}, `Gamepad: ${this.name}`), make("dl.map", {}, ...lines.map(([key, what]) => make("div", {}, make("dt", {}, what), make("dd", {}, make("kbd", {}, key)))))];
  }
}
