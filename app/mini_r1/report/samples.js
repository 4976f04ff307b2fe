// The browser of samples: unpacking, filters, the list, and the keyboard.
const ROW = 54; // pixels of a row: page.css
let inOrder = []; // all samples by step
let order = []; // those that pass the filters
let story = null, lowered = null;
const spacer = $("spacer");
const STORIES = [
  ["First “wait” that succeeded", (i) => has(i, RIGHT) && has(i, WAIT), true],
  ["First answer that reconsidered and succeeded", (i) => has(i, RIGHT) && samples.reflections[i] > 0, true],
  ["First answer that retried and succeeded", (i) => has(i, RIGHT) && samples.tries[i] > 1, true],
  ["First right answer", (i) => has(i, RIGHT), false],
  ["Longest successful search", (i) => has(i, RIGHT) && samples.tries[i] > 1, true, (a, b) => samples.tries[b] - samples.tries[a]],
  ["Right answer, wrong format", (i) => has(i, RIGHT) && !has(i, FORMAT), false],
  ["The original’s scorer disagrees", (i) => has(i, RIGHT) !== has(i, ORIGINAL), false],
];

async function unpack() {
  const packed = atob($("packed").textContent);
  $("packed").remove();
  const bytes = new Uint8Array(packed.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = packed.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function options(select, values, any) {
  select.replaceChildren(el("option", { value: "" }, any), ...values.map(([value, text]) => el("option", { value }, text)));
}

function fillFilters() {
  const count = samples.step.length;
  inOrder = Array.from({ length: count }, (_, i) => i);
  inOrder.sort((a, b) => samples.step[a] - samples.step[b] || samples.run[a] - samples.run[b] || a - b);
  for (const i of inOrder) {
    if (!ofProblem.has(samples.problem[i])) ofProblem.set(samples.problem[i], []);
    ofProblem.get(samples.problem[i]).push(i);
  }
  const reasons = new Map();
  for (const folded of samples.folded) reasons.set(folded, (reasons.get(folded) || 0) + 1);
  const frequent = [...reasons].sort((a, b) => b[1] - a[1]);
  options($("f-reason"), frequent.map(([k, n]) => [k, `${visible(samples.reasonKinds[k]).slice(0, 70)} · ${whole(n)}`]), "any");
  options($("f-style"), samples.styles.map((name, i) => [i, name]), "any");
  options($("f-run"), page.runs.map((name, i) => [i, name]), "all");
  options($("f-kind"), samples.kinds.map((name, i) => [i, name]), "all");
  $("f-run").parentElement.hidden = page.runs.length < 2;
  $("f-kind").parentElement.hidden = !samples.kind.some((kind) => kind > 0);
  $("stories").replaceChildren(...STORIES.map(([name, test], index) => {
    const found = inOrder.reduce((sum, i) => sum + test(i), 0);
    const button = el("button", { type: "button", disabled: !found, "aria-pressed": "false" }, name, el("small", null, found ? `of ${whole(found)}` : "none"));
    button.onclick = () => { choose(story === index ? null : index); if (story !== null) reveal(); };
    return button;
  }));
  const best = [...$("stories").children].findIndex((button) => !button.disabled);
  if (best < 0 || best > 3) return;
  $("aha").textContent = `Show the ${STORIES[best][0].replace(/^./, (letter) => letter.toLowerCase())} →`;
  $("aha").onclick = () => { choose(best); $("samples").scrollIntoView(); reveal(); };
  $("aha").hidden = false;
}

function choose(index) {
  clear();
  story = index;
  thinking = index !== null && STORIES[index][2];
  update(true);
}

const number = (id) => $(id).value === "" ? null : Number($(id).value);
function update(first) {
  const query = $("q").value.toLowerCase();
  const tests = [];
  const equal = (id, column) => { const v = number(id); if (v !== null) tests.push((i) => samples[column][i] === v); };
  const range = (id, column) => {
    const low = number(id + "0"), high = number(id + "1");
    if (low !== null) tests.push((i) => samples[column][i] >= low);
    if (high !== null) tests.push((i) => samples[column][i] <= high);
  };
  equal("f-run", "run"); equal("f-kind", "kind"); equal("f-reason", "folded"); equal("f-style", "style");
  range("f-step", "step"); range("f-len", "tokens");
  const right = number("f-right");
  if (right !== null) tests.push((i) => has(i, RIGHT) === (right === 1));
  if (story !== null) tests.push(STORIES[story][1]);
  if (query) {
    lowered ||= samples.text.map((text) => text.toLowerCase());
    tests.push((i) => lowered[i].includes(query));
  }
  order = tests.length ? inOrder.filter((i) => tests.every((test) => test(i))) : inOrder;
  if (story !== null && STORIES[story][3]) order = [...order].sort(STORIES[story][3]);
  [...$("stories").children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === story)));
  const rights = order.reduce((sum, i) => sum + (samples.flags[i] & RIGHT), 0);
  const share = order.length ? `, ${(100 * rights / order.length).toFixed(0)} % right` : "";
  $("count").textContent = `${whole(order.length)} of ${whole(inOrder.length)}${share}`;
  spacer.style.height = order.length * ROW + "px";
  if (first || !order.includes(current)) current = order.length ? order[0] : -1;
  if (first) $("list").scrollTop = 0;
  show();
}
function clear() {
  $("filters").reset();
  story = null;
}

