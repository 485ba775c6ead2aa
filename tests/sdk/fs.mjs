// SPDX-License-Identifier: Apache-2.0
// Sandbox.fs and FsFile: every method, through the unmodified SDK.
import { assert, done, rejection, Sandbox, test, text, until } from "./lib.mjs";
import { SeekMode } from "@deno/sandbox";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, readlinkSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const sandbox = await Sandbox.create();
const fs = sandbox.fs;
const home = await fs.realPath(".");
const dir = await fs.makeTempDir({ dir: home, prefix: "fs-test-" });
const at = (name) => `${dir}/${name}`;
const list = async (stream) => {
  const all = [];
  for await (const e of stream) all.push(e);
  return all;
};
async function fails(promise, name, code, message) {
  const e = await rejection(promise);
  // The shim that stands for Deno in Node doesn't know all of its classes.
  assert.ok([name, e.constructor === Error && "Error"].includes(e.constructor.name), e.stack);
  assert.equal(e.code, code);
  if (message) assert.equal(e.message, message);
}

await test("writeTextFile and readTextFile: any text, append, createNew, mode", async () => {
  const all = "zwei\nZeilen \u{1F600} \0 \x7f \"\\/ \ufeff";
  await fs.writeTextFile(at("t"), all);
  assert.equal(await fs.readTextFile(at("t")), all);
  await fs.writeTextFile(at("t"), "+", { append: true });
  assert.equal(await fs.readTextFile(at("t")), all + "+");
  await fs.writeTextFile(at("t"), "");
  assert.equal(await fs.readTextFile(at("t")), "");
  await fs.writeFile(at("t"), Uint8Array.of(0x61, 0xff, 0xe4, 0x62, 0xc3));
  assert.equal(await fs.readTextFile(at("t")), "a\ufffd\ufffdb\ufffd");
  await fs.writeTextFile(at("t"), "short", { mode: 0o640 });
  assert.equal((await fs.stat(at("t"))).mode & 0o7777, 0o640);
  await fails(fs.writeTextFile(at("t"), "x", { createNew: true }), "AlreadyExists", "EEXIST", `File exists (os error 17): writefile '${at("t")}'`);
  await fails(fs.writeTextFile(at("no"), "x", { create: false }), "NotFound", "ENOENT");
});

await test("writeFile and readFile: all bytes, nothing, 20 MB", async () => {
  const bytes = Uint8Array.from({ length: 1000 }, (_, i) => i);
  await fs.writeFile(at("b"), bytes);
  assert.deepEqual(await fs.readFile(at("b")), bytes);
  await fs.writeFile(at("b"), new Uint8Array());
  assert.equal((await fs.readFile(at("b"))).length, 0);
  const big = new Uint8Array(20_000_000);
  for (let i = 0; i < big.length; i += 1) big[i] = (i * 2654435761) >>> 24;
  await fs.writeFile(at("b"), big);
  assert.ok(Buffer.from(await fs.readFile(at("b"))).equals(big));
});

await test("writeFile: append, create, createNew, mode, signal", async () => {
  const bytes = (...b) => new Uint8Array(b);
  await fs.writeFile(at("wf"), bytes(1), { mode: 0o611 });
  await fs.writeFile(at("wf"), bytes(2, 3), { append: true });
  assert.deepEqual(await fs.readFile(at("wf")), bytes(1, 2, 3));
  assert.equal((await fs.stat(at("wf"))).mode & 0o7777, 0o611);
  await fails(fs.writeFile(at("wf-no"), bytes(), { create: false }), "NotFound", "ENOENT");
  await fails(fs.writeFile(at("wf"), bytes(), { createNew: true }), "AlreadyExists", "EEXIST");
  const abort = new AbortController();
  const endless = new ReadableStream({ pull: (c) => new Promise((r) => setTimeout(r, 20)).then(() => c.enqueue(bytes(7))) });
  const writing = rejection(fs.writeFile(at("wf"), endless, { signal: abort.signal }));
  await until(async () => (await fs.stat(at("wf"))).size > 3, 20_000).catch(() => {});
  abort.abort();
  assert.equal((await writing).name, "AbortError");
  const done = new AbortController();
  await fs.writeTextFile(at("wt"), "text", { signal: done.signal, createNew: true, create: true, append: false, mode: 0o600 });
  assert.equal(await fs.readTextFile(at("wt"), { signal: done.signal }), "text");
});

