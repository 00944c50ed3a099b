// Curves: uPlot with the page's colours, one line under the pointer's words, redrawn when the theme changes.
import { el, figure } from "./dom.js";
import { t } from "./words.js";
/* global uPlot */

const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export const runColour = index => colour(`--run-${index % 6 + 1}`);
const faint = (hex, share) => hex + Math.round(255 * share).toString(16).padStart(2, "0");

function tip() {
  let box;
  return {
    hooks: {
      init: u => { box = el("div", { class: "tip" }); box.hidden = true; u.over.append(box); },
      setCursor: u => {
        const { idx, left, top } = u.cursor;
        if (idx === null || idx === undefined || left < 0) { box.hidden = true; return; }
        const rows = [];
        u.series.forEach((series, i) => {
          if (!i || series.quiet || !series.show) return;
          const value = nearest(u.data[i], idx);
          if (value === null) return;
          const dot = el("i");
          dot.style.background = series.dot;
          rows.push(el("div", {}, dot, el("span", {}, series.label), el("b", {}, figure(value))));
        });
        box.replaceChildren(el("div", { class: "tip-head" }, `${t("step")} ${u.data[0][idx]}`), ...rows);
        box.hidden = rows.length === 0;
        const right = left > u.over.clientWidth / 2;
        box.style.left = right ? "" : `${left + 14}px`;
        box.style.right = right ? `${u.over.clientWidth - left + 14}px` : "";
        box.style.top = `${Math.max(0, Math.min(top - 20, u.over.clientHeight - box.offsetHeight - 4))}px`;
      },
    },
  };
}

function nearest(values, index) {
  if (values[index] !== null && values[index] !== undefined) return values[index];
  for (let d = 1; d < 400; d++) {
    const before = values[index - d], after = values[index + d];
    if (before !== null && before !== undefined) return before;
    if (after !== null && after !== undefined) return after;
  }
  return null;
}

// Values of the axis: short.
const ticks = (u, values) => values.map(v => v === null ? "" : figure(v, 3));
const stepTicks = (u, values) => values.map(v => Number.isInteger(v) ? v.toLocaleString("en") : "");

export class Chart {
  // lines: [{label, xs, ys, colour, faint, width, dash, points, quiet, star: {x, y, text}, shadeFrom}]
  constructor(card) {
    this.box = card.querySelector(".plot");
    this.keyBox = el("div", { class: "legend" });
    card.querySelector("header").after(this.keyBox);
    this.key = "";
    this.lines = [];
    new ResizeObserver(() => this.resize()).observe(this.box);
  }

  resize() {
    if (this.plot && this.box.clientWidth) this.plot.setSize({ width: this.box.clientWidth, height: this.height() });
    else if (!this.plot && this.box.clientWidth) this.draw(this.lines, this.options ?? {});
  }
  height() { return Math.max(120, this.box.clientHeight - 2); }

  // Names beside colours, where there are several.
  legend() {
    const named = this.lines.filter(line => !line.quiet);
    this.keyBox.hidden = named.length < 2;
    this.keyBox.replaceChildren(...(named.length < 2 ? [] : named.map(line => {
      const dash = el("i", { class: line.dash ? "dashed" : "" });
      dash.style.color = line.faint ? faint(line.colour, Math.max(0.45, line.faint)) : line.colour;
      return el("span", {}, dash, line.label);
    })));
  }

  draw(lines, options = {}) {
    this.lines = lines = lines.filter(line => line.xs.length);
    this.legend();
    this.options = options;
    if (!this.box.clientWidth) return;
    if (!lines.length) {
      this.plot?.destroy();
      this.plot = null; this.key = "";
      this.box.replaceChildren(el("div", { class: "nothing" }, t(options.over ? "neverFigures" : "noFigures")));
      return;
    }
    const same = lines.every(line => line.xs === lines[0].xs);
    const data = same ? [lines[0].xs, ...lines.map(line => line.ys)] : uPlot.join(lines.map(line => [line.xs, line.ys]));
    const key = JSON.stringify([lines.map(l => [l.label, l.colour, l.faint, l.dash, l.width, l.points, l.quiet]), options.log, colour("--ink")]);
    this.marks = lines.filter(line => line.star).map(line => line.star);
    this.shade = lines.find(line => line.shadeFrom !== undefined)?.shadeFrom;
    if (this.plot && key === this.key) {
      const zoomed = this.zoomed;
      this.plot.setData(data, !zoomed);
      if (zoomed) this.plot.redraw();
      return;
    }
    this.plot?.destroy();
    this.box.replaceChildren();
    this.key = key;
    this.plot = new uPlot(this.settings(lines, options), data, this.box);
  }

  settings(lines, options) {
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    return {
      width: this.box.clientWidth, height: this.height(), plugins: [tip()],
      legend: { show: false },
      padding: [12, 10, 0, 0],
      cursor: { y: false, drag: { x: true, y: false, dist: 6 }, points: { size: 6 }, sync: { key: "steps", setSeries: false } },
      scales: { x: { time: false, range: (u, min, max) => u.data[0].length === 1 ? [u.data[0][0], u.data[0][0] + 1] : [min, max] }, y: { distr: options.log ? 3 : 1, range: options.log ? undefined : options.range } },
      hooks: {
        setScale: [(u, name) => { if (name === "x") this.zoomed = u.data[0].length > 1 && (u.scales.x.min > u.data[0][0] || u.scales.x.max < u.data[0].at(-1)); }],
        drawClear: [u => this.drawShade(u)],
        draw: [u => this.drawMarks(u)],
      },
      axes: [{ ...axis, size: 30, space: 70, values: stepTicks }, { ...axis, size: 52, gap: 6, values: ticks }],
      series: [{}, ...lines.map(line => ({
        label: line.label, quiet: line.quiet, dot: line.colour,
        stroke: line.faint ? faint(line.colour, line.faint) : line.colour, width: line.width ?? 2, dash: line.dash, spanGaps: true,
        points: { show: Boolean(line.points) || line.xs.length < 2, size: 6, fill: line.colour, stroke: colour("--card"), width: 1 },
      }))],
    };
  }

  drawShade(u) {
    if (this.shade === undefined) return;
    const left = Math.max(u.bbox.left, u.valToPos(this.shade, "x", true));
    u.ctx.save();
    u.ctx.fillStyle = faint(colour("--warn"), 0.1);
    u.ctx.fillRect(left, u.bbox.top, u.bbox.left + u.bbox.width - left, u.bbox.height);
    u.ctx.restore();
  }

  drawMarks(u) {
    const ratio = devicePixelRatio || 1;
    for (const mark of this.marks) {
      const x = u.valToPos(mark.x, "x", true), y = u.valToPos(mark.y, "y", true);
      if (x < u.bbox.left || x > u.bbox.left + u.bbox.width) continue;
      u.ctx.save();
      u.ctx.setLineDash([]);
      u.ctx.beginPath();
      u.ctx.arc(x, y, 6 * ratio, 0, 2 * Math.PI);
      u.ctx.lineWidth = 2 * ratio;
      u.ctx.strokeStyle = mark.colour;
      u.ctx.fillStyle = colour("--card");
      u.ctx.fill();
      u.ctx.stroke();
      u.ctx.fillStyle = colour("--ink");
      u.ctx.font = `600 ${11 * ratio}px system-ui, sans-serif`;
      const end = x > u.bbox.left + u.bbox.width * 0.7;
      u.ctx.textAlign = end ? "right" : "left";
      u.ctx.fillText(mark.text, x + (end ? -11 : 11) * ratio, y - 7 * ratio);
      u.ctx.restore();
    }
  }
}
