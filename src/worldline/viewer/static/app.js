// The page: what comes from the server goes to the parts, what a person does goes to the server.
import { byId, choices, make, titled } from "./dom.js";
import { toast } from "./toasts.js";
import { Connection } from "./connection.js";
import { Album, RECORDED, Stage } from "./pictures.js";
import { Joints } from "./joints.js";
import { Keys } from "./keys.js";
import { Gamepads } from "./gamepad.js";
import { Meters, showTrust } from "./meters.js";
import { Timeline } from "./timeline.js";
import { Compare } from "./compare.js";
import { Exports } from "./exports.js";
import { theme } from "./theme.js";

const connection = new Connection("live");
const album = new Album(), stage = new Stage(), joints = new Joints(), meters = new Meters();
const timeline = new Timeline(album), files = new Exports(connection);
const compare = new Compare(album, { missing: (branch, frame) => connection.send("look", { branch, frame }), begin: rest, at: frame => showFrame(frame, false) });
const CHOOSING_MS = 600;
let welcome = null, state = null, labels = new Map(), overlays = new Map();
/** What stands on the stage. It may be another moment than the session's, while a person looks back. */
let shown = { branch: null, frame: 0 };
let asked = null; // the picture that `look` asked for, until it comes
let watching = false;
let chosenAt = -Infinity;
let stepping = false; // a step is on its way: a held key waits for it
let held = false; // a person has paused: driving does not start the clock again

// --- from the server ---

connection.addEventListener("link", ({ detail }) => {
  const said = { open: "connected", lost: `connection lost, again in ${(detail.wait ?? 0) / 1000} s`, ended: "closed" };
  byId("link").dataset.state = detail.state === "open" ? "open" : "lost";
  byId("again-now").hidden = detail.state === "open";
  byId("link").querySelector(".words").textContent = said[detail.state];
  if (detail.state === "open") return;
  stopWatching();
  compare.stop();
  busy(true);
  enable(false);
});

byId("again-now").addEventListener("click", () => connection.open());

connection.addEventListener("welcome", ({ detail }) => {
  const before = welcome && state;
  welcome = detail;
  document.title = `${detail.world} · worldline viewer`;
  byId("world").textContent = detail.world;
  byId("facts").textContent = `${detail.data}, ${detail.width}\u00d7${detail.height}, ${+detail.fps.toFixed(2)} frames/s, ${detail.chunk === 1 ? "one frame" : `${detail.chunk} frames`} per step`;
  byId("speed-note").textContent = `Move a slider, hold a key or follow a recorded motion. The orange mark is where the robot is; it moves no faster than in the data.${detail.chunk > 1 ? ` This world makes ${detail.chunk} frames at once; when you want something else meanwhile, it makes the rest of them again.` : ""}`;
  labels = new Map(detail.joints.map(joint => [joint.name, joint.label]));
  joints.show(detail.joints);
  const clips = detail.clips.map(clip => [clip.index, `${clip.label}, ${clip.seconds.toFixed(1)} s`]);
  choices(byId("clips"), clips);
  choices(byId("motions"), [["", "by hand"], ...clips.map(([index, label]) => [index, `recorded: ${label}`])]);
  stage.shape(detail.width, detail.height);
  showChoices(detail);
  legend();
  forget();
  if (before) resume(before);
});

connection.addEventListener("state", ({ detail }) => {
  const before = state;
  state = detail;
  if (!before) busy(false);
  if (before) album.agree(detail.branches, before.branches);
  if (before && before.overlay !== detail.overlay) album.strip("overlay");
  timeline.show(detail, welcome.fps);
  files.branches(detail.branches, detail.branch);
  const play = byId("play");
  play.textContent = detail.playing ? "Pause" : "Play";
  meters.playing = detail.playing;
  byId("clips").value = detail.clip ?? "";
  byId("motions").value = detail.motion ?? "";
  joints.targets(detail.target);
  showChosen();
  stage.wants({ twin: detail.twin, overlay: detail.overlay === "none" ? null : overlays.get(detail.overlay) });
  byId("clip-note").textContent = detail.outside ? `Wanted so far outside of the data's range: ${detail.outside} values.` : "";
  if (before?.branch !== detail.branch || before?.clip !== detail.clip) toSession();
  else if (before && (before.overlay !== detail.overlay || before.twin !== detail.twin) && shown.branch === detail.branch && shown.frame !== detail.frame) showFrame(shown.frame);
  showCompared();
});

