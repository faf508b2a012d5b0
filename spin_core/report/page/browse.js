"use strict";
// The browser of answers. Rows are unpacked once, kept as they are, and drawn only where they are seen. Texts are untrusted: they
// reach the page as text nodes, never as HTML.
(() => {
  const $ = (id) => document.getElementById(id);
  const about = JSON.parse($("about").textContent);
  about.figures = Object.fromEntries(about.figures);
  const ROW = 60, LITTLE = 0.3;  // pixels of a row; the share in common below which no difference is marked
  const MARGIN = "margin added";  // a figure of a turn: what its training added to the margin of the row's pair
  const list = $("list"), space = $("space"), detail = $("detail"), query = $("query"), panes = list.parentElement;
  const narrow = matchMedia("(max-width: 46rem)");
  let rows = [], shown = [], chosen = -1, kind = "all";

  const make = (tag, text, name) => {
    const found = document.createElement(tag);
    if (text !== undefined) found.textContent = text;
    if (name) found.className = name;
    return found;
  };
  const option = (value, text) => Object.assign(document.createElement("option"), { value, textContent: text });
  const figures = () => [...Object.keys(about.figures), MARGIN];
  const better = (name) => name === MARGIN ? "higher" : about.figures[name].better;

  // what a row is worth under a player
  const value = (row, name, player) => {
    if (name !== MARGIN) return row.f[name] ? row.f[name][player] : null;
    return player ? row.m[player - 1] : null;
  };
  // the change from one player to the other, positive where it is better (or simply more, where neither is)
  const change = (row) => {
    const name = $("figure").value, later = value(row, name, +$("new").value);
    if (name === MARGIN) return later;
    const earlier = value(row, name, +$("old").value);
    if (earlier === null || later === null || earlier === undefined || later === undefined) return null;
    return better(name) === "lower" ? earlier - later : later - earlier;
  };
  const answer = (row, player) => row.a[player].d.length ? row.a[player].d[0] : row.a[player].g;
  const told = (name, found) => {
    if (found === null || found === undefined) return "–";
    if (name !== MARGIN && about.figures[name].unit === "share") return `${Math.round(found * 100)}%`;
    return (Math.abs(found) >= 100 ? found.toFixed(0) : Number.isInteger(found) ? `${found}` : found.toFixed(2)).replace("-", "−");
  };
  const signed = (name, found) => {
    if (found === null || found === undefined) return "";
    if (Math.abs(found) < 1e-9) return "=";
    const plain = better(name) === "lower" ? -found : found;
    const share = name !== MARGIN && about.figures[name].unit === "share";
    const text = share ? Math.round(plain * 100) : Math.abs(plain) >= 100 ? plain.toFixed(0) : plain.toFixed(2);
    return `${better(name) ? found > 0 ? "▲ " : "▼ " : ""}${plain > 0 ? "+" : ""}${text}`.replace("-", "−");
  };
  const haystack = (row) => {
    if (row.all === undefined) {
      const texts = row.a.flatMap((one) => one.g === undefined ? one.d : [...one.d, one.g]);
      row.all = [...row.p.map((turn) => turn[1]), row.h, ...texts].join("\n").toLowerCase();
    }
    return row.all;
  };

  const KINDS = {
    all: () => true,
    won: (row) => row.change > 1e-9,
    lost: (row) => row.change !== null && row.change < -1e-9,
    changed: (row) => answer(row, +$("old").value) !== answer(row, +$("new").value),
  };
  const tokens = (row) => { const by = row.f.tokens; return by ? (by[+$("new").value] ?? 0) - (by[+$("old").value] ?? 0) : 0; };
  const last = (found, sign) => found === null || found === undefined ? Infinity : sign * found;
  const SORTS = {
    order: ["as in the data", null],
    most: ["most won first", (row) => last(row.change, -1)],
    least: ["most lost first", (row) => last(row.change, 1)],
    value: ["worst under “to”", (row) => last(value(row, $("figure").value, +$("new").value), better($("figure").value) === "lower" ? -1 : 1)],
    longer: ["grown longest first", (row) => -tokens(row)],
    prompt: ["longest prompt first", (row) => -row.p.reduce((sum, turn) => sum + turn[1].length, 0)],
  };

  const filter = () => {
    const words = query.value.toLowerCase().trim(), keep = KINDS[kind];
    for (const row of rows) row.change = change(row) ?? null;
    shown = rows.filter((row) => keep(row) && (!words || haystack(row).includes(words)));
    const key = SORTS[$("sort").value][1];
    if (key) shown = shown.map((row) => [key(row), row]).sort((a, b) => a[0] - b[0]).map((pair) => pair[1]);
    $("hits").textContent = `${shown.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
    space.style.height = `${shown.length * ROW}px`;
    list.scrollTop = 0;
    chosen = -1;
    if (narrow.matches) draw(); else choose(0, false);
  };

  const draw = () => {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
    const stop = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
    const name = $("figure").value, found = [];
    for (let number = first; number < stop; number++) {
      const row = shown[number], line = make("div", undefined, "row");
      line.style.top = `${number * ROW}px`;
      line.id = `row-${number}`;
      line.dataset.number = number;
      line.setAttribute("role", "option");
      line.setAttribute("aria-selected", number === chosen);
      line.setAttribute("aria-posinset", number + 1);
      line.setAttribute("aria-setsize", shown.length);
      line.append(make("span", row.p.length ? row.p[row.p.length - 1][1].replace(/\s+/g, " ").slice(0, 160) : ""));
      const by = row.change > 1e-9 ? "better" : row.change < -1e-9 ? "worse" : "";
      line.append(make("span", signed(name, row.change), `change ${better(name) ? by : ""}`));
      line.append(make("span", about.players.map((_, player) => told(name, value(row, name, player))).join(" → "), "values"));
      found.push(line);
    }
    space.replaceChildren(...found);
  };

  const choose = (number, open = true) => {
    if (!shown.length) { detail.replaceChildren(make("p", "No row has it.", "note")); chosen = -1; panes.classList.remove("reading"); return; }
    chosen = Math.min(Math.max(number, 0), shown.length - 1);
    const top = chosen * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    if (open) panes.classList.add("reading");
    list.setAttribute("aria-activedescendant", `row-${chosen}`);
    draw();
    read(shown[chosen]);
  };

  // a text with its differences from another one, or as it is where they have little in common
  const marked = (text, old) => {
    const found = make("p", undefined, "text"), parts = old === undefined ? null : differences(old, text);
    const shared = parts ? parts.reduce((sum, [tag, words]) => sum + (tag ? 0 : words.trim().length), 0) : 0;
    if (!parts || shared < LITTLE * Math.max(text.length, old.length)) {
      found.textContent = text || "(empty)";
      if (parts && (text || old)) found.prepend(make("span", "little in common", "tag"));
    } else for (const [tag, words] of parts) found.append(tag ? make(tag, words) : document.createTextNode(words));
    return found;
  };

  const side = (row, player) => {
    const found = make("div", undefined, "side"), one = row.a[player], against = $("against").value;
    if (player === +$("new").value) found.classList.add("now");
    else if (player === +$("old").value) found.classList.add("then");
    found.append(make("h4", about.players[player]));
    const list = make("dl");
    for (const name of figures()) {
      const known = value(row, name, player);
      if (known === null || known === undefined || (name === "unfinished" && !known)) continue;
      const pair = make("div");
      pair.append(make("dt", name), make("dd", told(name, known)));
      list.append(pair);
    }
    found.append(list);
    let old;
    if (against === "human") old = row.h;
    else if (against === "before" && player) old = answer(row, about.opponents[player - 1]);
    else if (against === "first" && player) old = answer(row, 0);
    const first = answer(row, player);
    if (first === undefined) { found.append(make("p", "no answer", "role")); return found; }
    found.append(marked(first, old));
    if (one.u && one.u.includes(0)) found.append(make("span", "cut at the limit", "tag"));
    one.d.slice(1).forEach((text, number) => {
      const other = make("div", undefined, "other");
      other.append(make("span", `answer ${number + 2}${one.u && one.u.includes(number + 1) ? ", cut at the limit" : ""}`, "tag"), make("div", text, "text"));
      found.append(other);
    });
    if (one.g !== undefined && one.d.length) {
      const other = make("div", undefined, "other");
      other.append(make("span", "greedy", "tag"), make("div", one.g, "text"));
      found.append(other);
    }
    return found;
  };

  const read = (row) => {
    const found = [make("h3", "prompt")];
    for (const [role, text] of row.p) {
      if (row.p.length > 1) found.push(make("span", role, "role"));
      found.push(make("p", text, "text"));
    }
    if (row.c) {
      const { kind: what, value: wanted } = JSON.parse(row.c);
      found.push(make("p", `check: ${what} ${typeof wanted === "string" ? wanted : JSON.stringify(wanted)}`, "check"));
    }
    found.push(make("h3", "human"), make("p", row.h, "text"), make("h3", "models"));
    const sides = make("div", undefined, "sides");
    about.players.forEach((_, player) => sides.append(side(row, player)));
    const steps = make("div", undefined, "steps");
    for (const [text, act] of [["back", () => panes.classList.remove("reading")], ["previous", () => choose(chosen - 1)], ["next", () => choose(chosen + 1)]]) {
      const button = make("button", text);
      button.type = "button";
      button.addEventListener("click", act);
      steps.append(button);
    }
    detail.replaceChildren(...found, sides, steps);
    detail.scrollTop = 0;
    highlight();
  };

  // what was searched for, where it is read
  const highlight = () => {
    if (!CSS.highlights) return;
    const words = query.value.toLowerCase().trim(), ranges = [];
    const texts = document.createTreeWalker(detail, NodeFilter.SHOW_TEXT);
    while (words && ranges.length < 500 && texts.nextNode()) {
      const node = texts.currentNode, text = node.data.toLowerCase();
      for (let at = text.indexOf(words); at >= 0 && at + words.length <= node.length; at = text.indexOf(words, at + words.length)) {
        const range = document.createRange();
        range.setStart(node, at);
        range.setEnd(node, at + words.length);
        ranges.push(range);
      }
    }
    CSS.highlights.set("found", new Highlight(...ranges));
  };

  const press = (event) => {
    if (event.metaKey || event.ctrlKey || event.altKey) return;
    const typing = event.target.matches("input, select, textarea");
    if (event.key === "Escape") { if (typing) event.target.blur(); panes.classList.remove("reading"); return; }
    if (typing) return;
    const here = event.target === list;
    const move = { j: 1, k: -1, ...(here ? { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8, Home: -Infinity, End: Infinity } : {}) }[event.key];
    if (event.key === "/") { query.focus(); query.select(); }
    else if (move) choose(chosen + move, !narrow.matches || panes.classList.contains("reading"));
    else if (here && event.key === "Enter") choose(chosen);
    else return;
    event.preventDefault();
  };

  const begin = () => {
    about.players.forEach((name, player) => { $("old").append(option(player, name)); $("new").append(option(player, name)); });
    $("old").value = 0;
    $("new").value = about.best || about.players.length - 1;
    for (const name of figures()) $("figure").append(option(name, name));
    if (about.metric) $("figure").value = about.metric;
    for (const [name, [text]] of Object.entries(SORTS)) $("sort").append(option(name, text));
    for (const [name, text] of [["before", "its opponent"], ["first", about.players[0]], ["human", "human"], ["none", "nothing"]]) $("against").append(option(name, text));
    $("samples").hidden = true;
    $("browser").hidden = false;
    for (const id of ["old", "new", "figure", "sort"]) $(id).addEventListener("change", filter);
    $("against").addEventListener("change", () => { if (chosen >= 0) read(shown[chosen]); });
    query.addEventListener("input", filter);
    for (const button of document.querySelectorAll("[data-kind]")) {
      button.addEventListener("click", () => {
        kind = button.dataset.kind;
        for (const other of document.querySelectorAll("[data-kind]")) other.setAttribute("aria-pressed", other === button);
        filter();
      });
    }
    list.addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
    list.addEventListener("click", (event) => {
      const line = event.target.closest(".row");
      if (line) choose(+line.dataset.number);
    });
    addEventListener("resize", draw);
    document.addEventListener("keydown", press);
    filter();
    let next = 0;  // what a search looks through is made ready while nobody waits
    const prepare = () => {
      for (const stop = Math.min(rows.length, next + 200); next < stop; next++) haystack(rows[next]);
      if (next < rows.length) setTimeout(prepare);
      else document.documentElement.dataset.ready = "yes";
    };
    prepare();
  };

  const unpack = async () => {
    const bytes = Uint8Array.from(atob($("packed").textContent), (letter) => letter.charCodeAt(0));
    $("packed").remove();
    const text = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
    rows = text.split("\n").filter(Boolean).map((line) => JSON.parse(line));
    begin();
  };
  if (typeof DecompressionStream === "undefined") $("waiting").textContent = "This browser cannot unpack all answers; the first ones:";
  else unpack();
})();
