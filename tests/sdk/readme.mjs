// SPDX-License-Identifier: Apache-2.0
// Every example of the README of the installed package, each as a program of its own, as it is printed there but for the
// substitutions below: what a reader has to bring himself (files, apps, ids) and what is on the internet.
import { spawn } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { Client } from "@deno/sandbox";
import { codeServer, LINK } from "./lib-code-server.mjs";
import { alone, assert, createSlowly, done, isDeno, skip, test } from "./lib.mjs";

if (alone) await test("all of it", () => skip("needs a running system")).then(done);

const home = path.dirname(path.dirname(fileURLToPath(import.meta.resolve("@deno/sandbox"))));
const blocks = [];
let heading = "";
for (const m of fs.readFileSync(path.join(home, "README.md"), "utf8").matchAll(/^#+ ([^\n]*)$|^```(\w+)\n(.*?)^```$/gms)) {
  if (m[1]) heading = m[1].replaceAll("`", "");
  else if (m[2] === "ts" || m[2] === "js") blocks.push({ heading, extension: m[2], code: m[3], n: blocks.filter((b) => b.heading === heading).length });
}

const tag = Math.random().toString(36).slice(2, 8);
const client = new Client();
const region = process.env.NESTBOX_REGION ?? "ord";
const CREATED = "await using sandbox = await Sandbox.create();\n";

// By heading: what is replaced (each must be there), what the program must print, or why it cannot run here.
const apps = {};
let vscode;
const about = {
  "Evaluate a JS snippet": { prints: /^result: 3$/m },
  "Spawn a subprocess, and get buffered output": { prints: /^result: \/home\// },
  "Create a package.json, install deps, run a web framework (Express), and expose it publicly": {
    // There is no registry: a module with the three calls of Express that the example makes takes its place.
    replace: [["await sandbox.sh`deno install`;", `await sandbox.fs.mkdir("node_modules/express", { recursive: true });
await sandbox.fs.writeTextFile("node_modules/express/package.json", JSON.stringify({ name: "express", version: "4.19.2", type: "module", exports: "./index.js" }));
await sandbox.fs.writeTextFile("node_modules/express/index.js", \`import http from "node:http";
export default () => {
  const routes = {};
  return {
    get: (path, f) => routes[path] = f,
    listen: (port, f) => http.createServer((req, res) => routes[req.url]?.(req, Object.assign(res, { send: (s) => res.end(s), json: (v) => res.end(JSON.stringify(v)) }))).listen(port, f),
  };
};\`);`], ["// 4)", "await server.httpReady;\n// 4)"]],
    prints: /^Public URL: https:.*\n(.*\n)*\{ now: "?'?\d{4}-/m,
  },
  "Get SSH access to the sandbox": { replace: [["10 * 60 * 1000", "1000"]], prints: /^ssh .+@.+$/m },
  "Interactive JavaScript REPL": { prints: /^result: 50$/m },
  "VSCode browser instance": { // the image has no code-server, and somebody must end it
    before: async () => (vscode = await codeServer()),
    replace: [["Sandbox.create()", () => `Sandbox.create(${JSON.stringify(vscode.options)})`], ["// Start", `await sandbox.sh\`${LINK}\`;\n// Start`],
      ["await vscode.status;", `const page = await fetch(vscode.url), html = await page.text();
const socket = new WebSocket(vscode.url.replace(/^http/, "ws") + "/?reconnectionToken=" + crypto.randomUUID() + "&reconnection=false&skipWebSocketFrames=false");
await new Promise((yes, no) => { socket.onopen = yes; socket.onerror = (e) => no(new Error("no WebSocket: " + e.message)); });
socket.close();
console.log("answers", page.status, html.includes("vscode-workbench-web-configuration"));
await vscode.kill();
await vscode.status;`]],
    prints: /^https:.*\nanswers 200 true$/m,
    after: () => vscode.remove(),
  },
  "Template literal commands with variable interpolation": {
    replace: [["await sandbox.sh`rm ", "await sandbox.sh`touch ${files}`;\nawait sandbox.sh`rm "]],
    prints: /^42$/m,
  },
  "Error handling with noThrow()": { prints: /Command failed:[^]*^Exit code: 1\nSuccess: false$/m },
  // Nothing is cancelled: text() starts from an empty state and forgets the signal, so the command runs to its end.
  "Command cancellation": { replace: [["sleep 30", "sleep 5"]], prints: /^$/ },
  "Access both string and binary output": {
    replace: [[CREATED, `${CREATED}await sandbox.sh\`head -c 3000 /dev/urandom > binary-file.png\`;\n`]],
    prints: /^Binary length: 3000\nText length: \d+$/m,
    leaves: (dir) => assert.equal(fs.statSync(path.join(dir, "output.png")).size, 3000),
  },
  "Error handling with custom error class": { prints: /^Exit code: 42\nError message: Command failed with exit code 42/m },
  "Set environment variables": { prints: /^API_KEY: secret-key-123$/m },
  "Stream command output to local file": {
    prints: /^done: \{[^]*success: true/m,
    leaves: (dir) => assert.equal(fs.statSync(path.join(dir, "big-local-copy.txt")).size, 5_000_000),
  },
  "Upload local files or directories": {},
  "Control sandbox timeout": { prints: [undefined, /^Still alive!$/m] },
  "Configure sandbox memory": { prints: [undefined, /^Total memory: [34]\d{9}$/m] },
  "Restrict outbound network access": { skip: "reaches a host on the internet; the rules themselves: it/test_egress, sdk/sandbox" },
  "Creating App": { replace: [["my-app-from-sdk", `readme-${tag}`]], prints: new RegExp(`slug: ['"]readme-${tag}['"]`) },
  "Listing apps": { prints: new RegExp(`slug: ['"]readme-${tag}`) },
  "Retrieving an app": { replace: [["my-app-from-sdk", `readme-${tag}`]] },
  "Updating app info": { replace: [["bec265c1-ed8e-4a7e-ad24-e2465b93be88", () => apps.first.id], ["my-cool-app", `readme-new-${tag}`]] },
  "Deleting an app": { replace: [["legacy-chaotic-app", () => apps.second.slug], ["bec265c1-ed8e-4a7e-ad24-e2465b93be88", () => apps.first.id]] },
  "In which region are my sandboxes running?": { replace: [['"ams"', JSON.stringify(region)]] },
};

const work = fs.mkdtempSync(path.join(os.tmpdir(), "nb-readme-"));
fs.writeFileSync(path.join(work, "package.json"), `{ "type": "module" }`);
fs.symlinkSync(fileURLToPath(new URL("../node_modules", import.meta.url)), path.join(work, "node_modules"));
fs.writeFileSync(path.join(work, "README.md"), "# mine\n");
fs.mkdirSync(path.join(work, "my-project/sub"), { recursive: true });
fs.writeFileSync(path.join(work, "my-project/sub/a.txt"), "a");

function run(file) {
  const args = isDeno ? ["run", "--quiet", "--allow-all", "--no-lock", file] : ["--disable-warning=ExperimentalWarning", file];
  const { NESTBOX_COVERAGE: _, ...env } = process.env;
  const child = spawn(process.execPath, args, { cwd: work, env: { ...env, NO_COLOR: "1" }, stdio: ["ignore", "pipe", "pipe"] });
  let out = "";
  child.stdout.on("data", (d) => out += d);
  child.stderr.on("data", (d) => out += d);
  return new Promise((resolve) => child.on("close", (code) => resolve({ code, out })));
}

async function example(block, i) {
  const rule = about[block.heading] ?? {};
  if (rule.skip) skip(rule.skip);
  await rule.before?.();
  let code = block.code;
  for (const [from, to] of rule.replace ?? []) {
    assert.ok(code.includes(from), `${JSON.stringify(from)} is not in the example any more`);
    code = code.replaceAll(from, typeof to === "function" ? to() : to);
  }
  const file = path.join(work, `example-${i}.${block.extension}`);
  fs.writeFileSync(file, code);
  const { code: status, out } = await run(file);
  if (out.includes("NOT_SUPPORTED")) skip("the host has no such service");
  assert.equal(status, 0, out);
  const prints = Array.isArray(rule.prints) ? rule.prints[block.n] : rule.prints;
  if (prints) assert.match(out, prints);
  rule.leaves?.(work);
  await rule.after?.();
}

await test("the README has examples, and all that is said about one is about one that is there", () => {
  assert.ok(blocks.length >= 25, `${blocks.length} examples`);
  for (const name of Object.keys(about)) assert.ok(blocks.some((b) => b.heading === name), name);
});
apps.first = await client.apps.create({ slug: `readme-first-${tag}` });
apps.second = await client.apps.create({ slug: `readme-second-${tag}` });

for (const memory of ["1GiB", "4GiB"]) await (await createSlowly({ memory })).kill();

// Those about apps build on each other and come last, in their order.
const title = (b) => `${b.heading}${b.n ? ` (${b.n + 1})` : ""}`;
const isApp = (b) => /apps?\b/i.test(b.heading) && !/framework/.test(b.heading);
const free = blocks.filter((b) => !isApp(b));
await Promise.all([0, 1, 2].map(async () => {
  while (free.length) {
    const block = free.shift();
    await test(title(block), () => example(block, blocks.indexOf(block)), /VSCode/.test(block.heading) ? 800_000 : 150_000);
  }
}));
for (const block of blocks.filter(isApp)) await test(title(block), () => example(block, blocks.indexOf(block)), 60_000);

for (const slug of [`readme-${tag}`, `readme-new-${tag}`, apps.first.id, apps.second.id]) await client.apps.delete(slug).catch(() => {});
fs.rmSync(work, { recursive: true });
await done();
