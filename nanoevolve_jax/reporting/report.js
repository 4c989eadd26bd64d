// Draws the figures, the family tree and the candidates of a report. No figure is computed here
// but for the telemetry of a candidate, which is unpacked when it is looked at.
"use strict";

const { charts, candidates, chosen } = JSON.parse(document.getElementById("data").textContent);
const byId = new Map(candidates.all.map((one, born) => [one.id, Object.assign(one, { born })]));
const baseline = candidates.all[0];
const element = (id) => document.getElementById(id);

// Figures --------------------------------------------------------------------------------------

const CONFIG = { displayModeBar: false, responsive: true, scrollZoom: false };
const touch = matchMedia("(pointer: coarse)");

/** Replaces names of CSS variables, "--best", by their values on this page. */
function themed(value) {
  const style = getComputedStyle(document.documentElement);
  const resolve = (node) => {
    if (typeof node === "string") return node.startsWith("--") ? style.getPropertyValue(node).trim() : node;
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
    // Only the mouse could click a legend, and on a phone dragging is for scrolling.
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, itemclick: false, itemdoubleclick: false },
    dragmode: touch.matches ? false : "zoom",
    ...own,
    xaxis: axis(own.xaxis), yaxis: axis(own.yaxis),
  };
}

function draw(place, data, layout) {
  return Plotly.react(place, themed(data), themed(layoutOf(layout)), CONFIG);
}

// A figure is drawn when it comes near the window, so that a long page opens at once.
const painters = new Map();
const drawn = (place) => place.dataset.drawn !== undefined;
const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) if (isIntersecting) paint(target);
}, { rootMargin: "200px" });

function paint(place) {
  near.unobserve(place);
  painters.get(place)();
  place.dataset.drawn = "true";
}

/** Draws at the first sight of a place, and again whenever `repaint` is asked to. */
function whenNear(place, painter) {
  painters.set(place, painter);
  near.observe(place);
}

function repaint(place) {
  if (drawn(place)) painters.get(place)();
}

function watchCharts() {
  for (const place of document.querySelectorAll("[data-chart]")) {
    const { data, layout } = charts[place.dataset.chart];
    whenNear(place, () => draw(place, data, layout));
  }
}

// Candidates -----------------------------------------------------------------------------------

const number = (x, digits = 4) => (x === null ? "failed" : x.toFixed(digits));
const signed = (x) => (x === null ? "" : (x < 0 ? "-" : "+") + Math.abs(x).toFixed(4));
/** Text as Plotly shows it as it is: its labels may hold tags otherwise. */
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
const status = (one) => one.status.replace("_", " ") + (one.control ? ", control" : "");

function lineage(one) {
  const chain = [];
  for (let at = one; at; at = byId.get(at.parent)) chain.unshift(at);
  return chain;
}

/** Fields at which two candidates differ: [path, before, after]. */
function differences(before, after) {
  const value = (one, field) => (one.own.find(([i]) => i === field) ?? [0, candidates.values[field]])[1];
  const fields = [...new Set([...before.own, ...after.own].map(([i]) => i))].sort((a, b) => a - b);
  return fields
    .map((i) => [candidates.paths[i], value(before, i), value(after, i)])
    .filter(([, old, now]) => old !== now);
}

/** Columns of a candidate's telemetry by name, and their steps; see `candidates.pack`. */
function unpack({ steps, points, data }) {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer), count = candidates.columns.length, found = {};
  candidates.columns.forEach((name, i) => {
    const low = view.getFloat32(4 * i, true), span = view.getFloat32(4 * (count + i), true);
    found[name] = Array.from({ length: points }, (_, j) => {
      const level = view.getUint16(8 * count + 2 * (i * points + j), true);
      return level === 65535 ? null : low + (span * level) / 65534;
    });
  });
  const at = (i) => (points < 2 ? 0 : Math.floor((i * (steps - 1)) / (points - 1)));
  return { steps: Array.from({ length: points }, (_, i) => at(i)), found };
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
const kind = (one) => (one.control && !one.failure ? "control" : one.status.replace("_", " "));

/** Where every candidate stands: [generation, gain], the worst and the dead at the foot. */
function places() {
  const gains = candidates.all.map((one) => one.gain).filter((x) => x !== null).sort((a, b) => a - b);
  const quartile = (share) => gains[Math.floor(share * (gains.length - 1))];
  // Beyond Tukey's outer fence a candidate would leave the others no room.
  const fence = quartile(0.25) - 3 * (quartile(0.75) - quartile(0.25));
  const floor = Math.max(gains[0], Math.min(fence, 0)), top = gains[gains.length - 1];
  const room = Math.max(top - floor, 1e-6), foot = floor - 0.12 * room;
  const born = new Map();
  const y = (one) => (one.gain === null ? foot : Math.max(one.gain, floor));
  const places = new Map();
  for (const one of candidates.all) {
    // Side by side within a generation, so that equals do not hide each other.
    const number = born.get(one.generation) ?? 0;
    born.set(one.generation, number + 1);
    places.set(one.id, { number, y: y(one) });
  }
  for (const one of candidates.all) {
    const place = places.get(one.id), count = born.get(one.generation);
    place.x = one.generation + (count < 2 ? 0 : 0.5 * (place.number / (count - 1) - 0.5));
  }
  const low = candidates.all.filter((one) => one.gain !== null && one.gain < floor).length;
  const dead = candidates.all.filter((one) => one.gain === null).length;
  return { at: places, floor, foot, top, room, low, dead };
}

