// SPDX-License-Identifier: Apache-2.0
// The table of methods in doc/compatibility.md, made of two things: the declarations of the installed @deno/sandbox (as `deno doc`
// reads them) and what the test programs were seen to call (lib/cover.mjs). `compat.mjs check`: the table names every method,
// option and error class that is declared, no other, and each test that it names did call it in this run (of tests that did
// not run nothing is said). `compat.mjs write` puts a new table into the document. NESTBOX_COVERAGE: directory of the notes.
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

const DOC = fileURLToPath(new URL("../../doc/compatibility.md", import.meta.url));
const BEGIN = "<!-- methods: begin (made by tests/lib/compat.mjs) -->", END = "<!-- methods: end -->";
const NAMED_MAX = 2; // tests named for one method; more would say no more

// The same function by another name: its options are listed with the first.
const ALIASES = { "Sandboxes.create": "Sandbox.create", "Sandboxes.connect": "Sandbox.connect", "Sandbox.deploy": "SandboxDeno.deploy" };
// Of the shell builder's own wiring.
const INTERNAL = new Set(["SandboxLike", "SandboxLikeChild"]);

const modules = fileURLToPath(new URL("../node_modules", import.meta.url));
const deno = path.join(modules, "@deno/linux-x64-glibc/deno");
const esm = path.join(modules, "@deno/sandbox/esm");

// --- what is declared ---------------------------------------------------------------------------------------------

function documented(file) {
  const text = execFileSync(deno, ["doc", "--json", path.join(esm, file)], { encoding: "utf8", maxBuffer: 1 << 26, stdio: ["ignore", "pipe", "ignore"], cwd: path.dirname(modules) });
  return Object.values(JSON.parse(text).nodes)[0].symbols;
}

const symbols = new Map(); // name: declarations
for (const file of ["mod.d.ts", "command/mod.d.ts"]) {
  for (const s of documented(file)) if (!symbols.has(s.name)) symbols.set(s.name, s.declarations);
}

/** Names of the properties of an options type, those of nested options with their path. */
function options(type, level = 0, into = new Set(), prefix = "") {
  if (!type || level > 6) return into;
  const properties = (list) => {
    for (const p of list ?? []) {
      into.add(prefix + p.name);
      if (prefix.split(".").length < 3) options(p.tsType, level + 1, into, `${prefix}${p.name}.`);
    }
  };
  switch (type.kind) {
    case "typeRef": {
      for (const d of symbols.get(type.value.typeName) ?? []) {
        if (d.kind === "interface" && !(d.def.methods?.length)) {
          properties(d.def.properties);
          for (const e of d.def.extends ?? []) options(e, level + 1, into, prefix);
        } else if (d.kind === "typeAlias") {
          options(d.def.tsType, level + 1, into, prefix);
        }
      }
      if (type.value.typeName === "Omit") {
        const [of, without] = type.value.typeParams;
        const left = new Set((without.kind === "union" ? without.value : [without]).map((t) => t.value.string));
        for (const o of options(of, level + 1, new Set(), "")) if (!left.has(o.split(".")[0])) into.add(prefix + o);
      }
      // Of a package that this one brings along; its declarations are not part of what is documented.
      if (type.value.typeName === "GlobOptions") for (const n of ["extended", "globstar", "caseInsensitive"]) into.add(prefix + n);
      break;
    }
    case "typeLiteral":
      properties(type.value.properties);
      break;
    case "union":
    case "intersection":
      for (const t of type.value) options(t, level + 1, into, prefix);
      break;
    case "parenthesized":
      options(type.value, level + 1, into, prefix);
      break;
  }
  return into;
}

/** Groups of names: [group, [name, ...]] in the order of the declarations. */
function declared() {
  const groups = [], errors = [];
  for (const [type, list] of symbols) {
    for (const d of INTERNAL.has(type) ? [] : list) {
      if (d.kind === "class" && (d.def.extends === "Error" || d.def.extends === "SandboxSdkError")) {
        errors.push(type);
        continue;
      }
      if (d.kind !== "class" && d.kind !== "interface") continue;
      const names = [];
      const methods = d.def.methods ?? [];
      if (type === "Sandbox") names.push("Sandbox.sh");
      if (type === "Build") names.push("Build.done");
      for (const m of methods) {
        if (m.accessibility === "private" || m.name.startsWith("#")) continue;
        const name = `${type}.${m.name}`;
        if (!names.includes(name)) names.push(name);
        for (const p of (ALIASES[name] ? [] : (m.functionDef ?? m).params) ?? []) {
          for (const o of options(p.tsType)) {
            const option = `${name}({ ${o} })`;
            if (!names.includes(option)) names.push(option);
          }
        }
      }
      if (methods.length) groups.push([type, names]);
    }
  }
  groups.push(["Errors", errors.map((e) => `Errors.${e}`)]);
  return groups;
}

// --- what was called ----------------------------------------------------------------------------------------------

