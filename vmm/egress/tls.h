/* SPDX-License-Identifier: Apache-2.0 */
/* OpenSSL as this proxy uses it: nonblocking, TLS 1.2 and later, http/1.1 or h2 inside, whatever both sides speak. */
#ifndef NB_EGRESS_TLS_H
#define NB_EGRESS_TLS_H

#include "base/buf.h"
#include "vmm/egress/limits.h"

#include <openssl/ssl.h>
#include <stdbool.h>

struct tls {
	SSL_CTX *guest, *up;
};

/*
 * What a guest offers by ALPN (RFC 7301) and what it gets. The guest's handshake stops with TLS_HELLO once the offer is known;
 * it goes on when `choose` is set, and ends with an alert if that was not offered.
 */
struct tls_alpn {
	bool seen, any, h1, h2; /* any: it has the extension */
	enum { ALPN_NOT_YET, ALPN_H1, ALPN_H2 } choose;
};

enum tls_step { TLS_DONE, TLS_READ, TLS_WRITE, TLS_EOF, TLS_BROKEN, TLS_HELLO };

/* Once: reads the roots that upstreams are verified against. */
enum rc tls_new(const char *ca_file, struct tls **ret, struct fault *ret_f);
void tls_free(struct tls *t);

/* alpn outlives the SSL. */
SSL *tls_guest(const struct tls *t, int fd, struct tls_alpn *alpn);
/* Verifies the chain and that it is this host's. */
SSL *tls_up(const struct tls *t, int fd, const char *host);
/* To upstream is offered what the guest offers. */
bool tls_offer(SSL *up, const struct tls_alpn *alpn);
bool tls_is_h2(const SSL *up);
/* READ, WRITE: what to wait for. */
enum tls_step tls_handshake(SSL *ssl);
enum tls_step tls_fill(SSL *ssl, struct buf *to, size_t max, size_t *ret_n);
enum tls_step tls_drain(SSL *ssl, struct buf *from, size_t *ret_n);

#endif
