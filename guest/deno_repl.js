// SPDX-License-Identifier: Apache-2.0
// Runs inside the Deno process of a REPL. Requests come as JSON lines on descriptor 3: {id, op: "eval", code} and {id, op: "call",
// fn, args}; answers go to descriptor 4: "<id> ok <json>", "<id> none" (nothing) or "<id> error <json>". The code is
// evaluated by V8's own REPL mode (what is declared stays, may be declared again, top-level await). The end of 3 ends
// the process; after {op: "leave"} no request comes any more, and it ends when nothing keeps it.
import inspector from "node:inspector";
import module from "node:module";

const AsyncFunction = (async () => {}).constructor;
const here = new URL("./", import.meta.url).href;
const session = new inspector.Session();
session.connect();

const post = (method, params) =>
  new Promise((resolve, reject) => session.post(method, params, (e, r) => e ? reject(new Error(e.message)) : resolve(r)));

// --- values -------------------------------------------------------------------------------------------------------

const DEPTH_MAX = 200;

function toWire(v, seen = new Set(), depth = 0) {
  switch (typeof v) {
    case "bigint":
      return v.toString();
    case "function":
    case "symbol":
      return undefined;
    case "object":
      break;
    default:
      return v;
  }
  if (v === null) return null;
  if (seen.has(v)) throw new TypeError("The value refers to itself and cannot be sent");
  if (depth > DEPTH_MAX) throw new RangeError("The value is nested too deeply to be sent");
  seen.add(v);
  try {
    return objectToWire(v, (x) => toWire(x, seen, depth + 1));
  } finally {
    seen.delete(v);
  }
}

const base64 = (bytes) => {
  let s = "";
  for (let i = 0; i < bytes.length; i += 0x8000) s += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(s);
};

function objectToWire(v, wire) {
  const item = (x) => wire(x) ?? null;
  if (v instanceof Date) return Number.isNaN(v.getTime()) ? null : v.toISOString();
  if (typeof v.toJSON === "function") return wire(v.toJSON());
  if (Array.isArray(v)) return Array.from(v, item);
  if (v instanceof Map) return Array.from(v, ([k, x]) => [item(k), item(x)]);
  if (v instanceof Set) return Array.from(v, item);
  if (v instanceof ArrayBuffer) return base64(new Uint8Array(v));
  if (v instanceof Uint8Array) return base64(v);
  if (ArrayBuffer.isView(v) && !(v instanceof DataView)) return Array.from(v, item);
  if (v instanceof RegExp) return { source: v.source, flags: v.flags };
  if (v instanceof Number || v instanceof String || v instanceof Boolean) return v.valueOf();
  const out = {};
  if (v instanceof Error) Object.assign(out, { name: v.name, message: v.message, stack: trim(v.stack) });
  for (const key of Object.keys(v)) {
    const x = wire(v[key]);
    if (x !== undefined) Object.defineProperty(out, key, { value: x, enumerable: true, configurable: true, writable: true });
  }
  return out;
}

// --- errors -------------------------------------------------------------------------------------------------------

// Frames of this program say nothing to the user.
function trim(stack) {
  if (typeof stack !== "string") return null;
  const lines = stack.split("\n");
  const end = lines.findIndex((l) => /^\s+at .*(ext:deno_node\/inspector|\$deno\$eval)/.test(l));
  return (end < 0 ? lines : lines.slice(0, end)).join("\n");
}

function errorToWire(e, depth = 0) {
  if (!(e instanceof Error)) {
    let text;
    try {
      text = String(e);
    } catch {
      text = "?";
    }
    e = new Error(`Unable to serialize error value as error: ${text}`);
    e.stack = `Error: ${e.message}`;
  }
  const inner = (x) => x instanceof Error && depth < 8 ? errorToWire(x, depth + 1) : null;
  return {
    constructorName: String(e.constructor?.name ?? "Error"),
    message: String(e.message),
    code: typeof e.code === "string" ? e.code : null,
    stack: trim(e.stack),
    name: typeof e.name === "string" ? e.name : null,
    cause: inner(e.cause),
    errors: Array.isArray(e.errors) && e.errors.every((x) => x instanceof Error) && depth < 8
      ? e.errors.map((x) => errorToWire(x, depth + 1))
      : null,
    suppressed: inner(e.suppressed),
    error: inner(e.error),
  };
}