connection.addEventListener("shown", async ({ detail }) => {
  if (detail.looked && !state) return connection.send("ack", { seq: detail.seq }); // asked for in the episode before
  const moment = album.put(detail);
  const same = !detail.looked && !detail.made && state && !state.playing && detail.branch === state.branch && detail.frame === state.frame;
  const back = same && shown.branch === state.branch && shown.frame !== state.frame; // sent again, while a person looks back
  if (!detail.looked) {
    stepping = false;
    if (detail.made) meters.made(detail); // of a kept frame nothing is made again
    if (detail.made) album.cut(detail.branch, detail.frame + 1); // what was kept behind it is gone
    timeline.grown(detail.branch, detail.frame, detail.made);
    if (state?.branch === detail.branch) state.frame = detail.frame;
    joints.now(detail.states, state?.motion != null);
  }
  const mine = detail.looked ? asked?.branch === detail.branch && asked?.frame === detail.frame : !watching && !back && detail.branch === (state?.branch ?? detail.branch);
  try {
    if (mine) {
      if (detail.looked) asked = null;
      await showMoment(detail.branch, detail.frame, moment);
    }
    if (detail.looked) compare.paint(shown.frame, false);
  } finally {
    connection.send("ack", { seq: detail.seq });
  }
});

connection.addEventListener("refused", ({ detail }) => {
  toast(detail.where ? `${detail.message} (${detail.where})` : detail.message, "error");
  chosenAt = -Infinity;
  stepping = false;
  if (detail.where === "look" && asked?.branch === RECORDED) { stopWatching(); toSession(); } // it cannot be read from here on
  if (state) showChosen();
});

// --- what stands on the stage ---

function showMoment(branch, frame, moment) {
  shown = { branch, frame };
  const recorded = branch === RECORDED;
  if (!recorded) timeline.at(frame);
  showTrust(moment.real || recorded ? null : moment.trust, welcome?.words, labels);
  if (moment.real || recorded) byId("trust").querySelector(".words").textContent = recorded ? "the recording" : "real pictures";
  if (timeline.state) compare.paint(frame, !state?.playing);
  const name = state?.branches.find(one => one.id === branch)?.name ?? "";
  const title = recorded ? "Recording" : moment.real ? "What the robot saw" : "Forecast";
  return stage.show(moment, frame, title, recorded ? `${(moment.seconds ?? 0).toFixed(2)} s` : state?.branches.length > 1 ? name : "");
}

/** A frame of the current branch, from the album or else from the server. */
function showFrame(frame, ask = true) {
  const there = Math.min(frame, timeline.now.frames - 1), moment = album.at(state.branch, there);
  if (moment?.pictures.forecast) showMoment(state.branch, there, moment);
  if (ask && (!moment?.pictures.forecast || (!state.playing && stage.lacks(moment)))) look(state.branch, there);
  else if (!moment?.pictures.forecast) compare.paint(frame, false);
}

function look(branch, frame) {
  asked = { branch, frame };
  connection.send("look", { branch, frame });
}

function toSession() {
  shown = { branch: state.branch, frame: state.frame };
  showFrame(state.frame);
}

function showCompared() {
  const branches = timeline.compared.map(id => state.branches.find(one => one.id === id)).filter(Boolean);
  compare.show(branches, { context: state.context, fps: welcome.fps, tones: new Map([...timeline.rows].map(([id, row]) => [id, row.tone])) });
  compare.paint(shown.frame, !state.playing);
}

// --- from the person ---

function open(clip) {
  forget();
  connection.send("open", { clip: +clip });
}

