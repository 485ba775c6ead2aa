/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: the handshake message is first put together from as many records as it takes (a post-quantum ClientHello is 2 KB and
 * more, and a client may cut it anywhere), then walked with a cursor that never passes the end it was given. Whatever
 * two parsers could read differently (two names, two server_name extensions, lengths that do not add up) is refused.
 */
#include "vmm/egress/hello.h"

#include "vmm/egress/limits.h"

#include <string.h>

#define RECORD_HEAD 5
#define RECORD_HANDSHAKE 22
#define RECORD_MAX 16384
#define HANDSHAKE_HEAD 4
#define HANDSHAKE_CLIENT_HELLO 1
#define EXT_SERVER_NAME 0
#define SNI_HOST_NAME 0

struct cursor {
	const uint8_t *at;
	size_t left;
	bool bad;
};

static const uint8_t *take(struct cursor *c, size_t n)
{
	const uint8_t *p = c->at;

	if (c->bad || n > c->left) {
		c->bad = true;
		return NULL;
	}
	c->at += n;
	c->left -= n;
	return p;
}

static size_t take_number(struct cursor *c, size_t bytes)
{
	const uint8_t *p = take(c, bytes);
	size_t v = 0;

	for (size_t i = 0; p && i < bytes; i++)
		v = v << 8 | p[i];
	return v;
}

static struct cursor take_vector(struct cursor *c, size_t length_bytes)
{
	size_t n = take_number(c, length_bytes);
	const uint8_t *p = take(c, n);

	return (struct cursor){ .at = p, .left = p ? n : 0, .bad = c->bad };
}

static enum hello server_name(struct cursor ext, char sni[POLICY_NAME_MAX])
{
	struct cursor list = take_vector(&ext, 2);
	size_t type = take_number(&list, 1);
	struct cursor name = take_vector(&list, 2);

	if (name.bad || ext.left || list.left || type != SNI_HOST_NAME)
		return HELLO_BAD;
	return name_normalize(sni, (const char *)name.at, name.left) ? HELLO_DONE : HELLO_BAD;
}

static enum hello extensions(struct cursor all, char sni[POLICY_NAME_MAX])
{
	bool seen = false;

	while (all.left) {
		size_t type = take_number(&all, 2);
		struct cursor ext = take_vector(&all, 2);

		if (ext.bad)
			return HELLO_BAD;
		if (type != EXT_SERVER_NAME)
			continue;
		if (seen || server_name(ext, sni) != HELLO_DONE)
			return HELLO_BAD;
		seen = true;
	}
	return HELLO_DONE;
}

static enum hello client_hello(struct cursor c, char sni[POLICY_NAME_MAX])
{
	struct cursor all;

	take(&c, 2 + 32); /* legacy version, random */
	take_vector(&c, 1); /* session id */
	take_vector(&c, 2); /* cipher suites */
	take_vector(&c, 1); /* compression methods */
	if (c.bad)
		return HELLO_BAD;
	if (!c.left)
		return HELLO_DONE; /* TLS 1.2 without extensions */
	all = take_vector(&c, 2);
	if (all.bad || c.left)
		return HELLO_BAD;
	return extensions(all, sni);
}

enum hello hello_parse(const uint8_t *data, size_t n, char sni[POLICY_NAME_MAX])
{
	uint8_t message[EGRESS_HELLO_MAX];
	size_t have = 0, want = HANDSHAKE_HEAD;

	sni[0] = '\0';
	for (size_t at = 0; have < want;) {
		size_t left = n - at, record, use;

		if ((left > 0 && data[at] != RECORD_HANDSHAKE) || (left > 1 && data[at + 1] != 3))
			return at ? HELLO_BAD : HELLO_NOT_TLS;
		if (left < RECORD_HEAD)
			return n >= EGRESS_HELLO_MAX ? HELLO_BAD : HELLO_MORE;
		record = (size_t)data[at + 3] << 8 | data[at + 4];
		if (!record || record > RECORD_MAX)
			return HELLO_BAD;
		use = left - RECORD_HEAD < record ? left - RECORD_HEAD : record;
		if (use > sizeof(message) - have)
			use = sizeof(message) - have;
		memcpy(message + have, data + at + RECORD_HEAD, use);
		have += use;
		if (have && message[0] != HANDSHAKE_CLIENT_HELLO)
			return HELLO_BAD;
		if (have >= HANDSHAKE_HEAD) {
			want = HANDSHAKE_HEAD + ((size_t)message[1] << 16 | (size_t)message[2] << 8 | message[3]);
			if (want > sizeof(message))
				return HELLO_BAD;
		}
		if (have < want && left - RECORD_HEAD < record)
			return n >= EGRESS_HELLO_MAX ? HELLO_BAD : HELLO_MORE;
		at += RECORD_HEAD + record;
	}
	return client_hello((struct cursor){ .at = message + HANDSHAKE_HEAD, .left = want - HANDSHAKE_HEAD }, sni);
}