// --- code ---------------------------------------------------------------------------------------------------------

function parses(code) {
  try {
    new AsyncFunction(code);
    return true;
  } catch (e) {
    if (e instanceof SyntaxError) return false;
    throw e;
  }
}

const absolute = (specifier) => /^\.{0,2}\//.test(specifier) ? new URL(specifier, here).href : specifier;

// `import` declarations become what they mean: constants of a dynamic import.
function importClause(clause, specifier, attributes) {
  const load = `await import(${JSON.stringify(absolute(specifier))}${attributes ? `, { with: ${attributes} }` : ""})`;
  const parts = /^(?:([\w$]+)\s*,?\s*)?(?:\*\s*as\s+([\w$]+)|\{([^}]*)\})?$/.exec(clause.trim());
  if (!parts) return null;
  const [, byDefault, all, names] = parts;
  const picks = (names ?? "").split(",").map((n) => n.trim()).filter((n) => n && !/^type\s/.test(n))
    .map((n) => n.replace(/\s+as\s+/, ": "));
  if (byDefault) picks.unshift(`default: ${byDefault}`);
  if (all) return `const ${all} = ${load};` + (byDefault ? ` const ${byDefault} = ${all}.default;` : "");
  return picks.length ? `const { ${picks.join(", ")} } = ${load};` : `${load};`;
}

const WITH = String.raw`(?:\s*with\s*(\{[^}]*\}))?\s*;?`;
const IMPORT_FROM = new RegExp(String.raw`^([ \t]*)import\s+(type\s+)?([\w$\s{},*]+?)\s*from\s*(["'])([^"'\n]+)\4${WITH}`, "gm");
const IMPORT_ONLY = new RegExp(String.raw`^([ \t]*)import\s*(["'])([^"'\n]+)\2${WITH}`, "gm");

function lowerImports(code) {
  return code
    .replace(IMPORT_FROM, (whole, space, type, clause, _q, from, attributes) =>
      type ? "" : space + (importClause(clause, from, attributes) ?? whole))
    .replace(IMPORT_ONLY, (_whole, space, _q, from, attributes) => space + importClause("", from, attributes));
}

function stripTypes(code) {
  const warn = process_emitWarning();
  try {
    return module.stripTypeScriptTypes(code, { mode: "transform" });
  } catch {
    return code;
  } finally {
    warn();
  }
}

// stripTypeScriptTypes() says once that it is experimental; that isn't the user's business.
function process_emitWarning() {
  const process = globalThis.process, old = process?.emitWarning;
  if (process) process.emitWarning = () => {};
  return () => {
    if (process) process.emitWarning = old;
  };
}

