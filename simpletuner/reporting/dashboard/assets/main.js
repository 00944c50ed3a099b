// Joins everything: runs, tabs, buttons, the stream of changes.
import { runColour } from "./charts.js";
import { $, duration, el, show, toast } from "./dom.js";
import { drawFigures, listen as listenFigures } from "./figures.js";
import { drawForming, drawGallery, listen as listenGallery } from "./gallery.js";
import { drawDataset, drawLog, drawSettings, listen as listenPanels } from "./panels.js";
import { follow, Run, runs as listRuns } from "./store.js";
import { fill, language, nextLanguage, t } from "./words.js";

const TABS = ["overview", "pictures", "dataset", "log", "settings"];
const state = { runs: [], focus: null, tab: "overview" };
history.replaceState(null, "", location.pathname + location.hash); // the token is in the cookie now

function drawHead() {
  const { focus } = state, s = focus.state;
  $("run-name").textContent = focus.name;
  document.title = s.total ? `${Math.floor(100 * Math.min(1, s.step / s.total))} % · ${focus.name}` : focus.name;
  const pill = $("status");
  const known = t("status")[s.status] ?? t("status").unknown;
  pill.className = `pill ${t("status")[s.status] ? s.status : "unknown"}`;
  pill.textContent = known;
  const why = s.status === "died" ? t("diedWhy") : s.message || "";
  pill.title = $("why").textContent = why;
  show($("why"), why !== "");
  const words = [s.total ? t("stepOf")(s.step.toLocaleString("en"), s.total.toLocaleString("en")) : t("stepAlone")(s.step)];
  if (s.stage?.label) words.push(s.stage.label);
  if (s.eta_s !== null) words.push(t("left")(duration(s.eta_s)));
  $("progress-text").textContent = words.join(" · ");
  const share = s.total ? 100 * Math.min(1, s.step / s.total) : 0;
  $("progress").setAttribute("aria-valuenow", Math.round(share));
  $("progress").firstElementChild.style.width = `${share}%`;
  for (const what of ["save", "validate", "stop"]) $(`act-${what}`).disabled = s.status !== "running";
  drawRuns();
}

function drawRuns() {
  const box = $("runs");
  show(box, state.runs.length > 1);
  const signature = JSON.stringify([state.runs.map(r => [r.name, r.state.status, r.shown]), state.focus.number, language(), runColour(0)]);
  if (box.dataset.signature === signature) return;
  box.dataset.signature = signature;
  box.replaceChildren(...state.runs.map(run => {
    const dot = el("i", { class: `dot ${run.state.status}` });
    dot.style.background = runColour(run.number);
    const tick = el("input", { type: "checkbox", checked: run.shown, title: t("compareRuns"), aria: { label: `${t("compareRuns")}: ${run.name}` }, on: { change: event => { run.shown = event.target.checked; redraw(); } } });
    return el("span", { class: `chip ${run === state.focus ? "on" : ""}` }, tick, el("button", { on: { click: () => choose(run) }, aria: { pressed: run === state.focus } }, dot, run.name));
  }));
}

async function choose(run) {
  state.focus = run;
  await run.update(run.brief, true);
  redraw(true);
}

let waiting = 0;
function drawSoon() { // at most once a frame, however many changes come
  if (!waiting) waiting = requestAnimationFrame(() => { waiting = 0; drawHead(); if (state.tab === "overview") drawFigures(state.runs, state.focus); });
}

function redraw(anew = false) {
  const { focus, tab } = state;
  drawHead();
  if (tab === "overview") drawFigures(state.runs, focus);
  drawGallery(focus, anew);
  drawForming(focus);
  if (tab === "dataset") drawDataset(focus);
  if (tab === "log") drawLog(focus);
  if (tab === "settings") drawSettings(focus, anew);
}

function openTab(name, focusIt = false) {
  state.tab = TABS.includes(name) ? name : "overview";
  for (const tab of TABS) {
    const chosen = tab === state.tab;
    show($(`panel-${tab}`), chosen);
    $(`tab-${tab}`).setAttribute("aria-selected", chosen);
    $(`tab-${tab}`).tabIndex = chosen ? 0 : -1;
    if (chosen && focusIt) $(`tab-${tab}`).focus();
  }
  if (location.hash.slice(1) !== state.tab) history.replaceState(null, "", `#${state.tab}`);
  if (state.focus) redraw(true);
}

async function taken(brief) {
  let run = state.runs.find(r => r.number === brief.run);
  if (!run) {
    run = new Run(brief);
    state.runs.push(run);
    state.runs.sort((a, b) => a.number - b.number);
    state.focus ??= run;
  }
  const changed = await run.update(brief, run === state.focus);
  drawSoon();
  if (run !== state.focus) return;
  drawGallery(run);
  drawForming(run);
  if (changed.has("events") && state.tab === "log") drawLog(run);
}

function notice(text) {
  $("notice").textContent = text;
  show($("notice"), Boolean(text));
}

function buttons() {
  for (const what of ["save", "validate", "stop"]) {
    $(`act-${what}`).addEventListener("click", async () => {
      if (what === "stop" && !confirm(t("stopSure"))) return;
      try { await state.focus.ask(what); toast(t("asked")[what]); } catch (error) { toast(t("refused")(error.message)); }
    });
  }
  $("theme").addEventListener("click", () => {
    const root = document.documentElement, dark = (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
    root.dataset.theme = dark ? "light" : "dark";
    localStorage.setItem("theme", root.dataset.theme);
    redraw();
  });
  $("language").addEventListener("click", () => { nextLanguage(); words(); redraw(true); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());
  $("tabs").addEventListener("click", event => { const tab = event.target.closest("[role=tab]"); if (tab) openTab(tab.id.slice(4)); });
  $("tabs").addEventListener("keydown", event => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by) openTab(TABS[(TABS.indexOf(state.tab) + by + TABS.length) % TABS.length], true);
  });
  addEventListener("hashchange", () => openTab(location.hash.slice(1)));
}

function words() {
  fill();
  $("language").textContent = language() === "en" ? "ES" : "EN";
}

words();
buttons();
listenFigures(() => redraw());
listenGallery();
listenPanels(() => state.focus);
openTab(location.hash.slice(1));
for (const brief of await listRuns()) await taken(brief);
redraw(true);
follow(taken, s => notice(s === "open" ? "" : s === "ended" ? t("ended") : t("gone")));
