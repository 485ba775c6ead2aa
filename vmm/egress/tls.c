/* SPDX-License-Identifier: Apache-2.0 */
#include "base/cleanup.h"
#include "vmm/egress/tls.h"

#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <string.h>

static const unsigned char both[] = "\x02h2\x08http/1.1", *const http2 = both, *const http11 = both + 3;

static int choose_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_n, const unsigned char *in, unsigned int in_n,
		       void *arg)
{
	const struct tls_alpn *a = SSL_get_app_data(ssl);
	const unsigned char *want = a->choose == ALPN_H2 ? http2 : http11;

	(void)arg;
	for (unsigned int at = 0; at < in_n; at += in[at] + 1u)
		if (in[at] == *want && in_n - at > *want && !memcmp(in + at + 1, want + 1, *want)) {
			*out = in + at + 1;
			*out_n = *want;
			return SSL_TLSEXT_ERR_OK;
		}
	return SSL_TLSEXT_ERR_ALERT_FATAL;
}

/* The list as it stands in the ClientHello, two bytes of length before it; whether it is sound is OpenSSL's to say later. */
static int read_alpn(SSL *ssl, int *alert, void *arg)
{
	struct tls_alpn *a = SSL_get_app_data(ssl);
	const unsigned char *in;
	size_t n;

	(void)alert;
	(void)arg;
	if (!a->seen && SSL_client_hello_get0_ext(ssl, TLSEXT_TYPE_application_layer_protocol_negotiation, &in, &n)) {
		a->any = true;
		for (size_t at = 2; at < n; at += in[at] + 1u) {
			a->h2 |= n - at > *http2 && !memcmp(in + at, http2, *http2 + 1u);
			a->h1 |= n - at > *http11 && !memcmp(in + at, http11, *http11 + 1u);
		}
	}
	a->seen = true;
	return a->choose == ALPN_NOT_YET ? SSL_CLIENT_HELLO_RETRY : SSL_CLIENT_HELLO_SUCCESS;
}

static SSL_CTX *context(const SSL_METHOD *method)
{
	SSL_CTX *ctx = SSL_CTX_new(method);

	if (!ctx)
		return NULL;
	SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION);
	SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_TICKET | SSL_OP_IGNORE_UNEXPECTED_EOF |
					 SSL_OP_NO_COMPRESSION);
	SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
	SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
	/* One read for a record and what follows it, not one for five bytes and one for the rest. So bytes may wait where no event tells of
	 * them: whoever stops reading comes back by itself (intercept.c tries both sides at each turn). */
	SSL_CTX_set_read_ahead(ctx, 1);
	return ctx;
}

enum rc tls_new(const char *ca_file, struct tls **ret, struct fault *ret_f)
{
	struct tls *t = calloc(1, sizeof(*t));

	if (!t)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	t->guest = context(TLS_server_method());
	t->up = context(TLS_client_method());
	if (!t->guest || !t->up) {
		tls_free(t);
		return fault_set(ret_f, RC_NOMEM, 0, "OpenSSL has no context");
	}
	SSL_CTX_set_num_tickets(t->guest, 0);
	SSL_CTX_set_alpn_select_cb(t->guest, choose_alpn, NULL);
	SSL_CTX_set_client_hello_cb(t->guest, read_alpn, NULL);
	SSL_CTX_set_verify(t->up, SSL_VERIFY_PEER, NULL);
	if (SSL_CTX_load_verify_file(t->up, ca_file) != 1) {
		tls_free(t);
		return fault_set(ret_f, RC_ABSENT, 0, "no certificates in egress_ca_file '%.100s'", ca_file);
	}
	*ret = t;
	return RC_OK;
}

void tls_free(struct tls *t)
{
	if (!t)
		return;
	SSL_CTX_free(t->guest);
	SSL_CTX_free(t->up);
	free(t);
}

SSL *tls_guest(const struct tls *t, int fd, struct tls_alpn *alpn)
{
	SSL *ssl = SSL_new(t->guest);

	if (ssl && SSL_set_fd(ssl, fd) == 1 && SSL_set_app_data(ssl, alpn) == 1) {
		SSL_set_accept_state(ssl);
		return ssl;
	}
	SSL_free(ssl);
	return NULL;
}

SSL *tls_up(const struct tls *t, int fd, const char *host)
{
	SSL *ssl = SSL_new(t->up);

	if (ssl && SSL_set_fd(ssl, fd) == 1 && SSL_set_tlsext_host_name(ssl, host) == 1 && SSL_set1_host(ssl, host) == 1) {
		SSL_set_hostflags(ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
		SSL_set_connect_state(ssl);
		return ssl;
	}
	SSL_free(ssl);
	return NULL;
}

bool tls_offer(SSL *up, const struct tls_alpn *a)
{
	const unsigned char *list = a->h2 ? http2 : http11;
	unsigned int n = (a->h2 ? *http2 + 1u : 0) + (a->h1 || !a->h2 ? *http11 + 1u : 0);

	return !SSL_set_alpn_protos(up, list, n);
}

bool tls_is_h2(const SSL *up)
{
	const unsigned char *name;
	unsigned int n;

	SSL_get0_alpn_selected(up, &name, &n);
	return n == 2 && !memcmp(name, "h2", 2);
}

enum tls_step tls_handshake(SSL *ssl)
{
	int n;

	ERR_clear_error();
	n = SSL_do_handshake(ssl);
	if (n == 1)
		return TLS_DONE;
	n = SSL_get_error(ssl, n);
	return n == SSL_ERROR_WANT_READ ? TLS_READ : n == SSL_ERROR_WANT_WRITE ? TLS_WRITE :
	       n == SSL_ERROR_WANT_CLIENT_HELLO_CB ? TLS_HELLO : TLS_BROKEN;
}

enum tls_step tls_fill(SSL *ssl, struct buf *to, size_t max, size_t *ret_n)
{
	uint8_t *mem;
	int n;

	*ret_n = 0;
	if (buf_reserve(to, max, &mem))
		return TLS_BROKEN;
	ERR_clear_error();
	n = SSL_read(ssl, mem, (int)max);
	if (n > 0) {
		buf_commit(to, (size_t)n);
		*ret_n = (size_t)n;
		return TLS_DONE;
	}
	switch (SSL_get_error(ssl, n)) {
	case SSL_ERROR_WANT_READ: return TLS_READ;
	case SSL_ERROR_WANT_WRITE: return TLS_WRITE;
	case SSL_ERROR_ZERO_RETURN: return TLS_EOF;
	default: return TLS_BROKEN;
	}
}

enum tls_step tls_drain(SSL *ssl, struct buf *from, size_t *ret_n)
{
	int n;

	*ret_n = 0;
	if (!buf_len(from))
		return TLS_DONE;
	ERR_clear_error();
	n = SSL_write(ssl, buf_data(from), (int)MIN_OF(buf_len(from), (size_t)EGRESS_TLS_PIECE));
	if (n > 0) {
		buf_consume(from, (size_t)n);
		*ret_n = (size_t)n;
		return TLS_DONE;
	}
	switch (SSL_get_error(ssl, n)) {
	case SSL_ERROR_WANT_READ: return TLS_READ;
	case SSL_ERROR_WANT_WRITE: return TLS_WRITE;
	default: return TLS_BROKEN;
	}
}
