/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/seal.h"

#include "base/cleanup.h"
#include "base/config.h"
#include "base/fd.h"
#include "fcgi/ids.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <string.h>
#include <sys/stat.h>

#define NONCE 12
#define TAG 16

static void cipher_free(EVP_CIPHER_CTX **c)
{
	EVP_CIPHER_CTX_free(*c);
}

enum rc seal_key_load(struct seal_key *ret, const char *state_dir, const char *name, struct fault *ret_f)
{
	_cleanup_free_ char *text = NULL;
	char path[PATH_MAX];
	size_t n = 0;
	enum rc rc = path_join(path, sizeof(path), state_dir, name, ret_f);

	if (!rc)
		rc = file_read_at(AT_FDCWD, path, SEAL_KEY_BYTES, &text, &n, ret_f);
	if (rc)
		return rc;
	if (n != SEAL_KEY_BYTES)
		return fault_set(ret_f, RC_INVALID, 0, "key file %s is not %d bytes long", name, SEAL_KEY_BYTES);
	memcpy(ret->bytes, text, SEAL_KEY_BYTES);
	OPENSSL_cleanse(text, n);
	return RC_OK;
}

static enum rc key_make(int dirfd, const char *name, struct fault *ret_f)
{
	uint8_t key[SEAL_KEY_BYTES];
	enum rc rc;

	random_bytes(key, sizeof(key));
	rc = file_write_at(dirfd, name, key, sizeof(key), 0600, ret_f);
	OPENSSL_cleanse(key, sizeof(key));
	return rc;
}

enum rc seal_key_ensure(const char *state_dir, const char *name, uid_t uid, gid_t gid, mode_t mode,
			struct fault *ret_f)
{
	_cleanup_fd_ int dirfd = -1, fd = -1;
	char path[PATH_MAX], *slash;
	struct stat st;
	enum rc rc = path_join(path, sizeof(path), state_dir, name, ret_f);

	if (rc)
		return rc;
	slash = strrchr(path, '/');
	*slash = '\0';
	name = slash + 1;
	dirfd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dirfd < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "directory %s", path);
	if (faccessat(dirfd, name, F_OK, 0) < 0)
		rc = errno == ENOENT ? key_make(dirfd, name, ret_f) :
				       fault_set(ret_f, RC_SYS, errno, "key file %s", name);
	if (rc)
		return rc;
	fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 || fstat(fd, &st) < 0)
		return fault_set(ret_f, RC_SYS, errno, "key file %s", name);
	if (st.st_uid == uid && st.st_gid == gid && (st.st_mode & 07777) == mode)
		return RC_OK;
	if (fchown(fd, uid, gid) < 0 || fchmod(fd, mode) < 0)
		return fault_set(ret_f, RC_SYS, errno, "owner and mode of key file %s", name);
	return RC_OK;
}

enum rc seal(const struct seal_key *key, const char *value, const char *ad, char **ret, struct fault *ret_f)
{
	_cleanup_(cipher_free) EVP_CIPHER_CTX *c = EVP_CIPHER_CTX_new();
	size_t n = strlen(value);
	_cleanup_free_ uint8_t *box = malloc(NONCE + n + TAG);
	int len = 0;

	if (!c || !box || n > INT_MAX - NONCE - TAG)
		return fault_set(ret_f, RC_NOMEM, 0, "sealing");
	random_bytes(box, NONCE);
	if (EVP_EncryptInit_ex(c, EVP_aes_256_gcm(), NULL, key->bytes, box) != 1 ||
	    EVP_EncryptUpdate(c, NULL, &len, (const uint8_t *)ad, (int)strlen(ad)) != 1 ||
	    EVP_EncryptUpdate(c, box + NONCE, &len, (const uint8_t *)value, (int)n) != 1 ||
	    EVP_EncryptFinal_ex(c, box + NONCE + n, &len) != 1 ||
	    EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_GCM_GET_TAG, TAG, box + NONCE + n) != 1)
		return fault_set(ret_f, RC_SYS, 0, "sealing failed");
	*ret = base64_encode(box, NONCE + n + TAG);
	return *ret ? RC_OK : fault_set(ret_f, RC_NOMEM, 0, "sealing");
}

enum rc seal_open(const struct seal_key *key, const char *sealed, const char *ad, char **ret, struct fault *ret_f)
{
	_cleanup_(cipher_free) EVP_CIPHER_CTX *c = EVP_CIPHER_CTX_new();
	_cleanup_free_ uint8_t *box = NULL;
	_cleanup_free_ char *out = NULL;
	size_t n = 0;
	int len = 0;
	enum rc rc = base64_decode(sealed, strlen(sealed), &box, &n, ret_f);

	if (rc)
		return rc;
	if (n < NONCE + TAG)
		return fault_set(ret_f, RC_INVALID, 0, "sealed value is too short");
	out = malloc(n);
	if (!c || !out)
		return fault_set(ret_f, RC_NOMEM, 0, "opening a sealed value");
	n -= NONCE + TAG;
	if (EVP_DecryptInit_ex(c, EVP_aes_256_gcm(), NULL, key->bytes, box) != 1 ||
	    EVP_DecryptUpdate(c, NULL, &len, (const uint8_t *)ad, (int)strlen(ad)) != 1 ||
	    EVP_DecryptUpdate(c, (uint8_t *)out, &len, box + NONCE, (int)n) != 1 ||
	    EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_GCM_SET_TAG, TAG, box + NONCE + n) != 1 ||
	    EVP_DecryptFinal_ex(c, (uint8_t *)out + n, &len) != 1)
		return fault_set(ret_f, RC_DENIED, 0, "sealed value does not open");
	out[n] = '\0';
	*ret = take_ptr(out);
	return RC_OK;
}
