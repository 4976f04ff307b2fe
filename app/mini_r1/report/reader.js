// One completion: its verdict, its answer worked out, its thought with marks; and the answers to one problem side by side.
const RIGHT = 1, FORMAT = 2, ORIGINAL = 4, TRUNCATED = 8, WAIT = 16; // bits of flags: samples_browser.py
const REFLECTION = new RegExp(page.reflection, "gi");

let samples = null; // columns, as samples_browser.py packs them
let current = -1; // the sample in the reader
let thinking = false; // whether the thought is open
const ofProblem = new Map(); // samples of each problem, by step
const has = (i, flag) => (samples.flags[i] & flag) !== 0;

/** Return text with marked search hits and, in a thought, reflection phrases; invisible characters are escaped. */
function mark(text, reflective) {
  const query = $("q").value.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), spans = [];
  // Not by positions in the lowercase text: some letters become two (İ).
  if (query) for (const hit of text.matchAll(new RegExp(query, "gi"))) {
    spans.push([hit.index, hit.index + hit[0].length, "found"]);
    if (spans.length === 500) break;
  }
  if (reflective) for (const hit of text.matchAll(REFLECTION)) spans.push([hit.index, hit.index + hit[0].length, ""]);
  spans.sort((a, b) => a[0] - b[0]);
  const pre = el("pre");
  let done = 0;
  for (const [from, to, kind] of spans) {
    if (from < done) continue;
    plain(pre, text.slice(done, from));
    pre.append(plain(el(kind ? "mark." + kind : "mark"), text.slice(from, to)));
    done = to;
  }
  return plain(pre, text.slice(done));
}
function plain(node, text) {
  let done = 0;
  for (const hit of text.matchAll(HIDDEN)) {
    node.append(text.slice(done, hit.index), el("span.esc", null, code(hit[0])));
    done = hit.index + hit[0].length;
  }
  node.append(text.slice(done));
  return node;
}

/** Return the answer worked out: its steps, its result, and remarks such as the numbers used. */
function check(i) {
  const [answer, steps, result, chips] = samples.workings[samples.working[i]], reason = visible(samples.reasons[samples.reason[i]]);
  if (answer === null) return el("div.check", null, el("p", null, "No answer"), reason);
  return el("div.check", null, el("p", null, "The answer, worked out"), plain(el("div.answer"), answer || "(empty)"),
    steps.length ? el("ol", null, ...steps.map((step) => el("li", null, step))) : null,
    result ? el(result[1] ? "div.ok" : "div.no", null, visible(result[0])) : steps.length ? null : el("div.no", null, reason),
    el("p"), el("div.chips", null, ...chips.map(([text, ok]) => el(ok === null ? "span.chip" : ok ? "span.chip.ok" : "span.chip.no", null, visible(text)))));
}

