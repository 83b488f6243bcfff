// Toolbar, search, filter, the selected node, and the list of nodes, around one or two panes.
const make = (tag, properties = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role") element.setAttribute(key, value); else element[key] = value;
  }
  element.append(...children);
  return element;
};

class GraphUi {
  constructor(section, data) {
    this.section = section;
    this.$ = (selector) => section.querySelector(selector);
    this.models = { before: data.before && new Model(data.before), after: new Model(data.after) };
    this.version = 0;
    this.hits = { list: [], at: -1, before: new Set(), after: new Set(), text: "" };
    this.filter = { states: new Set(STATES), op: "", pass: "" };
    this._colors();
    const size = { w: data.width, h: data.height };
    this.panes = {};
    for (const side of ["before", "after"]) {
      const element = this.$(`.pane.${side}`);
      if (element) this.panes[side] = new Pane(element, size, this);
    }
    listeners.theme.push((how) => this._theme(how));
    this._toolbar();
    this._search();
    this.list = new NodeList(this);
    this.arrange("both");
    this.openBody("main");
  }
  get both() { return Boolean(this.models.before); }
  sideOf(pane) { return pane === this.panes.before ? "before" : "after"; }
  other(side) { return this.panes[side === "before" ? "after" : "before"]; }

  // -- colours: those of the page, read from its style --------------------------------------------------------
  _colors() {
    const style = getComputedStyle(root);
    this.colors = new Map();
    this.color = (key) => {
      let found = this.colors.get(key);
      if (!found) this.colors.set(key, (found = style.getPropertyValue("--" + key).trim() || "#888"));
      return found;
    };
  }
  _theme(how) {
    this._colors();
    this.version++;
    for (const pane of Object.values(this.panes)) {
      if (how !== "print") { pane.resize(); pane.redraw(); continue; }
      pane.fit(); // on paper: the whole, at once
      pane.draw();
    }
  }
  redraw() { this.version++; for (const pane of Object.values(this.panes)) pane.redraw(); }

  // -- which body, and how the panes stand --------------------------------------------------------------------
  openBody(label, then = null) {
    this.label = label;
    for (const [side, pane] of Object.entries(this.panes)) {
      const model = this.models[side], i = model.places.get(label);
      pane.show(i === undefined ? null : model.bodies[i]);
    }
    this.$(".bodies").value = label;
    this._options();
    this._inspect(null);
    this._find();
    this.list.fill();
    if (then) then();
  }
  arrange(how) {
    this.how = how;
    for (const [side, pane] of Object.entries(this.panes)) pane.element.hidden = how !== "both" && how !== side;
    for (const button of this.section.querySelectorAll("[data-arrange]"))
      button.setAttribute("aria-pressed", String(button.dataset.arrange === how));
    for (const pane of Object.values(this.panes)) pane.resize();
  }
  _reveal(side) { if (this.how !== "both" && this.how !== side) this.arrange(side); }
  _toolbar() {
    const labels = new Map();
    for (const side of ["before", "after"])
      for (const body of this.models[side]?.bodies || []) {
        const there = labels.get(body.label) || [];
        labels.set(body.label, [...there, body.counted]);
      }
    const bodies = this.$(".bodies");
    for (const [label, counts] of labels)
      bodies.add(new Option(`${label} (${[...new Set(counts)].map((n) => n.toLocaleString("en")).join(" \u2192 ")})`, label));
    bodies.closest("label").hidden = labels.size < 2;
    bodies.addEventListener("change", () => this.openBody(bodies.value));
    for (const button of this.section.querySelectorAll("[data-arrange]"))
      button.addEventListener("click", () => this.arrange(button.dataset.arrange));
    const act = {
      fit: () => Object.values(this.panes).forEach((p) => p.fit()),
      in: () => Object.values(this.panes).forEach((p) => p.zoom(1.35)),
      out: () => Object.values(this.panes).forEach((p) => p.zoom(1 / 1.35)),
      next: () => this.step(1),
      previous: () => this.step(-1),
    };
    for (const button of this.section.querySelectorAll("[data-act]"))
      button.addEventListener("click", act[button.dataset.act]);
    for (const box of this.section.querySelectorAll("[data-state]"))
      box.addEventListener("change", () => {
        if (box.checked) this.filter.states.add(box.dataset.state); else this.filter.states.delete(box.dataset.state);
        this._filtered();
      });
    for (const key of ["op", "pass"])
      this.$(`.filter-${key}`).addEventListener("change", (e) => { this.filter[key] = e.target.value; this._filtered(); });
  }
  // The operators and passes of the body that is open.
  _options() {
    const count = { op: new Map(), pass: new Map() };
    const add = (map, key) => map.set(key, (map.get(key) || 0) + 1);
    for (const pane of Object.values(this.panes)) {
      const body = pane.body;
      for (let v = 0; body && v < body.size; v++) {
        if (body.n.kind[v]) continue;
        if (pane === this.panes.after || !this.both || body.state(v) === "removed") add(count.op, body.op(v));
        if (body.by(v)) add(count.pass, body.by(v));
      }
    }
    for (const key of ["op", "pass"]) {
      const select = this.$(`.filter-${key}`), chosen = this.filter[key];
      select.length = 1;
      const rows = [...count[key]].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
      for (const [name, n] of rows) select.add(new Option(`${name} (${n.toLocaleString("en")})`, name));
      select.value = count[key].has(chosen) ? chosen : "";
      this.filter[key] = select.value;
      select.closest("label").hidden = !rows.length;
    }
  }
  matches(body, v) {
    const f = this.filter;
    if (f.states.size < 4 && !f.states.has(STATES[body.n.state[v]])) return false;
    if (f.op && body.op(v) !== f.op) return false;
    return !f.pass || body.by(v) === f.pass;
  }
  _filtered() { this.redraw(); this.list.fill(); }

