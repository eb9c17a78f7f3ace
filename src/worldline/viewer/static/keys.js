// Keyboard: what is held moves joints, what is pressed does one thing. Keys are physical places (`event.code`), so that
// the pairs lie above each other on any layout; the legend shows what the layout prints on them where the browser knows.
import { make, typing } from "./dom.js";
import { PAIRS, letter } from "./joints.js";

const SHARE_PER_SECOND = 0.5;
/** A held key crosses half of a joint's range in a second. */

export class Keys {
  /** `actions`: functions by name (play, step, back, rewind, branch, reset, find, legend). */
  constructor(joints, actions) {
    this.joints = joints;
    this.actions = actions;
    this.held = new Set();
    this.letters = letter;
    addEventListener("keydown", event => this.down(event));
    addEventListener("keyup", event => this.up(event.code));
    addEventListener("blur", () => this.release());
    document.addEventListener("visibilitychange", () => document.hidden && this.release());
    navigator.keyboard?.getLayoutMap?.().then(map => { this.letters = code => map.get(code)?.toUpperCase() ?? letter(code); }, () => {});
  }

  down(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
    const one = this.pressed(event);
    if (one) {
      event.preventDefault();
      if (!event.repeat || one === "step") this.actions[one]?.(event.repeat);
    } else if (/^Digit[1-9]$/.test(event.code) && !event.shiftKey) this.joints.choose(+event.code.slice(5) - 1);
    else if (this.moves(event.code)) {
      event.preventDefault();
      this.held.add(event.code);
      this.run();
    }
  }

  /** The one action of a key; a button that has the focus keeps its own space and enter. */
  pressed(event) {
    const onPart = event.target instanceof Element && event.target.matches("button, a, [type=checkbox], summary");
    if (event.key === " ") return onPart ? null : "play";
    return { ".": "step", ",": "back", Backspace: "rewind", "/": "find", "?": "legend" }[event.key] ?? { KeyB: "branch", Digit0: "reset" }[event.code] ?? null;
  }

  /** What a held key does in a time step, or nothing. */
  moves(code) {
    const { base, limb } = this.joints;
    const still = { KeyW: [base?.drives, 1], KeyS: [base?.drives, -1], KeyA: [base?.turns, 1], KeyD: [base?.turns, -1] }[code];
    if (still) return still[0] ? { velocity: still } : null;
    const hand = { KeyQ: ["left", 1], KeyZ: ["left", -1], KeyE: ["right", 1], KeyC: ["right", -1] }[code];
    if (hand) return this.joints.hands?.[hand[0]].length ? { hand } : null;
    const place = PAIRS.findIndex(pair => pair.includes(code)), joint = limb?.members[place];
    return joint ? { joint: [joint.name, code === PAIRS[place][0] ? 1 : -1] } : null;
  }

  up(code) {
    if (!this.held.delete(code)) return;
    const velocity = this.moves(code)?.velocity;
    if (velocity && !this.others(velocity[0])) this.joints.velocity(velocity[0], 0);
  }

  others(name) { return [...this.held].some(code => this.moves(code)?.velocity?.[0] === name); }
  release() { for (const code of [...this.held]) this.up(code); }

  run() {
    if (this.running) return;
    this.running = true;
    let before = performance.now();
    const tick = at => {
      if (!this.held.size) { this.running = false; return; }
      const by = SHARE_PER_SECOND * Math.min(0.1, Math.max(0, at - before) / 1000);
      before = at;
      const shares = new Map();
      for (const code of this.held) {
        const { velocity, hand, joint } = this.moves(code) ?? {};
        if (velocity) shares.set(velocity[0], (shares.get(velocity[0]) ?? 0) + velocity[1]);
        if (hand) this.joints.nudgeHand(hand[0], 2 * hand[1] * by);
        if (joint) this.joints.nudge(joint[0], joint[1] * by * this.joints.rows.get(joint[0]).range);
      }
      for (const [name, share] of shares) this.joints.velocity(name, share);
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  /** The legend, of the keys that do something with this robot. */
  legend() {
    const { base, hands, limb, limbs } = this.joints, key = (...codes) => codes.map(code => make("kbd", {}, this.letters(code)));
    const said = text => make("kbd", {}, text);
    const lines = [
      [[said("Space")], "play, pause"], [[said(".")], "one step"], [[said(",")], "one frame back"], [[said("Backspace")], "back one second"],
      [key("KeyB"), "branch here"], [[said("0")], "reset to current"], [[said("/")], "find a joint"], [[said("?")], "these keys"],
      base?.drives && [key("KeyW", "KeyS"), "base forward, backward"], base?.turns && [key("KeyA", "KeyD"), "base left, right"],
      hands?.left.length && [key("KeyQ", "KeyZ"), "left hand close, open"], hands?.right.length && [key("KeyE", "KeyC"), "right hand close, open"],
      limbs.length > 1 && [[said(`1 \u2026 ${Math.min(9, limbs.length)}`)], "choose a limb"],
      ...(limb?.members ?? []).slice(0, PAIRS.length).map((joint, i) => [key(...PAIRS[i]), `${joint.label} up, down`]),
    ].filter(Boolean);
    return [make("h3", {}, `Keyboard${limb ? `, limb: ${limb.name}` : ""}`), make("dl.map", {}, ...lines.map(([keys, what]) => make("div", {}, make("dt", {}, what), make("dd", {}, ...keys))))];
  }
}
