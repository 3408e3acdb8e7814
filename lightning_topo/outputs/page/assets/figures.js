// Page data -> Plotly figures. A figure depends on its run and the view alone; one that cannot be drawn is {absent: why}.

function ribbonFigure(run, view) {
  if (!run.ribbon) return { absent: "No phase yet: neither the critical ratio nor the sharpness has been measured." };
  const names = ["network", ...run.groups];
  const edges = cells(run.ribbon.steps, run.outcome.last_step);
  const scale = PHASES.flatMap((p, i) => [[i / PHASES.length, p.colour], [(i + 1) / PHASES.length, p.colour]]);
  const phase = (code) => PHASES.find((p) => p.code === code);
  const text = run.ribbon.codes.map((row, i) => row.map((code, j) => code === null ? "" :
    `<b>${wrapped(names[i])}</b><br>${phase(code).name} from step ${count(run.ribbon.steps[j])}`));
  const z = run.ribbon.codes;
  const rowOf = (event) => (event.group === "" ? 0 : run.groups.indexOf(event.group) + 1);
  const shown = run.events.filter((event) => event.group === "" || run.groups.includes(event.group));
  const filled = (event) => (GLYPHS[event.name] ?? OTHER_GLYPH)[2];
  const marks = {
    type: "scatter", mode: "markers", name: "events", x: shown.map((e) => e.step), y: fanned(shown, rowOf, view), cliponaxis: false,
    text: shown.map((e) => `<b>${e.name}</b> at step ${count(e.step)}<br>${wrapped(e.message, 60)}`), hovertemplate: "%{text}<extra></extra>",
    marker: {
      symbol: shown.map((e) => (GLYPHS[e.name] ?? OTHER_GLYPH)[0]), size: names.length > 12 ? 10 : 13,
      color: shown.map((e) => (filled(e) ? "#10151c" : "#ffffff")), line: { width: shown.map((e) => (filled(e) ? 1 : 2)), color: shown.map((e) => (filled(e) ? "#ffffff" : "#10151c")) },
    },
  };
  const map = {
    type: "heatmap", name: "phases", x: edges, y: names.map((_, i) => i), z, zmin: -1.5, zmax: 3.5, colorscale: scale, showscale: false, ygap: 2,
    text, hovertemplate: "%{text}<extra></extra>", hoverongaps: false, zsmooth: false,
  };
  const [all, kept] = [run.outcome.n_events, run.events.length];
  const note = kept < all ? `Of ${count(all)} events ${count(kept)} have a mark: the most severe, and of the rest an even spread.` : undefined;
  return { data: [map, marks], layout: layout(view, rowsHeight(names.length), rowAxis(names, view), { annotations: spanLabels(z, edges, names.length, view, shown.map((e) => [e.step, rowOf(e)])) }), note };
}

// Marks that would cover one another stand above each other within their row.
function fanned(events, rowOf, view) {
  const pixels = (view.width - view.left - 14) / (view.range[1] - view.range[0]);
  const rows = new Map();
  events.forEach((event, i) => {
    const row = rowOf(event);
    if (!rows.has(row)) rows.set(row, []);
    rows.get(row).push(i);
  });
  const heights = events.map(rowOf);
  for (const members of rows.values()) {
    members.sort((i, j) => events[i].step - events[j].step);
    for (let first = 0; first < members.length; ) {
      let end = first + 1;
      while (end < members.length && (events[members[end]].step - events[members[first]].step) * pixels < 9) end++;
      const spread = Math.min(0.64, 0.34 * (end - first - 1));
      for (let k = first; k < end && end - first > 1; k++) heights[members[k]] += spread * ((k - first) / (end - first - 1) - 0.5);
      first = end;
    }
  }
  return heights;
}

