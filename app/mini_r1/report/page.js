// The page's behaviour: theme, crosshair, and the browser of samples. Everything a model wrote becomes a text node; the
// page's policy (Trusted Types) would refuse any other way in.
"use strict";
(() => {
  const RIGHT = 1, FORMAT = 2, SEED = 4, CUT = 8, WAIT = 16; // bits of a sample's flags: samples.py
  const ROW = 54; // pixels of a row: page.css
  // What has no visible form, as console.py has it; line breaks and tabs stay.
  const HIDDEN = /(?![\n\t])[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu;
  const $ = (id) => document.getElementById(id);
  const page = JSON.parse($("data").textContent);
  const REFLECTION = new RegExp(page.reflection, "gi");

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
      if (x === null || !plot.steps || !samples) return;
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

  // --- samples ---

  let samples = null; // columns, as samples.py packs them
  let inOrder = []; // all samples by step
  let order = []; // those that pass the filters
  let current = -1; // the sample that is read
  let story = null, thinking = false, lowered = null;
  const ofProblem = new Map();

  const has = (i, flag) => (samples.flags[i] & flag) !== 0;
  const STORIES = [
    ["First “wait” that ended right", (i) => has(i, RIGHT) && has(i, WAIT), true],
    ["First that reconsidered and was right", (i) => has(i, RIGHT) && samples.reflections[i] > 0, true],
    ["First that tried again and was right", (i) => has(i, RIGHT) && samples.tries[i] > 1, true],
    ["First right answer", (i) => has(i, RIGHT), false],
    ["Longest search that was right", (i) => has(i, RIGHT) && samples.tries[i] > 1, true, (a, b) => samples.tries[b] - samples.tries[a]],
    ["Right, format broken", (i) => has(i, RIGHT) && !has(i, FORMAT), false],
    ["The seed’s scorer disagrees", (i) => has(i, RIGHT) !== has(i, SEED), false],
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

  function prepare() {
    const count = samples.step.length;
    inOrder = Array.from({ length: count }, (_, i) => i);
    inOrder.sort((a, b) => samples.step[a] - samples.step[b] || samples.run[a] - samples.run[b] || a - b);
    for (const i of inOrder) {
      const of = ofProblem.get(samples.problem[i]);
      if (of) of.push(i); else ofProblem.set(samples.problem[i], [i]);
    }
    const reasons = new Map();
    for (const folded of samples.folded) reasons.set(folded, (reasons.get(folded) || 0) + 1);
    const frequent = [...reasons].sort((a, b) => b[1] - a[1]);
    options($("f-reason"), frequent.map(([k, n]) => [k, `${visible(samples.reasonKinds[k]).slice(0, 70)} · ${whole(n)}`]), "any");
    options($("f-manner"), samples.manners.map((name, i) => [i, name]), "any");
    options($("f-run"), page.runs.map((name, i) => [i, name]), "all");
    options($("f-kind"), samples.kinds.map((name, i) => [i, name]), "all");
    $("f-run").parentElement.hidden = page.runs.length < 2;
    $("f-kind").parentElement.hidden = !samples.kind.some((kind) => kind > 0);
    $("stories").replaceChildren(...STORIES.map(([name, test], index) => {
      const found = inOrder.reduce((sum, i) => sum + test(i), 0);
      const button = el("button", { type: "button", disabled: !found, "aria-pressed": "false" }, name, el("small", null, found ? `of ${whole(found)}` : "none"));
      button.onclick = () => tell(story === index ? null : index);
      return button;
    }));
    const best = [...$("stories").children].findIndex((button) => !button.disabled);
    if (best < 0 || best > 3) return;
    $("aha").textContent = `Read the ${STORIES[best][0].replace(/^./, (letter) => letter.toLowerCase())} →`;
    $("aha").onclick = () => { tell(best); $("samples").scrollIntoView(); };
    $("aha").hidden = false;
  }

  function tell(index) {
    clear();
    story = index;
    thinking = index !== null && STORIES[index][2];
    update(true);
  }

  const field = (id) => $(id).value === "" ? null : Number($(id).value);
  function update(first) {
    const query = $("q").value.toLowerCase();
    const tests = [];
    const equal = (id, column) => { const v = field(id); if (v !== null) tests.push((i) => samples[column][i] === v); };
    const range = (id, column) => {
      const low = field(id + "0"), high = field(id + "1");
      if (low !== null) tests.push((i) => samples[column][i] >= low);
      if (high !== null) tests.push((i) => samples[column][i] <= high);
    };
    equal("f-run", "run"); equal("f-kind", "kind"); equal("f-reason", "folded"); equal("f-manner", "manner");
    range("f-step", "step"); range("f-len", "tokens");
    const right = field("f-right");
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
    $("spacer").style.height = order.length * ROW + "px";
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
    const said = ok || answer === null ? (ok ? answer : samples.reasons[samples.reason[i]]) : `${answer} · ${samples.reasons[samples.reason[i]]}`;
    const run = page.runs.length > 1 ? el("i.swatch." + "abcdef"[samples.run[i]]) : null;
    const node = el("div.row", { id: "row-" + i, role: "option", "aria-selected": String(i === current), "aria-setsize": order.length, "aria-posinset": place + 1 },
      el("div", null, el(ok ? "span.ok" : "span.no", { "aria-label": ok ? "right" : "wrong" }, ok ? "✓" : "✗"), el("span", null, `${problem[0].join(", ")} → ${problem[1]}`),
        el("span.at", null, run, `step ${samples.step[i]}${samples.kind[i] ? " · held out" : ""}`)),
      el("div.say", null, visible((said || "").slice(0, 160))));
    node.style.top = place * ROW + "px";
    node.onclick = () => { current = i; show(); };
    return node;
  }
  function drawList() {
    const list = $("list"), from = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
    const to = Math.min(order.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
    const rows = [];
    for (let place = from; place < to; place++) rows.push(row(place));
    list.replaceChildren($("spacer") || spacer, ...rows);
    if (current >= 0) list.setAttribute("aria-activedescendant", "row-" + current);
  }
  const spacer = $("spacer");

  function show() {
    const place = order.indexOf(current), list = $("list");
    if (place >= 0) {
      const top = place * ROW;
      if (top < list.scrollTop) list.scrollTop = top;
      else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    }
    drawList();
    $("reader").replaceChildren(...(current < 0 ? [el("p.none", null, inOrder.length ? "No completion passes these filters." : page.total ? "No completion was put on this page." : "The run has no completions yet.")] : read(current)));
    $("reader").scrollTop = 0;
  }

  /** Text with search hits and, in a thought, reflection phrases marked; what is invisible is spelled out. */
  function written(text, reflective) {
    const query = $("q").value.toLowerCase(), spans = [];
    if (query) for (let at = text.toLowerCase().indexOf(query), n = 0; at >= 0 && n < 500; n++) {
      spans.push([at, at + query.length, "found"]);
      at = text.toLowerCase().indexOf(query, at + query.length);
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

  /** The answer worked out: every operation, the numbers used, the result beside the target. */
  function check(i) {
    const [answer, steps, value, missing, extra] = samples.workings[samples.working[i]];
    const [nums, target] = samples.problems[samples.problem[i]];
    if (answer === null) return el("div.check", null, el("p", null, "No answer"), visible(samples.reasons[samples.reason[i]]));
    const left = [...missing];
    const chips = nums.map((n) => {
      const at = left.indexOf(n);
      if (value === null && !steps.length && !missing.length) return el("span.chip", null, String(n));
      if (at < 0) return el("span.chip.ok", null, `${n} ✓`);
      left.splice(at, 1);
      return el("span.chip.no", null, `${n} left out`);
    });
    for (const n of extra) chips.push(el("span.chip.no", null, `${n.length > 24 ? n.slice(0, 24) + "…" : n} not given`));
    const hits = value === String(target);
    return el("div.check", null, el("p", null, "The answer, worked out"), plain(el("div.answer"), answer || "(empty)"),
      steps.length ? el("ol", null, ...steps.map((step) => el("li", null, step))) : null,
      value === null ? (steps.length ? null : el("div.no", null, visible(samples.reasons[samples.reason[i]])))
        : el(hits ? "div.ok" : "div.no", null, hits ? `${value} is the target ✓` : `${value}, and the target is ${target} ✗`),
      el("p"), el("div.chips", null, ...chips));
  }

  const plural = (n, one, many) => `${whole(n)} ${n === 1 ? one : many}`;
  function facts(i) {
    const parts = [`${plural(samples.tokens[i], "token", "tokens")}${has(i, CUT) ? ", cut short" : ""}`, plural(samples.tries[i], "try", "tries"),
      plural(samples.reflections[i], "reflection phrase", "reflection phrases"), samples.manners[samples.manner[i]] === "neither" ? "neither wordy nor enumerating" : samples.manners[samples.manner[i]],
      has(i, FORMAT) ? "format kept" : "format broken"];
    if (samples.reward[i] !== null) parts.push(`reward ${samples.reward[i]}`);
    if (has(i, RIGHT) !== has(i, SEED)) parts.push(`the seed’s scorer: ${has(i, SEED) ? "right" : "wrong"}`);
    return parts.join(" · ");
  }
  function thought(i, open, folded) {
    const text = samples.text[i], end = text.indexOf("</think>");
    const inside = end < 0 ? text : text.slice(0, end), rest = end < 0 ? "" : text.slice(end);
    const lines = inside.trim() ? inside.trim().split("\n").length : 0;
    const details = el("details.think", { open }, el("summary", null, `Thinking: ${plural(lines, "line", "lines")}${end < 0 ? ", never ended" : ""}`));
    const fill = () => { if (details.open && details.children.length < 2) details.append(written(inside.replace(/^\n+|\s+$/g, ""), true), folded && rest ? written(rest, false) : ""); };
    details.ontoggle = fill;
    fill();
    return [details, rest && !folded ? written(rest, false) : null,
      samples.clipped[i] ? el("p.note", null, `${whole(samples.clipped[i])} characters were left out at ⋯`) : null].filter(Boolean);
  }
  function badge(i) {
    const ok = has(i, RIGHT);
    return el(ok ? "span.badge.ok" : "span.badge.no", null, visible(samples.reasons[samples.reason[i]]));
  }
  function read(i) {
    const [nums, target] = samples.problems[samples.problem[i]], same = ofProblem.get(samples.problem[i]), at = same.indexOf(i);
    const earlier = el("button", { type: "button", disabled: at <= 0, title: "Same problem, earlier ([)" }, "‹ earlier");
    const later = el("button", { type: "button", disabled: at >= same.length - 1, title: "Same problem, later (])" }, "later ›");
    const over = el("button", { type: "button", disabled: same.length < 2, title: "Side by side (c)" }, `Compare ${whole(same.length)}`);
    earlier.onclick = () => again(-1);
    later.onclick = () => again(1);
    over.onclick = compare;
    const body = thought(i, thinking);
    body[0].addEventListener("toggle", () => { thinking = body[0].open; });
    return [
      el("header", null, el("span.problem", null, `${nums.join(", ")} → ${target}`), el("span.move", null, earlier, later, over)),
      el("header", null, badge(i), el("span.note", null, `${page.runs.length > 1 ? page.runs[samples.run[i]] + ", " : ""}step ${samples.step[i]}, ${samples.kinds[samples.kind[i]]}`)),
      el("p.facts", null, facts(i)), check(i), ...body];
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

  /** One problem's answers, a card for each step. */
  function compare() {
    if (current < 0) return;
    const [nums, target] = samples.problems[samples.problem[current]], groups = new Map(), steps = new Set();
    for (const i of ofProblem.get(samples.problem[current])) {
      const key = `${samples.run[i]} ${samples.step[i]} ${samples.kind[i]}`;
      steps.add(samples.step[i]);
      if (groups.has(key)) groups.get(key).push(i); else groups.set(key, [i]);
    }
    const close = el("button", { type: "button" }, "Close"), box = $("compare");
    close.onclick = () => box.close();
    const cards = [...groups.values()].map((group) => card(group));
    box.replaceChildren(
      el("header", null, el("span.problem", null, `${nums.join(", ")} → ${target}`), el("span.note", null, `${plural(steps.size, "step", "steps")}, ${plural([...groups.values()].flat().length, "answer", "answers")}`), close),
      steps.size < 2 ? el("p.note", null, "This problem came up at one step only: its answers there stand side by side.") : "",
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

  if (typeof DecompressionStream === "undefined") {
    $("reader").replaceChildren(el("p.none", null, "This browser is too old to unpack the samples; Firefox 113, Chrome 80, Safari 16.4 and later can."));
    return;
  }
  unpack().then((columns) => {
    samples = columns;
    prepare();
    update(true);
    root.dataset.ready = "yes";
    (window.requestIdleCallback || setTimeout)(() => { lowered ||= samples.text.map((text) => text.toLowerCase()); });
  }, () => $("reader").replaceChildren(el("p.none", null, "The samples of this file are damaged: make the report again.")));
})();
