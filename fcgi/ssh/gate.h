/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between the daemon and the process of one connection: a SOCK_SEQPACKET pair on which the process asks and the daemon answers, one
 * question at a time. The process holds no other way to the broker, so what a client may do to it (it parses SSH) reaches the one
 * machine whose name that client knew, and guesses cost what the daemon lets them cost.
 *
 *   process: 'L' and 64 hex digits   SHA-256 of the name; once it was right no second one
 *            'O'                     another connection to the agent
 *   daemon:  the same letter and 0 or an enum rc's absolute value; +fd for 'O' 0
 *   either end closed: the other ends
 */
#ifndef NB_SSH_GATE_H
#define NB_SSH_GATE_H

#include "base/fault.h"

#define GATE_LOGIN 'L'
#define GATE_OPEN 'O'
#define GATE_KEY 64 /* hex digits */

/* The process's side: blocking, bounded by SSH_OPEN_MS. */
enum rc gate_login(int gate, const char *name, struct fault *ret_f);
enum rc gate_open(int gate, int *ret_fd, struct fault *ret_f);
/* A connected and accepted service of the agent, nonblocking. */
enum rc gate_service(int gate, const char *line, int *ret_fd, struct fault *ret_f);

#endif
