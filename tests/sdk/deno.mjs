// SPDX-License-Identifier: Apache-2.0
// SandboxDeno: run, httpReady, fetch into the process, watch, repl, eval.
import { alone, assert, done, nodeTest, rejection, Sandbox, skip, sleep, test, text, until } from "./lib.mjs";
import { dirname } from "node:path";
import { createRequire } from "node:module";

const sandbox = await Sandbox.create();
const quiet = { stdout: "piped", stderr: "piped" };
const dir = (await sandbox.sh`mktemp -d`.text()).trim();

if (alone) {
  // On a plain host deno is the npm package's.
  const require = createRequire(import.meta.url);
  const bin = dirname(require.resolve("@deno/linux-x64-glibc/package.json"));
  await sandbox.env.set("PATH", `${bin}:${await sandbox.env.get("PATH")}`);
}

async function run(options) {
  const child = await sandbox.deno.run({ ...quiet, ...options });
  return { child, ...(await child.output()) };
}

await test("run: code, extensions, arguments", async () => {
  const [ts, ...others] = await Promise.all([
    run({ code: "const a: number = 1; console.log(a, Deno.args.join('|'))", scriptArgs: ["x", "--help", "-v", "a b"] }),
    run({ code: "console.log(typeof module)", extension: "cjs" }),
    run({ code: "console.log(import.meta.main)", extension: "mjs" }),
    run({ code: "-1; console.log('dash')", extension: "js" }),
  ]);
  assert.equal(ts.stdoutText, "1 x|--help|-v|a b\n", ts.stderrText);
  assert.deepEqual(others.map((r) => r.stdoutText), ["object\n", "true\n", "dash\n"]);
});

// That all names are passed on: the rest is Deno's, and on an emulated machine its start takes seconds.
if (alone) await test("run: every extension", async () => {
  const h = "const h = (t) => t + '!';", jsx = `/** @jsx h */ ${h} console.log(<b/>)`;
  const code = {
    js: `${h} console.log(h("b"))`, mjs: `${h} console.log(h("b"))`, cjs: `const os = require("node:os"); ${h} console.log(h("b"))`, jsx,
    ts: `const b: string = "b!"; console.log(b)`, mts: `const b: string = "b!"; console.log(b)`,
    cts: `const os = require("node:os"); const b: string = "b!"; console.log(b)`, tsx: jsx.replace("(t)", "(t: string)"),
  };
  const runs = await Promise.all(Object.keys(code).map((extension) => run({ code: code[extension], extension })));
  assert.deepEqual(runs.map((r) => r.stdoutText || r.stderrText), runs.map(() => "b!\n"));
});

await test("run: an entrypoint, cwd, env, exit code, uncaught error", async () => {
  await sandbox.sh`mkdir -p ${dir}/lib; echo 'export const v = 5' > ${dir}/lib/m.ts
    printf '%s\n' 'import { v } from "./lib/m.ts";' 'console.log(v, Deno.cwd(), Deno.env.get("NB_E"), Deno.args);' 'Deno.exit(3)' > ${dir}/main.ts`;
  const r = await run({ entrypoint: "main.ts", cwd: dir, env: { NB_E: "e" }, scriptArgs: ["1"] });
  assert.equal(r.stdoutText, `5 ${dir} e [ "1" ]\n`, r.stderrText);
  assert.equal(r.status.code, 3);
  const bad = await run({ code: "throw new Error('boom')" });
  assert.equal(bad.status.code, 1);
  assert.match(bad.stderrText, /boom/);
});

await nodeTest("run: imports of code are relative to the working directory; long code", async () => {
  const code = "import { v } from './lib/m.ts'; console.log(v);";
  const long = await run({ code: `${code}\n// ${"x".repeat(200_000)}`, cwd: dir });
  assert.equal(long.stdoutText, "5\n", long.stderrText);
  assert.equal(await sandbox.sh`ls -A ${dir} | grep -c '^\.deno' || true`.text(), "0\n");
});

await test("run: stdin", async () => {
  const child = await sandbox.deno.run({
    ...quiet,
    stdin: "piped",
    code: "console.log('got ' + await new Response(Deno.stdin.readable).text())",
  });
  const w = child.stdin.getWriter();
  await w.write(new TextEncoder().encode("input"));
  await w.close();
  assert.equal((await child.output()).stdoutText, "got input\n");
});