function row(place) {
  const i = order[place], problem = samples.problems[samples.problem[i]], ok = has(i, RIGHT);
  const answer = samples.workings[samples.working[i]][0];
  const summary = ok || answer === null ? (ok ? answer : samples.reasons[samples.reason[i]]) : `${answer} · ${samples.reasons[samples.reason[i]]}`;
  const run = page.runs.length > 1 ? el("i.swatch." + "abcdef"[samples.run[i]]) : null;
  const node = el("div.row", { id: "row-" + i, role: "option", "aria-selected": String(i === current), "aria-setsize": order.length, "aria-posinset": place + 1 },
    el("div", null, el(ok ? "span.ok" : "span.no", { "aria-label": ok ? "right" : "wrong" }, ok ? "✓" : "✗"), el("span", null, visible(problem.slice(0, 160))),
      el("span.at", null, run, `step ${samples.step[i]}${samples.kind[i] ? " · held out" : ""}`)),
    el("div.reason", null, visible((summary || "").slice(0, 160))));
  node.style.top = place * ROW + "px";
  node.onclick = () => { current = i; show(); reveal(); };
  return node;
}
function drawList() {
  const list = $("list"), from = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
  const to = Math.min(order.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
  const rows = [];
  for (let place = from; place < to; place++) rows.push(row(place));
  list.replaceChildren(spacer, ...rows);
  if (current >= 0) list.setAttribute("aria-activedescendant", "row-" + current);
}

/** Scroll to the reader if it is below the list, in one column. */
function reveal() {
  if (getComputedStyle($("browser")).gridTemplateColumns.split(" ").length === 1) $("reader").scrollIntoView();
}

function show() {
  const place = order.indexOf(current), list = $("list");
  if (place >= 0) {
    const top = place * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  }
  drawList();
  $("reader").replaceChildren(...(current < 0 ? [el("p.none", null, inOrder.length ? "No completion matches these filters." : page.total ? "No completions are on this page." : "The run has no completions yet.")] : read(current)));
  $("reader").scrollTop = 0;
}

function move(by) {
  if (!order.length) return;
  const place = order.indexOf(current);
  current = order[Math.max(0, Math.min(order.length - 1, place < 0 ? 0 : place + by))];
  show();
}
function again(by) {
  const same = ofProblem.get(samples.problem[current]) || [], next = same[same.indexOf(current) + by];
  if (next !== undefined) { current = next; show(); }
}

// --- events ---

document.addEventListener("keydown", (event) => {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (typing && (event.key === "Escape" || event.key === "Enter")) {
    event.preventDefault(); // Escape would empty a search field
    event.target.blur();
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey || $("compare").open) return;
  if (event.key === "d") return switchTheme();
  if (!samples) return;
  const arrows = document.activeElement === $("list");
  const acts = {
    "/": () => { $("samples").scrollIntoView(); $("q").focus({ preventScroll: true }); }, j: () => move(1), k: () => move(-1), "[": () => again(-1), "]": () => again(1),
    t: () => { thinking = !thinking; show(); }, c: compare, x: () => { clear(); update(); },
    ...(arrows && { ArrowDown: () => move(1), ArrowUp: () => move(-1), PageDown: () => move(10), PageUp: () => move(-10), Home: () => move(-Infinity), End: () => move(Infinity) }),
  };
  if (acts[event.key]) { event.preventDefault(); acts[event.key](); }
});
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("filters").addEventListener("reset", () => { story = null; setTimeout(update); });
let waiting = 0;
$("filters").addEventListener("input", () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(() => update()); });
$("list").addEventListener("scroll", () => requestAnimationFrame(drawList), { passive: true });
addEventListener("resize", () => { if (samples) drawList(); });
addEventListener("beforeprint", () => { for (const folded of document.querySelectorAll("#about details")) folded.open = true; });

if (typeof DecompressionStream === "undefined") {
  $("reader").replaceChildren(el("p.none", null, "This browser can’t unpack the samples. Use Firefox 113, Chrome 80, Safari 16.4 or later."));
} else unpack().then((columns) => {
  samples = columns;
  fillFilters();
  update(true);
  root.dataset.ready = "yes";
  (window.requestIdleCallback || setTimeout)(() => { lowered ||= samples.text.map((text) => text.toLowerCase()); });
}, () => $("reader").replaceChildren(el("p.none", null, "The samples in this file are damaged. Make the report again.")));