await test("odd names: spaces, newlines, quotes, dashes, 255 bytes, not UTF-8", async () => {
  await fs.mkdir(at("odd"));
  const names = [" ", "a b", "zwei\nZeilen", "'", '"', "-rf", "*", "\\", "ä\u{1F600}", "e\u0301", "\x01", "x".repeat(255), "..."];
  await Promise.all(names.map((n) => fs.writeTextFile(at(`odd/${n}`), n)));
  assert.deepEqual((await list(fs.readDir(at("odd")))).map((e) => e.name).sort(), [...names].sort());
  assert.deepEqual((await list(fs.walk(at("odd"), { includeDirs: false }))).map((e) => e.name).sort(), [...names].sort());
  for (const n of names) assert.equal(await fs.readTextFile(at(`odd/${n}`)), n);
  await fails(fs.writeTextFile(at(`odd/${"x".repeat(256)}`), ""), "Error", "ENAMETOOLONG");
  await sandbox.sh`cd ${at("odd")} && rm -rf ./* ./... && touch $'bad\\xff\\xfe' && ln -s $'bad\\xff\\xfe' l`;
  assert.deepEqual((await list(fs.readDir(at("odd")))).map((e) => e.name).sort(), ["bad\ufffd\ufffd", "l"]);
  await fails(fs.readLink(at("odd/l")), "InvalidData", undefined);
  await fs.remove(at("odd"), { recursive: true });
});

await test("a stream as content, for bytes and text", async () => {
  const chunks = Array.from({ length: 300 }, (_, i) => new Uint8Array(1 + i * 7).fill(i));
  await fs.writeFile(at("s"), ReadableStream.from(chunks));
  assert.ok(Buffer.from(await fs.readFile(at("s"))).equals(Buffer.concat(chunks)));
  await fs.writeFile(at("s"), ReadableStream.from([]));
  assert.equal((await fs.stat(at("s"))).size, 0);
  await fs.writeTextFile(at("s"), ReadableStream.from(["zwölf ", "\u{1F600}"]));
  assert.equal(await fs.readTextFile(at("s")), "zwölf \u{1F600}");
  await fails(fs.writeFile(at("no/s"), ReadableStream.from(chunks)), "NotFound", "ENOENT");
});

await test("errors are Deno's: class, code, message", async () => {
  await fails(fs.readFile(at("no")), "NotFound", "ENOENT", `No such file or directory (os error 2): readfile '${at("no")}'`);
  await fails(fs.readFile(dir), "IsADirectory", "EISDIR");
  await fails(fs.stat(at("t/x")), "NotADirectory", "ENOTDIR");
  await fails(fs.remove(dir), "Error", "ENOTEMPTY");
  await fails(fs.readLink(at("t")), "TypeError", "EINVAL");
  await fails(fs.stat("a\0b"), "TypeError", "EINVAL", "file name contained an unexpected NUL byte: stat 'a\0b'");
  await fails(fs.stat("a".repeat(5000)), "Error", "ENAMETOOLONG");
  await fails(fs.open(at("t"), {}), "Error", undefined, "'options' requires at least one option to be true");
  await fs.symlink("circle", at("circle"));
  for (const call of [fs.readFile(at("circle")), fs.stat(at("circle")), fs.realPath(at("circle"))]) await fails(call, "FilesystemLoop", "ELOOP");
});

await test("mkdir, rename, remove, link, symlink, readLink, realPath, copyFile", async () => {
  await fs.mkdir(at("d/e/f"), { recursive: true, mode: 0o750 });
  assert.equal((await fs.stat(at("d/e"))).mode & 0o777, 0o750);
  await fails(fs.mkdir(at("d")), "AlreadyExists", "EEXIST");
  await fs.writeTextFile(at("d/x"), "1", { mode: 0o751 });
  await fs.rename(at("d/x"), at("d/y"));
  await fs.copyFile(at("d/y"), at("d/z"));
  assert.equal((await fs.stat(at("d/z"))).mode & 0o777, 0o751);
  await fs.link(at("d/y"), at("d/hard"));
  assert.equal((await fs.stat(at("d/y"))).nlink, 2);
  await fs.symlink("y", at("d/soft"));
  assert.equal(await fs.readLink(at("d/soft")), "y");
  assert.equal(await fs.realPath(at("d/e/../soft")), at("d/y"));
  assert.ok((await fs.lstat(at("d/soft"))).isSymlink && (await fs.stat(at("d/soft"))).isFile);
  assert.deepEqual((await list(fs.readDir(at("d")))).map((e) => e.name).sort(), ["e", "hard", "soft", "y", "z"]);
  await fs.remove(at("d"), { recursive: true });
  await fails(fs.lstat(at("d")), "NotFound", "ENOENT");
});

