// Validation pictures: rows of prompts, columns of steps; one opens large beside the base model's.
import { $, el, empty, fileUrl, show } from "./dom.js";
import { t } from "./words.js";

let run = null, label = "", chosen = "ema"; // the weights that are exported, until somebody chooses others
let drawn = "", open = null, mode = "side";

const rowKey = shot => JSON.stringify([shot.nickname, shot.width, shot.height, shot.index]);
const BASE = -1; // the base model's column, before all steps
const stepWord = step => step === BASE ? t("base") : `${t("step")} ${step.toLocaleString("en")}`;

// Rows of pictures; of each step the weights that were asked for, or those there are.
export function rowsOf(pictures, wanted) {
  const rows = new Map();
  for (const shot of pictures) {
    const key = rowKey(shot);
    if (!rows.has(key)) rows.set(key, { key, nickname: shot.nickname, prompt: shot.prompt, width: shot.width, height: shot.height, index: shot.index, steps: new Map() });
    const row = rows.get(key), there = row.steps.get(shot.column);
    if (!there || shot.label === wanted) row.steps.set(shot.column, shot);
  }
  return [...rows.values()];
}
const columnsOf = rows => [...new Set(rows.flatMap(row => [...row.steps.keys()]))].sort((a, b) => a - b);

function image(shot, width) {
  const node = el("img", { loading: "lazy", decoding: "async", alt: `${shot.nickname}, ${stepWord(shot.column)}`, src: fileUrl(run.number, shot.path, shot.version, width) });
  if (Math.max(shot.width, shot.height) <= 256) node.className = "pixels";
  if (shot.width && shot.height) node.style.aspectRatio = `${shot.width} / ${shot.height}`;
  return node;
}

// Training pictures that a drawn one repeats, by what tells a picture.
function memorised() {
  const found = new Map(), started = run.pictures.some(p => p.step === 0 && p.label === ""); // step 0 is not the base model
  for (const s of run.scores) {
    const label = s.step === 0 && !s.label && !started ? "base" : s.label;
    if (s.memorised === true) found.set(JSON.stringify([s.nickname, s.width, s.height, s.index, s.step, label]), String(s.nearest ?? ""));
  }
  return found;
}

export function drawGallery(of, fresh) {
  if (of !== run) drawn = "";
  run = of;
  const labels = new Set(run.pictures.filter(p => p.column !== BASE).map(p => p.label));
  label = labels.has(chosen) ? chosen : "";
  show($("weights"), labels.size > 1);
  $("weights").replaceChildren(...["ema", ""].map(value => el("button", { aria: { pressed: value === label }, on: { click: () => { chosen = value; drawn = ""; drawGallery(run); } } }, value ? t("ema") : t("live"))));
  const rows = rowsOf(run.pictures, label), steps = columnsOf(rows);
  latest(rows, steps);
  if (open) refreshViewer();
  const signature = JSON.stringify([run.number, label, t("base"), run.scores.length, run.pictures.map(p => [p.path, p.version])]);
  if (signature === drawn) return;
  drawn = signature;
  const box = $("gallery");
  if (!rows.length) { box.replaceChildren(empty(t("noPicturesYet"), t("noPicturesWhy"))); return; }
  const atEnd = box.scrollLeft + box.clientWidth >= box.scrollWidth - 40 || fresh;
  const repeated = memorised();
  const several = new Set(rows.map(r => `${r.width}x${r.height}`)).size > 1 || rows.some(r => r.index > 0);
  const grid = el("div", { class: "grid", role: "table" });
  grid.style.setProperty("--columns", steps.length);
  grid.append(el("div", { class: "corner", role: "row" }), ...steps.map(step => el("div", { class: `column ${step === BASE ? "base" : ""}`, role: "columnheader" }, stepWord(step))));
  for (const row of rows) {
    const words = el("div", { class: "prompt", role: "rowheader" }, el("b", {}, row.nickname), el("p", {}, row.prompt && row.prompt !== row.nickname ? row.prompt : ""));
    if (several) words.append(el("small", {}, `${row.width}×${row.height}${row.index ? ` · ${row.index + 1}` : ""}`));
    grid.append(words);
    for (const step of steps) {
      const shot = row.steps.get(step), repeats = shot && repeated.get(JSON.stringify([shot.nickname, shot.width, shot.height, shot.index, shot.step, shot.label]));
      grid.append(shot ? el("button", { class: `shot ${step === BASE ? "base" : ""}`, on: { click: () => openViewer(row.key, step) }, aria: { label: `${row.nickname}, ${stepWord(step)}` } }, image(shot, 384), repeats === undefined ? null : el("span", { class: "flag" }, t("repeats")(repeats))) : el("div", { class: "shot none" }));
    }
  }
  box.replaceChildren(grid);
  if (atEnd) box.scrollLeft = box.scrollWidth;
}

