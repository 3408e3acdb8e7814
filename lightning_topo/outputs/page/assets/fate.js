// What becomes of a group's neurons: how many are alive, independent, pointing in directions of their own, merged.

const FATES = [["alive", "--third", "solid"], ["independent", "--first", "solid"], ["directions", "--second", "dash"], ["in one point", "--muted", "dot"]];

function fateCounts({ columns }) {
  const of = (name) => columns[name] && finite(columns[name]);
  const [all, vanishing] = [of("measured_neurons"), of("vanishing_neurons")];
  const alive = all && vanishing && all.map((n, j) => (n === null || vanishing[j] === null ? null : n - vanishing[j]));
  return { alive, independent: of("independent_neurons"), directions: of("aligned_clusters"), "in one point": of("largest_multiplicity") };
}

// How many neurons are in each set of equal ones, by step: "5, 3, 2 and 4 more in smaller sets". A record of before has no sizes.
function setSizes({ steps, columns }) {
  const read = (name) => (columns[name] ? finite(columns[name]) : steps.map(() => null));
  const [sets, merged, ...ranks] = ["merged_classes", "merged_neurons", 1, 2, 3, 4, 5, 6, 7, 8].map((k) => read(typeof k === "number" ? `multiplicity_${k}` : k));
  return steps.map((_, j) => {
    const sizes = ranks.map((rank) => rank[j]).filter((v) => v !== null);
    if (sizes.length < 2) return "";
    const rest = sets[j] > sizes.length ? merged[j] - sizes.reduce((a, b) => a + b, 0) : 0;
    return ` (sets of ${sizes.map(count).join(", ")}${rest > 0 ? ` and ${count(rest)} more in smaller sets` : ""})`;
  });
}

function fateFigure(run, view) {
  const detail = groupOf(run, view);
  if (detail.absent) return detail;
  if (!detail.fate) return { absent: `No fate of neurons in this record. ${run.silence.fate}` };
  const counts = fateCounts(detail.fate);
  const data = FATES.filter(([name]) => counts[name]).map(([name, colour, dash]) => line(name, detail.fate.steps, counts[name], css(colour), {
    line: { color: css(colour), width: 2, dash },
    ...(name === "in one point" ? { customdata: setSizes(detail.fate), hovertemplate: `${name} %{y:.4g}%{customdata}<extra></extra>` } : {}),
  }));
  const most = extremes([1, ...seenIn(view.runs, (r) => groupOf(r, view).fate?.columns.measured_neurons)])[1];
  const y = axis("Neurons", { range: [-0.03 * most, 1.08 * most], tickformat: ",d", nticks: 5 });
  return { data, layout: layout(view, 210, y, { shapes: [horizontal(most, css("--rule")), ...eventLines(run, { group: view.group })] }) };
}

function fateLegend() {
  const known = new Set(page.runs.flatMap((run) => run.details.filter((d) => d.fate).flatMap((d) => Object.entries(fateCounts(d.fate)).filter(([, v]) => v).map(([name]) => name))));
  return FATES.filter(([name]) => known.has(name)).map(([name, colour, dash]) => swatch(name, css(colour), dash === "solid" ? "line" : "dash"));
}
