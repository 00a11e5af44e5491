// Embeds one picture after the other, away from the page, so that it stays responsive.
//
// Asked {module, encoder} it answers {opened} or {refused}; asked {picture}, {embedding, damaged, prepareTime, encodeTime, memory}
// or {failed}. `encoder` and `picture` are files; times are milliseconds, memory bytes.

// An instance's memory never shrinks: after a picture that took more than this, the next gets a new instance.
const SPARE_MEMORY = 256 * 2 ** 20;

let module, encoder, functions, dim, memoryAtFirst;
// Why the last file could not be written.
let unwritten;

onmessage = async ({ data }) => {
  if (data.picture === undefined) {
    ({ module, encoder } = data);
    postMessage(await open());
  } else {
    postMessage(await embed(data.picture));
  }
};

async function open() {
  try {
    ({ exports: functions } = await WebAssembly.instantiate(module, {}));
    const opened = (await write(encoder)) && functions.open();
    if (!opened) return { refused: unwritten ?? message() };
    memoryAtFirst = functions.memory.buffer.byteLength;
    const [backEnd, size, channels, values, pool, ...name] = message().split("\t");
    dim = Number(values);
    return { opened: { backEnd, size: Number(size), channels: Number(channels), dim, pool, name: name.join("\t") } };
  } catch (error) {
    return { refused: `the encoder cannot be opened: ${error.message}` };
  }
}

async function embed(picture) {
  if (functions === undefined) {
    const { refused } = await open();
    if (refused !== undefined) return { failed: refused };
  }
  let answer;
  try {
    if (!(await write(picture))) return { failed: unwritten };
    const start = performance.now();
    const prepared = functions.prepare();
    const between = performance.now();
    if (!prepared || !functions.encode()) return { failed: message() };
    const end = performance.now();
    const memory = functions.memory.buffer;
    const values = new Float32Array(memory, functions.embedding() >>> 0, dim);
    answer = {
      embedding: values.slice(),
      damaged: prepared === 2,
      prepareTime: between - start,
      encodeTime: end - between,
      memory: memory.byteLength,
    };
  } catch (error) {
    // The instance has stopped somewhere inside and is not to be used again.
    functions = undefined;
    return { failed: `the decoder gave up on it, for it is damaged or needs more memory than there is (${error.message})` };
  }
  if (answer.memory > memoryAtFirst + SPARE_MEMORY) functions = undefined;
  return answer;
}

// Brings a file into the module's memory.
async function write(file) {
  unwritten = undefined;
  let bytes;
  try {
    bytes = new Uint8Array(await file.arrayBuffer());
  } catch (error) {
    unwritten = `the file cannot be read: ${error.message}`;
    return false;
  }
  const address = bytes.length < 2 ** 31 ? functions.reserve(bytes.length) >>> 0 : 0;
  if (address === 0) {
    unwritten = `the file has ${bytes.length} bytes, more than there is memory for`;
    return false;
  }
  new Uint8Array(functions.memory.buffer, address, bytes.length).set(bytes);
  return true;
}

// The module's last text.
function message() {
  return new TextDecoder().decode(new Uint8Array(functions.memory.buffer, functions.message() >>> 0, functions.message_len()));
}