// The phase's name inside its span, where there is room for it: colour is never the only sign.
function spanLabels(codes, edges, nRows, view, marks) {
  const labels = [];
  const [low, high] = view.range;
  const pixels = (view.width - view.left - 14) / (high - low);
  for (let row = 0; row < Math.min(nRows, nRows <= 12 ? 12 : 1); row++) {
    for (let start = 0; start < codes[row].length; ) {
      let end = start;
      while (end + 1 < codes[row].length && codes[row][end + 1] === codes[row][start]) end++;
      const phase = PHASES.find((p) => p.code === codes[row][start]);
      const [left, right] = [Math.max(low, edges[start]), Math.min(high, edges[end + 1])];
      const [middle, half] = [(left + right) / 2, (phase?.name.length ?? 0) * 3.75 + 12];
      const covered = marks.some(([step, at]) => at === row && Math.abs(step - middle) * pixels < half);
      if (phase && (right - left) * pixels > 2 * half + 10 && !covered) {
        labels.push({ x: middle, y: row, text: phase.name, showarrow: false, font: { size: 12, color: phase.ink } });
      }
      start = end + 1;
    }
  }
  return labels;
}

// Common to all runs, so that a colour means the same in each: decades below 1 and above it.
function ratioRange(runs) {
  const logs = runs.flatMap((run) => [...(run.ratio ? Object.values(run.ratio.columns).flat() : []), ...(run.certificates ? run.certificates.values.flat() : [])])
    .map(number).filter((r) => r > 0 && r < Infinity).map(Math.log10).sort((a, b) => a - b);
  if (!logs.length) return [-3, 1];
  const low = Math.floor(logs[Math.floor(logs.length * 0.01)]);
  return [Math.min(-2, Math.max(-6, low)), Math.min(3, Math.max(1, Math.ceil(logs[logs.length - 1])))];
}

function ratioColours([low, high]) {
  const one = -low / (high - low);
  return [
    ...BELOW.map((colour, i) => [(one * i) / (BELOW.length - 1), colour]),
    ...ABOVE.map((colour, i) => [one + 1e-6 + ((1 - one - 1e-6) * i) / (ABOVE.length - 1), colour]),
  ];
}

const logRatio = (r, [low, high]) => (Number.isNaN(r) ? null : Math.min(high, Math.max(low, r > 0 ? Math.log10(r) : low)));

function ratioFigure(run, view) {
  if (run.certificates) return certificateFigure(run, view);
  if (!run.ratio) return { absent: `No critical ratio in this record. ${run.silence.distortion}` };
  const [low, high] = view.ratioRange;
  const { steps, columns, merged } = run.ratio;
  const rows = run.groups.map((_, i) => columns[i].map(number));
  const until = (j) => (merged > 1 ? `, the largest from step ${count(steps[j])}` : ` at step ${count(steps[j])}`);
  return {
    data: [{
      type: "heatmap", name: "critical ratio", x: cells(steps, run.outcome.last_step), y: run.groups.map((_, i) => i), zmin: low, zmax: high,
      z: rows.map((row) => row.map((r) => logRatio(r, view.ratioRange))),
      customdata: rows, text: rows.map((row, i) => row.map((r, j) => `<b>${wrapped(run.groups[i])}</b><br>r = ${short(r)}${until(j)}`)),
      hovertemplate: "%{text}<extra></extra>", hoverongaps: false, colorscale: ratioColours([low, high]), showscale: false,
      ygap: run.groups.length > 24 ? 1 : 2, zsmooth: false,
    }],
    layout: layout(view, rowsHeight(run.groups.length), rowAxis(run.groups, view), { plot_bgcolor: css("--missing"), shapes: eventLines(run, { onMap: true }) }),
    note: "This record does not tell what is known of the steps between measured ones: a value stands until the next measured step.",
  };
}

