// Dataset, log and settings: lists of text.
import { $, el, empty, show } from "./dom.js";
import { t } from "./words.js";

const LONGEST = 300; // rows of the log on the page

export async function drawDataset(run) {
  const box = $("panel-dataset"), told = await run.dataset();
  const sheets = Array.isArray(told.sheet.datasets) ? told.sheet.datasets : [];
  const parts = [];
  if (told.page) parts.push(el("p", {}, el("a", { class: "link", href: `api/runs/${run.number}/sheet`, target: "_blank", rel: "noopener" }, t("fullSheet"))));
  for (const sheet of sheets) {
    const pictures = (Array.isArray(sheet.pictures) ? sheet.pictures : []).filter(p => String(p.thumbnail ?? "").startsWith("data:image/"));
    const note = [t("picturesUsed")(sheet.used ?? 0, sheet.found ?? 0), pictures.length < sheet.used ? t("shownOf")(pictures.length, sheet.used) : "", ...(sheet.buckets ?? []).slice(0, 8).map(b => `${b[0]} × ${b[1]}`)].filter(Boolean);
    parts.push(el("header", { class: "set" }, el("h2", {}, String(sheet.id)), el("span", { class: "soft" }, note.join(" · "))));
    parts.push(el("div", { class: "sheet" }, ...pictures.map(p => el("figure", {}, el("img", { src: p.thumbnail, alt: "", loading: "lazy" }),
      el("figcaption", {}, el("p", {}, String(p.captions?.[0] ?? "")), el("small", {}, `${p.name} · ${p.size}`))))));
  }
  if (!parts.length) parts.push(empty(t("noDataset"), t("noDatasetWhy")));
  box.replaceChildren(...parts);
}

function sentence(event) {
  const data = event.data ?? {}, stage = event.stage ?? {};
  const words = [event.title, event.message].filter(Boolean);
  if (words.length) return words.join(": ");
  if (event.type === "lifecycle.stage") {
    const label = stage.label ?? stage.key ?? "";
    if (["training_complete", "training_abort"].includes(stage.key)) return label; // a sentence that says it all
    return stage.status === "running" ? `${label} …` : `${label}: ${stage.status ?? ""}`;
  }
  if (event.type === "training.checkpoint") return String(event.checkpoint?.label ?? event.checkpoint?.path ?? "");
  if (event.type === "validation.image") return `${data.nickname ?? ""} ${data.step_label ?? ""}`.trim();
  return [data.status, data.nickname, data.error].filter(Boolean).map(String).join(" ") || event.type || "";
}

function clock(event) {
  const moment = new Date(typeof event.timestamp === "string" ? event.timestamp : (event.time ?? NaN) * 1000);
  return Number.isNaN(moment.valueOf()) ? "" : moment.toLocaleTimeString("en-GB");
}

export function drawLog(run) {
  const box = $("lines"), wanted = $("log-filter").value.toLowerCase();
  const rows = run.events.filter(event => event.type !== "validation.image" && !event.stage?.progress).map(event => ({ time: clock(event), kind: String(event.type ?? ""), severity: String(event.severity ?? "info"), text: sentence(event) }));
  for (const line of run.skipped) rows.push({ time: "", kind: t("skipped"), severity: "warning", text: String(line.message) });
  const kept = rows.filter(row => !wanted || `${row.kind} ${row.text} ${row.severity}`.toLowerCase().includes(wanted)).slice(-LONGEST);
  if (!kept.length) { box.replaceChildren(empty(t("noLog"), t("noLogWhy"))); return; }
  const levels = new Set(["debug", "info", "warning", "error", "critical"]);
  box.replaceChildren(...kept.map(row => el("div", { class: `line ${levels.has(row.severity) ? row.severity : ""}` }, el("time", {}, row.time), el("span", { class: "kind" }, row.kind), el("span", { class: "text" }, row.text))));
  if ($("log-follow").checked) box.scrollTop = box.scrollHeight;
}

let configOf = null, config = null;
export async function drawSettings(run, anew) {
  if (anew || configOf !== run) { config = await run.config(); configOf = run; }
  const wanted = $("settings-filter").value.toLowerCase(), only = $("settings-changed").checked;
  const groups = config.groups.map(group => [group.title, group.rows.filter(([key, value, differs]) => (!only || differs) && (!wanted || `${key} ${value}`.toLowerCase().includes(wanted)))]);
  $("groups").replaceChildren(...groups.filter(([, rows]) => rows.length).map(([title, rows]) => el("article", { class: "card group" }, el("h2", {}, title),
    el("dl", {}, ...rows.map(([key, value, differs]) => el("div", { class: differs ? "differs" : "" }, el("dt", {}, key), el("dd", {}, value === "" || value === "null" ? "–" : value)))))));
}

export function listen(current) {
  $("log-filter").addEventListener("input", () => drawLog(current()));
  $("log-follow").addEventListener("change", () => drawLog(current()));
  $("settings-filter").addEventListener("input", () => drawSettings(current()));
  $("settings-changed").addEventListener("change", () => drawSettings(current()));
}
