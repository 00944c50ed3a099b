// Building elements. Text is always text: nothing here, or anywhere on this page, reads markup from data.
export const $ = id => document.getElementById(id);

export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name === "class") node.className = value;
    else if (name === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    else if (name === "aria" || name === "data") for (const [key, text] of Object.entries(value)) node.setAttribute(`${name}-${key}`, text);
    else node[name] = value;
  }
  node.append(...children.filter(child => child !== null && child !== undefined));
  return node;
}

export const show = (node, visible) => { node.hidden = !visible; };

export function figure(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  return Number(value.toPrecision(digits)).toLocaleString("en", { maximumSignificantDigits: digits, useGrouping: size >= 10000 });
}

export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60 ? `${s % 60} s` : ""}`.trim();
  const hours = Math.floor(s / 3600);
  return hours < 48 ? `${hours} h ${Math.floor(s % 3600 / 60)} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export const empty = (title, why) => el("div", { class: "empty" }, el("b", {}, title), el("p", {}, why));

let toastsNode;
export function toast(text) {
  toastsNode ??= $("toasts");
  const node = el("div", { class: "toast" }, text);
  toastsNode.append(node);
  setTimeout(() => node.remove(), 6000);
}

// An address of a picture of a run; the version makes a replaced picture another address.
export function fileUrl(run, path, version, width) {
  const address = `files/${run}/${path.split("/").map(encodeURIComponent).join("/")}`;
  const query = new URLSearchParams();
  if (version) query.set("v", version);
  if (width) query.set("w", width);
  return `${address}?${query}`;
}
