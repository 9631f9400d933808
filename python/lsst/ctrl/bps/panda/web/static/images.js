// Shows an image on a canvas: zoom, pan, stretch, colours, values and places on the sky, what was found, and the truth.
"use strict";

const at = (id) => document.getElementById(id);
const viewer = at("viewer");
const canvas = at("canvas");
const TURN = Math.PI / 180;
const MAPS = {
  grey: [[0, 0, 0], [255, 255, 255]],
  inverted: [[255, 255, 255], [0, 0, 0]],
  heat: [[0, 0, 0], [160, 0, 0], [255, 140, 0], [255, 255, 160]],
  cool: [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]],
};
const SOFT = 10;
const STRETCHES = {
  linear: (share) => share,
  asinh: (share) => Math.asinh(SOFT * share) / Math.asinh(SOFT),
  log: (share) => Math.log1p(100 * share) / Math.log1p(100),
};
const MOST_ROWS = 200;
let meta = null;
let pixels = null;
let drawn = null;
let view = { x: 0, y: 0, zoom: 1 };

async function fetched(address) {
  const reply = await fetch(address, { cache: "no-store" });
  if (!reply.ok) throw new Error(await reply.text());
  return reply;
}

async function load() {
  const name = at("name").value;
  try {
    const found = await (await fetched(viewer.dataset.meta + name)).json();
    const bytes = await (await fetched(`${viewer.dataset.files}${name}.pixels`)).arrayBuffer();
    if (name !== at("name").value) return;
    meta = found;
    pixels = meta.colour ? new Uint8Array(bytes) : new Float32Array(bytes);
    [at("low").value, at("high").value] = meta.levels.map((level) => Number(level.toPrecision(4)));
    for (const id of ["low", "high", "stretch", "map"]) at(id).disabled = meta.colour;
    canvas.setAttribute("aria-label", `${meta.title}, ${meta.width} x ${meta.height} pixels`);
    history.replaceState(null, "", `?name=${name}`);
    paint();
    whole();
    list();
    at("readout").textContent = `${meta.title}: ${meta.width} x ${meta.height} pixels`;
    viewer.dataset.shown = name;
  } catch (error) {
    at("readout").textContent = `The image cannot be shown: ${error.message}`;
  }
}

// A table of colours, and the image in them, the first row below.
function paint() {
  const image = new ImageData(meta.width, meta.height);
  const stops = MAPS[at("map").value];
  const stretch = STRETCHES[at("stretch").value];
  const table = Array.from({ length: 256 }, (_, n) => {
    const place = stretch(n / 255) * (stops.length - 1);
    const first = Math.min(stops.length - 2, Math.floor(place));
    return stops[first].map((value, k) => value + (place - first) * (stops[first + 1][k] - value));
  });
  const low = Number(at("low").value);
  const scale = 255 / (Number(at("high").value) - low || 1);
  for (let row = 0; row < meta.height; row++) {
    let to = 4 * (meta.height - 1 - row) * meta.width;
    for (let from = row * meta.width; from < (row + 1) * meta.width; from++, to += 4) {
      const value = pixels[from];
      // A pixel without data is left out, so that the page shows through.
      if (!meta.colour && !Number.isFinite(value)) continue;
      const colour = meta.colour
        ? pixels.subarray(3 * from, 3 * from + 3)
        : table[Math.max(0, Math.min(255, Math.round((value - low) * scale)))];
      image.data.set(colour, to);
      image.data[to + 3] = 255;
    }
  }
  drawn = new OffscreenCanvas(meta.width, meta.height);
  drawn.getContext("2d").putImageData(image, 0, 0);
}

function whole() {
  canvas.width = canvas.clientWidth * devicePixelRatio;
  canvas.height = canvas.clientHeight * devicePixelRatio;
  const zoom = Math.min(canvas.width / meta.width, canvas.height / meta.height);
  view = { zoom, x: (canvas.width - zoom * meta.width) / 2, y: (canvas.height - zoom * meta.height) / 2 };
  draw();
}

const toCanvas = (x, y) => [view.x + view.zoom * (x + 0.5), view.y + view.zoom * (meta.height - 0.5 - y)];
const toPixel = (x, y) => [(x - view.x) / view.zoom - 0.5, meta.height - 0.5 - (y - view.y) / view.zoom];

function draw() {
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(drawn, view.x, view.y, view.zoom * meta.width, view.zoom * meta.height);
  pen.lineWidth = Math.max(1, Math.min(2, view.zoom / 2)) * devicePixelRatio;
  if (at("truth").checked) mark(pen, meta.truth, "#ffb000", (x, y, size) => pen.rect(x - size, y - size, 2 * size, 2 * size));
  if (at("objects").checked) mark(pen, meta.objects, "#4cc9ff", (x, y, size) => pen.arc(x, y, size, 0, 7));
}

function mark(pen, places, colour, shape) {
  const size = Math.max(3, 4 * view.zoom);
  pen.strokeStyle = colour;
  (places.x || []).forEach((x, n) => {
    const [left, top] = toCanvas(x, places.y[n]);
    if (left < -size || top < -size || left > canvas.width + size || top > canvas.height + size) return;
    pen.beginPath();
    shape(left, top, size);
    pen.stroke();
  });
}

// The plane that touches the sky, as FITS has it (TAN).
function toSky(x, y) {
  const { crval, crpix, cd } = meta.wcs;
  const [dx, dy] = [x - crpix[0], y - crpix[1]];
  const [xi, eta] = cd.map((row) => (row[0] * dx + row[1] * dy) * TURN);
  const [ra, dec] = crval.map((angle) => angle * TURN);
  const below = Math.cos(dec) - eta * Math.sin(dec);
  const east = Math.atan2(xi, below);
  const north = Math.atan2(Math.sin(dec) + eta * Math.cos(dec), Math.hypot(xi, below));
  return [((ra + east) / TURN + 360) % 360, north / TURN];
}

