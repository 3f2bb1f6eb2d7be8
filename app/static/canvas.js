// A drawing canvas for any page: `new SketchCanvas(element, options)`. Plain 2-D: no WebGL, no build step, no library.
// A drawing is a list of strokes, replayed for undo; `strokes()` gives them as JSON, `png()` as a picture's data URL, ""
// while nothing is drawn. In mode "mask" that picture is white where painted and black elsewhere. The photograph beneath is
// for the eye only and in neither. Coordinates are the canvas's own pixels, whatever its size on the screen.
(() => {
  if (window.SketchCanvas) return;
  const COLOURS = {
    Black: "#000000", "Dark gray": "#5f6368", "Light gray": "#bdc1c6", White: "#ffffff", Brown: "#7a4a21",
    "Dark red": "#a50e0e", Red: "#e53935", Orange: "#fb8c00", Gold: "#ffc107", Yellow: "#ffee58", Lime: "#9ccc3c",
    Green: "#2e7d32", Teal: "#00897b", Cyan: "#26c6da", Blue: "#1e66d0", Navy: "#1a237e", Purple: "#8e24aa", Pink: "#f06292",
  };
  const MASK = "#e91e63"; // what masks are painted with on the screen: white would not show on a bright photograph
  const SIZES = [3, 6, 12, 24, 48]; // widths of the pen; scribble models know 1 to 24 at 512
  const TOLERANCE = 48; // of a channel: a fill runs into the soft rim of a line, not across it
  const LIGHTEST_TOUCH = 0.3; // part of its width that a pen without pressure still draws
  const BUTTONS = { // English words and an icon of 24 x 24, drawn as one line
    pen: ["Pen", "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3"],
    eraser: ["Eraser", "M9 19h11M4 14l9-9 6 6-8 8H8z"],
    fill: ["Fill", "M4 12l8-8 8 8-8 8zM4 12h16M9 3l3 3M21 16c1 2 1 4-1 4s-1-2 1-4z"],
    undo: ["Undo", "M9 6L4 11l5 5M4 11h10a5 5 0 010 10h-3"],
    redo: ["Redo", "M15 6l5 5-5 5M20 11H10a5 5 0 000 10h3"],
    clear: ["Clear all", "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10 11v5M14 11v5"],
    photo: ["Photo beneath", "M3 6h18v13H3zM3 16l5-5 4 4 3-3 6 5M16 9h.1"],
    pressure: ["Pen pressure", "M3 17c5 0 8-1 18-7M3 19c7 1 13-1 18-7"],
  };
  const TOOLS = { p: "pen", b: "pen", e: "eraser", f: "fill", g: "fill" }; // by their keys
  const HELP = "Keys: P pen, E eraser, F fill, [ and ] width, Ctrl+Z undo, Ctrl+Y redo, Delete clears.";

  const make = (parent, tag, options, text, role) => {
    const node = Object.assign(document.createElement(tag), options);
    if (text) node.dataset.text = text; // English; translate() says it in the page's language
    if (role) node.setAttribute("role", role);
    if (parent) parent.append(node);
    return node;
  };
  const rgb = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const loadImage = (src, image = make(null, "img", { src })) => image.decode().then(() => image);

  window.SketchCanvas = class {
    static mounted = new Map(); // by id: a page that makes its elements anew finds drawing and history again
    static mount(element, id, options) {
      const canvas = this.mounted.get(id) || new this(element, options);
      this.mounted.set(id, Object.assign(canvas, { onchange: options.onchange }));
      element.replaceChildren(canvas.root);
      canvas.translate(options.label, options.words);
      return canvas;
    }

    // options: width, height, mode ("draw" or "mask"), label, words (English to what is shown), onchange(canvas)
    constructor(element, options = {}) {
      const { width = 512, height = 512, mode = "draw", label = "Drawing", words = {}, onchange = () => {} } = options;
      Object.assign(this, { mode, onchange, side: Math.max(width, height), ops: [], undone: [], images: new Map() });
      Object.assign(this, { tool: "pen", size: 6, pressure: false, colour: mode === "mask" ? MASK : "#000000" });
      this.root = make(null, "div", { className: `sketch sketch-${mode}` });
      this.buildTools();
      this.buildStage(width, height);
      this.colours = mode === "mask" ? [] : this.buildPalette();
      element.replaceChildren(this.root);
      this.translate(label, words);
    }

    button(parent, text, onclick, shape) {
      const innerHTML = shape ? `<svg viewBox="0 0 24 24" aria-hidden="true">${shape}</svg>` : "";
      return make(parent, "button", { type: "button", onclick, innerHTML }, text);
    }

    buildTools() {
      const bar = make(this.root, "div", { className: "sketch-bar" }, "Drawing tools", "toolbar");
      this.buttons = {};
      for (const [name, [text, path]] of Object.entries(BUTTONS)) {
        this.buttons[name] = this.button(bar, text, () => this.press(name), `<path d="${path}"/>`);
      }
      this.buttons.pressure.hidden = true; // until there is a pen
      this.buttons.photo.hidden = this.mode === "mask"; // a mask belongs to the picture it is shown on
      this.file = make(bar, "input", { type: "file", accept: "image/*", hidden: true }, "Photo beneath");
      this.file.onchange = () => this.setPhoto(URL.createObjectURL(this.file.files[0]));
      this.sizes = SIZES.map((size) => {
        const shape = `<circle cx="12" cy="12" r="${Math.min(11, 1 + size / 4)}"/>`;
        const node = this.button(bar, "Width", () => this.set({ size }), shape);
        node.dataset.size = size;
        return node;
      });
    }
    buildStage(width, height) {
      const on = (names, act) => names.forEach((name) => this.canvas.addEventListener(name, act, { passive: false }));
      const stage = make(this.root, "div", { className: "sketch-stage" });
      this.under = make(stage, "img", { className: "sketch-photo", alt: "", hidden: true });
      this.canvas = make(stage, "canvas", { width, height, tabIndex: 0 }, null, "img");
      this.context = this.canvas.getContext("2d", { willReadFrequently: true });
      this.status = make(this.root, "div", { className: "sketch-status" }, null, "status");
      on(["pointerdown"], (event) => this.begin(event));
      on(["pointermove"], (event) => this.go(event));
      on(["pointerup", "pointercancel", "lostpointercapture"], (event) => this.end(event));
      on(["contextmenu", "touchstart"], (event) => event.preventDefault());
      this.root.addEventListener("keydown", (event) => this.key(event));
    }
    buildPalette() {
      const palette = make(this.root, "div", { className: "sketch-colours" }, "Colours", "group");
      const nodes = Object.entries(COLOURS).map(([text, colour]) => {
        const node = this.button(palette, text, () => this.set({ colour }));
        node.dataset.colour = node.style.backgroundColor = colour;
        return node;
      });
      const picker = make(palette, "input", { type: "color", value: "#000000" }, "Another colour");
      picker.oninput = () => this.set({ colour: picker.value });
      return nodes;
    }

    translate(label, words) {
      Object.assign(this, { label, words });
      this.canvas.ariaLabel = `${label}. ${this.said("Draw here with mouse, finger or pen.")} ${this.said(HELP)}`;
      for (const node of this.root.querySelectorAll("[data-text]")) {
        node.ariaLabel = [this.said(node.dataset.text), node.dataset.size].filter(Boolean).join(" ");
        if (node.matches("button, input")) node.title = node.ariaLabel;
      }
      this.refresh();
    }
    said(text) { return this.words[text] || text; }

    refresh() {
      const is = (node, name, yes) => node.setAttribute(`aria-${name}`, yes);
      for (const tool of ["pen", "eraser", "fill"]) is(this.buttons[tool], "pressed", this.tool === tool);
      for (const node of this.sizes) is(node, "pressed", Number(node.dataset.size) === this.size);
      for (const node of this.colours) is(node, "pressed", node.dataset.colour === this.colour);
      is(this.buttons.pressure, "pressed", this.pressure);
      is(this.buttons.photo, "pressed", !this.under.hidden);
      is(this.buttons.undo, "disabled", !this.ops.length);
      is(this.buttons.redo, "disabled", !this.undone.length);
      is(this.buttons.clear, "disabled", this.empty());
    }
    press(name) {
      if (Object.values(TOOLS).includes(name)) this.set({ tool: name });
      else if (name === "pressure") this.set({ pressure: !this.pressure });
      else if (name !== "photo") this[name]();
      else if (!this.under.hidden) this.setPhoto("");
      else this.file.click();
    }
    set(change) {
      Object.assign(this, change);
      if (change.colour && this.tool === "eraser") this.tool = "pen";
      this.refresh();
    }

    key(event) {
      const key = event.key.toLowerCase(), command = event.ctrlKey || event.metaKey;
      const size = SIZES[SIZES.indexOf(this.size) + { "[": -1, "]": 1 }[key]];
      const redo = key === "y" || event.shiftKey;
      if (event.altKey || (command && !"zy".includes(key))) return;
      if (command) redo ? this.redo() : this.undo();
      else if (TOOLS[key]) this.set({ tool: TOOLS[key] });
      else if (size) this.set({ size });
      else if (key === "delete") this.clear();
      else return;
      event.preventDefault();
      event.stopPropagation();
    }

    point(event) {
      const box = this.canvas.getBoundingClientRect(), { width, height } = this.canvas;
      const pressed = this.pressure && event.pointerType === "pen";
      const part = pressed ? LIGHTEST_TOUCH + (1 - LIGHTEST_TOUCH) * event.pressure : 1;
      const at = [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
      return [...at, part * this.size].map((value) => Math.round(value * 10) / 10);
    }
    begin(event) {
      if (this.stroke || event.button > 0) return;
      event.preventDefault();
      this.canvas.focus({ preventScroll: true });
      if (event.pointerType === "pen") this.buttons.pressure.hidden = false;
      const start = this.point(event);
      const { tool: kind, colour } = this;
      if (kind === "fill") return this.add({ kind, colour, at: start.slice(0, 2).map(Math.floor) });
      Object.assign(this, { pointer: event.pointerId, stroke: { kind, colour, points: [] } });
      this.extend(start);
      if (event.isTrusted) this.canvas.setPointerCapture(event.pointerId); // the stroke goes on outside of the canvas
    }
    go(event) {
      if (!this.stroke || event.pointerId !== this.pointer) return;
      const fine = event.getCoalescedEvents ? event.getCoalescedEvents() : []; // all that came since the last frame
      for (const one of fine.length ? fine : [event]) this.extend(this.point(one));
    }
    extend(point, stroke = this.stroke) { this.segment(stroke, stroke.points.push(point) - 1); }
    end(event) {
      const { stroke } = this;
      if (!stroke || event.pointerId !== this.pointer) return;
      this.stroke = null;
      this.extend(stroke.points[stroke.points.length - 1], stroke); // twice, or the line would end half-way
      this.add(stroke, true);
    }

    add(op, drawn = false) {
      if (!drawn) this.apply(op);
      this.ops.push(op);
      this.undone = [];
      this.changed();
    }
    move(from, to) {
      if (!from.length || this.stroke) return;
      to.push(from.pop());
      this.redraw();
      this.changed();
    }
    undo() { this.move(this.ops, this.undone); }
    redo() { this.move(this.undone, this.ops); }
    clear() { if (!this.empty()) this.add({ kind: "clear" }); }
    changed() { this.refresh(); this.onchange(this); }

    // Line k of a stroke: from the middle of the points k-2 and k-1 to that of k-1 and k, bent by k-1.
    segment({ kind, colour, points }, k) {
      const [before, last, now] = [points[Math.max(0, k - 2)], points[Math.max(0, k - 1)], points[k]], pen = this.context;
      const how = kind === "eraser" ? "destination-out" : "source-over";
      Object.assign(pen, { strokeStyle: colour, lineWidth: now[2], lineCap: "round", globalCompositeOperation: how });
      pen.beginPath();
      pen.moveTo((before[0] + last[0]) / 2, (before[1] + last[1]) / 2);
      pen.quadraticCurveTo(last[0], last[1], (last[0] + now[0]) / 2 + 0.01, (last[1] + now[1]) / 2); // no length, no dot
      pen.stroke();
      pen.globalCompositeOperation = "source-over";
    }

    apply(op) {
      if (op.kind === "clear") this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
      else if (op.kind === "fill") this.pixels((values, width) => this.flood(values, width, op));
      else if (op.kind === "picture") this.picture(this.images.get(op.url));
      else op.points.forEach((_, k) => this.segment(op, k));
    }
    redraw() {
      this.apply({ kind: "clear" });
      for (const op of this.ops) this.apply(op);
    }
    pixels(change) {
      const image = this.context.getImageData(0, 0, this.canvas.width, this.canvas.height);
      change(image.data, image.width);
      this.context.putImageData(image, 0, 0);
    }

    // The place `at` and what touches it in the same colour; pixels that a line half covers are filled beneath it.
    flood(values, width, { colour, at }) {
      const seen = (i, c) => 255 + ((values[4 * i + c] - 255) * values[4 * i + 3]) / 255; // on white paper
      const start = at[1] * width + at[0], wanted = [0, 1, 2].map((c) => seen(start, c)), paint = rgb(colour);
      const near = (i, c) => Math.abs(seen(i, c) - wanted[c]) <= TOLERANCE;
      const beside = (i) => [i % width ? i - 1 : i, (i + 1) % width ? i + 1 : i, i - width, i + width];
      const inside = new Uint8Array(values.length / 4);
      inside[start] = 1;
      for (const stack = [start]; stack.length; ) {
        for (const i of beside(stack.pop())) {
          if (inside[i] !== 0 || !near(i, 0) || !near(i, 1) || !near(i, 2)) continue;
          inside[i] = 1;
          stack.push(i);
        }
      }
      inside.forEach((yes, i) => {
        if (!yes && !beside(i).some((next) => inside[next])) return;
        const kept = yes && values[4 * i + 3] === 255 ? 0 : values[4 * i + 3] / 255;
        values.set([...paint.map((level, c) => values[4 * i + c] * kept + level * (1 - kept)), 255], 4 * i);
      });
    }
    picture(shown) {
      this.context.drawImage(shown, 0, 0, this.canvas.width, this.canvas.height);
      if (this.mode === "draw") return; // of a mask, white is painted
      this.pixels((values) => values.forEach((level, i) => i % 4 || values.set([...rgb(MASK), level], i)));
    }

    // Another drawing in place of this one, none for "". Nobody is told: it comes from outside.
    async show(url) {
      if (url) this.images.set(url, await loadImage(url));
      Object.assign(this, { ops: url ? [{ kind: "picture", url }] : [], undone: [] });
      this.resize(this.images.get(url) || this.canvas);
      this.refresh();
    }
    async setPhoto(url) {
      const image = url && (await loadImage(url).catch(() => null));
      this.file.value = ""; // so that the same file can be chosen again
      this.status.textContent = image === null ? this.said("The browser cannot show this file as a picture.") : "";
      if (image) this.resize(image);
      if (image !== null) Object.assign(this.under, { src: url || "", hidden: !url });
      this.changed();
    }
    resize({ width, height }) {
      const scale = this.side / Math.max(width, height);
      Object.assign(this.canvas, { width: Math.round(width * scale), height: Math.round(height * scale) });
      this.redraw();
    }
    empty() {
      const last = this.ops.map((op) => op.kind).lastIndexOf("clear");
      return !this.ops.slice(last + 1).some((op) => op.kind !== "eraser");
    }
    strokes() { return JSON.stringify({ width: this.canvas.width, height: this.canvas.height, strokes: this.ops }); }
    png() {
      if (this.empty()) return "";
      const { width, height } = this.canvas, page = make(null, "canvas", { width, height }), pen = page.getContext("2d");
      pen.drawImage(this.canvas, 0, 0);
      const lay = (how, colour) => {
        Object.assign(pen, { globalCompositeOperation: how, fillStyle: colour }).fillRect(0, 0, width, height);
      };
      if (this.mode === "mask") lay("source-in", "white");
      lay("destination-over", this.mode === "mask" ? "black" : "white");
      return page.toDataURL("image/png");
    }
  };
})();
