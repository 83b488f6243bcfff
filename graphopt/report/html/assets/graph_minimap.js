// The whole of a body in a corner of its pane, with a frame around what is in sight. The picture is made once
// per body, colours and filter.
class Minimap {
  constructor(pane, canvas) {
    this.pane = pane;
    this.canvas = canvas;
    this.pictures = new Map();
    const travel = (e) => {
      if (!(e.buttons & 1)) return;
      const r = canvas.getBoundingClientRect();
      pane.x = (e.clientX - r.left) / this.scale - pane.w / 2 / pane.scale;
      pane.y = (e.clientY - r.top) / this.scale - pane.h / 2 / pane.scale;
      pane.moved = true;
      pane.redraw();
    };
    canvas.addEventListener("pointerdown", (e) => { canvas.setPointerCapture(e.pointerId); travel(e); });
    canvas.addEventListener("pointermove", travel);
  }
  draw() {
    const { pane, canvas } = this, { body, ratio } = pane, most = 150;
    const k = (this.scale = Math.min(most / body.width, most / body.height));
    const w = Math.max(24, Math.round(body.width * k)), h = Math.max(24, Math.round(body.height * k));
    canvas.hidden = pane.scale <= pane._whole() * 1.05;
    if (canvas.hidden) return;
    if (canvas.width !== w * ratio || canvas.height !== h * ratio) {
      canvas.width = w * ratio;
      canvas.height = h * ratio;
      canvas.style.width = w + "px";
      canvas.style.height = h + "px";
    }
    const g = canvas.getContext("2d");
    g.setTransform(1, 0, 0, 1, 0, 0);
    g.drawImage(this.picture(body, w, h), 0, 0);
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.strokeStyle = pane.ui.color("focus");
    g.lineWidth = 1.5;
    g.strokeRect(pane.x * k, pane.y * k, Math.max(3, (pane.w / pane.scale) * k), Math.max(3, (pane.h / pane.scale) * k));
  }
  picture(body, w, h) {
    const { pane, scale: k } = this, { ui, ratio, size } = pane;
    const key = `${w} ${ratio} ${ui.version}`, kept = this.pictures.get(body);
    if (kept && kept.key === key) return kept.image;
    const image = document.createElement("canvas");
    image.width = w * ratio;
    image.height = h * ratio;
    const g = image.getContext("2d");
    g.scale(ratio, ratio);
    g.fillStyle = ui.color("surface");
    g.fillRect(0, 0, w, h);
    const wide = Math.max(1, size.w * k), high = Math.max(1, size.h * k);
    for (const marked of [false, true]) // what changed lies on top
      for (let v = 0; v < body.size; v++) {
        const state = body.n.state[v];
        if (Boolean(state) !== marked) continue;
        g.fillStyle = ui.color(state ? "g-" + STATES[state] : "g-layout");
        g.globalAlpha = ui.matches(body, v) ? 1 : 0.2;
        g.fillRect(body.n.x[v] * k, body.n.y[v] * k, wide, high);
      }
    this.pictures.set(body, { key, image });
    return image;
  }
}
