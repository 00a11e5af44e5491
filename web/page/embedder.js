// An encoder in several workers: pictures in, embeddings out.

// The encoder's file lies in each worker's memory.
const MOST_WORKERS = 8;
const MOST_MEMORY = 2 ** 30;

// The smallest module with a vector instruction: type () -> v128, one function, i8x16.splat of 0.
const VECTOR_MODULE = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11,
]);

// Compiles the module; throws a sentence where this browser cannot.
export async function compile(url) {
  if (typeof WebAssembly !== "object" || !WebAssembly.validate(VECTOR_MODULE)) {
    throw new Error(
      "This browser lacks WebAssembly with 128-bit vectors, which the encoder computes in: use Chrome or Edge 91, Firefox 89, Safari 16.4, or a newer one.",
    );
  }
  const response = await fetch(url);
  if (!response.ok) throw new Error(`The page is incomplete: its server has no ${url}; build it again.`);
  return WebAssembly.compile(await response.arrayBuffer());
}

export class Embedder {
  #workers = [];
  #idle = [];
  #waiting = [];

  // Opens an encoder's file; throws a sentence where it is none.
  static async open(module, file) {
    const embedder = new Embedder();
    try {
      const { opened } = await embedder.#start(module, file);
      embedder.encoder = opened;
    } catch (error) {
      embedder.close();
      throw error;
    }
    const byMemory = Math.floor(MOST_MEMORY / Math.max(file.size, 1));
    const wanted = Math.min((navigator.hardwareConcurrency || 2) - 1, MOST_WORKERS, byMemory);
    // The others open the same file; one that fails is done without.
    for (let i = 1; i < wanted; i++) embedder.#start(module, file).catch(() => {});
    return embedder;
  }

  async #start(module, file) {
    const worker = new Worker("worker.js");
    this.#workers.push(worker);
    const answer = await ask(worker, { module, encoder: file });
    if (answer.refused !== undefined) {
      worker.terminate();
      throw new Error(answer.refused);
    }
    this.#release(worker);
    return answer;
  }

  // Embeds a picture's file; throws a sentence where it cannot.
  async embed(file) {
    const worker = this.#idle.pop() ?? (await new Promise((resolve) => this.#waiting.push(resolve)));
    try {
      const answer = await ask(worker, { picture: file });
      if (answer.failed !== undefined) throw new Error(answer.failed);
      return answer;
    } finally {
      this.#release(worker);
    }
  }

  #release(worker) {
    const next = this.#waiting.shift();
    if (next === undefined) this.#idle.push(worker);
    else next(worker);
  }

  // Ends the workers; what they were doing is never answered.
  close() {
    for (const worker of this.#workers) worker.terminate();
    this.#waiting = [];
  }
}

// A worker answers one question at a time.
function ask(worker, question) {
  return new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => resolve(data);
    worker.onerror = ({ message }) => reject(new Error(`the worker stopped: ${message || "its script cannot be loaded"}`));
    worker.postMessage(question);
  });
}