// The newest picture of each prompt; pointing at one shows the base model's.
function latest(rows, steps) {
  const box = $("latest"), forming = new Map(run.brief.previews.map(p => [p.nickname, p]));
  const live = run.brief.previews.length > 0;
  $("latest-title").textContent = live ? t("forming") : t("latest");
  const last = steps.at(-1);
  $("latest-step").textContent = live ? "" : last === undefined ? "" : stepWord(last);
  const signature = JSON.stringify([run.number, label, rows.map(r => [...r.steps.values()].at(-1)?.path + [...r.steps.values()].at(-1)?.version), run.brief.previews, t("base")]);
  if (box.dataset.signature === signature) return;
  box.dataset.signature = signature;
  if (!rows.length && !live) { box.replaceChildren(empty(t("noPicturesYet"), t("noPicturesWhy"))); return; }
  const cells = rows.slice(0, 9).map(row => {
    const step = Math.max(...row.steps.keys()), shot = row.steps.get(step), base = row.steps.get(BASE), preview = forming.get(row.nickname);
    if (preview) { forming.delete(row.nickname); return formingCell(preview, "latest"); }
    const cell = el("button", { class: "shot peek", title: row.prompt || row.nickname, on: { click: () => openViewer(row.key, step) } }, image(shot, 384));
    if (base && base !== shot) { const before = image(base, 384); before.classList.add("before"); cell.append(before); }
    cell.append(el("span", { class: "name" }, row.nickname));
    return cell;
  });
  for (const preview of forming.values()) cells.unshift(formingCell(preview, "latest"));
  box.replaceChildren(...cells.slice(0, 9));
}

// A forming picture keeps its element, and its last state until the next one is loaded: no flicker.
const formingCells = new Map();
function formingCell(preview, place) {
  const key = JSON.stringify([place, run.number, preview.path]);
  if (!formingCells.has(key)) {
    if (formingCells.size > 200) formingCells.clear();
    const picture = el("img", { alt: preview.nickname }), name = el("span", { class: "name" }), bar = el("i", { class: "ring" });
    formingCells.set(key, { cell: el("div", { class: "shot forming-cell" }, picture, name, bar), picture, name, bar });
  }
  const { cell, picture, name, bar } = formingCells.get(key);
  const next = new Image();
  next.onload = () => { picture.src = next.src; };
  next.src = fileUrl(run.number, preview.path, preview.version);
  cell.title = preview.prompt || preview.nickname;
  name.textContent = preview.of ? `${preview.nickname} ${preview.sampler_step}/${preview.of}` : preview.nickname;
  bar.style.width = preview.of ? `${100 * preview.sampler_step / preview.of}%` : "0";
  return cell;
}

export function drawForming(of) {
  run = of;
  const list = run.brief.previews;
  show($("forming"), list.length > 0);
  $("forming").replaceChildren(el("h3", {}, t("forming")), el("div", { class: "strip" }, ...list.slice(-8).map(preview => formingCell(preview, "strip"))));
}