const plural = (n, one, many) => `${whole(n)} ${n === 1 ? one : many}`;
function facts(i) {
  const style = samples.style[i] === null ? null : samples.styles[samples.style[i]];
  const parts = [`${plural(samples.tokens[i], "token", "tokens")}${has(i, TRUNCATED) ? ", truncated" : ""}`, samples.tries[i] === null ? null : plural(samples.tries[i], "try", "tries"),
    plural(samples.reflections[i], "reflection phrase", "reflection phrases"), style === "neither" ? "neither wordy nor enumerating" : style,
    has(i, FORMAT) ? "right format" : "wrong format"];
  if (samples.reward[i] !== null) parts.push(`reward ${samples.reward[i]}`);
  if (has(i, RIGHT) !== has(i, ORIGINAL)) parts.push(`the original’s scorer: ${has(i, ORIGINAL) ? "right" : "wrong"}`);
  return parts.filter(Boolean).join(" · ");
}
function thought(i, open, folded) {
  const text = samples.text[i], end = text.indexOf("</think>");
  const inside = end < 0 ? text : text.slice(0, end), rest = end < 0 ? "" : text.slice(end);
  const lines = inside.trim() ? inside.trim().split("\n").length : 0;
  const details = el("details.think", { open }, el("summary", null, `Thinking: ${plural(lines, "line", "lines")}${end < 0 ? ", without an end" : ""}`));
  const fill = () => { if (details.open && details.children.length < 2) details.append(mark(inside.replace(/^\n+|\s+$/g, ""), true), folded && rest ? mark(rest, false) : ""); };
  details.ontoggle = fill;
  fill();
  return [details, rest && !folded ? mark(rest, false) : null,
    samples.clipped[i] ? el("p.note", null, `${whole(samples.clipped[i])} characters were left out at ⋯`) : null].filter(Boolean);
}
function badge(i) {
  const ok = has(i, RIGHT);
  return el(ok ? "span.badge.ok" : "span.badge.no", null, visible(samples.reasons[samples.reason[i]]));
}
function read(i) {
  const same = ofProblem.get(samples.problem[i]), at = same.indexOf(i);
  const button = (text, onclick, disabled, title) => el("button", { type: "button", onclick, disabled, title }, text);
  const buttons = [
    button("‹ earlier", () => again(-1), at <= 0, "Same problem, earlier ([)"),
    button("later ›", () => again(1), at >= same.length - 1, "Same problem, later (])"),
    button(`Compare ${whole(same.length)}`, compare, same.length < 2, "Side by side (c)"),
  ];
  const body = thought(i, thinking);
  body[0].addEventListener("toggle", () => { thinking = body[0].open; });
  return [
    el("header", null, el("span.problem", null, visible(samples.problems[samples.problem[i]])), el("span.move", null, ...buttons)),
    el("header", null, badge(i), el("span.note", null, `${page.runs.length > 1 ? page.runs[samples.run[i]] + ", " : ""}step ${samples.step[i]}, ${samples.kinds[samples.kind[i]]}`)),
    el("p.facts", null, facts(i)), check(i), ...body];
}

/** Show the answers to one problem, one card per step. */
function compare() {
  if (current < 0) return;
  const groups = new Map(), steps = new Set();
  for (const i of ofProblem.get(samples.problem[current])) {
    const key = `${samples.run[i]} ${samples.step[i]} ${samples.kind[i]}`;
    steps.add(samples.step[i]);
    if (groups.has(key)) groups.get(key).push(i); else groups.set(key, [i]);
  }
  const box = $("compare"), close = el("button", { type: "button", onclick: () => box.close() }, "Close");
  const cards = [...groups.values()].map((group) => card(group));
  box.replaceChildren(
    el("header", null, el("span.problem", null, visible(samples.problems[samples.problem[current]])), el("span.note", null, `${plural(steps.size, "step", "steps")}, ${plural([...groups.values()].flat().length, "answer", "answers")}`), close),
    steps.size < 2 ? el("p.note", null, "This problem was asked at one step only; these are its answers there.") : "",
    el("div.cards", null, ...(groups.size < 2 ? [...groups.values()][0].map((i) => card([i])) : cards)));
  box.showModal();
}
function card(group) {
  const rights = group.filter((i) => has(i, RIGHT)).length, node = el("section.card");
  let at = Math.max(0, group.indexOf(current));
  const draw = () => {
    const i = group[at], turn = el("button", { type: "button" }, `${at + 1} of ${group.length} ›`);
    turn.onclick = () => { at = (at + 1) % group.length; draw(); };
    node.replaceChildren(
      el("header", null, el("h3", null, page.runs.length > 1 ? el("i.swatch." + "abcdef"[samples.run[i]]) : "", `Step ${samples.step[i]}`), el("span.note", null, [group.length > 1 && `${rights} of ${group.length} right`, samples.kind[i] && samples.kinds[samples.kind[i]]].filter(Boolean).join(", ")),
        group.length > 1 ? el("span.move", null, turn) : ""),
      badge(i), el("p.facts", null, facts(i)), check(i), ...thought(i, false, true));
  };
  draw();
  return node;
}