// Every step by what is known of it: measured r fills its row, an upper bound the middle of it, grey claims nothing.
function certificateFigure(run, view) {
  const [low, high] = view.ratioRange;
  const { steps, last, states, values } = run.certificates;
  const x = [...steps, last + 1].map((s) => s - 0.5);
  const span = (j) => { const end = (steps[j + 1] ?? last + 1) - 1; return end > steps[j] ? `steps ${count(steps[j])} to ${count(end)}` : `step ${count(end)}`; };
  const said = (state, value, j) => {
    const merged = span(j).startsWith("steps") ? "the largest r is " : "r = ";
    return { [OPEN]: "not measured: nothing is claimed", [SPANNED]: "r is not known, but no two neurons merged for good", [BOUNDED]: `r at most ${short(value)} (bound)`, [EXACT]: `${merged}${short(value)} (exact)` }[state];
  };
  const text = states.map((row, i) => row.map((state, j) => (state === null ? "" : `<b>${wrapped(run.groups[i])}</b><br>${said(state, number(values[i][j]), j)}<br>${span(j)}`)));
  // Each row is three: the outer two are empty where r is only bounded.
  const [margin, thin] = [run.groups.length > 24 ? 0.47 : 0.45, 0.2];
  const y = run.groups.flatMap((_, i) => [i - margin, i - thin, i + thin, i + margin]);
  const rows = (cell) => run.groups.flatMap((_, i) => {
    const [outer, inner] = [false, true].map((inside) => steps.map((_, j) => cell(states[i][j], number(values[i][j]), inside)));
    return [outer, inner, outer, ...(i + 1 < run.groups.length ? [steps.map(() => null)] : [])];
  });
  const map = (name, z, more) => ({ type: "heatmap", name, x, y, z, showscale: false, zsmooth: false, hoverongaps: false, hovertemplate: "%{text}<extra></extra>",
    text: run.groups.flatMap((_, i) => [text[i], text[i], text[i], ...(i + 1 < run.groups.length ? [text[i]] : [])]), ...more });
  const unknown = rows((state) => (state === OPEN || state === SPANNED ? state : null));
  const known = rows((state, value, inside) => (state === EXACT || (state === BOUNDED && inside) ? logRatio(value, view.ratioRange) : null));
  // A frame, so that a bound near 1, which is nearly white, can be seen; full cells cover it.
  const frame = run.groups.flatMap((_, i) => [i - thin, i + thin].map((at) => ({
    type: "line", layer: "below", x0: x[0], x1: x.at(-1), y0: at, y1: at, line: { color: css("--muted"), width: 1.5 },
  })));
  return {
    data: [
      map("not measured", unknown, { zmin: 0, zmax: 1, colorscale: [[0, css("--missing")], [1, css("--spanned")]] }),
      map("critical ratio", known, { zmin: low, zmax: high, colorscale: ratioColours([low, high]) }),
    ],
    layout: layout(view, rowsHeight(run.groups.length), rowAxis(run.groups, view), { shapes: [...frame, ...eventLines(run, { onMap: true })] }),
  };
}

// The largest that r can have been in any group, step for step; broken where nothing bounds it.
function boundLine({ steps, last, states, values }, [low, high]) {
  const worst = steps.map((_, j) => {
    const column = states.map((row, i) => [row[j], number(values[i][j])]).filter(([state]) => state !== null);
    return column.length && column.every(([state]) => state >= BOUNDED) ? Math.max(...column.map(([, value]) => value)) : null;
  });
  const twice = (values) => values.flatMap((v) => [v, v]); // each cell from its first to its last step
  const x = steps.flatMap((step, j) => [step - 0.5, (steps[j + 1] ?? last + 1) - 0.5]);
  return line("r at most", x, twice(worst.map((r) => (r === null ? null : Math.max(low, Math.min(high, r))))), css("--info"), {
    mode: "lines", line: { color: css("--info"), width: 1.5, dash: "dot" }, customdata: twice(worst.map((r) => (r === null ? "" : short(r)))),
    hovertemplate: "r at most %{customdata} in every group<extra></extra>",
  });
}

// Steps, heights and words of a line that leads over no steps of which nothing is claimed.
function withGaps(run, steps, heights, words) {
  const open = new Set((run.certificates?.steps ?? []).filter((_, j) => run.certificates.states.some((row) => row[j] === OPEN || row[j] === SPANNED)));
  steps.forEach((step) => open.delete(step));
  const points = [...steps.map((step, j) => [step, heights[j], words[j]]), ...[...open].map((step) => [step, null, ""])].sort((a, b) => a[0] - b[0]);
  return [0, 1, 2].map((k) => points.map((point) => point[k]));
}

