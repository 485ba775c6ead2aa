// SPDX-License-Identifier: Apache-2.0
// Real servers for tests/sec/egress-clients.mjs, in the namespace of a World (tests/sec/lib-egress.mjs): nginx with HTTP/2, which is a
// web server, a Debian repository, an npm registry and, before git's own program, a git server; Deno; PostgreSQL; OpenSSH. All of
// their files are in one directory that goes with them.
import { execFileSync, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { chmodSync, copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import http from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

export const NGINX = "10.199.77.17", DENO = "10.199.77.18", PG = "10.199.77.19", SSH = "10.199.77.20";
const run = (cmd, args, options = {}) => execFileSync(cmd, args, { stdio: ["ignore", "pipe", "pipe"], ...options });

/** What every client installs or clones. */
function content(dir, certs, modules, secret) {
  // A package of Debian's kind, in a repository without suites.
  const tree = join(dir, "deb"), apt = join(dir, "www/apt");
  mkdirSync(join(tree, "DEBIAN"), { recursive: true });
  mkdirSync(join(tree, "usr/share/nbtest"), { recursive: true });
  mkdirSync(apt, { recursive: true });
  writeFileSync(join(tree, "usr/share/nbtest/hello"), "hello from a package\n");
  writeFileSync(join(tree, "DEBIAN/control"),
    "Package: nbtest-hello\nVersion: 1.0\nArchitecture: all\nMaintainer: Nobody <nobody@egress.test>\nDescription: for a test\n");
  run("dpkg-deb", ["--root-owner-group", "-Znone", "--build", tree, join(apt, "nbtest-hello_1.0_all.deb")]);
  const deb = readFileSync(join(apt, "nbtest-hello_1.0_all.deb")), sha = (b) => createHash("sha256").update(b).digest("hex");
  const packages = Buffer.from(readFileSync(join(tree, "DEBIAN/control"), "utf8").trimEnd() +
    `\nFilename: ./nbtest-hello_1.0_all.deb\nSize: ${deb.length}\nSHA256: ${sha(deb)}\n`);
  writeFileSync(join(apt, "Packages"), packages);
  writeFileSync(join(apt, "Release"), `Suite: nbtest\nDate: ${new Date().toUTCString()}\nArchitectures: all amd64\nSHA256:\n ${sha(packages)} ${packages.length} Packages\n`);
  // A module of some name for each host.
  for (const [host, name] of Object.entries(modules)) {
    const at = join(dir, "www/npm", host), from = join(dir, "npm", host);
    mkdirSync(join(from, "package"), { recursive: true });
    writeFileSync(join(from, "package/package.json"), JSON.stringify({ name, version: "1.2.3", main: "index.js" }));
    writeFileSync(join(from, "package/index.js"), 'module.exports = "hello from a module";\n');
    mkdirSync(join(at, "@open"), { recursive: true });
    run("tar", ["-C", from, "-czf", join(at, "module-1.2.3.tgz"), "package"]);
    const tgz = readFileSync(join(at, "module-1.2.3.tgz"));
    const dist = { tarball: `https://${host}/npm/module-1.2.3.tgz`, shasum: createHash("sha1").update(tgz).digest("hex"),
      integrity: "sha512-" + createHash("sha512").update(tgz).digest("base64") };
    writeFileSync(join(at, name), JSON.stringify({ name, "dist-tags": { latest: "1.2.3" }, versions: { "1.2.3": { name, version: "1.2.3", dist } } }));
  }
  // A repository with one commit.
  const repo = join(dir, "git/repo.git"), work = join(dir, "work");
  const env = { ...process.env, GIT_AUTHOR_NAME: "n", GIT_AUTHOR_EMAIL: "n@egress.test", GIT_COMMITTER_NAME: "n", GIT_COMMITTER_EMAIL: "n@egress.test",
    GIT_CONFIG_GLOBAL: "/dev/null", GIT_CONFIG_SYSTEM: "/dev/null" };
  run("git", ["init", "-q", "-b", "main", "--bare", repo], { env });
  run("git", ["-C", repo, "config", "http.receivepack", "true"], { env });
  run("git", ["init", "-q", "-b", "main", work], { env });
  writeFileSync(join(work, "file"), "hello from a repository\n");
  run("git", ["-C", work, "add", "file"], { env });
  run("git", ["-C", work, "commit", "-qm", "one"], { env });
  run("git", ["-C", work, "push", "-q", repo, "main"], { env });
  writeFileSync(join(dir, "htpasswd"), `user:{PLAIN}${secret}\n`);
  for (const f of ["good.pem", "good.key", "ca.pem"]) copyFileSync(join(certs, f), join(dir, f));
}

function nginxConf(dir, { open, closed, secret }) {
  const server = (name, more) => `
  server {
    listen ${NGINX}:443 ssl http2;
    server_name ${name};
    access_log ${dir}/access.log row;
    location = /hello { default_type text/plain; return 200 "hello from nginx, $server_protocol\\n"; }
    location = /key { default_type text/plain; if ($http_x_key != "${secret}") { return 401 "wrong key\\n"; } return 200 "your key is $http_x_key\\n"; }
    location /apt/ { ${more} root ${dir}/www; }
    location /npm/ { ${more} default_type application/json; alias ${dir}/www/npm/${name}/; }
    location = /private { ${more} default_type text/plain; alias ${dir}/private; }
    location /git/ { ${more} proxy_pass http://unix:${dir}/git.sock; proxy_http_version 1.1; proxy_request_buffering off; proxy_buffering off; }
  }`;
  return `user root;
daemon off; worker_processes 1; pid ${dir}/nginx.pid; error_log ${dir}/nginx.log;
events { worker_connections 256; }
http {
  client_body_temp_path ${dir}/t1; proxy_temp_path ${dir}/t2; fastcgi_temp_path ${dir}/t3; uwsgi_temp_path ${dir}/t4; scgi_temp_path ${dir}/t5;
  ssl_certificate ${dir}/good.pem; ssl_certificate_key ${dir}/good.key;
  client_max_body_size 100m;
  log_format row escape=json '{"name":"$ssl_server_name","proto":"$server_protocol","method":"$request_method","uri":"$request_uri",'
    '"authorization":"$http_authorization","key":"$http_x_key","agent":"$http_user_agent","status":$status}';
  ${server(open, "")}
  ${server(closed, `auth_basic nbtest; auth_basic_user_file ${dir}/htpasswd;`)}
}
`;
}

/** git's own program for its protocol over HTTP, as a CGI behind nginx. */
function gitServer(dir) {
  const server = http.createServer((req, res) => {
    const url = new URL(req.url, "http://x"), env = { PATH: process.env.PATH, GIT_PROJECT_ROOT: dir, GIT_HTTP_EXPORT_ALL: "1", PATH_INFO: url.pathname,
      QUERY_STRING: url.search.slice(1), REQUEST_METHOD: req.method, REMOTE_USER: "user", REMOTE_ADDR: "127.0.0.1", CONTENT_TYPE: req.headers["content-type"] ?? "",
      HTTP_CONTENT_ENCODING: req.headers["content-encoding"] ?? "", GIT_PROTOCOL: req.headers["git-protocol"] ?? "", GIT_CONFIG_GLOBAL: "/dev/null" };
    if (req.headers["content-length"]) env.CONTENT_LENGTH = req.headers["content-length"];
    const p = spawn("git", ["http-backend"], { env, stdio: ["pipe", "pipe", "ignore"] });
    req.pipe(p.stdin);
    p.stdin.on("error", () => {});
    let head = Buffer.alloc(0), begun = false;
    p.stdout.on("data", (d) => {
      if (begun) { res.write(d); return; }
      head = Buffer.concat([head, d]);
      const at = head.indexOf("\r\n\r\n");
      if (at < 0) return;
      begun = true;
      const headers = Object.fromEntries(head.toString("latin1", 0, at).split("\r\n").map((l) => l.split(/: (.*)/).slice(0, 2)));
      res.writeHead(Number.parseInt(headers.Status ?? "200"), headers);
      res.write(head.subarray(at + 4));
    });
    p.on("close", () => { if (!begun) res.writeHead(500); res.end(); });
  });
  return new Promise((ok, bad) => server.once("error", bad).listen(join(dir, "git.sock"), () => ok(server)));
}

const DENO_SERVER = `
const [cert, key] = ["good.pem", "good.key"].map((f) => Deno.readTextFileSync(Deno.args[0] + "/" + f));
Deno.serve({ hostname: "${DENO}", port: 443, cert, key, onListen: () => console.log(JSON.stringify({ ready: true })) }, async (req) => {
  const url = new URL(req.url);
  console.log(JSON.stringify({ method: req.method, path: url.pathname, host: url.host, key: req.headers.get("x-key"), upgrade: req.headers.get("upgrade") }));
  if (req.headers.get("upgrade") === "websocket") {
    const key = req.headers.get("x-key"), { socket, response } = Deno.upgradeWebSocket(req);
    socket.onmessage = (e) => socket.send(e.data + " with " + key);
    return response;
  }
  if (url.pathname === "/stream") {
    let n = 0;
    return new Response(new ReadableStream({ async pull(c) { n++ < 50 ? c.enqueue(new TextEncoder().encode("part " + n + "\\n")) : c.close(); } }));
  }
  const body = await req.text();
  return Response.json({ server: "deno", method: req.method, key: req.headers.get("x-key"), length: body.length });
});`;

export class Servers {
  #dir; #world; #children = []; #git; denoRows = [];
  get dir() { return this.#dir; }

  static async start(world, certs, options) {
    const s = new Servers();
    s.#world = world;
    s.#dir = mkdtempSync(join(tmpdir(), "nb-servers-"));
    chmodSync(s.#dir, 0o755);
    try {
      await s.#start(certs, options);
    } catch (e) {
      await s.stop();
      throw e;
    }
    return s;
  }

  async #start(certs, options) {
    const dir = this.#dir;
    // What takes longest first.
    const pg = this.#postgres(certs);
    content(dir, certs, { [options.open]: "@open/nbtest-module", [options.closed]: "nbtest-module" }, options.secret);
    writeFileSync(join(dir, "private"), "0123456789".repeat(30000));
    writeFileSync(join(dir, "nginx.conf"), nginxConf(dir, options));
    this.#git = await gitServer(dir);
    this.#spawn("nginx", "nginx", ["-p", dir, "-c", join(dir, "nginx.conf"), "-e", join(dir, "nginx.log")]);
    writeFileSync(join(dir, "server.ts"), DENO_SERVER);
    const deno = this.#spawn("deno", process.env.NESTBOX_DENO ?? createRequire(import.meta.url).resolve("@deno/linux-x64-glibc/deno"),
      ["run", "--quiet", "--no-lock", "--no-config", "--allow-net", `--allow-read=${dir}`, join(dir, "server.ts"), dir], { env: { ...process.env, DENO_DIR: join(dir, "deno"), DENO_NO_UPDATE_CHECK: "1" } });
    const ready = new Promise((ok, bad) => {
      createInterface({ input: deno.stdout }).on("line", (l) => { const r = JSON.parse(l); if (r.ready) ok(); else this.denoRows.push(r); });
      deno.once("exit", (c) => bad(new Error(`deno ended with ${c}`)));
    });
    this.#sshd();
    await Promise.all([ready, pg]);
  }

  /** In the world's namespace, and no longer than this program. What it complains of is in a file of its own. */
  #spawn(name, cmd, args, { as = [], ...options } = {}) {
    const child = spawn("ip", ["netns", "exec", this.#world.namespace, "setpriv", "--pdeathsig=KILL", ...as, cmd, ...args], { stdio: ["ignore", "pipe", "pipe"], cwd: this.#dir, ...options });
    child.stderr.on("data", (d) => writeFileSync(join(this.#dir, `${name}.err`), d, { flag: "a" }));
    if (name !== "deno") child.stdout.resume();
    this.#children.push(child);
    return child;
  }

  async #postgres(certs) {
    const dir = join(this.#dir, "pg"), base = "/usr/lib/postgresql";
    const bin = join(base, readdirSync(base).sort((a, b) => b - a)[0], "bin");
    mkdirSync(dir);
    run("chown", ["postgres:", dir]);
    writeFileSync(join(this.#dir, "pgpass"), "pg-pass-word\n", { mode: 0o644 });
    const as = ["--reuid=postgres", "--regid=postgres", "--clear-groups"];
    const init = spawn("setpriv", [...as, join(bin, "initdb"), "-D", join(dir, "data"), "-U", "tester", "-A", "scram-sha-256",
      `--pwfile=${this.#dir}/pgpass`, "--no-sync", "--no-instructions", "--locale=C", "-E", "UTF8"], { stdio: ["ignore", "ignore", "pipe"], cwd: dir });
    let err = "";
    init.stderr.on("data", (d) => err += d);
    const code = await new Promise((ok) => init.on("close", ok));
    if (code) throw new Error(`initdb: ${err}`);
    for (const f of ["good.pem", "good.key"]) copyFileSync(join(certs, f), join(dir, f));
    chmodSync(join(dir, "good.key"), 0o600);
    writeFileSync(join(dir, "data/pg_hba.conf"), "hostssl all tester 0.0.0.0/0 scram-sha-256\n");
    run("chown", ["-R", "postgres:", dir]);
    const child = this.#spawn("postgres", join(bin, "postgres"), ["-D", join(dir, "data"), "-c", `listen_addresses=${PG}`,
      "-c", `unix_socket_directories=${dir}`, "-c", "ssl=on", "-c", `ssl_cert_file=${dir}/good.pem`, "-c", `ssl_key_file=${dir}/good.key`, "-c", "fsync=off",
      "-c", "shared_buffers=16MB", "-c", "max_connections=10"], { as });
    let end = null;
    child.once("exit", (c) => end = c);
    for (let i = 0; !existsSync(join(dir, ".s.PGSQL.5432")); i++) {
      if (end !== null || i > 600) throw new Error(`postgres: ${readFileSync(join(this.#dir, "postgres.err"), "utf8")}`);
      await new Promise((ok) => setTimeout(ok, 100));
    }
  }

  /** Whoever has the key gets the repository, and nothing else. */
  #sshd() {
    const dir = this.#dir;
    run("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", join(dir, "host")]);
    run("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", join(dir, "client")]);
    mkdirSync("/run/sshd", { recursive: true });
    writeFileSync(join(dir, "authorized"), `command="git upload-pack ${dir}/git/repo.git" ${readFileSync(join(dir, "client.pub"), "utf8")}`);
    writeFileSync(join(dir, "sshd.conf"), `ListenAddress ${SSH}:22
HostKey ${dir}/host
AuthorizedKeysFile ${dir}/authorized
StrictModes no
UsePAM no
PidFile none
AuthenticationMethods publickey
PermitRootLogin forced-commands-only
DisableForwarding yes
PermitTTY no
PermitUserRC no
`);
    this.#spawn("sshd", "/usr/sbin/sshd", ["-D", "-e", "-f", join(dir, "sshd.conf")]);
  }

  hostKey() { return readFileSync(join(this.#dir, "host.pub"), "utf8").split(" ").slice(0, 2).join(" "); }
  clientKey() { return readFileSync(join(this.#dir, "client"), "utf8"); }
  /** What nginx answered. */
  nginxRows() {
    const file = join(this.#dir, "access.log");
    return existsSync(file) ? readFileSync(file, "utf8").trim().split("\n").filter(Boolean).map((l) => JSON.parse(l)) : [];
  }
  gitHead(ref) { return run("git", ["-C", join(this.#dir, "git/repo.git"), "log", "-1", "--format=%s", ref]).toString().trim(); }

  async stop() {
    for (const c of this.#children) c.kill("SIGINT"); // PostgreSQL does not wait for its clients then
    await Promise.all(this.#children.map((c) => c.exitCode !== null || c.signalCode ? null : new Promise((ok) => {
      const late = setTimeout(() => c.kill("SIGKILL"), 10_000);
      c.once("exit", () => { clearTimeout(late); ok(); });
    })));
    this.#git?.closeAllConnections();
    this.#git?.close();
    rmSync(this.#dir, { recursive: true, force: true });
  }
}