/** Nothing of the episode before is left: another one begins. */
function forget() {
  stopWatching();
  held = stepping = false;
  album.clear();
  timeline.clear();
  compare.show([], {});
  stage.wants({ truth: false });
  meters.clear();
  state = null;
  shown = { branch: null, frame: 0 };
  busy(true);
}

/** After a lost connection: the server has freed that session, so the same clip begins again, shown in the same way. */
function resume({ clip, overlay, twin }) {
  toast("The connection was lost, and the imagined episode with it. It begins again with the same clip.", "error");
  files.clear();
  if (clip) open(clip);
  if (overlay !== "none") connection.send("overlay", { kind: overlay });
  if (twin) connection.send("twin", { on: true });
}

/** Continue from the moment that is on the stage, if a person has looked back to it. */
function settle() {
  stopWatching();
  compare.stop();
  if (!state || shown.branch !== state.branch || shown.frame === state.frame || state.playing) return;
  go(shown.frame);
}

/** Bring the session to a frame: what is real stays as it is, so it goes to the last real frame at the least. */
function go(frame) {
  stopWatching();
  compare.stop();
  const to = Math.min(Math.max(frame, state.context - 1), timeline.now.frames - 1);
  if (state.playing) connection.send("play", { on: false });
  connection.send("rewind", { to });
  return to;
}

const rate = () => Math.min(welcome.limits.rate_high, Math.max(welcome.limits.rate_low, welcome.fps * byId("speed").value));
const actions = {
  play() {
    if (!state) return;
    held = state.playing;
    settle();
    connection.send("play", state.playing ? { on: false } : { on: true, rate: rate() });
  },
  step(repeated) { if (!state || (repeated && stepping)) return; held = stepping = true; settle(); connection.send("step"); },
  back() { if (state) showFrame(go((shown.branch === state.branch ? shown.frame : state.frame) - 1)); },
  rewind() { if (state) { held = true; showFrame(go((shown.branch === state.branch ? shown.frame : state.frame) - Math.round(welcome.fps))); } },
  branch() { if (!state) return; settle(); connection.send("branch"); },
  reset: () => joints.reset(),
  find: () => byId("find").focus(),
  legend: () => byId("show-keys").click(),
};
for (const name of ["play", "step", "rewind", "branch"]) byId(name).addEventListener("click", () => actions[name]());

joints.addEventListener("drive", ({ detail }) => {
  if (!state) return;
  settle();
  byHand();
  connection.send("drive", { states: detail });
  if (!state.playing && !held) { connection.send("play", { on: true, rate: rate() }); state.playing = true; }
});
joints.addEventListener("halt", () => { byHand(); connection.send("halt"); });

/** To drive ends a recorded motion; the server says nothing of it. */
function byHand() {
  if (!state) return;
  state.motion = null;
  byId("motions").value = "";
}

byId("speed").addEventListener("change", () => state?.playing && connection.send("play", { on: true, rate: rate() }));
byId("clips").addEventListener("change", event => open(event.target.value));
byId("open").addEventListener("click", () => open(byId("clips").value));
byId("motions").addEventListener("change", event => {
  settle();
  const clip = event.target.value;
  if (clip === "") return connection.send("motion", { clip: state.motion ?? 0, on: false });
  held = false;
  connection.send("motion", { clip: +clip, on: true });
  connection.send("play", { on: true, rate: rate() });
});

/** A person looks at kept frames: the clock stands still until they go on. */
function rest() {
  stopWatching();
  held = true;
  if (state.playing) { connection.send("play", { on: false }); state.playing = false; }
}