// A point between two gaps has no line: it is seen by its marker.
const besideGaps = (at, steps) => (at.length > steps.length ? { mode: "lines+markers" } : {});

// The worst group's r as a line: how far below the critical point training stays.
function worstFigure(run, view) {
  if (!run.ratio) return { absent: "No critical ratio in this record." };
  const worstOf = ({ ratio }) => ratio.steps.map((_, j) => Object.values(ratio.columns).map((row) => number(row[j])).reduce((a, b) => (b > a || Number.isNaN(a) ? b : a), NaN));
  const worst = worstOf(run);
  const [least, most] = extremes([1, ...view.runs.filter((r) => r.ratio).flatMap(worstOf), ...view.runs.flatMap((r) => r.certificates?.values.flat().map(number) ?? [])].filter((r) => r > 0 && r < Infinity));
  const [low, high] = [Math.max(least / 2, 10 ** view.ratioRange[0]), Math.min(most * 2, 10 ** view.ratioRange[1])];
  const drawn = worst.map((r) => (Number.isNaN(r) || r === 0 ? null : Math.max(low, Math.min(high, r))));
  const [at, heights, words] = withGaps(run, run.ratio.steps, drawn, worst.map((r) => short(r)));
  const data = [line("largest r", at, heights, css("--first"), { ...besideGaps(at, run.ratio.steps), customdata: words, hovertemplate: "largest r %{customdata}<extra></extra>" })];
  if (run.certificates) data.unshift(boundLine(run.certificates, [low, high]));
  const note = drawn.some((r, j) => r !== null && r !== worst[j]) ? BEYOND : undefined;
  return { data, layout: layout(view, 180, logAxis("Largest r (log scale)", low, high), { ...UNIFIED, shapes: [...openSpans(run), horizontal(1, css("--error")), ...eventLines(run)] }), note };
}

const isLoss = (name) => /loss|nll|perplexity|error/i.test(name);
const loggedLoss = (run) => Object.keys(run.logged).filter(isLoss);

function lossFigure(run, view) {
  const loss = run.curves.loss;
  if (!loss) return { absent: "No loss in this record." };
  const values = finite(loss.columns.loss);
  if (values.every((v) => v === null)) return { absent: "The loss was never a finite number." };
  const all = (r) => [...(r.curves.loss?.columns.loss ?? []), ...loggedLoss(r).flatMap((name) => r.logged[name].columns[name])];
  const [least, most] = extremes(seenIn(view.runs, all));
  const pad = 0.05 * (most - Math.min(0, least) || 1);
  const logs = view.logLoss ?? (least > 0 && most > 30 * least);
  const y = logs && least > 0 ? logAxis("Loss (log scale)", least / 1.2, most * 1.2)
    : axis("Loss", { range: [Math.min(0, least) - pad, most + pad], nticks: 5 });
  const data = [line("loss", loss.steps, values, css("--ink")), ...loggedLoss(run).map((name) => loggedLine(run, name, view))];
  const note = logs && !(least > 0) ? "The loss is not positive everywhere: its axis stays linear." : undefined;
  return { data, layout: layout(view, 210, y, { ...UNIFIED, shapes: [...openSpans(run), ...eventLines(run)] }), note };
}

// Up to three logged series have colours of their own, in both charts and in the legend; more differ in their dashes.
const loggedNames = (runs) => {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.logged)))];
  return [...names.filter(isLoss), ...names.filter((name) => !isLoss(name))];
};
const loggedColour = (name, runs) => css(["--second", "--first", "--third"][loggedNames(runs).indexOf(name) % 3]);

function loggedLine(run, name, view) {
  const colour = loggedColour(name, view.runs);
  const { steps, columns } = run.logged[name];
  const dash = ["dot", "dash", "dashdot"][Math.floor(loggedNames(view.runs).indexOf(name) / 3) % 3];
  return line(name, steps, finite(columns[name]), colour, { mode: "lines+markers", line: { color: colour, width: 2, dash } });
}

