// Pictures: an album that remembers what was shown of every branch, and the panels in which one moment stands.
import { byId, make, titled } from "./dom.js";

const MOST_BYTES = 160e6;
export const RECORDED = "recorded";
const bytesOf = moment => Object.values(moment?.pictures ?? {}).reduce((sum, blob) => sum + blob.size, 0);

/** Moments by branch and frame, as they came: pictures stay compressed. The oldest go when there are too many; the server
 * has them still (`look`). */
export class Album {
  constructor() { this.clear(); }
  clear() { this.branches = new Map(); this.bytes = 0; }
  of(branch) { return this.branches.get(branch) ?? this.branches.set(branch, new Map()).get(branch); }
  at(branch, frame) { return this.branches.get(branch)?.get(frame); }

  /** Keep what a message shows: its own moment, and pictures of other branches that came along. */
  put(shown) {
    const { states, trust, real, seconds } = shown, moment = { states, trust, real, seconds, pictures: {} };
    for (const one of shown.pictures) {
      if (one.kind === "beside") this.add(one.branch, one.frame, { ...this.at(one.branch, one.frame), pictures: { ...this.at(one.branch, one.frame)?.pictures, forecast: one.blob } });
      else moment.pictures[one.kind === "context" || one.branch === RECORDED ? "forecast" : one.kind] = one.blob;
    }
    this.add(shown.branch, shown.frame, moment);
    return moment;
  }

  add(branch, frame, moment) {
    this.forget(branch, frame);
    this.of(branch).set(frame, moment);
    this.bytes += bytesOf(moment);
    if (this.bytes > MOST_BYTES) this.shed();
  }

  forget(branch, frame) {
    this.bytes -= bytesOf(this.at(branch, frame));
    this.of(branch).delete(frame);
  }

  shed() {
    for (const [branch, frames] of this.branches) for (const frame of [...frames.keys()].slice(0, Math.floor(frames.size / 10))) this.forget(branch, frame);
  }

  /** Pictures of a kind are of no more use: another overlay is chosen. */
  strip(kind) {
    for (const frames of this.branches.values()) for (const { pictures } of frames.values()) {
      this.bytes -= pictures[kind]?.size ?? 0;
      delete pictures[kind];
    }
  }

  /** A branch ends before this frame. */
  cut(branch, end) {
    for (const frame of [...this.of(branch).keys()]) if (frame >= end) this.forget(branch, frame);
  }

  /** As the server has it: a new branch begins with the moments of its parent, a cut or dropped one loses its own. */
  agree(branches, old) {
    const known = new Set(old.map(one => one.id));
    for (const one of branches) {
      if (!known.has(one.id) && one.parent !== null) for (const [frame, moment] of this.of(one.parent)) if (frame <= one.at) this.add(one.id, frame, moment);
      this.cut(one.id, one.frames);
    }
    for (const id of [...this.branches.keys()]) {
      if (id === RECORDED || branches.some(one => one.id === id)) continue;
      this.cut(id, 0);
      this.branches.delete(id);
    }
  }
}

/** One picture with a caption. Only the newest of the pictures that are being decoded is drawn. */
export class Panel {
  constructor(title, kind) {
    this.title = make("b", {}, title);
    this.under = make("span.under");
    this.canvas = make("canvas", { role: "img", "aria-label": title, width: 1, height: 1 });
    this.none = make("p.none", { hidden: true }, ABSENT[kind.replace("small.", "")] ?? "no picture of this moment");
    this.root = make(`figure.panel.${kind}`, {}, make("figcaption", {}, this.title, this.under), make("div.frame", {}, this.canvas, this.none));
    this.name(title);
  }

  /** `short` stands where there is little room. */
  name(title, under = "", short = title) {
    this.title.textContent = title;
    this.title.dataset.short = short;
    this.under.textContent = under;
    this.canvas.setAttribute("aria-label", under ? `${title}, ${under}` : title);
  }

