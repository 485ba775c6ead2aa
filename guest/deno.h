/* SPDX-License-Identifier: Apache-2.0 */
/* Deno programs and REPLs as children of the session. */
#ifndef NB_GUEST_DENO_H
#define NB_GUEST_DENO_H

#include "guest/rpc.h"

struct proc;
struct proc_spec;

extern rpc_method_fn rpc_spawn_deno, rpc_deno_http_wait;
extern rpc_method_fn rpc_spawn_repl, rpc_repl_eval, rpc_repl_call, rpc_repl_close;

/* Reads the parameters of spawnDenoRepl. */
void repl_spec(struct proc_spec *spec, struct params *p);
/* Starts a REPL with them, whose streams nobody reads yet. `waits`: it is for no client now. */
enum rc repl_start(struct session *s, struct json_object *params, bool waits, struct proc **ret, struct json_object **ret_error);
#endif