  // -- the selected node, in both panes ------------------------------------------------------------------------
  select(pane, v, { center = true, focus = false } = {}) {
    const side = this.sideOf(pane);
    for (const p of Object.values(this.panes)) p.selected = -1;
    if (v < 0) { this._inspect(null); this.list.mark(null); this.redraw(); return; }
    pane.selected = v;
    this._reveal(side);
    if (center) pane.jump(v);
    const pair = pane.body.n.pair[v], other = this.other(side);
    if (other?.body) {
      if (pair >= 0) other.selected = pair;
      const near = pair >= 0 ? pair : this._nearest(pane.body, v);
      if (near >= 0) other.jump(near);
    }
    this._inspect({ side, body: pane.body, v });
    this.list.mark({ side, v });
    this.redraw();
    if (focus) pane.canvas.focus();
  }
  // To a node or tensor of any body that a table names; a tensor leads to what computes it.
  goTo(name) {
    if (!this.named) {
      this.named = new Map();
      for (const side of ["before", "after"])
        for (const body of this.models[side]?.bodies || [])
          for (let v = 0; v < body.size; v++)
            for (const text of [...body.n.out[v].map((t) => (t >= 0 ? body.t.name[t] : "")), body.n.name[v]])
              if (text) this.named.set(text, [side, body.label, v]);
    }
    const found = this.named.get(name);
    this.section.scrollIntoView();
    if (found) this.go(...found); else this.say(`neither model has ${name}`);
    this.$(found ? `.pane.${found[0]} canvas.main` : ".search input").focus({ preventScroll: true });
  }
  // Where the other model has what this node is computed from.
  _nearest(body, v) {
    const seen = new Set([v]);
    for (const u of seen) {
      if (body.n.pair[u] >= 0) return body.n.pair[u];
      for (const t of body.inputs(u)) if (t >= 0 && body.producer[t] >= 0) seen.add(body.producer[t]);
      if (seen.size > 500) break;
    }
    return -1;
  }
  go(side, label, v) {
    const there = () => this.select(this.panes[side], v);
    if (label === this.label) there(); else this.openBody(label, there);
  }
  // The next or previous change that the filter lets through, in the order of the list.
  step(by) {
    const rows = this.list.rows, n = rows.length;
    const start = this.list.current >= 0 ? this.list.current : by > 0 ? -1 : n;
    for (let i = start + by; i >= 0 && i < n; i += by) {
      const { side, v } = rows[i];
      if (this.panes[side].body.n.state[v]) return this.select(this.panes[side], v);
    }
    this.say(by > 0 ? "no further change" : "no earlier change");
  }
  say(text) { this.$(".said").textContent = text; }
  _inspect(what) {
    const box = this.$(".inspector");
    box.replaceChildren();
    if (!what) { box.append(make("p", { className: "quiet", textContent: "Select a node: click it, search for it, or take it from the list." })); return; }
    const { side, body, v } = what, state = body.state(v);
    box.append(make("h3", { textContent: body.op(v) }), make("div", { className: "break", textContent: body.name(v) }));
    if (this.both) {
      const by = body.by(v), words = state === "same" ? "unchanged" : state;
      const line = make("p", {}, make("span", { className: "state " + state, textContent: `${MARKS[state]} ${words}`.trim() }));
      line.append(by ? `, ${state === "removed" ? "removed" : "made"} by ${by}` : "", ` (${side})`);
      box.append(line);
    } else if (body.by(v)) box.append(make("p", { textContent: `made by ${body.by(v)}` }));
    const part = (title, rows) => { if (rows.length) box.append(make("h4", { textContent: title }), make("ul", {}, ...rows)); };
    part("what changed", (body.n.changes[v] || []).map((text) => make("li", { textContent: text })));
    part("attributes", body.attributes(v).map((text) => make("li", { className: "mono", textContent: text })));
    const jump = (to) => make("button", {
      type: "button", className: "link", textContent: `${body.op(to)} ${body.name(to)}`,
      onclick: () => this.select(this.panes[side], to),
    });
    const tensor = (t, ...more) => {
      const row = make("li", {}, make("span", { textContent: t < 0 ? "(left out)" : body.t.name[t] }));
      if (t >= 0 && body.type(t)) row.append(" ", make("span", { className: "type", textContent: body.type(t) }));
      row.append(...more);
      return row;
    };
    const source = (t) => {
      if (t < 0) return [];
      const from = body.producer[t], kind = body.t.kind[t], stats = body.t.stats[t];
      if (from >= 0) return [make("br"), "from ", jump(from)];
      const words = { initializer: "initializer", outer: "from an enclosing body" }[kind] || "";
      return words ? [make("br"), make("span", { className: "type", textContent: words + (stats ? ", " + stats : "") })] : [];
    };
    part("inputs", body.n.in[v].map((t) => tensor(t, ...source(t))));
    part("read by bodies within", (body.n.cap[v] || []).map((t) => tensor(t, ...source(t))));
    part("outputs", body.n.out[v].map((t) => {
      const readers = t < 0 ? [] : body.readersOf(t), shown = readers.slice(0, 8);
      const more = shown.flatMap((r, i) => [i ? ", " : " ", jump(r)]);
      if (readers.length > shown.length) more.push(` and ${readers.length - shown.length} more`);
      return tensor(t, ...(readers.length ? [make("br"), "read by", ...more] : []));
    }));
    part("bodies", (body.n.bodies[v] || []).map((i) => {
      const inner = body.model.bodies[i];
      return make("li", {}, make("button", {
        type: "button", className: "link", textContent: `open ${inner.label} (${inner.counted} nodes)`,
        onclick: () => this.openBody(inner.label),
      }));
    }));
    const holder = body.parent >= 0 ? body.model.bodies[body.parent] : null;
    if (holder) part("held by", [make("li", {}, make("button", {
      type: "button", className: "link", textContent: `${holder.op(body.holder)} ${holder.name(body.holder)}`,
      onclick: () => this.go(side, holder.label, body.holder),
    }))]);
  }

