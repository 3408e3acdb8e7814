// The page: what is chosen, which charts are in view, and what they show. Figures come from figures.js.

const page = JSON.parse(document.getElementById("page-data").textContent);
const $ = (id) => document.getElementById(id);
const full = [page.first_step - 0.5, page.last_step + 0.5];
const groups = [...new Set(page.runs.flatMap((run) => run.groups))];
const chosen = { group: worstGroup(), range: full, capture: Infinity, logLoss: undefined, rowsBy: undefined };
const prefix = commonPrefix(groups);
const ratios = ratioRange(page.runs);
const CHARTS = [
  ["ribbon", "ribbon", ribbonFigure, "Phases by group and step"],
  ["rates", "rates", ratesFigure, "Learning rate and its limits by step"],
  ["ratio", "ratio", ratioFigure, "Critical ratio by group and step"],
  ["ratio", "worst", worstFigure, "Largest critical ratio of all groups by step"],
  ["curves", "loss", lossFigure, "Loss by step"],
  ["curves", "logged", loggedFigure, "Metrics of validation by step"],
  ["curves", "sharpness", edgeFigure, "Edge ratios and eta lambda by step"],
  ["crocker0", "crocker0", crockerFigure(0), "Connected pieces by scale and step"],
  ["crocker1", "crocker1", crockerFigure(1), "Loops by scale and step"],
  ["diagram", "diagram", diagramFigure, "Persistence diagram: births and deaths"],
  ["band", "total", bandFigure("total_", "Since start (factor)"), "Contraction and expansion since the start, by step"],
  ["band", "step", bandFigure("", "Per step (factor)"), "Contraction and expansion of each step"],
  ["fate", "fate", fateFigure, "What becomes of the neurons, by step"],
  ["change", "betti", bettiFigure, "Betti numbers by step"],
  ["change", "bottleneck", changeFigure, "Change between captures by step"],
];
const shownCharts = page.runs.length > MANY_RUNS ? [] : CHARTS;
const GROUP_CHARTS = new Set(["crocker0", "crocker1", "diagram", "total", "step", "fate", "betti", "bottleneck"]);
const PAIRED_CHARTS = new Set(["crocker0", "crocker1", "diagram", "total", "step"]);
const charts = [];

function worstGroup() {
  let worst = { value: -1, group: groups[0] };
  for (const run of page.runs) {
    const peak = run.outcome.peak_ratio;
    if (peak && groups.includes(peak.group) && number(peak.value) > worst.value) worst = { value: number(peak.value), group: peak.group };
  }
  return worst.group;
}

function element(tag, text, className) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

function chosenDetails() {
  return page.runs.map((run) => run.details[run.groups.indexOf(chosen.group)]).filter(Boolean);
}

// Names of groups are shown whole where there is room for them.
const rowRoom = (width) => (width < 480 ? 110 : width < 700 ? 150 : 230);

// What a figure may depend on besides its run.
function viewOf(chart) {
  const width = Math.max(200, chart.plot.clientWidth);
  const scales = chosenDetails().flatMap((d) => (d.crocker ? [d.crocker.scales[0], d.crocker.scales.at(-1)] : []));
  const [room, letters] = [rowRoom(width), Math.max(7, ...groups.map((g) => Array.from(g).length))];
  const fits = 7.2 * letters + 25 <= room;
  const rows = fits ? 7.2 * letters + 25 : Math.min(7.2 * Math.max(10, letters - prefix.length) + 25, room);
  return {
    runs: page.runs, group: chosen.group, range: chosen.range, capture: chosen.capture, logLoss: chosen.logLoss, rowsBy: chosen.rowsBy, prefix: fits ? "" : prefix, ratioRange: ratios, width,
    left: PAIRED_CHARTS.has(chart.name) ? 62 : rows,
    scaleRange: scales.length ? extremes(scales) : undefined,
    barRange: chosen.barRange,
  };
}

// The room that a chart will take, kept for it from the start so that nothing jumps.
function heightOf(name, run) {
  if (name === "phasemap") return rowsHeight(page.runs.length) + 20;
  if (name.startsWith("all-")) return 230;
  if (name === "ribbon") return rowsHeight(run.groups.length + 1);
  if (name === "ratio") return rowsHeight(run.groups.length);
  return { loss: 210, rates: 250, sharpness: 240, worst: 180, crocker0: 320, crocker1: 320, diagram: 340, bottleneck: 210, fate: 210 }[name] ?? 190;
}