await test("httpReady and fetch into the process", async () => {
  const child = await sandbox.deno.run({
    ...quiet,
    code: `const gate = Promise.withResolvers();
    Deno.serve({ port: 0, onListen() {} }, async (req) => {
      const url = new URL(req.url);
      if (url.pathname === "/redirect") return Response.redirect(new URL("/landed", url), 302);
      if (url.pathname === "/stream") {
        let i = 0;
        return new Response(new ReadableStream({ async pull(c) {
          if (i) await gate.promise;
          i < 5 ? c.enqueue(new TextEncoder().encode("part" + i++)) : c.close();
        } }));
      }
      if (url.pathname === "/go") gate.resolve();
      if (url.pathname === "/none") return new Response(null, { status: 204 });
      return Response.json({ url: req.url, method: req.method, body: await req.text(), x: req.headers.get("x-test") },
        { status: 201, statusText: "Made", headers: { "x-back": "yes" } });
    });`,
  });
  assert.equal(await child.httpReady, true);
  const r = await child.fetch("https://example.com/path?q=1", { method: "POST", body: "hello", headers: { "x-test": "t\u00e9" } });
  assert.equal(r.status, 201);
  assert.equal(r.headers.get("x-back"), "yes");
  assert.deepEqual(await r.json(), { url: "http://example.com/path?q=1", method: "POST", body: "hello", x: "t\u00e9" });
  const redirected = await child.fetch("http://example.com/redirect");
  assert.equal((await redirected.json()).url, "http://example.com/landed");
  const manual = await child.fetch("http://example.com/redirect", { redirect: "manual" });
  assert.equal(manual.status, 302);
  assert.equal((await child.fetch("http://x/none")).status, 204);
  const stream = (await child.fetch("http://x/stream")).body.getReader();
  assert.equal(text((await stream.read()).value), "part0", "the others are not written before somebody says so");
  assert.equal((await child.fetch("http://x/go")).status, 201);
  let rest = "";
  for (let r; !(r = await stream.read()).done;) rest += text(r.value);
  assert.equal(rest, "part1part2part3part4");
  await child.kill();
  assert.equal((await child.status).signal, "SIGTERM");
});

await nodeTest("httpReady is false when the program ends first", async () => {
  const child = await sandbox.deno.run({ ...quiet, code: "console.log(1)" });
  assert.equal(await child.httpReady, false);
});

await nodeTest("httpReady of a server that a child of the program started", async () => {
  const child = await sandbox.deno.run({
    ...quiet,
    code: `const c = new Deno.Command(Deno.execPath(), { args: ["eval", "Deno.serve({port:0}, () => new Response('deep'))"] }).spawn();
      await c.status`,
  });
  assert.equal(await child.httpReady, true);
  assert.equal(await (await child.fetch("http://x/")).text(), "deep");
  await child.kill();
});

await test("run, repl and fetch: clearEnv, signals", async () => {
  const path = await sandbox.env.get("PATH");
  const stop = new AbortController();
  const child = await sandbox.deno.run({
    ...quiet,
    signal: stop.signal,
    clearEnv: true,
    env: { PATH: path, NB_ONE: "1" },
    code: `console.log(Object.keys(Deno.env.toObject()).includes("HOME"), Deno.env.get("NB_ONE"));
      Deno.serve({ port: 0, onListen() {} }, () => new Promise(() => {}))`,
  });
  assert.equal(text((await child.stdout.getReader().read()).value), "false 1\n");
  assert.equal(await child.httpReady, true);
  const abort = new AbortController();
  const answer = rejection(child.fetch("http://x/", { signal: abort.signal }));
  await sleep(300);
  abort.abort();
  assert.equal((await answer).name, "AbortError");
  stop.abort();
  assert.equal((await child.status).signal, "SIGTERM");
  const end = new AbortController();
  const r = await sandbox.deno.repl({ ...quiet, clearEnv: true, env: { PATH: path, NB_ONE: "2" }, signal: end.signal });
  assert.deepEqual(await r.eval("[Deno.env.get('NB_ONE'), Deno.env.has('HOME')]"), ["2", false]);
  end.abort();
  assert.equal((await r.status).signal, "SIGTERM");
}, 120_000);

