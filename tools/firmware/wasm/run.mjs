// Runs the module under Node: requests come on standard input, answers go to standard output.
import { readFileSync, readSync, writeSync } from "node:fs";

const [file] = process.argv.slice(2);
if (file === undefined) {
  console.error("usage: node run.mjs tec_firmware_wasm.wasm");
  process.exit(2);
}

// A pipe may be empty or full for a moment; anything else is the end.
const retry = (operation) => {
  for (;;) {
    try {
      return operation();
    } catch (error) {
      if (error.code === "EOF") return 0;
      if (error.code !== "EAGAIN") return -1;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    }
  }
};

let memory;
const move = (address, length, step) => {
  for (let done = 0; done < length; ) {
    const moved = retry(() => step(new Uint8Array(memory.buffer, address + done, length - done)));
    if (moved <= 0) return 0;
    done += moved;
  }
  return 1;
};

const host = {
  receive: (address, length) => move(address >>> 0, length, (bytes) => readSync(0, bytes)),
  send: (address, length) => move(address >>> 0, length, (bytes) => writeSync(1, bytes)),
};
const { instance } = await WebAssembly.instantiate(readFileSync(file), { host });
memory = instance.exports.memory;
instance.exports.run();
