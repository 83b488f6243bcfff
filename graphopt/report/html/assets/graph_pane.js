// One canvas: draws a body at any scale, pans and zooms, and says which node was clicked.
const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';
const calm = matchMedia("(prefers-reduced-motion: reduce)");

class Pane {
  constructor(element, size, ui) {
    this.element = element;
    this.canvas = element.querySelector("canvas.main");
    this.minimap = new Minimap(this, element.querySelector("canvas.minimap"));
    this.tip = element.querySelector(".tip");
    this.size = size; // of a node
    this.ui = ui;
    this.body = null;
    this.x = 0; this.y = 0; this.scale = 1; // the world's point in the upper left corner, pixels per unit
    this.selected = -1;
    this.dirty = false;
    this.grids = new Map();
    this._listen();
    new ResizeObserver(() => this.resize()).observe(element);
  }

  show(body) {
    this.body = body;
    this.selected = -1;
    this.element.querySelector(".empty").hidden = Boolean(body);
    if (body && !this.grids.has(body)) this.grids.set(body, new Grid(body, this.size.w, this.size.h));
    this.grid = body ? this.grids.get(body) : null;
    this.resize();
    this.fit();
  }
  resize() {
    const box = this.element.getBoundingClientRect();
    const ratio = devicePixelRatio || 1;
    const w = Math.max(1, Math.round(this.element.clientWidth)), h = Math.max(1, Math.round(this.element.clientHeight));
    if (!box.width) return;
    if (this.w === w && this.h === h && this.ratio === ratio) return;
    const first = !this.w;
    Object.assign(this, { w, h, ratio });
    this.canvas.width = w * ratio;
    this.canvas.height = h * ratio;
    if (first || !this.moved) this.fit(); else this.redraw();
  }
  get least() { return this.body ? 0.8 * this._whole() : 0.01; }
  _whole() {
    return Math.min((this.w - 24) / Math.max(this.body.width, 1), (this.h - 48) / Math.max(this.body.height, 1), 1.2);
  }
  fit() {
    if (!this.body || !this.w) return this.redraw();
    this.moved = false;
    const scale = Math.max(this._whole(), 0.002);
    this.scale = scale;
    this.x = this.body.width / 2 - this.w / 2 / scale;
    this.y = this.body.height / 2 - (this.h + 20) / 2 / scale;
    this.redraw();
  }
  zoom(factor, px = this.w / 2, py = this.h / 2) {
    if (!this.body) return;
    const scale = Math.min(3, Math.max(this.least, this.scale * factor));
    this.x += px / this.scale - px / scale;
    this.y += py / this.scale - py / scale;
    this.scale = scale;
    this.moved = true;
    this.redraw();
  }
  pan(dx, dy) { this.x += dx / this.scale; this.y += dy / this.scale; this.moved = true; this.redraw(); }
  // Bring a node to the middle, near enough to read it.
  jump(v) {
    const scale = Math.max(this.scale, 0.9);
    const to = {
      x: this.body.n.x[v] + this.size.w / 2 - this.w / 2 / scale,
      y: this.body.n.y[v] + this.size.h / 2 - this.h / 2 / scale,
    };
    this.moved = true;
    cancelAnimationFrame(this.flight);
    if (calm.matches) { Object.assign(this, to, { scale }); return this.redraw(); }
    const from = { x: this.x, y: this.y, scale: this.scale, at: performance.now() };
    const step = (now) => {
      const k = Math.min(1, Math.max(0, (now - from.at) / 220)), e = k * (2 - k);
      for (const key of ["x", "y"]) this[key] = from[key] + (to[key] - from[key]) * e;
      this.scale = from.scale + (scale - from.scale) * e;
      this.redraw();
      if (k < 1) this.flight = requestAnimationFrame(step);
    };
    this.flight = requestAnimationFrame(step);
  }
  redraw() {
    if (this.dirty) return;
    this.dirty = true;
    requestAnimationFrame(() => this.draw());
  }
  at(px, py) {
    if (!this.body) return -1;
    const x = this.x + px / this.scale, y = this.y + py / this.scale;
    // In the overview nodes are tiny: whatever is within some pixels.
    const slack = Math.max(0, 4 / this.scale - this.size.h / 2);
    let best = -1, least = Infinity;
    for (const v of this.grid.within(x - slack - this.size.w, y - slack - this.size.h, x + slack, y + slack)) {
      const dx = Math.max(this.body.n.x[v] - x, 0, x - this.body.n.x[v] - this.size.w);
      const dy = Math.max(this.body.n.y[v] - y, 0, y - this.body.n.y[v] - this.size.h);
      const far = dx * dx + dy * dy;
      if (far <= slack * slack && far < least) { best = v; least = far; }
    }
    return best;
  }