function draw(chart) {
  const figure = chart.figure(chart.run, viewOf(chart));
  chart.stale = false;
  chart.plot.style.minHeight = "";
  chart.plot.classList.toggle("absent", Boolean(figure.absent));
  if (figure.absent) {
    Plotly.purge(chart.plot);
    chart.plot.textContent = figure.absent;
    chart.plot.removeAttribute("role");
    chart.zooms = false;
    chart.panel.hidden = Boolean(figure.isOptional);
  } else {
    if (!chart.plot.querySelector(".plot-container")) chart.plot.textContent = "";
    chart.plot.setAttribute("role", "img");
    chart.plot.setAttribute("aria-label", `${chart.title}. ${spoken(figure.data)}`);
    Plotly.react(chart.plot, figure.data, figure.layout, { displayModeBar: false, doubleClick: false, showTips: false, responsive: false });
    if (!chart.zooms && chart.name !== "diagram") listen(chart);
  }
  chart.tools.hidden = Boolean(figure.absent);
  chart.note.textContent = figure.note ?? "";
  chart.note.hidden = !figure.note;
  chart.plot.dataset.drawn = "true";
}

// What a chart of lines shows, for those who hear it.
function spoken(data) {
  return data.filter((trace) => trace.type === "scatter" && trace.mode?.startsWith("lines")).slice(0, 4).map((trace) => {
    const points = trace.x.map((x, i) => [x, trace.y[i]]).filter(([, y]) => typeof y === "number");
    if (!points.length) return "";
    const [low, high] = extremes(points.map(([, y]) => y));
    const [first, last] = [points[0], points.at(-1)];
    return `${trace.name}: ${short(first[1])} at step ${count(first[0])}, ${short(last[1])} at step ${count(last[0])}, between ${short(low)} and ${short(high)}.`;
  }).join(" ");
}

function save(name, url) {
  const link = element("a");
  link.href = url;
  link.download = name;
  link.click();
}

async function savePicture(chart) {
  const picture = await Plotly.toImage(chart.plot, { format: "png", scale: 2, setBackground: css("--card") });
  save(`${chart.name}.png`, picture);
}

// All that a chart draws: a line for each point or cell.
function saveTable(chart) {
  const cell = (v) => (v === null || v === undefined ? "" : /[",\n]/.test(String(v)) ? `"${String(v).replaceAll('"', '""')}"` : String(v));
  const words = (v) => String(v ?? "").replace(/<br>/g, " ").replace(/<[^>]*>/g, "");
  const labels = chart.plot.layout.yaxis?.ticktext ?? [];
  const rows = [["series", "x", "y", "value"]];
  for (const trace of chart.plot.data) {
    if (trace.z) trace.z.forEach((row, i) => row.forEach((z, j) => { if (z !== null) rows.push([trace.name, trace.x[j], labels[i] ?? trace.y[i], words(trace.text?.[i]?.[j]) || z]); }));
    else Array.from(trace.x).forEach((x, i) => rows.push([trace.name, x, trace.y[i], words(Array.isArray(trace.text) ? trace.text[i] : trace.customdata?.[i])]));
  }
  const url = URL.createObjectURL(new Blob([rows.map((row) => row.map(cell).join(",")).join("\n")], { type: "text/csv" }));
  save(`${chart.name}.csv`, url);
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

function toolsOf(chart, title) {
  const tools = element("span", undefined, "tools");
  for (const [label, action] of [["PNG", savePicture], ["CSV", saveTable]]) {
    const button = element("button", label);
    button.type = "button";
    button.setAttribute("aria-label", `Save ${title} as ${label}`);
    button.addEventListener("click", () => action(chart));
    tools.append(button);
  }
  tools.hidden = true;
  return tools;
}

function listen(chart) {
  chart.zooms = true;
  chart.plot.on("plotly_relayout", (change) => {
    if (change["xaxis.range[0]"] !== undefined) setRange(change["xaxis.range[0]"], change["xaxis.range[1]"]);
  });
  chart.plot.on("plotly_doubleclick", () => setRange(...full));
}

// What is in view is drawn at once; the rest waits for the browser to have nothing else to do.
function refresh(which = () => true) {
  for (const chart of charts.filter(which)) {
    chart.stale = true;
    if (chart.inView) draw(chart);
  }
  whenIdle(drawOneStale);
}

const whenIdle = (task) => (window.requestIdleCallback ? requestIdleCallback(task, { timeout: 1000 }) : setTimeout(task, 50));

function drawOneStale() {
  const next = charts.find((chart) => chart.stale);
  if (!next) return;
  draw(next);
  if (charts.some((chart) => chart.stale)) whenIdle(drawOneStale);
  else document.documentElement.dataset.drawn = "true";
}

const inView = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const chart = charts.find((c) => c.plot === entry.target);
    chart.inView = entry.isIntersecting;
    if (chart.inView && chart.stale) draw(chart);
  }
}, { rootMargin: "200px" });

