// Checks the page in a browser: its embeddings and its order against `tec embed`, its sentences, its console.
//
//   node check.mjs PAGE TEC WORK [SCREENSHOTS]
//
// SHOWN_ENCODER and SHOWN_PICTURES name an encoder and a folder of pictures for the screenshots instead of the test's own.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, truncateSync, copyFileSync, writeFileSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { deflateSync } from "node:zlib";

import { Browser } from "./browser.mjs";
import { serve } from "./serve.mjs";

const [page, tec, work, screenshots] = process.argv.slice(2).map((path) => path && resolve(path));
const STATIC = ["index.html", "style.css", "page.js", "embedder.js", "similarity.js", "worker.js", "tec_edge_web.wasm"];
const PNG_START = Buffer.from("\x89PNG\r\n\x1a\n", "latin1");

const server = await serve(page);
const browser = await Browser.open(join(work, "profile"));
try {
  await check();
  if (screenshots) await show();
} finally {
  await browser.close();
  server.close();
}

async function check() {
  const encoder = randomEncoder("encoder.tec", ["--img", "64", "--patch", "8", "--depth", "2"]);
  const trained = goldenEncoder("trained.tec", "encoder_trained");
  const classToken = goldenEncoder("class.tec", "encoder_0");
  await browser.visit(server.url);
  const painted = await paint();
  const stored = readdirSync("tec-image/tests/data").filter((name) => /\.(jpg|png)$/.test(name));
  const pictures = [...painted, ...stored.map((name) => resolve("tec-image/tests/data", name))];

  // Pictures wait for an encoder; what is no picture is left out.
  await browser.pick("#pictures-input", pictures);
  await says("#progress", `${pictures.length} pictures, waiting for an encoder.`);
  await browser.pick("#encoder-input", [encoder]);
  await embedded(pictures.length);
  await equal(encoder, pictures);
  console.log(`web: ${pictures.length} pictures have the embeddings of tec embed, bit for bit`);
  console.log(`web: ${await browser.value("document.querySelector('#progress').textContent")}`);

  await order(encoder, pictures);
  await keyboard();
  await refusals(encoder, pictures);

  // Another encoder, for gray images, embeds what is there once more; it and one more picture come by dropping.
  await browser.drop([trained, painted[0]]);
  await says("#encoder", "28 × 28 pixels in gray");
  await embedded(pictures.length + 1);
  await equal(trained, [...pictures, painted[0]]);
  await browser.pick("#encoder-input", [classToken]);
  await says("#encoder", "8 × 8 pixels in color");
  await embedded(pictures.length + 1);
  await equal(classToken, [...pictures, painted[0]]);
  console.log("web: dropping files works, and changing the encoder: for gray images, and by class token");

  await memory(painted, classToken);
  assert.deepEqual(browser.complaints, [], "the console is empty");
  const foreign = server.asked.filter((line) => !STATIC.some((name) => line === `GET ${name}`));
  assert.deepEqual(foreign, [], "only the page's own files are asked for");
  console.log("web: the console is empty, and nothing but the page's files was asked of the server");

  await withoutVectors();
}

// An encoder with random weights.
function randomEncoder(name, shape) {
  const file = join(work, name);
  execFileSync(tec, ["bench", "encode", "--runs", "1", "--save", file, ...shape, "--json"], { stdio: ["ignore", "ignore", "inherit"] });
  return file;
}

// The encoder of a golden vector: a tensor of bytes in a safetensors file.
function goldenEncoder(name, vector) {
  const bytes = readFileSync(`tests/goldens/${vector}.safetensors`);
  const start = 8 + Number(bytes.readBigUInt64LE(0));
  const [from, to] = JSON.parse(bytes.toString("utf8", 8, start)).encoder.data_offsets;
  const file = join(work, name);
  writeFileSync(file, bytes.subarray(start + from, start + to));
  return file;
}