function loggedFigure(run, view) {
  const names = Object.keys(run.logged).filter((name) => !isLoss(name));
  if (!names.length) return { absent: "No other metric was logged in validation.", isOptional: true };
  const [least, most] = extremes([...seenIn(view.runs, (r) => names.flatMap((name) => r.logged[name]?.columns[name] ?? []))]);
  const pad = 0.06 * (most - least || 1);
  return {
    data: names.map((name) => loggedLine(run, name, view)),
    layout: layout(view, 190, axis("Validation", { range: [least - pad, most + pad], nticks: 5 }), { ...UNIFIED, shapes: eventLines(run) }),
  };
}

// The learning rate used, and those at which the steps would have met a limit: all in learning rates.
const RATES = [
  ["critical", "η*, where r is 1", "--first", "solid"],
  ["edge", "edge of stability", "--second", "solid"],
  ["curvature", "curvature bound, ηλ = 1", "--third", "dot"],
  ["used", "learning rate", "--ink", "solid"],
];

const BEYOND = "What lies beyond the chart, as 0 and infinity do, is drawn at its edge.";

function ratesFigure(run, view) {
  const named = RATES.filter(([key]) => run.rates[key]);
  if (!run.rates.used) return { absent: "No learning rate in this record." };
  const positive = (r) => RATES.flatMap(([key]) => (r.rates[key] ? finite(r.rates[key].columns[key]) : [])).filter((v) => v > 0);
  const values = view.runs.flatMap(positive);
  if (!values.length) return { absent: "The learning rate was 0 throughout." };
  const used = view.runs.flatMap((r) => (r.rates.used ? finite(r.rates.used.columns.used) : [])).filter((v) => v > 0);
  // Four decades beside the rates used are enough: what is further off limits nothing.
  const [least, most] = extremes(values);
  const [low, high] = [Math.max(least, Math.min(...used) / 1e4), Math.min(most, Math.max(...used) * 1e4)];
  const data = named.map(([key, name, colour, dash]) => {
    const { steps, columns } = run.rates[key];
    const known = finite(columns[key]);
    const points = [steps, known.map((v) => (v > 0 ? Math.min(high, v) : null)), known.map((v) => (v === null ? "" : short(v)))];
    const [at, heights, words] = key === "critical" ? withGaps(run, ...points) : points;
    return line(name, at, heights, css(colour), {
      line: { color: css(colour), width: key === "used" ? 3 : 2, dash, shape: key === "used" ? "hv" : "linear" },
      customdata: words, hovertemplate: `${plain(name)} %{customdata}<extra></extra>`, ...besideGaps(at, steps),
    });
  });
  const limits = ["critical", "edge"].filter((key) => run.rates[key]?.columns[key].some((value) => !Number.isNaN(number(value))));
  const below = limits.some((key) => run.rates[key].steps.some((step, i) => {
    const rate = rateAt(run.rates.used, step);
    return rate !== null && number(run.rates[key].columns[key][i]) <= rate;
  }));
  const kept = below ? undefined
    : limits.length ? "The learning rate stayed below the measured limits throughout." : "No limit was measured.";
  const off = positive(run).some((v) => v > high || v < low);
  const note = [kept, off ? BEYOND : undefined].filter(Boolean).join(" ") || undefined;
  return { data, layout: layout(view, 250, logAxis("Learning rate (log scale)", low / 1.5, high * 1.5), { ...UNIFIED, shapes: [...openSpans(run), ...eventLines(run)] }), note };
}

function rateAt({ steps, columns }, step) {
  let rate = null;
  for (let i = 0; i < steps.length && steps[i] <= step; i++) rate = columns.used[i];
  return rate;
}

// The ratios that are 1 at the edge of stability. The last two, noisy, are of single steps: drawn only without others.
const EDGES = [
  ["batch_sharpness_ratio", "batch sharpness ratio", "--third", "solid"],
  ["sharpness_ratio", "sharpness ratio", "--second", "solid"],
  ["directional_ratio", "directional ratio", "--second", "dash"],
  ["critical_sharpness", "critical sharpness", "--third", "dash"],
];