  // -- search -------------------------------------------------------------------------------------------------
  hitsIn(body) { return body && this.hits.text ? this.hits[body.model === this.models.before ? "before" : "after"] : new Set(); }
  _find() {
    const field = this.$(".search input"), box = this.$(".hits");
    const text = field.value.trim().toLowerCase(), words = text.split(/\s+/).filter(Boolean);
    const hits = (this.hits = { list: [], at: -1, before: new Set(), after: new Set(), text });
    if (words.length)
      for (const [side, pane] of [["after", this.panes.after], ["before", this.panes.before]]) {
        const body = pane?.body;
        for (let v = 0; body && v < body.size; v++) {
          const there = body.text(v);
          if (!words.every((w) => there.includes(w))) continue;
          hits[side].add(v);
          if (side === "after" || body.n.pair[v] < 0) hits.list.push({ side, v });
        }
      }
    box.replaceChildren(...hits.list.slice(0, 50).map(({ side, v }, i) => {
      const body = this.panes[side].body, state = body.state(v);
      return make("li", {
        id: `hit-${i}`, role: "option", "aria-selected": "false",
        textContent: `${MARKS[state]} ${body.op(v)}  ${body.name(v)}`.trim(),
        onclick: () => { this._hit(i); this._close(); },
      });
    }));
    box.hidden = !hits.list.length || document.activeElement !== field;
    field.setAttribute("aria-expanded", String(!box.hidden));
    field.removeAttribute("aria-activedescendant");
    this.say(text ? `${hits.list.length.toLocaleString("en")} found` : "");
    this.redraw();
  }
  _close() {
    this.$(".hits").hidden = true;
    this.$(".search input").setAttribute("aria-expanded", "false");
  }
  _hit(i) {
    const { list } = this.hits, n = list.length;
    if (!n) return;
    this.hits.at = (i + n) % n;
    const { side, v } = list[this.hits.at];
    this.select(this.panes[side], v);
    const options = this.$(".hits").children;
    for (const [k, option] of [...options].entries()) option.setAttribute("aria-selected", String(k === this.hits.at));
    options[this.hits.at]?.scrollIntoView({ block: "nearest" });
    if (options[this.hits.at]) this.$(".search input").setAttribute("aria-activedescendant", options[this.hits.at].id);
    this.say(`${this.hits.at + 1} of ${n.toLocaleString("en")}`);
  }
  _search() {
    const field = this.$(".search input");
    let wait;
    field.addEventListener("input", () => { clearTimeout(wait); wait = setTimeout(() => this._find(), 60); });
    field.addEventListener("focus", () => { if (this.hits.list.length) this.$(".hits").hidden = false; });
    field.addEventListener("blur", () => setTimeout(() => this._close(), 150));
    field.addEventListener("keydown", (e) => {
      if (e.key === "Enter" || e.key === "ArrowDown" || e.key === "ArrowUp") {
        clearTimeout(wait);
        if (field.value.trim().toLowerCase() !== this.hits.text) this._find();
        this._hit(this.hits.at + (e.key === "ArrowUp" || e.shiftKey ? -1 : 1));
        e.preventDefault();
      } else if (e.key === "Escape" && !this.$(".hits").hidden) { this._close(); e.preventDefault(); }
    });
  }

