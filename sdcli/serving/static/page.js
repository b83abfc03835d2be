"use strict";
// The page of `sdcli serve`: it asks the images API of its own address, and nothing else.
const find = (id) => document.getElementById(id);
const made = []; // the finished pictures, newest first
const state = { models: {}, image: null, shown: 0, erasing: false, cursor: null };

// --- models

async function ask(path) {
  const response = await fetch(path, { headers: { Accept: "application/json" } });
  const body = await response.json();
  if (!response.ok) throw new Error(body.error?.message ?? response.statusText);
  return body;
}

async function loadModels() {
  try {
    const listed = (await ask("v1/models")).data;
    find("model").replaceChildren(...listed.map((each) => new Option(each.id.split("/").pop() || each.id, each.id)));
    await showModel();
  } catch (error) {
    complain(error.message);
  }
}

async function showModel() {
  const name = find("model").value;
  if (!name) return;
  try {
    state.models[name] ??= await ask(`v1/models/${encodeURIComponent(name)}`);
  } catch (error) {
    complain(error.message);
    return;
  }
  const { defaults, loras, size_multiple: multiple } = state.models[name];
  for (const [id, key] of [["width", "width"], ["height", "height"], ["steps", "steps"], ["guidance", "guidance_scale"]]) find(id).placeholder = defaults[key] ?? "";
  for (const id of ["width", "height"]) find(id).step = multiple;
  find("negative").placeholder = defaults.negative_prompt || "none";
  find("loras").replaceChildren(...loras.map((each) => new Option(each)));
  find("lora-part").hidden = !loras.length;
}

// --- what is asked

const number = (id) => (find(id).value === "" ? undefined : Number(find(id).value));

function asked() {
  const defaults = state.models[find("model").value]?.defaults ?? {};
  const [width, height] = [number("width"), number("height")];
  const loras = find("lora-part").hidden ? [] : find("lora").value.split(",").map((each) => each.trim()).filter(Boolean);
  const options = {
    prompt: find("prompt").value, model: find("model").value || undefined, steps: number("steps"), seed: number("seed"),
    guidance_scale: number("guidance"), negative_prompt: find("negative").value || undefined, lora: loras.length ? loras : undefined,
    n: number("count") ?? 1, stream: true, progress: true,
  };
  if (state.image === null && (width || height)) options.size = `${width ?? defaults.width}x${height ?? defaults.height}`;
  return options;
}

async function send(options, signal) {
  if (state.image === null) {
    return fetch("v1/images/generations", { method: "POST", signal, headers: { "Content-Type": "application/json" }, body: JSON.stringify(options) });
  }
  const form = new FormData();
  for (const [key, value] of Object.entries(options)) {
    for (const each of Array.isArray(value) ? value : [value]) if (each !== undefined) form.append(key, each);
  }
  form.append("image", state.image.blob, state.image.name);
  const painted = isPainted();
  if (painted) form.append("mask", await maskOf("transparent"), "mask.png");
  if (painted || !state.models[options.model]?.takes_references) form.append("strength", find("strength").value);
  return fetch("v1/images/edits", { method: "POST", signal, body: form });
}

// --- the stream

async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const line = part.split("\n").find((each) => each.startsWith("data: "));
      if (line) yield JSON.parse(line.slice(6));
    }
  }
}

async function generate() {
  find("problem").hidden = true;
  const options = asked();
  const aspect = state.image ? state.image.width / state.image.height : (number("width") ?? 1) / (number("height") ?? number("width") ?? 1);
  const cards = Array.from({ length: options.n }, () => addCard(options, aspect)).reverse();
  const control = new AbortController();
  for (const card of cards) card.cancel = () => control.abort();
  let place = 0;
  try {
    const response = await send(options, control.signal);
    if (!response.ok) {
      const told = await response.json().catch(() => ({}));
      throw new Error(told.error?.message ?? `${response.status} ${response.statusText}`);
    }
    for await (const event of eventsOf(response)) {
      if (event.type === "error") throw new Error(event.error.message);
      if (event.type.endsWith(".progress")) showProgress(cards[place], event);
      if (event.type.endsWith(".completed")) complete(cards[place++], event, options);
    }
    if (place < cards.length) throw new Error("the connection was closed");
  } catch (error) {
    const cancelled = control.signal.aborted;
    const message = error instanceof TypeError ? "the server does not answer" : error.message;
    cards.slice(place).forEach((card, index) => fail(card, cancelled ? "cancelled" : index ? "not made" : message));
    if (!cancelled) complain(message);
  }
}

function complain(message) {
  find("problem").textContent = message;
  find("problem").hidden = false;
}

// --- the cards

