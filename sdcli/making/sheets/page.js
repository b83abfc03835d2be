"use strict";
// The pictures come in chunks after this script, as JSON that is parsed when a picture of it is shown.
const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const GAP = 10, CAPTION = 40, KEPT = 40, MOST_OPTIONS = 60;
const state = { view: data.blocks.length ? "grid" : "all", scale: 224, shown: [], chosen: [], current: 0 };

function make(tag, attributes = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...inside);
  return element;
}

// --- the pictures

const chunks = new Map();
const waiting = new Set();

function chunkOf(index) {
  const number = Math.floor(index / data.per_chunk);
  if (!chunks.has(number)) {
    const element = find(`chunk-${number}`);
    if (element === null || (document.readyState === "loading" && element.nextElementSibling === null)) return null;
    chunks.set(number, JSON.parse(element.textContent));
    if (chunks.size > KEPT) chunks.delete(chunks.keys().next().value);
  }
  return chunks.get(number)[index % data.per_chunk];
}

function show(image, index) {
  const found = chunkOf(index);
  image.dataset.index = index;
  if (found === null) waiting.add(image);
  else image.src = `data:image/webp;base64,${found[0]}`;
}

function showWaiting() {
  for (const image of waiting) {
    if (!image.isConnected || chunkOf(Number(image.dataset.index)) !== null) {
      waiting.delete(image);
      if (image.isConnected) show(image, Number(image.dataset.index));
    }
  }
  if (document.readyState === "loading") setTimeout(showWaiting, 60);
}
document.addEventListener("DOMContentLoaded", showWaiting);
setTimeout(showWaiting, 60);

const text = (value) => (value === null || value === undefined || value === "" ? "none" : Array.isArray(value) ? value.join(", ") || "none" : String(value));
const words = data.pictures.map((each) => `${each.name}\n${Object.values(each.values).map(text).join("\n")}`.toLowerCase());

function tile(index) {
  const picture = data.pictures[index];
  const image = make("img", { alt: `${picture.name}: ${picture.caption}`, draggable: "false" });
  const frame = make("span", { class: "frame" }, image);
  const button = make("button", { type: "button", class: "picture", title: picture.caption || picture.name }, frame);
  button.dataset.index = index;
  button.classList.toggle("chosen", state.chosen.includes(index));
  return { button, frame, image };
}

// --- the view of all pictures: only those in sight exist

const tiles = new Map();

function layout() {
  const width = find("all").clientWidth;
  const columns = Math.max(1, Math.floor((width + GAP) / (state.scale + GAP)));
  const side = Math.floor((width + GAP) / columns) - GAP;
  return { columns, side, height: Math.round(side * data.aspect) + CAPTION + GAP };
}

function renderAll() {
  if (state.view !== "all") return;
  const { columns, side, height } = layout();
  const all = find("all");
  all.style.height = `${Math.ceil(state.shown.length / columns) * height}px`;
  const above = window.scrollY - all.offsetTop;
  const first = Math.max(0, Math.floor(above / height) - 2) * columns;
  const last = Math.min(state.shown.length, (Math.ceil((above + window.innerHeight) / height) + 2) * columns);
  const wanted = new Set();
  for (let place = first; place < last; place++) wanted.add(state.shown[place]);
  for (const [index, button] of tiles) {
    if (!wanted.has(index)) { button.remove(); tiles.delete(index); }
  }
  for (let place = first; place < last; place++) {
    const index = state.shown[place];
    let button = tiles.get(index);
    if (button === undefined) {
      const made = tile(index);
      button = made.button;
      button.setAttribute("role", "listitem");
      button.append(make("span", { class: "caption" }, data.pictures[index].caption || data.pictures[index].name));
      tiles.set(index, button);
      all.append(button);
      show(made.image, index);
    }
    button.setAttribute("aria-setsize", state.shown.length);
    button.setAttribute("aria-posinset", place + 1);
    Object.assign(button.style, { width: `${side}px`, left: `${(place % columns) * (side + GAP)}px`, top: `${Math.floor(place / columns) * height}px` });
    button.firstChild.style.height = `${Math.round(side * data.aspect)}px`;
  }
}

// --- the view of grids

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    const image = entry.target.querySelector("img");
    show(image, Number(entry.target.dataset.index));
  }
}, { rootMargin: "600px" });