/** Map of name to the suites that called it; the set of the suites that ran. */
function called(dir) {
  const by = new Map(), ran = new Set();
  const note = (name, suite) => (by.get(name) ?? by.set(name, new Set()).get(name)).add(suite);
  for (const file of fs.existsSync(dir) ? fs.readdirSync(dir).sort() : []) {
    const suite = file.replace(/\.json$/, "").replace("+", "/");
    const seen = JSON.parse(fs.readFileSync(path.join(dir, file), "utf8"));
    ran.add(suite);
    for (const [name, e] of Object.entries(seen.methods)) {
      if (e.ok + e.threw === 0) continue;
      note(name, suite);
      for (const o of Object.keys(e.options)) note(`${ALIASES[name] ?? name}({ ${o} })`, suite);
    }
    for (const name of Object.keys(seen.errors)) note(`Errors.${name}`, suite);
  }
  return { by, ran };
}

// --- the table ----------------------------------------------------------------------------------------------------

const HOME = { VsCode: ["vscode"], // the tests that are about a class come first in its rows
  SandboxFs: ["fs"], FsFile: ["fs"], Sandbox: ["sandbox", "process"], SandboxDeno: ["deno"], DenoProcess: ["deno"], DenoRepl: ["deno"],
  ChildProcess: ["process"], SandboxCommandBuilder: ["shell", "process"], KillController: ["shell"], KillSignal: ["shell"],
  SandboxEnv: ["sandbox", "process"], Apps: ["apps"], Layers: ["apps"], Revisions: ["apps"], Timelines: ["apps"], Build: ["apps"], Client: ["apps"],
  PaginatedList: ["apps"], Volumes: ["disks", "volumes"], Volume: ["disks"], Snapshots: ["disks", "volumes"], Snapshot: ["disks"], Errors: ["sandbox"],
};

function pick(suites, type, deno) {
  const mine = [...suites].filter((s) => s.startsWith("sdk-deno/") === deno);
  const rank = (s) => {
    const i = (HOME[type] ?? []).indexOf(s.split("/")[1]);
    return i >= 0 ? i : s.startsWith("sdk") ? 10 : 20;
  };
  return mine.sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1)).slice(0, NAMED_MAX);
}

function table({ by }) {
  const out = [BEGIN, ""];
  for (const [type, names] of declared()) {
    out.push(`### ${type}`, "", "| | under Node | under Deno |", "|---|---|---|");
    for (const name of names) {
      const suites = by.get(name) ?? new Set();
      const short = name.slice(type.length + 1).replaceAll("|", "\\|");
      const cell = (deno) => pick(suites, type, deno).map((s) => s.replace("sdk-deno/", "").replace(/^sdk\//, "")).join(", ") || "-";
      out.push(`| \`${short}\` | ${cell(false)} | ${cell(true)} |`);
    }
    out.push("");
  }
  out.push(END);
  return out.join("\n");
}

function parseTable(text) {
  const rows = new Map();
  let type = "";
  for (const line of text.split("\n")) {
    const head = /^### (\S+)$/.exec(line);
    if (head) type = head[1];
    const row = /^\| `(.*)` \| (.*) \| (.*) \|$/.exec(line);
    if (!row) continue;
    const list = (cell, prefix) => cell === "-" ? [] : cell.split(", ").map((s) => s.includes("/") ? s : `${prefix}/${s}`);
    rows.set(`${type}.${row[1]}`, [...list(row[2], "sdk"), ...list(row[3], "sdk-deno")]);
  }
  return rows;
}

// --- verbs --------------------------------------------------------------------------------------------------------

const doc = fs.readFileSync(DOC, "utf8");
const from = doc.indexOf(BEGIN), to = doc.indexOf(END);
const seen = called(process.env.NESTBOX_COVERAGE ?? "");

if (process.argv[2] === "write") {
  if (from < 0 || to < from) throw new Error(`${DOC} has no place for the table`);
  fs.writeFileSync(DOC, doc.slice(0, from) + table(seen) + doc.slice(to + END.length));
} else if (process.argv[2] === "list") {
  for (const [, names] of declared()) for (const n of names) console.log(n, [...(seen.by.get(n) ?? [])].join(" ") || "-");
} else {
  const rows = parseTable(doc.slice(from, to));
  let passed = 0, failed = 0;
  const fail = (text) => {
    failed++;
    console.log(`FAIL ${text}`);
  };
  const names = new Set(declared().flatMap(([, list]) => list));
  for (const name of names) {
    const tests = rows.get(name);
    if (!tests) fail(`${name} is declared by the package and not in the table`);
    else if (!tests.length) fail(`${name} has no test`);
    else {
      const untrue = tests.filter((s) => seen.ran.has(s) && !seen.by.get(name)?.has(s));
      for (const s of untrue) fail(`${s} is said to call ${name} and did not`);
      if (!untrue.length) passed++;
    }
  }
  for (const name of rows.keys()) if (!names.has(name)) fail(`${name} is in the table and the package does not declare it`);
  if (names.size < 300) fail(`only ${names.size} declarations were read`);
  if (!seen.ran.size) fail("no notes of what the tests called");
  console.log(`${passed} passed, ${failed} failed, 0 skipped`);
  process.exit(failed ? 1 : 0);
}
