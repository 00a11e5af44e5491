// The page: files in, a grid of pictures out, sorted by similarity to the one that was clicked.

import { compile, Embedder } from "./embedder.js";
import { bySimilarity } from "./similarity.js";

const [encoderInput, encoderText, picturesInput, progress, refused, shown, order, unsort, clear, grid, leftOut] = [
  "encoder-input", "encoder", "pictures-input", "progress", "refused", "shown", "order", "unsort", "clear", "grid", "left-out",
].map((id) => document.getElementById(id));

// In the order they were added: {file, tile, url}, and once embedded {embedding, damaged, prepareTime, encodeTime, memory}.
export let pictures = [];
export let embedder;
let query;

const module = compile("tec_edge_web.wasm");
module.catch((error) => refuse(error.message));

encoderInput.addEventListener("change", () => {
  if (encoderInput.files.length > 0) choose(encoderInput.files[0]);
  encoderInput.value = "";
});
picturesInput.addEventListener("change", () => {
  add([...picturesInput.files]);
  picturesInput.value = "";
});
unsort.addEventListener("click", () => sort(undefined));
clear.addEventListener("click", removeAll);

// Dropped files: an encoder says so by its name, all else is taken for pictures.
for (const type of ["dragover", "dragleave", "drop"]) {
  addEventListener(type, (event) => {
    event.preventDefault();
    document.body.classList.toggle("dropping", type === "dragover");
  });
}
addEventListener("drop", async ({ dataTransfer }) => {
  const files = [...dataTransfer.files];
  const encoder = files.find((file) => file.name.endsWith(".tec"));
  add(files.filter((file) => !file.name.endsWith(".tec")));
  if (encoder !== undefined) await choose(encoder);
});

// Opens an encoder and embeds all pictures with it; a file that is none changes nothing.
let choices = 0;
async function choose(file) {
  const choice = ++choices;
  refuse(undefined);
  try {
    const opened = await Embedder.open(await module, file);
    if (choice !== choices) return opened.close(); // another was chosen meanwhile
    embedder?.close();
    embedder = opened;
  } catch (error) {
    return refuse(`${file.name}: ${error.message}`);
  }
  const { name, size, dim, channels } = embedder.encoder;
  const color = channels === 1 ? "gray" : "color";
  encoderText.textContent = `${name || file.name}: ${size} × ${size} pixels in ${color}, ${dim} values a picture.`;
  sort(undefined);
  for (const picture of pictures) {
    picture.embedding = undefined;
    picture.tile.classList.add("waiting");
    embed(picture);
  }
  report();
}

function add(files) {
  for (const file of files) {
    const picture = { file, url: URL.createObjectURL(file) };
    picture.tile = tile(picture);
    pictures.push(picture);
    grid.append(picture.tile.parentElement);
    if (embedder !== undefined) embed(picture);
  }
  tabStop(grid.querySelector(".tile"));
  report();
}

async function embed(picture) {
  const mine = embedder;
  let embedded, failed;
  try {
    embedded = await mine.embed(picture.file);
  } catch (error) {
    failed = error.message;
  }
  if (mine !== embedder || !pictures.includes(picture)) return; // it was removed, or another encoder is asked
  if (failed !== undefined) {
    remove(picture);
    const line = document.createElement("li");
    line.textContent = `${picture.file.name}: ${failed}`;
    leftOut.querySelector("ul").append(line);
    leftOut.hidden = false;
  } else {
    Object.assign(picture, embedded);
    picture.tile.classList.remove("waiting");
    label(picture);
  }
  update();
}

// Many pictures may be done between two frames.
let frame;
function update() {
  frame ??= requestAnimationFrame(() => {
    frame = undefined;
    if (query !== undefined) sort(query);
    else report();
  });
}

function tile(picture) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "tile waiting";
  const image = document.createElement("img");
  image.alt = "";
  image.loading = "lazy";
  image.decoding = "async";
  image.addEventListener("load", () => button.classList.toggle("small", image.naturalWidth < 100));
  image.src = picture.url;
  const [caption, name, note] = ["caption", "name", "similarity"].map((kind) => {
    const part = document.createElement("span");
    part.className = kind;
    return part;
  });
  name.textContent = picture.file.name;
  caption.append(name, note);
  button.append(image, caption);
  button.title = picture.file.name;
  button.addEventListener("click", () => {
    if (picture.embedding === undefined) return;
    sort(picture === query ? undefined : picture);
    button.scrollIntoView({ block: "nearest" });
    button.focus();
  });
  const item = document.createElement("li");
  item.append(button);
  return button;
}

