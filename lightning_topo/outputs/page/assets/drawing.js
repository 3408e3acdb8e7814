"use strict";
// What all figures share: colours, numbers, axes, lines.

const PHASES = [
  { code: -1, name: "Unknown", colour: "#9aa3af", ink: "#1c2430" },
  { code: 0, name: "Preserved", colour: "#7db8da", ink: "#10222e" },
  { code: 1, name: "Unprotected", colour: "#f0de7c", ink: "#2e2806" },
  { code: 2, name: "Edge of stability", colour: "#ee9b2e", ink: "#2e1b00" },
  { code: 3, name: "Breakdown", colour: "#8c1740", ink: "#ffffff" },
];
// [Plotly symbol, SVG path in a 14 x 14 box, filled]
const GLYPHS = {
  curvature_bound_exceeded: ["triangle-up", "M7 1L13 12H1Z", true],
  curvature_bound_restored: ["triangle-down", "M7 13L13 2H1Z", false],
  edge_of_stability_enter: ["diamond", "M7 0L14 7L7 14L0 7Z", true],
  edge_of_stability_exit: ["diamond", "M7 1L13 7L7 13L1 7Z", false],
  topology_breakdown: ["x", "M3 0L7 4L11 0L14 3L10 7L14 11L11 14L7 10L3 14L0 11L4 7L0 3Z", true],
  topology_restored: ["circle", "M7 1A6 6 0 1 0 7.01 1Z", false],
  instability: ["star", "M7 0L9 5L14 5L10 8L12 14L7 10L2 14L4 8L0 5L5 5Z", true],
  neurons_merged: ["hourglass", "M1 1H13L1 13H13Z", true],
  neurons_vanishing: ["triangle-left", "M1 7L13 1V13Z", true],
  neurons_condensing: ["triangle-right", "M13 7L1 1V13Z", true],
  betti_changed: ["circle", "M7 1A6 6 0 1 0 7.01 1Z", true],
  diagram_jump: ["bowtie", "M1 1V13L13 1V13Z", true],
  equivariance_broken: ["cross", "M5 0H9V5H14V9H9V14H5V9H0V5H5Z", true],
  unseen_step: ["pentagon", "M7 1L13 6L11 13H3L1 6Z", false],
  outside_change: ["pentagon", "M7 1L13 6L11 13H3L1 6Z", true],
  unwatched_parameters: ["hexagon2", "M4 1H10L13 7L10 13H4L1 7Z", false],
  gap: ["square", "M2 2H12V12H2Z", false],
  probe_failed: ["square", "M1 1H13V13H1Z", true],
  rewind: ["triangle-left", "M1 7L13 1V13Z", false],
};
// What is known of a step, weakest first.
const [OPEN, SPANNED, BOUNDED, EXACT] = [0, 1, 2, 3];
const OTHER_GLYPH = ["hexagram", "M7 0L9 4H14L11 7L14 10H9L7 14L5 10H0L3 7L0 4H5Z", true];
const LOUDNESS = { error: 2, warn: 1, info: 0 };
const NEVER = 65535; // a death that is infinite
const MAX_EVENT_LINES = 60;
const MAX_SPANS = 200;
// Below the critical point, and above it: the two never share a colour.
const BELOW = ["#08305f", "#1f6cab", "#6eb0d8", "#c3dff0", "#ffffff"];
const ABOVE = ["#f8b25c", "#dd6a13", "#8a3400", "#4d1a00"];
const COUNTS = ["#fdf3c4", "#c5d9a4", "#7fbf9f", "#41a0a0", "#2b7a95", "#2d5285", "#2a2b66", "#1a1238"];

