/* SPDX-License-Identifier: Apache-2.0 */
#include "base/address.h"

#include "base/cleanup.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <string.h>

static bool mapped(const uint8_t b[16])
{
	static const uint8_t head[12] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff };

	return !memcmp(b, head, sizeof(head));
}

static void unmap(struct address *a)
{
	if (a->family != AF_INET6 || !mapped(a->bytes))
		return;
	a->family = AF_INET;
	memmove(a->bytes, a->bytes + 12, 4);
	memset(a->bytes + 4, 0, 12);
}

bool address_parse(struct address *ret, const char *text)
{
	struct address a = { 0 };

	/* inet_pton takes the dotted quad only: no octal, hexadecimal or short spelling. */
	if (inet_pton(AF_INET, text, a.bytes) == 1)
		a.family = AF_INET;
	else if (inet_pton(AF_INET6, text, a.bytes) == 1)
		a.family = AF_INET6;
	else
		return false;
	unmap(&a);
	*ret = a;
	return true;
}

bool address_from_sockaddr(struct address *ret, uint16_t *ret_port, const struct sockaddr *sa)
{
	struct address a = { .family = sa->sa_family };

	if (sa->sa_family == AF_INET) {
		struct sockaddr_in in;

		memcpy(&in, sa, sizeof(in));
		memcpy(a.bytes, &in.sin_addr, 4);
		*ret_port = ntohs(in.sin_port);
	} else if (sa->sa_family == AF_INET6) {
		struct sockaddr_in6 in6;

		memcpy(&in6, sa, sizeof(in6));
		memcpy(a.bytes, &in6.sin6_addr, 16);
		*ret_port = ntohs(in6.sin6_port);
		unmap(&a);
	} else {
		return false;
	}
	*ret = a;
	return true;
}

socklen_t address_to_sockaddr(struct sockaddr_storage *out, const struct address *a, uint16_t port)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons(port) };
	struct sockaddr_in6 in6 = { .sin6_family = AF_INET6, .sin6_port = htons(port) };

	memset(out, 0, sizeof(*out));
	if (a->family == AF_INET) {
		memcpy(&in.sin_addr, a->bytes, 4);
		memcpy(out, &in, sizeof(in));
		return sizeof(in);
	}
	memcpy(&in6.sin6_addr, a->bytes, 16);
	memcpy(out, &in6, sizeof(in6));
	return sizeof(in6);
}

const char *address_text(const struct address *a, char out[ADDRESS_TEXT_MAX])
{
	if (!inet_ntop(a->family, a->bytes, out, ADDRESS_TEXT_MAX))
		out[0] = '\0';
	return out;
}

bool address_equal(const struct address *a, const struct address *b)
{
	return a->family == b->family && !memcmp(a->bytes, b->bytes, a->family == AF_INET ? 4 : 16);
}

static bool head_equal(const uint8_t *a, const uint8_t *b, unsigned int bits)
{
	unsigned int whole = bits / 8, rest = bits % 8;
	uint8_t mask = (uint8_t)(0xff00 >> rest);

	return !memcmp(a, b, whole) && (!rest || !((a[whole] ^ b[whole]) & mask));
}

bool prefix_has(const struct prefix *p, const struct address *a)
{
	return p->base.family == a->family && head_equal(p->base.bytes, a->bytes, p->bits);
}

bool prefix_parse(struct prefix *ret, const char *text)
{
	char base[ADDRESS_TEXT_MAX];
	const char *slash = strchr(text, '/');
	size_t n = slash ? (size_t)(slash - text) : strlen(text);
	struct prefix p = { 0 };
	unsigned int max;

	if (n >= sizeof(base))
		return false;
	memcpy(base, text, n);
	base[n] = '\0';
	if (!address_parse(&p.base, base))
		return false;
	max = p.base.family == AF_INET ? 32 : 128;
	p.bits = max;
	if (slash) {
		p.bits = 0;
		if (!slash[1] || strlen(slash + 1) > 3 || (slash[1] == '0' && slash[2]))
			return false;
		for (const char *c = slash + 1; *c; c++) {
			if (!isdigit((unsigned char)*c))
				return false;
			p.bits = p.bits * 10 + (unsigned int)(*c - '0');
		}
		if (p.bits > max)
			return false;
	}
	for (unsigned int i = p.bits; i < max; i++)
		if (p.base.bytes[i / 8] & (0x80 >> i % 8))
			return false;
	*ret = p;
	return true;
}

enum rc prefixes_parse(struct prefixes *ret, const char *text, struct fault *ret_f)
{
	struct prefixes list = { 0 };

