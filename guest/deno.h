/* SPDX-License-Identifier: Apache-2.0 */
/* Deno programs and REPLs as children of the session. */
#ifndef NB_GUEST_DENO_H
#define NB_GUEST_DENO_H

#include "guest/rpc.h"

struct proc;

extern rpc_method_fn rpc_spawn_deno, rpc_deno_http_wait;
extern rpc_method_fn rpc_spawn_repl, rpc_repl_eval, rpc_repl_call, rpc_repl_close;

#endif