timeline.addEventListener("look", ({ detail }) => {
  rest();
  compare.stop();
  showFrame(detail);
});
timeline.addEventListener("go", ({ detail }) => { if (detail >= state.context - 1) go(detail); });
timeline.addEventListener("switch", ({ detail }) => { stopWatching(); compare.stop(); connection.send("switch", { branch: detail }); });
timeline.addEventListener("rename", ({ detail }) => connection.send("rename", detail));
timeline.addEventListener("misnamed", ({ detail }) => toast(`"${detail}" cannot be a name: letters, digits, spaces and .,()+- only, 40 at most.`, "error"));
timeline.addEventListener("drop", ({ detail }) => connection.send("drop", { branch: detail }));
timeline.addEventListener("beside", ({ detail }) => { connection.send("beside", { branches: detail }); showCompared(); });

// --- watch the recording ---

byId("watch").addEventListener("click", () => watching ? (stopWatching(), toSession()) : state && watch());

async function watch() {
  if (state?.playing) connection.send("play", { on: false });
  const mine = watching = {}, clip = welcome.clips.find(one => one.index === state.clip);
  byId("watch").setAttribute("aria-pressed", "true");
  for (let frame = 0; watching === mine && frame < clip.frames; frame++) {
    const kept = album.at(RECORDED, frame), next = new Promise(done => setTimeout(done, 1000 / welcome.fps));
    if (kept) showMoment(RECORDED, frame, kept);
    else look(RECORDED, frame);
    for (let waited = 0; watching === mine && asked?.branch === RECORDED && waited < 300; waited++) await new Promise(done => setTimeout(done, 10));
    await next;
  }
  if (watching === mine) { stopWatching(); toSession(); }
}

function stopWatching() {
  if (asked?.branch === RECORDED) asked = null;
  watching = false;
  byId("watch").setAttribute("aria-pressed", "false");
}

// --- choices, legend, colours ---

function showChoices({ overlays: all, twin }) {
  overlays = new Map(all.map(one => [one.id, one]));
  const choice = (type, id, value, label, available, why, change) => {
    const input = make("input", { type, name: type === "radio" ? "overlay" : null, id, value, disabled: !available });
    input.addEventListener("change", () => { chosenAt = performance.now(); change(input); });
    return make(`label.check${available ? "" : ".off"}`, {}, input, make("span", {}, titled(label), why ? make("small", {}, `: ${why}`) : null));
  };
  const none = overlays.has("none") ? [] : [{ id: "none", label: "Nothing", available: true, why: "" }];
  byId("overlays").replaceChildren(
    make("div", { role: "radiogroup", "aria-label": "Overlay" }, ...[...none, ...all].map(one => choice("radio", null, one.id, one.label, one.available, one.why, () => connection.send("overlay", { kind: one.id })))),
    choice("checkbox", "twin", null, "Live twin: physics under the same states", twin.available, twin.why, input => connection.send("twin", { on: input.checked })),
  );
}

/** What the server has, unless a person chose this very moment and the answer is on its way. */
function showChosen() {
  if (performance.now() - chosenAt < CHOOSING_MS) return;
  for (const input of byId("overlays").querySelectorAll("[name=overlay]")) input.checked = input.value === state.overlay;
  byId("twin").checked = state.twin;
}

function legend() {
  byId("keyboard").replaceChildren(...keys.legend());
  byId("gamepad").replaceChildren(...pads.legend());
}

/** Until the server has said where the session is, nothing can be done with it. */
function busy(on) {
  document.querySelector("main").setAttribute("aria-busy", String(on));
  if (!on) enable(true);
}

function enable(on) {
  for (const part of document.querySelectorAll("main button, main select, main input")) if (!part.closest("#overlays, #tree, #look")) part.disabled = !on;
}

const keys = new Keys(joints, actions), pads = new Gamepads(joints, actions, () => legend());
joints.addEventListener("limb", legend);
byId("show-keys").addEventListener("click", () => {
  showKeys(byId("keys").hidden);
  if (!byId("keys").hidden) byId("keys").scrollIntoView({ block: "nearest" });
});

function showKeys(on) {
  byId("keys").hidden = !on;
  byId("show-keys").setAttribute("aria-expanded", String(on));
}

showKeys(matchMedia("(min-width: 60.1rem) and (pointer: fine)").matches); // where there is a keyboard
theme(byId("theme"));
enable(false);
connection.open();
