/* SPDX-License-Identifier: Apache-2.0 */
/* VS Code in the browser: the npm package code-server, if the machine has it. */
#ifndef NB_GUEST_VSCODE_H
#define NB_GUEST_VSCODE_H

#include "guest/rpc.h"

extern rpc_method_fn rpc_vscode;

#endif
