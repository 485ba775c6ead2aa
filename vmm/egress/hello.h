/* SPDX-License-Identifier: Apache-2.0 */
/* The server name in a TLS ClientHello (RFC 8446 4.1.2, RFC 6066 3), looked at without touching it. */
#ifndef NB_EGRESS_HELLO_H
#define NB_EGRESS_HELLO_H

#include "schema/verdict.h"

enum hello {
	HELLO_MORE,     /* a ClientHello so far; more bytes are needed */
	HELLO_DONE,     /* sni is the name, normal (name_normalize), or empty if it has none */
	HELLO_NOT_TLS,  /* the first bytes are something else */
	HELLO_BAD,      /* TLS, but malformed, too long, or its name is not a host name */
};

enum hello hello_parse(const uint8_t *data, size_t n, char sni[POLICY_NAME_MAX]);

#endif