const number = (v) => (v === "inf" ? Infinity : v === "-inf" ? -Infinity : v === null || v === undefined ? NaN : v);
const short = (v) => (Number.isFinite(v) ? String(Number(v.toPrecision(3))) : v > 0 ? "∞" : v < 0 ? "−∞" : "not a number");
const count = (n) => n.toLocaleString("en");
// Plotly reads labels as pseudo-HTML, and what stands between dollars as TeX: names must come out as they are.
const plain = (s) => s.replace(/\s+/g, " ").replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/\$/g, "&#36;");
const ellipsis = (s, n) => {
  const letters = Array.from(s);
  return letters.length <= n ? s : letters.slice(0, Math.ceil((n - 1) / 2)).join("") + "…" + letters.slice(-Math.floor((n - 1) / 2)).join("");
};
const wrapped = (s, n = 48) => (ellipsis(s, 4 * n).match(new RegExp(`.{1,${n}}(\\s|$)|.{1,${n}}`, "gsu")) ?? []).map(plain).join("<br>");

// {dtype, bdata, shape} -> a flat typed array, little-endian as it was written
function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.bdata), (c) => c.charCodeAt(0));
  const kind = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array }[packed.dtype];
  return new kind(bytes.buffer);
}

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function axis(title, more = {}) {
  return {
    title: { text: title, font: { size: 13 }, standoff: 6 }, gridcolor: css("--grid"), linecolor: css("--rule"), zeroline: false,
    tickfont: { size: 12 }, fixedrange: true, ticks: "outside", ticklen: 4, tickcolor: css("--rule"), ...more,
  };
}

function stepAxis(view) {
  const [low, high] = view.range;
  const few = high - low <= 12 ? { dtick: 1, tick0: 0 } : { nticks: Math.min(14, Math.ceil((view.width - view.left) / (7.5 * count(Math.ceil(high)).length + 18))) };
  return axis("Optimizer step", { range: [low, high], fixedrange: false, tickformat: ",d", hoverformat: ",d", unifiedhovertitle: { text: "step %{x:,d}" }, showgrid: false, ...few });
}

function layout(view, height, yaxis, more = {}) {
  return {
    width: view.width, height, showlegend: false, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: css("--ink") },
    margin: { l: view.left, r: 14, t: 8, b: 46 }, hovermode: "closest",
    hoverlabel: { font: { size: 12, color: css("--ink"), family: getComputedStyle(document.body).fontFamily }, bgcolor: css("--card"), bordercolor: css("--muted"), namelength: -1, align: "left" },
    hoverdistance: -1, dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    xaxis: stepAxis(view), yaxis, ...more,
  };
}

function eventLines(run, { group, onMap = false } = {}) {
  const worst = new Map();
  for (const event of run.events) {
    if (group !== undefined && event.group !== "" && event.group !== group) continue;
    const known = worst.get(event.step);
    if (known === undefined || LOUDNESS[event.severity] > LOUDNESS[known]) worst.set(event.step, event.severity);
  }
  const loudest = [...worst].sort((a, b) => LOUDNESS[b[1]] - LOUDNESS[a[1]]).slice(0, MAX_EVENT_LINES);
  const vertical = (step, name, line) => ({ type: "line", xref: "x", yref: "paper", x0: step, x1: step, y0: 0, y1: 1, name, line });
  // On a map a line needs a light border to be seen on any colour.
  const border = (step) => vertical(step, "border", { color: css("--line-border"), width: 4 });
  return loudest.flatMap(([step, severity]) => [
    ...(onMap ? [border(step)] : []),
    vertical(step, severity, { color: css(`--${severity}-line`), width: 1.5, dash: { error: "solid", warn: "dash", info: "dot" }[severity] }),
  ]);
}

// On a chart of lines the pointer need not hit one: the values of all stand at its step.
const UNIFIED = { hovermode: "x unified" };

// Steps of which nothing is claimed, as grey bands behind the lines.
function openSpans(run) {
  const table = run.certificates;
  if (!table) return [];
  const end = (j) => (table.steps[j + 1] ?? table.last + 1) - 0.5;
  const weakest = table.steps.map((_, j) => Math.min(...table.states.map((row) => row[j] ?? EXACT)));
  const spans = [];
  weakest.forEach((state, j) => {
    if (state !== OPEN && state !== SPANNED) return;
    const last = spans.at(-1);
    if (last && last.state === state && last.x1 === table.steps[j] - 0.5) last.x1 = end(j);
    else spans.push({ state, x0: table.steps[j] - 0.5, x1: end(j) });
  });
  return spans.slice(0, MAX_SPANS).map(({ state, x0, x1 }) => ({
    type: "rect", layer: "below", xref: "x", yref: "paper", x0, x1, y0: 0, y1: 1, line: { width: 0 }, name: "open",
    fillcolor: css(state === OPEN ? "--missing" : "--spanned"), opacity: 0.45,
  }));
}