function tell(x, y) {
  const [column, row] = [Math.round(x), Math.round(y)];
  if (column < 0 || row < 0 || column >= meta.width || row >= meta.height) return;
  const from = row * meta.width + column;
  const value = meta.colour ? [...pixels.subarray(3 * from, 3 * from + 3)].join(", ") : pixels[from].toPrecision(5);
  const [ra, dec] = toSky(x, y);
  at("readout").textContent = `x ${column}, y ${row}: ${value} ${meta.unit}; RA ${ra.toFixed(6)}, Dec ${dec.toFixed(6)}`;
}

function zoom(factor, x = canvas.width / 2, y = canvas.height / 2) {
  const size = Math.max(0.05, Math.min(60, view.zoom * factor));
  const real = size / view.zoom;
  view = { zoom: size, x: x - (x - view.x) * real, y: y - (y - view.y) * real };
  draw();
}

function pan(dx, dy) {
  view.x += dx;
  view.y += dy;
  draw();
  tell(...toPixel(canvas.width / 2, canvas.height / 2));
}

function centre(x, y) {
  view.zoom = Math.max(view.zoom, 4 * devicePixelRatio);
  view.x = canvas.width / 2 - view.zoom * (x + 0.5);
  view.y = canvas.height / 2 - view.zoom * (meta.height - 0.5 - y);
  draw();
  tell(x, y);
}

// The table of what was found, sorted by a column; a row leads to its place.
function list(by = "snr", down = true) {
  const names = ["x", "y", "ra", "dec", "snr"].filter((name) => name in meta.objects);
  const [head, body] = [document.querySelector("#table thead tr"), document.querySelector("#table tbody")];
  const total = (meta.objects.x || []).length;
  const order = [...Array(total).keys()].sort((a, b) => (down ? -1 : 1) * (meta.objects[by][a] - meta.objects[by][b]));
  head.replaceChildren(...names.map((name) => {
    const cell = document.createElement("th");
    const button = document.createElement("button");
    cell.scope = "col";
    if (name === by) cell.ariaSort = down ? "descending" : "ascending";
    button.textContent = name + (name === by ? (down ? " ↓" : " ↑") : "");
    button.addEventListener("click", () => {
      list(name, name === by ? !down : true);
      document.querySelectorAll("#table thead button")[names.indexOf(name)].focus();
    });
    cell.append(button);
    return cell;
  }));
  body.replaceChildren(...order.slice(0, MOST_ROWS).map((n) => {
    const row = document.createElement("tr");
    names.forEach((name, k) => {
      const cell = row.insertCell();
      const digits = ["ra", "dec"].includes(name) ? 6 : 1;
      const text = meta.objects[name][n].toFixed(digits);
      if (k) return cell.append(text);
      const button = document.createElement("button");
      button.textContent = text;
      button.ariaLabel = `show the object at x ${text}`;
      button.addEventListener("click", () => centre(meta.objects.x[n], meta.objects.y[n]));
      cell.append(button);
    });
    return row;
  }));
  at("count").textContent = `${total} on this image${total > MOST_ROWS ? `, ${MOST_ROWS} of which are shown` : ""}.`;
  const link = (address, words) => Object.assign(document.createElement("a"), { href: address, textContent: words, download: "" });
  const links = [link(`${viewer.dataset.files}${meta.name}.fits`, "Download this image as FITS")];
  for (const form of meta.found ? ["csv", "fits", "parquet"] : []) {
    links.push(link(`${viewer.dataset.tables}${meta.found}.${form}`, `objects as ${form}`));
  }
  at("downloads").replaceChildren(...links.flatMap((each) => [each, " "]));
}

function next(id) {
  const choice = at(id);
  choice.selectedIndex = (choice.selectedIndex + 1) % choice.length;
  choice.dispatchEvent(new Event("change"));
}

function flip(id) {
  at(id).checked = !at(id).checked;
  draw();
}

const KEYS = {
  ArrowLeft: () => pan(60, 0), ArrowRight: () => pan(-60, 0), ArrowUp: () => pan(0, 60), ArrowDown: () => pan(0, -60),
  "+": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: whole, s: () => next("stretch"), c: () => next("map"),
  o: () => flip("objects"), t: () => flip("truth"),
};

if (viewer) {
  const scaled = (event) => [event.offsetX * devicePixelRatio, event.offsetY * devicePixelRatio];
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  at("name").addEventListener("change", load);
  for (const id of ["stretch", "map", "low", "high"]) at(id).addEventListener("change", () => { paint(); draw(); });
  for (const id of ["objects", "truth"]) at(id).addEventListener("change", draw);
  for (const each of document.querySelectorAll("[data-zoom]")) {
    each.addEventListener("click", () => (Number(each.dataset.zoom) ? zoom(Number(each.dataset.zoom)) : whole()));
  }
  canvas.addEventListener("keydown", (event) => {
    if (!meta || !KEYS[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    if (!meta) return;
    if (event.buttons) pan(event.movementX * devicePixelRatio, event.movementY * devicePixelRatio);
    tell(...toPixel(...scaled(event)));
  });
  canvas.addEventListener("wheel", (event) => {
    if (!meta) return;
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1.25 : 0.8, ...scaled(event));
  }, { passive: false });
  addEventListener("resize", () => meta && whole());
  load();
}