function limitsOf(run) {
  const known = EDGES.slice(0, 2).filter(([key]) => run.curves[key]);
  return [...(known.length ? known : EDGES), ["eta_lambda", "ηλ", "--first", "dot"]].filter(([key]) => run.curves[key]);
}

function edgeFigure(run, view) {
  const data = limitsOf(run).map(([key, name, colour, dash]) => {
    const { steps, columns } = run.curves[key];
    return line(name, steps, finite(columns[key]), css(colour), { line: { color: css(colour), width: 2, dash } });
  });
  if (!data.length) return { absent: `No edge ratio in this record. ${run.silence.sharpness}` };
  const [least, most] = extremes([1, ...view.runs.flatMap((r) => limitsOf(r).flatMap(([key]) => seenIn([r], (own) => own.curves[key].columns[key])))].filter((v) => v !== 0));
  const y = most > 30 && least > 0 ? logAxis("Ratio to its limit", least / 1.5, most * 1.5)
    : axis("Ratio to its limit", { range: [1.08 * Math.min(0, least), Math.max(1.15, 1.08 * most)], nticks: 6 });
  return { data, layout: layout(view, 240, y, { ...UNIFIED, shapes: [...openSpans(run), horizontal(1, css("--muted")), ...eventLines(run)] }) };
}

function crockerFigure(k) {
  return (run, view) => {
    const detail = groupOf(run, view);
    if (detail.absent) return detail;
    if (!detail.crocker) return { absent: `No persistence diagram of this group. ${run.silence.persistence}` };
    if (!detail.crocker.betti[k]) return { absent: `The diagrams of this record end below dimension ${k} (max_dim).` };
    const { steps, scales, betti } = detail.crocker;
    const flat = unpack(betti[k]);
    const at = (i, j) => flat[i * scales.length + j];
    const least = k === 0 ? 1 : 0.5;
    const top = countTop(view, k);
    const counts = scales.map((_, j) => steps.map((_, i) => at(i, j)));
    const ratio = scales.length > 1 ? Math.sqrt(scales[1] / scales[0]) : 1.1;
    const edges = [...scales.map((s) => s / ratio), scales[scales.length - 1] * ratio];
    // Beyond its own scales, where another run's axis goes on, nothing changes any more.
    edges[0] = Math.min(edges[0], view.scaleRange[0]);
    edges[scales.length] = Math.max(edges[scales.length], view.scaleRange[1]);
    const unit = k === 0 ? "pieces" : "loops";
    return {
      data: [{
        type: "heatmap", name: `b${k}`, x: cells(steps, run.outcome.last_step), y: edges, zmin: Math.log10(least), zmax: Math.log10(top),
        z: counts.map((row) => row.map((n) => (n > 0 ? Math.log10(n) : null))), customdata: counts,
        colorscale: COUNTS.map((c, i) => [i / (COUNTS.length - 1), c]), showscale: false, zsmooth: false, hoverongaps: false,
        text: counts.map((row, j) => row.map((n, i) => `${count(n)} ${unit} at scale ${short(scales[j])}<br>captured at step ${count(steps[i])}`)),
        hovertemplate: "%{text}<extra></extra>",
      }],
      layout: layout(view, 320, logAxis("Scale (distance between neurons)", ...view.scaleRange),
        { plot_bgcolor: css("--hole"), shapes: eventLines(run, { group: view.group, onMap: true }) }),
    };
  };
}

// The largest Betti number of the chosen group in any run: colours mean the same in each.
function countTop(view, k) {
  let top = 2;
  for (const run of view.runs) {
    const packed = run.details[run.groups.indexOf(view.group)]?.crocker?.betti[k];
    if (packed) for (const n of unpack(packed)) top = Math.max(top, n);
  }
  return top;
}

function groupOf(run, view) {
  const detail = run.details[run.groups.indexOf(view.group)];
  return detail ?? { absent: view.group === undefined ? "No group of neurons has been measured." : "This run has no group of this name." };
}