await test("paths relative to the home directory, and as URL", async () => {
  await fs.writeTextFile(at("t"), "here");
  assert.equal(await fs.readTextFile(at("t").slice(home.length + 1)), "here");
  assert.equal(await fs.readTextFile(new URL(`file://${at("t")}`)), "here");
});

await test("stat, chmod, utime, truncate, umask, makeTempFile", async () => {
  assert.match(await fs.makeTempDir({ dir, suffix: ".d" }), /[0-9a-f]\.d$/);
  assert.match(await fs.makeTempFile(), /^\/tmp\//);
  const name = await fs.makeTempFile({ dir, prefix: "p", suffix: ".txt" });
  assert.match(name, /\/p[0-9a-f]+\.txt$/);
  await fs.writeTextFile(name, "0123456789");
  await fs.chmod(name, 0o600);
  await fs.utime(name, new Date(1500), new Date("2024-02-29T12:00:00.123Z"));
  await fs.truncate(name, 4);
  await fs.utime(name, new Date(1500), new Date("2024-02-29T12:00:00.123Z"));
  const s = await fs.stat(name);
  assert.deepEqual([s.size, s.mode & 0o7777, +s.atime, s.mtime.toISOString(), s.isFile, s.isFifo],
    [4, 0o600, 1500, "2024-02-29T12:00:00.123Z", true, false]);
  assert.ok(s.birthtime instanceof Date && s.ctime instanceof Date && s.ino > 0);
  assert.ok(s.birthtime > s.mtime && s.birthtime - s.ctime < 1000, `${["birthtime", "mtime", "ctime"].map((n) => s[n].toISOString())}`); // whatever utime says; ctime has whole seconds, as Deno gives it
  assert.ok((await fs.stat("/proc/version")).isFile); // has no birth time
  const before = await fs.umask();
  assert.equal(await fs.umask(0o077), before);
  await fs.writeTextFile(at("masked"), "");
  assert.equal((await fs.stat(at("masked"))).mode & 0o777, 0o600);
  assert.equal(await fs.umask(before), 0o077);
  await fs.chown(name, null, null);
});

await test("FsFile: read, write, seek, truncate, stat, sync, utime, lock", async () => {
  const f = await fs.open(at("h"), { read: true, write: true, create: true, truncate: true });
  assert.equal(await f.write(new TextEncoder().encode("hello world")), 11);
  assert.equal(await f.seek(-5, 2), 6);
  assert.equal(await f.seek(6n, 0), 6);
  const buf = new Uint8Array(100);
  assert.equal(await f.read(buf), 5);
  assert.equal(text(buf.subarray(0, 5)), "world");
  assert.deepEqual([await f.read(new Uint8Array(0)), await f.read(buf)], [0, null]);
  await f.truncate(5);
  await f.sync();
  await f.syncData();
  await f.utime(new Date(1000), new Date(2000));
  assert.deepEqual([(await f.stat()).size, +(await f.stat()).mtime], [5, 2000]);
  await f.lock(true);
  await f.unlock();
  await f.close();
  await fails(f.read(buf), "BadResource", undefined);
  const c = await fs.create(at("h"));
  assert.equal((await c.stat()).size, 0);
  await c.close();
});

await test("FsFile: readable and writable", async () => {
  const f = await fs.create(at("h"));
  await ReadableStream.from(Array.from({ length: 50 }, (_, i) => new Uint8Array(5000).fill(i))).pipeTo(f.writable);
  await f.seek(0, 0);
  let n = 0;
  for await (const chunk of f.readable) n += chunk.length;
  assert.equal(n, 250_000);
  await f.close();
});

await test("FsFile: writes that nobody awaits keep their order", async () => {
  const f = await fs.create(at("h"));
  const want = [];
  await Promise.all(Array.from({ length: 300 }, (_, i) => {
    want.push(`${i};`);
    return f.write(new TextEncoder().encode(`${i};`));
  }));
  await f.close();
  assert.equal(await fs.readTextFile(at("h")), want.join(""));
});

await test("FsFile: append, createNew, mode, modes that contradict; await using", async () => {
  await fs.writeTextFile(at("f"), "start ");
  {
    await using f = await fs.open(at("f"), { append: true, read: true });
    await f.seek(0, SeekMode.Start);
    await f.write(new TextEncoder().encode("appended"));
  }
  assert.equal(await fs.readTextFile(at("f")), "start appended");
  await fails(fs.open(at("f"), { createNew: true, write: true }), "AlreadyExists", "EEXIST");
  await using n = await fs.open(at("new"), { createNew: true, write: true, mode: 0o604 });
  assert.equal((await n.stat()).mode & 0o7777, 0o604);
  await fails(n.read(new Uint8Array(1)), "Error", "EBADF");
  for (const bad of [{ create: true }, { append: true, truncate: true }]) assert.ok(await rejection(fs.open(at("f"), bad)) instanceof Error);
  await using r = await fs.open(at("f"));
  await fails(r.write(new Uint8Array(1)), "Error", "EBADF");
  await fails(r.truncate(1), "TypeError", "EINVAL");
});

await test("FsFile: positions past 4 GiB as number and bigint, sparse files", async () => {
  await using f = await fs.open(at("sparse"), { read: true, write: true, create: true });
  const far = 5n * 1024n ** 3n;
  assert.equal(await f.seek(far, SeekMode.Start), Number(far));
  await f.write(new Uint8Array([1, 2, 3]));
  assert.equal(await f.seek(-1n, SeekMode.Current), Number(far) + 2);
  assert.equal(await f.seek(-3, SeekMode.End), Number(far));
  const info = await f.stat();
  assert.equal(info.size, Number(far) + 3);
  assert.ok(info.blocks * 512 < 1 << 20, "the hole takes no space");
  await f.seek(Number(far) - 2, SeekMode.Start);
  const buf = new Uint8Array(10);
  assert.equal(await f.read(buf), 5);
  assert.deepEqual([...buf.subarray(0, 5)], [0, 0, 1, 2, 3]);
  await fails(f.seek(-1, SeekMode.Start), "TypeError", "EINVAL");
  await fails(f.seek(-(far * 2n), SeekMode.End), "TypeError", "EINVAL");
  await f.truncate();
  assert.equal((await f.stat()).size, 0);
});

await test("FsFile: locks are the kernel's: shared, exclusive, seen by programs", async () => {
  await using a = await fs.create(at("k"));
  await using b = await fs.open(at("k"), { read: true, write: true });
  const free = async (kind) => (await sandbox.sh`flock -n ${kind} ${at("k")} true`.noThrow()).status.success;
  await Promise.all([a.lock(false), b.lock(false)]);
  assert.deepEqual([await free("-s"), await free("-x")], [true, false]);
  await Promise.all([a.unlock(), b.unlock()]);
  await a.lock(true);
  assert.equal(await free("-s"), false);
  await a.close();
  assert.equal(await free("-x"), true);
});

await test("one lock waits for the other while everything else goes on", async () => {
  const a = await fs.create(at("l")), b = await fs.open(at("l"));
  await a.lock(true);
  let got = false;
  const waiting = b.lock().then(() => got = true);
  assert.equal(await fs.readTextFile(at("t")), "here");
  assert.equal(got, false);
  await a.unlock();
  await waiting;
  await Promise.all([a.close(), b.close()]);
});

await test("walk and expandGlob", async () => {
  await fs.mkdir(at("w/a/b"), { recursive: true });
  for (const n of ["w/x.txt", "w/a/y.txt", "w/a/b/z.md"]) await fs.writeTextFile(at(n), "");
  await fs.symlink("a", at("w/link"));
  const paths = async (s) => (await list(s)).map((e) => e.path.slice(dir.length + 1)).sort();
  assert.deepEqual(await paths(fs.walk(at("w"))), ["w", "w/a", "w/a/b", "w/a/b/z.md", "w/a/y.txt", "w/link", "w/x.txt"]);
  assert.deepEqual(await paths(fs.walk(at("w"), { exts: ["txt"], includeDirs: false, maxDepth: 1 })), ["w/x.txt"]);
  assert.deepEqual(await paths(fs.walk(at("w"), { match: [/\.TXT$/i], skip: [/\/a\b/] })), ["w/x.txt"]);
  assert.deepEqual(await paths(fs.expandGlob(at("w/**/*.{txt,md}"))), ["w/a/b/z.md", "w/a/y.txt", "w/x.txt"]);
  assert.deepEqual(await list(fs.expandGlob("w/*", { root: dir, includeDirs: false, exclude: ["**/*.txt"] })),
    [{ path: at("w/link"), name: "link", isFile: false, isDirectory: false, isSymlink: true }]);
  await fails(list(fs.walk(at("no"))), "NotFound", "ENOENT");
});

await test("walk: every option; links that lead in circles", async () => {
  await fs.mkdir(at("o/d1/d2"), { recursive: true });
  for (const n of ["o/a.ts", "o/d1/b.ts", "o/d1/d2/c.js"]) await fs.writeTextFile(at(n), "");
  await fs.symlink("d1", at("o/dirlink"), { type: "dir" });
  await fs.symlink("a.ts", at("o/filelink"), { type: "file" });
  const walk = async (options) => (await list(fs.walk(at("o"), options))).map((e) => e.path.slice(dir.length + 3)).sort();
  assert.deepEqual(await walk({ includeFiles: false, includeSymlinks: false }), ["", "d1", "d1/d2"]);
  assert.deepEqual(await walk({ includeDirs: false, includeSymlinks: false }), ["a.ts", "d1/b.ts", "d1/d2/c.js"]);
  assert.deepEqual(await walk({ includeFiles: false, includeDirs: false }), ["dirlink", "filelink"]);
  assert.deepEqual(await walk({ maxDepth: 0 }), [""]);
  assert.deepEqual(await walk({ followSymlinks: true, includeDirs: false, canonicalize: true }), ["a.ts", "a.ts", "d1/b.ts", "d1/b.ts", "d1/d2/c.js", "d1/d2/c.js"]);
  assert.deepEqual(await walk({ followSymlinks: true, includeDirs: false, canonicalize: false }),
    ["a.ts", "d1/b.ts", "d1/d2/c.js", "dirlink/b.ts", "dirlink/d2/c.js", "filelink"]);
  assert.deepEqual(await walk({ exts: [".ts", "js"], skip: [/d2/] }), ["a.ts", "d1/b.ts"]);
  assert.deepEqual(await walk({ match: [/^.*\/b\.TS$/i, /link$/] }), ["d1/b.ts", "dirlink", "filelink"]);
  await fs.symlink(".", at("o/d1/d2/circle"));
  await fails(list(fs.walk(at("o"), { followSymlinks: true, canonicalize: false })), "FilesystemLoop", "ELOOP");
});

await test("expandGlob: every option", async () => {
  await fs.mkdir(at("g/Sub/deep"), { recursive: true });
  for (const n of ["g/x.ts", "g/Y.TS", "g/Sub/z.ts", "g/Sub/deep/w.ts", "g/x.test.ts"]) await fs.writeTextFile(at(n), "");
  await fs.symlink("Sub", at("g/link"));
  const glob = async (pattern, options) => (await list(fs.expandGlob(pattern, { root: at("g"), ...options }))).map((e) => e.path.slice(dir.length + 3)).sort();
  assert.deepEqual(await glob("*.ts"), ["x.test.ts", "x.ts"]);
  assert.deepEqual(await glob("*.ts", { caseInsensitive: true }), ["Y.TS", "x.test.ts", "x.ts"]);
  assert.deepEqual(await glob("**/*.ts"), ["Sub/deep/w.ts", "Sub/z.ts", "x.test.ts", "x.ts"]);
  assert.deepEqual(await glob("**/*.ts", { globstar: false }), ["Sub/z.ts", "x.test.ts", "x.ts"]);
  assert.deepEqual(await glob("!(*.test).ts"), ["x.ts"]);
  assert.deepEqual(await glob("!(*.test).ts", { extended: false }), []);
  assert.deepEqual(await glob("*", { exclude: ["*.ts", "Sub"] }), ["Y.TS", "link"]);
  assert.deepEqual(await glob("*", { includeDirs: false }), ["Y.TS", "link", "x.test.ts", "x.ts"]);
  assert.deepEqual(await glob("link/*.ts", { followSymlinks: true, canonicalize: true }), ["link/z.ts"]);
  assert.deepEqual(await glob("link/*.ts", { followSymlinks: true, canonicalize: false }), ["link/z.ts"]);
});

await test("a walk may be left at any entry, at once or after calls", async () => {
  await fs.mkdir(at("leave"));
  await sandbox.sh`cd ${at("leave")} && seq 120 | xargs touch`;
  for (let i = 0; i < 24; i++) {
    let n = 0;
    for await (const e of fs.walk(at("leave"))) {
      if (i % 2) await fs.lstat(e.path);
      if (n++ === i * 5) break;
    }
    for await (const _ of fs.expandGlob(at("leave/1*"))) break;
  }
  // What the server had sent by then has arrived when this has.
  assert.equal((await list(fs.walk(at("leave")))).length, 121);
});

await test("walk over 3,000 files", async () => {
  await sandbox.sh`mkdir ${at("many")} && cd ${at("many")} && seq 3000 | xargs touch`;
  assert.equal((await list(fs.walk(at("many")))).length, 3001);
  assert.equal((await list(fs.readDir(at("many")))).length, 3000);
});

await test("upload and download of a tree", async () => {
  const local = mkdtempSync(join(tmpdir(), "nb-fs-"));
  mkdirSync(join(local, "up/sub"), { recursive: true });
  writeFileSync(join(local, "up/sub/a.bin"), Buffer.alloc(300_000, 7));
  writeFileSync(join(local, "up/b.txt"), "text");
  symlinkSync("b.txt", join(local, "up/l"));
  symlinkSync("sub", join(local, "up/to sub"));
  symlinkSync("..", join(local, "up/sub/back")); // a circle for whoever follows
  mkdirSync(join(local, "up/empty"));
  writeFileSync(join(local, "up/zwei\nZeilen ä"), "");
  await fs.upload(join(local, "up"), dir);
  assert.equal((await fs.readFile(at("up/sub/a.bin"))).length, 300_000);
  assert.equal(await fs.readLink(at("up/l")), "b.txt");
  assert.deepEqual([await fs.readLink(at("up/to sub")), await fs.readLink(at("up/sub/back"))], ["sub", ".."]);
  mkdirSync(join(local, "down"));
  await fs.download(at("up"), join(local, "down"));
  assert.equal(readFileSync(join(local, "down/up/b.txt"), "utf8"), "text");
  assert.equal(readFileSync(join(local, "down/up/sub/a.bin")).length, 300_000);
  assert.equal(readlinkSync(join(local, "down/up/l")), "b.txt");
  const tree = (root) => execFileSync("find", [root, "-printf", "%P\\0"], { encoding: "utf8" }).split("\0").sort();
  assert.deepEqual(tree(join(local, "down/up")), tree(join(local, "up")));
  assert.deepEqual([readlinkSync(join(local, "down/up/to sub")), readlinkSync(join(local, "down/up/sub/back"))], ["sub", ".."]);
  await fs.upload(join(local, "up/b.txt"), at("one"));
  await fs.download(at("one"), join(local, "one"));
  assert.equal(readFileSync(join(local, "one"), "utf8"), "text");
  rmSync(local, { recursive: true });
});

await test("a read that blocks is aborted and holds nothing up", async () => {
  await sandbox.sh`mkfifo ${at("fifo")}`;
  const abort = new AbortController();
  const blocked = rejection(fs.readFile(at("fifo"), { signal: abort.signal }));
  assert.equal(await fs.readTextFile(at("t")), "here");
  abort.abort();
  await blocked;
  // These still block when the connection ends, which has to end them.
  for (let i = 0; i < 12; i++) fs.readFile(at("fifo")).catch(() => {});
  assert.equal(await fs.readTextFile(at("t")), "here");
});

await fs.remove(dir, { recursive: true });
await sandbox.close();
await done();
