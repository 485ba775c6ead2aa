/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: starting Deno takes a second or two in an emulated machine, so once a REPL was used the next one is started before it
 * is asked for. At most one waits, and only that was never told anything. It is of the shape of the last REPL that was asked
 * for: the same parameters, environment, umask, directory, Deno and the same configuration files around it. All of that is one text; it is
 * made again when a REPL is asked for, and only one with exactly that text is handed out, so that nobody can tell it from one
 * that was started now (but by performance.now(), which counts from its start). Configuration that names other files has no such text.
 *
 * It costs memory. It is started when there is enough, goes when nobody wanted it for a while, and is the first that the kernel kills
 * when there is none left. A clone of the machine ends it before anybody can ask for it: its random numbers would be its sibling's.
 */
#ifndef NB_GUEST_DENO_WARM_H
#define NB_GUEST_DENO_WARM_H

#include "guest/rpc.h"

struct proc;

/* The one that waits, if it is of the shape that `params` (of spawnDenoRepl) and the present ask for; else NULL. The shape is remembered. */
struct proc *warm_take(struct session *s, struct json_object *params);
/* Starts the next one, if it may. Called when REPLs have nothing to do. */
void warm_refill(struct session *s);
/* p has ended; it may have been the one that waits. */
void warm_ended(struct session *s, const struct proc *p);
void warm_drop(struct session *s);
bool warm_enough_memory(void); /* for one REPL more than is asked for */

#endif
