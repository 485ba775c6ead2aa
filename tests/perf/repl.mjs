// SPDX-License-Identifier: Apache-2.0
// From asking for a REPL to its first answer: one that is started then, and one that waits; beside Deno on this host.
import { execFileSync } from "node:child_process";
import { createRequire } from "node:module";
import { dirname } from "node:path";
import { Sandbox } from "@deno/sandbox";
import { env, finish, row, timed } from "./lib.mjs";

const RUNS = Number(env.PERF_RUNS ?? 7);
const deno = dirname(createRequire(import.meta.url).resolve("@deno/linux-x64-glibc/package.json")) + "/deno";
const s = await Sandbox.create();

// The one that waits has nothing to do any more.
async function settled() {
  await s.sh`p=; last=-
    for i in $(seq 600); do
      p=$(pgrep -n -x deno) && now=$(cut -d ' ' -f 14,15 /proc/$p/stat) && [ "$now" = "$last" ] && exit
      last=$now; sleep 0.5
    done; exit 1`;
}

const local = [], cold = [], warm = [], second = [];
const evaluate = () => s.deno.eval("1 + 1");
const once = async (options) => {
  const repl = await s.deno.repl(options);
  await repl.eval("1 + 1");
  return repl;
};
execFileSync(deno, ["eval", "1 + 1"]);
await evaluate();
for (let i = 0; i < RUNS; i++) {
  local.push(await timed(async () => execFileSync(deno, ["eval", "1 + 1"])));
  await settled();
  let repl;
  cold.push(await timed(async () => repl = await once({ env: { RUN: String(i) } }))); // none is like it
  second.push(await timed(() => repl.eval("1 + 1")));
  await repl.close();
  await evaluate();
  await settled();
  warm.push(await timed(evaluate));
}
const reference = { name: "`deno eval` on this host", values: local };
row("REPL to its first answer, started for it", "ms", cold, reference);
row("`deno.eval`, with one that waits", "ms", warm, reference);
row("an evaluation in a REPL that runs", "ms", second);
await s.close();
finish("repl");
process.exit(0);
