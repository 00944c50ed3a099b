// Which curves there are, from what the runs told.
import { Chart, runColour } from "./charts.js";
import { $, duration, el, figure, show } from "./dom.js";
import { smoothed } from "./store.js";
import { t } from "./words.js";

const charts = new Map();
const chart = (id, card = $(`card-${id}`)) => {
  if (!charts.has(id)) charts.set(id, new Chart(card));
  return charts.get(id);
};
const settings = { keep: 0.9, log: false };
const number = value => typeof value === "number" ? value : null;
const band = index => getComputedStyle(document.documentElement).getPropertyValue(`--band-${index + 1}`).trim();
const SIGMAS = [0.1, 0.3, 0.5, 0.7, 0.9]; // of the held-out loss where the line does not say

const heldOut = run => run.evals.filter(e => e.kind === "eval" && number(e.loss) !== null);
// What the run itself found (training/held_out.py): the step from which it learns by heart, or null.
const overfitsFrom = run => number(heldOut(run).at(-1)?.overfitting?.low);
const isLowest = (run, line) => heldOut(run).every(e => e === line || e.step === 0 || e.loss > line.loss);

function titled(runs, run, text) { return runs.length > 1 ? (text ? `${run.name} · ${text}` : run.name) : text; }

function lossLines(runs) {
  const raw = [], smooth = [], kept = [];
  for (const run of runs) {
    const { step, loss, regularisation_loss: regularisation } = run.columns, colour = runColour(run.number);
    raw.push({ label: titled(runs, run, t("raw")), xs: step, ys: loss, colour, faint: 0.3, width: 1, quiet: runs.length > 1 });
    smooth.push({ label: runs.length > 1 ? run.name : t("smooth"), xs: step, ys: smoothed(loss, settings.keep), colour, width: 2.25 });
    if (regularisation.some(v => v !== null)) kept.push({ label: titled(runs, run, t("regularisation")), xs: step, ys: smoothed(regularisation, settings.keep), colour: runs.length > 1 ? colour : runColour(run.number + 1), dash: [5, 5], width: 1.5 });
  }
  return [...raw, ...kept, ...smooth];
}

// A few wild steps at the start must not press the rest flat.
function lossRange(runs) {
  const columns = runs.flatMap(run => [run.columns.loss, run.columns.regularisation_loss]);
  const seen = columns.flatMap(values => values.length > 4000 ? values.filter((_, i) => i % 7 === 0) : values).filter(v => v !== null).sort((a, b) => a - b);
  if (seen.length < 50) return undefined;
  const top = seen[Math.floor(seen.length * 0.995)], low = seen[0];
  return (u, min, max) => {
    const high = Math.min(max, top * 1.25), pad = (high - Math.max(min, low)) * 0.06;
    return [Math.max(0, Math.min(min, high) - pad), high + pad];
  };
}

function heldOutLines(runs) {
  const lines = [];
  for (const run of runs) {
    const colour = runColour(run.number), own = heldOut(run), live = run.evals.filter(e => e.kind === "eval_live");
    const names = runs.length > 1 ? [] : Object.keys(own.at(-1)?.by_dataset ?? {});
    names.forEach((name, i) => lines.push({ label: name, xs: own.map(e => e.step), ys: own.map(e => number(e.by_dataset?.[name])), colour: runColour(run.number + 1 + i), width: 1.25, dash: [2, 3] }));
    const line = { label: runs.length > 1 ? run.name : live.length ? t("ema") : t("heldOut"), xs: own.map(e => e.step), ys: own.map(e => number(e.loss)), colour, points: own.length < 60 };
    const best = run.state.best, from = overfitsFrom(run);
    if (best) line.star = { x: best.step, y: best.held_out_loss, text: `${t("best")} ${figure(best.held_out_loss)}`, colour };
    if (from !== null && runs.length === 1) line.shadeFrom = from;
    lines.push(line);
    if (live.length) lines.push({ label: titled(runs, run, t("live")), xs: live.map(e => e.step), ys: live.map(e => number(e.loss)), colour, faint: 0.7, dash: [5, 5], width: 1.5 });
  }
  return lines;
}

function bandLines(run) {
  const evals = heldOut(run).filter(e => Array.isArray(e.by_sigma));
  if (!evals.length) return [];
  const sigmas = Array.isArray(evals[0].sigmas) ? evals[0].sigmas : SIGMAS;
  const xs = evals.map(e => e.step), count = evals[0].by_sigma.length;
  const some = count <= 5 ? [...Array(count).keys()] : [0, 1, 2, 3, 4].map(i => Math.round(i * (count - 1) / 4));
  return some.map((i, place) => ({
    label: t("sigma")(figure(sigmas[i] ?? i + 1, 2)), xs, ys: evals.map(e => number(e.by_sigma[i])), colour: band(place), points: xs.length < 60,
  }));
}

// One step has few pictures in each band: only their mean over many steps tells something.
function trainingBandLines(run) {
  return [0, 1, 2, 3, 4].map(i => [i, run.columns[`band_${i}`]]).filter(([, ys]) => ys.some(v => v !== null)).map(([i, ys]) => ({
    label: t("sigma")(`${(i / 5).toFixed(1)}–${((i + 1) / 5).toFixed(1)}`), xs: run.columns.step, ys: smoothed(ys, Math.max(0.95, settings.keep)), colour: band(i), width: 1.75,
  }));
}