await test("watch: restarts are events", async () => {
  await sandbox.fs.writeTextFile(`${dir}/w.ts`, "console.log('one'); setInterval(() => {}, 1000)");
  const child = await sandbox.deno.run({ ...quiet, stderr: "null", entrypoint: `${dir}/w.ts`, watch: true });
  let restarts = 0;
  child.addEventListener("restart", () => restarts++);
  const reader = child.stdout.getReader();
  assert.equal(text((await reader.read()).value), "one\n");
  // Deno begins to watch some time after the program has begun to run: what it missed is written again.
  let two = false;
  const seen = reader.read().then(({ value }) => two = text(value) === "two\n");
  await until(async () => {
    await sandbox.fs.writeTextFile(`${dir}/w.ts`, "console.log('two'); setInterval(() => {}, 1000)");
    await Promise.race([seen, sleep(1000)]);
    return two;
  }, 120_000);
  await until(() => restarts > 0, 60_000);
  await child.kill();
  await child.status;
});

if (alone) await test("watch: files that are not imported", async () => {
  await sandbox.fs.writeTextFile(`${dir}/data`, "1");
  await sandbox.fs.writeTextFile(`${dir}/wd.ts`, `console.log(Deno.readTextFileSync("${dir}/data")); setInterval(() => {}, 1000)`);
  const child = await sandbox.deno.run({ ...quiet, stderr: "null", entrypoint: `${dir}/wd.ts`, watch: [`${dir}/data`, `${dir}/other, or not`] });
  const reader = child.stdout.getReader();
  assert.equal(text((await reader.read()).value), "1\n");
  let two = false;
  const seen = reader.read().then(({ value }) => two = text(value) === "2\n");
  await until(async () => {
    await sandbox.fs.writeTextFile(`${dir}/data`, "2");
    await Promise.race([seen, sleep(1000)]);
    return two;
  }, 60_000);
  await child.kill();
  await child.status;
});

// --- REPL -----------------------------------------------------------------------------------------------------------

await test("eval", async () => {
  assert.equal(await sandbox.deno.eval("const a = 1; const b = 2; a + b;"), 3);
});

// What is thrown names the process, of which deno.eval says nothing.
const evalThrows = async (s) => Number((await rejection(s.deno.eval("throw new Error(Deno.pid)"))).message);
const runs = async (pid) => (await sandbox.sh`[ ! -e /proc/${pid} ] || echo runs`.text()) === "runs\n";

await nodeTest("eval: what a throw leaves of it ends with its client, a server in a REPL does not", async () => {
  const other = await Sandbox.connect(sandbox.id);
  const left = await evalThrows(other);
  const server = await other.deno.repl(quiet);
  const port = await server.eval("Deno.serve({ port: 0, onListen() {} }, () => new Response('still')).addr.port");
  await other.close();
  await until(async () => !await runs(left), 60_000);
  assert.equal(await (await sandbox.fetch(`http://127.0.0.1:${port}/`)).text(), "still");
  await sandbox.sh`kill ${server.pid}`;
}, 120_000);

const repl = await sandbox.deno.repl(quiet);

await test("repl: state, redeclaration, top-level await, functions", async () => {
  assert.equal(await repl.eval("const x = 42;"), null); // the SDK's schema has no room for undefined
  assert.equal(await repl.eval("x"), 42);
  assert.equal(await repl.eval("const x = 43; x"), 43);
  assert.equal(await repl.eval("let y = await Promise.resolve(7); y"), 7);
  await repl.eval("function add(a, b) { return a + b; }");
  assert.equal(await repl.call("add", 1, 2), 3);
  assert.equal(await repl.call("(a, b) => a + b", 1, 2), 3);
  assert.equal(await repl.call("function (a, b) { return a * b; }", 3, 4), 12);
  assert.equal(await repl.call("async (o) => (await o.a) + x", { a: 1 }), 44);
  assert.equal(await repl.eval("class K { v = 1 }; new K().v"), 1);
});