function setRange(low, high) {
  const [from, to] = [Math.max(full[0], Math.min(low, high)), Math.min(full[1], Math.max(low, high))];
  chosen.range = to - from < 1 ? [Math.max(full[0], from - 0.5), Math.min(full[1], from + 0.5)] : [from, to];
  $("from").value = Math.ceil(chosen.range[0]);
  $("to").value = Math.floor(chosen.range[1]);
  remember();
  $("reset").disabled = chosen.range[0] === full[0] && chosen.range[1] === full[1];
  refresh((chart) => chart.name !== "diagram");
}

function setGroup(group) {
  chosen.group = group;
  remember();
  for (const node of document.querySelectorAll(".of")) node.textContent = group === undefined ? "" : `· ${ellipsis(group, 80)}`;
  chosen.barRange = barRange(chosenDetails());
  for (const k of [0, 1]) countLegend(k);
  setCaptures();
  refresh((chart) => GROUP_CHARTS.has(chart.name));
}

// The slider goes over the captures that the page carries of the chosen group, in any run.
function setCaptures() {
  const steps = [...new Set(chosenDetails().flatMap((d) => d.slides?.steps ?? []))].sort((a, b) => a - b);
  const slider = $("capture");
  slider.parentElement.hidden = steps.length === 0;
  slider.max = Math.max(0, steps.length - 1);
  slider.disabled = steps.length < 2;
  let nearest = 0;
  steps.forEach((step, i) => { if (Math.abs(step - chosen.capture) <= Math.abs(steps[nearest] - chosen.capture)) nearest = i; });
  slider.value = chosen.capture === Infinity ? steps.length - 1 : nearest;
  const show = () => {
    chosen.capture = steps[Number(slider.value)] ?? 0;
    $("capture-step").textContent = `step ${count(chosen.capture)}`;
    slider.setAttribute("aria-valuetext", `step ${chosen.capture}`);
  };
  slider.oninput = () => { show(); refresh((chart) => chart.name === "diagram"); };
  if (steps.length) show();
}

// A page that is loaded again, as the run goes on, shows what was chosen before.
const memory = `lightning-topo ${page.runs.map((run) => run.run_id).join(" ")}`;

function remember() {
  const isWhole = chosen.range[0] === full[0] && chosen.range[1] === full[1];
  try { sessionStorage.setItem(memory, JSON.stringify({ group: chosen.group, range: isWhole ? undefined : chosen.range })); } catch { /* no storage: nothing to remember */ }
}

function remembered() {
  try { return JSON.parse(sessionStorage.getItem(memory)) ?? {}; } catch { return {}; }
}

function swatch(text, colour, className) {
  const node = element("span");
  const mark = element("i", undefined, className);
  mark.style[className === "line" || className === "dash" ? "borderColor" : "background"] = colour;
  node.append(mark, document.createTextNode(text));
  return node;
}

function glyph([, path, filled]) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 14 14");
  svg.setAttribute("width", "12");
  svg.setAttribute("height", "12");
  svg.setAttribute("aria-hidden", "true");
  const shape = document.createElementNS("http://www.w3.org/2000/svg", "path");
  shape.setAttribute("d", path);
  shape.setAttribute("fill", filled ? "currentColor" : "var(--card)");
  shape.setAttribute("stroke", filled ? "none" : "currentColor");
  shape.setAttribute("stroke-width", "2");
  svg.append(shape);
  return svg;
}