  // -- drawing ------------------------------------------------------------------------------------------
  draw() {
    this.dirty = false;
    const g = this.canvas.getContext("2d");
    g.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    g.fillStyle = this.ui.color("page");
    g.fillRect(0, 0, this.w, this.h);
    if (!this.body) return;
    const { scale, size } = this;
    const x1 = this.x + this.w / scale, y1 = this.y + this.h / scale;
    const visible = this.grid.within(this.x - size.w, this.y - size.h, x1, y1);
    g.setTransform(this.ratio * scale, 0, 0, this.ratio * scale, -this.x * scale * this.ratio, -this.y * scale * this.ratio);
    if (scale >= 0.07) this._edges(g, scale > 0.3 ? this.grid.within(this.x - 900, this.y - 1600, x1 + 900, y1 + 1600) : visible);
    if (scale < 0.3) this._blocks(g, visible); else this._boxes(g, visible);
    this._selection(g);
    this._found(g, visible);
    this.minimap.draw();
    this.drawn = (this.drawn || 0) + 1;
  }
  _path(g, body, from, to, slot) {
    const { w, h } = this.size;
    let x = body.n.x[from] + w / 2, y = body.n.y[from] + h;
    const endX = body.n.x[to] + w * body.entry(to, slot), endY = body.n.y[to];
    g.moveTo(x, y);
    const way = (body.n.routes[to] || []).find((r) => r[0] === slot);
    const points = way ? way.slice(1) : [];
    points.push(endX, endY);
    for (let i = 0; i < points.length; i += 2) {
      const [px, py] = [points[i], points[i + 1]];
      if (px === x) g.lineTo(px, py);
      else { const m = (y + py) / 2; g.bezierCurveTo(x, m, px, m, px, py); }
      x = px; y = py;
    }
  }
  _edges(g, nodes) {
    const body = this.body;
    g.lineWidth = Math.max(1, 0.7 / this.scale);
    g.strokeStyle = this.ui.color("g-edge");
    g.globalAlpha = this.scale < 0.2 ? 0.45 : 0.85;
    g.beginPath();
    for (const v of nodes) {
      const inputs = body.inputs(v), cut = body.n.cut[v];
      for (let slot = 0; slot < inputs.length; slot++) {
        const t = inputs[slot];
        if (t < 0) continue;
        const from = body.producer[t];
        if (from < 0 || from === v) continue;
        if (cut && cut.includes(slot)) this._stub(g, v, slot); else this._path(g, body, from, v, slot);
      }
    }
    g.stroke();
    g.globalAlpha = 1;
  }
  // A far producer: a short end, instead of a line across everything.
  _stub(g, v, slot) {
    const x = this.body.n.x[v] + this.size.w * this.body.entry(v, slot), y = this.body.n.y[v];
    g.moveTo(x, y - 11);
    g.lineTo(x, y);
    g.moveTo(x + 2.5, y - 11);
    g.arc(x, y - 11, 2.5, 0, 7);
  }
  _blocks(g, nodes) {
    const { body, scale } = this, { w, h } = this.size;
    const dim = [], groups = new Map();
    for (const v of nodes) {
      if (!this.ui.matches(body, v)) { dim.push(v); continue; }
      const state = body.n.state[v];
      const key = state ? "g-" + STATES[state] : "g-" + body.category(v);
      const group = groups.get(key);
      if (group) group.push(v); else groups.set(key, [v]);
    }
    g.globalAlpha = 0.18;
    g.fillStyle = this.ui.color("g-layout");
    for (const v of dim) g.fillRect(body.n.x[v], body.n.y[v], w, h);
    g.globalAlpha = 1;
    const least = 2.2 / scale, wide = Math.max(w, least), high = Math.max(h, least);
    const draw = (key) => {
      g.fillStyle = g.strokeStyle = this.ui.color(key);
      // Not by colour alone: what was removed is hollow, what was changed is half full.
      const big = h * scale > 5;
      g.lineWidth = 1.4 / scale;
      for (const v of groups.get(key)) {
        const x = body.n.x[v], y = body.n.y[v];
        if (big && key === "g-removed") {
          g.strokeRect(x, y, wide, high);
          g.fillRect(x, y + high / 2 - 0.7 / scale, wide, 1.4 / scale);
        } else if (big && key === "g-changed") {
          g.strokeRect(x, y, wide, high);
          g.fillRect(x, y, wide / 2, high);
        } else g.fillRect(x, y, wide, high);
      }
    };
    const last = ["g-removed", "g-changed", "g-added"];
    for (const key of groups.keys()) if (!last.includes(key)) draw(key);
    for (const key of last) if (groups.has(key)) draw(key);
  }
  _boxes(g, nodes) {
    const { body, scale } = this, { w, h } = this.size, color = (key) => this.ui.color(key);
    const px = this.ratio * scale;
    g.textBaseline = "alphabetic";
    for (const v of nodes) {
      const x = body.n.x[v], y = body.n.y[v], state = body.state(v), port = body.n.kind[v] !== 0;
      g.globalAlpha = this.ui.matches(body, v) ? 1 : 0.22;
      const tint = color("g-" + body.category(v));
      g.beginPath();
      g.roundRect(x, y, w, h, port ? h / 2 : 4);
      g.fillStyle = color("g-node");
      g.fill();
      if (!port) {
        g.fillStyle = tint;
        g.fillRect(x, y + 3, 5, h - 6);
      }
      g.strokeStyle = state === "same" ? color("edge") : color("g-" + state);
      g.lineWidth = state === "same" ? 1 : 2.2;
      g.setLineDash(state === "removed" ? [6, 3] : state === "changed" ? [2, 2] : []);
      g.stroke();
      g.setLineDash([]);
      if (body.n.bodies[v]) { // holds bodies: a second frame
        g.beginPath();
        g.roundRect(x + 3, y + 3, w - 6, h - 6, 3);
        g.lineWidth = 1;
        g.stroke();
      }
      if (px < 0.42) continue;
      const detail = scale >= 1.25, inside = w - (state === "same" ? 16 : 34);
      g.fillStyle = color("text");
      if (port) {
        g.font = `11px ${FONT}`;
        this._text(g, body.name(v) || "?", x + 16, y + 24, w - 40);
        g.fillStyle = color("muted");
        g.font = `8.5px ${FONT}`;
        this._text(g, body.kind(v), x + 16, y + 12, w - 40);
      } else {
        g.font = `600 ${detail ? 11 : 13}px ${FONT}`;
        this._text(g, body.op(v), x + 11, y + (detail ? 13 : 17), inside);
        if (scale >= 0.55) {
          g.fillStyle = color("muted");
          g.font = `${detail ? 8 : 9.5}px ${FONT}`;
          this._text(g, body.name(v), x + 11, y + (detail ? 24 : 31), w - 18, true);
          if (detail) this._text(g, body.attributes(v).join(" "), x + 11, y + 34, w - 18);
        }
      }
      if (state !== "same") {
        g.beginPath();
        g.arc(x + w - 12, y + 11, 8, 0, 7);
        g.fillStyle = color("g-" + state);
        g.fill();
        g.fillStyle = color("page");
        g.font = `700 13px ${FONT}`;
        g.textAlign = "center";
        g.fillText(MARKS[state], x + w - 12, y + 15.5);
        g.textAlign = "left";
      }
      if (scale >= 0.85 && body.n.out[v].length) {
        const t = body.n.out[v].find((i) => i >= 0);
        if (t !== undefined) {
          g.fillStyle = color("muted");
          g.font = `7.5px ${FONT}`;
          this._text(g, body.type(t), x + w / 2 + 4, y + h + 9, w / 2 + 16, true);
          if (detail) this._text(g, body.t.name[t], x + w / 2 + 4, y + h + 18, w / 2 + 16, true);
        }
      }
    }
    g.globalAlpha = 1;
  }
  // Text in a given room; of long names the end says more than the beginning.
  _text(g, text, x, y, room, tail = false) {
    if (!text) return;
    let n = Math.floor(room / (parseFloat(g.font.match(/([\d.]+)px/)[1]) * 0.47));
    if (text.length > n * 1.3 || g.measureText(text).width > room) {
      n = Math.min(n, text.length - 1);
      const cut = () => (tail ? "\u2026" + text.slice(text.length - n) : text.slice(0, n) + "\u2026");
      while (n > 1 && g.measureText(cut()).width > room) n--;
      text = cut();
    }
    g.fillText(text, x, y);
  }
  _selection(g) {
    const v = this.selected, body = this.body;
    if (v < 0) return;
    g.strokeStyle = this.ui.color("focus");
    g.lineWidth = Math.max(1.8, 1.6 / this.scale);
    const lines = (far) => {
      g.beginPath();
      const add = (from, to, slot) => {
        const cut = (body.n.cut[to] || []).includes(slot);
        if (from >= 0 && from !== to && cut === far) this._path(g, body, from, to, slot);
      };
      body.inputs(v).forEach((t, slot) => { if (t >= 0) add(body.producer[t], v, slot); });
      for (const t of body.n.out[v])
        if (t >= 0) for (const r of body.readersOf(t)) body.inputs(r).forEach((i, slot) => { if (i === t) add(v, r, slot); });
      g.stroke();
    };
    lines(false);
    g.setLineDash([8 / this.scale, 5 / this.scale]);
    lines(true);
    g.setLineDash([]);
    g.lineWidth = Math.max(3, 2.5 / this.scale);
    g.beginPath();
    const pad = Math.max(3, 4 / this.scale);
    g.roundRect(body.n.x[v] - pad, body.n.y[v] - pad, this.size.w + 2 * pad, this.size.h + 2 * pad, 6);
    g.stroke();
  }
  _found(g, nodes) {
    const hits = this.ui.hitsIn(this.body);
    if (!hits.size) return;
    g.strokeStyle = this.ui.color("g-found");
    g.lineWidth = Math.max(2, 1.8 / this.scale);
    const pad = Math.max(2, 3 / this.scale);
    g.beginPath();
    for (const v of nodes)
      if (hits.has(v)) g.rect(this.body.n.x[v] - pad, this.body.n.y[v] - pad, this.size.w + 2 * pad, this.size.h + 2 * pad);
    g.stroke();
  }

