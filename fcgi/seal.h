/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Secrets at rest: base64 of nonce(12) | ciphertext | tag(16), AES-256-GCM. The associated data says what the secret
 * belongs to, so that a sealed value moved to another place does not open.
 */
#ifndef NB_FCGI_SEAL_H
#define NB_FCGI_SEAL_H

#include "base/fault.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define SEAL_KEY_BYTES 32
#define SEAL_API_KEY_FILE "keys/api.key" /* environment variables of apps; user_api only */

struct seal_key {
	uint8_t bytes[SEAL_KEY_BYTES];
};

/* <state_dir>/<name>. */
enum rc seal_key_load(struct seal_key *ret, const char *state_dir, const char *name, struct fault *ret_f);
/* As above, made first if it does not exist, with this owner, group and mode. */
enum rc seal_key_ensure(const char *state_dir, const char *name, uid_t uid, gid_t gid, mode_t mode,
			struct fault *ret_f);

/* *ret is freed by the caller. */
enum rc seal(const struct seal_key *key, const char *value, const char *ad, char **ret, struct fault *ret_f);
enum rc seal_open(const struct seal_key *key, const char *sealed, const char *ad, char **ret, struct fault *ret_f);

#endif
