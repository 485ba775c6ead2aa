/* SPDX-License-Identifier: Apache-2.0 */
/* gateway.sock: the API workers' side of schema/gateway.h. */
#ifndef NB_GATEWAY_CONTROL_H
#define NB_GATEWAY_CONTROL_H

#include "fcgi/gateway/gateway.h"

#include <sys/types.h>

/* Takes the listening socket. Peers of another uid than `api` and root are closed at once. */
enum rc control_start(struct gateway *gw, int listener, uid_t api, struct fault *ret_f);
void control_free(void);
/* There may be a question for the guide (schema/gateway.h, FOLLOW). */
void control_guide_ask(void);

#endif
