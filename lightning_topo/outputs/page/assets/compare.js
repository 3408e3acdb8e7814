// Several runs over one another: a map of phases by setting and step, and common lines.

const RUN_COLOURS = ["#0b63a5", "#c2560c", "#3c7a55", "#8c1740", "#6b4fa0", "#8a6d00", "#2b7a95", "#b0468a", "#5b6470", "#4d7d18"];
const RUN_COLOURS_DARK = ["#74b8f0", "#f3a05a", "#7fcf9f", "#ff7d9b", "#b7a0ee", "#e0c04a", "#6fc7df", "#ee94cd", "#b7c0cc", "#a8d86a"];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const MANY_RUNS = 4; // of more, each is no longer drawn by itself

const runColour = (i) => (matchMedia("(prefers-color-scheme: dark)").matches ? RUN_COLOURS_DARK : RUN_COLOURS)[i % RUN_COLOURS.length];

// The settings of a run by name, those first that are asked for first.
function settingsOf(run) {
  const training = run.about.training ?? {};
  const used = run.rates.used ? finite(run.rates.used.columns.used) : [];
  return {
    ...(used.length ? { "learning rate": Math.max(...used) } : {}),
    ...(training.batch_size ? { "batch size": training.batch_size } : {}),
    ...(training.optimizer ? { optimizer: training.optimizer } : {}),
    ...(training.hparams ?? {}),
  };
}

function differingSettings(runs) {
  const all = runs.map(settingsOf);
  const names = [...new Set(all.flatMap(Object.keys))];
  return names.filter((name) => new Set(all.map((own) => JSON.stringify(own[name]))).size > 1);
}

function rowOrder(runs, name) {
  const value = (run) => settingsOf(run)[name];
  const order = runs.map((_, i) => i);
  if (name === undefined) return order;
  return order.sort((a, b) => {
    const [u, v] = [value(runs[a]), value(runs[b])];
    return typeof u === "number" && typeof v === "number" ? u - v : String(u).localeCompare(String(v)) || a - b;
  });
}

function phaseMapFigure(_, view) {
  const order = rowOrder(view.runs, view.rowsBy).filter((i) => view.runs[i].ribbon);
  if (!order.length) return { absent: "No phase yet in any of these runs." };
  const scale = PHASES.flatMap((p, i) => [[i / PHASES.length, p.colour], [(i + 1) / PHASES.length, p.colour]]);
  const nameOf = (i) => {
    const value = view.rowsBy === undefined ? undefined : settingsOf(view.runs[i])[view.rowsBy];
    return value === undefined ? view.runs[i].label : typeof value === "number" ? short(value) : String(value);
  };
  const values = order.map(nameOf);
  const labels = order.map((i, row) => (values.filter((value) => value === values[row]).length > 1 && values[row] !== view.runs[i].label ? `${values[row]} (${view.runs[i].label})` : values[row]));
  const letters = Math.max(6, ...labels.map((label) => Array.from(label).length));
  const left = Math.min(7.2 * letters + 40, view.width < 480 ? 110 : 240);
  const data = order.map((i, row) => {
    const run = view.runs[i];
    const codes = run.ribbon.codes[0];
    const name = (code) => PHASES.find((p) => p.code === code)?.name ?? "";
    return {
      type: "heatmap", name: run.label, x: cells(run.ribbon.steps, run.outcome.last_step), y: [row - 0.5, row + 0.5], z: [codes],
      zmin: -1.5, zmax: 3.5, colorscale: scale, showscale: false, ygap: 2, zsmooth: false, hoverongaps: false,
      text: [codes.map((code, j) => `<b>${wrapped(run.label)}</b><br>${plain(labels[row])}<br>${name(code)} from step ${count(run.ribbon.steps[j])}`)],
      hovertemplate: "%{text}<extra></extra>",
    };
  });
  const y = axis(view.rowsBy === undefined ? "" : view.rowsBy, {
    tickvals: order.map((_, row) => row), ticktext: labels.map((label) => plain(ellipsis(label, Math.floor((left - 30) / 7.2)))),
    range: [-0.5, order.length - 0.5], showgrid: false, ticks: "",
  });
  return { data, layout: layout({ ...view, left }, rowsHeight(order.length) + 20, y) };
}

// One quantity of every run; `read` gives its steps and values.
function overlayFigure(title, read, { logs, limit, height = 230 } = {}) {
  return (_, view) => {
    const found = view.runs.map(read);
    const values = found.flatMap((points) => points?.values ?? []).filter((v) => v !== null);
    if (!values.length) return { absent: `${title}: in none of these records.` };
    const data = found.flatMap((points, i) => (points ? [line(view.runs[i].label, points.steps, points.values, runColour(i), {
      mode: points.steps.length > 1 ? "lines" : "markers", line: { color: runColour(i), width: 2, dash: DASHES[Math.floor(i / RUN_COLOURS.length) % DASHES.length] },
    })] : []));
    const [least, most] = extremes([...values, ...(limit ? [limit] : [])].filter((v) => !logs || v > 0));
    const log = logs === undefined ? view.logLoss ?? (least > 0 && most > 30 * least) : logs;
    const pad = 0.06 * (most - least || 1);
    const y = log && least > 0 ? logAxis(`${title} (log scale)`, least / 1.3, most * 1.3) : axis(title, { range: [least - pad, most + pad], nticks: 5 });
    return { data, layout: layout(view, height, y, { ...UNIFIED, shapes: limit ? [horizontal(limit, css("--error"))] : [] }) };
  };
}

const curveOf = (name) => (run) => (run.curves[name] ? { steps: run.curves[name].steps, values: finite(run.curves[name].columns[name]) } : undefined);

const edgeRatioOf = (run) => (run.outcome.edge ? curveOf(run.outcome.edge.quantity)(run) : undefined);

function largestRatioOf(run) {
  if (!run.ratio) return undefined;
  const rows = Object.values(run.ratio.columns);
  const values = run.ratio.steps.map((_, j) => Math.max(...rows.map((row) => number(row[j])).filter((r) => !Number.isNaN(r))));
  return { steps: run.ratio.steps, values: values.map((v) => (v > 0 && Number.isFinite(v) ? v : null)) };
}

const COMPARISONS = [
  ["compare", "phasemap", phaseMapFigure, "Phases of all runs by setting and step"],
  ["compare", "all-loss", overlayFigure("Loss", curveOf("loss")), "Loss of all runs by step"],
  ["compare", "all-ratio", overlayFigure("Largest r", largestRatioOf, { logs: true, limit: 1 }), "Largest critical ratio of all runs by step"],
  ["compare", "all-edge", overlayFigure("Edge ratio", edgeRatioOf, { logs: false, limit: 1 }), "Edge ratio of all runs by step"],
];

function compareControls(redraw) {
  document.getElementById("compare").hidden = false;
  const select = document.getElementById("rows-by");
  const names = differingSettings(page.runs);
  for (const name of names) select.append(new Option(name, name));
  if (!names.length) select.append(new Option("run", ""));
  select.disabled = names.length < 2;
  select.addEventListener("change", () => redraw(select.value || undefined));
  return names[0];
}
