/* SPDX-License-Identifier: Apache-2.0 */
/* The file methods (guest/fs.h) of one connection, run as jobs. */
#ifndef NB_GUEST_RPC_FS_H
#define NB_GUEST_RPC_FS_H

#include "guest/rpc.h"

struct rpc_fs;

enum rc rpc_fs_new(struct session *s, struct rpc_fs **ret, struct fault *ret_f);
/* The connection is lost: wakes blocked calls, closes all handles when the last has come back, frees. NULL is fine. */
void rpc_fs_detach(struct rpc_fs *fs);
/* True if `method` is a file method; then the call is taken. */
bool rpc_fs_dispatch(struct rpc_conn *c, const char *method, struct rpc_call *call, struct json_object *params);

#endif