// Sorts by similarity to a picture; without one, as they were added.
function sort(to) {
  query = to;
  const embedded = pictures.filter((picture) => picture.embedding !== undefined);
  const waiting = pictures.filter((picture) => picture.embedding === undefined);
  const sorted = query === undefined ? pictures : [...bySimilarity(embedded, query), ...waiting];
  const focused = document.activeElement;
  grid.append(...sorted.map((picture) => picture.tile.parentElement));
  if (grid.contains(focused)) focused.focus({ preventScroll: true });
  for (const picture of pictures) label(picture);
  tabStop(query?.tile ?? grid.querySelector(".tile"));
  unsort.hidden = query === undefined;
  report();
}

// What a tile says, to eyes and to screen readers.
function label(picture) {
  const { tile, file, embedding, damaged } = picture;
  const asked = query !== undefined && embedding !== undefined && picture !== query;
  const note = tile.querySelector(".similarity");
  note.textContent = asked ? picture.similarity.toFixed(3) : damaged ? "damaged" : "";
  note.classList.toggle("damaged", !asked && damaged === true);
  tile.setAttribute("aria-pressed", String(picture === query));
  const said = [file.name];
  if (damaged) said.push("damaged, embedded as far as its data go");
  if (asked) said.push(`similarity ${picture.similarity.toFixed(3)}`);
  tile.setAttribute("aria-label", said.join(", "));
}

function report() {
  shown.hidden = pictures.length === 0;
  order.textContent = query === undefined ? "Pictures" : `Most similar to ${query.file.name}`;
  const done = pictures.filter((picture) => picture.embedding !== undefined);
  if (pictures.length === 0) {
    progress.textContent = "JPEG or PNG, as many as you like; or drop them on the page.";
  } else if (embedder === undefined) {
    progress.textContent = `${count(pictures.length)}, waiting for an encoder.`;
  } else if (done.length < pictures.length) {
    progress.textContent = `${done.length} of ${count(pictures.length)} embedded …`;
  } else {
    const prepare = median(done.map((picture) => picture.prepareTime));
    const encode = median(done.map((picture) => picture.encodeTime));
    progress.textContent =
      `${count(done.length)}, ${time(prepare + encode)} each: ${time(prepare)} to decode and resize, ${time(encode)} to encode.`;
  }
}

const count = (pictures) => `${pictures} ${pictures === 1 ? "picture" : "pictures"}`;
const time = (milliseconds) => `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms`;
const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];

function remove(picture) {
  URL.revokeObjectURL(picture.url);
  picture.tile.parentElement.remove();
  pictures = pictures.filter((other) => other !== picture);
}

function removeAll() {
  for (const picture of pictures) remove(picture);
  leftOut.querySelector("ul").replaceChildren();
  leftOut.hidden = true;
  sort(undefined);
  picturesInput.focus();
}

function refuse(reason) {
  refused.textContent = reason ?? "";
  refused.hidden = reason === undefined;
}

// One tile is reached by Tab, the others from it by the arrow keys.
function tabStop(tile) {
  if (!tile) return;
  for (const other of grid.querySelectorAll('.tile:not([tabindex="-1"])')) other.tabIndex = -1;
  tile.tabIndex = 0;
}

grid.addEventListener("focusin", ({ target }) => tabStop(target));
grid.addEventListener("keydown", (event) => {
  const tiles = [...grid.querySelectorAll(".tile")];
  const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
  const at = tiles.indexOf(event.target);
  const to = {
    ArrowLeft: at - 1,
    ArrowRight: at + 1,
    ArrowUp: at - columns,
    ArrowDown: at + columns,
    Home: 0,
    End: tiles.length - 1,
  }[event.key];
  if (event.key === "Escape" && query !== undefined) sort(undefined);
  else if (tiles[to] !== undefined) tiles[to].focus();
  else if (to === undefined) return;
  event.preventDefault();
});
