/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The agent protocol: what the host asks the agent in a guest. TCP to AGENT_GUEST_ADDR:AGENT_PORT over the management
 * link, which carries nothing else. One connection is one service: the host sends one JSON line, the agent answers one
 * JSON line, then the bytes are the service's own. Believed by nobody: the host bounds and checks all it reads here.
 *
 *   request  {"service": NAME, ...}\n                          at most AGENT_LINE_MAX bytes
 *   answer   {"ok": true, ...}\n  or  {"error": {"code": "ENOENT", "message": "..."}}\n
 *
 * rpc       The @deno/sandbox JSON-RPC over WebSocket frames (RFC 6455, client frames masked; the handshake was done by
 *           the gateway, the first byte is a frame's). Text "ping" is answered "pong".
 * exec      {"argv": [..], "cwd": "/home/app", "env": {..}, "user": "app"|"root", "clear_env": false,
 *            "tty": {"cols": 80, "rows": 24, "term": "xterm-256color"}?}
 *           Then frames both ways: u8 kind, u32 little-endian length (<= AGENT_FRAME_MAX), bytes.
 *           host to guest: 0 stdin (length 0: end of file), 4 signal (name, e.g. "TERM"), 5 resize (u16 cols, u16 rows).
 *           guest to host: 1 stdout, 2 stderr, 3 exit (JSON {"code": n, "signal": "SIGTERM"|null, "oom": bool}), the last.
 *           The host closing the connection sends SIGHUP, then SIGKILL after 5 s, to the process group.
 * tar-out   {"path": "/home/app", "exclude": ["node_modules", ..]?} answers ok, then a POSIX pax tar stream of what is below
 *           path, ended by its end-of-archive blocks and half-close. Sockets are left out.
 * tar-in    {"path": "/home/app", "user": "app"}: the host sends a tar stream and half-closes; the agent unpacks below path
 *           (never outside) and answers a second line, {"ok": true} or an error.
 * dial      {"port": n, "wait_ms": n?}: connected to 127.0.0.1:n, else [::1]:n, in the guest; then raw bytes. ECONNREFUSED if nobody
 *           listens, nor does for wait_ms (0).
 * http      {"domain": "x.nestbox.localhost"}: like dial, to the port or process that the RPC exposeHttp named for this domain.
 *           ENOENT if there is none.
 * unit      A named long-running process that outlives connections, its output in a ring of AGENT_UNIT_RING bytes.
 *           {"op": "start", "name": "app", "argv": [..], "cwd", "env", "user", "restart": true}; {"op": "stop", "name"};
 *           {"op": "stat", "name"} answers {"ok": true, "running": bool, "pid", "starts": n, "code", "signal", "seq": of the last line};
 *           {"op": "follow", "name", "after": n}: answers ok, then JSON lines {"seq", "time_ms", "stream": "stdout"|"stderr"|"event", "line"}
 *           with seq > after, for ever; lines longer than 8 KiB are cut into several.
 * control   {"op": "hello"} answers {"ok": true, "version": "...", "generation": n, "image": "..."}.
 *           {"op": "identity", "time_ns": n, "entropy": base64 of 64 bytes, "hostname": "...", "machine_id": 32 hex, "env":
 *            {"NAME": "value"}, "ca_pem": "..."?}: see "identity of a clone" in doc/fork-safety.md; answers when done.
 *           {"op": "trust", "env": {"NAME": "value"}, "ca_pem": "..."?}: for processes that start from now on: variables are added
 *           to the machine's, the authority is trusted as well. Nothing else of the machine changes.
 *           {"op": "mount", "device": n, "path": "/data"}: mounts the n-th spare disk (0-based, ext4) for user app.
 *           Both take "root": "volume"|"snapshot", in the first request of a machine: disk "root" (a bootable volume) or "base"
 *           (a snapshot, below a new layer of the machine's own disk) takes the place of the root that is mounted.
 *           {"op": "sync"}, {"op": "freeze"}, {"op": "thaw"} of the writable file systems.
 *           {"op": "drop_caches"} before a template is saved: forgets what was read, then reads what every machine needs
 *           (the image's /etc/nestbox/warm). {"op": "poweroff"}: SIGTERM, 2 s, SIGKILL, unmount, off.
 *           {"op": "stat"} answers memory, load, disk use and process count.
 */
#ifndef NB_SCHEMA_AGENT_H
#define NB_SCHEMA_AGENT_H

#define AGENT_PORT 1024
#define AGENT_LINE_MAX 131072
#define AGENT_FRAME_MAX 65536
#define AGENT_UNIT_RING 1048576
/*
 * How long the host waits for one line of an agent, whoever asks. An answer costs the guest a fork at most, but a guest may have to wait for a
 * processor that others have; who waits that long is busy for nobody else (a worker is: a guest that never answers holds one for so long).
 */
#define AGENT_ANSWER_MS 15000

/* The same inside every machine: each lives in a network namespace of its own. */
#define AGENT_MGMT_HOST_ADDR "169.254.100.1"
#define AGENT_MGMT_GUEST_ADDR "169.254.100.2"
#define AGENT_MGMT_PREFIX 30
#define AGENT_MGMT_MAC "02:6e:62:00:00:02"
#define AGENT_NET_HOST_ADDR "100.64.0.1" /* gateway and DNS server, as the guest sees them */
#define AGENT_NET_GUEST_ADDR "100.64.0.2"
#define AGENT_NET_PREFIX 30
#define AGENT_NET_MAC "02:6e:62:00:00:01"
#define AGENT_SYNTHETIC_NET "198.18.0.0/15"

/*
 * Machine shape, the same for every engine. virtio-mmio, found through ACPI. The guest knows the disks by the virtio
 * serial (VIRTIO_BLK_T_GET_ID) and the NICs by MAC, never by order:
 *   blk serial "image"   read-only EROFS image
 *   blk serial "overlay" writable ext4 (upper and work directory)
 *   blk serial "spare0".."spare3"  placeholders (1 MiB) in a template, volumes after a restore
 *   blk serial "root"    a placeholder of that kind, or a bootable volume
 *   blk serial "base"    read-only; a snapshot as root, whose size the guest does not know: it believes AGENT_BASE_BYTES
 *   net AGENT_NET_MAC     traffic        net AGENT_MGMT_MAC    management
 *   rng, serial 0 (kernel log)
 */
#define AGENT_SPARE_DISKS 4
#define AGENT_ROOT_SERIAL "root"
#define AGENT_BASE_SERIAL "base"
/* As large as any snapshot, so that a read-only disk, which cannot be announced to have grown, need not be. */
#define AGENT_BASE_BYTES (1024ull << 30)

#endif
