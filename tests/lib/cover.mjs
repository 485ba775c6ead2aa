// SPDX-License-Identifier: Apache-2.0
// Loaded before a program (node --import, deno run --preload): notes which methods of @deno/sandbox it calls, with which options,
// whether they returned or threw, and which error classes they threw. Written at the end to the file that NESTBOX_COVERAGE names.
// A method that the package itself calls while one of ours is being entered is not counted.
import fs from "node:fs";
import process from "node:process";
import util from "node:util";

const file = process.env.NESTBOX_COVERAGE;
const methods = {}; // "Type.method": {ok, threw, options: {path: true}}
const errors = {}; // class: {at: true}
let depth = 0;

const entry = (name) => methods[name] ??= { ok: 0, threw: 0, options: {} };

function noteOptions(e, value, path, level) {
  if (value === null || typeof value !== "object" || level > 2) return;
  if (Object.getPrototypeOf(value) !== Object.prototype) return;
  for (const [key, v] of Object.entries(value)) {
    if (v === undefined) continue;
    e.options[path + key] = true;
    noteOptions(e, v, `${path}${key}.`, level + 1);
  }
}

function noteError(name, e) {
  entry(name).threw++;
  for (let c = e?.constructor; c && c !== Object && c.name; c = Object.getPrototypeOf(c)) (errors[c.name] ??= {})[name] = true;
}

// An iterator has returned when its first value has come.
function watchIterator(name, it) {
  const next = it.next.bind(it);
  let told = false;
  const once = (fn) => (v) => {
    if (!told) fn(v);
    told = true;
  };
  it.next = (...args) => {
    const p = next(...args);
    p.then(once(() => entry(name).ok++), once((e) => noteError(name, e)));
    return p;
  };
  return it;
}

function finish(name, result, count) {
  if (result?.constructor?.name === "PaginatedListImpl") wrapPrototype("PaginatedList", Object.getPrototypeOf(result));
  if (name.endsWith(".deploy") && typeof result?.logs === "function") wrapBuild(result);
  if (result instanceof Promise) {
    result.then((v) => {
      if (count) entry(name).ok++;
      finish(name, v, false);
    }, (e) => count && noteError(name, e));
  } else if (count && typeof result?.next === "function" && result[Symbol.asyncIterator]) {
    watchIterator(name, result);
  } else if (count) {
    entry(name).ok++;
  }
}

function wrapFunction(name, fn) {
  return function (...args) {
    const count = depth === 0;
    if (count && name.startsWith("SandboxCommandBuilder.")) entry("Sandbox.sh").ok++; // sh is a property of each instance
    if (count) for (const a of args) noteOptions(entry(name), a, "", 0);
    depth++;
    try {
      const result = fn.apply(this, args);
      finish(name, result, count);
      return result;
    } catch (e) {
      if (count) noteError(name, e);
      throw e;
    } finally {
      depth--;
    }
  };
}

const symbolNames = new Map([
  [Symbol.asyncDispose, "[Symbol.asyncDispose]"],
  [Symbol.asyncIterator, "[Symbol.asyncIterator]"],
  [util.inspect.custom, "[util.inspect.custom]"],
]);
const wrapped = new WeakSet();

function wrapPrototype(type, proto) {
  if (wrapped.has(proto)) return;
  wrapped.add(proto);
  for (const key of Reflect.ownKeys(proto)) {
    const d = Object.getOwnPropertyDescriptor(proto, key);
    const label = typeof key === "symbol" ? symbolNames.get(key) : key;
    if (!label || ["constructor", "prototype", "length", "name"].includes(key) || !d.configurable) continue;
    const name = `${type}.${label}`;
    if (typeof d.value === "function") d.value = wrapFunction(name, d.value);
    else if (d.get) d.get = wrapGetter(name, d.get);
    else continue;
    Object.defineProperty(proto, key, d);
  }
}

function wrapGetter(name, get) {
  return function () {
    if (depth === 0) entry(name).ok++;
    depth++;
    try {
      return get.call(this);
    } finally {
      depth--;
    }
  };
}

function wrapBuild(build) {
  if (wrapped.has(build)) return;
  wrapped.add(build);
  const logs = build.logs, done = Object.getOwnPropertyDescriptor(build, "done");
  Object.defineProperty(build, "logs", { value: wrapFunction("Build.logs", logs) });
  Object.defineProperty(build, "done", { configurable: true, get: wrapFunction("Build.done", done.get) });
}

if (file) {
  const home = import.meta.resolve("@deno/sandbox");
  const load = (name) => import(new URL(name, home).href);
  const sdk = await import("@deno/sandbox");
  for (const type of ["Sandbox", "VsCode", "ChildProcess", "DenoProcess", "DenoRepl", "FsFile", "KillController", "KillSignal", "Volume", "Snapshot"]) {
    wrapPrototype(type, sdk[type].prototype);
    wrapPrototype(type, sdk[type]);
  }
  const client = new sdk.Client({ token: "ddo_x", apiEndpoint: "http://127.0.0.1:1" });
  for (const [type, of] of Object.entries({
    Apps: client.apps, Layers: client.layers, Revisions: client.revisions, Timelines: client.timelines, Volumes: client.volumes,
    Snapshots: client.snapshots, Sandboxes: client.sandboxes,
  })) wrapPrototype(type, Object.getPrototypeOf(of));
  wrapPrototype("Client", sdk.Client.prototype);
  wrapPrototype("SandboxFs", (await load("fs.js")).SandboxFsImpl.prototype);
  wrapPrototype("SandboxEnv", (await load("env.js")).SandboxEnvImpl.prototype);
  wrapPrototype("SandboxDeno", (await load("deno.js")).SandboxDenoImpl.prototype);
  const shell = await load("command/mod.js");
  for (const type of ["SandboxCommandBuilder", "SandboxCommandChild"]) wrapPrototype(type, shell[type].prototype);
  process.on("exit", () => fs.writeFileSync(file, JSON.stringify({ methods, errors })));
}
