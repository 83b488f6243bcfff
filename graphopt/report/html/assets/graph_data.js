// The drawn models: unpacked, and indexed for drawing, walking and searching.
const STATES = ["same", "removed", "added", "changed"];
const MARKS = { same: "", removed: "\u2212", added: "+", changed: "~" };
const KINDS = ["node", "input", "output"];

async function unpack(element) {
  const bytes = Uint8Array.from(atob(element.textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

// One body of one model. `n` has a column per property of nodes, `t` of tensors (see graphdata.py).
class Body {
  constructor(model, index, raw) {
    this.model = model;
    this.index = index;
    Object.assign(this, { label: raw.label, parent: raw.parent, holder: raw.holder, pair: raw.pair });
    this.width = raw.width;
    this.height = raw.height;
    this.n = raw.n;
    this.t = raw.t;
    this.size = raw.n.op.length;
    this.producer = new Int32Array(raw.t.name.length).fill(-1);
    this.readers = null;
    for (let v = 0; v < this.size; v++) for (const t of this.n.out[v]) if (t >= 0) this.producer[t] = v;
    this.counted = this.n.kind.reduce((sum, k) => sum + (k === 0), 0);
  }
  inputs(v) { return this.n.cap[v] ? this.n.in[v].concat(this.n.cap[v]) : this.n.in[v]; }
  // Where along a node's upper edge the line of an input ends, from 0 to 1: only inputs with a line count.
  entry(v, slot) {
    const drawn = (this.entries ??= new Array(this.size))[v] ??=
      this.inputs(v).map((t, i) => (t >= 0 && this.producer[t] >= 0 ? i : -1)).filter((i) => i >= 0);
    return (drawn.indexOf(slot) + 1) / (drawn.length + 1);
  }
  // Reader nodes of every tensor; made when first asked for.
  readersOf(t) {
    if (!this.readers) {
      this.readers = Array.from(this.t.name, () => []);
      for (let v = 0; v < this.size; v++)
        for (const i of this.inputs(v)) if (i >= 0 && this.readers[i].at(-1) !== v) this.readers[i].push(v);
    }
    return this.readers[t];
  }
  kind(v) { return KINDS[this.n.kind[v]]; }
  state(v) { return STATES[this.n.state[v]]; }
  op(v) { return this.n.kind[v] ? this.kind(v) : this.model.ops[this.n.op[v]]; }
  category(v) { return this.n.kind[v] ? "port" : this.model.categories[this.n.op[v]]; }
  by(v) { return this.model.passes[this.n.by[v]]; }
  name(v) {
    if (this.n.name[v]) return this.n.name[v];
    const t = this.n.out[v].find((i) => i >= 0);
    return t === undefined ? "" : this.t.name[t];
  }
  type(t) { return this.model.types[this.t.type[t]]; }
  attributes(v) { return (this.n.attr[v] || []).map((i) => this.model.attributes[i]); }
  // What a search looks at: the node's name, its operator, and its outputs' names.
  text(v) {
    if (!this.texts) this.texts = new Array(this.size);
    return this.texts[v] ??= [this.name(v), this.op(v), ...this.n.out[v].map((t) => (t >= 0 ? this.t.name[t] : ""))]
      .join("\n").toLowerCase();
  }
}

class Model {
  constructor(raw) {
    Object.assign(this, { title: raw.title, ops: raw.ops, categories: raw.categories, passes: raw.passes });
    this.types = raw.types;
    this.attributes = raw.attributes;
    this.bodies = raw.bodies.map((body, i) => new Body(this, i, body));
    this.places = new Map(this.bodies.map((body, i) => [body.label, i]));
  }
}

// Which nodes lie in a rectangle: cells of a grid, each with the nodes that touch it.
class Grid {
  constructor(body, w, h) {
    this.cell = 640;
    this.cells = new Map();
    for (let v = 0; v < body.size; v++) {
      const x = body.n.x[v], y = body.n.y[v];
      for (let i = Math.floor(x / this.cell); i <= Math.floor((x + w) / this.cell); i++)
        for (let j = Math.floor(y / this.cell); j <= Math.floor((y + h) / this.cell); j++) {
          const key = i * 65536 + j;
          const there = this.cells.get(key);
          if (there) there.push(v); else this.cells.set(key, [v]);
        }
    }
  }
  within(x0, y0, x1, y1) {
    const found = new Set();
    const c = this.cell;
    for (let i = Math.floor(x0 / c); i <= Math.floor(x1 / c); i++)
      for (let j = Math.floor(y0 / c); j <= Math.floor(y1 / c); j++)
        for (const v of this.cells.get(i * 65536 + j) || []) found.add(v);
    return found;
  }
}
