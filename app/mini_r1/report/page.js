// The page itself: what makes elements, the theme, and the crosshair on the plots. reader.js and samples.js come after it
// in one script (build.py). Everything a model wrote becomes a text node; the page's policy (Trusted Types) would refuse
// any other way in.
"use strict";
// What has no visible form, as console.py has it; line breaks and tabs stay.
const HIDDEN = /(?![\n\t])[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu;
const $ = (id) => document.getElementById(id);
const page = JSON.parse($("data").textContent);

/** An element with properties, a class as ".name", and children: nodes, or text. */
function el(tag, properties, ...children) {
  const [name, ...classes] = tag.split(".");
  const node = document.createElement(name);
  if (classes.length) node.className = classes.join(" ");
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
const kept = { get() { try { return localStorage.getItem("mini-r1-theme"); } catch { return null; } },
  set(value) { try { localStorage.setItem("mini-r1-theme", value); } catch { /* a file may have no storage */ } } };
if (kept.get()) root.dataset.theme = kept.get() === "dark" ? "dark" : "light";
function switchTheme() {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme:dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  kept.set(root.dataset.theme);
}
$("theme").onclick = switchTheme;

// --- crosshair on the plots ---

function shown(plot, value) {
  if (plot.percent) return (100 * value).toFixed(1) + " %";
  const size = Math.abs(value);
  return size >= 1000 ? whole(Math.round(value)) : size >= 0.01 || size === 0 ? String(+value.toPrecision(3)) : value.toExponential(1);
}
function nearest(xs, x) {
  let best = 0;
  for (let i = 1; i < xs.length; i++) if (Math.abs(xs[i] - x) < Math.abs(xs[best] - x)) best = i;
  return best;
}
function crosshair(canvas, plot, place) {
  const svg = canvas.querySelector("svg");
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
      const limits = curve.ci && curve.ci[i] ? ` (${shown(plot, curve.ci[i][0])} to ${shown(plot, curve.ci[i][1])})` : "";
      const step = curve.x[i] === x ? "" : ` at ${+curve.x[i].toFixed(2)}`;
      lines.push(el("div", null, dot, `${curve.label}${step}: ${shown(plot, curve.y[i])}${limits}`));
    }
    if (!lines.length) return leave();
    tip.replaceChildren(el("b", null, plot.steps ? `step ${x}` : String(+x.toFixed(2))), ...lines);
    const at = x0 + (x - low) / (high - low) * (x1 - x0);
    for (const [name, value] of [["x1", at], ["x2", at], ["y1", y0], ["y2", y1]]) line.setAttribute(name, value);
    svg.append(line);
    tip.hidden = false;
    const frame = canvas.getBoundingClientRect(), left = at / svg.viewBox.baseVal.width * frame.width;
    tip.style.left = Math.max(0, Math.min(left + 12, frame.width - tip.offsetWidth)) + "px";
    if (left + 12 + tip.offsetWidth > frame.width) tip.style.left = Math.max(0, left - 12 - tip.offsetWidth) + "px";
  });
  canvas.addEventListener("pointerleave", leave);
  canvas.addEventListener("click", (event) => {
    const x = atPointer(event);
    // A finger has no other way to point at values: it must not be carried away by it.
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
  for (const canvas of figure.querySelectorAll(".canvas"))
    crosshair(canvas, plot, canvas.classList.contains("narrow") ? plot.narrow : plot.place);
}
