// Draws the figures, the family tree and the candidates of a report. The figures are computed in
// Python; only the telemetry of a candidate is unpacked here, when the candidate is selected.
"use strict";

const { charts, colors, candidates, chosen } = JSON.parse(document.getElementById("data").textContent);
const byId = new Map(candidates.all.map((candidate, order) => [candidate.id, Object.assign(candidate, { order })]));
const baseline = candidates.all[0];
const element = (id) => document.getElementById(id);

// Figures --------------------------------------------------------------------------------------

const CONFIG = { displayModeBar: false, responsive: true, scrollZoom: false };
const touch = matchMedia("(pointer: coarse)");

/** Replaces light colours, and names of CSS variables such as "--best", by those of the theme. */
function themed(value) {
  const style = getComputedStyle(document.documentElement);
  const resolve = (node) => {
    if (typeof node === "string") {
      const name = Object.hasOwn(colors, node) ? colors[node] : node;
      return name.startsWith("--") ? style.getPropertyValue(name).trim() : node;
    }
    if (Array.isArray(node)) return typeof node[0] === "number" ? node : node.map(resolve);
    if (node && typeof node === "object") {
      return Object.fromEntries(Object.entries(node).map(([key, inner]) => [key, resolve(inner)]));
    }
    return node;
  };
  return resolve(value);
}

function axis(own = {}) {
  const title = own.title ? { ...own.title, standoff: 8, font: { size: 12, color: "--soft" } } : undefined;
  return {
    gridcolor: "--line", linecolor: "--line", zeroline: false, automargin: true,
    ...(own.type === "category" ? {} : { nticks: innerWidth < 520 ? 4 : 6, tickangle: 0 }),
    tickfont: { size: 12, color: "--soft" }, ...own, title,
  };
}

function layoutOf(own) {
  return {
    margin: { l: 52, r: 14, t: 12, b: 44 }, showlegend: false,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: "--ink" },
    hoverlabel: { bgcolor: "--panel", bordercolor: "--line", font: { color: "--ink" } },
    // A legend cannot be used by keyboard, and dragging scrolls on a phone.
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, itemclick: false, itemdoubleclick: false },
    dragmode: touch.matches ? false : "zoom",
    ...own,
    xaxis: axis(own.xaxis), yaxis: axis(own.yaxis),
  };
}

function draw(plot, data, layout) {
  return Plotly.react(plot, themed(data), themed(layoutOf(layout)), CONFIG);
}

// Figures are drawn when they come near the window, so that a long page opens quickly.
const painters = new Map();
const drawn = (plot) => plot.dataset.drawn !== undefined;
const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) if (isIntersecting) paint(target);
}, { rootMargin: "200px" });

function paint(plot) {
  near.unobserve(plot);
  painters.get(plot)();
  plot.dataset.drawn = "true";
}

/** Draws an element when it comes near the window, and again at each `repaint`. */
function whenNear(plot, painter) {
  painters.set(plot, painter);
  near.observe(plot);
}

function repaint(plot) {
  if (drawn(plot)) painters.get(plot)();
}

function watchCharts() {
  for (const plot of document.querySelectorAll("[data-chart]")) {
    const { data, layout } = charts[plot.dataset.chart];
    whenNear(plot, () => draw(plot, data, layout));
  }
}

// Candidates -----------------------------------------------------------------------------------

const number = (x, digits = 4) => (x === null ? "failed" : x.toFixed(digits));
const signed = (x) => (x === null ? "" : (x < 0 ? "-" : "+") + Math.abs(x).toFixed(4));
/** Escapes text that Plotly would otherwise interpret as tags. */
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
const status = (candidate) => candidate.status.replace("_", " ") + (candidate.control ? ", control" : "");

function lineage(candidate) {
  const chain = [];
  for (let at = candidate; at; at = byId.get(at.parent)) chain.unshift(at);
  return chain;
}

/** Fields in which two candidates differ, as [path, before, after]. */
function differences(before, after) {
  const value = (candidate, field) => (candidate.own.find(([i]) => i === field) ?? [0, candidates.values[field]])[1];
  const fields = [...new Set([...before.own, ...after.own].map(([i]) => i))].sort((a, b) => a - b);
  return fields
    .map((i) => [candidates.paths[i], value(before, i), value(after, i)])
    .filter(([, old, now]) => old !== now);
}