function addCard(options, aspect) {
  const element = find("card").content.firstElementChild.cloneNode(true);
  const part = (name) => element.querySelector(name);
  const card = { element, part, started: null, first: 0 };
  part(".frame").style.setProperty("--ratio", aspect);
  part(".caption").textContent = options.prompt;
  part(".status").textContent = "waiting";
  part(".cancel").addEventListener("click", () => (element.classList.contains("failed") ? dismiss(card) : card.cancel()));
  find("empty").hidden = true;
  find("pictures").prepend(element);
  if (matchMedia("(max-width: 800px)").matches) element.scrollIntoView({ block: "center", behavior: "smooth" });
  return card;
}

function dismiss(card) {
  card.element.remove();
  find("empty").hidden = document.querySelector(".card") !== null;
}

function showProgress(card, event) {
  if (event.b64_json) card.part("img").src = `data:image/png;base64,${event.b64_json}`;
  if (event.total === null) {
    card.part(".status").textContent = event.waiting ? `waiting for ${event.waiting} other${event.waiting > 1 ? "s" : ""}` : "starting";
    return;
  }
  const now = performance.now();
  if (card.started === null) [card.started, card.first] = [now, event.step];
  const left = event.step > card.first ? ((now - card.started) / (event.step - card.first)) * (event.total - event.step) : null;
  const time = left === null || left < 1000 ? "" : ` · ${Math.round(left / 1000)} s left`;
  card.part(".status").textContent = event.step === event.total ? "decoding" : `step ${event.step} of ${event.total}${time}`;
  card.part("progress").value = event.step / event.total;
}

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

function complete(card, event, options) {
  const blob = new Blob([bytesOf(event.b64_json)], { type: "image/png" });
  const url = URL.createObjectURL(blob);
  const image = card.part("img");
  image.src = url;
  image.alt = options.prompt;
  const picture = { ...event, b64_json: null, blob, url, options };
  made.unshift(picture);
  const frame = card.part(".frame");
  const [width, height] = event.size.split("x").map(Number);
  frame.style.setProperty("--ratio", width / height);
  frame.tabIndex = 0;
  frame.setAttribute("role", "button");
  frame.setAttribute("aria-label", `Show ${options.prompt}`);
  frame.addEventListener("click", () => view(made.indexOf(picture)));
  frame.addEventListener("keydown", (key) => {
    if (key.key === "Enter" || key.key === " ") {
      key.preventDefault();
      view(made.indexOf(picture));
    }
  });
  card.part(".caption").textContent = `${options.prompt} · seed ${event.seed} · ${event.seconds.toFixed(1)} s`;
  card.element.classList.add("done");
}

function fail(card, reason) {
  card.part("img").removeAttribute("src");
  card.part(".status").textContent = reason;
  card.part(".cancel").textContent = "Remove";
  card.element.classList.add("failed");
}

// --- one picture

function view(index) {
  const picture = made[index];
  state.shown = index;
  find("view-image").src = picture.url;
  find("view-image").alt = picture.options.prompt;
  find("view-title").textContent = picture.options.prompt;
  find("download").href = picture.url;
  find("download").download = `${slug(picture.options.prompt)}-${picture.seed}.png`;
  find("warnings").replaceChildren(...picture.warnings.map((each) => element("li", each)));
  find("command").textContent = picture.command;
  find("copy").textContent = "Copy";
  find("recipe").replaceChildren(...Object.entries(picture.recipe).filter(([key]) => !key.endsWith("_sha256")).map(([key, value]) => {
    const row = document.createElement("tr");
    row.append(element("th", key.replaceAll("_", " ")), element("td", value === "" || value === null ? "none" : Array.isArray(value) ? value.join(", ") : String(value)));
    return row;
  }));
  for (const id of ["previous", "next"]) find(id).hidden = made.length < 2;
  if (!find("view").open) find("view").showModal();
}

function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

const slug = (text) => text.toLowerCase().match(/[\p{L}\p{N}]+/gu)?.join("-").slice(0, 60) || "picture";
const step = (by) => view((state.shown + by + made.length) % made.length);

function useSettings() {
  const { recipe, options } = made[state.shown];
  find("prompt").value = recipe.prompt ?? "";
  find("model").value = options.model ?? find("model").value;
  for (const [id, key] of [["steps", "steps"], ["seed", "seed"], ["guidance", "guidance_scale"], ["negative", "negative_prompt"]]) find(id).value = recipe[key] ?? "";
  if (options.size) [find("width").value, find("height").value] = options.size.split("x");
  find("lora").value = (recipe.lora ?? []).join(", ");
  find("view").close();
  showModel();
  find("prompt").focus();
}

// --- the image to change, and its mask

async function setImage(blob, name) {
  const url = URL.createObjectURL(blob);
  const probe = new Image();
  probe.src = url;
  try {
    await probe.decode();
  } catch {
    complain(`${name} is not an image that this browser can show`);
    return;
  }
  if (state.image) URL.revokeObjectURL(state.image.url);
  state.image = { blob, name, url, width: probe.naturalWidth, height: probe.naturalHeight };
  find("base").src = url;
  Object.assign(find("mask"), { width: probe.naturalWidth, height: probe.naturalHeight });
  state.cursor = { x: probe.naturalWidth / 2, y: probe.naturalHeight / 2 };
  find("painting").hidden = false;
  find("image-part").open = true;
  for (const id of ["width", "height"]) find(id).disabled = true;
  showStrength();
}