await test("repl: TypeScript and imports", async () => {
  assert.equal(await repl.eval("interface P { n: number }\nconst p: P = { n: 5 };\np.n as number"), 5);
  assert.equal(await repl.eval("enum E { A = 3 }\nE.A"), 3);
  assert.equal(await repl.eval('import { join, basename as base } from "node:path";\njoin("a", base("/x/b"))'), "a/b");
  assert.equal(await repl.eval('import * as os from "node:os"; typeof os.cpus'), "function");
  assert.equal(await repl.eval("join('c', 'd')"), "c/d");
  assert.equal(await repl.call("(a: number): number => a + 1", 1), 2);
});

await test("repl: relative imports start at its directory", async () => {
  await using r = await sandbox.deno.repl({ ...quiet, cwd: dir });
  assert.equal(await r.eval("(await import('./lib/m.ts')).v"), 5);
  assert.equal(await r.eval("import { v } from './lib/m.ts'; v"), 5);
});

await test("repl: values", async () => {
  const same = async (code, value) => assert.deepEqual(await repl.eval(code), value, code);
  await same("'ä\\u0000\\n\u2028'", "ä\u0000\n\u2028");
  await same("null", null);
  await same("undefined", null);
  await same("({ a: [1, 'b', null, true], c: { d: undefined } })", { a: [1, "b", null, true], c: {} });
  await same("{ a: 1 }", { a: 1 });
  await same("{ a: 1 };", 1);
  await same("new Date(0)", "1970-01-01T00:00:00.000Z");
  await same("new Map([['k', new Set([1, 2])]])", [["k", [1, 2]]]);
  await same("123456789012345678901234567890n", "123456789012345678901234567890");
  await same("new Uint8Array([1, 2, 3])", "AQID");
  await same("/a+/gi", { source: "a+", flags: "gi" });
  await same("new (class Point { x = 1; #y = 2; get z() { return 3 } })", { x: 1 });
  await same("[undefined, () => 1, NaN]", [null, null, null]);
  await same("(() => {})", null);
  assert.equal((await repl.eval("'x'.repeat(5_000_000)")).length, 5_000_000);
});

await test("repl: errors keep class, message, stack, cause", async () => {
  const e = await rejection(repl.eval("function inner() { throw new TypeError('bad', { cause: new RangeError('why') }); }\ninner()"));
  assert.ok(e instanceof TypeError);
  assert.equal(e.message, "bad");
  assert.ok(e.cause instanceof RangeError);
  assert.match(e.stack, /at inner/);
  assert.doesNotMatch(e.stack, /ext:deno_node|deno\$eval/);
  const notFound = await rejection(repl.eval("await Deno.readTextFile('/no/such/file')"));
  assert.equal(notFound.code, "ENOENT");
  assert.ok(await rejection(repl.eval("let = = 1")) instanceof SyntaxError);
  assert.ok(await rejection(repl.eval("JSON.parse('{')")) instanceof SyntaxError);
  assert.ok(await rejection(repl.eval("nope")) instanceof ReferenceError);
  assert.match((await rejection(repl.eval("throw 5"))).message, /5/);
  assert.ok(await rejection(repl.call("(x) => x.a.b", {})) instanceof TypeError);
  assert.ok(await rejection(repl.call("42")) instanceof TypeError);
  assert.ok(await rejection(repl.eval("const o = {}; o.o = o; o")) instanceof TypeError);
});

await test("repl: evaluations at once, timers between them", async () => {
  const slow = repl.eval("await new Promise((r) => globalThis.release = r); 'slow'");
  assert.equal(await repl.eval("1"), 1);
  await repl.eval("setTimeout(() => release(), 10); 0");
  assert.equal(await slow, "slow");
});

await test("repl: standard streams are the user's", async () => {
  const r = await sandbox.deno.repl({ ...quiet, stdin: "piped", scriptArgs: ["a1"], env: { NB_R: "r" } });
  await r.eval("console.log(Deno.args[0], Deno.env.get('NB_R')); console.error('err')");
  const reader = r.stdout.getReader();
  assert.equal(text((await reader.read()).value), "a1 r\n");
  const w = r.stdin.getWriter();
  await w.write(new TextEncoder().encode("typed\n"));
  assert.equal(await r.eval("const b = new Uint8Array(6); await Deno.stdin.read(b); new TextDecoder().decode(b)"), "typed\n");
  await r.close();
  assert.equal((await r.status).code, 0);
  assert.equal((await rejection(r.eval("1"))).code, "ENOENT");
  await r.close(); // swallowed: ENOENT
});