  // -- mouse, touch, keys --------------------------------------------------------------------------------
  _listen() {
    const { canvas } = this;
    const fingers = new Map();
    let moved = 0, spread = 0;
    const spot = (e) => { const r = canvas.getBoundingClientRect(); return [e.clientX - r.left, e.clientY - r.top]; };
    canvas.addEventListener("wheel", (e) => {
      e.preventDefault();
      cancelAnimationFrame(this.flight);
      const step = e.deltaMode === 1 ? e.deltaY * 16 : e.deltaY;
      this.zoom(Math.exp(-Math.max(-120, Math.min(120, step)) / 320), ...spot(e));
    }, { passive: false });
    canvas.addEventListener("pointerdown", (e) => {
      cancelAnimationFrame(this.flight);
      canvas.setPointerCapture(e.pointerId);
      fingers.set(e.pointerId, [e.clientX, e.clientY]);
      moved = 0;
      spread = 0;
    });
    canvas.addEventListener("pointermove", (e) => {
      const before = fingers.get(e.pointerId);
      if (!before) return this._hover(e, spot(e));
      const dx = e.clientX - before[0], dy = e.clientY - before[1];
      fingers.set(e.pointerId, [e.clientX, e.clientY]);
      moved += Math.abs(dx) + Math.abs(dy);
      if (fingers.size === 1 && moved > 3) this.pan(-dx, -dy);
      if (fingers.size === 2) {
        const [a, b] = [...fingers.values()];
        const apart = Math.hypot(a[0] - b[0], a[1] - b[1]), r = canvas.getBoundingClientRect();
        if (spread) this.zoom(apart / spread, (a[0] + b[0]) / 2 - r.left, (a[1] + b[1]) / 2 - r.top);
        spread = apart;
      }
      this.tip.hidden = true;
    });
    const lift = (e) => {
      const clicked = fingers.delete(e.pointerId) && moved <= 3 && e.type === "pointerup";
      if (clicked) this.ui.select(this, this.at(...spot(e)), { center: false });
    };
    canvas.addEventListener("pointerup", lift);
    canvas.addEventListener("pointercancel", lift);
    canvas.addEventListener("pointerleave", () => { this.tip.hidden = true; });
    canvas.addEventListener("dblclick", (e) => {
      const v = this.at(...spot(e));
      const inner = v >= 0 && this.body.n.bodies[v];
      if (inner) this.ui.openBody(this.body.model.bodies[inner[0]].label);
      else if (v >= 0) this.jump(v);
      else this.zoom(1.6, ...spot(e));
    });
    canvas.addEventListener("keydown", (e) => {
      if (this.ui.key(this, e)) e.preventDefault();
    });
  }
  _hover(e, [px, py]) {
    const v = this.at(px, py);
    this.canvas.style.cursor = v >= 0 ? "pointer" : "";
    this.tip.hidden = v < 0 || this.scale > 1.2;
    if (this.tip.hidden) return;
    const body = this.body, state = body.state(v);
    this.tip.textContent = `${body.op(v)}  ${body.name(v)}` + (state === "same" ? "" : `  (${state}${body.by(v) ? ", " + body.by(v) : ""})`);
    this.tip.style.left = Math.min(px + 14, this.w - this.tip.offsetWidth - 6) + "px";
    this.tip.style.top = Math.min(py + 14, this.h - this.tip.offsetHeight - 6) + "px";
  }
}