/** Returns a candidate's telemetry by column, and its steps; see `candidates.pack` in Python. */
function unpack({ steps, points, data }) {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer), count = candidates.columns.length, columns = {};
  candidates.columns.forEach((name, i) => {
    const low = view.getFloat32(4 * i, true), span = view.getFloat32(4 * (count + i), true);
    columns[name] = Array.from({ length: points }, (_, j) => {
      const level = view.getUint16(8 * count + 2 * (i * points + j), true);
      return level === 65535 ? null : low + (span * level) / 65534;
    });
  });
  const at = (i) => (points < 2 ? 0 : Math.floor((i * (steps - 1)) / (points - 1)));
  return { steps: Array.from({ length: points }, (_, i) => at(i)), columns };
}

// The family tree ------------------------------------------------------------------------------

const KINDS = [
  ["rejected", { symbol: "circle-open", color: "--soft", size: 8 }],
  ["survivor", { symbol: "circle", color: "--best", size: 10 }],
  ["control", { symbol: "triangle-up-open", color: "--pink", size: 10 }],
  ["retuned baseline", { symbol: "pentagon", color: "--pink", size: 12 }],
  ["dead", { symbol: "x", color: "--other", size: 9 }],
  ["baseline", { symbol: "square", color: "--baseline", size: 12 }],
  ["promoted", { symbol: "diamond", color: "--good", size: 14 }],
  ["winner", { symbol: "star", color: "--good", size: 17 }],
];
const NAMED = ["baseline", "promoted", "winner"];
const kind = (candidate) => (candidate.control && !candidate.failure ? "control" : candidate.status.replace("_", " "));

/** Positions of all candidates by generation and gain; failed ones are at the bottom. */
function layOut() {
  const gains = candidates.all.map((candidate) => candidate.gain).filter((x) => x !== null).sort((a, b) => a - b);
  const quartile = (share) => gains[Math.floor(share * (gains.length - 1))];
  // A candidate beyond Tukey's outer fence would compress the others.
  const fence = quartile(0.25) - 3 * (quartile(0.75) - quartile(0.25));
  const floor = Math.max(gains[0], Math.min(fence, 0)), top = gains[gains.length - 1];
  const room = Math.max(top - floor, 1e-6), bottom = floor - 0.12 * room;
  const sizes = new Map(), positions = new Map();
  for (const { id, generation, gain } of candidates.all) {
    // Side by side within a generation, so that equal gains do not overlap.
    const number = sizes.get(generation) ?? 0;
    sizes.set(generation, number + 1);
    positions.set(id, { number, y: gain === null ? bottom : Math.max(gain, floor) });
  }
  for (const { id, generation } of candidates.all) {
    const position = positions.get(id), size = sizes.get(generation);
    position.x = generation + (size < 2 ? 0 : 0.5 * (position.number / (size - 1) - 0.5));
  }
  const low = candidates.all.filter(({ gain }) => gain !== null && gain < floor).length;
  const failed = candidates.all.filter(({ gain }) => gain === null).length;
  return { positions, floor, bottom, top, room, low, failed };
}

const tree = layOut();
const positionOf = (candidate) => tree.positions.get(candidate.id);

function edges(pairs, line, name) {
  const x = [], y = [];
  for (const [from, to] of pairs) {
    x.push(positionOf(from).x, positionOf(to).x, null);
    y.push(positionOf(from).y, positionOf(to).y, null);
  }
  return { type: "scatter", mode: "lines", name, x, y, line, hoverinfo: "skip", showlegend: false };
}

