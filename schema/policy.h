/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The egress policy of one machine, as text: written by the API, kept and passed on unread by the broker, read by the
 * egress proxy. At most BROKER_POLICY_MAX bytes, lines ended by '\n', fields separated by one space.
 *
 *   nestbox-policy 1
 *   default public|none          public: the public internet when no allow line exists; none: nothing but allow lines
 *   allow PATTERN                exact host, host:port, *.suffix, IPv4, IPv4:port, [IPv6], [IPv6]:port, CIDR
 *   deny PATTERN                 wins over allow
 *   secret NAME PLACEHOLDER SEALED HOST[,HOST...]
 *                                SEALED: base64 of nonce(12) | ciphertext | tag(16), AES-256-GCM with the key in
 *                                <state_dir>/keys/egress.key, associated data "<vm id> NAME"
 *   org NAME                     whose ledger the connections belong to
 *
 * An unknown keyword or a malformed line makes the whole policy invalid, and an invalid policy allows nothing.
 */
#ifndef NB_SCHEMA_POLICY_H
#define NB_SCHEMA_POLICY_H

#define POLICY_HEAD "nestbox-policy 1"
#define POLICY_LINES_MAX 1024
#define POLICY_PATTERN_MAX 262   /* a DNS name, a colon and a port */
#define POLICY_SECRETS_MAX 64
#define POLICY_SECRET_VALUE_MAX 8192
#define POLICY_KEY_FILE "keys/egress.key" /* 32 bytes, mode 0640, group user_egress */

#endif