// Photographs need not be at hand: the browser paints pictures and codes them, JPEG and PNG, of many shapes.
async function paint() {
  const shapes = [[64, 64], [32, 32], [200, 90], [91, 200], [640, 480], [1, 1], [65, 3], [1500, 1100], [37, 41]];
  const made = await browser.value(`(async () => {
    const made = [];
    for (const [index, [width, height]] of ${JSON.stringify(shapes)}.entries()) {
      for (const [type, extra] of [["jpeg", 0.4], ["jpeg", 0.95], ["png", 1]]) {
        const canvas = new OffscreenCanvas(width, height), paint = canvas.getContext("2d");
        const sky = paint.createLinearGradient(0, 0, width, height);
        sky.addColorStop(0, \`hsl(\${index * 40 + extra * 90} 80% 60%)\`);
        sky.addColorStop(1, \`hsl(\${index * 70 + 120} 60% 25%)\`);
        paint.fillStyle = sky;
        paint.fillRect(0, 0, width, height);
        for (let i = 0; i < 12; i++) {
          paint.fillStyle = \`hsl(\${i * 50 + index * 31} 90% \${20 + i * 5}% / 0.7)\`;
          paint.beginPath();
          paint.arc((i * 37 + index * 11) % 97 / 97 * width, (i * 53) % 89 / 89 * height, (i + 2) / 40 * width, 0, 7);
          paint.fill();
        }
        const blob = await canvas.convertToBlob({ type: "image/" + type, quality: extra });
        const bytes = new Uint8Array(await blob.arrayBuffer());
        made.push([\`\${width}x\${height}-\${extra}.\${type}\`, btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""))]);
      }
    }
    return made;
  })()`);
  return made.map(([name, data]) => {
    const file = join(work, name);
    writeFileSync(file, Buffer.from(data, "base64"));
    return file;
  });
}

// What the command computes of pictures, the output that the encoder's file names: [{name, embedding}], in their order.
function expected(encoder, pictures) {
  const pool = readFileSync(encoder).readUInt32LE(52) === 0 ? "cls" : "mean"; // docs/encoder-file.md
  const out = execFileSync(tec, ["embed", ...pictures, "--encoder", encoder, "--pool", pool, "--json"], {
    encoding: "utf8",
    maxBuffer: 2 ** 30,
    stdio: ["ignore", "pipe", "inherit"],
  });
  return out.trim().split("\n").map((line) => JSON.parse(line)).map(({ image, embedding }) => ({ name: basename(image), embedding }));
}

// What the page computed: [{name, embedding, damaged}], as they were added.
function computed() {
  return browser.value(`import("./page.js").then(({ pictures }) => pictures.map(({ file, embedding, damaged }) =>
    ({ name: file.name, embedding: Array.from(embedding), damaged })))`);
}

function bits(embedding) {
  return Buffer.from(Float32Array.from(embedding).buffer).toString("hex");
}

async function equal(encoder, pictures) {
  const [found, wanted] = [await computed(), expected(encoder, pictures)];
  assert.deepEqual(found.map(({ name }) => name), wanted.map(({ name }) => name));
  for (const [index, { name, embedding }] of wanted.entries()) {
    assert.equal(bits(found[index].embedding), bits(embedding), `the embedding of ${name}`);
  }
}

// Waits until all pictures are there and embedded.
function embedded(pictures) {
  const all = `document.querySelector("#progress").textContent.startsWith("${pictures} pictures, ") &&
    document.querySelectorAll(".tile").length === ${pictures} && !document.querySelector(".waiting")`;
  return browser.until(all, `${pictures} embedded pictures`);
}

// Waits until a part of the page holds a text.
function says(selector, text) {
  return browser.until(`document.querySelector("${selector}").textContent.includes(${JSON.stringify(text)})`, `"${text}"`);
}

// A click sorts by cosine similarity: in the order, and with the numbers, of the command's embeddings.
async function order(encoder, pictures) {
  const all = expected(encoder, pictures);
  assert.ok(new Set(all.map(({ embedding }) => bits(embedding))).size > all.length / 2, "the embeddings tell pictures apart");
  for (const at of [4, all.length - 2]) {
    await browser.value(`import("./page.js").then(({ pictures }) => pictures[${at}].tile.click())`);
    const others = all.filter((_, index) => index !== at).map(({ name, embedding }) => {
      const similarity = cosine(embedding, all[at].embedding);
      return { name, similarity };
    });
    others.sort((a, b) => b.similarity - a.similarity);
    const shown = await browser.value(`Array.from(document.querySelectorAll(".tile"), (tile) => ({
      name: tile.querySelector(".name").textContent,
      similarity: tile.querySelector(".similarity").textContent,
      label: tile.getAttribute("aria-label"),
      pressed: tile.getAttribute("aria-pressed"),
    }))`);
    assert.deepEqual(shown.map(({ name }) => name), [all[at].name, ...others.map(({ name }) => name)], "the order");
    for (const [index, { name, similarity }] of others.entries()) {
      const { similarity: text, label } = shown[index + 1];
      assert.ok(Math.abs(Number(text) - similarity) <= 0.0006, `${name}: ${text}, ${similarity}`);
      assert.ok(label.startsWith(name) && label.endsWith(`, similarity ${text}`), label);
    }
    assert.deepEqual(shown.map(({ pressed }) => pressed), ["true", ...others.map(() => "false")]);
    await says("#order", `Most similar to ${all[at].name}`);
  }
  await browser.value(`document.querySelector("#unsort").click()`);
  const names = await browser.value(`Array.from(document.querySelectorAll(".tile .name"), (name) => name.textContent)`);
  assert.deepEqual(names, all.map(({ name }) => name), "as added");
  console.log("web: the order and the similarities are those of the command's embeddings");
}

