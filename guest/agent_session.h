/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between PID 1 and the session process (the same binary, started as `session`): one SOCK_SEQPACKET, packets of a kind byte,
 * text and at most one descriptor.
 *   'r' +fd          an rpc connection whose answer line was sent
 *   'h' +fd domain   an http connection; the session writes the answer line
 *   'e' JSON         the whole environment of new processes, an object of strings
 *   'i' JSON         {"generation": n}: connections from before it are dead; drop them, keep the processes
 */
#ifndef NB_GUEST_AGENT_SESSION_H
#define NB_GUEST_AGENT_SESSION_H

#define AGENT_SESSION_FD 3
#define AGENT_SESSION_PACKET_MAX 131072

int session_main(int fd); /* guest/session.c */
int agent_session_enter(void);

#endif
