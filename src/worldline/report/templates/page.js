// Moving pictures: every panel of a player is drawn from one frame number, so panels cannot go out of step.
"use strict";
const STOPS = ["000004", "1b0c41", "4a0c6b", "781c6d", "a52c60", "cf4446", "ed6925", "fb9b06", "f7d13d", "fcffa4"];
const HEAT = heat();

/** 256 colours from dark to light (the stops of matplotlib's inferno), as in the gradient below the panels. */
function heat() {
  const stops = STOPS.map(text => [0, 2, 4].map(i => parseInt(text.slice(i, i + 2), 16)));
  return Array.from({ length: 256 }, (_, i) => {
    const at = i / 255 * (stops.length - 1), low = Math.min(Math.floor(at), stops.length - 2);
    return stops[low].map((value, c) => value + (at - low) * (stops[low + 1][c] - value));
  });
}

/** The frames of a sheet: `draw` puts one of them on a canvas and gives its pixels back. */
function sheet(image, frames) {
  const columns = +image.dataset.columns, lines = Math.ceil(frames / columns);
  const width = image.naturalWidth / columns, height = image.naturalHeight / lines;
  return {
    width, height,
    draw(context, frame) {
      context.drawImage(image, frame % columns * width, Math.floor(frame / columns) * height, width, height, 0, 0, width, height);
    },
  };
}

/** Something that plays: one frame number, from which `draw` draws everything. */
class Reel {
  constructor(root, about) {
    this.root = root;
    this.about = about; // frames, context, fps
    this.frame = 0;
    this.wanted = false; // what the reader or the page asks for
    this.seen = false;
    this.range = root.querySelector("input[type=range]");
    this.button = root.querySelector(".play");
    this.output = root.querySelector("output");
    this.said = root.querySelector(".said");
    this.speed = root.querySelector(".speed");
    root.querySelectorAll(".step").forEach(step => step.addEventListener("click", () => this.step(+step.dataset.by)));
    this.range.addEventListener("input", () => this.to(+this.range.value));
    this.button.addEventListener("click", () => this.toggle());
    root.addEventListener("keydown", event => this.key(event));
  }

  /** Arrow keys step and space plays, except where the focused part uses these keys itself. */
  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const at = event.target, own = at.matches("select, input[type=radio]") || (at.matches("button") && event.key === " ");
    const last = this.about.frames - 1;
    const moves = { ArrowLeft: this.frame - 1, ArrowRight: this.frame + 1, Home: 0, End: last };
    if (own) return;
    if (event.key === " ") this.toggle();
    else if (event.key in moves) this.to(Math.max(0, Math.min(last, moves[event.key])));
    else return;
    event.preventDefault();
  }

  to(frame) { this.pause(); this.frame = frame; this.draw(); this.say(); }
  step(by) { const count = this.about.frames; this.to((this.frame + by + count) % count); }
  toggle() { if (this.wanted) { this.pause(); this.say(); } else this.play(); }
  pause() { this.wanted = false; this.label(); }
  play() { this.wanted = true; this.label(); this.run(); }
  label() {
    this.button.textContent = this.wanted ? "Pause" : "Play";
    this.button.setAttribute("aria-label", this.wanted ? "Pause" : "Play");
  }

  /** Advance by the clock while wanted and in view; the last frame stays for half a second. */
  run() {
    if (this.running) return;
    this.running = true;
    let since = performance.now();
    const tick = now => {
      if (!this.wanted || !this.seen || !this.ready) { this.running = false; return; }
      const last = this.frame === this.about.frames - 1;
      const each = 1000 * this.speed.value / this.about.fps, hold = last ? Math.max(500, each) : each;
      if (now - since >= hold) {
        const skipped = last ? 1 : Math.max(1, Math.floor((now - since) / each));
        this.frame = last ? 0 : Math.min(this.about.frames - 1, this.frame + skipped);
        since = now;
        this.draw();
      }
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }
}

class Player extends Reel {
  constructor(root, strips) {
    super(root, JSON.parse(root.querySelector("script").textContent));
    this.images = strips.querySelectorAll("img");
    this.clip = this.row = this.map = 0;
    this.canvases = {};
    for (const kind of ["truth", "made", "error", "unsure"]) {
      const canvas = root.querySelector(`.${kind} canvas`);
      if (canvas) this.canvases[kind] = canvas.getContext("2d", { willReadFrequently: true });
    }
    this.chart = root.querySelector(".timeline svg");
    this.listen();
    root.hidden = false;
    this.load().then(() => { root.dataset.ready = "yes"; if (this.wanted) this.run(); });
  }

