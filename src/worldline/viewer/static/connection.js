// The one place that knows the wire: version 1 of the protocol (viewer/protocol.py). It says hello, takes binary frames
// apart, tries again after a lost connection, and measures from slider to picture.

const VERSION = 1;
const AGAIN_MS = [500, 1000, 2000, 4000, 8000];
const LASTING = ["idle", "hello"];
const WAITING_DRIVES = 200;

/** Events: `link` (detail: open, lost or ended), and one for each message by its type, binary frames as `shown`. */
export class Connection extends EventTarget {
  constructor(path) {
    super();
    this.url = new URL(path, location.href);
    this.url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    this.tries = 0;
    addEventListener("pagehide", () => this.close());
    addEventListener("pageshow", event => event.persisted && this.open());
  }

  open() {
    clearTimeout(this.timer);
    this.ended = false;
    this.drives = 0;
    this.sent = new Map();
    const socket = this.socket = new WebSocket(this.url);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.send("hello", { version: VERSION });
    socket.onmessage = event => socket === this.socket && this.read(event.data);
    socket.onclose = event => socket === this.socket && this.lost(event);
  }

  close() {
    this.ended = true;
    this.send("bye");
    this.socket?.close();
  }

  /** Whether it was sent; while there is no connection, nothing is kept for later. */
  send(type, fields = {}) {
    if (this.socket?.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify({ type, ...fields }));
    if (type === "step" || (type === "play" && fields.on)) this.restart(); // until now nothing was to be seen
    if (type === "drive") {
      this.sent.set(++this.drives, performance.now());
      if (this.sent.size > WAITING_DRIVES) this.sent.delete(this.sent.keys().next().value);
    }
    return true;
  }

  /** What was driven while time stood still is waited for from now on. */
  restart() { for (const drive of this.sent.keys()) this.sent.set(drive, performance.now()); }

  tell(type, detail) { this.dispatchEvent(new CustomEvent(type, { detail })); }

  read(data) {
    if (typeof data !== "string") return this.tell("shown", this.shown(data));
    const message = JSON.parse(data);
    if (message.type === "welcome") {
      this.tries = 0;
      this.tell("link", { state: "open" });
    }
    this.tell(message.type === "error" ? "refused" : message.type, message);
  }

  /** Header and pictures of a binary frame; `since` is how long ago the newest drive that it obeys was sent, in ms. */
  shown(buffer) {
    const length = new DataView(buffer).getUint32(0), header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
    let at = 4 + length;
    const pictures = header.pictures.map(one => {
      const blob = new Blob([new Uint8Array(buffer, at, one.bytes)], { type: one.media });
      at += one.bytes;
      return { ...one, blob };
    });
    return { ...header, pictures, size: buffer.byteLength, since: header.looked ? null : this.obeyed(header.drive) };
  }

  obeyed(drive) {
    const at = this.sent.get(drive);
    for (const one of this.sent.keys()) if (one <= drive) this.sent.delete(one);
    return at === undefined ? null : performance.now() - at;
  }

  /** Try again by itself, except where that would bring the same end: after long silence, or another protocol. */
  lost({ code, reason }) {
    if (this.ended) return this.tell("link", { state: "ended", reason });
    if (LASTING.includes(reason)) return this.tell("link", { state: "ended", reason });
    const wait = AGAIN_MS[Math.min(this.tries++, AGAIN_MS.length - 1)];
    this.tell("link", { state: "lost", wait, code, reason });
    this.timer = setTimeout(() => this.open(), wait);
  }
}
