// SPDX-License-Identifier: Apache-2.0
// Node only: frames made by hand. What no SDK would send: every case ends in its close code, and others are not disturbed.
import { alone, assert, done, Sandbox, sessionPid, test, until } from "./lib.mjs";
import { readFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";
import { once } from "node:events";
import WebSocket from "ws";

const sandbox = await Sandbox.create();
const endpoint = new URL(process.env.DENO_SANDBOX_ENDPOINT);

/** A socket after the upgrade to this sandbox. */
function connect() {
  return new Promise((resolve, reject) => {
    const req = (endpoint.protocol === "https:" ? https : http).request(
      new URL(`/api/v3/sandbox/${sandbox.id}/connect`, endpoint),
      {
        headers: {
          connection: "Upgrade",
          upgrade: "websocket",
          "sec-websocket-version": "13",
          "sec-websocket-key": Buffer.from("0123456789abcdef").toString("base64"),
          authorization: `Bearer ${process.env.DENO_DEPLOY_TOKEN}`,
        },
      },
    );
    req.on("upgrade", (_res, socket, head) => {
      socket.on("error", () => {});
      if (head.length) socket.unshift(head);
      resolve(socket);
    });
    req.on("response", (res) => reject(new Error(`status ${res.statusCode}`)));
    req.on("error", reject);
    req.end();
  });
}

function frame(first, data, { masked = true } = {}) {
  const payload = Buffer.from(data);
  const head = payload.length < 126
    ? Buffer.from([first, payload.length])
    : payload.length < 65536
    ? Buffer.from([first, 126, payload.length >> 8, payload.length & 255])
    : Buffer.concat([Buffer.from([first, 127]), (() => {
      const b = Buffer.alloc(8);
      b.writeBigUInt64BE(BigInt(payload.length));
      return b;
    })()]);
  if (!masked) return Buffer.concat([head, payload]);
  head[1] |= 0x80;
  const mask = Buffer.from([9, 8, 7, 6]);
  return Buffer.concat([head, mask, payload.map((b, i) => b ^ mask[i & 3])]);
}

/** All that comes until the end of the connection. */
async function rest(socket) {
  const chunks = [];
  socket.on("data", (d) => chunks.push(d));
  await Promise.race([once(socket, "end"), once(socket, "close")]);
  socket.end();
  return Buffer.concat(chunks);
}

/** The status of the first close frame in bytes. */
function closeStatus(bytes) {
  for (let at = 0; at + 2 <= bytes.length;) {
    let n = bytes[at + 1] & 127, head = 2;
    if (n === 126) (n = bytes.readUInt16BE(at + 2)), (head = 4);
    else if (n === 127) (n = Number(bytes.readBigUInt64BE(at + 2))), (head = 10);
    if (bytes[at] === 0x88) return n >= 2 ? bytes.readUInt16BE(at + head) : 1005;
    at += head + n;
  }
  return 0;
}

async function refused(name, status, ...bytes) {
  await test(name, async () => {
    const socket = await connect();
    for (const b of bytes) socket.write(b);
    assert.equal(closeStatus(await rest(socket)), status);
    assert.equal(await sandbox.sh`echo still here`.text(), "still here\n");
  });
}

const call = (method, params, id = 1) => JSON.stringify({ jsonrpc: "2.0", id, method, params });

await refused("an unmasked frame", 1002, frame(0x81, "ping", { masked: false }));
await refused("a reserved bit", 1002, frame(0xc1, "ping"));
await refused("a reserved opcode", 1002, frame(0x83, "x"));
await refused("a binary frame", 1003, frame(0x82, "ping"));
await refused("a continuation of nothing", 1002, frame(0x80, "x"));
await refused("a long ping", 1002, frame(0x89, "x".repeat(126)));
await refused("a frame that says 2^62 bytes", 1009, Buffer.from([0x81, 0xff, 0x40, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]));
await refused("not UTF-8", 1007, frame(0x81, Buffer.from([0x22, 0xff, 0x22])));
await refused("fragments for ever", 1008, frame(0x01, ""), ...Array.from({ length: 20000 }, () => frame(0x00, "")));
await refused("not JSON", 4000, frame(0x81, "{"));
await refused("JSON nested 100,000 deep", 4000, frame(0x81, call("envGet", null).replace("null", "[".repeat(1e5) + "]".repeat(1e5))));
await refused("not JSON-RPC", 4001, frame(0x81, '{"hello":1}'));
await refused("a close frame is answered", 1000, frame(0x88, Buffer.from([0x03, 0xe8])));

// Tens of megabytes lie between the first entry and the bottom: more than fits between a client that does not read and the walk.
if (alone) await test("a walk gives its first entries before its end, and is no further than its client has room", async () => {
  const top = (await sandbox.sh`mktemp -d`.text()).trim(), level = "l".repeat(250);
  await sandbox.sh`cd ${top} && for i in $(seq 13); do mkdir ${level} && cd ${level} && if [ $i -gt 5 ]; then for j in $(seq 2000); do : > $j; done; fi; done`;
  const socket = new WebSocket(new URL(`/api/v3/sandbox/${sandbox.id}/connect`, endpoint));
  const entries = [];
  let ended;
  const end = new Promise((resolve) => ended = resolve);
  socket.on("message", (data) => {
    const { method, params } = JSON.parse(data);
    if (method === "$sandbox.stream.end") ended();
    if (method !== "$sandbox.stream.enqueue") return;
    if (entries.push(JSON.parse(Buffer.from(params.data, "base64"))) > 1) return;
    socket.pause();
    sandbox.fs.writeTextFile(`${top}/${`${level}/`.repeat(13)}late`, "").finally(() => socket.resume());
  });
  await once(socket, "open");
  socket.send(call("walk", { path: top }));
  await end;
  socket.close();
  const names = entries.map((e) => e.name);
  assert.equal(names.length, 14 + 8 * 2000 + 1);
  assert.ok(names.includes("late"));
  await sandbox.sh`rm -rf ${top}`;
});

await test("unknown method and bad parameters are answers", async () => {
  const socket = await connect();
  for (const [i, [method, params]] of [["nope", {}], ["spawn", { command: 5 }], ["spawn", { command: ["a"], stdout: "null", stderr: "null" }],
    ["processWait", { pid: -1 }], ["envSet", { key: "A", value: 5 }], ["exposeHttp", { domain: "x", port: 70000 }]].entries())
    socket.write(frame(0x81, call(method, params, i)));
  socket.write(frame(0x88, Buffer.from([0x03, 0xe8])));
  const answers = (await rest(socket)).toString("latin1");
  assert.match(answers, /"id":0,"error":\{"code":-32601/);
  for (let i = 1; i < 6; i++) assert.match(answers, new RegExp(`"id":${i},"error":\\{"code":-32602`));
});

await test("several clients wait for one child, during and after", async () => {
  const child = await sandbox.spawn("bash", { args: ["-c", "read; exit 5"], stdin: "piped", stdout: "null", stderr: "null" });
  const wait = (id) => frame(0x81, call("processWait", { pid: child.pid }, id));
  const sockets = await Promise.all([connect(), connect(), connect()]);
  const heard = sockets.map(() => "");
  sockets.forEach((s, i) => s.on("data", (d) => heard[i] += d.toString("latin1")));
  for (const s of sockets.slice(0, 2)) s.write(Buffer.concat([wait(1), wait(2), frame(0x81, call("envGet", { key: "HOME" }, 3))]));
  await until(() => heard[0].includes('"id":3') && heard[1].includes('"id":3'), 30_000);
  assert.ok(!/"id":[12]/.test(heard[0] + heard[1]), "it has not ended yet");
  await child.stdin.close();
  assert.equal((await child.status).code, 5);
  sockets[2].write(wait(4));
  const ended = (id) => `"id":${id},"result":{"ok":{"success":false,"code":5,"signal":null,"oom":null}}`;
  await until(() => [[0, 1], [0, 2], [1, 1], [1, 2], [2, 4]].every(([i, id]) => heard[i].includes(ended(id))), 30_000);
  sockets[2].write(frame(0x81, call("processWait", { pid: 999_999 }, 5)));
  await until(() => /"id":5,"result":\{"error":\{[^}]*"code":"ENOENT"/.test(heard[2]), 30_000);
  for (const s of sockets) s.destroy();
});

await test("a client that never reads stops its own output only", async () => {
  const socket = await connect();
  socket.pause();
  for (let i = 0; i < 4; i++) {
    socket.write(frame(0x81, call("spawn", { command: "bash", args: ["-c", `exec -a nb-never-read-${i} yes`], stdout: "piped", stderr: "null" }, i)));
  }
  for (let i = 0; i < 2000; i++) socket.write(frame(0x81, call("envToObject", {}, 100 + i)));
  const running = async () => Number(await sandbox.sh`pgrep -fc '^nb-never-rea[d]' || true`.text());
  await until(async () => (await running()) === 4);
  // They stand still: what they wrote so far no longer grows.
  const written = async () =>
    await sandbox.sh`for p in $(pgrep -f '^nb-never-rea[d]'); do grep wchar /proc/$p/io; done`.text();
  await until(async () => {
    const before = await written();
    await sandbox.sh`true`;
    return before !== "" && before === (await written());
  }, 30_000);
  if (alone && !process.env.NESTBOX_SANITIZER) {
    const kib = Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${sessionPid}/status`, "utf8"))[1]);
    assert.ok(kib < 100 * 1024, `${kib} KiB`);
  }
  socket.destroy();
  await sandbox.sh`pkill -f '^nb-never-rea[d]'`;
});

await test("100 MB into a child that doesn't read: its client's calls and those of others go on, memory stays small", async () => {
  const socket = await connect();
  let answers = "";
  socket.on("data", (d) => answers = (answers + d.toString("latin1")).slice(-1000));
  socket.write(frame(0x81, JSON.stringify({ jsonrpc: "2.0", method: "$sandbox.stream.start", params: { streamId: 1 } })));
  socket.write(frame(0x81, call("spawn", { command: "sleep", args: ["600.125"], stdinStreamId: 1, stdout: "null", stderr: "null" })));
  const chunk = frame(0x81, JSON.stringify({
    jsonrpc: "2.0",
    method: "$sandbox.stream.enqueue",
    params: { streamId: 1, data: Buffer.alloc(1 << 20).toString("base64") },
  }));
  for (let sent = 0; sent < 100; sent++) if (!socket.write(chunk)) await once(socket, "drain");
  socket.write(frame(0x81, call("envGet", { key: "HOME" }, 77)));
  await until(() => /"id":77,"result"/.test(answers), 60_000);
  assert.equal(await sandbox.sh`echo fine`.text(), "fine\n");
  if (alone && !process.env.NESTBOX_SANITIZER) {
    const kib = Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${sessionPid}/status`, "utf8"))[1]);
    assert.ok(kib < 200 * 1024, `${kib} KiB`);
  }
  socket.destroy();
  await sandbox.sh`pkill -f 'sleep 600[.]125'`;
}, 120_000);

await test("100 clients that vanish in the middle of a message", async () => {
  for (let i = 0; i < 100; i++) {
    const socket = await connect();
    socket.write(frame(0x81, call("spawn", { command: "true", stdout: "piped", stderr: "piped" })));
    socket.write(frame(0x81, "x".repeat(5000)).subarray(0, 3000));
    socket.destroy();
  }
  assert.equal(await sandbox.sh`echo fine`.text(), "fine\n");
});

await sandbox.close();
await done();