  get ready() { return this.made; }

  listen() {
    const root = this.root;
    root.querySelectorAll("input[type=radio]").forEach(radio => radio.addEventListener("change", () => { this.clip = +radio.value; this.load(); }));
    root.querySelector(".rows").addEventListener("change", event => { this.row = +event.target.value; this.load(); });
    root.querySelector(".maps")?.addEventListener("change", event => { this.map = +event.target.value; this.load(); });
  }

  async load() {
    const about = this.about, clip = this.clip;
    const find = panel => [...this.images].find(image => +image.dataset.clip === clip && image.dataset.panel === panel);
    const after = about.frames - about.context, ticket = this.ticket = {};
    const shown = [find("real"), find(about.rows[this.row].id), about.maps.length ? this.mapImage(clip) : null];
    await Promise.all(shown.filter(Boolean).map(image => image.decode().catch(() => {})));
    if (ticket !== this.ticket) return; // another clip was chosen meanwhile
    this.truth = sheet(shown[0], about.frames);
    this.made = sheet(shown[1], after);
    this.unsure = shown[2] && sheet(shown[2], after);
    for (const [kind, context] of Object.entries(this.canvases)) {
      const size = kind === "unsure" ? this.unsure : this.truth;
      Object.assign(context.canvas, { width: size.width, height: size.height });
    }
    this.root.classList.toggle("fine", this.truth.width > 160);
    this.root.querySelector(".made figcaption").textContent = about.rows[this.row].label;
    if (this.unsure) this.root.querySelector(".unsure figcaption").textContent = about.maps[this.map].label;
    this.root.querySelector(".truth .under").textContent = about.origins[clip] ?? "";
    this.plot();
    this.legends();
    this.draw();
    if (!this.wanted) this.say();
  }

  mapImage(clip) {
    const all = [...this.images].filter(image => +image.dataset.clip === clip);
    return all[1 + this.about.rows.length + this.map];
  }

  /** PSNR of every kept row over the predicted frames of this clip, the shown one in colour. */
  plot() {
    const { rows, frames, context } = this.about, curves = rows.map(row => row.psnr[this.clip]);
    const values = curves.flat(), low = Math.min(...values), high = Math.max(...values);
    const point = (value, i) => `${100 * (context + i) / (frames - 1)},${96 - 92 * (value - low) / (high - low || 1)}`;
    const line = (curve, kind) => `<polyline class="${kind}" points="${curve.map(point).join(" ")}"/>`;
    const others = curves.map((curve, i) => i === this.row ? "" : line(curve, "")).join("");
    this.chart.innerHTML = `${others}${line(curves[this.row], "now")}<line y1="0" y2="100"/>`;
    this.root.querySelector(".range").textContent = `PSNR, from ${low.toFixed(1)} to ${high.toFixed(1)} dB`;
  }

  legends() {
    const end = Math.round(255 / this.about.amplified);
    const bar = (low, high) => `<span class="heat"></span><span class="ends"><span>${low}</span><span></span></span>`;
    const put = (kind, high) => {
      const under = this.root.querySelector(`.${kind} .under`);
      under.innerHTML = bar("0");
      under.querySelector(".ends span:last-child").textContent = high;
    };
    put("error", `${end} of 255 levels (×${this.about.amplified})`);
    const map = this.about.maps[this.map];
    if (this.unsure) put("unsure", `${+map.top.toPrecision(3)} ${map.unit}`);
  }

  draw() {
    const { frames, context, rows, fps, known } = this.about, frame = this.frame, future = frame - context;
    const { truth, made, error, unsure } = this.canvases;
    this.truth.draw(truth, frame);
    if (future < 0) this.truth.draw(made, frame); else this.made.draw(made, future);
    this.difference(truth, made, error, future);
    if (unsure) this.warmth(unsure, future);
    this.root.classList.toggle("predicting", future >= 0);
    this.range.value = frame;
    this.root.querySelector(".made .under").textContent = future < 0 ? "given" : `PSNR ${rows[this.row].psnr[this.clip][future].toFixed(1)} dB`;
    const ahead = future < 0 ? "given" : known ? `forecast, ${((future + 1) / fps).toFixed(2)} s ahead` : "forecast";
    this.output.innerHTML = `frame ${frame + 1} of ${frames}, <b>${ahead}</b>`;
    this.range.setAttribute("aria-valuetext", `frame ${frame + 1} of ${frames}, ${ahead}`);
    const line = this.chart.querySelector("line");
    line.setAttribute("x1", 100 * frame / (frames - 1));
    line.setAttribute("x2", 100 * frame / (frames - 1));
  }

