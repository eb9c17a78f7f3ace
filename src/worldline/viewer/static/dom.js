// The few lines of a framework that this page needs.

export const byId = id => document.getElementById(id);

/** An element: `make("button.small", { type: "button" }, "Text", child)`. Attributes that are null or false are left out. */
export function make(what, attributes = {}, ...children) {
  const [tag, ...classes] = what.split(".");
  const part = document.createElement(tag);
  if (classes.length) part.className = classes.join(" ");
  for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== false) part.setAttribute(name, value === true ? "" : value);
  part.append(...children.filter(child => child !== null));
  return part;
}

/** The same of an SVG. */
export function draw(tag, attributes = {}, ...children) {
  const part = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) part.setAttribute(name, value);
  part.append(...children);
  return part;
}

/** Options of a select, in place of those it has; the chosen value stays if it is still there. */
export function choices(select, options) {
  const before = select.value;
  select.replaceChildren(...options.map(([value, label, off]) => make("option", { value, disabled: off ?? false }, label)));
  if (options.some(([value]) => String(value) === before)) select.value = before;
}

/** A number as people write it: as many digits as tell a joint's range apart. */
export const number = (value, range = 1) => value.toFixed(range >= 200 ? 0 : range >= 20 ? 1 : 2).replace("-", "\u2212");
export const titled = text => text.charAt(0).toUpperCase() + text.slice(1);
export const seconds = (frames, fps) => `${(frames / fps).toFixed(2)} s`;
export const typing = target => target instanceof Element && target.matches("input:not([type=range], [type=checkbox], [type=radio]), select, textarea");
