/* SPDX-License-Identifier: Apache-2.0 */
/* TLS that is ended here because of a secret or rules: HTTP/1.1 or HTTP/2 in between, TLS again upstream. */
#ifndef NB_EGRESS_INTERCEPT_H
#define NB_EGRESS_INTERCEPT_H

#include "vmm/egress/conn.h"

struct intercept;

/* Both sockets are connected; the guest's ClientHello is still unread in its socket. */
void intercept_start(struct conn *c);
void intercept_event(struct conn *c, uint32_t events);
void intercept_timeout(struct conn *c);
void intercept_resume(struct conn *c);
void intercept_free(struct intercept *t);

#endif