const column = (runs, name) => runs.map(run => ({ label: titled(runs, run, "") || t("step"), xs: run.columns.step, ys: run.columns[name], colour: runColour(run.number), width: 1.5 }))
  .filter(line => line.ys.some(v => v !== null));

const memoryOf = line => number(line.gpu_memory_reserved_gib) ?? number(line.gpu_memory_allocated_gib);
const system = (runs, value) => runs.map(run => {
  const points = run.system.map(line => [line.step, value(line)]).filter(pair => pair[1] !== null);
  return { label: titled(runs, run, "") || t("step"), xs: points.map(p => p[0]), ys: points.map(p => p[1]), colour: runColour(run.number) };
});

function scores(runs) {
  for (const card of $("scores").children) card.querySelector("h2").textContent = t("scoreNames")[card.dataset.score] ?? card.dataset.score;
  const names = [...new Set(runs.flatMap(run => run.scores.map(s => String(s.name ?? ""))))].filter(Boolean).slice(0, 24);
  for (const name of names) {
    const id = `score-${name}`;
    if (!charts.has(id)) {
      const card = el("article", { class: "card", data: { score: name } }, el("header", {}, el("h2", {}, t("scoreNames")[name] ?? name)), el("div", { class: "plot" }));
      $("scores").append(card);
      chart(id, card);
    }
    const lines = [];
    for (const run of runs) {
      const all = run.scores.filter(s => s.name === name && number(s.value) !== null && s.nickname && s.label !== "base"); // no nickname: a mean
      const averaged = new Set(all.filter(s => s.label === "ema").map(s => s.step)), byStep = new Map();
      for (const s of all.filter(s => !averaged.has(s.step) || s.label === "ema")) byStep.set(s.step, [...(byStep.get(s.step) ?? []), s.value]);
      const xs = [...byStep.keys()].sort((a, b) => a - b), colour = runColour(run.number);
      const of = act => xs.map(x => act(byStep.get(x)));
      if (runs.length === 1 && [...byStep.values()].some(v => v.length > 1)) {
        lines.push({ label: t("highest"), xs, ys: of(v => Math.max(...v)), colour, faint: 0.45, width: 1, dash: [4, 4] });
        lines.push({ label: t("lowest"), xs, ys: of(v => Math.min(...v)), colour, faint: 0.45, width: 1, dash: [4, 4] });
      }
      lines.push({ label: titled(runs, run, t("mean")), xs, ys: of(v => v.reduce((a, b) => a + b, 0) / v.length), colour, points: xs.length < 60 });
    }
    chart(id).draw(lines);
  }
}

export function drawFigures(all, focus) {
  const runs = all.filter(run => run.shown || run === focus);
  const over = runs.every(run => run.state.status !== "running"); // then no figure is still to come
  chart("loss").draw(lossLines(runs), { log: settings.log, range: settings.log ? undefined : lossRange(runs), over });
  chart("heldout").draw(heldOutLines(runs), { over });
  chart("bands").draw(bandLines(focus), { over });
  chart("trainbands").draw(trainingBandLines(focus), { over });
  for (const name of ["learning_rate", "grad_norm", "speed"]) chart(name).draw(column(runs, name), { over });
  for (const [id, value] of [["memory", memoryOf], ["utilisation", line => number(line.gpu_utilisation_percent)]]) {
    const lines = system(runs, value), there = lines.some(line => line.xs.length);
    show($(`card-${id}`), there);
    if (there) chart(id).draw(lines);
  }
  scores(runs);
  const badge = $("verdict"), from = overfitsFrom(focus), own = heldOut(focus).filter(e => e.step > 0);
  const improving = own.length > 1 && isLowest(focus, own.at(-1));
  show(badge, from !== null || improving);
  badge.className = `badge ${from !== null ? "warn" : "good"}`;
  badge.textContent = from !== null ? t("overfit")(from) : t("improving");
  tiles(focus);
}

function tiles(run) {
  const state = run.state, best = state.best, first = heldOut(run)[0];
  const memory = run.system.length ? memoryOf(run.system.at(-1)) : null;
  const list = [
    [t("lossTile"), figure(state.loss), t("smoothedNote"), "strong"],
    [t("heldOutTile"), figure(state.held_out), best ? t("bestNote")(figure(best.held_out_loss), best.step) : first && number(first.zero_predictor) !== null ? t("zeroNote")(figure(first.zero_predictor, 3)) : ""],
    [t("lrTile"), figure(state.learning_rate, 3), ""],
    [t("gradTile"), figure(state.grad_norm, 3), ""],
    [t("speedTile"), figure(state.speed, 3), ""],
    memory !== null ? [t("memoryTile"), t("mb")(figure(memory, 3)), ""] : [t("elapsedTile"), state.elapsed_s === null ? "–" : duration(state.elapsed_s), ""],
  ];
  $("tiles").replaceChildren(...list.map(([name, value, note, kind]) => el("div", { class: `tile ${kind ?? ""}` }, el("span", {}, name), el("b", {}, value), el("small", {}, note))));
}

export function listen(redraw) {
  $("smoothing").addEventListener("input", event => { settings.keep = event.target.value / 100; redraw(); });
  $("log-scale").addEventListener("change", event => { settings.log = event.target.checked; redraw(); });
}