const tree = places();
const spot = (one) => tree.at.get(one.id);

function edges(pairs, line, name) {
  const x = [], y = [];
  for (const [from, to] of pairs) {
    x.push(spot(from).x, spot(to).x, null);
    y.push(spot(from).y, spot(to).y, null);
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
    const named = ["baseline", "promoted", "winner"].includes(name);
    data.push({
      type: "scatter", mode: named ? "markers+text" : "markers", name, marker,
      x: group.map((c) => spot(c).x), y: group.map((c) => spot(c).y),
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
      range: [(tree.dead ? tree.foot : tree.floor) - 0.07 * tree.room, tree.top + 0.12 * tree.room],
    },
    ...marks(),
  });
}

/** What marks the chosen one: its lineage, a ring and its name; and the baseline's level. */
function marks() {
  const one = state.one, { x, y } = spot(one);
  const path = lineage(one).map((at, i) => `${i ? "L" : "M"}${spot(at).x},${spot(at).y}`).join("");
  return {
    shapes: [
      { type: "line", xref: "paper", x0: 0, x1: 1, y0: 0, y1: 0, layer: "below",
        line: { color: "--baseline", width: 1, dash: "dash" } },
      { type: "path", path, layer: "between", line: { color: "--ink", width: 2.5 } },
      { type: "circle", xsizemode: "pixel", ysizemode: "pixel", xanchor: x, yanchor: y,
        x0: -11, x1: 11, y0: -11, y1: 11, line: { color: "--ink", width: 2.5 } },
    ],
    annotations: [{ x, y, yshift: 21, text: plain(one.id), showarrow: false, font: { size: 13, color: "--ink" } }],
  };
}

/** Marks another one as chosen; drawing thousands of nodes again would take a while. */
function markTree() {
  return Plotly.relayout(element("tree-chart"), themed(marks()));
}

function treeNote() {
  const parts = [];
  if (tree.dead) parts.push(`At the foot: ${tree.dead} that failed.`);
  if (tree.low) parts.push(`${tree.low} worse than the figure reaches stand at its lower edge.`);
  return parts.join(" ");
}

/** The neighbour of a candidate in the tree in the direction of an arrow key. */
function neighbour(one, key) {
  const best = (some) => some.sort((a, b) => (b.gain ?? -Infinity) - (a.gain ?? -Infinity))[0];
  if (key === "ArrowLeft") return byId.get(one.parent);
  if (key === "ArrowRight") return best(candidates.all.filter((c) => c.parent === one.id));
  const row = candidates.all.filter((c) => c.generation === one.generation);
  row.sort((a, b) => spot(b).y - spot(a).y || a.born - b.born);
  return row[row.indexOf(one) + (key === "ArrowDown" ? 1 : -1)];
}

// The list -------------------------------------------------------------------------------------

const PAGE = 20;
const ORDERS = {
  gain: (a, b) => (b.gain ?? -Infinity) - (a.gain ?? -Infinity) || a.born - b.born,
  over_parent: (a, b) => (b.over_parent ?? -Infinity) - (a.over_parent ?? -Infinity) || a.born - b.born,
  born: (a, b) => a.born - b.born,
};
const state = { one: byId.get(chosen), rows: [], page: 0 };