// An object literal is a value here, not a block.
const asValue = (code) => /^\s*\{/.test(code) && !/;\s*$/.test(code) && parses(`return (${code}\n)`) ? `(${code}\n)` : code;

function prepare(code) {
  // There is no referrer in evaluated code; relative specifiers start at the working directory.
  code = code.replace(/\bimport\s*\(\s*(["'])(\.{1,2}\/[^"'\n]*)\1/g, (_w, q, s) => `import(${q}${absolute(s)}${q}`);
  let out = asValue(code);
  if (parses(out)) return out;
  out = lowerImports(code);
  if (parses(out)) return out;
  const js = asValue(stripTypes(out));
  return parses(js) ? js : code;
}

// --- evaluation ---------------------------------------------------------------------------------------------------

const values = new Map(); // request id: the value that V8 handed over
const SINK = Symbol("sink");
globalThis[SINK] = (id, v) => values.set(id, v);
const sinkRef = new Promise((resolve, reject) => {
  globalThis.__nestboxSink = globalThis[SINK];
  session.post("Runtime.evaluate", { expression: "globalThis.__nestboxSink" }, (e, r) => e ? reject(e) : resolve(r.result.objectId));
  delete globalThis.__nestboxSink;
  delete globalThis[SINK];
});

const unserializable = { NaN: NaN, Infinity: Infinity, "-Infinity": -Infinity, "-0": -0 };

async function fetchValue(remote, id) {
  if (remote.objectId === undefined) {
    if (remote.unserializableValue === undefined) return remote.value;
    return remote.unserializableValue in unserializable
      ? unserializable[remote.unserializableValue]
      : BigInt(remote.unserializableValue.slice(0, -1));
  }
  await post("Runtime.callFunctionOn", {
    objectId: remote.objectId,
    functionDeclaration: "function (id, sink) { sink(id, this); }",
    arguments: [{ value: id }, { objectId: await sinkRef }],
  });
  const v = values.get(id);
  values.delete(id);
  return v;
}

class Thrown {
  constructor(value) {
    this.value = value;
  }
}

async function evaluate(code, id) {
  const objectGroup = `request-${id}`;
  try {
    // Deno panics when a program exits inside the inspector's own call; after an await it is outside.
    const r = await post("Runtime.evaluate", {
      expression: `void await 0; ${code}`,
      objectGroup,
      replMode: true,
      awaitPromise: true,
      userGesture: true,
    });
    if (r.exceptionDetails) {
      const e = r.exceptionDetails.exception;
      throw new Thrown(e ? await fetchValue(e, id) : new Error(r.exceptionDetails.text));
    }
    return await fetchValue(r.result, id);
  } finally {
    session.post("Runtime.releaseObjectGroup", { objectGroup }, () => {});
  }
}

async function call(request) {
  const code = `(${request.fn}\n)`;
  const js = parses(`return ${code}`) ? code : stripTypes(code).trim().replace(/;$/, "");
  const fn = await evaluate(js, request.id);
  if (typeof fn !== "function") throw new Thrown(new TypeError(`${request.fn} is not a function`));
  try {
    return await fn(...request.args);
  } catch (e) {
    throw new Thrown(e);
  }
}

const encoder = new TextEncoder();
let output = Promise.resolve();

function answer(line) {
  output = output.then(async () => {
    const bytes = encoder.encode(line + "\n");
    for (let at = 0; at < bytes.length;) at += await out.write(bytes.subarray(at));
  });
}

let left = false;

async function handle(request) {
  if (request.op === "leave") return left = true;
  try {
    const value = request.op === "call" ? await call(request) : await evaluate(prepare(request.code), request.id);
    const json = JSON.stringify(toWire(value));
    answer(json === undefined ? `${request.id} none` : `${request.id} ok ${json}`);
  } catch (e) {
    answer(`${request.id} error ${JSON.stringify(errorToWire(e instanceof Thrown ? e.value : e))}`);
  }
}

const input = await Deno.open("/proc/self/fd/3", { read: true });
const out = await Deno.open("/proc/self/fd/4", { write: true });
await sinkRef;
// A rejected promise that nobody waits for is the user's to see, not the end of the session.
globalThis.addEventListener("unhandledrejection", (event) => {
  event.preventDefault();
  console.error("Uncaught (in promise)", event.reason);
});

(async () => {
  const decoder = new TextDecoder();
  const chunk = new Uint8Array(65536);
  let pending = [];
  while (!left) {
    const n = await input.read(chunk);
    if (n === null) Deno.exit(0);
    const lines = decoder.decode(chunk.subarray(0, n), { stream: true }).split("\n");
    pending.push(lines[0]);
    for (const next of lines.slice(1)) {
      handle(JSON.parse(pending.join("")));
      pending = [next];
    }
  }
})();
