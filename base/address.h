/* SPDX-License-Identifier: Apache-2.0 */
/* IP addresses, prefixes, and which of them are the public internet (IANA's special-purpose registries, RFC 6890). */
#ifndef NB_BASE_ADDRESS_H
#define NB_BASE_ADDRESS_H

#include "base/fault.h"

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#define ADDRESS_TEXT_MAX INET6_ADDRSTRLEN

struct address {
	sa_family_t family; /* AF_INET or AF_INET6; an IPv4-mapped IPv6 address becomes AF_INET */
	uint8_t bytes[16];
};

struct prefix {
	struct address base;
	unsigned int bits;
};

#define PREFIXES_MAX 32

struct prefixes {
	size_t n;
	struct prefix at[PREFIXES_MAX];
};

bool address_parse(struct address *ret, const char *text);
bool address_from_sockaddr(struct address *ret, uint16_t *ret_port, const struct sockaddr *sa);
socklen_t address_to_sockaddr(struct sockaddr_storage *out, const struct address *a, uint16_t port);
const char *address_text(const struct address *a, char out[ADDRESS_TEXT_MAX]);
bool address_equal(const struct address *a, const struct address *b);

/* "10.0.0.0/8"; an address without a slash is a prefix of its whole length. Bits beyond the length must be zero. */
bool prefix_parse(struct prefix *ret, const char *text);
bool prefix_has(const struct prefix *p, const struct address *a);
/* Prefixes with blanks between them, as in nestbox.conf. */
enum rc prefixes_parse(struct prefixes *ret, const char *text, struct fault *ret_f);
bool prefixes_have(const struct prefixes *p, const struct address *a);
/* One of them is this address alone. */
bool prefixes_name(const struct prefixes *p, const struct address *a);

/* What this host lets be reached beyond the public internet, and how it knows its own addresses; NULL: they are not asked for. */
struct reach {
	struct prefixes private_ok;
	bool (*is_local)(const struct address *a);
};

/* A host's name in lower case: labels of at most 63 letters, digits and hyphens, these not at a label's ends. */
bool host_name_is_valid(const char *name);

/* Globally reachable unicast. NULL, or what it is instead ("loopback", "private", ...). */
const char *address_special(const struct address *a);
/* An address of this host itself, in the network namespace of the caller. */
bool address_is_local(const struct address *a);

#endif