function found() {
  const words = element("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (one) => `${one.id} ${status(one)} ${one.operator ?? ""} ${one.origin}`.toLowerCase();
  const rows = candidates.all.filter((one) => words.every((word) => text(one).includes(word)));
  return rows.sort(ORDERS[element("order").value]);
}

function cell(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

function row(one) {
  const made = document.createElement("tr"), head = document.createElement("th");
  const button = cell("button", one.id);
  button.type = "button";
  button.dataset.id = one.id;
  button.tabIndex = -1;
  head.scope = "row";
  head.append(button);
  made.append(head, ...[status(one), number(one.bpb[0]), signed(one.gain), one.operator ?? ""].map((text) => cell("td", text)));
  return made;
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

/** Marks the chosen row; one button of the list can be reached by Tab, arrows reach the others. */
function markList(focus) {
  const buttons = [...element("list").querySelectorAll("button")];
  for (const button of buttons) {
    const here = button.dataset.id === state.one.id;
    button.closest("tr").classList.toggle("chosen", here);
    button.setAttribute("aria-current", here);
    button.tabIndex = -1;
  }
  const entry = buttons.find((b) => b.dataset.id === (focus ?? state.one.id)) ?? buttons[0];
  if (entry) entry.tabIndex = 0;
  if (entry && focus) entry.focus();
}

function moveInList(event) {
  const at = state.rows.findIndex((one) => one.id === event.target.dataset.id);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: state.rows.length - 1 }[event.key];
  if (to === undefined || at < 0) return;
  event.preventDefault();
  if (!state.rows[to]) return;
  state.page = Math.floor(to / PAGE);
  fillList(state.rows[to].id);
}

function refill() {
  state.rows = found();
  state.page = Math.max(0, Math.floor(state.rows.indexOf(state.one) / PAGE));
  fillList();
}

// One candidate --------------------------------------------------------------------------------

function fillTable(table, head, rows) {
  const heads = document.createElement("tr");
  heads.append(...head.map((text) => Object.assign(cell("th", text), { scope: "col" })));
  const made = rows.map((texts) => {
    const line = document.createElement("tr");
    line.append(...texts.map((text, i) => cell(i ? "td" : "th", text)));
    return line;
  });
  const top = document.createElement("thead"), body = document.createElement("tbody");
  top.append(heads);
  body.append(...made);
  table.replaceChildren(...(rows.length ? [top, body] : []));
}

function showDetails() {
  const one = state.one, parent = byId.get(one.parent);
  element("details-title").textContent = one.id;
  element("details-summary").textContent =
    `${status(one)}, generation ${one.generation}; ${number(one.bpb[0])} bpb in screening` +
    (one.gain === null ? "" : `, ${signed(one.gain)} over the baseline`) +
    (one.over_parent === null || !parent ? "" : `, ${signed(one.over_parent)} over its parent`) +
    `; ${one.cost.toFixed(3)}x the baseline's FLOPs.`;
  element("details-failure").textContent = one.failure
    ? `Failed at step ${one.failure.step}: ${one.failure.reason}.` : "";
  element("details-lineage").replaceChildren(...lineage(one).map((at) => cell("li", at.origin)));
  const diff = parent ? differences(parent, one) : [], own = differences(baseline, one);
  element("details-diff-title").textContent = parent
    ? `Difference from its parent, ${parent.id}` : "It has no parent";
  fillTable(element("details-diff"), ["field", "before", "after"], diff);
  element("details-own-title").textContent = `Difference from the baseline: ${own.length} ${own.length === 1 ? "field" : "fields"}`;
  fillTable(element("details-own"), ["field", "baseline", one.id], own);
  fillTable(element("details-seeds"), ["seed", "stage", "bpb", "gain on this seed"],
    one.seeds.map((seed, i) => [seed, i ? "promotion" : "screening", number(one.bpb[i]), signed(one.gains[i])]));
  repaint(element("details-chart"));
}

/** A small figure for the validation curve and for every column of the telemetry. */
function drawTelemetry() {
  const one = state.one, place = element("details-chart");
  if (!one.telemetry) {
    Plotly.purge(place);
    place.style.height = "0";
    element("details-telemetry").textContent = "No telemetry of it is in this folder.";
    return;
  }
  const { steps, found } = unpack(one.telemetry);
  const cells = [["validation, bpb", one.curve.map(([s]) => s), one.curve.map(([, v]) => v)]];
  for (const [name, values] of Object.entries(found)) cells.push([name.replaceAll("_", " "), steps, values]);
  const across = place.clientWidth < 380 ? 2 : 3, down = Math.ceil(cells.length / across);
  const data = [], layout = { annotations: [], margin: { l: 4, r: 8, t: 4, b: 4 } };
  const height = 122 * down, above = 22 / height, below = 24 / height;  // room for names and ticks
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
  place.style.height = `${height + 8}px`;
  draw(place, data, layout);
  const kept = one.telemetry.points === one.telemetry.steps ? "every step" : `${one.telemetry.points} of ${one.telemetry.steps} steps`;
  element("details-telemetry").textContent = `By step; ${kept}, in 16 bits a number.`;
}

function choose(one, { list = true, scroll = false } = {}) {
  if (!one) return;
  state.one = one;
  if (drawn(element("tree-chart"))) markTree();
  showDetails();
  if (list && state.rows.includes(one)) {
    state.page = Math.floor(state.rows.indexOf(one) / PAGE);
    fillList();
  } else {
    markList();
  }
  const details = element("details");
  if (scroll && details.getBoundingClientRect().top > innerHeight - 120) details.scrollIntoView();
}

// Beginning ------------------------------------------------------------------------------------

/** What a click on the tree chooses; Plotly gives a place its events when it has drawn there. */
function firstTree() {
  const place = element("tree-chart");
  drawTree();
  place.on("plotly_click", ({ points }) => {
    const id = points.map((point) => point.customdata).find(Boolean);
    choose(byId.get(id), { scroll: true });
  });
  painters.set(place, drawTree);
}

function begin() {
  watchCharts();
  whenNear(element("tree-chart"), firstTree);
  whenNear(element("details-chart"), drawTelemetry);
  element("tree-note").textContent = treeNote();
  refill();
  choose(state.one);
  element("tree-chart").addEventListener("keydown", (event) => {
    if (!/^Arrow(Left|Right|Up|Down)$/.test(event.key)) return;
    event.preventDefault();
    choose(neighbour(state.one, event.key));
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
  addEventListener("beforeprint", () => [...painters.keys()].forEach((place) => drawn(place) || paint(place)));
  document.documentElement.dataset.ready = "true";
}

begin();