  /** Resolves when the picture stands; of no picture the panel is emptied, and says so. */
  async show(blob) {
    this.none.hidden = !!blob;
    if (blob === this.shown) return;
    this.shown = blob;
    const context = this.canvas.getContext("2d");
    if (!blob) return context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    const picture = await createImageBitmap(blob);
    if (blob === this.shown) {
      if (this.canvas.width !== picture.width || this.canvas.height !== picture.height) Object.assign(this.canvas, { width: picture.width, height: picture.height });
      context.drawImage(picture, 0, 0);
    }
    picture.close();
  }
}

const ABSENT = { truth: "driven otherwise: no true frame" };
const SHORT = { truth: "Truth", twin: "Live twin", entropy: "Entropy", spread: "Spread", difference: "Difference" };
const TITLES = { forecast: "Forecast", truth: "What the robot saw", twin: "Live twin, same states", overlay: "" };

/** The panels of the stage: the forecast, and beside it whatever came with the newest frame. */
export class Stage {
  constructor() {
    this.root = byId("panels");
    this.panels = Object.fromEntries(Object.entries(TITLES).map(([kind, title]) => [kind, new Panel(title, kind === "forecast" ? "main" : `small.${kind}`)]));
    this.scale = make("div.scale", { hidden: true }, make("span.low"), make("span.heat", { "aria-hidden": "true" }), make("span.high"));
    this.panels.overlay.root.append(this.scale);
    for (const kind of ["truth", "twin"]) this.panels[kind].name(TITLES[kind], "", SHORT[kind]);
    this.root.append(...Object.values(this.panels).map(panel => panel.root));
    byId("pixels").addEventListener("change", event => document.body.classList.toggle("hard", event.target.checked));
    this.wants({});
  }

  shape(width, height) { document.documentElement.style.setProperty("--shape", `${width} / ${height}`); }

  /** Which panels have a place: it stays while a frame happens not to have this picture. */
  wants({ truth = this.wanted?.truth, twin = false, overlay = null }) {
    this.wanted = { truth, twin, overlay };
    this.arrange({});
    this.scale.hidden = !overlay;
    if (!overlay) return;
    this.panels.overlay.name(titled(overlay.label), "", SHORT[overlay.id]);
    this.scale.querySelector(".low").textContent = String(+overlay.low.toPrecision(3));
    this.scale.querySelector(".high").textContent = `${+overlay.high.toPrecision(3)} ${overlay.unit}`;
    this.scale.querySelector(".heat").style.setProperty("background", overlay.colours.length ? `linear-gradient(90deg, ${overlay.colours.join(", ")})` : "var(--heat)");
  }

  arrange(pictures) {
    if (pictures.truth) this.wanted.truth = true; // and stays for this clip
    const { truth, twin, overlay } = this.wanted, there = { truth: truth || pictures.truth, twin: twin || pictures.twin, overlay: overlay && overlay.id !== "none" };
    for (const [kind, on] of Object.entries(there)) this.panels[kind].root.hidden = !on;
    this.root.dataset.others = Object.values(there).filter(Boolean).length;
  }

  /** Whether a moment lacks a picture that has a place. */
  lacks({ pictures, real }) {
    const { twin, overlay } = this.wanted;
    return !real && ((twin && !pictures.twin) || (overlay && overlay.id !== "none" && !pictures.overlay));
  }

  /** Resolves when the pictures of a moment stand; the page can then tell which frame that is. */
  async show({ pictures, real }, frame, title, under) {
    this.arrange(pictures);
    const main = this.panels.forecast;
    main.name(title, under);
    main.root.classList.toggle("predicted", !real);
    this.panels.overlay.root.classList.toggle("predicted", !real);
    const truth = real ? { truth: pictures.forecast, twin: pictures.forecast } : {}; // what is real is all three
    await Promise.all(Object.entries(this.panels).map(([kind, panel]) => panel.show(pictures[kind] ?? truth[kind])));
    this.root.dataset.frame = frame;
  }
}