// By the definition, scaled first so that nothing of it is as the page does it.
function cosine(a, b) {
  const [lengthA, lengthB] = [Math.hypot(...a), Math.hypot(...b)];
  return a.reduce((sum, value, i) => sum + (value / lengthA) * (b[i] / lengthB), 0);
}

// The whole way without a mouse.
async function keyboard() {
  const focused = () => browser.value(`document.activeElement.id || document.activeElement.querySelector(".name")?.textContent`);
  const names = await browser.value(`Array.from(document.querySelectorAll(".tile .name"), (name) => name.textContent)`);
  await browser.value("document.activeElement.blur(), document.querySelector('#encoder-input').focus()");
  const stops = [];
  for (let i = 0; i < 3; i++) {
    await browser.press("Tab");
    stops.push(await focused());
  }
  assert.deepEqual(stops.slice(0, 2), ["pictures-input", "clear"]);
  await browser.press("Home");
  await browser.press("ArrowRight");
  await browser.press("ArrowRight");
  assert.equal(await focused(), names[2]);
  await browser.press("ArrowLeft");
  await browser.press("Enter");
  await says("#order", `Most similar to ${names[1]}`);
  assert.equal(await focused(), names[1], "the focus moves with the picture");
  await browser.press("Escape");
  await says("#order", "Pictures");
  await browser.press("End");
  assert.equal(await focused(), names.at(-1));
  console.log("web: every step can be done by keyboard");
}

// What cannot be used is named, and changes nothing else.
async function refusals(encoder, pictures) {
  const [damagedEncoder, text, cut, huge] = ["damaged.tec", "notes.jpg", "cut.jpg", "huge.png"].map((name) => join(work, name));
  const bytes = readFileSync(encoder);
  bytes[bytes.length - 100] ^= 1;
  writeFileSync(damagedEncoder, bytes);
  await browser.pick("#encoder-input", [damagedEncoder]);
  await says("#refused", "damaged.tec: the encoder file is damaged: its checksum is");
  await browser.pick("#encoder-input", [pictures[0]]);
  await says("#refused", "not an encoder file: it does not begin as one");
  assert.equal(await browser.value(`document.querySelector("#refused").checkVisibility()`), true);

  writeFileSync(text, "no picture at all");
  copyFileSync("tec-image/tests/data/full.jpg", cut);
  truncateSync(cut, 600);
  writeFileSync(huge, pngHeader(20_000, 10_000));
  await browser.pick("#pictures-input", [text, cut, huge]);
  await says("#left-out", "notes.jpg: neither a JPEG nor a PNG, whatever its name says");
  await says("#left-out", "cut.jpg: truncated");
  await says("#left-out", "huge.png: 20000x10000 pixels are more than the 134217728 this program decodes");
  await embedded(pictures.length);
  await equal(encoder, pictures);
  const damaged = (await computed()).filter(({ damaged }) => damaged).map(({ name }) => name);
  assert.deepEqual(damaged, ["gap.jpg", "stops.jpg"], "damaged pictures are marked");
  console.log("web: what is no encoder or no picture is refused in words");
}

// A PNG that ends where its data begin.
function pngHeader(width, height) {
  return Buffer.concat([PNG_START, pngChunk("IHDR", pngShape(width, height, 8)), Buffer.from("\0\0\0\0IDAT")]);
}

