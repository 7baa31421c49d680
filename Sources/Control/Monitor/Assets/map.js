// The picture of a disk: a thousand cells, each with what is in it and what a backup has made of it.

const shades = 5;

export function bytes(count) {
  if (count === undefined || count === null) return "-";
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit += 1; }
  return (unit === 0 || count >= 1000 ? count.toFixed(0) : count.toFixed(1)) + " " + units[unit];
}

export function element(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "class") made.className = value; else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export class DiskMap {
  constructor(title) {
    this.title = title;
    this.map = null;
    this.cursor = null;
    this.canvas = element("canvas", { tabindex: "0", role: "img" });
    this.legend = element("ul", { class: "legend" });
    this.output = element("output", {}, "The picture is being drawn.");
    this.root = element("div", {}, this.canvas, this.output, this.legend);
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerdown", (event) => this.point(event));
    this.canvas.addEventListener("blur", () => { this.cursor = null; this.draw(); });
    this.canvas.addEventListener("pointerleave", () => {
      if (document.activeElement !== this.canvas) { this.cursor = null; this.draw(); }
    });
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  show(map) {
    this.map = map;
    this.preserved = merged(map.jobs.map((job) => job.preserved), map.cells);
    this.read = merged(map.jobs.map((job) => job.read), map.cells);
    this.explain();
    this.draw();
  }

  fail(text) {
    this.map = null;
    this.output.textContent = text;
    this.legend.replaceChildren();
    this.draw();
  }

  // 1 is the strongest shade: what was changed since the newest checkpoint.
  shade(checkpoint) {
    return Math.min(this.map.checkpoints.length - checkpoint + 1, shades);
  }

  changed(cell) { return this.map.changed ? this.map.changed[cell] : 0; }

  count(test) {
    let found = 0;
    for (let cell = 0; cell < this.map.cells; cell += 1) if (test(cell)) found += 1;
    return found;
  }

  explain() {
    const { map } = this;
    const share = (count) => ` (${Math.round((100 * count) / Math.max(map.cells, 1))} %)`;
    const rows = [];
    const row = (name, text, count) => {
      rows.push(element("li", {}, element("i", { class: name }), text + share(count)));
    };
    if (map.data) {
      row("hole", "hole", this.count((cell) => map.data[cell] === "0"));
      row("data", "data", this.count((cell) => map.data[cell] === "1"));
    } else {
      rows.push(element("li", {}, "holes: the storage does not say"));
    }
    map.checkpoints.forEach((name, index) => {
      const count = this.count((cell) => this.changed(cell) >= index + 1);
      row(`changed-${this.shade(index + 1)}`, `changed since ${name}`, count);
    });
    if (map.jobs.length > 0) {
      row("preserved", "preserved in scratch", this.count((cell) => this.preserved[cell]));
      row("read", "read by the client", this.count((cell) => this.read[cell]));
    }
    this.legend.replaceChildren(...rows);
    this.canvas.setAttribute(
      "aria-label",
      `Map of ${this.title}, ${bytes(map.size)}, ${bytes(map.cellBytes)} a cell. `
        + rows.map((item) => item.textContent).join(", ") + ". Arrow keys move from cell to cell.");
    this.tell();
  }

  tell() {
    if (!this.map) return;
    const { map, cursor } = this;
    if (cursor === null) {
      this.output.textContent = `${bytes(map.cellBytes)} a cell`;
      return;
    }
    const parts = [];
    if (map.data) parts.push(map.data[cursor] === "1" ? "data" : "hole");
    const newest = this.changed(cursor);
    if (newest > 0) parts.push(`changed since ${map.checkpoints[newest - 1]}`);
    if (this.preserved[cursor]) parts.push("preserved in scratch");
    if (this.read[cursor]) parts.push("read by the client");
    const start = cursor * map.cellBytes;
    const end = Math.min(start + map.cellBytes, map.size);
    this.output.textContent = `${bytes(start)} to ${bytes(end)}: ${parts.join(", ")}`;
  }

  layout() {
    const width = this.canvas.clientWidth || 320;
    const columns = width < 480 ? 32 : 64;
    const size = Math.max(Math.floor(width / columns), 4);
    return { columns, size, rows: Math.ceil((this.map ? this.map.cells : 0) / columns) };
  }

  draw() {
    const { columns, size, rows } = this.layout();
    const scale = window.devicePixelRatio || 1;
    this.canvas.width = columns * size * scale;
    this.canvas.height = Math.max(rows * size, 1) * scale;
    if (!this.map) return;
    const style = getComputedStyle(this.canvas);
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    const context = this.canvas.getContext("2d");
    context.scale(scale, scale);
    const gap = size > 6 ? 1 : 0;
    for (let cell = 0; cell < this.map.cells; cell += 1) {
      const x = (cell % columns) * size;
      const y = Math.floor(cell / columns) * size;
      const newest = this.changed(cell);
      let fill = this.map.data && this.map.data[cell] === "0" ? "hole" : "data";
      if (newest > 0) fill = `changed-${this.shade(newest)}`;
      context.fillStyle = color(fill);
      context.fillRect(x, y, size - gap, size - gap);
      const third = Math.max(Math.round((size - gap) * 0.35), 2);
      if (this.preserved[cell]) {
        context.fillStyle = color("preserved");
        context.fillRect(x, y, size - gap, third);
      }
      if (this.read[cell]) {
        context.fillStyle = color("read");
        context.fillRect(x, y + size - gap - third, size - gap, third);
      }
      if (cell === this.cursor) {
        context.strokeStyle = color("cursor");
        context.lineWidth = 2;
        context.strokeRect(x + 1, y + 1, size - gap - 2, size - gap - 2);
      }
    }
  }

  key(event) {
    if (!this.map) return;
    const { columns } = this.layout();
    const steps = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns,
      Home: -this.map.cells, End: this.map.cells,
    };
    const step = steps[event.key];
    if (step === undefined) return;
    event.preventDefault();
    this.move(this.cursor === null ? 0 : this.cursor + step);
  }

  point(event) {
    if (!this.map) return;
    const { columns, size } = this.layout();
    const box = this.canvas.getBoundingClientRect();
    const drawn = box.width / (columns * size);
    const column = Math.floor((event.clientX - box.left) / (size * drawn));
    const row = Math.floor((event.clientY - box.top) / (size * drawn));
    const cell = row * columns + Math.min(column, columns - 1);
    if (cell >= 0 && cell < this.map.cells) this.move(cell);
  }

  move(cell) {
    this.cursor = Math.min(Math.max(cell, 0), this.map.cells - 1);
    this.tell();
    this.draw();
  }
}

function merged(texts, count) {
  const cells = new Array(count).fill(false);
  for (const text of texts) {
    for (let cell = 0; cell < count; cell += 1) if (text[cell] === "1") cells[cell] = true;
  }
  return cells;
}
