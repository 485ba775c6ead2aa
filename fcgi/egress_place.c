/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/egress_place.h"

#include "base/fd.h"
#include "base/hex.h"
#include "fcgi/egress_scan.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <string.h>

#define SEAL_BYTES 16
#define SEAL_TEXT_MAX (2 * SEAL_BYTES + 1)

static enum rc seal_of(const struct seal_key *key, const char *org, char ret[SEAL_TEXT_MAX], struct fault *ret_f)
{
	unsigned char mac[EVP_MAX_MD_SIZE];
	char text[LEDGER_ORG_MAX + 32];
	unsigned int n = 0;
	int text_n = snprintf(text, sizeof(text), "egress ledger of %s", org);

	if (text_n < 0 || (size_t)text_n >= sizeof(text) ||
	    !HMAC(EVP_sha256(), key->bytes, sizeof(key->bytes), (const unsigned char *)text, (size_t)text_n, mac, &n) || n < SEAL_BYTES)
		return fault_set(ret_f, RC_SYS, 0, "seal a place in a ledger");
	hex_of(ret, mac, SEAL_BYTES);
	OPENSSL_cleanse(mac, sizeof(mac));
	return RC_OK;
}

enum rc egress_place(const struct seal_key *key, const char *org, const char *name, char ret[GATEWAY_PLACE_MAX], struct fault *ret_f)
{
	char seal[SEAL_TEXT_MAX];
	enum rc rc = seal_of(key, org, seal, ret_f);
	int n = rc ? 0 : snprintf(ret, GATEWAY_PLACE_MAX, "%s/%s/%s", org, name, seal);

	return rc ? rc : n < 0 || n >= GATEWAY_PLACE_MAX ? fault_set(ret_f, RC_LIMIT, 0, "the place is too long") : RC_OK;
}

enum rc egress_place_next(const struct seal_key *key, int dirfd, const char *place, char ret[GATEWAY_PLACE_MAX], int *ret_fd,
			  struct fault *ret_f)
{
	char org[LEDGER_ORG_MAX] = "", name[LEDGER_NAME_MAX] = "", given[SEAL_TEXT_MAX] = "", want[SEAL_TEXT_MAX], next[LEDGER_NAME_MAX];
	_cleanup_fd_ int fd = -1;
	enum rc rc;

	if (sscanf(place, "%63[^/]/%31[^/]/%32[0-9a-f]", org, name, given) != 3 || strlen(given) != SEAL_TEXT_MAX - 1)
		return fault_set(ret_f, RC_DENIED, 0, "not a place in a ledger");
	rc = seal_of(key, org, want, ret_f);
	if (rc)
		return rc;
	if (CRYPTO_memcmp(given, want, SEAL_TEXT_MAX - 1))
		return fault_set(ret_f, RC_DENIED, 0, "not a place in a ledger");
	if (!egress_file_after(dirfd, org, name, next))
		return fault_set(ret_f, RC_ABSENT, 0, "nothing follows so far");
	rc = egress_place(key, org, next, ret, ret_f);
	if (rc)
		return rc;
	fd = egress_file_open(dirfd, org, next);
	if (fd < 0)
		return fault_set(ret_f, RC_ABSENT, 0, "it was removed meanwhile");
	*ret_fd = take_fd(&fd);
	return RC_OK;
}
