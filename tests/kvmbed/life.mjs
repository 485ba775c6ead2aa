// SPDX-License-Identifier: Apache-2.0
// A sandbox's life through nginx and the client, short enough for a machine that emulates hardware virtualization. Prints "ok" and "not ok".
import { Sandbox } from "@deno/sandbox";

let bad = 0;
async function step(name, fn) {
  const t = Date.now();
  try {
    await fn();
    console.log(`ok ${name} (${Date.now() - t} ms)`);
  } catch (e) {
    bad++;
    console.log(`not ok ${name} (${Date.now() - t} ms)\n${e?.stack ?? e}`);
  }
}
const equal = (is, wanted) => {
  if (is !== wanted) throw new Error(`${JSON.stringify(is)}, wanted ${JSON.stringify(wanted)}`);
};

let sandbox, second;
await step("create", async () => {
  sandbox = await Sandbox.create({ env: { GREETING: "hello" }, labels: { where: "bed" } });
});
if (sandbox) {
  await step("a command, its environment and its status", async () => {
    equal(await sandbox.sh`echo $GREETING; exit 0`.text(), "hello\n");
    equal((await sandbox.sh`exit 7`.noThrow()).status.code, 7);
  });
  await step("files", async () => {
    const bytes = new Uint8Array(3_000_000).map((_, i) => i * 31);
    await sandbox.fs.writeFile("big", bytes);
    const back = await sandbox.fs.readFile("big");
    equal(back.length, bytes.length);
    if (!back.every((b, i) => b === bytes[i])) throw new Error("the file came back different");
  });
  await step("a process, its input and its end", async () => {
    const child = await sandbox.spawn("cat", { stdin: "piped", stdout: "piped" });
    const writer = child.stdin.getWriter();
    await writer.write(new TextEncoder().encode("through a pipe"));
    await writer.close();
    equal(await new Response(child.stdout).text(), "through a pipe");
    equal((await child.status).success, true);
  });
  await step("a server and its preview", async () => {
    await sandbox.fs.writeTextFile("index.html", "from the machine");
    await sandbox.spawn("python3", { args: ["-m", "http.server", "8000"], stdout: "null", stderr: "null" });
    await sandbox.sh`until curl -s localhost:8000 >/dev/null; do sleep 0.2; done`;
    const url = await sandbox.exposeHttp({ port: 8000 });
    equal(await (await fetch(new URL("index.html", url))).text(), "from the machine");
  });
  await step("a second sandbox beside it", async () => {
    second = await Sandbox.create();
    equal(await second.sh`cat big 2>/dev/null || echo nothing`.text(), "nothing\n");
    await second.kill();
  });
  await step("connect by another client, and kill", async () => {
    const other = await Sandbox.connect({ id: sandbox.id });
    equal(await other.fs.readTextFile("index.html"), "from the machine");
    await sandbox.kill();
    await other.closed;
  });
}
process.exit(bad ? 1 : 0);