	for (;;) {
		char word[64];
		size_t n;

		text += strspn(text, " \t,");
		n = strcspn(text, " \t,");
		if (!n)
			break;
		if (n >= sizeof(word) || list.n == PREFIXES_MAX)
			return fault_set(ret_f, RC_INVALID, 0, "more than %d prefixes, or one too long", PREFIXES_MAX);
		memcpy(word, text, n);
		word[n] = '\0';
		if (!prefix_parse(&list.at[list.n++], word))
			return fault_set(ret_f, RC_INVALID, 0, "'%s' is not an address or prefix", word);
		text += n;
	}
	*ret = list;
	return RC_OK;
}

bool prefixes_have(const struct prefixes *p, const struct address *a)
{
	for (size_t i = 0; i < p->n; i++)
		if (prefix_has(&p->at[i], a))
			return true;
	return false;
}

bool prefixes_name(const struct prefixes *p, const struct address *a)
{
	for (size_t i = 0; i < p->n; i++)
		if (p->at[i].bits == (a->family == AF_INET ? 32 : 128) && address_equal(&p->at[i].base, a))
			return true;
	return false;
}

struct special {
	uint8_t base[16];
	unsigned int bits;
	const char *what;
};

static const struct special special4[] = {
	{ { 0 }, 8, "unspecified" },
	{ { 10 }, 8, "private" },
	{ { 100, 64 }, 10, "shared (CGNAT)" },
	{ { 127 }, 8, "loopback" },
	{ { 169, 254 }, 16, "link-local" },
	{ { 172, 16 }, 12, "private" },
	{ { 192, 0, 0 }, 24, "reserved" },
	{ { 192, 0, 2 }, 24, "documentation" },
	{ { 192, 88, 99 }, 24, "6to4 relay" },
	{ { 192, 168 }, 16, "private" },
	{ { 198, 18 }, 15, "benchmarking" },
	{ { 198, 51, 100 }, 24, "documentation" },
	{ { 203, 0, 113 }, 24, "documentation" },
	{ { 224 }, 4, "multicast" },
	{ { 240 }, 4, "reserved" },
};

/* Of IPv6 only 2000::/3 is the internet at all, and these parts of it are not, or carry IPv4 inside. */
static const struct special special6[] = {
	{ { 0x20, 0x01, 0x00 }, 23, "reserved" },
	{ { 0x20, 0x01, 0x0d, 0xb8 }, 32, "documentation" },
	{ { 0x20, 0x02 }, 16, "6to4" },
	{ { 0x3f, 0xff }, 20, "documentation" },
};

static const struct {
	uint8_t base[16];
	unsigned int bits;
	const char *what;
} kinds6[] = {
	{ { 0xfe, 0x80 }, 10, "link-local" },
	{ { 0xfc }, 7, "private" },
	{ { 0xff }, 8, "multicast" },
	{ { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1 }, 128, "loopback" },
};

const char *address_special(const struct address *a)
{
	if (a->family == AF_INET) {
		for (size_t i = 0; i < ARRAY_SIZE(special4); i++)
			if (head_equal(special4[i].base, a->bytes, special4[i].bits))
				return special4[i].what;
		return NULL;
	}
	if ((a->bytes[0] & 0xe0) != 0x20) {
		for (size_t i = 0; i < ARRAY_SIZE(kinds6); i++)
			if (head_equal(kinds6[i].base, a->bytes, kinds6[i].bits))
				return kinds6[i].what;
		return "reserved";
	}
	for (size_t i = 0; i < ARRAY_SIZE(special6); i++)
		if (head_equal(special6[i].base, a->bytes, special6[i].bits))
			return special6[i].what;
	return NULL;
}

bool address_is_local(const struct address *a)
{
	/* The kernel binds to its own addresses only, so it is asked afresh each time and no list of ours grows old. */
	_cleanup_fd_ int fd = socket(a->family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct sockaddr_storage sa;
	socklen_t n = address_to_sockaddr(&sa, a, 0);

	return fd >= 0 && bind(fd, (const struct sockaddr *)&sa, n) == 0;
}

bool host_name_is_valid(const char *name)
{
	size_t label = 0;
	char before = '.';

	for (; *name; before = *name++) {
		bool ends = *name == '.', letter = (*name >= 'a' && *name <= 'z') || (*name >= '0' && *name <= '9');

		if (ends ? !label || before == '-' : !letter && (*name != '-' || !label))
			return false;
		label = ends ? 0 : label + 1;
		if (label > 63)
			return false;
	}
	return label && before != '-';
}
