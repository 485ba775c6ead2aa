/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The session process: speaks the @deno/sandbox RPC, owns the programs that clients start. PID 1 starts it and hands it
 * connections. It has real and saved uid 0 and the effective uid of the user `app`: files are app's, and app cannot signal
 * or trace it. On an ordinary host (tests) it runs as whoever starts it.
 */
#ifndef NB_GUEST_SESSION_H
#define NB_GUEST_SESSION_H

/*
 * Packets on control_fd (SOCK_SEQPACKET), by their first byte; at most SESSION_PACKET_MAX bytes, at most one descriptor:
 *   'r' + fd            an rpc connection; the first byte on it is a WebSocket frame's
 *   'h' + fd + domain   service `http` of schema/agent.h; the answer line is written here
 *   'e' + JSON object   the whole environment of new children; what clients set themselves goes over it
 *   'i' + JSON {"generation": n}   this is a clone: connections of its origin are closed
 * The end of control_fd ends the process, and not its children. Returns an exit status.
 */
#define SESSION_PACKET_MAX 131072
int session_main(int control_fd);

/* For tests: accepts rpc connections on a Unix socket at `path`; ends with standard input. */
int session_listen(const char *path);

#endif