await test("repl: the process ends under an evaluation", async () => {
  const r = await sandbox.deno.repl(quiet);
  await rejection(r.eval("Deno.exit(4)"));
  assert.equal((await r.status).code, 4);
});

await nodeTest("repl: one that is stuck can be closed and killed", async () => {
  const r = await sandbox.deno.repl(quiet);
  r.eval("for (;;) {}").catch(() => {});
  await r.close();
  assert.equal((await r.status).success, false);
});

await test("repl: serves HTTP", async () => {
  await repl.eval("const server = Deno.serve({ port: 0, onListen() {} }, () => new Response('from repl'))");
  assert.equal(await repl.httpReady, true);
  assert.equal(await (await repl.fetch("http://x/")).text(), "from repl");
});

await repl.kill();

// The one that waits: not known to any client, and the first that the kernel would kill.
const waiting = async () =>
  Number(await sandbox.sh`for p in $(pgrep -x deno); do [ "$(cat /proc/$p/oom_score_adj)" = 1000 ] && echo $p; done; true`.text()); // no other has failed at its only evaluation
const asWaits = async (options) => {
  const there = await until(waiting, 60_000);
  await using r = await sandbox.deno.repl(options);
  return { same: r.pid === there, answer: await r.eval("[Deno.env.get('NB_W'), Deno.cwd(), Deno.args.length]") };
};

await nodeTest("repl: one waits for the next of the same shape, and for no other", async () => {
  const small = { ...quiet, cwd: dir };
  await (await sandbox.deno.repl(small)).eval("1");
  const { same, answer } = await asWaits(small);
  assert.deepEqual([same, answer], [true, [null, dir, 0]]);
  assert.deepEqual(await asWaits({ ...small, scriptArgs: ["a"] }), { same: false, answer: [null, dir, 1] });
  await sandbox.env.set("NB_W", "1");
  assert.deepEqual(await asWaits({ ...small, scriptArgs: ["a"] }), { same: false, answer: ["1", dir, 1] });
  await sandbox.env.delete("NB_W");
}, 300_000);

await nodeTest("repl: what it would find now is what it finds, also if one waits", async () => {
  const here = { ...quiet, cwd: `${dir}/lib` };
  const mapped = (r) => r.eval("(await import('mapped')).v");
  await using first = await sandbox.deno.repl(here);
  assert.ok(await rejection(mapped(first)) instanceof TypeError);
  await until(waiting, 60_000);
  await sandbox.fs.writeTextFile(`${dir}/deno.json`, '{ "imports": { "mapped": "./lib/m.ts" } }');
  await using second = await sandbox.deno.repl(here);
  assert.equal(await mapped(second), 5);
  await until(waiting, 60_000);
  await sandbox.sh`mv ${dir}/lib ${dir}/other`;
  assert.equal((await rejection(sandbox.deno.repl(here))).code, "ENOENT");
  assert.equal(await waiting(), 0);
}, 300_000);

// Those that a failed eval left make room, the oldest first, for a REPL that starts when there is little.
if (!alone) await nodeTest("eval: what a throw leaves goes when memory is short, a REPL that is used stays", async () => {
  const first = await sandbox.deno.repl();
  assert.ok(await rejection(first.eval("globalThis.kept = 'kept'; throw 1")));
  const score = () => sandbox.sh`cat /proc/${first.pid}/oom_score_adj`.text();
  await until(async () => await score() === "1000\n");
  assert.equal(await first.eval("kept"), "kept");
  assert.equal(await score(), "0\n");
  const spare = await evalThrows(sandbox);
  assert.ok(await runs(spare), "there is memory");
  await sandbox.sh`mkdir ${dir}/full && sudo mount -t tmpfs -o size=100% full ${dir}/full
    sudo fallocate -l $(awk '/^MemAvailable/ { print $2 - 200000 }' /proc/meminfo)KiB ${dir}/full/file`;
  await until(async () => {
    assert.equal(await sandbox.deno.eval("2"), 2);
    return !await runs(spare);
  }, 120_000);
  await sandbox.sh`sudo umount ${dir}/full`;
  assert.equal(await first.eval("kept"), "kept");
  await first.close();
}, 300_000);

await sandbox.sh`rm -rf ${dir}`;
await sandbox.close();
await done();
