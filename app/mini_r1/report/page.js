// Elements, the theme, and the crosshair on the plots; build.py appends reader.js and samples.js to one script. All text
// of a model becomes text nodes; the page's policy (Trusted Types) forbids anything else.
"use strict";
// Invisible characters, as in console.py; line breaks and tabs stay.
const HIDDEN = /(?![\n\t])[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu;
const $ = (id) => document.getElementById(id);
const page = JSON.parse($("data").textContent);

/** Return an element: "tag.class", properties, and children, which are nodes or text. */
function el(tag, properties, ...children) {
  const [name, ...classes] = tag.split(".");
  const node = document.createElement(name);
  node.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties || {})) {
    if (key.includes("-") || key === "role") node.setAttribute(key, value);
    else node[key] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}
const code = (character) => "\\u{" + character.codePointAt(0).toString(16) + "}";
const visible = (text) => text.replace(HIDDEN, code);
const whole = (value) => value.toLocaleString("en");

// --- theme ---

const root = document.documentElement;
const stored = (use) => { try { return use(localStorage); } catch { return null; /* a file may have no storage */ } };
const theme = stored((storage) => storage.getItem("mini-r1-theme"));
if (theme) root.dataset.theme = theme === "dark" ? "dark" : "light";
function switchTheme() {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme:dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  stored((storage) => storage.setItem("mini-r1-theme", root.dataset.theme));
}
$("theme").onclick = switchTheme;

// --- the figures of the plots as CSV, as plotted.py writes them ---

function plottedCsv() {
  const cell = (value) => /[",\n\r]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
  const plain = (text) => /^[=+@-]/.test(text) ? "'" + text : text; // a spreadsheet takes it for a formula
  const rows = [["plot", "run", "curve", "x", "value", "low", "high"]];
  for (const [name, plot] of Object.entries(page.plots)) for (const curve of [...plot.curves, ...plot.side])
    curve.x.forEach((x, i) => rows.push([name, plain(page.runs[curve.run] ?? ""), plain(curve.label), x, curve.y[i], ...(curve.ci[i] || ["", ""])]));
  return rows.map((row) => row.map((value) => cell(String(value))).join(",") + "\r\n").join("");
}
$("csv").onclick = () => {
  const href = URL.createObjectURL(new Blob([plottedCsv()], { type: "text/csv" }));
  el("a", { href, download: "mini-r1-report.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60000);
};

// --- crosshair on the plots ---

function format(plot, value) {
  if (plot.percent) return (100 * value).toFixed(1) + " %";
  const size = Math.abs(value);
  return size >= 1000 ? whole(Math.round(value)) : size >= 0.01 || size === 0 ? String(+value.toPrecision(3)) : value.toExponential(1);
}
const nearest = (xs, x) => xs.reduce((best, value, i) => Math.abs(value - x) < Math.abs(xs[best] - x) ? i : best, 0);
function addCrosshair(canvas, plot) {
  const svg = canvas.querySelector("svg"), place = JSON.parse(svg.dataset.place);
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  const tip = el("div.tip", { hidden: true });
  const [x0, y0, x1, y1] = place.box, [low, high] = place.x;
  line.setAttribute("class", "cross");
  canvas.append(tip);
  const all = [...new Set(plot.curves.flatMap((curve) => curve.x))];
  const atPointer = (event) => {
    const frame = svg.getBoundingClientRect();
    const inside = (event.clientX - frame.left) * svg.viewBox.baseVal.width / frame.width;
    const x = low + (inside - x0) / (x1 - x0) * (high - low);
    return inside < x0 - 6 || inside > x1 + 6 || !all.length ? null : all[nearest(all, x)];
  };
  const leave = () => { tip.hidden = true; line.remove(); };
  canvas.addEventListener("pointermove", (event) => {
    const x = atPointer(event);
    if (x === null) return leave();
    const lines = [];
    for (const curve of plot.curves) {
      const i = nearest(curve.x, x);
      if (Math.abs(curve.x[i] - x) > 0.015 * (high - low)) continue;
      const dot = el("i");
      dot.style.background = `var(--${curve.colour})`;
      const limits = curve.ci && curve.ci[i] ? ` (${format(plot, curve.ci[i][0])} to ${format(plot, curve.ci[i][1])})` : "";
      const step = curve.x[i] === x ? "" : ` at ${+curve.x[i].toFixed(2)}`;
      lines.push(el("div", null, dot, `${curve.label}${step}: ${format(plot, curve.y[i])}${limits}`));
    }
    if (!lines.length) return leave();
    tip.replaceChildren(el("b", null, plot.steps ? `step ${x}` : String(+x.toFixed(2))), ...lines);
    const at = x0 + (x - low) / (high - low) * (x1 - x0);
    for (const [name, value] of [["x1", at], ["x2", at], ["y1", y0], ["y2", y1]]) line.setAttribute(name, value);
    svg.append(line);
    tip.hidden = false;
    const frame = canvas.getBoundingClientRect(), left = at / svg.viewBox.baseVal.width * frame.width;
    const fits = left + 12 + tip.offsetWidth <= frame.width;
    tip.style.left = Math.max(0, fits ? left + 12 : left - 12 - tip.offsetWidth) + "px";
  });
  canvas.addEventListener("pointerleave", leave);
  canvas.addEventListener("click", (event) => {
    const x = atPointer(event);
    // On a touch screen a tap shows the values, so it must not scroll away.
    if (x === null || !plot.steps || !samples || !matchMedia("(hover: hover)").matches) return;
    clear();
    $("f-step0").value = $("f-step1").value = x;
    update();
    $("samples").scrollIntoView();
  });
}
for (const figure of document.querySelectorAll(".plot")) {
  const plot = page.plots[figure.dataset.plot];
  if (!plot) continue;
  for (const canvas of figure.querySelectorAll(".canvas")) addCrosshair(canvas, plot);
}