  // -- keys on a pane; true if the key meant something -------------------------------------------------------------
  key(pane, e) {
    if (e.ctrlKey || e.metaKey || e.altKey) return false;
    const far = 90, arrows = { ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, -far], ArrowDown: [0, far] };
    if (arrows[e.key]) {
      if (e.shiftKey) this._walk(pane, e.key); else pane.pan(...arrows[e.key]);
      return true;
    }
    const keys = {
      "+": () => pane.zoom(1.35), "=": () => pane.zoom(1.35), "-": () => pane.zoom(1 / 1.35),
      f: () => pane.fit(), 0: () => pane.fit(), n: () => this.step(1), p: () => this.step(-1),
      "/": () => this.$(".search input").focus(), Escape: () => this.select(pane, -1),
      Enter: () => {
        const inner = pane.selected >= 0 && pane.body.n.bodies[pane.selected];
        if (inner) this.openBody(pane.body.model.bodies[inner[0]].label);
        else if (pane.selected >= 0) pane.jump(pane.selected);
        else this._walk(pane, "ArrowDown");
      },
    };
    if (!keys[e.key]) return false;
    keys[e.key]();
    return true;
  }
  // Along the lines: up to the producer, down to the first reader, sideways within the rank.
  _walk(pane, key) {
    const body = pane.body, v = pane.selected;
    if (!body) return;
    let to = -1;
    if (v < 0) to = 0;
    else if (key === "ArrowUp") to = body.inputs(v).map((t) => (t < 0 ? -1 : body.producer[t])).find((p) => p >= 0) ?? -1;
    else if (key === "ArrowDown") to = body.n.out[v].flatMap((t) => (t < 0 ? [] : body.readersOf(t)))[0] ?? -1;
    else {
      const y = body.n.y[v], x = body.n.x[v], right = key === "ArrowRight";
      let least = Infinity;
      for (const u of pane.grid.within(x - 4000, y, x + 4000, y + 1)) {
        const d = right ? body.n.x[u] - x : x - body.n.x[u];
        if (body.n.y[u] === y && d > 0 && d < least) { least = d; to = u; }
      }
    }
    if (to >= 0) this.select(pane, to);
  }
}