// A colour bar with words under it: stops and ticks are at fractions of its width.
function ramp(stops, ticks) {
  const bar = element("div", undefined, "bar");
  const colours = element("div", undefined, "ramp");
  colours.style.background = `linear-gradient(to right, ${stops.map(([at, colour]) => `${colour} ${(100 * at).toFixed(3)}%`).join(", ")})`;
  const labels = element("div", undefined, "ticks");
  for (const [at, text] of ticks) {
    const label = element("span", text);
    label.style.left = `${100 * at}%`;
    labels.append(label);
  }
  bar.append(colours, labels);
  return bar;
}

const legendOf = (card) => document.querySelector(`#${card} .legend`);

function legends() {
  const codes = new Set(page.runs.flatMap((run) => run.ribbon?.codes.flat() ?? []));
  const names = [...new Set(page.runs.flatMap((run) => run.events.map((event) => event.name)))];
  legendOf("ribbon").replaceChildren(
    ...PHASES.filter((p) => codes.has(p.code)).map((p) => swatch(p.name, p.colour)),
    ...names.map((name) => { const item = element("span"); item.append(glyph(GLYPHS[name] ?? OTHER_GLYPH), document.createTextNode(name)); return item; }),
  );
  if (page.runs.length > 1) legendOf("compare").replaceChildren(
    ...PHASES.filter((p) => codes.has(p.code)).map((p) => swatch(p.name, p.colour)),
    ...page.runs.map((run, i) => swatch(run.label, runColour(i), DASHES[Math.floor(i / RUN_COLOURS.length) % DASHES.length] === "solid" ? "line" : "dash")));
  const [low, high] = ratios;
  const every = high - low > 6 ? 3 : 1; // where there are many decades, their names would overlap
  const ticks = Array.from({ length: high - low + 1 }, (_, i) => [i / (high - low), i + low === 0 ? "1 critical" : short(10 ** (i + low))])
    .filter((_, i) => (i + low) % every === 0);
  const known = new Set(page.runs.flatMap((run) => run.certificates?.states.flat() ?? []));
  legendOf("ratio").replaceChildren(
    ...(page.runs.some((run) => run.ratio || run.certificates) ? [ramp(ratioColours(ratios), ticks)] : []),
    ...(known.has(EXACT) ? [swatch("exact r: full height", BELOW[1], "exact")] : []),
    ...(known.has(BOUNDED) ? [swatch("upper bound of r: narrow", BELOW[1], "bounded"), swatch("upper bound of r, over all groups", css("--info"), "dash")] : []),
    ...(known.has(SPANNED) ? [swatch("r unknown, none merged for good", css("--spanned"))] : []),
    ...(known.has(OPEN) || page.runs.some((run) => run.ratio && !run.certificates) ? [swatch("not measured, nothing claimed", css("--missing"))] : []),
    ...(prefix && 7.2 * Math.max(...groups.map((g) => Array.from(g).length)) + 18 > rowRoom(innerWidth - 96) ? [element("span", `Names are shown without “${ellipsis(prefix, 60)}”.`, "note")] : []));
  const has = (name) => page.runs.some((run) => run.curves[name]);
  const rates = RATES.filter(([key]) => page.runs.some((run) => run.rates[key]));
  legendOf("rates").replaceChildren(
    ...rates.map(([, name, colour, dash]) => swatch(name, css(colour), dash === "solid" ? "line" : "dash")),
    ...(known.has(OPEN) ? [swatch("open steps: nothing is claimed", css("--missing"))] : []));
  const limits = [...new Map(page.runs.flatMap(limitsOf).map((limit) => [limit[0], limit])).values()];
  legendOf("curves").replaceChildren(
    ...(has("loss") ? [swatch("loss", css("--ink"), "line")] : []),
    ...loggedNames(page.runs).map((name) => swatch(ellipsis(name, 40), loggedColour(name, page.runs), "dash")),
    ...limits.map(([, name, colour, dash]) => swatch(name, css(colour), dash === "solid" ? "line" : "dash")),
    ...(limits.length ? [swatch("the limit, 1", css("--muted"), "line")] : []),
  );
  const dims = Math.max(0, ...page.runs.flatMap((run) => run.details.map((d) => d.slides?.marks.length ?? 0)));
  legendOf("diagram").replaceChildren(...DIMENSIONS.slice(0, dims).map(([colour, , name]) => swatch(name, css(colour))));
  legendOf("fate").replaceChildren(...fateLegend());
  const changes = page.runs.some((run) => run.details.some((d) => d.change));
  legendOf("change").replaceChildren(...(changes ? [
    swatch("pieces, H0", css("--first"), "line"), swatch("loops, H1", css("--second"), "dash"), swatch("explained by distortion", css("--grey-shade")),
  ] : []));
}

