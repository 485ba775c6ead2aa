// SPDX-License-Identifier: Apache-2.0
// exposeVscode. Details are tried with a stand-in for code-server, put where the real one would be: it takes the same options, installs
// "extensions" into a file, and serves what it was started with. The real one is tried by sdk/readme.
import { inspect } from "node:util";
import { alone, assert, done, rejection, Sandbox, skip, test } from "./lib.mjs";

const standIn = `#!/usr/bin/env node
const fs = require("node:fs"), at = process.argv.indexOf("--install-extension");
if (at > 0) {
  fs.appendFileSync("/tmp/extensions", process.argv[at + 1] + "\\n");
  if (process.argv[at + 1] === "no.such") console.error("there is no\\nsuch extension");
  process.exit(process.argv[at + 1] === "no.such" ? 3 : 0);
}
const [host, port] = process.argv[process.argv.indexOf("--bind-addr") + 1].split(":");
const settings = process.env.HOME + "/.local/share/code-server/User/settings.json";
require("node:http").createServer((req, res) => res.end(JSON.stringify({ args: process.argv.slice(2), cwd: process.cwd(), a: process.env.A,
  leak: process.env.NESTBOX_VSCODE_SETTINGS, settings: JSON.parse(fs.readFileSync(settings)),
  extensions: fs.readFileSync("/tmp/extensions", "utf8") }))).listen(Number(port), host, () => console.log("up"));
`;

let sandbox;
await test("without code-server it says how to get it", async () => {
  if (alone) skip("needs a machine of its own");
  sandbox = await Sandbox.create();
  if (await sandbox.sh`command -v code-server || true`.text()) skip("the image has code-server");
  assert.match((await rejection(sandbox.exposeVscode())).message, /bootstrap image --with code-server/);
});

await test("with it: settings, extensions and environment are there, its page is served, it can be killed", async () => {
  if (alone) skip("needs a machine of its own");
  await sandbox.fs.writeTextFile("stand-in", standIn);
  await sandbox.fs.mkdir("work");
  assert.equal((await sandbox.sh`sudo install -m 755 stand-in /usr/local/bin/code-server`).status.code, 0);
  const v = await sandbox.exposeVscode("/home/app/work", { env: { A: "1" }, extensions: ["a.b", "c.d"], editorSettings: { "editor.tabSize": 3 } });
  const got = await (await fetch(v.url)).json();
  assert.equal(got.args.at(-1), "/home/app/work");
  assert.deepEqual([got.cwd, got.a, got.leak, got.extensions], ["/home/app/work", "1", undefined, "a.b\nc.d\n"]);
  assert.deepEqual(got.settings, { "editor.tabSize": 3 });
  assert.ok(inspect(v).includes(v.url));
  await v.kill();
  assert.equal((await v.status).signal, "SIGTERM");
  assert.equal(await new Response(v.stdout).text(), "up\n");
  assert.equal(await new Response(v.stderr).text(), "");
});

await test("it ends with its block", async () => {
  if (alone) skip("needs a machine of its own");
  let status;
  {
    await using v = await sandbox.exposeVscode();
    status = v.status;
  }
  assert.equal((await status).signal, "SIGTERM");
});

await test("one that does not come up is an error, not a wait", async () => {
  if (alone) skip("needs a machine of its own");
  assert.match((await rejection(sandbox.exposeVscode("/home/app", { extensions: ["no.such"] }))).message, /ended before it listened .*: such extension$/);
  assert.match((await rejection(sandbox.exposeVscode("/nowhere"))).message, /cwd|No such/);
  await sandbox.close();
});

await done();
