/* SPDX-License-Identifier: Apache-2.0 */
/* OpenSSL as this proxy uses it: nonblocking, TLS 1.2 and later, http/1.1 as the only protocol inside. */
#ifndef NB_EGRESS_TLS_H
#define NB_EGRESS_TLS_H

#include "base/buf.h"
#include "vmm/egress/limits.h"

#include <openssl/ssl.h>

struct tls {
	SSL_CTX *guest, *up;
};

enum tls_step { TLS_DONE, TLS_READ, TLS_WRITE, TLS_EOF, TLS_BROKEN };

/* Once: reads the roots that upstreams are verified against. */
enum rc tls_new(const char *ca_file, struct tls **ret, struct fault *ret_f);
void tls_free(struct tls *t);

SSL *tls_guest(const struct tls *t, int fd);
/* Verifies the chain and that it is this host's. */
SSL *tls_up(const struct tls *t, int fd, const char *host);
/* READ, WRITE: what to wait for. */
enum tls_step tls_handshake(SSL *ssl);
enum tls_step tls_fill(SSL *ssl, struct buf *to, size_t max, size_t *ret_n);
enum tls_step tls_drain(SSL *ssl, struct buf *from, size_t *ret_n);

#endif
