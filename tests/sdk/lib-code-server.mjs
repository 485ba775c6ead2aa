// SPDX-License-Identifier: Apache-2.0
// The real code-server for a sandbox of the default image, which does not have it: on a volume where an image made with it has it.
// NESTBOX_CODE_SERVER names a directory that tests/lib/code-server.sh fills while other suites run: `disk`, a file system, and `done`, its status.
import fs from "node:fs";
import path from "node:path";
import { Client } from "@deno/sandbox";
import { skip, sleep } from "./lib.mjs";

const { NESTBOX_CODE_SERVER: dir, NESTBOX_STATE: state } = process.env;
const PLACE = "/usr/local/lib/code-server";
export const LINK = "sudo ln -s ../lib/code-server/out/node/entry.js /usr/local/bin/code-server";

/** Options for Sandbox.create; then LINK in the sandbox. Skips where it cannot be had, and only there. */
export async function codeServer() {
  if (!dir || !state) skip("no code-server: it needs an instance of its own and npm's registry, or what was made of it before");
  while (!fs.existsSync(`${dir}/done`)) await sleep(500);
  const status = fs.readFileSync(`${dir}/done`, "utf8").trim();
  if (status !== "0") throw new Error(`code-server could not be made (${status}); all of it is in ${dir}/log`);
  const client = new Client();
  const { size } = fs.statSync(`${dir}/disk`);
  const volume = await client.volumes.create({ slug: `code-server-${Math.random().toString(36).slice(2, 8)}`, region: process.env.NESTBOX_REGION ?? "ord", capacity: size });
  // As an operator would fill a volume that nobody has yet: the same file, of the same size.
  await fill(path.join(state, "volumes", volume.id, "disk"), `${dir}/disk`);
  return { options: { volumes: { [PLACE]: volume.id } }, remove: () => remove(client, volume.id) };
}

/** Its sandbox ends a grace after the connection that it lived by. */
async function remove(client, id) {
  for (let n = 0; ; n++) {
    try {
      return await client.volumes.delete(id);
    } catch (e) {
      if (e.code !== "VOLUME_IN_USE" || n === 120) throw e;
      await sleep(500);
    }
  }
}

/** Holes stay holes. */
async function fill(to, from) {
  const [out, source] = [await fs.promises.open(to, "r+"), await fs.promises.open(from, "r")];
  const chunk = Buffer.alloc(1 << 20), zeros = Buffer.alloc(1 << 20), { size } = await source.stat();
  await out.truncate(0);
  await out.truncate(size);
  for (let at = 0, n; (n = (await source.read(chunk, 0, chunk.length, at)).bytesRead) > 0; at += n)
    if (!chunk.subarray(0, n).equals(zeros.subarray(0, n))) await out.write(chunk, 0, n, at);
  await out.close();
  await source.close();
}