function slideAt(slides, step) {
  let nearest = 0;
  slides.steps.forEach((s, i) => { if (Math.abs(s - step) < Math.abs(slides.steps[nearest] - step)) nearest = i; });
  return nearest;
}

const DIMENSIONS = [["--first", "circle", "pieces (H0)"], ["--second", "diamond", "loops (H1)"], ["--third", "square", "voids (H2)"]];

function diagramFigure(run, view) {
  const detail = groupOf(run, view);
  if (detail.absent) return detail;
  if (!detail.slides) return { absent: `No persistence diagram of this group. ${run.silence.persistence}` };
  const { slides } = detail;
  const index = slideAt(slides, view.capture);
  const [low, top] = view.barRange;
  const forever = top + 0.1 * (top - low);
  const end = top + 0.16 * (top - low);
  const data = slides.marks.map((marks, k) => {
    const here = (packed) => Array.from(unpack(packed).subarray(marks.offsets[index], marks.offsets[index + 1]));
    const deaths = here(marks.deaths).map((q) => (q === NEVER ? forever : q * slides.unit));
    const births = marks.births ? here(marks.births).map((q) => q * slides.unit) : deaths.map(() => 0);
    const [colour, symbol, name] = DIMENSIONS[Math.min(k, 2)];
    return {
      type: "scatter", mode: "markers", name, x: births, y: deaths, cliponaxis: false, customdata: deaths.map((d) => (d === forever ? "never" : short(d))),
      // All pieces are born at 0: they have a strip of their own, so that the loops have the room.
      xaxis: k === 0 ? "x2" : "x", marker: { color: css(colour), symbol, size: 7, opacity: 0.75, line: { width: 0.5, color: css("--card") } },
      hovertemplate: `${name}<br>born at %{x:.4g}, gone at %{customdata}<extra></extra>`,
    };
  });
  if (data.length === 1) data.push({ type: "scatter", mode: "markers", name: "", x: [], y: [] });
  const figure = layout(view, 340, axis("Death (distance)", { nticks: 6, range: [low, end], anchor: "x2" }), {
    xaxis: axis("Birth (distance)", { nticks: 5, range: [low, end], domain: [0.15, 1] }),
    xaxis2: axis("", { range: [-1, 1], tickvals: [0], ticktext: ["0"], domain: [0, 0.09], showgrid: false }),
    shapes: [
      { type: "line", x0: low, y0: low, x1: end, y1: end, line: { color: css("--muted"), width: 1.5, dash: "dot" } },
      horizontal(forever, css("--rule")),
    ],
    annotations: [{ x: 0.5, xref: "paper", xanchor: "center", y: forever, yanchor: "bottom", text: "never gone (∞)", showarrow: false, font: { size: 12, color: css("--muted") } }],
  });
  const bars = slides.marks.map((marks, k) => `${count(marks.n_bars[index])} bars in H${k}`).join(", ");
  return { data, layout: figure, note: `Captured at step ${count(slides.steps[index])}: ${bars}.` };
}

// The axis that all captures of a group share: from 0, or from just below the shortest bar's end where that saves room.
function barRange(details) {
  let [low, top] = [Infinity, 0];
  for (const { slides } of details) {
    for (const marks of slides?.marks ?? []) {
      for (const packed of [marks.deaths, marks.births]) {
        if (packed) for (const q of unpack(packed)) if (q !== NEVER) [low, top] = [Math.min(low, q * slides.unit), Math.max(top, q * slides.unit)];
      }
    }
  }
  if (!(top > 0)) return [0, 1];
  return low > 0.35 * top ? [low - 0.1 * (top - low || top), top] : [0, top];
}