function horizontal(y, colour, dash = "solid") {
  return { type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: { color: colour, width: 1.5, dash } };
}

// Cell borders on the step axis: a value stands from its own step until the next one.
const cells = (steps, end) => [...steps.map((s) => s - 0.5), Math.max(end, steps[steps.length - 1]) + 0.5];

// The part that all names begin with, up to a dot or slash, where leaving it out helps to read them.
function commonPrefix(names) {
  if (names.length < 3) return "";
  let n = 0;
  while (names.every((name) => n < name.length && name[n] === names[0][n])) n++;
  return names[0].slice(0, n).replace(/[^./]*$/, "");
}

function rowLabels(names, view) {
  const letters = Math.max(4, Math.floor((view.left - 23) / 7.2));
  return names.map((name) => plain(ellipsis(name.startsWith(view.prefix) ? name.slice(view.prefix.length) : name, letters)));
}

function rowAxis(names, view) {
  // The mark of an event at the first step stands half over the axis.
  return axis("", {
    tickvals: names.map((_, i) => i), ticktext: rowLabels(names, view), range: [names.length - 0.5, -0.5], showgrid: false, ticks: "",
    ticklabelstandoff: 7,
  });
}

const rowsHeight = (n) => 54 + n * (n <= 4 ? 34 : n <= 12 ? 24 : 16);

function line(name, steps, values, colour, more = {}) {
  return {
    type: "scatter", mode: steps.length > 60 ? "lines" : "lines+markers", name, x: steps, y: values, line: { color: colour, width: 2 },
    marker: { size: 5, color: colour }, hovertemplate: `${plain(name)} %{y:.4g}<extra></extra>`, ...more,
  };
}

// Infinite values have no place on an axis: they break the line.
const finite = (values) => values.map(number).map((v) => (Number.isFinite(v) ? v : null));

const extremes = (values) => values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);

// The finite numbers of one quantity in all runs: their panels share one axis.
const seenIn = (runs, read) => runs.flatMap((run) => finite(read(run) ?? []).filter((v) => v !== null));

// Ticks of a log axis from low to high: whole decades, or 1-2-5, or evenly where it spans little. All of one size.
function logTicks(low, high, most = 6) {
  const decades = Math.log10(high / low);
  let values = [];
  if (decades < 0.7) {
    const unit = 10 ** Math.floor(Math.log10((high - low) / 3));
    const width = [1, 2, 5, 10].map((m) => m * unit).find((w) => (high - low) / w <= most);
    for (let i = Math.ceil(low / width); i * width <= high; i++) values.push(i * width);
  } else {
    const every = Math.ceil(decades / most);
    const digits = decades * 3 <= most + 1 ? [1, 2, 5] : decades * 2 <= most + 1 ? [1, 3] : [1];
    for (let d = Math.floor(Math.log10(low)); d <= Math.log10(high); d++) if (d % every === 0) for (const m of digits) values.push(m * 10 ** d);
    values = values.filter((v) => v >= low && v <= high);
  }
  values = values.map((v) => Number(v.toPrecision(6)));
  return { tickvals: values, ticktext: values.map((v) => (v >= 1e5 || v < 1e-4 ? v.toExponential().replace("e+", "e") : String(v))) };
}

// What lies beyond 80 decades is off any chart.
const LOG_LIMITS = [1e-40, 1e40];

function logAxis(title, from, to) {
  const low = Math.min(Math.max(from, LOG_LIMITS[0]), LOG_LIMITS[1] / 10);
  const high = Math.min(Math.max(to, 1.0001 * low), LOG_LIMITS[1]);
  return axis(title, { type: "log", range: [Math.log10(low), Math.log10(high)], ...logTicks(low, high) });
}
