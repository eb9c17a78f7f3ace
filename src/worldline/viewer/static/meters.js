// What the numbers of a frame say: trust in a plain word, frames per second, and where the time goes.
import { byId, make, number } from "./dom.js";

const PARTS = [["queue", "waiting", 5], ["model", "model", 0], ["decode", "decode", 3], ["twin", "live twin", 2], ["encode", "encode", 4], ["network", "network", 1]];
const LEVELS = { known: "good", unsure: "unsure", leaving: "bad", unknown: "unknown" };
const SIGNALS = { entropy: "token entropy", outside: "states", states: "states", residual: "round trip", round_trip: "round trip" };
const WINDOW_MS = 2000;
const LAST = 40;

export const level = trust => LEVELS[trust?.word] ?? "unknown";

export class Meters {
  constructor() {
    this.clear();
    this.lines = new Map(PARTS.map(([id, label, tone]) => {
      const value = make("dd"), share = make(`span.part.t${tone}`);
      byId("bar").append(share);
      byId("times").append(make(`div.t${tone}`, {}, make("dt", {}, label), value));
      return [id, { value, share }];
    }));
    this.total = make("dd", { id: "latency" }, "\u2013");
    byId("times").append(make("div", {}, make("dt", {}, "from slider to picture"), this.total));
    setInterval(() => this.paint(), 500);
  }

  clear() { this.arrivals = []; this.parts = []; this.waits = []; }

  /** A frame that was made: its times and, where it is the first to obey a drive, how long that took. */
  made({ timing_ms: timing, since }) {
    this.arrivals.push(performance.now());
    this.parts.push(timing);
    if (this.parts.length > LAST) this.parts.shift();
    if (since === null) return;
    const known = timing.queue + timing.model + timing.decode + timing.encode + timing.twin;
    this.waits.push({ total: since, network: Math.max(0, since - known), queue: timing.queue });
    if (this.waits.length > LAST) this.waits.shift();
  }

  paint() {
    const now = performance.now();
    this.arrivals = this.playing ? this.arrivals.filter(at => now - at < WINDOW_MS) : []; // single steps have no rate
    const passed = this.arrivals.length > 1 ? this.arrivals.at(-1) - this.arrivals[0] : 0;
    byId("fps").textContent = passed ? `${((this.arrivals.length - 1) * 1000 / passed).toFixed(1)} frames/s` : "";
    if (!this.parts.length) return;
    const mean = name => this.parts.reduce((sum, one) => sum + one[name], 0) / this.parts.length;
    const times = Object.fromEntries(["model", "decode", "twin", "encode"].map(name => [name, mean(name)]));
    times.queue = median(this.waits.map(one => one.queue));
    times.network = median(this.waits.map(one => one.network));
    const all = Object.values(times).reduce((sum, one) => sum + (one ?? 0), 0) || 1;
    for (const [id, { value, share }] of this.lines) {
      value.textContent = times[id] === null ? "\u2013" : `${times[id].toFixed(1)} ms`;
      share.style.setProperty("--share", ((times[id] ?? 0) / all).toFixed(4));
    }
    const total = median(this.waits.map(one => one.total));
    this.total.textContent = total === null ? "\u2013" : `${total.toFixed(0)} ms`;
  }
}

const median = values => values.length ? [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] : null;

/** The word for a moment, with the reasons that speak loudest. */
export function showTrust(trust, words, labels) {
  const place = byId("trust");
  place.dataset.level = level(trust);
  place.querySelector(".words").textContent = words?.[trust?.word] ?? trust?.word ?? "no forecast yet";
  const high = Object.entries(trust?.signals ?? {}).filter(([, share]) => share > 1).sort((a, b) => b[1] - a[1]).map(([id, share]) => `${SIGNALS[id] ?? id.replaceAll("_", " ")} ${number(share)}\u00d7 the usual`);
  const outside = trust?.outside?.length ? [`outside: ${trust.outside.slice(0, 3).map(name => labels.get(name) ?? name).join(", ")}${trust.outside.length > 3 ? ` and ${trust.outside.length - 3} more` : ""}`] : [];
  place.querySelector(".why").textContent = [...outside, ...high].slice(0, 2).join("; ");
  place.title = Object.entries(trust?.signals ?? {}).map(([id, share]) => `${SIGNALS[id] ?? id.replaceAll("_", " ")}: ${number(share)} of what is usual`).join("\n");
}