function drawTree() {
  const pairs = candidates.all.filter((c) => c.parent).map((c) => [byId.get(c.parent), c]);
  const data = [edges(pairs, { color: "--edge", width: 1 }, "edges")];
  const many = candidates.all.length > 400;
  for (const [name, look] of KINDS) {
    const marker = { ...look, size: look.size * (many && look.size < 12 ? 0.6 : 1) };
    const group = candidates.all.filter((c) => kind(c) === name);
    if (!group.length) continue;
    const named = NAMED.includes(name);
    data.push({
      type: "scatter", mode: named ? "markers+text" : "markers", name, marker,
      x: group.map((c) => positionOf(c).x), y: group.map((c) => positionOf(c).y),
      text: group.map((c) => plain(c.id)), customdata: group.map((c) => c.id), textposition: "top center",
      hovertext: group.map((c) => `${plain(c.id)}, ${status(c)}<br>${c.failure ? "failed" : signed(c.gain)} bpb<br>${plain(c.operator ?? "")}`),
      hovertemplate: "%{hovertext}<extra></extra>",
    });
  }
  const last = candidates.all[candidates.all.length - 1].generation;
  return draw(element("tree-chart"), data, {
    margin: { l: 60, r: 24, t: 16, b: 44 }, showlegend: true, uirevision: "tree",
    xaxis: { title: { text: "generation" }, range: [-0.5, last + 0.5], tick0: 0, ...(last < 12 ? { dtick: 1 } : {}) },
    yaxis: {
      title: { text: "gain over the baseline, bits per byte" }, tickformat: "+.4~f",
      range: [(tree.failed ? tree.bottom : tree.floor) - 0.07 * tree.room, tree.top + 0.12 * tree.room],
    },
    ...treeMarks(),
  });
}

/** Marks of the selected candidate (lineage, ring and name), and the line of the baseline. */
function treeMarks() {
  const candidate = state.selected, { x, y } = positionOf(candidate);
  const path = lineage(candidate).map((at, i) => `${i ? "L" : "M"}${positionOf(at).x},${positionOf(at).y}`).join("");
  return {
    shapes: [
      { type: "line", xref: "paper", x0: 0, x1: 1, y0: 0, y1: 0, layer: "below",
        line: { color: "--baseline", width: 1, dash: "dash" } },
      { type: "path", path, layer: "between", line: { color: "--ink", width: 2.5 } },
      { type: "circle", xsizemode: "pixel", ysizemode: "pixel", xanchor: x, yanchor: y,
        x0: -11, x1: 11, y0: -11, y1: 11, line: { color: "--ink", width: 2.5 } },
    ],
    annotations: NAMED.includes(kind(candidate)) ? [] : [{ x, y, yshift: 21, text: plain(candidate.id), showarrow: false, font: { size: 13, color: "--ink" } }],
  };
}

/** Moves the marks of the selected candidate without drawing all nodes again. */
function markTree() {
  return Plotly.relayout(element("tree-chart"), themed(treeMarks()));
}

function treeNote() {
  const parts = [];
  if (tree.failed) parts.push(`${tree.failed} failed ${tree.failed === 1 ? "candidate is" : "candidates are"} at the bottom.`);
  if (tree.low) parts.push(`${tree.low} ${tree.low === 1 ? "candidate is" : "candidates are"} below the range of the figure and drawn at its lower edge.`);
  return parts.join(" ");
}

/** Returns the neighbour of a candidate in the direction of an arrow key. */
function neighbour(candidate, key) {
  const best = (some) => some.sort((a, b) => (b.gain ?? -Infinity) - (a.gain ?? -Infinity))[0];
  if (key === "ArrowLeft") return byId.get(candidate.parent);
  if (key === "ArrowRight") return best(candidates.all.filter((c) => c.parent === candidate.id));
  const row = candidates.all.filter((c) => c.generation === candidate.generation);
  row.sort((a, b) => positionOf(b).y - positionOf(a).y || a.order - b.order);
  return row[row.indexOf(candidate) + (key === "ArrowDown" ? 1 : -1)];
}

// The list -------------------------------------------------------------------------------------

const PAGE = 20;
const ORDERS = {
  gain: (a, b) => (b.gain ?? -Infinity) - (a.gain ?? -Infinity) || a.order - b.order,
  over_parent: (a, b) => (b.over_parent ?? -Infinity) - (a.over_parent ?? -Infinity) || a.order - b.order,
  order: (a, b) => a.order - b.order,
};
const state = { selected: byId.get(chosen), rows: [], page: 0 };