function openViewer(key, step) {
  open = { key, step };
  $("viewer").showModal();
  refreshViewer();
  $("viewer-slider").focus();
}

function refreshViewer() {
  const rows = rowsOf(run.pictures, label), at = Math.max(0, rows.findIndex(row => row.key === open.key)), row = rows[at];
  if (!row) { $("viewer").close(); return; }
  const steps = [...row.steps.keys()].sort((a, b) => a - b);
  const place = Math.max(0, steps.indexOf(open.step));
  const shot = row.steps.get(steps[place]), base = row.steps.get(BASE);
  $("viewer-name").textContent = row.nickname;
  $("viewer-prompt").textContent = row.prompt;
  const slider = $("viewer-slider");
  slider.max = steps.length - 1;
  slider.value = place;
  slider.disabled = steps.length < 2;
  $("viewer-step").textContent = `${stepWord(shot.column)}${shot.label === "ema" ? ` · ${t("ema")}` : ""} · ${shot.width}×${shot.height}`;
  $("view-side").setAttribute("aria-pressed", mode === "side");
  $("view-wipe").setAttribute("aria-pressed", mode === "wipe");
  const framed = (picture, caption) => el("figure", {}, image(picture), el("figcaption", {}, caption));
  const two = base && base !== shot;
  const stage = $("stage");
  stage.className = `stage ${two && mode === "wipe" ? "over" : two ? "two" : "one"}`;
  if (!two) stage.replaceChildren(framed(shot, stepWord(shot.column)));
  else if (mode === "side") stage.replaceChildren(framed(base, t("base")), framed(shot, stepWord(shot.column)));
  else stage.replaceChildren(wiped(base, shot));
}

function wiped(base, shot) {
  const top = image(base), box = el("div", { class: "wiped" }, image(shot), top, el("i", { class: "edge" }), el("span", { class: "tag left" }, t("base")), el("span", { class: "tag right" }, stepWord(shot.column)));
  top.classList.add("cover");
  const set = share => box.style.setProperty("--cut", `${Math.max(0, Math.min(100, share))}%`);
  set(50);
  const move = event => { const area = box.getBoundingClientRect(); set(100 * (event.clientX - area.left) / area.width); };
  box.addEventListener("pointermove", move);
  box.addEventListener("pointerdown", move);
  return box;
}

function turn(rowBy, stepBy) {
  const rows = rowsOf(run.pictures, label), at = rows.findIndex(row => row.key === open.key);
  const row = rows[(at + rowBy + rows.length) % rows.length], steps = [...row.steps.keys()].sort((a, b) => a - b);
  const place = steps.indexOf(open.step);
  open = { key: row.key, step: steps[Math.max(0, Math.min(steps.length - 1, (place < 0 ? steps.length - 1 : place) + stepBy))] };
  refreshViewer();
}

export function listen() {
  const viewer = $("viewer");
  viewer.addEventListener("close", () => { open = null; });
  viewer.addEventListener("click", event => { if (event.target === viewer) viewer.close(); });
  $("viewer-close").addEventListener("click", () => viewer.close());
  $("view-side").addEventListener("click", () => { mode = "side"; refreshViewer(); });
  $("view-wipe").addEventListener("click", () => { mode = "wipe"; refreshViewer(); });
  $("viewer-slider").addEventListener("input", event => {
    const row = rowsOf(run.pictures, label).find(r => r.key === open.key), steps = [...row.steps.keys()].sort((a, b) => a - b);
    open.step = steps[Number(event.target.value)];
    refreshViewer();
  });
  viewer.addEventListener("keydown", event => {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -1e9], End: [0, 1e9] };
    if (open && moves[event.key]) { event.preventDefault(); turn(...moves[event.key]); }
  });
  const size = () => document.documentElement.style.setProperty("--cell", `${$("cell").value}px`);
  $("cell").addEventListener("input", size);
  if (innerWidth < 600) $("cell").value = 110;
  size();
}
