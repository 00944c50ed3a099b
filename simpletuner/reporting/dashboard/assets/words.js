// Every word of the page, in one place. A function takes what stands in the sentence.
const en = {
  skip: "Skip to content", overview: "Overview", pictures: "Pictures", dataset: "Dataset", log: "Log", settings: "Settings",
  save: "Save now", validate: "Validate now", stop: "Stop", language: "Language", theme: "Light or dark",
  loss: "Training loss", smoothing: "Smoothing", logScale: "Log scale", zoomHint: "Drag to zoom, double-click to see all.",
  heldOut: "Held-out loss", bands: "Held-out loss by noise level", trainBands: "Training loss by noise level", learningRate: "Learning rate", gradNorm: "Gradient norm",
  speed: "Pictures per second", memory: "GPU memory, GiB", utilisation: "GPU utilisation, %", latest: "Latest pictures", forming: "Drawing now",
  hoverHint: "Point at a picture to see what the base model drew. Click to compare.", base: "base model", size: "Size",
  weights: "Weights", live: "Live weights", ema: "EMA weights", sideBySide: "Side by side", wipe: "Slide over", close: "Close",
  comparison: "How to compare", steps: "Steps", keys: "← → steps   ↑ ↓ prompts", filter: "Filter…", follow: "Follow",
  onlyChanged: "Only what differs from the defaults", best: "best", noPicturesYet: "No validation pictures yet",
  noPicturesWhy: "They appear here as soon as the first ones are drawn.", noLog: "No events yet",
  noLogWhy: "What happens in the run is listed here.", noDataset: "No sheet of the training pictures",
  noDatasetWhy: "A run writes one at its start; simpletuner check writes a page with every picture and its crop.",
  noFigures: "No figures yet", neverFigures: "This run has no such figures", fullSheet: "Page of simpletuner check, with every picture and its crop",
  raw: "each step", smooth: "smoothed", regularisation: "regularisation, smoothed", step: "step", noPrompt: "no prompt", gone: "The page has lost its server. It keeps trying.",
  ended: "The server was closed. What is shown stays.", stopSure: "Stop after the next checkpoint?",
  lossTile: "Loss", heldOutTile: "Held-out loss", lrTile: "Learning rate", gradTile: "Gradient norm", speedTile: "Pictures/s",
  memoryTile: "GPU memory", elapsedTile: "Time trained", smoothedNote: "smoothed", bestNote: (v, s) => `best ${v} at step ${s}`,
  zeroNote: v => `nothing learned: ${v}`, stepOf: (s, n) => `step ${s} of ${n}`, stepAlone: s => `step ${s}`,
  left: t => `${t} left`, overfit: s => `learns by heart since step ${s}`, improving: "lowest so far",
  asked: { save: "Asked. It saves at the end of this step.", validate: "Asked. It draws at the end of this step.",
    stop: "Asked. It saves a checkpoint and stops." }, refused: w => `The run did not take it: ${w}`,
  status: { running: "running", finished: "finished", failed: "failed", interrupted: "stopped", died: "died", unknown: "not running" },
  diedWhy: "Its process is gone without a word. The last checkpoint is whole: the same command goes on from there.",
  sigma: s => `σ ${s}`, picturesUsed: (u, f) => u === f ? `${u} pictures` : `${u} of ${f} pictures used`,
  shownOf: (a, b) => `${a} of ${b} shown`, mean: "mean", lowest: "lowest", highest: "highest", mb: v => `${v} GiB`,
  scoreNames: { clip: "CLIP score, 0 to 100", palette: "Share of the training pictures' palette", colour_distance: "Colour distance to the training pictures",
    nearest_distance: "Distance to the nearest training picture" }, repeats: name => `repeats ${name}`,
  skipped: "skipped step", compareRuns: "Runs on the curves",
};
const es = {
  skip: "Ir al contenido", overview: "Resumen", pictures: "Imágenes", dataset: "Datos", log: "Registro", settings: "Ajustes",
  save: "Guardar ahora", validate: "Validar ahora", stop: "Parar", language: "Idioma", theme: "Claro u oscuro",
  loss: "Pérdida de entrenamiento", smoothing: "Suavizado", logScale: "Escala log", zoomHint: "Arrastre para ampliar, doble clic para verlo todo.",
  heldOut: "Pérdida en datos apartados", bands: "Pérdida apartada por nivel de ruido", trainBands: "Entrenamiento por nivel de ruido", learningRate: "Tasa de aprendizaje", gradNorm: "Norma del gradiente",
  speed: "Imágenes por segundo", memory: "Memoria de la GPU, GiB", utilisation: "Uso de la GPU, %", latest: "Últimas imágenes", forming: "Dibujando ahora",
  hoverHint: "Apunte a una imagen para ver la del modelo base. Clic para comparar.", base: "modelo base", size: "Tamaño",
  weights: "Pesos", live: "Pesos en curso", ema: "Pesos EMA", sideBySide: "Lado a lado", wipe: "Cortina", close: "Cerrar",
  comparison: "Cómo comparar", steps: "Pasos", keys: "← → pasos   ↑ ↓ prompts", filter: "Filtrar…", follow: "Seguir",
  onlyChanged: "Solo lo distinto de los valores por defecto", best: "mejor", noPicturesYet: "Aún no hay imágenes de validación",
  noPicturesWhy: "Aparecerán aquí en cuanto se dibujen las primeras.", noLog: "Aún no hay eventos",
  noLogWhy: "Aquí se lista lo que ocurre en el entrenamiento.", noDataset: "No hay hoja de las imágenes de entrenamiento",
  noDatasetWhy: "El entrenamiento la escribe al empezar; simpletuner check escribe una página con cada imagen y su recorte.",
  noFigures: "Aún no hay cifras", neverFigures: "Este entrenamiento no tiene estas cifras", fullSheet: "Página de simpletuner check, con cada imagen y su recorte",
  raw: "cada paso", smooth: "suavizada", regularisation: "regularización, suavizada", step: "paso", noPrompt: "sin prompt", gone: "La página ha perdido su servidor. Sigue intentándolo.",
  ended: "El servidor se cerró. Lo que se ve permanece.", stopSure: "¿Parar tras el próximo checkpoint?",
  lossTile: "Pérdida", heldOutTile: "Pérdida apartada", lrTile: "Tasa de aprendizaje", gradTile: "Norma del gradiente", speedTile: "Imágenes/s",
  memoryTile: "Memoria de la GPU", elapsedTile: "Tiempo entrenado", smoothedNote: "suavizada", bestNote: (v, s) => `la mejor ${v} en el paso ${s}`,
  zeroNote: v => `sin aprender: ${v}`, stepOf: (s, n) => `paso ${s} de ${n}`, stepAlone: s => `paso ${s}`,
  left: t => `quedan ${t}`, overfit: s => `memoriza desde el paso ${s}`, improving: "la más baja hasta ahora",
  asked: { save: "Pedido. Guarda al final de este paso.", validate: "Pedido. Dibuja al final de este paso.",
    stop: "Pedido. Guarda un checkpoint y para." }, refused: w => `El entrenamiento no lo aceptó: ${w}`,
  status: { running: "en marcha", finished: "terminado", failed: "falló", interrupted: "parado", died: "murió", unknown: "no está en marcha" },
  diedWhy: "Su proceso desapareció sin aviso. El último checkpoint está entero: la misma orden sigue desde ahí.",
  sigma: s => `σ ${s}`, picturesUsed: (u, f) => u === f ? `${u} imágenes` : `${u} de ${f} imágenes usadas`,
  shownOf: (a, b) => `se ven ${a} de ${b}`, mean: "media", lowest: "mínimo", highest: "máximo", mb: v => `${v} GiB`,
  scoreNames: { clip: "Puntuación CLIP, 0 a 100", palette: "Parte de la paleta de las imágenes de entrenamiento", colour_distance: "Distancia de color a las imágenes de entrenamiento",
    nearest_distance: "Distancia a la imagen de entrenamiento más parecida" }, repeats: name => `repite ${name}`,
  skipped: "paso omitido", compareRuns: "Entrenamientos en las curvas",
};
const languages = { en, es };
const stored = localStorage.getItem("language");
let current = languages[stored] ? stored : (navigator.language || "en").startsWith("es") ? "es" : "en";

export const t = key => languages[current][key];
export const language = () => current;
export const keys = () => [Object.keys(en), Object.keys(es)]; // so that a test can tell them apart
export function nextLanguage() {
  current = current === "en" ? "es" : "en";
  localStorage.setItem("language", current);
}
// Fills what stands in the page's own elements; text only.
export function fill(root = document) {
  document.documentElement.lang = current;
  for (const node of root.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t);
  for (const node of root.querySelectorAll("[data-a]")) node.setAttribute("aria-label", node.title = t(node.dataset.a));
  for (const node of root.querySelectorAll("[data-p]")) node.placeholder = t(node.dataset.p);
}