function matching() {
  const words = element("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (candidate) => `${candidate.id} ${status(candidate)} ${candidate.operator ?? ""} ${candidate.origin}`.toLowerCase();
  const rows = candidates.all.filter((candidate) => words.every((word) => text(candidate).includes(word)));
  return rows.sort(ORDERS[element("order").value]);
}

function cell(tag, text) {
  const node = document.createElement(tag);
  node.textContent = text;
  return node;
}

function row(candidate) {
  const line = document.createElement("tr"), head = document.createElement("th");
  const button = cell("button", candidate.id);
  button.type = "button";
  button.dataset.id = candidate.id;
  button.tabIndex = -1;
  head.scope = "row";
  head.append(button);
  line.append(head, ...[status(candidate), number(candidate.bpb[0]), signed(candidate.gain), candidate.operator ?? ""].map((text) => cell("td", text)));
  return line;
}

function fillList(focus) {
  const pages = Math.max(1, Math.ceil(state.rows.length / PAGE));
  state.page = Math.min(Math.max(state.page, 0), pages - 1);
  const shown = state.rows.slice(state.page * PAGE, (state.page + 1) * PAGE);
  element("list").tBodies[0].replaceChildren(...shown.map(row));
  element("page").textContent = `${state.rows.length} found, page ${state.page + 1} of ${pages}`;
  element("previous").disabled = state.page === 0;
  element("next").disabled = state.page === pages - 1;
  markList(focus);
}

/** Marks the selected row. Tab reaches a single button of the list, and arrow keys the others. */
function markList(focus) {
  const buttons = [...element("list").querySelectorAll("button")];
  for (const button of buttons) {
    const here = button.dataset.id === state.selected.id;
    button.closest("tr").classList.toggle("chosen", here);
    button.setAttribute("aria-current", here);
    button.tabIndex = -1;
  }
  const entry = buttons.find((b) => b.dataset.id === (focus ?? state.selected.id)) ?? buttons[0];
  if (entry) entry.tabIndex = 0;
  if (entry && focus) entry.focus();
}

function moveInList(event) {
  const at = state.rows.findIndex((candidate) => candidate.id === event.target.dataset.id);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: state.rows.length - 1 }[event.key];
  if (to === undefined || at < 0) return;
  event.preventDefault();
  if (!state.rows[to]) return;
  state.page = Math.floor(to / PAGE);
  fillList(state.rows[to].id);
}

function refill() {
  state.rows = matching();
  state.page = Math.max(0, Math.floor(state.rows.indexOf(state.selected) / PAGE));
  fillList();
}

// One candidate --------------------------------------------------------------------------------

function fillTable(table, head, rows) {
  const heads = document.createElement("tr");
  heads.append(...head.map((text) => Object.assign(cell("th", text), { scope: "col" })));
  const lines = rows.map((texts) => {
    const line = document.createElement("tr");
    line.append(...texts.map((text, i) => cell(i ? "td" : "th", text)));
    return line;
  });
  const top = document.createElement("thead"), body = document.createElement("tbody");
  top.append(heads);
  body.append(...lines);
  table.replaceChildren(...(rows.length ? [top, body] : []));
}

function showDetails() {
  const candidate = state.selected, parent = byId.get(candidate.parent);
  element("details-title").textContent = candidate.id;
  element("details-summary").textContent =
    `${status(candidate)}, generation ${candidate.generation}; ${number(candidate.bpb[0])} bpb in screening` +
    (candidate.gain === null ? "" : `, ${signed(candidate.gain)} over the baseline`) +
    (candidate.over_parent === null || !parent ? "" : `, ${signed(candidate.over_parent)} over its parent`) +
    `; ${candidate.cost.toFixed(3)}x the baseline's FLOPs.`;
  element("details-failure").textContent = candidate.failure
    ? `Failed at step ${candidate.failure.step}: ${candidate.failure.reason}.` : "";
  element("details-lineage").replaceChildren(...lineage(candidate).map((at) => cell("li", at.origin)));
  const diff = parent ? differences(parent, candidate) : [], own = differences(baseline, candidate);
  element("details-diff-title").textContent = parent
    ? `Changes from its parent, ${parent.id}` : "No parent";
  fillTable(element("details-diff"), ["field", "before", "after"], diff);
  element("details-own-title").textContent = `Changes from the baseline: ${own.length} ${own.length === 1 ? "field" : "fields"}`;
  fillTable(element("details-own"), ["field", "baseline", candidate.id], own);
  fillTable(element("details-seeds"), ["seed", "stage", "bpb", "gain"],
    candidate.seeds.map((seed, i) => [seed, i ? "promotion" : "screening", number(candidate.bpb[i]), signed(candidate.gains[i])]));
  repaint(element("details-chart"));
}