function renderGrids() {
  const parts = data.blocks.map((block) => {
    const cells = new Map(block.cells.map(([row, column, inside]) => [`${row} ${column}`, inside]));
    const head = make("tr", {}, ...(block.rows.some(Boolean) ? [make("td")] : []), ...block.columns.map((each) => make("th", { scope: "col" }, each)));
    head.firstChild.style.background = "none";
    const rows = block.rows.map((label, row) => {
      const line = make("tr");
      if (block.rows.some(Boolean)) line.append(make("th", { scope: "row" }, label));
      block.columns.forEach((_, column) => {
        const inside = make("div");
        for (const index of cells.get(`${row} ${column}`) ?? []) {
          const { button, frame } = tile(index);
          const picture = data.pictures[index];
          const factor = state.scale / Math.max(picture.width, picture.height);
          Object.assign(frame.style, { width: `${Math.round(picture.width * factor)}px`, height: `${Math.round(picture.height * factor)}px` });
          seen.observe(button);
          inside.append(button);
        }
        line.append(make("td", {}, inside));
      });
      return line;
    });
    const section = make("section", { class: "block" });
    if (block.heading) section.append(make("h2", {}, block.heading));
    section.append(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
    return section;
  });
  find("grids").replaceChildren(...parts);
}

// --- filters

const selects = [];

function makeFilters() {
  for (const key of data.differing) {
    const values = new Map();
    for (const picture of data.pictures) values.set(text(picture.values[key]), (values.get(text(picture.values[key])) ?? 0) + 1);
    if (values.size < 2 || values.size > MOST_OPTIONS || (values.size === data.pictures.length && values.size > 12)) continue;
    const name = key.replaceAll("_", " ");
    const select = make("select", { "aria-label": `Filter by ${name}` }, make("option", { value: "" }, `${name}: any`));
    const sorted = [...values.keys()].sort((one, other) => one - other || 0);
    for (const value of sorted) {
      const short = value.length > 40 ? `${value.slice(0, 39)}…` : value;
      select.append(make("option", { value: `=${value}` }, `${name}: ${short} (${values.get(value)})`));
    }
    selects.push([key, select]);
    find("filters").append(select);
  }
}

function filter() {
  const asked = find("words").value.toLowerCase().split(/\s+/).filter(Boolean);
  const set = selects.filter(([, select]) => select.value);
  for (const [, select] of selects) select.classList.toggle("set", Boolean(select.value));
  state.shown = [];
  data.pictures.forEach((picture, index) => {
    const fits = set.every(([key, select]) => `=${text(picture.values[key])}` === select.value);
    if (fits && asked.every((each) => words[index].includes(each))) state.shown.push(index);
  });
  const all = state.shown.length === data.pictures.length;
  find("count").textContent = all ? "" : `${state.shown.length.toLocaleString()} of ${data.pictures.length.toLocaleString()}`;
  find("none").hidden = state.shown.length > 0;
  if (!all && state.view === "grid") setView("all");
  else renderAll();
}

function setView(view) {
  state.view = view;
  find("grids").hidden = view !== "grid";
  find("all").hidden = view !== "all";
  find("view-grid").setAttribute("aria-pressed", view === "grid");
  find("view-all").setAttribute("aria-pressed", view === "all");
  if (view === "grid" && !find("grids").children.length) renderGrids();
  if (view === "grid" && state.shown.length < data.pictures.length) {
    find("bar").reset();
    find("scale").value = state.scale;
    filter();
  }
  renderAll();
}

// --- one picture

function fill(table, rows) {
  table.replaceChildren(...rows.map(([differs, ...cells]) => {
    const row = make("tr", differs ? { class: "differs" } : {});
    cells.forEach((cell, place) => row.append(make(place ? "td" : "th", {}, cell)));
    return row;
  }));
}

const recipeOf = (index) => ({ ...data.shared, ...data.pictures[index].values });

function zoom(index) {
  const picture = data.pictures[index];
  state.current = index;
  const image = find("zoom-image");
  image.alt = `${picture.name}: ${picture.caption}`;
  show(image, index);
  image.classList.toggle("real", Math.max(picture.width, picture.height) <= 128);
  find("zoom-title").textContent = picture.name;
  find("file").href = picture.href;
  find("choose").textContent = state.chosen.includes(index) ? "Selected" : "Select to compare";
  const found = chunkOf(index);
  const command = found === null ? null : found[1];
  find("command-part").hidden = command === null;
  find("command").textContent = command ?? "";
  const size = [false, "pixels", `${picture.width} × ${picture.height}`];
  const written = [false, "writer", picture.writer === "other" ? "no metadata" : picture.writer];
  const recipe = Object.entries({ ...picture.values, ...data.shared }).map(([key, value]) => [data.differing.includes(key), key.replaceAll("_", " "), text(value)]);
  fill(find("recipe"), [...recipe, size, written]);
  find("copy").textContent = "Copy";
  if (!find("zoom").open) find("zoom").showModal();
  find("zoom").querySelector(".facts").scrollTop = 0;
}

function step(by) {
  const order = state.shown.length ? state.shown : data.pictures.map((_, index) => index);
  const place = order.indexOf(state.current);
  zoom(order[(place + by + order.length) % order.length]);
}

// --- two pictures

function choose(index) {
  if (state.chosen.includes(index)) state.chosen = state.chosen.filter((each) => each !== index);
  else state.chosen = [...state.chosen.slice(-1), index];
  for (const button of document.querySelectorAll(".picture")) button.classList.toggle("chosen", state.chosen.includes(Number(button.dataset.index)));
  find("chosen").hidden = !state.chosen.length;
  find("compare").hidden = state.chosen.length < 2;
  find("chosen-names").textContent = state.chosen.length < 2 ? `${data.pictures[state.chosen[0]]?.name ?? ""}: select another one` : state.chosen.map((each) => data.pictures[each].caption || data.pictures[each].name).join("  ↔  ");
}

function setEdge(percent) {
  find("slider").value = percent;
  const over = find("over").getBoundingClientRect();
  find("image-a").style.clipPath = `inset(0 ${100 - percent}% 0 0)`;
  find("edge").style.left = `${(over.width * percent) / 100}px`;
}

function pair() {
  const [a, b] = state.chosen;
  show(find("image-a"), a);
  show(find("image-b"), b);
  find("image-a").alt = data.pictures[a].caption;
  find("image-b").alt = data.pictures[b].caption;
  const [one, other] = [recipeOf(a), recipeOf(b)];
  const keys = [...new Set([...Object.keys(one), ...Object.keys(other)])].filter((key) => text(one[key]) !== text(other[key]));
  fill(find("pair-values"), [[false, "", `left: ${data.pictures[a].name}`, `right: ${data.pictures[b].name}`], ...keys.map((key) => [true, key.replaceAll("_", " "), text(one[key]), text(other[key])])]);
  find("over").style.setProperty("--ratio", data.pictures[b].width / data.pictures[b].height);
  if (find("zoom").open) find("zoom").close();
  if (!find("pair").open) find("pair").showModal();
  setEdge(50);
}

// --- events

document.addEventListener("click", (event) => {
  const button = event.target.closest(".picture");
  if (button === null) return;
  const index = Number(button.dataset.index);
  if (event.shiftKey || event.ctrlKey || event.metaKey) choose(index);
  else zoom(index);
});
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (find("zoom").open) {
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else if (event.key.toLowerCase() === "c") { choose(state.current); find("choose").textContent = state.chosen.includes(state.current) ? "Selected" : "Select to compare"; }
    else return;
    event.preventDefault();
    return;
  }
  const button = event.target.closest?.(".picture");
  if (find("pair").open || !button) return;
  if (event.key.toLowerCase() === "c") { choose(Number(button.dataset.index)); return; }
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -layout().columns, ArrowDown: layout().columns }[event.key];
  if (by === undefined || state.view !== "all") return;
  event.preventDefault();
  const place = Math.min(Math.max(state.shown.indexOf(Number(button.dataset.index)) + by, 0), state.shown.length - 1);
  const { columns, height } = layout();
  const top = find("all").offsetTop + Math.floor(place / columns) * height;
  if (top < window.scrollY + 120) window.scrollTo(0, top - 120);
  if (top + height > window.scrollY + window.innerHeight) window.scrollTo(0, top + height - window.innerHeight);
  renderAll();
  tiles.get(state.shown[place])?.focus({ preventScroll: true });
});
find("over").addEventListener("pointerdown", (event) => { event.preventDefault(); find("over").setPointerCapture(event.pointerId); moveEdge(event); });
find("over").addEventListener("pointermove", (event) => { if (event.buttons) moveEdge(event); });
function moveEdge(event) {
  const over = find("over").getBoundingClientRect();
  setEdge(Math.min(100, Math.max(0, ((event.clientX - over.left) / over.width) * 100)));
}
find("slider").addEventListener("input", () => setEdge(Number(find("slider").value)));
find("swap").addEventListener("click", () => { state.chosen.reverse(); pair(); });
find("compare").addEventListener("click", pair);
find("forget").addEventListener("click", () => { for (const each of [...state.chosen]) choose(each); });
find("choose").addEventListener("click", () => { choose(state.current); if (state.chosen.length === 2) pair(); else zoom(state.current); });
find("previous").addEventListener("click", () => step(-1));
find("next").addEventListener("click", () => step(1));
for (const button of document.querySelectorAll("dialog .close")) button.addEventListener("click", () => button.closest("dialog").close());
for (const dialog of document.querySelectorAll("dialog")) dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
find("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(find("command").textContent);
    find("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(find("command"));
    find("copy").textContent = "Selected";
  }
});
find("bar").addEventListener("submit", (event) => event.preventDefault());
find("bar").addEventListener("input", (event) => { if (event.target !== find("scale")) filter(); });
find("scale").addEventListener("input", () => {
  state.scale = Number(find("scale").value);
  if (state.view === "grid") renderGrids();
  else renderAll();
});
find("view-grid").addEventListener("click", () => setView("grid"));
find("view-all").addEventListener("click", () => setView("all"));
addEventListener("scroll", renderAll, { passive: true });
addEventListener("resize", () => { renderAll(); if (find("pair").open) setEdge(Number(find("slider").value)); });

find("view-grid").hidden = !data.blocks.length;
find("view-all").hidden = !data.blocks.length;
if (matchMedia("(max-width: 760px)").matches) state.scale = 150;
makeFilters();
filter();
setView(state.view);
