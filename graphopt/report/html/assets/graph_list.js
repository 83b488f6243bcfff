// Every node as a row: the graph for those who read or hear it. Only the rows in sight exist.
class NodeList {
  constructor(ui) {
    this.ui = ui;
    this.height = 24;
    this.rows = [];
    this.current = -1;
    this.box = ui.$(".nodelist .rows");
    this.space = make("div", { role: "presentation" });
    this.box.append(this.space);
    this.box.addEventListener("scroll", () => this.draw());
    this.box.addEventListener("keydown", (e) => {
      const page = Math.floor(this.box.clientHeight / this.height) - 1, last = this.rows.length - 1;
      const to = {
        ArrowDown: this.current + 1, ArrowUp: this.current - 1, PageDown: this.current + page,
        PageUp: this.current - page, Home: 0, End: last,
      }[e.key];
      if (to !== undefined && last >= 0) {
        this.choose(Math.min(last, Math.max(0, to)));
        e.preventDefault();
      } else if (e.key === "Enter" && this.current >= 0) {
        const { side } = this.rows[this.current];
        this.ui.panes[side].canvas.focus();
        e.preventDefault();
      }
    });
    this.box.addEventListener("click", (e) => {
      const row = e.target.closest(".row");
      if (row) this.choose(Number(row.dataset.i));
    });
  }
  // Nodes of both models in order: pairs once, as they are in the second model.
  fill() {
    const { ui } = this, after = ui.panes.after.body, before = ui.panes.before?.body, rows = [];
    const add = (side, body, v) => {
      if (body.n.kind[v] === 0 && ui.matches(body, v)) rows.push({ side, v });
    };
    let next = 0;
    const until = (v) => { for (; after && next <= v; next++) add("after", after, next); };
    for (let v = 0; before && v < before.size; v++) {
      const pair = after ? before.n.pair[v] : -1;
      if (pair >= 0) until(pair); else add("before", before, v);
    }
    if (after) until(after.size - 1);
    this.rows = rows;
    this.current = -1;
    this.space.style.height = rows.length * this.height + "px";
    ui.$(".nodelist .count").textContent = rows.length.toLocaleString("en");
    this.box.scrollTop = 0;
    this.index = null;
    this.draw(true);
  }
  draw(all = false) {
    const first = Math.max(0, Math.floor(this.box.scrollTop / this.height) - 4);
    const last = Math.min(this.rows.length, first + Math.ceil(264 / this.height) + 8);
    if (!all && first === this.first && last === this.last) return;
    this.first = first;
    this.last = last;
    const made = [];
    for (let i = first; i < last; i++) {
      const { side, v } = this.rows[i], body = this.ui.panes[side].body, state = body.state(v);
      const row = make("div", {
        className: "row", id: `row-${i}`, role: "option", "aria-setsize": this.rows.length, "aria-posinset": i + 1,
        "aria-selected": String(i === this.current),
      },
        make("span", { className: "state " + state, textContent: state === "same" ? "" : `${MARKS[state]} ${state}` }),
        make("span", { textContent: body.op(v) }), make("span", { textContent: body.name(v) }),
        make("span", { className: "quiet", textContent: body.by(v) }));
      row.dataset.i = i;
      row.style.top = i * this.height + "px";
      made.push(row);
    }
    this.space.replaceChildren(...made);
  }
  choose(i) {
    const { side, v } = this.rows[i];
    this.ui.select(this.ui.panes[side], v);
  }
  // Show which row is selected; a node of the first model that has a pair is its pair's row.
  mark(what) {
    if (!this.index) this.index = new Map(this.rows.map(({ side, v }, i) => [side + v, i]));
    let i = -1;
    if (what) {
      i = this.index.get(what.side + what.v) ?? -1;
      if (i < 0 && what.side === "before") i = this.index.get("after" + this.ui.panes.before.body.n.pair[what.v]) ?? -1;
    }
    this.current = i;
    if (i >= 0) {
      const top = i * this.height, room = this.box.clientHeight;
      if (top < this.box.scrollTop || top + this.height > this.box.scrollTop + room) this.box.scrollTop = top - room / 2;
      this.draw(true);
      this.box.setAttribute("aria-activedescendant", `row-${i}`);
    } else { this.draw(true); this.box.removeAttribute("aria-activedescendant"); }
  }
}

(async () => {
  const section = document.querySelector("section.graph");
  if (!section) return;
  const said = section.querySelector(".said");
  try {
    const data = await unpack(document.getElementById("graph-data"));
    section.querySelector(".wait").remove();
    section.querySelector(".works").hidden = false;
    root.graph = new GraphUi(section, data);
    document.addEventListener("click", (e) => {
      const place = e.target.closest("[data-goto]");
      if (place) root.graph.goTo(place.dataset.goto);
    });
    requestAnimationFrame(() => requestAnimationFrame(() => {
      section.dataset.ready = String(Math.round(performance.now()));
      performance.mark("graph-ready");
    }));
  } catch (error) {
    section.querySelector(".wait")?.replaceChildren("The graph cannot be shown in this browser: " + error.message);
    said.textContent = "";
    throw error;
  }
})();