// A white PNG of 16 bits a sample, which a decoder holds whole.
function whitePng(width, height) {
  const row = Buffer.alloc(1 + 6 * width, 255);
  row[0] = 0; // as it is, without a filter
  const data = deflateSync(Buffer.concat(Array(height).fill(row)), { level: 1 });
  return Buffer.concat([PNG_START, pngChunk("IHDR", pngShape(width, height, 16)), pngChunk("IDAT", data), pngChunk("IEND", "")]);
}

function pngShape(width, height, depth) {
  const shape = Buffer.alloc(13);
  shape.writeUInt32BE(width, 0);
  shape.writeUInt32BE(height, 4);
  shape.set([depth, 2, 0, 0, 0], 8);
  return shape;
}

function pngChunk(kind, body) {
  const [length, sum] = [Buffer.alloc(4), Buffer.alloc(4)];
  const content = Buffer.concat([Buffer.from(kind), Buffer.from(body)]);
  length.writeUInt32BE(body.length);
  sum.writeUInt32BE(crc32(content));
  return Buffer.concat([length, content, sum]);
}

function crc32(bytes) {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (0xedb88320 & -(crc & 1));
  }
  return ~crc >>> 0;
}

// The same picture again and again takes no more memory, and what a huge one took is given back after it.
async function memory(painted, encoder) {
  const large = painted.find((file) => file.endsWith("1500x1100-0.95.jpeg"));
  await browser.value(`document.querySelector("#clear").click()`);
  const rounds = 40;
  await browser.pick("#pictures-input", Array(rounds).fill(large));
  await embedded(rounds);
  const sizes = await browser.value(`import("./page.js").then(({ pictures }) => pictures.map(({ memory }) => memory))`);
  const [middle, end] = [Math.max(...sizes.slice(0, rounds / 2)), Math.max(...sizes)];
  assert.equal(end, middle, "memory grows from picture to picture");

  const huge = join(work, "white.png");
  writeFileSync(huge, whitePng(6500, 6500));
  await browser.pick("#pictures-input", [huge]);
  await embedded(rounds + 1);
  await browser.pick("#pictures-input", [large]);
  await embedded(rounds + 2);
  await equal(encoder, [...Array(rounds).fill(large), huge, large]);
  const [during, after] = await browser.value(
    `import("./page.js").then(({ pictures }) => pictures.slice(-2).map(({ memory }) => memory))`,
  );
  assert.ok(during > 250 * 2 ** 20 && after <= end, `memory is given back: ${during}, ${after} bytes`);
  console.log(`web: ${rounds} pictures of 1500 × 1100 pixels leave a worker with ${(end / 2 ** 20).toFixed(1)} MiB`);
}

// A browser that does not know vectors says so.
async function withoutVectors() {
  await browser.send("Page.addScriptToEvaluateOnNewDocument", { source: "WebAssembly.validate = () => false;" });
  await browser.visit(server.url);
  await says("#refused", "This browser lacks WebAssembly with 128-bit vectors");
  console.log("web: a browser without vectors is told so");
}

async function show() {
  mkdirSync(screenshots, { recursive: true });
  const folder = process.env.SHOWN_PICTURES ?? "tec-image/tests/data";
  const pictures = readdirSync(folder).filter((name) => /\.(jpe?g|png)$/i.test(name)).sort().map((name) => resolve(folder, name));
  const dressed = { wide: { width: 1280, height: 860, scheme: "light" }, phone: { width: 390, height: 844, scale: 2, scheme: "dark" } };
  for (const [name, dress] of Object.entries(dressed)) {
    const other = await Browser.open(join(work, `profile-${name}`));
    try {
      await other.dress(dress);
      await other.visit(server.url);
      await other.screenshot(join(screenshots, `${name}-empty.png`));
      await other.pick("#encoder-input", [process.env.SHOWN_ENCODER ?? join(work, "encoder.tec")]);
      await other.pick("#pictures-input", [...pictures, join(work, "notes.jpg")]);
      await other.until("/pictures?, .* each/.test(document.querySelector('#progress').textContent)", "embedded pictures");
      console.log(`web: ${name}: ${await other.value("document.querySelector('#progress').textContent")}`);
      await other.screenshot(join(screenshots, `${name}-added.png`));
      await other.value("document.querySelectorAll('.tile')[7].click()");
      await new Promise((resolve) => setTimeout(resolve, 500));
      await other.screenshot(join(screenshots, `${name}-sorted.png`));
      assert.ok(await other.value("document.documentElement.scrollWidth <= innerWidth"), "no sideways scrolling");
    } finally {
      await other.close();
    }
  }
}
