// What the page knows of each run, kept up to date by increments. Figures stay in plain arrays.
const COLUMNS = ["step", "loss", "regularisation_loss", "grad_norm", "learning_rate", "speed", "time", ...[0, 1, 2, 3, 4].map(band => `band_${band}`)];
const RARE = ["evals", "scores", "system"];
const REFETCH = 26000; // points drawn before the server is asked for a thinner set

async function json(path) {
  const answer = await fetch(path, { credentials: "same-origin" });
  if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);
  return answer.json();
}

export class Run {
  constructor(brief) {
    this.number = brief.run;
    this.brief = brief;
    this.shown = true;
    this.forget();
    this.pictures = [];
    this.picturesStamp = null;
    this.events = [];
    this.skipped = [];
    this.seen = 0;
    this.version = 0; // rises with every change of figures
  }
  get name() { return this.brief.name; }
  get state() { return this.brief.state; }

  forget() {
    this.generation = -1;
    this.count = 0;
    this.columns = Object.fromEntries(COLUMNS.map(name => [name, []]));
    for (const name of RARE) this[name] = [];
  }

  // Fetches what the brief says is new; returns names of what has changed.
  async update(brief, wanted) {
    this.brief = brief;
    const changed = new Set();
    const behind = brief.generation !== this.generation || brief.steps !== this.count || RARE.some(n => brief.rare[n] !== this[n].length);
    if (behind) { await this.fetchSeries(); changed.add("figures"); }
    if (wanted && brief.pictures !== this.picturesStamp) {
      this.pictures = await json(`api/runs/${this.number}/pictures`);
      this.picturesStamp = brief.pictures;
      changed.add("pictures");
    }
    if (wanted && (brief.events !== this.seen || behind)) {
      const told = await json(`api/runs/${this.number}/events?since=${this.seen}`);
      this.events = told.anew ? told.events : [...this.events, ...told.events].slice(-5000);
      this.seen = told.seen;
      this.skipped = told.skipped;
      changed.add("events");
    }
    return changed;
  }

  async fetchSeries() {
    if (this.columns.step.length > REFETCH) this.forget();
    const known = new URLSearchParams({ since: this.count, generation: Math.max(0, this.generation) });
    for (const name of RARE) known.set(name, this[name].length);
    const told = await json(`api/runs/${this.number}/series?${known}`);
    if (told.begin === 0 || told.generation !== this.generation) { this.forget(); }
    this.generation = told.generation;
    for (const [name, values] of Object.entries(told.columns)) for (const v of values) this.columns[name].push(v);
    for (const name of RARE) this[name].push(...told[name]);
    this.count = told.count;
    this.version += 1;
  }

  config() { return json(`api/runs/${this.number}/config`); }
  dataset() { return json(`api/runs/${this.number}/dataset`); }

  async ask(what) {
    const answer = await fetch(`api/runs/${this.number}/control/${what}`, { method: "POST", credentials: "same-origin", headers: { "X-SimpleTuner": "1" } });
    if (!answer.ok) throw new Error((await answer.text()).trim());
  }
}

export const runs = () => json("api/runs");

// Calls back with each brief as it comes. Briefs are taken one after the other, only the newest of each run.
export function follow(onBrief, onState) {
  const source = new EventSource("api/stream");
  const waiting = new Map();
  let busy = false;
  const drain = async () => {
    if (busy) return;
    busy = true;
    while (waiting.size) {
      const [number, brief] = waiting.entries().next().value;
      waiting.delete(number);
      try { await onBrief(brief); } catch (error) { console.warn(String(error)); }
    }
    busy = false;
  };
  source.onopen = () => onState("open");
  source.onmessage = message => { const brief = JSON.parse(message.data); waiting.set(brief.run, brief); drain(); };
  source.onerror = () => onState("lost");
  source.addEventListener("end", () => { source.close(); onState("ended"); });
}

// Exponential mean without a bias towards 0; gaps are bridged (see reporting/series.py).
export function smoothed(values, keep) {
  const out = new Array(values.length);
  let mean = 0, weight = 0;
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    if (value !== null && value !== undefined) { mean = keep * mean + (1 - keep) * value; weight = keep * weight + 1 - keep; }
    out[i] = weight ? mean / weight : null;
  }
  return out;
}