function countLegend(k) {
  const present = chosenDetails().some((d) => d.crocker?.betti[k]);
  const top = countTop({ runs: page.runs, group: chosen.group }, k);
  const [low, high] = [Math.log10(k === 0 ? 1 : 0.5), Math.log10(top)];
  const values = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000].filter((v) => v < 0.8 * top || v === top);
  const kept = values.filter((v, i) => (values.length < 7 || i % 3 === 0) && v < 0.6 * top);
  const ticks = [...kept, top].map((v) => [(Math.log10(v) - low) / (high - low), count(v)]);
  legendOf(`crocker${k}`).replaceChildren(...(present ? [ramp(COUNTS.map((c, i) => [i / (COUNTS.length - 1), c]), ticks)] : []));
}

function build() {
  document.body.classList.toggle("several", page.runs.length > 1);
  const select = $("group");
  for (const group of groups) {
    const option = element("option", ellipsis(group, 90));
    option.value = group;
    select.append(option);
  }
  select.disabled = groups.length < 2;
  if (!groups.length) select.append(element("option", "none measured"));
  else select.selectedIndex = groups.indexOf(chosen.group);
  select.addEventListener("change", () => setGroup(groups[select.selectedIndex]));
  for (const id of ["from", "to"]) {
    $(id).min = page.first_step;
    $(id).max = page.last_step;
    $(id).addEventListener("change", () => setRange(Number($("from").value) - 0.5, Number($("to").value) + 0.5));
  }
  $("reset").addEventListener("click", () => setRange(...full));
  $("log-loss").addEventListener("click", () => {
    const drawn = charts.find((chart) => chart.name === "loss" || chart.name === "all-loss")?.plot.layout?.yaxis?.type;
    chosen.logLoss = drawn !== "log";
    $("log-loss").setAttribute("aria-pressed", String(chosen.logLoss));
    refresh((chart) => chart.name === "loss" || chart.name === "all-loss");
  });
  document.body.style.setProperty("--columns", Math.min(3, page.runs.length));
  if (page.runs.length > 1) chosen.rowsBy = compareControls((name) => { chosen.rowsBy = name; refresh((chart) => chart.name === "phasemap"); });
  document.body.classList.toggle("many", page.runs.length > MANY_RUNS);
  const all = [...(page.runs.length > 1 ? COMPARISONS : []), ...shownCharts];
  for (const [card, name, figure, title] of all) {
    const row = element("div", undefined, "row");
    document.querySelector(`#${card} .panels`).append(row);
    (card === "compare" ? [undefined] : page.runs).forEach((run, i) => {
      const panel = element("figure", undefined, "panel");
      const [plot, note] = [element("div", undefined, "plot"), element("p", undefined, "note")];
      if (run && page.runs.length > 1) panel.append(element("figcaption", run.label));
      plot.dataset.chart = name;
      plot.dataset.run = i;
      plot.style.minHeight = `${heightOf(name, run)}px`;
      plot.setAttribute("aria-label", run && page.runs.length > 1 ? `${title}, ${run.label}` : title);
      const chart = { name, figure, run, plot, note, panel, title: plot.getAttribute("aria-label"), stale: true, inView: false, zooms: false };
      chart.tools = toolsOf(chart, chart.title);
      panel.append(chart.tools, plot, note);
      row.append(panel);
      charts.push(chart);
      inView.observe(plot);
    });
  }
  legends();
  const before = remembered();
  if (groups.includes(before.group)) {
    chosen.group = before.group;
    select.selectedIndex = groups.indexOf(before.group);
  }
  setGroup(chosen.group);
  setRange(...(before.range ?? full));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { legends(); refresh(); });
  let width = innerWidth;
  let timer;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(timer);
    timer = setTimeout(() => refresh(), 120);
  });
}

// After the first paint: plotly.js takes longer to read than all the rest.
requestAnimationFrame(() => setTimeout(() => {
  const script = element("script", $("plotly").textContent);
  document.body.append(script);
  build();
}));