/** Draws small figures of the validation curve and of each telemetry column. */
function drawTelemetry() {
  const candidate = state.selected, plot = element("details-chart");
  if (!candidate.telemetry) {
    Plotly.purge(plot);
    plot.style.height = "0";
    element("details-telemetry").textContent = "The run folder has no telemetry of this candidate.";
    return;
  }
  const { steps, columns } = unpack(candidate.telemetry);
  const cells = [["validation, bpb", candidate.curve.map(([s]) => s), candidate.curve.map(([, v]) => v)]];
  for (const [name, values] of Object.entries(columns)) cells.push([name.replaceAll("_", " "), steps, values]);
  const across = plot.clientWidth < 380 ? 2 : 3, down = Math.ceil(cells.length / across);
  const data = [], layout = { annotations: [], margin: { l: 4, r: 8, t: 4, b: 4 } };
  const height = 122 * down, above = 22 / height, below = 24 / height;  // space for names and ticks
  cells.forEach(([name, x, y], i) => {
    const left = (i % across) / across, top = 1 - Math.floor(i / across) / down, suffix = i ? i + 1 : "";
    data.push({ type: "scatter", mode: i ? "lines" : "lines+markers", name, x, y, xaxis: `x${suffix}`, yaxis: `y${suffix}`,
      line: { color: "--best", width: 1.5 }, marker: { color: "--best", size: 5 } });
    const domains = [[left + 0.09, left + 1 / across - 0.01], [top - 1 / down + below, top - above]];
    const small = { tickfont: { size: 10, color: "--soft" }, automargin: false, nticks: 4 };
    layout[`xaxis${suffix}`] = axis({ ...small, domain: domains[0], anchor: `y${suffix}`, nticks: 3 });
    layout[`yaxis${suffix}`] = axis({ ...small, domain: domains[1], anchor: `x${suffix}` });
    layout.annotations.push({ text: name, showarrow: false, xref: "paper", yref: "paper", x: domains[0][0], xanchor: "left",
      y: domains[1][1], yanchor: "bottom", font: { size: 11, color: "--soft" } });
  });
  plot.style.height = `${height + 8}px`;
  draw(plot, data, layout);
  const kept = candidate.telemetry.points === candidate.telemetry.steps ? "every step" : `${candidate.telemetry.points} of ${candidate.telemetry.steps} steps`;
  element("details-telemetry").textContent = `By step: ${kept}, 16 bits per number.`;
}

function choose(candidate, { list = true, scroll = false } = {}) {
  if (!candidate) return;
  state.selected = candidate;
  if (drawn(element("tree-chart"))) markTree();
  showDetails();
  if (list && state.rows.includes(candidate)) {
    state.page = Math.floor(state.rows.indexOf(candidate) / PAGE);
    fillList();
  } else {
    markList();
  }
  const details = element("details");
  if (scroll && details.getBoundingClientRect().top > innerHeight - 120) details.scrollIntoView();
}

// Start ---------------------------------------------------------------------------------------

/** Draws the tree and listens to clicks, which Plotly reports only after the first drawing. */
function firstTree() {
  const plot = element("tree-chart");
  drawTree();
  plot.on("plotly_click", ({ points }) => {
    const id = points.map((point) => point.customdata).find(Boolean);
    choose(byId.get(id), { scroll: true });
  });
  painters.set(plot, drawTree);
}

function begin() {
  watchCharts();
  whenNear(element("tree-chart"), firstTree);
  whenNear(element("details-chart"), drawTelemetry);
  element("tree-note").textContent = treeNote();
  refill();
  choose(state.selected);
  element("tree-chart").addEventListener("keydown", (event) => {
    if (!/^Arrow(Left|Right|Up|Down)$/.test(event.key)) return;
    event.preventDefault();
    choose(neighbour(state.selected, event.key));
  });
  element("list").addEventListener("click", ({ target }) => {
    const id = target.closest("tbody tr")?.querySelector("button").dataset.id;
    if (!id) return;
    choose(byId.get(id), { list: false, scroll: true });
    markList(id);
  });
  element("list").addEventListener("keydown", moveInList);
  element("search").addEventListener("input", refill);
  element("order").addEventListener("change", refill);
  element("previous").addEventListener("click", () => { state.page -= 1; fillList(); });
  element("next").addEventListener("click", () => { state.page += 1; fillList(); });
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", () => [...painters.keys()].forEach(repaint));
  addEventListener("beforeprint", () => [...painters.keys()].forEach((plot) => drawn(plot) || paint(plot)));
  document.documentElement.dataset.ready = "true";
}

begin();
