// SPDX-License-Identifier: Apache-2.0
// The file methods against Deno itself: the same generated calls run in two equal directories, in one by this Deno, in the
// other by fs-driver. Values, error classes, codes and messages must agree, and the trees afterwards.
//   deno run -A fs_differential.mts DRIVER [SEED [ROUNDS]]
const STD = "../node_modules/@deno/sandbox/esm/deps/jsr.io/@std";
const [driverPath, seedArg, roundsArg] = Deno.args;
const seed = Number(seedArg ?? 1);
const rounds = Number(roundsArg ?? 60);
const CALLS = 80;

// --- a driver -----------------------------------------------------------------------------------------------------
class Driver {
  #child;
  #writer;
  #lines;
  constructor(dir: string) {
    this.#child = new Deno.Command(driverPath, { args: [dir], stdin: "piped", stdout: "piped" }).spawn();
    this.#writer = this.#child.stdin.getWriter();
    this.#lines = this.#read();
  }
  async *#read() {
    let rest = "";
    for await (const chunk of this.#child.stdout.pipeThrough(new TextDecoderStream())) {
      const parts = (rest + chunk).split("\n");
      rest = parts.pop()!;
      yield* parts;
    }
  }
  async call(method: string, params: unknown, chunks?: string[]) {
    await this.#writer.write(new TextEncoder().encode(JSON.stringify({ method, params, chunks }) + "\n"));
    const late = setTimeout(() => {
      console.log(`  not true: ${method} ${JSON.stringify(params).slice(0, 300)} answers in time\n0 passed, 1 failed, 0 skipped`);
      Deno.exit(1);
    }, 30000);
    const { value, done } = await this.#lines.next();
    clearTimeout(late);
    if (done) throw new Error(`the driver ended at ${method} ${JSON.stringify(params).slice(0, 300)}`);
    return JSON.parse(value);
  }
  async close() {
    await this.#writer.close();
    if (!(await this.#child.status).success) throw new Error("the driver failed");
  }
}

// --- what Deno answers ----------------------------------------------------------------------------------------------
const b64 = (u: Uint8Array) => u.toBase64();
const unb64 = (s: string) => Uint8Array.fromBase64(s);
const undef = (v: unknown) => v === null ? undefined : v;
const opts = (o: Record<string, unknown> | undefined) =>
  o && Object.fromEntries(Object.entries(o).map(([k, v]) => [k, undef(v)]));

class Reference {
  #files = new Map<number, Deno.FsFile>();
  #next = 0;
  std: { walk: (...a: any[]) => AsyncIterable<any>; expandGlob: (...a: any[]) => AsyncIterable<any> };
  constructor(std: any) {
    this.std = std;
  }
  #file(id: number) {
    const f = this.#files.get(id);
    if (!f) throw new Deno.errors.BadResource("Bad resource ID");
    return f;
  }
  #keep(f: Deno.FsFile) {
    this.#files.set(this.#next, f);
    return { fileHandleId: this.#next++ };
  }
  closeAll() {
    for (const f of this.#files.values()) try { f.close(); } catch { /* was closed */ }
  }
  async run(method: string, p: any, chunks?: string[]): Promise<unknown> {
    switch (method) {
      case "readFile": return b64(await Deno.readFile(p.path));
      case "readTextFile": return await Deno.readTextFile(p.path);
      case "writeFile":
      case "writeTextFile": {
        const stream = chunks && ReadableStream.from(chunks.map(unb64)) as ReadableStream<Uint8Array>;
        if (stream || method === "writeFile") await Deno.writeFile(p.path, stream ?? unb64(p.content), opts(p.options));
        else await Deno.writeTextFile(p.path, p.content, opts(p.options));
        return null;
      }
      case "readDir": {
        const list = [];
        for await (const e of Deno.readDir(p.path)) list.push({ ...e });
        return list.sort((a, b) => a.name < b.name ? -1 : 1);
      }
      case "remove": return await Deno.remove(p.path, opts(p.options)), null;
      case "mkdir": return await Deno.mkdir(p.path, opts(p.options) as any), null;
      case "rename": return await Deno.rename(p.oldPath, p.newPath), null;
      case "stat": return await Deno.stat(p.path);
      case "lstat": return await Deno.lstat(p.path);
      case "chmod": return await Deno.chmod(p.path, p.mode), null;
      case "chown": return await Deno.chown(p.path, p.uid, p.gid), null;
      case "copyFile": return await Deno.copyFile(p.fromPath, p.toPath), null;
      case "link": return await Deno.link(p.target, p.path), null;
      case "symlink": return await Deno.symlink(p.target, p.path), null;
      case "readLink": return await Deno.readLink(p.path);
      case "realPath": return await Deno.realPath(p.path);
      case "makeTempDir": return await Deno.makeTempDir(opts(p.options) as any);
      case "makeTempFile": return await Deno.makeTempFile(opts(p.options) as any);
      case "truncate": return await Deno.truncate(p.name, undef(p.length) as any), null;
      case "umask": return Deno.umask(undef(p.mask) as any);
      case "utime": return await Deno.utime(p.path, new Date(p.atime), new Date(p.mtime)), null;
      case "open": return this.#keep(await Deno.open(p.path, p.options ? opts(p.options) as any : undefined));
      case "create": return this.#keep(await Deno.create(p.path));
      case "fileClose": return this.#file(p.fileHandleId).close(), this.#files.delete(p.fileHandleId), null;
      case "fileRead": {
        const buf = new Uint8Array(p.length);
        const n = await this.#file(p.fileHandleId).read(buf);
        return { data: n === null ? null : b64(buf.slice(0, n)) };
      }
      case "fileWrite": return { bytesWritten: await this.#file(p.fileHandleId).write(unb64(p.data)) };
      case "fileSeek": {
        const offset = typeof p.offset === "string" ? BigInt(p.offset) : p.offset;
        return { position: await this.#file(p.fileHandleId).seek(offset, p.whence) };
      }
      case "fileStat": return await this.#file(p.fileHandleId).stat();
      case "fileSync": return await this.#file(p.fileHandleId).sync(), null;
      case "fileSyncData": return await this.#file(p.fileHandleId).syncData(), null;
      case "fileTruncate": return await this.#file(p.fileHandleId).truncate(undef(p.len) as any), null;
      case "fileLock": return await this.#file(p.fileHandleId).lock(undef(p.exclusive) as any), null;
      case "fileUnlock": return await this.#file(p.fileHandleId).unlock(), null;
      case "fileUtime":
        return await this.#file(p.fileHandleId).utime(new Date(p.atime), new Date(p.mtime)), null;
      default: throw new Error(`no such method: ${method}`);
    }
  }
  async entries(method: string, p: any) {
    const list: unknown[] = [];
    const regex = (r: any) => r?.map((x: any) => new RegExp(x.source, x.flags));
    let error;
    try {
      const { path, glob, ...rest } = opts(p) as any;
      const options = { ...rest, match: regex(rest.match), skip: regex(rest.skip) };
      const stream = method === "walk" ? this.std.walk(path, options) : this.std.expandGlob(glob, rest);
      for await (const e of stream) list.push({ ...e });
    } catch (e) {
      error = e;
    }
    return { entries: list, error };
  }
}

// --- the generator ---------------------------------------------------------------------------------------------------
let state = (seed * 2654435761) >>> 0 || 1;
function random(n: number) {
  state ^= state << 13, state >>>= 0, state ^= state >>> 17, state ^= state << 5, state >>>= 0;
  return state % n;
}
const pick = <T>(list: T[]): T => list[random(list.length)];
const maybe = <T>(v: () => T, percent = 50): T | undefined => random(100) < percent ? v() : undefined;

const long = "n".repeat(5000), longName = "n".repeat(256);
const names = ["a", "b", "new", "d", "d/x", "d/e", "d/e/deep", "d/new", "link", "dlink", "dlink/x", "loop", "dangling", "fifo2",
  "é", "日本/x", "emoji😀", "a/x", "a/", "d/", "new/", "dlink/", "./a", "d/../a", "d//x", "d/./x", "d/.", "no/such", "", ".", "sub/dir/y",
  "a\0b", long, longName, "d/" + longName, "sticky", "🦕", "\u{1F600}/no", "inv", "new2", "noperm", "d/e/..", "./new3/.", "empty"];
const anyName = () => pick(names);
const modes = [0o644, 0o600, 0o755, 0o777, 0, 0o4755, 0o1777, -1, 0o10000 + 0o640, 420.5, 2 ** 32 + 0o600, 1e300];
const bytes = () => Uint8Array.from({ length: random(60) }, () => random(256));
const texts = ["", "hello", "zwei\nZeilen\r\n", "\ufeffbom", "nul\0inside", "😀 lone \ud800 x", "\x01\x7f\"\\/", "日本語"];
const dates = ["1970-01-01T00:00:00.000Z", "2024-02-29T12:34:56.789Z", "1969-12-31T23:59:58.500Z", "1901-12-14T00:00:00.000Z",
  "2446-05-10T00:00:00.000Z", "2038-01-19T03:14:08.001Z", "+010000-01-01T00:00:00.000Z", "-000001-01-01T00:00:00.000Z"];
const regexes: [string, string][] = [["x$", ""], ["^d", ""], ["E", "i"], [".", "s"], ["[^a-z./]", "u"], ["^.{1,2}$", ""], ["^..$", ""],
  ["^..$", "u"], ["(d|e)/.", ""], ["\\p{L}{2}", "u"], ["\\bx\\b", ""], ["(?<q>.)\\k<q>", ""], ["(.)\\1", ""], ["[\\d\\W]", ""], ["x", "g"],
  ["d", "y"], ["d", "gy"], ["^e", "m"], ["(?=.*x)d", ""], ["(?<!d)/", ""], ["\\u{1f600}", "u"], ["\\ud83d", ""], ["[]", ""], ["[^]", ""],
  ["a{2,1", ""], ["\\/", ""], ["\\x61", ""], ["\\141", ""], ["(?:x|y)+?$", ""], ["(?i:X)", ""], ["é", "i"], ["É", "iu"], ["\\S\\s?\\.", ""],
  ["[😀]", "u"], ["[😀]", ""], ["\\cA|.", ""], ["^(?!d)", ""], ["\\w+$", "iu"], ["\\p{Script=Han}", "u"], ["\\p{Lu}", "u"], ["", ""]];
const globs = ["*", "**", "**/*", "d/*", "**/x", "{a,b}", "d/{x,e}/*", "[ab]", "[!ab]", "[^a]", "?", "*.txt", "**/*.txt", "d/**/", "@(a|b)", "!(a)",
  "+(a|b)", "?(a)b", "*(a)", "d/../*", "*/..", "*/../*", "**/..", "./*", "./d/*", "no/*", "a/*", "A", "D/*", "[[:alpha:]]*", "[[:upper:]]*",
  "[z-a]", "\\*", "d\\/x", "d/x", "d", "d/", "*/", "**/", "/", "", "[", "{a", "a)", "emoji*", "*😀", "??", "日本/*", "dlink/*", "**/e/**", "d/{,e/}*",
  "\\{a\\}", "*\\", "**a", "a**", "***", "d/*/*", "{d,{a,b}}", "d/+(x|y|e)", "(a|b)", "[a", "[]", "[a-", "x[[:digit:]]y", "*[[:bogus:]]*", "\\!a", "!a", "d/@(e)/@(deep)"];

type Call = [string, any, string[]?];
const flags = (keys: string[]) => {
  const o: Record<string, unknown> = {};
  for (const k of keys) {
    const v = pick([true, true, false, undefined, null, undefined]);
    if (v !== undefined) o[k] = v;
  }
  return o;
};
const writeOptions = () => maybe(() => ({ ...flags(["append", "create", "createNew"]), ...maybe(() => ({ mode: pick(modes) }), 40) }), 60);
const openOptions = () => maybe(() => ({ ...flags(["read", "write", "append", "truncate", "create", "createNew"]), ...maybe(() => ({ mode: pick(modes) }), 30) }), 85);
let handles = 0, ids: number[] = []; // how many were opened; our numbers of them
const handle = () => random(10) === 0 ? handles + 5 : random(handles + 1);
const walkOptions = () => ({
  ...flags(["includeFiles", "includeDirs", "includeSymlinks", "canonicalize"]),
  ...maybe(() => ({ maxDepth: pick([0, 1, 2, 3, -1, 1.5]) }), 40),
  ...maybe(() => ({ exts: pick([["x"], [".txt"], ["txt", ".x"], [], [""]]) }), 15),
  ...maybe(() => ({ match: Array.from({ length: 1 + random(2) }, () => pick(regexes)).map(([source, flags]) => ({ source, flags })) }), 40),
  ...maybe(() => ({ skip: [pick(regexes)].map(([source, flags]) => ({ source, flags })) }), 25),
});
const globOptions = () => ({
  ...flags(["includeDirs", "canonicalize"]),
  ...maybe(() => ({ extended: false }), 15),
  ...maybe(() => ({ globstar: false }), 15),
  ...maybe(() => ({ caseInsensitive: true }), 15),
  ...maybe(() => ({ root: pick([".", "d", "d/e", "no", "d/..", "dlink"]) }), 30),
  ...maybe(() => ({ exclude: [pick(globs), pick(globs)] }), 25),
});

const generators: Record<string, () => Call> = {
  readFile: () => ["readFile", { path: anyName() }],
  readTextFile: () => ["readTextFile", { path: anyName() }],
  writeFile: () => ["writeFile", { path: anyName(), content: b64(bytes()), options: writeOptions() }],
  writeTextFile: () => ["writeTextFile", { path: anyName(), content: pick(texts), options: writeOptions() }],
  writeStream: () => ["writeFile", { path: anyName(), contentStreamId: 1, options: writeOptions() }, [b64(bytes()), b64(bytes())]],
  readDir: () => ["readDir", { path: anyName() }],
  remove: () => ["remove", { path: anyName(), options: maybe(() => flags(["recursive"])) }],
  mkdir: () => ["mkdir", { path: anyName(), options: maybe(() => ({ ...flags(["recursive"]), ...maybe(() => ({ mode: pick(modes) }), 40) }), 70) }],
  rename: () => ["rename", { oldPath: anyName(), newPath: anyName() }],
  stat: () => ["stat", { path: anyName() }],
  lstat: () => ["lstat", { path: anyName() }],
  chmod: () => ["chmod", { path: anyName(), mode: pick(modes) }],
  chown: () => ["chown", { path: anyName(), uid: pick([null, 0, 1000, -1, 2 ** 32, 12.7]), gid: pick([null, 0, 1000, 2 ** 32 + 5]) }],
  copyFile: () => ["copyFile", { fromPath: anyName(), toPath: anyName() }],
  link: () => ["link", { target: anyName(), path: anyName() }],
  symlink: () => ["symlink", { target: anyName(), path: anyName() }],
  readLink: () => ["readLink", { path: anyName() }],
  realPath: () => ["realPath", { path: anyName() }],
  makeTemp: () => [pick(["makeTempDir", "makeTempFile"]), {
    options: maybe(() => ({
      ...maybe(() => ({ dir: anyName() }), 80),
      ...maybe(() => ({ prefix: pick(["p", "", "a/b", "a\\", "*", "c\x01", "\u0085", "n\n", "\0", "\"", "x".repeat(260), "..", "\x7f"]) })),
      ...maybe(() => ({ suffix: pick([".txt", "/", "?", "\r", "\t", "ü"]) }), 30),
    }), 90),
  }],
  truncate: () => ["truncate", { name: anyName(), length: pick([undefined, null, 0, 5, 100, -1, 2.9, 2 ** 53, 2 ** 63, 1e300]) }],
  umask: () => ["umask", { mask: pick([undefined, null, 0o22, 0o27, 0, 0o7777, -1, 1.5, 2 ** 32 + 2]) }],
  utime: () => ["utime", { path: anyName(), atime: pick(dates), mtime: pick(dates) }],
  open: () => ["open", { path: anyName(), options: openOptions() }],
  create: () => ["create", { path: anyName() }],
  fileClose: () => ["fileClose", { fileHandleId: handle() }],
  fileRead: () => ["fileRead", { fileHandleId: handle(), length: pick([0, 1, 5, 1000, 3.5]) }],
  fileWrite: () => ["fileWrite", { fileHandleId: handle(), data: b64(bytes()) }],
  fileSeek: () => ["fileSeek", { fileHandleId: handle(), offset: pick([0, 1, 5, -1, -5, 1000, 2.5, 2 ** 63, "7", "-3", "9223372036854775808", "-99999999999999999999"]), whence: pick([0, 0, 1, 2, 2, 3, -1, 1.5]) }],
  fileStat: () => ["fileStat", { fileHandleId: handle() }],
  fileSync: () => [pick(["fileSync", "fileSyncData"]), { fileHandleId: handle() }],
  fileTruncate: () => ["fileTruncate", { fileHandleId: handle(), len: pick([undefined, null, 0, 4, 50, -3, 2.5, 2 ** 63]) }],
  fileLock: () => ["fileLock", { fileHandleId: handle(), exclusive: pick([undefined, null, true, false]) }],
  fileUnlock: () => ["fileUnlock", { fileHandleId: handle() }],
  fileUtime: () => ["fileUtime", { fileHandleId: handle(), atime: pick(dates), mtime: pick(dates) }],
  walk: () => ["walk", { path: pick([".", "d", "d/", "./d/e", "a", "no", "", "d/../d", "dlink", "loop", "a\0b", long]), ...walkOptions() }],
  walkFollow: () => ["walk", { path: pick(["safe", "safe/l", "./safe"]), followSymlinks: true, ...walkOptions() }],
  expandGlob: () => ["expandGlob", { glob: pick(globs), ...globOptions() }],
  expandGlobFollow: () => ["expandGlob", { glob: pick(["safe/**", "safe/*", "safe/*/*", "safe/**/x"]), followSymlinks: true, ...globOptions() }],
};
const kinds = Object.keys(generators);

// --- comparing ---------------------------------------------------------------------------------------------------------
/** Times are compared where a call set them; numbers of the file system are its own. */
const OWN = ["ino", "dev", "atime", "mtime", "ctime", "birthtime"];
function plain(v: any, dir: string): unknown {
  if (typeof v === "string") {
    const top = dir.replace(/\/\d+\/base$/, "");
    return v.replaceAll(top, "$TOP").replaceAll(top.replaceAll("/", "/+"), "$TOP");
  }
  if (v instanceof Date) return v.toISOString();
  if (Array.isArray(v)) return v.map((x) => plain(x, dir));
  if (v && typeof v === "object") {
    const own = "blksize" in v;
    return Object.fromEntries(Object.entries(v).filter(([k]) => !own || !OWN.includes(k)).map(([k, x]) => [k, plain(x, dir)]));
  }
  return v;
}
function errorOf(e: any, dir: string) {
  const message = plain(e.message, dir) as string | undefined;
  return { constructorName: e.constructorName ?? e.constructor.name, code: e.code ?? null, message };
}
const sorted = (list: any[]) => list.map((e) => JSON.stringify(e)).sort();
const temp = (v: any) => typeof v === "string" ? v.replace(/[0-9a-f]{8,16}/, "#") : v;

async function tree(dir: string): Promise<string> {
  const out = await new Deno.Command("bash", {
    args: ["-c", `cd "$1" && find . -printf '%p|%y|%m|%U|%G|%n|%l|' \\( -type f -printf '%s|' -exec sh -c 'cksum < "$1" | tr "\\n" " "' _ {} \\; -o -true \\) -printf '\\n' | sort`, "_", dir],
  }).output();
  return new TextDecoder().decode(out.stdout);
}
const FIXTURE = `
umask 022; mkdir -p d/e/deep d/y sub/dir safe/real/in inv 日本 empty noperm
printf 'hello world' > a; printf 'b' > b; printf '#!/bin/sh\\n' > d/x; chmod 755 d/x; printf 't' > d/e/t.txt; printf 1 > d/e/deep/x
ln -s a link; ln -s d dlink; ln -s loop loop; ln -s nowhere dangling; mkfifo fifo2; printf é > é; printf '\\377\\376ab\\xc3' > sub/dir/y
printf 1 > 日本/x; printf 1 > 'emoji😀'; mkdir 🦕; printf 1 > 🦕/x; printf x > safe/real/in/x; ln -s real safe/l; ln -s real/in/x safe/f; ln -s nowhere safe/gone
touch inv/$'bad\\377name' inv/$'\\303\\050' inv/ok sticky; chmod 4755 sticky; ln -s inv/$'bad\\377name' inv/badlink; chmod 000 noperm`;

let failed = 0, passed = 0;
function check(what: string, theirs: unknown, ours: unknown) {
  const a = JSON.stringify(theirs), b = JSON.stringify(ours);
  if (a === b) return void passed++;
  if (failed++ < 20) console.log(`  not true: ${what.slice(0, 400)}\n    Deno:  ${a?.slice(0, 700)}\n    we:    ${b?.slice(0, 700)}`);
}

/** A FIFO blocks who opens it without a peer: only calls that don't, and none that give it another name. */
const harmless = /^(l?stat|chmod|chown|utime|readLink|realPath|remove|readDir|mkdir|makeTemp|walk|expandGlob|umask)/;
const mentionsFifo = (p: any) => Object.values(p).some((v) => typeof v === "string" && v.startsWith("fifo"));

async function compare(call: Call, reference: Reference, driver: Driver, dirs: [string, string]) {
  const [method, params, chunks] = call;
  const label = `${method} ${JSON.stringify(params)}`;
  const theirId = params.fileHandleId;
  const ours = await driver.call(method, theirId === undefined ? params : { ...params, fileHandleId: ids[theirId] ?? 1e9 }, chunks);
  if (method === "walk" || method === "expandGlob") {
    const theirs = await reference.entries(method, params);
    const list = (v: any[], dir: string) => method === "walk" ? sorted(plain(v, dir) as any[]) : plain(v, dir);
    // An error ends a walk wherever the directory's order brings it; without one all entries must be the same.
    if (!theirs.error || !ours.error) check(label, list(theirs.entries, dirs[0]), list(ours.entries, dirs[1]));
    const errors = [theirs.error && errorOf(theirs.error, dirs[0]), ours.error && errorOf(ours.error, dirs[1])];
    // expandGlob goes through its matches all at once: which of several errors comes first is luck.
    if (method === "expandGlob") errors.forEach((e) => e && delete e.message);
    check(label + " error", errors[0], errors[1]);
    return;
  }
  let theirs: any;
  try {
    theirs = { ok: await reference.run(method, params, chunks) };
  } catch (e) {
    theirs = { error: errorOf(e, dirs[0]) };
  }
  if (ours.ok && method === "readDir") ours.ok.sort((a: any, b: any) => a.name < b.name ? -1 : 1);
  if (ours.error) ours.error = errorOf(ours.error, dirs[1]);
  if (method.startsWith("makeTemp") && ours.ok) {
    // Random names: gone again, so that later calls see the same.
    if (theirs.ok) await Deno.remove(theirs.ok);
    check(label + " removed", { ok: null }, await driver.call("remove", { path: ours.ok }));
    theirs.ok = temp(theirs.ok);
    ours.ok = temp(ours.ok);
  }
  if ((method === "open" || method === "create") && ours.ok) {
    ids.push(ours.ok.fileHandleId);
    ours.ok.fileHandleId = handles++;
  }
  check(label, plain(theirs, dirs[0]), plain(ours, dirs[1]));
  // Given back at once: another handle of the same file would wait for it.
  if (method === "fileLock" && ours.ok === null) await compare(["fileUnlock", { fileHandleId: theirId }], reference, driver, dirs);
  if (method === "fileUtime" && ours.ok === null) {
    const t = await reference.run("fileStat", { fileHandleId: theirId }) as Deno.FileInfo;
    const o = (await driver.call("fileStat", { fileHandleId: ids[theirId] })).ok;
    check(label + " times", [t.mtime, t.atime, t.birthtime !== null], [o.mtime, o.atime, o.birthtime !== null]);
  }
  if (method === "utime" && ours.ok === null) {
    const t = await Deno.stat(params.path), o = (await driver.call("stat", { path: params.path })).ok;
    check(label + " times", [t.mtime, t.atime], [o.mtime, o.atime]);
  }
}

// The SDK's copy of @std/fs, with Deno itself in place of its shim.
async function loadStd() {
  const dir = await Deno.makeTempDir();
  const from = new URL("../node_modules/@deno/sandbox/esm/", import.meta.url).pathname;
  await new Deno.Command("cp", { args: ["-rL", from + "deps", dir] }).output();
  await Deno.writeTextFile(dir + "/package.json", '{"type":"module"}');
  await Deno.writeTextFile(dir + "/_dnt.shims.js", "export const Deno = globalThis.Deno; export const dntGlobalThis = globalThis;");
  const { walk } = await import(`file://${dir}/deps/jsr.io/@std/fs/1.0.23/walk.js`);
  const { expandGlob } = await import(`file://${dir}/deps/jsr.io/@std/fs/1.0.23/expand_glob.js`);
  await Deno.remove(dir, { recursive: true });
  return { walk, expandGlob };
}

const std = await loadStd();
const top = await Deno.makeTempDir({ prefix: "nestbox-fs-" });
console.log(`seed ${seed}, ${rounds} rounds of ${CALLS} calls`);
for (let round = 0; round < rounds; round++) {
  const dirs: [string, string] = [`${top}/deno/${round}/base`, `${top}/ours/${round}/base`];
  for (const d of dirs) {
    await Deno.mkdir(d, { recursive: true });
    const made = await new Deno.Command("bash", { args: ["-c", FIXTURE], cwd: d, stderr: "inherit" }).output();
    if (!made.success) throw new Error("fixture");
  }
  Deno.umask(0o22);
  Deno.chdir(dirs[0]);
  const reference = new Reference(std), driver = new Driver(dirs[1]);
  handles = 0, ids = [];
  for (let i = 0; i < CALLS; i++) {
    const call = generators[pick(kinds)]();
    if (!harmless.test(call[0]) && mentionsFifo(call[1])) continue;
    const before = failed;
    await compare(call, reference, driver, dirs);
    if (failed !== before && failed <= 20) console.log(`    (round ${round}, call ${i})`);
  }
  reference.closeAll();
  await driver.close();
  Deno.umask(0o22);
  Deno.chdir("/");
  check(`round ${round} trees`, (await tree(dirs[0])).split("\n"), (await tree(dirs[1])).split("\n"));
  // Some directories were left without permissions.
  await new Deno.Command("bash", { args: ["-c", 'chmod -R u+rwX "$1"; rm -rf "$1"', "_", `${top}/deno`] }).output();
  await new Deno.Command("bash", { args: ["-c", 'chmod -R u+rwX "$1"; rm -rf "$1"', "_", `${top}/ours`] }).output();
}
await Deno.remove(top, { recursive: true });
console.log(`${passed} passed, ${failed} failed, 0 skipped`);
Deno.exit(failed ? 1 : 0);
