// A headless Chromium, driven over the DevTools protocol by a pipe: no package is needed for that.
import { spawn } from "node:child_process";
import { writeFile } from "node:fs/promises";

const PATIENCE = 60_000; // milliseconds until what is waited for is missed

export class Browser {
  #process;
  #next = 1;
  #asked = new Map();
  #heard = "";
  // What the console said, warnings, errors, and exceptions nobody caught.
  complaints = [];

  static async open(profile) {
    const browser = new Browser();
    const flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"];
    const program = process.env.CHROMIUM ?? "chromium";
    browser.#process = spawn(program, [...flags, "--remote-debugging-pipe", `--user-data-dir=${profile}`, "about:blank"], {
      stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"],
    });
    browser.#process.on("exit", () => browser.#fail("the browser ended"));
    browser.#process.on("error", (error) => browser.#fail(`the browser does not start: ${error.message}`));
    browser.#process.stdio[3].on("error", () => {});
    browser.#process.stdio[4].setEncoding("utf8").on("data", (text) => browser.#hear(text));
    const { targetInfos } = await browser.#send("Target.getTargets");
    const { targetId } = targetInfos.find(({ type }) => type === "page");
    ({ sessionId: browser.session } = await browser.#send("Target.attachToTarget", { targetId, flatten: true }));
    for (const domain of ["Page", "Runtime", "Log", "DOM"]) await browser.send(`${domain}.enable`);
    return browser;
  }

  // A command to the page.
  send(method, params = {}) {
    return this.#send(method, params, this.session);
  }

  #send(method, params, sessionId) {
    const id = this.#next++;
    this.#process.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    return new Promise((resolve, reject) => this.#asked.set(id, { resolve, reject, method }));
  }

  #hear(text) {
    const messages = (this.#heard + text).split("\0");
    this.#heard = messages.pop();
    for (const message of messages) {
      const { id, result, error, method, params } = JSON.parse(message);
      if (id === undefined) {
        this.#notice(method, params);
        continue;
      }
      const { resolve, reject, method: asked } = this.#asked.get(id);
      this.#asked.delete(id);
      if (error === undefined) resolve(result);
      else reject(new Error(`${asked}: ${error.message}`));
    }
  }

  #notice(method, params) {
    if (method === "Runtime.exceptionThrown") {
      const { text, exception } = params.exceptionDetails;
      this.complaints.push(exception?.description ?? text);
    } else if (method === "Runtime.consoleAPICalled" && ["error", "warning"].includes(params.type)) {
      this.complaints.push(params.args.map(({ value, description }) => value ?? description).join(" "));
    } else if (method === "Log.entryAdded" && ["error", "warning"].includes(params.entry.level)) {
      this.complaints.push(`${params.entry.text} ${params.entry.url ?? ""}`);
    }
  }

  #fail(reason) {
    for (const { reject } of this.#asked.values()) reject(new Error(reason));
    this.#asked.clear();
  }

  // Goes to an address and waits until it is loaded.
  async visit(url) {
    await this.send("Page.navigate", { url });
    await this.until("document.readyState === 'complete' && location.href.startsWith('http')", "the page");
  }

  // The value of an expression, which may be a promise.
  async value(expression) {
    const wanted = { expression, awaitPromise: true, returnByValue: true, userGesture: true };
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", wanted);
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  }

  // Waits until an expression is true.
  async until(expression, what) {
    for (const start = Date.now(); Date.now() < start + PATIENCE; ) {
      if (await this.value(expression).catch(() => false)) return;
      await new Promise((resolve) => setTimeout(resolve, 30));
    }
    const text = await this.value("document.body.innerText").catch(() => "");
    throw new Error(`waited ${PATIENCE / 1000} s for ${what}; the page says: ${text}; ${this.complaints.join("; ")}`);
  }

  // Picks files as a person does in the dialog of an input.
  async pick(selector, files) {
    const { root } = await this.send("DOM.getDocument");
    const { nodeId } = await this.send("DOM.querySelector", { nodeId: root.nodeId, selector });
    await this.send("DOM.setFileInputFiles", { nodeId, files });
  }

  // Drops files on the page.
  async drop(files) {
    const data = { items: [], files, dragOperationsMask: 1 };
    for (const type of ["dragEnter", "dragOver", "drop"]) {
      await this.send("Input.dispatchDragEvent", { type, x: 200, y: 300, data });
    }
  }

  // Presses a key, as Tab, ArrowRight or Enter.
  async press(key) {
    const text = key === "Enter" ? "\r" : undefined;
    await this.send("Input.dispatchKeyEvent", { type: "keyDown", key, code: key, text, windowsVirtualKeyCode: CODES[key] });
    await this.send("Input.dispatchKeyEvent", { type: "keyUp", key, code: key, windowsVirtualKeyCode: CODES[key] });
  }

  // A window of some size in CSS pixels, light or dark.
  async dress({ width, height, scale = 1, scheme }) {
    const mobile = width < 640;
    await this.send("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: scale, mobile });
    await this.send("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }] });
  }

  // A picture of the window.
  async screenshot(file) {
    const { data } = await this.send("Page.captureScreenshot", { format: "png" });
    await writeFile(file, Buffer.from(data, "base64"));
  }

  async close() {
    const ended = new Promise((resolve) => this.#process.once("exit", resolve));
    this.#send("Browser.close").catch(() => {});
    await ended;
  }
}

const CODES = { Tab: 9, Enter: 13, Escape: 27, End: 35, Home: 36, ArrowLeft: 37, ArrowUp: 38, ArrowRight: 39, ArrowDown: 40 };