  /** Mean absolute difference of the three colours, amplified. */
  difference(truth, made, error, future) {
    const { width, height } = truth.canvas, picture = error.createImageData(width, height), out = picture.data;
    const ours = made.getImageData(0, 0, width, height).data, real = truth.getImageData(0, 0, width, height).data;
    for (let i = 0; i < out.length; i += 4) {
      const gap = Math.abs(ours[i] - real[i]) + Math.abs(ours[i + 1] - real[i + 1]) + Math.abs(ours[i + 2] - real[i + 2]);
      const colour = HEAT[future < 0 ? 0 : Math.min(255, Math.round(gap / 3 * this.about.amplified))];
      out[i] = colour[0]; out[i + 1] = colour[1]; out[i + 2] = colour[2]; out[i + 3] = 255;
    }
    error.putImageData(picture, 0, 0);
  }

  /** A map's grey sheet in colour; grey 0 is not known and stays empty. */
  warmth(context, future) {
    const { width, height } = context.canvas;
    context.clearRect(0, 0, width, height);
    if (future < 0) return;
    this.unsure.draw(context, future);
    const picture = context.getImageData(0, 0, width, height), out = picture.data;
    for (let i = 0; i < out.length; i += 4) {
      const grey = out[i], colour = HEAT[Math.max(0, Math.round((grey - 1) * 255 / 254))];
      out[i] = colour[0]; out[i + 1] = colour[1]; out[i + 2] = colour[2]; out[i + 3] = grey ? 255 : 0;
    }
    context.putImageData(picture, 0, 0);
  }

  /** Tell a screen reader where the pictures stand; not while they play. */
  say() {
    const about = this.about, row = about.rows[this.row].label;
    this.said.textContent = `${about.clips[this.clip]}, ${row}: ${this.output.textContent}. ${this.root.querySelector(".made .under").textContent}`;
  }

}

/** One start as every policy played it: all canvases are drawn from one frame number. */
class Together extends Reel {
  constructor(root) {
    super(root, { frames: +root.dataset.frames, context: 0, fps: +root.dataset.fps });
    this.images = [...root.querySelectorAll("img")];
    this.contexts = this.images.map(image => image.previousElementSibling.getContext("2d"));
    root.hidden = false;
    Promise.all(this.images.map(image => image.decode().catch(() => {}))).then(() => {
      this.sheets = this.images.map(image => sheet(image, this.about.frames));
      this.contexts.forEach((context, i) => Object.assign(context.canvas, { width: this.sheets[i].width, height: this.sheets[i].height }));
      this.ready = true;
      this.draw();
      root.dataset.ready = "yes";
      if (this.wanted) this.run();
    });
  }

  draw() {
    if (!this.ready) return;
    this.contexts.forEach((context, i) => this.sheets[i].draw(context, this.frame));
    this.range.value = this.frame;
    this.output.textContent = `${(this.frame / this.about.fps).toFixed(2)} s`;
    this.range.setAttribute("aria-valuetext", this.output.textContent);
  }

  say() { this.said.textContent = this.output.textContent; }
}

/** Play what is in view, unless the reader prefers stillness: then show the first forecast frame, at rest. */
function animate(players) {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const watch = new IntersectionObserver(entries => {
    for (const { target, isIntersecting } of entries) {
      const player = players.get(target);
      player.seen = isIntersecting;
      if (isIntersecting && player.wanted) player.run();
    }
  }, { threshold: 0.35 });
  for (const [root, player] of players) {
    player.wanted = !still;
    if (still) player.frame = player.about.context;
    player.label();
    watch.observe(root);
  }
}

/** Light or dark as the system says, until the reader says otherwise. */
function theme() {
  const root = document.documentElement, button = document.querySelector(".theme"), dark = matchMedia("(prefers-color-scheme: dark)");
  const now = () => root.dataset.theme ?? (dark.matches ? "dark" : "light");
  const show = () => {
    button.textContent = now() === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Use ${now() === "dark" ? "light" : "dark"} colours`);
  };
  button.addEventListener("click", () => { root.dataset.theme = now() === "dark" ? "light" : "dark"; show(); });
  dark.addEventListener("change", show);
  button.hidden = false;
  show();
}

theme();
const players = new Map();
for (const root of document.querySelectorAll(".player")) {
  const strips = root.nextElementSibling;
  strips.open = false;
  players.set(root, new Player(root, strips));
}
for (const root of document.querySelectorAll(".together")) players.set(root, new Together(root));
animate(players);