function removeImage() {
  if (state.image) URL.revokeObjectURL(state.image.url);
  state.image = null;
  find("painting").hidden = true;
  find("file").value = "";
  for (const id of ["width", "height"]) find(id).disabled = false;
}

const pen = () => find("mask").getContext("2d", { willReadFrequently: true });
const radius = () => (Number(find("brush").value) / 200) * Math.max(find("mask").width, find("mask").height);

function paint(from, to) {
  const context = pen();
  context.globalCompositeOperation = state.erasing ? "destination-out" : "source-over";
  Object.assign(context, { lineCap: "round", lineJoin: "round", lineWidth: 2 * radius(), strokeStyle: "#ff3b6b" });
  context.beginPath();
  context.moveTo(from.x, from.y);
  context.lineTo(to.x + 0.01, to.y);
  context.stroke();
}

function isPainted() {
  const { width, height } = find("mask");
  return pen().getImageData(0, 0, width, height).data.some((value, index) => index % 4 === 3 && value > 127);
}

// Transparent where to repaint, as the images API takes it, or white there, as `sdcli inpaint --mask` does.
function maskOf(kind) {
  const { width, height } = find("mask");
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  const painted = pen().getImageData(0, 0, width, height);
  for (let place = 0; place < painted.data.length; place += 4) {
    const inside = painted.data[place + 3] > 127;
    const level = kind === "white" && inside ? 255 : 0;
    painted.data.set([level, level, level, kind === "transparent" && inside ? 0 : 255], place);
  }
  context.putImageData(painted, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

function pointOf(event) {
  const box = find("mask").getBoundingClientRect();
  return { x: ((event.clientX - box.left) / box.width) * find("mask").width, y: ((event.clientY - box.top) / box.height) * find("mask").height };
}

function showStrength() {
  find("strength-value").textContent = find("strength").value;
}

find("mask").addEventListener("pointerdown", (event) => {
  event.preventDefault();
  find("mask").focus({ preventScroll: true });
  find("mask").setPointerCapture(event.pointerId);
  state.cursor = pointOf(event);
  paint(state.cursor, state.cursor);
});
find("mask").addEventListener("pointermove", (event) => {
  if (!event.buttons) return;
  const to = pointOf(event);
  paint(state.cursor, to);
  state.cursor = to;
});
find("mask").addEventListener("keydown", (event) => {
  const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], " ": [0, 0] }[event.key];
  if (event.key.toLowerCase() === "e") toggleErase();
  if (by === undefined) return;
  event.preventDefault();
  const from = { ...state.cursor };
  state.cursor = {
    x: Math.min(Math.max(from.x + by[0] * radius(), 0), find("mask").width), y: Math.min(Math.max(from.y + by[1] * radius(), 0), find("mask").height),
  };
  if (event.key === " ") state.down = !event.repeat ? !state.down : state.down;
  if (event.key === " " || state.down) paint(from, state.cursor);
});
find("mask").addEventListener("blur", () => { state.down = false; });

function toggleErase() {
  state.erasing = !state.erasing;
  find("erase").setAttribute("aria-pressed", state.erasing);
}

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// --- events

find("form").addEventListener("submit", (event) => { event.preventDefault(); generate(); });
addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); find("form").requestSubmit(); }
  if (!find("view").open) return;
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
find("model").addEventListener("change", showModel);
find("file").addEventListener("change", () => { const [file] = find("file").files; if (file) setImage(file, file.name); });
find("erase").addEventListener("click", toggleErase);
find("clear").addEventListener("click", () => pen().clearRect(0, 0, find("mask").width, find("mask").height));
find("remove").addEventListener("click", removeImage);
find("save-mask").addEventListener("click", async () => download(await maskOf("white"), "mask.png"));
find("strength").addEventListener("input", showStrength);
find("previous").addEventListener("click", () => step(-1));
find("next").addEventListener("click", () => step(1));
find("close").addEventListener("click", () => find("view").close());
find("view").addEventListener("click", (event) => { if (event.target === find("view")) find("view").close(); });
find("use-settings").addEventListener("click", useSettings);
find("use-image").addEventListener("click", () => {
  const picture = made[state.shown];
  find("view").close();
  setImage(picture.blob, find("download").download);
  find("image-part").scrollIntoView({ block: "nearest" });
});
find("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(find("command").textContent);
    find("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(find("command"));
    find("copy").textContent = "Selected";
  }
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) setImage(file, file.name);
});
addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
  if (file) setImage(file, file.name);
});
addEventListener("beforeunload", (event) => { if (made.length) event.preventDefault(); });
loadModels();