// A band between two lines on a log axis; what is 0 or infinite is drawn at the edge and said so.
function bandFigure(prefix, title) {
  const read = (run, view) => ["contraction", "expansion"].map((name) => groupOf(run, view).band?.columns[prefix + name]?.map(number));
  return (run, view) => {
    const detail = groupOf(run, view);
    if (detail.absent) return detail;
    const [low, high] = read(run, view);
    if (!low || !high) return { absent: `${title}: not in this record.` };
    const [least, most] = extremes([0.999, 1.001, ...view.runs.flatMap((r) => read(r, view).flat()).filter((v) => v > LOG_LIMITS[0] && v < LOG_LIMITS[1])]);
    const pad = (most / least) ** 0.08;
    const clip = (v) => Math.min(most * pad, Math.max(least / pad, v));
    const { steps } = detail.band;
    const edge = (name, values, from, to, more) => line(name, steps.slice(from, to), values.slice(from, to).map(clip), css("--first"), {
      mode: to - from > 1 ? "lines" : "markers", customdata: values.slice(from, to).map(short), hovertemplate: `${name} %{customdata}<extra></extra>`, ...more,
    });
    // A fill cannot jump over what was not measured: each measured stretch is a band of its own.
    const data = [];
    for (let from = 0; from < steps.length; ) {
      let to = from;
      while (to < steps.length && !Number.isNaN(low[to]) && !Number.isNaN(high[to])) to++;
      if (to > from) data.push(edge("contraction", low, from, to), edge("expansion", high, from, to, { fill: "tonexty", fillcolor: css("--shade") }));
      from = to + 1;
    }
    const off = [...low, ...high].some((v) => clip(v) !== v && !Number.isNaN(v));
    return {
      data, layout: layout(view, 190, logAxis(title, least / pad, most * pad), { ...UNIFIED, shapes: [...openSpans(run), horizontal(1, css("--muted"), "dot"), ...eventLines(run, { group: view.group })] }),
      note: off ? BEYOND : undefined,
    };
  };
}

function bettiFigure(run, view) {
  const detail = groupOf(run, view);
  if (detail.absent) return detail;
  const found = [0, 1].filter((k) => detail.change?.columns[`betti_${k}`]);
  if (!found.length) return { absent: `No Betti numbers in this record. ${run.silence.persistence}` };
  const data = found.map((k) => line(`b${k}`, detail.change.steps, finite(detail.change.columns[`betti_${k}`]), css(DIMENSIONS[k][0]), {
    line: { color: css(DIMENSIONS[k][0]), width: 2, shape: "hv", dash: ["solid", "dash"][k] },
  }));
  const most = extremes([1, ...found.flatMap((k) => seenIn(view.runs, (r) => groupOf(r, view).change?.columns[`betti_${k}`]))])[1];
  const y = axis("Betti number", { range: [-0.04 * most, most * 1.1], tickformat: ",d", ...(most < 6 ? { dtick: 1 } : { nticks: 5 }) });
  return { data, layout: layout(view, 190, y, { ...UNIFIED, shapes: eventLines(run, { group: view.group }) }) };
}

function changeFigure(run, view) {
  const detail = groupOf(run, view);
  if (detail.absent) return detail;
  const columns = detail.change?.columns ?? {};
  const found = [0, 1].filter((k) => columns[`log_bottleneck_${k}`]);
  if (!found.length) return { absent: "No change between captures yet: it takes two captures." };
  const { steps } = detail.change;
  const data = found.map((k) => line(`change of H${k}`, steps, finite(columns[`log_bottleneck_${k}`]), css(DIMENSIONS[k][0]), {
    line: { color: css(DIMENSIONS[k][0]), width: 2, dash: ["solid", "dash"][k] },
  }));
  if (columns.log_bottleneck_bound) {
    data.unshift(line("explained by distortion", steps, finite(columns.log_bottleneck_bound), css("--info"), {
      fill: "tozeroy", fillcolor: css("--grey-shade"), mode: "lines", line: { color: css("--info"), width: 1 },
    }));
  }
  const names = [...found.map((k) => `log_bottleneck_${k}`), "log_bottleneck_bound"];
  const most = extremes([1e-6, ...names.flatMap((name) => seenIn(view.runs, (r) => groupOf(r, view).change?.columns[name]))])[1];
  const y = axis("Log-bottleneck distance", { range: [0, 1.08 * most], nticks: 5 });
  return { data, layout: layout(view, 210, y, { ...UNIFIED, shapes: eventLines(run, { group: view.group }) }) };
}
