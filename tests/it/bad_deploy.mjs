// SPDX-License-Identifier: Apache-2.0
// Trees that must not be deployed, through the front door with the SDK: each is refused with its code, makes no revision, and the
// sandbox goes on. DENO_DEPLOY_ENDPOINT, DENO_SANDBOX_ENDPOINT and DENO_DEPLOY_TOKEN from the environment.
import { Sandbox } from "@deno/sandbox";
import { check, client, finish, must } from "./lib-apps.mjs";

const app = await client.apps.create();
const sandbox = await Sandbox.create();
await sandbox.sh`mkdir -p good && echo 'Deno.serve(() => new Response("x"))' > good/main.ts`;

async function refused(options, code) {
	try {
		await sandbox.deploy(app.slug, options);
	} catch (e) {
		must(e.message.includes(`"code":"${code}"`), `refused otherwise: ${e.message}`);
		return;
	}
	throw new Error(`deployed, but ${code} was due`);
}
let n = 0;
for (const [name, script, code] of [
	["a link to an absolute path", "ln -sf /etc/passwd out", "INVALID_TREE"],
	["a link that leads out", "mkdir -p a/b && ln -sf ../../../../etc a/b/out", "INVALID_TREE"],
	["a fifo", "[ -p pipe ] || mkfifo pipe", "INVALID_TREE"],
	["a device", "[ -e null ] || sudo mknod null c 1 3", "INVALID_TREE"],
	["a sparse file of 3 GB", "truncate -s 3G sparse", "TREE_TOO_LARGE"],
]) await check(`${name}: ${code}`, async () => {
	const dir = `/home/app/t${n++}`;
	await sandbox.sh`mkdir -p ${dir} && cp good/main.ts ${dir}/ && cd ${dir} && bash -ec ${script}`;
	await refused({ path: dir }, code);
	await sandbox.sh`rm -rf ${dir}`;
});
await check("no such directory: INVALID_TREE", () => refused({ path: "/home/app/nowhere" }, "INVALID_TREE"));
await check("an empty directory: INVALID_ENTRYPOINT", async () => {
	await sandbox.sh`mkdir -p empty`;
	await refused({ path: "/home/app/empty" }, "INVALID_ENTRYPOINT");
});
await check("no such entrypoint: INVALID_ENTRYPOINT", () => refused({ path: "/home/app/good", build: { entrypoint: "nope.ts" } }, "INVALID_ENTRYPOINT"));
await check("an entrypoint above the tree: INVALID_REQUEST", () => refused({ path: "/home/app/good", build: { entrypoint: "../good/main.ts" } }, "INVALID_REQUEST"));
await check("a path with ..: INVALID_PATH", () => refused({ path: "/home/app/../../etc" }, "INVALID_PATH"));
await check("a path of 5,000 characters: INVALID_PATH", () => refused({ path: "/" + "p".repeat(5000) }, "INVALID_PATH"));
await check("a path with a NUL: INVALID_JSON", () => refused({ path: "/home/app\0/x" }, "INVALID_JSON"));
await check("nothing was made of any of them, and the sandbox goes on", async () => {
	must((await client.revisions.list(app.slug)).items.length === 0, "revisions were left");
	must((await sandbox.sh`echo on`.text()).trim() === "on", "the sandbox does not answer");
});
await sandbox.kill();
await client.apps.delete(app.id);
finish();
