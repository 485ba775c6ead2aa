/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The egress policy of one machine, as text: written by the API, kept and passed on unread by the broker, read by the
 * egress proxy. At most BROKER_POLICY_MAX bytes, lines ended by '\n', fields separated by one space.
 *
 *   nestbox-policy 1
 *   default public|none          public: the public internet when no allow line exists; none: nothing but allow lines
 *   allow PATTERN                exact host, host:port, *.suffix, IPv4, IPv4:port, [IPv6], [IPv6]:port, CIDR
 *   deny PATTERN                 wins over allow
 *   rule HOST METHODS PREFIX     HOST: host, *.suffix, with a port if wanted. METHODS: GET,POST or *. PREFIX: whole segments of a
 *                                path. A host that a rule names takes only requests that one of its rules allows
 *   limit KEY=N [KEY=N...]       bytes_per_s, total_bytes, conns_per_s of the machine; below the operator's own. Once
 *   secret NAME PLACEHOLDER SEALED HOST[,HOST...]
 *                                SEALED: base64 of nonce(12) | ciphertext | tag(16), AES-256-GCM with the key in
 *                                <state_dir>/keys/egress.key, associated data "<vm id> NAME"
 *   secret-rule NAME [methods=M,M] [paths=P,P] [headers=H,H] [query=Q,Q]
 *                                after its secret line, once. What narrows where the placeholder is replaced; query adds
 *                                parameters in which it is, and headers in lower case replace the default set
 *   org NAME                     whose ledger the connections belong to
 *
 * An unknown keyword or a malformed line makes the whole policy invalid, and an invalid policy allows nothing. What a field
 * may be is asked of the functions below on both sides, so that the API lets nothing through that the proxy refuses.
 */
#ifndef NB_SCHEMA_POLICY_H
#define NB_SCHEMA_POLICY_H

#include <stdbool.h>
#include <stddef.h>

#define POLICY_HEAD "nestbox-policy 1"
#define POLICY_LINES_MAX 1024
#define POLICY_PATTERN_MAX 262   /* a DNS name, a colon and a port */
#define POLICY_SECRETS_MAX 64
#define POLICY_SECRET_VALUE_MAX 8192
#define POLICY_WORDS_MAX 16      /* of one list of methods, paths, headers or query parameters */
#define POLICY_WORD_MAX 256      /* bytes of one of them */
#define POLICY_METHOD_MAX 15     /* bytes */
#define POLICY_NUMBER_MAX (1ull << 50)
#define POLICY_KEY_FILE "keys/egress.key" /* 32 bytes, mode 0640, group user_egress */

/* Any PATTERN; case does not matter. */
bool policy_pattern_ok(const char *s);
/* One that is not an address or a prefix: for rules and secrets. */
bool policy_host_ok(const char *s);

bool policy_method_ok(const char *s);
bool policy_path_ok(const char *s);   /* its own normal form, nothing that ends a field or a list */
bool policy_header_ok(const char *s); /* lower case */
bool policy_query_ok(const char *s);

enum policy_path { POLICY_PATH_OK, POLICY_PATH_AMBIGUOUS, POLICY_PATH_LONG };

/*
 * The path of a request target (without its query) as rules see it: what needs no encoding is decoded, "." and ".."
 * segments are resolved. AMBIGUOUS is what servers are known to read in different ways: an encoded slash, backslash, percent
 * or NUL, an empty segment, a backslash, a dot segment with parameters, a malformed escape. out is a string, of at most
 * n + 1 bytes.
 */
enum policy_path policy_path_normalize(const char *path, size_t n, char *out, size_t size);
/* Whole segments: "/v1" has "/v1" and "/v1/x", not "/v10"; "/v1/" has what begins with it. */
bool policy_path_has(const char *prefix, const char *path);

#endif
